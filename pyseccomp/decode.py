"""System calls as text: arguments by the kind that each has, constants by name.

One line describes a call: its arguments' kinds, in order. What is not described is shown as six hexadecimal numbers. The
constants are those of the uapi headers that Python has too, of this machine's architecture.
"""

from __future__ import annotations

import functools
import mmap
import os
import signal
import socket
import struct
from collections.abc import Callable, Collection, Mapping
from typing import Final

from pyseccomp.syscalls import Arch

Memory = Mapping[int, tuple[bytes, bool]]

_CALLS: Final = """
read fd ptr size|write fd buf2 size|open path open mode|close fd|stat path ptr|fstat fd ptr|lstat path ptr|poll ptr int int
lseek fd off whence|mmap ptr size prot map fd hex|mmap2 ptr size prot map fd hex|mprotect ptr size prot|munmap ptr size|brk ptr
rt_sigaction sig ptr ptr size|rt_sigprocmask sigmask ptr ptr size|rt_sigreturn|ioctl fd hex hex|pread64 fd ptr size off
pwrite64 fd buf2 size off|readv fd ptr int|writev fd ptr int|access path access|pipe ptr|pipe2 ptr open|select int ptr ptr ptr ptr
sched_yield|mremap ptr size size hex ptr|msync ptr size hex|madvise ptr size int|dup fd|dup2 fd fd|dup3 fd fd open|pause
nanosleep ptr ptr|clock_nanosleep int hex ptr ptr|getitimer int ptr|alarm int|setitimer int ptr ptr|getpid|gettid|getppid|getuid
getgid|geteuid|getegid|getpgrp|setsid|getuid32|getgid32|geteuid32|getegid32|sendfile fd fd ptr size|socket family type int
connect fd addr2 size|accept fd ptr ptr|accept4 fd ptr ptr type|sendto fd buf2 size hex addr5 size|recvfrom fd ptr size hex ptr ptr
sendmsg fd ptr hex|recvmsg fd ptr hex|shutdown fd int|bind fd addr2 size|listen fd int|getsockname fd ptr ptr
getpeername fd ptr ptr|socketpair family type int ptr|setsockopt fd int int ptr size|getsockopt fd int int ptr ptr
clone clone ptr ptr ptr hex|clone3 ptr size|fork|vfork|execve path argv ptr|execveat dfd path argv ptr hex|exit int|exit_group int
wait4 pid ptr hex ptr|waitid int pid ptr hex ptr|kill pid sig|tkill pid sig|tgkill pid pid sig|uname ptr
fcntl fd fcntl hex|fcntl64 fd fcntl hex|flock fd hex|fsync fd|fdatasync fd|truncate path off|ftruncate fd off
getdents fd ptr size|getdents64 fd ptr size|getcwd ptr size|chdir path|fchdir fd|rename path path|mkdir path mode|rmdir path
creat path mode|link path path|unlink path|symlink path path|readlink path ptr size|chmod path mode|fchmod fd mode
chown path int int|fchown fd int int|lchown path int int|umask mode|gettimeofday ptr ptr|getrlimit rlimit ptr|setrlimit rlimit ptr
getrusage int ptr|sysinfo ptr|times ptr|setuid int|setgid int|setpgid pid pid|getpgid pid|getsid pid|getgroups int ptr
setgroups int ptr|getresuid ptr ptr ptr|getresgid ptr ptr ptr|capget ptr ptr|capset ptr ptr|sigaltstack ptr ptr|mknod path mode hex
statfs path ptr|fstatfs fd ptr|getpriority int pid|setpriority int pid int|prctl int hex hex hex hex|arch_prctl hex ptr
chroot path|sync|mount path path path hex ptr|umount2 path hex|sethostname ptr size|ptrace int pid hex hex
sched_setaffinity pid size ptr|sched_getaffinity pid size ptr|futex ptr futex int ptr ptr hex|set_tid_address ptr
restart_syscall|epoll_create int|epoll_create1 open|epoll_ctl fd int fd ptr|epoll_wait fd ptr int int
epoll_pwait fd ptr int int ptr size|epoll_pwait2 fd ptr int ptr ptr size|timer_create int ptr ptr|timerfd_create int open
timerfd_settime fd hex ptr ptr|timerfd_gettime fd ptr|clock_gettime int ptr|clock_getres int ptr|clock_settime int ptr
inotify_init1 open|inotify_add_watch fd path hex|inotify_rm_watch fd int|openat dfd path open mode|openat2 dfd path ptr size
mkdirat dfd path mode|mknodat dfd path mode hex|fchownat dfd path int int at|newfstatat dfd path ptr at|fstatat64 dfd path ptr at
unlinkat dfd path at|renameat dfd path dfd path|renameat2 dfd path dfd path hex|linkat dfd path dfd path at|symlinkat path dfd path
readlinkat dfd path ptr size|fchmodat dfd path mode|fchmodat2 dfd path mode at|faccessat dfd path access
faccessat2 dfd path access at|utimensat dfd path ptr at|statx dfd path at hex ptr|pselect6 int ptr ptr ptr ptr ptr
ppoll ptr int ptr ptr size|unshare clone|setns fd clone|set_robust_list ptr size|get_robust_list pid ptr ptr
splice fd ptr fd ptr size hex|tee fd fd size hex|fallocate fd hex off off|eventfd2 int open|signalfd4 fd ptr size open
preadv fd ptr int hex hex|pwritev fd ptr int hex hex|prlimit64 pid rlimit ptr ptr|getrandom ptr size hex|memfd_create path hex
seccomp int hex ptr|copy_file_range fd ptr fd ptr size hex|rseq ptr size hex hex|pidfd_open pid hex|pidfd_send_signal fd sig ptr hex
pidfd_getfd fd fd hex|close_range fd fd hex|io_uring_setup int ptr|io_uring_enter fd int int hex ptr size|membarrier int hex int
setxattr path path ptr size hex|getxattr path path ptr size|lgetxattr path path ptr size|listxattr path ptr size
fadvise64 fd off size int|readahead fd off size|personality hex|sched_getparam pid ptr|sched_getscheduler pid
waitpid pid ptr hex|stat64 path ptr|lstat64 path ptr|fstat64 fd ptr|socketcall int ptr|set_thread_area ptr|getpgrp|mincore ptr size ptr
rt_sigsuspend ptr size|rt_sigtimedwait ptr ptr ptr size|rt_sigpending ptr size|landlock_create_ruleset ptr size hex|landlock_restrict_self fd hex
"""


def _named(module: object, prefix: str, leave_out: str = "\0") -> dict[int, str]:
    found: dict[int, str] = {}
    for name in dir(module):
        value = getattr(module, name)
        if name.startswith(prefix) and not name.startswith(leave_out) and isinstance(value, int) and int(value) >= 0:
            found.setdefault(int(value), name)
    return found


_OPEN: Final = {v: n for v, n in _named(os, "O_").items() if v > 3} | {0o100000: "O_LARGEFILE"}
_CLONE: Final = {
    0x100: "CLONE_VM", 0x200: "CLONE_FS", 0x400: "CLONE_FILES", 0x800: "CLONE_SIGHAND", 0x1000: "CLONE_PIDFD",
    0x2000: "CLONE_PTRACE", 0x4000: "CLONE_VFORK", 0x8000: "CLONE_PARENT", 0x10000: "CLONE_THREAD", 0x20000: "CLONE_NEWNS",
    0x40000: "CLONE_SYSVSEM", 0x80000: "CLONE_SETTLS", 0x100000: "CLONE_PARENT_SETTID", 0x200000: "CLONE_CHILD_CLEARTID",
    0x800000: "CLONE_UNTRACED", 0x1000000: "CLONE_CHILD_SETTID", 0x2000000: "CLONE_NEWCGROUP", 0x4000000: "CLONE_NEWUTS",
    0x8000000: "CLONE_NEWIPC", 0x10000000: "CLONE_NEWUSER", 0x20000000: "CLONE_NEWPID", 0x40000000: "CLONE_NEWNET",
}  # fmt: skip
_AT: Final = {
    0x100: "AT_SYMLINK_NOFOLLOW", 0x200: "AT_REMOVEDIR", 0x400: "AT_SYMLINK_FOLLOW", 0x800: "AT_NO_AUTOMOUNT",
    0x1000: "AT_EMPTY_PATH", 0x2000: "AT_STATX_FORCE_SYNC", 0x4000: "AT_STATX_DONT_SYNC",
}  # fmt: skip
_PROT: Final = {1: "PROT_READ", 2: "PROT_WRITE", 4: "PROT_EXEC"}
_MAP: Final = {v: n for v, n in _named(mmap, "MAP_").items() if v}
_ACCESS: Final = {4: "R_OK", 2: "W_OK", 1: "X_OK"}
_FCNTL: Final = dict(
    enumerate("F_DUPFD F_GETFD F_SETFD F_GETFL F_SETFL F_GETLK F_SETLK F_SETLKW F_SETOWN F_GETOWN".split())
) | {1030: "F_DUPFD_CLOEXEC", 1031: "F_SETPIPE_SZ", 1032: "F_GETPIPE_SZ", 1033: "F_ADD_SEALS", 1034: "F_GET_SEALS"}
_FUTEX: Final = dict(
    enumerate(
        "FUTEX_WAIT FUTEX_WAKE FUTEX_FD FUTEX_REQUEUE FUTEX_CMP_REQUEUE FUTEX_WAKE_OP FUTEX_LOCK_PI FUTEX_UNLOCK_PI"
        " FUTEX_TRYLOCK_PI FUTEX_WAIT_BITSET FUTEX_WAKE_BITSET FUTEX_WAIT_REQUEUE_PI".split()
    )
)
_FAMILIES: Final = _named(socket, "AF_") | {0: "AF_UNSPEC"}
_TYPES: Final = {v: n for v, n in _named(socket, "SOCK_").items() if v < 16}
_RLIMITS: Final = dict(
    enumerate(
        f"RLIMIT_{name}"
        for name in "CPU FSIZE DATA STACK CORE RSS NPROC NOFILE MEMLOCK AS LOCKS SIGPENDING MSGQUEUE NICE RTPRIO RTTIME".split()
    )
)
_SIGNALS: Final = {int(s): s.name for s in signal.Signals}


def _signed(value: int, bits: int = 32) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def flags(value: int, names: Mapping[int, str]) -> str:
    """Join the names of the bits that are set, the widest first; what has none in hexadecimal."""
    found = []
    for bit in sorted(names, reverse=True):
        if bit and value & bit == bit:
            found.append((bit, names[bit]))
            value &= ~bit
    found.sort()
    return "|".join([*(name for _, name in found), *([hex(value)] if value or not found else [])])


def _open_flags(value: int) -> str:
    value &= 0xFFFFFFFF
    mode = ("O_RDONLY", "O_WRONLY", "O_RDWR", "O_ACCMODE")[value & 3]
    return mode + ("|" + flags(value & ~3, _OPEN) if value & ~3 else "")


def _fd_flags(value: int) -> str:
    return flags(value & 0xFFFFFFFF, _OPEN) if value & 0xFFFFFFFF else "0"


def _enum(names: Mapping[int, str]) -> Callable[[int], str]:
    return lambda value: names.get(value & 0xFFFFFFFF, hex(value & 0xFFFFFFFF))


def _bits(names: Mapping[int, str], none: str = "0") -> Callable[[int], str]:
    return lambda value: flags(value & 0xFFFFFFFF, names) if value & 0xFFFFFFFF else none


def _socket_type(value: int) -> str:
    extra = "|".join(name for bit, name in ((0o2000000, "SOCK_CLOEXEC"), (0o4000, "SOCK_NONBLOCK")) if value & bit)
    kind = value & 0xF
    return "|".join(filter(None, [_TYPES.get(kind, str(kind)) if kind else "", extra])) or "0"


def _clone_flags(value: int) -> str:
    end = value & 0xFF
    parts = [flags(value & 0xFFFFFF00, _CLONE)] if value & 0xFFFFFF00 else []
    return "|".join([*parts, *([_SIGNALS.get(end, str(end))] if end else [])]) or "0"


def _futex_op(value: int) -> str:
    more = ("|FUTEX_PRIVATE_FLAG" if value & 128 else "") + ("|FUTEX_CLOCK_REALTIME" if value & 256 else "")
    return _FUTEX.get(value & 127, str(value & 127)) + more


def _whence(value: int) -> str:
    return {0: "SEEK_SET", 1: "SEEK_CUR", 2: "SEEK_END", 3: "SEEK_DATA", 4: "SEEK_HOLE"}.get(value, str(value))


_KINDS: Final[dict[str, Callable[[int], str]]] = {
    "fd": lambda v: str(_signed(v)),
    "int": lambda v: str(_signed(v)),
    "pid": lambda v: str(_signed(v)),
    "dfd": lambda v: "AT_FDCWD" if _signed(v) == -100 else str(_signed(v)),
    "off": lambda v: str(_signed(v, 64)),
    "size": str,
    "hex": lambda v: hex(v) if v > 9 else str(v),
    "ptr": lambda v: hex(v) if v else "NULL",
    "mode": lambda v: f"0{v & 0xFFFFFFFF:o}" if v else "0",
    "open": _open_flags,
    "fdflags": _fd_flags,
    "at": _bits(_AT),
    "prot": _bits(_PROT, "PROT_NONE"),
    "map": _bits(_MAP),
    "access": _bits(_ACCESS, "F_OK"),
    "fcntl": _enum(_FCNTL),
    "futex": _futex_op,
    "family": _enum(_FAMILIES),
    "type": _socket_type,
    "clone": _clone_flags,
    "rlimit": _enum(_RLIMITS),
    "sig": lambda v: _SIGNALS.get(_signed(v), str(_signed(v))),
    "sigmask": _enum({0: "SIG_BLOCK", 1: "SIG_UNBLOCK", 2: "SIG_SETMASK"}),
    "whence": _whence,
}
_NOT_OPEN: Final = ("pipe2", "dup3", "epoll_create1", "timerfd_create", "inotify_init1", "eventfd2", "signalfd4")


@functools.cache
def _signatures() -> dict[str, tuple[str, ...]]:
    found = {}
    for text in _CALLS.replace("\n", "|").split("|"):
        if text:
            name, *kinds = text.split()
            found[name] = tuple("fdflags" if kind == "open" and name in _NOT_OPEN else kind for kind in kinds)
    return found


_NAMES: Final = {
    "fd": "fd", "dfd": "dirfd", "pid": "pid", "off": "offset", "size": "size", "mode": "mode", "open": "flags", "fdflags": "flags",
    "at": "flags", "prot": "prot", "map": "flags", "access": "mode", "fcntl": "cmd", "futex": "op", "family": "domain",
    "type": "type", "clone": "flags", "rlimit": "resource", "sig": "sig", "sigmask": "how", "whence": "whence", "path": "path",
}  # fmt: skip
_MASKS: Final = {"open": {3: "O_ACCMODE", **_OPEN}, "fdflags": _OPEN, "at": _AT, "prot": _PROT, "map": _MAP, "access": _ACCESS, "clone": _CLONE}

Show = Callable[[int, bool], str]
"""A value as text; True if it is a mask, several of whose bits may be asked for."""


def plain(value: int, mask: bool) -> str:
    """Show a number: hexadecimal where that is longer than a digit, or a mask."""
    return hex(value) if value > 9 or mask else str(value)


def argument(calls: Collection[str], index: int) -> tuple[str, Show]:
    """Name an argument (6: the instruction pointer) that means the same in all of some calls, and a way to show its values.

    >>> name, show = argument(["openat"], 2)
    >>> name, show(1, False), show(0o101, True)
    ('flags', 'O_WRONLY', 'O_WRONLY|O_CREAT')
    """
    kinds = {_kind(call, index) for call in calls}
    if len(kinds) != 1 or kinds == {None} or index == 6:
        return ("ip" if index == 6 else f"arg{index}"), plain
    kind = kinds.pop()
    assert kind is not None

    def show(value: int, mask: bool) -> str:
        if mask and kind in _MASKS:
            names = _MASKS[kind]
            if kind == "open" and value & 3 in (1, 2):
                return "|".join([("O_WRONLY", "O_RDWR")[(value & 3) - 1], *([flags(value & ~3, _OPEN)] if value & ~3 else [])])
            return flags(value, names)
        return plain(value, mask) if mask or value >> 32 or kind not in _KINDS else _KINDS[kind](value)

    return _NAMES[kind], show


def _kind(call: str, index: int) -> str | None:
    """What kind an argument is, if it has a name and no other argument of that call has the same."""
    kinds = _signatures().get(call, ())
    if index >= len(kinds) or kinds[index] not in _NAMES:
        return None
    name = _NAMES[kinds[index]]
    return kinds[index] if [_NAMES.get(kind) for kind in kinds].count(name) == 1 else None


@functools.cache
def with_paths() -> frozenset[str]:
    """Return the calls that take the path of a file."""
    return frozenset(name for name, kinds in _signatures().items() if "path" in kinds and name != "memfd_create")


def captures(name: str) -> tuple[int, ...]:
    """Return what the C loop is to record of the memory behind each of the six arguments (enum psc_trace_capture)."""
    kinds = _signatures().get(name, ())
    found = [0] * 6
    for at, kind in enumerate(kinds):
        if kind == "path":
            found[at] = 1
        elif kind == "argv":
            found[at] = 2
        elif kind.startswith(("buf", "addr")):
            found[at] = 8 + int(kind[-1])
    return tuple(found)


def quote(data: bytes, whole: bool = True) -> str:
    """Write bytes as a string of C, as strace does; dots behind one that was cut."""
    plain = {0x22: '\\"', 0x5C: "\\\\", 0x0A: "\\n", 0x09: "\\t", 0x0D: "\\r"}
    text = "".join(
        plain.get(byte) or (chr(byte) if 32 <= byte < 127 else _octal(byte, data[at + 1 : at + 2])) for at, byte in enumerate(data)
    )
    return f'"{text}"' + ("" if whole else "...")


def _octal(byte: int, after: bytes) -> str:
    return f"\\{byte:03o}" if after.isdigit() else f"\\{byte:o}"


def _address(data: bytes) -> str:
    """A socket address, by family."""
    if len(data) < 2:
        return quote(data)
    (family,) = struct.unpack_from("=H", data)
    name = _FAMILIES.get(family, str(family))
    if family == socket.AF_UNIX:
        path = data[2:]
        shown = "@" + quote(path[1:]) if path[:1] == b"\0" and path.strip(b"\0") else quote(path.split(b"\0")[0])
        return f"{{sa_family={name}, sun_path={shown}}}"
    if family == socket.AF_INET and len(data) >= 8:
        port = int.from_bytes(data[2:4], "big")
        return f"{{sa_family={name}, {socket.inet_ntop(socket.AF_INET, data[4:8])}:{port}}}"
    if family == socket.AF_INET6 and len(data) >= 24:
        port = int.from_bytes(data[2:4], "big")
        return f"{{sa_family={name}, [{socket.inet_ntop(socket.AF_INET6, data[8:24])}]:{port}}}"
    return f"{{sa_family={name}, {quote(data[2:])}}}"


def _pointed(kind: str, value: int, memory: tuple[bytes, bool] | None) -> str:
    if memory is None:
        return hex(value) if value else "NULL"
    data, whole = memory
    if kind == "argv":
        words = [quote(word) for word in data.split(b"\0")[:-1]]
        return "[" + ", ".join([*words, *([] if whole else ["..."])]) + "]"
    return _address(data) if kind.startswith("addr") else quote(data, whole)


def format_call(name: str, arch: Arch, args: tuple[int, ...], memory: Memory) -> str:
    """Write a call as strace would at its entry: ``openat(AT_FDCWD, "/etc/passwd", O_RDONLY|O_CLOEXEC)``."""
    kinds = _signatures().get(name)
    if kinds is None:
        shown = [hex(value) for value in args]
    else:
        if name in ("open", "openat") and not args[len(kinds) - 2] & (os.O_CREAT | os.O_TMPFILE & ~os.O_DIRECTORY):
            kinds = kinds[:-1]
        if name == "fcntl" and args[1] in (1, 3):
            kinds = kinds[:-1]
        shown = [
            _KINDS[kind](args[at]) if kind in _KINDS else _pointed(kind, args[at], memory.get(at)) for at, kind in enumerate(kinds)
        ]
    return f"{name}({', '.join(shown)})" + ("" if arch is Arch.native() else f"  [{arch.value}]")
