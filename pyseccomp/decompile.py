"""Programs back to rules: any classic BPF program for seccomp, whoever compiled it.

For every architecture that the program tells apart, and every number, it is run with the arguments unknown: what remains is a
decision over arguments, shared where equal. Comparisons of two halves become one of 64 bits. The result is a policy in which
the first matching rule decides, and that is proved to be equivalent (:func:`pyseccomp.equivalent`) before it is called exact.
Where no rules can say the same (arithmetic with arguments, the instruction pointer, an architecture or numbers of which a
policy cannot speak) the text is still exact.
"""

from __future__ import annotations

import contextlib
import struct
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from pyseccomp import decode, syscalls
from pyseccomp.actions import EQ, GE, GT, MASKED_EQ, Action, Arg, Condition
from pyseccomp.equivalence import equivalent
from pyseccomp.errors import ContradictionError, PolicyError, ProgramError
from pyseccomp.policy import Policy
from pyseccomp.program import Program
from pyseccomp.syscalls import X32_BIT, Arch

_ALL: Final = (1 << 32) - 1
_LD, _LDX, _ST, _STX, _ALU, _JMP, _RET, _MISC = range(8)
_ABS, _MEM, _LEN = 0x20, 0x60, 0x80
_MAX_STATES: Final = 20_000
_MAX_RULES: Final = 3_000
_MAX_NUMBERS: Final = 5_000
_MAX_TOKENS: Final = 64
_EACH: Final = 2048
"""The numbers that are looked at one by one where bits of them are: more than any architecture has."""
_SIZE_OF_DATA: Final = 64
_OTHER: Final = 0x00DEAD00
"""A token that no architecture has; a program that names it has no rule form."""


class _NoRulesError(Exception):
    """Why there is no rule form."""


# ---------------------------------------------------------------- decisions


@dataclass(frozen=True, slots=True)
class Word:
    """32 bits of an argument (6: the instruction pointer), masked."""

    arg: int
    high: bool
    mask: int = _ALL

    def __str__(self) -> str:
        name = "ip" if self.arg == 6 else f"arg{self.arg}"
        whole = f"{name}.high" if self.high else f"{name}.low"
        return whole if self.mask == _ALL else f"({whole} & {self.mask:#x})"


@dataclass(frozen=True, slots=True)
class Test:
    """A comparison of a word (op ``==``, ``>`` or ``&``), or of a whole argument (word is its index)."""

    word: Word | int
    op: str
    value: int
    mask: int = (1 << 64) - 1

    def __str__(self) -> str:
        return self.text((), None)

    def text(self, calls: Collection[str], arch: Arch | None) -> str:
        """The comparison with the names that the argument, and its values on arch, have in all these calls."""
        word = self.word
        index, mask = (word.arg, word.mask) if isinstance(word, Word) else (word, self.mask)
        name, show = decode.argument(calls, index, arch)
        if isinstance(word, Word) and word.high:
            name, show = f"{name}.high", decode.plain
        elif isinstance(word, Word) and name == f"arg{index}":
            name = f"{name}.low"
        whole = mask == (_ALL if isinstance(word, Word) else (1 << 64) - 1)
        left = name if whole else f"({name} & {show(mask, True)})"
        return f"{left} {self.op} {show(self.value, self.op == '&')}"

    def holds(self, values: Sequence[int]) -> bool:
        """Whether it does for these arguments, the instruction pointer behind them."""
        if isinstance(self.word, Word):
            word = values[self.word.arg]
            left = (word >> 32 if self.word.high else word & _ALL) & self.word.mask
        else:
            left = values[self.word] & self.mask
        if self.op == "&":
            return bool(left & self.value)
        return left == self.value if self.op == "==" else left >= self.value if self.op == ">=" else left > self.value

    def condition(self) -> Condition:
        """The same as a rule has it. Raises _NoRulesError."""
        if not isinstance(self.word, Word):
            if self.op == "==":
                whole = self.mask == (1 << 64) - 1
                return Arg(self.word, EQ, self.value) if whole else Arg(self.word, MASKED_EQ, self.mask, self.value)
            if self.op == "&":
                return ~Arg(self.word, MASKED_EQ, self.value, 0)
            return Arg(self.word, GE if self.op == ">=" else GT, self.value)
        word, shift = self.word, 32 if self.word.high else 0
        bits = 64 if word.high else 32
        if word.arg == 6:
            raise _NoRulesError("it looks at the instruction pointer")
        if self.op == "&":
            return ~Arg(word.arg, MASKED_EQ, (self.value & word.mask) << shift, 0, bits=bits)
        if self.op == "==":
            if self.value & ~word.mask:
                raise _NoRulesError(f"{self} can never hold")
            if word.mask == _ALL and not word.high:
                return Arg(word.arg, EQ, self.value, bits=32)
            return Arg(word.arg, MASKED_EQ, word.mask << shift, self.value << shift, bits=bits)
        if word.mask != _ALL:
            return self._masked_above(word, shift, bits)
        if not word.high:
            return Arg(word.arg, GT, self.value, bits=32)
        if self.value == _ALL:
            raise _NoRulesError(f"{self} can never hold")
        return Arg(word.arg, GE, self.value + 1 << 32)

    def _masked_above(self, word: Word, shift: int, bits: int) -> Condition:
        """``(word & mask) > value``: a bit that the value lacks is set, and the mask's bits above it are at least the value's."""
        least = 0  # the largest number within the mask that is not above the value
        for bit in _bits(word.mask):
            if least | bit <= self.value:
                least |= bit
        found: Condition | None = None
        for bit in _bits(word.mask & ~least):
            mask = word.mask & ~(bit - 1)
            one = Arg(word.arg, MASKED_EQ, mask << shift, (least & mask | bit) << shift, bits=bits)
            found = one if found is None else found | one
        if found is None:
            raise _NoRulesError(f"{self} can never hold")
        return found


def _bits(mask: int) -> list[int]:
    return [1 << at for at in range(31, -1, -1) if mask >> at & 1]


@dataclass(frozen=True, slots=True)
class Leaf:
    """An answer: the kernel's word."""

    word: int


@dataclass(frozen=True, slots=True)
class Branch:
    """If the test holds, then; else otherwise. Equal ones are one object."""

    test: Test
    then: Decision
    otherwise: Decision


Decision = Leaf | Branch


class _Maker:
    """Makes decisions, each once, and joins the halves of comparisons."""

    def __init__(self) -> None:
        self._made: dict[tuple[object, ...], Decision] = {}

    def leaf(self, word: int) -> Decision:
        return self._made.setdefault((word,), Leaf(word))

    def branch(self, test: Test, then: Decision, otherwise: Decision) -> Decision:
        if then is otherwise:
            return then
        joined = self._join(test, then, otherwise)
        if joined is not None:
            return self.branch(*joined)
        key = (test, id(then), id(otherwise))
        return self._made.setdefault(key, Branch(test, then, otherwise))

    def _join(self, test: Test, then: Decision, otherwise: Decision) -> tuple[Test, Decision, Decision] | None:
        word = test.word
        if not isinstance(word, Word) or word.arg == 6:
            return None
        if test.op == "==" and isinstance(then, Branch) and then.otherwise is otherwise and _pair(word, then.test, "=="):
            return self._whole(test, then.test), then.then, otherwise
        if test.op == "&" and isinstance(otherwise, Branch) and otherwise.then is then and _pair(word, otherwise.test, "&"):
            high, low = (test, otherwise.test) if word.high else (otherwise.test, test)
            return Test(word.arg, "&", high.value << 32 | low.value), then, otherwise.otherwise
        if test.op != ">" or not word.high or word.mask != _ALL or not isinstance(otherwise, Branch):
            return None
        equal, below = otherwise.then, otherwise.otherwise
        if otherwise.test != Test(word, "==", test.value) or not isinstance(equal, Branch) or not _pair(word, equal.test, ">"):
            return None
        if equal.then is then and equal.otherwise is below and isinstance(equal.test.word, Word) and equal.test.word.mask == _ALL:
            return Test(word.arg, ">", test.value << 32 | equal.test.value), then, below
        return None

    @staticmethod
    def _whole(one: Test, two: Test) -> Test:
        assert isinstance(one.word, Word) and isinstance(two.word, Word)
        high, low = (one, two) if one.word.high else (two, one)
        assert isinstance(high.word, Word) and isinstance(low.word, Word)
        return Test(one.word.arg, "==", high.value << 32 | low.value, high.word.mask << 32 | low.word.mask)


def _pair(word: Word, test: Test, op: str) -> bool:
    """Whether test is the like of the other half of a word."""
    other = test.word
    return test.op == op and isinstance(other, Word) and other.arg == word.arg and other.high != word.high


# ------------------------------------------------------------------ running

class _Token(int):
    """The architecture, as loaded."""


class _Number(int):
    """The number, as loaded."""


Value = int | Word
State = tuple[int, Value, Value, tuple[Value, ...]]


class _Runner:
    """Runs a program for one architecture and number, with arguments unknown."""

    def __init__(self, program: Program, maker: _Maker) -> None:
        self._insns = list(struct.iter_unpack("=HBBI", bytes(program)))
        self._maker = maker
        self.tokens: set[int] = set()
        """What the architecture was compared with so far."""
        self.bits = False
        """Whether something was calculated of a number, so that neighbours of one may be decided otherwise."""

    def decide(self, token: int, swapped: bool, nr: int) -> Decision:
        """What remains to be decided by arguments. Raises _NoRulesError."""
        first: State = (0, 0, 0, (0,) * 16)
        found: dict[State, Decision | tuple[Test, State, State]] = {}
        todo = [first]
        while todo:
            state = todo.pop()
            if state in found:
                continue
            if len(found) > _MAX_STATES:
                raise _NoRulesError("it tells too many cases apart")
            step = self._run(state, token, swapped, nr)
            found[state] = step
            if isinstance(step, tuple):
                todo += step[1:]
        for state in sorted(found, key=lambda state: -state[0]):
            step = found[state]
            if isinstance(step, tuple):
                then, otherwise = found[step[1]], found[step[2]]
                assert not isinstance(then, tuple) and not isinstance(otherwise, tuple)
                found[state] = self._maker.branch(step[0], then, otherwise)
        result = found[first]
        assert not isinstance(result, tuple)
        return result

    def _run(self, state: State, token: int, swapped: bool, nr: int) -> Decision | tuple[Test, State, State]:
        pc, acc, x, memory = state
        while True:
            code, jt, jf, k = self._insns[pc]
            kind = code & 7
            pc += 1
            if kind == _RET:
                word = acc if code & 0x18 == 0x10 else k
                if isinstance(word, Word):
                    raise _NoRulesError("it answers with an argument")
                return self._maker.leaf(word)
            if kind == _LD or kind == _LDX:
                loaded = self._load(code, k, memory, token, swapped, nr)
                acc, x = (loaded, x) if kind == _LD else (acc, loaded)
            elif kind == _ST or kind == _STX:
                stored = acc if kind == _ST else x
                memory = (*memory[:k], stored, *memory[k + 1 :])
            elif kind == _MISC:
                acc, x = (x, x) if code & 0x80 else (acc, acc)
            elif kind == _ALU:
                self.bits |= isinstance(acc, _Number) or (code & 8 != 0 and isinstance(x, _Number))
                result = _calculate(code & 0xF0, acc, x if code & 8 else k)
                if result is None:
                    return self._maker.leaf(0)
                acc = result
            elif code & 0xF0 == 0:
                pc += k
            else:
                operand = x if code & 8 else k
                self._watch(code & 0xF0, acc, operand)
                held, inverted = _compare(code & 0xF0, acc, operand)
                yes, no = (jf, jt) if inverted else (jt, jf)
                if isinstance(held, bool):
                    pc += yes if held else no
                else:
                    return held, (pc + yes, acc, x, memory), (pc + no, acc, x, memory)

    def _watch(self, op: int, acc: Value, operand: Value) -> None:
        """Note what numbers and architectures are told apart by."""
        for one, other in ((acc, operand), (operand, acc)):
            if isinstance(one, _Token):
                if op != 0x10 or isinstance(other, (Word, _Token, _Number)):
                    raise _NoRulesError("it compares the architecture otherwise than for equality")
                self.tokens.add(int(other))
            if isinstance(one, _Number) and isinstance(other, (Word, _Token, _Number)):
                raise _NoRulesError("it compares the number with what is no constant")
            self.bits |= isinstance(one, _Number) and op == 0x40

    @staticmethod
    def _load(code: int, k: int, memory: tuple[Value, ...], token: int, swapped: bool, nr: int) -> Value:
        mode = code & 0xE0
        if mode == _ABS:
            if k < 8:
                return _Number(nr) if k == 0 else _Token(token)
            arg = 6 if k < 16 else (k - 16) // 8
            return Word(arg, bool(k & 4) != swapped)
        return memory[k] if mode == _MEM else _SIZE_OF_DATA if mode == _LEN else k


def _calculate(op: int, acc: Value, operand: Value) -> Value | None:
    """The ALU; None where the kernel ends the program (division by zero)."""
    if isinstance(acc, _Token) or isinstance(operand, _Token):
        raise _NoRulesError("it calculates with the architecture")
    if isinstance(acc, int) and isinstance(operand, int):
        if op in (0x30, 0x90):
            return None if operand == 0 else acc // operand if op == 0x30 else acc % operand
        shift = operand if operand < 32 else 32
        result = {
            0x00: acc + operand, 0x10: acc - operand, 0x20: acc * operand, 0x40: acc | operand, 0x50: acc & operand,
            0x60: acc << shift, 0x70: acc >> shift, 0x80: -acc, 0xA0: acc ^ operand,
        }.get(op)  # fmt: skip
        if result is not None:
            return result & _ALL
    if op == 0x50 and isinstance(acc, Word) and isinstance(operand, int):
        mask = acc.mask & operand
        return Word(acc.arg, acc.high, mask) if mask else 0
    if op == 0x50 and isinstance(operand, Word) and isinstance(acc, int):
        return _calculate(op, operand, acc)
    raise _NoRulesError("it calculates with an argument")


def _compare(op: int, acc: Value, operand: Value) -> tuple[bool | Test, bool]:
    """(what decides, whether the other way round); JEQ, JGT, JGE and JSET become ==, > and &."""
    if isinstance(acc, int) and isinstance(operand, int):
        return {0x10: acc == operand, 0x20: acc > operand, 0x30: acc >= operand, 0x40: bool(acc & operand)}[op], False
    if isinstance(acc, int) or not isinstance(operand, int):
        raise _NoRulesError("it compares an argument with another")
    if op == 0x10:
        return (Test(acc, "==", operand), False) if not operand & ~acc.mask else (False, False)
    if op == 0x40:
        bits = operand & acc.mask
        return (Test(Word(acc.arg, acc.high), "&", bits), False) if bits else (False, False)
    if op == 0x30:
        if operand == 0:
            return True, False
        operand -= 1
    return (Test(acc, ">", operand), False) if operand < acc.mask else (False, False)


# ---------------------------------------------------------------- decompile

Run = tuple[int, int, Decision]
"""Numbers from first to last, and what is decided for them."""


@dataclass(frozen=True, slots=True)
class Decompiled:
    """What a program means. ``policy`` is None where no rules can say it, ``why`` then tells; ``text`` is exact always."""

    program: Program
    policy: Policy | None
    why: str | None
    text: str

    @property
    def exact(self) -> bool:
        """Whether there is a policy, which is proved to be equivalent."""
        return self.policy is not None

    def __str__(self) -> str:
        return self.text


def decompile(program: Program) -> Decompiled:
    """Decompile a program; see the module. Bounded in time and memory, whatever the program is."""
    try:
        runs, sure = _all_runs(program)
    except _NoRulesError as error:
        return Decompiled(program, None, str(error), program.disassemble())
    text = "\n".join(_text(runs)) + "\n"
    try:
        policy = _policy(runs)
        compiled = policy.compile()
        if not equivalent(compiled, program):
            raise _NoRulesError("it tells numbers or architectures apart that rules do not speak of")
    except (_NoRulesError, PolicyError, ProgramError) as error:
        return Decompiled(program, None, str(error), text if sure else program.disassemble())
    return Decompiled(program, policy, None, text)


def notified(program: Program) -> tuple[str, ...] | None:
    """Name the calls that a program can notify: ``openat``, or ``x86:open`` of another architecture. None: not to be told."""
    try:
        runs, sure = _all_runs(program)
    except _NoRulesError:
        return None
    names = {arch.token: arch for arch in reversed(Arch)}
    found: list[str] = []
    for token, parts in runs.items():
        arch = names.get(token)
        where = "" if arch is Arch.native() else "other architectures:" if token == _OTHER else f"{arch.value if arch else hex(token)}:"
        for first, last, decision in parts:
            if any(Action(word).name == "NOTIFY" for word, _ in _flatten(decision)):
                found += [where + name for name in _names(first, last, arch)] if last - first <= _MAX_NUMBERS else [f"{where}all others"]
    return tuple(dict.fromkeys(found)) if sure or found else None


def reasons(program: Program, arch: Arch, nr: int, ip: int, args: Sequence[int]) -> tuple[tuple[str, bool], ...] | None:
    """What a program asks of one call's arguments, in order, and whether it holds. None: not to be told as comparisons.

    nr, ip and args are unsigned, as the kernel would show them to the program.
    """
    try:
        one = _Runner(program, _Maker()).decide(arch.token, arch.big_endian != (sys.byteorder == "big"), nr)
    except _NoRulesError:
        return None
    call = syscalls.name(nr, arch)
    values = (*args, *[0] * (6 - len(args)), ip)
    found = []
    while isinstance(one, Branch):
        held = one.test.holds(values)
        found.append((one.test.text(() if call is None else (call,), arch), held))
        one = one.then if held else one.otherwise
    return tuple(found)


def _all_runs(program: Program) -> tuple[dict[int, list[Run]], bool]:
    """For each AUDIT_ARCH token that is told apart, and _OTHER, what is decided; whether that is sure without a proof."""
    constants = {k for code, _, _, k in struct.iter_unpack("=HBBI", bytes(program)) if code & 7 != _RET}
    edges = sorted({edge for k in constants for edge in (k, k + 1) if edge <= _ALL + 1} | {0, X32_BIT, _ALL, _ALL + 1})
    known = {arch.token: arch for arch in reversed(Arch)}
    runner = _Runner(program, _Maker())
    found = {_OTHER: _runs(runner, _OTHER, edges, None)}
    while left := sorted(runner.tokens - found.keys()):
        if len(found) > _MAX_TOKENS:
            raise _NoRulesError("it tells too many architectures apart")
        found[left[0]] = _runs(runner, left[0], edges, known.get(left[0]))
    if runner.bits:
        edges = sorted({*edges, *range(_EACH), *range(X32_BIT, X32_BIT + _EACH), *(1 << bit for bit in range(11, 32))})
        found = {token: _runs(runner, token, edges, known.get(token)) for token in found}
    return {**{token: runs for token, runs in found.items() if token != _OTHER}, _OTHER: found[_OTHER]}, not runner.bits


def _runs(runner: _Runner, token: int, edges: list[int], arch: Arch | None) -> list[Run]:
    swapped = arch is not None and arch.big_endian != (sys.byteorder == "big")
    found: list[Run] = []
    for first, end in zip(edges, edges[1:], strict=False):
        decision = runner.decide(token, swapped, first)
        if found and found[-1][2] is decision:
            found[-1] = found[-1][0], end - 1, decision
        else:
            found.append((first, end - 1, decision))
    return found


# ------------------------------------------------------------------- policy


def _policy(runs: dict[int, list[Run]]) -> Policy:
    bad_arch = _only_leaf(runs[_OTHER], "it answers calls of unknown architectures by their numbers")
    arches: list[Arch] = []
    parts: dict[Arch, list[Run]] = {}
    for token, found in runs.items():
        if token != _OTHER and token not in {arch.token for arch in Arch}:
            raise _NoRulesError(f"it knows the architecture {token:#x}, which rules do not")
        for arch in Arch:
            if arch.token == token:
                part = _part(found, arch)
                if arch is Arch.X32 and all(decision is bad_arch for _, _, decision in part):
                    continue
                arches.append(arch)
                parts[arch] = part
    if not arches:
        raise _NoRulesError("it does not look at the architecture")
    defaults = {max(part, key=lambda run: run[1] - run[0])[2] for part in parts.values()}
    if len(defaults) != 1:
        raise _NoRulesError("architectures have different defaults")
    default = defaults.pop()
    if not isinstance(default, Leaf) or not isinstance(bad_arch, Leaf):
        raise _NoRulesError("its default depends on arguments")
    policy = Policy(default.word, arches, bad_arch=bad_arch.word, priority="first", multiplexed="separate")
    for arch, part in parts.items():
        for nr, decision in _numbers(part, default):
            name = syscalls.name(nr, arch)
            for word, tests in _flatten(decision):
                if tests or word != default.word:
                    with contextlib.suppress(ContradictionError):
                        policy.add(word, nr if name is None else name, *[_sign(test, held) for test, held in tests], arch=arch)
    return policy


def _only_leaf(runs: list[Run], otherwise: str) -> Decision:
    if len(runs) != 1 or not isinstance(runs[0][2], Leaf):
        raise _NoRulesError(otherwise)
    return runs[0][2]


def _part(runs: list[Run], arch: Arch) -> list[Run]:
    """The runs of one ABI: x86_64 and x32 share a token."""
    if arch not in (Arch.X86_64, Arch.X32):
        return runs
    low, high = (0, X32_BIT - 1) if arch is Arch.X86_64 else (X32_BIT, _ALL - 1)
    part = [(max(first, low), min(last, high), d) for first, last, d in runs if first <= high and last >= low]
    return [*part, (_ALL, _ALL, runs[-1][2])] if arch is Arch.X86_64 else part


def _numbers(runs: list[Run], default: Decision) -> Iterator[tuple[int, Decision]]:
    left = _MAX_NUMBERS
    for first, last, decision in runs:
        if decision is default:
            continue
        left -= last - first + 1
        if left < 0:
            raise _NoRulesError(f"it answers the numbers {first:#x} to {last:#x}, which no rules can list")
        for nr in range(first, last + 1):
            yield nr, decision


Literal = tuple[Test, bool]


def _flatten(decision: Decision, given: tuple[Literal, ...] = ()) -> list[tuple[int, tuple[Literal, ...]]]:
    """Rules in the order in which they must be tried; the last one holds whatever was given."""
    found: list[tuple[int, tuple[Literal, ...]]] = []
    todo: list[tuple[Decision, tuple[Literal, ...]]] = [(decision, given)]
    while todo:
        if len(found) > _MAX_RULES:
            raise _NoRulesError("a call needs too many rules")
        one, tests = todo.pop()
        if isinstance(one, Leaf):
            found.append((one.word, tests))
        elif isinstance(one.otherwise, Leaf) and not isinstance(one.then, Leaf):
            todo += [(one.then, tests), (one.otherwise, (*tests, (one.test, False)))]
        else:
            todo += [(one.otherwise, tests), (one.then, (*tests, (one.test, True)))]
    return found


def _sign(test: Test, held: bool) -> Condition:
    return test.condition() if held else ~test.condition()


# --------------------------------------------------------------------- text


def _text(runs: dict[int, list[Run]]) -> Iterator[str]:
    for title, arch, found in _sections(runs):
        yield f"{title}:"
        grouped: dict[int, tuple[Decision, list[str]]] = {}
        for first, last, decision in found:
            grouped.setdefault(id(decision), (decision, []))[1].extend(_names(first, last, arch))
        most = max(found, key=lambda run: run[1] - run[0])[2]
        for decision, calls in grouped.values():
            if decision is not most:
                yield f"  {', '.join(calls)}:"
                yield from _lines(decision, "    ", calls, arch)
        yield f"  {'everything' if len(grouped) == 1 else 'all others'}:"
        yield from _lines(most, "    ", (), arch)


def _sections(runs: dict[int, list[Run]]) -> Iterator[tuple[str, Arch | None, list[Run]]]:
    """Title, architecture and what is decided; x32 has x86_64's token and numbers of its own."""
    names = {arch.token: arch for arch in reversed(Arch)}
    for token, found in runs.items():
        arch = names.get(token)
        if token == Arch.X86_64.token:
            yield "x86_64", Arch.X86_64, _part(found, Arch.X86_64)
            yield "x32", Arch.X32, _part(found, Arch.X32)
        else:
            yield ("other architectures" if token == _OTHER else arch.value if arch else hex(token)), arch, found


def _names(first: int, last: int, arch: Arch | None) -> Iterator[str]:
    if arch is None or last - first > _MAX_NUMBERS:
        yield _number(first) if first == last else f"{first:#x} to {last:#x}"
        return
    for nr in range(first, last + 1):
        yield syscalls.name(nr, arch) or _number(nr)


def _number(nr: int) -> str:
    return "-1" if nr == _ALL else str(nr)


def _lines(decision: Decision, indent: str, calls: Collection[str], arch: Arch | None) -> Iterator[str]:
    """The decision as nested ifs; what is shared is written again, up to a limit."""
    todo: list[tuple[Decision | str, str]] = [(decision, indent)]
    written = 0
    while todo:
        one, indent = todo.pop()
        written += 1
        if written > 4 * _MAX_RULES:
            yield f"{indent}..."
            return
        if isinstance(one, str):
            yield indent + one
        elif isinstance(one, Leaf):
            yield f"{indent}{decode.answer(one.word, arch)}"
        else:
            yield f"{indent}if {one.test.text(calls, arch)}:"
            todo += [(one.otherwise, indent), ("else:", indent), (one.then, indent + "  ")]
            if not isinstance(one.otherwise, Branch):
                todo[-3] = (one.otherwise, indent + "  ")
            else:
                todo[-2] = ("otherwise:", indent)
