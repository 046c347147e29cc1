"""Which calls failed: a notification comes at a call's entry, so this asks the kernel's tracepoint of their ends."""

from __future__ import annotations

import errno
import os
import re
from collections import Counter
from pathlib import Path
from typing import Final

from pyseccomp import _core

_TRACEPOINT: Final = "events/raw_syscalls/sys_exit/format"
_FIELDS: Final = ("field:long id;\toffset:8;\tsize:8;", "field:long ret;\toffset:16;\tsize:8;")
"""Where csrc/results.c expects them; a kernel that is built for real time, say, may put more before them."""
_PLACES: Final = ("/sys/kernel/tracing", "/sys/kernel/debug/tracing")


class Failures:
    """Counts the failed calls of a process, its threads and what they fork; ``unknown`` says why, where it cannot.

    It takes CAP_PERFMON and a readable tracefs. The kernel drops what succeeded, so calls that do not fail cost nothing more.
    """

    def __init__(self, pid: int) -> None:
        self.counts: Counter[tuple[int, int]] = Counter()
        """By thread id and number."""
        self.unknown: str | None = None
        self.lost = 0
        """Failures that came too fast to be counted."""
        self._results: _core.Results | None = None
        try:
            tracepoint = _tracepoint()
            self._results = _core.Results(tracepoint, sorted(int(tid) for tid in os.listdir(f"/proc/{pid}/task")))
        except OSError as error:
            self.unknown = _explain(error)

    def count(self) -> None:
        """Count what has come since."""
        if self._results is not None:
            self.counts.update((tid, nr) for tid, nr, _ in self._results.drain())
            self.lost = self._results.lost

    def close(self) -> None:
        """Count for the last time, and close the descriptors. Idempotent."""
        self.count()
        self._results = None


def _tracepoint() -> int:
    problem = OSError(errno.ENOENT, "no tracefs")
    for place in _PLACES:
        try:
            text = Path(place, _TRACEPOINT).read_text()
        except OSError as error:
            if error.errno != errno.ENOENT:
                problem = error
        else:
            number = re.search(r"^ID: (\d+)$", text, re.MULTILINE)
            if number is None or not all(field in text for field in _FIELDS):
                raise OSError(errno.EPROTO, f"{place}/{_TRACEPOINT}")
            return int(number[1])
    raise problem


def _explain(error: OSError) -> str:
    if error.errno in (errno.EACCES, errno.EPERM):
        return "that takes CAP_PERFMON and the right to read /sys/kernel/tracing"
    if error.errno == errno.ENOENT:
        return "no tracefs on /sys/kernel/tracing, or this kernel has no raw_syscalls:sys_exit"
    if error.errno == errno.EPROTO:
        return f"{error.strerror} describes other fields than this version knows"
    return f"perf_event_open(2): {os.strerror(error.errno or 0)}"
