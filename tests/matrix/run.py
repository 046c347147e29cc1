"""All cells, some at a time, each in a process of its own."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from harness import build_victim
from matrix.askers import ASKERS
from matrix.cell import DEADLINE, Outcome, applies, as_json, run
from matrix.operations import OPERATIONS
from matrix.places import PLACES

Cell = tuple[str, str, str]


def cells() -> list[Cell]:
    """Every cell that there is: the names of an operation, a place and an asker."""
    return [
        (operation.name, place.name, asker.name)
        for operation in OPERATIONS.values()
        for place in PLACES.values()
        for asker in ASKERS.values()
        if applies(operation, place, asker)
    ]


def victims() -> dict[str, Path | None]:
    """The victim, for each machine; None where it cannot be built here."""
    found: dict[str, Path | None] = {}
    for machine in {place.machine for place in PLACES.values()}:
        try:
            found[machine] = build_victim("matrix", "-static", *([machine] if machine else []))
        except Exception:
            found[machine] = None
    return found


def run_all(chosen: Iterable[Cell], jobs: int = 4, tell: Callable[[Outcome], object] | None = None) -> list[Outcome]:
    """Run cells; what became of each, in the order given."""
    programs = victims()
    waiting = list(enumerate(chosen))
    running: dict[int, tuple[int, int, Cell, float, bytes]] = {}  # by the pipe: index, pid
    found: dict[int, Outcome] = {}
    while waiting or running:
        while waiting and len(running) < jobs:
            at, cell = waiting.pop(0)
            victim = programs[PLACES[cell[1]].machine]
            if victim is None:
                found[at] = Outcome(" ".join(cell), "skipped", "material lacks a compiler for 32-bit programs")
                continue
            fd, pid = _fork(cell, victim)
            running[fd] = (at, pid, cell, time.monotonic() + 3 * DEADLINE, b"")
        for fd in select.select(list(running), [], [], 1.0)[0]:
            at, pid, cell, end, data = running[fd]
            chunk = os.read(fd, 1 << 16)
            if chunk:
                running[fd] = (at, pid, cell, end, data + chunk)
                continue
            del running[fd]
            os.close(fd)
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            outcome = Outcome(" ".join(cell), "broken", f"the cell's own process ended with {status}")
            if data:
                outcome = Outcome(**json.loads(data))
            found[at] = outcome
            if tell is not None:
                tell(outcome)
        for _, pid, _, end, _ in list(running.values()):
            if time.monotonic() > end:
                os.kill(pid, signal.SIGKILL)
    return [found[at] for at in sorted(found)]


def _fork(cell: Cell, victim: Path) -> tuple[int, int]:
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            os.close(reader)
            outcome = run(OPERATIONS[cell[0]], PLACES[cell[1]], ASKERS[cell[2]], victim)
            with os.fdopen(writer, "wb") as out:
                out.write(as_json(outcome))
        finally:
            os._exit(0)
    os.close(writer)
    return reader, pid
