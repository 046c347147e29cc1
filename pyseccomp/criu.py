"""CRIU's ``seccomp.img``: the filters of the tasks that a checkpoint holds.

The file is CRIU's: two magic words, the length of a message, and a ``seccomp_entry`` in protobuf (``images/seccomp.proto``):
field 1, repeated, a filter; in that 1 the program, 2 the index of the filter before it in its chain, 3 its flags. Tasks name
the last filter of their chain by its index in their own ``core-*.img``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from pyseccomp.errors import PolicyError, ProgramError
from pyseccomp.loaded import LoadedFilter
from pyseccomp.program import Program

MAGIC: Final = struct.pack("<II", 0x54564319, 0x64413049)
_HEAD: Final = struct.Struct("<8sI")
_LOG: Final = 2
_MOST: Final = 100_000
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True, slots=True)
class ImageFilter:
    """One filter of an image."""

    program: Program
    log: bool
    previous: int | None
    """The index of the filter that was loaded before it; None: it is the first of its chain."""


@dataclass(frozen=True, slots=True)
class Image:
    """The filters of an image, by index."""

    filters: tuple[ImageFilter, ...]

    def chain(self, last: int) -> tuple[LoadedFilter, ...]:
        """Return the chain that ends with a filter, the oldest first; ``last`` is what a task's core image names."""
        found: list[LoadedFilter] = []
        at: int | None = last
        while at is not None:
            if not 0 <= at < len(self.filters):
                raise PolicyError(f"CRIU image: it has {len(self.filters)} filters, there is no number {at}")
            one = self.filters[at]
            found.append(LoadedFilter(one.program, one.log))
            at = one.previous
        return tuple(reversed(found))

    def last(self) -> tuple[int, ...]:
        """Return the filters that no other is built upon: where chains end, if no task was left in the middle of one."""
        inner = {one.previous for one in self.filters}
        return tuple(at for at in range(len(self.filters)) if at not in inner)


def load(data: bytes) -> Image:
    """Read a ``seccomp.img``.

    Raises PolicyError (ProgramError is one) for what is none, is cut, holds a program that no kernel loads, or whose chains
    do not end.
    """
    if len(data) < _HEAD.size or data[:8] != MAGIC:
        raise PolicyError("CRIU image: it does not begin as a seccomp.img of CRIU 2.0 or later does")
    (length,) = struct.unpack_from("<I", data, 8)
    if length != len(data) - _HEAD.size:
        raise PolicyError(f"CRIU image: it says {length} bytes follow, and {len(data) - _HEAD.size} do")
    filters: list[ImageFilter] = []
    for field, value in _fields(data[_HEAD.size :]):
        if field == 1 and isinstance(value, bytes):
            if len(filters) == _MOST:
                raise PolicyError(f"CRIU image: more than {_MOST} filters")
            filters.append(_filter(value, len(filters)))
    return Image(tuple(filters))


def _filter(data: bytes, at: int) -> ImageFilter:
    program, previous, flags = None, None, 0
    for field, value in _fields(data):
        if field == 1 and isinstance(value, bytes):
            program = value
        elif field == 2 and isinstance(value, int):
            previous = value
        elif field == 3 and isinstance(value, int):
            flags = value
    if program is None:
        raise PolicyError(f"CRIU image: filter {at} has no program")
    # CRIU writes a filter behind the one that it is built upon, which makes loops impossible.
    if previous is not None and previous >= at:
        raise PolicyError(f"CRIU image: filter {at} is built upon filter {previous}, which comes no earlier")
    try:
        return ImageFilter(Program(program), bool(flags & _LOG), previous)
    except ProgramError as error:
        error.add_note(f"filter {at} of a CRIU image")
        raise


def dump(chains: Sequence[Sequence[LoadedFilter]]) -> bytes:
    """Write the chains of tasks, each the oldest filter first, as a ``seccomp.img``; what chains have in common is written once."""
    index: dict[tuple[bytes, ...], int] = {}
    body = b""
    for chain in chains:
        path: tuple[bytes, ...] = ()
        for one in chain:
            before = index.get(path) if path else None
            data = bytes(one.program)
            path = (*path, data + (b"\1" if one.log else b"\0"))
            if path in index:
                continue
            index[path] = len(index)
            inner = _field(1, data)
            if before is not None:
                inner += _number(2 << 3) + _number(before)
            inner += _number(3 << 3) + _number(_LOG if one.log else 0)
            body += _field(1, inner)
    return _HEAD.pack(MAGIC, len(body)) + body


def _field(number: int, data: bytes) -> bytes:
    return _number(number << 3 | _BYTES) + _number(len(data)) + data


def _number(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a protobuf message, as far as they have numbers or bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == _VARINT:
            value, at = _varint(data, at)
            yield key >> 3, value
        elif kind == _BYTES:
            length, at = _varint(data, at)
            if length > len(data) - at:
                raise PolicyError(f"CRIU image: a field of {length} bytes is cut off")
            yield key >> 3, data[at : at + length]
            at += length
        elif kind in (_FIXED32, _FIXED64):
            at += 4 if kind == _FIXED32 else 8
        else:
            raise PolicyError(f"CRIU image: a field of the unknown kind {kind}")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 64:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise PolicyError("CRIU image: a number is cut off or too long")
