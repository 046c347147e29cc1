"""The same random rule sets through our libseccomp front and through libseccomp: equivalent programs, or a known defect of theirs.

Known defects of libseccomp 2.5.4 (its tree of comparisons shares a node between rules, and the node has one action for
each of its two sides), all in calls with at least two rules with comparisons, one of them by NE, LT, LE, GT or GE:

- *lost*: a call that a rule matches gets the default action;
- *foreign*: a call gets the action of a rule that does not match it;
- *order*: a call that several rules match gets the action of another than of the one the order of comparisons says;
- *refused*: add_rule() says EEXIST although no rule is hidden, or does not although one is;
- *broken*: libseccomp crashes, loops, or exports a program that the kernel refuses.

Of calls through socketcall and ipc see test_conditions_on_multiplexed_calls().
"""

import json
import os
import random
import struct
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import pyseccomp as ps

SETS = int(os.environ.get("PYSECCOMP_RULESETS", "60"))
PYTHON = "/usr/bin/python3"
DRIVER = Path(__file__).with_name("libseccomp_driver.py")
PLAIN = ["read", "write", "openat", "ioctl", "prctl", "clone", "kill", "personality"]
SOCKETS = ["socket", "bind", "listen"]
ACTIONS = [0x00050001, 0x00050002, 0x00030000, 0x7FFC0000, 0x80000000, 0x7FF00003]
VALUES = [0, 1, 2, 3, 5, 7, 0xFF, 0x80000000, 0xFFFFFFFF, 1 << 32, (1 << 32) + 5, (1 << 64) - 1]
MASKS = [0, 1, 3, 0xFF, 0xF0, 0xFFFF0000, 0xFFFFFFFF << 32, (1 << 64) - 1]
EXACT, ALL = [ps.EQ, ps.EQ, ps.MASKED_EQ], list(ps.actions.Op)[:7]
ARCHES = ["x86_64", "x86", "x32", "aarch64", "s390x"]


def arg(rng, index, ops):
    """Return one comparison, as libseccomp's Arg() takes it."""
    op = rng.choice(ops)
    if op == ps.MASKED_EQ:
        mask = rng.choice(MASKS)
        return index, int(op), mask, rng.choice(VALUES) & mask
    return index, int(op), rng.choice(VALUES)


def rule_set(rng, arch):
    """Return a random rule set: few calls and few values, so that rules meet."""
    ops = rng.choice([EXACT, [*EXACT, ps.NE], ALL])
    pool = PLAIN if arch == "s390x" else PLAIN + SOCKETS
    calls = rng.sample(pool, rng.randint(1, 4))
    rules = []
    for _ in range(rng.randint(1, 8)):
        call = rng.choice(calls)
        count = 0 if ps.syscalls.multiplexed(call, arch) else rng.choice([0, 1, 1, 1, 2, 2, 3])
        rules.append((rng.choice(ACTIONS), call, [arg(rng, i, ops) for i in rng.sample(range(6), count)]))
    return {"default": rng.choice([0x7FFF0000, 0, 0x00050001]), "arches": [arch.upper()], "rules": rules}


def theirs(jobs):
    """Return what libseccomp makes of them, None where it breaks."""
    if not Path(PYTHON).exists() or subprocess.run([PYTHON, "-c", "import seccomp"], capture_output=True).returncode:
        pytest.skip("material lacks python3-seccomp, the rival")
    text = "\n".join(map(json.dumps, jobs))
    done = subprocess.run([PYTHON, DRIVER], input=text, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def ours(job):
    """Return the errnos and the filter."""
    found = ps.SyscallFilter(job["default"])
    arches = [ps.Arch[name] for name in job["arches"]]
    if ps.Arch() not in arches:
        found.remove_arch(ps.Arch())
    for arch in arches:
        if not found.exist_arch(arch):
            found.add_arch(arch)
    errors = []
    for action, call, args in job["rules"]:
        try:
            found.add_rule(action, call, *[ps.Arg(*one) for one in args])
            errors.append(0)
        except ps.LibseccompError as error:
            errors.append(error.errno)
    return errors, found


def readable(code, job):
    """Return a program of theirs in this machine's order; some RETs of foreign programs are left half turned (a defect)."""
    if ps.Arch[job["arches"][0]].big_endian == (sys.byteorder == "big"):
        return code
    words = {job["default"], 0, *(action for action, _, _ in job["rules"])}
    out = b""
    for op, jt, jf, k in struct.iter_unpack(">HBBI", code):
        if op == 0x06 and k not in words:
            k = int.from_bytes(k.to_bytes(4, "big"), "little")
            assert k in words
        out += struct.pack("=HBBI", op, jt, jf, k)
    return out


def matches(args, call_args, narrow):
    """Whether all comparisons hold, from libseccomp's documentation alone."""
    for index, op, a, *b in args:
        cut = 0xFFFFFFFF if narrow else (1 << 64) - 1
        value, a, b = call_args[index] & cut, a & cut, (b[0] if b else 0) & cut
        test = {1: value != a, 2: value < a, 3: value <= a, 4: value == a, 5: value >= a, 6: value > a, 7: value & a == b}
        if not test[op]:
            return False
    return True


def tangled(job, call):
    """Whether the call's rules can share a node that has two sides, which is where libseccomp errs."""
    rules = [args for _, name, args in job["rules"] if name == call and args]
    return len(rules) > 1 and any(one[1] not in (ps.EQ, ps.MASKED_EQ) for args in rules for one in args)


def defect(job, errors, found, answer):
    """Return the name of the known defect that tells the two apart, or None; what is not one fails."""
    if answer is None:
        assert any(tangled(job, call) for _, call, _ in job["rules"])
        return "broken"
    if errors != answer["errors"]:
        at = next(i for i, (a, b) in enumerate(zip(errors, answer["errors"], strict=True)) if a != b)
        assert {errors[at], answer["errors"][at]} == {0, 17}
        assert tangled({"rules": job["rules"][: at + 1]}, job["rules"][at][1])
        return "refused"
    try:
        other = ps.Program(readable(bytes.fromhex(answer["program"]), job))
    except ps.ProgramError:
        assert any(tangled(job, call) for _, call, _ in job["rules"])
        return "broken"
    difference = ps.difference(found.program, other)
    if difference is None:
        return None
    arch = ps.Arch[job["arches"][0]]
    call = ps.syscalls.name(difference.nr, arch)
    assert tangled(job, call), difference
    accepted = [rule for rule, error in zip(job["rules"], errors, strict=True) if not error and rule[1] == call]
    hits = {action for action, _, args in accepted if matches(args, difference.args, not arch.wide)}
    assert int(difference.first.action) in (hits or {job["default"]})
    if not hits:
        return "foreign"
    if int(difference.second.action) == job["default"]:
        return "lost"
    return "order" if int(difference.second.action) in hits else "foreign"


@pytest.mark.parametrize("arch", ARCHES)
def test_random_rule_sets_mean_what_libseccomp_makes_of_them(arch):
    rng = random.Random(f"{arch} {SETS}")
    jobs = [rule_set(rng, arch) for _ in range(SETS)]
    seen = Counter(defect(job, *ours(job), answer) for job, answer in zip(jobs, theirs(jobs), strict=True))
    print(f"{arch}: {dict(seen)}")
    assert seen[None] >= SETS * 0.85


def test_every_architecture_gets_its_own_rules():
    """Rules hold for the architectures that are there when they are added."""
    jobs = [{"default": 0x7FFF0000, "arches": ["X86_64", "X86", "X32"], "rules": [(0x50001, call, [])]} for call in PLAIN + ["mmap2"]]
    for job, answer in zip(jobs, theirs(jobs), strict=True):
        errors, found = ours(job)
        assert (errors, ps.difference(found.program, bytes.fromhex(answer["program"]))) == (answer["errors"], None)


def test_conditions_on_multiplexed_calls():
    """libseccomp compares socketcall's own arguments, and allows what it cannot see; we do not."""
    job = {"default": 0, "arches": ["X86"], "rules": [(0x7FFF0000, "read", []), (0x7FFF0000, "socket", [(0, 4, 1)]), (0x7FFF0000, "semop", [])]}
    [answer] = theirs([job])
    errors, found = ours(job)
    other = ps.Program(bytes.fromhex(answer["program"]))
    assert errors == answer["errors"] == [0, 0, 0]
    socketcall, ipc = (ps.syscalls.resolve(name, "x86") for name in ("socketcall", "ipc"))
    for program, through in ((found.program, "KILL_THREAD"), (other, "ALLOW")):
        assert program.simulate(socketcall, (1, 0x1000), "x86").action.name == through
    for version, name in ((0, "ALLOW"), (1, "KILL_THREAD")):
        assert other.simulate(ipc, (version << 16 | 1, 0), "x86").action.name == name
        assert found.program.simulate(ipc, (version << 16 | 1, 0), "x86").action.name == "ALLOW"


ACTION_NAMES = {0x50000: "ERRNO", 0x30000: "TRAP", 0x7FFC0000: "LOG", 0x80000000: "KILL_PROCESS", 0x7FF00000: "TRACE", 0x7FFF0000: "ALLOW", 0: "KILL_THREAD"}


def as_oci(job):
    """Return a rule set as a profile: a rule of the profile for each."""

    def action(word, key, data):
        name = ACTION_NAMES[word & 0xFFFF0000]
        return {key: f"SCMP_ACT_{name}"} | ({data: word & 0xFFFF} if name in ("ERRNO", "TRACE") else {})

    def comparison(index, op, value, second=0):
        return {"index": index, "op": f"SCMP_CMP_{ps.actions.Op(op).name}", "value": value, "valueTwo": second}

    rules = [{"names": [call], **action(word, "action", "errnoRet"), "args": [comparison(*one) for one in args]} for word, call, args in job["rules"]]
    return {**action(job["default"], "defaultAction", "defaultErrnoRet"), "architectures": [f"SCMP_ARCH_{a}" for a in job["arches"]], "syscalls": rules}


@pytest.mark.parametrize("arch", ["x86_64", "x86", "s390x"])
def test_a_profile_means_what_libseccomp_makes_of_its_rules(arch):
    """Of calls with comparisons that have different actions the strictest was taken once; libseccomp has an order."""
    rng = random.Random(f"oci {arch}")
    refused = 0
    for _ in range(SETS * 5):
        job = rule_set(rng, arch)
        errors, found = ours(job | {"rules": [rule for rule in job["rules"] if rule[0] != job["default"]]})
        try:
            policy = ps.Policy.from_oci(as_oci(job), arch=arch)
        except ps.PolicyError:
            refused += 1
            assert 17 in errors
        else:
            assert ps.difference(policy, found.program) is None
    assert refused < SETS
