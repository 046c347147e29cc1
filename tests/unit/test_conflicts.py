"""Rules that contradict each other, or that no call can match."""

from __future__ import annotations

import errno

import pytest

import pyseccomp as ps


def kinds(policy: ps.Policy) -> list[str]:
    return [conflict.kind for conflict in policy.conflicts()]


def test_rules_of_different_calls_do_not_conflict() -> None:
    policy = ps.Policy(ps.KILL_PROCESS)
    policy.add(ps.ALLOW, "read")
    policy.add(ps.ERRNO(1), "write")
    assert policy.conflicts() == ()


@pytest.mark.parametrize("priority", ["restrictive", "first"])
def test_an_overlap_comes_with_a_call_that_shows_it_and_the_rule_that_decides(priority: ps.policy.Priority) -> None:
    policy = ps.Policy(ps.KILL_PROCESS, priority=priority)
    policy.add(ps.ALLOW, "socket", ps.Arg(0, ps.GE, 10))
    policy.add(ps.ERRNO(1), "socket", ps.Arg(0, ps.LE, 10), ps.Arg(1, ps.EQ, 3))
    (found,) = policy.conflicts()
    assert (found.kind, found.rule, found.other) == ("overlap", policy.rules[1], policy.rules[0])
    assert found.example is not None and found.example.args[:2] == (10, 3)
    assert found.decides == policy.rules[1 if priority == "restrictive" else 0]
    assert found.decides.action == policy.compile().simulate("socket", (10, 3)).action
    assert "socket(0xa, 0x3" in str(found)


def test_rules_that_meet_nowhere_do_not_conflict() -> None:
    policy = ps.Policy(ps.KILL_PROCESS)
    policy.add(ps.ALLOW, "socket", ps.Arg(0, ps.MASKED_EQ, 3, 1))
    policy.add(ps.ERRNO(1), "socket", ps.Arg(0, ps.MASKED_EQ, 1, 0))
    assert policy.conflicts() == ()


def test_a_rule_that_others_make_idle_is_shadowed() -> None:
    policy = ps.Policy(ps.KILL_PROCESS)
    policy.add(ps.ALLOW, "socket")
    policy.add(ps.ALLOW, "socket", ps.Arg(0, ps.EQ, 2))
    assert [c.rule for c in policy.conflicts() if c.kind == "shadowed"] == [policy.rules[1]]
    assert "changes nothing" in str(policy.conflicts()[0])


def test_a_first_rule_for_all_calls_shadows_the_later_ones() -> None:
    policy = ps.Policy(ps.ALLOW, priority="first")
    policy.add(ps.ERRNO(1), "socket")
    policy.add(ps.KILL_PROCESS, "socket", ps.Arg(0, ps.EQ, 2))
    assert kinds(policy) == ["overlap", "shadowed"]


def test_a_condition_that_no_number_fulfils_is_reported() -> None:
    policy = ps.Policy(ps.ALLOW)
    policy.add(ps.ERRNO(1), "socket", ps.Arg(0, ps.LT, 0))
    (found,) = policy.conflicts()
    assert found.kind == "never" and "no call can match" in str(found)


@pytest.mark.parametrize(
    "conditions",
    [
        (ps.Arg(0, ps.EQ, 1), ps.Arg(0, ps.EQ, 2)),
        (ps.Arg(0, ps.LT, 5), ps.Arg(1, ps.EQ, 0), ps.Arg(0, ps.GT, 5)),
        (ps.Arg(2, ps.MASKED_EQ, 3, 1), ps.Arg(2, ps.EQ, 4)),
        (ps.Arg(2, ps.MASKED_EQ, 1 << 40, 1 << 40), ps.Arg(2, ps.LE, 0xFFFFFFFF)),
    ],
)
def test_conditions_that_exclude_each_other_are_refused(conditions: tuple[ps.Arg, ...]) -> None:
    policy = ps.Policy(ps.ALLOW)
    with pytest.raises(ps.PolicyError, match="socket: .*contradict"):
        policy.add(ps.ERRNO(1), "socket", *conditions)
    assert policy.rules == () and len(policy.compile()) == len(ps.Policy(ps.ALLOW).compile())


def test_conditions_on_one_argument_that_meet_are_taken() -> None:
    policy = ps.Policy(ps.ALLOW)
    policy.add(ps.ERRNO(errno.EPERM), "socket", ps.Arg(0, ps.GE, 5), ps.Arg(0, ps.LE, 5))
    assert policy.compile().simulate("socket", (5,)).action == ps.ERRNO(errno.EPERM)


def test_a_condition_that_excludes_itself_is_refused():
    policy = ps.Policy(ps.ALLOW, "x86_64")
    for condition in (ps.Arg(0, ps.EQ, 1) & ps.Arg(0, ps.EQ, 2), ~(ps.Arg(0, ps.LT, 9) | ps.Arg(0, ps.GE, 9))):
        with pytest.raises(ps.PolicyError, match="read: .* contradicts itself: no call can match"):
            policy.add(ps.TRAP, "read", condition)
    policy.add(ps.TRAP, "read", ps.Arg(0, ps.EQ, 1) & ps.Arg(0, ps.EQ, 2) | ps.Arg(1, ps.EQ, 3))
    policy.add(ps.TRAP, "read", ps.In(0, range(100)), ~ps.In(1, range(100)))
    assert len(policy.rules) == 2
