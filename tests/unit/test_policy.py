"""Rules and what they come to, without a kernel."""

import contextlib
import errno
import pickle
import random
import threading
import time

import pytest

import pyseccomp as ps
from pyseccomp.errors import PolicyError, UnknownSyscallError

NATIVE = ps.Arch.X86_64


def policy(*rules, default=ps.ALLOW, arches=NATIVE, **options):
    made = ps.Policy(default, arches, **options)
    for action, call, *conditions in rules:
        made.add(action, call, *conditions)
    return made


def answer(made, call, *args, arch=NATIVE, **options):
    return made.compile(**options).simulate(call, args, arch=arch).action


def test_same_call_again_is_or_and_conditions_of_one_rule_are_and():
    made = policy(
        (ps.ERRNO(1), "socket", ps.Arg(0, ps.EQ, 1), ps.Arg(1, ps.EQ, 2)),
        (ps.ERRNO(1), "socket", ps.Arg(0, ps.EQ, 9)),
    )
    assert answer(made, "socket", 1, 2) == ps.ERRNO(1)
    assert answer(made, "socket", 9, 0) == ps.ERRNO(1)
    assert answer(made, "socket", 1, 3) == ps.ALLOW


@pytest.mark.parametrize("order", [1, -1])
def test_strictest_matching_rule_decides_in_any_order(order):
    rules = [(ps.ALLOW, "socket"), (ps.ERRNO(97), "socket", ps.Arg(0, ps.EQ, 38)), (ps.NOTIFY, "socket", ps.Arg(0, ps.LE, 40))]
    made = policy(*rules[::order], default=ps.KILL_PROCESS)
    assert answer(made, "socket", 38) == ps.ERRNO(97)
    assert answer(made, "socket", 39) == ps.NOTIFY
    assert answer(made, "socket", 41) == ps.ALLOW
    assert answer(made, "connect") == ps.KILL_PROCESS


def test_of_equal_actions_the_later_rule_counts_as_with_stacked_filters():
    assert answer(policy((ps.ERRNO(1), "read"), (ps.ERRNO(2), "read")), "read") == ps.ERRNO(2)


def test_first_priority_takes_the_first_rule_that_matches():
    made = policy((ps.ALLOW, "read", ps.Arg(0, ps.EQ, 3)), (ps.KILL_PROCESS, "read"), default=ps.LOG, priority="first")
    assert answer(made, "read", 3) == ps.ALLOW
    assert answer(made, "read", 4) == ps.KILL_PROCESS


def test_foreign_architecture_and_x32_get_the_bad_arch_action():
    made = policy((ps.ALLOW, "read"), default=ps.ERRNO(1))
    assert answer(made, 3, arch=ps.Arch.X86) == ps.KILL_PROCESS
    assert answer(made, 0x40000000, arch=NATIVE) == ps.KILL_PROCESS
    assert answer(made, 0x80000000, arch=NATIVE) == ps.KILL_PROCESS
    assert answer(policy(bad_arch=ps.TRAP), 0x40000001, arch=NATIVE) == ps.TRAP


def test_number_minus_one_gets_the_default_because_tracers_skip_calls_with_it():
    assert answer(policy((ps.ALLOW, "read"), default=ps.ERRNO(1)), 0xFFFFFFFF) == ps.ERRNO(1)
    assert answer(policy((ps.ALLOW, "read"), default=ps.ERRNO(1)), -1) == ps.ERRNO(1)


def test_x32_numbers_are_those_of_the_x32_table():
    made = policy((ps.ALLOW, "ioctl"), (ps.ALLOW, "write"), default=ps.ERRNO(1), arches=["x86_64", "x32"])
    assert answer(made, 0x40000000 + 514) == ps.ALLOW
    assert answer(made, 0x40000000 + 16) == ps.ERRNO(1)
    assert answer(made, 16) == ps.ALLOW
    assert answer(made, 514) == ps.ERRNO(1)
    assert answer(made, 0x40000001) == ps.ALLOW


def test_rule_by_number_needs_its_architecture_when_there_are_several():
    made = policy(arches=["x86_64", "x86"])
    with pytest.raises(PolicyError, match="add arch="):
        made.add(ps.ERRNO(1), 5)
    made.add(ps.ERRNO(1), 5, arch="x86")
    assert answer(made, 5, arch="x86") == ps.ERRNO(1)
    assert answer(made, 5, arch="x86_64") == ps.ALLOW
    with pytest.raises(PolicyError, match="not an architecture of this policy"):
        made.add(ps.ERRNO(1), 5, arch="arm")


def test_profile_puts_the_frequent_call_first():
    made = policy(*((ps.ERRNO(n), n) for n in range(0, 400, 2)))
    for number in (7, 200, 301):
        program = made.compile(profile={number: 1e6})
        assert program.simulate(number, arch=NATIVE).executed <= 8
    assert made.compile(optimize="depth").simulate(200, arch=NATIVE).executed < 16


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(UnknownSyscallError, match="did you mean") as caught:
        policy((ps.ALLOW, "opneat"))
    assert "openat" in caught.value.suggestions
    with pytest.raises(UnknownSyscallError, match="no system call of x86_64"):
        policy((ps.ALLOW, "chown32"))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: ps.ERRNO(4096), "0 to 4095"),
        (lambda: ps.ERRNO(-1), "0 to 4095"),
        (lambda: ps.TRACE(65536), "0 to 65535"),
        (lambda: ps.Arg(6, ps.EQ, 0), "arguments 0 to 5"),
        (lambda: ps.Arg(0, 9, 0), "must be one of"),
        (lambda: ps.Arg(0, ps.EQ, 1 << 64), "not a 64-bit number"),
        (lambda: ps.Arg(0, ps.EQ, 1 << 32, bits=32), "not a 32-bit number"),
        (lambda: ps.Arg(0, ps.EQ, 1, 2), "takes one value"),
        (lambda: ps.Arg(0, ps.MASKED_EQ, 1, 2), "never match"),
        (lambda: ps.Arg(0, ps.RANGE, 2, 1), "is empty"),
        (lambda: ps.Arg(0, ps.EQ, 1 << 31, bits=32, signed=True), "not a signed 32-bit"),
        (lambda: ps.In(0, []), "empty set"),
        (lambda: ps.Policy(12345), "is not an action"),
        (lambda: ps.Policy(arches=["x86_64", "amd64"]), "given twice"),
        (lambda: ps.Policy(arches=["x86_64", "s390x"]), "byte order"),
        (lambda: ps.Policy(arches=[]), "at least one"),
        (lambda: ps.Policy(arches="x86-64"), "did you mean x86_64"),
        (lambda: ps.Policy(priority="last"), "'restrictive' or 'first'"),
        (lambda: policy((ps.ALLOW, "read", (0, ps.EQ, 1))), "write Arg"),
        (lambda: policy((ps.ALLOW, True)), "not a system call number"),
        (lambda: policy((ps.ALLOW, 1 << 30)), "not a system call number"),
        (lambda: policy().compile(optimize="speed"), "'size', 'depth' or 'profile'"),
        (lambda: policy().compile(optimize="profile"), "needs a profile"),
        (lambda: policy().compile({"read": -1}), "not a count"),
    ],
)
def test_bad_input_is_refused_with_its_reason(make, says):
    with pytest.raises(PolicyError, match=says):
        make()


def test_policy_too_large_is_refused_with_its_size():
    made = policy(*((ps.ERRNO(n % 4095), "read", ps.Arg(0, ps.EQ, 3 * n + (n << 33))) for n in range(3000)))
    with pytest.raises(PolicyError, match="the kernel takes 4096"):
        made.compile()


def test_actions_are_the_kernels_words():
    assert ps.ERRNO(errno.EPERM) == 0x00050001
    assert ps.KILL is ps.KILL_THREAD
    assert repr(ps.TRACE(7)) == "TRACE(7)"
    assert pickle.loads(pickle.dumps(ps.ERRNO(3))).name == "ERRNO"
    assert sorted([ps.ALLOW, ps.NOTIFY, ps.KILL_PROCESS, ps.ERRNO(9)], key=lambda a: a.rank)[0] is ps.KILL_PROCESS


@pytest.mark.parametrize("arch", ["x86", "s390", "s390x", "mips", "ppc", "ppc64le", "m68k", "sh"])
def test_rule_for_a_call_holds_through_its_multiplexer(arch):
    made = policy((ps.ALLOW, "socket"), (ps.ALLOW, "accept"), (ps.ALLOW, "semop"), default=ps.ERRNO(1), arches=arch)
    assert answer(made, "socketcall", 1, arch=arch) == answer(made, "socketcall", 5, arch=arch) == ps.ALLOW
    assert answer(made, "socketcall", 2, arch=arch) == ps.ERRNO(1)
    assert answer(made, "ipc", 1, arch=arch) == answer(made, "ipc", 0x10001, arch=arch) == ps.ALLOW
    assert answer(made, "ipc", 2, arch=arch) == ps.ERRNO(1)
    assert answer(made, "socketcall", 1 | 1 << 32, arch=arch) == ps.ALLOW  # the kernel takes an int


def test_conditional_allow_allows_nothing_through_a_multiplexer():
    made = policy((ps.ALLOW, "socket", ps.Arg(0, ps.EQ, 1)), default=ps.ERRNO(1), arches="x86")
    assert answer(made, "socket", 1, arch="x86") == ps.ALLOW
    assert answer(made, "socketcall", 1, arch="x86") == ps.ERRNO(1)


def test_conditional_denial_denies_through_a_multiplexer():
    rules = [(ps.ALLOW, "socketcall"), (ps.ERRNO(97), "socket", ps.Arg(0, ps.EQ, 40))]
    for order in (1, -1):
        made = policy(*rules[::order], arches="x86")
        assert answer(made, "socketcall", 1, arch="x86") == ps.ERRNO(97)
        assert answer(made, "socketcall", 2, arch="x86") == ps.ALLOW


def test_first_priority_counts_what_may_match_before_what_does():
    made = policy((ps.ERRNO(97), "socket", ps.Arg(0, ps.EQ, 40)), (ps.ALLOW, "socket"), default=ps.TRAP, arches="x86", priority="first")
    assert answer(made, "socketcall", 1, arch="x86") == ps.ERRNO(97)
    made = policy((ps.ALLOW, "socket"), (ps.ERRNO(97), "socket", ps.Arg(0, ps.EQ, 40)), default=ps.TRAP, arches="x86", priority="first")
    assert answer(made, "socketcall", 1, arch="x86") == ps.ALLOW


def test_separate_rules_and_numbers_say_nothing_of_a_multiplexer():
    for made in (policy((ps.ERRNO(1), "socket"), arches="x86", multiplexed="separate"), policy((ps.ERRNO(1), 359), arches="x86")):
        assert answer(made, 359, arch="x86") == ps.ERRNO(1)
        assert answer(made, "socketcall", 1, arch="x86") == ps.ALLOW
    with pytest.raises(UnknownSyscallError, match="no system call of x86"):
        policy((ps.ERRNO(1), "accept"), arches="x86", multiplexed="separate")
    with pytest.raises(PolicyError, match="'closed' or 'separate'"):
        policy(multiplexed="open")


def test_name_with_an_architecture_is_for_that_one_alone():
    made = policy(arches=["x86_64", "x86"])
    made.add(ps.ERRNO(1), "accept", arch="x86")
    assert answer(made, "socketcall", 5, arch="x86") == ps.ERRNO(1)
    assert answer(made, "accept", arch="x86_64") == ps.ALLOW
    with pytest.raises(UnknownSyscallError, match="x86_64 has no system call 'chown32'"):
        made.add(ps.ERRNO(1), "chown32", arch="x86_64")


def test_other_threads_run_while_a_policy_is_compiled():
    policy = ps.Policy(ps.ERRNO(1))
    rng = random.Random(1)
    for name in ps.syscalls.names("x86_64")[:40]:
        for value in rng.sample(range(1 << 40), 40):
            policy.add(ps.ALLOW, name, ps.Arg(0, ps.EQ, value))
    ticks: list[float] = []
    stop = threading.Event()

    def tick() -> None:
        while not stop.wait(0.0005):
            ticks.append(time.perf_counter())

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        start = time.perf_counter()
        with contextlib.suppress(ps.PolicyTooLargeError):
            policy._compiled("depth", [])
        end = time.perf_counter()
    finally:
        stop.set()
        thread.join()
    middle = [t for t in ticks if start + (end - start) / 10 < t < end - (end - start) / 10]
    assert len(middle) > 3, f"{len(middle)} of {len(ticks)} ticks in {end - start:.3f} s"
