"""Conditions on strings that a call's arguments point to: for rules of a Responder."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

from pyseccomp import _core
from pyseccomp.actions import Condition, Term
from pyseccomp.errors import PolicyError

STRING_TERM: Final = 4
_LONGEST: Final = 4095
_KINDS: Final = ("exact", "prefix", "glob")

Text = str | bytes | os.PathLike[str] | os.PathLike[bytes]


@dataclass(frozen=True, slots=True, repr=False)
class StringArg(Condition):
    """The string that argument ``index`` (0-5) points to is ``exact``, begins with ``prefix``, or matches ``glob``; one of them.

    Bytes are compared with bytes, as the target passes them: no path is made absolute or clean, no link is followed, and
    the directory descriptor that it is relative to is not looked at. No more is read than the decision takes, at most 4096
    bytes, the NUL included. What cannot be read is neither true nor false, and neither is its negation: the rule's
    ``unreadable=`` answers, unless the other conditions decide it.

    In ``glob`` a ``*`` stands for any bytes, ``?`` for one, ``[a-z]`` and ``[!a-z]`` for one that is listed or not, all of them
    for ``/`` too; ``**`` means ``*``; ``[*]`` is a star. It is what :func:`fnmatch.fnmatchcase` says, in time at most
    proportional to the length of the pattern times that of the string.

    Raises:
        PolicyError: an index that does not fit, not exactly one kind, a string that could never match, a ``[`` without ``]``.
    """

    index: int
    exact: Text | None = None
    prefix: Text | None = None
    glob: Text | None = None

    def __post_init__(self) -> None:
        if isinstance(self.index, bool) or not isinstance(self.index, int) or not 0 <= self.index <= 5:
            raise PolicyError(f"argument index {self.index!r}: a system call has arguments 0 to 5")
        given = [kind for kind in _KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise PolicyError(f"argument {self.index}: give one of exact=, prefix= and glob=, got {', '.join(given) or 'none'}")
        try:
            text = os.fsencode(getattr(self, given[0]))
        except TypeError as error:
            raise PolicyError(f"argument {self.index}: {given[0]}: {error}") from None
        object.__setattr__(self, given[0], text)
        self._check(given[0], text)

    def _check(self, kind: str, text: bytes) -> None:
        if b"\0" in text:
            raise PolicyError(f"argument {self.index}: a string ends at its first NUL, so {kind}={text!r} can never match")
        if len(text) > _LONGEST:
            raise PolicyError(f"argument {self.index}: {kind}= is of {len(text)} bytes; strings are read up to {_LONGEST}")
        if kind == "prefix" and not text:
            raise PolicyError(f"argument {self.index}: every string begins with nothing; leave the condition out")
        if kind == "glob" and _unclosed(text):
            raise PolicyError(f"argument {self.index}: glob={text!r} has a [ without ]; [[] stands for the character")

    def _asked(self) -> tuple[int, bytes]:
        """The kind's number and the text."""
        for number, kind in enumerate(_KINDS):
            text = getattr(self, kind)
            if text is not None:
                return number, text
        raise AssertionError("one is given")

    def matches(self, text: bytes) -> bool:
        """Tell whether a string fulfils it."""
        kind, wanted = self._asked()
        if kind == 2:
            return _core.glob_match(wanted, text)
        return text == wanted if kind == 0 else text.startswith(wanted)

    @property
    def terms(self) -> tuple[Term, ...]:
        """One term, which stands for the one string."""
        return ((STRING_TERM, self.index, 0, 0, 0, 0),)

    @property
    def strings(self) -> tuple[tuple[int, bytes], ...]:
        """The kind's number and the text, for C."""
        return (self._asked(),)

    def __repr__(self) -> str:
        kind, text = self._asked()
        return f"StringArg({self.index}, {_KINDS[kind]}={text!r})"


def _unclosed(pattern: bytes) -> bool:
    at = 0
    while (at := pattern.find(b"[", at)) >= 0:
        first = at + 2 if pattern[at + 1 : at + 2] == b"!" else at + 1
        at = pattern.find(b"]", first + 1)
        if at < 0:
            return True
    return False
