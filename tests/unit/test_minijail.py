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
        ("arg0 == 1 && arg0 in 0x3; return EPERM", (1,), ps.ALLOW),
        ("arg0 < 5 || arg0 >= 5; return EPERM", (7,), ps.ALLOW),
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
        ("read: arg0 == 1 && arg0 == 2", "p:1: 'arg0 == 1 && arg0 == 2' contradicts itself: no call can match"),
        ("read: arg1 == 1 || arg0 > 5 && arg0 < 5", "p:1: 'arg0 > 5 && arg0 < 5' contradicts itself"),
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


@pytest.mark.parametrize("dialect", ["minijail0", "compiler"])
def test_include_loops_and_includes_that_multiply_end_in_one_error(tmp_path, monkeypatch, dialect):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").write_text("@include ./loop\n")
    with pytest.raises(ps.PolicyError, match=r"loop:1: includes are nested deeper than 10: a loop"):
        ps.load("./loop", dialect=dialect)
    for at in range(8):
        (tmp_path / f"p{at}").write_text(f"@include ./p{at + 1}\n" * 100)
    (tmp_path / "p8").write_text("# nothing\n")
    with pytest.raises(ps.PolicyError, match=r"p\d:\d+: more than 1000 files are included"):
        ps.load("./p0", dialect=dialect)


@pytest.mark.parametrize("dialect", ["minijail0", "compiler"])
@pytest.mark.parametrize("text", ["read: " + "arg0 == 1 || " * 60000 + "arg0 == 2", "read: arg0 == " + "(" * 200000, "r" * 900000 + ": 1"])
def test_a_gigantic_line_gets_a_short_error(tmp_path, dialect, text):
    path = tmp_path / "policy"
    path.write_text(text)
    with pytest.raises(ps.PolicyError, match="policy:1: ") as caught:
        ps.load(path, dialect=dialect)
    assert len(str(caught.value)) < 1000
