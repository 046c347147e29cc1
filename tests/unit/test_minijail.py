"""minijail's policy files in the dialect of minijail0 -S."""

import pytest
from hypothesis import given, settings, strategies as st

import pyseccomp as ps
from pyseccomp import minijail


def answer(text, call, *args):
    return minijail.parse(text.encode(), "p", arch="x86_64").compile().simulate(call, args, arch="x86_64").action


@pytest.mark.parametrize(
    ("rule", "args", "action"),
    [
        ("1", (), ps.ALLOW),
        ("return EIO", (), ps.ERRNO(5)),
        ("return 7", (), ps.ERRNO(7)),
        ("trap", (), ps.TRAP),
        ("arg0 == 1", (1,), ps.ALLOW),
        ("arg0 == 1", (2,), ps.KILL_PROCESS),
        ("arg0 == 1; return EPERM", (2,), ps.ERRNO(1)),
        ("arg0 == 1; return EPERM", (1,), ps.ALLOW),
        ("arg0 & 6", (4,), ps.ALLOW),
        ("arg0 & 6", (9,), ps.KILL_PROCESS),
        ("arg0 in 0x6", (4,), ps.ALLOW),
        ("arg0 in 0x6", (5,), ps.KILL_PROCESS),
        ("arg0 in ~PROT_EXEC || arg1 == 010", (4, 8), ps.ALLOW),
        ("arg0 in ~PROT_EXEC || arg1 == 010", (4, 9), ps.KILL_PROCESS),
        ("arg0 == 1 && \\\n arg1 > O_RDWR | 1  # more", (1, 4), ps.ALLOW),
        ("arg0 == 1 && arg1 > 3", (1, 3), ps.KILL_PROCESS),
    ],
)
def test_filters_mean_what_minijail_says(rule, args, action):
    assert answer(f"# first\nread: {rule}\n", "read", *args) == action
    assert answer(f"read: {rule}\n", "write") == ps.KILL_PROCESS


def test_one_door_and_includes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").write_text("@include ./b\nread: 1\n")
    (tmp_path / "b").write_text("write: 1\n")
    program = ps.load("a", arch="x86_64").compile()
    assert {program.simulate(call, arch="x86_64").action for call in ("read", "write")} == {ps.ALLOW}
    (tmp_path / "b").write_text("@include ./a\n")
    with pytest.raises(ps.PolicyError, match="^./[ab]:1: includes are nested deeper than 10"):
        ps.load("a")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("\nraed: 1", "p:2: .*did you mean read"),
        ("read: 1\nread: 1", "p:2: read has a filter already, at p:1"),
        ("read: arg0 == 1; allow", "p:1: after ; expected"),
        ("read: {arg0 == 1}", "p:1: expected a comparison"),
        ("read: arg6 == 1", "p:1: expected a comparison"),
        ("read: arg0 == NOTHING", "p:1: 'NOTHING' is not a number"),
        ("read: arg0 == 0x10000000000000000", "does not fit 64 bits"),
        ("read: return EWHAT", "p:1: 'EWHAT' is not an errno"),
        ("read: return", "p:1: expected 'return ERRNO'"),
        ("read[arch=x86]: 1", "p:1: expected 'call: filter'"),
        ("@default allow", "p:1: @default is not understood"),
        ("@include b", "must begin with"),
        ("@include ./none-such", "p:1: ./none-such cannot be read"),
    ],
)
def test_errors_name_the_line_and_the_reason(text, says):
    with pytest.raises(ps.PolicyError, match=says):
        minijail.parse(text.encode(), "p", arch="x86_64")


WORDS = st.sampled_from("read write : ; 1 allow return EPERM arg0 arg1 == & in && || ~ | 0x10 -1 O_RDONLY # \\ \n @default".split(" "))


@given(st.lists(WORDS, max_size=14).map(" ".join) | st.lists(WORDS, max_size=8).map(lambda words: "read: arg0 " + " ".join(words)) | st.text(max_size=30))
@settings(max_examples=500, deadline=None)
def test_any_text_is_a_policy_or_one_clear_error(text):
    try:
        policy = minijail.parse(text.encode(errors="replace"), "p", arch="x86_64")
    except ps.PolicyError as error:
        assert str(error).startswith("p:")
    else:
        policy.compile()
