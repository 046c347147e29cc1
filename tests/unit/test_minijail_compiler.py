"""minijail's policy files in the dialect of compile_seccomp_policy.py."""

import pytest
from hypothesis import given, settings, strategies as st

import pyseccomp as ps
from pyseccomp import minijail_compiler


def answer(text, call, *args, arch="x86_64"):
    return minijail_compiler.parse(text.encode(), "p", arch=arch).compile().simulate(call, args, arch=arch).action


@pytest.mark.parametrize(
    ("rule", "args", "action"),
    [
        ("allow", (), ps.ALLOW),
        ("1", (), ps.ALLOW),
        ("kill", (), ps.KILL_THREAD),
        ("kill-process", (), ps.KILL_PROCESS),
        ("return EIO", (), ps.ERRNO(5)),
        ("arg0 == 1", (1,), ps.ALLOW),
        ("arg0 == 1", (2,), ps.KILL_THREAD),
        ("arg0 == 1; return EPERM", (1,), ps.ERRNO(1)),
        ("arg0 == 1; return EPERM", (2,), ps.KILL_THREAD),
        ("arg0 == 1; kill-process", (1,), ps.KILL_PROCESS),
        ("{arg0 == 1; return 1, arg0 in 0x3; log, allow}", (1,), ps.ERRNO(1)),
        ("{arg0 == 1; return 1, arg0 in 0x3; log, allow}", (2,), ps.LOG),
        ("{arg0 == 1; return 1, arg0 in 0x3; log, allow}", (4,), ps.ALLOW),
        ("arg0 & ~(1|2) && arg1 != -1 || arg2 > 0x10", (4, 0), ps.ALLOW),
        ("arg0 & ~(1|2) && arg1 != -1 || arg2 > 0x10", (3, 0), ps.KILL_THREAD),
        ("arg0 & ~(1|2) && arg1 != -1 || arg2 > 0x10", (4, (1 << 64) - 1), ps.KILL_THREAD),
        ("arg0 & ~(1|2) && arg1 != -1 || arg2 > 0x10", (0, 0, 17), ps.ALLOW),
    ],
)
def test_filters_mean_what_the_compiler_says(rule, args, action):
    assert answer(f"# first\nread: {rule}\n", "read", *args) == action
    assert answer(f"{{write, read}}: {rule}\n", "write", *args) == action
    assert answer(f"read: {rule}\n", "close") == ps.KILL_THREAD


def test_statements_of_one_call_add_up():
    text = "ioctl: arg1 == 1\nioctl: arg1 == 2; return EIO\nioctl: trap\n"
    assert [answer(text, "ioctl", 0, n) for n in (1, 2, 3)] == [ps.ALLOW, ps.ERRNO(5), ps.TRAP]


def test_architectures():
    text = "read[arch=arm,arm64]: allow\n{open[arch=x86_64], openat}: allow\n"
    assert answer(text, "read") == ps.KILL_THREAD
    assert answer(text, "open") == ps.ALLOW
    assert answer(text, "read", arch="aarch64") == ps.ALLOW


def test_defaults_and_denylists():
    assert answer("@default trap\nread: 1", "write") == ps.TRAP
    assert answer("@denylist\nread: return EPERM\nwrite: arg0 == 2; return EIO", "close") == ps.ALLOW
    assert answer("@denylist\nread: return EPERM\nwrite: arg0 == 2; return EIO", "write", 2) == ps.ERRNO(5)
    assert minijail_compiler.parse(b"read: 1", "p", kill=ps.KILL_PROCESS).default == ps.KILL_PROCESS


def test_includes_and_frequencies(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "main").write_text("@include ./deep/more\n@frequency deep/../deep/counts\n".replace("deep/..", "./deep/.."))
    (tmp_path / "deep" / "more").write_text("@include ./last\nread: 1\n")
    (tmp_path / "deep" / "last").write_text("".join(f"{name}: 1\n" for name in ps.syscalls.names("x86_64")[::3] if name != "read"))
    (tmp_path / "deep" / "counts").write_text("write: 3\n{read, write}: 1000 # often\n")
    policy = ps.load(tmp_path / "main", arch="x86_64", dialect="compiler")
    assert policy.profile == {"write": 1003.0, "read": 1000.0}
    often = policy.compile()
    assert ps.equivalent(often, policy.compile(optimize="size"))
    plain = policy.compile(optimize="depth")
    assert sum(often.simulate(call, arch="x86_64").executed for call in ("read", "write")) < sum(
        plain.simulate(call, arch="x86_64").executed for call in ("read", "write")
    )
    (tmp_path / "deep" / "last").write_text("@include ../main\n")
    with pytest.raises(ps.PolicyError, match="includes are nested deeper than 10"):
        ps.load(tmp_path / "main", dialect="compiler")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("\nraed: 1", "p:2: .*did you mean read"),
        ("read: 1\nread: 1", "p:2: read has an action without a comparison already"),
        ("read: {allow, arg0 == 1}", "p:1: read has an action"),
        ("read: {arg0 == 1", "p:1: expected '}', found the end"),
        ("read: arg6 == 1", "p:1: 'arg6' is not an argument"),
        ("read: arg0 = 1", "'=' is not a comparison"),
        ("read: arg0 == NOTHING", "p:1: 'NOTHING' is not a number"),
        ("read: arg0 == 1; nothing", "'nothing' is not an action"),
        ("read: arg0 == (1", "expected '\\)'"),
        ("read: 1 2", "p:1: '2' was not expected here"),
        ("read[arch=sparc]: 1", "expected arch= and of"),
        ("@default allow", "p:1: @default allow: must be"),
        ("read: arg0 == 1 || arg0 == 1 && arg0 == 2", r"p:1: \(Arg\(0, EQ, 1\) & Arg\(0, EQ, 2\)\) contradicts itself"),
        ("@denylist\nread: allow", "p:2: in a denylist"),
        ("@denylist\nread: arg0 == 1", "p:2: in a denylist"),
        ("read: 1\n@denylist", "p:2: @denylist must come before"),
        ("@default trap\n@default trap", "p:2: a second default"),
        ("@frequency counts", "p:1: @frequency counts: a path begins"),
        ("@include /no/such/file", "p:1: /no/such/file cannot be read"),
        ("@else", "p:1: @else is not understood"),
        ("read: $", "p:1: '\\$' is not understood"),
        ("read", "expected ':'"),
    ],
)
def test_refusals_say_where_and_why(text, says):
    with pytest.raises(ps.PolicyError, match=says):
        minijail_compiler.parse(text.encode(), "p", arch="x86_64")


def test_the_two_dialects_are_told_apart_by_the_reader(tmp_path):
    path = tmp_path / "p"
    path.write_text("read: arg0 == 1; return EPERM\n")
    for dialect, action in (("minijail0", ps.ALLOW), ("compiler", ps.ERRNO(1))):
        assert ps.load(path, arch="x86_64", dialect=dialect).compile().simulate("read", (1,), arch="x86_64").action == action
    path.write_text("{read, write}: allow\n")
    assert len(ps.load(path, arch="x86_64", dialect="compiler").rules) == 2
    with pytest.raises(ps.PolicyError, match="dialect='c'"):
        ps.load(path, dialect="c")


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("read: arg0=&|<>!{}[]();,~1@\n\\#in allow return EPERM default"), max_size=80))
def test_any_text_is_read_or_refused(text):
    try:
        minijail_compiler.parse(text.encode(), "p", arch="x86_64").compile()
    except ps.PolicyError as error:
        assert str(error).startswith("p:") or "contradict" in str(error) or "cannot" in str(error)
