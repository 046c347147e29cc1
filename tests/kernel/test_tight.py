"""A process that filters itself tightly ends as it would without this package: nothing of ours makes a call that the filter forbids."""

import signal
import subprocess
import sys

import pytest

import pyseccomp as ps

ALWAYS = ("write", "exit_group", "rt_sigreturn")
CANDIDATES = (
    "rt_sigaction", "munmap", "mmap", "brk", "madvise", "futex", "close", "getpid", "openat", "read", "lseek", "newfstatat", "ioctl",
    "sigaltstack", "epoll_ctl", "exit", "poll", "rt_sigprocmask",
)  # fmt: skip

BARE = """
import ctypes, gc, os, sys
code = bytes.fromhex(sys.argv[1])
class Program(ctypes.Structure):
    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_void_p)]
room = ctypes.create_string_buffer(code)
program = Program(len(code) // 8, ctypes.addressof(room))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.byref(program), 0, 0) == 0
os.write(1, b"in force;")
gc.collect()
os.write(1, b"done")
END
"""

WAYS = {
    "with": """
with ps.Filter(program) as f:
    f.attach()
    os.write(1, b"in force;")
os.write(1, b"done")
""",
    "with an attachment": """
with ps.Filter(program) as f:
    with f.attach() as a:
        os.write(1, b"in force;")
os.write(1, b"done")
""",
    "del": """
f = ps.Filter(program)
a = f.attach()
os.write(1, b"in force;")
del f, a
gc.collect()
os.write(1, b"done")
""",
    "exit": """
f = ps.Filter(program)
a = f.attach(threads="one")
os.write(1, b"in force;")
os.write(1, b"done")
""",
    "objects around": """
import threading
others = [ps.Filter(ps.Policy().compile()) for _ in range(3)]
answers = [ps.add_fd(1), ps.EventRing(64)]
f = ps.Filter(program)
f.attach()
os.write(1, b"in force;")
del others, answers
gc.collect()
os.write(1, b"done")
""",
    "a filter that notifies too": """
more = ps.Filter(ps.Policy.compile(notifying))
a = more.attach()
f = ps.Filter(program)
f.attach()
os.write(1, b"in force;")
del more, a
gc.collect()
os.write(1, b"done")
""",
    "a gate": """
f = ps.Filter(program)
a = f.attach(mode="gate")
os.write(1, b"in force;")
del f, a
gc.collect()
os.write(1, b"done")
""",
    "load": """
f = ps.SyscallFilter(ps.KILL_PROCESS)
for name in allowed:
    f.add_rule(ps.ALLOW, name)
f.load()
os.write(1, b"in force;")
del f
gc.collect()
os.write(1, b"done")
""",
}  # fmt: skip

OURS = """
import gc, os, sys
import pyseccomp as ps
allowed = sys.argv[2].split()
program = ps.Program.from_bytes(bytes.fromhex(sys.argv[1]))
notifying = ps.Policy()
notifying.add(ps.NOTIFY, "mkdirat")
WAY
END
"""

ENDS = {"normal": "", "os._exit": "os._exit(0)"}


def _program(allowed: tuple[str, ...]) -> ps.Program:
    policy = ps.Policy(ps.KILL_PROCESS)
    for name in allowed:
        policy.add(ps.ALLOW, name)
    return policy.compile()


def _run(script: str, allowed: tuple[str, ...]) -> tuple[int, bytes]:
    argv = [sys.executable, "-c", script, bytes(_program(allowed)).hex(), " ".join(allowed)]
    done = subprocess.run(argv, stdout=subprocess.PIPE, timeout=30, check=False)
    return done.returncode, done.stdout


def _least(end: str) -> tuple[str, ...]:
    """What the bare interpreter needs from then on, found by leaving out one call after the other."""
    script = BARE.replace("END", ENDS[end])
    allowed = ALWAYS + CANDIDATES
    assert _run(script, allowed) == (0, b"in force;done")
    for name in CANDIDATES:
        less = tuple(one for one in allowed if one != name)
        if _run(script, less) == (0, b"in force;done"):
            allowed = less
    return allowed


@pytest.fixture(scope="module", params=list(ENDS))
def end_and_least(request: pytest.FixtureRequest) -> tuple[str, tuple[str, ...]]:
    return request.param, _least(request.param)


@pytest.mark.parametrize("way", list(WAYS))
def test_a_program_under_its_own_tight_filter_ends_as_without_this_package(
    way: str, end_and_least: tuple[str, tuple[str, ...]]
) -> None:
    end, least = end_and_least
    script = OURS.replace("WAY", WAYS[way]).replace("END", ENDS[end])
    assert _run(script, least) == (0, b"in force;done"), f"allowed: {least}"


PARKED = """
import gc, mmap, os, sys
import pyseccomp as ps
program = ps.Program.from_bytes(bytes.fromhex(sys.argv[1]))
f = ps.Filter(program)
f.accept_parked()
shared = mmap.mmap(-1, 4096)
child = os.fork()
if child:
    while not shared[1]:
        pass
    f.wait_parked(1, 10)
    f.activate()
    shared[0] = 1
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
a = f.attach(active=False)
shared[1] = 1
while not shared[0]:  # without a call
    pass
os.write(1, b"in force;")
del f, a
gc.collect()
os.write(1, b"done")
os._exit(0)
"""


def test_a_parked_process_under_a_tight_filter_ends_as_without_this_package() -> None:
    assert _run(PARKED, (*ALWAYS, "exit")) == (0, b"in force;done")


def test_a_call_too_few_ends_the_bare_program_and_ours_alike() -> None:
    """The tests above can fail: without rt_sigaction the interpreter itself is killed at its end."""
    least = _least("normal")
    less = tuple(one for one in least if one != "rt_sigaction")
    ours = OURS.replace("WAY", WAYS["exit"]).replace("END", "")
    assert "rt_sigaction" in least
    assert _run(BARE.replace("END", ""), less)[0] == _run(ours, less)[0] == -signal.SIGSYS


def test_an_import_loads_no_openssl() -> None:
    """Its exit handlers call futex and munmap, which a tight filter kills for."""
    script = "import sys, pyseccomp; print(*[m for m in sys.modules if m in ('_ssl', '_hashlib', 'asyncio', 'multiprocessing.util')])"
    assert subprocess.check_output([sys.executable, "-c", script], text=True, timeout=30).strip() == ""
