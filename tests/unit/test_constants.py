"""The tables of constants: against this machine's headers and modules, and against values that are known of other architectures."""

import errno
import fcntl
import importlib.util
import json
import mmap
import os
import re
import resource
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import termios
from pathlib import Path

import pytest

import pyseccomp as ps
from pyseccomp import cli, cli_policy, constants, minijail

GENERATOR = Path(__file__).parents[2] / "csrc/syscalls/generate_constants.py"
FILE = Path(constants.__file__).with_name("constants.txt")
OF_A_LIBRARY = {"O_LARGEFILE"}
"""glibc says 0 on 64-bit machines, and sets the kernel's flag by itself."""
GROWN = ("DRM_IOCTL_", "NTSYNC_")
"""Requests whose structure has grown with releases of the kernel."""


def generator():
    spec = importlib.util.spec_from_file_location("generate_constants", GENERATOR)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("module", [errno, fcntl, mmap, os, resource, signal, socket, stat, termios], ids=lambda module: module.__name__)
def test_native_values_are_those_of_this_machine(module):
    theirs = {name: int(value) for name, value in vars(module).items() if isinstance(value, int) and constants.find(name) is not None}
    assert len(theirs) > 10
    assert {name: value for name, value in theirs.items() if constants.find(name) != value and name not in OF_A_LIBRARY} == {}


def test_every_errno_of_this_machine_has_its_name():
    assert {number: constants.errno_name(number) for number in errno.errorcode} == errno.errorcode | {
        errno.EDEADLK: "EDEADLK", errno.EOPNOTSUPP: "EOPNOTSUPP", errno.EAGAIN: "EAGAIN",
    }  # fmt: skip
    assert {name for name in dir(errno) if name.startswith("E")} <= set(constants.names("errnos"))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("O_DIRECT", {"x86_64": 0x4000, "aarch64": 0x10000, "arm": 0x10000, "mips": 0x8000, "ppc64le": 0x20000, "riscv64": 0x4000}),
        ("O_DIRECTORY", {"x86_64": 0x10000, "aarch64": 0x4000, "arm": 0x4000, "mips64": 0x10000, "s390x": 0x10000}),
        ("O_CREAT", {"x86": 0o100, "mipsel": 0x100, "parisc": 0x100}),
        ("ENOSYS", {"x86_64": 38, "mips": 89, "mipsel64n32": 89, "parisc64": 251, "m68k": 38}),
        ("EDEADLOCK", {"x86_64": 35, "mips": 56, "ppc": 58}),
        ("MAP_ANONYMOUS", {"x86_64": 0x20, "mips": 0x800, "parisc": 0x10, "riscv64": 0x20}),
        ("SOCK_STREAM", {"x86_64": 1, "mips": 2, "arm": 1}),
        ("SIGUSR1", {"x86_64": 10, "mips": 16, "parisc": 16}),
        ("SIG_BLOCK", {"x86_64": 0, "mips": 1}),
        ("SOL_SOCKET", {"x86_64": 1, "mips": 0xFFFF, "parisc": 0xFFFF}),
        ("RLIMIT_NOFILE", {"x86_64": 7, "mips": 5}),
        ("TCGETS", {"x86_64": 0x5401, "mips": 0x540D, "ppc64le": 0x402C7413, "parisc": 0x40245410}),
        ("TUNSETIFF", {"x86_64": 0x400454CA, "mips": 0x800454CA, "parisc": 0x800454CA}),
        ("FS_IOC_GETFLAGS", {"x86_64": 0x80086601, "x86": 0x80046601, "mips64": 0x40086601, "ppc": 0x40046601}),
        ("F_GETLK64", {"x86": 12, "x86_64": 5, "mips": 33}),
        ("PTRACE_GETREGS", {"x86_64": 12, "arm": 12, "aarch64": None}),
        ("ARCH_SET_FS", {"x86_64": 0x1002, "mips": None}),
        ("PR_SET_VMA", {"x86_64": 0x53564D41, "m68k": 0x53564D41}),
        ("AT_FDCWD", {"sheb": -100, "x32": -100}),
        ("CLONE_NEWTIME", {"x86_64": 0x80}),
    ],
)
def test_values_depend_on_the_architecture(name, values):
    assert {arch: constants.find(name, arch) for arch in values} == values


def test_every_architecture_has_all_families():
    families = (
        "O_CREAT EPERM PROT_EXEC MAP_FIXED MADV_DONTNEED CLONE_THREAD PR_SET_NAME AF_UNIX PF_UNIX SOCK_DGRAM IPPROTO_TCP SOL_SOCKET"
        " SO_REUSEADDR SIGCHLD S_IFREG F_SETFL FUTEX_WAIT SECCOMP_SET_MODE_FILTER PTRACE_TRACEME RLIMIT_CORE PRIO_PROCESS GRND_RANDOM"
        " MFD_CLOEXEC MREMAP_MAYMOVE MS_BIND MS_ASYNC IPC_CREAT SHM_RDONLY AT_EMPTY_PATH LINUX_REBOOT_CMD_HALT KEYCTL_READ BPF_PROG_LOAD"
        " EPOLL_CTL_ADD EPOLLIN SCHED_FIFO CLOCK_MONOTONIC TIMER_ABSTIME ITIMER_REAL RENAME_EXCHANGE UMOUNT_NOFOLLOW MNT_DETACH"
        " SWAP_FLAG_PREFER TCGETS FIONREAD FIONBIO SIOCGIFCONF TUNSETIFF LOOP_SET_FD BLKGETSIZE64 VIDIOC_QUERYCAP TIOCGWINSZ"
    ).split()
    assert [(name, arch) for name in families for arch in ps.Arch if constants.find(name, arch) is None] == []
    assert sorted(constants._file().ports) == sorted(arch.value for arch in ps.Arch)
    assert constants.find("KVM_RUN", "x86_64") == constants.find("KVM_RUN", "aarch64") == 0xAE80


def test_names_of_python_and_of_c_libraries_are_none():
    for name in ("ST_SIZE", "SIGRTMIN", "SIGRTMAX", "NSIG", "P_NOWAIT", "RTLD_NOW", "TMP_MAX", "EX_OK", "AI_ALL", "PAGESIZE", "SF_IMMUTABLE"):
        assert constants.find(name) is None
        with pytest.raises(ps.PolicyError, match=f"^p:1: '{name}' is not a number, nor a constant that is known"):
            minijail.parse(f"read: arg0 == {name}".encode(), "p")


def test_importing_reads_no_table():
    count = "print(constants._file.cache_info().currsize); "
    code = f"import pyseccomp as ps; from pyseccomp import constants; ps.Policy().compile(); {count} constants.find('O_PATH'); {count}"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout.split() == ["0", "1"]
    assert FILE.stat().st_size < 200_000


def test_headers_of_this_machine_say_the_same():
    module = generator()
    port = {port.name: port for port in module.PORTS}.get(ps.Arch.native().value)
    if port is None or shutil.which("gcc") is None or os.uname().machine != "x86_64":
        pytest.skip("material lacks an x86 gcc for this machine's headers")
    with tempfile.TemporaryDirectory() as folder:
        reader = module.reader(Path("/"), Path(folder))
        if not reader.has(port):
            pytest.skip("material lacks the kernel's headers (linux-libc-dev)")
        found = reader.read(port).values
        newer = [int(part) for part in reader.version().split(".")] > [int(part) for part in constants.kernel().split(".")]
    found = {name: value for name, value in found.items() if not name.startswith(("_", *GROWN))}
    ours = {name: constants.find(name) for name in found}
    assert len(found) > 4000
    changed = {name: (value, ours[name]) for name, value in found.items() if ours[name] not in (None, value)}
    gone = {name for name, value in ours.items() if value is None}
    assert changed == {}
    assert newer or len(gone) < 40, gone


def test_headers_of_all_architectures_give_the_checked_in_file():
    root = Path(os.environ.get("PYSECCOMP_KERNEL_HEADERS", "/"))
    module = generator()
    with tempfile.TemporaryDirectory() as folder:
        reader = module.reader(root, Path(folder))
        if shutil.which("gcc") is None or not all(reader.has(port) for port in module.PORTS) or reader.version() != constants.kernel():
            pytest.skip(f"material lacks the headers of Linux {constants.kernel()} for all architectures (PYSECCOMP_KERNEL_HEADERS)")
    assert module.generate(root) == FILE.read_text()


# ------------------------------------------------------------------ one's own


def test_own_constants_are_added_to_ours_or_replace_them(tmp_path):
    policy = "ioctl: arg1 == MY_REQUEST || arg1 == TCGETS\nread: return EMINE\n"
    (tmp_path / "p").write_text(policy)
    own = {"MY_REQUEST": 0xABCD, "TCGETS": 7, "EMINE": 99}
    for source in (own, tmp_path / "constants.json"):
        (tmp_path / "constants.json").write_text(json.dumps({"constants": own, "arch_nr": ps.Arch.AARCH64.token, "arch_name": "arm64"}))
        simulate = ps.load(tmp_path / "p", arch="aarch64", constants=source).compile().simulate
        assert {value: simulate("ioctl", (0, value), "aarch64").action.name for value in (0xABCD, 7, 0x5401)} == {
            0xABCD: "ALLOW", 7: "ALLOW", 0x5401: "KILL_PROCESS",
        }  # fmt: skip
        assert simulate("read", (), "aarch64").action == ps.ERRNO(99)
        assert ps.load(tmp_path / "p", arch="aarch64", dialect="compiler", constants=source).rules
    assert constants.find("TCGETS", "aarch64") == 0x5401
    with pytest.raises(ps.PolicyError, match="'MY_REQUEST' is not a number"):
        ps.load(tmp_path / "p", arch="aarch64")
    with pytest.raises(ps.PolicyError, match="has the constants of 'arm64', but the policy is read for x86_64"):
        ps.load(tmp_path / "p", arch="x86_64", constants=tmp_path / "constants.json")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not JSON"),
        ("[1]", "expected an object of names and numbers, found list"),
        ('{"A B": 1}', "'A B' cannot be the name"),
        ('{"A": "1"}', "A: '1' is not a number of 64 bits"),
        ('{"A": true}', "A: True is not a number"),
        ('{"A": 18446744073709551616}', "A: .* is not a number of 64 bits"),
        ('{"constants": {"A": 1.5}}', "A: 1.5 is not a number"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_own_constants_are_checked(tmp_path, text, says):
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(ps.PolicyError, match=f"c.json: {says}"):
        constants.read(tmp_path / "c.json")
    with pytest.raises(ps.PolicyError, match="missing.json: cannot be read: No such file"):
        constants.read(tmp_path / "missing.json")


def test_error_says_where_a_constant_is_one_or_what_is_near():
    for text, says in {
        b"mmap: arg3 == MAP_32BIT": "'MAP_32BIT' is not a number, .*; it is one on x86_64, x86, x32, not on aarch64",
        b"mmap: arg2 == PROT_EXECC": "'PROT_EXECC' is not a number, .*; did you mean PROT_EXEC",
        b"mmap: arg2 == some-thing": "is not a number, nor a constant that is known",
        b"mmap: return ENOSYZ": "'ENOSYZ' is not an errno; did you mean ENOSYS",
        b"mmap: return EPOLLIN": "'EPOLLIN' is not an errno",
        b"mmap: return " + b"E" * 100_000: "'E{40}' is not an errno",
    }.items():
        with pytest.raises(ps.PolicyError, match=says):
            minijail.parse(text, "p", arch="aarch64")


# ------------------------------------------------------------------ policies

POLICY = """
@include ./common
clone: arg0 & CLONE_THREAD
socket: arg0 == AF_UNIX || arg0 == AF_NETLINK && arg1 == SOCK_DGRAM|SOCK_CLOEXEC
mprotect: arg2 in ~PROT_EXEC || arg2 == MAP_PRIVATE|MAP_ANONYMOUS
madvise: arg2 == MADV_DONTNEED || arg2 == MADV_GUARD_INSTALL
ioctl: arg1 == FIONBIO || arg1 == TCGETS || arg1 == FS_IOC_GETFLAGS
prctl: arg0 == PR_SET_VMA || arg0 == PR_SET_NAME
openat: arg0 == AT_FDCWD && arg2 in O_RDONLY|O_DIRECTORY|O_CLOEXEC
tgkill: arg2 == SIGABRT
fcntl: arg1 == F_DUPFD_CLOEXEC
sched_setscheduler: arg1 == SCHED_IDLE || arg1 == SCHED_BATCH
mkdirat: return EDEADLOCK
"""


@pytest.mark.parametrize("arch", ["x86_64", "arm", "aarch64", "mips", "ppc64le", "s390x"])
@pytest.mark.parametrize("dialect", ["minijail0", "compiler"])
def test_policies_mean_the_numbers_of_their_architecture(tmp_path, monkeypatch, arch, dialect):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "common").write_text("setsockopt: arg1 == SOL_SOCKET && arg2 == SO_PEERCRED\n")
    (tmp_path / "policy").write_text(POLICY)
    (tmp_path / "numbers").write_text(numbered(POLICY.replace("./common", "./common_numbers"), arch))
    (tmp_path / "common_numbers").write_text(numbered((tmp_path / "common").read_text(), arch))
    named, numbers = (ps.load(name, arch=arch, dialect=dialect).compile() for name in ("./policy", "./numbers"))
    assert named == numbers
    low = -100 % 2 ** (32 if arch in ("arm", "mips") else 64)
    for flags in ("O_DIRECTORY", "O_DIRECT"):
        allowed = named.simulate("openat", (low, 0, constants.find(flags, arch)), arch).action == ps.ALLOW
        assert allowed is (flags == "O_DIRECTORY")
    assert named.simulate("mkdirat", (), arch).action == ps.ERRNO(constants.errno_number("EDEADLOCK", arch))


def numbered(text, arch):
    def number(match):
        value = constants.find(match[0], arch)
        return match[0] if value is None else str(value)

    return re.sub(r"\b[A-Z][A-Z0-9_]+\b", number, text)


# -------------------------------------------------------------- command line


def run(capsys, *argv):
    status = cli.main([str(word) for word in argv])
    out = capsys.readouterr()
    return status, out.out, out.err


def test_command_line_takes_the_constants_of_the_architecture(tmp_path, capsys):
    policy = tmp_path / "p"
    policy.write_text("openat: arg2 in O_RDONLY|O_DIRECTORY\nioctl: arg1 == MINE\nread: return ENOSYS\n")
    own = tmp_path / "c.json"
    own.write_text('{"MINE": 77}')
    simulate = ("simulate", "--policy", policy, "--constants", own)
    for arch in ("x86_64", "aarch64", "mips"):
        for flag, answer in (("O_DIRECTORY", "ALLOW"), ("O_DIRECT", "KILL_PROCESS")):
            status, said, _ = run(capsys, *simulate, "--arch", arch, "openat", "AT_FDCWD", "0", flag)
            assert (status, said.split()[0]) == (0, answer), (arch, flag)
        assert run(capsys, *simulate, "--arch", arch, "ioctl", "0", "77")[1].startswith("ALLOW after")
        assert run(capsys, *simulate, "--arch", arch, "read")[1].startswith("ERRNO ENOSYS after")
        _, text, _ = run(capsys, "disasm", policy, "--constants", own, "--arch", arch)
        assert "; ENOSYS\n" in text and f"ERRNO({constants.errno_number('ENOSYS', arch)})" in text
        _, rules, _ = run(capsys, "disasm", policy, "--constants", own, "--arch", arch, "--rules")
        assert "O_DIRECTORY" in rules or "flags" in rules
        out = tmp_path / arch
        assert run(capsys, "compile", policy, "--constants", own, "--arch", arch, "-o", out)[0] == 0
        assert out.read_bytes() == bytes(ps.load(policy, arch=arch, constants=own).compile())
        assert run(capsys, "compile", "--deny", "read=ENOSYS", "--arch", arch, "-o", out)[0] == 0
        expected = ps.ERRNO(constants.errno_number("ENOSYS", arch))
        assert ps.Program.from_bytes(out.read_bytes()).simulate("read", arch=arch).action == expected
        assert run(capsys, "simulate", "--deny", "read=ENOSYS", "--arch", arch, "read")[1].startswith("ERRNO ENOSYS")
    status, _, error = run(capsys, "simulate", "--policy", policy, "read")
    assert status == 1 and "p:2: 'MINE' is not a number" in error
    status, _, error = run(capsys, "simulate", "--deny", "read", "--arch", "aarch64", "mmap", "MAP_32BIT")
    assert status == 1 and "it is one on x86_64, x86, x32, not on aarch64" in error
    status, _, error = run(capsys, "simulate", "--deny", "read", "kill", "0", "SIGRTMIN")
    assert status == 1 and "'SIGRTMIN' is no argument" in error
    assert run(capsys, "simulate", "--deny", "read", "kill", "0", "SIGTERM")[0] == 0


@pytest.mark.parametrize("arch", ["x86_64", "aarch64", "mips", "parisc"])
def test_text_of_the_rules_is_taken_as_arguments_again(arch):
    for name in ("O_DIRECTORY", "O_TMPFILE", "MAP_ANONYMOUS", "SOCK_NONBLOCK"):
        assert cli_policy.argument(f"{name}|0x7", arch) == constants.find(name, arch) | 7
    for number in set(constants.errnos(ps.Arch.of(arch))):
        assert cli_policy.errno_number(cli_policy.errno_text(number, arch), arch) == number
