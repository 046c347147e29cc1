"""One filter on one process: how it got there, and what is true of it."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from pyseccomp import _core, gate, guardian, shortage
from pyseccomp.errors import (
    AttachError,
    AttachShortageError,
    AttachTimeoutError,
    FilterClosedError,
    InactiveError,
    KernelError,
    ListenerBusyError,
    NotPermittedError,
    PartialAttachError,
    TargetBusyError,
    TargetFilteredError,
    TargetGoneError,
    UnsupportedError,
)
from pyseccomp.owned import LETTING_GO, Moment, Owned
from pyseccomp.program import Program
from pyseccomp.query import HasPid, State, TaskState, query
from pyseccomp.syscalls import Arch

if TYPE_CHECKING:
    from pyseccomp.filter import Filter
    from pyseccomp.triggers import Watch

Target = int | HasPid

_log = logging.getLogger("pyseccomp")

_PIDFD_GETFD, _PTRACE_CHILD = 14, 16  # enum psc_feature

_FLAG_TSYNC = 1 << 0
_FLAG_LOG = 1 << 1
_FLAG_SPEC_ALLOW = 1 << 2
_FLAG_NEW_LISTENER = 1 << 3
_FLAG_WAIT_KILLABLE = 1 << 5

NO_NEW_PRIVS: dict[bool | str, int] = {False: 0, True: 1, "auto": 2}  # enum psc_no_new_privs


@dataclass(frozen=True, slots=True)
class ThreadOutcome:
    """One thread of the target, before and after."""

    tid: int
    filters_before: int | None
    """None when not known: the thread was born meanwhile, or before Linux 5.10."""
    filters_after: int | None
    """None when it ended before it could be asked, or before Linux 5.10."""


@dataclass(frozen=True, slots=True)
class AttachResult:
    """What an attach did. All of it comes from the kernel."""

    threads: tuple[ThreadOutcome, ...]
    no_new_privs_set: bool
    """True if the target's no_new_privs was set for it: it can gain no privileges by exec any more."""
    suspended: bool
    """True if earlier filters of the target were suspended while the call was made."""
    stop_ns: int
    """How long the target was stopped, in nanoseconds, from the first interrupt to the last release."""
    residue: int
    """Bytes that stay in the target, 0 as a rule: memory that its filters forbid to unmap, or injected code that could not be
    removed safely."""


@dataclass(frozen=True, slots=True)
class AttachmentState:
    """What is true of an attachment, by the kernel, at the time of the call."""

    state: State
    """"inactive": bound, nothing is in the target. "active": every live thread it is meant for carries it.
    "dead": no thread of the target runs. "detached": it was activated, but some thread shows fewer filters."""
    pid: int
    task: TaskState


_REFUSED_PERMISSION, _REFUSED_STRICT, _REFUSED_FILTERED = 3, 6, 7  # enum psc_refusal


class Attachment(Owned):
    """A filter bound to one process. Made by :meth:`Filter.attach`; owns the listener, if the filter notifies.

    Identity is a pidfd: a pid that is used again by another process is never taken for the target.
    """

    is_group = False
    _over = True  # closed, or not wholly made
    _ended = False  # closed to the end
    _keep = False
    _linked = False
    _handle: _core.Fd

    def __init__(
        self,
        filter: Filter,
        pid: int,
        pidfd: _core.Fd,
        threads: Literal["all", "one"],
        no_new_privs: bool | Literal["auto"],
        timeout: float,
        slot: _core.Slot | None = None,
        outcome: _core.Outcome | None = None,
    ) -> None:
        self._filter = filter
        self._slot = slot.number if slot is not None else 0
        self._word_taken = slot
        self.mode: Literal["inject", "gate", "park"] = "gate" if slot else "inject"
        """How it is activated."""
        self.hardened = False
        """True once :meth:`harden` has put the program itself into the kernel."""
        self._handle = pidfd
        self._outcome = outcome if outcome is not None else _core.Outcome()
        self._lock = threading.Lock()
        self.pid = pid
        """The process, in this process's pid namespace. Its number may be used again after its death."""
        self.threads = threads
        self.no_new_privs = no_new_privs
        self.timeout = timeout
        self.on_deadline: Literal["activate", "kill"] = "activate"
        self._ward: int | None = None
        self._death: _core.Answer | None = None
        self._guardian_injects = False
        self._acted = Moment()
        self._most_before: int | None = None  # the most filters of a thread, when the guardian was given the process
        self._asked = False  # the guardian was asked to add the filter
        self._watch: Watch | None = None
        self._clock: threading.Timer | None = None
        self._ends: float | None = None  # the deadline, on the monotonic clock
        self._over = False

    @property
    def _pidfd(self) -> int:
        return -1 if self._over else self._handle.number

    @property
    def result(self) -> AttachResult | None:
        """What :meth:`activate` did; None while inactive."""
        outcome = self._outcome
        if outcome.result is None and outcome.raw is not None:
            outcome.result = _result_of(outcome.raw)
        found: AttachResult | None = outcome.result
        return found

    @result.setter
    def result(self, result: AttachResult) -> None:
        self._outcome.result = result

    @property
    def filter(self) -> Filter:
        """The filter that this attaches."""
        return self._filter

    @property
    def closed(self) -> bool:
        """True after :meth:`close`."""
        return self._pidfd < 0

    @property
    def activated(self) -> bool:
        """True once :meth:`activate` has succeeded. What is true now, :meth:`query` tells."""
        if self._slot and self.result is not None:
            return self._filter._page.state(self._slot) == gate.ACTIVE
        return self.result is not None

    @property
    def listeners(self) -> tuple[int, ...]:
        """The raw listener fds: none, one, or one per thread where threads had different filters and cannot share."""
        return self._outcome.listeners

    @property
    def pidfd(self) -> int:
        """The target as a pidfd, owned by this object."""
        self._check_open("pidfd")
        return self._pidfd

    def fileno(self) -> int:
        """Return the raw listener.

        Raises AttachError (ENOTCONN) while there is none: inactive, or a program that does not notify.
        """
        self._check_open("fileno")
        listeners = self.listeners
        if not listeners:
            why = "the program never notifies" if self.activated else "it is inactive"
            raise AttachError(errno.ENOTCONN, f"listener of the attachment to {self.pid}: there is none, {why}")
        return listeners[0]

    def _begin(self) -> None:
        """Do what attach() does. For this package only."""
        self.activate()

    @shortage.told("activate")
    def activate(self) -> None:
        """Put the filter in force now, for every thread, or raise and change nothing. Once is enough: then a no-op.

        Raises as :meth:`Filter.attach` does.
        """
        with self._lock:
            self._check_open("activate")
            if self._slot:
                gate.write(self._filter, self._slot, gate.ACTIVE, f"activate the gate of {self.pid}")
                self._changed("active", "the gate was activated")
                return
            if self.result is not None:
                return
            if not self._guardian_injects:
                self._filter._install(self)
                if self._ward is not None and self._filter._guardian is not None:
                    self._filter._guardian.listen(self._ward, self.listeners)
        if self._guardian_injects:
            self._activate_through_guardian()
        self._changed("active", "activated")

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the event of ``activate_on=`` has come and the filter is in force.

        Raises AttachTimeoutError; TargetGoneError: the target ended before; what kept it from being activated.
        """
        if self._watch is None:
            raise AttachError(errno.EINVAL, f"wait for the attachment to {self.pid}: it was given no event to wait for")
        self._watch.thread.join(timeout)
        if self._watch.thread.is_alive():
            raise AttachTimeoutError(errno.ETIMEDOUT, f"attachment to {self.pid}: its event did not come within {timeout} s")
        if self._watch.error is not None:
            raise self._watch.error
        if not self.activated:
            raise TargetGoneError(errno.ESRCH, f"attachment to {self.pid}: the process ended, or it was closed, before its event")

    def _adopt(self, result: AttachResult, fds: list[_core.Fd]) -> None:
        self._outcome.keep(fds)
        self.result = result
        if fds:
            self._filter._listen(self.listeners)

    def _give_up(self) -> None:
        """End what an exception interrupted: close, unless the filter is in force. Then the filter owns this, which tells the truth."""
        underway = self._asked and not isinstance(sys.exception(), OSError)  # the guardian's result is still to come
        if (not self._outcome.done and not underway) or self._outcome.error is not None:
            self.close()

    def _activate_through_guardian(self) -> None:
        """Let it be done by who survives us, so that at no moment the filter is in force and its listener only ours."""
        warden = self._filter._guardian
        assert warden is not None and self._ward is not None
        self._asked = True
        message = warden.activate(self._ward, int(self.timeout * 1e9), self._on_done)
        error = -message["error"]
        if error in (errno.EINPROGRESS, errno.EALREADY):
            # The deadline came first.
            if self._acted.wait(self.timeout + guardian.PATIENCE) and self.result is not None:
                return
            if not self._acted.is_set():
                self._raise_unheard(warden)
            if self._outcome.error is not None:
                raise self._outcome.error
            raise TargetGoneError(errno.ESRCH, f"attach to pid {self.pid}: it ended, or was killed at its deadline")
        if "refusal" not in message:
            if error == errno.ETIMEDOUT:
                self._raise_unheard(warden)
            why = "the guardian died" if error == errno.ECONNRESET else f"asking the guardian: {os.strerror(error)}"
            raise KernelError(error, f"attach to pid {self.pid}: {why}; {self._shown()}")
        if self.result is None:
            with self._lock:
                self._adopt_message(message, [])  # which raises why
        if self._outcome.error is not None:
            raise self._outcome.error

    def _on_done(self, message: guardian.Message, fds: list[_core.Fd]) -> None:
        """Take the guardian's result, in the thread that hears it."""
        if "refusal" in message and message["error"] >= 0 and self.result is None:
            with self._lock:
                try:
                    self._adopt_message(message, fds)
                except (OSError, FilterClosedError) as error:
                    self._outcome.error = error

    def _raise_unheard(self, warden: guardian.Guardian) -> NoReturn:
        raise AttachTimeoutError(
            errno.ETIMEDOUT, f"attach to pid {self.pid}: the guardian has not answered: {warden.why_silent()}; {self._shown()}"
        )

    def _shown(self) -> str:
        """Tell what the kernel shows while the result is unknown."""
        state = self.query().state
        if state == "dead":
            return "the process has ended"
        return "the filter is in force" if state == "active" else "the filter is not in force"

    def _in_force_unheard(self, task: TaskState) -> bool:
        """True if every thread carries more filters than before, and the guardian, which adds ours, has not answered."""
        due = self._asked or (self._ends is not None and time.monotonic() >= self._ends)
        if self._most_before is None or not due:
            return False
        counts = [t.filters for t in task.threads if t.alive and (self.threads == "all" or t.tid == self.pid)]
        return bool(counts) and all(n is not None and n > self._most_before for n in counts)

    def _adopt_message(self, message: guardian.Message, fds: list[_core.Fd]) -> None:
        tids = tuple(o[0] for o in message["outcomes"])
        if message["error"] < 0:
            raise explain(
                message["refusal"], -message["error"], self.pid, message["tid"], message["other_tracer"], tids, self.timeout
            )
        outcomes = tuple(ThreadOutcome(o[0], _known(o[1]), _known(o[2])) for o in message["outcomes"])
        self._adopt(
            AttachResult(
                outcomes, message["no_new_privs_set"], message["suspended"], message["stop_ns"], message["residue"]
            ),
            fds,
        )

    def _explain_watch(self, message: guardian.Message) -> AttachError | UnsupportedError | KernelError:
        """The error that says why the guardian could not filter the process, as it has found when it was asked to watch it."""
        error = -message["error"] or errno.EACCES
        if message["refusal"] == _REFUSED_PERMISSION:
            return NotPermittedError(
                error,
                f"attach to pid {self.pid} with a guardian: the guardian, which acts when this process is dead, would not be permitted "
                f"to: {_why_guardian_not_permitted(self.pid, self.on_deadline == 'kill')}",
            )
        return explain(message["refusal"], error, self.pid, message["tid"], 0, (), self.timeout)

    def _is_refused_for_good(self, message: guardian.Message) -> bool:
        """Whether what the guardian has found keeps this process too from ever filtering the target."""
        refusal = message["refusal"]
        return refusal == _REFUSED_STRICT or (refusal == _REFUSED_FILTERED and not may_suspend_filters())

    def _on_acted(self, message: guardian.Message, fds: list[_core.Fd]) -> None:
        """The guardian has acted at the deadline. For Filter only."""
        state = message["state"]
        if state == guardian.ACTIVE and not self.closed:
            with self._lock:
                try:
                    self._adopt_message(message, fds)
                except (OSError, FilterClosedError) as error:  # in force, and without a listener
                    self._outcome.error = error
        self._acted.set()
        names: dict[int, State] = {guardian.ACTIVE: "active", guardian.KILLED: "dead", guardian.GONE: "dead"}
        why = "killed by the guardian" if state == guardian.KILLED else "the guardian acted at the deadline"
        if message["kind"] == guardian.DONE:
            why = "activated by the guardian, whose answer came late"
        self._changed(names.get(state, "inactive"), why if state != guardian.FAILED else "the guardian FAILED to act")

    def _changed(self, state: State, why: str) -> None:
        """The audit event of every change."""
        if _core.may("write", "getpid"):  # which a log record takes
            _log.info("process %d is %s: %s", self.pid, state, why, extra={"target": self.pid, "state": state, "why": why})
        if self._filter.on_state_change is not None:
            try:
                self._filter.on_state_change(self, state, why)
            except Exception:  # what has changed has changed; a thread of this package may be the caller
                if _core.may("write", "getpid"):
                    _log.exception("Filter.on_state_change failed for process %d", self.pid)

    def fail_closed(self) -> None:
        """Do now what the deadline would do: activate, or kill the process. Nothing if it is active, dead or closed.

        Raises as :meth:`activate` does; the process then runs on unfiltered.
        """
        if self.closed or self.activated or self.query().state == "dead":
            return
        if self.on_deadline == "activate":
            self.activate()
            return
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        self._changed("dead", "killed: inactive where it must not be")

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close. Inactive and alive, it is activated first (or killed, if ``on_deadline`` says so), and InactiveError raised.

        Activated, because that is what was announced, and it harms no process that behaves; to give an attachment up, call
        :meth:`close`. An exception that is under way goes on, with a note; an attachment of which something was promised for
        this process's death (on_supervisor_death=, deadline=) then stays open, and is its filter's to serve or to leave.
        """
        try:
            leave_block([self], value)
        finally:
            if value is None or not self._promised:
                self.close()

    @property
    def _promised(self) -> bool:
        """True if something is to be done when this process is dead."""
        return self._ward is not None or self._death is not None or (self._slot > 0 and self._ends is not None)

    def pause(self) -> None:
        """Make a gate inactive again: calls that are gated run, until :meth:`resume`. One store.

        Raises UnsupportedError for what is no gate, or was hardened: the kernel gives no filter back.
        """
        self._check_turn(gate.PAUSED, "pause")
        gate.write(self._filter, self._slot, gate.PAUSED, f"pause the gate of {self.pid}")
        self._changed("inactive", "the gate was paused")

    def resume(self) -> None:
        """Make a gate active again. Raises UnsupportedError for what is no gate."""
        self._check_turn(gate.ACTIVE, "resume")
        gate.write(self._filter, self._slot, gate.ACTIVE, f"resume the gate of {self.pid}")
        self._changed("active", "the gate was resumed")

    def _check_turn(self, state: int, doing: str) -> None:
        self._check_open(doing)
        if not self._slot:
            raise UnsupportedError(errno.EOPNOTSUPP, f"{doing}: the attachment to {self.pid} is no gate; attach with mode='gate'")
        if self.hardened and state != gate.ACTIVE:
            raise UnsupportedError(
                errno.EOPNOTSUPP, f"{doing}: the gate of {self.pid} was hardened, and nothing takes a filter out of the kernel"
            )

    def harden(self) -> bool:
        """Put the policy's program itself into the gated process, and make the gate active: all or nothing.

        The kernel then denies and kills by itself, which outranks the gate and costs it nothing; what the policy notifies
        still comes through the gate, so no second listener is needed. Tasks that were forked before keep the gate alone,
        and are as filtered as before. Returns False if the policy only notifies: there is nothing for the kernel to do.
        Another process carries the gate already, so this takes CAP_SYS_ADMIN there. Raises as :meth:`Filter.attach` does.
        """
        with self._lock:
            self._check_turn(gate.ACTIVE, "harden")
            if self.hardened:
                return True
            kept, code = _core.gate_hard_program(bytes(self._filter.program))
            if kept:
                how = attach_self if self.pid == os.getpid() else attach_other
                how(Program.from_bytes(code), self._filter._load_flags() & ~_FLAG_WAIT_KILLABLE, self, _core.Outcome(), None)
                self.hardened = True
            gate.write(self._filter, self._slot, gate.ACTIVE, f"harden the gate of {self.pid}")
        self._changed("active", "the gate was hardened")
        return kept > 0

    def _install_gate(
        self,
        server: _core.Gate,
        program: Program,
        triggers: list[tuple[int, int]],
        flags: int,
        answer: _core.Answer | None,
        deadline: float | None,
    ) -> None:
        """Put the gate program in, its listener served before the first call can be gated. For Filter only."""
        care = {
            "guarded": answer is not None or deadline is not None,
            "answer": answer,
            "deadline": deadline_ns(deadline),
            "kill": deadline is not None and self.on_deadline == "kill",
            "pidfd": self._pidfd,
        }
        if deadline is not None:
            # There may be no thread for it, so it is there before the filter is.
            self._clock = threading.Timer(deadline, self._tell_deadline)
            self._clock.daemon = True
            self._clock.start()
        if self.pid == os.getpid():
            check_arch(self._filter, Arch.native(), "attach to oneself as a gate")
            before = query(pidfd=self._pidfd)
            flags |= _FLAG_TSYNC if self.threads == "all" else 0
            no_new_privs = {False: 0, True: 1, "auto": -1}[self.no_new_privs]
            try:
                face, result = self._filter._face, _own_result(before)
                server.install(self._outcome, result, face, bytes(program), flags, no_new_privs, self._slot, triggers, **care)
            except OSError as error:
                raise _kernel_refusal(error.errno or 0, "attach to oneself as a gate", None) from None
        else:
            raw = attach_raw(program, flags, self, self._outcome, self._filter._face, server, self._slot, triggers, care)
            check(raw, self)
            refused = self._outcome.error
            if isinstance(refused, OSError):
                raise AttachError(
                    refused.errno or 0,
                    f"attach to pid {self.pid} as a gate: it is in, but cannot be served ({refused.strerror}); its gated calls fail with ENOSYS",
                ) from None

    def _tell_deadline(self) -> None:
        """The gate's server has acted, or does at this moment; only the event is still to be told."""
        end = time.monotonic() + 5
        while not self.closed and time.monotonic() < end:
            if self.activated:
                self._changed("active", "the deadline came")
                return
            time.sleep(0.001)

    def query(self) -> AttachmentState:
        """Ask the kernel what is true of this attachment and its target, now."""
        self._check_open("query")
        task = query(pidfd=self._pidfd)
        return AttachmentState(state=self._judge(task), pid=self.pid, task=task)

    def _judge(self, task: TaskState) -> State:
        if task.state == "dead":
            return "dead"
        if self.result is None:
            return "active" if self._in_force_unheard(task) else "inactive"
        counts = [t.filters_after for t in self.result.threads if t.filters_after is not None]
        meant = [t for t in task.threads if t.alive and (self.threads == "all" or t.tid == self.pid)]
        carried = all(
            t.seccomp == "filter" and (t.filters is None or not counts or t.filters >= min(counts)) for t in meant
        )
        if not carried or not meant:
            return "detached"
        return gate.shown(self._filter._page.state(self._slot)) if self._slot else "active"

    def close(self) -> None:
        """Close the listener and the pidfd. The filter stays in force: calls it would notify fail with ENOSYS.

        This ends what was promised for the death of this process; :meth:`Filter.leave` does not.
        """
        self._close()

    def _drop(self) -> None:
        self._close(keep=True)

    def _close(self, keep: bool = False) -> None:
        """Close; keep: what was promised stays. For this package only."""
        with self._lock:
            if self._ended or not hasattr(self, "_acted"):
                return
            if not self._over:
                self._over, self._keep = True, keep
            keep = self._keep  # one that was interrupted goes on as it began
        if self._watch is not None:
            self._watch.stop()
        if self._clock is not None:
            self._clock.cancel()
        listeners = self.listeners
        self._filter._forget(self, listeners, None if keep else self._ward)
        self._ward = None
        if (word := self._word_taken) is not None:
            word.keep() if keep else word.free()
        if not listeners or _core.may(*LETTING_GO):  # else the inbox could not let go of them, and their numbers stay taken
            self._outcome.close()
        self._handle.close()
        self._filter._unlink(self)
        self._ended = True

    def __del__(self) -> None:
        if self._linked:  # else what it refers to has other owners, or is closed by losing this one
            super().__del__()

    def __repr__(self) -> str:
        what = "closed" if self._pidfd < 0 else "activated" if self.activated else "inactive"
        return f"<Attachment to {self.pid} {what}>"


def leave_block(attachments: list[Attachment], value: BaseException | None) -> None:
    """See to it that no attachment leaves a ``with`` block inactive unnoticed."""
    # One with a trigger in the core is not to be hurried.
    kinds = [a for a in attachments if type(a) is Attachment or a.is_group or (a.mode == "park" and a.pid != os.getpid())]
    plain = [a for a in kinds if not a.closed and not a.activated]
    left = [a for a in plain if a.query().state not in ("dead", "detached")]
    if not left:
        return
    done = "activated" if left[0].on_deadline == "activate" else "killed"
    text = f"left a with block while inactive: {left!r}; {done} now. close() gives an attachment up"
    for attachment in left:
        attachment.fail_closed()
    if value is None:
        raise InactiveError(errno.EINVAL, text)
    value.add_note(text)


# --------------------------------------------------------------------- options

def death_answer(option: object) -> _core.Answer | None:
    """What on_supervisor_death= means; ValueError for what it cannot."""
    if option is None:
        return None
    if option == "allow":
        return _core.Answer(1)
    if option == "kill":
        return _core.Answer(4)
    if option == "hold":
        return _core.Answer(0)
    if isinstance(option, _core.Answer) and option.kind in (0, 1, 2, 4):
        return option
    raise ValueError(f"attach: on_supervisor_death is allow(), deny(errno), kill() or hold(), got {option!r}")


def deadline_ns(deadline: float | None) -> int:
    """The moment on the monotonic clock, in nanoseconds; -1 for none."""
    return -1 if deadline is None else time.monotonic_ns() + int(deadline * 1e9)


def check_options(
    mode: str,
    tree: bool,
    cgroup: object,
    on_error: str,
    threads: str,
    no_new_privs: object,
    activate_on: object,
    deadline: object,
    on_deadline: str,
    timeout: float,
) -> None:
    """Refuse options that make no sense, before anything is done."""
    if mode not in ("auto", "inject", "park", "gate"):
        raise ValueError(f"attach: mode is 'auto', 'inject', 'park' or 'gate', got {mode!r}")
    if mode == "inject" and activate_on is not None:
        raise ValueError(
            f"attach: activate_on={activate_on!r} can never fire with mode='inject', which sees no calls; use mode='gate'"
        )
    if threads not in ("all", "one"):
        raise ValueError(f"attach: threads is 'all' or 'one', got {threads!r}")
    if no_new_privs not in (True, False, "auto"):
        raise ValueError(f"attach: no_new_privs is True, False or 'auto', got {no_new_privs!r}")
    if on_deadline not in ("activate", "kill"):
        raise ValueError(f"attach: on_deadline is 'activate' or 'kill', got {on_deadline!r}")
    if deadline is not None and not (isinstance(deadline, (int, float)) and 0 <= deadline <= 1e9):
        raise ValueError(f"attach: deadline is 0 to 1e9 seconds, or None, got {deadline!r}")
    if not 0 < timeout <= 3600:
        raise ValueError(f"attach: timeout is more than 0 and at most 3600 seconds, got {timeout!r}")
    if tree and cgroup is not None:
        raise ValueError("attach: tree=True is for a target's descendants, cgroup= for all processes of a cgroup: give one of them")
    if on_error not in ("abort", "skip"):
        raise ValueError(f"attach: on_error is 'abort' or 'skip', got {on_error!r}")
    if on_error != "abort" and not tree and cgroup is None:
        raise ValueError(f"attach: on_error={on_error!r} is for many processes: tree=True or cgroup=")
    if activate_on in ("exec", "fork", "fork-all") and threads != "all":
        raise ValueError(f"attach: activate_on={activate_on!r} is for new programs and processes, of one thread; leave threads='all'")


def open_target(target: Target | None, pidfd: int | None) -> tuple[int, _core.Fd]:
    """Find out who is meant: the pid and a pidfd of our own."""
    if target is not None and pidfd is not None:
        raise TypeError("attach() takes a target or a pidfd, not both")
    if pidfd is not None:
        state = query(pidfd=pidfd)
        if state.state == "dead":
            raise TargetGoneError(errno.ESRCH, f"attach to pidfd {pidfd}: that process is dead")
        return state.pid, _core.duplicate(pidfd)
    if target is None:
        return os.getpid(), _core.own(os.pidfd_open, os.getpid())
    if isinstance(target, bool) or (not isinstance(target, int) and not hasattr(target, "pid")):
        raise TypeError(f"attach() takes a pid or an object with .pid, got {target!r}")
    if not isinstance(target, int) and getattr(target, "returncode", None) is not None:
        raise TargetGoneError(errno.ESRCH, f"attach to {target!r}: it has ended")
    return _open_pid(target if isinstance(target, int) else target.pid)


def _open_pid(pid: int) -> tuple[int, _core.Fd]:
    try:
        state = query(pid)
    except TargetGoneError:
        raise TargetGoneError(errno.ESRCH, f"attach to pid {pid}: there is no such process") from None
    try:
        fd = _core.own(os.pidfd_open, pid)
    except OSError as error:
        raise TargetGoneError(errno.ESRCH, f"attach to pid {pid}: {error.strerror}") from None
    if query(pidfd=fd.number).start_time != state.start_time:
        raise TargetGoneError(errno.ESRCH, f"attach to pid {pid}: it ended just now")
    return pid, fd


# --------------------------------------------------------------------- the act


LOG, WAIT_KILLABLE, SPEC_ALLOW = 1, 2, 4  # PSC_FILTERFD_*


def program_flags(flags: int, notifies: bool) -> int:
    """Turn a filter's flags (PSC_FILTERFD_*) into the SECCOMP_FILTER_FLAG_* that its program is loaded with."""
    found = (_FLAG_LOG if flags & LOG else 0) | (_FLAG_SPEC_ALLOW if flags & SPEC_ALLOW else 0)
    if notifies and flags & WAIT_KILLABLE and _core.install_knows_flags(_FLAG_NEW_LISTENER | _FLAG_WAIT_KILLABLE):
        found |= _FLAG_WAIT_KILLABLE
    return found


def attach_self(
    program: Program, flags: int, attachment: Attachment, outcome: _core.Outcome, face: _core.Face | None
) -> None:
    """Load the program for the calling process; no ptrace."""
    flags |= _FLAG_TSYNC if attachment.threads == "all" else 0
    flags |= _FLAG_NEW_LISTENER if program.notifies else 0
    check_arch(attachment._filter, Arch.native(), "attach to oneself")
    before = query(pidfd=attachment.pidfd)
    mode = {False: 0, True: 1, "auto": -1}[attachment.no_new_privs]
    try:
        _core.install(bytes(program), flags, mode, outcome, _own_result(before), face)
    except OSError as error:
        raise _kernel_refusal(error.errno or 0, "attach to oneself", None) from None


def _own_result(before: TaskState) -> AttachResult:
    """Describe without asking again: the program that is in force now may forbid to read /proc."""
    return AttachResult(
        threads=tuple(
            ThreadOutcome(t.tid, t.filters, t.filters + 1 if t.filters is not None else None)
            for t in before.threads
            if t.alive
        ),
        no_new_privs_set=False,
        suspended=False,
        stop_ns=0,
        residue=0,
    )


def attach_other(
    program: Program, flags: int, attachment: Attachment, outcome: _core.Outcome, face: _core.Face | None
) -> None:
    """Inject the program into another process."""
    check(attach_raw(program, flags, attachment, outcome, face), attachment)


Raw = tuple[int, int, int, int, int, int, int, bool, bool, int, int, list[tuple[int, int, int, int]]]


def attach_raw(
    program: Program,
    flags: int,
    attachment: Attachment,
    outcome: _core.Outcome,
    face: _core.Face | None,
    server: _core.Gate | None = None,
    slot: int = 0,
    triggers: list[tuple[int, int]] | None = None,
    care: dict[str, Any] | None = None,
) -> Raw:
    """Inject; what the core answers. The outcome has what there is to own before any Python runs again."""
    return _core.attach(
        outcome,
        face,
        attachment.pidfd,
        bytes(program),
        flags,
        NO_NEW_PRIVS[attachment.no_new_privs],
        attachment.threads == "one",
        gate.yama_scope() == 1 and not gate.has_capability(gate.SYS_PTRACE),
        int(attachment.timeout * 1e9),
        attachment._filter.foreign_arch == "allow",
        server,
        slot,
        triggers,
        care,
    )


def arm(
    trigger: _core.Trigger, program: Program, flags: int, pidfd: int, no_new_privs: bool | str, timeout: float,
    foreign_arch: bool, event: str = "exec"
) -> None:
    """Arm the core's trigger."""
    trigger.arm(pidfd, bytes(program), flags, NO_NEW_PRIVS[no_new_privs], int(timeout * 1e9), foreign_arch, event)


def check(raw: Raw, attachment: Attachment) -> None:
    """Raise the refusal of what the core answered, if it is one."""
    r, refusal, tid, tracer, _, _, arch, nnp, _, _, residue, threads = raw
    if r < 0:
        error = explain(refusal, -r, attachment.pid, tid, tracer, tuple(t[0] for t in threads), attachment.timeout, arch)
        if nnp:
            error.add_note("no_new_privs was set in the target before the kernel refused, and stays set")
        if residue:
            error.add_note(f"{residue} bytes of injected code or memory stay in the target, which may still use them")
        raise error


def _result_of(raw: Raw) -> AttachResult:
    _, _, _, _, _, _, _, nnp, suspended, stop_ns, residue, threads = raw
    outcomes = tuple(ThreadOutcome(t[0], _known(t[1]), _known(t[2])) for t in threads)
    return AttachResult(outcomes, nnp, suspended, stop_ns, residue)


def most_filters(task: TaskState) -> int | None:
    """How many filters a thread of a process carries at most; None where the kernel does not tell."""
    return max((t.filters for t in task.threads if t.alive and t.filters is not None), default=None)


def _known(count: int) -> int | None:
    return count if count >= 0 else None


def may_suspend_filters() -> bool:
    """True if this process may suspend the filters of a target."""
    return gate.has_capability(gate.SYS_ADMIN) and gate.in_first_user_namespace() and all(t.seccomp == "disabled" for t in query(os.getpid()).threads)


# ----------------------------------------------------------------- explanations


def explain(
    refusal: int, error: int, pid: int, tid: int, tracer: int, done: tuple[int, ...], timeout: float, arch: int = 0, what: str = ""
) -> AttachError | UnsupportedError | KernelError:
    """Make the error that says what was refused, why, and what to do. refusal: enum psc_refusal."""
    what = what or f"attach to pid {pid}"
    thread = f"thread {tid}" if tid and tid != pid else "it"
    match refusal:
        case 0:
            return _kernel_refusal(error, what, tid or None)
        case 1:
            return TargetGoneError(errno.ESRCH, f"{what}: it does not exist any more, or is a zombie")
        case 2:
            return NotPermittedError(errno.EPERM, f"{what}: it is a kernel thread, which makes no system calls")
        case 3:
            return NotPermittedError(error, f"{what}: {_why_not_permitted(pid)}", tid=tid or None)
        case 4:
            return TargetBusyError(
                errno.EBUSY, f"{what}: {thread} is traced by process {tracer} (a debugger or strace?); end that first", tid=tid
            )
        case 5:
            return AttachTimeoutError(
                errno.ETIMEDOUT,
                f"{what}: {thread} did not stop within {timeout} s (state {_state_letter(pid, tid)}: an uninterruptible "
                "sleep, vfork, or a frozen cgroup); nothing was changed, try again later",
                tid=tid,
            )
        case 6:
            return TargetFilteredError(
                errno.EACCES, f"{what}: {thread} is in seccomp's strict mode, which nothing can leave or add to", tid=tid
            )
        case 7:
            return TargetFilteredError(
                errno.EACCES,
                f"{what}: {thread} carries filters already, which may forbid or kill the injected calls; suspending them "
                "takes CAP_SYS_ADMIN, an unfiltered caller, and CONFIG_CHECKPOINT_RESTORE",
                tid=tid,
            )
        case 8:
            return NotPermittedError(
                errno.EACCES,
                f"{what}: the kernel wants no_new_privs set there, or CAP_SYS_ADMIN; allow it with no_new_privs='auto'",
            )
        case 9:
            return AttachError(error, f"{what}: no unused room in its executable memory for the injected code")
        case 10:
            return AttachError(
                errno.EDEADLK,
                f"{what}: the program notifies, but forbids close(), so the listener could not be closed in the target; "
                "allow or notify close, or attach with CAP_SYS_ADMIN",
            )
        case 11 if error == errno.EFAULT:
            return AttachError(
                error,
                f"{what}: the injected call raised a signal instead of being executed; is syscall user dispatch on there?",
            )
        case 11:
            return AttachError(
                error, f"{what}: a ptrace request failed before the filter was loaded ({os.strerror(error)}); it is not in force; try again"
            )
        case 12 if error in shortage.WANTS:
            return AttachShortageError(error, f"{what}: {shortage.WANTS[error]}; nothing was changed")
        case 12 if error == errno.EINTR:
            return AttachError(
                error,
                f"{what}: the injecting process was killed; the filter may be in force, or come into force when the process runs on: "
                "ps.query() tells; it has no listener then",
            )
        case 12:
            return AttachError(error, f"{what}: the injecting process could not be started, or a call failed that it needs: {os.strerror(error)}")
        case 13:
            return PartialAttachError(
                error,
                f"{what}: threads carry different filters, so each got its own, until thread {tid} failed: "
                f"{os.strerror(error)}; {len(done)} threads have it",
                tid=tid,
                done=done,
            )
        case 19:
            return TargetBusyError(
                error, f"{what}: it is in a frozen cgroup (cgroup.freeze), where no injected call is made; thaw that first"
            )
        case 20:
            return UnsupportedError(
                errno.EOPNOTSUPP,
                f"{what}: its first thread has ended, and this kernel (before Linux 6.9) cannot fetch a listener from another; "
                "nothing was changed; use a program without NOTIFY",
            )
        case 21:
            return AttachError(
                error,
                f"{what}: it has filters or few descriptors, so a dry run in a temporary thread of it must tell whether the kernel "
                f"accepts the filter, and {_why_no_thread(error)}; nothing was changed; attach to it alone, without tree= and cgroup=",
            )
        case 22 if error == errno.EAGAIN:
            return TargetBusyError(
                error,
                f"{what}: {thread} is stopped in a call that resumes by restart_syscall(2), which the program does not allow; "
                "let it continue (SIGCONT) before the attach, or allow restart_syscall; nothing was changed",
                tid=tid,
            )
        case 22:
            return NotPermittedError(
                error,
                f"{what}: {thread} waits in a call (nanosleep, poll, a timed futex) that resumes by restart_syscall(2) after the "
                "stop, which the program does not allow; to let it pass once takes CAP_SYS_ADMIN in the first user namespace and "
                "an unfiltered caller; allow restart_syscall, or try again when it does not wait; nothing was changed",
                tid=tid,
            )
        case 23:
            return UnsupportedError(
                error,
                f"{what}: its threads carry different filters, so each must load the program by itself, and thread {tid} is an io_uring "
                "worker, which makes no injected call; nothing was changed; try again when no request is in flight (idle workers end "
                "after some seconds), or use threads='one'",
            )
        case 24:
            return AttachError(error, f"{what}: {_foreign(thread, Arch.of(arch) if arch else None)}", tid=tid)
        case 25:
            return AttachError(
                error,
                f"{what}: the injected call did not come to its end ({os.strerror(error)}; frozen meanwhile?), as far as could be seen; "
                "the filter may be in force, or come into force when the process runs on: ps.query() tells; it has no listener then",
            )
        case 26:
            return AttachError(
                error,
                f"{what}: another program is in force than the one that was given; another task with access to its memory wrote to it "
                "during the attach; do not trust this process",
            )
        case 27 if error == errno.ENOSYS:
            return UnsupportedError(
                errno.EOPNOTSUPP,
                f"{what}: its listener would be in its table of descriptors for a moment, and without kcmp(2) it cannot be known which "
                "processes share that; nothing was changed; this takes Linux 6.9, or CONFIG_KCMP",
            )
        case 27:
            shared = "memory (CLONE_VM), and could rewrite the program" if error == errno.EBUSY else "descriptors, and could take the listener"
            return TargetBusyError(
                errno.EBUSY,
                f"{what}: process {tracer} shares its {shared} before the kernel has it; nothing was changed; stop or end that process "
                "first, or try again when it has executed another program",
            )
        case 18:
            why = shortage.WANTS.get(error, os.strerror(error))
            return AttachShortageError(error, f"{what}: {why}; nothing was changed")
        case 15 | 16 | 17:
            return AttachError(error, f"{what}: {os.strerror(error)}")
        case _:
            return AttachError(
                error,
                f"{what}: the filter is in force, but its listener could not be fetched ({os.strerror(error)}): notified "
                "calls fail with ENOSYS",
            )


def _kernel_refusal(error: int, what: str, tid: int | None) -> AttachError | UnsupportedError:
    match error:
        case errno.EBUSY:
            return ListenerBusyError(
                error, f"{what}: it has a filter with a live listener, and the kernel allows one; close that first", tid=tid
            )
        case errno.EACCES:
            return NotPermittedError(
                error, f"{what}: the kernel wants no_new_privs or CAP_SYS_ADMIN; allow it with no_new_privs='auto'"
            )
        case errno.ESRCH:
            return AttachError(error, f"{what}: a thread carries other filters than the caller; use threads='one'")
        case errno.ENOMEM:
            return AttachError(
                error, f"{what}: the chain of filters would exceed 32,768 instructions (each counts its length + 4), or no memory"
            )
        case errno.EMFILE | errno.ENFILE:
            return AttachError(error, f"{what}: it has no free file descriptor for the listener")
        case errno.EINVAL:
            return UnsupportedError(error, f"{what}: this kernel does not know the flags of the filter")
    return AttachError(error, f"{what}: {os.strerror(error)}", tid=tid)


def _why_no_thread(error: int) -> str:
    match error:
        case errno.EAGAIN:
            return "it can make no thread (RLIMIT_NPROC, or pids.max of its cgroup)"
        case errno.EINVAL:
            return "it can make no thread after unshare(CLONE_NEWPID)"
        case errno.EOPNOTSUPP:
            return "the filter, or one that it has, does not let a thread end (exit)"
    return f"it can make no thread ({os.strerror(error)})"


def _foreign(task: str, arch: Arch | None) -> str:
    name, also = ("an architecture", "") if arch is None else (f"{arch.value},", f", {arch.value!r}")
    return (
        f"{task} runs on {name} for which the program has no rules, so every call would get its answer for unknown architectures; "
        f"cover it by Policy(arches=[...{also}]), or set Filter.foreign_arch = 'allow' if that is meant; nothing was changed"
    )


def check_arch(filter: Filter, arch: Arch | None, what: str, task: str = "it") -> None:
    """Refuse a filter without rules for a task's architecture, unless :attr:`Filter.foreign_arch` allows it; None: not known."""
    if arch is not None and filter.foreign_arch == "refuse" and not filter.program.covers(arch):
        raise AttachError(errno.ENOEXEC, f"{what}: {_foreign(task, arch)}")


def _own_filter_forbids() -> str | None:
    """The call that a filter of this process itself refuses and that attaching takes, or None."""
    if not any(thread.filters or thread.seccomp == "filter" for thread in query(os.getpid()).threads if thread.alive):
        return None
    for call, feature in (("pidfd_getfd", _PIDFD_GETFD), ("ptrace", _PTRACE_CHILD)):
        error, died_of, _ = _core.probe_feature(feature)
        if error or died_of:
            return call
    return None


def _why_guardian_not_permitted(pid: int, kill: bool) -> str:
    if kill:
        return f"kill(2) takes the same user, or CAP_KILL: it belongs to user {query(pid).uid}"
    scope = gate.yama_scope()
    if _own_filter_forbids() is None and scope == 1:
        return "YAMA's ptrace_scope 1 lets it attach with CAP_SYS_PTRACE alone, because it is no ancestor of the target"
    return _why_not_permitted(pid)


def _why_not_permitted(pid: int) -> str:
    forbidden = _own_filter_forbids()
    if forbidden is not None:
        return f"a filter that this process itself carries (a container's policy?) refuses {forbidden}(2)"
    scope = gate.yama_scope()
    if scope == 3:
        return "YAMA forbids all ptrace on this machine (ptrace_scope 3)"
    if scope == 2:
        return "YAMA wants CAP_SYS_PTRACE (ptrace_scope 2)"
    if scope == 1:
        return "YAMA allows to attach to descendants only (ptrace_scope 1), or to who asked by PR_SET_PTRACER"
    owner = query(pid).uid
    if owner != os.geteuid():
        return f"it belongs to user {owner}, and this is user {os.geteuid()} without CAP_SYS_PTRACE"
    return "not permitted to ptrace it (set-user-ID or not dumpable, more capabilities, or another user namespace)"


def _state_letter(pid: int, tid: int) -> str:
    return next((t.state for t in query(pid).threads if t.tid == tid), "?")
