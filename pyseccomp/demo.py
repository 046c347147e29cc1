"""``pyseccomp demo``: the whole path on a real server that nobody prepared, every step verified.

The server is Python's own ``http.server``. Files below ``/secret/`` are refused by looking at the path of each notified
``openat``. That is a demonstration of the machinery: a hostile program with several threads could change the path between
the look and the call, so a real policy would open the file itself and hand the descriptor over (``add_fd``).
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import re
import select
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pyseccomp import actions, syscalls
from pyseccomp.attach import Attachment
from pyseccomp.cli import explain
from pyseccomp.text import table
from pyseccomp.errors import SeccompError
from pyseccomp.filter import Filter
from pyseccomp.notify import Notification
from pyseccomp.policy import Policy
from pyseccomp.query import TaskState, query
from pyseccomp.responder import Answer, Responder, allow, deny

CLIENTS = 4
REQUESTS = 25
"""Answers that each client must get before the activation, and again after it."""
DEADLINE = 20.0
PAGES = {"/index.html": b"<h1>hello</h1>\n", "/data.txt": b"x" * 100_000, "/secret/plan.txt": b"do not tell\n"}


class DemoFailed(Exception):
    """A step was not verified."""


def main() -> int:
    """Run the demonstration; 0 only if every step was verified."""
    try:
        with _server() as (process, port):
            _play(process, port)
    except (DemoFailed, SeccompError, OSError, subprocess.SubprocessError) as error:
        print(f"FAILED  {error if isinstance(error, DemoFailed) else explain(error)}", flush=True)
        return 1
    print("\nEvery step was verified.")
    return 0


def verify(condition: bool, text: str) -> None:
    """Print a step that is true, or fail with it."""
    if not condition:
        raise DemoFailed(text)
    print(f"ok  {text}", flush=True)


def _play(process: subprocess.Popen[str], port: int) -> None:
    verify(
        _get(port, "/index.html")[0] == 200, f"a server nobody prepared runs as process {process.pid} on port {port}"
    )
    before = query(process)
    with Filter(_policy()) as filter, _load(port) as load:
        fd = filter.fileno()
        verify(
            filter.query().state == "detached" and _carried(process) == _counts(before),
            f"a detached filter: fd {fd}, {len(filter.program)} instructions, the server is unaffected",
        )
        with filter.attach(process, active=False) as attachment:
            _inactive(attachment, filter, before, load, port)
            with _served(filter, attachment, load, port) as responder:
                _active(attachment, filter, fd, before, port)
                _notified(responder, load, port)
                _report(attachment, filter, load, responder)
                _end(process, attachment, load)


def _policy() -> Policy:
    policy = Policy(default=actions.ALLOW)
    policy.add(actions.NOTIFY, "openat")
    for other in {"open", "openat2"} & set(syscalls.names()):
        policy.add(actions.ERRNO(errno.ENOSYS), other)  # no second way to open
    return policy


def _inactive(attachment: Attachment, filter: Filter, before: TaskState, load: _Load, port: int) -> None:
    load.wait_for(REQUESTS)
    state = attachment.query()
    verify(
        state.state == filter.query().state == "inactive" and _counts(state.task) == _counts(before),
        "bound but inactive: the kernel shows nothing new in any of its threads",
    )
    verify(
        all(_get(port, path) == (200, body) for path, body in PAGES.items()) and not load.failures,
        f"while inactive every request succeeds, /secret/plan.txt too ({load.finished} under load, 0 failed)",
    )


@contextlib.contextmanager
def _served(filter: Filter, attachment: Attachment, load: _Load, port: int) -> Iterator[Responder]:
    """Activate under load, with a request half sent, and answer until the server is gone."""
    responder = Responder(default=allow())
    responder.on("openat", _judge)
    with socket.create_connection(("127.0.0.1", port), DEADLINE) as half:
        half.sendall(b"GET /data.txt HTTP/1.0\r\n")
        _wait_until(lambda: load.flying > 0, "a request in flight")
        flying = load.flying
        load.mark()
        attachment.activate()
        thread = threading.Thread(target=filter.serve, args=(responder,), daemon=True)
        thread.start()
        try:
            half.sendall(b"\r\n")
            answer = b"".join(iter(lambda: half.recv(1 << 16), b""))
            verify(
                answer.startswith(b"HTTP/1.0 200") and answer.endswith(PAGES["/data.txt"]),
                f"activated under load ({flying} requests in flight): one half sent before was completed after",
            )
            yield responder
        finally:
            filter.stop()
            thread.join(DEADLINE)


def _judge(notification: Notification) -> Answer:
    path = notification.read_string(notification.args[1])
    return deny(errno.EACCES) if b"/secret/" in path else allow()


def _active(attachment: Attachment, filter: Filter, fd: int, before: TaskState, port: int) -> None:
    state = attachment.query()
    more = {(known or 0) + 1 for known in _counts(before)}
    verify(
        state.state == filter.query().state == "active"
        and all(t.seccomp == "filter" for t in state.task.threads if t.alive)
        and _counts(state.task) in (more, {None}),
        "active: the kernel shows one filter more in every thread",
    )
    verify(
        filter.fileno() == fd == attachment.filter.fileno(),
        f"fd {fd} is still the filter's number, and now its listener",
    )


def _notified(responder: Responder, load: _Load, port: int) -> None:
    load.wait_for(load.finished // CLIENTS + REQUESTS)
    verify(not load.failures, f"no request was lost: {load.finished} answered, 0 failed")
    _wait_until(lambda: responder.stats().answered.get("allow", 0) >= REQUESTS, "notifications answered")
    verify(True, f"notifications are answered: {responder.stats().answered['allow']} opens allowed so far")
    status, body = _get(port, "/secret/plan.txt")
    _wait_until(lambda: "deny" in responder.stats().answered, "a denied open")  # is counted after it was sent
    verify(
        status == 404 and PAGES["/secret/plan.txt"] not in body and responder.stats().answered.get("deny", 0) == 1,
        f"the path /secret/plan.txt is denied (the server answers {status}), by a decision made here",
    )
    verify(_get(port, "/index.html") == (200, PAGES["/index.html"]), "other paths still succeed")


def _report(attachment: Attachment, filter: Filter, load: _Load, responder: Responder) -> None:
    result = attachment.result
    assert result is not None
    stats = responder.stats()
    task = attachment.query().task
    before, after = load.latencies()
    rows = [
        ("WHAT", "VALUE"),
        ("filter", filter.query().state),
        ("attachment", f"{attachment.query().state}, process {attachment.pid}"),
        (
            "threads, by seccomp mode",
            f"{len(task.threads)}: " + ", ".join(sorted({str(t.seccomp) for t in task.threads})),
        ),
        ("server stopped to attach", f"{result.stop_ns / 1e6:.3f} ms, {len(result.threads)} threads"),
        ("notifications answered", ", ".join(f"{count} {kind}" for kind, count in sorted(stats.answered.items()))),
        ("receive to answer, median", f"{stats.latency(0.5) / 1e3:.1f} us"),
        ("receive to answer, 99 %", f"{stats.latency(0.99) / 1e3:.1f} us"),
        ("request, median, before / after", f"{before * 1e3:.2f} / {after * 1e3:.2f} ms"),
    ]
    print("\n" + table(rows) + "\n", flush=True)


def _end(process: subprocess.Popen[str], attachment: Attachment, load: _Load) -> None:
    load.stop()
    verify(not load.failures, f"in all {load.finished} requests under load, 0 failed")
    process.terminate()
    process.wait(DEADLINE)
    verify(attachment.query().state == "dead", "the server has ended: the attachment is dead")


def _carried(process: subprocess.Popen[str]) -> set[int | None]:
    return _counts(query(process))


def _counts(state: TaskState) -> set[int | None]:
    """The numbers of filters in the live threads' chains: one number, in this demonstration."""
    return {t.filters for t in state.threads if t.alive}


# ---------------------------------------------------------- server and clients


@contextlib.contextmanager
def _server() -> Iterator[tuple[subprocess.Popen[str], int]]:
    folder = tempfile.mkdtemp(prefix="pyseccomp-demo-")
    try:
        for path, body in PAGES.items():
            file = Path(folder + path)
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(body)
        command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", folder]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            try:
                yield process, _port(process)
            finally:
                process.kill()
    finally:
        shutil.rmtree(folder)


def _port(process: subprocess.Popen[str]) -> int:
    assert process.stdout is not None
    ready = select.select([process.stdout], [], [], DEADLINE)[0]
    found = re.search(r"port (\d+)", process.stdout.readline()) if ready else None
    if found is None:
        raise DemoFailed("the server did not start")
    return int(found[1])


def _get(port: int, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def _wait_until(true: Callable[[], bool], what: str) -> None:
    """Wait, for a bounded time, for what another thread or process makes true."""
    end = time.monotonic() + DEADLINE
    while not true():
        if time.monotonic() > end:
            raise DemoFailed(f"waited {DEADLINE:g} s for {what}")
        time.sleep(0.001)


class _Load:
    """Clients that request pages without pause; each answer is checked to the last byte."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._stop = threading.Event()
        self._moved = threading.Condition()
        self._done = [0] * CLIENTS
        self._times: list[tuple[float, float]] = []
        self._turn = 0.0
        self.flying = 0
        self.failures: list[str] = []
        self._threads = [threading.Thread(target=self._work, args=(i,), daemon=True) for i in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    @property
    def finished(self) -> int:
        """Requests answered so far, by all clients."""
        with self._moved:
            return sum(self._done)

    def _work(self, index: int) -> None:
        paths = ("/index.html", "/data.txt")
        while not self._stop.is_set():
            path = paths[self._done[index] % 2]
            with self._moved:
                self.flying += 1
            start = time.perf_counter()
            try:
                answer = _get(self._port, path)
                failure = "" if answer == (200, PAGES[path]) else f"{path}: status {answer[0]}, {len(answer[1])} bytes"
            except (OSError, http.client.HTTPException) as error:
                failure = f"{path}: {explain(error)}"
            with self._moved:
                self.flying -= 1
                self._done[index] += 1
                self._times.append((start, time.perf_counter() - start))
                if failure:
                    self.failures.append(failure)
                self._moved.notify_all()

    def wait_for(self, count: int) -> None:
        """Wait until every client has had count answers, all of them good."""
        with self._moved:
            if not self._moved.wait_for(lambda: min(self._done) >= count or bool(self.failures), DEADLINE):
                raise DemoFailed(f"clients got {self._done} answers in {DEADLINE:g} s, {count} each were expected")
            if self.failures:
                raise DemoFailed(f"a request failed: {self.failures[0]}")

    def mark(self) -> None:
        """Split the latencies here."""
        self._turn = time.perf_counter()

    def latencies(self) -> tuple[float, float]:
        """The median time of a request begun before, and since, the mark."""
        turn = self._turn
        with self._moved:
            early = [took for start, took in self._times if start < turn]
            late = [took for start, took in self._times if start >= turn]
        return statistics.median(early), statistics.median(late)

    def stop(self) -> None:
        """Let every client finish its request. Idempotent."""
        self._stop.set()
        for thread in self._threads:
            thread.join(DEADLINE)


@contextlib.contextmanager
def _load(port: int) -> Iterator[_Load]:
    load = _Load(port)
    try:
        yield load
    finally:
        load.stop()
