"""Programs as text, and back: the same bytes whatever the program; errors name the line."""

import struct

import pytest
from hypothesis import given, settings, strategies as st

import pyseccomp as ps
from pyseccomp import formats

LOADS = [(0x20, st.sampled_from(range(0, 64, 4))), (0x00, st.integers(0, 2**32 - 1)), (0x01, st.integers(0, 2**32 - 1)), (0x80, st.integers(0, 3)), (0x81, st.just(0))]
STORES = [(0x02, st.integers(0, 15)), (0x03, st.integers(0, 15))]
ALU = [*[(op | 0x04, st.integers(1, 31)) for op in (0x00, 0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70, 0xA0)],
       *[(op | 0x0C, st.sampled_from([0, 0, 7])) for op in (0x00, 0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70, 0xA0)],
       (0x84, st.sampled_from([0, 9])), (0x07, st.sampled_from([0, 9])), (0x87, st.just(0))]  # fmt: skip
RETURNS = [(0x06, st.integers(0, 2**32 - 1)), (0x06, st.sampled_from([0, 0x50001, 0x7FFF0000, 0x80000000, 0x7FF00007])), (0x16, st.sampled_from([0, 5]))]
JUMPS = [op | source for op in (0x15, 0x25, 0x35, 0x45) for source in (0, 8)]
PLAIN = st.one_of([st.tuples(st.just(code), st.sampled_from([0, 0, 0, 3]), st.just(0), k) for code, k in LOADS + STORES + ALU + RETURNS])


@st.composite
def programs(draw):
    """Any program that the kernel takes, jumps in range."""
    count = draw(st.integers(0, 24))
    found = []
    for at in range(count):
        left = count - at
        if draw(st.integers(0, 2)) == 0:
            code = draw(st.sampled_from(JUMPS))
            found.append((code, draw(st.integers(0, left - 1)), draw(st.integers(0, left - 1)), draw(st.sampled_from([0, 1, 59, 0xC000003E, 0xFFFFFFFF]))))
        elif draw(st.integers(0, 5)) == 0:
            found.append((0x05, draw(st.sampled_from([0, 0, 1])), 0, draw(st.integers(0, left - 1))))
        else:
            found.append(draw(PLAIN))
    return b"".join(struct.pack("=HBBI", *one) for one in [*found, (0x06, 0, 0, 0x7FFF0000)])


@given(programs())
@settings(max_examples=400, deadline=None)
def test_text_of_any_program_reads_back_to_its_bytes(code):
    program = ps.Program(code)
    assert ps.Program.from_text(program.disassemble()) == program
    assert formats.parse(formats.dump(program, "text")) == program


def test_every_action_reads_back():
    for action in (ps.ALLOW, ps.LOG, ps.NOTIFY, ps.TRACE(0), ps.TRACE(65535), ps.ERRNO(0), ps.ERRNO(4095), ps.TRAP, 0x00030007, ps.KILL_THREAD, ps.KILL_PROCESS, 0x12345678):
        program = ps.Program(struct.pack("=HBBI", 6, 0, 0, int(action)))
        assert ps.Program.from_text(program.disassemble()) == program


def test_labels_hold_when_lines_are_put_in_between_and_numbers_left_out():
    text = """
        ld   [arch]
        jeq  0xc000003e, +, L9      ; x86_64
        ld   [nr]
        jeq  83, L7
        jeq  84, L7, L8
    L7: ret ERRNO(1)
    L8: ret ALLOW
    L9: ret KILL_PROCESS
    """
    program = ps.Program.from_text(text)
    assert [program.simulate(call, arch="x86_64").action for call in ("mkdir", "rmdir", "read")] == [ps.ERRNO(1), ps.ERRNO(1), ps.ALLOW]
    longer = ps.Program.from_text(text.replace("jeq  84,", "jeq 85, L9\n jeq 84,"))
    assert longer.simulate("creat", arch="x86_64").action == ps.KILL_PROCESS
    assert longer.simulate("rmdir", arch="x86_64").action == ps.ERRNO(1)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("ld [nr]\nmov 1\nret ALLOW", r"text:2: 'mov 1' is not an instruction"),
        ("ld [args[6]]\nret ALLOW", r"text:1: ld: '\[args\[6\]\]' is nothing that can be loaded"),
        ("ldx [nr]\nret ALLOW", r"text:1: ldx: '\[nr\]' is nothing"),
        ("st 5\nret ALLOW", r"text:1: st: expected M\[0\]"),
        ("ld #4294967296\nret ALLOW", "text:1: ld: expected a 32-bit number"),
        ("jeq 1, L5\nret ALLOW", "text:1: jeq: no instruction has the label 'L5'"),
        ("L1: ret ALLOW\njeq 1, L1\nret ALLOW", "text:2: jeq L1: jumps go forward"),
        ("jeq 1, L1\n" + "ld [nr]\n" * 256 + "L1: ret ALLOW", "text:1: jeq L1: jumps go forward, by at most 255"),
        ("jeq 1\nret ALLOW", "text:1: jeq: expected a value and one or two labels"),
        ("L1: ld [nr]\nL1: ret ALLOW", "text:2: label L1 stands at two"),
        ("ret ALOW", "text:1: ret: 'ALOW' is not an action: KILL_PROCESS"),
        ("ret ERRNO(70000)", "text:1: ret ERRNO.70000.: the data do not fit"),
        ("tax 1\nret ALLOW", "text:1: tax takes nothing"),
        ("ld [nr] {k=1}\nret ALLOW", "text:1: 'k=1': in braces stand fields that ld does not use: jt, jf"),
        ("ret ALLOW {jt=256}", "text:1: jt=256 is larger than 255"),
        ("ld [nr]", "last instruction is not a return"),
        ("ld [nr]\n" * 5000, "text:4097: more than 4096 instructions"),
        ("", "at least one: got 0 bytes"),
        ("ld" + " " * 1_000_000 + "x", "is not an instruction"),
    ],
)
def test_errors_name_the_line_and_the_reason(text, says):
    with pytest.raises(ps.ProgramError, match=says):
        ps.Program.from_text(text)


def test_a_file_of_text_is_told_from_the_other_formats(tmp_path):
    path = tmp_path / "p.txt"
    path.write_text("; what it is for\n\n  ld [nr]\n  ret ALLOW\n")
    assert formats.detect(path.read_bytes()) == "text"
    assert len(ps.load(path)) == 2
    path.write_text("ret ALLOW\nret NOTHING\n")
    with pytest.raises(ps.ProgramError, match="p.txt:2: ret: 'NOTHING' is not an action"):
        ps.load(path)
    assert formats.detect(b"read: 1\nwrite: arg0 == 1") == "minijail"
