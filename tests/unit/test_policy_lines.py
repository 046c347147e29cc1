"""Where a line and a comment of a policy file end: exactly where the reference reader of each format has them end."""

import pytest

import pyseccomp as ps
from pyseccomp import minijail, minijail_compiler
from pyseccomp.program import Program

READERS = {"minijail0": minijail.parse, "compiler": minijail_compiler.parse}
# str.splitlines() takes all of these for the end of a line; the C library and an open text file do not.
NO_LINE_ENDS = ["\v", "\f", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"]


def calls(text: str, dialect: str) -> list[str]:
    """The calls that a policy has rules for."""
    return [rule.syscall for rule in READERS[dialect](text.encode(), "p", arch="x86_64").rules]


@pytest.mark.parametrize("dialect", READERS)
@pytest.mark.parametrize("separator", NO_LINE_ENDS)
def test_a_comment_holds_no_live_rule(dialect, separator):
    assert calls(f"read: 1 # harmless{separator}ptrace: 1\n# harmless{separator}mount: 1\n", dialect) == ["read"]


def test_a_carriage_return_ends_a_line_for_the_compiler_alone():
    assert calls("read: 1\r\n# c\rwrite: 1\r\n", "minijail0") == ["read"]
    assert calls("read: 1\r\n# c\rwrite: 1\r\n", "compiler") == ["read", "write"]


def test_a_backslash_at_the_end_of_a_comment():
    # getmultiline() joins lines before it looks for comments; the compiler's comments end with their line.
    assert calls("# comment \\\nptrace: 1\nread: 1\n", "minijail0") == ["read"]
    assert calls("# comment \\\nptrace: 1\nread: 1\n", "compiler") == ["ptrace", "read"]
    for dialect in READERS:
        with pytest.raises(ps.PolicyError, match="p:1: "):
            calls("read: 1 # comment \\\nptrace: 1\n", dialect)


@pytest.mark.parametrize("dialect", READERS)
def test_a_rule_goes_on_after_a_backslash_and_only_right_before_the_end_of_its_line(dialect):
    assert calls("read: \\\n 1\n\nwrite: arg0 == 1 || \\\n \\\n arg0 == 2\n", dialect) == ["read", "write"]
    with pytest.raises(ps.PolicyError, match="p:1: "):
        calls("read: \\ \n1\n", dialect)
    with pytest.raises(ps.PolicyError, match="p:2: the file ends in a line that a backslash continues"):
        calls("read: 1\nwrite: 1 \\", dialect)


@pytest.mark.parametrize("dialect", READERS)
@pytest.mark.parametrize("odd", [*NO_LINE_ENDS[2:], "\u00a0", "\u3000", "\uff11", "\x00", "\x7f"])
def test_what_only_some_readers_take_for_a_space_or_a_digit_is_refused_in_rules(dialect, odd):
    with pytest.raises(ps.PolicyError, match=r"p:1: the character U\+" if odd != "\x00" else "p"):
        calls(f"read:{odd}1\n", dialect)


@pytest.mark.parametrize("dialect", READERS)
def test_space_of_c_is_space(dialect):
    assert calls("\v\f read\t:\v1 \f\n", dialect) == ["read"]


@pytest.mark.parametrize("separator", [*NO_LINE_ENDS, "\r"])
def test_a_comment_of_a_program_as_text_holds_no_instruction(separator):
    text = f"ld [nr] ; load{separator}ret ALLOW\nret ERRNO(1)\n"
    assert len(Program.from_text(text)) == 2


def test_a_program_as_text_has_only_ascii_outside_comments():
    assert len(Program.from_text("ret ALLOW ; \u00fcber\n")) == 1
    for odd in ("\u2028", "\u00a0", "\uff11"):
        with pytest.raises(ps.ProgramError, match="only ASCII"):
            Program.from_text(f"ret{odd}ALLOW\n")


@pytest.mark.parametrize("dialect", READERS)
@pytest.mark.parametrize(("text", "value"), [("0x1F", 31), ("017", 15), ("0", 0), ("10", 10), ("-1", (1 << 64) - 1)])
def test_numbers_are_those_of_c(dialect, text, value):
    policy = READERS[dialect](f"read: arg2 == {text}\n".encode(), "p", arch="x86_64")
    for tried in (value, value ^ 1):
        action = policy.compile().simulate("read", (0, 0, tried), arch="x86_64").action
        assert (action == ps.ALLOW) is (tried == value)


@pytest.mark.parametrize("dialect", READERS)
@pytest.mark.parametrize("text", ["1_0", "0b1", "0o17", "08", "1e1"])
def test_numbers_of_python_alone_are_refused(dialect, text):
    with pytest.raises(ps.PolicyError, match="p:1: "):
        calls(f"read: arg2 == {text}\n", dialect)
