"""Open files on behalf of targets: what a policy can really decide by a path.

To look at the path of a notified ``openat`` and then allow it decides nothing: the path can change in between, and what it
leads to as well. Here the file is opened for the target, and the target gets the descriptor. The path means what it means
to the target (its root, directory and dirfd, its ``/proc/self``). The rights are the target's: all of its ids, groups,
capabilities in its user namespace, its namespaces, no_new_privs, the label of a security module and umask are taken on first.
The object is found next, without any effect on it. Decide by what was found (:meth:`Opening.is_within`, ``fstat`` of
:attr:`Opening.object`), never by a path; exactly that is then opened.

A small process of the core does this, one for this process, that is started with the first call. It makes a process for
each call. Where the ids or namespaces of the target are others than this process's, it needs CAP_SETUID, CAP_SETGID or
CAP_SYS_ADMIN, and this process needs the right to ptrace the target. What cannot be taken on refuses the call.

``csrc/psc.h`` ("opening") lists what differs from the kernel: magic links of procfs (``/proc/self/fd/N``, ``/dev/stdin``)
are ELOOP, ``/dev/tty`` is ENXIO, FIFOs without O_NONBLOCK are EOPNOTSUPP, and so is O_PATH, which the kernel does not hand
over. Devices are refused to a target whose cgroup may have a device policy that this process has not, but for
``/dev/null`` and its like. The target's Landlock domains cannot be seen and are not taken on: do not combine them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from pyseccomp import _core, shortage
from pyseccomp.embed import get_guardian
from pyseccomp.errors import (
    KernelError,
    NotificationError,
    NotificationGoneError,
    NotPermittedError,
    OpenDeniedError,
    ShortageError,
    UnsupportedError,
)
from pyseccomp.owned import Owned

if TYPE_CHECKING:
    from pyseccomp.notify import Notification

StrPath = str | os.PathLike[str]
Directory = StrPath | int

_TRIES = 32

_WHY = {
    errno.EOPNOTSUPP: "it is not open, openat, openat2 or creat",
    errno.EPERM: "this process may not look into the task (ptrace), or the process that opens may not take on its ids, groups "
    "and capabilities (CAP_SETUID, CAP_SETGID), or lacks a capability of the task without which the kernel denied it",
    errno.EXDEV: "the process that opens may not enter the namespaces of the task (CAP_SYS_ADMIN)",
    errno.EACCES: "the process that opens may not take on the security label of the task (/proc/PID/attr/current)",
    errno.ENODEV: "it is a device, and the task is in another cgroup, whose device policy would not be asked",
    errno.ECHILD: "the sysctl fs.suid_dumpable is 1 or cannot be read, so that the task could trace the process that opens; set it "
    "to 0 or 2",
    errno.ETOOMANYREFS: "the task's user has more descriptors in flight (SCM_RIGHTS) than RLIMIT_NOFILE allows",
    errno.ECANCELED: "the process that opens for the task was killed, perhaps by the task itself",
    errno.ESRCH: "the task cannot be seen from this pid namespace",
    errno.E2BIG: "the task has more than 1024 groups",
    errno.ETIMEDOUT: "a file system did not answer in time",
}


_NOT_PERMITTED = {errno.EPERM, errno.EXDEV, errno.EACCES, errno.ENODEV, errno.ECHILD}


class _Opener:
    """The connection to the process that opens, of this process: a forked child makes its own.

    A thread that uses the connection holds a reference, so that no other thread closes it meanwhile.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket: _core.Fd | None = None
        self._owner = -1

    def get(self) -> _core.Fd:
        with self._lock:
            if self._socket is None or self._owner != os.getpid():
                try:
                    self._socket = _core.opener_start(os.fsencode(get_guardian()))
                except OSError as error:
                    raise UnsupportedError(
                        error.errno, f"starting the process that opens files, {get_guardian()}: {error.strerror}"
                    ) from None
                self._owner = os.getpid()
            return self._socket

    def drop(self, socket: _core.Fd) -> None:
        """It is dead; the next one is another."""
        with self._lock:
            if self._socket is socket:
                self._socket = None

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
        """A name for messages, which decides nothing: where that is now, as the kernel names it (readlink of /proc/self/fd).

        It is a text of the target's mounts: a target that can mount, or that has a detached tree (open_tree), gives any
        object any path. Decide by :meth:`is_within`. For a target in a chroot the path is below its root. A file without
        a name any more ends with " (deleted)"; a path of 4096 bytes and more is "(too long)".
        """
        try:
            found = os.readlink(f"/proc/self/fd/{self.object}")
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            return "(too long)"
        name = self._opening.name
        return found if name is None else os.path.join(found, os.fsdecode(name))

    def is_within(self, directory: Directory) -> bool:
        """Tell whether the object, or the directory in which it is to be made, is ``directory`` or below it.

        That is judged by identity. A directory on the way up from the object must be ``directory`` by device and inode,
        and the names from there must lead to the same object again in the mounts of this process, without links. So
        mounts of the target count for nothing. The target's mount may not be laxer (read-only, noexec, nodev,
        nosuid) than the one that this process sees. Of hard links, the name that the target used is judged. An unlinked
        object is nowhere below, nor is one that this process may not look at (another user's FUSE). A rename after this call changes nothing: what was judged is what is opened.

        Args:
            directory: an absolute path as this process sees it, without links in it: of a container's target, the
                directory of the host that the container shows under whatever name. A target must not be able to rename
                a part of this path. Or a descriptor of a directory, which stays yours: below it counts what its own
                mounts show; one that was opened through ``/proc/PID/root`` has the mounts of that process.

        Raises:
            ValueError: the path is not absolute, or the opening is over.
            NotPermittedError, NotificationError, KernelError: the directory cannot be opened (ELOOP: a link is in its path),
                or a file system did not answer in time.
        """
        self._check_open("is_within")
        path, fd = _directory(directory)
        r = self._opening.within(_opener.get().fileno(), fd, path)
        if r < 0:
            _raise_within(-r, self._what, directory)
        return bool(r)

    def finish(self) -> int:
        """Open it, truncate or make it as was asked; a descriptor of this process, CLOEXEC and yours to close.

        Raises:
            OpenDeniedError: the kernel denied it to the target's rights; ``errno`` is for the target. EAGAIN may also
                mean that another process has made the file since: begin again.
        """
        return self._finish().detach()

    def _finish(self) -> _core.Fd:
        self._check_open("finish")
        r, opened = self._opening.finish()
        if r == -errno.EAGAIN:
            raise _MadeMeanwhileError(errno.EAGAIN, f"{self._what}: what was to be made is there now; begin again")
        _check(r, self._what)
        return opened

    def close(self) -> None:
        """Give it up. Idempotent; nothing was done to the object."""
        self._opening.close()

    def __repr__(self) -> str:
        return "<Opening over>" if self.closed else f"<Opening {self.path!r} flags={self.flags:#x}>"


class _MadeMeanwhileError(OpenDeniedError):
    pass


Allowed = Callable[[Opening], object]


def _directory(directory: Directory) -> tuple[bytes | None, int]:
    """The path or the descriptor, the other one None or -1."""
    if isinstance(directory, int):
        if directory < 0:
            raise ValueError(f"a descriptor of a directory is not negative, got {directory}")
        return None, directory
    path = os.fsencode(directory)
    if not os.path.isabs(path):
        raise ValueError(f"within is an absolute path or a descriptor, got {os.fspath(directory)!r}")
    if b"\0" in path:
        raise ValueError(f"a path has no NUL in it, got {os.fspath(directory)!r}")
    return path, -1


def _raise_within(error: int, what: str, directory: Directory) -> NoReturn:
    where = f"{what}: whether it is within {directory!r}"
    if error in (errno.ETIMEDOUT, errno.ECANCELED):
        raise NotificationError(error, f"{where}: {_WHY[error]}")
    hint = "; give the path without links (os.path.realpath), or a descriptor" if error == errno.ELOOP else ""
    kind = NotPermittedError if error in (errno.EPERM, errno.EACCES) else KernelError
    raise kind(error, f"{where}: {os.strerror(error)}{hint}")


def _check(r: int, what: str) -> None:
    if r > 0:
        raise OpenDeniedError(r, f"{what}: {os.strerror(r)}")
    if r == 0:
        return
    why = _WHY.get(-r, os.strerror(-r))
    if -r == errno.EOPNOTSUPP:
        raise UnsupportedError(-r, f"{what}: {why}")
    if -r in _NOT_PERMITTED:
        raise NotPermittedError(-r, f"{what}: {why}")
    if -r in _WHY:
        raise NotificationError(-r, f"{what}: {why}")
    if -r in shortage.WANTS:
        raise ShortageError(-r, f"{what}: {shortage.WANTS[-r]}")
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
        r, opening = n._open_begin(socket.fileno(), int(timeout * 1e9))
        if r != -errno.EPIPE:
            break
        _opener.drop(socket)
    _check(r, what)
    assert opening is not None
    return Opening(opening, what)


def open_for(
    n: Notification, *, allowed: Allowed | None = None, within: Directory | None = None, timeout: float = 5.0
) -> int:
    """Open for the target what it asked for; a descriptor of this process, CLOEXEC and yours to close.

    Args:
        allowed: called with the :class:`Opening`; what is not true denies with EACCES. It may raise OpenDeniedError.
        within: a directory; what :meth:`Opening.is_within` tells to be neither it nor below it is denied.
        timeout: seconds that a file system may take, in each step.

    Raises: as :meth:`Opening.is_within`, :func:`begin_open` and :meth:`Opening.finish`. The call still waits for an answer then.
    """
    return _open(n, allowed, within, timeout)[0].detach()


def _open(n: Notification, allowed: Allowed | None, within: Directory | None, timeout: float) -> tuple[_core.Fd, int]:
    """The descriptor, and the flags of the call."""
    if within is not None:
        _directory(within)
    for _ in range(_TRIES):
        with begin_open(n, timeout=timeout) as opening:
            if (within is not None and not opening.is_within(within)) or (allowed is not None and not allowed(opening)):
                raise OpenDeniedError(errno.EACCES, f"open for task {n.pid}: {opening.path!r} is not allowed")
            try:
                return opening._finish(), opening.flags
            except _MadeMeanwhileError:
                continue
    raise OpenDeniedError(errno.EAGAIN, f"open for task {n.pid}: other processes make and remove that file all the time")


def emulate_open(
    n: Notification, *, allowed: Allowed | None = None, within: Directory | None = None, timeout: float = 5.0
) -> None:
    """Answer a trapped open, openat, openat2 or creat: open the file for the target and give it the descriptor.

    A function for ``Responder.on``. What may not be opened fails as the kernel would have it, what ``allowed`` and
    ``within`` exclude with EACCES; see :meth:`Opening.is_within`. If it could not be tried, the call fails with EPERM and the error
    is raised. If the call is over meanwhile, nothing is left to answer.
    """
    try:
        opened, flags = _open(n, allowed, within, timeout)
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
        opened.close()
        _deny(n, errno.EOPNOTSUPP)
        return
    try:
        n.add_fd(opened, cloexec=bool(flags & os.O_CLOEXEC), send=True)
    except NotificationGoneError:
        pass
    except NotificationError as error:  # EMFILE: the target has no number left
        _deny(n, error.errno or errno.EPERM)
    finally:
        opened.close()


def _deny(n: Notification, error: int) -> None:
    with contextlib.suppress(NotificationGoneError):
        n.deny(error)
