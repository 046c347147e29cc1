#!/usr/bin/env python3
"""Generate table.h, the names and numbers of every system call, from kernel headers.

Run by hand when the tables shall follow a newer kernel; the result is checked in. It needs a C preprocessor and
Debian's linux-libc-dev-*-cross packages (or any folder of installed kernel headers per port, see ARCHES):

    python3 csrc/syscalls/generate.py > csrc/syscalls/table.h

The preprocessor reads the headers, so what counts is what a C program would get. Two things are not in the headers and
are therefore written out here: SUPPLEMENT, the calls that kernels newer than the headers added, and LOONGARCH64, for
which that release has no package (its uapi header is four defines in front of asm-generic/unistd.h).
"""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

X32_BIT = 0x40000000
SUPPLEMENT_KERNEL = "6.18"

# Common to every architecture since the tables were unified at 403, relative to the base of its numbers.
SUPPLEMENT = {
    "cachestat": 451,
    "fchmodat2": 452,
    "map_shadow_stack": 453,
    "futex_wake": 454,
    "futex_wait": 455,
    "futex_requeue": 456,
    "statmount": 457,
    "listmount": 458,
    "lsm_get_self_attr": 459,
    "lsm_set_self_attr": 460,
    "lsm_list_modules": 461,
    "mseal": 462,
    "setxattrat": 463,
    "getxattrat": 464,
    "listxattrat": 465,
    "removexattrat": 466,
    "open_tree_attr": 467,
    "file_getattr": 468,
    "file_setattr": 469,
}
SUPPLEMENT_OF = {
    "x86_64": {"uretprobe": 335, "uprobe": 336},
    "riscv64": {"riscv_hwprobe": 258},
    "s390": {"memfd_secret": 447},
    "s390x": {"memfd_secret": 447},
    "loongarch64": {"newfstatat": 79, "fstat": 80},
}
# What the first argument of socketcall(2) and of ipc(2) stands for (linux/net.h, linux/ipc.h), on ABIs that have them.
SOCKETCALL = {
    "socket": 1, "bind": 2, "connect": 3, "listen": 4, "accept": 5, "getsockname": 6, "getpeername": 7, "socketpair": 8, "send": 9,
    "recv": 10, "sendto": 11, "recvfrom": 12, "shutdown": 13, "setsockopt": 14, "getsockopt": 15, "sendmsg": 16, "recvmsg": 17,
    "accept4": 18, "recvmmsg": 19, "sendmmsg": 20,
}  # fmt: skip
IPC = {
    "semop": 1, "semget": 2, "semctl": 3, "semtimedop": 4, "msgsnd": 11, "msgrcv": 12, "msgget": 13, "msgctl": 14, "shmat": 21,
    "shmdt": 22, "shmget": 23, "shmctl": 24,
}  # fmt: skip
# Calls of ARM that have a prefix of their own in asm/unistd.h (0x0f0000 + n).
ARM_PRIVATE = {"breakpoint", "cacheflush", "usr26", "usr32", "set_tls", "get_tls"}


@dataclass(frozen=True)
class Arch:
    """One ABI: its headers, and what the preprocessor must be told to see its numbers."""

    name: str
    scmp: str
    audit: str
    headers: str
    include: str
    defines: tuple[str, ...] = ()
    base: int = 0
    big: bool = False
    wide: bool = False


ARCHES = (
    Arch("x86_64", "X86_64", "0xc000003e", "x86_64-linux-gnux32", "asm/unistd_64.h", wide=True),
    Arch("x86", "X86", "0x40000003", "i686-linux-gnu", "asm/unistd_32.h"),
    Arch("x32", "X32", "0xc000003e", "x86_64-linux-gnux32", "asm/unistd_x32.h", ("__X32_SYSCALL_BIT=0x40000000",), X32_BIT),
    Arch("arm", "ARM", "0x40000028", "arm-linux-gnueabihf", "asm/unistd.h", ("__ARM_EABI__",)),
    Arch("aarch64", "AARCH64", "0xc00000b7", "aarch64-linux-gnu", "asm/unistd.h", wide=True),
    Arch("loongarch64", "LOONGARCH64", "0xc0000102", "riscv64-linux-gnu", "asm-generic/unistd.h",
         ("__ARCH_WANT_SYS_CLONE", "__ARCH_WANT_SYS_CLONE3", "__SIZEOF_POINTER__=8"), wide=True),
    Arch("m68k", "M68K", "0x00000004", "m68k-linux-gnu", "asm/unistd_32.h", big=True),
    Arch("mips", "MIPS", "0x00000008", "mips-linux-gnu", "asm/unistd_o32.h", ("__NR_Linux=4000",), 4000, big=True),
    Arch("mipsel", "MIPSEL", "0x40000008", "mips-linux-gnu", "asm/unistd_o32.h", ("__NR_Linux=4000",), 4000),
    Arch("mips64", "MIPS64", "0x80000008", "mips-linux-gnu", "asm/unistd_n64.h", ("__NR_Linux=5000",), 5000, big=True, wide=True),
    Arch("mipsel64", "MIPSEL64", "0xc0000008", "mips-linux-gnu", "asm/unistd_n64.h", ("__NR_Linux=5000",), 5000, wide=True),
    Arch("mips64n32", "MIPS64N32", "0xa0000008", "mips-linux-gnu", "asm/unistd_n32.h", ("__NR_Linux=6000",), 6000, big=True),
    Arch("mipsel64n32", "MIPSEL64N32", "0xe0000008", "mips-linux-gnu", "asm/unistd_n32.h", ("__NR_Linux=6000",), 6000),
    Arch("parisc", "PARISC", "0x0000000f", "hppa-linux-gnu", "asm/unistd_32.h", big=True),
    Arch("parisc64", "PARISC64", "0x8000000f", "hppa-linux-gnu", "asm/unistd_64.h", big=True, wide=True),
    Arch("ppc", "PPC", "0x00000014", "powerpc-linux-gnu", "asm/unistd_32.h", big=True),
    Arch("ppc64", "PPC64", "0x80000015", "powerpc64-linux-gnu", "asm/unistd_64.h", big=True, wide=True),
    Arch("ppc64le", "PPC64LE", "0xc0000015", "powerpc64le-linux-gnu", "asm/unistd_64.h", wide=True),
    Arch("riscv64", "RISCV64", "0xc00000f3", "riscv64-linux-gnu", "asm/unistd.h", ("__LP64__", "__SIZEOF_POINTER__=8"), wide=True),
    Arch("s390", "S390", "0x00000016", "s390x-linux-gnu", "asm/unistd_32.h", big=True),
    Arch("s390x", "S390X", "0x80000016", "s390x-linux-gnu", "asm/unistd_64.h", big=True, wide=True),
    Arch("sh", "SH", "0x4000002a", "sh4-linux-gnu", "asm/unistd_32.h"),
    Arch("sheb", "SHEB", "0x0000002a", "sh4-linux-gnu", "asm/unistd_32.h", big=True),
)


def preprocess(arch: Arch, source: str, *options: str) -> str:
    """Run the C preprocessor over source with this port's headers and nothing of the host."""
    command = ["cc", "-E", "-P", "-nostdinc", "-undef", f"-I/usr/{arch.headers}/include"]
    command += [f"-D{d}" for d in arch.defines] + [*options, "-xc", "-"]
    return subprocess.run(command, input=source, text=True, check=True, capture_output=True).stdout


def numbers(arch: Arch) -> dict[str, int]:
    """Return name -> number as a C program of this ABI would see them."""
    include = f"#include <{arch.include}>\n"
    macros = re.findall(r"^#define (__(?:ARM_)?NR_\w+) ", preprocess(arch, include, "-dM"), re.M)
    wanted = {}
    for macro in sorted(macros):
        name = macro.removeprefix("__NR_").removeprefix("__ARM_NR_")
        if macro.startswith("__ARM_NR_") and name not in ARM_PRIVATE:
            continue
        if re.fullmatch(r"(N32_|64_|O32_)?Linux(_syscalls)?|(syscalls|arch_specific_syscall|(reserved|unused)\d+|SYSCALL_BASE|OABI_SYSCALL_BASE|SYSCALL_MASK)", name):
            continue
        wanted[name] = macro
    marks = "".join(f"psc_value {name} {macro} psc_end\n" for name, macro in wanted.items())
    found = {}
    for line in preprocess(arch, include + marks).splitlines():
        match = re.fullmatch(r"psc_value (\w+) (.*) psc_end", line)
        if match is None:
            continue
        name, expression = match.groups()
        if not re.fullmatch(r"[-+() 0-9a-fA-FxX]+", expression):
            if expression.startswith("__NR"):
                continue  # an alias of a call that this ABI has not (asm-generic's __NR3264_ ones)
            raise ValueError(f"{arch.name}: {name}: {expression}")
        found[name] = int(eval(expression))
    for name, number in SUPPLEMENT.items():
        found.setdefault(name, number + arch.base)
    for name, number in SUPPLEMENT_OF.get(arch.name, {}).items():
        found.setdefault(name, number)
    return {name: number for name, number in found.items() if not name.startswith(("3264_", "ia32_"))}


def header_version(arch: Arch) -> str:
    """Return the kernel release of the installed headers as 6.1.4."""
    text = Path(f"/usr/{arch.headers}/include/linux/version.h").read_text()
    code = int(re.search(r"LINUX_VERSION_CODE (\d+)", text)[1])  # type: ignore[index]
    return f"{code >> 16}.{code >> 8 & 255}.{code & 255}"


def hash_name(name: str) -> int:
    """FNV-1a, as psc_syscall_id() computes it."""
    value = 0x811C9DC5
    for byte in name.encode():
        value = (value ^ byte) * 0x01000193 & 0xFFFFFFFF
    return value ^ value >> 15


def main() -> None:
    """Write the header to standard output."""
    tables = {arch.name: numbers(arch) for arch in ARCHES}
    names = sorted({name for table in tables.values() for name in table})
    index = {name: i for i, name in enumerate(names)}
    size = 1 << (2 * len(names) - 1).bit_length()
    slots = [0] * size
    for name in names:
        at = hash_name(name) % size
        while slots[at]:
            at = (at + 1) % size
        slots[at] = index[name] + 1
    versions = sorted({header_version(arch) for arch in ARCHES})
    out = sys.stdout.write
    out("/* Generated by csrc/syscalls/generate.py; do not edit. From the uapi headers of Linux "
        f"{', '.join(versions)},\n * with the calls that Linux {SUPPLEMENT_KERNEL} has beyond them. */\n\n")
    out(f'#define PSC_TABLE_KERNEL "{SUPPLEMENT_KERNEL}"\n#define PSC_TABLE_HEADERS "{", ".join(versions)}"\n')
    out(f"#define NAME_COUNT {len(names)}\n#define SLOT_COUNT {size}\n\n")
    out("static const char *const names[NAME_COUNT] = {\n" + "".join(f'\t"{n}",\n' for n in names) + "};\n\n")
    out("static const uint16_t slots[SLOT_COUNT] = {\n")
    for at in range(0, size, 16):
        out("\t" + " ".join(f"{s}," for s in slots[at:at + 16]) + "\n")
    out("};\n\n/* The first argument of socketcall (below 0x80) or of ipc (above) that makes this call. */\n")
    out(f"#define ID_SOCKETCALL {index['socketcall']}\n#define ID_IPC {index['ipc']}\n")
    out("static const uint8_t multiplexed[NAME_COUNT] = {\n")
    for name, call in sorted({**SOCKETCALL, **{name: call | 0x80 for name, call in IPC.items()}}.items()):
        out(f"\t[{index[name]}] = {call}, /* {name} */\n")
    out("};\n")
    for arch in ARCHES:
        table = tables[arch.name]
        out(f"\n/* {arch.name}: {len(table)} calls */\nstatic const int32_t numbers_{arch.name}[NAME_COUNT] = {{\n")
        cells = [f"{table.get(n, -1):#x}" if table.get(n, -1) >= 4096 else str(table.get(n, -1)) for n in names]
        for at in range(0, len(cells), 16):
            out("\t" + " ".join(f"{c}," for c in cells[at:at + 16]) + "\n")
        out("};\n")
        by_number = sorted(table, key=lambda n: (table[n], n))
        out(f"static const uint16_t order_{arch.name}[] = {{\n")
        for at in range(0, len(by_number), 16):
            out("\t" + " ".join(f"{index[n]}," for n in by_number[at:at + 16]) + "\n")
        out("};\n")
    out("\nstatic const struct arch_table tables[] = {\n")
    for arch in ARCHES:
        out(f'\t{{ "{arch.name}", "{arch.scmp}", {arch.audit}, {str(arch.big).lower()}, {str(arch.wide).lower()}, '
            f"numbers_{arch.name}, order_{arch.name}, {len(tables[arch.name])} }},\n")
    out("};\n")


if __name__ == "__main__":
    main()
