"""Filters as libseccomp's pseudo filter code, for people to read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from pyseccomp.actions import Action, Arg, Op
from pyseccomp.syscalls import Arch

_SIGNS: Final = {Op.EQ: "==", Op.NE: "!=", Op.LT: "<", Op.LE: "<=", Op.GT: ">", Op.GE: ">="}

Calls = Iterable[tuple[str, Iterable[tuple[int, tuple[Arg, ...]]]]]


def text(default: int, bad_arch: int, arches: Iterable[tuple[Arch, Calls]]) -> str:
    """Return the whole text; a call is its title and its rules in the order in which they are tried."""
    lines = ["#", "# pseudo filter code start", "#"]
    for arch, calls in arches:
        lines += [f"# filter for arch {arch.value} ({int(arch)})", f"if ($arch == {int(arch)})"]
        for title, rules in calls:
            lines += _call(title, rules)
        lines += ["  # default action", f"  action {_action(default)};"]
    lines += ["# invalid architecture action", f"action {_action(bad_arch)};", "#", "# pseudo filter code end", "#"]
    return "\n".join(lines) + "\n"


def _call(title: str, rules: Iterable[tuple[int, tuple[Arg, ...]]]) -> Iterator[str]:
    name, _, number = title.rpartition(" ")
    yield f"  # filter for syscall {name} ({number})"
    yield f"  if ($syscall == {number})"
    for action, args in rules:
        if args:
            yield f"    if ({' && '.join(map(_comparison, args))})"
        yield f"    {'  ' if args else ''}action {_action(action)};"


def _comparison(arg: Arg) -> str:
    if arg.op is Op.MASKED_EQ:
        return f"($a{arg.index} & {arg.a % (1 << 64):#x}) == {arg.b % (1 << 64):#x}"
    return f"$a{arg.index} {_SIGNS[arg.op]} {arg.a % (1 << 64)}"


def _action(word: int) -> str:
    action = Action(word)
    return f"{action.name}({action.data})" if action.name in ("ERRNO", "TRACE") else action.name
