"""``pyseccomp activate`` and ``agent``, and what ``attach`` takes to be activated later, or to be held by a name."""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

from pyseccomp import cli_leave, cli_policy, holder
from pyseccomp.errors import PolicyError, ReclaimError
from pyseccomp.holder import Background, Message
from pyseccomp.responder import KINDS, Responder, deny
from pyseccomp.text import table
from pyseccomp.triggers import TRIGGERS

Add = Callable[..., argparse.ArgumentParser]

_TIME = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)?")
_UNITS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, None: 1.0}

_HELD = (
    "A holder is a process that keeps the filter and the listener, and ends with its targets. If it dies, what was inactive stays "
    "so, unless --deadline was given, which counts as come; a gate is active and answered from then on; notified calls without "
    "--on-death fail with ENOSYS; what the kernel denies stays denied. An agent that a signal ends (SIGINT, SIGTERM, SIGHUP) leaves "
    "a holder of its name in the background, which answers on."
)


def add_moments(parser: argparse.ArgumentParser) -> None:
    """Give a sub-command what says how, and when, a filter comes into force."""
    group = parser.add_argument_group("when", "if nothing is given: at once")
    group.add_argument("--gate", action="store_true", help="put it into the kernel, asking: turned for all tasks under it at once")
    group.add_argument(
        "--on", metavar="EVENT", help="activate at: exec, fork, a system call by name (which is let run), or a time such as 5s, 200ms, 2m"
    )
    group.add_argument("--deadline", metavar="TIME", help="with --inactive, or --on SYSCALL or TIME: do what --on-deadline says then, or when we die before")
    group.add_argument("--on-deadline", choices=("activate", "kill"), default="activate", help="(activate)")
    group.add_argument(
        "--on-death",
        metavar="ANSWER",
        help="what notified calls get when we are dead: allow, kill, an errno, or hold (until ps.reclaim(NAME)); ENOSYS if not given",
    )
    group.add_argument("--timeout", type=float, default=5.0, metavar="SECONDS", help="for all threads to stop (5)")


def add_commands(commands: Any, add: Add, add_answers: Callable[[argparse.ArgumentParser], None]) -> None:
    """Give the command line its sub-commands activate and agent."""
    one = add(commands, "activate", _activate, "activate what `attach --name` or `agent` holds, or turn or end it")
    one.epilog = _HELD
    one.add_argument("held", nargs="?", metavar="NAME")
    which = one.add_mutually_exclusive_group()
    which.add_argument("--list", action="store_true", help="show all that is held, with what the kernel says of it")
    which.add_argument("--pause", action="store_true", help="let a gate's calls run again")
    which.add_argument("--resume", action="store_true", help="end the pause")
    which.add_argument("--harden", action="store_true", help="put the policy itself under the gate, which then costs nothing")
    which.add_argument("--close", action="store_true", help="end the holder: what is inactive is given up")
    one.add_argument("--force", action="store_true", help="with --close: even if calls will fail with ENOSYS")
    one.add_argument("--json", action="store_true", help="as JSON")
    one = add(commands, "agent", _agent, "hold a filter by name, in the foreground, until its targets end")
    one.epilog = _HELD
    one.add_argument("pid", type=int, nargs="?", metavar="PID", help="if not given: wait for `attach PID --name NAME`")
    one.add_argument("--name", required=True, dest="held", metavar="NAME", help="by which other commands find it")
    one.add_argument("--inactive", action="store_true", help="bind only, until `activate NAME`")
    cli_policy.add_arguments(one)
    add_moments(one)
    add_answers(one)


# --------------------------------------------------------------------- options


def seconds(text: str) -> float:
    """Read a time: 5, 5s, 200ms, 2m, 1h. PolicyError for what is none."""
    found = _TIME.fullmatch(text)
    if found is None:
        raise PolicyError(f"{text!r} is no time: 5s, 200ms, 2m, 1h")
    return float(found[1]) * _UNITS[found[2]]


def moments(options: argparse.Namespace) -> Message:
    """Make of the options what :func:`holder.attach_arguments` takes."""
    if options.on is not None and options.inactive:
        options.usage("--on says when it becomes active; leave --inactive out (`activate NAME` does it before that)")
    how: Message = {"timeout": options.timeout, "mode": "gate" if options.gate else "auto"}
    if options.on is None:
        how["active"] = not options.inactive
    else:
        how["activate_on"] = seconds(options.on) if options.on[:1].isdigit() else options.on
    if options.deadline is not None:
        if not options.inactive and options.on in (None, "exec", "fork", "fork-all"):
            options.usage("--deadline goes with --inactive, or with --on SYSCALL or TIME")
        how |= {"deadline": seconds(options.deadline), "on_deadline": options.on_deadline}
    if options.on_death is not None:
        words = ("allow", "kill", "hold")
        text = options.on_death.removeprefix("deny=")
        how["on_supervisor_death"] = text if text in words else cli_policy.errno_number(text)
    elif options.gate or (isinstance(how.get("activate_on"), str) and options.on not in TRIGGERS):
        how["on_supervisor_death"] = _answer_of_a_gate(options)
    return how


def _answer_of_a_gate(options: argparse.Namespace) -> str | int:
    """What a gate's standby process answers to notified calls when the command or the holder is dead: the default of --answer."""
    given = [make() for name, make, _ in map(cli_policy.parse_answer, options.answer) if name is None]
    last = given[-1] if given else deny()
    return {"allow": "allow", "kill": "kill"}.get(KINDS[last.kind], last.error or errno.EPERM)


@contextlib.contextmanager
def usage(options: argparse.Namespace) -> Iterator[None]:
    """Options that contradict each other are a wrong command line."""
    try:
        yield
    except ValueError as error:
        if type(error) is not ValueError:
            raise
        options.usage(str(error).removeprefix("attach: "))


def background(options: argparse.Namespace, name: str, responder: Responder) -> Background:
    """Make the holder that the options describe; nobody is touched yet."""
    how = moments(options)
    filter: dict[str, Any] = {"policy": cli_policy.source(options)}
    if how.get("on_supervisor_death") == "hold":
        filter["name"] = name
    return Background(name, filter, responder, options.pid, how)


# ------------------------------------------------------------------ commands


def hold(options: argparse.Namespace, responder: Responder) -> int:
    """``attach --name``: have a holder in the background, new or (without a policy) there already."""
    with usage(options):
        if options.policy is None and not options.rules and not options.default:
            answer = _add_target(options)
        else:
            answer = background(options, options.held, responder).start()
    print("\n".join(_lines(answer, options.pid)))
    return 0


def _add_target(options: argparse.Namespace) -> Message:
    try:
        return holder.ask(options.held, {"do": "attach", "pid": options.pid, "how": moments(options)})
    except ReclaimError as error:
        if error.errno == errno.ENOENT:
            error.add_note("a policy would start one: give --policy FILE, or rules such as --deny mkdirat=EPERM")
        raise


def _agent(options: argparse.Namespace) -> int:
    from pyseccomp import cli_run

    said = ""
    with usage(options):
        plan = background(options, options.held, cli_run.responder(options, options.quiet))
        held = plan.open()
        try:
            with holder.serving_signals(held) as came:
                if plan.pid is not None:
                    held.attach(plan.pid, plan.how)
                print("\n".join(_lines(held.show(), None)), flush=True)
                held.tell = _tell
                held.run()
                if came:
                    held.retire()
                    said = cli_leave.carry_on(held.filter, cli_run.responder(options, quiet=True), "agent", options.held)
        finally:
            held.close()
    if came:
        ended = cli_leave.Ended(came[0])
        if said:
            ended.add_note(said)
    if held.error is not None:
        raise held.error
    if came:
        raise ended
    return 0


def _tell(pid: int, state: str, why: str) -> None:
    print(f"{state}: process {pid}: {why}", flush=True)


def _activate(options: argparse.Namespace) -> int:
    if options.list == (options.held is not None):
        options.usage("give a NAME, or --list without one")
    if options.force and not options.close:
        options.usage("--force goes with --close")
    if options.list:
        found = holder.show_all()
        print(json.dumps(found, indent=2) if options.json else _table(found))
        return 0
    doing = next((word for word in ("pause", "resume", "harden", "close") if getattr(options, word)), "activate")
    answer = holder.ask(options.held, {"do": doing, "force": options.force})
    if options.json:
        print(json.dumps(answer, indent=2))
    elif doing == "close":
        print(f"closed: {options.held}, process {answer['pid']} gives it up")
    else:
        print("\n".join(_lines(answer, None)))
    return 0


# -------------------------------------------------------------------- output


def _lines(answer: Message, pid: int | None) -> Iterator[str]:
    """A line for each target, or for the one, with the state first."""
    held = f"held as {answer['name']} by process {answer['pid']}"
    targets = [one for one in answer["targets"] if pid in (None, one["pid"])][-1 if pid is not None else 0 :]
    if not targets:
        yield f"detached: {answer['instructions']} instructions; {held}"
    for one in targets:
        yield f"{_state(one)}: process {one['pid']}, {one['threads']} threads, {one['mode']}; {held}"
    if answer["more"]:
        yield f"... and {answer['more']} more"


def _state(target: Message) -> str:
    return ", ".join([target["state"], *target["notes"]])


def _table(found: list[Message]) -> str:
    rows = [("NAME", "HOLDER", "PID", "MODE", "STATE", "WHY")]
    for one in found:
        if "error" in one:
            rows.append((one["name"], "?", "?", "?", "?", one["error"]))
            continue
        head = (one["name"], str(one["pid"]))
        rows += [(*head, str(t["pid"]), t["mode"], _state(t), t["why"]) for t in one["targets"]]
        if not one["targets"]:
            rows.append((*head, "-", "-", "detached", ""))
        if one["more"]:
            rows.append((*head, f"+{one['more']}", "", "", ""))
    return table(rows)
