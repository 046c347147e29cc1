"""Seccomp filters as objects."""

# query
from pyseccomp.query import State as State, TaskState as TaskState, ThreadState as ThreadState, query as query
# ---- policies and programs
from pyseccomp.actions import (
    ALLOW as ALLOW,
    EQ as EQ,
    ERRNO as ERRNO,
    GE as GE,
    GT as GT,
    KILL as KILL,
    KILL_PROCESS as KILL_PROCESS,
    KILL_THREAD as KILL_THREAD,
    LE as LE,
    LOG as LOG,
    LT as LT,
    MASKED_EQ as MASKED_EQ,
    NE as NE,
    NOTIFY as NOTIFY,
    RANGE as RANGE,
    TRACE as TRACE,
    TRAP as TRAP,
    Action as Action,
    Arg as Arg,
    Condition as Condition,
    In as In,
)
from pyseccomp.policy import Policy as Policy, Rule as Rule
from pyseccomp.program import Decision as Decision, Program as Program
from pyseccomp.syscalls import Arch as Arch

# features
from pyseccomp.features import Feature as Feature, features as features
