"""CRIU's images: ours read by Google's protobuf, Google's by us; what is none is refused."""

import json
import random
import shutil
import struct
import subprocess

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

import pyseccomp as ps
from pyseccomp import criu


def entry_class():
    file = descriptor_pb2.FileDescriptorProto(name="seccomp.proto", syntax="proto2")
    one = file.message_type.add(name="seccomp_filter")
    one.field.add(name="filter", number=1, type=12, label=2)
    one.field.add(name="prev", number=2, type=13, label=1)
    one.field.add(name="flags", number=3, type=13, label=1)
    file.message_type.add(name="seccomp_entry").field.add(name="seccomp_filters", number=1, type=11, label=3, type_name=".seccomp_filter")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("seccomp_entry"))


def loaded(number, log):
    policy = ps.Policy()
    policy.add(ps.ERRNO(number), "mkdir")
    return ps.LoadedFilter(policy.compile(), log)


Entry = entry_class()
A, B, C = loaded(1, False), loaded(2, True), loaded(3, False)


def test_ours_is_read_by_protobuf():
    data = criu.dump([(A, B), (A, C), (A, B, C), (C,)])
    magic, kind, length = struct.unpack_from("<III", data)
    assert (magic, kind, length) == (0x54564319, 0x64413049, len(data) - 12)
    entry = Entry.FromString(data[12:])
    found = [(f.filter, f.prev if f.HasField("prev") else None, f.flags) for f in entry.seccomp_filters]
    a, b, c = (bytes(one.program) for one in (A, B, C))
    assert found == [(a, None, 0), (b, 0, 2), (c, 0, 0), (c, 1, 0), (c, None, 0)]


def test_protobuf_s_is_read_by_us():
    entry = Entry()
    for one, prev in ((A, None), (B, 0), (C, 1), (C, None)):
        message = entry.seccomp_filters.add(filter=bytes(one.program))
        if prev is not None:
            message.prev = prev
        if one.log:
            message.flags = 2
    body = entry.SerializeToString()
    image = criu.load(criu.MAGIC + struct.pack("<I", len(body)) + body)
    assert image.chain(2) == (A, B, C) and image.chain(3) == (C,) and image.last() == (2, 3)
    assert criu.load(criu.dump([image.chain(2), image.chain(3)])) == image
    with pytest.raises(ps.PolicyError, match="no number 4"):
        image.chain(4)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "does not begin"),
        (b"x" * 40, "does not begin"),
        (criu.MAGIC + b"\x05\0\0\0", "5 bytes follow"),
        (criu.MAGIC + b"\x02\0\0\0\x0a\x09", "cut off"),
        (criu.MAGIC + b"\x02\0\0\0\x0a\x00", "has no program"),
        (criu.MAGIC + b"\x06\0\0\0\x0a\x04\x0a\x02ab", "instruction|bytes|length|multiple"),
        (criu.MAGIC + b"\x01\0\0\0\x0f", "unknown kind"),
        (criu.MAGIC + b"\x0b\0\0\0" + b"\x80" * 11, "too long"),
    ],
)
def test_what_is_none_is_refused(data, why):
    with pytest.raises(ps.SeccompError, match=why):
        criu.load(data)


def test_criu_s_own_tool_reads_ours_and_writes_the_same(tmp_path):
    if shutil.which("crit") is None:
        pytest.skip("material lacks crit, which comes with criu")
    data = criu.dump([(A, B), (A, C), (A, B, C), (C,)])
    (tmp_path / "seccomp.img").write_bytes(data)
    for command in (["decode", "-i", "seccomp.img", "-o", "text"], ["encode", "-i", "text", "-o", "again.img"]):
        subprocess.run(["crit", *command], cwd=tmp_path, check=True)
    assert json.loads((tmp_path / "text").read_text())["magic"] == "SECCOMP"
    assert (tmp_path / "again.img").read_bytes() == data


def test_a_chain_cannot_loop():
    entry = Entry()
    entry.seccomp_filters.add(filter=bytes(A.program), prev=0)
    body = entry.SerializeToString()
    with pytest.raises(ps.PolicyError, match="comes no earlier"):
        criu.load(criu.MAGIC + struct.pack("<I", len(body)) + body)


def test_damaged_images_are_errors_and_nothing_else():
    chance = random.Random(3)
    good = criu.dump([(A, B, C), (C, A)])
    for _ in range(3000):
        data = bytearray(good)
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        data = data[: chance.choice([len(data), chance.randrange(len(data))])]
        try:
            image = criu.load(bytes(data))
        except ps.SeccompError:
            continue
        for last in image.last():
            image.chain(last)
