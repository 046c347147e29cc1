"""One filter on many processes at once: a tree, or a cgroup; all of them get it, or none does."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pyseccomp import _core, gate
from pyseccomp.attach import (
    NO_NEW_PRIVS,
    Attachment,
    AttachmentState,
    AttachResult,
    Raw,
    Target,
    explain,
    open_target,
)
from pyseccomp.errors import (
    AttachShortageError,
    AttachError,
    KernelError,
    PartialAttachError,
    SeccompError,
    TargetGoneError,
    UnsupportedError,
)
from pyseccomp.follow import Census, Follower, Stray, processes
from pyseccomp.query import REAPED, State, query

if TYPE_CHECKING:
    from pyseccomp.filter import Filter

Outcome = Literal["filtered", "gone", "skipped", "refused", "failed", "unchanged"]

_INJECTOR, _CALLER, _FROZEN = 12, 15, 19  # enum psc_refusal
_BECAME: tuple[Outcome, ...] = ("unchanged", "filtered", "gone", "skipped", "failed")  # enum psc_became


@dataclass(frozen=True, slots=True)
class MemberOutcome:
    """What became of one process of a tree or cgroup."""

    pid: int
    outcome: Outcome
    """"filtered": every thread of it carries the filter. "gone": it died meanwhile. "skipped": it refused, and was left as it
    was (``on_error="skip"``). In an error's ``results`` also "refused": it is why nothing was done; "unchanged": so it was not
    filtered either; "failed": the kernel did not do there what it had agreed to, and ``reason`` says what is true of it."""
    reason: str
    """Why, if not "filtered"."""
    attachment: Attachment | None
    """If "filtered"."""


@dataclass(frozen=True, slots=True)
class GroupState(AttachmentState):
    """What is true of a tree or cgroup. ``pid`` and ``task`` are the root's, or those of a cgroup's first process."""

    members: tuple[AttachmentState, ...]
    """Of each process that was filtered; empty while inactive."""
    strays: tuple[Stray, ...] = ()
    """Processes that are in the cgroup now and do not carry the filter (entered later, refused), or of which that cannot be told;
    the state is "detached" then. Of a tree none are known."""


class GroupAttachment(Attachment):
    """A filter on all processes of a tree or of a cgroup. Made by ``attach(tree=True)`` and ``attach(cgroup=)``.

    All are stopped, those born meanwhile too, until two consecutive scans find no new process; each is checked; then each gets
    the filter, and all go on. If one refuses, none is changed, and the error names it and says why; with ``on_error="skip"`` those
    that refuse are left as they are, and :attr:`results` tells. What its members fork later inherits the filter. A process that
    enters the cgroup later (``runc exec``) runs unfiltered, and :meth:`query` names it, unless ``follow=True``.

    follow=True: a thread of this process filters what enters, by the same program and with listeners of the same Filter, until
    this object, or the filter, is closed; it ends with this process, too. What enters runs unfiltered for a moment: measured by
    benchmarks/bench_follow.py on two processors under a load of 14, in the median 0.8 to 4.8 ms after a write to cgroup.procs
    and 3.3 to 7.5 ms after a birth in the cgroup (CLONE_INTO_CGROUP), 62 ms at the 99th percentile; with another thread that computes
    in Python all the while up to 67 ms, and 0.64 s. What cannot be filtered (traced, refused) is told to ``on_state_change`` with the
    state "detached", is in :attr:`results` and in the strays of :meth:`query`, and is tried again. :meth:`Filter.serve` ends when no
    task is left; call it again for what enters later.

    Each process that was filtered is an attachment of its own, with its own listener: in :attr:`attachments`, and in
    ``filter.attachments``. With active=False nothing is touched, and who belongs is decided by :meth:`activate`.

    Not of the tree: processes whose parent had ended before they were stopped, because the kernel has given them to another
    (daemons); ``cgroup=`` reaches these. Refused: a group that has this process in it, which cannot stop itself.

    on_supervisor_death: as of :meth:`Filter.attach`, for every process; the guardian gets the listeners when all are filtered.

    SIGKILL of this process in the middle changes nothing of that: all get it, or none does. If the process that injects for it is
    killed as well, some may have it and some not, each wholly.
    """

    is_group = True
    _settled = False

    def __init__(
        self,
        filter: Filter,
        pid: int,
        fd: _core.Fd,
        cgroup: str | None,
        on_error: Literal["abort", "skip"],
        no_new_privs: bool | Literal["auto"],
        timeout: float,
        death: _core.Answer | None,
        follow: bool = False,
    ) -> None:
        super().__init__(filter, pid, fd, "all", no_new_privs, timeout)
        self._follow = follow
        self._following: Follower | None = None
        self._directory: _core.Fd | None = None  # of a cgroup, once it is active
        self._census = Census(filter.program.digest)
        self.cgroup = cgroup
        """The cgroup's directory as it was given; None for a tree. ``pid`` is 0 then."""
        self.on_error = on_error
        self._death = death
        self._box = _core.Outcome()  # what became of all, until each has an attachment
        self.results: tuple[MemberOutcome, ...] = ()
        """Every process that belonged, in the order they were found: parents before children. Empty while inactive."""
        self.attachments: tuple[Attachment, ...] = ()
        """Those that were filtered."""

    @property
    def what(self) -> str:
        """The name of it in messages."""
        return f"the tree of {self.pid}" if self.cgroup is None else f"cgroup {self.cgroup}"

    @property
    def closed(self) -> bool:
        """True after :meth:`close`, or when all its attachments are closed."""
        return self._pidfd < 0 and all(one.closed for one in self.attachments)

    @property
    def pidfd(self) -> int:
        """The root of a tree. Raises AttachError for a cgroup, and for a root that was not filtered."""
        if self.cgroup is None and self._pidfd >= 0:
            return self._pidfd
        for one in self.attachments:
            if self.cgroup is None and one.pid == self.pid:
                return one.pidfd
        raise AttachError(errno.EINVAL, f"pidfd of {self.what}: it has none; each of its attachments does")

    @property
    def listeners(self) -> tuple[int, ...]:
        """The raw listeners of all its attachments."""
        return tuple(fd for one in self.attachments for fd in one.listeners)

    def fileno(self) -> int:
        """Return the only listener. Raises AttachError if there are none, or several: ``filter.fileno()`` is readable for all."""
        found = self.listeners
        if len(found) == 1:
            return found[0]
        raise AttachError(
            errno.ENOTCONN, f"listener of {self.what}: there are {len(found)}; filter.fileno() is readable when any of them is"
        )

    @property
    def following(self) -> bool:
        """True while processes that enter the cgroup are filtered."""
        return self._following is not None and self._following.thread.is_alive()

    def wait_followed(self, timeout: float | None = None) -> bool:
        """Wait until following has ended; False: not within timeout seconds."""
        following = self._following
        if following is not None:
            following.thread.join(timeout)
        return not self.following

    def activate(self) -> None:
        """Filter all who belong now, or raise and change nothing. Once is enough: then a no-op.

        Raises as :meth:`Filter.attach` does; PartialAttachError if the kernel failed after it had agreed: its ``results``
        say who has the filter, and these are in ``filter.attachments``.
        """
        with self._lock:
            if self.activated:
                return
            self._check_open("activate")
            if self._death is not None:
                self._filter._start_guardian()
            self._take(self._box.raw or _attach(self._filter, self))
        for one in self.attachments:
            one._changed("active", f"activated with {self.what}")

    def _take(self, raw: _Group) -> None:
        r, refusal, blamed, stop_ns, members = raw
        outcomes, attachments = [], []
        for index, (pidfd, became, member, outcome_of) in enumerate(members):
            what: Outcome = "refused" if index == blamed and _BECAME[became] == "skipped" else _BECAME[became]
            killed = refusal == _INJECTOR and r == -errno.EINTR
            outcome = self._settle(pidfd, "failed" if killed and what == "unchanged" else what, member, outcome_of)
            outcomes.append(outcome)
            attachments += [outcome.attachment] if outcome.attachment is not None else []
        if self._death is not None:
            for one in attachments:
                self._filter._guard_active(one, self._death)
        if r < 0:
            self._box = _core.Outcome()
            raise self._explain(r, refusal, blamed, members, tuple(outcomes))
        self.results, self.attachments = tuple(outcomes), tuple(attachments)
        results = [one.result for one in attachments if one.result is not None]
        self.result = AttachResult(
            threads=tuple(thread for one in results for thread in one.threads),
            no_new_privs_set=any(one.no_new_privs_set for one in results),
            suspended=any(one.suspended for one in results),
            stop_ns=stop_ns,
            residue=sum(one.residue for one in results),
        )
        self._settled = True
        for one in attachments:
            if one.result is not None and self.cgroup is not None:
                self._census.add(one.pid, one.result)
        if self.cgroup is None:
            self._handle.close()
        else:
            self._directory = self._handle
            self._handle = _core.Fd()
        self._filter._replace(self)
        for one in attachments:
            if one._outcome.error is not None:
                raise one._outcome.error
        if self._follow and self._directory is not None:
            self._following = Follower(self, self._directory.number)
            self._following.start()

    def _add(self, attachment: Attachment) -> None:
        """A process that entered was filtered. For Follower only."""
        self.attachments += (attachment,)
        self.results = (*self._others(attachment.pid), MemberOutcome(attachment.pid, "filtered", "", attachment))
        attachment._changed("active", f"it entered {self.what}")

    def _others(self, pid: int) -> Iterator[MemberOutcome]:
        """The results but what was told of a process before."""
        return (one for one in self.results if one.pid != pid or one.attachment is not None)

    def _remove(self, attachment: Attachment) -> None:
        self.attachments = tuple(one for one in self.attachments if one is not attachment)
        self.results = tuple(one for one in self.results if one.attachment is not attachment)

    def _refused(self, pid: int, reason: str) -> None:
        """A process that entered could not be filtered. For Follower only."""
        self.results = (*self._others(pid), MemberOutcome(pid, "skipped", reason, None))
        self._changed("detached", f"process {pid} entered {self.what} and is not filtered: {reason}")

    def _settle(self, pidfd: _core.Fd, outcome: Outcome, raw: Raw, owner: _core.Outcome) -> MemberOutcome:
        """Make an attachment of a process that was filtered; close what came of any other."""
        if outcome == "filtered":
            attachment = next((one for one in self._filter._attachments if one._outcome is owner), None)
            if attachment is None:  # else an exception interrupted this before
                attachment = Attachment(self._filter, raw[4], pidfd, "all", self.no_new_privs, self.timeout, None, owner)
                self._filter._adopt(attachment)
            return MemberOutcome(raw[4], outcome, "", attachment)
        pidfd.close()
        if outcome == "unchanged":
            reason = "another refused"
        elif raw[0] == 0:
            reason = "the injecting process was killed: it is untouched, or wholly filtered, which ps.query() tells"
        else:
            reason = str(self._explain_member(raw).args[1])
        reason = reason.removeprefix(f"attach to pid {raw[4]}: ")
        return MemberOutcome(raw[4], outcome, reason, None)

    def _explain_member(self, raw: Raw) -> AttachError | UnsupportedError | KernelError:
        try:
            return explain(raw[1], -raw[0], raw[4], raw[2], raw[3], tuple(t[0] for t in raw[11]), self.timeout, raw[6])
        except TargetGoneError as error:  # it could not be asked for more any more
            return error

    def _explain(
        self, r: int, refusal: int, blamed: int, members: list[tuple[_core.Fd, int, Raw, _core.Outcome]], results: tuple[MemberOutcome, ...]
    ) -> AttachError | UnsupportedError | KernelError:
        error: AttachError | UnsupportedError | KernelError
        if blamed >= 0 and (refusal < _CALLER or refusal >= _FROZEN):
            error = self._explain_member(members[blamed][2])
        else:
            error = self._explain_all(-r, refusal)
        done = tuple(one for one in results if one.outcome == "filtered")
        if done:
            tids = tuple(t.tid for one in done if one.attachment and one.attachment.result for t in one.attachment.result.threads)
            why = error.args[1] if len(error.args) > 1 else error
            text = f"attach to {self.what}: after all had been checked it failed, and {len(done)} processes have it: {why}"
            partial = PartialAttachError(-r, text, done=tids)
            partial.results = results
            return partial
        killed = refusal == _INJECTOR and r == -errno.EINTR
        touched = any(one.outcome == "failed" for one in results) or any(raw[10] for _, _, raw, _ in members)
        if results and not killed and not touched:
            error.add_note(f"nothing was changed in any process of {self.what}")
        return error

    def _explain_all(self, error: int, refusal: int) -> AttachError | UnsupportedError | KernelError:
        what = f"attach to {self.what}"
        match refusal:
            case 15:
                return AttachError(
                    errno.EDEADLK,
                    f"{what}: this process ({os.getpid()}) is in it, and cannot stop itself; attach from outside of it, or, with a "
                    "target of None, to this process alone",
                )
            case 16:
                return UnsupportedError(
                    error, f"{what}: a process in it belongs to another pid namespace, and has no number here; attach from there"
                )
            case 17:
                return AttachError(error, f"{what}: {_cgroup_error(error)}")
            case 18 if error == errno.EMFILE:
                return AttachShortageError(
                    error,
                    f"{what}: each process takes a descriptor here, and a second one if the program notifies, and RLIMIT_NOFILE has no "
                    "room for so many; raise it (ulimit -n)",
                )
            case 1:
                return TargetGoneError(errno.ESRCH, f"{what}: no process is left in it")
            case 12 if error == errno.EINTR:
                return AttachError(
                    error, f"{what}: the injecting process was killed; each process is untouched or wholly filtered, see ps.query()"
                )
        return explain(refusal, error, self.pid, 0, 0, (), self.timeout, what=what)

    def query(self) -> GroupState:
        """Ask the kernel what is true of each process that was filtered, now; "active" if all that live carry it."""
        self._check_open("query")
        members = tuple(one.query() for one in self.attachments if not one.closed)
        root = members[0].task if members else REAPED
        if self.cgroup is None:
            root = next((one.task for one in members if one.pid == self.pid), root)
            root = query(pidfd=self._pidfd) if self._pidfd >= 0 else root
        strays = self._strays()
        return GroupState(state=self._state(members, root.state, strays), pid=self.pid, task=root, members=members, strays=strays)

    def _state(self, members: tuple[AttachmentState, ...], root: State, strays: tuple[Stray, ...]) -> State:
        if not self.activated:
            return "dead" if self.cgroup is None and root == "dead" else "inactive"
        living = {one.state for one in members} - {"dead"}
        return "detached" if strays or "detached" in living else "active" if living else "dead"

    def _strays(self) -> tuple[Stray, ...]:
        """The processes that are in the cgroup now without the filter."""
        if self._directory is None:
            return ()
        try:
            pids = processes(self._directory.number)
        except OSError as error:
            if error.errno == errno.ENODEV:  # removed, so nothing is in it
                return ()
            raise AttachError(error.errno or 0, f"query {self.what}: {_cgroup_error(error.errno or 0)}") from None
        refusals = self._following.refusals if self._following is not None else {}
        found = [stray for pid in pids if (stray := self._census.judge(pid)) is not None]
        return tuple(Stray(one.pid, f"{one.reason}; {refusals[one.pid]}") if one.pid in refusals else one for one in found)

    def fail_closed(self) -> None:
        """Activate, unless it is active, dead or closed."""
        if not self.closed and not self.activated and self.query().state != "dead":
            self.activate()

    def close(self) -> None:
        """Close all its attachments, see :meth:`Attachment.close`."""
        self._close()

    def _give_up(self) -> None:
        if not self.activated and not self._unsettled:
            self.close()

    @property
    def _unsettled(self) -> bool:
        return self._box.raw is not None and not self._settled and not self._over

    def _resume(self) -> None:
        """Make the attachments that an exception kept from being made."""
        if self._unsettled:
            with contextlib.suppress(SeccompError):
                self.activate()

    def _stop_following(self) -> None:
        """End the thread, and let go of the cgroup. For Filter and this class only."""
        with self._lock:
            follower, self._following = self._following, None
            directory, self._directory = self._directory, None
        if follower is not None:
            follower.stop()
        if directory is not None:
            directory.close()

    def _close(self, keep: bool = False) -> None:
        self._stop_following()
        self._filter._forget_group(self)
        if not self._ended:
            if self._box.raw is not None and not self._settled:
                for pidfd, _, _, owner in self._box.raw[4]:
                    self._filter._forget(self, owner.listeners, None)
                    owner.close()
                    pidfd.close()
            super()._close(keep)
        for one in self.attachments:
            one._close(keep)

    def __del__(self) -> None:
        if self._linked and not self.activated:  # else it owns nothing: the attachments do
            super().__del__()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{len(self.attachments)} processes" if self.activated else "inactive"
        return f"<GroupAttachment to {self.what} {state}>"


_Group = tuple[int, int, int, int, list[tuple[_core.Fd, int, Raw, _core.Outcome]]]


def _attach(filter: Filter, group: GroupAttachment) -> _Group:
    tree = group.cgroup is None
    return _core.attach_group(
        group._box,
        filter._face,
        group._pidfd if tree else -1,
        -1 if tree else group._pidfd,
        bytes(filter.program),
        filter._load_flags(),
        NO_NEW_PRIVS[group.no_new_privs],
        gate.yama_scope() == 1 and not gate.has_capability(gate.SYS_PTRACE),
        int(group.timeout * 1e9),
        group.on_error == "skip",
        filter.foreign_arch == "allow",
    )


def _cgroup_error(error: int) -> str:
    match error:
        case errno.EMEDIUMTYPE:
            return "that is no directory of a cgroup file system (v1 or v2)"
        case errno.EOPNOTSUPP:
            return "it is a threaded cgroup, which has no processes of its own; give the domain above it (cgroup.type tells)"
        case errno.ENODEV | errno.ENOENT:
            return "it was removed"
        case errno.ELOOP:
            return "more than 64 cgroups below each other"
    return f"reading cgroup.procs: {os.strerror(error)}"


def bind(
    filter: Filter,
    target: Target | None,
    pidfd: int | None,
    cgroup: str | os.PathLike[str] | None,
    on_error: Literal["abort", "skip"],
    no_new_privs: bool | Literal["auto"],
    timeout: float,
    death: _core.Answer | None,
    follow: bool = False,
) -> GroupAttachment:
    """Make an inactive one. For Filter only."""
    if cgroup is None:
        pid, fd = open_target(target, pidfd)
        return GroupAttachment(filter, pid, fd, None, on_error, no_new_privs, timeout, death)
    if target is not None or pidfd is not None:
        raise TypeError("attach() takes a target, a pidfd or cgroup=, not several of them")
    query(os.getpid())  # the numbers in cgroup.procs must mean the processes of /proc: raises where they do not
    path = os.fsdecode(cgroup)
    try:
        fd = _core.own(os.open, path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise AttachError(error.errno or 0, f"attach to cgroup {path}: {error.strerror}") from None
    return GroupAttachment(filter, 0, fd, path, on_error, no_new_privs, timeout, death, follow)


def check(mode: str, threads: str, activate_on: object, deadline: object, on_deadline: str) -> None:
    """Refuse options that a group does not have."""
    refused = {
        "mode='gate'": (mode == "gate", "gate the process that starts the others: what it forks is under its gate"),
        "mode='park'": (mode == "park", "processes park themselves"),
        "activate_on=": (activate_on is not None, "attach with active=False, and call activate() when it happens"),
        "deadline=": (deadline is not None, "give each process a deadline of its own, by attaching to it"),
    }
    for option, (wanted, instead) in refused.items():
        if wanted:
            raise UnsupportedError(errno.EOPNOTSUPP, f"attach: {option} is for one process, not for tree=True or cgroup=; {instead}")
    if threads != "all":
        raise ValueError("attach: a tree or cgroup is stopped with all its threads: threads='all'")
    if on_deadline != "activate":
        raise ValueError("attach: on_deadline= goes with deadline=, which a tree or cgroup does not have")
