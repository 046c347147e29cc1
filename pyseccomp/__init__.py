"""Seccomp filters as objects."""

# query
from pyseccomp.query import State as State, TaskState as TaskState, ThreadState as ThreadState, query as query
