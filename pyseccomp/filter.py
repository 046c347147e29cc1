"""A filter as an object: detached, in a file descriptor, until it is attached."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self, overload

from pyseccomp import _core, checkpoint, executable, gate, group, names, park, shortage
from pyseccomp.attach import (
    check_arch,
    NO_NEW_PRIVS,
    Attachment,
    AttachmentState,
    Target,
    attach_other,
    attach_self,
    check_options,
    LOG,
    SPEC_ALLOW,
    WAIT_KILLABLE,
    deadline_ns,
    death_answer,
    leave_block,
    most_filters,
    open_target,
    program_flags,
)
from pyseccomp.guardian import Guardian, Message
from pyseccomp.errors import AttachTimeoutError, FilterFdError, KernelError, ShortageError, UnsupportedError
from pyseccomp.follow import Stray
from pyseccomp.notify import Receiver, new_inbox
from pyseccomp.offload import offload
from pyseccomp.owned import LETTING_GO, Owned
from pyseccomp.policy import Policy
from pyseccomp.program import Program
from pyseccomp.query import State, know_from, query
from pyseccomp.responder import Answer, Callback, Responder
from pyseccomp.syscalls import Arch
from pyseccomp.triggers import TRIGGERS, Event, Watch, is_event

_SLOT = struct.Struct("=I")
_FDS_ACCEPTED = 16

_READ_ERRORS = {
    errno.EMEDIUMTYPE: "it is not a filter (no sealed memfd with a filter's header)",
    errno.EPERM: "it lacks seals, so whoever sent it could still change it",
    errno.EBADMSG: "it is damaged: its size, header or digest do not agree",
    errno.EINVAL: "it holds a program that the kernel would refuse",
}


_alive: weakref.WeakSet[Filter] = weakref.WeakSet()


@dataclass(frozen=True, slots=True)
class FilterState:
    """What is true of a filter and of everything that it was attached to, as the kernel shows it."""

    state: State
    """"active" if any attachment is, else "inactive" if any is, else "dead" if any is, else "detached". Without
    attachments of its own, as in who received the filter: what the gate words in the filter fd say."""
    attachments: tuple[AttachmentState, ...]
    digest: bytes
    """SHA-256 of the program."""
    strays: tuple[Stray, ...] = ()
    """Processes in cgroups that this filter was attached to, which do not carry it; see :class:`GroupState`."""


class Filter(Owned, Receiver):
    """A seccomp filter that exists by itself: a kernel file descriptor which can be kept, sent and attached.

    Making one changes nobody. The descriptor is a memfd, CLOEXEC and sealed, that holds the checked program; a receiver
    trusts none of it (:meth:`from_fd`). :meth:`fileno` never changes: before the first attachment of a program that
    notifies it is the memfd, then the kernel's listener, and with several listeners an epoll fd that is readable when
    any of them is.

    A Filter owns its attachments: :meth:`close` closes their listeners, and calls that would be notified then fail with
    ENOSYS. What was attached stays in force; nothing in the kernel takes a filter away again. As a context manager it is closed at
    the normal end of the block; an exception, KeyboardInterrupt and SystemExit too, lets go by :meth:`leave`.

    log: the kernel logs every answer but ALLOW. wait_killable: once a notification has been received only fatal signals
    interrupt the call (Linux 5.19; without effect on older kernels). spec_allow: loading the filter does not turn on the
    mitigation of Speculative Store Bypass (Linux 4.17). Each is taken from the policy's flags (:attr:`Policy.flags`, those of an
    OCI profile) where it is None; what neither says is False, False and, of wait_killable, True. name: by which :func:`reclaim` finds what was
    attached with on_supervisor_death="hold", after this process's death; it is taken with the first attachment that has a
    guardian, and given back when nothing is left under it.

    foreign_arch: "refuse" does not attach to tasks of an architecture for which the program has no rules (:meth:`Program.covers`),
    where every call would get the answer for unknown ones, ``bad_arch`` of a Policy, mostly a kill; "allow" does, as meant. A task that
    executes a program of another architecture later gets that answer in either case.

    responder: its rules that registers alone decide become part of the program (:mod:`pyseccomp.offload`), so that those
    calls never wait for anybody; serve by the same responder for the rest. It takes no more rules then.

    Raises ProgramError for a program that the kernel would refuse, PolicyError for a policy that cannot be compiled,
    UnsupportedError for a flag of the policy that this kernel does not have.
    """

    _over = True
    _keep = False
    _face: _core.Face
    _name: str | None = None
    foreign_arch: Literal["refuse", "allow"] = "refuse"
    """What becomes of an attach to a task of an architecture that the program lacks."""
    _responder: Responder | None = None
    _unrestored: tuple[str, ...] = ()

    @shortage.told("make a filter", starts=False)
    def __init__(
        self,
        policy: Policy | Program,
        *,
        responder: Responder | None = None,
        log: bool | None = None,
        wait_killable: bool | None = None,
        spec_allow: bool | None = None,
        name: str | None = None,
        foreign_arch: Literal["refuse", "allow"] = "refuse",
    ) -> None:
        if name is not None:
            names.check(name)
        if foreign_arch not in ("refuse", "allow"):
            raise ValueError(f"Filter: foreign_arch is 'refuse' or 'allow', got {foreign_arch!r}")
        self.foreign_arch = foreign_arch
        program = policy.compile() if isinstance(policy, Policy) else policy
        if not isinstance(program, Program):
            raise TypeError(f"Filter() takes a Policy or a Program, got {type(program).__name__}")
        if responder is not None:
            program = offload(program, responder)
        flags = _resolve_flags(policy, program, log, wait_killable, spec_allow)
        try:
            face = _core.Face.create(new_inbox(), bytes(program), flags)
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                raise UnsupportedError(error.errno, "making a filter: this kernel has no F_SEAL_FUTURE_WRITE") from None
            raise KernelError(error.errno, f"making a filter: {error.strerror}") from None
        self._take(face, program, flags)
        self._name = name
        self._responder = responder

    def _take(self, face: _core.Face, program: Program, flags: int) -> None:
        self._face = face
        self._program = program
        self._flags = flags
        self._attachments: list[Attachment] = []
        self._groups: list[group.GroupAttachment] = []
        self._inbox = face.inbox
        self._lock = threading.RLock()
        self._page = face.page
        self._channel: park.Channel | None = None
        self._ticket: park.Ticket | None = None
        self._gate: _core.Gate | None = None
        self._guardian: Guardian | None = None
        self._wards: dict[int, weakref.ref[Attachment]] = {}
        self._next_ward = 0
        self.on_state_change: Callable[[Attachment, State, str], object] | None = None
        """Called with (attachment, state, why) at every change; the logger "pyseccomp" is told as well. What it raises is logged."""
        self._over = False
        _alive.add(self)

    @property
    def _fd(self) -> int:
        return -1 if self._over else self._face.number

    @property
    def _memfd(self) -> int:
        return self._face.memory

    # ------------------------------------------------------------- the object

    @property
    def program(self) -> Program:
        """The program that this filter holds."""
        return self._program

    @property
    def log(self) -> bool:
        """True if the kernel is to log every answer but ALLOW."""
        return bool(self._flags & LOG)

    @property
    def wait_killable(self) -> bool:
        """True if a received notification is to be interrupted by fatal signals only."""
        return bool(self._flags & WAIT_KILLABLE)

    @property
    def spec_allow(self) -> bool:
        """True if loading the filter is not to turn on the mitigation of Speculative Store Bypass."""
        return bool(self._flags & SPEC_ALLOW)

    @property
    def attachments(self) -> tuple[Attachment, ...]:
        """What this object attached, oldest first, without those closed."""
        self._hear_parked()
        with self._lock:
            found = tuple(self._attachments)
        for one in found:
            if isinstance(one, group.GroupAttachment) and one._unsettled:
                one._resume()
                return self.attachments
        return found

    def accept_parked(self) -> None:
        """Let processes that this one forks from now on park under the filter they inherit; :meth:`send` does so for its receiver.

        Raises NotPermittedError in a process that did not create the filter.
        """
        self._check_open("accept_parked")
        if not self._page.writable:
            gate.write(self, 0, gate.NONE, "accept parked processes")
        self._open_channel()

    def wait_parked(self, count: int = 1, timeout: float | None = None) -> tuple[Attachment, ...]:
        """Wait until so many processes are parked under this filter (and neither lost nor closed); return them.

        Raises AttachTimeoutError.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            self._hear_parked()
            found = tuple(one for one in self._parked_ones() if not one.lost)
            if len(found) >= count:
                return found
            left = 3600.0 if deadline is None else deadline - time.monotonic()
            refused = None if self._channel is None else self._channel.refused
            if left <= 0 and refused is not None:
                why = shortage.WANTS.get(refused.errno or 0, refused.strerror)
                raise ShortageError(refused.errno, f"hear from parked processes: {why}; what they say waits until then")
            if left <= 0:
                raise AttachTimeoutError(errno.ETIMEDOUT, f"{len(found)} of {count} processes are parked after {timeout} s")
            self._open_channel()
            self._hear_parked(left)

    def _open_channel(self) -> park.Channel:
        with self._lock:
            self._check_open("park")
            if self._channel is None:
                self._channel = park.Channel()
                self._ticket = park.Ticket(_core.duplicate(self._channel.theirs.fileno()), 0)
            return self._channel

    def _parked_ones(self) -> list[park.Parked]:
        with self._lock:
            return [a for a in self._attachments if isinstance(a, park.Parked)]

    def _adopt_parked(self, attachment: park.Parked) -> None:
        self._link(attachment)
        attachment._changed("inactive", "it parked itself")

    def _hear_parked(self, timeout: float = 0.0, pidfd: int | None = None) -> None:
        if self._channel is not None and self._page.writable and self._fd >= 0 and _core.may("poll", "recvmsg"):
            park.hear(self, self._channel, timeout, pidfd)

    @property
    def closed(self) -> bool:
        """True after :meth:`close`."""
        return self._fd < 0

    def fileno(self) -> int:
        """Return the descriptor's number, the same for the life of the object (see the class)."""
        self._check_open("fileno")
        return self._face.current()

    def close(self) -> None:
        """Close the descriptor and the attachments' listeners; what is in force stays in force. Idempotent.

        Notified calls fail with ENOSYS from now on, whatever was promised for the death of this process: this is the one end
        that gives promises up (see :meth:`leave`).
        """
        self._close()

    def leave(self) -> None:
        """Let go on purpose, with what was promised for the death of this process kept from now on. Idempotent.

        What ``on_supervisor_death=`` and ``deadline=`` say is done at once, by the guardian (or, for gates, by their standby
        process): calls that were received and not answered get the promised answer, or wait for :func:`reclaim` with
        "hold". This object is closed. Attachments without a promise end as by :meth:`close`.

        This also happens when an exception (KeyboardInterrupt and SystemExit too) leaves a ``with`` block of the filter, and
        when the last reference to an open filter is dropped. When the interpreter ends with the filter open, its death is
        the one that was promised for. Only :meth:`close`, and the normal end of a ``with`` block, give the promises up.
        """
        with self._lock:
            promised = [(one, one.activated) for one in self._attachments if one._promised]
        self._close(keep=True)
        for attachment, active in promised:
            attachment._changed("active" if active else "inactive", "left: what was promised for this process's death holds")

    def _drop(self) -> None:
        self._close(keep=True)

    def _close(self, keep: bool = False) -> None:
        """Close. Every step can be made again, so a close() that an exception interrupted is finished by the next."""
        if not hasattr(self, "_lock"):
            return  # the constructor failed
        with self._lock:
            if not self._over:
                self._over, self._keep = True, keep
            keep = self._keep  # one that was interrupted goes on as it began
            attachments = list(self._attachments)
            guardian, server = self._guardian, self._gate
        for bound in list(self._groups):  # what enters from now on is not filtered
            bound._stop_following()
        if keep and _core.may(*LETTING_GO):
            for attachment in attachments:  # what is received from now on is the guardian's to answer
                for listener in attachment.listeners:
                    self._inbox.remove(listener)
        if server is not None and _core.may(*LETTING_GO):
            attachments = _end_gates(server, attachments, keep)
            self._attachments = list(attachments)
            self._gate = None
        if guardian is not None and _core.may("sendmsg", "shutdown", "futex", "close"):
            guardian.leave() if keep else guardian.close()
            self._guardian = None
        for attachment in attachments:
            attachment._close(keep)
        for end in (self._channel, self._ticket):
            if end is not None:
                end.close()
        self._attachments = []
        self._face.close()

    def __repr__(self) -> str:
        if self._fd < 0:
            return "<Filter closed>"
        return f"<Filter fd={self._fd} {len(self._program)} instructions, {len(self._attachments)} attachments>"

    # ------------------------------------------------- passing the descriptor

    @classmethod
    @shortage.told("take a filter", starts=False)
    def from_fd(cls, fd: int) -> Self:
        """Make a Filter of a filter's descriptor from anywhere; fd itself stays the caller's.

        The program is copied out and checked: seals, size, header, digest, and every rule of the kernel's checker.

        Raises FilterFdError when any of that fails; nothing is changed then.
        """
        try:
            copy = _core.duplicate(fd)
            program, flags = _core.filterfd_read(copy.number)
            self = cls.__new__(cls)
            self._take(_core.Face.adopt(new_inbox(), copy), Program.from_bytes(program), flags)
        except OSError as error:
            why = _READ_ERRORS.get(error.errno or 0, error.strerror)
            raise FilterFdError(error.errno, f"taking a filter from fd {fd}: {why}") from None
        return self

    @shortage.told("send a filter", starts=False)
    def send(self, sock: socket.socket) -> None:
        """Send the filter through a Unix socket, for :meth:`recv`. The receiver can attach it and query by it.

        If this process created the filter, the receiver can park itself under it (``attach(active=False)``), and is then among
        :attr:`attachments` here.
        """
        self._check_open("send")
        if not self._page.writable:
            socket.send_fds(sock, [b"F" + _SLOT.pack(0)], [self._memfd])
            return
        channel = self._open_channel()
        try:
            taken = self._page.take_slot(gate.INACTIVE)
            slot = taken.number
        except OSError:
            taken, slot = None, 0  # all are taken: it parks under the filter's own word
        socket.send_fds(sock, [b"F" + _SLOT.pack(slot)], [self._memfd, channel.theirs.fileno()])
        if taken is not None:
            taken.keep()

    @classmethod
    @shortage.told("receive a filter", starts=False)
    def recv(cls, sock: socket.socket) -> Self:
        """Receive a filter that :meth:`send` sent; blocks as the socket does. Checked as in :meth:`from_fd`.

        Raises FilterFdError when what comes is not exactly one filter (every descriptor that came is closed), or the
        other side has closed the connection.
        """
        data, fds, flags = _core.receive_fds(sock, 1 + _SLOT.size, _FDS_ACCEPTED)
        try:
            if not data and not fds:
                raise FilterFdError(errno.ECONNRESET, "receiving a filter: the other side closed the connection")
            if len(fds) not in (1, 2) or flags & socket.MSG_CTRUNC:
                raise FilterFdError(errno.EBADMSG, f"receiving a filter: expected one descriptor, got {len(fds)}")
            if len(fds) == 2:
                try:
                    park.check_end(fds[1].fileno())
                except ValueError as error:
                    raise FilterFdError(errno.EBADMSG, f"receiving a filter: expected one descriptor, got 2, and the second is {error}, no way to its creator") from None
            self = cls.from_fd(fds[0].fileno())
            slot = _SLOT.unpack(data[1:])[0] if len(data) == 1 + _SLOT.size else 0
            if len(fds) == 2:
                self._ticket = park.Ticket(fds[1], slot if slot < 511 else 0)
                fds.pop()
            return self
        finally:
            for fd in fds:
                fd.close()

    def __reduce__(self) -> tuple[Callable[[Any], Filter], tuple[Any]]:
        """Pass through multiprocessing: the other process gets the detached filter, without attachments."""
        from multiprocessing import reduction

        self._check_open("pickle")
        return _rebuild, (reduction.DupFd(self._memfd),)

    # ----------------------------------------------------------------- attach

    @overload
    def attach(
        self,
        target: Target | None = None,
        *,
        tree: Literal[True],
        pidfd: int | None = None,
        active: bool = True,
        on_error: Literal["abort", "skip"] = "abort",
        no_new_privs: bool | Literal["auto"] = "auto",
        timeout: float = 5.0,
        on_supervisor_death: Answer | Literal["allow", "kill", "hold"] | None = None,
    ) -> group.GroupAttachment: ...

    @overload
    def attach(
        self,
        *,
        cgroup: str | os.PathLike[str],
        follow: bool = False,
        active: bool = True,
        on_error: Literal["abort", "skip"] = "abort",
        no_new_privs: bool | Literal["auto"] = "auto",
        timeout: float = 5.0,
        on_supervisor_death: Answer | Literal["allow", "kill", "hold"] | None = None,
    ) -> group.GroupAttachment: ...

    @overload
    def attach(
        self,
        target: Target | None = None,
        *,
        pidfd: int | None = None,
        active: bool = True,
        mode: park.Mode = "auto",
        tree: bool = False,
        cgroup: str | os.PathLike[str] | None = None,
        follow: bool = False,
        on_error: Literal["abort", "skip"] = "abort",
        threads: Literal["all", "one"] = "all",
        no_new_privs: bool | Literal["auto"] = "auto",
        activate_on: str | Event | None = None,
        deadline: float | None = None,
        on_deadline: Literal["activate", "kill"] = "activate",
        timeout: float = 5.0,
        on_supervisor_death: Answer | Literal["allow", "kill", "hold"] | None = None,
    ) -> Attachment: ...

    @shortage.told("attach")
    def attach(
        self,
        target: Target | None = None,
        *,
        pidfd: int | None = None,
        active: bool = True,
        mode: park.Mode = "auto",
        tree: bool = False,
        cgroup: str | os.PathLike[str] | None = None,
        follow: bool = False,
        on_error: Literal["abort", "skip"] = "abort",
        threads: Literal["all", "one"] = "all",
        no_new_privs: bool | Literal["auto"] = "auto",
        activate_on: str | Event | None = None,
        deadline: float | None = None,
        on_deadline: Literal["activate", "kill"] = "activate",
        timeout: float = 5.0,
        on_supervisor_death: Answer | Literal["allow", "kill", "hold"] | None = None,
    ) -> Attachment:
        """Attach to a process: the caller's own (None), by pid, by anything with ``.pid``, or by pidfd.

        Another process need not be prepared, nor even know. All its threads are stopped by ptrace for some hundred
        microseconds, one of them is made to load the filter for all, and all go on: interrupted calls continue,
        signals are late but not lost, a stopped process stays stopped, no stack and no register is touched. Every
        thread gets the filter or none does, and nothing is changed on failure. This holds when this process is killed
        in the middle of it; notified calls then fail with ENOSYS.

        A filter that notifies is loaded by a temporary thread of the target with descriptors of its own, so no other task finds
        the listener in its table. Where that is not possible (before Linux 6.9, no thread can be made, the filter forbids exit), a
        process outside the thread group that shares the target's descriptors is a reason to refuse. So is one that shares its
        memory, where one process is attached to; with tree= and cgroup= this is not looked for. With CAP_SYS_ADMIN the program is
        read back from the kernel and compared. What is left: a process that may ptrace the target can open that temporary thread
        too, in the microseconds that it lives, and copy the listener; where the program cannot be read back, a process that can
        write to the target's memory can replace it.

        activate_on="exec": in force from the first instruction of the program that the process executes next (see
        :class:`TriggeredAttachment`); the program may deny execve itself. "fork": in force in each child that the process makes
        from now on, before its first instruction, and not in the process; "fork-all": in both, from the first fork on (see
        :class:`ForkAttachment`).

        active=False binds without touching the process at all; :meth:`Attachment.activate` attaches.

        mode="gate" puts a gate program into the kernel now: whatever the policy does not allow (or log) is asked of this
        process, which says "continue" while inactive and gives the policy's answer once active. One store turns it, for
        all tasks under it and those that they fork and exec; :meth:`Attachment.pause` turns it back. A kill is SIGKILL to
        the whole process. A gate survives its target's exec. When its manager dies, gated calls fail with ENOSYS; with deadline= or
        on_supervisor_death= it is activated then, if it was not, and goes on.
        activate_on names a system call, by which a gate becomes active: it is let run, and every gated call that is
        received after that gets the policy's answer. mode="auto" is "gate" if activate_on names a call, else "inject".

        activate_on may also be something that happens here: seconds from now, an object with fileno() that becomes readable, or a
        function, called in a thread, that returns (or raises). Then it is activated, whatever the mode; :meth:`Attachment.wait`
        waits for it. These end with this process: give a ``deadline`` too if it must come into force without it.

        active=False without a target parks this process (mode="park"): it received the filter from its creator, or inherited it,
        and a thread waits until that activates it; see :mod:`pyseccomp.park`.

        tree=True: the process and all its descendants; cgroup: all processes of a cgroup and of those below it, by its directory
        (v1 or v2). All are stopped before the first is changed; if one refuses, none is. See :class:`GroupAttachment`, which this
        then returns. on_error="skip" leaves processes that refuse as they are, and filters the others. follow=True, with cgroup: what enters it
        later is filtered too.

        threads: "one"
        filters the main thread only. no_new_privs: "auto" sets it in the target if the kernel asks for it, and
        :attr:`Attachment.result` tells. timeout: seconds for all of it, from the first stop to the last release; when they have
        passed before the injection begins, nothing is changed; an injection that has begun is given one second at least.

        deadline: with active=False, or with activate_on= an event or (of a gate) a call, seconds after which the attachment is
        activated, or the process killed, as on_deadline says; the death of this process is the deadline too (not so of what parked
        itself: its own thread keeps the time, whoever lives). A process that can
        then not be filtered, for ``timeout`` seconds, is killed. One of which that is known now (it carries filters that the guardian
        may not suspend) is refused, with on_deadline="activate". on_supervisor_death: what calls that are notified get when this
        process is dead, those that it had received through this object among them: allow(), deny(errno) or kill(), which kills the
        target as well; hold(): they wait, received ones too, until another process of the same user calls :func:`reclaim` (takes
        ``Filter(name=)``); None: ENOSYS, from the kernel. Both are kept by a guardian, a small process that sleeps until then and is
        started with the first attachment of a filter that asks for it; if it cannot be, or could not act, the attach is refused.
        Every end of this process is its death here, by exit() and by a signal too; :meth:`leave` is one on purpose, :meth:`close` gives
        the promises up.

        For another process this takes the right to ptrace it (same user, or CAP_SYS_PTRACE; YAMA may ask more). If it
        carries filters already, CAP_SYS_ADMIN too, to suspend them while the call is made.

        Raises TargetGoneError, NotPermittedError, TargetBusyError (a debugger holds it), TargetFilteredError,
        ListenerBusyError, AttachTimeoutError, AttachError; UnsupportedError for what this release does not have.

        Source: seccomp(2), ptrace(2), pidfd_getfd(2).
        """
        event: Event | None = None
        if activate_on is not None and not isinstance(activate_on, str):
            if not is_event(activate_on):
                raise UnsupportedError(
                    errno.EOPNOTSUPP,
                    f"attach: activate_on={activate_on!r}: it is 'exec', 'fork', 'fork-all', a system call's name, seconds, "
                    "an object with fileno(), "
                    "or a function",
                )
            if not active:
                raise ValueError("attach: activate_on= says when it becomes active; leave active=False out")
            event, active, activate_on = activate_on, False, None
        if follow and cgroup is None:
            raise ValueError("attach: follow=True is for cgroup=: what the members of a tree fork inherits the filter")
        check_options(mode, tree, cgroup, on_error, threads, no_new_privs, activate_on, deadline, on_deadline, timeout)
        if tree or cgroup is not None:
            group.check(mode, threads, event or activate_on, deadline, on_deadline)
            answer = self._death_answer(on_supervisor_death)
            bound = group.bind(self, target, pidfd, cgroup, on_error, no_new_privs, timeout, answer, follow)
            return self._attach_group(bound, active)
        attachment = self._attach(
            target, pidfd, active, mode, threads, no_new_privs, activate_on, deadline, on_deadline, timeout, on_supervisor_death
        )
        if event is not None:
            attachment._watch = watch = Watch(attachment, event)
            watch.start()
        return attachment

    def attach_tree(self, target: Target, *, on_error: Literal["abort", "skip"] = "abort", **options: Any) -> group.GroupAttachment:
        """Attach to a process and all its descendants: ``attach(target, tree=True)``."""
        found: group.GroupAttachment = self.attach(target, tree=True, on_error=on_error, **options)
        return found

    def attach_cgroup(
        self, path: str | os.PathLike[str], follow: bool = False, on_error: Literal["abort", "skip"] = "abort", **options: Any
    ) -> group.GroupAttachment:
        """Attach to all processes of a cgroup, and with follow to those that enter it later: ``attach(cgroup=path)``."""
        found: group.GroupAttachment = self.attach(cgroup=path, follow=follow, on_error=on_error, **options)
        return found

    def _attach(
        self,
        target: Target | None,
        pidfd: int | None,
        active: bool,
        mode: park.Mode,
        threads: Literal["all", "one"],
        no_new_privs: bool | Literal["auto"],
        activate_on: str | None,
        deadline: float | None,
        on_deadline: Literal["activate", "kill"],
        timeout: float,
        on_supervisor_death: Answer | Literal["allow", "kill", "hold"] | None,
    ) -> Attachment:
        answer = self._death_answer(on_supervisor_death)
        if deadline is not None and active and activate_on is None:
            raise ValueError("attach: deadline= goes with active=False, or with activate_on=")
        if activate_on in TRIGGERS and (answer is not None or deadline is not None):
            raise UnsupportedError(
                errno.EOPNOTSUPP,
                f"attach: deadline= and on_supervisor_death= with activate_on={activate_on!r}: the process that waits for it outlives this "
                "one, but keeps no time and no listener; bind with active=False and a deadline, or use mode='gate'",
            )
        self._check_open("attach")
        if activate_on in TRIGGERS and not active:
            raise ValueError("attach: activate_on= says when it becomes active; leave active=False out")
        if mode == "park" and (activate_on is not None or answer is not None):
            option = "activate_on=" if activate_on is not None else "on_supervisor_death="
            raise UnsupportedError(
                errno.EOPNOTSUPP, f"attach: {option} is not for mode='park', where nobody but a thread of the target waits; use mode='gate'"
            )
        if mode == "gate" or activate_on not in (None, *TRIGGERS):
            if answer is not None and answer.kind == 0:
                raise UnsupportedError(
                    errno.EOPNOTSUPP,
                    "attach: on_supervisor_death='hold' is not for gates: only the memory of their creator can turn them, so nobody could "
                    "reclaim one; use allow(), deny() or kill(), or mode='inject'",
                )
            return self._attach_gate(
                target, pidfd, active, threads, no_new_privs, activate_on, timeout, answer, deadline, on_deadline
            )
        pid, fd = open_target(target, pidfd)
        if mode == "park" or (mode == "auto" and not active and answer is None and pid == os.getpid()):
            return self._attach_parked(pid, fd, active, threads, no_new_privs, timeout, deadline, on_deadline)
        kind = Attachment if activate_on is None else TRIGGERS[activate_on]
        if not active:
            check_arch(self, executable.arch_of(query(pidfd=fd.number).arch), f"attach to pid {pid}")
        attachment = kind(self, pid, fd, threads, no_new_privs, timeout)
        attachment.on_deadline, attachment._ends = on_deadline, _moment(deadline)
        self._link(attachment)
        try:
            if answer is not None or deadline is not None:
                self._guard(attachment, answer, deadline)
            if active:
                attachment._begin()
        except BaseException:
            attachment._give_up()
            raise
        return self._adopt(attachment)

    def _death_answer(self, option: Answer | Literal["allow", "kill", "hold"] | None) -> Answer | None:
        answer = death_answer(option)
        if answer is not None and answer.kind == 0 and self._name is None:
            raise ValueError("attach: on_supervisor_death='hold' goes with Filter(name=), by which ps.reclaim() finds it")
        return answer

    def _attach_group(self, bound: group.GroupAttachment, active: bool) -> Attachment:
        self._link(bound)
        try:
            if active:
                bound.activate()
                return bound
        except BaseException:
            bound._give_up()
            raise
        return self._adopt(bound)

    def _replace(self, bound: group.GroupAttachment) -> None:
        """A group that is active is among the attachments by its members. For GroupAttachment only."""
        with self._lock:
            if bound in self._attachments:
                self._attachments.remove(bound)
            if bound.cgroup is not None:
                self._groups.append(bound)

    def _forget_group(self, bound: group.GroupAttachment) -> None:
        with self._lock:
            if bound in self._groups:
                self._groups.remove(bound)

    def _attach_parked(
        self,
        pid: int,
        fd: _core.Fd,
        active: bool,
        threads: Literal["all", "one"],
        no_new_privs: bool | Literal["auto"],
        timeout: float,
        deadline: float | None,
        on_deadline: Literal["activate", "kill"],
    ) -> Attachment:
        attachment = park.ParkedHere(self, pid, fd, threads, no_new_privs, timeout)
        attachment.on_deadline, attachment._ends = on_deadline, _moment(deadline)
        self._link(attachment)
        try:
            if pid != os.getpid():
                raise UnsupportedError(
                    errno.EOPNOTSUPP, f"attach to pid {pid}: a process parks itself: send it the filter, or use mode='inject' or 'gate'"
                )
            check_arch(self, Arch.native(), "park this process")
            if active or threads != "all":
                raise ValueError("attach: mode='park' waits to be activated, in all threads: active=False, threads='all'")
            attachment._begin()
        except BaseException:
            attachment.close()
            raise
        return self._adopt(attachment)

    def _link(self, attachment: Attachment) -> None:
        """Own an attachment from before anything is done to its process, so that :meth:`close` reaches it whatever happens."""
        with self._lock:
            if self._over:
                attachment.close()
                self._check_open("attach")
            if attachment not in self._attachments:
                self._attachments.append(attachment)
            attachment._linked = True

    def _unlink(self, attachment: Attachment) -> None:
        with self._lock:
            if attachment in self._attachments:
                self._attachments.remove(attachment)

    def _adopt(self, attachment: Attachment) -> Attachment:
        """Own an attachment. For this package only."""
        self._link(attachment)
        if not attachment.activated:
            attachment._changed("inactive", "bound")
        return attachment

    def _attach_gate(
        self,
        target: Target | None,
        pidfd: int | None,
        active: bool,
        threads: Literal["all", "one"],
        no_new_privs: bool | Literal["auto"],
        activate_on: str | None,
        timeout: float,
        answer: Answer | None,
        deadline: float | None,
        on_deadline: Literal["activate", "kill"],
    ) -> Attachment:
        triggers = gate.resolve_trigger(activate_on) if activate_on is not None else []
        program = gate.build_program(self._program, triggers)
        gate.check_trap(self._program)
        pid, fd = open_target(target, pidfd)
        # What is still to be done after the load is done by this very thread if it gates itself, so its gate turns last.
        turn = active and not triggers and pid == os.getpid()
        slot = gate.take_slot(self, gate.ACTIVE if active and not triggers and not turn else gate.INACTIVE)
        attachment = Attachment(self, pid, fd, threads, no_new_privs, timeout, slot)
        attachment.on_deadline, attachment._ends, attachment._death = on_deadline, _moment(deadline), answer
        self._link(attachment)
        try:
            with self._lock:
                self._check_open("attach")
                if self._gate is None:
                    self._gate = _core.Gate(self._page, bytes(self._program), self._inbox)
                attachment._install_gate(self._gate, program, triggers, self._load_flags(notifies=True), answer, deadline)
                if turn:
                    gate.write(self, slot.number, gate.ACTIVE, "attach to oneself as a gate")
        except BaseException:
            attachment._give_up()
            raise
        attachment._changed("active" if attachment.activated else "inactive", "attached as a gate")
        return attachment

    def _guard(self, attachment: Attachment, answer: Answer | None, deadline: float | None, pending: bool = True) -> None:
        """Put an attachment into the guardian's care before anything is done to its process.

        pending: the filter is still to come into force, so what is known to prevent that is raised.
        """
        if attachment.pid == os.getpid():
            raise UnsupportedError(
                errno.EOPNOTSUPP, "attach to oneself: nobody supervises from outside, so no guardian can; fork a target"
            )
        attachment._most_before = most_filters(query(pidfd=attachment.pidfd))
        with self._lock:
            guardian = self._start_guardian()
            ward, self._next_ward = self._next_ward, self._next_ward + 1
            self._wards[ward] = weakref.ref(attachment)
        message = guardian.watch(
            ward,
            attachment.pidfd,
            f"attach to pid {attachment.pid} with a guardian",
            guarded=answer is not None,
            answer=answer,
            deadline=deadline_ns(deadline),
            kill=attachment.on_deadline == "kill",
            inject=deadline is not None,
            leader_only=attachment.threads == "one",
            timeout_ns=int(attachment.timeout * 1e9),
            flags=self._load_flags(),
            no_new_privs=NO_NEW_PRIVS[attachment.no_new_privs],
            foreign_arch=self.foreign_arch == "allow",
        )
        if message["error"]:
            self._wards.pop(ward, None)
            raise attachment._explain_watch(message)
        attachment._ward, attachment._death = ward, answer
        attachment._guardian_injects = bool(message["inject"])
        if pending and deadline is None and attachment._is_refused_for_good(message):
            raise attachment._explain_watch(message)

    def _start_guardian(self) -> Guardian:
        with self._lock:
            if self._guardian is None:
                name = self._name
                warden = Guardian(*self._hooks())
                try:
                    warden.start(self._memfd, self._inbox, None if name is None else lambda: names.take(name))
                    # Not before: _on_lost() of one that dies in its start would wait for the lock, and close() for that.
                    self._guardian = warden
                except BaseException:
                    self._guardian = None
                    warden.close()
                    raise
            return self._guardian

    def _guard_active(self, attachment: Attachment, answer: Answer) -> None:
        """Put an attachment that is in force, and its listeners, into the guardian's care. For this package only."""
        self._guard(attachment, answer, None, pending=False)
        attachment._guardian_injects = False
        assert self._guardian is not None and attachment._ward is not None
        self._guardian.listen(attachment._ward, attachment.listeners)

    def _hooks(self) -> tuple[Callable[..., None], Callable[[], None]]:
        """What the guardian calls; it does not keep this object alive."""
        me, lost = weakref.WeakMethod(self._on_acted), weakref.WeakMethod(self._on_lost)
        return lambda *event: _call(me, *event), lambda: _call(lost)

    def _on_acted(self, message: Message, fds: list[_core.Fd]) -> None:
        attachment = self._wards.get(message["ward"], lambda: None)()
        if attachment is not None:
            attachment._on_acted(message, fds)

    def _on_lost(self) -> None:
        """The guardian was killed, so no process would act any more: act now."""
        guardian, self._guardian = self._guardian, None
        if guardian is None:
            return
        guardian.close()
        for attachment in self.attachments:
            if attachment._ward is None:
                continue
            attachment._guardian_injects = False
            attachment._changed("active" if attachment.activated else "inactive", "the guardian died; unguarded now")
            if not attachment.activated:
                try:
                    attachment.fail_closed()
                except OSError as error:
                    attachment._changed("inactive", f"could not be activated: {error}")

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close; if an exception is under way, :meth:`leave`.

        Attachments that are still inactive are treated as :meth:`Attachment.__exit__` does.
        """
        try:
            leave_block(list(self.attachments), value)
        finally:
            if value is None:
                self.close()
            else:
                self.leave()

    # ------------------------------------------------------------- checkpoint

    @property
    def responder(self) -> Responder | None:
        """The responder of the last :meth:`serve`, of the constructor, or of the checkpoint that this was restored from."""
        return self._responder

    @property
    def unrestored(self) -> tuple[str, ...]:
        """What ``restore(missing="skip")`` skipped, and why."""
        return self._unrestored

    def serve(self, responder: Responder, *, workers: int | Literal["auto"] = "auto") -> bool:
        """Answer notifications by the responder; see :meth:`Receiver.serve`."""
        self._responder = responder
        return super().serve(responder, workers=workers)

    async def serve_async(self, responder: Responder, *, limit: int = 1000) -> bool:
        """Answer notifications by the responder in an asyncio loop; see :meth:`Receiver.serve_async`."""
        self._responder = responder
        return await super().serve_async(responder, limit=limit)

    @shortage.told("take a checkpoint")
    def checkpoint(self) -> bytes:
        """Return what :meth:`restore` needs to manage this filter from another process when this one is dead.

        That is the program and flags, the attachments with their state and the identity of their processes (pid, time of
        start, boot and namespace), and the :attr:`responder`'s rules; functions by name. The format is described in
        :mod:`pyseccomp.checkpoint`. This object goes on as before.

        For attachments with listeners the guardian is started, if none is there: from now on, when this process dies, their
        calls wait, those that were received and not answered too, until the checkpoint is restored. To end that without a
        restore, end the targets or call :func:`reclaim` with the filter's name.

        Raises:
            CheckpointError: an attachment to this very process, a gate, a parked process, one with a deadline or event under
                way, or with another ``on_supervisor_death`` than "hold"; calls that stay unanswered for a second (EBUSY); a
                responder that answers with add_fd().
            NotPermittedError, UnsupportedError: the guardian could not be started, or could not act.
        """
        self._check_open("checkpoint")
        return checkpoint.save(self, self._responder)

    @staticmethod
    def restore(
        data: bytes | bytearray | memoryview,
        *,
        functions: Mapping[str, Callback] | None = None,
        missing: Literal["refuse", "skip"] = "refuse",
    ) -> Filter:
        """Become the manager of a filter whose manager is dead, from its :meth:`checkpoint`.

        Attachments that were inactive are inactive, and can be activated; active ones are active, notified calls that wait,
        or were left unanswered, are received here, each once. :attr:`responder` is as it was; functions maps the names of its
        functions, ``module.qualified_name``, to functions. missing: "skip" leaves out processes that have ended, whose
        number belongs to another by now, or that do not carry the filter any more; :attr:`unrestored` tells which.

        Raises:
            CheckpointError: damaged, of another version, boot or pid namespace; functions missing; processes as above, with
                "refuse". Nothing is changed then, and the data can be restored again.
            ReclaimError: the manager lives (EBUSY).
        """
        return checkpoint.restore(data, functions, missing)

    def pause(self) -> None:
        """Make every gate of this filter inactive again, by one store; :meth:`resume` undoes it. See Attachment.pause."""
        self._turn(gate.PAUSED, "pause")

    def resume(self) -> None:
        """Make every gate of this filter active, by one store."""
        self._turn(gate.ACTIVE, "resume")

    def _turn(self, state: int, doing: str) -> None:
        self._check_open(doing)
        gates = [a for a in self.attachments if a.mode == "gate"]
        if not gates:
            self._refuse_without_gate(doing)
        for attachment in gates:
            attachment._check_turn(state, doing)
        gate.write(self, 0, state, doing)
        for attachment in gates:
            attachment._changed("active" if state == gate.ACTIVE else "inactive", f"{doing} of all gates")

    def _refuse_without_gate(self, doing: str) -> None:
        if not self._page.writable:
            gate.write(self, 0, gate.NONE, doing)
        raise UnsupportedError(errno.EOPNOTSUPP, f"{doing}: this filter has no gate; attach with mode='gate'")

    def activate(self) -> None:
        """Activate every attachment that is inactive and whose process lives; all gates by one store.

        All are tried; the first error is raised afterwards, and the others are noted on it.

        Raises NotPermittedError in a process that received the filter and attached nothing.
        """
        errors: list[Exception] = []
        if self._channel is not None:
            park.activate(self, self._channel)
        attachments = self.attachments
        if any(a.mode == "gate" for a in attachments) or (not attachments and not self._page.writable):
            gate.write(self, 0, gate.ACTIVE, "activate")
        for attachment in attachments:
            if attachment.mode == "gate":
                attachment._changed("active", "activation of all gates")
            if isinstance(attachment, park.Parked) and attachment.lost:
                continue
            if attachment.mode != "gate" and not attachment.activated and attachment.query().state != "dead":
                try:
                    attachment.activate()
                except OSError as error:
                    errors.append(error)
        if errors:
            for other in errors[1:]:
                errors[0].add_note(f"and also: {other}")
            raise errors[0]

    def _install(self, attachment: Attachment) -> None:
        """Put the program in force where the attachment says. For Attachment only."""
        self._check_open("activate")
        how = attach_self if attachment.pid == os.getpid() else attach_other
        how(self._program, self._load_flags(), attachment, attachment._outcome, self._face)
        if attachment._outcome.error is not None:
            raise attachment._outcome.error

    def _load_flags(self, notifies: bool | None = None) -> int:
        """The SECCOMP_FILTER_FLAG_* with which the program, or one that notifies in its place, is loaded. For this package only."""
        return program_flags(self._flags, self._program.notifies if notifies is None else notifies)

    def _listen(self, listeners: tuple[int, ...]) -> None:
        """Receive from new listeners, and give :meth:`fileno` its new meaning. For Attachment only."""
        with self._lock:
            self._check_open("activate")
            for listener in listeners:
                self._inbox.add(listener)
            with contextlib.suppress(OSError):  # fileno() tries again; what is in force must not fail for it
                self._face.show(self._gate is not None)

    def _forget(self, attachment: Attachment, listeners: tuple[int, ...], ward: int | None) -> None:
        """Receive from these no more. For Attachment only."""
        if ward is not None:
            self._wards.pop(ward, None)
            if self._guardian is not None:
                self._guardian.release(ward)
        with self._lock:
            for listener in listeners:
                if not _core.may(*LETTING_GO):
                    continue
                if attachment.mode == "gate" and self._gate is not None:
                    self._gate.remove(listener)
                self._inbox.remove(listener)

    def query(self) -> FilterState:
        """Ask the kernel about every attachment, now."""
        self._check_open("query")
        states = tuple(attachment.query() for attachment in self.attachments)
        order: tuple[State, ...] = ("active", "inactive", "dead", "detached")
        shown: set[State] = {a.state for a in states}
        if not shown:
            word = self._page.summary()
            shown = {gate.shown(word) if word else "detached"}
        with self._lock:
            groups = list(self._groups)
        strays = tuple(stray for bound in groups for stray in bound._strays())
        return FilterState(state=min(shown, key=order.index), attachments=states, digest=self._program.digest, strays=strays)


_left_open: list[Attachment] = []
"""Gates of which the standby process could not get descriptors of its own."""


def _end_gates(server: _core.Gate, attachments: list[Attachment], keep: bool) -> list[Attachment]:
    """End the server of the gates; return the attachments that can be closed then."""
    gates = [one for one in attachments if one.mode == "gate"]
    if keep and any(one._promised for one in gates):
        try:
            server.leave()
        except OSError as error:
            if error.errno != errno.ESRCH:
                _left_open.extend(gates)
                return [one for one in attachments if one not in gates]
        return attachments
    for one in gates:
        for listener in one.listeners:
            server.remove(listener)
    server.close()
    return attachments


def _resolve_flags(
    source: Policy | Program, program: Program, log: bool | None, wait_killable: bool | None, spec_allow: bool | None
) -> int:
    """The filter's flags: those that were given, else the policy's. UnsupportedError where the kernel lacks one of the policy's."""
    asked = {flag.removeprefix("SECCOMP_FILTER_FLAG_") for flag in source.flags} if isinstance(source, Policy) else set()
    if wait_killable is None and "WAIT_KILLABLE_RECV" in asked and program.notifies and not program_flags(WAIT_KILLABLE, True):
        raise UnsupportedError(
            errno.EOPNOTSUPP,
            "making a filter: the policy asks for SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, which this kernel does not know (Linux "
            "5.19 does); leave it out of the profile, or give wait_killable=False",
        )
    found = LOG if ("LOG" in asked if log is None else log) else 0
    found |= SPEC_ALLOW if ("SPEC_ALLOW" in asked if spec_allow is None else spec_allow) else 0
    return found | (WAIT_KILLABLE if wait_killable is None or wait_killable else 0)


def _moment(deadline: float | None) -> float | None:
    return None if deadline is None else time.monotonic() + deadline


def _call(method: weakref.WeakMethod[Callable[..., None]], *args: Any) -> None:
    target = method()
    if target is not None:
        target(*args)


def _rebuild(dup: Any) -> Filter:
    fd = dup.detach()
    try:
        return Filter.from_fd(fd)
    finally:
        os.close(fd)


def _known() -> list[tuple[Program, str]]:
    while True:
        try:
            found = list(_alive)
        except RuntimeError:  # another thread makes a filter at this moment
            continue
        return [(one._program, one._name or f"Filter fd={one._fd}") for one in found if one._fd >= 0]


know_from(_known)
