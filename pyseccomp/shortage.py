"""Tell a shortage of this process or of the system as what it is, wherever it is met."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from typing import Final

from pyseccomp.errors import KernelError, SeccompError, ShortageError

WANTS: Final = {
    errno.EMFILE: "this process has no descriptor free; raise RLIMIT_NOFILE",
    errno.ENFILE: "the system has no descriptor free (fs.file-max)",
    errno.EAGAIN: "no process or thread can be made (RLIMIT_NPROC, or pids.max of the cgroup)",
    errno.ENOMEM: "there is no memory (RLIMIT_AS, the cgroup's limit, or the system's)",
    errno.ENOSPC: "the kernel has no room left for it",
    errno.ENOBUFS: "the kernel has no buffers left for it",
    errno.ETOOMANYREFS: "too many descriptors are under way in messages of this user",
}
"""What is wanting, and what to do, by errno."""


def of(error: BaseException, starts: bool = True) -> int:
    """The errno of a shortage that an exception tells of, or 0. starts: EAGAIN is of processes or threads."""
    if isinstance(error, OSError) and error.errno in WANTS and (starts or error.errno != errno.EAGAIN):
        return error.errno
    if isinstance(error, MemoryError):
        return errno.ENOMEM
    if type(error) is RuntimeError and str(error) == "can't start new thread":  # of threading
        return errno.EAGAIN
    return 0


@contextlib.contextmanager
def told(doing: str, *, starts: bool = True) -> Iterator[None]:
    """Raise ShortageError in place of an exception of Python's own that a shortage is behind.

    starts: the operation starts processes or threads, and EAGAIN says that there can be none; elsewhere it means "would block".
    """
    try:
        yield
    except KernelError as error:
        wanting = of(error, starts)
        if not wanting:
            raise
        raise ShortageError(wanting, f"{error.args[-1]}: {WANTS[wanting]}") from None
    except SeccompError:
        raise
    except (OSError, RuntimeError, MemoryError) as error:
        wanting = of(error, starts)
        if not wanting:
            raise
        raise ShortageError(wanting, f"{doing}: {WANTS[wanting]}") from error
