"""One cell of the matrix: a target in its place, an operation by an asker, and what became of both."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyseccomp as ps
from matrix import askers, parked, programs, system
from matrix.askers import Asker
from matrix.operations import Operation, Refusal, Scene
from matrix.places import Place, program
from matrix.target import PATIENCE, Snapshot, Target, TargetError, snapshot

Kind = Literal["works", "refused", "wrong", "crashed", "hung", "died", "skipped", "broken"]
DEADLINE = 4 * PATIENCE
LIMITED = ("host", "pidns", "runc", "filters-1", "diverged", "frozen", "i386")
"""Where callers with limits ask."""
SETTLE = 5.0


@dataclass
class Outcome:
    """What became of a cell."""

    cell: str
    kind: Kind
    text: str = ""
    harm: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def line(self) -> str:
        return " | ".join([f"{self.cell}: {self.kind}", *([self.text] if self.text else []), *(f"HARM {h}" for h in self.harm)])


class Skip(Exception):
    """The cell cannot be set up here; the text begins as the reason of a skipped test does."""


def name_of(operation: Operation, place: Place, asker: Asker) -> str:
    return f"{operation.name} {place.name} {asker.name}"


def applies(operation: Operation, place: Place, asker: Asker) -> bool:
    """True if there is such a cell at all."""
    if operation.starts and (place.condition or place.runtime or place.inside or (place.root and asker.uid is not None)):
        return False
    if (asker.limit is not None or asker.pids) and asker.name != "no-memfd" and place.name not in LIMITED:
        return False  # what a caller runs short of does not hang on where the target lives
    if operation.name == "foreign" and not place.machine:
        return False
    if operation.name == "deadline" and place.condition == "frozen" and asker.limit is not None:
        return False  # it is thawed by the operation itself, which may not come so far
    if operation.name == "park" and asker.pids:
        return False  # its target would be in the same cgroup
    if operation.name == "park" and (place.name not in parked.PLACES or ("--pid" in place.options and asker.capability == system.SYS_ADMIN)):
        return False
    if asker.container and (place.root or operation.cgroup or {"--user", "--io-uring"} & {*place.options} or place.condition == "traced"):
        return False  # the container's policy forbids what would make the place
    if operation.starts and asker.capability == system.SYS_ADMIN and "--pid" in place.options and "--user" not in place.options:
        return False  # the program itself could not make its namespaces
    if operation.name == "emulate-open" and place.name == "kills-close":
        return False  # the target itself closes what it has opened
    if operation.cgroup and (place.condition == "frozen" or place.inside):
        return False
    if place.inside and (asker.pids or asker.name == "user-nproc" or asker.capability is not None):
        return False
    return not (asker.uid is not None and place.condition == "traced" and place.root)


def run(operation: Operation, place: Place, asker: Asker, victim: Path) -> Outcome:
    """Run one cell in this process, which it becomes the reaper of everything for."""
    begun = time.monotonic()
    cell = name_of(operation, place, asker)
    system.prctl(system.PR_SET_CHILD_SUBREAPER, 1)
    runner: _Runner | None = None
    try:
        runner = _Runner(operation, place, asker, victim)
        outcome = runner.run()
    except Skip as skip:
        outcome = Outcome(cell, "skipped", str(skip))
    except (TargetError, OSError) as error:
        outcome = Outcome(cell, "broken", f"{type(error).__name__}: {error}")
    except Exception:
        outcome = Outcome(cell, "broken", traceback.format_exc()[-1500:])
    finally:
        left = runner.close() if runner is not None else []
    outcome.harm += left
    outcome.seconds = time.monotonic() - begun
    return outcome


class _Runner:
    def __init__(self, operation: Operation, place: Place, asker: Asker, victim: Path) -> None:
        self.operation, self.place, self.asker = operation, place, asker
        root = os.geteuid() == 0
        if not root and (place.root or operation.cgroup or (asker.uid is None and asker.name != "no-memfd")):
            raise Skip("privilege: root, to make the place or the caller")
        self.work = Path(tempfile.mkdtemp(prefix="psmx"))
        self.work.chmod(0o755)
        uid = asker.uid if root else None
        self.target = Target(self.work / "target", victim, uid)
        self.target.roles -= set(place.without)
        self.target.add_filters({f"filter.{at}": program(name) for at, name in enumerate(place.filters)})
        self.target.add_filters({"filter.d": program("plain")})
        runtime = self.work / "run"
        runtime.mkdir(mode=0o700)
        if uid is not None:
            os.chown(runtime, uid, uid)
        os.environ["XDG_RUNTIME_DIR"] = str(runtime)
        self.options = [*place.options]
        if place.filters:
            self.options.append(f"--filters={len(place.filters)}")
        if uid is not None:
            self.options.append(f"--uid={uid}")
        self.stack = (self.work / "stack").open("w")
        self.cgroup: Path | None = None
        self.pids: Path | None = None
        self.tracer = -1
        self.armed = False
        self.container: list[str] = []
        self.known: set[int] = set()
        self.added = {"target": 0, "child": 0}

    # -------------------------------------------------------------- the place

    def run(self) -> Outcome:
        if not self.operation.starts:
            self._start()
            self._condition()
        if self.asker.pids:
            self.pids = askers.pids_cgroup(f"psmx-{os.getpid()}")
            if self.pids is None:
                raise Skip("privilege: a cgroup of the pids controller")
        self.known = system.descendants(os.getpid())
        before = self._look()
        probes = {role: self.target.state.probe(role) for role in self.target.roles}
        kind, text, facts = self._ask()
        self.armed = bool(facts.get("armed"))
        outcome = Outcome(name_of(self.operation, self.place, self.asker), kind, text)
        if self.operation.starts and kind != "works":
            self._check_nothing_started(outcome)
            return outcome
        if self.operation.starts:
            self.target.roles &= set(facts["roles"])
            self.target.wait_ready(also="" if self.operation.name == "park" else "r")
        self._check(outcome, before, probes, facts)
        return outcome

    def _start(self) -> None:
        if self.place.runtime:
            self._start_container()
        else:
            self.target.start(self.options)

    def _start_container(self) -> None:
        if shutil.which(self.place.runtime) is None:
            raise Skip(f"material lacks {self.place.runtime}")
        bundle = self.work / "bundle"
        bundle.mkdir()
        uid = self.asker.uid or 0
        caps = [] if uid else list(system.DOCKER_CAPS)
        config = {
            "ociVersion": "1.0.2",
            "process": {
                "terminal": False,
                "user": {"uid": uid, "gid": uid},
                "args": ["./target", *(o for o in self.options if not o.startswith("--uid="))],
                "cwd": "/",
                "env": ["PATH=/"],
                "capabilities": {"bounding": caps, "effective": caps, "permitted": caps},
                "noNewPrivileges": False,
            },
            "root": {"path": str(self.target.folder), "readonly": False},
            "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
            "linux": {
                "namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts")],
                "seccomp": programs.container_policy(),
                "cgroupsPath": f"/psmx-container-{os.getpid()}",
            },
        }
        (bundle / "config.json").write_text(json.dumps(config))
        name = f"psmx-{os.getpid()}"
        self.container = [self.place.runtime, "--root", str(self.work / "runc"), "delete", "--force", name]
        log = (self.work / "runc.log").open("wb")
        self.target.launch(
            [self.place.runtime, "--root", str(self.work / "runc"), "run", "--detach", "-b", str(bundle), name],
            stderr=log,
        )
        log.close()
        try:
            self.target.wait_ready()
        except TargetError as error:
            raise TargetError(f"{error}; {(self.work / 'runc.log').read_text()[-500:]}") from None

    def _condition(self) -> None:
        pid = self.target.pid
        if self.operation.cgroup or self.place.condition == "frozen":
            self.cgroup = _cgroup2(f"psmx-{os.getpid()}")
            for one in (pid, self.target.child):
                (self.cgroup / "cgroup.procs").write_text(str(one))
            if self.asker.uid is not None:
                os.chown(self.cgroup / "cgroup.freeze", self.asker.uid, self.asker.uid)
        match self.place.condition:
            case "frozen":
                assert self.cgroup is not None
                (self.cgroup / "cgroup.freeze").write_text("1")
                _until(lambda: "frozen 1" in (self.cgroup / "cgroup.events").read_text(), "freezing")  # type: ignore[operator]
            case "stopped":
                os.kill(pid, signal.SIGSTOP)
                _until(lambda: all(t["held"] for t in snapshot(pid).threads.values()), "stopping")
            case "traced":
                self.tracer = _seize(pid)

    def _look(self) -> dict[str, Snapshot]:
        return {"target": snapshot(self.target.pid), "child": snapshot(self.target.child)}

    # -------------------------------------------------------------- the asker

    def _ask(self) -> tuple[Kind, str, dict[str, Any]]:
        reader, writer = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.setpgid(0, 0)
                os.close(reader)
                self._be_asker(writer)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        os.close(writer)
        with contextlib.suppress(OSError):
            os.setpgid(pid, pid)
        data, late = _read(reader, DEADLINE)
        os.close(reader)
        if not late:
            late = not _ends(pid, PATIENCE)
            if late and data:
                data = json.dumps({"kind": "hung", "text": "it has done its work, and does not end: " + data.decode()[:300]}).encode()
        if late:
            where = self._python_stack(pid)[:800] + _stack(pid)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            _ends(pid, PATIENCE)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if late and not data:
            return "hung", f"no answer within {DEADLINE} s; {where}", {}
        if not data:
            return "died", f"the asker died with status {status}", {}
        facts = json.loads(data)
        return facts["kind"], facts["text"], facts

    def _be_asker(self, writer: int) -> None:
        """In a child: become the asker, work, and tell."""
        target, place = self.target, self.place
        pid, child = target.pid, target.child
        if place.inside:
            pid, child = _inner_number(pid), _inner_number(child)
            user = system.CLONE_NEWUSER if "--user" in place.options else 0
            system.setns(target.pidfd, system.CLONE_NEWPID | system.CLONE_NEWNS | user)
            if user:
                os.setresgid(0, 0, 0)
                os.setresuid(0, 0, 0)
            inner = os.fork()
            if inner:
                os.close(writer)
                os._exit(os.waitstatus_to_exitcode(os.waitpid(inner, 0)[1]) & 0xFF)
            if not user:
                askers.become(self.asker)
        else:
            if self.pids is not None:
                (self.pids / "cgroup.procs").write_text("0")
            askers.become(self.asker)

        def start(filter: ps.Filter) -> ps.Popen:
            return ps.Popen(
                ["./target", *self.options], cwd=target.folder, stdin=subprocess.DEVNULL, stdout=target.theirs, filter=filter
            )

        def become_target(sock: socket.socket) -> None:
            parked.become_target(place, target.folder, target.state, target.theirs, sock)

        roles = set(target.roles)
        scene = Scene(pid, child, target.state, target.folder, place, roles, self.cgroup, start=start, become_target=become_target)
        kind: Kind = "works"
        text = ""
        faulthandler.register(signal.SIGUSR2, file=self.stack)
        if self.asker.limit is not None:
            scene.limit = self.asker.limit
        if self.pids is not None:
            folder = self.pids
            scene.limit = lambda: void((folder / "pids.max").write_text("1"))
        try:
            if not self.operation.limits:
                scene.limit()
            self.operation.run(scene)
        except Refusal as refusal:
            kind, text = "refused", str(refusal)
        except (ps.SeccompError, ps.errors.InactiveError) as error:
            kind, text = "refused", f"{type(error).__name__}: {error}" + "".join(f" [{n}]" for n in getattr(error, "__notes__", ()))
        except AssertionError as error:
            kind, text = "wrong", str(error) or traceback.format_exc()[-300:]
        except BaseException as error:
            kind, text = "crashed", f"{type(error).__name__}: {error} {_last_line(error)}"
        facts = {"kind": kind, "text": text, "added": scene.added, "probe": scene.probe, "roles": sorted(scene.roles), **scene.facts}
        os.writev(writer, [json.dumps(facts).encode()])  # a call of its own: fault injection leaves it alone

    # ------------------------------------------------------------- the checks

    def _check(self, outcome: Outcome, before: dict[str, Snapshot], probes: dict[str, int], facts: dict[str, Any]) -> None:
        harm = outcome.harm
        target = self.target
        roles = set(facts.get("roles", target.roles))
        added = facts.get("added", self.added)
        changed = any(added.values())
        frozen_or_stopped = self.place.condition in ("frozen", "stopped")
        if frozen_or_stopped and outcome.kind != "works":
            self._check_unchanged(harm, before, added, outcome.kind)
        elif self.place.condition == "stopped" and not all(t["held"] for t in snapshot(target.pid).threads.values()):
            if self.operation.name in ("attach", "several", "tree", "cgroup", "query", "dump", "explain", "forgets-restart"):
                harm.append("it was stopped before, and is not now")
        if facts.get("killed"):
            return  # as it is promised of what cannot be filtered in time
        self._release()
        fault = target.beats(roles)
        if fault:
            harm.append(fault)
        if not snapshot(target.pid).threads:
            return  # nothing is left to look at
        if outcome.kind in ("hung", "died"):
            return  # how far it came is not known
        self._check_unchanged(harm, before, added, outcome.kind)
        for role in sorted(roles - {"c"}):
            wanted = facts.get("probe") if changed and facts.get("probe") is not None else probes.get(role, 0)
            if self.operation.starts:
                wanted = programs.DENIED
            if target.state.probe(role) != wanted:
                harm.append(f"thread {role!r}: getppid fails with {target.state.probe(role)}, and {wanted} is right")
        if not self.operation.stays and not (self.operation.holds and outcome.kind != "works"):
            harm += self._left_over()

    def _python_stack(self, pid: int) -> str:
        """Where a hung asker waits, in Python."""
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGUSR2)
            time.sleep(0.3)
            lines = (self.work / "stack").read_text().splitlines()
            return " ".join(line.strip().replace(str(Path(__file__).parents[2]), "") for line in lines)
        return ""

    def _check_unchanged(self, harm: list[str], before: dict[str, Snapshot], added: dict[str, int], kind: Kind) -> None:
        """Compare what the kernel says before and after, thread by thread."""
        after = self._look()
        for which in ("target", "child"):
            old, new, more = before[which], after[which], added.get(which, 0)
            base = min(old.filters.values(), default=0)
            if self.operation.starts:
                if any(count < 1 for count in new.filters.values()):
                    harm.append(f"{which}: a thread without the filter: {new.filters}")
                continue
            if not new.threads:
                harm.append(f"{which}: no thread is left")
            for tid, count in new.filters.items():
                if count != old.filters.get(tid, base) + more:
                    harm.append(f"{which}: thread {tid} has {count} filters, had {old.filters.get(tid)}, {more} were added")
            if self.operation.name == "exec" and kind == "works":
                continue
            if set(old.threads) != set(new.threads):
                harm.append(f"{which}: threads were {sorted(old.threads)}, are {sorted(new.threads)}")
            for tid, state in new.threads.items():
                for name, value in state.items():
                    past = old.threads.get(tid, {}).get(name)
                    if name in ("Seccomp", "Seccomp_filters") or past is None or (name == "NoNewPrivs" and any(added.values())):
                        continue
                    if name == "TracerPid" and self.armed:
                        continue
                    if value != past and not (name == "held" and self.place.condition in ("stopped", "frozen")):
                        harm.append(f"{which}: thread {tid}: {name} was {past or '-'}, is {value or '-'}")
            if old.fds != new.fds:
                harm.append(f"{which}: descriptors differ: {sorted(set(old.fds.items()) ^ set(new.fds.items()))}")
            if old.maps != new.maps:
                harm.append(f"{which}: mappings differ: {sorted(set(old.maps) ^ set(new.maps))[:4]}")

    def _check_nothing_started(self, outcome: Outcome) -> None:
        outcome.harm += self._left_over()
        self.target.theirs.close()
        if self.operation.name == "park":
            return
        with contextlib.suppress(BlockingIOError):
            self.target.socket.setblocking(False)
            if self.target.socket.recv(1):
                outcome.harm.append("the program ran although it was refused")

    def _release(self) -> None:
        """Undo what was done to the place."""
        match self.place.condition:
            case "frozen":
                assert self.cgroup is not None
                (self.cgroup / "cgroup.freeze").write_text("0")
            case "stopped":
                os.kill(self.target.pid, signal.SIGCONT)
                _until(lambda: not any(t["held"] for t in snapshot(self.target.pid).threads.values()), "going on")

    def _ours(self) -> set[int]:
        """Processes that are left, without the target's own; orphans that ended are reaped."""
        found = set()
        for pid in system.descendants(os.getpid()) - self.known - {self.target.pid}:
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{pid}/exe").startswith(str(self.target.folder / "target")):
                    continue
            with contextlib.suppress(ChildProcessError):
                if os.waitpid(pid, os.WNOHANG)[0] == pid:
                    continue
            if system.parents().get(pid) == self.target.pid and system.fields(pid).get("State", "Z")[0] == "Z":
                continue  # the target is the init process of its namespace, and reaps nothing
            found.add(pid)
        return found

    def _left_over(self) -> list[str]:
        end = time.monotonic() + SETTLE
        while (left := self._ours()) and time.monotonic() < end:
            time.sleep(0.01)  # only a child can be waited for
        return [f"a process of ours is left: {system.command(pid)}" for pid in sorted(left)]

    def close(self) -> list[str]:
        """End everything, and say what did not end by itself when its target did."""
        target = getattr(self, "target", None)
        left: list[str] = []
        if target is None:
            shutil.rmtree(self.work, ignore_errors=True)
            return left
        if self.tracer > 0:
            os.kill(self.tracer, signal.SIGKILL)
        if self.cgroup is not None and (self.cgroup / "cgroup.freeze").exists():
            (self.cgroup / "cgroup.freeze").write_text("0")
        launcher = getattr(target, "launcher", None)
        if self.container:
            subprocess.run(self.container, stderr=subprocess.DEVNULL, timeout=30)
        if launcher is not None:
            target.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                launcher.wait(5)
        elif target.pid > 0:
            os.kill(target.pid, signal.SIGKILL)
        if self.operation.stays:
            left = self._left_over()
        end = time.monotonic() + SETTLE
        while (rest := system.descendants(os.getpid())) and time.monotonic() < end:
            for pid in rest:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
            time.sleep(0.002)
        for folder in (self.cgroup, self.pids):
            if folder is not None:
                with contextlib.suppress(OSError):
                    folder.rmdir()
        shutil.rmtree(self.work, ignore_errors=True)
        return left


# -------------------------------------------------------------------- helpers


def void(_: object) -> None:
    """Forget a value."""


def _until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            raise TargetError(f"{what}: not within {PATIENCE} s")
        time.sleep(0.001)


def _cgroup2(name: str) -> Path:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        head, _, tail = line.partition(" - ")
        if tail.startswith("cgroup2 "):
            folder = Path(head.split()[4]) / name
            try:
                folder.mkdir()
            except OSError as error:
                raise Skip(f"privilege: to make a cgroup ({error.strerror})") from None
            return folder
    raise Skip("kernel lacks a mounted cgroup2")


def _seize(pid: int) -> int:
    """A tracer of all threads, in a process of its own."""
    reader, writer = os.pipe()
    tracer = os.fork()
    if tracer == 0:
        try:
            for tid in os.listdir(f"/proc/{pid}/task"):
                system.check(system.libc.ptrace(0x4206, int(tid), None, None), "PTRACE_SEIZE")
            os.write(writer, b"x")
            os.close(writer)
            while True:
                tid, status = os.waitpid(-1, 0x40000000)
                if os.WIFSTOPPED(status):
                    number = os.WSTOPSIG(status) if status >> 16 == 0 else 0
                    system.libc.ptrace(7, tid, None, ctypes.c_void_p(number))
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        if file.read() != b"x":
            raise TargetError("it cannot be traced")
    return tracer


def _inner_number(pid: int) -> int:
    return int(system.fields(pid)["NSpid"].split()[-1])


def _read(fd: int, timeout: float) -> tuple[bytes, bool]:
    """All that comes, and whether the deadline came first."""
    end, data = time.monotonic() + timeout, b""
    while select.select([fd], [], [], max(0.0, end - time.monotonic()))[0]:
        chunk = os.read(fd, 1 << 16)
        if not chunk:
            return data, False
        data += chunk
        if data.endswith(b"}"):
            return data, False
    return data, True


def _ends(pid: int, timeout: float) -> bool:
    fd = os.pidfd_open(pid)
    try:
        return bool(select.select([fd], [], [], timeout)[0])
    finally:
        os.close(fd)


def _stack(pid: int) -> str:
    """Where a process and its children wait."""
    words = []
    for one in sorted({pid, *system.descendants(pid)}):
        with contextlib.suppress(OSError):
            calls = Path(f"/proc/{one}/syscall").read_text().split()[0]
            words.append(f"{system.command(one)} in call {calls} {Path(f'/proc/{one}/wchan').read_text()}")
    return "; ".join(words)


def _last_line(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return "" if not frames else f"({Path(frames[-1].filename).name}:{frames[-1].lineno} in {frames[-1].name})"
