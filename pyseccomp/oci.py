"""OCI seccomp profiles, as container engines write and runc reads them.

What runc does is what is meant here, also where the specification is silent: a rule without ``errnoRet`` answers EPERM; a
rule with the default's own answer is skipped; several comparisons of the same argument in one rule are alternatives, each
a rule of its own, while comparisons of different arguments must all hold; names that no architecture has are skipped
(they are listed in ``policy.ignored``); the machine's own architecture is always one of the program's, and calls of others
kill the thread; a call's first rule without comparisons decides alone, as libseccomp lets it, and where comparisons have
different actions they are tried in its order (:mod:`pyseccomp.compat_rules`); on 32-bit ABIs arguments have 32 bits. One
thing is left out: runc also answers ENOSYS to calls newer than any that the profile names; here they get the profile's
default.

``flags`` are kept in :attr:`Policy.flags <pyseccomp.policy.Policy.flags>` and applied by :class:`pyseccomp.Filter`. A profile without
``flags`` asks for none; runc then sets SPEC_ALLOW, which weakens the container, and here it must be asked for.

containers-common's ``errno`` and ``defaultErrno`` (a name or a number) take precedence over errnoRet, as they do there.
"""

from __future__ import annotations

import difflib
import errno
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import filterfalse
from typing import Any, Final, NoReturn, cast

from pyseccomp import actions, constants, syscalls
from pyseccomp.actions import Action, Arg, Op
from pyseccomp.compat_rules import CallRules, ConflictError
from pyseccomp.equivalence import difference
from pyseccomp.errors import PolicyError, ProgramError, UnknownSyscallError
from pyseccomp.policy import Policy
from pyseccomp.syscalls import IDS, Arch, ArchLike

MAX_SIZE: Final = 16 << 20
_CHUNK: Final = 1 << 16
_MAX_ORDERED: Final = 2048
"""Rules whose order is looked at, each counted for each architecture; a program holds hardly more."""
_WORD: Final = (1 << 64) - 1
_LOW: Final = (1 << 32) - 1
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
_PLAIN: Final = {
    **_ACTIONS,
    "SCMP_ACT_ERRNO": actions.ERRNO(errno.EPERM),
    "SCMP_ACT_TRACE": actions.TRACE(errno.EPERM),
}
"""What an action means without a number."""
_OPS: Final = {f"SCMP_CMP_{op.name}": op for op in Op if op is not Op.RANGE}
_KEPT: Final = ("flags", "listenerPath", "listenerMetadata")
_FLAGS: Final = tuple(f"SECCOMP_FILTER_FLAG_{name}" for name in ("TSYNC", "LOG", "SPEC_ALLOW", "WAIT_KILLABLE_RECV"))
EXTENSION: Final = "x-pyseccomp"
_PROFILE_KEYS: Final = frozenset(
    ("defaultAction", "defaultErrnoRet", "defaultErrno", "architectures", "archMap", "syscalls", *_KEPT, EXTENSION)
)
_RULE_KEYS: Final = frozenset(("names", "name", "action", "errnoRet", "errno", "args", "includes", "excludes", "comment"))
_ARG_KEYS: Final = frozenset(("index", "value", "valueTwo", "op"))
_WHEN_KEYS: Final = frozenset(("caps", "arches", "minKernel"))
_EXTENSION_KEYS: Final = frozenset(("badArch", "badArchData", "lowWords"))
_ALWAYS: Final[list[tuple[Arg, ...]]] = [()]
_ARCHES: Final = {f"SCMP_ARCH_{arch.name}": arch for arch in Arch}
_ENGINE_NAMES: Final = {Arch.X86_64: "amd64", Arch.AARCH64: "arm64", Arch.MIPSEL: "mipsle", Arch.LOONGARCH64: "loong64"}
_CONDITION_ARCHES: Final = {_ENGINE_NAMES.get(arch, arch.value) for arch in Arch}
_CAPS: Final = frozenset(
    f"CAP_{name}"
    for name in """
    CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE NET_BROADCAST
    NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE
    SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM
    BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE
    """.split()
)
_SHOWN: Final = 400


def shortened(text: str) -> str:
    """Return a text for an error, without its middle where a file made it long."""
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN // 2]} [...] {text[-_SHOWN // 2 :]}"


def _hint(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), 2, 0.7)
    return f"; did you mean {' or '.join(near)}?" if near else ""


_Strings = Sequence[str]


class _Reader:
    """Take a profile apart; every error names the file and the place in it."""

    def __init__(self, source: str, caps: frozenset[str], arch: Arch, kernel: str | None) -> None:
        self.source = source
        self.caps = caps
        self.arch = arch
        self.targets: tuple[Arch, ...] = (arch,)
        self.here = _ENGINE_NAMES.get(arch, arch.value)
        self.release = _kernel(kernel) if kernel is not None else None

    def running(self) -> tuple[int, int]:
        """The kernel that minKernel is compared with."""
        if self.release is None:
            self.release = _kernel(os.uname().release)
        return self.release

    def fail(self, path: str, reason: str) -> NoReturn:
        raise PolicyError(f"{self.source}: {shortened(f'{path}: {reason}')}")

    def keys(self, holder: Mapping[str, Any], path: str, known: frozenset[str]) -> None:
        """Refuse a key that is nearly a known one; engines pass over all they do not know, and so over a misspelt one."""
        for key in holder:
            if key not in known:
                near = difflib.get_close_matches(str(key), known, 1, 0.75)
                if near:
                    self.fail(f"{path}.{key}", f"unknown key; did you mean {near[0]}?")

    def typed(self, holder: Mapping[str, Any], path: str, key: str, kind: type, default: Any = None) -> Any:
        """holder[key], which must be of a kind; the default where it is missing or null."""
        value = holder.get(key)
        if value is None:
            return default
        if type(value) is kind:
            return value
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            self.fail(f"{path}.{key}", f"expected {kind.__name__}, found {type(value).__name__}")
        return value

    def strings(self, holder: Mapping[str, Any], path: str, key: str) -> list[str]:
        values = holder.get(key)
        if type(values) is not list:
            values = self.typed(holder, path, key, list, [])
        try:
            "".join(values)  # the quickest way to see that all are strings
        except TypeError:
            at, other = next((at, value) for at, value in enumerate(values) if not isinstance(value, str))
            self.fail(f"{path}.{key}[{at}]", f"expected str, found {type(other).__name__}")
        return cast("list[str]", values)

    def number(self, holder: Mapping[str, Any], path: str, key: str, limit: int, default: int | None = None) -> int | None:
        value = holder.get(key)
        if type(value) is int and 0 <= value <= limit:
            return value
        value = self.typed(holder, path, key, int, default)
        if value is not None and not 0 <= value <= limit:
            self.fail(f"{path}.{key}", f"{value} is outside 0..{limit}")
        return None if value is None else int(value)

    def action(self, holder: Mapping[str, Any], path: str, key: str, data_key: str) -> Action:
        name = holder.get(key)
        if type(name) is str and name in _PLAIN and data_key not in holder and data_key.removesuffix("Ret") not in holder:
            return _PLAIN[name]
        name = self.typed(holder, path, key, str)
        if name is None:
            self.fail(f"{path}.{key}", "is missing")
        if name not in _ACTIONS:
            hint = _hint(name, _ACTIONS) or f" (known: {', '.join(_ACTIONS)})"
            self.fail(f"{path}.{key}", f"unknown action {name!r}{hint}")
        action = _ACTIONS[name]
        data = self._errno(holder, path, data_key, 0xFFFF if action.name == "TRACE" else 4095)
        if action.name == "TRACE":
            return actions.TRACE(errno.EPERM if data is None else data)
        if action.name == "ERRNO":
            return actions.ERRNO(errno.EPERM if data is None else data)
        if data is not None:
            self.fail(f"{path}.{data_key}", f"{name} takes no errno; only SCMP_ACT_ERRNO and SCMP_ACT_TRACE do")
        return action

    def _errno(self, holder: Mapping[str, Any], path: str, data_key: str, limit: int) -> int | None:
        data = self.number(holder, path, data_key, limit)
        key = data_key.removesuffix("Ret")
        text = self.typed(holder, path, key, str) if key != data_key else None
        if not text:
            return data
        if re.fullmatch(r"[0-9]{1,5}", text) and int(text) <= limit:
            return int(text)
        numbers = {constants.errno_number(text, arch): arch for arch in reversed(self.targets)}
        number = constants.errno_number(text, self.targets[0])
        if number is None or None in numbers:
            self.fail(f"{path}.{key}", f"{text!r} is not an errno{_hint(text[:64], constants.names('errnos'))}")
        if len(numbers) > 1:
            places = " and ".join(f"{found} on {arch.value}" for found, arch in sorted(numbers.items(), key=str))
            self.fail(f"{path}.{key}", f"{text} is {places}, which the profile is for both: give a number")
        return number

    def arches(self, profile: Mapping[str, Any]) -> tuple[Arch, ...]:
        listed = self.strings(profile, "$", "architectures")
        maps = self.typed(profile, "$", "archMap", list, [])
        if listed and maps:
            self.fail("$.archMap", "both architectures and archMap are given; only one may be")
        if listed:
            found = tuple(dict.fromkeys(self._arch(name, f"$.architectures[{at}]") for at, name in enumerate(listed)))
            return found if self.arch in found else (self.arch, *found)
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
        if name not in _ARCHES:
            self.fail(path, f"unknown architecture {name!r}{_hint(name, _ARCHES)}")
        return _ARCHES[name]

    def applies(self, rule: Mapping[str, Any], path: str) -> bool:
        """Whether includes and excludes let the rule stand for these capabilities, this architecture, this kernel."""
        fits = True
        if rule.get("includes") is not None:
            arches, caps, lowest = self._when(rule, path, "includes")
            fits = (not arches or self.here in arches) and self.caps.issuperset(caps) and (lowest is None or self.running() >= lowest)
        if rule.get("excludes") is not None:
            arches, caps, below = self._when(rule, path, "excludes")
            fits = fits and self.here not in arches and self.caps.isdisjoint(caps) and (below is None or self.running() < below)
        return fits

    def _when(self, rule: Mapping[str, Any], path: str, key: str) -> tuple[_Strings, _Strings, tuple[int, int] | None]:
        """The arches, caps and kernel that a rule includes or excludes."""
        holder = rule[key]
        path = f"{path}.{key}"
        if not isinstance(holder, dict):
            self.fail(path, f"expected dict, found {type(holder).__name__}")
        if not _WHEN_KEYS.issuperset(holder):
            self.keys(holder, path, _WHEN_KEYS)
        arches: _Strings = self.strings(holder, path, "arches") if "arches" in holder else ()
        if not _CONDITION_ARCHES.issuperset(arches):
            self._refuse_arches(arches, f"{path}.arches")
        caps: _Strings = self.strings(holder, path, "caps") if "caps" in holder else ()
        if not _CAPS.issuperset(caps):
            self._refuse_caps(caps, f"{path}.caps")
        return arches, caps, self._kernel(holder, path) if "minKernel" in holder else None

    def _refuse_arches(self, names: _Strings, path: str) -> None:
        for at, name in enumerate(names):
            if name not in _CONDITION_ARCHES:
                known = _ENGINE_NAMES.get(_ARCHES.get(f"SCMP_ARCH_{name.upper()}", Arch.X86))
                hint = f"; did you mean {known}?" if known else _hint(name, _CONDITION_ARCHES)
                self.fail(f"{path}[{at}]", f"unknown architecture {name!r}{hint}")

    def _refuse_caps(self, names: _Strings, path: str) -> None:
        for at, name in enumerate(names):
            if name not in _CAPS:
                hint = _hint(name if name.startswith("CAP_") else f"CAP_{name.upper()}", _CAPS)
                self.fail(f"{path}[{at}]", f"{name!r} is not the name of a capability{hint or ' (CAP_...)'}")

    def _kernel(self, holder: Mapping[str, Any], path: str) -> tuple[int, int] | None:
        text = self.typed(holder, path, "minKernel", str)
        if not text:
            return None
        match = re.fullmatch(r"(\d{1,6})\.(\d{1,6})(\.\d+)?", text)
        if match is None:
            self.fail(f"{path}.minKernel", f"{text!r} is not a kernel version like 4.8")
        return int(match[1]), int(match[2])

    def alternatives(self, rule: Mapping[str, Any], path: str) -> list[tuple[Arg, ...]]:
        """The rule's conditions: one conjunction, or one alternative per comparison where an argument occurs twice."""
        entries = self.typed(rule, path, "args", list)
        if not entries:
            return _ALWAYS
        found = [self._compare(entry, f"{path}.args[{at}]") for at, entry in enumerate(entries)]
        if len({arg.index for arg in found}) < len(found):
            return [(arg,) for arg in found]
        return [tuple(found)]

    def _compare(self, entry: Any, path: str) -> Arg:
        if not isinstance(entry, dict):
            self.fail(path, f"expected an object, found {type(entry).__name__}")
        if not _ARG_KEYS.issuperset(entry):
            self.keys(entry, path, _ARG_KEYS)
        index = self.number(entry, path, "index", 5)
        value = self.number(entry, path, "value", _WORD)
        second = self.number(entry, path, "valueTwo", _WORD, 0) if "valueTwo" in entry else 0
        name = self.typed(entry, path, "op", str)
        if index is None or value is None or name is None:
            self.fail(f"{path}.{'index' if index is None else 'value' if value is None else 'op'}", "is missing")
        if name not in _OPS:
            hint = _hint(name, _OPS) or f" (known: {', '.join(_OPS)})"
            self.fail(f"{path}.op", f"unknown operator {name!r}{hint}")
        op = _OPS[name]
        try:
            return Arg(index, op, value, second or 0) if op is Op.MASKED_EQ else Arg(index, op, value)
        except PolicyError as error:
            self.fail(path, str(error))


def read_file(path: str, limit: int = MAX_SIZE) -> bytes:
    """Return what a file holds, but stop soon after limit bytes. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        data = chunk = os.read(fd, _CHUNK)
        while chunk and len(data) <= limit:
            chunk = os.read(fd, _CHUNK)
            data += chunk
        return data
    finally:
        os.close(fd)


class _RepeatedKeyError(Exception):
    pass


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _RepeatedKeyError
    return found


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_unique)


class _Repeated(str):
    """Stands for an object that has this key twice."""


def _repeated(text: str) -> str:
    """Where an object has a key twice, and which; for a text in which one has."""

    def mark(pairs: list[tuple[str, Any]]) -> Any:
        seen: set[str] = set()
        again = next((key for key, _ in pairs if key in seen or seen.add(key)), None)  # type: ignore[func-returns-value]
        return dict(pairs) if again is None else _Repeated(again)

    todo: list[tuple[str, Any]] = [("$", json.JSONDecoder(object_pairs_hook=mark).decode(text))]
    while todo:
        path, value = todo.pop()
        if isinstance(value, _Repeated):
            return f"{path}: key {str(value)!r} is given twice in one object"
        inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        todo += [(f"{path}.{key}" if isinstance(value, dict) else f"{path}[{key}]", one) for key, one in inner if isinstance(one, (dict, list, _Repeated))]
    raise AssertionError("no object has a key twice")


def _parse(source: str | os.PathLike[str] | Mapping[str, Any]) -> tuple[str, Any]:
    """Return (what to call it in errors, the JSON value)."""
    if isinstance(source, Mapping):
        return "profile", source
    name = os.fspath(source)
    try:
        data = read_file(name)
    except OSError as error:
        raise PolicyError(f"{name}: cannot be read: {error.strerror}") from error
    if len(data) > MAX_SIZE:
        raise PolicyError(f"{name}: larger than {MAX_SIZE >> 20} MiB: not a seccomp profile")
    return name, decode(data, name)


def _value(text: str) -> Any:
    try:
        return _DECODER.decode(text)
    except _RepeatedKeyError:
        raise PolicyError(shortened(_repeated(text))) from None


def decode(data: bytes, name: str) -> Any:
    """Return the value of JSON text in which no object has a key twice; name is what errors call it.

    Raises:
        PolicyError: not JSON, or not such.
    """
    try:
        return _value(data.decode().removeprefix("\ufeff"))
    except PolicyError as error:
        raise PolicyError(f"{name}: {error}") from None
    except json.JSONDecodeError as error:
        raise PolicyError(f"{name}: line {error.lineno} column {error.colno}: not JSON: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise PolicyError(f"{name}: not JSON: not UTF-8 text") from error
    except RecursionError:
        raise PolicyError(f"{name}: not a seccomp profile: nested too deeply") from None
    except ValueError as error:
        raise PolicyError(f"{name}: not a seccomp profile: {error}") from None


def _kernel(text: str) -> tuple[int, int]:
    match = re.match(r"(\d+)\.(\d+)", text)
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
    name: str | None = None,
) -> Policy:
    """Read a profile, or the ``linux.seccomp`` of a container's config.json, as runc would.

    caps are the capabilities of the container's bounding set, arch its architecture, kernel the release that minKernel
    is compared with (None: the running one's). With strict, an unknown system call is an error and not skipped. name is
    what errors call the profile (None: its path).

    Raises:
        PolicyError: not a profile; the message has the file, the place in it (JSON path) and the reason.
    """
    called, profile = _parse(source)
    name = name or called
    place = "$"
    if isinstance(profile, Mapping) and "linux" in profile and "defaultAction" not in profile:
        linux = profile["linux"]
        profile, place = (linux.get("seccomp") if isinstance(linux, Mapping) else None), "$.linux.seccomp"
    reader = _Reader(name, _granted(caps), Arch.of(arch), kernel)
    if not isinstance(profile, Mapping):
        reader.fail(place, f"expected a seccomp profile (an object), found {type(profile).__name__}")
    if not _PROFILE_KEYS.issuperset(profile):
        reader.keys(profile, "$", _PROFILE_KEYS)
    reader.targets = reader.arches(profile)
    default = reader.action(profile, "$", "defaultAction", "defaultErrnoRet")
    bad_arch, low_words = _extension(reader, profile)
    try:
        policy = Policy(default, reader.targets, bad_arch=bad_arch, low_words=low_words)
    except PolicyError as error:
        raise error if str(error).startswith(name) else PolicyError(f"{name}: $.architectures: {error}") from None
    _check_kept(reader, profile)
    found: list[_Resolved] = []
    for at, rule in enumerate(reader.typed(profile, "$", "syscalls", list, [])):
        path = f"$.syscalls[{at}]"
        if not isinstance(rule, dict):
            reader.fail(path, f"expected an object, found {type(rule).__name__}")
        resolved = _resolve(reader, policy.default, rule, path)
        if resolved is not None:
            found.append(resolved)
    _add(reader, policy, found, strict)
    policy.oci = {key: profile[key] for key in _KEPT if key in profile}
    return policy


def _granted(caps: Iterable[str]) -> frozenset[str]:
    """The container's capabilities; one that is misspelt would silently not be granted."""
    found = frozenset((caps,) if isinstance(caps, str) else caps)
    for cap in sorted(found - _CAPS, key=str):
        hint = _hint(cap if str(cap).startswith("CAP_") else f"CAP_{str(cap).upper()}", _CAPS)
        raise PolicyError(f"caps: {cap!r:.80} is not the name of a capability{hint or ' (CAP_...)'}")
    return found


def _extension(reader: _Reader, profile: Mapping[str, Any]) -> tuple[Action, bool]:
    """What dump() adds for a policy that libseccomp could not have made; without it libseccomp's values."""
    path = f"$.{EXTENSION}"
    more = reader.typed(profile, "$", EXTENSION, dict)
    if more is None:
        return actions.KILL_THREAD, True
    if not _EXTENSION_KEYS.issuperset(more):
        reader.keys(more, path, _EXTENSION_KEYS)
    return reader.action(more, path, "badArch", "badArchData"), bool(reader.typed(more, path, "lowWords", bool, True))


def _check_kept(reader: _Reader, profile: Mapping[str, Any]) -> None:
    for at, flag in enumerate(reader.strings(profile, "$", "flags")):
        if flag not in _FLAGS:
            reader.fail(f"$.flags[{at}]", f"unknown flag {flag!r}{_hint(flag, _FLAGS)}")
    listener = reader.typed(profile, "$", "listenerPath", str)
    if reader.typed(profile, "$", "listenerMetadata", str) and not listener:
        reader.fail("$.listenerMetadata", "is given without listenerPath")


def flags_of(kept: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the flags of a policy's ``oci`` dictionary. PolicyError for one that does not exist."""
    reader = _Reader("policy.oci", frozenset(), Arch.native(), None)
    _check_kept(reader, kept)
    return tuple(reader.strings(kept, "$", "flags"))


_Resolved = tuple[str, Action, Sequence[str], list[tuple[Arg, ...]]]
"""Where it stands, the action, the calls, the alternatives."""


def _resolve(reader: _Reader, default: Action, rule: Mapping[str, Any], path: str) -> _Resolved | None:
    """The rule, or None if it does not apply here."""
    if not _RULE_KEYS.issuperset(rule):
        reader.keys(rule, path, _RULE_KEYS)
    names: Sequence[str] = reader.strings(rule, path, "names")
    single = reader.typed(rule, path, "name", str) if "name" in rule else None
    if names and single:
        reader.fail(f"{path}.name", "both name and names are given; only one may be")
    if not names and not single:
        reader.fail(f"{path}.names", "is missing or empty")
    action = reader.action(rule, path, "action", "errnoRet")
    alternatives = reader.alternatives(rule, path) if "args" in rule else _ALWAYS
    if not reader.applies(rule, path) or action == default:
        return None
    return path, action, names or (str(single),), alternatives


def _add(reader: _Reader, policy: Policy, found: list[_Resolved], strict: bool) -> None:
    """Add the rules; of a call that has one without comparisons only the first such, as libseccomp keeps it."""
    whole: set[int] = set()
    ignored: dict[str, None] = {}
    known: list[tuple[_Resolved, list[int]]] = []
    for rule in found:
        calls = _known(reader, policy, rule, strict, ignored)
        if rule[3] is _ALWAYS:
            if not whole.isdisjoint(calls):
                calls = [call for call in calls if call not in whole]
            whole.update(calls)
        known.append((rule, calls))
    special = (_mixed(known) - whole) | _asking_nothing(known)
    ordered = _in_order(reader, policy, special, known) if special else policy
    if special and not _surely_same(ordered, _strictest(_same_kind(policy), special, known, whole)):
        policy.priority = "first"
        policy._take(ordered)
        known = [(rule, [call for call in calls if call not in special]) for rule, calls in known]
    _strictest(policy, None, known, whole)
    policy.ignored = tuple(ignored)


def _surely_same(one: Policy, other: Policy) -> bool:
    try:
        return difference(one, other) is None
    except (PolicyError, ProgramError):  # one is too large, which whoever compiles it is told
        return False


def _same_kind(policy: Policy) -> Policy:
    return Policy(policy.default, policy.arches, bad_arch=policy.bad_arch, low_words=policy.low_words)


def _strictest(policy: Policy, only: set[int] | None, known: list[tuple[_Resolved, list[int]]], whole: set[int]) -> Policy:
    """Add the rules as they stand, so that of several the strictest holds; but where one is without comparisons, it alone."""
    for (_, action, _, alternatives), calls in known:
        if only is not None:
            calls = [call for call in calls if call in only]
        if alternatives is not _ALWAYS:
            calls = [call for call in calls if call not in whole]
        if calls:
            for conditions in alternatives:
                policy._add_known(action, tuple(calls), conditions)
    return policy


def _in_order(reader: _Reader, policy: Policy, calls: set[int], known: list[tuple[_Resolved, list[int]]]) -> Policy:
    """The rules of these calls in the order in which libseccomp tries them, for each architecture."""
    found = _same_kind(policy)
    found.priority = "first"
    by_call: dict[int, list[_Resolved]] = {call: [] for call in sorted(calls)}
    for rule, named in known:
        for call in calls.intersection(named):
            by_call[call].append(rule)
    left = _MAX_ORDERED
    for call, rules in by_call.items():
        name = syscalls.name_of(call)
        for arch in policy.arches:
            if name not in syscalls.ids_of((arch,), policy.multiplexed == "closed"):
                continue
            left -= sum(len(rule[3]) for rule in rules)
            if left < 0:
                reader.fail(rules[-1][0], f"{name}: more than {_MAX_ORDERED} rules with comparisons, of different actions for a call")
            for word, args in _order(reader, name, arch, rules):
                found.add(word, name, *args, arch=arch)
    return found


def _order(reader: _Reader, name: str, arch: Arch, rules: list[_Resolved]) -> CallRules:
    order = CallRules(arch.wide)
    said: dict[frozenset[Arg], tuple[str, Action]] = {}
    for path, action, _, alternatives in rules:
        for args in alternatives:
            before = said.setdefault(frozenset(args), (path, action))
            try:
                order.check(action, args)
            except ConflictError:
                very = f"the very conditions under which {before[0]} says {before[1]!r}"
                less = "fewer conditions than a rule before it has with another action, which libseccomp refuses"
                reader.fail(path, f"{name}: {action!r} under {less if before[1] == action else very}")
            order.add(action, args)
    return order


def _asking_nothing(known: list[tuple[_Resolved, list[int]]]) -> set[int]:
    """The calls with a comparison under a mask of which nothing is left, at least in 32 bits: libseccomp drops it."""
    vacuous = [calls for rule, calls in known for args in rule[3] if any(arg.op is Op.MASKED_EQ and not arg.a & _LOW for arg in args)]
    return {call for calls in vacuous for call in calls}


def _known(reader: _Reader, policy: Policy, rule: _Resolved, strict: bool, ignored: dict[str, None]) -> list[int]:
    """The calls of a rule that the policy's architectures have; the names of no call go to ignored."""
    path, _, names, _ = rule
    here = syscalls.ids_of(policy.arches, policy.multiplexed == "closed")
    found = [call for call in map(here.get, names) if call is not None]
    for name in filterfalse(here.__contains__, names) if len(found) < len(names) else ():
        if name in IDS:
            continue
        try:
            if name.startswith("@"):
                found += map(here.__getitem__, policy._group(name, None))
            elif strict:
                syscalls.syscall_index(name)  # raises, and tells the nearest names
            else:
                ignored[name] = None
        except UnknownSyscallError as error:
            if strict:
                reader.fail(f"{path}.names", str(error))
            ignored[name] = None
    return found


def _mixed(known: list[tuple[_Resolved, list[int]]]) -> set[int]:
    """The calls to which comparisons give different actions."""
    first: dict[int, Action] = {}
    return {
        call
        for (_, action, _, alternatives), calls in known
        if alternatives is not _ALWAYS
        for call in calls
        if first.setdefault(call, action) != action
    }
