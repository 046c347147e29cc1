"""Arguments and answers as text: constants by the names of the call's architecture."""

import random

import pytest

import pyseccomp as ps
from pyseccomp import constants, decode, formats
from pyseccomp.decompile import decompile

ARCHES = ("x86_64", "x86", "aarch64", "mips", "ppc64le", "parisc", "s390x")


def shown(name, arch, *args):
    return decode.format_call(name, ps.Arch.of(arch), (*args, *[0] * (6 - len(args))), {}).partition("  [")[0]


@pytest.mark.parametrize(
    ("call", "args", "texts"),
    [
        ("openat", (-100, 0, 0o40000), {"x86_64": "O_RDONLY|O_DIRECT", "aarch64": "O_RDONLY|O_DIRECTORY", "mips": "O_RDONLY|0x4000"}),
        ("openat", (-100, 0, 0o200000), {"x86_64": "O_RDONLY|O_DIRECTORY", "aarch64": "O_RDONLY|O_DIRECT", "parisc": "O_RDONLY|O_NONBLOCK"}),
        ("mmap", (0, 1, 5, 0x802), {"x86_64": "MAP_PRIVATE|MAP_DENYWRITE", "mips": "MAP_PRIVATE|MAP_ANONYMOUS"}),
        ("ioctl", (0, 0x5401), {"x86_64": "TCGETS", "mips": "TCGETA", "ppc64le": "0x5401"}),
        ("ioctl", (0, 0x800454CA), {"mips": "TUNSETIFF", "parisc": "TUNSETIFF", "x86_64": "0x800454ca"}),
        ("socket", (2, 2, 0), {"x86_64": "AF_INET, SOCK_DGRAM", "mips": "AF_INET, SOCK_STREAM"}),
        ("kill", (1, 17), {"x86_64": "SIGCHLD", "mips": "SIGUSR2"}),
        ("prctl", (0x53564D41, 0), {"x86_64": "PR_SET_VMA", "mips": "PR_SET_VMA"}),
        ("madvise", (0, 1, 4), {"x86_64": "MADV_DONTNEED", "parisc": "MADV_DONTNEED"}),
        ("unshare", (0x80,), {"x86_64": "CLONE_NEWTIME"}),
        ("clone", (0x80000011,), {"x86_64": "CLONE_IO|SIGCHLD"}),
        ("rt_sigprocmask", (1, 0, 0, 8), {"x86_64": "SIG_UNBLOCK", "mips": "SIG_BLOCK"}),
        ("setsockopt", (1, 1, 2), {"x86_64": "SOL_SOCKET", "mips": "1, 1, 2"}),
        ("ptrace", (0x4206, 1), {"x86_64": "PTRACE_SEIZE", "aarch64": "PTRACE_SEIZE"}),
        ("bpf", (5, 0, 0), {"x86_64": "BPF_PROG_LOAD", "mips": "BPF_PROG_LOAD"}),
        ("getrusage", (-1 % 2**32, 0), {"x86_64": "RUSAGE_CHILDREN"}),
        ("mount", (0, 0, 0, 0x1001, 0), {"x86_64": "MS_RDONLY|MS_BIND"}),
    ],
)
def test_constants_are_those_of_the_calls_architecture(call, args, texts):
    for arch, text in texts.items():
        assert text in shown(call, arch, *(arg % 2**64 for arg in args)), arch


@pytest.mark.parametrize("arch", ARCHES)
def test_names_that_are_shown_have_the_value_that_was_shown(arch):
    where, some = ps.Arch.of(arch), random.Random(0)
    for kind in [*decode._FLAGS, *decode._CHOICES, "ioctl"]:
        names = decode._names(kind, where)
        assert names or kind == "archprctl", kind
        for value, name in names.items():
            assert constants.find(name, arch) % 2**32 == value % 2**32
        for _ in range(20):
            value = 0
            for bit in some.sample(list(names), min(3, len(names))):
                value |= bit
            if kind in decode._FLAGS:
                assert sum_of(decode.flags(value, names), arch) == value


def sum_of(text, arch):
    value = 0
    for word in text.split("|"):
        value |= int(word, 0) if word[0].isdigit() else constants.find(word, arch) % 2**32
    return value


@pytest.mark.parametrize("arch", ARCHES)
def test_programs_text_names_constants_and_is_read_back(arch):
    number = constants.errno_number("ENOSYS", arch)
    request = constants.find("TCGETS", arch)
    policy = ps.Policy(ps.ALLOW, arch, low_words=True, multiplexed="separate")
    policy.add(ps.ERRNO(number), "ioctl", ps.Arg(1, ps.EQ, request, bits=32))
    policy.add(ps.ERRNO(1), "openat", ps.Arg(2, ps.MASKED_EQ, constants.find("O_DIRECTORY", arch), constants.find("O_DIRECTORY", arch)))
    program = policy.compile()
    text = program.disassemble()
    for word in ("TCGETS", "O_DIRECTORY", "ENOSYS", "EPERM"):
        assert f"; {word}\n" in text
    assert formats.parse(text.encode()) == program
    rules = decompile(program).text
    assert f"if request == TCGETS:\n      ERRNO({number}) ENOSYS\n" in rules
    assert "if flags & O_DIRECTORY:\n      ERRNO(1) EPERM\n" in rules


def test_masks_of_most_bits_are_shown_by_those_they_lack():
    _, show = decode.argument(["openat"], 2, ps.Arch.AARCH64)
    assert show(0xFFFFBFFF, True) == show(0xFFFF_FFFF_FFFF_BFFF, True) == "~O_DIRECTORY"
    assert show(0xFFFFBFFF & ~0o100, True) == "~(O_CREAT|O_DIRECTORY)"
    assert show(3, True) == "O_ACCMODE" and show(0xFFFFFFFF, True).startswith("O_ACCMODE|")
    policy = ps.Policy(ps.KILL_PROCESS, "aarch64", low_words=True)
    policy.add(ps.ALLOW, "mprotect", ps.Arg(2, ps.MASKED_EQ, 0xFFFFFFFB, 0, bits=32))
    assert "; ~PROT_EXEC\n" in policy.compile().disassemble()
    assert "if prot & ~PROT_EXEC:" in decompile(policy.compile()).text


def test_arguments_that_an_architecture_has_elsewhere():
    assert shown("clone", "s390x", 0x1000, 0x100) == "clone(0x1000, CLONE_VM, NULL, NULL, 0)"
    assert shown("mmap", "x86", 0xFFFF0000, 1, 2) == "mmap(0xffff0000)"
    assert shown("userfaultfd", "x86_64", 0x80001) == "userfaultfd(O_CLOEXEC|0x1)"
    assert decode.argument(["clone"], 0, ps.Arch.S390X)[0] == "arg0"
    assert decode.argument(["clone"], 0, ps.Arch.X86_64)[0] == "flags"


def test_shared_tails_are_given_no_names_of_one_call():
    policy = ps.Policy(ps.ALLOW, "x86_64")
    for call in ("dup2", "kill"):  # the second argument is a descriptor, a signal
        policy.add(ps.ERRNO(1), call, ps.Arg(1, ps.EQ, 15, bits=32))
    assert "SIGTERM" not in policy.compile().disassemble()
