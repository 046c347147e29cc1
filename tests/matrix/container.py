"""Cells whose asker and target are in one container, under a container engine's default policy."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from matrix import programs, system
from matrix.cell import Outcome

Cell = tuple[str, str, str]
ROOT = Path(__file__).parents[2]


def run_contained(cells: Sequence[Cell], jobs: int, timeout: float) -> list[Outcome]:
    """Run cells in one container; what became of each."""
    reason = "privilege: root, to run a container" if os.geteuid() else "material lacks runc" if shutil.which("runc") is None else ""
    if reason:
        return [Outcome(" ".join(cell), "skipped", reason) for cell in cells]
    with tempfile.TemporaryDirectory(prefix="psmx") as folder:
        work = Path(folder)
        work.chmod(0o755)
        name = f"psmx-inner-{os.getpid()}"
        (work / "config.json").write_text(json.dumps(_config(work / "rootfs", name)))
        command = ["runc", "--root", str(work / "runc")]
        try:
            done = subprocess.run(
                [*command, "run", "-b", folder, name], input=pickle.dumps((list(cells), jobs)), capture_output=True, timeout=timeout
            )
        finally:
            with contextlib.suppress(subprocess.TimeoutExpired):
                subprocess.run([*command, "delete", "--force", name], stderr=subprocess.DEVNULL, timeout=30)
        try:
            return list(pickle.loads(done.stdout))
        except Exception:
            text = f"the container ended with {done.returncode}: {done.stderr.decode(errors='replace')[-500:]}"
            return [Outcome(" ".join(cell), "broken", text) for cell in cells]


def _config(rootfs: Path, name: str) -> dict[str, object]:
    """A container that sees the interpreter, the package and the tests, read-only, and has a /tmp and a /proc of its own."""
    rootfs.mkdir()
    mounts = []
    seen: set[str] = set()
    for entry in Path("/").iterdir():
        if entry.is_symlink():
            (rootfs / entry.name).symlink_to(os.readlink(entry))
    wanted = [Path("/usr"), Path("/etc"), *(Path(f"/{n}") for n in ("bin", "lib", "lib64", "sbin")), ROOT, *map(Path, sys.path), Path(sys.prefix)]
    for path in sorted({p.absolute() for p in wanted if p.is_dir()}):
        if any(path.is_relative_to(other) for other in seen) or (len(path.parts) == 2 and path.is_symlink()):
            continue
        seen.add(str(path))
        mounts.append({"destination": str(path), "type": "bind", "source": str(path), "options": ["rbind", "ro"]})
    caps = list(system.DOCKER_CAPS)
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": [sys.executable, "-m", "matrix.container"],
            "cwd": str(ROOT),
            "env": [f"PYTHONPATH={ROOT / 'tests'}", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", *_environment()],
            "capabilities": {"bounding": caps, "effective": caps, "permitted": caps},
            "noNewPrivileges": False,
        },
        "root": {"path": str(rootfs), "readonly": False},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["mode=1777"]},
            *mounts,
        ],
        "linux": {
            "namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts")],
            "seccomp": programs.container_policy(),
            "cgroupsPath": f"/{name}",
        },
    }


def _environment() -> list[str]:
    return [f"{name}={os.environ[name]}" for name in ("PYSECCOMP_SLOW", "PYSECCOMP_POLICIES") if name in os.environ]


def main() -> None:
    """Inside: read the cells from descriptor 0, write what became of them to descriptor 1."""
    from matrix.run import run_here

    out = os.dup(1)
    os.dup2(2, 1)
    cells, jobs = pickle.loads(sys.stdin.buffer.read())
    data = pickle.dumps(run_here(cells, jobs))
    with os.fdopen(out, "wb") as file:
        file.write(data)


if __name__ == "__main__":
    main()
