"""Build rule sets by Debian's python3-seccomp, for test_compat_rules.py; runs under the system's Python.

Each line of stdin is a JSON rule set; each of stdout what became of it: the errno of every add_rule() and the program. A set
is built in a child of its own, because some make libseccomp crash, or loop for ever.
"""

import json
import os
import resource
import signal
import sys

import seccomp


def signed(word):
    """An action as the binding has it."""
    return (word ^ 1 << 31) - (1 << 31)


def build(job):
    """The errnos and the program of a rule set."""
    found = seccomp.SyscallFilter(signed(job["default"]))
    tokens = [getattr(seccomp.Arch, arch) for arch in job["arches"]]
    if int(seccomp.Arch()) not in tokens:
        found.remove_arch(seccomp.Arch())
    for token in tokens:
        if not found.exist_arch(token):
            found.add_arch(token)
    errors = []
    for action, call, args in job["rules"]:
        try:
            found.add_rule(signed(action), call, *[seccomp.Arg(*arg) for arg in args])
            errors.append(0)
        except RuntimeError as error:
            errors.append(-int(str(error).rstrip(")").rsplit(" ", 1)[1]))
    with os.fdopen(os.memfd_create("program"), "w+b") as file:
        found.export_bpf(file)
        file.seek(0)
        return {"errors": errors, "program": file.read().hex()}


for line in sys.stdin:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(5)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
        with os.fdopen(writer, "w") as out:
            out.write(json.dumps(build(json.loads(line))))
            out.flush()
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        text = answer.read()
    os.waitpid(child, 0)
    print(text or "null", flush=True)
