"""Text back to programs: what :mod:`pyseccomp.disassembly` writes, as it is or changed by hand.

A line is ``LABEL: NUMBER instruction ; comment``, of which all but the instruction may be left out. Jumps go to labels, to
``+`` (the next instruction), or, where the number is written, to the instruction of that number.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NoReturn

from pyseccomp.actions import NAMES
from pyseccomp.disassembly import ALU_OPS, JUMPS, unused
from pyseccomp.errors import ProgramError

_LINE: Final = re.compile(r"(?:(L\d{1,5}):)?\s*(?:(\d{1,5})\s+)?([a-z]+)\b\s*([^{]*?)\s*(?:\{([^}]*)\})?")
_WORD: Final = re.compile(r"0x[0-9a-fA-F]{1,8}|[0-9]{1,10}")
_FIELD: Final = re.compile(r"\[(?:(nr)|(arch)|(ip)( \+ 4)?|args\[([0-5])\]( \+ 4)?)\]")
_MEMORY: Final = re.compile(r"M\[(\d{1,2})\]")
_ACTION: Final = re.compile(r"([A-Z_]+|0x[0-9a-fA-F]{1,8})(?:\((\d{1,5})\))?")
_ACTIONS: Final = {name: word for word, name in NAMES.items()}
_BY_NAME: Final = {name: code for code, name in JUMPS.items()}
_ALU: Final = {name: code for code, name in ALU_OPS.items()}
_MAX_INSTRUCTIONS: Final = 4096
_LONGEST: Final = 200


@dataclass(slots=True)
class _Line:
    """An instruction as it was written."""

    where: str
    at: int
    number: int
    word: str
    operand: str

    def fail(self, reason: str) -> NoReturn:
        raise ProgramError(f"{self.where}: {reason}", index=self.at)

    def constant(self, text: str) -> int:
        found = int(text, 16 if text.startswith("0x") else 10) if _WORD.fullmatch(text) else 1 << 32
        if found >= 1 << 32:
            self.fail(f"{self.word}: expected a 32-bit number, found {text[:40]!r}")
        return found


def looks_like(data: bytes) -> bool:
    """Whether a file's first line that says something is an instruction."""
    for line in data[: 1 << 16].decode("latin-1").split("\n"):
        line = line.partition(";")[0].strip()
        if line:
            match = _LINE.fullmatch(line[:_LONGEST])
            return match is not None and match[3] in _KINDS and ":" not in match[4]
    return False


def assemble(text: str, name: str = "text") -> bytes:
    """Return the bytes of a program in text; name is what errors call it. They are not checked yet.

    Raises:
        ProgramError: not such text; the message has the line and the reason.
    """
    lines: list[_Line] = []
    labels: dict[str, int] = {}
    rest: list[str | None] = []
    for number, line in enumerate(text.split("\n"), 1):  # and nowhere else: a comment goes to the end of its line
        line = line.partition(";")[0].strip()
        if not line:
            continue
        if not line.isascii():
            raise ProgramError(f"{name}:{number}: only ASCII is allowed outside comments: {line[:60]!r}")
        match = _LINE.fullmatch(line) if len(line) <= _LONGEST else None
        if match is None or match[3] not in _KINDS:
            raise ProgramError(f"{name}:{number}: {line[:60]!r} is not an instruction")
        if len(lines) == _MAX_INSTRUCTIONS:
            raise ProgramError(f"{name}:{number}: more than {_MAX_INSTRUCTIONS} instructions")
        one = _Line(f"{name}:{number}", len(lines), int(match[2] or len(lines)), match[3], match[4])
        if match[1] is not None and labels.setdefault(match[1], one.at) != one.at:
            one.fail(f"label {match[1]} stands at two instructions")
        lines.append(one)
        rest.append(match[5])
    for one in lines:
        labels.setdefault(f"L{one.number + 1}", one.at + 1)
    return b"".join(_insn(line, labels, more) for line, more in zip(lines, rest, strict=True))


def _insn(line: _Line, labels: dict[str, int], rest: str | None) -> bytes:
    fields = dict(zip(("code", "jt", "jf", "k"), _KINDS[line.word](line, labels), strict=True))
    for word in (rest or "").split():
        name, _, value = word.partition("=")
        if name not in unused(fields["code"]):
            line.fail(f"{word[:20]!r}: in braces stand fields that {line.word} does not use: {', '.join(unused(fields['code']))}")
        fields[name] = line.constant(value)
        if name != "k" and fields[name] > 255:
            line.fail(f"{name}={fields[name]} is larger than 255")
    return struct.pack("=HBBI", *fields.values())


_Fields = tuple[int, int, int, int]


def _load(line: _Line, labels: dict[str, int]) -> _Fields:
    code, text = 0x00 if line.word == "ld" else 0x01, line.operand
    if text == "#len":
        return code | 0x80, 0, 0, 0
    if text.startswith("#"):
        return code, 0, 0, line.constant(text[1:])
    if (match := _MEMORY.fullmatch(text)) is not None:
        return code | 0x60, 0, 0, int(match[1])
    match = _FIELD.fullmatch(text)
    if match is None or line.word == "ldx":
        line.fail(f"{line.word}: {text[:40]!r} is nothing that can be loaded: #NUMBER, #len, M[0-15]; into a [nr], [arch], [ip], [args[0-5]] too")
    nr, arch, ip, high, index, upper = match.groups()
    offset = 0 if nr else 4 if arch else 8 if ip else 16 + 8 * int(index)
    return 0x20, 0, 0, offset + (4 if high or upper else 0)


def _store(line: _Line, labels: dict[str, int]) -> _Fields:
    match = _MEMORY.fullmatch(line.operand)
    if match is None:
        line.fail(f"{line.word}: expected M[0] to M[15], found {line.operand[:40]!r}")
    return 0x02 if line.word == "st" else 0x03, 0, 0, int(match[1])


def _alu(line: _Line, labels: dict[str, int]) -> _Fields:
    code = 0x04 | _ALU[line.word]
    return (code | 0x08, 0, 0, 0) if line.operand == "x" else (code, 0, 0, line.constant(line.operand))


def _without(code: int) -> Callable[[_Line, dict[str, int]], _Fields]:
    def read(line: _Line, labels: dict[str, int]) -> _Fields:
        if line.operand:
            line.fail(f"{line.word} takes nothing, found {line.operand[:40]!r}")
        return code, 0, 0, 0

    return read


def _distance(line: _Line, labels: dict[str, int], label: str, limit: int) -> int:
    target = line.at + 1 if label == "+" else labels.get(label)
    if target is None:
        line.fail(f"{line.word}: no instruction has the label {label[:20]!r}")
    if not 0 <= target - line.at - 1 <= limit:
        line.fail(f"{line.word} {label}: jumps go forward, by at most {limit} instructions; this one by {target - line.at - 1}")
    return target - line.at - 1


def _always(line: _Line, labels: dict[str, int]) -> _Fields:
    return 0x05, 0, 0, _distance(line, labels, line.operand, _MAX_INSTRUCTIONS)


def _jump(line: _Line, labels: dict[str, int]) -> _Fields:
    operand, *targets = [part.strip() for part in line.operand.split(",")]
    if len(targets) not in (1, 2):
        line.fail(f"{line.word}: expected a value and one or two labels, found {line.operand[:40]!r}")
    code = 0x05 | _BY_NAME[line.word]
    code, k = (code | 0x08, 0) if operand == "x" else (code, line.constant(operand))
    jt, jf = (_distance(line, labels, label, 255) for label in (*targets, "+")[:2])
    return code, jt, jf, k


def _return(line: _Line, labels: dict[str, int]) -> _Fields:
    if line.operand == "a":
        return 0x16, 0, 0, 0
    match = _ACTION.fullmatch(line.operand)
    if match is None or (match[1] not in _ACTIONS and not match[1].startswith("0x")):
        line.fail(f"ret: {line.operand[:40]!r} is not an action: {', '.join(_ACTIONS)}, with (NUMBER) if it has data; or a")
    word = _ACTIONS[match[1]] if match[1] in _ACTIONS else int(match[1], 16)
    data = int(match[2] or 0)
    if data > 0xFFFF or data & word:
        line.fail(f"ret {line.operand[:40]}: the data do not fit 16 bits")
    return 0x06, 0, 0, word | data


_KINDS: Final[dict[str, Callable[[_Line, dict[str, int]], _Fields]]] = {
    "ld": _load, "ldx": _load, "st": _store, "stx": _store, **dict.fromkeys(_ALU, _alu), "neg": _without(0x84),
    "tax": _without(0x07), "txa": _without(0x87), "ja": _always, **dict.fromkeys(_BY_NAME, _jump), "ret": _return,
}  # fmt: skip
