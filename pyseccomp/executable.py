"""The architecture of programs in files and processes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from typing import Any

from pyseccomp.errors import PolicyError
from pyseccomp.query import arch_name
from pyseccomp.syscalls import Arch

_HEAD = 256  # what the kernel reads of a script's first line
_SCRIPTS = 5  # interpreters that are scripts themselves, as deep as the kernel goes


def arch_of(name: str | None) -> Arch | None:
    """Find the architecture by the name that query() gives a process; None: it is not known."""
    try:
        return None if name is None else Arch.of(name)
    except PolicyError:
        return None


def arch_of_file(path: str | bytes) -> Arch | None:
    """Find the architecture of an executable file, of its interpreter if it is a script; None: it cannot be known."""
    for _ in range(_SCRIPTS):
        try:
            with open(path, "rb") as file:
                head = file.read(_HEAD)
        except OSError:
            return None
        if head[:4] == b"\x7fELF" and len(head) >= 20:
            machine = int.from_bytes(head[18:20], "big" if head[5] == 2 else "little")
            return arch_of(arch_name(machine, head[4]))
        if head[:2] != b"#!" or not (words := head[2:].partition(b"\n")[0].split()):
            return None
        path = words[0]
    return None


def arch_of_command(args: Any, options: Mapping[str, Any]) -> Arch | None:
    """Find the architecture of what subprocess.Popen(args, **options) would execute; None: it cannot be known."""
    if options.get("preexec_fn") is not None:  # it may change what paths mean
        return None
    path = options.get("executable")
    if path is None:
        path = "/bin/sh" if options.get("shell") else args if isinstance(args, (str, bytes, os.PathLike)) else next(iter(args), None)
    if path is None:
        return None
    path = os.fsdecode(path)
    environment = options.get("env")
    if os.sep not in path:
        found = shutil.which(path, path=os.pathsep.join(os.get_exec_path(environment)))
        return None if found is None else arch_of_file(found)
    cwd = options.get("cwd")
    return arch_of_file(path if cwd is None else os.path.join(os.fsdecode(cwd), path))
