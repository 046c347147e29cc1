"""``pyseccomp run`` and ``pyseccomp attach``: filters put into processes, and their notifications answered."""

from __future__ import annotations

import argparse
import contextlib
import errno
import mmap
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

from pyseccomp import cli_group, cli_holder, cli_leave, cli_policy, holder
from pyseccomp.attach import Attachment
from pyseccomp.cli_policy import errno_text
from pyseccomp.errors import SeccompError, TargetGoneError
from pyseccomp.filter import Filter
from pyseccomp.group import GroupAttachment
from pyseccomp.notify import Notification
from pyseccomp.popen import Popen, check_command
from pyseccomp.responder import Answer, Responder, deny
from pyseccomp.triggers import ForkAttachment

NOT_STARTED, NOT_EXECUTABLE, NOT_FOUND = 125, 126, 127
_SETTLES = 0.2
"""Seconds that processes which the command of ``run`` leaves may take to end."""
_AGAIN = 0.05
"""Seconds after which it is looked again whether a listener is there to be served."""


def run(options: argparse.Namespace) -> int:
    """Start a command under a policy; return its exit status."""
    policy = cli_policy.source(options)
    answers = responder(options, options.quiet)
    with cli_leave.ending_signals(signal.SIGTERM, signal.SIGHUP), Filter(policy) as filter:
        check_command(filter, options.argv, {})
        try:
            status = _run_from_exec(options.argv, filter, answers) if options.on == "exec" else _run_filtered(options.argv, filter, answers)
        except cli_leave.Ended as ended:
            _carry_on(filter, options, "run", ended)
            raise
        _carry_on(filter, options, "run")
    return status if status >= 0 else 128 - status


def _run_filtered(argv: list[str], filter: Filter, answers: Responder) -> int:
    pid, release = fork_stopped(argv)
    runs = False
    try:
        filter.attach(pid)
        _leave_interrupts_to_the_command()
        with _served(filter, answers):
            runs = True
            release()
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except BaseException:
        if not runs:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        raise


def _carry_on(filter: Filter, options: argparse.Namespace, command: str, ended: cli_leave.Ended | None = None) -> None:
    """Have targets that live answered on, without the output for each; say how."""
    said = cli_leave.carry_on(filter, responder(options, quiet=True), command, settle=_SETTLES if ended is None else 0.0)
    if said and ended is not None:
        ended.add_note(said)
    elif said:
        print(f"pyseccomp {command}: {said}", file=sys.stderr)


def _leave_interrupts_to_the_command() -> None:
    """Ctrl-C reaches the command too: it decides, and its end is ours."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGQUIT, signal.SIG_IGN)


def _run_from_exec(argv: list[str], filter: Filter, answers: Responder) -> int:
    sys.stdout.flush()
    try:
        process = Popen(argv, filter=filter, close_fds=False)
    except OSError as error:
        if isinstance(error, SeccompError):
            raise
        missing = isinstance(error, (FileNotFoundError, NotADirectoryError))
        print(f"pyseccomp: {argv[0]}: {'no such command' if missing else error.strerror}", file=sys.stderr)
        return NOT_FOUND if missing else NOT_EXECUTABLE
    _leave_interrupts_to_the_command()
    with _served(filter, answers):
        return int(process.wait())


def fork_stopped(argv: list[str], program: str | None = None) -> tuple[int, Callable[[], None]]:
    """Fork a child that stops itself until released, then executes argv: the pid, and what releases it.

    The release is a byte of shared memory, so that a SIGCONT from anybody else, or our own death, never lets the
    command run without the filter; and reading it takes no system call that the filter could refuse.
    """
    gate = mmap.mmap(-1, mmap.PAGESIZE)
    paths = [program or argv[0]]
    if program is None and "/" not in argv[0]:
        paths = [os.path.join(place, argv[0]) for place in os.get_exec_path()]
    environment = dict(os.environ)
    parent = os.getpid()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _become(gate, parent, paths, argv, environment)
    os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def release() -> None:
        gate[0] = 1
        os.kill(pid, signal.SIGCONT)

    return pid, release


def _become(gate: mmap.mmap, parent: int, paths: list[str], argv: list[str], environment: dict[str, str]) -> NoReturn:
    """In the child: wait for the release, then execute; never return."""
    status, why = NOT_FOUND, "no such command"
    try:
        while not gate[0]:
            if os.getppid() != parent:
                os._exit(NOT_STARTED)
            os.kill(os.getpid(), signal.SIGSTOP)
        for path in paths:
            try:
                os.execve(path, argv, environment)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                status, why = NOT_EXECUTABLE, os.strerror(error.errno or 0)
        os.write(2, f"pyseccomp: {argv[0]}: {why}\n".encode(errors="surrogateescape"))
    finally:
        os._exit(status)


@contextlib.contextmanager
def _served(filter: Filter, responder: Responder) -> Iterator[Callable[[], object]]:
    """Answer the filter's notifications in a thread, if it can have any; gives what waits for the end of its targets.

    In a thread, so that a signal that ends this command cuts off no answer.
    """
    if not filter.program.notifies:
        yield lambda: holder.wait_for_end(filter.attachments)
        return
    failures: list[BaseException] = []

    def serve() -> None:
        try:
            filter.serve(responder)
        except (SeccompError, OSError) as error:
            failures.append(error)

    thread = threading.Thread(target=serve, name="answers", daemon=True)
    thread.start()
    try:
        yield thread.join
    finally:
        with contextlib.suppress(SeccompError):
            filter.stop()
        thread.join()
    if failures:
        raise failures[0]


def attach(options: argparse.Namespace) -> int:
    """Put a policy into a running process, at once or later, and answer its notifications until it ends."""
    if options.after is not None and (not options.inactive or options.held is not None):
        options.usage("--after goes with --inactive, and not with --name (there: --on 5s)")
    if options.after is not None and not 0 <= options.after <= 1e6:
        options.usage(f"--after takes 0 to 1000000 seconds, got {options.after}")
    if options.on_death == "hold" and options.held is None:
        options.usage("--on-death hold goes with --name, by which ps.reclaim() finds it")
    many = cli_group.wanted(options)
    if options.held is not None:
        return cli_holder.hold(options, responder(options, quiet=True))
    how = {**cli_holder.moments(options), "active": False}
    if options.on is not None:
        del how["active"]
    policy = cli_policy.source(options)
    answers = responder(options, options.quiet)
    with cli_holder.usage(options), cli_leave.ending_signals(*cli_leave.ENDING), Filter(policy) as filter:
        _say(f"detached: filter fd {filter.fileno()}, {len(filter.program)} instructions")
        try:
            _attach(options, filter, answers, many, how)
        except cli_leave.Ended as ended:
            for attachment in filter.attachments:
                _give_up(attachment)
            _carry_on(filter, options, "attach", ended)
            raise
    return 0


def _attach(options: argparse.Namespace, filter: Filter, answers: Responder, many: bool, how: holder.Message) -> None:
    """Bind, activate when it is time, and answer until the targets have ended."""
    attachment = cli_group.bind(options, filter) if many else filter.attach(options.pid, **holder.attach_arguments(how))
    try:
        if options.on == "fork" and isinstance(attachment, ForkAttachment):
            _stay_with_children(attachment, answers)
            return
        if options.on is not None:
            _wait_for_event(attachment, options.on)
        elif options.inactive:
            _wait_for_activation(attachment, options.after)
    except BaseException:
        _give_up(attachment)  # Ctrl-C
        raise
    if isinstance(attachment, GroupAttachment):
        cli_group.activate(attachment)
    else:
        if options.on is None:
            attachment.activate()
        _say_active(attachment)
    if isinstance(attachment, GroupAttachment) and options.follow:
        _follow(attachment, filter, answers)
    elif filter.program.notifies or attachment.mode == "gate":
        with _served(filter, answers) as wait:
            wait()
        _say("dead: no task is left under the filter")


def _follow(group: GroupAttachment, filter: Filter, answers: Responder) -> None:
    """Say what enters, and answer, until the cgroup is removed."""
    filter.on_state_change = lambda one, state, why: _say(f"{state}: process {one.pid}: {why}" if one.pid else f"{state}: {why}")
    server = None
    try:
        while group.following:
            # serve() ends with the last task, and another may enter later.
            if (server is None or not server.is_alive()) and holder.answers_calls(filter.attachments):
                server = threading.Thread(target=_serve_quietly, args=(filter, answers), name="answers", daemon=True)
                server.start()
            group.wait_followed(_AGAIN)
    except cli_leave.Ended as ended:
        ended.add_note(f"processes that enter {group.what} from now on are not filtered any more")
        raise
    finally:
        if server is not None:
            with contextlib.suppress(SeccompError):
                filter.stop()
            server.join()


def _serve_quietly(filter: Filter, answers: Responder) -> None:
    with contextlib.suppress(SeccompError):
        filter.serve(answers)


def _give_up(attachment: Attachment) -> None:
    """Leave the target untouched if it still is."""
    if isinstance(attachment, ForkAttachment):
        attachment.disarm()
    elif not holder.left_in_kernel(attachment):
        holder.give_up(attachment)


def _wait_for_event(attachment: Attachment, event: str) -> None:
    """Return when it is active; at once where the C process of a gate waits, which tells nobody."""
    _say(f"{attachment.query().state}: process {attachment.pid}, until {event}")
    if attachment.mode != "gate" or attachment._watch is not None:
        attachment.wait()


def _stay_with_children(attachment: ForkAttachment, answers: Responder) -> None:
    """Say who is born, and answer, until the process ends; who interrupts that lets it go."""
    filter = attachment.filter
    filter.on_state_change = lambda one, state, why: _say(f"{state}: process {one.pid}: {why}")
    _say(f"{attachment.query().state}: process {attachment.pid}; each child of it is filtered, until Ctrl-C")
    with _served(filter, answers) as wait:
        wait()
    if filter.program.notifies:
        _say("dead: no task is left under the filter")
    for error in attachment.errors:
        raise error


def _say(text: str) -> None:
    print(text, flush=True)


def _say_active(attachment: Attachment) -> None:
    state = attachment.query()
    result = attachment.result
    assert result is not None
    extra = ", no_new_privs was set" if result.no_new_privs_set else ""
    _say(
        f"{state.state}: process {state.pid}, {len(result.threads)} threads, stopped for {result.stop_ns / 1e6:.3f} ms{extra}"
    )


def _wait_for_activation(attachment: Attachment, after: float | None) -> None:
    """Return when it is time to activate.

    The end of standard input is no Enter: a supervisor started without a terminal waits for the signal or the time.
    Raises TargetGoneError when the target ends meanwhile.
    """
    wake, woken = socket.socketpair()
    wake.setblocking(False)
    woken.setblocking(False)
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    previous = signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
    try:
        state = attachment.query()
        ways = "Enter or SIGUSR1" if after is None else f"Enter or SIGUSR1, or after {after:g} s"
        what = f"process {state.pid}, {len(state.task.threads)} threads"
        if isinstance(attachment, GroupAttachment):
            what = attachment.what
        _say(f"{state.state}: {what}; {ways} to process {os.getpid()} activates")
        _poll_triggers(attachment, woken, after)
    finally:
        signal.set_wakeup_fd(previous)
        signal.signal(signal.SIGUSR1, before)
        wake.close()
        woken.close()


def _poll_triggers(attachment: Attachment, woken: socket.socket, after: float | None) -> None:
    end = None if after is None else time.monotonic() + after
    poll = select.poll()
    one = not isinstance(attachment, GroupAttachment) or attachment.cgroup is None
    if one:
        poll.register(attachment.pidfd, select.POLLIN)
    poll.register(woken, select.POLLIN)
    if sys.stdin is not None and not sys.stdin.closed:
        poll.register(0, select.POLLIN)
    while True:
        left = None if end is None else max(0.0, end - time.monotonic()) * 1000
        ready = dict(poll.poll(left))
        if one and attachment.pidfd in ready:
            raise TargetGoneError(errno.ESRCH, f"attach to pid {attachment.pid}: it ended before it was activated")
        if woken.fileno() in ready and signal.SIGUSR1 in woken.recv(64):
            return
        if 0 in ready:
            if not ready[0] & select.POLLNVAL and b"\n" in os.read(0, 4096):
                return
            poll.unregister(0)
        if not ready and end is not None and time.monotonic() >= end:
            return


def responder(options: argparse.Namespace, quiet: bool) -> Responder:
    """Make what --answer says; quiet: without Python, and without a line for each."""
    default: tuple[Callable[[], Answer], str] = (deny, f"deny {os.strerror(errno.EPERM)} ({errno_text(errno.EPERM)})")
    named: list[tuple[str, Callable[[], Answer], str]] = []
    for text in options.answer:
        name, make, shown = cli_policy.parse_answer(text)
        if name is None:
            default = (make, shown)
        else:
            named += [(part, make, shown) for part in name.split(",")]
    made = Responder(default=_rule(*default, quiet))
    for part, make, shown in named:
        made.on(part, _rule(make, shown, quiet))
    return made


def _rule(make: Callable[[], Answer], shown: str, quiet: bool) -> Answer | Callable[[Notification], Answer]:
    answer = make()
    if quiet:
        return answer

    def tell(notification: Notification) -> Answer:
        args = ", ".join(hex(a) for a in notification.args)
        with contextlib.suppress(OSError, ValueError):  # the terminal has gone; the answer is the same
            print(f"{notification.syscall}({args}) by task {notification.pid}: {shown}", file=sys.stderr, flush=True)
        return answer

    return tell
