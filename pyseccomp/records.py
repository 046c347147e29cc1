"""What a responder's loops did, call by call: fixed records in a ring, written in C, read in bulk."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from pyseccomp import _core

RECORD: Final = struct.Struct("=Qq6QqQIiIiHHHH64s")
"""One record, field by field as :class:`EventRecord` has them (then 2 bytes, and text's 64); a C struct without gaps."""
_KINDS: Final = ("hold", "allow", "deny", "reply", "kill", "add_fd")


class EventRecord(NamedTuple):
    """One answered call."""

    id: int
    """The notification's."""
    time_ns: int
    """When it was received, CLOCK_MONOTONIC."""
    args: tuple[int, ...]
    value: int
    """What it returned, if ``kind`` is "reply"."""
    latency_ns: int
    """From receiving to answering."""
    pid: int
    """The thread's."""
    nr: int
    arch: int
    error: int
    """The errno that it failed with, if ``kind`` is "deny"."""
    kind: str
    """The answer: "allow", "deny", "reply", "kill", "add_fd"."""
    gone: bool
    """The call was over before its answer."""
    text: bytes
    """What a StringArg read of the target for it, at most 64 bytes."""


class EventRing:
    """A record of each call that a Responder answers (``Responder(events=ring)``), until somebody reads it.

    Writing never waits: with ``capacity`` records unread the next ones are dropped and counted, and the targets notice nothing.
    A record is 168 bytes. The ring is read by one thread at a time (others wait); writers are all loops that use the responder.

    >>> ring = EventRing(1000)
    >>> ring.capacity, ring.waiting, ring.dropped
    (1024, 0, 0)

    Raises ValueError for a capacity that is not 1 to 4194304 records.
    """

    def __init__(self, capacity: int = 65536) -> None:
        if not 1 <= capacity <= 4 << 20:
            raise ValueError(f"an event ring holds 1 to 4194304 records, got {capacity}")
        self._ring = _core.Ring(capacity)

    def read(self, limit: int | None = None) -> _core.Records:
        """Take the oldest records, at most ``limit``, as one buffer.

        ``numpy.asarray(ring.read())`` is a structured array with the fields of :class:`EventRecord` (``text_len`` beside
        ``text``), without a copy and without an object for each; ``memoryview(...).tobytes()`` has them for :data:`RECORD`.
        """
        return self._ring.read(self._ring.capacity if limit is None else max(0, limit))

    def read_into(self, buffer: bytearray | memoryview) -> int:
        """Take as many records as fit into a writable buffer of bytes; how many that were."""
        return self._ring.read_into(buffer)

    def __iter__(self) -> Iterator[EventRecord]:
        """Take what is there now, as objects, for those who do not need it fast."""
        for found in RECORD.iter_unpack(memoryview(self.read()).tobytes()):
            id, time_ns, *args = found[:8]
            value, latency_ns, pid, nr, arch, error, kind, gone, length, _, text = found[8:]
            yield EventRecord(
                id, time_ns, tuple(args), value, latency_ns, pid, nr, arch, error, _KINDS[kind], bool(gone), text[:length]
            )

    @property
    def capacity(self) -> int:
        """How many records it holds: a power of two."""
        return self._ring.capacity

    @property
    def waiting(self) -> int:
        """How many records wait to be read, at most."""
        return self._ring.waiting

    @property
    def dropped(self) -> int:
        """How many found no room so far."""
        return self._ring.dropped
