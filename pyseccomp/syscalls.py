"""Names and numbers of system calls, for every architecture, from the kernel's headers."""

from __future__ import annotations

import difflib
import enum
import functools
from typing import TYPE_CHECKING, Final

from pyseccomp import _core
from pyseccomp.errors import PolicyError, UnknownSyscallError, UnsupportedError

KERNEL, HEADERS = _core.syscall_kernel()
"""The kernel whose calls the tables hold, and the releases of the headers that they were generated from."""

_TABLE: Final = _core.arch_table()
_INDEXES: Final = {row[0]: index for index, row in enumerate(_TABLE)}
_NAMES: Final = _core.syscall_names()
IDS: Final = {name: index for index, name in enumerate(_NAMES)}
"""The index that a name has in all tables."""
_ALIASES: Final = {
    "amd64": "x86_64",
    "i386": "x86",
    "i686": "x86",
    "386": "x86",
    "arm64": "aarch64",
    "armv7l": "arm",
    "loong64": "loongarch64",
    "mips64el": "mipsel64",
    "hppa": "parisc",
}
X32_BIT: Final = 0x40000000
_X32_TOKEN: Final = 0x4000003E


class _ArchType(enum.EnumMeta):
    """``Arch()`` is the native one, and ``Arch.NATIVE`` the number that stands for it, as in libseccomp's binding."""

    NATIVE: Final = 0

    if not TYPE_CHECKING:

        def __call__(cls, value=NATIVE, *args, **named):  # noqa: N805
            return super().__call__(value, *args, **named)


class Arch(int, enum.Enum, metaclass=_ArchType):
    """An architecture, or rather a system call ABI: x32 is one of its own.

    A member is an int, libseccomp's token for it: the kernel's AUDIT_ARCH, but for x32. ``Arch(...)`` takes a name, such a
    token (signed or not) or nothing for the native one.

    Raises: ValueError: there is no such architecture. TypeError: neither a name nor a token.
    """

    X86_64 = "x86_64"
    X86 = "x86"
    X32 = "x32"
    ARM = "arm"
    AARCH64 = "aarch64"
    LOONGARCH64 = "loongarch64"
    M68K = "m68k"
    MIPS = "mips"
    MIPSEL = "mipsel"
    MIPS64 = "mips64"
    MIPSEL64 = "mipsel64"
    MIPS64N32 = "mips64n32"
    MIPSEL64N32 = "mipsel64n32"
    PARISC = "parisc"
    PARISC64 = "parisc64"
    PPC = "ppc"
    PPC64 = "ppc64"
    PPC64LE = "ppc64le"
    RISCV64 = "riscv64"
    S390 = "s390"
    S390X = "s390x"
    SH = "sh"
    SHEB = "sheb"

    def __new__(cls, name: str) -> Arch:
        """Make a member; its value is the name."""
        self = int.__new__(cls, _X32_TOKEN if name == "x32" else _TABLE[_INDEXES[name]][1])
        self._value_ = name
        return self

    __hash__ = int.__hash__

    def __repr__(self) -> str:
        return f"<Arch.{self._name_}>"

    __str__ = enum.Enum.__str__

    def __format__(self, spec: str) -> str:
        return format(str(self), spec)

    @classmethod
    def _missing_(cls, value: object) -> Arch | None:
        if isinstance(value, bool) or not isinstance(value, (int, str)):
            raise TypeError(f"Architecture must be an int or str type, not {type(value).__name__}")
        try:
            return cls._of_token(value) if isinstance(value, int) else cls.of(value)
        except ValueError:
            return None

    @classmethod
    def _of_token(cls, token: int) -> Arch:
        if token == _ArchType.NATIVE:
            return cls.native()
        for arch in cls:
            if arch == token % (1 << 32):
                return arch
        raise ValueError(f"{token:#x} is the token of no architecture")

    @property
    def index(self) -> int:
        """Its place in the C tables."""
        return _INDEXES[self._value_]

    @property
    def token(self) -> int:
        """The kernel's AUDIT_ARCH token; x32 has that of x86_64."""
        return _TABLE[_INDEXES[self._value_]][1]

    @property
    def big_endian(self) -> bool:
        """Its byte order."""
        return _TABLE[_INDEXES[self._value_]][2]

    @property
    def wide(self) -> bool:
        """True if its calls take 64-bit arguments in one register each (false for x32, as libseccomp counts it)."""
        return _TABLE[_INDEXES[self._value_]][3]

    @classmethod
    def native(cls) -> Arch:
        """Return the ABI of this interpreter.

        Raises:
            UnsupportedError: there is no table for it.
        """
        if _NATIVE < 0:
            raise UnsupportedError(-_NATIVE, "pyseccomp has no system call table for this machine's architecture")
        return _MEMBERS[_NATIVE]

    @classmethod
    def of(cls, arch: ArchLike) -> Arch:
        """Return the ABI meant by an Arch, a name (its own, libseccomp's, Debian's, Go's), an AUDIT_ARCH token or None.

        Raises:
            PolicyError: nothing of that name or token; the nearest names are told.
        """
        if isinstance(arch, Arch):
            return arch
        if arch is None:
            return cls.native()
        if isinstance(arch, int):
            try:
                return cls._of_token(arch or -1)
            except ValueError:
                raise PolicyError(f"architecture {arch:#x}: no such AUDIT_ARCH token") from None
        name = arch.removeprefix("SCMP_ARCH_").lower()
        name = _ALIASES.get(name, name)
        try:
            return cls._value2member_map_[name]  # type: ignore[return-value]
        except KeyError:
            near = difflib.get_close_matches(name, [*(a.value for a in cls), *_ALIASES], 3)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise PolicyError(f"architecture {arch!r} is not known{hint}") from None


_NATIVE: Final = _core.native_arch()
_MEMBERS: Final = tuple(Arch.of(row[0]) for row in _TABLE)
"""The members in the order of the C tables."""
ArchLike = Arch | str | int | None


def syscall_index(name: str) -> int:
    """Return the index that a name has in all tables.

    Raises:
        UnknownSyscallError: no architecture has such a call; the nearest names are told.
    """
    try:
        return IDS[name]
    except KeyError:
        pass
    near = tuple(difflib.get_close_matches(str(name), _NAMES, 3, 0.7))
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise UnknownSyscallError(f"no system call is called {name!r:.80} (in Linux {KERNEL}){hint}", suggestions=near)


@functools.lru_cache(256)
def indexes_of(arches: tuple[Arch, ...], multiplexed: bool = False) -> frozenset[int]:
    """Return the indexes of the calls that at least one of the architectures has, by its own number or (if told) another's."""
    numbers, through = _core.syscall_number, _core.syscall_multiplexed
    return frozenset(
        i
        for i in range(len(_NAMES))
        if any(numbers(a.index, i) >= 0 or (multiplexed and through(a.index, i) is not None) for a in arches)
    )


@functools.lru_cache(256)
def ids_of(arches: tuple[Arch, ...], multiplexed: bool = False) -> dict[str, int]:
    """Return the calls of :func:`indexes_of`, by name."""
    return {_NAMES[i]: i for i in indexes_of(arches, multiplexed)}


def name_of(index: int) -> str:
    """Return the name that has this index in all tables."""
    return _NAMES[index]


def multiplexed(name: str, arch: ArchLike = None) -> tuple[int, int, int] | None:
    """Return how an architecture makes a call through ``socketcall`` or ``ipc``, or None where it does not.

    The tuple is (number of the multiplexer, mask, value): the call is meant when the first argument, under the mask,
    has the value. The kernel reads no other bits of it.

    Raises:
        UnknownSyscallError: no architecture has a call of that name.
    """
    return _core.syscall_multiplexed(Arch.of(arch).index, syscall_index(name))


def resolve(name: str, arch: ArchLike = None) -> int:
    """Return the number of a call on an architecture (the native one unless told); x32's have their bit 30 set.

    Raises:
        UnknownSyscallError: no such call, or not there.
    """
    where = Arch.of(arch)
    number = _core.syscall_number(where.index, syscall_index(name))
    if number < 0:
        raise UnknownSyscallError(f"{where.value} has no system call {name!r}")
    return number


def name(nr: int, arch: ArchLike = None) -> str | None:
    """Return the name of a number on an architecture, or None where the tables have none."""
    if not 0 <= nr < 1 << 32:
        return None
    index = _core.syscall_by_number(Arch.of(arch).index, nr)
    return None if index < 0 else _NAMES[index]


def names(arch: ArchLike = None) -> list[str]:
    """Return the names of all calls of an architecture, in alphabetical order."""
    where = Arch.of(arch)
    return [_NAMES[i] for i in sorted(indexes_of((where,)))]


def local_arches() -> tuple[Arch, ...]:
    """Return the ABIs whose programs can run here: the native one, and those beside it."""
    native = Arch.native()
    return (native, *_COMPAT.get(native, ()))


_COMPAT: Final = {Arch.X86_64: (Arch.X86, Arch.X32), Arch.AARCH64: (Arch.ARM,)}
