"""The command ``pyseccomp``: one sub-command per function.

Exit status: 0 done; 1 an error of this package or of a file, in one line on stderr (``check`` and ``demo``: something
did not work; ``diff``: they differ); 2 the command line was wrong (``diff``: or a file); 130 interrupted by Ctrl-C, 128 + N ended by
another signal. ``run`` exits as its command did (128 + N when
signal N killed it), with 125 when it could not start it under the filter, 126 when it cannot be executed, and 127 when
there is no such command.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from pyseccomp import cli_group, cli_holder, cli_policy, cli_query, cli_trace, formats, syscalls
from pyseccomp.cli_leave import Ended
from pyseccomp.cli_policy import errno_text
from pyseccomp.decompile import decompile
from pyseccomp.errors import PolicyError, SeccompError
from pyseccomp.features import Feature, features
from pyseccomp.policy import Policy
from pyseccomp.policy import Policy
from pyseccomp.program import Program
from pyseccomp.text import table

Command = Callable[[argparse.Namespace], int]

FAILED, INTERRUPTED = 1, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    options = _parser().parse_args(argv)
    command: Command = options.command
    try:
        status = command(options)
        sys.stdout.flush()  # here, where a reader that has left is expected
        return status
    except KeyboardInterrupt as interrupt:
        what, status = interrupt.told if isinstance(interrupt, Ended) else ("interrupted", INTERRUPTED)
        print("; ".join([f"pyseccomp: {what}", *getattr(interrupt, "__notes__", [])]), file=sys.stderr)
        return status
    except BrokenPipeError:
        # Whoever read our output has enough; Python must not try to flush the rest at exit.
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        return FAILED
    except (SeccompError, OSError) as error:
        print(f"pyseccomp {options.name}: {explain(error)}", file=sys.stderr)
        return getattr(options, "error_status", FAILED)


def explain(error: Exception) -> str:
    """Put an error on one line: its class, what it says, and its notes."""
    text = str(error)
    if isinstance(error, OSError) and error.errno is not None and isinstance(error, SeccompError):
        text = str(error.args[1]) if len(error.args) > 1 else text
    elif isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror
    notes = getattr(error, "__notes__", [])
    return f"{type(error).__name__}: {'; '.join([text, *notes])}".replace("\n", " ")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pyseccomp", description="Seccomp filters as objects.", epilog=_exit_status())
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(dest="name", metavar="COMMAND", required=True)
    _add_run(commands)
    _add_attach(commands)
    cli_holder.add_commands(commands, _add, _add_answers)
    cli_query.add_commands(commands, _add)
    one = _add(commands, "check", _check, "try what this kernel, this user and this container allow")
    one.add_argument("--json", action="store_true", help="as JSON")
    one = _add(commands, "compile", _compile, "write a policy in another format")
    one.add_argument("file", nargs="?", metavar="IN", help="a file of any format, as --policy takes it")
    cli_policy.add_arguments(one)
    one.add_argument("--format", choices=formats.OUTPUTS, default="bpf", help="of the output (bpf)")
    cli_policy.add_file_arguments(one)
    one.add_argument("-o", "--output", required=True, metavar="OUT", help="file to write; - is stdout")
    one = _add(commands, "disasm", _disasm, "show the program of a policy file, or of raw BPF, as text")
    one.add_argument("file", metavar="FILE", help="a file of any format, as --policy takes it; - is stdin")
    cli_policy.add_file_arguments(one)
    one.add_argument("--rules", action="store_true", help="show what it decides, by architecture and call, not its instructions")
    one = _add(commands, "diff", _diff, "show a call for each that two policies answer differently", error_status=2)
    one.add_argument("first", metavar="A", help="a file of any format")
    one.add_argument("second", metavar="B", help="a file of any format; - is stdin")
    cli_policy.add_file_arguments(one)
    _add_simulate(commands)
    cli_trace.add_commands(commands, _add)
    _add(commands, "demo", _demo, "the whole path on a real server: detach, bind, activate under load, answer, query")
    return parser


def _version() -> str:
    try:
        version = importlib.metadata.version("pyseccomp-objects")
    except importlib.metadata.PackageNotFoundError:
        version = "(not installed)"
    return f"pyseccomp {version}, system calls of Linux {syscalls.KERNEL} (from the headers of {syscalls.HEADERS}, and what came since)"


def _exit_status() -> str:
    return "exit status: " + (__doc__ or "").partition("Exit status: ")[2].strip()


def _add(commands: Any, name: str, command: Command, text: str, error_status: int = FAILED) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.set_defaults(command=command, error_status=error_status, usage=parser.error)
    return parser


def _add_run(commands: Any) -> None:
    one = _add(commands, "run", _run, "start a command under a policy", error_status=125)
    cli_policy.add_arguments(one)
    _add_answers(one)
    one.add_argument("--on", choices=("exec",), help="exec: in force from CMD's first instruction, so the policy may deny execve")
    one.add_argument("argv", nargs="+", metavar="CMD", help="the command and its arguments, after --")


def _add_attach(commands: Any) -> None:
    one = _add(commands, "attach", _attach, "put a policy into a running process")
    one.add_argument("pid", type=int, nargs="?", metavar="PID")
    cli_policy.add_arguments(one)
    one.add_argument("--inactive", action="store_true", help="bind only; activate on Enter, on SIGUSR1, or --after; with --name by `activate NAME`")
    one.add_argument("--after", type=float, metavar="SECONDS", help="with --inactive, without --name: activate after that time")
    one.add_argument(
        "--name",
        dest="held",
        metavar="NAME",
        help="return at once, and leave the filter with a holder, a process in the background, by that name; without a policy: with "
        "the one that has it already",
    )
    cli_group.add_arguments(one)
    cli_holder.add_moments(one)
    _add_answers(one)


def _add_answers(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("answers", "for a policy that notifies; each answer is printed to stderr")
    group.add_argument(
        "--answer",
        action="append",
        default=[],
        metavar="[NAME=]ANSWER",
        help="allow, kill, reply:NUMBER or an errno; without NAME for all others (if not given: EPERM)",
    )
    group.add_argument(
        "--quiet", action="store_true", help="print no answers: they are then given without Python, in C"
    )


def _add_simulate(commands: Any) -> None:
    one = _add(commands, "simulate", _simulate, "show what a policy answers to a call, without a kernel")
    cli_policy.add_arguments(one)
    cli_policy.add_file_arguments(
        one, "of the call, such as x86_64, x86, aarch64, and of a policy that names none (if not given: this machine's)"
    )
    one.add_argument("call", metavar="CALL", help="name or number")
    one.add_argument("args", nargs="*", metavar="ARG", help="arguments: 10, 0x10, O_WRONLY|O_CREAT, AT_FDCWD")


# ------------------------------------------------------------------ commands


def _run(options: argparse.Namespace) -> int:
    from pyseccomp import cli_run

    return cli_run.run(options)


def _attach(options: argparse.Namespace) -> int:
    from pyseccomp import cli_run

    return cli_run.attach(options)


def _demo(options: argparse.Namespace) -> int:
    from pyseccomp import demo

    return demo.main()


def _check(options: argparse.Namespace) -> int:
    found = features()
    missing = [f for f in found if f.needed and not f.available]
    if options.json:
        print(json.dumps({"ok": not missing, "features": [dataclasses.asdict(f) for f in found]}, indent=2))
    else:
        print(format_features(found))
        print("\n" + verdict(missing))
    return FAILED if missing else 0


def _compile(options: argparse.Namespace) -> int:
    if options.file is not None and options.policy is not None:
        raise PolicyError("IN and --policy name the same thing: give one of them")
    path = options.policy if options.file is None else options.file
    if path is not None and (options.rules or options.default):
        raise PolicyError("a policy file and single rules exclude each other: put the rules into the file")
    source = cli_policy.build(options) if path is None else cli_policy.read_file(path, options)
    data = formats.dump(source, options.format)
    flags = source.flags if isinstance(source, Policy) and options.format != "oci" else ()
    if flags:
        print(f"{path}: a program holds no flags, its loader gives them: {', '.join(flags)}", file=sys.stderr)
    if options.output == "-":
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return 0
    with open(options.output, "wb") as file:
        file.write(data)
    if options.format == "oci":
        print(f"{options.output}: {len(data)} bytes")
    else:
        program = formats.program(source)
        print(f"{options.output}: {len(program)} instructions, sha256 {program.digest.hex()}")
    return 0


def _diff(options: argparse.Namespace) -> int:
    first, second = (cli_policy.read_file(path, options) for path in (options.first, options.second))
    status = 0
    for one in formats.differences(first, second):
        print(one)
        status = 1
    return status


def _disasm(options: argparse.Namespace) -> int:
    program = formats.program(cli_policy.read_file(options.file, options))
    print(decompile(program).text if options.rules else program.disassemble())
    return 0


def _simulate(options: argparse.Namespace) -> int:
    program = formats.program(_simulated(options))
    args = [cli_policy.argument(text, options.arch) for text in options.args]
    call = int(options.call, 0) if options.call[0].isdigit() else options.call
    decision = program.simulate(call, args=args, arch=options.arch)
    data = f" {errno_text(decision.data, options.arch)}" if decision.action.name == "ERRNO" and decision.data else ""
    print(f"{decision.action.name}{data} after {decision.executed} of {len(program)} instructions")
    return 0


def _simulated(options: argparse.Namespace) -> Policy | Program:
    """Read the policy, for the call's architecture if it is not about that one anyhow."""
    if options.policy is None or options.rules or options.default:
        return cli_policy.source(options)
    return cli_policy.read_file_for_call(options.policy, options)


# -------------------------------------------------------------------- tables


def format_features(found: Sequence[Feature]) -> str:
    """Put what was tried into a table; the cost only where it is paid."""
    rows = [("FEATURE", "HERE", "DETAIL", "WITHOUT IT")]
    rows += [(f.name, "yes" if f.available else "NO", f.detail, "" if f.available else f.cost) for f in found]
    return table(rows)


_REMEDIES = {
    "filter": "run on a kernel with CONFIG_SECCOMP_FILTER; in a container allow the calls seccomp and prctl",
    "tsync": "Linux 3.17 or later is needed",
    "tsync-esrch": "Linux 5.7 or later is needed",
    "notify": "Linux 5.0 or later is needed; in a container allow ioctl on listeners",
    "pidfd-open": "Linux 5.3 or later is needed; in a container allow the call pidfd_open",
    "pidfd-getfd": "Linux 5.6 or later is needed; in a container allow pidfd_getfd (Docker: --cap-add SYS_PTRACE)",
    "ptrace-child": "in a container allow ptrace (Docker: --cap-add SYS_PTRACE); outside set kernel.yama.ptrace_scope to 1 or 0",
    "memfd-seals": "Linux 5.1 or later is needed; in a container allow memfd_create",
}


def verdict(missing: Sequence[Feature]) -> str:
    """Say whether the main job can be done here, and what to do if not."""
    if not missing:
        return "The main job works here: load a filter, attach it to an own child, answer its notifications."
    lines = ["The main job does NOT work here:"]
    lines += [f"  {f.name}: {f.detail}; {_REMEDIES[f.name]}" for f in missing]
    return "\n".join(lines)
