"""The engines' own profiles: every rule as their documentation resolves it, and the program that libseccomp makes of those."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

import pyseccomp as ps

POLICIES = Path(os.environ.get("PYSECCOMP_POLICIES", Path(__file__).parents[3] / "shared" / "policies"))
DOCKER = ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_KILL", "CAP_SETUID", "CAP_SETGID", "CAP_NET_RAW", "CAP_SYS_CHROOT", "CAP_AUDIT_WRITE"]
CAPS = {"none": [], "docker": DOCKER, "many": [*DOCKER, "CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_BPF", "CAP_SYS_TIME"]}
ENGINE_ARCH = {"x86_64": "amd64", "aarch64": "arm64", "s390x": "s390x"}
OPS = {"NE": 1, "LT": 2, "LE": 3, "EQ": 4, "GE": 5, "GT": 6, "MASKED_EQ": 7}
WORDS = {"SCMP_ACT_ALLOW": 0x7FFF0000, "SCMP_ACT_ERRNO": 0x50000}

LIBSECCOMP = """
import json, sys
import seccomp
job = json.load(sys.stdin)
native = seccomp.Arch()
found = seccomp.SyscallFilter(job["default"])
arches = [getattr(seccomp.Arch, name) for name in job["arches"]]
if int(native) not in arches:
    found.remove_arch(native)
for arch in arches:
    if not found.exist_arch(arch):
        found.add_arch(arch)
for action, name, args in job["rules"]:
    if seccomp.resolve_syscall(native, name) != -1:
        found.add_rule(action, name, *[seccomp.Arg(*arg) for arg in args])
found.export_bpf(sys.stdout)
"""

NUMBERS = """
import json, sys
import seccomp
arches, names = json.load(sys.stdin)
tokens = [getattr(seccomp.Arch, arch) for arch in arches]
print(json.dumps({n: [max(-1, seccomp.resolve_syscall(seccomp.Arch(t), n)) for t in tokens] for n in names}))
"""


def number(call, arch):
    """Return a call's number, or -1 where the architecture has none."""
    try:
        return ps.syscalls.resolve(call, arch)
    except ps.UnknownSyscallError:
        return -1


def through(call, arch):
    """Return how an architecture multiplexes a call; None where it does not, or nobody knows the call."""
    try:
        return ps.syscalls.multiplexed(call, arch)
    except ps.UnknownSyscallError:
        return None


def _native(code, jt, jf, k, words):
    """Return an instruction in this machine's order; libseccomp leaves some RETs of foreign programs half turned."""
    if code == 0x06 and k not in words:
        k = int.from_bytes(k.to_bytes(4, "big"), "little")
        assert k in words
    return struct.pack("=HBBI", code, jt, jf, k)


def resolve(profile, caps, arch, kernel):
    """Return (default, arches, rules), written from the documentation of moby and containers-common alone."""

    def word(entry, action, data):
        value = WORDS[entry[action]]
        return value | entry.get(data, 1) if value == 0x50000 else value

    default = word(profile, "defaultAction", "defaultErrnoRet")
    arches, rules, whole = [arch.upper()], [], set()
    for entry in profile["archMap"]:
        if entry["architecture"] == f"SCMP_ARCH_{arch.upper()}":
            arches += [sub[len("SCMP_ARCH_") :] for sub in entry["subArchitectures"] or []]
    for rule in profile["syscalls"]:
        needs, bars = rule.get("includes", {}), rule.get("excludes", {})
        if needs.get("arches") and ENGINE_ARCH[arch] not in needs["arches"]:
            continue
        if ENGINE_ARCH[arch] in bars.get("arches", []):
            continue
        if any(cap not in caps for cap in needs.get("caps", [])) or any(cap in caps for cap in bars.get("caps", [])):
            continue
        if needs.get("minKernel") and kernel < tuple(map(int, needs["minKernel"].split("."))):
            continue
        action = word(rule, "action", "errnoRet")
        args = [(a["index"], OPS[a["op"][9:]], a["value"], a.get("valueTwo", 0)) for a in rule.get("args") or []]
        if len({arg[0] for arg in args}) < len(args):
            alternatives = [(arg,) for arg in args]
        else:
            alternatives = [tuple(args)]
        if action != default:
            rules += [(action, name, more) for name in rule["names"] for more in alternatives]
    kept = []
    for action, name, args in rules:
        first = next((r for r in rules if r[1] == name and not r[2]), None)
        if first is None or (not args and name not in whole):
            kept.append((action, name, args))
            whole |= set() if args else {name}
    return default, arches, kept, rules


def load(name):
    path = POLICIES / name
    if not path.exists():
        pytest.skip(f"material lacks {name} (PYSECCOMP_POLICIES)")
    return json.loads(path.read_text())


@pytest.mark.parametrize("arch", ENGINE_ARCH)
@pytest.mark.parametrize("caps", CAPS)
@pytest.mark.parametrize("name", ["docker-default.json", "podman-containers-common.json"])
def test_rules_are_those_that_the_engine_documents(name, caps, arch):
    profile = load(name)
    default, arches, kept, _ = resolve(profile, CAPS[caps], arch, (6, 1))
    policy = ps.Policy.from_oci(profile, caps=CAPS[caps], arch=arch, kernel="6.1")
    assert (policy.default, [a.name for a in policy.arches]) == (default, arches)
    ours = [(r.action, r.syscall, tuple((c.index, c.op, c.a, c.b) for c in r.conditions)) for r in policy.rules]
    calls = {name for where in arches for name in ps.syscalls.names(where.lower())}
    calls |= {call for _, call, _ in kept if any(through(call, where.lower()) for where in arches)}
    assert ours == [rule for rule in kept if rule[1] in calls]
    assert len(ours) > 300


@pytest.mark.parametrize("arch", ENGINE_ARCH)
@pytest.mark.parametrize("caps", CAPS)
@pytest.mark.parametrize("name", ["docker-default.json", "podman-containers-common.json"])
def test_program_is_libseccomp_s(name, caps, arch):
    python = "/usr/bin/python3"
    if not Path(python).exists() or subprocess.run([python, "-c", "import seccomp"], capture_output=True).returncode:
        pytest.skip("material lacks python3-seccomp, the rival")
    profile = load(name)
    names = sorted({call for rule in profile["syscalls"] for call in rule["names"]})
    default, arches, _, _ = resolve(profile, [], arch, (6, 1))
    job = json.dumps([arches, names]).encode()
    numbers = json.loads(subprocess.run([python, "-c", NUMBERS], input=job, capture_output=True, check=True).stdout)
    known = {call for call in names if numbers[call] == [number(call, where) for where in arches]}
    assert len(known) > 300
    for rule in profile["syscalls"]:
        rule["names"] = [call for call in rule["names"] if call in known]
    profile["syscalls"] = [rule for rule in profile["syscalls"] if rule["names"]]
    default, arches, _, rules = resolve(profile, CAPS[caps], arch, (6, 1))
    job = json.dumps({"default": default, "arches": arches, "rules": rules}).encode()
    theirs = subprocess.run([python, "-c", LIBSECCOMP], input=job, capture_output=True, check=True).stdout
    if ps.Arch.of(arch).big_endian != (sys.byteorder == "big"):
        swapped = struct.iter_unpack(">HBBI", theirs)
        words = {default, 0, *(action for action, _, _ in rules)}
        theirs = b"".join(_native(*fields, words) for fields in swapped)
    ours = ps.Policy.from_oci(profile, caps=CAPS[caps], arch=arch, kernel="6.1")
    assert ps.difference(ours, theirs) is None
