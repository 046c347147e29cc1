"""Real filters in real processes: never in pytest's own, each with a deadline, its whole process group killed after it."""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

VICTIMS = Path(__file__).parent / "victims"
SLOW = float(os.environ.get("PYSECCOMP_SLOW", "1"))
"""How many times slower than usual this machine is: an emulated one (.ci/debian-kernel)."""
DEADLINE = 30.0 * SLOW


class ChildFailed(AssertionError):
    """The child raised, died or overran; the text says which."""


def _kill_group(pgid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pgid, signal.SIGKILL)


def in_child(function: Callable[..., Any], *args: Any, timeout: float = DEADLINE, dies_of: int | None = None) -> Any:
    """Call function(*args) in a forked child of its own process group and return what it returned.

    An exception there is raised here as ChildFailed with its traceback. dies_of: the signal that must kill the child.
    """
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.setpgid(0, 0)
            os.close(reader)
            try:
                answer = (True, function(*args))
            except BaseException:
                answer = (False, traceback.format_exc())
            with os.fdopen(writer, "wb") as out:
                out.write(pickle.dumps(answer))
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with contextlib.suppress(PermissionError, ProcessLookupError):
        os.setpgid(pid, pid)
    try:
        data = _read_all(reader, timeout)
    finally:
        os.close(reader)
        _kill_group(pid) if dies_of is None else None
        end = _wait(pid, timeout)
        _kill_group(pid)
    if dies_of is not None:
        if end == -dies_of:
            return None
        raise ChildFailed(f"expected death by signal {dies_of}, got {end}: {data[:2000]!r}")
    if not data:
        raise ChildFailed(f"the child ended without an answer (status {end}; -9 can be the deadline of {timeout} s)")
    good, value = pickle.loads(data)
    if not good:
        raise ChildFailed(value)
    return value


def _read_all(fd: int, timeout: float) -> bytes:
    """Read to the end of file, or as far as the deadline allows."""
    end, data = time.monotonic() + timeout, b""
    while (left := end - time.monotonic()) > 0 and select.select([fd], [], [], left)[0]:
        chunk = os.read(fd, 1 << 16)
        if not chunk:
            break
        data += chunk
    return data


def _wait(pid: int, timeout: float) -> int:
    """Wait for pid through a pidfd; kill its group at the deadline. Returns as subprocess does: -signal or exit code."""
    pidfd = os.pidfd_open(pid)
    try:
        if not select.select([pidfd], [], [], timeout)[0]:
            _kill_group(pid)
    finally:
        os.close(pidfd)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def build_victim(name: str, *flags: str) -> Path:
    """Compile tests/victims/NAME.c (NAME.go with go build) once per source and flags; the path of the program."""
    source = next(VICTIMS / f"{name}{end}" for end in (".c", ".go") if (VICTIMS / f"{name}{end}").exists())
    out = VICTIMS / "build" / "-".join([name, *(f.strip("-") for f in flags)])
    if not out.exists() or out.stat().st_mtime < source.stat().st_mtime:
        out.parent.mkdir(exist_ok=True)
        scratch = out.with_suffix(f".{os.getpid()}")
        if source.suffix == ".go":
            command = ["go", "build", "-o", str(scratch), str(source)]
        else:
            command = ["cc", "-O1", "-g", "-Wall", "-Wextra", "-pthread", *flags, "-o", str(scratch), str(source)]
        subprocess.run(command, check=True)
        scratch.rename(out)
    return out


class Victim(subprocess.Popen[str]):
    """A process to attach to: its own process group, line-buffered pipes, a deadline on everything waited for."""

    _ahead = b""

    def line(self, timeout: float = DEADLINE) -> str:
        """Return the next line of its output; fails when none comes in time.

        What came with it waits here: select() would not see it in the pipe's own buffer.
        """
        assert self.stdout is not None
        end = time.monotonic() + timeout
        while b"\n" not in self._ahead:
            if not select.select([self.stdout], [], [], max(0.0, end - time.monotonic()))[0]:
                raise ChildFailed(f"no line from {self.args} within {timeout} s")
            chunk = os.read(self.stdout.fileno(), 1 << 16)
            if not chunk:
                raise ChildFailed(f"{self.args} ended (status {self.wait(5)}) where a line was expected")
            self._ahead += chunk
        text, _, self._ahead = self._ahead.partition(b"\n")
        return text.decode()

    def tell(self, text: str) -> None:
        """Write one line to its input."""
        assert self.stdin is not None
        self.stdin.write(text + "\n")
        self.stdin.flush()


@contextlib.contextmanager
def victim(*argv: str | Path, ready: str | None = "ready", **options: Any) -> Iterator[Victim]:
    """Run argv as a Victim, wait for its ready line, and kill its process group in the end."""
    process = Victim(
        [str(a) for a in argv], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, process_group=0, **options
    )
    try:
        if ready is not None:
            assert process.line() == ready
        yield process
    finally:
        _kill_group(process.pid)
        process.wait(10)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def descriptors() -> set[str]:
    """The numbers of this process's open descriptors, without those that only garbage still holds."""
    gc.collect()
    return set(os.listdir("/proc/self/fd"))


def status_field(pid: int, name: str, tid: int | None = None) -> str:
    """One field of /proc/PID/status, or of one thread."""
    path = f"/proc/{pid}/status" if tid is None else f"/proc/{pid}/task/{tid}/status"
    for line in Path(path).read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return value.strip()
    raise KeyError(name)
