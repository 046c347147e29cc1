"""What a command in the foreground leaves when a signal ends it: a holder in the background that answers on.

Nothing takes a filter out of the kernel, so a command that only ended would leave targets whose notified calls fail for ever.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from typing import NoReturn

from pyseccomp import holder
from pyseccomp.attach import Attachment
from pyseccomp.errors import ReclaimError, SeccompError
from pyseccomp.filter import Filter
from pyseccomp.responder import Responder

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_READY = 30.0
_TOLD, _TRIES = 8, 100


class Ended(KeyboardInterrupt):
    """A signal asked this command to end."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    @property
    def told(self) -> tuple[str, int]:
        """What to say, and the exit status that a shell would show."""
        what = "interrupted" if self.number == signal.SIGINT else f"ended by {signal.Signals(self.number).name}"
        return what, 128 + self.number


@contextlib.contextmanager
def ending_signals(*numbers: signal.Signals) -> Iterator[None]:
    """Let the first of these signals raise Ended in the main thread; later ones do nothing. What is ignored stays so."""
    mine = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]

    def handle(number: int, _: object) -> None:
        for one in mine:
            signal.signal(one, signal.SIG_IGN)
        raise Ended(number)

    before = [(number, signal.signal(number, handle)) for number in mine]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def carry_on(filter: Filter, responder: Responder, command: str, name: str | None = None, settle: float = 0.0) -> str:
    """See to it that targets that live are answered when this command has ended; say how ("": none needs it).

    What was promised for this process's death begins; else a holder in the background, of that name, takes the listeners over and
    answers by the rules, without a line for each. If none can be started, this process says so, and answers until its targets
    have ended. settle: seconds in which targets that are ending may do so.
    """
    if any(one._promised for one in filter.attachments):
        return _leave(filter)
    attachments = _served_here(filter, settle)
    if not attachments:
        return ""
    try:
        answer = _start(filter, attachments, responder, name or f"{command}-{attachments[0].pid}", name is None)
    except (SeccompError, OSError) as error:
        print(
            f"pyseccomp {command}: starting a holder in the background: {error}; without answers the targets' calls would fail for "
            f"ever, so process {os.getpid()} answers on until they end; SIGKILL ends it",
            file=sys.stderr,
            flush=True,
        )
        with contextlib.suppress(SeccompError):
            filter.serve(responder)
        return ""
    return (
        f"notified calls of process {_pids(attachments)} are answered on by process {answer['pid']}, held as {answer['name']!r}, until the last "
        f"target ends; `pyseccomp activate {answer['name']} --close --force` ends it, and such calls then fail with ENOSYS"
    )


def _pids(attachments: Sequence[Attachment]) -> str:
    more = f" and {len(attachments) - _TOLD} more" if len(attachments) > _TOLD else ""
    return ", ".join(str(one.pid) for one in attachments[:_TOLD]) + more


def _leave(filter: Filter) -> str:
    attachments = [one for one in filter.attachments if one._promised]
    gates = any(one.mode == "gate" for one in attachments)
    filter.leave()
    what = "the gate is active, and a process of the core answers its calls until the last target ends"
    return f"process {_pids(attachments)}: {what if gates else 'what --on-death and --deadline say is done from now on'}"


def _served_here(filter: Filter, settle: float) -> list[Attachment]:
    """The attachments under whose listeners tasks live."""
    attachments = [one for one in filter.attachments if one.listeners]
    end = time.monotonic() + settle
    poll = select.poll()
    living = {fd for fd, events in holder.still_alive(attachments).items() if events == 0}
    for fd in living:
        poll.register(fd, 0)
    while living and (left := end - time.monotonic()) > 0:
        for fd, _ in poll.poll(left * 1000):
            poll.unregister(fd)
            living.discard(fd)
    return [one for one in attachments if not living.isdisjoint(one.listeners)]


def _start(filter: Filter, attachments: Sequence[Attachment], responder: Responder, name: str, numbered: bool) -> holder.Message:
    """Fork a holder with copies of the listeners; what it shows when it serves them."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        try:
            ours.close()
            _live(filter, attachments, responder, name, numbered, theirs)
        finally:
            os._exit(1)
    theirs.close()
    try:
        with ours:
            ours.settimeout(_READY)
            data = ours.recv(holder.MAX_ANSWER)
        if not data:
            raise ReclaimError(errno.ECONNRESET, f"holder {name!r} died before it was ready")
        return holder.unpack(json.loads(data))
    except BaseException:  # this process answers on, and must be the only one
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise


def _live(
    old: Filter, attachments: Sequence[Attachment], responder: Responder, name: str, numbered: bool, theirs: socket.socket
) -> NoReturn:
    """In the child: answer until the targets have ended."""
    connection = socket.socket(fileno=fcntl.fcntl(theirs.fileno(), fcntl.F_DUPFD_CLOEXEC, 3))
    try:
        holder.detach_from_terminal(
            connection.fileno(), old._memfd, *(fd for one in attachments for fd in (one.pidfd, *one.listeners))
        )
        filter = Filter.from_fd(old._memfd)
        for one in attachments:
            _adopt(filter, one)
        held = _hold(name, numbered, filter, responder)
    except Exception as error:
        holder.fail(connection, error)
        os._exit(1)
    with holder.serving_signals(held):
        held.keep_served()
        connection.send(json.dumps(held.show()).encode())
        connection.close()
        held.run()
    held.close()
    os._exit(0)


def _hold(name: str, numbered: bool, filter: Filter, responder: Responder) -> holder.Holder:
    """Take the name; numbered: or NAME-2, NAME-3, ... where it is in use."""
    for at in range(1, _TRIES if numbered else 2):
        try:
            return holder.Holder(name if at == 1 else f"{name}-{at}", filter, responder)
        except ReclaimError as error:
            if error.errno != errno.EBUSY:
                raise
    raise ReclaimError(errno.EBUSY, f"name {name!r} is in use")


def _adopt(filter: Filter, old: Attachment) -> None:
    """Let this filter own an attachment of one that is never closed in this process."""
    attachment = Attachment(filter, old.pid, old._handle, old.threads, old.no_new_privs, old.timeout, None, old._outcome)
    filter._adopt(attachment)
    filter._listen(attachment.listeners)
