"""OCI seccomp profiles, as container engines write and runc reads them.

What runc does is what is meant here, also where the specification is silent: a rule without ``errnoRet`` answers EPERM; a
rule with the default's own answer is skipped; several comparisons of the same argument in one rule are alternatives, each
a rule of its own, while comparisons of different arguments must all hold; names that no architecture has are skipped
(they are listed in ``policy.ignored``).
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, NoReturn

from pyseccomp import actions
from pyseccomp.actions import Action, Arg, Condition, Op
from pyseccomp.errors import PolicyError, UnknownSyscallError
from pyseccomp.policy import Policy
from pyseccomp.syscalls import Arch, ArchLike

MAX_SIZE: Final = 16 << 20
_ACTIONS: Final = {
    "SCMP_ACT_KILL": actions.KILL_THREAD,
    "SCMP_ACT_KILL_THREAD": actions.KILL_THREAD,
    "SCMP_ACT_KILL_PROCESS": actions.KILL_PROCESS,
    "SCMP_ACT_TRAP": actions.TRAP,
    "SCMP_ACT_ERRNO": actions.ERRNO(0),
    "SCMP_ACT_TRACE": actions.TRACE(0),
    "SCMP_ACT_ALLOW": actions.ALLOW,
    "SCMP_ACT_LOG": actions.LOG,
    "SCMP_ACT_NOTIFY": actions.NOTIFY,
}
_ACTION_NAMES: Final = {
    "KILL_THREAD": "SCMP_ACT_KILL_THREAD",
    "KILL_PROCESS": "SCMP_ACT_KILL_PROCESS",
    "TRAP": "SCMP_ACT_TRAP",
    "ERRNO": "SCMP_ACT_ERRNO",
    "TRACE": "SCMP_ACT_TRACE",
    "ALLOW": "SCMP_ACT_ALLOW",
    "LOG": "SCMP_ACT_LOG",
    "NOTIFY": "SCMP_ACT_NOTIFY",
}
_OPS: Final = {f"SCMP_CMP_{op.name}": op for op in Op if op is not Op.RANGE}
_KEPT: Final = ("flags", "listenerPath", "listenerMetadata")


class _Reader:
    """Take a profile apart; every error names the file and the place in it."""

    def __init__(self, source: str, caps: frozenset[str], arch: Arch, kernel: tuple[int, int]) -> None:
        self.source = source
        self.caps = caps
        self.arch = arch
        self.kernel = kernel

    def fail(self, path: str, reason: str) -> NoReturn:
        raise PolicyError(f"{self.source}: {path or '$'}: {reason}")

    def typed(self, holder: Mapping[str, Any], path: str, key: str, kind: type, default: Any = None) -> Any:
        """holder[key], which must be of a kind; the default where it is missing or null."""
        value = holder.get(key)
        if value is None:
            return default
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            self.fail(f"{path}.{key}", f"expected {kind.__name__}, found {type(value).__name__}")
        return value

    def strings(self, holder: Mapping[str, Any], path: str, key: str) -> list[str]:
        values = self.typed(holder, path, key, list, [])
        for at, value in enumerate(values):
            if not isinstance(value, str):
                self.fail(f"{path}.{key}[{at}]", f"expected str, found {type(value).__name__}")
        return list(values)

    def number(self, holder: Mapping[str, Any], path: str, key: str, limit: int, default: int | None = None) -> int | None:
        value = self.typed(holder, path, key, int, default)
        if value is not None and not 0 <= value <= limit:
            self.fail(f"{path}.{key}", f"{value} is outside 0..{limit}")
        return None if value is None else int(value)

    def action(self, holder: Mapping[str, Any], path: str, key: str, data_key: str) -> Action:
        name = self.typed(holder, path, key, str)
        if name is None:
            self.fail(f"{path}.{key}", "is missing")
        if name not in _ACTIONS:
            self.fail(f"{path}.{key}", f"unknown action {name!r} (known: {', '.join(_ACTIONS)})")
        action = _ACTIONS[name]
        if action.name == "TRACE":
            return actions.TRACE(self.number(holder, path, data_key, 0xFFFF, errno.EPERM) or 0)
        if action.name == "ERRNO":
            return actions.ERRNO(self.number(holder, path, data_key, 4095, errno.EPERM) or 0)
        return action

    def arches(self, profile: Mapping[str, Any]) -> tuple[Arch, ...]:
        listed = self.strings(profile, "$", "architectures")
        maps = self.typed(profile, "$", "archMap", list, [])
        if listed and maps:
            self.fail("$.archMap", "both architectures and archMap are given; only one may be")
        if listed:
            found = [self._arch(name, f"$.architectures[{at}]") for at, name in enumerate(listed)]
            return tuple(dict.fromkeys(found))
        for at, entry in enumerate(maps):
            path = f"$.archMap[{at}]"
            if not isinstance(entry, dict):
                self.fail(path, "expected an object")
            name = self.typed(entry, path, "architecture", str)
            if name is None:
                self.fail(f"{path}.architecture", "is missing")
            if self._arch(name, f"{path}.architecture") is self.arch:
                subs = self.strings(entry, path, "subArchitectures")
                rest = [self._arch(sub, f"{path}.subArchitectures[{i}]") for i, sub in enumerate(subs)]
                return tuple(dict.fromkeys([self.arch, *rest]))
        return (self.arch,)

    def _arch(self, name: str, path: str) -> Arch:
        try:
            return Arch.of(name)
        except PolicyError as error:
            self.fail(path, str(error))

    def applies(self, rule: Mapping[str, Any], path: str) -> bool:
        """Whether includes and excludes let the rule stand for these capabilities, this architecture, this kernel."""
        includes, excludes = (self.typed(rule, path, key, dict, {}) for key in ("includes", "excludes"))
        include, exclude = f"{path}.includes", f"{path}.excludes"
        arches = self.strings(includes, include, "arches")
        if arches and self.arch not in self._known_arches(arches):
            return False
        if self.arch in self._known_arches(self.strings(excludes, exclude, "arches")):
            return False
        if not self.caps.issuperset(self._caps(self.strings(includes, include, "caps"), f"{include}.caps")):
            return False
        if not self.caps.isdisjoint(self._caps(self.strings(excludes, exclude, "caps"), f"{exclude}.caps")):
            return False
        lowest, below = self._kernel(includes, include), self._kernel(excludes, exclude)
        return (lowest is None or self.kernel >= lowest) and (below is None or self.kernel < below)

    @staticmethod
    def _known_arches(names: list[str]) -> set[Arch]:
        found = set()
        for name in names:
            try:
                found.add(Arch.of(name))
            except PolicyError:
                continue  # a condition on a machine that does not exist here is never met
        return found

    def _caps(self, names: list[str], path: str) -> set[str]:
        for at, name in enumerate(names):
            if not re.fullmatch(r"CAP_[A-Z0-9_]+", name):
                self.fail(f"{path}[{at}]", f"{name!r} is not the name of a capability (CAP_...)")
        return set(names)

    def _kernel(self, holder: Mapping[str, Any], path: str) -> tuple[int, int] | None:
        text = self.typed(holder, path, "minKernel", str)
        if not text:
            return None
        match = re.fullmatch(r"(\d{1,6})\.(\d{1,6})(\.\d+)?", text)
        if match is None:
            self.fail(f"{path}.minKernel", f"{text!r} is not a kernel version like 4.8")
        return int(match[1]), int(match[2])

    def alternatives(self, rule: Mapping[str, Any], path: str) -> list[tuple[Condition, ...]]:
        """The rule's conditions: one conjunction, or one alternative per comparison where an argument occurs twice."""
        found: list[Arg] = []
        for at, entry in enumerate(self.typed(rule, path, "args", list, [])):
            where = f"{path}.args[{at}]"
            if not isinstance(entry, dict):
                self.fail(where, f"expected an object, found {type(entry).__name__}")
            found.append(self._compare(entry, where))
        if len({arg.index for arg in found}) < len(found):
            return [(arg,) for arg in found]
        return [tuple(found)]

    def _compare(self, entry: Mapping[str, Any], path: str) -> Arg:
        limit = (1 << 64) - 1
        index = self.number(entry, path, "index", 5)
        value = self.number(entry, path, "value", limit)
        second = self.number(entry, path, "valueTwo", limit, 0) or 0
        name = self.typed(entry, path, "op", str)
        for key, given in (("index", index), ("value", value), ("op", name)):
            if given is None:
                self.fail(f"{path}.{key}", "is missing")
        if name not in _OPS:
            self.fail(f"{path}.op", f"unknown operator {name!r} (known: {', '.join(_OPS)})")
        assert index is not None and value is not None
        try:
            if _OPS[name] is Op.MASKED_EQ:
                return Arg(index, Op.MASKED_EQ, value, second)
            return Arg(index, _OPS[name], value)
        except PolicyError as error:
            self.fail(path, str(error))


def _parse(source: str | os.PathLike[str] | Mapping[str, Any]) -> tuple[str, Any]:
    """Return (what to call it in errors, the JSON value)."""
    if isinstance(source, Mapping):
        return "profile", source
    name = os.fspath(source)
    try:
        with open(name, "rb") as file:
            data = file.read(MAX_SIZE + 1)
    except OSError as error:
        raise PolicyError(f"{name}: cannot be read: {error.strerror}") from error
    if len(data) > MAX_SIZE:
        raise PolicyError(f"{name}: larger than {MAX_SIZE >> 20} MiB: not a seccomp profile")
    try:
        return name, json.loads(data)
    except json.JSONDecodeError as error:
        raise PolicyError(f"{name}: line {error.lineno} column {error.colno}: not JSON: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise PolicyError(f"{name}: not JSON: not UTF-8 text") from error
    except RecursionError:
        raise PolicyError(f"{name}: not a seccomp profile: nested too deeply") from None


def _kernel(text: str | None) -> tuple[int, int]:
    match = re.match(r"(\d+)\.(\d+)", text or os.uname().release)
    if match is None:
        raise PolicyError(f"kernel {text!r}: expected a version like 6.1")
    return int(match[1]), int(match[2])


def load(
    source: str | os.PathLike[str] | Mapping[str, Any],
    *,
    caps: Iterable[str] = (),
    arch: ArchLike = None,
    kernel: str | None = None,
    strict: bool = False,
) -> Policy:
    """Read a profile, or the ``linux.seccomp`` of a container's config.json, as runc would.

    caps are the capabilities of the container's bounding set, arch its architecture, kernel the release that minKernel
    is compared with (None: the running one's). With strict, an unknown system call is an error and not skipped.

    Raises:
        PolicyError: not a profile; the message has the file, the place in it (JSON path) and the reason.
    """
    name, profile = _parse(source)
    place = "$"
    if isinstance(profile, Mapping) and "linux" in profile and "defaultAction" not in profile:
        linux = profile["linux"]
        profile, place = (linux.get("seccomp") if isinstance(linux, Mapping) else None), "$.linux.seccomp"
    reader = _Reader(name, frozenset(caps), Arch.of(arch), _kernel(kernel))
    if not isinstance(profile, Mapping):
        reader.fail(place, f"expected a seccomp profile (an object), found {type(profile).__name__}")
    policy = Policy(reader.action(profile, "$", "defaultAction", "defaultErrnoRet"), reader.arches(profile))
    ignored: dict[str, None] = {}
    for at, rule in enumerate(reader.typed(profile, "$", "syscalls", list, [])):
        path = f"$.syscalls[{at}]"
        if not isinstance(rule, dict):
            reader.fail(path, f"expected an object, found {type(rule).__name__}")
        _add(reader, policy, rule, path, strict, ignored)
    policy.ignored = tuple(ignored)
    policy.oci = {key: profile[key] for key in _KEPT if key in profile}
    return policy


def _add(
    reader: _Reader, policy: Policy, rule: Mapping[str, Any], path: str, strict: bool, ignored: dict[str, None]
) -> None:
    names = reader.strings(rule, path, "names") or [reader.typed(rule, path, "name", str)]
    if names == [None]:
        reader.fail(f"{path}.names", "is missing or empty")
    action = reader.action(rule, path, "action", "errnoRet")
    alternatives = reader.alternatives(rule, path)
    if not reader.applies(rule, path) or action == policy.default:
        return
    for name in names:
        try:
            for conditions in alternatives:
                policy.add(action, name, *conditions)
        except UnknownSyscallError as error:
            if error.suggestions and strict:
                reader.fail(f"{path}.names", str(error))
            if not _known_elsewhere(name):
                if strict:
                    reader.fail(f"{path}.names", str(error))
                ignored[name] = None


def _known_elsewhere(name: str) -> bool:
    from pyseccomp import _core

    return _core.syscall_id(name) >= 0


def _action_fields(action: Action, key: str, data_key: str) -> dict[str, Any]:
    fields: dict[str, Any] = {key: _ACTION_NAMES[action.name]}
    if action.name in ("ERRNO", "TRACE"):
        fields[data_key] = action.data
    return fields


def dump(policy: Policy) -> dict[str, Any]:
    """Return a policy as a profile that :func:`load` and container engines read.

    Raises:
        PolicyError: something in it has no OCI form: a rule by number without a name, a comparison that libseccomp lacks
            (RANGE, bits=32, signed), conditions joined by ``|`` or ``~``, two of one argument, the first-match priority.
    """
    if policy.priority != "restrictive" and any(rule.conditions for rule in policy.rules):
        raise PolicyError("an OCI profile cannot say that the first matching rule decides")
    profile: dict[str, Any] = _action_fields(policy.default, "defaultAction", "defaultErrnoRet")
    profile["architectures"] = [f"SCMP_ARCH_{arch.name}" for arch in policy.arches]
    profile.update(policy.oci)
    groups: dict[tuple[Action, tuple[Condition, ...]], list[str]] = {}
    for rule in policy.rules:
        if not isinstance(rule.syscall, str) or rule.arch is not None:
            raise PolicyError(f"rule {rule.syscall}: an OCI profile has no form for one architecture's number")
        groups.setdefault((rule.action, rule.conditions), []).append(rule.syscall)
    profile["syscalls"] = [
        {"names": names, **_action_fields(action, "action", "errnoRet"), **_args(conditions)}
        for (action, conditions), names in groups.items()
    ]
    return profile


def _args(conditions: tuple[Condition, ...]) -> dict[str, Any]:
    args = []
    for condition in conditions:
        if not isinstance(condition, Arg) or condition.bits != 64 or condition.signed or condition.op is Op.RANGE:
            raise PolicyError(f"{condition!r} has no OCI form")
        limit = 1 << 64
        arg = {"index": condition.index, "value": condition.a % limit, "op": f"SCMP_CMP_{condition.op.name}"}
        if condition.op is Op.MASKED_EQ:
            arg["valueTwo"] = condition.b % limit
        args.append(arg)
    if len({arg["index"] for arg in args}) < len(args):
        raise PolicyError("two conditions on one argument have no OCI form (runc takes them as alternatives)")
    return {"args": args} if args else {}
