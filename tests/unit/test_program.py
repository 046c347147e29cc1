"""Programs as values: checked when made, then immutable."""

import pickle
import struct
import subprocess

import pytest

import pyseccomp as ps
from pyseccomp.errors import PolicyError, ProgramError, UnknownSyscallError

ALLOW = struct.pack("=HBBI", 6, 0, 0, 0x7FFF0000)


def example():
    policy = ps.Policy(ps.ALLOW, ["x86_64", "x86"])
    policy.add(ps.ERRNO(1), "ptrace")
    policy.add(ps.NOTIFY, "openat", ps.Arg(2, ps.MASKED_EQ, 3, 1))
    return policy.compile()


def test_bytes_and_back_is_the_same_program():
    program = example()
    again = ps.Program.from_bytes(bytes(program))
    assert again == program and hash(again) == hash(program) and again.digest == program.digest
    assert pickle.loads(pickle.dumps(program)) == program
    assert len(program) == len(bytes(program)) // 8
    assert program != ps.Program(ALLOW) and len({program, again}) == 1


@pytest.mark.parametrize(
    ("data", "index", "says"),
    [
        (b"", None, "at least one"),
        (ALLOW[:-1], None, "8-byte instructions"),
        (ALLOW * 4097, None, "more than 4096"),
        (struct.pack("=HBBI", 0x20, 0, 0, 64) + ALLOW, 0, "beyond struct seccomp_data"),
        (struct.pack("=HBBI", 0x15, 1, 0, 0) + ALLOW, 0, "past the end"),
        (ALLOW + struct.pack("=HBBI", 0x20, 0, 0, 0), 1, "not a return"),
        (struct.pack("=HBBI", 0x60, 0, 0, 3) + ALLOW, 0, "has not stored"),
    ],
)
def test_bad_program_is_refused_with_index_and_reason(data, index, says):
    with pytest.raises(ProgramError, match=says) as caught:
        ps.Program(data)
    assert caught.value.index == index


def test_notifies_says_whether_a_listener_would_hear_anything():
    assert example().notifies
    assert not ps.Program(ALLOW).notifies


def test_simulate_takes_names_numbers_and_architectures():
    program = example()
    assert program.simulate("ptrace", arch="x86_64").action == ps.ERRNO(1)
    assert program.simulate(26, arch="x86").action == ps.ERRNO(1)
    assert program.simulate("openat", (0, 0, 1), arch="x86_64") == ps.Decision(ps.NOTIFY, 0, program.simulate("openat", (0, 0, 1), arch="x86_64").executed)
    assert program.simulate("openat", (0, 0, -3), arch="x86_64").action == ps.NOTIFY
    assert program.simulate("read", arch="aarch64").action == ps.KILL_PROCESS
    with pytest.raises(UnknownSyscallError):
        program.simulate("chown32", arch="x86_64")
    with pytest.raises(PolicyError, match="six arguments"):
        program.simulate("read", (0,) * 7, arch="x86_64")
    with pytest.raises(PolicyError, match="64 bits"):
        program.simulate("read", (1 << 64,), arch="x86_64")


def test_disassembly_names_calls_actions_and_labels():
    text = example().disassemble()
    assert len(text.splitlines()) == len(example())
    for part in ("ld   [arch]", "; x86_64", "; ptrace", "; openat", "ret  ERRNO(1)", "ret  NOTIFY", "ld   [args[2]]"):
        assert part in text
    for line in text.splitlines():
        for word in line.split(";")[0].replace(",", " ").split():
            if word.startswith("L") and word[1:].isdigit():
                assert f"{word}:" in text


def test_every_instruction_has_a_text():
    body = [
        (0x20, 12), (0x80, 0), (0x00, 5), (0x02, 1), (0x03, 2), (0x60, 1), (0x61, 2), (0x01, 9), (0x81, 0), (0x04, 1), (0x0C, 0), (0x14, 1),
        (0x24, 3), (0x34, 2), (0x44, 1), (0x54, 1), (0x64, 1), (0x74, 1), (0xA4, 1), (0x84, 0), (0x07, 0), (0x87, 0), (0x05, 0), (0x1D, 0),
        (0x16, 0),
    ]  # fmt: skip
    program = ps.Program(b"".join(struct.pack("=HBBI", code, 0, 0, k) for code, k in body))
    lines = program.disassemble().splitlines()
    assert len(lines) == len(body)
    assert "ld   [ip + 4]" in lines[0] and "st   M[1]" in lines[3] and lines[-1].endswith("ret  a")


def test_c_array_compiles_without_a_warning_and_is_the_program(tmp_path):
    program = example()
    (tmp_path / "policy.h").write_text(program.to_c("policy"))
    (tmp_path / "main.c").write_text(
        '#include <stdio.h>\n#include "policy.h"\n#include "policy.h"\n'
        "int main(void) { return fwrite(policy, sizeof(policy[0]), sizeof(policy) / sizeof(policy[0]), stdout) == 0; }\n"
    )
    command = ["cc", "-std=c99", "-Wall", "-Wextra", "-Werror", "-o", tmp_path / "main", tmp_path / "main.c"]
    subprocess.run(command, check=True, timeout=60)
    assert subprocess.run([tmp_path / "main"], check=True, capture_output=True, timeout=30).stdout == bytes(program)


@pytest.mark.parametrize("name", ["", "1st", "a-b", "int", "x; y", "_x"])
def test_c_array_takes_names_of_variables_only(name):
    with pytest.raises(PolicyError, match="not a name for a variable"):
        example().to_c(name)
