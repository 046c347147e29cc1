"""Open files on behalf of targets: what a policy can really decide by a path.

To look at the path of a notified ``openat`` and then allow it decides nothing: the path can change in between, and what it
leads to as well. Here the file is opened for the target, and the target gets the descriptor. The path means what it means
to the target (its root, directory and dirfd, its ``/proc/self``), rights are the target's (user, groups, capabilities,
umask), and the object is found first, without any effect on it. Decide by what was found (:attr:`Opening.path`, ``fstat`` of
:attr:`Opening.object`), never by what the target wrote; exactly that is then opened.

It is done by a small process of the core, one for this process, that is started with the first call. Where the user of
the target is another than this process's, that takes CAP_SETUID, CAP_SETGID and the right to ptrace it.

``csrc/psc.h`` ("opening") lists what differs from the kernel: magic links of procfs (``/proc/self/fd/N``, ``/dev/stdin``)
are ELOOP, ``/dev/tty`` is ENXIO, FIFOs without O_NONBLOCK are EOPNOTSUPP, and so is O_PATH, which the kernel lets nobody
hand over; Landlock domains and LSM labels of the target are not taken on.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from pyseccomp import _core
from pyseccomp.embed import get_guardian
from pyseccomp.errors import (
    KernelError,
    NotificationError,
    NotificationGoneError,
    NotPermittedError,
    OpenDeniedError,
    UnsupportedError,
)
from pyseccomp.owned import Owned

if TYPE_CHECKING:
    from pyseccomp.notify import Notification

StrPath = str | os.PathLike[str]

_TRIES = 32

_WHY = {
    errno.EOPNOTSUPP: "it is not open, openat, openat2 or creat",
    errno.EPERM: "this process may not look into the task (ptrace), or may not take its user, groups and capabilities on "
    "(CAP_SETUID, CAP_SETGID)",
    errno.ESRCH: "the task cannot be seen from this pid namespace",
    errno.E2BIG: "the task has more than 1024 groups",
    errno.ETIMEDOUT: "a file system did not answer in time",
}


class _Opener:
    """The connection to the process that opens, of this process: a forked child makes its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket = self._owner = -1

    def get(self) -> int:
        with self._lock:
            if self._socket >= 0 and self._owner != os.getpid():
                os.close(self._socket)
                self._socket = -1
            if self._socket < 0:
                try:
                    self._socket = _core.opener_start(os.fsencode(get_guardian()))
                except OSError as error:
                    raise UnsupportedError(
                        error.errno, f"starting the process that opens files, {get_guardian()}: {error.strerror}"
                    ) from None
                self._owner = os.getpid()
            return self._socket

    def drop(self, socket: int) -> None:
        """It is dead; the next one is another."""
        with self._lock:
            if self._socket == socket:
                os.close(socket)
                self._socket = -1

    def lock_for_fork(self) -> None:
        self._lock.acquire()

    def unlock_after_fork(self) -> None:
        self._lock.release()


_opener = _Opener()
os.register_at_fork(
    before=_opener.lock_for_fork, after_in_parent=_opener.unlock_after_fork, after_in_child=_opener.unlock_after_fork
)


class Opening(Owned):
    """What the call of a target leads to: found, pinned, and not opened yet. Made by :func:`begin_open`."""

    def __init__(self, opening: _core.Opening, what: str) -> None:
        self._opening = opening
        self._what = what

    @property
    def closed(self) -> bool:
        """True after :meth:`finish` and :meth:`close`."""
        return self._opening.object < 0

    @property
    def object(self) -> int:
        """An O_PATH descriptor, owned by this object: what was found, or the directory in which a file is to be made."""
        self._check_open("object")
        return self._opening.object

    @property
    def creates(self) -> bool:
        """True if the file is not there yet, and is to be made."""
        return self._opening.name is not None

    @property
    def flags(self) -> int:
        """The flags of the call, O_CLOEXEC among them."""
        return self._opening.flags

    @property
    def writes(self) -> bool:
        """True if the call could change anything: write, truncate, or make a file."""
        writing = bool(self.flags & (os.O_ACCMODE | os.O_TRUNC)) and not self.flags & os.O_PATH
        return self.creates or writing

    @property
    def path(self) -> str:
        """Where that is now, as the kernel names it to this process (readlink of /proc/self/fd).

        For a target in a chroot that is below its root; for one with other mounts, a path among those. A file without
        a name any more ends with " (deleted)".
        """
        found = os.readlink(f"/proc/self/fd/{self.object}")
        name = self._opening.name
        return found if name is None else os.path.join(found, os.fsdecode(name))

    def finish(self) -> int:
        """Open it, truncate or make it as was asked; a descriptor of this process, CLOEXEC and yours to close.

        Raises:
            OpenDeniedError: the kernel denied it to the target's rights; ``errno`` is for the target. EAGAIN may also
                mean that a file to be made was made by somebody else since: begin again.
        """
        self._check_open("finish")
        r, fd = self._opening.finish()
        if r == -errno.EAGAIN:
            raise _MadeMeanwhileError(errno.EAGAIN, f"{self._what}: what was to be made is there now; begin again")
        _check(r, self._what)
        return fd

    def close(self) -> None:
        """Give it up. Idempotent; nothing was done to the object."""
        self._opening.close()

    def __repr__(self) -> str:
        return "<Opening over>" if self.closed else f"<Opening {self.path!r} flags={self.flags:#x}>"


class _MadeMeanwhileError(OpenDeniedError):
    pass


Allowed = Callable[[Opening], object]


def _check(r: int, what: str) -> None:
    if r > 0:
        raise OpenDeniedError(r, f"{what}: {os.strerror(r)}")
    if r == 0:
        return
    why = _WHY.get(-r, os.strerror(-r))
    if -r == errno.EOPNOTSUPP:
        raise UnsupportedError(-r, f"{what}: {why}")
    if -r == errno.EPERM:
        raise NotPermittedError(-r, f"{what}: {why}")
    if -r in _WHY:
        raise NotificationError(-r, f"{what}: {why}")
    raise KernelError(-r, f"{what}: {why}")


def begin_open(n: Notification, *, timeout: float = 5.0) -> Opening:
    """Find what a trapped open, openat, openat2 or creat leads to, with the target's rights and no effect on it.

    timeout: seconds that a file system may take; each of begin and finish.

    Raises:
        OpenDeniedError: the call is to fail with ``errno``: no such file, no permission, a loop, a bad pointer, ...
        NotificationGoneError: the call is over.
        NotPermittedError: this process cannot look into the target, or not be like it.
        UnsupportedError: it is another system call.
        NotificationError: ETIMEDOUT and others; nothing was done.
    """
    if not 0 < timeout <= 3600:
        raise ValueError(f"a timeout is more than 0 and at most 3600 seconds, got {timeout}")
    what = f"open for task {n.pid}"
    for _ in range(2):
        socket = _opener.get()
        r, opening = n._open_begin(socket, int(timeout * 1e9))
        if r != -errno.EPIPE:
            break
        _opener.drop(socket)
    _check(r, what)
    assert opening is not None
    return Opening(opening, what)


def open_for(
    n: Notification, *, allowed: Allowed | None = None, within: StrPath | None = None, timeout: float = 5.0
) -> int:
    """Open for the target what it asked for; a descriptor of this process, CLOEXEC and yours to close.

    Args:
        allowed: called with the :class:`Opening`; what is not true denies with EACCES. It may raise OpenDeniedError.
        within: a directory, absolute and without links as this process sees it: what is not below is denied.

    Raises: as :func:`begin_open` and :meth:`Opening.finish`. The call still waits for an answer then.
    """
    return _open(n, allowed, within, timeout)[0]


def _open(n: Notification, allowed: Allowed | None, within: StrPath | None, timeout: float) -> tuple[int, int]:
    """The descriptor, and the flags of the call."""
    limit = None if within is None else os.fspath(within)
    if limit is not None and not os.path.isabs(limit):
        raise ValueError(f"within is an absolute path, got {limit!r}")
    for _ in range(_TRIES):
        with begin_open(n, timeout=timeout) as opening:
            if (limit is not None and not _below(opening, limit)) or (allowed is not None and not allowed(opening)):
                raise OpenDeniedError(errno.EACCES, f"open for task {n.pid}: {opening.path!r} is not allowed")
            try:
                return opening.finish(), opening.flags
            except _MadeMeanwhileError:
                continue
    raise OpenDeniedError(errno.EAGAIN, f"open for task {n.pid}: others make and remove that file all the time")


def emulate_open(
    n: Notification, *, allowed: Allowed | None = None, within: StrPath | None = None, timeout: float = 5.0
) -> None:
    """Answer a trapped open, openat, openat2 or creat: open the file for the target and give it the descriptor.

    A function for ``Responder.on``. What may not be opened fails as the kernel would have it, what ``allowed`` and
    ``within`` exclude with EACCES; see :func:`open_for`. If it could not be tried, the call fails with EPERM and the error
    is raised. A call that is over meanwhile is nobody's loss.
    """
    try:
        fd, flags = _open(n, allowed, within, timeout)
    except OpenDeniedError as error:
        _deny(n, error.errno or errno.EPERM)
        return
    except NotificationGoneError:
        _deny(n, errno.EPERM)  # marks it as over
        return
    except BaseException:
        _deny(n, errno.EPERM)
        raise
    if flags & os.O_PATH:
        os.close(fd)
        _deny(n, errno.EOPNOTSUPP)
        return
    try:
        n.add_fd(fd, cloexec=bool(flags & os.O_CLOEXEC), send=True)
    except NotificationGoneError:
        pass
    except NotificationError as error:  # EMFILE: the target has no number left
        _deny(n, error.errno or errno.EPERM)
    finally:
        os.close(fd)


def _deny(n: Notification, error: int) -> None:
    with contextlib.suppress(NotificationGoneError):
        n.deny(error)


def _below(opening: Opening, limit: str) -> bool:
    path = opening.path
    return path == limit or path.startswith(limit.rstrip("/") + "/")
