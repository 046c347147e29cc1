"""Policy files through one door: which format a file has, Firecracker's, raw BPF, the ways out, differences by call."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

import pyseccomp as ps
from pyseccomp import firecracker, formats

POLICIES = Path(os.environ.get("PYSECCOMP_POLICIES", Path(__file__).parents[3] / "shared" / "policies"))
OCI = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5}]}


def filters(*rules, **more):
    return {"vmm": {"mismatch_action": "trap", "match_action": "allow", "filter": list(rules)} | more}


def arg(index=0, kind="dword", op="eq", val=1, **more):
    return {"index": index, "type": kind, "op": op, "val": val, **more}


def read(value, **options):
    return firecracker.load(value, "f.json", **({"arch": "x86_64"} | options))


def answer(value, call, *args):
    return read(value).compile().simulate(call, args, arch="x86_64").action


def cli(*args, data=None):
    return subprocess.run([sys.executable, "-m", "pyseccomp", *map(str, args)], input=data, capture_output=True, timeout=60)


def test_one_door_tells_formats_by_content(tmp_path):
    path = tmp_path / "p"
    path.write_text(json.dumps(OCI))
    policy = ps.load(path)
    assert isinstance(policy, ps.Policy)
    program = policy.compile()
    path.write_bytes(bytes(program))
    assert ps.load(path) == program
    path.write_text(json.dumps(filters({"syscall": "read"})))
    assert ps.load(path).default == ps.TRAP


@pytest.mark.parametrize(
    ("data", "error", "says"),
    [
        (b"", ps.ProgramError, "of no known format: neither OCI JSON"),
        (b"hello", ps.ProgramError, "of no known format: neither OCI JSON"),
        (b"\x06\0\0\0\0\0\xff", ps.ProgramError, "of no known format: neither OCI JSON"),
        (b"\xff\0\0\0\0\0\0\0", ps.ProgramError, "instruction 0"),
        (b"struct sock_filter f[2] = { { 0x6, 0, 0, 0 } };", ps.PolicyError, "expected 2 instructions .* found 1"),
        (b"struct sock_filter f[] = { { 0x6, 0, 0, RET } };", ps.PolicyError, "not four numbers"),
        (b"struct sock_filter f[] = { { 0x6, 0, 256, 0 } };", ps.PolicyError, "not four numbers"),
        (b"struct sock_filter f[] = { BPF_STMT(6, 0) };", ps.PolicyError, "expected only instructions"),
        (b"struct sock_filter *f;", ps.PolicyError, "expected one array"),
        (b'{"defaultAction"', ps.PolicyError, "line 1 column 17: not JSON"),
        (b'{"a":' * 100000, ps.PolicyError, "nested too deeply"),
        (b'{"defaultAction": ' + b"9" * 5000 + b"}", ps.PolicyError, "not a seccomp profile"),
        (b"{" + b" " * (16 << 20), ps.PolicyError, "larger than 16 MiB"),
    ],
)
def test_files_of_no_format_are_refused_by_name(tmp_path, data, error, says):
    path = tmp_path / "policy"
    path.write_bytes(data)
    with pytest.raises(error, match=f"policy: .*{says}"):
        ps.load(path)
    with pytest.raises(ps.PolicyError, match="cannot be read: No such file"):
        ps.load(tmp_path / "none")


def test_a_byte_order_mark_is_passed_over(tmp_path):
    program = ps.Policy(ps.ALLOW, "x86_64").compile()
    for text in (json.dumps(OCI), json.dumps(filters({"syscall": "read"})), "read: 1\n", program.disassemble(), program.to_c()):
        (tmp_path / "p").write_bytes(b"\xef\xbb\xbf" + text.encode())
        assert formats.program(ps.load(tmp_path / "p"))


def test_firecracker_rules_of_a_call_are_alternatives_and_dwords_are_low_words():
    either = filters({"syscall": "read", "args": [arg(val=1)]}, {"syscall": "read", "args": [arg(val=2), arg(1, "qword", "gt", 7)]})
    assert answer(either, "read", 1 << 32 | 1) == ps.ALLOW
    assert answer(either, "read", 2, 1 << 32) == ps.ALLOW
    assert answer(either, "read", 2, 7) == ps.TRAP
    masked = filters({"syscall": "read", "args": [arg(op={"masked_eq": 4}, val=7)]})
    assert answer(masked, "read", 0xC) == ps.ALLOW
    assert answer(masked, "read", 0xB) == ps.TRAP


def test_firecracker_older_names_and_actions_with_data():
    older = {"vmm": {"default_action": {"errno": 5}, "filter_action": {"trace": 9}, "filter": [{"syscall": "read", "args": [
        {"arg_index": 0, "arg_type": "dword", "op": "eq", "val": 1}]}]}}  # fmt: skip
    assert answer(older, "read", 1) == ps.TRACE(9)
    assert answer(older, "read", 2) == ps.ERRNO(5)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ([], r"\$: expected an object"),
        (filters() | {"api": {}}, "name one: vmm, api"),
        (filters(match_action="trap"), r"\$\.vmm: match_action and mismatch_action are both TRAP"),
        (filters(match_action="alow"), r"\$\.vmm\.match_action: unknown action 'alow'"),
        (filters(match_action={"errno": 5000}), r"match_action\.errno: 5000 is not"),
        (filters(default_action="log"), "is given twice, as default_action too"),
        (filters(filter={}), r"\$\.vmm\.filter: expected a list"),
        (filters({"syscall": "raed"}), r"filter\[0\]\.syscall: .*did you mean read"),
        (filters({"syscall": 3}), r"filter\[0\]\.syscall: expected a name"),
        (filters({"syscall": "read", "arg": []}), r"filter\[0\]\.arg: unknown key"),
        (filters({"syscall": "read", "args": []}), "leave it out"),
        (filters({"syscall": "read"}, {"syscall": "read", "args": [arg()]}), r"filter\[1\]: read has rules with args and one without"),
        (filters({"syscall": "read", "args": [arg(6)]}), r"args\[0\]\.index: 6 is not"),
        (filters({"syscall": "read", "args": [arg(val=1), arg(val=2)]}), r"filter\[0\]\.args: read: .* contradict each other"),
        (filters({"syscall": "read", "args": [arg(kind="word")]}), r"args\[0\]\.type: unknown type"),
        (filters({"syscall": "read", "args": [arg(op="is")]}), r"args\[0\]\.op: unknown operator"),
        (filters({"syscall": "read", "args": [arg(val=-1)]}), r"args\[0\]\.val: -1 is not"),
    ],
)
def test_firecracker_errors_name_the_place_and_the_reason(value, says):
    with pytest.raises(ps.PolicyError, match=f"f.json: .*{says}"):
        read(value)


@pytest.mark.parametrize("thread", ["vmm", "api", "vcpu"])
def test_firecracker_s_own_filters_against_a_reading_of_their_rules(thread):
    path = POLICIES / "firecracker-x86_64.json"
    if not path.exists():
        pytest.skip("material lacks firecracker-x86_64.json (PYSECCOMP_POLICIES)")
    rules = json.loads(path.read_text())[thread]["filter"]
    program = ps.load(path, thread=thread, arch="x86_64").compile()
    for rule in rules:
        args = [0] * 6
        for one in rule.get("args", []):
            args[one["index"]] = one["val"] | 0xABCD << 32
        assert program.simulate(rule["syscall"], args, arch="x86_64").action == ps.ALLOW
    assert len(rules) > 30
    named = {rule["syscall"] for rule in rules}
    for call in set(ps.syscalls.names("x86_64")) - named:
        assert program.simulate(call, arch="x86_64").action == ps.TRAP


def test_every_way_out(tmp_path):
    source = tmp_path / "p.json"
    source.write_text(json.dumps(OCI))
    program = ps.load(source).compile()
    assert cli("compile", source, "-o", "-").stdout == bytes(program)
    assert cli("compile", source, "-o", "-", "--format", "text").stdout.decode().strip() == program.disassemble().strip()
    again = tmp_path / "again.json"
    assert cli("compile", source, "-o", again, "--format", "oci").returncode == 0
    assert ps.load(again).compile() == program
    header, main = tmp_path / "filter.h", tmp_path / "main.c"
    assert cli("compile", source, "-o", header, "--format", "c-header").returncode == 0
    main.write_text('#include <stdio.h>\n#include "filter.h"\nint main(void) { return fwrite(filter, sizeof(filter), 1, stdout) != 1; }\n')
    subprocess.run(["cc", "-Wall", "-Werror", "-o", tmp_path / "main", main], check=True)
    assert subprocess.run([tmp_path / "main"], capture_output=True, check=True).stdout == bytes(program)
    assert ps.load(header) == program
    raw = tmp_path / "raw"
    raw.write_bytes(bytes(program))
    assert cli("compile", raw, "-o", again, "--format", "oci").returncode == 0
    assert json.loads(again.read_text())["syscalls"][0] == {"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5}
    assert ps.load(again).compile() == program
    raw.write_bytes(struct.pack("=HBBIHBBIHBBI", 0x20, 0, 0, 8, 0x15, 0, 0, 7, 0x06, 0, 0, 0) + struct.pack("=HBBI", 0x16, 0, 0, 0))
    refused = cli("compile", raw, "-o", tmp_path / "no", "--format", "oci")
    assert (refused.returncode, (tmp_path / "no").exists()) == (1, False)
    assert b"cannot be written as an OCI profile: " in refused.stderr
    assert b"exclude each other" in cli("compile", raw, "--deny", "mkdir", "-o", "-").stderr


def test_names_that_are_passed_over_are_told(tmp_path):
    source = tmp_path / "p.json"
    source.write_text(json.dumps(OCI).replace("mkdir", 'mkdri", "mkdir'))
    done = cli("compile", source, "-o", tmp_path / "o")
    assert (done.returncode, done.stderr) == (0, f"{source}: no system call anywhere, passed over: mkdri\n".encode())


def test_diff_tells_a_call_for_each_and_ends_like_diff(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text(json.dumps(OCI))
    other = json.loads(json.dumps(OCI))
    other["syscalls"][0]["names"] = ["rmdir"]
    two.write_text(json.dumps(other))
    found = list(formats.differences(ps.load(one), ps.load(two)))
    assert {d.syscall for d in found} == {"mkdir", "rmdir"}
    assert len(found) == 2
    for d in found:
        first = ps.load(one).compile().simulate(d.nr, d.args, arch=d.arch).action
        assert first == d.first.action != d.second.action
    shown = cli("diff", one, two)
    assert shown.returncode == 1
    assert len(shown.stdout.splitlines()) == 2
    assert (cli("diff", one, one).returncode, cli("diff", one, tmp_path / "none").returncode) == (0, 2)


def test_differences_where_no_table_has_a_name_come_once():
    found = list(formats.differences(ps.Policy(ps.ALLOW, "x86_64"), ps.Policy(ps.ALLOW, "x86_64", bad_arch=ps.KILL)))
    assert any(d.arch is None for d in found)
    assert len([d for d in found if d.syscall is None]) < 2 * len(ps.Arch)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(["allow", "trap", "dword", "eq", "read", "SCMP_ACT_ERRNO"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["vmm", "filter", "mismatch_action", "match_action", "syscall", "args", "index", "type", "op", "val", "errno",
                         "defaultAction", "syscalls", "names", "action", "errnoRet", "includes", "caps", "architectures", "archMap"]),
        inner, max_size=5,
    ),
    max_leaves=12,
)  # fmt: skip


@given(JSON)
@settings(max_examples=300, deadline=None)
def test_any_json_is_a_policy_or_one_clear_error(value):
    for reader in (lambda: read(value), lambda: formats.parse(json.dumps(value).encode(), "f.json"), lambda: read(filters(value))):
        try:
            assert isinstance(reader(), ps.Policy)
        except (ps.PolicyError, ps.ProgramError) as error:
            assert str(error).startswith("f.json: ")


@given(st.binary(max_size=64) | st.lists(st.tuples(st.sampled_from([0x06, 0x20, 0x15]), st.integers(0, 3), st.integers(0, 3), st.sampled_from([0, 4, 0x7FFF0000]))).map(
    lambda steps: b"".join(struct.pack("=HBBI", *step) for step in steps)))  # fmt: skip
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_a_program_or_one_clear_error(data):
    try:
        source = formats.parse(data, "f")
    except (ps.PolicyError, ps.ProgramError) as error:
        assert str(error).startswith("f: ")
    else:
        assert bytes(source) == data
