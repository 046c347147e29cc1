"""Programs: classic BPF that the kernel would load, as immutable values."""

from __future__ import annotations

import functools
import re
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from pyseccomp import _core, syscalls
from pyseccomp.actions import Action
from pyseccomp.disassembly import disassemble
from pyseccomp.errors import PolicyError, UnknownSyscallError
from pyseccomp.syscalls import Arch, ArchLike

_C_KEYWORDS = frozenset(
    "auto break case char const continue default do double else enum extern float for goto if inline int long register "
    "restrict return short signed sizeof static struct switch typedef union unsigned void volatile while sock_filter".split()
)


@dataclass(frozen=True, slots=True)
class Decision:
    """What a program answers to one call: the action with its data, and how many instructions that took."""

    action: Action
    data: int
    executed: int


@functools.total_ordering
class Program:
    """A seccomp program: checked when made, immutable, hashable, picklable; two are equal if their bytes are.

    ``Program(data)`` is :meth:`from_bytes`.

    Raises:
        ProgramError: the kernel would refuse it; the message has the instruction and the reason.
    """

    __slots__ = ("_bytes", "_digest")

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        self._bytes = bytes(data)
        self._digest: bytes | None = None
        _core.check_program(self._bytes)

    @classmethod
    def from_bytes(cls, data: bytes | bytearray | memoryview) -> Program:
        """Make a program of ``struct sock_filter[]`` in this machine's byte order.

        Raises:
            ProgramError: the kernel would refuse it; the message has the instruction and the reason.
        """
        return cls(data)

    @classmethod
    def from_text(cls, text: str) -> Program:
        """Make a program of text as :meth:`disassemble` writes it; labels, numbers and comments may be left out or changed.

        Raises:
            ProgramError: not such text, or the kernel would refuse it; the message has the line or instruction and the reason.
        """
        from pyseccomp.assembly import assemble

        return cls(assemble(text))

    def __len__(self) -> int:
        return len(self._bytes) // 8

    def __bytes__(self) -> bytes:
        return self._bytes

    def __eq__(self, other: object) -> bool:
        return self._bytes == other._bytes if isinstance(other, Program) else NotImplemented

    def __lt__(self, other: object) -> bool:
        return self._bytes < other._bytes if isinstance(other, Program) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._bytes)

    def __reduce__(self) -> tuple[type[Program], tuple[bytes]]:
        return Program, (self._bytes,)

    def __repr__(self) -> str:
        return f"<Program of {len(self)} instructions, {self.digest.hex()[:12]}>"

    @property
    def digest(self) -> bytes:
        """The SHA-256 of its bytes."""
        if self._digest is None:
            self._digest = _core.digest(self._bytes)
        return self._digest

    @property
    def notifies(self) -> bool:
        """True if it can answer NOTIFY, so that loading it gives a listener something to do."""
        return _core.program_notifies(self._bytes)

    def disassemble(self) -> str:
        """Return the program as text, a line an instruction, with labels and the names of calls, ABIs and actions."""
        return disassemble(self._bytes)

    def to_c(self, name: str = "filter") -> str:
        """Return a C99 header that defines the program as ``static const struct sock_filter NAME[]``.

        Its length is ``sizeof(NAME) / sizeof(NAME[0])``. Like the program itself it is for machines of the byte order that
        the policy was compiled for.

        Raises:
            PolicyError: name is not a C identifier of letters, digits and underscores, or a keyword.
        """
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) or name in _C_KEYWORDS:
            raise PolicyError(f"C array: {name!r} is not a name for a variable in C")
        guard = f"{name.upper()}_SECCOMP_H"
        texts = self.disassemble().rstrip("\n").split("\n")
        rows = [
            f"\t{{ {code:#04x}, {jt:3}, {jf:3}, {k:#010x} }}, /* {text.strip()} */"
            for (code, jt, jf, k), text in zip(struct.iter_unpack("=HBBI", self._bytes), texts, strict=True)
        ]
        head = f"/* A seccomp program of {len(self)} instructions, SHA-256 {self.digest.hex()}. */"
        body = f"static const struct sock_filter {name}[{len(self)}] = {{"
        return "\n".join(
            [head, f"#ifndef {guard}", f"#define {guard}", "", "#include <linux/filter.h>", "", body, *rows, "};", "", "#endif", ""]
        )

    def covers(self, arch: ArchLike = None) -> bool:
        """Tell whether the program has rules for an architecture (None: this machine's).

        False: whatever is called there, it gives one and the same answer, that for architectures that it does not know, and this does
        not allow; others get other answers. A program that never looks at the architecture covers all.
        """
        where = Arch.of(arch)
        first, last = {Arch.X86_64: (0, syscalls.X32_BIT - 1), Arch.X32: (syscalls.X32_BIT, 2 * syscalls.X32_BIT - 1)}.get(
            where, (0, (1 << 32) - 1)
        )
        return not _core.program_is_foreign(self._bytes, where.token, first, last)

    def simulate(
        self, syscall: str | int, args: Sequence[int] = (), arch: ArchLike = None, ip: int = 0
    ) -> Decision:
        """Answer one call as the kernel would.

        syscall is a name or the number as the kernel would show it (x32's with bit 30 set); missing args are 0, negative
        ones stand for their two's complement in 64 bits. On an architecture of the other byte order the halves of each
        argument change places, as they do there.

        Raises:
            UnknownSyscallError: the architecture has no call of that name.
            PolicyError: more than six arguments, or a number that does not fit.
        """
        where = Arch.of(arch)
        nr = syscalls.resolve(syscall, where) if isinstance(syscall, str) else syscall
        if not -1 << 31 <= nr < 1 << 32:
            raise UnknownSyscallError(f"system call number {nr} does not fit 32 bits")
        if len(args) > 6:
            raise PolicyError(f"a system call has six arguments, {len(args)} were given")
        for value in (*args, ip):
            if not -1 << 63 <= value < 1 << 64:
                raise PolicyError(f"argument {value} does not fit 64 bits")
        signed = nr - (1 << 32) if nr >= 1 << 31 else nr
        words = [value % (1 << 64) for value in (ip, *args)]
        if where.big_endian != (sys.byteorder == "big"):
            words = [value >> 32 | (value & 0xFFFFFFFF) << 32 for value in words]
        word, executed = _core.run_program(self._bytes, signed, where.token, words[0], words[1:])
        action = Action(word)
        return Decision(action, action.data, executed)
