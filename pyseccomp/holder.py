"""A process that keeps a named filter for others, who tell it over a socket what to do; it ends with its targets.

One holder keeps one filter, with any number of attachments. Who may speak to it is the same user or root: the socket lies in a
directory of the user's alone (:mod:`pyseccomp.names`), and the kernel says who is there. A connection carries one request, one
JSON object in one packet, and one answer; nothing that comes can stop the holder but ``close``.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import errno
import fcntl
import json
import math
import os
import resource
import select
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pyseccomp import _core, errors, gate, names
from pyseccomp.attach import Attachment
from pyseccomp.errors import AttachError, KernelError, ReclaimError, SeccompError, TargetGoneError
from pyseccomp.filter import Filter
from pyseccomp.park import Parked
from pyseccomp.query import State
from pyseccomp.responder import Responder, deny
from pyseccomp.triggers import TriggeredAttachment

MAX_REQUEST, MAX_ANSWER = 4096, 1 << 16
MAX_CLIENTS, MAX_CHANGES, MAX_SHOWN, MAX_WHY = 64, 8, 100, 200
PATIENCE = 2.0
MAX_TIMEOUT = 600.0
_CONNECT = 10.0
_TURN = 10.0
_AGAIN = 0.1
_MOST_FDS = 253
_MAY_PASS = (errno.EAGAIN, errno.ENOMEM, errno.ENOBUFS, errno.EMFILE, errno.ENFILE)
_MAX_FD = (1 << 31) - 1
_LISTENER = 0  # polled for no event: what comes all the same is its hang-up
_CREDENTIALS = struct.Struct("iII")
_CHANGES = ("activate", "pause", "resume", "harden", "attach")

Message = dict[str, Any]


# ------------------------------------------------------------------- the holder


@dataclasses.dataclass
class _Client:
    connection: socket.socket
    until: float
    pid: int


class Holder:
    """A filter, its attachments, and the socket by which others reach them. Owns all three.

    Making one takes the name. Raises ReclaimError (EBUSY) when a holder has it.
    """

    def __init__(self, name: str, filter: Filter, responder: Responder) -> None:
        self.name, self.filter, self._responder = name, filter, responder
        self._path = names.path_of(name, names.HOLDER)
        fd = names.try_take(self._path)
        if fd is None:
            raise ReclaimError(
                errno.EBUSY,
                f"name {name!r} is in use: `pyseccomp activate --list` shows its holder, `pyseccomp activate --close {name}` ends it; "
                "or take another name",
            )
        self._socket = socket.socket(fileno=fd.detach())
        self._socket.setblocking(False)
        self._inode = self._path.stat().st_ino
        self._woken, self._wake = socket.socketpair()
        for end in (self._woken, self._wake):
            end.setblocking(False)
        self._clients: list[_Client] = []
        self._closers: list[socket.socket] = []
        self._changing = self._unfollowed = 0
        self._again: float | None = None  # when to try what the kernel refused
        self._deaf = False  # until then no connection is accepted
        self._counting, self._change = threading.Lock(), threading.Lock()
        self._server: threading.Thread | None = None
        self._why: dict[int, str] = {}
        self._stopped = False
        self.error: Exception | None = None
        """What ended it, if it was a failure."""
        self.tell: Callable[[int, str, str], object] | None = None
        """Called with (pid, state, why) at every change."""
        filter.on_state_change = self._on_state_change

    def attach(self, pid: int, how: Message) -> Attachment:
        """Attach to a process; ``how``: see :func:`attach_arguments`."""
        attachment = self.filter.attach(pid, **attach_arguments(how))
        if "activate_on" in how:
            try:
                _start(self._follow, attachment, name=f"holder follows {pid}")
            except AttachError:  # it is activated all the same; the loop looks by itself
                self._unfollowed += 1
                self.wake()
        return attachment

    def run(self) -> None:
        """Answer until the targets have ended, somebody closes it, or :meth:`stop` is called."""
        had_targets = False
        while not self._stopped and not self._closers:
            attachments = self.filter.attachments
            living = still_alive(attachments)
            had_targets = had_targets or bool(attachments)
            if had_targets and not living and not self._changing:
                return
            self._keep_served(living)
            self._wait(living)

    def stop(self) -> None:
        """End :meth:`run`; for signal handlers and threads."""
        self._stopped = True
        self.wake()

    def wake(self) -> None:
        """Let :meth:`run` look again."""
        with contextlib.suppress(OSError):
            self._wake.send(b"w")

    @property
    def wake_fd(self) -> int:
        """What signal.set_wakeup_fd() takes."""
        return self._wake.fileno()

    def retire(self) -> None:
        """Give the name back, hear no client any more, and end answering; the filter and its attachments stay."""
        if self._socket.fileno() >= 0:  # once: the number of the inode may be another socket's by now
            names.give_back(self._path, self._inode)
        self._socket.close()
        for client in self._clients:
            client.connection.close()
        if self._server is not None and self._server.is_alive():
            with contextlib.suppress(SeccompError):
                self.filter.stop()
            self._server.join(PATIENCE)

    def close(self) -> None:
        """Give the name back and everything up that was not closed by a request: what was promised for its death is done now."""
        self.retire()
        with self._change:  # one that is under way is not cut off
            if self._closers:
                for attachment in self.filter.attachments:
                    give_up(attachment)
                self.filter.close()
            else:
                self.filter.leave()
        for connection in self._closers:
            _send(connection, {"ok": True, "name": self.name, "pid": os.getpid(), "targets": []})
        for end in (self._woken, self._wake):
            end.close()

    # ------------------------------------------------------------ what is true

    def show(self) -> Message:
        """Tell what is held, and what the kernel says of it."""
        attachments = self.filter.attachments
        targets = [self._target(one) for one in attachments[:MAX_SHOWN]]
        return {
            "ok": True,
            "name": self.name,
            "pid": os.getpid(),
            "program": self.filter.program.digest.hex(),
            "instructions": len(self.filter.program),
            "notifies": self.filter.program.notifies,
            "targets": targets,
            "more": len(attachments) - len(targets),
        }

    def _target(self, attachment: Attachment) -> Message:
        try:
            found = attachment.query()
            state: State | str = found.state
            start, threads = found.task.start_time, sum(t.alive for t in found.task.threads)
        except SeccompError:
            state, start, threads = "dead", 0, 0
        notes = [note for note, true in self._notes(attachment) if true]
        return {
            "pid": attachment.pid,
            "start_time": start,
            "threads": threads,
            "mode": attachment.mode,
            "state": state,
            "notes": notes,
            "deadline": self._left(attachment),
            "why": self._why.get(attachment.pid, "")[:MAX_WHY],
        }

    def _notes(self, attachment: Attachment) -> Iterator[tuple[str, bool]]:
        slot = attachment._slot if attachment.mode == "gate" else 0
        yield "paused", bool(slot) and not attachment.closed and self.filter._page.state(slot) == gate.PAUSED
        yield "hardened", attachment.hardened
        if isinstance(attachment, TriggeredAttachment):
            yield f"waits for {attachment._event}", attachment.armed
        left = self._left(attachment)
        yield f"has a deadline: {attachment.on_deadline} in {left} s", left is not None

    def _left(self, attachment: Attachment) -> int | None:
        """Seconds until its deadline, at least 1; None: there is none, or none any more."""
        if attachment._ends is None or attachment.activated or (left := attachment._ends - time.monotonic()) <= 0:
            return None
        return math.ceil(left)

    def _on_state_change(self, attachment: Attachment, state: State, why: str) -> None:
        self._why[attachment.pid] = why
        if self.tell is not None:
            self.tell(attachment.pid, state, why)
        self.wake()

    def _follow(self, attachment: Attachment) -> None:
        """A thread: something in the core or a clock activates this one; look again when it has."""
        try:
            attachment.wait()
        except (SeccompError, OSError) as error:
            if not attachment.activated and attachment._watch is not None:
                self._why[attachment.pid] = str(error.args[-1])
        self.wake()

    # --------------------------------------------------------------- the loop

    def _wait(self, living: dict[int, int]) -> None:
        poll = select.poll()
        for fd in (self._woken.fileno(), *(c.connection.fileno() for c in self._clients)):
            poll.register(fd, select.POLLIN)
        if not self._deaf:
            poll.register(self._socket.fileno(), select.POLLIN)
        for fd, events in living.items():
            poll.register(fd, events)
        if self._unfollowed:
            self._try_again()
        left = min((*(c.until for c in self._clients), *(() if self._again is None else (self._again,))), default=None)
        ready = {fd for fd, _ in poll.poll(None if left is None else max(0.0, left - time.monotonic()) * 1000 + 1)}
        if self._woken.fileno() in ready:
            with contextlib.suppress(BlockingIOError):
                while self._woken.recv(4096):
                    pass
        for client in list(self._clients):
            if client.connection.fileno() in ready:
                self._clients.remove(client)
                self._hear(client.connection)
            elif time.monotonic() >= client.until:
                self._clients.remove(client)
                _dismiss(client.connection)
        if self._again is not None and time.monotonic() >= self._again:
            self._again, self._deaf = None, False
        if self._socket.fileno() in ready:
            self._accept()

    def _try_again(self) -> None:
        """Look again soon, whatever comes."""
        if self._again is None:
            self._again = time.monotonic() + _AGAIN

    def keep_served(self) -> None:
        """Begin to answer, before :meth:`run` does."""
        self._keep_served(still_alive(self.filter.attachments))

    def _keep_served(self, living: dict[int, int]) -> None:
        if not self.filter.program.notifies or (self._server is not None and self._server.is_alive()):
            return
        if _LISTENER in living.values():
            try:
                self._server = _start(self._serve, name="holder answers")
            except AttachError:  # its calls wait; so does nothing else
                self._try_again()

    def _serve(self) -> None:
        try:
            self.filter.serve(self._responder)
        except (SeccompError, OSError) as error:
            if not self.filter.closed and getattr(error, "errno", None) in _MAY_PASS:
                time.sleep(_AGAIN)  # run() begins anew
            elif not self.filter.closed:
                self.error = error
                self.stop()
        self.wake()

    def _accept(self) -> None:
        try:
            connection, _ = self._socket.accept()
        except OSError as error:
            if error.errno in _MAY_PASS and error.errno != errno.EAGAIN:
                # The socket stays readable: look later, and let go the one that has said nothing for longest.
                if self._clients:
                    _dismiss(self._clients.pop(0).connection)
                self._deaf = True
                self._try_again()
            return
        connection.setblocking(False)
        pid, uid = _peer(connection)
        if uid not in (os.geteuid(), 0):
            fail(connection, ReclaimError(errno.EPERM, f"holder {self.name!r} belongs to user {os.geteuid()}, and this is user {uid}"))
            return
        if len(self._clients) >= MAX_CLIENTS:
            # The oldest of the process that has most: a crowd of one process only drives out its own.
            counts = collections.Counter(client.pid for client in self._clients)
            crowd = max(self._clients, key=lambda client: counts[client.pid])
            self._clients.remove(crowd)
            _dismiss(crowd.connection)
        self._clients.append(_Client(connection, time.monotonic() + PATIENCE, pid))

    def _hear(self, connection: socket.socket) -> None:
        """Answer the request of one client, or see to it that a thread does."""
        try:
            data, fds, flags = _core.receive_fds(connection, MAX_REQUEST, _MOST_FDS)
            _core.close_foreign(fds)
            if not data:
                _dismiss(connection)
                return
            request = _decode(data, flags)
            doing = request.get("do")
            if doing == "show":
                _send(connection, self.show())
            elif doing == "filter":
                self.filter.send(connection)
                _dismiss(connection)
            elif doing == "close":
                self._refuse_to_close(bool(request.get("force")))
                self._closers.append(connection)
            elif doing in _CHANGES and self._changing < MAX_CHANGES:
                self._count(1)
                try:
                    _start(self._work, connection, request, name=f"holder: {doing}")
                except AttachError:
                    self._count(-1)
                    raise
            elif doing in _CHANGES:
                raise ReclaimError(errno.EBUSY, f"holder {self.name!r} is busy: {MAX_CHANGES} changes are under way")
            else:
                raise ReclaimError(errno.EINVAL, f"holder {self.name!r} does not know how to do {doing!r}")
        except (SeccompError, OSError, ValueError, TypeError) as error:
            fail(connection, error)

    def _work(self, connection: socket.socket, request: Message) -> None:
        try:
            if not self._change.acquire(timeout=_TURN):
                raise ReclaimError(errno.EBUSY, f"holder {self.name!r} is busy: another change is under way for {_TURN:.0f} s; try again")
            try:
                self._do(request)
            finally:
                self._change.release()
            _send(connection, self.show())
        except Exception as error:
            fail(connection, error)
        finally:
            self._count(-1)
            self.wake()

    def _count(self, change: int) -> None:
        with self._counting:
            self._changing += change

    def _do(self, request: Message) -> None:
        match request["do"]:
            case "activate":
                self._refuse_without_target("activate")
                self.filter.activate()
            case "pause":
                self.filter.pause()
            case "resume":
                self.filter.resume()
            case "harden":
                self._refuse_without_target("harden")
                for attachment in self.filter.attachments:
                    if attachment.query().state != "dead":
                        attachment.harden()
            case "attach":
                pid, how = request.get("pid"), request.get("how")
                if not isinstance(pid, int) or isinstance(pid, bool) or pid <= 0 or not isinstance(how, dict):
                    raise ReclaimError(errno.EINVAL, f"holder {self.name!r}: attach takes a pid and how to, got {pid!r}, {how!r}")
                timeout = how.get("timeout", 0)
                if isinstance(timeout, (int, float)) and timeout > MAX_TIMEOUT:
                    raise ReclaimError(errno.EINVAL, f"holder {self.name!r}: attach waits {MAX_TIMEOUT:.0f} s at most, got timeout={timeout!r}")
                self.attach(pid, how)

    def _refuse_without_target(self, doing: str) -> None:
        if all(one.query().state == "dead" for one in self.filter.attachments):
            raise TargetGoneError(errno.ESRCH, f"{doing} {self.name!r}: no target of it is alive")

    def _refuse_to_close(self, force: bool) -> None:
        if _LISTENER in still_alive(self.filter.attachments).values() and not force:
            raise AttachError(
                errno.EBUSY,
                f"close {self.name!r}: it answers calls of tasks that live, which would fail with ENOSYS from then on; --force does it "
                "all the same",
            )


def _start(function: Callable[..., object], *args: object, name: str) -> threading.Thread:
    """Start a thread. Raises AttachError (EAGAIN) when the kernel makes none."""
    thread = threading.Thread(target=function, args=args, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        raise AttachError(
            errno.EAGAIN, f"{name}: {error}; nothing was done: raise RLIMIT_NPROC or pids.max of the holder, and try again"
        ) from None
    return thread


def _peer(connection: socket.socket) -> tuple[int, int]:
    """The pid and the user of the other end, as they were when it connected or began to listen."""
    pid, uid, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return pid, uid


def _dismiss(connection: socket.socket) -> None:
    """Close a connection, and what was sent by it and not read: a descriptor among it may make the last close wait."""
    with connection, contextlib.suppress(OSError):
        connection.setblocking(False)
        for _ in range(1000):
            data, fds, _ = _core.receive_fds(connection, 1, _MOST_FDS)
            _core.close_foreign(fds)
            if not data:
                break


def _decode(data: bytes, flags: int) -> Message:
    if flags & socket.MSG_TRUNC:
        raise ReclaimError(errno.EMSGSIZE, f"a request has at most {MAX_REQUEST} bytes")
    try:
        request = json.loads(data)
    except (ValueError, RecursionError):
        request = None
    if not isinstance(request, dict):
        raise ReclaimError(errno.EBADMSG, "a request is one JSON object")
    return request


def _send(connection: socket.socket, message: Message) -> None:
    """Send the one answer, and close. A client that does not read gets none; what the kernel refuses is tried again for a moment."""
    data = json.dumps(message).encode()
    with contextlib.suppress(OSError):
        for _ in range(5):
            try:
                connection.send(data)
                break
            except OSError as error:
                if error.errno not in (errno.ENOBUFS, errno.ENOMEM):
                    break
            time.sleep(_AGAIN / 5)
    _dismiss(connection)


def fail(connection: socket.socket, error: Exception) -> None:
    """Send an error as the one answer, and close."""
    _send(connection, {"error": pack(error)})


# --------------------------------------------------------------------- options


def attach_arguments(how: Message) -> Message:
    """Make arguments of Filter.attach() of what a command line or a request holds.

    Keys: active, mode, activate_on, deadline, on_deadline, timeout, on_supervisor_death ("allow", "kill", "hold", or the errno to
    deny with). Raises ValueError for others, and for values of another kind.
    """
    kinds: dict[str, tuple[type, ...]] = {
        "active": (bool,),
        "mode": (str,),
        "activate_on": (str, int, float),
        "deadline": (int, float),
        "on_deadline": (str,),
        "timeout": (int, float),
        "on_supervisor_death": (str, int),
    }
    for key, value in how.items():
        if key not in kinds or not isinstance(value, kinds[key]):
            raise ValueError(f"attach: {key}={value!r} is not understood")
    made = dict(how)
    if isinstance(made.get("on_supervisor_death"), int):
        made["on_supervisor_death"] = deny(made["on_supervisor_death"])
    return made


def give_up(attachment: Attachment) -> None:
    """Close an attachment, and let a target that waits for an event go untouched."""
    if isinstance(attachment, TriggeredAttachment):
        attachment.disarm()
    attachment.close()


def left_in_kernel(attachment: Attachment) -> bool:
    """True if closing the attachment leaves its target changed."""
    return attachment.result is not None or isinstance(attachment, Parked)


def still_alive(attachments: Sequence[Attachment]) -> dict[int, int]:
    """What to poll, and for what, to learn that another target of these has ended; empty when all have.

    Pidfds for POLLIN, listeners for nothing but the hang-up: under them live those that a target forked.
    """
    found: dict[int, int] = {}
    for attachment in attachments:
        with contextlib.suppress(SeccompError):  # closed meanwhile
            found |= {attachment.pidfd: select.POLLIN, **dict.fromkeys(attachment.listeners, _LISTENER)}
    poll = select.poll()
    for fd, events in found.items():
        poll.register(fd, events)
    for fd, _ in poll.poll(0):
        del found[fd]
    return found


def answers_calls(attachments: Sequence[Attachment]) -> bool:
    """True if tasks live under a listener of these."""
    return _LISTENER in still_alive(attachments).values()


def wait_for_end(attachments: Sequence[Attachment]) -> None:
    """Return when no task is left under these."""
    while living := still_alive(attachments):
        poll = select.poll()
        for fd, events in living.items():
            poll.register(fd, events)
        poll.poll()


# --------------------------------------------------------------------- clients


def ask(name: str, request: Message, timeout: float | None = None) -> Message:
    """Send a request to a holder and return its answer.

    Raises ReclaimError: nobody has that name (ENOENT), it is another user's (EPERM), it does not answer within ``timeout`` seconds
    (ETIMEDOUT), or ended (ECONNRESET); and whatever the holder raised.
    """
    with _connect(name, timeout) as connection:
        try:
            connection.send(json.dumps(request).encode())
            data = connection.recv(MAX_ANSWER)
        except BlockingIOError:
            raise ReclaimError(errno.ETIMEDOUT, f"holder {name!r} does not answer within {timeout} s") from None
        except OSError as error:
            raise ReclaimError(error.errno, f"holder {name!r}: {error.strerror}") from None
    if not data:
        raise ReclaimError(errno.ECONNRESET, f"holder {name!r} ended before it answered")
    return unpack(json.loads(data))


def fetch(name: str) -> Filter:
    """Receive the filter that a holder keeps, as :meth:`Filter.recv` does: to attach it, to query by it, to park under it.

    Raises as :func:`ask` does; FilterFdError.
    """
    with _connect(name, PATIENCE) as connection:
        connection.send(json.dumps({"do": "filter"}).encode())
        return Filter.recv(connection)


def show_all() -> list[Message]:
    """What every holder of this user shows; of one that does not answer its name and ``error``."""
    found: list[Message] = []
    for name in names.in_use(names.HOLDER):
        try:
            found.append(ask(name, {"do": "show"}, 5.0))
        except ReclaimError as error:
            # What one that was killed left is replaced by who takes the name; others end while they are asked.
            if error.errno not in (errno.ENOENT, errno.ECONNRESET, errno.EPIPE):
                found.append({"name": name, "error": str(error.args[1])})
    return found


def _connect(name: str, timeout: float | None) -> socket.socket:
    path: Path = names.path_of(name, names.HOLDER)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        # A timeout of Python's would not wait where many connect.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(_CONNECT))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _timeval(timeout or 0))
        connection.connect(str(path))
        _, uid = _peer(connection)
        if uid not in (os.geteuid(), 0):
            raise ReclaimError(errno.EPERM, f"holder {name!r} belongs to user {uid}, and this is user {os.geteuid()}")
    except BaseException as error:
        connection.close()
        if isinstance(error, (FileNotFoundError, ConnectionRefusedError)):
            raise ReclaimError(errno.ENOENT, f"nobody holds {name!r}; `pyseccomp activate --list` shows who is there") from None
        if isinstance(error, BlockingIOError):
            raise ReclaimError(errno.ETIMEDOUT, f"holder {name!r} does not answer") from None
        raise
    return connection


def _timeval(seconds: float) -> bytes:
    return struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))


# ---------------------------------------------------------- errors on their way


def pack(error: Exception) -> Message:
    """Put an error into a message."""
    text = str(error.args[1]) if isinstance(error, OSError) and len(error.args) > 1 else str(error)
    return {
        "class": type(error).__name__,
        "errno": error.errno if isinstance(error, OSError) else None,
        "text": text,
        "notes": list(getattr(error, "__notes__", [])),
    }


def unpack(message: Message) -> Message:
    """Raise the error that a message holds, as its own class; return one that holds none."""
    told = message.get("error")
    if not isinstance(told, dict):
        return message
    kind = getattr(errors, str(told.get("class")), None)
    text, number = str(told.get("text")), told.get("errno")
    error: Exception
    if told.get("class") in ("ValueError", "TypeError"):
        error = ValueError(text)
    elif isinstance(kind, type) and issubclass(kind, OSError) and issubclass(kind, SeccompError):
        error = kind(number, text)
    elif isinstance(kind, type) and issubclass(kind, SeccompError):
        error = kind(text)
    else:
        error = KernelError(number or errno.EIO, f"{told.get('class')}: {text}")
    for note in told.get("notes", []):
        error.add_note(str(note))
    raise error


# -------------------------------------------------------------- in the background


@dataclasses.dataclass
class Background:
    """A holder to be started in a process of its own."""

    name: str
    filter: dict[str, Any]
    """Arguments of Filter()."""
    responder: Responder
    pid: int | None
    how: Message

    def open(self) -> Holder:
        """Make the filter and the holder, here; nothing is attached yet."""
        filter = Filter(**self.filter)
        try:
            return Holder(self.name, filter, self.responder)
        except BaseException:
            filter.close()
            raise

    def start(self) -> Message:
        """Fork a process that holds, with a session of its own and none of our descriptors; return what it shows when ready.

        Interrupted before, it leaves nothing behind: the process gives up what it can (what is in the kernel stays, and is held).
        Raises what it raised.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        child = os.fork()
        if child == 0:
            try:
                ours.close()
                self._live(theirs)
            finally:
                os._exit(1)
        theirs.close()
        with ours:
            try:
                message = self._ready(ours)
                signal.signal(signal.SIGINT, signal.SIG_IGN)  # from here on it is held, and the command only has to say so
                with contextlib.suppress(OSError) if message["kept"] else contextlib.nullcontext():
                    ours.send(b"k")
                return message
            except KeyboardInterrupt as interrupt:
                ours.shutdown(socket.SHUT_WR)
                with contextlib.suppress(SeccompError, OSError, ValueError):
                    if self._ready(ours)["kept"]:
                        interrupt.add_note(f"too late: the filter is in the kernel, and held as {self.name!r}")
                    else:
                        ours.recv(1)  # its end
                raise

    def _ready(self, ours: socket.socket) -> Message:
        data = ours.recv(MAX_ANSWER)
        if not data:
            raise ReclaimError(errno.ECONNRESET, f"holder {self.name!r} died before it was ready")
        return unpack(json.loads(data))

    def _live(self, theirs: socket.socket) -> None:
        """In the child: be the holder."""
        with socket.socket(fileno=fcntl.fcntl(theirs.fileno(), fcntl.F_DUPFD_CLOEXEC, 3)) as starter:
            theirs.close()
            detach_from_terminal(starter.fileno())
            try:
                holder = self.open()
                try:
                    with serving_signals(holder):
                        if self._begin(holder, starter):
                            starter.close()
                            holder.run()
                finally:
                    holder.close()
            except Exception as error:
                fail(starter, error)

    def _begin(self, holder: Holder, starter: socket.socket) -> bool:
        """Attach, and tell; False if who started it has left before it mattered."""
        kept = False
        if self.pid is not None and not _left(starter):
            kept = left_in_kernel(holder.attach(self.pid, self.how))
        with contextlib.suppress(OSError):
            starter.send(json.dumps({**holder.show(), "kept": kept}).encode())
        if kept or (select.select([starter], [], [], 5 * PATIENCE)[0] and starter.recv(1) == b"k"):
            return True
        for attachment in holder.filter.attachments:
            give_up(attachment)
        return False


def _left(theirs: socket.socket) -> bool:
    return bool(select.select([theirs], [], [], 0)[0])


def detach_from_terminal(*keep: int) -> None:
    """Take a session of our own, close all descriptors but these, and leave the directory, which may have to be unmounted."""
    os.setsid()
    os.chdir("/")
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    null = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):
        os.dup2(null, fd)
    at = 3
    for fd in sorted(set(keep)):
        os.closerange(at, fd)
        at = fd + 1
    os.closerange(at, _MAX_FD)


@contextlib.contextmanager
def serving_signals(holder: Holder) -> Iterator[list[int]]:
    """Let SIGTERM, SIGINT and SIGHUP end a holder's run(); gives those that came."""
    came: list[int] = []

    def handle(number: int, _: object) -> None:
        came.append(number)
        holder.stop()

    before = [(number, signal.signal(number, handle)) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]
    previous = signal.set_wakeup_fd(holder.wake_fd, warn_on_full_buffer=False)
    try:
        yield came
    finally:
        signal.set_wakeup_fd(previous)
        for number, handler in before:
            signal.signal(number, handler)
