"""What a binding of libseccomp answers to many calls, a line each; run under ours and under theirs by test_compat_calls.py.

sys.argv[1] is the module's name. A line is the call as JSON, and its result: a value, or the classes and the errno of an error.
"""

import importlib
import json
import re
import sys
import tempfile

seccomp = importlib.import_module(sys.argv[1])
Arch, Arg, Attr = seccomp.Arch, seccomp.Arg, seccomp.Attr


def plain(value):
    """A value as JSON has it; actions and tokens are unsigned."""
    if isinstance(value, (bytes, type(None), str)):
        return repr(value)
    return int(value) % (1 << 32) if isinstance(value, int) else type(value).__name__


def show(name, function, *args):
    """Print what a call gives."""
    try:
        result = {"value": plain(function(*args))}
    except Exception as error:
        number = re.search(r"errno = -(\d+)", str(error))
        kinds = [kind.__name__ for kind in (ValueError, RuntimeError, TypeError, OSError) if isinstance(error, kind)]
        result = {"kinds": kinds, "errno": int(number[1]) if number else None}
    print(json.dumps([[name, *[plain(a) for a in args]], result]))


new = seccomp.SyscallFilter
S390X, X86, X86_64, X32, ARM = (int(Arch(n)) for n in ("s390x", "x86", "x86_64", "x32", "arm"))
show("system_arch", seccomp.system_arch)
for name in ("read", "socketcall", "ipc", "arm_fadvise64_64", "nosuch", "mmap2", "_llseek", "socket", "shmat"):
    show("resolve", seccomp.resolve_syscall, int(Arch()), name)
for name in ("read", "socketcall", "ipc", "nosuch", "mmap2", "_llseek"):
    show("resolve", seccomp.resolve_syscall, S390X, name)
for number in (0, 2, 41, 99999, -101):
    show("resolve number", seccomp.resolve_syscall, X86_64, number)
for token in (X86_64, X86, S390X, int(Arch("aarch64"))):
    for number in (*range(-10250, -9999), *range(-230, -90)):
        if number != -10146:  # oldwait4, which libseccomp numbers and does not name
            show("resolve number", seccomp.resolve_syscall, token, number)
for data in ("EPERM", None, b"1"):
    show("errno", seccomp.ERRNO, data)
    show("trace", seccomp.TRACE, data)
for named in ({"arg": 0, "op": 4, "datum_a": 1}, {"arg": 0, "op": 7, "datum_a": 3, "datum_b": 1}, {"arg": 0, "op": 4}, {"arg": 0, "op": 4, "datum_c": 1}):
    show("named " + " ".join(named), lambda named=named: Arg(**named))
    show("rule of named " + " ".join(named), lambda named=named: new(seccomp.KILL).add_rule(action=seccomp.ALLOW, syscall="read") or Arg(**named))
for data in ("1", None, b"1"):
    show("Arg", Arg, 0, 4, data)
show("resolve", seccomp.resolve_syscall, 5, "read")
show("resolve", seccomp.resolve_syscall, X86_64, b"read")
for name in ("nosuch", "x86_64", "mips64n32", "ppc64le", 1.5, 12345, 0, X32):
    show("Arch", lambda n: int(Arch(n)), name)
show("SyscallFilter", lambda: new(12345))
f = new(seccomp.ALLOW)
for action, call in [
    (seccomp.ALLOW, "open"), (seccomp.ERRNO(1), "nosuch"), (seccomp.ERRNO(1), -1), (seccomp.ERRNO(1), 9999), (seccomp.ERRNO(1), "mmap2"),
    (seccomp.ERRNO(1), -10029), (12345, "read"), (seccomp.ERRNO(1), b"read"), (seccomp.TRAP, "read"), (seccomp.KILL_PROCESS, "write"),
    (seccomp.TRACE(3), "kill"), (seccomp.LOG, "getpid"), (seccomp.NOTIFY, "getppid"), (seccomp.TRAP, "kill"),
]:  # fmt: skip
    show("add_rule", f.add_rule, action, call)
    show("add_rule_exactly", f.add_rule_exactly, action, call)
show("add_rule", f.add_rule, seccomp.ERRNO(1), "pread64", Arg(0, seccomp.EQ, 2), Arg(0, seccomp.NE, 3))
show("add_rule", f.add_rule, seccomp.ERRNO(1), "pread64", 5)
show("add_rule", f.add_rule, seccomp.ERRNO(1), "pread64", *[Arg(0, seccomp.EQ, 2)] * 7)
show("add_rule", f.add_rule, seccomp.ERRNO(1), "pread64", Arg(0, seccomp.EQ, 2))
show("add_rule again", f.add_rule, seccomp.ERRNO(1), "pread64", Arg(0, seccomp.EQ, 2))
show("add_rule otherwise", f.add_rule, seccomp.ERRNO(2), "pread64", Arg(0, seccomp.EQ, 2))
show("add_rule longer", f.add_rule, seccomp.ERRNO(2), "pread64", Arg(0, seccomp.EQ, 2), Arg(1, seccomp.EQ, 3))
show("add_rule other", f.add_rule, seccomp.ERRNO(2), "pread64", Arg(1, seccomp.EQ, 3), Arg(2, seccomp.EQ, 3))
show("add_rule shorter", f.add_rule, seccomp.ERRNO(1), "pread64", Arg(1, seccomp.EQ, 3))
show("add_rule bare", f.add_rule, seccomp.ERRNO(1), "pread64")
for attr, value in [
    (1, 5), (77, 5), (8, 0), (8, 3), (8, 2), (2, 12345), (2, seccomp.ALLOW), (3, 7), (9, 1), (5, 1), (4, 0), (6, 1), (7, 1), (6, 0), (7, 0),
]:  # fmt: skip
    show("set_attr", f.set_attr, attr, value)
    show("get_attr", f.get_attr, attr)
show("add_rule tskip", f.add_rule, seccomp.ERRNO(1), -1)
for method in ("exist_arch", "add_arch", "exist_arch", "add_arch", "remove_arch", "remove_arch"):
    for token in (X86, S390X, 12345, 0):
        show(method, getattr(f, method), token)
show("add_rule without", f.add_rule, seccomp.ERRNO(1), "read")
show("reset", f.reset, 12345)
show("reset", f.reset, seccomp.KILL)
show("get_attr", f.get_attr, Attr.ACT_DEFAULT)
show("get_attr", f.get_attr, Attr.CTL_OPTIMIZE)
show("add_rule", f.add_rule, seccomp.KILL, "read")
show("add_rule", f.add_rule, seccomp.ALLOW, "read")
f.add_arch(X86)
show("add_rule", f.add_rule, seccomp.ALLOW, "write")
show("add_rule unnamed", f.add_rule, seccomp.ALLOW, 9999)
show("add_rule_exactly", new(seccomp.KILL).add_rule_exactly, seccomp.ALLOW, "mmap2")
for call, priority in [("read", 300), ("read", -1), ("nosuch", 3), ("read", 255), (9999, 3)]:
    show("syscall_priority", f.syscall_priority, call, priority)
for method in ("get_notify_fd", "receive_notify"):
    show(method, getattr(f, method))
show("set_api", seccomp.set_api, 0)
show("set_api", seccomp.set_api, 99)
show("merge", f.merge, new(seccomp.ALLOW))
other = new(seccomp.KILL)
show("merge", f.merge, other)
other = new(seccomp.KILL)
other.remove_arch(X86_64)
other.add_arch(ARM)
other.add_rule(seccomp.ALLOW, "write")
show("merge", f.merge, other)
show("exist_arch", f.exist_arch, ARM)
with tempfile.TemporaryFile() as file:
    show("export_bpf", f.export_bpf, file)
    show("export_pfc", f.export_pfc, file)
    assert file.tell() or file.seek(0, 2)
