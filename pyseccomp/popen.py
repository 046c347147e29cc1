"""Start programs that are filtered from their first instruction."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pyseccomp import executable, shortage
from pyseccomp.attach import Attachment, check_arch
from pyseccomp.triggers import Spawn

if TYPE_CHECKING:
    import asyncio.subprocess

    from pyseccomp.filter import Filter


def _check(activate_on: str) -> None:
    if activate_on != "exec":
        raise ValueError(f"Popen: activate_on is 'exec', got {activate_on!r}; for other moments start it, then Filter.attach()")


def check_command(filter: Filter, args: Any, options: Mapping[str, Any]) -> None:
    """Refuse a program of an architecture for which the filter has no rules, where that can be known. For this package only."""
    check_arch(filter, executable.arch_of_command(args, options), "start a program under a filter", "the program")


class Popen(subprocess.Popen[Any]):
    """A :class:`subprocess.Popen` whose program is under a filter from its first instruction.

    All arguments, errors and methods are those of subprocess; the filter may deny execve itself, because the execve that
    starts the program is over when it comes into force. No preexec_fn, so it is safe with threads: the calling thread is
    traced by a process of the core until it has forked, and the child from birth to exec. Without a filter it is a plain
    subprocess.Popen.

    When the program cannot be filtered it is killed before its first instruction, and the error raised. The listener of
    a filter that notifies is there on return.

    A program of an architecture for which the filter has no rules is not started (see :attr:`Filter.foreign_arch`): its first call
    would mostly be its end. Scripts count as their interpreters; what only the start shows is not noticed.

    Raises as subprocess.Popen; UnsupportedError where this process may not be traced; AttachError.
    """

    attachment: Attachment | None = None
    """The filter on this process, owned by the filter; None without one."""

    def __init__(
        self,
        args: Any,
        *positional: Any,
        filter: Filter | None = None,
        activate_on: Literal["exec"] = "exec",
        no_new_privs: bool | Literal["auto"] = "auto",
        timeout: float = 5.0,
        **options: Any,
    ) -> None:
        _check(activate_on)
        if filter is None:
            super().__init__(args, *positional, **options)
            return
        check_command(filter, args, options)
        with shortage.told("start a filtered program"):
            spawn = Spawn(filter, no_new_privs, timeout)
            try:
                super().__init__(args, *positional, **options)
            except BaseException:
                spawn.abandon()
                raise
        try:
            self.attachment = spawn.finish(self.pid)
        except BaseException:
            self.kill()
            for pipe in (self.stdin, self.stdout, self.stderr):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
            self.wait()
            raise


async def create_subprocess_exec(
    *args: Any,
    filter: Filter | None = None,
    activate_on: Literal["exec"] = "exec",
    no_new_privs: bool | Literal["auto"] = "auto",
    timeout: float = 5.0,
    **options: Any,
) -> asyncio.subprocess.Process:
    """Start a program as :func:`asyncio.create_subprocess_exec` does, under a filter as :class:`Popen` does.

    The attachment is the last of ``filter.attachments``. asyncio forks before it waits for anything: the child is this
    one's.
    """
    import asyncio  # not at the head: it loads OpenSSL, whose exit handler makes calls that a filter may forbid

    _check(activate_on)
    if filter is None:
        return await asyncio.create_subprocess_exec(*args, **options)
    check_command(filter, args, options)
    spawn = Spawn(filter, no_new_privs, timeout)
    try:
        process = await asyncio.create_subprocess_exec(*args, **options)
    except BaseException:
        spawn.abandon()
        raise
    try:
        await asyncio.get_running_loop().run_in_executor(None, spawn.finish, process.pid)
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        raise
    return process
