"""The program of the mail thread that this project comes from: a filter that exists by itself, attached between set-up and exec.

    python thread.py

First as the thread has it: a process forks, sets up, tells its parent, waits for it, executes; the parent, which holds the
filter, attaches it by pidfd in between. Then the variant: a manager stashes the filter's descriptor and hands it to a second task,
which attaches itself.
"""

import errno
import os
import socket

import pyseccomp as ps

SHELL = ["sh", "-c", "mkdir /proc/thread 2>&1; grep ^Seccomp: /proc/self/status"]


class Barrier:
    """A place where one process waits for another: wake() here, wait() there. The death of the other side is an EOFError."""

    def __init__(self) -> None:
        self._here, self._there = os.pipe()

    def wake(self) -> None:
        """Let the other side pass."""
        os.write(self._there, b"x")

    def wait(self) -> None:
        """Wait until the other side has come here."""
        os.close(self._there)
        with os.fdopen(self._here, "rb") as here:
            if here.read(1) != b"x":
                raise EOFError("the other side has ended")


def policy() -> ps.Policy:
    """No more directories."""
    rules = ps.Policy(default=ps.ALLOW)
    rules.add(ps.ERRNO(errno.EPERM), "mkdir")
    rules.add(ps.ERRNO(errno.EPERM), "mkdirat")
    return rules


def attached_by_its_parent(filter_: ps.Filter) -> int:
    """fork, set up, barrier; the parent attaches by pidfd, barrier; exec."""
    set_up, filtered = Barrier(), Barrier()
    pid = os.fork()
    if pid == 0:
        try:
            os.chdir("/")  # do stuff
            set_up.wake()
            os.umask(0o077)  # do more unrelated stuff
            filtered.wait()
            os.execvp(SHELL[0], SHELL)
        finally:
            os._exit(1)
    pidfd = os.pidfd_open(pid)
    try:
        set_up.wait()
        attachment = filter_.attach(pidfd=pidfd)
        print("by its parent:", attachment.query().state, flush=True)
        filtered.wake()
    finally:
        os.close(pidfd)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def attached_by_itself(filter_: ps.Filter) -> int:
    """The manager sends what it stashed; the second task attaches itself, and executes."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        try:
            ours.close()
            received = ps.Filter.recv(theirs)
            print("by itself:", received.attach().query().state, flush=True)
            os.execvp(SHELL[0], SHELL)
        finally:
            os._exit(1)
    theirs.close()
    with ours:
        filter_.send(ours)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


if __name__ == "__main__":
    with ps.Filter(policy()) as detached:
        raise SystemExit(attached_by_its_parent(detached) or attached_by_itself(detached))
