"""Watch the system calls of processes: every notified call is let run and counted in C, and recorded if wanted.

A notification comes at the entry of a call. So what is seen is which calls are made, by whom, with which arguments;
results are not, and of a call's duration only an upper bound is known: the time until the same thread's next
traced call. In return a call that is not traced costs nothing, and one that is costs two switches of context, where
ptrace takes four. Which calls failed is asked of a tracepoint beside (:mod:`pyseccomp.results`), where that is allowed.

Nothing takes a filter out of the kernel again. A process that was traced goes on being asked about for its life: after
:meth:`Tracer.close`, and when the tracer dies, a guardian answers "run it".
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import struct
import threading
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Final

from pyseccomp import _core, cli_run, decode, groups, shortage, syscalls
from pyseccomp.actions import ALLOW, NOTIFY
from pyseccomp.attach import Target
from pyseccomp.errors import PolicyError, SeccompError
from pyseccomp.filter import Filter
from pyseccomp.owned import Owned
from pyseccomp.policy import Policy
from pyseccomp.program import Program
from pyseccomp.results import Failures
from pyseccomp.syscalls import Arch, local_arches

RING: Final = 1 << 21
_HEAD: Final = struct.Struct("=IiqIi6Q")
_CAPTURE: Final = struct.Struct("=BBH")
_RETURN_NOTIFY: Final = struct.pack("=HBBI", 6, 0, 0, int(NOTIFY))
_BEGIN: Final = ("execve", "execveat")
_END: Final = ("exit", "exit_group")
_CLASSES: Final = {"%network": "@network-io", "%net": "@network-io", "%process": "@process", "%ipc": "@ipc", "%signal": "@signal"}
_GATHER: Final = 0.005


def arch_of(token: int, nr: int) -> Arch:
    """Return the ABI of a call, x32 told from x86_64."""
    arch = Arch.of(token)
    return Arch.X32 if arch is Arch.X86_64 and nr & syscalls.X32_BIT else arch


def call_name(token: int, nr: int) -> str:
    """Return the name of a call, or ``syscall_N`` where it has none."""
    return syscalls.name(nr & 0xFFFFFFFF, arch_of(token, nr)) or f"syscall_{nr & 0xFFFFFFFF:#x}"


def select_calls(expression: str) -> frozenset[str]:
    """Return the calls that an expression like strace's names: ``trace=openat,%network``, ``!futex``, ``all``, ``@group``.

    Raises:
        UnknownSyscallError: no such call or group. PolicyError: an expression of another kind.
    """
    text = expression.removeprefix("trace=").removeprefix("t=")
    every = frozenset(name for arch in local_arches() for name in syscalls.names(arch))
    if "=" in text:
        raise PolicyError(f"-e {expression}: only trace=... is known: results, signals and faults are not seen by notifications")
    negated = text.startswith("!")
    found: set[str] = set()
    for word in text.removeprefix("!").split(","):
        if word == "all":
            found |= every
        elif word == "%file":
            found |= decode.with_paths() & every
        elif word in _CLASSES or word.startswith("@"):
            found |= set(groups.members(_CLASSES.get(word, word))) & every
        elif word.startswith("%"):
            raise PolicyError(f"-e {expression}: unknown class {word}; known: %file, {', '.join(_CLASSES)}, and systemd's @groups")
        elif word not in every:
            syscalls.syscall_index(word)
            raise PolicyError(f"-e {expression}: {word} is no system call of {', '.join(a.value for a in local_arches())}")
        else:
            found.add(word)
    chosen = every - found if negated else frozenset(found)
    if not chosen:
        raise PolicyError(f"-e {expression}: nothing is left to trace")
    return chosen


def build_program(calls: Collection[str] | None) -> Program:
    """Make the filter that notifies those calls and execve (None: all calls), on every ABI that runs here."""
    if calls is None:
        return Program.from_bytes(_RETURN_NOTIFY)
    arches = local_arches()
    policy = Policy(ALLOW, arches, bad_arch=ALLOW, multiplexed="separate")
    for arch in arches:
        known = set(syscalls.names(arch))
        for name in sorted({*calls, *_BEGIN} & known):
            policy.add(NOTIFY, name, arch=arch)
    return policy.compile()


@dataclass(frozen=True, slots=True)
class CallCount:
    """How often a call was made, and how long until its thread's next traced call."""

    arch: Arch | None
    """None for the calls beyond the 1024 that are told apart."""
    name: str
    nr: int
    count: int
    mean_until_next_ns: float | None
    """No less than the call took on average; None when no thread made another call after it."""
    longest_until_next_ns: int
    errors: int | None = None
    """How many of them failed; None where that is not known (:attr:`Tracer.errors_unknown`)."""


@dataclass(frozen=True, slots=True)
class ThreadCount:
    """How many calls a thread made, and what the last one was (None after its end)."""

    tid: int
    count: int
    last: str | None
    since_ns: int
    """When that was let run, on the monotonic clock."""


@dataclass(frozen=True, slots=True)
class Call:
    """One recorded call. ``memory`` maps an argument's index to what it points to, and whether that is all of it."""

    tid: int
    time_ns: int
    """On the monotonic clock, when it was received."""
    arch: Arch
    name: str
    nr: int
    args: tuple[int, ...]
    memory: dict[int, tuple[bytes, bool]]

    def __str__(self) -> str:
        return decode.format_call(self.name, self.arch, self.args, self.memory)


def parse_records(data: bytes) -> list[Call]:
    """Take records of the C loop apart."""
    calls, at = [], 0
    names: dict[tuple[int, int], tuple[Arch, str]] = {}
    while at < len(data):
        size, tid, ns, token, nr, *args = _HEAD.unpack_from(data, at)
        place = at + _HEAD.size
        at += size
        memory: dict[int, tuple[bytes, bool]] = {}
        while place < at and data[place]:
            index, what, length = _CAPTURE.unpack_from(data, place)
            place += _CAPTURE.size
            if what < 2:
                memory[index & 0x7F] = data[place : place + length], what == 0
            place += length
        known = names.get((token, nr))
        if known is None:
            known = names[token, nr] = arch_of(token, nr), call_name(token, nr)
        calls.append(Call(tid, ns, *known, nr, tuple(args), memory))
    return calls


class Tracer(Owned):
    """Traces processes: one that it starts, or running ones, each with the threads, forks and programs that come of it.

    calls: the names to trace, None for all. records: keep each call for :meth:`follow` to hand out. watched: calls mapped
    to the argument whose values are kept (:meth:`values`). snap: bytes of memory to record of one argument. errors: count
    the calls that fail, where this process may know.

    Whoever supervises a process can change nothing here: every call is let run. A guardian process goes on doing so when
    this one is dead; without it (it could not be started) tracing is refused.
    """

    _filter: Filter | None = None

    @shortage.told("trace")
    def __init__(
        self,
        calls: Collection[str] | None = None,
        *,
        records: bool = False,
        watched: dict[str, int] | None = None,
        snap: int = 64,
        from_exec: bool = False,
        errors: bool = False,
    ) -> None:
        self._names = calls
        self._wants_errors = errors
        self._failures: list[Failures] = []
        self._arch_of: dict[int, int] = {}
        self._specs = list(_specs(calls, watched or {}, records, from_exec))
        self._trace = _core.Trace(self._specs, snap, RING if records else 0)
        self._filter = Filter(build_program(calls))
        self._loop: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._child: int | None = None
        self._release: Callable[[], None] | None = None
        self._taken = threading.Lock()
        self.status: int | None = None
        """How the process that was started ended: its exit status, or -N for a signal."""

    @property
    def closed(self) -> bool:
        """True after :meth:`close`."""
        return self._filter is None or self._filter.closed

    @shortage.told("start a traced command")
    def launch(self, argv: list[str]) -> int:
        """Start a program, which waits for :meth:`follow`; its pid. Make the tracer with from_exec=True for this.

        Raises FileNotFoundError or PermissionError when there is no such program, and as :meth:`Filter.attach`.
        """
        self._check_open("launch")
        assert self._filter is not None
        program = shutil.which(argv[0])
        if program is None:
            there = "/" in argv[0] and os.path.exists(argv[0])
            number = errno.EACCES if there else errno.ENOENT
            raise OSError(number, os.strerror(number), argv[0])
        pid, self._release = cli_run.fork_stopped(argv, program)
        try:
            self._filter.attach(pid, on_supervisor_death="allow")
            self._watch_errors(pid)
        except BaseException:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise
        self._child = pid
        return pid

    @shortage.told("trace")
    def attach(self, target: Target) -> int:
        """Trace a running process, all its threads, and what they fork from now on; its pid. Raises as Filter.attach."""
        self._check_open("attach")
        assert self._filter is not None
        pid = self._filter.attach(target, on_supervisor_death="allow").pid
        self._watch_errors(pid)
        return pid

    def _watch_errors(self, pid: int) -> None:
        if self._wants_errors:
            self._failures.append(Failures(pid))

    @property
    def errors_unknown(self) -> str | None:
        """Why no failed calls are counted; None if they are."""
        if not self._failures:
            return "not asked for"
        return next((found.unknown for found in self._failures if found.unknown is not None), None)

    @property
    def errors_lost(self) -> int:
        """Failed calls that came too fast to be counted."""
        return sum(found.lost for found in self._failures)

    def _errors(self) -> dict[tuple[int, int], int] | None:
        """Failed calls by architecture and number; None: not known."""
        if self.errors_unknown is not None:
            return None
        self._arch_of.update((tid, token) for tid, token, *_ in self._trace.threads() if token)
        native, found = Arch.native().token, dict[tuple[int, int], int]()
        for failures in self._failures:
            failures.count()
            for (tid, nr), count in failures.counts.items():
                key = self._arch_of.get(tid, native), nr
                found[key] = found.get(key, 0) + count
        return found

    def follow(
        self,
        on_calls: Callable[[list[Call]], object] | None = None,
        on_tick: Callable[[], object] | None = None,
        interval: float = 1.0,
    ) -> None:
        """Trace until no traced task is left, or an exception (KeyboardInterrupt, of the callbacks) ends it; then close().

        on_calls gets the calls recorded so far; on_tick is called every interval seconds. Both run in the calling thread,
        while a thread of C code lets calls run. A slow on_calls makes targets wait once 2 MiB of records do.
        """
        self._check_open("follow")
        self._loop = threading.Thread(target=self._run, name="pyseccomp-trace", daemon=True)
        self._loop.start()
        if self._release is not None:
            self._release()
            self._release = None
        next_tick = time.monotonic() + interval
        while self._loop.is_alive():
            if on_calls is not None and self._trace.wait(100):
                time.sleep(_GATHER)  # one turn of Python for many calls
                on_calls(self.take())
            elif on_calls is None:
                self._loop.join(0.05)
            self._reap()
            for failures in self._failures:
                failures.count()
            if on_tick is not None and time.monotonic() >= next_tick:
                on_tick()
                next_tick = time.monotonic() + interval
        if on_calls is not None and (rest := self.take()):
            on_calls(rest)
        self._reap(wait=True)
        if self._failure is not None:
            raise self._failure

    def take(self) -> list[Call]:
        """Take the calls recorded since the last time."""
        with self._taken:
            return parse_records(self._trace.take())

    def _run(self) -> None:
        assert self._filter is not None
        try:
            self._trace.run(self._filter._inbox)
        except (SeccompError, OSError) as error:
            self._failure = error

    def _reap(self, wait: bool = False) -> None:
        if self._child is None:
            return
        pid, status = os.waitpid(self._child, 0 if wait else os.WNOHANG)
        if pid:
            self._child, self.status = None, os.waitstatus_to_exitcode(status)

    def close(self) -> None:
        """End tracing; targets that live go on, their traced calls answered by the guardian. Idempotent."""
        filter, self._filter = self._filter, None
        if filter is None:
            return
        self._trace.deaf()
        if self._loop is not None:
            if self._loop.is_alive():
                filter.stop()
            self._loop.join()
        filter.leave()
        for failures in self._failures:
            failures.close()
        if self._release is not None and self._child is not None:  # never let run: nothing has happened yet
            os.kill(self._child, signal.SIGKILL)
            self._reap(wait=True)

    # ---------------------------------------------------------------- accounts

    def counts(self) -> list[CallCount]:
        """Return the calls made so far, the most frequent first. Those that were not asked for are left out."""
        found = []
        errors = self._errors()
        for token, nr, count, timed, total, longest in self._trace.rows():
            name = call_name(token, nr) if token else "(others)"
            if self._names is None or name in self._names or not token:
                arch = arch_of(token, nr) if token else None
                failed = None if errors is None or not token else errors.get((token, nr), 0)
                found.append(CallCount(arch, name, nr, count, total / timed if timed else None, longest, failed))
        return sorted(found, key=lambda c: (-c.count, c.name))

    def threads(self) -> list[ThreadCount]:
        """Return the threads seen so far, the busiest first. A tid of 0 stands for those not told apart."""
        rows = self._trace.threads()
        found = [ThreadCount(tid, count, call_name(arch, nr) if arch else None, since) for tid, arch, nr, count, since in rows]
        return sorted(found, key=lambda t: (-t.count, t.tid))

    def values(self, arch: Arch, nr: int) -> list[int] | None:
        """Return the values seen of a watched call's argument (its low 32 bits); None if they were more than 16."""
        return self._trace.values(arch.token, nr)


def _specs(
    calls: Collection[str] | None, watched: dict[str, int], records: bool, from_exec: bool
) -> Iterable[tuple[int, int, bool, bool, bool, int, tuple[int, ...]]]:
    for arch in local_arches():
        for name in syscalls.names(arch):
            begins = from_exec and name in _BEGIN
            silent = calls is not None and name not in calls
            capture = decode.captures(name) if records else (0,) * 6
            watch = watched.get(name, -1)
            if begins or name in _END or silent and name in _BEGIN or any(capture) or watch >= 0:
                yield arch.token, syscalls.resolve(name, arch), begins, name in _END, silent, watch, capture


def comm(tid: int) -> str:
    """Return the name of a task, empty when it is gone."""
    with contextlib.suppress(OSError):
        with open(f"/proc/{tid}/comm", "rb") as file:
            return file.read().decode("utf-8", "surrogateescape").rstrip("\n")
    return ""


