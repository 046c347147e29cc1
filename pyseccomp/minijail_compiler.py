"""minijail's policy files, as its compile_seccomp_policy.py reads them: the other dialect, see :mod:`pyseccomp.minijail`.

Here an action after a comparison is what a call gets that *matches* (``arg0 == 1; return EPERM``; without one it is allowed),
and one that matches nothing gets the default. ``{ ... , ... }`` lists filters of which the first that matches decides, or several
calls with the same filters; ``call[arch=x86_64,arm64]`` is for these architectures; ``@default ACTION`` and ``@denylist`` set the
default; ``@include PATH`` and ``@frequency PATH`` count from the file they stand in. The frequencies are the policy's ``profile``.
"""

from __future__ import annotations

import os
import re
from typing import Final, NoReturn

from pyseccomp import actions, conflicts, constants, minijail, oci, syscalls
from pyseccomp.actions import ALLOW, KILL_THREAD, Action, Condition
from pyseccomp.errors import PolicyError, UnknownSyscallError
from pyseccomp.policy import Policy
from pyseccomp.syscalls import Arch, ArchLike

_TOKEN: Final = re.compile(r"\s*(\|\||&&|==|!=|<=|>=|-?0[xX][0-9a-fA-F]+|-?\d+|@\w+|[A-Za-z_][\w-]*|[][{}()<>&|~:;,=])")
_ACTIONS: Final = {**minijail.ACTIONS, "kill": None}
_DEFAULTS: Final = ("kill-process", "kill-thread", "kill", "trap", "user-notify")
_COMPARISONS: Final = ("==", "!=", "<=", ">=", "<", ">", "&", "in")
_ARCH_NAMES: Final = {"x86_64": "x86_64", "x86": "x86", "i386": "x86", "arm": "arm", "arm64": "aarch64", "mips": "mips", "mips64": "mips64"}


class _Line:
    """The words of one statement."""

    def __init__(self, text: str, where: str) -> None:
        self.where = where
        self.words: list[str] = []
        self.at = 0
        self.comparisons = 0
        place = 0
        text = text.rstrip()
        while place < len(text):
            match = _TOKEN.match(text, place)
            if match is None:
                self.fail(f"{text[place:][:40].strip()!r} is not understood")
            self.words.append(match[1])
            place = match.end()

    def fail(self, reason: str) -> NoReturn:
        raise PolicyError(f"{self.where}: {oci.shortened(reason)}")

    @property
    def next(self) -> str:
        """The next word, "" at the end."""
        return self.words[self.at] if self.at < len(self.words) else ""

    def take(self, *words: str) -> bool:
        """Go past the next word if it is one of these."""
        found = self.next in words and self.next != ""
        self.at += found
        return found

    def word(self, wanted: str) -> str:
        """Take a word of any kind."""
        if not self.next:
            self.fail(f"expected {wanted} at the end")
        self.at += 1
        return self.words[self.at - 1]

    def need(self, word: str) -> None:
        if not self.take(word):
            self.fail(f"expected {word!r}, found {repr(self.next) if self.next else 'the end'}")


class _Reader:
    def __init__(self, policy: Policy, kill: Action, own: constants.Source | None) -> None:
        self.policy = policy
        self.kill = kill
        self.default: Action | None = None
        self.denylist = False
        self.filters: dict[str, list[tuple[Action, Condition | None]]] = {}
        self.frequencies: dict[str | int, float] = {}
        self.constants = minijail.Reader(policy, own)

    # --------------------------------------------------------------- lines

    def file(self, path: str, where: str, depth: int, *, frequencies: bool = False) -> None:
        if depth > minijail.MAX_DEPTH:
            raise PolicyError(f"{where}: includes are nested deeper than {minijail.MAX_DEPTH}: a loop?")
        self.constants.one_more_file(where)
        try:
            data = oci.read_file(path, minijail.MAX_SIZE)
        except OSError as error:
            raise PolicyError(f"{where}: {path:.200} cannot be read: {error.strerror}") from error
        self.text(data, path, depth, frequencies=frequencies)

    def text(self, data: bytes, name: str, depth: int = 0, *, frequencies: bool = False) -> None:
        for text, number in minijail.compiler_lines(data, name):
            line = f"{name}:{number}"
            if frequencies:
                self.frequency(_Line(text, line))
            elif re.match(r"@(include|frequency)\b", text):
                word, _, path = text.partition(" ")
                path = path.strip()
                if not path.startswith(("/", ".")):
                    raise PolicyError(f"{line}: {word} {path:.200}: a path begins with / or . (and counts from this file)")
                found = os.path.normpath(os.path.join(os.path.dirname(name), path))
                self.file(found, line, depth + 1, frequencies=word == "@frequency")
            else:
                self.statement(_Line(text, line))

    def statement(self, line: _Line) -> None:
        if line.take("@denylist"):
            if self.filters or self.default is not None:
                line.fail("@denylist must come before filters, and excludes @default")
            self.denylist = True
            self.default = ALLOW
        elif line.take("@default"):
            if self.default is not None:
                line.fail("a second default (or @denylist before it)")
            if line.next not in _DEFAULTS:
                line.fail(f"@default {line.next}: must be one of {', '.join(_DEFAULTS)}")
            self.default = self.action(line)
        elif line.next.startswith("@"):
            line.fail(f"{line.next} is not understood (@include, @frequency, @default, @denylist are)")
        else:
            calls = self.calls(line)
            line.need(":")
            filters = self.group(line)
            for call in calls:
                self.add(line, call, filters)
        if line.next:
            line.fail(f"{line.next!r} was not expected here")

    def frequency(self, line: _Line) -> None:
        calls = self.calls(line)
        line.need(":")
        count = line.word("a count")
        if not count.isdigit() or line.next:
            line.fail(f"expected 'call: COUNT', found {count!r}")
        for call in calls:
            self.frequencies[call] = self.frequencies.get(call, 0.0) + int(count)

    # ------------------------------------------------------------ elements

    def calls(self, line: _Line) -> list[str]:
        if not line.take("{"):
            return self.call(line)
        found = self.call(line)
        while line.take(","):
            found += self.call(line)
        line.need("}")
        return found

    def call(self, line: _Line) -> list[str]:
        """The call named next, or none if it is for other architectures."""
        name = line.word("a system call")
        if not re.fullmatch(r"[a-z_][a-z0-9_]*", name):
            line.fail(f"{name!r} is not the name of a system call")
        if line.take("["):
            self_there = True
            while True:
                key = line.word("arch=")
                line.need("=")
                values = [line.word("an architecture")]
                while line.take(","):
                    values.append(line.word("an architecture"))
                if key != "arch" or not _ARCH_NAMES.keys() >= set(values):
                    line.fail(f"[{key}={','.join(values)}]: expected arch= and of {', '.join(_ARCH_NAMES)}")
                self_there = self_there and self.policy.arches[0].value in {_ARCH_NAMES[value] for value in values}
                if not line.take(";"):
                    break
            line.need("]")
            if not self_there:
                return []
        try:
            syscalls.resolve(name, self.policy.arches[0])
        except UnknownSyscallError as error:
            line.fail(str(error))
        return [name]

    def group(self, line: _Line) -> list[tuple[Action, Condition | None]]:
        if not line.take("{"):
            return [self.filter(line)]
        found = [self.filter(line)]
        while line.take(","):
            found.append(self.filter(line))
        line.need("}")
        return found

    def filter(self, line: _Line) -> tuple[Action, Condition | None]:
        if not re.fullmatch(r"arg\d+", line.next):
            return self.action(line), None
        line.comparisons = 0
        condition = self.clause(line)
        while line.take("||"):
            condition = condition | self.clause(line)
        if line.take(";"):
            return self.action(line), condition
        if self.denylist:
            line.fail("in a denylist every filter says what it returns")
        return ALLOW, condition

    def clause(self, line: _Line) -> Condition:
        condition = self.atom(line)
        while line.take("&&"):
            condition = condition & self.atom(line)
        if conflicts.never(self.policy, condition):
            line.fail(f"{condition!r} contradicts itself: no call can match")
        return condition

    def atom(self, line: _Line) -> Condition:
        line.comparisons += 1
        if line.comparisons > minijail.MAX_COMPARISONS:
            line.fail(f"more than {minijail.MAX_COMPARISONS} comparisons in one filter")
        argument = line.word("an argument like arg0")
        if not re.fullmatch(r"arg[0-5]", argument):
            line.fail(f"{argument!r} is not an argument: arg0 to arg5")
        operator = line.word("a comparison")
        if operator not in _COMPARISONS:
            line.fail(f"{operator!r} is not a comparison: {' '.join(_COMPARISONS)}")
        return minijail.comparison(int(argument[3]), operator, self.value(line))

    def value(self, line: _Line) -> int:
        result = self.constant(line)
        while line.take("|"):
            result |= self.constant(line)
        return result

    def constant(self, line: _Line) -> int:
        inverted = line.take("~")
        if line.take("("):
            try:
                found = self.value(line)
            except RecursionError:
                line.fail("parentheses are nested too deeply")
            line.need(")")
        else:
            found = self.constants.value(line.word("a value"), line.where)
        return ~found & (1 << 64) - 1 if inverted else found

    def action(self, line: _Line) -> Action:
        word = line.word("an action")
        if self.denylist and word != "return":
            line.fail("in a denylist every action is 'return ERRNO'")
        if word == "return":
            text = line.word("an errno")
            found = self.constants.action(f"return {text}", line.where)
            assert found is not None
            return found
        if word not in _ACTIONS:
            line.fail(f"{word!r} is not an action: {', '.join(_ACTIONS)}, return ERRNO")
        return _ACTIONS[word] or self.kill

    def add(self, line: _Line, call: str, filters: list[tuple[Action, Condition | None]]) -> None:
        held = self.filters.setdefault(call, [])
        for action, condition in filters:
            if held and held[-1][1] is None:
                line.fail(f"{call} has an action without a comparison already; what comes after it could never hold")
            held.append((action, condition))


def parse(
    data: bytes, name: str, *, arch: ArchLike = None, kill: int = KILL_THREAD, constants: constants.Source | None = None
) -> Policy:
    """Read a policy file; kill is what ``kill`` means, and the default where the file says none (``--use-kill-process`` there).

    Constants have the values of arch; those of ``constants`` (there: constants.json) are added to them or replace them.

    Raises:
        PolicyError: not such a file; the message has the file, the line and the reason.
    """
    policy = Policy(kill, Arch.of(arch), bad_arch=kill, priority="first", low_words=True)
    reader = _Reader(policy, actions.Action(kill), constants)
    reader.text(data, name)
    if reader.default is not None:
        policy.default = reader.default
    for call, filters in reader.filters.items():
        for action, condition in filters:
            policy.add(action, call, *(() if condition is None else (condition,)))
    policy.profile = reader.frequencies or None
    return policy
