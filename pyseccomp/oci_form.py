"""Conditions in the form that an OCI rule has: alternatives, each with at most one 64-bit comparison of an argument.

``|``, ``~``, 32-bit and signed comparisons, and several of one argument, become alternatives of ranges and masks: a range that
neither begins nor ends at the edge is cut into blocks under masks. That can take many rules; too many are refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Final

from pyseccomp.actions import EQ, GE, GT, LE, LT, MASKED_EQ, NE, Arg, Condition, Op, Term
from pyseccomp.errors import PolicyError

MAX_ALTERNATIVES: Final = 200
_ALL: Final = (1 << 64) - 1
_LOW: Final = (1 << 32) - 1
_OPPOSITE: Final = {EQ: NE, NE: EQ, LT: GE, GE: LT, GT: LE, LE: GT}

Conjunction = dict[int, Arg]
"""Comparisons by the argument."""
Alternatives = list[Conjunction]
_Both = tuple[Alternatives | None, Alternatives | None]
"""The alternatives of a condition and of its opposite; None: too many."""


def alternatives(conditions: Sequence[Condition], unless: Sequence[Sequence[Condition]] = (), *, narrow: bool = False) -> Alternatives:
    """Return when all conditions hold, and of each of unless not all. narrow: arguments have 32 bits.

    Raises:
        PolicyError: it takes too many.
    """
    found: Alternatives | None = [{}]
    for one in conditions:
        found = _both_hold(found, _of(one, narrow)[0])
    for others in unless:
        opposite: Alternatives | None = []
        for one in others:
            opposite = _either(opposite, _of(one, narrow)[1])
        found = _both_hold(found, opposite)
    if found is None:
        raise PolicyError(f"its conditions have no OCI form of up to {MAX_ALTERNATIVES} rules")
    return found


def joined(found: Alternatives) -> Alternatives:
    """Return the same with ranges of one argument that touch each other made one, where the other arguments are asked the same."""
    for index in range(6):
        groups: dict[tuple[Arg, ...], list[tuple[int, int]]] = {}
        rest: Alternatives = []
        for one in found:
            spans = _spans_of(one[index]) if index in one else None
            if spans is None:
                rest.append(one)
            else:
                groups.setdefault(tuple(arg for arg in one.values() if arg.index != index), []).extend(spans)
        for others, spans in groups.items():
            base = {arg.index: arg for arg in others}
            merged = _merged(sorted(spans))
            ways = [Arg(index, NE, merged[0][1] + 1)] if _all_but_one(merged) else [a for span in merged for a in _range(index, *span, _ALL, False)]
            rest += [base] if merged == [(0, _ALL)] else [{**base, index: way} for way in ways]
        found = rest
    return found


def _all_but_one(spans: list[tuple[int, int]]) -> bool:
    return len(spans) == 2 and spans[0][0] == 0 and spans[1][1] == _ALL and spans[0][1] + 2 == spans[1][0]


def _spans_of(arg: Arg) -> list[tuple[int, int]] | None:
    """The ranges in which a comparison holds; None of a mask that makes many."""
    if arg.op is not MASKED_EQ:
        return _values(arg)
    size = (~arg.a & _ALL) + 1
    return None if size & (size - 1) else [(arg.b, arg.b + size - 1)]


def _of(condition: Condition, narrow: bool) -> _Both:
    stack: list[_Both] = []
    for term in condition.terms:
        kind = term[0]
        if kind == 0:
            stack.append((_compare(term, narrow, False), _compare(term, narrow, True)))
        elif kind == 1:
            stack.append(stack.pop()[::-1])
        else:
            second, first = stack.pop(), stack.pop()
            if kind == 2:
                stack.append((_both_hold(first[0], second[0]), _either(first[1], second[1])))
            else:
                stack.append((_either(first[0], second[0]), _both_hold(first[1], second[1])))
    return stack[0]


def _either(a: Alternatives | None, b: Alternatives | None) -> Alternatives | None:
    if a is None or b is None or len(a) + len(b) > MAX_ALTERNATIVES:
        return None
    return a + [one for one in b if one not in a]


def _both_hold(a: Alternatives | None, b: Alternatives | None) -> Alternatives | None:
    if a is None or b is None or len(a) * len(b) > MAX_ALTERNATIVES * 10:
        return None
    found: Alternatives = []
    for first, second in product(a, b):
        joined: Alternatives = [{**first, **second}]
        for index in first.keys() & second.keys():
            ways = _meet(first[index], second[index])
            joined = [{**one, index: way} for one in joined for way in ways]
        found += [one for one in joined if one not in found]
        if len(found) > MAX_ALTERNATIVES:
            return None
    return found


# -------------------------------------------------------------- comparisons


def _compare(term: Term, narrow: bool, opposite: bool) -> Alternatives:
    _, index, number, flags, a, b = term
    op, short, signed = Op(number), bool(flags & 1) and not narrow, bool(flags & 2)
    mask = _LOW if flags & 1 or narrow else _ALL
    if op is MASKED_EQ:
        a, b = a & mask, b & mask
        same = {index: Arg(index, MASKED_EQ, a, b)} if a else {}
        return [{index: one} for one in _other_bits(index, a, b)] if opposite else [same]
    spans = _spans(op, a & mask, b & mask, mask, signed)
    if opposite:
        spans = _gaps(spans, mask)
    if spans == [(0, mask)]:
        return [{}]
    if spans and not short and not signed and op is not Op.RANGE:
        return [{index: Arg(index, _OPPOSITE[op] if opposite else op, a & mask)}]
    return [{index: one} for low, high in spans for one in _range(index, low, high, mask, short)]


def _spans(op: Op, a: int, b: int, top: int, signed: bool) -> list[tuple[int, int]]:
    """The values for which a comparison holds, as ranges."""
    shift = (top >> 1) + 1 if signed else 0
    a, b = a ^ shift, b ^ shift
    spans = {
        Op.EQ: [(a, a)], Op.NE: [(0, a - 1), (a + 1, top)], Op.LT: [(0, a - 1)], Op.LE: [(0, a)], Op.GT: [(a + 1, top)],
        Op.GE: [(a, top)], Op.RANGE: [(a, b)],
    }[op]  # fmt: skip
    parts: list[tuple[int, int]] = []
    for low, high in spans:
        if low <= high and shift and low < shift <= high:
            parts += [(low, shift - 1), (shift, high)]
        elif low <= high:
            parts.append((low, high))
    return _merged(sorted((low ^ shift, high ^ shift) for low, high in parts))


def _merged(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for low, high in spans:
        if found and found[-1][1] >= low - 1:
            found[-1] = found[-1][0], max(high, found[-1][1])
        else:
            found.append((low, high))
    return found


def _gaps(spans: list[tuple[int, int]], top: int) -> list[tuple[int, int]]:
    edges = [-1, *(edge for low, high in spans for edge in (low - 1, high)), top]
    return [(edges[i] + 1, edges[i + 1]) for i in range(0, len(edges), 2) if edges[i] < edges[i + 1]]


def _range(index: int, low: int, high: int, top: int, short: bool) -> list[Arg]:
    """One range of values; short: of the low half, whatever the other is."""
    if not short:
        if low == high:
            return [Arg(index, EQ, low)]
        if low == 0:
            return [Arg(index, LE, high)]
        if high == top:
            return [Arg(index, GE, low)]
    return [Arg(index, MASKED_EQ, mask, value) for mask, value in _blocks(low, high, top)]


def _blocks(low: int, high: int, top: int) -> Iterator[tuple[int, int]]:
    """A range as blocks whose size is a power of two, aligned: each a mask and a value."""
    while low <= high:
        size = low & -low or top + 1
        while low + size - 1 > high:
            size >>= 1
        yield top & ~(size - 1), low
        low += size


def _other_bits(index: int, mask: int, value: int) -> list[Arg]:
    """When a bit under the mask is another."""
    bits = [1 << at for at in range(64) if mask >> at & 1]
    return [Arg(index, MASKED_EQ, bit, ~value & bit) for bit in bits]


def _values(arg: Arg) -> list[tuple[int, int]]:
    return _spans(arg.op, arg.a, arg.b, _ALL, False)


def _meet(a: Arg, b: Arg) -> list[Arg]:
    """When both comparisons of one argument hold."""
    if a == b:
        return [a]
    if a.op is MASKED_EQ and b.op is MASKED_EQ:
        clash = (a.b ^ b.b) & a.a & b.a
        return [] if clash else [Arg(a.index, MASKED_EQ, a.a | b.a, a.b | b.b)]
    if a.op is MASKED_EQ or b.op is MASKED_EQ:
        masked, other = (a, b) if a.op is MASKED_EQ else (b, a)
        if other.op is EQ:
            return [other] if other.a & masked.a == masked.b else []
        if other.op is NE and other.a & masked.a != masked.b:
            return [masked]
        blocks = [Arg(a.index, MASKED_EQ, mask, value) for span in _values(other) for mask, value in _blocks(*span, _ALL)]
        return [one for block in blocks for one in _meet(masked, block)]
    return [
        one
        for first in _values(a)
        for second in _values(b)
        if max(first[0], second[0]) <= min(first[1], second[1])
        for one in _range(a.index, max(first[0], second[0]), min(first[1], second[1]), _ALL, False)
    ]
