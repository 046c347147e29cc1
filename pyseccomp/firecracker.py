"""Firecracker's filters: the JSON that seccompiler reads, one filter per kind of thread.

As there, the rules of one call are alternatives, ``dword`` looks at an argument's low 32 bits, ``masked_eq`` masks the value
as well, and other architectures kill the process (x32 too, which seccompiler's programs give the mismatch action).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NoReturn

from pyseccomp import actions, oci
from pyseccomp.actions import Action, Arg, Op
from pyseccomp.errors import ContradictionError, PolicyError, UnknownSyscallError
from pyseccomp.policy import Policy
from pyseccomp.syscalls import Arch, ArchLike

_ACTIONS: Final = {
    "allow": actions.ALLOW,
    "kill_process": actions.KILL_PROCESS,
    "kill_thread": actions.KILL_THREAD,
    "log": actions.LOG,
    "trap": actions.TRAP,
}
_WITH_DATA: Final = {"errno": actions.ERRNO, "trace": actions.TRACE}
_OPS: Final = {op.name.lower(): op for op in Op if op not in (Op.MASKED_EQ, Op.RANGE)}
_BITS: Final = {"dword": 32, "qword": 64}


class _Reader:
    def __init__(self, source: str) -> None:
        self.source = source

    def fail(self, path: str, reason: str) -> NoReturn:
        raise PolicyError(f"{self.source}: {oci.shortened(f'{path}: {reason}')}")

    def fields(self, holder: Any, path: str, needed: dict[str, str], optional: tuple[str, ...] = ()) -> list[Any]:
        """The needed keys' values (each key with its older name), of an object that has no other keys."""
        if not isinstance(holder, Mapping):
            self.fail(path, f"expected an object, found {type(holder).__name__}")
        for key in holder:
            if key not in needed and key not in needed.values() and key not in optional:
                self.fail(f"{path}.{key}", f"unknown key (known: {', '.join([*needed, *optional])})")
        found = []
        for key, older in needed.items():
            if (key in holder) + (older in holder and older != key) != 1:
                self.fail(f"{path}.{key}", f"is given twice, as {older} too" if key in holder else "is missing")
            found.append(holder[key] if key in holder else holder[older])
        return found

    def number(self, value: Any, path: str, limit: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= limit:
            self.fail(path, f"{value!r:.40} is not a number from 0 to {limit}")
        return value

    def action(self, value: Any, path: str) -> Action:
        if isinstance(value, str) and value in _ACTIONS:
            return _ACTIONS[value]
        if isinstance(value, Mapping) and len(value) == 1:
            name, data = next(iter(value.items()))
            if name in _WITH_DATA:
                return _WITH_DATA[name](self.number(data, f"{path}.{name}", 4095 if name == "errno" else 0xFFFF))
        known = ", ".join([*_ACTIONS, '{"errno": N}', '{"trace": N}'])
        self.fail(path, f"unknown action {value!r:.60} (known: {known})")

    def condition(self, entry: Any, path: str) -> Arg:
        names = {"index": "arg_index", "type": "arg_type", "op": "op", "val": "val"}
        index, kind, op, value = self.fields(entry, path, names, ("comment",))
        if not isinstance(kind, str) or kind not in _BITS:
            self.fail(f"{path}.type", f"unknown type {kind!r:.40} (known: dword, qword)")
        limit = (1 << 64) - 1
        number = self.number(value, f"{path}.val", limit) & ((1 << _BITS[kind]) - 1)
        place = self.number(index, f"{path}.index", 5)
        if isinstance(op, str) and op in _OPS:
            return Arg(place, _OPS[op], number, bits=_BITS[kind])
        if isinstance(op, Mapping) and list(op) == ["masked_eq"]:
            mask = self.number(op["masked_eq"], f"{path}.op.masked_eq", limit) & ((1 << _BITS[kind]) - 1)
            return Arg(place, Op.MASKED_EQ, mask, number & mask, bits=_BITS[kind])
        self.fail(f"{path}.op", f"unknown operator {op!r:.60} (known: {', '.join(_OPS)}, {{\"masked_eq\": MASK}})")


def is_filters(value: Any) -> bool:
    """Whether a JSON value looks like seccompiler's: objects that have a filter."""
    return isinstance(value, Mapping) and any(isinstance(v, Mapping) and "filter" in v for v in value.values())


def load(value: Any, name: str = "filters", *, thread: str | None = None, arch: ArchLike = None) -> Policy:
    """Make the policy of one kind of thread; thread may be left out when there is one.

    Raises:
        PolicyError: not such a file, or one that seccompiler refuses; the message has the place in it and the reason.
    """
    reader = _Reader(name)
    if not isinstance(value, Mapping) or not value:
        reader.fail("$", "expected an object with a filter for each kind of thread")
    if thread is None and len(value) > 1:
        reader.fail("$", f"has filters for several kinds of thread, name one: {', '.join(map(str, value))}")
    kind = next(iter(value)) if thread is None else thread
    if kind not in value:
        reader.fail("$", f"has no filter for thread {kind!r} (it has {', '.join(map(str, value))})")
    path = f"$.{kind}"
    names = {"mismatch_action": "default_action", "match_action": "filter_action", "filter": "filter"}
    other, match, rules = reader.fields(value[kind], path, names)
    default, action = reader.action(other, f"{path}.mismatch_action"), reader.action(match, f"{path}.match_action")
    if default == action:
        reader.fail(path, f"match_action and mismatch_action are both {action}: the rules would do nothing")
    if not isinstance(rules, list):
        reader.fail(f"{path}.filter", f"expected a list, found {type(rules).__name__}")
    policy = Policy(default, Arch.of(arch))
    bare: dict[str, bool] = {}
    for at, rule in enumerate(rules):
        _add(reader, policy, rule, f"{path}.filter[{at}]", action, bare)
    return policy


def _add(reader: _Reader, policy: Policy, rule: Any, path: str, action: Action, bare: dict[str, bool]) -> None:
    (call,) = reader.fields(rule, path, {"syscall": "syscall"}, ("comment", "args"))
    if not isinstance(call, str):
        reader.fail(f"{path}.syscall", f"expected a name, found {type(call).__name__}")
    args = rule.get("args")
    if args is not None and (not isinstance(args, list) or not args):
        reader.fail(f"{path}.args", "expected a list that is not empty; leave it out to match all arguments")
    if bare.setdefault(call, args is None) is not (args is None):
        reader.fail(path, f"{call} has rules with args and one without: which is meant?")
    try:
        policy.add(action, call, *[reader.condition(arg, f"{path}.args[{i}]") for i, arg in enumerate(args or ())])
    except UnknownSyscallError as error:
        reader.fail(f"{path}.syscall", str(error))
    except ContradictionError as error:
        reader.fail(f"{path}.args", str(error))
