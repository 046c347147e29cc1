"""The libseccomp front: what its calls answer, beside what libseccomp's own binding does; what is better."""

import errno
import gc
import io
import json
import subprocess
import sys
import tempfile
import tracemalloc
from pathlib import Path

import pytest

from harness import descriptors

import pyseccomp as ps
from pyseccomp import pseudo

SCRIPT = Path(__file__).with_name("libseccomp_calls.py")
PYTHON = "/usr/bin/python3"
HEADER = Path("/usr/include/seccomp-syscalls.h")


def answers(python, module):
    done = subprocess.run([python, "-c", SCRIPT.read_text(), module], capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_calls_answer_what_the_binding_s_do():
    if not Path(PYTHON).exists() or subprocess.run([PYTHON, "-c", "import seccomp"], capture_output=True).returncode:
        pytest.skip("material lacks python3-seccomp, the rival")
    theirs, ours = answers(PYTHON, "seccomp"), answers(sys.executable, "pyseccomp")
    assert [call for call, _ in ours] == [call for call, _ in theirs]
    assert len(ours) > 1700
    for (call, mine), (_, other) in zip(ours, theirs, strict=True):
        if "kinds" in other:
            assert set(other["kinds"]) <= set(mine.get("kinds", ())), (call, mine, other)
            assert other["errno"] is None or mine["errno"] == other["errno"], (call, mine, other)
        else:
            assert mine == other, call


def test_names_are_all_there():
    for name in (
        "KILL_PROCESS KILL KILL_THREAD TRAP LOG ALLOW NOTIFY ERRNO TRACE NE LT LE EQ GE GT MASKED_EQ system_arch resolve_syscall "
        "get_api set_api c_str Arch Attr Arg Notification NotificationResponse NotificationAddfd SyscallFilter Kver"
    ).split():
        assert getattr(ps, name).__doc__ or isinstance(getattr(ps, name), int)
    for name in (
        "reset merge exist_arch add_arch remove_arch load get_attr set_attr syscall_priority add_rule add_rule_exactly "
        "receive_notify respond_notify get_notify_fd notify_addfd export_pfc export_bpf export_bpf_mem start_transaction "
        "reject_transaction commit_transaction precompute"
    ).split():
        assert len(getattr(ps.SyscallFilter, name).__doc__) > 30
    for name in (
        "NATIVE X86 X86_64 X32 ARM AARCH64 LOONGARCH64 M68K MIPS MIPS64 MIPS64N32 MIPSEL MIPSEL64 MIPSEL64N32 PARISC PARISC64 PPC "
        "PPC64 PPC64LE S390 S390X RISCV64"
    ).split():
        assert isinstance(getattr(ps.Arch, name), int)
    assert [ps.Kver.UNDEF, ps.Kver.v3_0, ps.Kver.v3_19, ps.Kver.v4_0, ps.Kver.v6_18] == [1, 2, 21, 22, 81]
    with pytest.raises(AttributeError, match="no version"):
        _ = ps.Kver.v2_6


def test_an_errno_s_name_is_no_number_but_is_told_how_to_be_one():
    with pytest.raises(TypeError, match=r"ERRNO\('EPERM'\): an integer is required such as errno.EPERM"):
        ps.ERRNO("EPERM")


def test_parameters_of_arg_have_the_names_of_both_packages():
    for named in ({"datum_a": 3, "datum_b": 1}, {"data_a": 3, "data_b": 1}, {"a": 3, "b": 1}):
        assert ps.Arg(arg=0, op=ps.MASKED_EQ, **named) == ps.Arg(0, ps.MASKED_EQ, **named) == ps.Arg(0, ps.MASKED_EQ, 3, 1)
    with pytest.raises(TypeError, match="'a' and 'datum_a', which mean the same"):
        ps.Arg(0, ps.EQ, 1, datum_a=1)


def test_negative_numbers_are_libseccomp_s():
    if not HEADER.exists():
        pytest.skip("material lacks libseccomp-dev, whose header has the numbers")
    defined = {}
    for line in HEADER.read_text().splitlines():
        words = line.split()
        if line.startswith("#define __PNR_") and len(words) == 3:
            defined[words[1][6:]] = int(words[2])
    assert len(defined) > 200
    assert {name: pseudo.NUMBERS.get(name) for name in defined} == defined


def test_arch_is_libseccomp_s_token():
    assert ps.Arch.X86_64 == 0xC000003E == ps.Arch(-1073741762) == ps.Arch("x86_64")
    assert {ps.Arch.X86_64: 1}[0xC000003E] == 1
    assert int(ps.Arch()) == ps.system_arch() == int(ps.Arch(ps.Arch.NATIVE))
    assert (ps.Arch.X32, ps.Arch.X32.token) == (0x4000003E, 0xC000003E)
    for value, error in (("nosuch", ValueError), (12345, ValueError), (1.5, TypeError), (None, TypeError), (True, TypeError)):
        with pytest.raises(error):
            ps.Arch(value)


def test_errors_are_of_each_rival_s_kind():
    f = ps.SyscallFilter(ps.ALLOW)
    with pytest.raises(RuntimeError, match=r"^Library error \(errno = -13\): .*default") as caught:
        f.add_rule(ps.ALLOW, "read")
    assert isinstance(caught.value, OSError)
    assert caught.value.errno == errno.EACCES
    with pytest.raises(OSError, match="did you mean openat") as caught:
        f.add_rule(ps.ERRNO(1), "opennat")
    assert caught.value.errno == errno.EINVAL


def test_a_refused_rule_changes_nothing():
    f = ps.SyscallFilter(ps.ALLOW)
    f.add_arch(ps.Arch.X86)
    f.add_rule(ps.ERRNO(1), "read", ps.Arg(0, ps.EQ, 1))
    before = bytes(f.program)
    for bad in (("read", ps.Arg(0, ps.EQ, 1)), ("nosuch",), (9999,), ("read", ps.Arg(0, ps.EQ, 1), ps.Arg(0, ps.NE, 2))):
        with pytest.raises(ps.LibseccompError):
            f.add_rule(ps.ERRNO(2), *bad)
    assert f.exist_arch(ps.Arch.X86)
    assert bytes(f.program) == before


def test_transactions_nest():
    f = ps.SyscallFilter(ps.ALLOW)
    f.add_rule(ps.ERRNO(1), "read")
    one = bytes(f.program)
    f.start_transaction()
    f.add_rule(ps.ERRNO(1), "write", ps.Arg(0, ps.LT, 3))
    two = bytes(f.program)
    f.start_transaction()
    f.add_arch(ps.Arch.X86)
    f.set_attr(ps.Attr.ACT_BADARCH, ps.ALLOW)
    f.add_rule(ps.ERRNO(2), "kill")
    f.reject_transaction()
    assert (bytes(f.program), f.exist_arch(ps.Arch.X86), f.get_attr(ps.Attr.ACT_BADARCH)) == (two, False, 0)
    f.start_transaction()
    f.add_rule(ps.ERRNO(2), "kill")
    f.commit_transaction()
    f.reject_transaction()
    assert bytes(f.program) == one
    f.reject_transaction()
    f.commit_transaction()
    assert bytes(f.program) == one


def test_merge_takes_all_and_leaves_a_new_filter():
    a, b = ps.SyscallFilter(ps.ERRNO(3)), ps.SyscallFilter(ps.ERRNO(3))
    a.add_rule(ps.ALLOW, "read")
    b.remove_arch(ps.Arch())
    b.add_arch(ps.Arch.X86 if ps.Arch() is ps.Arch.X86_64 else ps.Arch.ARM)
    b.add_rule(ps.ALLOW, "write")
    a.merge(b)
    decide = a.program.simulate
    assert decide("read").action == ps.ALLOW
    assert decide("write").action == ps.ERRNO(3)
    assert b.exist_arch(ps.Arch())
    b.add_rule(ps.ALLOW, "read")
    assert bytes(b.program)


def test_reset_keeps_the_default():
    f = ps.SyscallFilter(ps.ERRNO(9))
    f.set_attr(ps.Attr.CTL_OPTIMIZE, 2)
    f.reset()
    assert (f.get_attr(ps.Attr.ACT_DEFAULT), f.get_attr(ps.Attr.CTL_OPTIMIZE)) == (ps.ERRNO(9), 1)


def test_exports_are_the_program(tmp_path):
    f = ps.SyscallFilter(ps.KILL)
    f.add_rule(ps.ALLOW, "write", ps.Arg(0, ps.EQ, 1), ps.Arg(2, ps.MASKED_EQ, 0xFF, 3))
    f.add_rule(ps.ERRNO(13), "open")
    f.precompute()
    with open(tmp_path / "bpf", "w+b") as file:
        f.export_bpf(file)
    assert (tmp_path / "bpf").read_bytes() == bytes(f.export_bpf_mem()) == bytes(f.program)
    with open(tmp_path / "pfc", "w") as file:
        file.write("# before\n")
        f.export_pfc(file)
    text = (tmp_path / "pfc").read_text()
    assert text.startswith("# before\n#\n# pseudo filter code start")
    assert "if ($a0 == 1 && ($a2 & 0xff) == 0x3)\n      action ALLOW;" in text
    assert "action ERRNO(13);" in text
    with open("/dev/null") as file, pytest.raises(OSError, match="exporting"):
        f.export_bpf(file)
    with pytest.raises(io.UnsupportedOperation):
        f.export_bpf(io.BytesIO())


def test_big_endian_export_is_in_that_order():
    f = ps.SyscallFilter(ps.ALLOW)
    f.remove_arch(ps.Arch())
    f.add_arch(ps.Arch.S390X)
    f.add_rule(ps.ERRNO(1), "read", ps.Arg(1, ps.EQ, 0x1122334455667788))
    assert bytes.fromhex("0006000000050001") in bytes(f.export_bpf_mem()).replace(b"\0\x06\0\0\0\5\0\1", bytes.fromhex("0006000000050001"))
    assert f.program.simulate("read", (0, 0x1122334455667788), "s390x").action == ps.ERRNO(1)
    assert f.program.simulate("read", (0, 0x1122334455667789), "s390x").action == ps.ALLOW


def test_priorities_shorten_a_call_s_path():
    def executed(**priorities):
        f = ps.SyscallFilter(ps.ALLOW)
        for name in sorted(ps.syscalls.names())[:200:2]:
            f.add_rule(ps.ERRNO(1), name)
        for name, priority in priorities.items():
            f.syscall_priority(name, priority)
        return f.program.simulate("bind").executed

    assert executed(bind=255) < executed()


def test_a_rule_for_the_skipped_call():
    f = ps.SyscallFilter(ps.ALLOW)
    f.set_attr(ps.Attr.API_TSKIP, 1)
    f.add_rule(ps.ERRNO(1), -1)
    assert [f.program.simulate(nr).action for nr in (-1, 0)] == [ps.ERRNO(1), ps.ALLOW]


def test_levels():
    was = ps.get_api()
    assert 5 <= was <= 7
    f = ps.SyscallFilter(ps.ALLOW)
    try:
        ps.set_api(1)
        assert ps.get_api() == 1
        for attr in (ps.Attr.CTL_TSYNC, ps.Attr.CTL_LOG, ps.Attr.CTL_SSB, ps.Attr.CTL_WAITKILL):
            with pytest.raises(RuntimeError, match="errno = -95"):
                f.set_attr(attr, 1)
        for action in (ps.LOG, ps.NOTIFY, ps.KILL_PROCESS):
            with pytest.raises(RuntimeError, match="errno = -22"):
                f.add_rule(action, "read")
    finally:
        ps.set_api(was)


def test_values_of_notifications():
    binding = ps.Notification(7, 8, 0, 9, 0xC000003E, 10, [1, 2, 3, 4, 5, 6])
    other = ps.Notification(id=7, pid=8, flags=0, syscall=9, syscall_arch=0xC000003E, syscall_ip=10, syscall_args=range(1, 7))
    for n in (binding, other):
        assert (n.id, n.pid, n.syscall, n.syscall_arch, n.syscall_ip, n.syscall_args) == (7, 8, 9, 0xC000003E, 10, [1, 2, 3, 4, 5, 6])
        assert isinstance(n, ps.Notification)
    for answer in (ps.NotificationResponse(binding, 3, error=-1), ps.NotificationResponse(error=-1, flags=0, id=7, val=3)):
        assert (answer.id, answer.val, answer.error, answer.flags) == (7, 3, -1, 0)
    assert ps.NotificationResponse(-1, 0, 7, 3).id == 7
    add = ps.NotificationAddfd(binding, 1, 5, newfd=6)
    assert (add.id, add.flags, add.srcfd, add.newfd, add.newfd_flags) == (7, 1, 5, 6, 0)
    with pytest.raises(IndexError):
        ps.Notification(7, 8, 0, 9, 1, 10, [1])
    for bad in (lambda: ps.NotificationResponse(), lambda: ps.NotificationResponse(error=1, id=3), lambda: ps.NotificationResponse(binding, 1, 2, 3, 4)):
        with pytest.raises(TypeError):
            bad()


def test_nothing_leaks():
    def build():
        f = ps.SyscallFilter(ps.ALLOW)
        f.start_transaction()
        for name in ("read", "write", "socket"):
            f.add_rule(ps.ERRNO(1), name, ps.Arg(0, ps.GT, 5))
        f.commit_transaction()
        with tempfile.TemporaryFile() as file:
            f.export_bpf(file)
            f.export_pfc(file)
        f.reset()

    for _ in range(5):
        build()
    fds = len(descriptors())
    tracemalloc.start()
    try:
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(200):
            build()
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] - before < 20_000
    finally:
        tracemalloc.stop()
    assert len(descriptors()) == fds
