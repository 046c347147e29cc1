"""What a filter can answer, and what a rule can ask of an argument."""

from __future__ import annotations

import enum
import errno as errno_module
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, overload

from pyseccomp.errors import PolicyError, PolicyTypeError

NAMES: Final = {
    0x80000000: "KILL_PROCESS",
    0x00000000: "KILL_THREAD",
    0x00030000: "TRAP",
    0x00050000: "ERRNO",
    0x7FC00000: "NOTIFY",
    0x7FF00000: "TRACE",
    0x7FFC0000: "LOG",
    0x7FFF0000: "ALLOW",
}
_WITH_DATA: Final = {"ERRNO", "TRACE", "TRAP"}


class Action(int):
    """One answer of a filter: an int, whose value is the kernel's SECCOMP_RET word (action and 16 bits of data)."""

    __slots__ = ()

    @property
    def name(self) -> str:
        """The action's name without its data; ``"0x00010000"`` for a word no kernel has a name for (it kills)."""
        return NAMES.get(self & 0xFFFF0000, f"{self & 0xFFFF0000:#010x}")

    @property
    def data(self) -> int:
        """The low 16 bits: the errno of ERRNO, the message of TRACE."""
        return self & 0xFFFF

    @property
    def rank(self) -> int:
        """The kernel's precedence, lowest first: of several filters' answers the one with the lowest rank counts."""
        word = self & 0xFFFF0000
        return word - (1 << 32) if word & 0x80000000 else word

    def __repr__(self) -> str:
        if self.name in ("ERRNO", "TRACE") or self.data:
            return f"{self.name}({self.data})"
        return self.name

    __str__ = __repr__

    def __reduce__(self) -> tuple[type[Action], tuple[int]]:
        return Action, (int(self),)


KILL_PROCESS: Final = Action(0x80000000)
KILL_THREAD: Final = Action(0x00000000)
KILL: Final = KILL_THREAD
TRAP: Final = Action(0x00030000)
NOTIFY: Final = Action(0x7FC00000)
LOG: Final = Action(0x7FFC0000)
ALLOW: Final = Action(0x7FFF0000)


def _data(name: str, value: int, limit: int) -> int:
    if value is None or isinstance(value, (str, bytes)):
        hint = f" such as errno.{value}" if name == "ERRNO" and isinstance(value, str) and value in errno_module.errorcode.values() else ""
        raise PolicyTypeError(f"{name}({value!r}): an integer is required{hint}")
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= limit:
        raise PolicyError(f"{name}({value!r}): the value must be an integer from 0 to {limit}")
    return value


def ERRNO(errno: int) -> Action:  # noqa: N802 - libseccomp's name
    """Answer that fails the call with errno (0 makes it return 0 without being run).

    Raises:
        PolicyError: errno is outside 0..4095; the kernel would silently cut it to 4095.
        PolicyTypeError: it is no number.
    """
    return Action(0x00050000 | _data("ERRNO", errno, 4095))


def TRACE(message: int) -> Action:  # noqa: N802 - libseccomp's name
    """Answer that stops the call for a ptrace tracer, which reads message with PTRACE_GETEVENTMSG.

    Raises:
        PolicyError: message is outside 0..65535.
        PolicyTypeError: it is no number.
    """
    return Action(0x7FF00000 | _data("TRACE", message, 0xFFFF))


class Op(enum.IntEnum):
    """How an argument is compared; the numbers up to 7 are libseccomp's."""

    NE = 1
    LT = 2
    LE = 3
    EQ = 4
    GE = 5
    GT = 6
    MASKED_EQ = 7
    RANGE = 8


NE: Final = Op.NE
LT: Final = Op.LT
LE: Final = Op.LE
EQ: Final = Op.EQ
GE: Final = Op.GE
GT: Final = Op.GT
MASKED_EQ: Final = Op.MASKED_EQ
RANGE: Final = Op.RANGE

Term = tuple[int, int, int, int, int, int]
_COMPARE, _NOT, _AND, _OR = range(4)


class Condition:
    """A condition on the arguments of one call: combine with ``&``, ``|`` and ``~``."""

    __slots__ = ()

    @property
    def terms(self) -> tuple[Term, ...]:
        """The condition in postfix order, as the C compiler takes it."""
        raise NotImplementedError

    @property
    def strings(self) -> tuple[tuple[int, bytes], ...]:
        """What it asks of strings in memory (see :mod:`pyseccomp.strings`), in the order of its terms; no filter can tell."""
        return ()

    def __and__(self, other: Condition) -> Condition:
        terms = (*self.terms, *other.terms, (_AND, 0, 0, 0, 0, 0))
        return Combined(terms, f"({self!r} & {other!r})", self.strings + other.strings)

    def __or__(self, other: Condition) -> Condition:
        terms = (*self.terms, *other.terms, (_OR, 0, 0, 0, 0, 0))
        return Combined(terms, f"({self!r} | {other!r})", self.strings + other.strings)

    def __invert__(self) -> Condition:
        return Combined((*self.terms, (_NOT, 0, 0, 0, 0, 0)), f"~{self!r}", self.strings)


class Combined(Condition):
    """Conditions joined by ``&``, ``|`` and ``~``; equal when written equally."""

    __slots__ = ("_strings", "_terms", "_text")

    def __init__(self, terms: tuple[Term, ...], text: str, strings: tuple[tuple[int, bytes], ...] = ()) -> None:
        self._terms = terms
        self._text = text
        self._strings = strings

    @property
    def strings(self) -> tuple[tuple[int, bytes], ...]:
        """What it asks of strings in memory, in the order of its terms."""
        return self._strings

    @property
    def terms(self) -> tuple[Term, ...]:
        """The condition in postfix order."""
        return self._terms

    def __repr__(self) -> str:
        return self._text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Combined) and (self._terms, self._strings) == (other._terms, other._strings)

    def __hash__(self) -> int:
        return hash((self._terms, self._strings))


_OTHER_NAMES: Final = {"arg": "index", "datum_a": "a", "data_a": "a", "datum_b": "b", "data_b": "b"}
"""What libseccomp's binding and the ctypes package call the parameters of Arg."""


@dataclass(frozen=True, slots=True, repr=False, init=False)
class Arg(Condition):
    """Compare argument ``index`` (0-5) with ``a``; true when ``arg OP a``.

    MASKED_EQ is ``arg & a == b`` and RANGE is ``a <= arg <= b``. The comparison is of all 64 bits, unsigned, unless told
    otherwise: ``bits=32`` looks at the low 32 only, which is right for arguments that the kernel takes as int (what
    is in their high half is not guaranteed to be 0), ``signed=True`` orders as signed numbers. A negative value stands
    for its two's complement in that many bits.

    By name, ``index``, ``a`` and ``b`` may be called ``arg``, ``datum_a`` and ``datum_b``, as in libseccomp's binding.

    Raises:
        PolicyError: an index, operator or value that does not fit, or a comparison that could never be true.
        PolicyTypeError: a value that is no number. TypeError: one is missing, or there is no such parameter.
    """

    index: int
    op: Op
    a: int
    b: int = 0
    bits: int = 64
    signed: bool = False

    if TYPE_CHECKING:

        @overload
        def __init__(self, index: int, op: int, a: int, b: int = 0, bits: int = 64, signed: bool = False) -> None: ...
        @overload
        def __init__(self, index: int, op: int, *, datum_a: int, datum_b: int = 0) -> None: ...
        @overload
        def __init__(self, *, arg: int, op: int, datum_a: int, datum_b: int = 0) -> None: ...
        def __init__(self, *args: Any, **named: Any) -> None: ...

    else:

        def __init__(self, index=None, op=None, a=None, b=0, bits=64, signed=False, **named):
            """Make the comparison; see the class."""
            if named or index is None or op is None or a is None:
                index, op, a, b = _by_other_names({"index": index, "op": op, "a": a, "b": b}, named)
            _set_index(self, index)
            _set_op(self, op)
            _set_a(self, a)
            _set_b(self, b)
            _set_bits(self, bits)
            _set_signed(self, signed)
            if not self._plain():
                self._check()

    def _check(self) -> None:
        if isinstance(self.index, bool) or not isinstance(self.index, int) or not 0 <= self.index <= 5:
            raise PolicyError(f"argument index {self.index!r}: a system call has arguments 0 to 5")
        try:
            object.__setattr__(self, "op", Op(self.op))
        except ValueError:
            raise PolicyError(f"comparison {self.op!r}: must be one of {', '.join(o.name for o in Op)}") from None
        if self.bits not in (32, 64):
            raise PolicyError(f"bits={self.bits!r}: an argument is compared in 32 or 64 bits")
        self._word("a", self.a)
        self._word("b", self.b)
        self._check_possible()

    def _plain(self) -> bool:
        """Whether it is one of the common comparisons, of which nothing can be wrong."""
        if type(self.op) is not Op or self.op >= MASKED_EQ or self.b != 0 or self.bits != 64 or self.signed:
            return False
        return type(self.index) is int and 0 <= self.index <= 5 and type(self.a) is int and 0 <= self.a < 1 << 64

    def _word(self, name: str, value: int) -> int:
        limit = 1 << self.bits
        if not isinstance(value, (int, float)):
            raise PolicyTypeError(f"argument {self.index} {self.op.name}: {name}={value!r:.80}: an integer is required")
        if isinstance(value, bool) or not isinstance(value, int) or not -limit // 2 <= value < limit:
            raise PolicyError(f"argument {self.index} {self.op.name}: {name}={value!r} is not a {self.bits}-bit number")
        if self.signed and value >= limit // 2:
            raise PolicyError(f"argument {self.index} {self.op.name}: {name}={value} is not a signed {self.bits}-bit number")
        return value % limit

    def _check_possible(self) -> None:
        limit = 1 << self.bits
        a, b = self.a % limit, self.b % limit
        if self.op == MASKED_EQ and self.signed:
            raise PolicyError(f"argument {self.index} MASKED_EQ: bits have no order, signed or not")
        if self.op == MASKED_EQ and b & ~a:
            raise PolicyError(
                f"argument {self.index} MASKED_EQ: the value {b:#x} has bits outside the mask {a:#x}, so it can never match"
            )
        low, high = (self.a, self.b) if self.signed else (a, b)
        if self.op == RANGE and low > high:
            raise PolicyError(f"argument {self.index} RANGE: {low} to {high} is empty")
        if self.op not in (MASKED_EQ, RANGE) and self.b:
            raise PolicyError(f"argument {self.index} {self.op.name} takes one value; a second one was given: {self.b!r}")

    @property
    def terms(self) -> tuple[Term, ...]:
        """The comparison as the C compiler takes it."""
        limit = 1 << self.bits
        flags = (self.bits == 32) | self.signed << 1
        return ((_COMPARE, self.index, int(self.op), flags, self.a % limit, self.b % limit),)

    def __repr__(self) -> str:
        values = f"{self.a:#x}, {self.b:#x}" if self.op in (MASKED_EQ, RANGE) else f"{self.a}"
        more = (", bits=32" if self.bits == 32 else "") + (", signed=True" if self.signed else "")
        return f"Arg({self.index}, {self.op.name}, {values}{more})"


_set_index, _set_op, _set_a, _set_b, _set_bits, _set_signed = (
    vars(Arg)[name].__set__ for name in ("index", "op", "a", "b", "bits", "signed")
)


def _by_other_names(given: dict[str, Any], named: dict[str, Any]) -> tuple[Any, Any, Any, Any]:
    """The parameters of an Arg, of which some came by the names of libseccomp's binding."""
    for name, value in named.items():
        ours = _OTHER_NAMES.get(name)
        if ours is None:
            raise TypeError(f"Arg() has no parameter {name!r}")
        if given[ours] is not None and ours != "b":
            raise TypeError(f"Arg() got {ours!r} and {name!r}, which mean the same")
        given[ours] = value
    missing = [name for name in ("index", "op", "a") if given[name] is None]
    if missing:
        raise TypeError(f"Arg() needs {', '.join(missing)}: an argument's index, a comparison and an integer")
    return given["index"], given["op"], given["a"], given["b"]


def In(index: int, values: Iterable[int], *, bits: int = 64) -> Condition:  # noqa: N802 - stands beside Arg
    """True when argument index is one of values.

    Raises:
        PolicyError: no values, or one that does not fit.
    """
    result: Condition | None = None
    for value in values:
        one = Arg(index, EQ, value, bits=bits)
        result = one if result is None else result | one
    if result is None:
        raise PolicyError(f"argument {index}: an empty set of values can never match")
    return result
