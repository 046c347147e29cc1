"""minijail's policy files, as ``minijail0 -S`` reads them.

A line is ``call: filter``. A filter is an action (``allow``, ``return EPERM``, ``kill``, ...) or comparisons (``arg0 == 1 &&
arg1 & 2 || arg2 in 7``), on which the call is allowed; ``; return EPERM`` says what it gets otherwise. ``&`` holds when any of
the bits is set, ``in`` when no bit outside of these is. All other calls get the default. compile_seccomp_policy.py reads
another dialect, in which an action after a comparison is what a *match* gets: its forms ({...}, [arch=...], @default, @denylist,
@frequency, ``; allow``) are refused here, as the two cannot be told apart otherwise; :mod:`pyseccomp.minijail_compiler` reads it,
``ps.load(path, dialect="compiler")``. Comparisons that exclude each other (``arg0 == 1 && arg0 == 2``), of which minijail says
nothing, are refused in both.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Final, NoReturn

from pyseccomp import actions, conflicts, constants, oci
from pyseccomp.actions import ALLOW, KILL_PROCESS, Action, Arg, Condition, Op
from pyseccomp.errors import ContradictionError, PolicyError, UnknownSyscallError
from pyseccomp.policy import Policy
from pyseccomp.syscalls import ArchLike

MAX_SIZE: Final = 1 << 20
MAX_DEPTH: Final = 10
MAX_FILES: Final = 1000
"""Files of one policy, each counted as often as it is included."""
MAX_COMPARISONS: Final = 1000
"""Comparisons of one rule."""
ACTIONS: Final = {
    "1": ALLOW, "allow": ALLOW, "kill": KILL_PROCESS, "kill-process": KILL_PROCESS, "kill-thread": actions.KILL_THREAD,
    "log": actions.LOG, "trap": actions.TRAP, "trace": actions.TRACE(0), "user-notify": actions.NOTIFY,
}  # fmt: skip
_OPS: Final = {"==": Op.EQ, "!=": Op.NE, "<": Op.LT, "<=": Op.LE, ">": Op.GT, ">=": Op.GE}
_ALL: Final = (1 << 64) - 1
_SPACE: Final = " \t\r\f\v"
_TO_SPACE: Final = dict.fromkeys(map(ord, _SPACE), " ")
_NUMBER: Final = re.compile(r"(-?)(?:0[xX]([0-9a-fA-F]+)|(0[0-7]+)|(0|[1-9][0-9]*))")
"""As strtol() of C takes them with base 0: int() of Python knows 1_0, 0b1 and 0o17 as well."""
_LINE: Final = re.compile(r"([A-Za-z0-9_]+)\s*:\s*(\S.*)")
_ATOM: Final = re.compile(r"arg([0-5])\s*(==|!=|<=|>=|<|>|&|\bin\b)\s*(\S.*)")


def _split(data: bytes, name: str) -> str:
    """Decode a file. What could be read in two ways is refused, see :func:`_checked`."""
    if len(data) > MAX_SIZE:
        raise PolicyError(f"{name}: larger than {MAX_SIZE >> 20} MiB: not a policy")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise PolicyError(f"{name}: not UTF-8 text") from None


def _checked(text: str, where: str) -> str:
    """Return a statement, stripped.

    Outside comments and paths a statement is ASCII: minijail and Python differ in what else is a space or ends a line.
    """
    if not text.startswith(("@include", "@frequency")) and not (text.isascii() and text.isprintable()):
        odd = next(c for c in text if not (c.isascii() and c.isprintable()))
        raise PolicyError(f"{where}: the character U+{ord(odd):04X} is not allowed outside comments")
    return text


def lines(data: bytes, name: str) -> Iterator[tuple[str, int]]:
    """Yield the statements of a file as minijail's own reader splits them (``getmultiline()`` in its util.c).

    A line ends at ``\\n`` and nowhere else. A backslash right before that joins the next line, also in a comment, which then goes
    on there. The number is that of a statement's first line.

    Raises:
        PolicyError: too large, not UTF-8, or a statement that could be read in two ways.
    """
    joined: list[str] = []
    first = 1
    for at, line in enumerate(_split(data, name).split("\n"), 1):
        joined.append(line.removesuffix("\\"))
        if line.endswith("\\"):
            continue
        where = f"{name}:{first}"
        text, comment, _ = " ".join(joined).strip(_SPACE).partition("#")
        if comment and text and any("#" in part for part in joined[:-1]):
            raise PolicyError(f"{where}: a comment after a rule ends in a backslash: is the next line part of it?")
        if text.strip(_SPACE):
            yield _checked(text.strip(_SPACE).translate(_TO_SPACE), where), first
        joined, first = [], at + 1
    if joined:
        raise PolicyError(f"{name}:{first}: the file ends in a line that a backslash continues")


def compiler_lines(data: bytes, name: str) -> Iterator[tuple[str, int]]:
    """Yield the statements of a file as minijail's compiler splits them (``tokenize()`` in its tools/parser.py).

    A line ends at ``\\n``, ``\\r`` or ``\\r\\n``. A comment ends with its line. A backslash at the very end of a line joins the next
    one, even where it belongs to a comment. Arguments, results and errors as of :func:`lines`.
    """
    whole, first, goes_on = "", 1, False
    for at, line in enumerate(_split(data, name).replace("\r\n", "\n").replace("\r", "\n").split("\n"), 1):
        text, comment, _ = line.partition("#")
        whole += (text if comment else line.removesuffix("\\")) + " "
        goes_on = line.endswith("\\")
        if goes_on:
            continue
        if whole.strip(_SPACE):
            yield _checked(whole.strip(_SPACE).translate(_TO_SPACE), f"{name}:{first}"), first
        whole, first = "", at + 1
    if goes_on:
        raise PolicyError(f"{name}:{first}: the file ends in a line that a backslash continues")


def comparison(index: int, operator: str, value: int) -> Condition:
    """The condition that minijail means: ``&`` any of the bits, ``in`` no bit outside of these."""
    if operator == "&":
        return ~Arg(index, Op.MASKED_EQ, value, 0)
    if operator == "in":
        return Arg(index, Op.MASKED_EQ, ~value & _ALL, 0)
    return Arg(index, _OPS[operator], value)


class Reader:
    """Reads files into a policy. Constants have the values of the policy's architecture."""

    def __init__(self, policy: Policy, own: constants.Source | None = None) -> None:
        self.policy = policy
        self.constants = constants.Table(policy.arches[0], own)
        self.seen: dict[str, str] = {}
        self.files = 0

    def file(self, path: str, where: str, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise PolicyError(f"{where}: includes are nested deeper than {MAX_DEPTH}: a loop?")
        self.one_more_file(where)
        try:
            data = oci.read_file(path, MAX_SIZE)
        except OSError as error:
            raise PolicyError(f"{where}: {path:.200} cannot be read: {error.strerror}") from error
        self.text(data, path, depth)

    def one_more_file(self, where: str) -> None:
        self.files += 1
        if self.files > MAX_FILES:
            self.fail(where, f"more than {MAX_FILES} files are included, one by another")

    def text(self, data: bytes, name: str, depth: int = 0) -> None:
        for line, number in lines(data, name):
            self.line(line, f"{name}:{number}", depth)

    def line(self, text: str, where: str, depth: int) -> None:
        if text.startswith("@"):
            word, _, path = text.partition(" ")
            if word != "@include":
                raise PolicyError(f"{where}: {word:.40} is not understood (only @include is)")
            path = path.strip()
            if not path.startswith(("/", "./")):
                raise PolicyError(f"{where}: @include {path:.200}: must begin with / or ./ (of the working directory)")
            self.file(path, where, depth + 1)
            return
        match = _LINE.fullmatch(text)
        if match is None:
            raise PolicyError(f"{where}: expected 'call: filter', found {text[:60]!r}")
        call, rule = match[1], match[2]
        if call in self.seen:
            raise PolicyError(f"{where}: {call} has a filter already, at {self.seen[call]}")
        self.seen[call] = where
        try:
            self.rule(call, rule, where)
        except UnknownSyscallError as error:
            raise PolicyError(f"{where}: {error}") from None

    def rule(self, call: str, text: str, where: str) -> None:
        action = self.action(text, where)
        if action is not None:
            self.policy.add(action, call)
            return
        comparisons, given, otherwise = text.partition(";")
        condition = self.condition(comparisons, where)
        if given:
            if not otherwise.strip().startswith("return"):
                self.fail(where, f"after ; expected 'return ERRNO', found {otherwise.strip()[:60]!r}")
            other = self.action(otherwise.strip(), where)
            assert other is not None
            with contextlib.suppress(ContradictionError):  # some comparison holds always
                self.policy.add(other, call, ~condition)
        self.policy.add(ALLOW, call, condition)

    def action(self, text: str, where: str) -> Action | None:
        if text in ACTIONS:
            return ACTIONS[text]
        match = re.fullmatch(r"return\s+(\S+)", text)
        if match is None:
            if text.startswith("return"):
                self.fail(where, f"expected 'return ERRNO', found {text[:60]!r}")
            return None
        number = self.constants.errno(match[1]) if match[1].startswith("E") else self.value(match[1], where)
        if number is None or not 0 <= number <= 4095:
            hint = self.constants.hint(match[1], "errnos") if number is None else ""
            self.fail(where, f"{match[1][:40]!r} is not an errno{hint}")
        return actions.ERRNO(number)

    def condition(self, text: str, where: str) -> Condition:
        if text.count("&&") + text.count("||") >= MAX_COMPARISONS:
            self.fail(where, f"more than {MAX_COMPARISONS} comparisons in one rule")
        result: Condition | None = None
        for alternative in text.split("||"):
            both: Condition | None = None
            for part in alternative.split("&&"):
                one = self.atom(part.strip(), where)
                both = one if both is None else both & one
            assert both is not None
            if conflicts.never(self.policy, both):
                self.fail(where, f"{' '.join(alternative.split())[:60]!r} contradicts itself: no call can match")
            result = both if result is None else result | both
        assert result is not None
        return result

    def atom(self, text: str, where: str) -> Condition:
        match = _ATOM.fullmatch(text)
        if match is None:
            self.fail(where, f"expected a comparison like arg0 == 1, found {text[:60]!r}")
        return comparison(int(match[1]), match[2], self.value(match[3], where))

    def value(self, text: str, where: str) -> int:
        result = 0
        for word in text.split("|"):
            word = word.strip()
            name = word.lstrip("~").strip()
            number = _NUMBER.fullmatch(name)
            one = int(number[1] + (number[2] or number[3] or number[4]), 16 if number[2] else 8 if number[3] else 10) if number else None
            if one is None:
                one = self.constant(name, where)
            if not -1 << 63 <= one <= _ALL:
                self.fail(where, f"{name[:40]} does not fit 64 bits")
            result |= (~one if (len(word) - len(word.lstrip("~"))) % 2 else one) & _ALL
        return result

    def constant(self, name: str, where: str) -> int:
        found = self.constants.find(name)
        if found is None:
            what = "is not a number, nor a constant that is known: write the number, or give a file of constants"
            self.fail(where, f"{name[:40]!r} {what}{self.constants.hint(name)}")
        return found

    def fail(self, where: str, reason: str) -> NoReturn:
        raise PolicyError(f"{where}: {reason}")


def is_policy(data: bytes) -> bool:
    """Whether text looks like minijail's: a line that is ``call: ...`` or ``@word ...``."""
    return re.search(rb"^[ \t]*(@[a-z]+\s|[A-Za-z0-9_]+[ \t]*:)", data, re.MULTILINE) is not None


def parse(
    data: bytes, name: str, *, arch: ArchLike = None, default: int = KILL_PROCESS, constants: constants.Source | None = None
) -> Policy:
    """Read a policy file; included files count from the working directory.

    Named constants and errnos have the values that they have on arch (:mod:`pyseccomp.constants`); those of ``constants`` are added to
    them or replace them. As minijail does, 32-bit architectures compare 32 bits of an argument.

    Raises:
        PolicyError: not such a file; the message has the file, the line and the reason.
    """
    policy = Policy(default, arch, low_words=True)
    Reader(policy, constants).text(data, name)
    return policy
