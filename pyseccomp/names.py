"""The names by which guardians and holders are found: sockets in a directory that nobody else can write to."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from pyseccomp import _core
from pyseccomp.errors import ReclaimError

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_LEAVING = 2.0
_LOCKED = 5.0
_BACKLOG = 128
_MAX_PATH = 107

HOLDER = "@holder"
"""Behind a name, the socket of a holder; alone, that of a guardian. No name has an @."""


def check(name: str) -> None:
    """Refuse what is no name: ValueError."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"a name is 1 to 64 letters, digits, '_', '.' and '-', and begins with none of the last two: got {name!r}")


def path_of(name: str, kind: str = "") -> Path:
    """Where the socket of a name is; the directory is made, and checked."""
    check(name)
    path = _directory() / (name + kind)
    if len(os.fsencode(path)) > _MAX_PATH:
        raise ReclaimError(errno.ENAMETOOLONG, f"name {name!r}: {path} is too long for a socket; set XDG_RUNTIME_DIR")
    return path


def _directory() -> Path:
    uid = os.geteuid()
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and os.path.isabs(runtime):
        path = Path(runtime, "pyseccomp")
    elif os.access(f"/run/user/{uid}", os.W_OK | os.X_OK):
        path = Path(f"/run/user/{uid}/pyseccomp")
    elif uid == 0 and os.access("/run", os.W_OK):
        path = Path("/run/pyseccomp")
    else:
        path = Path(f"/tmp/pyseccomp-{uid}")
    try:
        path.mkdir(0o700)
    except FileExistsError:
        pass
    except OSError as error:
        raise ReclaimError(error.errno, f"making {path}, the directory of names: {error.strerror}") from None
    st = path.lstat()
    if not stat.S_ISDIR(st.st_mode) or st.st_uid != uid or st.st_mode & 0o077:
        raise ReclaimError(
            errno.EPERM, f"{path}, the directory of names, is not a directory of user {uid} with mode 0700; remove or repair it"
        )
    return path


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    fd = _core.own(os.open, directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        end = time.monotonic() + _LOCKED
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise ReclaimError(errno.EBUSY, f"{directory}, the directory of names, is locked by another process for {_LOCKED:.0f} s") from None
            time.sleep(0.01)
        yield
    finally:
        fd.close()


def take(name: str) -> _core.Fd:
    """Take a name: a listening socket for the guardian.

    Raises ReclaimError (EBUSY) while another guardian has it.
    """
    end = time.monotonic() + _LEAVING
    while True:
        fd = try_take(path_of(name))
        if fd is not None:
            return fd
        if time.monotonic() > end:
            raise ReclaimError(errno.EBUSY, f"name {name!r} is in use; ps.reclaim({name!r}) if its manager is dead")
        time.sleep(0.01)  # the last manager may have closed it just now, and its guardian be leaving


def try_take(path: Path) -> _core.Fd | None:
    """Listen there, or None while somebody does; what the dead left is replaced."""
    with _locked(path.parent):
        if _answers(path):
            return None
        path.unlink(missing_ok=True)
        return _bind(path)


def give_back(path: Path, inode: int) -> None:
    """Remove a socket, unless it is another's by now."""
    with contextlib.suppress(OSError), _locked(path.parent):
        if path.lstat().st_ino == inode:
            path.unlink()


def in_use(kind: str) -> list[str]:
    """The names that have such a socket, of the living or the dead."""
    found = (entry.removesuffix(kind) for entry in os.listdir(_directory()) if entry.endswith(kind))
    return sorted(name for name in found if _NAME.fullmatch(name))


def _answers(path: Path) -> bool:
    """False: nobody listens there any more."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except BlockingIOError:
            return True
        return True


def _bind(path: Path) -> _core.Fd:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.bind(str(path))
        sock.listen(_BACKLOG)
        return _core.own(sock.detach)
