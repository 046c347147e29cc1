"""Build rules by Debian's python3-seccomp, once for every line on stdin; answers nanoseconds, then the instructions.

Runs under the system's Python, for which the binding is packaged; names are resolved before the clock starts.
"""

import os
import sys
import time

import seccomp


def read(path):
    """The rules of a file written by _harness.rules_text()."""
    found = {"arches": [], "rules": [], "unknown": 0}
    for line in open(path):
        word, *rest = line.split()
        if word == "arch":
            found["arches"].append(rest[0])
        elif word in ("default", "badarch"):
            found[word] = int(rest[0])
        else:
            action, name, count, *numbers = rest
            comparisons = [tuple(map(int, numbers[4 * i : 4 * i + 4])) for i in range(int(count))]
            if seccomp.resolve_syscall(seccomp.Arch(), name) == -1:
                found["unknown"] += 1
            else:
                found["rules"].append((int(action), name, comparisons))
    return found


def build(rules, tree):
    """The program, exported to a memfd."""
    found = seccomp.SyscallFilter(rules["default"])
    found.set_attr(seccomp.Attr.ACT_BADARCH, (rules["badarch"] ^ 1 << 31) - (1 << 31))  # an int, in the binding
    if tree:
        found.set_attr(seccomp.Attr.CTL_OPTIMIZE, 2)
    if "x86_64" not in rules["arches"]:
        found.remove_arch(seccomp.Arch())
    for arch in rules["arches"]:
        if not found.exist_arch(getattr(seccomp.Arch, arch.upper())):
            found.add_arch(getattr(seccomp.Arch, arch.upper()))
    for action, name, comparisons in rules["rules"]:
        args = [seccomp.Arg(arg, op, a, b) if op == seccomp.MASKED_EQ else seccomp.Arg(arg, op, a) for arg, op, a, b in comparisons]
        found.add_rule(action, name, *args)
    with os.fdopen(os.memfd_create("program"), "w+b") as file:
        found.export_bpf(file)
        return os.fstat(file.fileno()).st_size // 8


rules = read(sys.argv[1])
for line in sys.stdin:
    start = time.perf_counter_ns()
    count = build(rules, line.strip() == "tree")
    print(time.perf_counter_ns() - start, count, rules["unknown"], flush=True)
