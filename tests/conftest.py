"""Make the harness importable, and see to it that no test is skipped without a reason that counts.

A skip names what is missing: ``kernel lacks ...``, ``privilege: ...`` or ``material lacks ...``. Where everything is there (CI=true, as root, on
the kernel that the project is developed on) a skip is an error, unless it is listed here.
"""

import os
import platform
import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

REASONS = ("kernel lacks ", "privilege: ", "material lacks ")
ACCEPTED = (
    "kernel lacks x32",  # CONFIG_X86_X32_ABI is off nearly everywhere
    "privilege: no kernel thread is visible",  # in a pid namespace, which a container always is
    "privilege: to have too little",  # runs as the ordinary user
    "material lacks the headers of Linux",  # of all architectures, in Debian's newest suite alone: PYSECCOMP_KERNEL_HEADERS names them
)

# What tests start is ended by signals, whatever who started the tests ignores (nohup).
for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

_noted: list[tuple[str, str]] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _note(report.nodeid, report)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    _note(report.nodeid, report)


def _note(where: str, report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail") and isinstance(report.longrepr, tuple):
        _noted.append((where, report.longrepr[2].removeprefix("Skipped: ")))


def _complete() -> bool:
    release = tuple(int(part) for part in platform.release().split(".")[:2])
    return os.environ.get("CI") == "true" and os.geteuid() == 0 and release >= (6, 18)


def _unexpected() -> list[str]:
    return [
        f"{where}: {reason!r}"
        for where, reason in _noted
        if not reason.startswith(REASONS) or (_complete() and not reason.startswith(ACCEPTED))
    ]


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if _unexpected() and exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in _unexpected():
        terminalreporter.write_line(f"UNEXPECTED SKIP {line}", red=True)
