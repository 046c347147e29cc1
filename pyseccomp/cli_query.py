"""``pyseccomp query``, ``dump`` and ``explain``: what the kernel says of running processes."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import errno
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pyseccomp import criu, decode, formats, holder
from pyseccomp.cli_policy import argument
from pyseccomp.errors import NotPermittedError, PolicyError, TargetGoneError
from pyseccomp.explain import Opinion, explain
from pyseccomp.listeners import ListenerHolder
from pyseccomp.loaded import LoadedFilter
from pyseccomp.query import TaskState, ThreadState, dump, query
from pyseccomp.syscalls import Arch
from pyseccomp.text import printable, table

Add = Callable[..., argparse.ArgumentParser]


def add_commands(commands: Any, add: Add) -> None:
    """Give the command line its sub-commands query, dump and explain."""
    one = add(commands, "query", _query, "show what a process carries, thread by thread, and what its filters decide")
    one.add_argument("pid", type=int, nargs="?", metavar="PID")
    which = one.add_mutually_exclusive_group()
    which.add_argument("--tree", action="store_true", help="PID and all that descend from it, as a table")
    which.add_argument("--all", action="store_true", help="all processes that carry something, as a table")
    which.add_argument("--name", dest="held", metavar="NAME", help="the targets of the holder of that name, as a table")
    one.add_argument("--json", action="store_true", help="as JSON")
    one.add_argument(
        "--programs",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="read the programs, for which each thread is stopped for a moment (with one PID: yes; with --tree, --all: no)",
    )
    one = add(commands, "dump", _dump, "write the programs that a process carries to files")
    one.add_argument("pid", type=int, metavar="PID")
    one.add_argument("-o", "--output", required=True, metavar="OUT", help="the file; of several programs OUT.0 (the oldest), OUT.1...; - is stdout")
    one.add_argument("--format", choices=("bpf", "text", "c-header", "criu"), default="bpf", help="of the output (bpf); criu has all in one file")
    one.add_argument("--index", type=int, metavar="N", help="only this one: 0 is the oldest, -1 the newest")
    one = add(commands, "explain", _explain, "show what a process's filters say to a call: which one decides, and why")
    one.add_argument("pid", type=int, metavar="PID")
    one.add_argument("call", metavar="CALL", help="name or number")
    one.add_argument("args", nargs="*", metavar="ARG", help="arguments: 10, 0x10, O_WRONLY|O_CREAT, AT_FDCWD (0 if not given)")
    one.add_argument("--arch", metavar="ARCH", help="of the call, such as x86_64, x86 (if not given: this machine's)")


# ------------------------------------------------------------------ commands


def _query(options: argparse.Namespace) -> int:
    if (options.pid is None) != (options.all or options.held is not None):
        options.usage("give a PID, or --all or --name without one")
    if options.all or options.tree or options.held is not None:
        pids = _descent(options.pid) if options.tree else _everybody() if options.all else _held(options.held)
        states = list(_states(pids, bool(options.programs), options.all))
        if options.tree and not states:
            raise TargetGoneError(errno.ESRCH, f"query of pid {options.pid}: no such process")
        print(json.dumps([to_json(state) for state, _ in states], indent=2) if options.json else format_states(states))
        return 0
    state = query(options.pid, programs=options.programs is not False)
    print(json.dumps(to_json(state), indent=2) if options.json else format_state(state))
    return 0


def _dump(options: argparse.Namespace) -> int:
    chain = dump(options.pid)
    if not chain:
        raise PolicyError(f"dump of pid {options.pid}: it carries no filter")
    if options.index is not None:
        if not -len(chain) <= options.index < len(chain):
            raise PolicyError(f"dump of pid {options.pid}: it carries {len(chain)} filters, there is no number {options.index}")
        chain = (chain[options.index],)
    if options.format == "criu":
        files = [criu.dump([chain])]
    else:
        files = [formats.dump(one.program, options.format) for one in chain]
    if options.output == "-":
        if len(files) > 1:
            raise PolicyError(f"dump of pid {options.pid}: it carries {len(files)} filters; choose one by --index")
        sys.stdout.buffer.write(files[0])
        sys.stdout.buffer.flush()
        return 0
    for at, data in enumerate(files):
        path = options.output if len(files) == 1 else f"{options.output}.{at}"
        with open(path, "wb") as file:
            file.write(data)
        print(f"{path}: {len(data)} bytes")
    return 0


def _explain(options: argparse.Namespace) -> int:
    args = [argument(text, options.arch) for text in options.args]
    call = int(options.call, 0) if options.call[0].isdigit() else options.call
    found = explain(options.pid, call, args, arch=options.arch)
    for at in reversed(range(len(found.opinions))):
        print(_opinion(at, found.opinions[at], at == found.decides, Arch.of(options.arch)))
    print(f"the kernel answers: {decode.answer(found.action, Arch.of(options.arch))}" + ("" if found.opinions else " (there is no filter)"))
    return 0


def _opinion(at: int, opinion: Opinion, decides: bool, arch: Arch) -> str:
    lines = [f"{_title(at, opinion.filter)}: {decode.answer(opinion.decision.action, arch)}{'  <- decides' if decides else ''}"]
    if opinion.reasons is None:
        lines.append("  by arithmetic that has no short form: see disasm of its dump")
    elif not opinion.reasons:
        lines.append("  by the call's number alone, whatever its arguments")
    else:
        lines += [f"  {text}: {'yes' if held else 'no'}" for text, held in opinion.reasons]
    return "\n".join(lines)


# ----------------------------------------------------------------- processes


def _everybody() -> Iterator[tuple[int, int]]:
    for name in sorted((name for name in os.listdir("/proc") if name.isdigit()), key=int):
        yield int(name), 0


def _held(name: str) -> Iterator[tuple[int, int]]:
    for target in holder.ask(name, {"do": "show"}, 5.0)["targets"]:
        with contextlib.suppress(TargetGoneError):
            if query(target["pid"]).start_time == target["start_time"]:
                yield target["pid"], 0


def _descent(pid: int, depth: int = 0) -> Iterator[tuple[int, int]]:
    yield pid, depth
    try:
        children = sorted(
            {int(child) for task in os.listdir(f"/proc/{pid}/task") for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split()}
        )
    except OSError:
        return
    for child in children:
        yield from _descent(child, depth + 1)


def _states(pids: Iterator[tuple[int, int]], programs: bool, only_filtered: bool) -> Iterator[tuple[TaskState, int]]:
    for pid, depth in pids:
        try:
            state = query(pid)
            if only_filtered and state.state != "active":
                continue
            yield (query(pid, programs=True) if programs else state), depth
        except (TargetGoneError, NotPermittedError):
            continue


# -------------------------------------------------------------------- output


def to_json(state: TaskState) -> dict[str, Any]:
    """A process as JSON has it: what TaskState has, and each program once, by its digest."""
    programs: dict[str, Any] = {}
    threads = []
    for thread in state.threads:
        plain = {f.name: getattr(thread, f.name) for f in dataclasses.fields(thread) if f.name != "programs"}
        plain["programs"] = None if thread.programs is None else [one.program.digest.hex() for one in thread.programs]
        threads.append(plain)
        for one in thread.programs or ():
            programs.setdefault(one.program.digest.hex(), _program_json(one))
    whole = {f.name: getattr(state, f.name) for f in dataclasses.fields(state) if f.name not in ("threads", "listeners")}
    listeners = None if state.listeners is None else [dataclasses.asdict(one) for one in state.listeners]
    return {**whole, "threads": threads, "programs": programs, "listeners": listeners}


def _program_json(one: LoadedFilter) -> dict[str, Any]:
    decompiled = one.decompile()
    return {
        "instructions": len(one.program),
        "log": one.log,
        "known": one.known,
        "notifies": one.notified,
        "rules_exact": decompiled.exact,
        "rules": decompiled.text,
    }


def format_state(state: TaskState) -> str:
    """Put a process and its threads into a table, with what is known of its programs below."""
    head = f"process {state.pid}: {state.state}, user {state.uid}, {state.arch or 'architecture not readable'}"
    if state.kernel_thread:
        head += ", a kernel thread"
    rows = [("TID", "NAME", "STATE", "SECCOMP", "FILTERS", "NO_NEW_PRIVS", "TRACER")]
    for t in state.threads:
        told = (
            "?" if t.filters is None else str(t.filters),
            "?" if t.no_new_privs is None else str(int(t.no_new_privs)),
        )
        rows.append((str(t.tid), printable(t.name), t.state, t.seccomp or "none", *told, str(t.tracer or "-")))
    parts = [f"{head}\n{table(rows)}"]
    parts += [_chain(chain, tids) for chain, tids in _chains(state.threads).items()]
    parts += [f"programs not known: {reason}" for reason in state.unknown]
    if state.listeners is not None and any(one.program.notifies for t in state.threads for one in t.programs or ()):
        parts.append(_holders(state.listeners))
    return "\n\n".join(parts)


def _chains(threads: Sequence[ThreadState]) -> dict[tuple[LoadedFilter, ...], list[int]]:
    found: dict[tuple[LoadedFilter, ...], list[int]] = {}
    for thread in threads:
        if thread.programs:
            found.setdefault(thread.programs, []).append(thread.tid)
    return found


def _chain(chain: tuple[LoadedFilter, ...], tids: list[int]) -> str:
    who = f"thread {tids[0]}" if len(tids) == 1 else f"{len(tids)} threads"
    lines = [f"filters of {who}, the newest first, as the kernel runs them:"]
    for at in reversed(range(len(chain))):
        one = chain[at]
        lines.append(f"{_title(at, one)}")
        decompiled = one.decompile()
        lines += [f"  {line}" for line in decompiled.text.rstrip("\n").split("\n")]
        if decompiled.why is not None:
            lines.append(f"  (no policy says the same: {decompiled.why})")
    return "\n".join(lines)


def _title(at: int, one: LoadedFilter) -> str:
    parts = [f"#{at}: {len(one.program)} instructions, sha256 {one.program.digest.hex()[:12]}"]
    if one.known is not None:
        parts.append(f"known as {one.known}")
    if one.log:
        parts.append("logs")
    if one.program.notifies:
        parts.append("notifies" if one.notified is None else f"notifies {', '.join(one.notified)}")
    return ", ".join(parts)


def _holders(found: Sequence[ListenerHolder]) -> str:
    if not found:
        return "listeners: none that this user may see; without one, calls that are notified fail with ENOSYS"
    words = {True: "yes", False: "no", None: "?"}
    rows = [("LISTENER", "HOLDER", "FD", "NAME", "SERVED", "CALLS WAIT")]
    for one in found:
        number = "?" if one.listener is None else str(one.listener)
        rows.append((number, str(one.pid), str(one.fd), printable(one.name), words[one.served], words[one.waiting]))
    return f"listeners in use that this user may see (the kernel does not tell whose they are):\n{table(rows)}"


def format_states(states: Sequence[tuple[TaskState, int]]) -> str:
    """Put processes into a table, a line each."""
    rows: list[tuple[str, ...]] = [("PID", "NAME", "USER", "STATE", "SECCOMP", "FILTERS", "THREADS", "NO_NEW_PRIVS", "PROGRAMS")]
    for state, depth in states:
        alive = [t for t in state.threads if t.alive] or list(state.threads)
        counts = sorted({t.filters for t in alive if t.filters is not None})
        shown = [f"{'  ' * depth}{state.pid}", printable(alive[0].name) if alive else "?", str(state.uid), state.state]
        shown.append("/".join(sorted({t.seccomp or "none" for t in alive})))
        shown.append("-".join(str(n) for n in ([counts[0], counts[-1]] if len(counts) > 1 else counts)) or "?")
        shown += [str(len(alive)), "/".join(sorted({"?" if t.no_new_privs is None else str(int(t.no_new_privs)) for t in alive}))]
        chain = state.programs
        shown.append("" if chain is None else " ".join(one.known or one.program.digest.hex()[:12] for one in chain))
        rows.append(tuple(shown))
    return table(rows)
