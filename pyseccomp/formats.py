"""Policy files of several formats through one door, and programs in the formats that others take.

What a file is shows in its bytes: BPF has NUL bytes (no instruction is without), JSON begins with ``{``, minijail's text has lines that
begin with ``call:`` or ``@``, a C array says ``struct sock_filter``, and a program as text begins with an instruction.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterable, Iterator
from typing import Final, Literal

from pyseccomp import assembly, equivalence, firecracker, minijail, minijail_compiler, oci, syscalls
from pyseccomp.actions import ALLOW
from pyseccomp.constants import Source
from pyseccomp.equivalence import Difference
from pyseccomp.errors import PolicyError, ProgramError
from pyseccomp.policy import Policy
from pyseccomp.program import Program
from pyseccomp.syscalls import Arch, ArchLike

Format = Literal["oci", "firecracker", "bpf", "minijail", "c-header", "text"]
Dialect = Literal["minijail0", "compiler"]
OUTPUTS: Final = ("bpf", "oci", "c-header", "text")
MAX_SIZE: Final = 16 << 20
_BOM: Final = b"\xef\xbb\xbf"
_C_ARRAY: Final = re.compile(rb"struct\s+sock_filter\s+\w+\s*\[(\d{0,5})\]\s*=\s*\{")
_C_ROW: Final = re.compile(rb"\{\s*(\w+)\s*,\s*(\w+)\s*,\s*(\w+)\s*,\s*(\w+)\s*\}")


def load(
    path: str | os.PathLike[str],
    *,
    caps: Iterable[str] = (),
    arch: ArchLike = None,
    kernel: str | None = None,
    thread: str | None = None,
    dialect: Dialect = "minijail0",
    constants: Source | None = None,
) -> Policy | Program:
    """Read a file of any format: an OCI profile, Firecracker's filters, minijail's rules as a Policy; BPF, also as text, as a Program.

    caps and kernel are for OCI profiles (:func:`pyseccomp.oci.load`), thread for Firecracker's filters, arch for all but BPF;
    dialect for minijail's policies ("minijail0", or "compiler" for those of compile_seccomp_policy.py, which mean something
    else by the same words). Names of constants and errnos have the values of arch (:mod:`pyseccomp.constants`). For minijail's
    policies, constants (a mapping of names to numbers, or the path of a constants.json) are added to these or replace them.

    Raises:
        PolicyError: cannot be read, or is not valid; the message has the file, the place in it and the reason.
        ProgramError: BPF that the kernel would refuse, or text that is no program.
    """
    name = os.fspath(path)
    try:
        data = oci.read_file(name)
    except OSError as error:
        raise PolicyError(f"{name}: cannot be read: {error.strerror}") from error
    return parse(data, name, caps=caps, arch=arch, kernel=kernel, thread=thread, dialect=dialect, constants=constants)


def detect(data: bytes, name: str = "data") -> Format:
    """Tell a file's format by its bytes.

    Raises:
        ProgramError: of no known format.
    """
    if b"\0" in data and len(data) % 8 == 0:
        return "bpf"
    text = data.removeprefix(_BOM).lstrip()
    if b"\0" not in data and b"struct sock_filter" in data:
        return "c-header"
    if b"\0" not in data and text[:1] == b"{":
        return "firecracker" if firecracker.is_filters(oci.decode(data, name)) else "oci"
    if b"\0" not in data and assembly.looks_like(text):
        return "text"
    if b"\0" not in data and minijail.is_policy(text):
        return "minijail"
    raise ProgramError(
        f"{name}: of no known format: neither OCI JSON (which begins with '{{') nor BPF (a multiple of 8 bytes, not 0), also not "
        f"BPF as text or C, nor minijail's: {len(data)} bytes"
    )


def parse(
    data: bytes,
    name: str = "data",
    *,
    caps: Iterable[str] = (),
    arch: ArchLike = None,
    kernel: str | None = None,
    thread: str | None = None,
    dialect: Dialect = "minijail0",
    constants: Source | None = None,
) -> Policy | Program:
    """Read the bytes of a file; name is what errors call it. See :func:`load`."""
    if len(data) > MAX_SIZE:
        raise PolicyError(f"{name}: larger than {MAX_SIZE >> 20} MiB: not a policy")
    if dialect not in ("minijail0", "compiler"):
        raise PolicyError(f"dialect={dialect!r}: must be 'minijail0' or 'compiler'")
    kind = "minijail" if dialect == "compiler" else detect(data, name)
    if kind != "bpf":
        data = data.removeprefix(_BOM)
    if kind in ("bpf", "c-header", "text"):
        if kind != "bpf":
            data = _from_c(data, name) if kind == "c-header" else assembly.assemble(data.decode(errors="replace"), name)
        try:
            return Program.from_bytes(data)
        except ProgramError as error:
            raise ProgramError(f"{name}: {error}", index=error.index) from None
    if kind == "minijail":
        read = minijail.parse if dialect == "minijail0" else minijail_compiler.parse
        return read(data, name, arch=arch, constants=constants)
    value = oci.decode(data, name)
    if kind == "firecracker":
        return firecracker.load(value, name, thread=thread, arch=arch)
    return oci.load(value, caps=caps, arch=arch, kernel=kernel, name=name)


def _from_c(data: bytes, name: str) -> bytes:
    """The instructions of a C array of numbers, as ``Program.to_c`` writes it."""
    first, *rest = data.split(b"/*")
    text = first + b" ".join(part.partition(b"*/")[2] for part in rest)
    arrays = list(_C_ARRAY.finditer(text))
    if len(arrays) != 1:
        raise PolicyError(f"{name}: expected one array of struct sock_filter with its values, found {len(arrays)}")
    size, body = arrays[0][1], text[arrays[0].end() :].partition(b";")[0].rstrip().removesuffix(b"}")
    rows = _C_ROW.findall(body)
    if _C_ROW.sub(b"", body).strip(b", \t\r\n") or (size and int(size) != len(rows)):
        raise PolicyError(f"{name}: expected {size.decode() or 'only'} instructions {{ code, jt, jf, k }} in numbers, found {len(rows)}")
    try:
        return b"".join(struct.pack("=HBBI", *(int(word, 0) for word in row)) for row in rows)
    except (ValueError, struct.error) as error:
        raise PolicyError(f"{name}: an instruction is not four numbers that fit: {oci.shortened(str(error))}") from None


def program(source: Policy | Program) -> Program:
    """Return the program of either."""
    return source.compile() if isinstance(source, Policy) else source


def dump(source: Policy | Program, output: str, *, name: str = "filter") -> bytes:
    """Return a policy or program as the bytes of a file: ``bpf``, ``oci``, ``c-header`` or ``text``.

    Raises:
        PolicyError: no such format; what has no OCI form (a program is decompiled); a name that C does not take.
    """
    if output == "bpf":
        return bytes(program(source))
    if output == "text":
        return (program(source).disassemble().rstrip("\n") + "\n").encode()
    if output == "c-header":
        return program(source).to_c(name).encode()
    if output != "oci":
        raise PolicyError(f"format {output!r}: must be one of {', '.join(OUTPUTS)}")
    import json

    return (json.dumps(_rules(source).to_oci(), indent=2) + "\n").encode()


def _rules(source: Policy | Program) -> Policy:
    """Return the rules of either, of a program as they are decompiled."""
    if isinstance(source, Policy):
        return source
    from pyseccomp.decompile import decompile

    found = decompile(source)
    if found.policy is None:
        raise PolicyError(f"the program cannot be written as an OCI profile: {found.why}")
    return found.policy


_LOAD, _JEQ, _RET = 0x20, 0x15, 0x06
_LIMIT: Final = 4096


def differences(a: Policy | Program, b: Policy | Program) -> Iterator[Difference]:
    """Yield a counterexample for each call that a and b answer differently; none is a proof that they mean the same.

    Of the numbers that no table has, and of the architectures without one, it is one for all of them together.

    Raises:
        ProgramError: one calculates with arguments in ways too many to follow, or is too long to be taken apart.
    """
    first, second = program(a), program(b)
    if equivalence.difference(first, second) is None:
        return
    tokens: dict[int, list[Arch]] = {}
    for arch in Arch:
        tokens.setdefault(arch.token, []).append(arch)
    for token, arches in tokens.items():
        head = [(_LOAD, 0, 0, 4), (_JEQ, 1, 0, token), (_RET, 0, 0, ALLOW)]
        if _after(head, first, second) is None:
            continue
        found = []
        for nr in sorted({syscalls.resolve(name, arch) for arch in arches for name in syscalls.names(arch)}):
            one = _after([*head, (_LOAD, 0, 0, 0), (_JEQ, 1, 0, nr), (_RET, 0, 0, ALLOW)], first, second)
            if one is not None:
                found.append(nr)
                yield one
        without = [step for nr in found for step in ((_JEQ, 0, 1, nr), (_RET, 0, 0, ALLOW))]
        rest = _after([*head, (_LOAD, 0, 0, 0), *without], first, second)
        if rest is not None:
            yield rest
    rest = _after([(_LOAD, 0, 0, 4), *[step for t in tokens for step in ((_JEQ, 0, 1, t), (_RET, 0, 0, ALLOW))]], first, second)
    if rest is not None:
        yield rest


def _after(head: list[tuple[int, int, int, int]], first: Program, second: Program) -> Difference | None:
    """A difference among the calls that the head, put before both programs, lets through to them."""
    if len(head) + max(len(first), len(second)) > _LIMIT:
        raise ProgramError(f"a program of {max(len(first), len(second))} instructions is too long to be taken apart by call")
    code = b"".join(struct.pack("=HBBI", *step) for step in head)
    return equivalence.difference(Program(code + bytes(first)), Program(code + bytes(second)))
