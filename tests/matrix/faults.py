"""Fault injection: each system call of each process of ours fails once, in every way that it can, and the target must not notice.

The manager is forked from a process that has imported everything; strace follows it and what it starts, from the moment before the
operation, and makes the N-th call of that name fail in each of them. The target is not under strace.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matrix import system
from matrix.askers import ASKERS
from matrix.cell import Kind, Outcome, Skip, _ends, _read, _Runner, _stack, _until
from matrix.operations import OPERATIONS
from matrix.places import PLACES
from matrix.run import run_processes, victims
from matrix.target import PATIENCE, Snapshot, snapshot

SCENARIOS = (
    "attach", "listen", "serve", "several", "tree", "cgroup", "gate", "exec", "fork", "park", "deadline", "checkpoint", "trace", "query",
    "emulate-open",
)  # fmt: skip
"""Operations; Popen is traced by a process of its own, and cannot be by strace."""

ERRNOS = {
    "accept4": "EMFILE ENFILE ECONNABORTED ENOBUFS EINTR",
    "bind": "EADDRINUSE EACCES",
    "clone": "EAGAIN ENOMEM",
    "clone3": "EAGAIN ENOMEM ENOSYS",
    "connect": "ECONNREFUSED EAGAIN EINTR ENOENT",
    "dup": "EMFILE",
    "dup2": "EMFILE EBUSY",
    "dup3": "EMFILE EBUSY EINTR",
    "epoll_create1": "EMFILE ENFILE ENOMEM",
    "epoll_ctl": "ENOMEM ENOSPC",
    "epoll_pwait": "EINTR",
    "epoll_pwait2": "EINTR ENOSYS EPERM",
    "epoll_wait": "EINTR",
    "eventfd2": "EMFILE ENFILE ENOMEM",
    "execve": "EACCES ENOENT ENOMEM EAGAIN",
    "execveat": "EACCES ENOENT ENOMEM EAGAIN ENOSYS",
    "fcntl": "EMFILE EINVAL",
    "fork": "EAGAIN ENOMEM",
    "fstat": "ENOMEM EOVERFLOW",
    "fstatfs": "ENOSYS",
    "ftruncate": "EINTR ENOMEM",
    "getdents64": "ENOENT ENOMEM",
    "getsockopt": "ENOMEM",
    "ioctl": "EINTR",
    "kcmp": "EPERM ENOSYS ESRCH",
    "listen": "EADDRINUSE",
    "memfd_create": "EMFILE ENFILE ENOMEM ENOSYS",
    "mmap": "ENOMEM EAGAIN",
    "mprotect": "ENOMEM",
    "openat": "EMFILE ENFILE ENOMEM ENOENT EACCES",
    "openat2": "EMFILE ENOSYS ENOENT",
    "pidfd_getfd": "EMFILE EPERM ESRCH ENOSYS",
    "pidfd_open": "EMFILE ENOMEM ESRCH ENOSYS",
    "pidfd_send_signal": "ESRCH EPERM",
    "pipe2": "EMFILE ENFILE",
    "poll": "EINTR ENOMEM",
    "ppoll": "EINTR ENOMEM",
    "prctl": "EINVAL EPERM",
    "pread64": "EIO ESRCH EINTR",
    "prlimit64": "EPERM",
    "process_vm_readv": "EPERM ESRCH ENOSYS",
    "process_vm_writev": "EPERM ESRCH ENOSYS",
    "ptrace": "ESRCH EPERM EIO",
    "pwrite64": "EIO ESRCH EPERM",
    "read": "EINTR EIO ESRCH",
    "readlink": "ENOENT EACCES ENOMEM",
    "readlinkat": "ENOENT EACCES ENOMEM",
    "recvfrom": "EINTR ECONNRESET ENOMEM",
    "recvmsg": "EINTR ECONNRESET ENOMEM",
    "rt_sigtimedwait": "EAGAIN EINTR",
    "seccomp": "EINVAL ENOMEM EFAULT",
    "sendmsg": "EPIPE ENOBUFS ENOMEM ETOOMANYREFS EINTR EAGAIN",
    "sendto": "EPIPE ENOBUFS ENOMEM EINTR EAGAIN",
    "setsid": "EPERM",
    "setsockopt": "ENOMEM",
    "signalfd4": "EMFILE ENFILE ENOMEM",
    "socket": "EMFILE ENFILE ENOBUFS ENOMEM EAFNOSUPPORT",
    "socketpair": "EMFILE ENFILE ENOMEM",
    "statfs": "ENOMEM ENOSYS",
    "timerfd_create": "EMFILE ENFILE ENOMEM",
    "timerfd_settime": "EINVAL",
    "unshare": "ENOMEM EMFILE EPERM",
    "vfork": "EAGAIN ENOMEM",
    "wait4": "EINTR ECHILD",
    "waitid": "EINTR ECHILD",
}
"""What each call can fail with, by its manual page, where that is not a plain mistake of the program's. Calls that are not here
cannot fail (getpid, kill of a child of one's own, write to an eventfd), fail after they have done their work (close), or are of the C library's own start and
end. What the kernel answers to an ioctl depends on the request, so that only EINTR is true of all."""

KEEPS = {"emulate-open": 1}
"""Descriptors that a scenario keeps for the next time: the connection to the process that opens."""

_IN_FORCE = re.compile(r"in force|it is in, but|have it|has it|every thread has|no_new_privs was set|stays set|may when it runs on")


@dataclass(frozen=True)
class Fault:
    """One injected failure."""

    scenario: str
    call: str = ""
    error: str = ""
    when: int = 0

    def __str__(self) -> str:
        return f"{self.scenario} {self.call} {self.error} {self.when}"


class _FaultRunner(_Runner):
    """A cell whose asker is under strace."""

    def __init__(self, fault: Fault, victim: Path) -> None:
        super().__init__(OPERATIONS[fault.scenario], PLACES["host"], ASKERS["root"], victim)
        self.fault = fault
        self.trace = self.work / "trace"
        self.leaks: list[str] = []

    def _ask(self) -> tuple[Kind, str, dict[str, Any]]:
        reader, writer = os.pipe()
        wait, go = os.pipe()
        ready, set_up = os.pipe()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.setpgid(0, 0)
                for fd in (reader, go, ready):
                    os.close(fd)
                os.writev(set_up, [b"x"])
                os.readv(wait, [bytearray(1)])  # calls that are not made to fail
                self._be_asker(writer)
                gc.collect()
                os.readv(wait, [bytearray(1)])
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        for fd in (writer, wait, set_up):
            os.close(fd)
        os.read(ready, 1)
        os.close(ready)
        fds, threads = _count(pid)
        before = fds + KEEPS.get(self.fault.scenario, 0), threads
        strace = self._strace(pid)
        self.known |= {strace.pid, *system.descendants(strace.pid)}
        os.write(go, b"x")
        data, late = _read(reader, 4 * PATIENCE)
        where = self._python_stack(pid)[:900] + _stack(pid)[:200] if late else ""
        # The manager has answered and waits: what it has now and had not before.
        if data and not late:
            end = time.monotonic() + 1
            while not _within(_count(pid), before) and time.monotonic() < end:
                time.sleep(0.005)
            if not _within(_count(pid), before):
                fds = {fd: _link(pid, fd) for fd in os.listdir(f"/proc/{pid}/fd")}
                self.leaks = [f"the manager had {before} descriptors and threads, has {_count(pid)}: {list(fds.values())[-4:]}"]
        with contextlib.suppress(BrokenPipeError):
            os.write(go, b"x")
        os.close(go)
        os.close(reader)
        if not _ends(pid, PATIENCE):
            late = True
            where = where or self._python_stack(pid)[:900] + _stack(pid)[:200]
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            _ends(pid, PATIENCE)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        self._end_strace(strace)
        if late:
            return "hung", where[:1200] + (" after " + data.decode()[:200] if data else ""), json.loads(data) if data else {}
        if not data:
            return "died", f"the manager died with status {status}", {}
        facts = json.loads(data)
        return facts["kind"], facts["text"], facts

    def _strace(self, pid: int) -> subprocess.Popen[bytes]:
        options = ["-e", f"trace={self.fault.call}", "-e", f"inject={self.fault.call}:error={self.fault.error}:when={self.fault.when}"]
        strace = subprocess.Popen(
            ["strace", "-f", "-qq", "-o", str(self.trace), *(options if self.fault.call else []), "-p", str(pid)],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        _until(lambda: system.fields(pid).get("TracerPid", "0") != "0" or strace.poll() is not None, "strace")
        if strace.poll() is not None:
            raise Skip("privilege: strace cannot trace here")
        return strace

    def _end_strace(self, strace: subprocess.Popen[bytes]) -> None:
        """strace ends with its last tracee; a guardian that stays is let go."""
        try:
            strace.wait(0.2)
        except subprocess.TimeoutExpired:
            strace.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                strace.wait(5)
            strace.kill()
            strace.wait()

    def _check(self, outcome: Outcome, before: dict[str, Snapshot], probes: dict[str, int], facts: dict[str, Any]) -> None:
        harm = outcome.harm
        if self.operation.starts:  # and it works
            fault = self.target.beats(set(facts["roles"]))
            harm += [fault] if fault else self.leaks + self._left_over()
            self._check_unchanged(harm, before, {}, outcome.kind)
            return
        added = dict(facts.get("added", self.added))
        if facts.get("killed"):
            return  # as it is promised of what cannot be filtered in time
        roles = set(facts.get("roles", self.target.roles))
        if self.operation.holds and outcome.kind != "works":
            roles.discard("m")  # what it has asked the listener waits, as was promised
        fault = self.target.beats(roles)
        if fault:
            harm.append(fault)
        after = snapshot(self.target.pid)
        if not after.threads:
            return
        old = before["target"]
        grown = {count - old.filters.get(tid, min(old.filters.values())) for tid, count in after.filters.items()}
        if len(grown) != 1:
            harm.append(f"filtered partly: {old.filters} became {after.filters}")
        elif grown != {added["target"]} and outcome.kind not in ("hung", "died"):
            more = max(grown)
            if more < added["target"] or not _IN_FORCE.search(outcome.text):
                harm.append(f"the threads have {more} filters more, the manager says {added['target']}: {outcome.text[:150]}")
            added["target"] = more
        elif outcome.kind in ("hung", "died"):
            added["target"] = max(grown)
        if outcome.kind != "works" and self.operation.name == "tree":
            child = snapshot(self.target.child)
            if set(child.filters.values()) != grown:
                harm.append(f"the child has {child.filters}, the target {after.filters}")
            added["child"] = max(child.filters.values(), default=0)
        if not facts.get("executed"):
            self._check_unchanged(harm, before, added, outcome.kind)
        if not facts.get("armed"):  # a trigger is waited for until its target ends
            harm += self.leaks
        if not self.operation.stays and outcome.kind == "works":
            harm += self._left_over()


def _count(pid: int) -> tuple[int, int]:
    with contextlib.suppress(OSError):
        return len(os.listdir(f"/proc/{pid}/fd")), len(os.listdir(f"/proc/{pid}/task"))
    return 0, 0


def _within(count: tuple[int, int], limit: tuple[int, int]) -> bool:
    return count[0] <= limit[0] and count[1] <= limit[1]


def _link(pid: int, fd: str) -> str:
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/{pid}/fd/{fd}")
    return "?"


def run_fault(fault: Fault, victim: Path) -> tuple[Outcome, Counter[str]]:
    """Run one, in this process; what became of it, and how often each call was made at most by one process."""
    begun = time.monotonic()
    system.prctl(system.PR_SET_CHILD_SUBREAPER, 1)
    runner = _FaultRunner(fault, victim)
    made: Counter[str] = Counter()
    try:
        outcome = runner.run()
        if not fault.call:
            made = _calls(runner.trace)
        elif os.environ.get("PYSECCOMP_TRACE"):
            print(runner.trace.read_text(errors="replace"))
        elif outcome.kind == "works" and "(INJECTED)" not in runner.trace.read_text(errors="replace"):
            outcome.text = "not reached"
    except Skip as skip:
        outcome = Outcome("", "skipped", str(skip))
    except Exception:
        outcome = Outcome("", "broken", traceback.format_exc()[-1000:])
    finally:
        left = runner.close()
    outcome.harm += left
    outcome.cell = str(fault)
    outcome.seconds = time.monotonic() - begun
    return outcome, made


def _calls(trace: Path) -> Counter[str]:
    by_process: Counter[tuple[str, str]] = Counter()
    for line in trace.read_text(errors="replace").splitlines():
        match = re.match(r"(\d+) +([a-z0-9_]+)\(", line)
        if match:
            by_process[match[1], match[2]] += 1
    most: Counter[str] = Counter()
    for (_, call), count in by_process.items():
        most[call] = max(most[call], count)
    return most


def plan(scenario: str, made: Counter[str], every: int, sampled: int, seed: int) -> list[Fault]:
    """The faults of a scenario: each call that was made, each errno, the first occurrences all and the others sampled."""
    chance = random.Random(f"{seed} {scenario}")
    found = []
    for call, count in sorted(made.items()):
        for error in ERRNOS.get(call, "").split():
            numbers = list(range(1, min(count, every) + 1))
            rest = range(every + 1, count + 1)
            numbers += sorted(chance.sample(rest, min(sampled, len(rest))))
            found += [Fault(scenario, call, error, number) for number in numbers]
    return found


def bad(outcome: Outcome) -> bool:
    """True for what must not be, whatever call has failed."""
    return bool(outcome.harm) or outcome.kind in ("hung", "died", "wrong", "broken")


def run_scenarios(names: Iterable[str], jobs: int, every: int, sampled: int, limit: int | None, seed: int = 1, tell: Any = None) -> list[Outcome]:
    """Find out what calls each scenario makes, then make each fail."""
    victim = victims()[""]
    assert victim is not None
    faults: list[Fault] = []
    outcomes: list[Outcome] = []
    names = list(names)
    baselines = run_processes([Fault(name) for name in names], lambda fault: run_fault(fault, victim), jobs)
    for name, result in zip(names, baselines, strict=True):
        if isinstance(result, str):
            outcomes.append(Outcome(name, "broken", result))
            continue
        outcome, made = result
        outcomes.append(outcome)
        if outcome.kind == "works":
            faults += plan(name, made, every, sampled, seed)
    if limit is not None and len(faults) > limit:
        faults = random.Random(seed).sample(faults, limit)
    results = run_processes(faults, lambda fault: run_fault(fault, victim), jobs, (lambda r: tell(r[0])) if tell else None)
    for fault, result in zip(faults, results, strict=True):
        outcomes.append(Outcome(str(fault), "broken", result) if isinstance(result, str) else result[0])
    return outcomes


def table(outcomes: list[Outcome]) -> tuple[str, list[str]]:
    """The figures by call and errno, and what must not be."""
    by: dict[str, Counter[str]] = {}
    kinds: Counter[str] = Counter()
    for outcome in outcomes:
        parts = outcome.cell.split()
        if len(parts) != 4 or not parts[1]:
            continue
        by.setdefault(parts[1], Counter())[parts[2]] += 1
        kinds["BAD" if bad(outcome) else outcome.text if outcome.text == "not reached" else outcome.kind] += 1
    total = sum(kinds.values())
    lines = [f"injected faults {total}: " + ", ".join(f"{kind} {n}" for kind, n in kinds.most_common())]
    for call, errors in sorted(by.items()):
        lines.append(f"  {call:18s} {sum(errors.values()):5d}  " + " ".join(f"{e} {n}" for e, n in sorted(errors.items())))
    wrong = [outcome.line[:700] for outcome in outcomes if bad(outcome)]
    lines.append(f"must not be: {len(wrong)}")
    lines += [f"  {line}" for line in wrong]
    return "\n".join(lines), wrong


def main() -> int:
    parser = argparse.ArgumentParser(prog="faults", description="make each system call of an operation fail, and look at the target")
    parser.add_argument("scenario", nargs="*", help=f"of {' '.join(SCENARIOS)} (all), or one fault: SCENARIO CALL ERRNO N")
    parser.add_argument("--jobs", type=int, default=4)
    parser.add_argument("--every", type=int, default=4, help="occurrences of a call that are all made to fail (4)")
    parser.add_argument("--sampled", type=int, default=3, help="of the later ones, so many (3)")
    parser.add_argument("--limit", type=int, help="of all faults, so many at random")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--save", metavar="FILE")
    options = parser.parse_args()
    if shutil.which("strace") is None:
        print("material lacks strace", file=sys.stderr)
        return 2
    if len(options.scenario) == 4 and options.scenario[3].isdigit():
        scenario, call, error, when = options.scenario
        victim = victims()[""]
        assert victim is not None
        outcome, _ = run_fault(Fault(scenario, call, error, int(when)), victim)
        print(outcome.line)
        return int(bad(outcome))
    with contextlib.ExitStack() as stack:
        out = stack.enter_context(open(options.save, "w", encoding="utf-8")) if options.save else None

        def tell(outcome: Outcome) -> None:
            if out is not None:
                print(outcome.line.replace("\n", " "), f"({outcome.seconds:.1f} s)", file=out, flush=True)

        names = options.scenario or SCENARIOS
        outcomes = run_scenarios(names, options.jobs, options.every, options.sampled, options.limit, options.seed, tell)
    text, wrong = table(outcomes)
    print(text)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
