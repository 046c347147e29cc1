"""The tables: known facts of each ABI, and that look-ups agree with each other."""

import re
import subprocess

import pytest

import pyseccomp as ps
from pyseccomp import cli, syscalls
from pyseccomp.errors import PolicyError, UnknownSyscallError

FACTS = [
    ("x86_64", "read", 0), ("x86_64", "openat", 257), ("x86_64", "seccomp", 317), ("x86_64", "uretprobe", 335), ("x86", "socketcall", 102),
    ("x86", "chown32", 212), ("x32", "ioctl", 0x40000000 + 514), ("x32", "read", 0x40000000), ("arm", "cacheflush", 0xF0002),
    ("aarch64", "openat", 56), ("aarch64", "renameat", 38), ("riscv64", "riscv_flush_icache", 259), ("loongarch64", "statx", 291),
    ("mips", "read", 4003), ("mips64", "read", 5000), ("mips64n32", "read", 6000), ("mipsel64n32", "mseal", 6462), ("ppc64le", "seccomp", 358),
    ("s390x", "exit", 1), ("s390", "getuid32", 199), ("parisc", "read", 3), ("m68k", "getpagesize", 166), ("sheb", "read", 3),
]  # fmt: skip


@pytest.mark.parametrize(("arch", "name", "number"), FACTS)
def test_known_numbers(arch, name, number):
    assert syscalls.resolve(name, arch) == number
    assert syscalls.name(number, arch) == name


@pytest.mark.parametrize("arch", list(ps.Arch))
def test_names_and_numbers_are_each_other_s_inverse(arch):
    listed = syscalls.names(arch)
    assert len(listed) > 300
    numbers = {name: syscalls.resolve(name, arch) for name in listed}
    assert sum(syscalls.name(number, arch) != name for name, number in numbers.items()) <= 1  # ARM's 341 has two names
    assert "cachestat" in listed and "file_setattr" in listed
    assert syscalls.name(0x3FFFFFFF, arch) is None


def test_this_machine_s_headers_say_the_same():
    source = "#include <asm/unistd.h>\n" + "".join(f"psc {name} __NR_{name}\n" for name in syscalls.names())
    text = subprocess.run(["cc", "-E", "-P", "-xc", "-"], input=source, text=True, capture_output=True, check=True).stdout
    found = re.findall(r"^psc (\w+) (\d+)$", text, re.M)
    assert len(found) > 250
    assert all(syscalls.resolve(name) == int(number) for name, number in found)


def test_architectures_go_by_all_their_names():
    assert ps.Arch.of("SCMP_ARCH_X86_64") is ps.Arch.of("amd64") is ps.Arch.of(0xC000003E) is ps.Arch.X86_64
    assert ps.Arch.of("arm64") is ps.Arch.AARCH64 and ps.Arch.of("SCMP_ARCH_MIPSEL64N32") is ps.Arch.MIPSEL64N32
    assert ps.Arch.S390X.big_endian and not ps.Arch.X86.wide
    with pytest.raises(PolicyError, match="aarch64"):
        ps.Arch.of("aarch46")
    with pytest.raises(PolicyError, match="no such AUDIT_ARCH"):
        ps.Arch.of(12345)


def test_unknown_names_are_told_apart_from_foreign_ones():
    with pytest.raises(UnknownSyscallError, match="did you mean openat") as caught:
        syscalls.resolve("openta")
    assert caught.value.suggestions[0] == "openat"
    with pytest.raises(UnknownSyscallError, match="x86_64 has no system call 'chown32'"):
        syscalls.resolve("chown32", "x86_64")


def test_command_line_tells_the_kernel_of_the_tables(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert f"system calls of Linux {syscalls.KERNEL}" in capsys.readouterr().out


def test_multiplexed_calls_are_those_of_the_kernel_s_headers():
    assert syscalls.multiplexed("accept4", "x86") == (102, 0xFFFFFFFF, 18)
    assert syscalls.multiplexed("shmctl", "mips") == (4117, 0xFFFF, 24)
    assert syscalls.multiplexed("socket", "x86_64") is syscalls.multiplexed("semop", "aarch64") is syscalls.multiplexed("read", "x86") is None
