"""What rules decide, against the slow way to say it; and what of them becomes part of a program."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fnmatch
import os
import pickle
import random
import threading
from pathlib import Path
from typing import Any

import pytest
from harness import in_child
from hypothesis import given, settings, strategies as st
from oracle.reference import random_condition

import pyseccomp as ps
from pyseccomp import _core
from pyseccomp.errors import KernelError, PolicyError, UnknownSyscallError
from pyseccomp.offload import offload

PROOFS = int(os.environ.get("PYSECCOMP_PROOFS", "150"))
CALL = "openat"
ANSWERS = [ps.allow(), ps.deny(1), ps.deny(4095), ps.reply(0), ps.reply(7), ps.kill(), ps.hold()]
SOME_CALLS = ("openat", "read", "umask", "mkdirat")
NATIVE = ps.Arch.native()


def string_buffer(text: bytes) -> tuple[Any, int]:
    buffer = ctypes.create_string_buffer(text)
    return buffer, ctypes.addressof(buffer)


# ------------------------------------------------------------------ patterns


@settings(max_examples=2000, deadline=None)
@given(st.text(alphabet="ab*?[]!-/^\\", max_size=12), st.text(alphabet="ab[]!-/^\\c", max_size=10))
def test_glob_is_what_fnmatch_says(pattern: str, text: str) -> None:
    assert _core.glob_match(pattern.encode(), text.encode()) == fnmatch.fnmatchcase(text, pattern)


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=20), st.binary(max_size=20))
def test_glob_of_any_bytes_is_what_fnmatch_says(pattern: bytes, text: bytes) -> None:
    assert _core.glob_match(pattern, text) == fnmatch.fnmatchcase(text.decode("latin-1"), pattern.decode("latin-1"))


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({}, "one of"),
        ({"exact": "a", "glob": "a"}, "one of"),
        ({"exact": b"a\0b"}, "NUL"),
        ({"prefix": "x" * 4096}, "4096 bytes"),
        ({"prefix": ""}, "begins with nothing"),
        ({"glob": "[a"}, "without"),
        ({"glob": "[!]"}, "without"),
        ({"exact": 5}, "exact"),
    ],
)
def test_string_condition_that_cannot_be_meant_is_refused(options: dict[str, Any], why: str) -> None:
    with pytest.raises(PolicyError, match=why):
        ps.StringArg(1, **options)


@pytest.mark.parametrize("index", [-1, 6, True, "1", None])
def test_string_condition_on_no_argument_is_refused(index: Any) -> None:
    with pytest.raises(PolicyError, match="arguments 0 to 5"):
        ps.StringArg(index, exact="a")


def test_string_condition_takes_paths_and_says_what_it_is() -> None:
    condition = ps.StringArg(1, prefix=Path("/tmp"))
    assert condition.prefix == b"/tmp" and condition == ps.StringArg(1, prefix=b"/tmp")
    assert repr(ps.Arg(0, ps.EQ, 1) | ~condition) == "(Arg(0, EQ, 1) | ~StringArg(1, prefix=b'/tmp'))"
    assert condition.matches(b"/tmpfile") and not condition.matches(b"/var")
    assert ps.StringArg(0, glob="*[[]x").matches(b"a[x") and ps.StringArg(0, exact="").matches(b"")
    assert (condition & condition) != (condition & ps.StringArg(1, prefix="/var"))


def test_policy_refuses_conditions_on_memory() -> None:
    policy = ps.Policy()
    for condition in (ps.StringArg(1, exact="x"), ps.Arg(0, ps.EQ, 1) & ~ps.StringArg(1, exact="x")):
        with pytest.raises(PolicyError, match=r"Responder\.on"):
            policy.add(ps.ERRNO(1), CALL, condition)


# --------------------------------------------------------------------- rules


@pytest.mark.parametrize("seed", range(PROOFS))
def test_rules_decide_as_trying_all_of_them_does(seed: int) -> None:
    rng = random.Random(seed)
    values = [0, 1]
    strings = [b"/tmp/a", b"/tmp/b", b"/tmp", b"/var/log/x", b""]
    conditions: list[ps.StringArg] = [
        ps.StringArg(5, exact=b"/tmp/a"), ps.StringArg(5, prefix=b"/tmp/"), ps.StringArg(5, glob=b"/*/[a-m]*"),
    ]  # fmt: skip
    r = ps.Responder(default=ps.reply(99))
    rules: list[tuple[ps.Answer, list[Any]]] = []
    for number in range(rng.randrange(1, 8)):
        chosen: list[tuple[ps.Condition, Any]] = []
        for _ in range(rng.choice([0, 1, 1, 2])):
            condition, holds = random_condition(rng, values)
            chosen.append((condition, lambda args, text, holds=holds: holds(args)))
        if rng.random() < 0.5:
            string = rng.choice(conditions)
            negated = rng.random() < 0.3
            chosen.append((~string if negated else string, lambda args, text, s=string, n=negated: s.matches(text) != n))
        r.on(CALL, ps.reply(number), *(condition for condition, _ in chosen))
        rules.append((ps.reply(number), [holds for _, holds in chosen]))
    for _ in range(60):
        text = rng.choice(strings)
        buffer, address = string_buffer(text)
        args = [rng.choice(values) for _ in range(5)] + [address]
        wanted = next((answer for answer, all_of in reversed(rules) if all(h(args, text) for h in all_of)), ps.reply(99))
        assert r.simulate(CALL, args, pid=os.getpid()) == wanted, (args, buffer.value)


def test_unreadable_string_decides_only_what_it_must() -> None:
    missing = ps.StringArg(1, exact="x")
    other, yes = ps.Arg(0, ps.EQ, 1), (1, 0)
    for conditions, wanted in [
        ((missing,), ps.deny(errno.EFAULT)),
        ((~missing,), ps.deny(errno.EFAULT)),
        ((other, missing), ps.deny(errno.EFAULT)),
        ((~other, missing), ps.allow()),
        ((other | missing,), ps.reply(1)),
        ((~other | missing,), ps.deny(errno.EFAULT)),
    ]:
        r = ps.Responder(ps.allow()).on(CALL, ps.reply(1), *conditions)
        assert r.simulate(CALL, yes, pid=os.getpid()) == wanted, conditions
    asks = ps.Responder().on(CALL, ps.reply(1), missing, unreadable=ps.kill())
    assert asks.simulate(CALL, yes, pid=os.getpid()) == asks.simulate(CALL, yes) == ps.kill()


def test_functions_have_conditions_too() -> None:
    def one(n: object) -> ps.Answer:
        return ps.allow()

    def two(n: object) -> ps.Answer:
        return ps.allow()

    r = ps.Responder(default=one).on(CALL, ps.hold()).on(CALL, two, ps.Arg(0, ps.EQ, 1))
    r.on(CALL, ps.reply(1), ps.StringArg(1, exact="x"), ps.Arg(0, ps.EQ, 2), unreadable=one)
    assert r.simulate("read") is one and r.simulate(CALL, (1,)) is two
    assert r.simulate(CALL, (2,)) is one and r.simulate(CALL) == ps.hold()


def test_tgid_is_the_process_of_the_calling_thread() -> None:
    seen: list[object] = []

    def look() -> None:
        tid = threading.get_native_id()
        for tgid in (os.getpid(), {os.getppid(), os.getpid()}, os.getppid(), tid):
            r = ps.Responder(ps.reply(0)).on(CALL, ps.reply(1), tgid=tgid)
            answer = r.simulate(CALL, pid=tid)
            assert isinstance(answer, ps.Answer)
            seen.append(answer.value)

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [1, 1, 0, 0]
    assert ps.Responder().on(CALL, ps.reply(1), tgid=os.getpid()).simulate(CALL, pid=os.getpid()) == ps.reply(1)


def test_tgid_of_a_task_that_may_not_be_signalled_is_found_all_the_same() -> None:
    if os.geteuid() != 0:
        pytest.skip("privilege: to become another user")
    parent = os.getpid()

    def look() -> list[int]:
        os.setresuid(65534, 65534, 65534)
        answers = [ps.Responder(ps.reply(0)).on(CALL, ps.reply(1), tgid=p).simulate(CALL, pid=parent) for p in (parent, 1 << 30)]
        return [answer.value for answer in answers if isinstance(answer, ps.Answer)]

    assert in_child(look) == [1, 0]


@pytest.mark.parametrize("wrong", [0, -1, True, 1 << 31, [], [1, "2"]])
def test_tgid_that_is_no_pid_is_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match="tgid"):
        ps.Responder().on(CALL, ps.allow(), tgid=wrong)


def test_condition_that_is_none_is_refused() -> None:
    with pytest.raises(TypeError, match="not a condition"):
        ps.Responder().on(CALL, ps.allow(), 5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a rule is an answer"):
        ps.Responder().on(CALL, ps.allow(), unreadable=5)  # type: ignore[arg-type]


def test_rule_with_too_many_terms_is_refused_when_it_is_to_serve() -> None:
    r = ps.Responder().on(CALL, ps.allow(), ps.In(0, range(3000)))
    with pytest.raises(PolicyError, match="4096 terms"):
        r.simulate(CALL)


# -------------------------------------------------------------------- add_fd


def test_add_fd_owns_a_duplicate() -> None:
    with open(os.devnull) as file:
        answer = ps.add_fd(file)
        number = answer.fd
        assert number != file.fileno() and not os.get_inheritable(number)
    assert os.fstat(number).st_rdev == os.stat(os.devnull).st_rdev
    r = ps.Responder().on(CALL, answer)
    assert r.simulate(CALL) is answer
    table, _ = r._table()
    del answer, r
    os.fstat(number)  # the table gives it
    del table
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(number)


def test_add_fd_of_nothing_is_refused() -> None:
    with pytest.raises(KernelError, match="descriptor"):
        ps.add_fd(-1)
    with pytest.raises(ValueError, match="at is"):
        ps.add_fd(0, at=-1)
    with pytest.raises(TypeError, match="pickled"):
        pickle.dumps(ps.add_fd(0))
    with pytest.raises(ValueError, match="fallback"):
        ps.Responder(fallback=ps.add_fd(0))
    assert "at=5, cloexec=False" in repr(ps.add_fd(0, at=5, cloexec=False))


# ------------------------------------------------------------------- offload


def random_responder(rng: random.Random, values: list[int], answers: list[ps.Answer], strings: bool) -> ps.Responder:
    r = ps.Responder(default=rng.choice(answers))
    for _ in range(rng.randrange(8)):
        conditions: list[ps.Condition] = [random_condition(rng, values)[0] for _ in range(rng.choice([0, 1, 1, 2]))]
        if strings and rng.random() < 0.3:
            memory: ps.Condition = ps.StringArg(5, prefix=b"/tmp/")
            conditions.append(memory if rng.random() < 0.5 else memory | ps.Arg(0, ps.EQ, 1))
        tgid = os.getpid() if strings and rng.random() < 0.2 else None
        r.on(rng.choice(SOME_CALLS), rng.choice(answers), *conditions, tgid=tgid)
    return r


def random_policy(rng: random.Random, values: list[int]) -> ps.Policy:
    policy = ps.Policy(rng.choice([ps.ALLOW, ps.NOTIFY, ps.ERRNO(5)]), bad_arch=rng.choice([ps.KILL_PROCESS, ps.NOTIFY]))
    for _ in range(rng.randrange(5)):
        conditions = [random_condition(rng, values)[0] for _ in range(rng.choice([0, 1]))]
        with contextlib.suppress(ps.ContradictionError):
            policy.add(rng.choice([ps.NOTIFY, ps.NOTIFY, ps.ERRNO(3), ps.LOG]), rng.choice(SOME_CALLS), *conditions)
    return policy


@pytest.mark.parametrize("seed", range(PROOFS))
def test_offloaded_rules_decide_as_the_loop_would(seed: int) -> None:
    rng = random.Random(seed)
    values = [0, 1, 2]
    r = random_responder(rng, values, ANSWERS, strings=True)
    before = random_policy(rng, values).compile()
    after = offload(before, r)
    assert after.notifies == before.notifies
    buffer, address = string_buffer(rng.choice([b"/tmp/x", b"/var/x"]))
    for _ in range(80):
        call = rng.choice((*SOME_CALLS, "getppid"))
        args = [rng.choice(values) for _ in range(5)] + [rng.choice([address, 0])]
        was, now = before.simulate(call, args).action, after.simulate(call, args).action
        if was != ps.NOTIFY or now == ps.NOTIFY:
            assert now == was
            continue
        loop = r.simulate(call, args, pid=os.getpid())
        assert isinstance(loop, ps.Answer)
        in_kernel = {1: ps.ALLOW, 2: ps.ERRNO(loop.error), 3: ps.ERRNO(0)}[loop.kind]
        assert now == in_kernel and (loop.kind != 3 or loop.value == 0), (call, args, buffer.value)


@pytest.mark.parametrize("seed", range(PROOFS // 3))
def test_offloaded_program_is_proved_equal_to_the_policy_that_says_so_itself(seed: int) -> None:
    """Where registers decide everything nothing is left to notify, for any input whatever."""
    rng = random.Random(seed)
    words = {ps.allow(): ps.ALLOW, ps.deny(1): ps.ERRNO(1), ps.deny(4095): ps.ERRNO(4095), ps.reply(0): ps.ERRNO(0)}
    r = random_responder(rng, [0, 1], list(words), strings=False)
    asked = ps.Policy(ps.ERRNO(77))
    wanted = ps.Policy(ps.ERRNO(77), priority="first")
    for name in SOME_CALLS[:3]:
        asked.add(ps.NOTIFY, name)
    for name in SOME_CALLS[:3]:
        for rule in reversed(r._rules.get((NATIVE.token, ps.syscalls.resolve(name)), [])):
            assert isinstance(rule.answer, ps.Answer)
            try:
                wanted.add(words[rule.answer], name, *rule.conditions)
            except ps.ContradictionError:
                continue
        assert isinstance(r._default, ps.Answer)
        wanted.add(words[r._default], name)
    assert ps.difference(offload(asked.compile(), r), wanted) is None


def policy_that_asks(*names: str) -> ps.Program:
    policy = ps.Policy()
    for name in names:
        policy.add(ps.NOTIFY, name)
    return policy.compile()


def test_nothing_is_offloaded_past_a_rule_that_must_be_asked() -> None:
    r = ps.Responder().on(CALL, ps.deny(1)).on(CALL, ps.kill(), ps.Arg(0, ps.LT, 5)).on(CALL, ps.allow(), ps.Arg(0, ps.EQ, 1))
    program = offload(policy_that_asks(CALL, "read"), r)
    found = [program.simulate(CALL, (arg,)).action for arg in (0, 1, 4, 5)]
    assert found == [ps.NOTIFY, ps.ALLOW, ps.NOTIFY, ps.ERRNO(1)]
    assert program.simulate("read").action == ps.ERRNO(errno.EPERM), "a responder's own default denies"


@pytest.mark.parametrize(
    "r",
    [
        ps.Responder(ps.hold()).on(CALL, ps.kill()).on(CALL, ps.reply(3)),
        ps.Responder().on(1, ps.deny(1), arch=0x12345678),
        ps.Responder().on(-1, ps.deny(1), arch=NATIVE.token),
        ps.Responder().on(CALL, ps.deny(1), arch="s390x"),
        ps.Responder().on(CALL, ps.deny(1), *(ps.In(i, range(0, 40000, 97)) | ps.In(i + 1, range(1, 40000, 89)) for i in (0, 2))),
    ],
    ids=["no answer of the kernel's", "unknown architecture", "number -1", "other byte order", "too long"],
)
def test_what_cannot_be_offloaded_stays_as_it_is(r: ps.Responder) -> None:
    program = policy_that_asks(CALL)
    after = offload(program, r)
    if after != program:
        assert len(after) <= 4096 and ps.difference(after, program) is not None
    else:
        assert bytes(after) == bytes(program)


def test_program_that_asks_nothing_stays_as_it_is() -> None:
    program = ps.Policy(ps.ALLOW).compile()
    assert offload(program, ps.Responder()) == program


def test_rules_of_other_architectures_are_offloaded_with_theirs() -> None:
    if NATIVE is not ps.Arch.X86_64:
        pytest.skip("kernel lacks i386 calls on this architecture")
    policy = ps.Policy(ps.NOTIFY, [ps.Arch.X86_64, ps.Arch.X86, ps.Arch.X32], bad_arch=ps.NOTIFY)
    r = ps.Responder(ps.kill()).on("getppid", ps.deny(1)).on("getppid", ps.deny(2), arch="x86").on("getppid", ps.deny(3), arch="x32")
    program = offload(policy.compile(), r)
    found = [program.simulate("getppid", arch=arch).action for arch in policy.arches]
    assert found == [ps.ERRNO(1), ps.ERRNO(2), ps.ERRNO(3)]
    assert program.simulate("getppid", arch="aarch64").action == ps.NOTIFY


def test_rules_that_are_in_a_filter_cannot_change() -> None:
    r = ps.Responder().on(CALL, ps.deny(1))
    policy = ps.Policy()
    policy.add(ps.NOTIFY, CALL)
    with ps.Filter(policy, responder=r) as f:
        assert f.program.simulate(CALL).action == ps.ERRNO(1) and f.program.notifies
        with pytest.raises(PolicyError, match="part of a Filter"):
            r.on(CALL, ps.allow())


def test_unknown_call_is_refused() -> None:
    with pytest.raises(UnknownSyscallError):
        ps.Responder().on("nonesuch", ps.allow(), ps.Arg(0, ps.EQ, 1))
