"""difference() and equivalent(): exact, with a counterexample that really differs."""

import random
import signal
import struct

import pytest

import pyseccomp as ps
from pyseccomp import _core
from pyseccomp.errors import ProgramError

ALLOW, LOG = 0x7FFF0000, 0x7FFC0000


def program(*insns):
    return ps.Program(b"".join(struct.pack("=HBBI", *insn) for insn in insns))


def ret(word):
    return (0x06, 0, 0, word)


LD_ARG0 = (0x20, 0, 0, 16)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        # x / 4 == 2 is 8 <= x <= 11
        ([LD_ARG0, (0x34, 0, 0, 4), (0x15, 0, 1, 2)], [LD_ARG0, (0x35, 0, 2, 8), (0x25, 1, 0, 11)]),
        # x * 2 == 6 is x in {3, 0x80000003}
        ([LD_ARG0, (0x24, 0, 0, 2), (0x15, 0, 1, 6)], [LD_ARG0, (0x54, 0, 0, 0x7FFFFFFF), (0x15, 0, 1, 3)]),
        # x + 5 == 4 is x == -1; -x == 1 is, too
        ([LD_ARG0, (0x04, 0, 0, 5), (0x15, 0, 1, 4)], [LD_ARG0, (0x15, 0, 1, 0xFFFFFFFF)]),
        ([LD_ARG0, (0x84, 0, 0, 0), (0x15, 0, 1, 1)], [LD_ARG0, (0x14, 0, 0, 1), (0x15, 0, 1, 0xFFFFFFFE)]),
        # x >> 28 == 15 by shift, by mask, and through scratch memory and X
        ([LD_ARG0, (0x74, 0, 0, 28), (0x15, 0, 1, 15)], [LD_ARG0, (0x35, 0, 1, 0xF0000000)]),
        ([LD_ARG0, (0x02, 0, 0, 3), (0x00, 0, 0, 7), (0x61, 0, 0, 3), (0x87, 0, 0, 0), (0x15, 0, 1, 9)], [LD_ARG0, (0x15, 0, 1, 9)]),
        # x ^ x == 0 always
        ([LD_ARG0, (0x07, 0, 0, 0), (0xAC, 0, 0, 0), (0x15, 0, 1, 0)], [LD_ARG0, (0x05, 0, 0, 0)]),
    ],
)
def test_arithmetic_is_followed(one, other):
    tail = [ret(ALLOW), ret(LOG)]
    assert ps.equivalent(program(*one, *tail), program(*other, *tail))
    assert not ps.equivalent(program(*one, *tail), program(*other, *reversed(tail)))


def test_division_by_an_argument_of_zero_kills_the_thread():
    divide = [(0x61, 0, 0, 0), (0x00, 0, 0, 1), (0x3C, 0, 0, 0), ret(ALLOW)]
    found = ps.difference(program(LD_ARG0, (0x02, 0, 0, 0), *divide), program(ret(ALLOW)))
    assert found is not None and found.args[0] & 0xFFFFFFFF == 0 and found.first.action == ps.KILL_THREAD
    assert ps.equivalent(program(LD_ARG0, (0x02, 0, 0, 0), *divide), program(LD_ARG0, (0x15, 0, 1, 0), ret(0), ret(ALLOW)))


def test_what_the_kernel_makes_of_an_answer_counts():
    assert ps.equivalent(program(ret(ALLOW)), program(ret(ALLOW | 7)))
    assert ps.equivalent(program(ret(0x00055000)), program(ret(0x00050FFF)))
    assert ps.equivalent(program(ret(0x12340000)), program(ret(0x80000000)))
    assert not ps.equivalent(program(ret(0x7FF00001)), program(ret(0x7FF00002)))


def test_difference_in_one_bit_of_the_instruction_pointer_is_found():
    found = ps.difference(program((0x20, 0, 0, 12), (0x45, 0, 1, 1 << 9), ret(LOG), ret(ALLOW)), program(ret(ALLOW)))
    assert found is not None and found.ip == 1 << 41
    assert found.first.action == ps.LOG and "LOG against ALLOW" in str(found)


def test_returned_argument_is_followed_as_far_as_its_bits():
    masked = [LD_ARG0, (0x54, 0, 0, 3), (0x44, 0, 0, 0x50000), (0x16, 0, 0, 0)]
    spelled = [LD_ARG0, (0x54, 0, 0, 3), (0x15, 0, 1, 0), ret(0x50000), (0x15, 0, 1, 1), ret(0x50001), (0x15, 0, 1, 2), ret(0x50002), ret(0x50003)]
    assert ps.equivalent(program(*masked), program(*spelled))


def test_too_hard_is_an_error_and_never_an_answer():
    product = [LD_ARG0, (0x07, 0, 0, 0), (0x20, 0, 0, 24), (0x2C, 0, 0, 0), (0x15, 0, 1, 0x12345679), ret(ALLOW), ret(LOG)]
    with pytest.raises(ProgramError, match="too many to follow"):
        ps.equivalent(program(*product), program(ret(ALLOW)))


def test_a_word_of_the_input_as_answer_is_followed_over_all_its_values():
    # 2^32 answers are only some 200,000 different ones: the kernel ignores the data of most actions.
    number = [(0x20, 0, 0, 0), (0x16, 0, 0, 0)]
    assert ps.equivalent(program(*number), program((0x20, 0, 0, 0), (0x54, 0, 0, 0xFFFFFFFF), (0x16, 0, 0, 0)))
    found = ps.difference(program(*number), program((0x20, 0, 0, 0), (0x54, 0, 0, 0xFFFFFFFE), (0x16, 0, 0, 0)))
    assert found is not None and found.nr & 1 and found.first.action != found.second.action


def test_a_signal_handler_that_raises_ends_a_long_comparison():
    class Alarm(Exception):
        pass

    def ring(*_):
        raise Alarm

    product = [LD_ARG0, (0x07, 0, 0, 0), (0x20, 0, 0, 24), (0x2C, 0, 0, 0), (0x16, 0, 0, 0)]
    before = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        with pytest.raises(Alarm):  # to its end the comparison takes a second and is a ProgramError
            ps.equivalent(program(*product), program(ret(ALLOW)))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_every_difference_is_real():
    rng = random.Random(7)
    base = ps.Policy(ps.ERRNO(1), "x86_64")
    for number in rng.sample(range(300), 120):
        base.add(ps.ALLOW, number, *([ps.Arg(0, ps.EQ, number)] if number % 3 else []))
    data, differ = bytes(base.compile()), 0
    for _ in range(400):
        mutant = bytearray(data)
        mutant[rng.randrange(len(mutant))] ^= 1 << rng.randrange(8)
        try:
            found = ps.difference(data, bytes(mutant))
        except ProgramError:
            continue
        if found is None:
            for _ in range(50):
                args = [rng.choice([0, 1, rng.randrange(300), rng.getrandbits(64)]) for _ in range(6)]
                call = (rng.randrange(310), 0xC000003E, rng.getrandbits(64), args)
                words = [ps.Action(_core.run_program(code, *call)[0]) for code in (data, bytes(mutant))]
                assert words[0] == words[1] or words[0].name == words[1].name == "ALLOW"
        else:
            differ += 1
            assert found.first.action != found.second.action
    assert differ > 100


def test_policies_are_taken_for_their_programs():
    one, other = ps.Policy(ps.ERRNO(1), "x86_64"), ps.Policy(ps.ERRNO(1), "x86_64")
    one.add(ps.ALLOW, "read")
    other.add(ps.ALLOW, "read", ps.Arg(0, ps.NE, 5))
    found = ps.difference(one, other)
    assert found is not None and found.syscall == "read" and found.args[0] == 5
    other.add(ps.ALLOW, "read", ps.Arg(0, ps.EQ, 5))
    assert ps.equivalent(one, other)


def test_stack_answers_with_the_strictest_and_of_equals_the_newest():
    errno = [program(ret(0x00050000 | n)) for n in (1, 2)]
    assert ps.equivalent(errno, errno[1]) and ps.equivalent(errno[::-1], errno[0])
    assert ps.equivalent([errno[0], program(ret(ALLOW))], errno[0])
    assert ps.equivalent([program(LD_ARG0, (0x15, 0, 1, 3), ret(LOG), ret(ALLOW)), errno[1]], errno[1])
    found = ps.difference([errno[0], program(LD_ARG0, (0x15, 0, 1, 3), ret(0), ret(ALLOW))], errno[0])
    assert found is not None and found.args[0] & 0xFFFFFFFF == 3 and found.first.action == ps.KILL_THREAD
    with pytest.raises(ValueError, match="at least one"):
        ps.equivalent([], errno)
