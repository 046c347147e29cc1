"""System calls as text: arguments by the kind that each has, constants by name.

One line describes a call: its arguments' kinds, in order. A call without a line is shown with six hexadecimal numbers. The names of
constants are those of the call's own architecture (:mod:`pyseccomp.constants`), which need not be this machine's.
"""

from __future__ import annotations

import functools
import socket
import struct
from collections.abc import Callable, Collection, Mapping
from typing import Final

from pyseccomp import constants
from pyseccomp.actions import Action
from pyseccomp.syscalls import Arch

Memory = Mapping[int, tuple[bytes, bool]]

_CALLS: Final = """
read fd ptr size|write fd buf2 size|open path open mode|close fd|stat path ptr|fstat fd ptr|lstat path ptr|poll ptr int int
lseek fd off whence|mmap ptr size prot map fd hex|mmap2 ptr size prot map fd hex|mprotect ptr size prot|munmap ptr size|brk ptr
rt_sigaction sig ptr ptr size|rt_sigprocmask sigmask ptr ptr size|rt_sigreturn|ioctl fd ioctl hex|pread64 fd ptr size off
pwrite64 fd buf2 size off|readv fd ptr int|writev fd ptr int|access path access|pipe ptr|pipe2 ptr open|select int ptr ptr ptr ptr
sched_yield|mremap ptr size size mremap ptr|msync ptr size msync|madvise ptr size advice|dup fd|dup2 fd fd|dup3 fd fd open|pause
nanosleep ptr ptr|clock_nanosleep clock hex ptr ptr|getitimer itimer ptr|alarm int|setitimer itimer ptr ptr|getpid|gettid|getppid|getuid
getgid|geteuid|getegid|getpgrp|setsid|getuid32|getgid32|geteuid32|getegid32|sendfile fd fd ptr size|socket family type int
connect fd addr2 size|accept fd ptr ptr|accept4 fd ptr ptr type|sendto fd buf2 size msg addr5 size|recvfrom fd ptr size msg ptr ptr
sendmsg fd ptr msg|recvmsg fd ptr msg|shutdown fd shut|bind fd addr2 size|listen fd int|getsockname fd ptr ptr
getpeername fd ptr ptr|socketpair family type int ptr|setsockopt fd level int ptr size|getsockopt fd level int ptr ptr
clone clone ptr ptr ptr hex|clone3 ptr size|fork|vfork|execve path argv ptr|execveat dfd path argv ptr hex|exit int|exit_group int
wait4 pid ptr wait ptr|waitid idtype pid ptr wait ptr|kill pid sig|tkill pid sig|tgkill pid pid sig|uname ptr
fcntl fd fcntl hex|fcntl64 fd fcntl hex|flock fd flock|fsync fd|fdatasync fd|truncate path off|ftruncate fd off
getdents fd ptr size|getdents64 fd ptr size|getcwd ptr size|chdir path|fchdir fd|rename path path|mkdir path mode|rmdir path
creat path mode|link path path|unlink path|symlink path path|readlink path ptr size|chmod path mode|fchmod fd mode
chown path int int|fchown fd int int|lchown path int int|umask mode|gettimeofday ptr ptr|getrlimit rlimit ptr|setrlimit rlimit ptr
getrusage rusage ptr|sysinfo ptr|times ptr|setuid int|setgid int|setpgid pid pid|getpgid pid|getsid pid|getgroups int ptr
setgroups int ptr|getresuid ptr ptr ptr|getresgid ptr ptr ptr|capget ptr ptr|capset ptr ptr|sigaltstack ptr ptr|mknod path mode hex
statfs path ptr|fstatfs fd ptr|getpriority prio pid|setpriority prio pid int|prctl prctl hex hex hex hex|arch_prctl archprctl ptr
chroot path|sync|mount path path path mount ptr|umount2 path umount|sethostname ptr size|ptrace ptrace pid hex hex
sched_setaffinity pid size ptr|sched_getaffinity pid size ptr|futex ptr futex int ptr ptr hex|set_tid_address ptr
restart_syscall|epoll_create int|epoll_create1 open|epoll_ctl fd epollctl fd ptr|epoll_wait fd ptr int int
epoll_pwait fd ptr int int ptr size|epoll_pwait2 fd ptr int ptr ptr size|timer_create clock ptr ptr|timerfd_create clock open
timerfd_settime fd hex ptr ptr|timerfd_gettime fd ptr|clock_gettime clock ptr|clock_getres clock ptr|clock_settime clock ptr
inotify_init1 open|inotify_add_watch fd path inotify|inotify_rm_watch fd int|openat dfd path open mode|openat2 dfd path ptr size
mkdirat dfd path mode|mknodat dfd path mode hex|fchownat dfd path int int at|newfstatat dfd path ptr at|fstatat64 dfd path ptr at
unlinkat dfd path at|renameat dfd path dfd path|renameat2 dfd path dfd path rename|linkat dfd path dfd path at|symlinkat path dfd path
readlinkat dfd path ptr size|fchmodat dfd path mode|fchmodat2 dfd path mode at|faccessat dfd path access
faccessat2 dfd path access atacc|utimensat dfd path ptr at|statx dfd path at statx ptr|pselect6 int ptr ptr ptr ptr ptr
ppoll ptr int ptr ptr size|unshare ns|setns fd ns|set_robust_list ptr size|get_robust_list pid ptr ptr
splice fd ptr fd ptr size splice|tee fd fd size splice|fallocate fd falloc off off|eventfd2 int open|signalfd4 fd ptr size open
preadv fd ptr int hex hex|pwritev fd ptr int hex hex|prlimit64 pid rlimit ptr ptr|getrandom ptr size grnd|memfd_create path mfd
seccomp seccomp hex ptr|copy_file_range fd ptr fd ptr size hex|rseq ptr size hex hex|pidfd_open pid hex|pidfd_send_signal fd sig ptr hex
pidfd_getfd fd fd hex|close_range fd fd closerange|io_uring_setup int ptr|io_uring_enter fd int int hex ptr size|membarrier membarrier hex int
setxattr path path ptr size hex|getxattr path path ptr size|lgetxattr path path ptr size|listxattr path ptr size
fadvise64 fd off size fadvice|readahead fd off size|personality hex|sched_getparam pid ptr|sched_getscheduler pid
waitpid pid ptr wait|stat64 path ptr|lstat64 path ptr|fstat64 fd ptr|socketcall int ptr|set_thread_area ptr|getpgrp|mincore ptr size ptr
rt_sigsuspend ptr size|rt_sigtimedwait ptr ptr ptr size|rt_sigpending ptr size|landlock_create_ruleset ptr size hex|landlock_restrict_self fd hex|bpf bpf ptr size|keyctl keyctl hex hex hex hex
reboot int int reboot ptr|swapon path swap|swapoff path|sched_setscheduler pid sched ptr|shmget hex size ipc|semget hex int ipc|msgget hex ipc
open_tree dfd path hex|userfaultfd open|mlockall mlock|pkey_mprotect ptr size prot int|process_madvise fd ptr int advice hex
"""


# The constants of a kind of argument, as a pattern of their names. A flag is a bit or some; one of a choice is the whole value.
_FLAGS: Final = {
    "open": r"O_(?!RDONLY|WRONLY|RDWR|ACCMODE)\w+",
    "at": r"AT_(SYMLINK_NOFOLLOW|REMOVEDIR|SYMLINK_FOLLOW|NO_AUTOMOUNT|EMPTY_PATH|STATX_(FORCE|DONT)_SYNC|RECURSIVE)",
    "atacc": r"AT_(SYMLINK_NOFOLLOW|EACCESS|EMPTY_PATH)",
    "prot": r"PROT_(?!NONE)\w+",
    "map": r"MAP_(?!TYPE|FILE|HUGE_)\w+",
    "access": r"[RWX]_OK",
    "clone": r"CLONE_(?!ARGS|NEWTIME|CLEAR_SIGHAND|INTO_CGROUP)\w+",
    "ns": r"CLONE_(?!ARGS|CLEAR_SIGHAND|INTO_CGROUP)\w+",
    "msync": r"MS_(ASYNC|INVALIDATE|SYNC)",
    "mount": r"MS_(?!ASYNC|INVALIDATE|SYNC|MGC|RMT)\w+|MS_SYNCHRONOUS",
    "umount": r"MNT_(FORCE|DETACH|EXPIRE)|UMOUNT_NOFOLLOW",
    "mremap": r"MREMAP_\w+",
    "flock": r"LOCK_(SH|EX|NB|UN)",
    "rename": r"RENAME_\w+",
    "splice": r"SPLICE_F_\w+",
    "falloc": r"FALLOC_FL_\w+",
    "grnd": r"GRND_\w+",
    "mfd": r"MFD_(?!HUGE_)\w+",
    "closerange": r"CLOSE_RANGE_\w+",
    "msg": r"MSG_(?!TRYHARD|PROBE|EOF)\w+",
    "statx": r"STATX_(?!ATTR_|ALL|BASIC_STATS|_)\w+",
    "wait": r"W(NOHANG|UNTRACED|EXITED|CONTINUED|NOWAIT)",
    "inotify": r"IN_(ACCESS|MODIFY|ATTRIB|CLOSE_\w+|OPEN|MOVED_\w+|CREATE|DELETE\w*|MOVE_SELF|ONLYDIR|DONT_FOLLOW|EXCL_UNLINK|MASK_\w+|ONESHOT|ISDIR)",
    "swap": r"SWAP_FLAG_(?!PRIO)\w+",
    "mlock": r"MCL_\w+",
    "ipc": r"IPC_(CREAT|EXCL)",
}
_CHOICES: Final = {
    "fcntl": r"F_(DUPFD\w*|[GS]ETFD|[GS]ETFL|[GS]ETLKW?(64)?|[GS]ETOWN(_EX)?|GETOWNER_UIDS|[GS]ETSIG|OFD_\w+|[GS]ETLEASE|[GS]ETDELEG|NOTIFY"
    r"|CREATED_QUERY|CANCELLK|[GS]ETPIPE_SZ|ADD_SEALS|GET_SEALS|[GS]ET_\w*RW_HINT)",
    "futex": r"FUTEX_(WAIT|WAKE|FD|REQUEUE|CMP_REQUEUE|WAKE_OP|LOCK_PI2?|UNLOCK_PI|TRYLOCK_PI|WAIT_BITSET|WAKE_BITSET|WAIT_REQUEUE_PI|CMP_REQUEUE_PI)",
    "family": r"AF_\w+",
    "type": r"SOCK_(STREAM|DGRAM|RAW|RDM|SEQPACKET|DCCP|PACKET)",
    "rlimit": r"RLIMIT_\w+",
    "sig": r"SIG(?!STKSZ|UNUSED)[A-Z0-9]+",
    "sigmask": r"SIG_(BLOCK|UNBLOCK|SETMASK)",
    "whence": r"SEEK_(SET|CUR|END|DATA|HOLE)",
    "advice": r"MADV_\w+",
    "fadvice": r"POSIX_FADV_\w+",
    "prctl": r"PR_((?!SET_MM_|SET_VMA_|SET_PTRACER_)[GS]ET_\w+|CAPBSET_(READ|DROP)|CAP_AMBIENT|MCE_KILL(_GET)?|TASK_PERF_EVENTS_\w+|MPX_\w+"
    r"|SVE_[GS]ET_VL|SME_[GS]ET_VL|PAC_RESET_KEYS|PAC_[GS]ET_ENABLED_KEYS|SCHED_CORE|RISCV_V_[GS]ET_CONTROL|RISCV_SET_ICACHE_FLUSH_CTX"
    r"|PPC_[GS]ET_DEXCR|LOCK_SHADOW_STACK_STATUS|TIMER_CREATE_RESTORE_IDS|FUTEX_HASH)",
    "archprctl": r"ARCH_(?!SHSTK_(SHSTK|WRSS)|XCOMP)\w+",
    "epollctl": r"EPOLL_CTL_\w+",
    "seccomp": r"SECCOMP_(SET_MODE_\w+|GET_ACTION_AVAIL|GET_NOTIF_SIZES)",
    "ptrace": r"PTRACE_(?!O_|EVENT|SYSCALL_INFO|PEEKSIGINFO_)\w+",
    "bpf": r"BPF_((MAP|PROG|OBJ|BTF|LINK)_(CREATE|LOOKUP_ELEM|UPDATE_ELEM|DELETE_ELEM|GET_NEXT_KEY|LOAD|PIN|GET|ATTACH|DETACH|TEST_RUN|GET_NEXT_ID"
    r"|GET_FD_BY_ID|GET_INFO_BY_FD|QUERY|LOOKUP_AND_DELETE_ELEM|FREEZE|LOOKUP_BATCH|LOOKUP_AND_DELETE_BATCH|UPDATE_BATCH|DELETE_BATCH|UPDATE"
    r"|BIND_MAP|STREAM_READ_BY_FD)|RAW_TRACEPOINT_OPEN|TASK_FD_QUERY|ENABLE_STATS|ITER_CREATE|TOKEN_CREATE)",
    "keyctl": r"KEYCTL_(?!CAPS\d|SUPPORTS_|MOVE_EXCL)\w+",
    "sched": r"SCHED_(OTHER|FIFO|RR|BATCH|IDLE|DEADLINE|EXT)",
    "clock": r"CLOCK_(REALTIME|MONOTONIC|PROCESS_CPUTIME_ID|THREAD_CPUTIME_ID|MONOTONIC_RAW|\w+_COARSE|BOOTTIME|\w+_ALARM|TAI)",
    "itimer": r"ITIMER_\w+",
    "shut": r"SHUT_\w+",
    "level": r"SOL_\w+",
    "rusage": r"RUSAGE_(SELF|CHILDREN|THREAD)",
    "prio": r"PRIO_(PROCESS|PGRP|USER)",
    "idtype": r"P_(ALL|PID|PGID|PIDFD)",
    "membarrier": r"MEMBARRIER_CMD_(?!FLAG|SHARED)\w+",
    "reboot": r"LINUX_REBOOT_CMD_\w+",
}
_NONE: Final = {"prot": "PROT_NONE", "access": "F_OK"}
"""What no flag at all is called."""


@functools.lru_cache(1024)
def _names(kind: str, arch: Arch) -> Mapping[int, str]:
    """Return the names of the values that a kind of argument has on an architecture, as unsigned numbers of 32 bits."""
    if kind == "ioctl":
        return constants.ioctl_requests(arch)
    found = constants.family(_FLAGS["open" if kind == "fdflags" else kind] if kind in _FLAGS or kind == "fdflags" else _CHOICES[kind], arch)
    return {value & 0xFFFFFFFF: name for value, name in found.items() if -(1 << 31) <= value < 1 << 32}


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


def _open_flags(value: int, arch: Arch) -> str:
    value &= 0xFFFFFFFF
    mode = ("O_RDONLY", "O_WRONLY", "O_RDWR", "O_ACCMODE")[value & 3]
    return mode + ("|" + flags(value & ~3, _names("open", arch)) if value & ~3 else "")


def _choice(kind: str, value: int, arch: Arch) -> str:
    value = value if kind == "ioctl" else value & 0xFFFFFFFF
    return _names(kind, arch).get(value, hex(value) if value > 9 else str(value))


def _bits(kind: str, value: int, arch: Arch) -> str:
    value &= 0xFFFFFFFF
    return flags(value, _names(kind, arch)) if value else _NONE.get(kind, "0")


def _socket_type(value: int, arch: Arch) -> str:
    value &= 0xFFFFFFFF
    kind, extra = value & 0xF, []
    for name in ("SOCK_CLOEXEC", "SOCK_NONBLOCK"):
        bit = constants.find(name, arch) or 0
        if value & bit:
            extra.append(name)
            value &= ~bit
    if value & ~0xF:
        extra.append(hex(value & ~0xF))
    return "|".join([*([_names("type", arch).get(kind, str(kind))] if kind else []), *extra]) or "0"


def _clone_flags(value: int, arch: Arch) -> str:
    end = value & 0xFF
    parts = [flags(value & 0xFFFFFF00, _names("clone", arch))] if value & 0xFFFFFF00 else []
    return "|".join([*parts, *([_names("sig", arch).get(end, str(end))] if end else [])]) or "0"


def _futex_op(value: int, arch: Arch) -> str:
    more = ("|FUTEX_PRIVATE_FLAG" if value & 128 else "") + ("|FUTEX_CLOCK_REALTIME" if value & 256 else "")
    return _names("futex", arch).get(value & 127, str(value & 127)) + more


_PLAIN: Final[dict[str, Callable[[int], str]]] = {
    "fd": lambda v: str(_signed(v)),
    "int": lambda v: str(_signed(v)),
    "pid": lambda v: str(_signed(v)),
    "dfd": lambda v: "AT_FDCWD" if _signed(v) == -100 else str(_signed(v)),
    "off": lambda v: str(_signed(v, 64)),
    "size": str,
    "hex": lambda v: hex(v) if v > 9 else str(v),
    "ptr": lambda v: hex(v) if v else "NULL",
    "mode": lambda v: f"0{v & 0xFFFFFFFF:o}" if v else "0",
}
_SPECIAL: Final[dict[str, Callable[[int, Arch], str]]] = {
    "open": _open_flags,
    "type": _socket_type,
    "clone": _clone_flags,
    "futex": _futex_op,
    "sig": lambda v, arch: _names("sig", arch).get(_signed(v), str(_signed(v))),
}


def _show(kind: str, value: int, arch: Arch) -> str | None:
    """Show a value of a kind; None: it is a pointer, whose memory is shown."""
    if kind in _PLAIN:
        return _PLAIN[kind](value)
    if kind in _SPECIAL:
        return _SPECIAL[kind](value, arch)
    if kind in _FLAGS or kind == "fdflags":
        return _bits(kind, value, arch)
    return _choice(kind, value, arch) if kind in _CHOICES or kind == "ioctl" else None


_NOT_OPEN: Final = ("pipe2", "dup3", "epoll_create1", "timerfd_create", "inotify_init1", "eventfd2", "signalfd4", "userfaultfd")


@functools.cache
def _signatures() -> dict[str, tuple[str, ...]]:
    found = {}
    for text in _CALLS.replace("\n", "|").split("|"):
        if text:
            name, *kinds = text.split()
            found[name] = tuple("fdflags" if kind == "open" and name in _NOT_OPEN else kind for kind in kinds)
    return found


_OTHERWISE: Final[dict[Arch, dict[str, tuple[str, ...]]]] = {
    **dict.fromkeys((Arch.S390, Arch.S390X), {"clone": ("ptr", "clone", "ptr", "ptr", "hex"), "mmap": ("ptr",)}),
    **dict.fromkeys((Arch.X86, Arch.M68K), {"mmap": ("ptr",)}),
}
"""Calls whose arguments an architecture has in another order, or in memory."""


def _signature(call: str, arch: Arch | None) -> tuple[str, ...] | None:
    """Return the kinds of a call's arguments, None if they are not described."""
    return (_OTHERWISE.get(arch, {}) if arch is not None else {}).get(call) or _signatures().get(call)



_NAMES: Final = {
    "fd": "fd", "dfd": "dirfd", "pid": "pid", "off": "offset", "size": "size", "mode": "mode", "access": "mode", "fcntl": "cmd",
    "futex": "op", "family": "domain", "type": "type", "rlimit": "resource", "sig": "sig", "sigmask": "how", "whence": "whence",
    "path": "path", "prot": "prot", "advice": "advice", "fadvice": "advice", "prctl": "option", "archprctl": "code", "epollctl": "op",
    "seccomp": "operation", "ptrace": "request", "bpf": "cmd", "keyctl": "operation", "sched": "policy", "clock": "clockid",
    "itimer": "which", "shut": "how", "level": "level", "rusage": "who", "prio": "which", "idtype": "idtype", "membarrier": "cmd",
    "reboot": "cmd", "ioctl": "request", "flock": "operation", "wait": "options", "falloc": "mode", "statx": "mask", "inotify": "mask",
    **dict.fromkeys(("open", "fdflags", "at", "atacc", "map", "clone", "ns", "msync", "mount", "umount", "mremap", "rename", "splice"), "flags"),
    **dict.fromkeys(("grnd", "mfd", "closerange", "msg", "swap", "mlock", "ipc"), "flags"),
}  # fmt: skip

Show = Callable[[int, bool], str]
"""A value as text; True if it is a mask, several of whose bits may be asked for."""


_ALL_BITS: Final = (1 << 64) - 1


def plain(value: int, mask: bool) -> str:
    """Show a number: hexadecimal where that is longer than a digit, or a mask."""
    return hex(value) if value > 9 or mask else str(value)


def answer(word: int, arch: Arch | None) -> str:
    """Show a filter's answer, an errno with the name that it has on arch: ``ERRNO(38) ENOSYS``."""
    action = Action(word)
    name = constants.errno_name(action.data, arch) if arch is not None and action.name == "ERRNO" else None
    return repr(action) if name is None else f"{action!r} {name}"


def argument(calls: Collection[str], index: int, arch: Arch | None = None) -> tuple[str, Show]:
    """Name an argument (6: the instruction pointer) that means the same in all of some calls, and a way to show its values.

    The names of values are those of arch. Without one (of calls of no known architecture) values are shown as numbers.

    >>> name, show = argument(["openat"], 2, Arch.X86_64)
    >>> name, show(1, False), show(0o101, True)
    ('flags', 'O_WRONLY', 'O_WRONLY|O_CREAT')
    """
    kinds = {_kind(call, index, arch) for call in calls}
    if len(kinds) != 1 or kinds == {None} or index == 6:
        return ("ip" if index == 6 else f"arg{index}"), plain
    kind = kinds.pop()
    assert kind is not None
    if arch is None:
        return _NAMES[kind], plain
    where = arch

    def show(value: int, mask: bool) -> str:
        whole = _ALL_BITS if value >> 32 else _ALL_BITS >> 32
        if mask and (kind in _FLAGS or kind == "fdflags") and value.bit_count() > 16 and value != whole:
            lacks = show(whole & ~value, True)
            return f"~({lacks})" if "|" in lacks else f"~{lacks}"
        if mask and kind == "open":
            if value & 3 in (1, 2):
                rest = [flags(value & ~3, _names("open", where))] if value & ~3 else []
                return "|".join([("O_WRONLY", "O_RDWR")[(value & 3) - 1], *rest])
            return flags(value, {3: "O_ACCMODE", **_names("open", where)})
        if mask and (kind in _FLAGS or kind == "fdflags"):
            return flags(value, _names(kind, where))
        text = None if mask or value >> 32 else _show(kind, value, where)
        return plain(value, mask) if text is None else text

    return _NAMES[kind], show


def _kind(call: str, index: int, arch: Arch | None) -> str | None:
    """What kind an argument is, if it has a name and no other argument of that call has the same."""
    kinds = _signature(call, arch) or ()
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


def _address(data: bytes, arch: Arch) -> str:
    """A socket address, by family."""
    if len(data) < 2:
        return quote(data)
    (family,) = struct.unpack_from("=H", data)
    name = _names("family", arch).get(family, str(family))
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


def _pointed(kind: str, value: int, memory: tuple[bytes, bool] | None, arch: Arch) -> str:
    if memory is None:
        return hex(value) if value else "NULL"
    data, whole = memory
    if kind == "argv":
        words = [quote(word) for word in data.split(b"\0")[:-1]]
        return "[" + ", ".join([*words, *([] if whole else ["..."])]) + "]"
    return _address(data, arch) if kind.startswith("addr") else quote(data, whole)


def format_call(name: str, arch: Arch, args: tuple[int, ...], memory: Memory) -> str:
    """Write a call as strace would at its entry: ``openat(AT_FDCWD, "/etc/passwd", O_RDONLY|O_CLOEXEC)``."""
    kinds = _signature(name, arch)
    if kinds is None:
        shown = [hex(value) for value in args]
    else:
        if name in ("open", "openat") and not args[len(kinds) - 2] & _creates(arch):
            kinds = kinds[:-1]
        if name == "fcntl" and args[1] in (1, 3):
            kinds = kinds[:-1]
        shown = []
        for at, kind in enumerate(kinds):
            text = _show(kind, args[at], arch)
            shown.append(_pointed(kind, args[at], memory.get(at), arch) if text is None else text)
    return f"{name}({', '.join(shown)})" + ("" if arch is Arch.native() else f"  [{arch.value}]")


@functools.cache
def _creates(arch: Arch) -> int:
    """Return the flags with which open(2) reads a mode."""
    create, unnamed, folder = (constants.find(name, arch) or 0 for name in ("O_CREAT", "O_TMPFILE", "O_DIRECTORY"))
    return create | unnamed & ~folder
