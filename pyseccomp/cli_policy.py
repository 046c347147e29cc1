"""Policies and answers as the command line takes them."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Callable
from typing import Any

from pyseccomp import actions, constants, formats
from pyseccomp.actions import Action
from pyseccomp.errors import PolicyError
from pyseccomp.policy import Policy
from pyseccomp.program import Program
from pyseccomp.syscalls import Arch, ArchLike, local_arches

MAX_FILE = 16 << 20
_TOLD = 8
_RULES: dict[str, tuple[str, str]] = {
    "deny": ("NAME[=ERRNO]", "refuse with an errno, EPERM if none is given"),
    "notify": ("NAME", "ask the supervisor (see --answer)"),
    "kill": ("NAME", "kill the process"),
    "trap": ("NAME", "send SIGSYS, which the program may handle"),
    "log": ("NAME", "let pass and log"),
    "allow": ("NAME", "let pass"),
}
_ACTIONS = {
    "notify": actions.NOTIFY,
    "kill": actions.KILL_PROCESS,
    "trap": actions.TRAP,
    "log": actions.LOG,
    "allow": actions.ALLOW,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give a sub-command the ways to name a policy."""
    group = parser.add_argument_group("policy", "a file, or rules; NAME is one or several system calls: mkdir,mkdirat")
    group.add_argument("--policy", metavar="P", help="a file of any format: OCI seccomp JSON, Firecracker's, minijail's, BPF raw, as C or text; - is stdin")
    for name, (metavar, text) in _RULES.items():
        group.add_argument(f"--{name}", metavar=metavar, dest="rules", action=_Rule, help=text)
    group.add_argument(
        "--default",
        metavar="ACTION",
        help="for all other calls: allow (if not given), log, notify, trap, kill, or an errno",
    )


class _Rule(argparse.Action):
    """Keep rules in the order given, with the option's name."""

    def __call__(
        self, parser: object, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        rules = list(getattr(namespace, self.dest) or [])
        rules.append(((option_string or "").lstrip("-"), values))
        setattr(namespace, self.dest, rules)


def load(options: argparse.Namespace) -> Program:
    """Make the program that the options name. Raises as :func:`source` does."""
    return formats.program(source(options))


def source(options: argparse.Namespace) -> Policy | Program:
    """Read the policy that the options name, with its flags, for a Filter.

    Raises PolicyError when they name none or contradict each other, and whatever the file or a rule deserves.
    """
    if options.policy is not None:
        if options.rules or options.default:
            raise PolicyError("--policy and single rules exclude each other: put the rules into the file")
        return read_file(options.policy, options if hasattr(options, "dialect") else None)
    return build(options)


def build(options: argparse.Namespace) -> Policy:
    """Make the policy of the single rules that the options give, for the architecture that they name.

    They name none: for all whose programs can run here; a number is then one of this machine's own.
    """
    arch = getattr(options, "arch", None)
    if not options.rules and not options.default:
        raise PolicyError("no policy: give --policy FILE, or rules such as --deny mkdirat=EPERM --notify openat")
    policy = Policy(_default(options.default or "allow", arch), local_arches() if arch is None else arch)
    for option, text in options.rules or ():
        for name in _names(option, text):
            action = _action(option, text, arch)
            policy.add(action, int(name), arch=Arch.of(arch)) if name.isdigit() else policy.add(action, name)
    return policy


def add_file_arguments(parser: argparse.ArgumentParser, arch: str = "the architecture it is for (this machine's); raw BPF is for any") -> None:
    """Give a sub-command what else can be told of a policy file; arch is the help of that option."""
    group = parser.add_argument_group("policy files")
    group.add_argument("--caps", metavar="CAP,...", default="", help="OCI: the container's capabilities (none)")
    group.add_argument("--arch", metavar="ARCH", help=arch)
    group.add_argument("--kernel", metavar="X.Y", help="OCI: the release that minKernel is compared with (this machine's)")
    group.add_argument("--thread", metavar="NAME", help="Firecracker: which filter of the file")
    group.add_argument(
        "--dialect", choices=("minijail0", "compiler"), default="minijail0", help="minijail: the program the file is written for (minijail0)"
    )
    group.add_argument(
        "--constants", metavar="FILE", help="minijail: a constants.json, whose names are added to the kernel's or replace them"
    )


def read_file(path: str, options: argparse.Namespace | None = None) -> Policy | Program:
    """Read a policy file of any format, with what add_file_arguments() added; - is stdin."""
    return _told(_parse(_read(path), path, options, None if options is None else options.arch), path)


def read_file_for_call(path: str, options: argparse.Namespace) -> Policy | Program:
    """Read a policy file for this machine, or for the architecture that the options name if the policy is not about it."""
    data = _read(path)
    try:
        found = _parse(data, path, options, None)
    except PolicyError:
        if options.arch is None:
            raise
        found = None
    if options.arch is not None and (found is None or (isinstance(found, Policy) and Arch.of(options.arch) not in found.arches)):
        found = _parse(data, path, options, options.arch)
    assert found is not None
    return _told(found, path)


def _parse(data: bytes, path: str, options: argparse.Namespace | None, arch: str | None) -> Policy | Program:
    if options is None:
        return formats.parse(data, path)
    return formats.parse(
        data,
        path,
        caps=[cap for cap in options.caps.split(",") if cap],
        arch=arch,
        kernel=options.kernel,
        thread=options.thread,
        dialect=options.dialect,
        constants=options.constants,
    )


def _told(source: Policy | Program, path: str) -> Policy | Program:
    """Say which names of an OCI profile were passed over, as engines do: one may be misspelt."""
    ignored = source.ignored if isinstance(source, Policy) else ()
    if ignored:
        more = f" and {len(ignored) - _TOLD} more" if len(ignored) > _TOLD else ""
        print(f"{path}: no system call anywhere, passed over: {', '.join(ignored[:_TOLD])}{more}"[:1000], file=sys.stderr)
    return source


def _read(path: str) -> bytes:
    if path == "-":
        data = sys.stdin.buffer.read(MAX_FILE + 1)
    else:
        with open(path, "rb") as file:
            data = file.read(MAX_FILE + 1)
    if len(data) > MAX_FILE:
        raise PolicyError(f"{path}: larger than {MAX_FILE >> 20} MiB: not a policy")
    return data


def _names(option: str, text: str) -> list[str]:
    names = text.partition("=")[0].split(",")
    if not all(names):
        raise PolicyError(f"--{option} {text}: a system call's name is missing")
    return names


def _action(option: str, text: str, arch: ArchLike = None) -> Action:
    _, given, value = text.partition("=")
    if option == "deny":
        return actions.ERRNO(errno_number(value, arch) if given else errno.EPERM)
    if given:
        raise PolicyError(f"--{option} {text}: only --deny takes a value")
    return _ACTIONS[option]


def _default(text: str, arch: ArchLike = None) -> Action:
    return _ACTIONS[text.lower()] if text.lower() in _ACTIONS else actions.ERRNO(errno_number(text, arch))


def argument(text: str, arch: ArchLike = None) -> int:
    """Turn an argument of a call into a number: 10, 0x10, O_WRONLY|O_CREAT, AT_FDCWD, SIGTERM, AF_INET...

    Raises:
        PolicyError: it is neither a number nor made of constants of the architecture.
    """
    value = 0
    for part in text.split("|"):
        value |= _constant(part.strip(), arch)
    return value


def _constant(text: str, arch: ArchLike) -> int:
    found = constants.find(text, arch)
    if found is not None:
        return found
    try:
        return int(text, 0)
    except ValueError:
        hint = constants.Table(arch).hint(text)
        what = "a number, or constants such as O_WRONLY|O_CREAT, AT_FDCWD, SIGTERM"
        raise PolicyError(f"{text!r:.60} is no argument: {what}{hint}") from None


def errno_number(text: str, arch: ArchLike = None) -> int:
    """Turn EPERM or 1 into 1, with the numbers of an architecture (the native one unless told)."""
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else constants.errno_number(text.upper(), arch)
    if number is None or not 0 < number < 4096:
        raise PolicyError(f"{text!r} is not an errno: a name like EPERM, or a number from 1 to 4095")
    return number


def errno_text(number: int, arch: ArchLike = None) -> str:
    """Turn 1 into EPERM."""
    return constants.errno_name(number, arch) or f"errno {number}"


def parse_answer(text: str) -> tuple[str | None, Callable[[], Any], str]:
    """Split NAME=ANSWER, or ANSWER alone for all others: the name, a maker of the answer, and how to print it."""
    from pyseccomp import responder

    name, given, what = text.rpartition("=")
    what = what.strip()
    if given and not name:
        raise PolicyError(f"--answer {text}: a system call's name is missing before '='")
    target = name or None
    if what == "allow":
        return target, responder.allow, "allow"
    if what == "kill":
        return target, responder.kill, "kill"
    if what.startswith("reply:"):
        try:
            value = int(what[6:], 0)
        except ValueError:
            raise PolicyError(f"--answer {text}: reply: takes a number") from None
        return target, lambda: responder.reply(value), f"reply {value}"
    try:
        number = errno_number(what)
    except PolicyError:
        raise PolicyError(
            f"--answer {text}: an answer is allow, kill, reply:NUMBER or an errno such as EACCES"
        ) from None
    return target, lambda: responder.deny(number), f"deny {os.strerror(number)} ({errno_text(number)})"
