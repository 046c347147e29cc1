"""Groups of system calls by systemd's names."""

import pytest

import pyseccomp as ps
from pyseccomp import groups


def test_groups_hold_calls_that_exist_and_the_groups_in_them():
    known = {name for arch in ps.Arch for name in ps.syscalls.names(arch)}
    for group in groups.names():
        assert groups.members(group), group
        assert known.issuperset(groups.members(group)), group
    service = set(groups.members("@system-service"))
    assert service.issuperset(groups.members("@network-io"))
    for refused in ("@module", "@mount", "@reboot", "@swap", "@raw-io", "@debug", "@cpu-emulation", "@obsolete"):
        assert not service.intersection(groups.members(refused)) - {"open_tree"}, refused  # as in systemd


def test_every_call_of_the_tables_is_in_a_group():
    """open_tree_attr was in none: it cloned mounts under a policy that denied @mount and @privileged."""
    grouped = {name for group in groups.names() if group != "@known" for name in groups.members(group)}
    assert sorted(set(groups.members("@known")) - grouped) == []


def test_denied_mount_group_leaves_no_way_to_clone_a_mount():
    policy = ps.Policy(ps.ALLOW, "x86_64")
    policy.add(ps.ERRNO(1), "@mount")
    program = policy.compile()
    for name in ("mount", "fsmount", "move_mount", "mount_setattr", "open_tree", "open_tree_attr", "umount2", "pivot_root"):
        assert program.simulate(name).action == ps.ERRNO(1), name


@pytest.mark.parametrize(
    ("group", "calls"),
    [
        ("@default", "seccomp landlock_restrict_self lsm_get_self_attr lsm_list_modules mseal uretprobe futex_wait futex_requeue"),
        ("@file-system", "file_getattr file_setattr getxattrat setxattrat listxattrat removexattrat listmount statmount open_tree"),
        ("@mount", "open_tree open_tree_attr fsmount"),
        ("@privileged", "syslog lsm_set_self_attr bpf"),
    ],
)
def test_newer_calls_are_in_the_groups_of_systemd_262(group, calls):
    assert set(calls.split()) <= set(groups.members(group))


@pytest.mark.parametrize("arch", ["x86_64", "x86", "aarch64", "s390x"])
def test_a_group_is_a_rule_for_each_of_its_calls_that_is_there(arch):
    one, many = ps.Policy(ps.ALLOW, arch), ps.Policy(ps.ALLOW, arch)
    one.add(ps.ERRNO(1), "@network-io", ps.Arg(0, ps.EQ, 3))
    members = groups.members("@network-io")
    calls = [name for name in members if name in ps.syscalls.names(arch) or ps.syscalls.multiplexed(name, arch)]
    for name in calls:
        many.add(ps.ERRNO(1), name, ps.Arg(0, ps.EQ, 3))
    assert len(calls) > 10
    assert one.rules == many.rules
    assert ps.equivalent(one, many)


def test_a_group_for_one_architecture_of_several():
    policy = ps.Policy(ps.ALLOW, ["x86_64", "x86"])
    policy.add(ps.ERRNO(1), "@chown", arch="x86")
    program = policy.compile()
    assert program.simulate("chown32", arch="x86").action == ps.ERRNO(1)
    assert program.simulate("chown", arch="x86_64").action == ps.ALLOW


def test_unknown_group_is_refused_with_the_nearest():
    policy = ps.Policy(ps.ALLOW, "x86_64")
    with pytest.raises(ps.UnknownSyscallError, match="did you mean @network-io") as caught:
        policy.add(ps.ERRNO(1), "@network")
    assert "@network-io" in caught.value.suggestions
    with pytest.raises(ps.PolicyError, match="not an action"):
        policy.add(7, "@chown")
    assert policy.rules == ()
