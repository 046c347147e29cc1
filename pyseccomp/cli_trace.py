"""``pyseccomp trace`` and ``pyseccomp profile``: watch what programs call, and make policies of it."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import IO, Any

from pyseccomp import formats, profile
from pyseccomp.errors import PolicyError
from pyseccomp.policy import Policy
from pyseccomp.syscalls import Arch
from pyseccomp.text import printable, table
from pyseccomp.trace import Call, Tracer, comm, select_calls

Add = Callable[..., argparse.ArgumentParser]
INTERRUPTED = 130
_TOP = 10
_PROFILE = "seccomp-profile.json"
_CLEAR = "\033[H\033[J"
_LEGEND = "UNTIL NEXT: until the same thread's next traced call, which is no less than the call took."


def add_commands(commands: Any, add: Add) -> None:
    """Give the command line its sub-commands trace and profile."""
    one = add(commands, "trace", _trace, "show the system calls that a command or a process makes", error_status=125)
    _add_target(one)
    how = one.add_mutually_exclusive_group()
    how.add_argument("-c", "--count", action="store_true", help="no lines: count, and show a table at the end")
    how.add_argument("--table", action="store_true", help="no lines: a live table of counts and top talkers, on stderr")
    one.add_argument(
        "-e", metavar="trace=CALLS", help="only these: names, %%file, %%network, %%process, @groups; !CALLS: all others"
    )
    one.add_argument("-o", "--output", metavar="FILE", help="write there, not to stderr")
    one.add_argument("-s", "--strings", type=int, default=64, metavar="N", help="bytes of a string to show (64)")
    one.add_argument("-t", "--time", action="store_true", help="begin each line with the time of day")
    one = add(commands, "profile", _profile, "learn a policy from what a command or a process does", error_status=125)
    _add_target(one)
    one.add_argument(
        "-o", "--output", metavar="FILE", help=f"OCI seccomp JSON to write; - is stdout (if not given: a new file {_PROFILE})"
    )
    one.add_argument("--merge", metavar="OLD", help="an earlier profile, to which what is learnt is added")
    one.add_argument("--no-args", action="store_true", help="allow calls whatever their arguments")


def _add_target(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-p", "--pid", type=int, metavar="PID", help="a running process, with what it forks from now on")
    parser.add_argument("argv", nargs="*", metavar="CMD", help="the command and its arguments, after --")


def _check_target(options: argparse.Namespace) -> None:
    if (options.pid is None) == (not options.argv):
        options.usage("give a command after --, or -p PID")


@contextlib.contextmanager
def _targets(options: argparse.Namespace, tracer: Tracer) -> Iterator[None]:
    """Start or attach. A command gets Ctrl-C itself, as the terminal sends it: its end is ours."""
    if options.pid is not None:
        tracer.attach(options.pid)
        yield
        return
    tracer.launch(options.argv)
    before = [(number, signal.signal(number, signal.SIG_IGN)) for number in (signal.SIGINT, signal.SIGQUIT)]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def _status(tracer: Tracer) -> int:
    status = tracer.status or 0
    return status if status >= 0 else 128 - status


# --------------------------------------------------------------------- trace


def _trace(options: argparse.Namespace) -> int:
    _check_target(options)
    if not 0 <= options.strings <= 4096:
        options.usage(f"-s takes 0 to 4096, got {options.strings}")
    calls = select_calls(options.e) if options.e is not None else None
    lines = not (options.count or options.table)
    with contextlib.ExitStack() as stack:
        out = stack.enter_context(open(options.output, "w", encoding="utf-8")) if options.output else sys.stderr
        tracer = stack.enter_context(
            Tracer(calls, records=lines, snap=options.strings, from_exec=options.pid is None, errors=not lines)
        )
        begun = time.monotonic()
        interrupted = False
        try:
            with _targets(options, tracer):
                write = _writer(out, options.time) if lines else None
                tick = (lambda: _show(tracer, begun)) if options.table and sys.stderr.isatty() else None
                tracer.follow(write, tick)
        except KeyboardInterrupt:
            interrupted = True
        if not lines:
            print(format_counts(tracer, time.monotonic() - begun), file=out)
        out.flush()
        if interrupted:
            print("pyseccomp: no longer tracing; what was traced goes on, and a guardian lets its calls run", file=sys.stderr)
        return INTERRUPTED if interrupted else _status(tracer)


def _writer(out: IO[str], with_time: bool) -> Callable[[list[Call]], None]:
    offset = time.time_ns() - time.monotonic_ns()

    def write(calls: list[Call]) -> None:
        if with_time:
            out.write("".join(f"{call.tid:<7} {_clock(call.time_ns + offset)} {call}\n" for call in calls))
        else:
            out.write("".join(f"{call.tid:<7} {call}\n" for call in calls))
        out.flush()

    return write


def _clock(ns: int) -> str:
    return time.strftime("%H:%M:%S", time.localtime(ns // 1_000_000_000)) + f".{ns // 1000 % 1_000_000:06d}"


def _show(tracer: Tracer, begun: float) -> None:
    print(_CLEAR + format_counts(tracer, time.monotonic() - begun, rows=20), file=sys.stderr, flush=True)


def format_counts(tracer: Tracer, seconds: float, rows: int | None = None) -> str:
    """Put the counts into tables: by call, and by the busiest threads."""
    counts = tracer.counts()
    total = sum(c.count for c in counts)
    lines = [("CALLS", "%", "ERRORS", "UNTIL NEXT us (mean)", "(longest)", "CALL")]
    for c in counts[:rows]:
        mean = "" if c.mean_until_next_ns is None else f"{c.mean_until_next_ns / 1000:.1f}"
        longest = "" if c.mean_until_next_ns is None else f"{c.longest_until_next_ns / 1000:.1f}"
        where = "" if c.arch is None or c.arch is Arch.native() else f" ({c.arch.value})"
        lines.append((str(c.count), f"{100 * c.count / total:.1f}", _errors(c.errors), mean, longest, c.name + where))
    failed = None if tracer.errors_unknown is not None else sum(c.errors or 0 for c in counts)
    lines.append((str(total), "100.0" if total else "", _errors(failed), "", "", "total"))
    talkers = [("CALLS", "TID", "LAST CALL", "NAME")]
    now = time.monotonic_ns()
    for t in tracer.threads()[:_TOP]:
        since = f" {(now - t.since_ns) / 1e9:.1f} s ago" if t.last is not None else ""
        talkers.append((str(t.count), str(t.tid) if t.tid else "others", (t.last or "ended") + since, printable(comm(t.tid))))
    return f"{table(lines)}\n\n{table(talkers)}\n\n{total} calls in {seconds:.1f} s. {_LEGEND}{_about_errors(tracer)}"


def _errors(count: int | None) -> str:
    return "?" if count is None else str(count) if count else ""


def _about_errors(tracer: Tracer) -> str:
    if tracer.errors_unknown is not None:
        return f" ERRORS are not known: {tracer.errors_unknown}."
    return f" {tracer.errors_lost} more ERRORS came too fast to be counted." if tracer.errors_lost else ""


# ------------------------------------------------------------------- profile


def _profile(options: argparse.Namespace) -> int:
    _check_target(options)
    if options.output is None:
        if os.path.lexists(_PROFILE):
            options.usage(f"{_PROFILE} is there already: give -o FILE")
        options.output = _PROFILE
    old = _read_old(options.merge) if options.merge is not None else None
    watched = {} if options.no_args else profile.WATCHED
    with Tracer(watched=watched, from_exec=options.pid is None) as tracer:
        interrupted = False
        try:
            with _targets(options, tracer):
                if options.pid is None:
                    signal.signal(signal.SIGINT, _Interrupts(tracer, options, old))
                tracer.follow(on_tick=_progress(tracer), interval=0.5)
        except KeyboardInterrupt:
            interrupted = True
        if sys.stderr.isatty():
            print(file=sys.stderr)
        _write(tracer, options, old)
        return INTERRUPTED if interrupted and options.pid is None else _status(tracer)


class _Interrupts:
    """Ctrl-C: write what was learnt so far; the command gets it too. A second one ends the learning."""

    def __init__(self, tracer: Tracer, options: argparse.Namespace, old: Policy | None) -> None:
        self._arguments = tracer, options, old
        self._seen = False

    def __call__(self, *_: object) -> None:
        if self._seen:
            raise KeyboardInterrupt
        self._seen = True
        _write(*self._arguments)


def _read_old(path: str) -> Policy:
    found = formats.load(path)
    if not isinstance(found, Policy):
        raise PolicyError(f"--merge {path}: it is a program, not a profile with rules")
    return found


def _progress(tracer: Tracer) -> Callable[[], None] | None:
    if not sys.stderr.isatty():
        return None

    def show() -> None:
        counts = tracer.counts()
        calls = sum(c.count for c in counts)
        print(f"\rlearning: {calls} calls, {len(counts)} different, {len(tracer.threads())} threads", end="", file=sys.stderr, flush=True)

    return show


def _write(tracer: Tracer, options: argparse.Namespace, old: Policy | None) -> None:
    calls, arches = profile.learnt(tracer)
    if options.no_args:
        calls = dict.fromkeys(calls)
    policy = profile.make_policy(calls, arches) if old is None else profile.merge(old, calls, arches)
    text = json.dumps(policy.to_oci(), indent=1) + "\n"
    if options.output == "-":
        sys.stdout.write(text)
        sys.stdout.flush()
    else:
        scratch = f"{options.output}.{os.getpid()}"
        with open(scratch, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(scratch, options.output)
    made = sum(c.count for c in tracer.counts())
    print(f"learnt {len(calls)} calls from {made} made, on {', '.join(a.value for a in arches)}: {options.output}", file=sys.stderr)
    for name in profile.unnamed(tracer):
        print(f"NOT in the profile, as this release has no name for it: {name}", file=sys.stderr)
