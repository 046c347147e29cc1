"""What a type checker must know of the public names: read by mypy, never run."""

from typing import assert_type

import pyseccomp as ps

policy = ps.Policy(default=ps.ALLOW)
assert_type(policy.compile(), ps.Program)
assert_type(policy.compile().simulate("read"), ps.Decision)
assert_type(ps.query(1), ps.TaskState)
assert_type(ps.query(1).state, ps.State)
assert_type(ps.query(1).threads, tuple[ps.ThreadState, ...])
assert_type(ps.query(1).threads[0].filters, int | None)
assert_type(ps.features(), list[ps.Feature])
ps.query("1")  # type: ignore[arg-type]

# Many processes at once have results, a single one has one.
filter = ps.Filter(policy)
assert_type(filter.attach(1), ps.Attachment)
assert_type(filter.attach(1, tree=True), ps.GroupAttachment)
assert_type(filter.attach(cgroup="/sys/fs/cgroup/x", on_error="skip", active=False), ps.GroupAttachment)
assert_type(filter.attach(1, tree=True).results, tuple[ps.MemberOutcome, ...])
assert_type(filter.attach(1, tree=True).query(), ps.GroupState)
