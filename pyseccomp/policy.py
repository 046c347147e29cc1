"""Policies: rules about system calls, compiled into programs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from pyseccomp import _core, syscalls
from pyseccomp.actions import ALLOW, KILL_PROCESS, Action, Condition, Term
from pyseccomp.errors import ContradictionError, PolicyError, PolicyTooLargeError, UnknownSyscallError
from pyseccomp.program import Program
from pyseccomp.syscalls import Arch, ArchLike

if TYPE_CHECKING:
    from pyseccomp.conflicts import Conflict

CoreRule = tuple[int, int, int, tuple[Term, ...]]
"""Action, call (an index, a number or the complement of an index), architecture or -1, terms."""
CoreRules = tuple[int, int | tuple[int, ...], int, tuple[Term, ...]]
"""The same, or with several indexes for as many rules."""
Optimize = Literal["size", "depth", "profile"]
Priority = Literal["restrictive", "first"]
Multiplexed = Literal["closed", "separate"]
Profile = Mapping[str | int, float] | Mapping[tuple[ArchLike, str | int], float]

_OPTIMIZE: Final = {"size": 0, "depth": 1, "profile": 2}
_PRIORITY: Final = {"restrictive": 0, "first": 1}
_SKIPPED: Final = 0xFFFFFFFF
"""Number -1, with which a tracer skips a call."""
_ACTION_WORDS: Final = frozenset((0x80000000, 0, 0x30000, 0x50000, 0x7FC00000, 0x7FF00000, 0x7FFC0000, 0x7FFF0000))


def _is_action(word: int) -> bool:
    """Only ERRNO, TRACE and TRAP carry data; with other words it would be a mistake."""
    base = word & ~0xFFFF
    return base in _ACTION_WORDS and (word == base or base in (0x30000, 0x50000, 0x7FF00000))


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule: the action for a call whose arguments fulfil all conditions. arch is set for rules given by number."""

    action: Action
    syscall: str | int
    conditions: tuple[Condition, ...] = ()
    arch: Arch | None = None


def _checked(action: int, role: str) -> Action:
    if isinstance(action, bool) or not isinstance(action, int) or not _is_action(action):
        raise PolicyError(f"{role} {action!r} is not an action (ALLOW, LOG, ERRNO(n), TRAP, NOTIFY, TRACE(n), KILL_PROCESS, ...)")
    return action if isinstance(action, Action) else Action(action)


class Policy:
    """Rules about system calls, and an action for all others.

    ``arches`` are the architectures that the policy speaks about (None: the native one; on x86_64 that excludes i386
    and x32); calls of any other get ``bad_arch``. Number -1, with which a tracer skips a call, gets the default unless a rule
    is about it (by number, 0xffffffff).

    Several rules for one call: each is tried. ``priority="restrictive"`` answers as the kernel would if every rule were a
    filter of its own, installed in this order: the strictest action of those that match (KILL_PROCESS, KILL_THREAD,
    TRAP, ERRNO, NOTIFY, TRACE, LOG, ALLOW), the later rule among equal actions with different data. With
    ``priority="first"`` the first rule that matches decides. When none matches the default does.

    ``low_words`` compares only 32 bits of every argument on 32-bit ABIs (x32 among them), as libseccomp does.

    i386, s390, ppc, mips (o32), m68k and sh can make socket and System V IPC calls through ``socketcall`` and ``ipc`` too. A
    rule that names such a call holds there as well. Its arguments are in memory then, which no filter can read: a rule
    with conditions may match or not, and the call gets the strictest answer that could come out (so a conditional ALLOW
    allows nothing through ``socketcall`` by itself, and a conditional denial denies). With ``multiplexed="separate"`` a rule
    is about the call's own number only. Rules given by number always are.

    Raises:
        PolicyError: an action, architecture or priority that does not exist, an architecture twice, mixed byte orders.
    """

    def __init__(
        self,
        default: int = ALLOW,
        arches: Iterable[ArchLike] | ArchLike = None,
        *,
        bad_arch: int = KILL_PROCESS,
        priority: Priority = "restrictive",
        low_words: bool = False,
        multiplexed: Multiplexed = "closed",
    ) -> None:
        self.default = _checked(default, "the default")
        self.bad_arch = _checked(bad_arch, "the action for other architectures")
        if priority not in _PRIORITY:
            raise PolicyError(f"priority={priority!r}: must be 'restrictive' or 'first'")
        if multiplexed not in ("closed", "separate"):
            raise PolicyError(f"multiplexed={multiplexed!r}: must be 'closed' or 'separate'")
        self.priority: Priority = priority
        self.multiplexed: Multiplexed = multiplexed
        self.low_words = low_words
        self.arches = _arches(arches)
        self.ignored: tuple[str, ...] = ()
        self.profile: Profile | None = None
        self.oci: dict[str, Any] = {}
        self._rules: list[tuple[Action, str | int | tuple[int, ...], tuple[Condition, ...], Arch | None]] = []
        self._checked_last = self.default
        self._core_rules: list[CoreRules] = []
        self._known = syscalls.indexes_of(self.arches, multiplexed == "closed")

    @property
    def flags(self) -> tuple[str, ...]:
        """The SECCOMP_FILTER_FLAG_* names that an OCI profile asks to load its filter with; :class:`Filter` applies them.

        TSYNC asks for what attaching does by itself (``threads="all"``). WAIT_KILLABLE_RECV has no effect in a policy that never
        notifies. Change them by ``policy.oci["flags"] = [...]``; :meth:`to_oci` writes them.

        Raises:
            PolicyError: ``policy.oci["flags"]`` names a flag that does not exist.
        """
        from pyseccomp import oci

        return oci.flags_of(self.oci)

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rules in the order they were added."""
        return tuple(
            Rule(action, call, conditions, arch)
            for action, calls, conditions, arch in self._rules
            for call in (map(syscalls.name_of, calls) if isinstance(calls, tuple) else (calls,))
        )

    def _one_by_one(self) -> list[CoreRule]:
        """What the core is given, each call by itself; in the order of ``rules``."""
        return [
            (action, call, arch, terms)
            for action, calls, arch, terms in self._core_rules
            for call in (calls if isinstance(calls, tuple) else (calls,))
        ]

    def __repr__(self) -> str:
        arches = ", ".join(a.value for a in self.arches)
        return f"<Policy: {len(self._one_by_one())} rules, default {self.default!r}, for {arches}>"

    def add(self, action: int, syscall: str | int, *conditions: Condition, arch: ArchLike = None) -> None:
        """Add a rule; all its conditions must hold.

        A name applies to every architecture of the policy that has the call. A number applies to ``arch``, which may be
        left out when the policy has one architecture. A name like ``@network-io`` adds a rule for each call of that group
        (:mod:`pyseccomp.groups`) that the policy's architectures have.

        Raises:
            UnknownSyscallError: no architecture of the policy has such a call; ``suggestions`` holds the nearest names.
            PolicyError: no such action, a number without its architecture, something that is not a condition.
            ContradictionError: conditions on one argument exclude each other.
        """
        if isinstance(syscall, str) and syscall.startswith("@"):
            for name in self._group(syscall, arch):
                self.add(action, name, *conditions, arch=arch)
            return
        if action is not self._checked_last:
            self._checked_last = _checked(action, "the rule's action")
        action = self._checked_last
        terms: tuple[Term, ...] = ()
        place: Arch | None = None
        for condition in conditions:
            if not isinstance(condition, Condition):
                raise PolicyError(f"{syscall}: {condition!r} is not a condition; write Arg(index, op, value)")
            if condition.strings:
                raise PolicyError(f"{syscall}: {condition!r} reads memory, which no filter can; give it to Responder.on()")
            terms += condition.terms
        if isinstance(syscall, str) and arch is None:
            index = syscalls.syscall_index(syscall)
            if index not in self._known:
                where = ", ".join(a.value for a in self.arches)
                raise UnknownSyscallError(f"{syscall!r} is no system call of {where} (other architectures have it)")
            core = (int(action), index, -1, terms)
        else:
            place, call = self._on_one(syscall, arch)
            core = int(action), call, place.index, terms
        if len(terms) > 1 and self._contradict(core[1], core[2], conditions):
            told = " and ".join(map(repr, conditions))
            what = "contradict each other: no call can match both" if len(conditions) > 1 else "contradicts itself: no call can match"
            raise ContradictionError(f"{syscall}: {told} {what}")
        self._rules.append((action, syscall, conditions, place))
        self._core_rules.append(core)

    def _add_known(self, action: Action, calls: tuple[int, ...], conditions: tuple[Condition, ...] = ()) -> None:
        """Add a rule for each of these indexes; all is checked: the action, that the policy has the calls, the conditions."""
        self._rules.append((action, calls, conditions, None))
        self._core_rules.append((int(action), calls, -1, tuple([term for condition in conditions for term in condition.terms])))

    def _take(self, other: Policy) -> None:
        """Add the rules of a policy for the same architectures."""
        self._rules += other._rules
        self._core_rules += other._core_rules

    def _contradict(self, call: int, index: int, conditions: tuple[Condition, ...]) -> bool:
        from pyseccomp import conflicts

        return conflicts.contradict(self, call, index, conditions)

    def _group(self, group: str, arch: ArchLike) -> list[str]:
        from pyseccomp import groups

        one = (Arch.of(arch),)
        known = self._known if arch is None else syscalls.indexes_of(one, self.multiplexed == "closed")
        return [name for name in groups.members(group) if syscalls.syscall_index(name) in known]

    def _on_one(self, syscall: str | int, arch: ArchLike) -> tuple[Arch, int]:
        """The architecture, and the number there; of a name the complement of its index."""
        if arch is None and len(self.arches) != 1:
            raise PolicyError(f"system call {syscall}: a number means different calls on {len(self.arches)} architectures: add arch=")
        place = self.arches[0] if arch is None else Arch.of(arch)
        if place not in self.arches:
            raise PolicyError(f"{place.value} is not an architecture of this policy")
        if isinstance(syscall, str):
            index = syscalls.syscall_index(syscall)
            if index not in syscalls.indexes_of((place,), self.multiplexed == "closed"):
                raise UnknownSyscallError(f"{place.value} has no system call {syscall!r}")
            return place, ~index
        limit = 1 << 32 if place not in (Arch.X86_64, Arch.X32) else syscalls.X32_BIT
        if syscall == _SKIPPED and place is not Arch.X32:
            return place, _SKIPPED
        number = syscall & ~syscalls.X32_BIT if place is Arch.X32 else syscall
        if isinstance(syscall, bool) or not isinstance(syscall, int) or not 0 <= number < limit:
            raise UnknownSyscallError(f"{syscall!r} is not a system call number of {place.value}")
        return place, number | (syscalls.X32_BIT if place is Arch.X32 else 0)

    def compile(self, profile: Profile | None = None, *, optimize: Optimize | None = None) -> Program:
        """Compile into a program.

        ``optimize`` is ``"size"`` (the default: fewest instructions), ``"depth"`` (fewest executed, averaged over all
        numbers) or ``"profile"`` (the default with a profile: fewest executed, weighted by how often each call is made).
        A profile maps names or numbers, or (arch, name or number), to counts; without one, the attribute ``profile`` is taken,
        which a policy has if its file came with frequencies.

        Raises:
            PolicyTooLargeError: the program would be longer than the kernel's 4096 instructions; it names the calls that
                cost most. :meth:`split` makes several.
        """
        profile = self.profile if profile is None else profile
        mode = optimize or ("size" if profile is None else "profile")
        if mode not in _OPTIMIZE:
            raise PolicyError(f"optimize={mode!r}: must be 'size', 'depth' or 'profile'")
        if mode == "profile" and not profile:
            raise PolicyError("optimize='profile' needs a profile with at least one call")
        try:
            return Program(self._compiled(mode, self._weights(profile or {})))
        except PolicyTooLargeError as error:
            from pyseccomp import stack

            raise stack.say_what_costs(self, error) from None
        except PolicyError as error:
            from pyseccomp import stack

            raise PolicyError(f"{error}; {stack.most_asked(self)}") from None

    def _compiled(
        self,
        mode: Optimize,
        weights: list[tuple[int, int, float]],
        part: list[tuple[int, int, int]] | None = None,
        others: bool = False,
    ) -> bytes:
        return _core.compile_policy(
            self.default, self.bad_arch, _PRIORITY[self.priority], self.low_words, [a.index for a in self.arches],
            self._core_rules, _OPTIMIZE[mode], weights, self.multiplexed == "separate", part, others,
        )  # fmt: skip

    def split(self) -> tuple[Program, ...]:
        """Compile into as many programs as it takes, usually one.

        Together they decide exactly what the policy does: each decides some of the calls and allows the others, and the
        kernel takes the strictest answer. Install them in the order given, on the same tasks; the last one decides the
        default and the calls that load filters, and alone notifies. Between two of them nothing is stricter than the policy.

        Raises:
            PolicyTooLargeError: a single call, or all that are notified, need more than 4096 instructions.
            PolicyError: together they are longer than a task may have (32,768 instructions).
        """
        from pyseccomp import stack

        return stack.split(self)

    def conflicts(self) -> tuple[Conflict, ...]:
        """Return the rules that get into each other's way, each with a call that shows it; nothing is wrong with most.

        Exact, by proof over all arguments. Every pair of rules of one call is looked at.
        """
        from pyseccomp import conflicts

        return conflicts.find(self)

    def _weights(self, profile: Profile) -> list[tuple[int, int, float]]:
        weights: dict[tuple[int, int], float] = {}
        for key, weight in profile.items():
            arch, call = key if isinstance(key, tuple) else (self.arches[0], key)
            place = Arch.of(arch)
            if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < float("inf"):
                raise PolicyError(f"profile: {key!r}: {weight!r} is not a count")
            nr = syscalls.resolve(call, place) if isinstance(call, str) else call
            if not 0 <= nr < 1 << 32:
                raise UnknownSyscallError(f"profile: {nr} is not a system call number")
            weights[place.token, nr] = weights.get((place.token, nr), 0.0) + weight
        return [(token, nr, weight) for (token, nr), weight in sorted(weights.items())]

    @classmethod
    def from_oci(
        cls, source: str | os.PathLike[str] | Mapping[str, Any], caps: Iterable[str] = (), arch: ArchLike = None, **options: Any
    ) -> Policy:
        """Read an OCI seccomp profile, or the one in a container's config.json; see :func:`pyseccomp.oci.load`."""
        from pyseccomp import oci

        return oci.load(source, caps=caps, arch=arch, **options)

    def to_oci(self) -> dict[str, Any]:
        """Return the policy as an OCI seccomp profile; see :func:`pyseccomp.oci_write.dump`."""
        from pyseccomp import oci_write

        return oci_write.dump(self)


def _arches(arches: Iterable[ArchLike] | ArchLike) -> tuple[Arch, ...]:
    if arches is None or isinstance(arches, (Arch, str, int)):
        return (Arch.of(arches),)
    found = tuple(Arch.of(arch) for arch in arches)
    for at, arch in enumerate(found):
        if arch in found[:at]:
            raise PolicyError(f"architecture {arch.value} is given twice")
        if arch.big_endian != found[0].big_endian:
            raise PolicyError(f"{found[0].value} and {arch.value} differ in byte order: one program cannot serve both")
    if not found:
        raise PolicyError("a policy needs at least one architecture")
    return found
