"""Where the C core lies, for programs in C and Cython that use it without this package's Python."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parent


def get_include() -> str:
    """Return the directory of ``psc.h``, for the compiler's ``-I``."""
    return str(_PACKAGE / "include")


def get_library() -> str:
    """Return the path of the static library ``libpsc.a``, to be linked with ``-pthread``; it needs no Python."""
    return str(_PACKAGE / "lib" / "libpsc.a")


def get_guardian() -> str:
    """Return the path of the helper program that ``psc_guardian_start()`` and ``psc_opener_start()`` execute."""
    return str(_PACKAGE / "guardian")


def get_examples() -> str:
    """Return the directory of a monitor in C (``monitor.c``), one in Cython (``cymonitor.pyx``), and ``thread.py``, in Python."""
    return str(_PACKAGE / "examples")
