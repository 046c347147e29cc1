"""Programs as text."""

from __future__ import annotations

import re
import struct
from typing import Final

from pyseccomp import _core, constants, decode, syscalls
from pyseccomp.actions import Action
from pyseccomp.syscalls import Arch

_LD, _LDX, _ST, _STX, _ALU, _JMP, _RET, _MISC = range(8)
ALU_OPS: Final = {0x00: "add", 0x10: "sub", 0x20: "mul", 0x30: "div", 0x40: "or", 0x50: "and", 0x60: "lsh", 0x70: "rsh", 0xA0: "xor"}
JUMPS: Final = {0x10: "jeq", 0x20: "jgt", 0x30: "jge", 0x40: "jset"}
_TOKENS: Final = {arch.token: arch for arch in reversed(Arch)}


def _field(offset: int) -> str:
    """Name the word of struct seccomp_data at offset."""
    if offset == 0:
        return "nr"
    if offset == 4:
        return "arch"
    half = "" if offset % 8 == 0 else " + 4"
    return f"ip{half}" if offset < 16 else f"args[{(offset - 16) // 8}]{half}"


_Held = tuple[str, int | None, int | None]
"""What the accumulator holds ("?": not known), and the AUDIT_ARCH token and the number of the calls that get here."""


class _Names:
    """What is known at each instruction, as far as one pass can tell: it gives constants their names."""

    def __init__(self, count: int) -> None:
        self.at: list[_Held | None] = [None] * (count + 1)

    def flow(self, index: int, held: _Held) -> None:
        before = self.at[index]
        if before is None or before == held:
            self.at[index] = held
        else:
            word, token, nr = held
            self.at[index] = (
                word if before[0] == word else "?", token if before[1] == token else None, nr if before[1:] == held[1:] else None
            )  # fmt: skip

    @staticmethod
    def of(held: _Held, code: int, k: int) -> str:
        """What k is called in an instruction: an architecture, a call, or constants of the argument; "" if nothing is known."""
        word, token, nr = held
        equal = code & 0xFF == 0x15
        if word == "arch" and equal and k in _TOKENS:
            return str(_TOKENS[k].value)
        if token not in _TOKENS:
            return ""
        if code & 0x07 == _RET:
            return constants.errno_name(k & 0xFFFF, _TOKENS[token]) or "" if Action(k).name == "ERRNO" else ""
        arch = list(Arch)[_core.arch_of(token, k if word == "nr" else nr or 0)]
        if word == "nr" and equal:
            return syscalls.name(k, arch) or ""
        call = syscalls.name(nr, arch) if nr is not None else None
        match = _LOW_WORD.fullmatch(word)
        if call is None or match is None or bool(match[2]) is not arch.big_endian or code & 0x08:
            return ""
        _, show = decode.argument((call,), int(match[1]), arch)
        text = show(k, code & 0xFF in (_AND, 0x45))
        return text if re.search("[A-Z]", text) else ""


_AND: Final = 0x54
_LOW_WORD: Final = re.compile(r"args\[(\d)\]( \+ 4)?")


def _operand(code: int, k: int) -> str:
    return "x" if code & 0x08 else f"{k:#x}"


def _plain(code: int, k: int) -> str:
    """An instruction that is no jump."""
    group = code & 0x07
    if group in (_LD, _LDX):
        register = "ld " if group == _LD else "ldx"
        mode = code & 0xE0
        source = {0x00: f"#{k:#x}", 0x20: f"[{_field(k)}]", 0x60: f"M[{k}]", 0x80: "#len"}[mode]
        return f"{register}  {source}"
    if group in (_ST, _STX):
        return f"{'st ' if group == _ST else 'stx'}  M[{k}]"
    if group == _ALU:
        return "neg" if code & 0xF0 == 0x80 else f"{ALU_OPS[code & 0xF0]}  {_operand(code, k)}"
    if group == _RET:
        return "ret  a" if code & 0x18 == 0x10 else f"ret  {Action(k)}"
    return "tax" if code & 0xF8 == 0 else "txa"


def unused(code: int) -> tuple[str, ...]:
    """Return the names of the fields that an instruction of this code does not use."""
    group = code & 0x07
    jumps = () if group == _JMP and code & 0xF0 else ("jt", "jf")
    by_register = code & 0x08 and (group == _ALU or (group == _JMP and code & 0xF0))
    return (*jumps, "k") if by_register or group == _MISC or code in (0x80, 0x81, 0x84, 0x16) else jumps


def _rest(code: int, jt: int, jf: int, k: int) -> str:
    """What stands in the fields that an instruction does not use; nearly always nothing."""
    fields = {"jt": jt, "jf": jf, "k": k}
    text = " ".join(f"{name}={fields[name]:#x}" for name in unused(code) if fields[name])
    return f" {{{text}}}" if text else ""


def disassemble(program: bytes) -> str:
    """Return a checked program as aligned text with labels."""
    insns = list(struct.iter_unpack("=HBBI", program))
    names = _Names(len(insns))
    names.flow(0, ("?", None, None))
    targets: set[int] = set()
    lines: list[tuple[str, str]] = []
    for at, (code, jt, jf, k) in enumerate(insns):
        held = names.at[at] or ("?", None, None)
        word, token, nr = held
        group = code & 0x07
        comment = ""
        if group == _JMP and code & 0xF0 == 0:
            target = at + 1 + k
            targets.add(target)
            names.flow(target, held)
            text = f"ja   L{target}"
        elif group == _JMP:
            yes, no = at + 1 + jt, at + 1 + jf
            comment = names.of(held, code, k)
            equal = code & 0xF8 == 0x10
            names.flow(yes, (word, k, None) if equal and word == "arch" else (word, token, k) if equal and word == "nr" else held)
            names.flow(no, held)
            targets |= {yes, no} - {at + 1}
            text = f"{JUMPS[code & 0xF0]:<4} {_operand(code, k)}, "
            text += f"L{yes}" if no == at + 1 else f"L{yes}, L{no}" if yes != at + 1 else f"+, L{no}"
        else:
            text = _plain(code, k)
            if group == _RET or code & 0xFF == _AND:
                comment = names.of(held, code, k)
            if group == _LD and code & 0xE0 == 0x20:
                held = (_field(k), token, nr)
            elif group in (_LD, _ALU, _MISC) and not (group == _MISC and code & 0xF8 == 0):
                kept = code == _AND and (k == (~syscalls.X32_BIT & 0xFFFFFFFF) or word.startswith("args"))
                if not kept:
                    held = ("?", token, nr)
            if group != _RET:
                names.flow(at + 1, held)
        lines.append((text + _rest(code, jt, jf, k), comment))
    width = max(len(text) for text, _ in lines)
    out = []
    for at, (text, comment) in enumerate(lines):
        label = f"L{at}:" if at in targets else ""
        out.append(f"{label:>6} {at:4}  {text:<{width}}{'  ; ' + comment if comment else ''}".rstrip())
    return "\n".join(out) + "\n"
