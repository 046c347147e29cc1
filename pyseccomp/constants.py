"""Constants of the kernel by name (O_DIRECT, ENOSYS, TCGETS), for every architecture, from the kernel's headers.

Many values depend on the architecture: O_DIRECTORY of aarch64 is O_DIRECT of x86_64, mips numbers errnos differently, and a request
of ioctl(2) contains the size of a structure, so that it depends on the word size too. constants.txt, which
csrc/syscalls/generate_constants.py makes, has a value once where architectures agree. It is read when the first name is looked up.

Names of a C library or of Python that the kernel does not know (SIGRTMIN, ST_SIZE) are no constants here.
"""

from __future__ import annotations

import difflib
import functools
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal

from pyseccomp.errors import PolicyError
from pyseccomp.syscalls import Arch, ArchLike

Kind = Literal["errnos", "ioctls", "others"]
Source = Mapping[str, int] | str | os.PathLike[str]
"""Constants of one's own: names and values, or the path of a JSON file that has them."""

_FILE: Final = Path(__file__).with_name("constants.txt")
_NAME: Final = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_WAYS: Final = "nrwb"
MAX_SIZE: Final = 16 << 20
MAX_NAMES: Final = 100_000


class _File:
    """The parsed file: of each name the text behind it, which is split when the name is asked for."""

    def __init__(self) -> None:
        self.kinds: dict[str, dict[str, str]] = {"errnos": {}, "ioctls": {}, "others": {}}
        self.packings: list[tuple[list[int], frozenset[str]]] = []
        self.ports: tuple[str, ...] = ()
        self.kernel = ""
        head, *sections = re.split(r"^(errnos|ioctls|others)\n", _FILE.read_text("ascii"), flags=re.MULTILINE)
        for line in head.splitlines():
            word, _, rest = line.partition(" ")
            if word == "kernel":
                self.kernel = rest
            elif word == "ports":
                self.ports = tuple(rest.split())
            elif word == "packing":
                *shape, members = rest.split()
                self.packings.append(([int(number) for number in shape], self.members(members)))
        for kind, text in zip(sections[::2], sections[1::2], strict=True):
            self.kinds[kind] = dict(line.split(" ", 1) for line in text.splitlines())
        self.all = {name: text for section in self.kinds.values() for name, text in section.items()}

    @functools.cache  # noqa: B019 - there is one instance
    def members(self, label: str) -> frozenset[str]:
        """Return the architectures that a label stands for: 64 and 32 those of a word size, x* those whose names begin with x."""
        found: set[str] = set()
        for word in label.split(","):
            if word in ("64", "32"):
                found |= {port for port in self.ports if Arch(port).wide is (word == "64")}
            elif word.endswith("*"):
                found |= {port for port in self.ports if port.startswith(word[:-1])}
            else:
                found.add(word)
        return frozenset(found)

    def value(self, text: str, port: str) -> int | None:
        """Return the value that a line gives for an architecture; None: it has no such constant."""
        usual, _, others = text.partition(" ")
        for other in others.split(" ") if others else ():
            label, _, word = other.partition("=")
            if port in self.members(label):
                usual = word
                break
        if usual == "-":
            return None
        return self._packed(usual, port) if usual[0] in _WAYS else int(usual, 0)

    def _packed(self, text: str, port: str) -> int:
        way, kind, number, size = text.split(".")
        shape = next(shape for shape, members in self.packings if port in members)
        direction, shift, none, read, write = shape
        bits = (none, read, write, read | write)[_WAYS.index(way)]
        return bits << direction | int(size, 16) << shift | int(kind, 16) << 8 | int(number, 16)


@functools.cache
def _file() -> _File:
    return _File()


def kernel() -> str:
    """Return the release of the headers that the values are from."""
    return _file().kernel


@functools.lru_cache(4096)
def _value(name: str, port: str) -> int | None:
    return _file().value(_file().all[name], port)


def find(name: str, arch: ArchLike = None) -> int | None:
    """Return a constant's value on an architecture (the native one unless told), None if it has none of that name.

    >>> hex(find("O_DIRECT", "x86_64")), hex(find("O_DIRECT", "aarch64"))
    ('0x4000', '0x10000')
    """
    return _value(name, Arch.of(arch).value) if name in _file().all else None


def names(kind: Kind | None = None) -> Iterator[str]:
    """Yield the names that at least one architecture has, of one kind or of all."""
    return iter(_file().all if kind is None else _file().kinds[kind])


@functools.lru_cache(1024)
def family(pattern: str, arch: Arch, kind: Kind = "others") -> Mapping[int, str]:
    """Return the names of values: of all constants whose name matches the regular expression, on an architecture.

    Of several names of one value it is the shortest, of these the first in the alphabet; an old name only where there is no other.
    """
    matches = re.compile(pattern).fullmatch
    found: dict[int, str] = {}
    for name in sorted(filter(matches, _file().kinds[kind]), key=lambda name: (name in _OLD, len(name), name)):
        value = _file().value(_file().kinds[kind][name], arch.value)
        if value is not None:
            found.setdefault(value, name)
    return found


_OLD: Final = frozenset(
    "O_NDELAY O_FSYNC O_RSYNC MAP_ANON MAP_RENAME AF_LOCAL AF_FILE AF_ROUTE SIGIOT SIGCLD SIGPOLL SIGUNUSED SIGLOST RLIMIT_OFILE".split()
)
"""Second names."""


@functools.lru_cache(32)
def ioctl_requests(arch: Arch) -> Mapping[int, str]:
    """Return the names of ioctl(2)'s requests; of a number that several drivers use, there is none unless a terminal or socket does."""
    found: dict[int, set[str]] = {}
    for name, text in _file().kinds["ioctls"].items():
        value = _file().value(text, arch.value)
        if value is not None and value > 9:
            found.setdefault(value, set()).add(name)
    sure: dict[int, str] = {}
    for value, same in found.items():
        generic = sorted(name for name in same if re.fullmatch(r"(TC|TIOC|FIO|SIOC)[A-Z0-9]+", name))
        if len(same) == 1 or generic:
            sure[value] = min(generic or same, key=len)
    return sure


_PREFERRED: Final = ("EAGAIN", "EBADMSG", "EDEADLK", "EOPNOTSUPP", "EUCLEAN")
"""Errnos that have a second name."""


@functools.lru_cache(32)
def errnos(arch: Arch) -> Mapping[int, str]:
    """Return the names of the errnos of an architecture, by number."""
    found = {}
    for name, text in _file().kinds["errnos"].items():
        value = _file().value(text, arch.value)
        if value is not None and (value not in found or name in _PREFERRED):
            found[value] = name
    return found


def errno_number(name: str, arch: ArchLike = None) -> int | None:
    """Return an errno's number on an architecture; None: it is not the name of an errno there.

    >>> errno_number("ENOSYS", "x86_64"), errno_number("ENOSYS", "mips")
    (38, 89)
    """
    return find(name, arch) if name in _file().kinds["errnos"] else None


def errno_name(number: int, arch: ArchLike = None) -> str | None:
    """Return the name that a number has as an errno on an architecture."""
    return errnos(Arch.of(arch)).get(number)


class Table:
    """The constants of one architecture, with those of a caller added or put in their place."""

    __slots__ = ("arch", "_own")

    def __init__(self, arch: ArchLike = None, own: Source | None = None) -> None:
        self.arch = Arch.of(arch)
        self._own: Mapping[str, int] = {} if own is None else read(own, self.arch)

    def find(self, name: str) -> int | None:
        """Return the value of a name, None if there is none."""
        return self._own[name] if name in self._own else find(name, self.arch)

    def errno(self, name: str) -> int | None:
        """Return the number of an errno's name, None if there is none."""
        return self._own[name] if name in self._own else errno_number(name, self.arch)

    def hint(self, name: str, kind: Kind | None = None) -> str:
        """Return the end of an error about a name that is none: where it is one, or which names are near; "" if there is nothing to say."""
        elsewhere = [arch.value for arch in Arch if find(name, arch) is not None and (kind is None or name in _file().kinds[kind])]
        if elsewhere:
            more = ", ..." if len(elsewhere) > 4 else ""
            return f"; it is one on {', '.join(elsewhere[:4])}{more}, not on {self.arch.value}"
        near = difflib.get_close_matches(name[:64], [*names(kind), *self._own], 2, 0.8)
        return f"; did you mean {' or '.join(near)}?" if near else ""


def read(source: Source, arch: ArchLike = None) -> dict[str, int]:
    """Return constants of one's own: from a mapping of names to numbers, or from the JSON file of that path.

    The file is minijail's constants.json (an object whose ``constants`` are names and numbers; its ``arch_nr``, if there is one, must be
    that of arch), or an object of names and numbers.

    Raises:
        PolicyError: the file cannot be read, is for another architecture, or has a name or number that cannot be one.
    """
    where, table = "constants", source
    if isinstance(source, (str, os.PathLike)):
        where = os.fspath(source)
        table = _constants_of(_load(where), where, Arch.of(arch))
    if not isinstance(table, Mapping):
        raise PolicyError(f"{where}: expected an object of names and numbers, found {type(table).__name__}")
    if len(table) > MAX_NAMES:
        raise PolicyError(f"{where}: more than {MAX_NAMES} constants")
    for name, value in table.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise PolicyError(f"{where}: {name!r:.60} cannot be the name of a constant")
        if isinstance(value, bool) or not isinstance(value, int) or not -(1 << 63) <= value < 1 << 64:
            raise PolicyError(f"{where}: {name:.60}: {value!r:.40} is not a number of 64 bits")
    return {name: int(value) for name, value in table.items()}


def _load(path: str) -> Any:
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_SIZE + 1)
    except OSError as error:
        raise PolicyError(f"{path}: cannot be read: {error.strerror}") from error
    if len(data) > MAX_SIZE:
        raise PolicyError(f"{path}: larger than {MAX_SIZE >> 20} MiB: these are not constants")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise PolicyError(f"{path}: not JSON: {str(error)[:200]}") from None


def _constants_of(value: Any, path: str, arch: Arch) -> Any:
    if not isinstance(value, dict) or not isinstance(value.get("constants"), dict):
        return value
    token = value.get("arch_nr", arch.token)
    if token != arch.token:
        name = value.get("arch_name", token)
        raise PolicyError(f"{path}: has the constants of {name!r:.40}, but the policy is read for {arch.value}; give the file of that architecture")
    return value["constants"]
