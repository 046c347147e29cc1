"""All cells, some at a time, each in a process of its own."""

from __future__ import annotations

import os
import pickle
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from harness import build_victim
from matrix.askers import ASKERS
from matrix.cell import DEADLINE, Outcome, applies, run
from matrix.container import run_contained
from matrix.operations import OPERATIONS
from matrix.places import PLACES

Cell = tuple[str, str, str]
Item = TypeVar("Item")
Result = TypeVar("Result")


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
        except (OSError, subprocess.CalledProcessError):
            if not machine:
                raise
            found[machine] = None
    return found


def run_all(chosen: Iterable[Cell], jobs: int = 4, tell: Callable[[Outcome], object] | None = None) -> list[Outcome]:
    """Run cells; what became of each, in the order given."""
    cells = list(chosen)
    victims()  # a container sees them, and cannot make them
    contained = [cell for cell in cells if ASKERS[cell[2]].container]
    found = dict(zip(contained, run_contained(contained, jobs, 60 + DEADLINE * len(contained)), strict=True)) if contained else {}
    rest = [cell for cell in cells if cell not in found]
    found.update(zip(rest, run_here(rest, jobs, tell), strict=True))
    return [found[cell] for cell in cells]


def run_here(cells: Sequence[Cell], jobs: int, tell: Callable[[Outcome], object] | None = None) -> list[Outcome]:
    """The same, for cells whose asker is in no container of its own, or that are in it already."""
    programs = victims()

    def one(cell: Cell) -> Outcome:
        victim = programs[PLACES[cell[1]].machine]
        if victim is None:
            return Outcome(" ".join(cell), "skipped", "material lacks a compiler for 32-bit programs")
        return run(OPERATIONS[cell[0]], PLACES[cell[1]], ASKERS[cell[2]], victim)

    found = run_processes(cells, one, jobs, tell)
    return [Outcome(" ".join(cell), "broken", r) if isinstance(r, str) else r for cell, r in zip(cells, found, strict=True)]


def run_processes(
    items: Sequence[Item], work: Callable[[Item], Result], jobs: int, tell: Callable[[Result], object] | None = None
) -> list[Result | str]:
    """Call work(item) for each, some at a time, each in a process of its own; a text where that did not answer."""
    waiting = list(enumerate(items))
    running: dict[int, tuple[int, int, float, bytes]] = {}  # by the pipe: index, pid, deadline, what came
    found: dict[int, Result | str] = {}
    while waiting or running:
        while waiting and len(running) < jobs:
            at, item = waiting.pop(0)
            fd, pid = _fork(work, item)
            running[fd] = (at, pid, time.monotonic() + 3 * DEADLINE, b"")
        for fd in select.select(list(running), [], [], 1.0)[0]:
            at, pid, end, data = running[fd]
            chunk = os.read(fd, 1 << 16)
            if chunk:
                running[fd] = (at, pid, end, data + chunk)
                continue
            del running[fd]
            os.close(fd)
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            if not data:
                found[at] = f"its own process ended with {status}"
                continue
            result = pickle.loads(data)
            found[at] = result
            if tell is not None:
                tell(result)
        for _, pid, end, _ in list(running.values()):
            if time.monotonic() > end:
                os.kill(pid, signal.SIGKILL)
    return [found[at] for at in sorted(found)]


def _fork(work: Callable[[Item], Result], item: Item) -> tuple[int, int]:
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            os.close(reader)
            data = pickle.dumps(work(item))
            with os.fdopen(writer, "wb") as out:
                out.write(data)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(writer)
    return reader, pid
