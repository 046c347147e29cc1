"""Which rule of a call decides, as libseccomp has it.

libseccomp does not try the rules in the order they were added. It sorts their comparisons: those of a higher argument come
first, of one argument equality before ``<`` and ``<=`` before ``>`` and ``>=``, then greater values first (for ``<`` and ``<=``
smaller ones), then the order of adding; on 64-bit architectures by the high half, then by the low one. A rule without
comparisons holds alone, whatever was or will be added. Of a rule whose comparisons begin another's, the shorter one holds:
a longer one is passed over if it comes later, and goes if it came earlier with the same action; with another action the
shorter one is refused, as is the same rule again with another action. A rule that asks all that an earlier one asks, and more,
is passed over; a later one that asks less than an earlier one with the same action takes its place.

:class:`CallRules` is that order for one call; it holds comparisons as paths in a tree, a step for each word compared.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Final

from pyseccomp.actions import Arg, Op

_ALL: Final = (1 << 64) - 1
_LOW: Final = (1 << 32) - 1
_CLASS: Final = {Op.EQ: 3, Op.NE: 3, Op.MASKED_EQ: 3, Op.LT: 2, Op.LE: 2, Op.GT: 1, Op.GE: 1}
_TEST: Final = {Op.EQ: Op.EQ, Op.NE: Op.EQ, Op.MASKED_EQ: Op.MASKED_EQ, Op.LT: Op.GE, Op.GE: Op.GE, Op.LE: Op.GT, Op.GT: Op.GT}
_FEW: Final = 6
"""Steps of which all parts are quickly looked up."""
_IF_FALSE: Final = (Op.NE, Op.LT, Op.LE)

Path = tuple["_Step", ...]


class ConflictError(Exception):
    """The same rule is there with another action, or a longer one that this one would hide."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Step:
    """One test of one word: the branch that the rule takes, and where its node stands among others of its level."""

    test: tuple[int, Op, int, int]
    branch: bool
    rank: int
    descending: bool

    def behind(self, other: _Step) -> bool:
        """Whether a node made for this step stands behind one that is to be put in for the other."""
        mine, new = self.test[0], other.test[0]
        if (mine, self.rank) != (new, other.rank):
            return (mine, self.rank) < (new, other.rank)
        return self.test[2] > other.test[2] if self.descending else self.test[2] < other.test[2]


@dataclasses.dataclass(slots=True)
class _Node:
    step: _Step
    below: dict[bool, list[_Node]] = dataclasses.field(default_factory=dict)
    leaf: dict[bool, tuple[int, tuple[Arg, ...]]] = dataclasses.field(default_factory=dict)


def _steps(arg: Arg, wide: bool) -> Iterator[_Step]:
    mask, value = (arg.a, arg.b) if arg.op is Op.MASKED_EQ else (_ALL, arg.a)
    mask, value = mask & _ALL, value & mask & _ALL
    rank, descending = _CLASS[arg.op], arg.op in (Op.LT, Op.LE)
    if arg.op is Op.MASKED_EQ and not mask & (_ALL if wide else _LOW):
        return
    test, branch = _TEST[arg.op], arg.op not in _IF_FALSE
    if wide:
        upper = test if test in (Op.EQ, Op.MASKED_EQ) else Op.GT
        yield _Step((arg.index * 2 + 1, upper, value >> 32, mask >> 32), True, rank, descending)
    yield _Step((arg.index * 2, test, value & _LOW, mask & _LOW), branch, rank, descending)


class CallRules:
    """The rules of one call on one architecture; through a multiplexer no rule is without a comparison."""

    __slots__ = ("_always", "_asking", "_held", "_level", "_multiplexed", "_wide")

    def __init__(self, wide: bool, multiplexed: bool = False) -> None:
        self._wide = wide
        self._multiplexed = multiplexed
        self._always: int | None = None
        self._held: dict[Path, tuple[int, tuple[Arg, ...]]] = {}
        self._asking: dict[_Step, dict[Path, None]] = {}  # the held paths that have a step
        self._level: list[_Node] | None = []

    def check(self, action: int, args: Sequence[Arg]) -> None:
        """Raise ConflictError if :meth:`add` could not take the rule."""
        path = self._path(args)
        if not path:
            alone = () if self._always is None else (self._always,)
            if self._multiplexed and any(other != action for other in (*alone, *(other for other, _ in self._held.values()))):
                raise ConflictError
        elif self._always is None and (path in self._held or not self._hidden(path)):
            for held in self._asking.get(path[0], ()):
                if held[: len(path)] == path and self._held[held][0] != action:
                    raise ConflictError

    def add(self, action: int, args: Sequence[Arg]) -> None:
        """Add a rule that :meth:`check` let pass; it may be passed over, or take the place of others."""
        path = self._path(args)
        if self._always is not None or self._hidden(path):
            return
        if not path:
            self._always = action
            self._held.clear()
            self._asking.clear()
            return
        for held in self._wider(action, path):
            del self._held[held]
            for step in held:
                del self._asking[step][held]
        self._held[path] = action, tuple(args)
        for step in path:
            self._asking.setdefault(step, {})[path] = None
        self._level = None

    def _hidden(self, path: Path) -> bool:
        """Whether a rule that is there asks nothing more: it is tried before this one."""
        if len(path) <= _FEW:
            return any(part in self._held for size in range(1, len(path) + 1) for part in combinations(path, size))
        asked = set(path)
        return any(asked.issuperset(held) for held in self._held)

    def _wider(self, action: int, path: Path) -> list[Path]:
        """The rules that this one makes needless: the same action, and they ask more."""
        asked = set(path)
        asking = min((self._asking.get(step, {}) for step in path), key=len)
        return [held for held in asking if self._held[held][0] == action and asked.issubset(held)]

    def _path(self, args: Sequence[Arg]) -> Path:
        return tuple(step for arg in sorted(args, key=lambda arg: arg.index) for step in _steps(arg, self._wide))

    def __iter__(self) -> Iterator[tuple[int, tuple[Arg, ...]]]:
        """The rules (action, comparisons) in the order in which they are tried."""
        if self._always is not None:
            yield self._always, ()
            return
        if self._level is None:
            self._level = []
            for path, rule in self._held.items():
                _put(self._level, path, rule)
        yield from _walk(self._level)


def _put(level: list[_Node], path: Path, rule: tuple[int, tuple[Arg, ...]]) -> None:
    """Put a path of steps into a tree, with the rule at its end."""
    for step in path[:-1]:
        level = _place(level, step).below.setdefault(step.branch, [])
    _place(level, path[-1]).leaf[path[-1].branch] = rule


def _place(level: list[_Node], step: _Step) -> _Node:
    """The node of a step in a level, put in where it belongs if it is not there."""
    for at, node in enumerate(level):
        if node.step.test == step.test:
            return node
        if node.step.behind(step):
            level.insert(at, _Node(step))
            return level[at]
    level.append(_Node(step))
    return level[-1]


def _walk(level: list[_Node]) -> Iterator[tuple[int, tuple[Arg, ...]]]:
    for node in level:
        for branch in (True, False):
            if branch in node.leaf:
                yield node.leaf[branch]
            yield from _walk(node.below.get(branch, []))
