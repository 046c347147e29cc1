"""``pyseccomp attach --tree`` and ``--cgroup``: a filter on many processes, and a table of who got it."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pyseccomp import cli_holder
from pyseccomp.errors import PartialAttachError
from pyseccomp.filter import Filter
from pyseccomp.group import GroupAttachment, MemberOutcome
from pyseccomp.text import printable, table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give ``attach`` the options that name many processes."""
    group = parser.add_argument_group("many processes", "all are stopped before the first is filtered")
    group.add_argument("--tree", action="store_true", help="PID and all its descendants")
    group.add_argument("--cgroup", metavar="DIR", help="instead of PID: all processes of this cgroup (v1 or v2) and of those below it")
    group.add_argument(
        "--follow", action="store_true", help="with --cgroup: filter what enters it later too, until this command ends; it stays for that"
    )
    group.add_argument(
        "--on-error",
        choices=("abort", "skip"),
        help="when one refuses: abort: nobody is filtered; skip: it is left as it is, the others are filtered (abort)",
    )


def wanted(options: argparse.Namespace) -> bool:
    """Whether many processes are meant; ends with a usage error where the options contradict each other."""
    many = options.tree or options.cgroup is not None
    if (options.pid is None) == (options.cgroup is None):
        options.usage("give PID or --cgroup DIR" if options.pid is None else "give PID or --cgroup DIR, not both")
    if options.tree and options.cgroup is not None:
        options.usage("--tree goes with PID; --cgroup takes the cgroups below it anyway")
    if options.follow and options.cgroup is None:
        options.usage("--follow goes with --cgroup")
    if not many and options.on_error is not None:
        options.usage("--on-error goes with --tree or --cgroup")
    if many and (options.gate or options.on is not None or options.deadline is not None or options.on_death is not None):
        options.usage("--gate, --on, --deadline and --on-death are for one process, not for --tree or --cgroup")
    if many and options.held is not None:
        options.usage("--name is for one process, not for --tree or --cgroup")
    return many


def bind(options: argparse.Namespace, filter: Filter) -> GroupAttachment:
    """Make the inactive attachment that the options describe."""
    on_error: Literal["abort", "skip"] = options.on_error or "abort"
    pid: int = options.pid
    cgroup: str | None = options.cgroup
    with cli_holder.usage(options):
        if cgroup is not None:
            return filter.attach(cgroup=cgroup, follow=options.follow, active=False, on_error=on_error, timeout=options.timeout)
        return filter.attach(pid, tree=True, active=False, on_error=on_error, timeout=options.timeout)


def activate(group: GroupAttachment) -> None:
    """Activate, and print who got it; the table of a failure goes to stderr."""
    try:
        group.activate()
    except PartialAttachError as error:
        print(outcomes(error.results), file=sys.stderr)
        raise
    result = group.result
    assert result is not None
    extra = ", no_new_privs was set" if result.no_new_privs_set else ""
    print(outcomes(group.results))
    found = group.query()
    if found.strays:
        print(table([("PID", "NAME", "NOT FILTERED, BECAUSE IT"), *((str(one.pid), _name(one.pid), one.reason) for one in found.strays)]))
    print(
        f"{found.state}: {group.what}, {len(group.attachments)} of {len(group.results)} processes, {len(result.threads)} threads, "
        f"stopped for {result.stop_ns / 1e6:.3f} ms{extra}",
        flush=True,
    )


def outcomes(results: Sequence[MemberOutcome]) -> str:
    """Put what became of each process into a table."""
    rows = [("PID", "NAME", "OUTCOME", "THREADS", "WHY")]
    for one in results:
        result = one.attachment.result if one.attachment is not None else None
        threads = str(len(result.threads)) if result is not None else ""
        rows.append((str(one.pid), _name(one.pid), one.outcome, threads, one.reason))
    return table(rows)


def _name(pid: int) -> str:
    with contextlib.suppress(OSError):
        return printable(Path(f"/proc/{pid}/comm").read_text(errors="surrogateescape").rstrip("\n"))
    return "?"

