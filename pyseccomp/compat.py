"""libseccomp's Python interface, without libseccomp: programs written for its binding, or for the ctypes ``pyseccomp``, run as they are.

``import pyseccomp as seccomp`` (or ``from pyseccomp import *``) is all the change a program needs::

    import sys
    import pyseccomp as seccomp

    f = seccomp.SyscallFilter(defaction=seccomp.ERRNO(1))
    f.add_rule(seccomp.ALLOW, "exit_group")
    f.add_rule(seccomp.ALLOW, "write", seccomp.Arg(0, seccomp.EQ, sys.stdout.fileno()))
    f.load()

Rules, their order, architectures, attributes, transactions and return values are those of libseccomp 2.6. Errors are one
family, :class:`LibseccompError`: a RuntimeError with the text of the binding, an OSError with the errno as of the ctypes
package, and where the binding raises ValueError that too; the message goes on to say what was attempted and why it failed.

Where it differs, on purpose:

- ``socketcall`` and ``ipc`` (32-bit x86, s390, ppc, mips...): libseccomp compares a rule's other arguments with the
  multiplexer's own, so ``add_rule(ALLOW, "socket", Arg(0, EQ, AF_UNIX))`` there lets any socket be made, and it compares
  all of ipc's first argument, of which the kernel looks at 16 bits. Here such a call gets the strictest answer that could be.
- A negative or out of range errno in ``ERRNO()``, a MASKED_EQ value with bits outside its mask, a second value for an
  operator that takes one, and an argument number above 5 are refused where they are written (libseccomp cuts them).
- A negative number stands for its name everywhere, an unknown one is refused (libseccomp adds rules for such numbers).
- ``resolve_syscall`` answers a call's own number where it has one (the binding, for some, the multiplexer's).
- A rule that is refused changes nothing (libseccomp 2.5 also forgets the architectures added since the last rule).
- Comparisons of 32-bit architectures use the low halves of values, as there; see :mod:`pyseccomp.compat_rules` for the order of rules.
- Nothing is held while waiting, responses are freed, a merged filter is usable again, ``reset()`` keeps the default
  action, errnos are real, interrupted calls are begun again, and the listener is closed with its filter.
"""

from __future__ import annotations

import dataclasses
import errno
import functools
import os
import sys
from collections.abc import Iterator
from typing import Final, NoReturn, Protocol, overload

from pyseccomp import _core, compat_pfc, policy, pseudo, syscalls
from pyseccomp.actions import KILL_THREAD, LOG, NOTIFY, Arg
from pyseccomp.compat_notify import (
    Notification,
    NotificationAddfd as NotificationAddfd,
    NotificationResponse as NotificationResponse,
)
from pyseccomp.compat_rules import CallRules, ConflictError
from pyseccomp.errors import PolicyError, SeccompError, UnknownSyscallError
from pyseccomp.program import Program
from pyseccomp.syscalls import Arch

_TSYNC, _LOG, _SPEC_ALLOW, _NEW_LISTENER, _TSYNC_ESRCH, _WAIT_KILLABLE = 1, 2, 4, 8, 16, 32
_LEVELS: Final = (_TSYNC, _LOG, _SPEC_ALLOW, _NEW_LISTENER, _TSYNC_ESRCH, _WAIT_KILLABLE)
"""The flag that each level of the API adds to the one before; the first level has none of them."""
_MAX_LEVEL: Final = 7
_KILL_PROCESS: Final = 0x80000000


class LibseccompError(SeccompError, OSError, RuntimeError):
    """A call of the libseccomp interface failed; ``errno`` is what libseccomp would have returned, negated."""

    def __str__(self) -> str:
        return str(self.args[1]) if len(self.args) > 1 else super().__str__()


class LibseccompValueError(LibseccompError, ValueError):
    """The same, where libseccomp's binding raises ValueError."""


def _fail(number: int, what: str, text: str | None = None) -> NoReturn:
    """Raise what the binding raises: with text a ValueError of that text."""
    if text is not None:
        raise LibseccompValueError(number, f"{text}: {what}")
    raise LibseccompError(number, f"Library error (errno = -{number}): {what}: {os.strerror(number)}")


class Attr:
    """The attributes of a SyscallFilter, for ``get_attr`` and ``set_attr``.

    ACT_DEFAULT - the default action (read only)
    ACT_BADARCH - the action for calls of architectures that the filter does not have
    CTL_NNP - set no_new_privs when loading
    CTL_TSYNC - load into all threads of the process
    API_TSKIP - allow rules for call -1, with which a tracer skips a call
    CTL_LOG - log every answer but ALLOW
    CTL_SSB - leave speculative store bypass alone
    CTL_OPTIMIZE - 1: fewest instructions; 2: fewest executed on average
    API_SYSRAWRC - kept; errors are always the system's own here
    CTL_WAITKILL - a received notification is interrupted by fatal signals only
    """

    ACT_DEFAULT: Final = 1
    ACT_BADARCH: Final = 2
    CTL_NNP: Final = 3
    CTL_TSYNC: Final = 4
    API_TSKIP: Final = 5
    CTL_LOG: Final = 6
    CTL_SSB: Final = 7
    CTL_OPTIMIZE: Final = 8
    API_SYSRAWRC: Final = 9
    CTL_WAITKILL: Final = 10


_FLAG_OF: Final = {Attr.CTL_TSYNC: _TSYNC, Attr.CTL_LOG: _LOG, Attr.CTL_SSB: _SPEC_ALLOW, Attr.CTL_WAITKILL: _WAIT_KILLABLE}


class _KernelVersions(type):
    def __getattr__(cls, name: str) -> int:
        if name in _KVERS:
            return _KVERS[name]
        raise AttributeError(f"Kver has no version {name!r}; there are UNDEF and v3_0 to v7_2")

    def __dir__(cls) -> list[str]:
        return [*super().__dir__(), *_KVERS]


_KVERS: Final = {
    name: number
    for number, name in enumerate(
        ["UNDEF", *(f"v{major}_{minor}" for major, last in ((3, 19), (4, 20), (5, 19), (6, 19), (7, 2)) for minor in range(last + 1))],
        1,
    )
}


class Kver(metaclass=_KernelVersions):
    """libseccomp's numbers for kernel versions: ``Kver.UNDEF``, ``Kver.v3_0`` to ``Kver.v7_2``, in ascending order."""


class _HasFileno(Protocol):
    def fileno(self) -> int: ...


# ---------------------------------------------------------------- functions


def c_str(string: str) -> bytes:
    """Return a string as C has it."""
    return string.encode("ascii")


def system_arch() -> int:
    """Return the token of this machine's architecture; it equals ``Arch.X86_64`` or another member of :class:`Arch`."""
    return int(Arch.native())


def _arch(token: Arch | int, what: str) -> Arch:
    """The architecture of a member or a token (signed or not, 0 for the native one)."""
    if isinstance(token, bool) or not isinstance(token, int):
        raise TypeError(f"{what}: an architecture is Arch.X86_64 or another of Arch, got {token!r}")
    try:
        return Arch.of(token or None)
    except PolicyError:
        _fail(errno.EINVAL, f"{what}: {token!r} names none", "Invalid architecture")


@overload
def resolve_syscall(arch: Arch | int, syscall: int) -> bytes: ...
@overload
def resolve_syscall(arch: Arch | int, syscall: str) -> int: ...
def resolve_syscall(arch: Arch | int, syscall: int | str) -> int | bytes:
    """Return the number of a name on an architecture, or the name (bytes) of a number.

    A call that the architecture makes through ``socketcall`` or ``ipc`` alone has the number of that; one that it does not have
    a negative number that stands for the name in ``add_rule``, and here; an unknown name, or architecture, has -1.

    Raises:
        LibseccompValueError: no call has that number there.
        TypeError: syscall is neither a name nor a number.
    """
    if isinstance(syscall, bool) or not isinstance(syscall, (int, str)):
        raise TypeError(f"Syscall must either be an int or str type, not {type(syscall).__name__}")
    try:
        place = _arch(arch, "resolving a system call")
    except LibseccompError:
        if isinstance(syscall, str):
            return -1
        raise
    if isinstance(syscall, int):
        name = syscalls.name(syscall, place) or _stands_for(syscall, place)
        if name is None:
            _fail(errno.EINVAL, place.value, f"Unknown syscall {syscall} on arch {int(place)}")
        return name.encode()
    number = _number(syscall, place)
    if number is None:
        through = _multiplexed(syscall, place)
        number = pseudo.NUMBERS.get(syscall, -1) if through is None else through
    return number


def get_api() -> int:
    """Return how much of libseccomp's interface this kernel carries: 1 (filters) to 7 (wait-killable notifications)."""
    return _level.get()


def set_api(level: int) -> None:
    """Act as on a kernel of that level, 1 to 7, for trying things out.

    Raises:
        LibseccompValueError: no such level.
    """
    if not 1 <= level <= _MAX_LEVEL:
        _fail(errno.EINVAL, f"set_api({level}): levels are 1 to {_MAX_LEVEL}", "Invalid level")
    _level.forced = level


class _Level:
    forced: int | None = None

    @staticmethod
    @functools.cache
    def _probe() -> int:
        flags = 0
        for level, flag in enumerate(_LEVELS, 1):
            # a flag that belongs to another is looked at together with it
            with_it = flag | {_TSYNC_ESRCH: _TSYNC | _NEW_LISTENER, _WAIT_KILLABLE: _NEW_LISTENER}.get(flag, 0)
            if not _core.install_knows_flags(with_it):
                return level
            flags |= flag
        return _MAX_LEVEL

    def get(self) -> int:
        return self.forced if self.forced is not None else self._probe()

    def has(self, flag: int) -> bool:
        return self.get() > _LEVELS.index(flag) + 1


_level = _Level()


def _number(name: str, arch: Arch) -> int | None:
    try:
        return syscalls.resolve(name, arch)
    except UnknownSyscallError:
        return None


def _stands_for(number: int, arch: Arch) -> str | None:
    """The name for which a negative number stands on an architecture that does not have the call by itself alone."""
    name = pseudo.NAMES.get(number)
    return name if name is not None and (_number(name, arch) is None or _multiplexed(name, arch) is not None) else None


def _multiplexed(name: str, arch: Arch) -> int | None:
    """The number of what the call goes through there."""
    try:
        through = syscalls.multiplexed(name, arch)
    except UnknownSyscallError:
        return None
    return None if through is None else through[0]


# ------------------------------------------------------------------- filter


@dataclasses.dataclass(frozen=True, slots=True)
class _Rule:
    """A rule as it was added: its call by name, or by number where it has none."""

    action: int
    call: str | int
    args: tuple[Arg, ...]
    exact: bool


@dataclasses.dataclass(frozen=True, slots=True)
class _Place:
    """Where a rule lands on one architecture: a number, or (complement) a name that goes through a multiplexer too."""

    call: int
    title: str


class _ArchFilter:
    """The rules of one architecture."""

    def __init__(self, arch: Arch) -> None:
        self.arch = arch
        self.rules: list[_Rule] = []
        self.calls: dict[_Place, CallRules] = {}

    def copy(self) -> _ArchFilter:
        new = _ArchFilter(self.arch)
        for rule in self.rules:
            new.add(rule)
        return new

    def place(self, rule: _Rule) -> _Place | None:
        """Where the rule belongs, or None where this architecture has no such call.

        Raises:
            LibseccompError: EFAULT: a number without a name means nothing here. EDOM: the call is not there, and must be.
        """
        if isinstance(rule.call, int):
            if rule.call >= 0 and self.arch is not Arch.native():
                _fail(errno.EFAULT, f"system call {rule.call} has no name by which {self.arch.value} could know it")
            return _Place(rule.call % (1 << 32), f"UNKNOWN {rule.call}")
        number, through = _number(rule.call, self.arch), _multiplexed(rule.call, self.arch)
        if number is not None and (through is None or rule.exact):
            return _Place(number, f'"{rule.call}" {number}')
        if through is not None and not rule.exact:
            return _Place(~syscalls.syscall_index(rule.call), f'"{rule.call}" {through if number is None else number}')
        if rule.exact:
            _fail(errno.EDOM, f"{rule.call!r} is no system call of {self.arch.value} itself; add_rule() would pass that over")
        return None

    def check(self, rule: _Rule) -> None:
        place = self.place(rule)
        if place is not None and place in self.calls:
            try:
                self.calls[place].check(rule.action, rule.args)
            except ConflictError:
                told = ", ".join(map(repr, rule.args)) or "no comparison"
                _fail(errno.EEXIST, f"{rule.call} with {told} on {self.arch.value}: rules that it would hide have another action")

    def add(self, rule: _Rule) -> None:
        self.rules.append(rule)
        place = self.place(rule)
        if place is not None:
            rules = self.calls.setdefault(place, CallRules(self.arch.wide, place.call < 0))
            rules.add(rule.action, rule.args)

    def core_rules(self) -> Iterator[tuple[int, int, int, tuple[tuple[int, int, int, int, int, int], ...]]]:
        """Every rule for the compiler, the first that matches to decide; what holds without comparisons comes first."""
        found = [(place.call, action, args) for place, rules in self.calls.items() for action, args in rules]
        for call, action, args in sorted(found, key=lambda rule: bool(rule[2])):
            yield action, call, self.arch.index, tuple(term for arg in args for term in arg.terms)


@dataclasses.dataclass(slots=True)
class _State:
    """All that a transaction can take back."""

    filters: list[_ArchFilter]
    attrs: dict[int, int]
    priorities: dict[str | int, int]
    notifies: bool

    def copy(self) -> _State:
        return _State([one.copy() for one in self.filters], dict(self.attrs), dict(self.priorities), self.notifies)


def _word(action: int, what: str) -> int:
    """An action as the kernel's word; libseccomp's binding has them signed.

    Raises:
        LibseccompError: EINVAL: no such action, or this level of the API has it not.
    """
    if isinstance(action, bool) or not isinstance(action, int) or not -1 << 31 <= action < 1 << 32:
        raise TypeError(f"{what}: an action is an int such as ALLOW or ERRNO(1), got {action!r}")
    word = action % (1 << 32)
    needs = {LOG: _LOG, _KILL_PROCESS: _LOG, NOTIFY: _NEW_LISTENER}.get(word)
    if not policy._is_action(word) or (needs is not None and not _level.has(needs)):
        _fail(errno.EINVAL, f"{what}: {action} is no action here")
    return word


class SyscallFilter:
    """A filter in the making: rules by architecture, attributes, and a default action.

    ``SyscallFilter(defaction)`` begins with the native architecture, KILL for all others, and CTL_NNP set. ``load`` puts it in
    force for the caller; ``program`` gives it to the rest of this package (``ps.Filter(f.program)``).

    Raises:
        LibseccompError: defaction is no action.
    """

    def __init__(self, defaction: int) -> None:
        self._saved: list[_State] = []
        self._cache: Program | None = None
        self._outcome = _core.Outcome()
        self._state = self._fresh(_word(defaction, "SyscallFilter()"))

    @property
    def _listener(self) -> int:
        return next(iter(self._outcome.listeners), -1)

    @staticmethod
    def _fresh(action: int) -> _State:
        attrs = dict.fromkeys(range(Attr.ACT_DEFAULT, Attr.CTL_WAITKILL + 1), 0)
        attrs |= {Attr.ACT_DEFAULT: action, Attr.ACT_BADARCH: int(KILL_THREAD), Attr.CTL_NNP: 1, Attr.CTL_OPTIMIZE: 1}
        return _State([_ArchFilter(Arch.native())], attrs, {}, action == NOTIFY)

    def __repr__(self) -> str:
        rules = sum(len(one.rules) for one in self._state.filters)
        return f"<SyscallFilter: {rules} rules for {', '.join(one.arch.value for one in self._state.filters) or 'nothing'}>"

    def reset(self, defaction: int = -1) -> None:
        """Forget all rules, architectures and attributes; the default action stays unless another is given.

        Raises:
            LibseccompValueError: defaction is no action.
        """
        action = self._state.attrs[Attr.ACT_DEFAULT]
        if defaction != -1:
            try:
                action = _word(defaction, "reset()")
            except LibseccompError as error:
                _fail(errno.EINVAL, str(error), "Invalid action")
        self._saved.clear()
        self._changed(self._fresh(action))

    def _changed(self, state: _State | None = None) -> None:
        self._cache = None
        if state is not None:
            self._state = state

    def merge(self, filter: SyscallFilter) -> None:  # noqa: A002 - their name
        """Take over the architectures of another filter, with their rules; that one is reset.

        Raises:
            LibseccompError: EINVAL: the default actions or CTL_NNP differ; EEXIST: both have an architecture; EDOM: the byte
                orders differ.
        """
        if not isinstance(filter, SyscallFilter):
            raise TypeError(f"merge() takes a SyscallFilter, got {type(filter).__name__}")
        mine, other = self._state, filter._state
        for attr in (Attr.ACT_DEFAULT, Attr.CTL_NNP):
            if mine.attrs[attr] != other.attrs[attr]:
                _fail(errno.EINVAL, f"merge(): attribute {attr} is {mine.attrs[attr]} here and {other.attrs[attr]} there")
        shared = {one.arch for one in mine.filters} & {one.arch for one in other.filters}
        if shared:
            _fail(errno.EEXIST, f"merge(): both filters have {', '.join(sorted(arch.value for arch in shared))}")
        if len({one.arch.big_endian for one in (*mine.filters, *other.filters)}) > 1:
            _fail(errno.EDOM, "merge(): one program cannot serve both byte orders")
        self._changed(dataclasses.replace(mine, filters=[*mine.filters, *other.filters], notifies=mine.notifies or other.notifies))
        filter.reset()

    # ------------------------------------------------------- architectures

    def exist_arch(self, arch: Arch | int) -> bool:
        """Tell whether the filter has an architecture.

        Raises:
            LibseccompValueError: there is no such architecture.
        """
        place = _arch(arch, "exist_arch()")
        return any(one.arch is place for one in self._state.filters)

    def add_arch(self, arch: Arch | int) -> None:
        """Add an architecture: rules added from now on hold there too.

        Raises:
            LibseccompValueError: there is no such architecture.
            LibseccompError: EEXIST: the filter has it. EDOM: its byte order differs from that of the others.
        """
        place = _arch(arch, "add_arch()")
        filters = self._state.filters
        if any(one.arch is place for one in filters):
            _fail(errno.EEXIST, f"add_arch(): {place.value} is in this filter")
        if filters and filters[0].arch.big_endian != place.big_endian:
            _fail(errno.EDOM, f"add_arch(): {place.value} and {filters[0].arch.value} differ in byte order; remove_arch() that first")
        filters.append(_ArchFilter(place))
        self._changed()

    def remove_arch(self, arch: Arch | int) -> None:
        """Remove an architecture and its rules.

        Raises:
            LibseccompValueError: there is no such architecture.
            LibseccompError: EEXIST: the filter does not have it.
        """
        place = _arch(arch, "remove_arch()")
        kept = [one for one in self._state.filters if one.arch is not place]
        if len(kept) == len(self._state.filters):
            _fail(errno.EEXIST, f"remove_arch(): {place.value} is not in this filter")
        self._changed(dataclasses.replace(self._state, filters=kept))

    # ---------------------------------------------------------- attributes

    def get_attr(self, attr: int) -> int:
        """Return an attribute, e.g. ``Attr.CTL_NNP``.

        Raises:
            LibseccompValueError: there is no such attribute.
        """
        if attr not in self._state.attrs:
            _fail(errno.EINVAL, f"get_attr({attr!r}): attributes are {Attr.ACT_DEFAULT} to {Attr.CTL_WAITKILL}", "Invalid attribute")
        return self._state.attrs[attr]

    def set_attr(self, attr: int, value: int) -> None:
        """Set an attribute.

        Raises:
            LibseccompValueError: there is no such attribute, or ACT_BADARCH is given no action.
            LibseccompError: EACCES: ACT_DEFAULT is set when the filter is made. EOPNOTSUPP: not on this kernel, or an
                optimization level other than 1 and 2.
        """
        self.get_attr(attr)
        if attr == Attr.ACT_DEFAULT:
            _fail(errno.EACCES, "set_attr(ACT_DEFAULT): the default action is given to SyscallFilter() or reset()")
        if attr == Attr.ACT_BADARCH:
            try:
                value = _word(value, "set_attr(ACT_BADARCH)")
            except LibseccompError as error:
                _fail(errno.EINVAL, str(error), "Invalid attribute")
        elif attr == Attr.CTL_OPTIMIZE:
            if value not in (1, 2):
                _fail(errno.EOPNOTSUPP, f"set_attr(CTL_OPTIMIZE, {value}): there are levels 1 and 2")
        else:
            value = int(bool(value))
        if attr in _FLAG_OF and not _level.has(_FLAG_OF[attr]):
            _fail(errno.EOPNOTSUPP, f"set_attr({attr}, {value}): this kernel does not have it")
        if attr == Attr.CTL_TSYNC and value and self._state.notifies and not _level.has(_TSYNC_ESRCH):
            _fail(errno.EINVAL, "set_attr(CTL_TSYNC): this kernel does not take it together with NOTIFY")
        self._state.attrs[attr] = value
        self._changed()

    def syscall_priority(self, syscall: int | str, priority: int) -> None:
        """Say how often a call is made, 0 to 255: the higher, the fewer instructions are run for it.

        Raises:
            LibseccompValueError: priority is out of range.
            LibseccompError: EINVAL: there is no such call. EFAULT: a number without a name, as in add_rule().
        """
        if not 0 <= priority <= 255:
            _fail(errno.EINVAL, f"syscall_priority({syscall!r}, {priority})", "Syscall priority must be between 0 and 255")
        call = self._call(syscall, "syscall_priority()")
        for one in self._state.filters:
            one.place(_Rule(0, call, (), exact=False))
        self._state.priorities[call] = max(priority, self._state.priorities.get(call, 0))
        self._changed()

    # --------------------------------------------------------------- rules

    def add_rule(self, action: int, syscall: int | str, *args: Arg) -> None:
        """Add a rule for a call to all architectures of the filter: the action, if all comparisons hold.

        syscall is a name or a number of the native architecture. Where an architecture has no such call the rule is passed
        over, where it goes through ``socketcall`` or ``ipc`` it holds there. Which of several rules decides:
        :mod:`pyseccomp.compat_rules`.

        Raises:
            LibseccompError: EACCES: the action is the default one. EINVAL: no such call or action, an argument compared twice,
                or the filter has no architecture. EEXIST: another rule says otherwise. EFAULT: a number without a name, with
                other architectures than the native one. Nothing was added then.
            TypeError: something that is not an Arg.
        """
        self._add("add_rule()", action, syscall, args, exact=False)

    def add_rule_exactly(self, action: int, syscall: int | str, *args: Arg) -> None:
        """Add a rule as :meth:`add_rule`, for exactly that call on every architecture of the filter.

        Raises:
            LibseccompError: as add_rule(); EDOM: an architecture does not have the call itself.
        """
        self._add("add_rule_exactly()", action, syscall, args, exact=True)

    def _call(self, syscall: int | str, what: str) -> str | int:
        """The name of a call, or its number (on the native architecture, or -1) if it has no name."""
        if isinstance(syscall, bool) or not isinstance(syscall, (int, str)):
            raise TypeError(f"Syscall must either be an int or str type, not {type(syscall).__name__}")
        if isinstance(syscall, int):
            name = syscalls.name(syscall) if syscall >= 0 else pseudo.NAMES.get(syscall)
            if name is not None:
                return name
            if syscall == -1 and not self._state.attrs[Attr.API_TSKIP]:
                _fail(errno.EINVAL, f"{what}: call -1 needs Attr.API_TSKIP (or is an unknown call's resolve_syscall())")
            if not -1 <= syscall < syscalls.X32_BIT:
                _fail(errno.EINVAL, f"{what}: {syscall} is no system call")
            return syscall
        try:
            if syscall not in pseudo.NUMBERS:
                syscalls.syscall_index(syscall)
        except UnknownSyscallError as error:
            _fail(errno.EINVAL, f"{what}: {error}")
        return syscall

    def _add(self, what: str, action: int, syscall: int | str, args: tuple[Arg, ...], *, exact: bool) -> None:
        call = self._call(syscall, what)
        if len(args) > 6:
            raise LibseccompValueError(errno.EINVAL, f"Maximum number of arguments exceeded: {what}: {syscall} with {len(args)}")
        for arg in args:
            if not isinstance(arg, Arg):
                raise TypeError(f"Cannot convert {type(arg).__name__} to Arg: write Arg(0, EQ, 1)")
        word = _word(action, what)
        if word == self._state.attrs[Attr.ACT_DEFAULT]:
            _fail(errno.EACCES, f"{what}: {syscall}: the action is the filter's default")
        if len({arg.index for arg in args}) < len(args):
            _fail(errno.EINVAL, f"{what}: {syscall}: an argument is compared twice; add a rule for each")
        if any(arg.op not in range(1, 8) or arg.signed or arg.bits != 64 for arg in args):
            _fail(errno.EINVAL, f"{what}: {syscall}: RANGE, signed and 32-bit comparisons are Policy's")
        if not self._state.filters:
            _fail(errno.EINVAL, f"{what}: {syscall}: the filter has no architecture")
        if word == NOTIFY and self._state.attrs[Attr.CTL_TSYNC] and not _level.has(_TSYNC_ESRCH):
            _fail(errno.EINVAL, f"{what}: {syscall}: this kernel does not take NOTIFY together with CTL_TSYNC")
        rule = _Rule(word, call, args, exact)
        for one in self._state.filters:
            one.check(rule)
        for one in self._state.filters:
            one.add(rule)
        self._state.notifies |= word == NOTIFY
        self._changed()

    def start_transaction(self) -> None:
        """Remember rules, architectures and attributes; transactions may be nested."""
        self._saved.append(self._state.copy())

    def reject_transaction(self) -> None:
        """Go back to where the innermost transaction began. Nothing happens without one."""
        if self._saved:
            self._changed(self._saved.pop())

    def commit_transaction(self) -> None:
        """Keep what the innermost transaction changed. Nothing happens without one."""
        if self._saved:
            self._saved.pop()

    # ------------------------------------------------------------- program

    @property
    def program(self) -> Program:
        """The filter as a Program, for the rest of this package.

        Raises:
            LibseccompError: EINVAL: the filter has no architecture. E2BIG: it is too long.
        """
        if self._cache is None:
            self._cache = self._compile()
        return self._cache

    def precompute(self) -> None:
        """Compile now what ``load`` and the exports use.

        Raises:
            LibseccompError: EINVAL: the filter has no architecture. E2BIG: it is too long.
        """
        self._cache = self._compile()

    def _compile(self) -> Program:
        state = self._state
        if not state.filters:
            _fail(errno.EINVAL, "compiling: the filter has no architecture")
        weights = []
        for one in state.filters:
            for call, priority in state.priorities.items():
                number = call if isinstance(call, int) else _number(call, one.arch)
                if number is not None and number >= 0 and priority:
                    weights.append((one.arch.token, number, float(priority)))
        mode = 2 if weights else state.attrs[Attr.CTL_OPTIMIZE] - 1
        try:
            code = _core.compile_policy(
                state.attrs[Attr.ACT_DEFAULT], state.attrs[Attr.ACT_BADARCH], 1, True, [one.arch.index for one in state.filters],
                [rule for one in state.filters for rule in one.core_rules()], mode, sorted(set(weights)),
            )  # fmt: skip
        except PolicyError as error:
            _fail(errno.E2BIG, f"compiling: {error}")
        return Program(code)

    def export_bpf_mem(self) -> memoryview:
        """Return the program's instructions, in the byte order of the filter's architectures."""
        data = bytearray(bytes(self.program))
        if self._state.filters[0].arch.big_endian != (sys.byteorder == "big"):
            for at in range(0, len(data), 8):
                data[at : at + 2] = data[at : at + 2][::-1]
                data[at + 4 : at + 8] = data[at + 4 : at + 8][::-1]
        return memoryview(data)

    def export_bpf(self, file: _HasFileno) -> None:
        """Write the program's instructions to an open file, as ``bwrap --seccomp`` and others read them.

        Raises:
            LibseccompError: the file cannot be written.
        """
        self._write(file, bytes(self.export_bpf_mem()))

    def export_pfc(self, file: _HasFileno) -> None:
        """Write the rules as pseudo filter code, for people to read, to an open file.

        Raises:
            LibseccompError: the file cannot be written.
        """
        state = self._state
        arches = [(one.arch, [(place.title, rules) for place, rules in one.calls.items()]) for one in state.filters]
        self._write(file, compat_pfc.text(state.attrs[Attr.ACT_DEFAULT], state.attrs[Attr.ACT_BADARCH], arches).encode())

    @staticmethod
    def _write(file: _HasFileno, data: bytes) -> None:
        if hasattr(file, "flush"):
            file.flush()
        fd = file.fileno()
        try:
            while data:
                data = data[os.write(fd, data) :]
        except OSError as error:
            _fail(error.errno or errno.EIO, f"exporting to descriptor {fd}")

    def load(self) -> None:
        """Put the filter in force for the calling thread (with CTL_TSYNC: all threads); children and exec keep it.

        With NOTIFY in it this opens a listener, which :meth:`get_notify_fd` returns; it is closed with this object.

        Raises:
            LibseccompError: EACCES: CTL_NNP is off and CAP_SYS_ADMIN missing. EBUSY: there is a listener already. ESRCH: a thread
                has other filters, so CTL_TSYNC cannot be done; nothing is in force then.
        """
        attrs, program = self._state.attrs, bytes(self.program)
        if self._listener >= 0 and self._state.notifies:
            _fail(errno.EBUSY, "load(): this filter has a listener already, and the kernel allows one in a task's chain")
        flags = _TSYNC if attrs[Attr.CTL_TSYNC] else 0
        flags |= _LOG if attrs[Attr.CTL_LOG] else 0
        flags |= _SPEC_ALLOW if attrs[Attr.CTL_SSB] else 0
        if self._state.notifies:
            flags |= _NEW_LISTENER | (_WAIT_KILLABLE if attrs[Attr.CTL_WAITKILL] else 0)
        try:
            _core.install(program, flags, attrs[Attr.CTL_NNP], self._outcome if self._state.notifies else None)
        except OSError as error:
            _fail(error.errno or errno.EINVAL, f"load() of {len(program) // 8} instructions")

    # ------------------------------------------------------- notifications

    def _notify_fd(self, fd: int | None) -> int:
        if fd is None:
            fd = self._listener
        if fd < 0:
            raise LibseccompError(errno.ENOTCONN, "Notifications not enabled/active: load() a filter with a NOTIFY rule first")
        return fd

    def get_notify_fd(self) -> int:
        """Return the listener, which stays this object's.

        Raises:
            LibseccompError: nothing with NOTIFY was loaded.
        """
        return self._notify_fd(None)

    def receive_notify(self, fd: int | None = None) -> Notification:
        """Wait for the next notification of the loaded filter, or of a listener. Other threads run meanwhile.

        Raises:
            LibseccompError: no listener; ENOENT: no task is left under it.
        """
        listener = self._notify_fd(fd)
        got = _core.notify_receive(listener)
        if isinstance(got, int):
            _fail(-got, f"receive_notify() from descriptor {listener}")
        return Notification(*got)

    def respond_notify(self, response: NotificationResponse, fd: int | None = None) -> None:
        """Answer a notification.

        Raises:
            LibseccompError: ENOENT: the call is over. EINPROGRESS: it was answered. EINVAL: flags that the kernel does not know, or
                val or error beside the flag 1.
        """
        listener = self._notify_fd(fd)
        r = _core.notify_respond(listener, response.id, response.val, response.error, response.flags)
        if r < 0:
            _fail(-r, f"respond_notify() to {response.id:#x}")

    def notify_addfd(self, addfd: NotificationAddfd, fd: int | None = None) -> int:
        """Put a copy of a descriptor into the target; return its number there.

        Raises:
            LibseccompError: ENOENT: the call is over. EBADF: no such descriptor. EINVAL: unknown flags.
        """
        listener = self._notify_fd(fd)
        if addfd.flags & ~3 or addfd.newfd_flags & ~os.O_CLOEXEC:
            _fail(errno.EINVAL, f"notify_addfd(): flags {addfd.flags:#x}, newfd_flags {addfd.newfd_flags:#x}")
        at = addfd.newfd if addfd.flags & 1 else -1
        r = _core.notify_addfd(listener, addfd.id, addfd.srcfd, at, bool(addfd.newfd_flags), bool(addfd.flags & 2))
        if r < 0:
            _fail(-r, f"notify_addfd() of descriptor {addfd.srcfd} for {addfd.id:#x}")
        return r
