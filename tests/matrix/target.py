"""A running target: how it is started in its place, what it says of itself, and what the kernel says of it."""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matrix import system

ROLES = "mnpfrck"
IDLE, PROBE, EXEC, FORK, OPEN, LEAVE = range(6)
WRONG = {1: "a sleep ended with status", 2: "a sleep ended early, after ms", 3: "a sleep ended late, after ms", 4: "its file is wrong", 5: "a read woke"}
_SIZE = 4 * (7 + 2 * len(ROLES))
PATIENCE = 8.0 * float(os.environ.get("PYSECCOMP_SLOW", "1"))


class TargetError(Exception):
    """The target did not start, or does not answer: of itself, before anything was done to it."""


class State:
    """The memory that the target shares (struct state of the victim)."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), _SIZE)

    def _get(self, at: int) -> int:
        return int(struct.unpack_from("=i", self._map, 4 * at)[0])

    def request(self, what: int) -> None:
        """Ask the main thread for something."""
        self._set(0, what)

    def _set(self, at: int, value: int) -> None:
        struct.pack_into("=i", self._map, 4 * at, value)

    @property
    def requested(self) -> int:
        """What was asked for."""
        return self._get(0)

    def answer(self, result: int) -> None:
        """As the target: answer a request."""
        self._set(2, result)
        self._set(0, IDLE)
        self._set(1, self._get(1) + 1)

    def finish_round(self, role: str, probe: int) -> None:
        """As the target: a round is over."""
        self._set(7 + ROLES.index(role), probe)
        self._set(7 + len(ROLES) + ROLES.index(role), self.rounds(role) + 1)

    @property
    def answered(self) -> int:
        return self._get(1)

    @property
    def result(self) -> int:
        return self._get(2)

    @property
    def wrong(self) -> str | None:
        """What went wrong first, in words."""
        if not self._get(3):
            return None
        return f"thread {ROLES[self._get(4)]!r}: {WRONG.get(self._get(5))} {self._get(6)} ({self._get(3)} times wrong)"

    def probe(self, role: str) -> int:
        """The errno of a thread's last getppid()."""
        return self._get(7 + ROLES.index(role))

    def rounds(self, role: str) -> int:
        """How many rounds a thread has finished."""
        return self._get(7 + len(ROLES) + ROLES.index(role))

    def wait_answer(self, before: int, timeout: float = PATIENCE) -> int:
        """Wait until a request was answered; the result."""
        end = time.monotonic() + timeout
        while self.answered == before:
            if time.monotonic() > end:
                raise AssertionError(f"the target did not answer a request within {timeout} s")
            time.sleep(0.002)  # shared memory is all that there is to look at
        return self.result

    def ask(self, what: int, timeout: float = PATIENCE) -> int:
        """Request and wait."""
        before = self.answered
        self.request(what)
        return self.wait_answer(before, timeout)


@dataclass(frozen=True)
class Snapshot:
    """Everything of a process that an operation must leave as it was, by what the kernel tells."""

    threads: dict[int, dict[str, str]]
    fds: dict[str, str]
    maps: tuple[str, ...]

    @property
    def filters(self) -> dict[int, int]:
        return {tid: int(one.get("Seccomp_filters", "0")) for tid, one in self.threads.items()}


_KEPT = ("Seccomp", "Seccomp_filters", "NoNewPrivs", "TracerPid", "SigBlk", "SigIgn", "SigCgt", "CapEff", "SigPnd", "ShdPnd")


def snapshot(pid: int) -> Snapshot:
    """Look at a process; a dead one has no threads."""
    threads = {}
    with contextlib.suppress(OSError):
        for entry in os.listdir(f"/proc/{pid}/task"):
            status = system.fields(pid, int(entry))
            if status and status["State"][0] not in "ZX":
                kept = {name: status.get(name, "") for name in _KEPT}
                kept["held"] = "T" if status["State"][0] in "Tt" else ""
                threads[int(entry)] = kept
    fds = {}
    with contextlib.suppress(OSError):
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                fds[fd] = os.readlink(f"/proc/{pid}/fd/{fd}")
    maps: tuple[str, ...] = ()
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
        maps = tuple(line for line in lines if "[heap]" not in line and "[stack]" not in line)
    return Snapshot(threads, fds, maps)


class Target:
    """The victim of the matrix in a folder of its own, and the socket that carries its letters."""

    def __init__(self, folder: Path, program: Path, uid: int | None) -> None:
        self.folder = folder
        self.uid = uid
        self.roles = set("mnpfc")
        self.pid = -1
        self.child = -1
        self.pidfd = -1
        folder.mkdir(mode=0o755)
        shutil.copy(program, folder / "target")
        (folder / "state").write_bytes(bytes(_SIZE))
        (folder / "hello").write_text("hello")
        (folder / "proc").mkdir()
        for path in (folder, *folder.iterdir()):
            if uid is not None:
                os.chown(path, uid, uid)
        self.state = State(folder / "state")
        self.socket, self.theirs = socket.socketpair()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.theirs.setblocking(False)

    def add_filters(self, programs: dict[str, bytes]) -> None:
        """Give it programs to load."""
        for name, program in programs.items():
            (self.folder / name).write_bytes(program)

    def start(self, options: list[str], **popen: Any) -> None:
        """Run it, and wait until it is in its place and every thread has finished a round."""
        self.launch(["./target", *options], cwd=self.folder, **popen)
        self.wait_ready()

    def launch(self, argv: list[str], **popen: Any) -> None:
        """Run something that becomes the target."""
        self.launcher = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=self.theirs, **popen)

    def wait_ready(self, timeout: float = PATIENCE, also: str = "r") -> None:
        """Learn its process numbers from the credentials of its letters; wait for a round of every thread, and the birth of others."""
        end = time.monotonic() + timeout
        missing = {*self.roles, *also}
        text = b""
        while missing:
            if not select.select([self.socket], [], [], max(0.0, end - time.monotonic()))[0]:
                raise TargetError(f"no letter of {sorted(missing)} within {timeout} s: {text[-200:]!r}; {self._launched()}")
            data, ancillary, _, _ = self.socket.recvmsg(1, socket.CMSG_SPACE(12))
            if not data:
                raise TargetError(f"it ended: {text[-200:]!r}")
            text += data
            pid = struct.unpack("iII", ancillary[0][2])[0]
            letter = data.decode()
            if letter in missing:
                missing.discard(letter)
                if letter == "c":
                    self.child = pid
                else:
                    self.pid = pid
        self.pidfd = os.pidfd_open(self.pid)
        self.theirs.close()

    def _launched(self) -> str:
        launcher = getattr(self, "launcher", None)
        return "" if launcher is None else f"it is {system.command(launcher.pid)}"

    def beats(self, roles: set[str], rounds: int = 2, timeout: float = PATIENCE) -> str | None:
        """Wait until each of those threads has finished so many more rounds; what is wrong, or None."""
        self.socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while self.socket.recv(1 << 16):
                pass
        left = dict.fromkeys(roles, rounds)
        end = time.monotonic() + timeout
        while any(n > 0 for n in left.values()):
            seen = select.select([self.socket, self.pidfd], [], [], max(0.0, end - time.monotonic()))[0]
            if self.pidfd in seen:
                return "it is dead" + self._how()
            if not seen:
                late = sorted(role for role, n in left.items() if n > 0)
                return f"no sign of life of threads {late} within {timeout} s"
            data = self.socket.recv(1 << 16)
            if not data:
                return "it is dead" + self._how()
            for letter in data.decode():
                if letter.isupper():
                    return self.state.wrong or f"thread {letter} reports a fault"
                if letter in left:
                    left[letter] -= 1
        return self.state.wrong

    def _how(self) -> str:
        launcher = getattr(self, "launcher", None)
        status = None if launcher is None else launcher.poll()
        return "" if status is None else f" (status {status})"

    def close(self) -> None:
        """End it, whatever state it is in."""
        for pid in (self.pid, self.child):
            if pid > 0:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            self.launcher.kill()
        if self.pidfd >= 0:
            os.close(self.pidfd)
        self.socket.close()
        self.theirs.close()
