#!/usr/bin/env python3
"""Generate pyseccomp/constants.txt, the named constants of every architecture, from kernel headers.

Run by hand when the tables shall follow a newer kernel; the result is checked in. The script needs an x86 gcc (-m64, -m32, -mx32;
no cross compiler, nothing is linked) and the headers of all ports, as Debian 13's linux-libc-dev has them:

    python3 csrc/syscalls/generate_constants.py [--root DIR] > pyseccomp/constants.txt

DIR is where a package was unpacked (dpkg -x), / if it is installed. gcc runs without its own macros and with those of the port, so
the values are what a C program of that port gets. The size of a structure, which an ioctl request contains, follows from the sizes
of the port's types and from their alignment; PORTS says how an x86 gcc is told both. (All values were compared once with those that
cross compilers for arm, aarch64, m68k, mips, hppa, powerpc, riscv64, s390x and sh4 compute.)

HEADERS are read whole. Of the other headers only the requests of ioctl(2) are taken. SUPPLEMENT has what user space passes to the
kernel, but no header of the kernel exports; C libraries have these values in headers of their own.
"""

from __future__ import annotations

import argparse
import os
import re
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

WIDE = ("__LP64__", "_LP64", "__SIZEOF_LONG__=8", "__SIZEOF_POINTER__=8")
NARROW = ("__ILP32__", "__SIZEOF_LONG__=4", "__SIZEOF_POINTER__=4")
ALIGN8 = ("-m32", "-malign-double")
"""32-bit ports that align 64-bit members to 8 bytes; i386 and sh align them to 4."""


@dataclass(frozen=True)
class Port:
    """One ABI: the folder of its asm/ headers, the gcc options that give its types, and its macros."""

    name: str
    folder: str
    options: tuple[str, ...]
    defines: tuple[str, ...]
    pack: int = 0
    unknown: tuple[str, ...] = ()
    """Requests whose structure has a member with an alignment of its own, which pack would take away."""


def mips(name: str, folder: str, abi: int, big: bool) -> Port:
    """Return a port of MIPS; abi is 1 (o32), 2 (n32) or 3 (n64)."""
    end = ("__MIPSEB__", "_MIPSEB", "__BIG_ENDIAN__") if big else ("__MIPSEL__", "_MIPSEL", "__LITTLE_ENDIAN__")
    sizes = ("__LP64__", "_LP64", "__SIZEOF_LONG__=8", "__SIZEOF_POINTER__=8", "_MIPS_SZLONG=64") if abi == 3 else (
        "__SIZEOF_LONG__=4", "__SIZEOF_POINTER__=4", "_MIPS_SZLONG=32")
    abis: tuple[str, ...] = ("_ABIO32=1", "_ABIN32=2", "_ABI64=3", f"_MIPS_SIM={abi}")
    if abi > 1:
        abis += ("__mips64",)
    return Port(name, folder, ("-m64",) if abi == 3 else ALIGN8, ("__mips__", "__mips=64", *abis, *end, *sizes))


PORTS = (
    Port("x86_64", "x86_64-linux-gnu", ("-m64",), ("__x86_64__", *WIDE)),
    Port("x86", "i386-linux-gnu", ("-m32",), ("__i386__", *NARROW)),
    Port("x32", "x86_64-linux-gnux32", ("-mx32",), ("__x86_64__", *NARROW)),
    Port("arm", "arm-linux-gnueabihf", ALIGN8, ("__arm__", "__ARM_EABI__", "__ARMEL__", *NARROW)),
    Port("aarch64", "aarch64-linux-gnu", ("-m64",), ("__aarch64__", "__AARCH64EL__", *WIDE)),
    Port("loongarch64", "loongarch64-linux-gnu", ("-m64",), ("__loongarch__", "__loongarch64", "__loongarch_lp64", *WIDE)),
    Port("m68k", "m68k-linux-gnu", ("-m32",), ("__m68k__", *NARROW), pack=2,
         unknown=("HFI1_IOCTL_CTXT_INFO", "KCOV_REMOTE_ENABLE", "PPPIOCGL2TPSTATS")),
    mips("mips", "mips-linux-gnu", 1, True),
    mips("mipsel", "mipsel-linux-gnu", 1, False),
    mips("mips64", "mips64-linux-gnuabi64", 3, True),
    mips("mipsel64", "mips64el-linux-gnuabi64", 3, False),
    mips("mips64n32", "mips64-linux-gnuabi64", 2, True),
    mips("mipsel64n32", "mips64el-linux-gnuabi64", 2, False),
    Port("parisc", "hppa-linux-gnu", ALIGN8, ("__hppa__", "__BIG_ENDIAN__", *NARROW)),
    Port("parisc64", "hppa-linux-gnu", ("-m64",), ("__hppa__", "__hppa64__", "__BIG_ENDIAN__", *WIDE)),
    Port("ppc", "powerpc-linux-gnu", ALIGN8, ("__powerpc__", "__BIG_ENDIAN__", "_BIG_ENDIAN", *NARROW)),
    Port("ppc64", "powerpc64-linux-gnu", ("-m64",), ("__powerpc__", "__powerpc64__", "__BIG_ENDIAN__", "_BIG_ENDIAN", *WIDE)),
    Port("ppc64le", "powerpc64le-linux-gnu", ("-m64",), ("__powerpc__", "__powerpc64__", "__LITTLE_ENDIAN__", "_LITTLE_ENDIAN", *WIDE)),
    Port("riscv64", "riscv64-linux-gnu", ("-m64",), ("__riscv", "__riscv_xlen=64", *WIDE)),
    Port("s390", "s390x-linux-gnu", ALIGN8, ("__s390__", "__BIG_ENDIAN__", *NARROW)),
    Port("s390x", "s390x-linux-gnu", ("-m64",), ("__s390__", "__s390x__", "__BIG_ENDIAN__", *WIDE)),
    Port("sh", "sh4-linux-gnu", ("-m32",), ("__sh__", "__LITTLE_ENDIAN__", *NARROW)),
    Port("sheb", "sh4-linux-gnu", ("-m32",), ("__sh__", "__BIG_ENDIAN__", *NARROW)),
)
WIDE_PORTS = frozenset(port.name for port in PORTS if "__LP64__" in port.defines)

HEADERS = """
asm/errno asm/fcntl asm/ioctls asm/mman asm/poll asm/prctl asm/ptrace asm/resource asm/siginfo asm/signal asm/socket asm/sockios asm/stat
asm/termbits asm/termios linux/aio_abi linux/bpf linux/can linux/can/raw linux/capability linux/close_range linux/errqueue linux/eventfd linux/eventpoll
linux/fadvise linux/falloc linux/fanotify linux/fcntl linux/fs linux/fscrypt linux/futex linux/if linux/if_packet
linux/if_tun linux/in linux/in6 linux/inotify linux/io_uring linux/ioprio linux/ipc linux/kcmp linux/kexec linux/keyctl
linux/landlock linux/limits linux/loop linux/lsm linux/membarrier linux/memfd linux/mempolicy linux/mman linux/module linux/mount
linux/mqueue linux/msg linux/net linux/netlink linux/nsfs linux/openat2 linux/perf_event linux/personality linux/pidfd linux/poll
linux/prctl linux/ptrace linux/quota linux/random linux/reboot linux/resource linux/rseq linux/sched linux/sched/types linux/seccomp
linux/securebits linux/sem linux/shm linux/signal linux/signalfd linux/socket linux/sockios linux/stat linux/tcp
linux/termios linux/time linux/timerfd linux/timex linux/tty linux/udp linux/un linux/userfaultfd linux/vm_sockets linux/wait
linux/xattr
""".split()
IOCTL_HEADERS = """
drm/amdgpu_drm drm/drm drm/etnaviv_drm drm/i915_drm drm/lima_drm drm/msm_drm drm/nouveau_drm drm/panfrost_drm drm/radeon_drm
drm/v3d_drm drm/vc4_drm drm/vgem_drm drm/virtgpu_drm drm/xe_drm linux/android/binder linux/android/binderfs linux/auto_fs linux/binfmts
linux/blk-crypto linux/blkdev linux/blkpg linux/blktrace_api linux/blkzoned linux/bsg linux/btrfs linux/cachefiles linux/cdrom
linux/cec linux/counter linux/cxl_mem linux/dm-ioctl linux/fd linux/dma-buf linux/dma-heap linux/dvb/ca linux/dvb/dmx linux/dvb/frontend
linux/dvb/net linux/ext4 linux/f2fs linux/fb linux/fiemap linux/firewire-cdev linux/fsmap linux/fsverity linux/fuse linux/gpio
linux/gsmmux linux/hdreg linux/hiddev linux/hidraw linux/hpet linux/i2c-dev linux/if_bonding linux/if_bridge linux/if_ppp
linux/if_pppox linux/if_vlan linux/iio/buffer linux/iio/events linux/input linux/iommufd linux/ipmi linux/joystick linux/kcov
linux/kd linux/kvm linux/lirc linux/lp linux/media linux/mei linux/mmc/ioctl linux/mroute linux/msdos_fs linux/mshv linux/mtio linux/nbd
linux/ndctl linux/nitro_enclaves linux/ntsync linux/nvme_ioctl linux/nvram linux/ppdev linux/ppp-ioctl linux/pps linux/pr
linux/psp-sev linux/ptp_clock linux/raid/md_u linux/rfkill linux/rpmsg linux/rtc linux/sed-opal linux/sev-guest linux/spi/spidev
linux/serial linux/stm linux/suspend_ioctls linux/sync_file linux/tdx-guest linux/tee linux/tiocl linux/udmabuf linux/uhid linux/uinput
linux/usb/cdc-wdm linux/usb/functionfs linux/usb/raw_gadget linux/usb/tmc linux/usbdevice_fs linux/user_events linux/uvcvideo
linux/v4l2-subdev linux/vboxguest linux/vduse linux/vfio linux/vhost linux/videodev2 linux/vt linux/vtpm_proxy linux/watch_queue
linux/watchdog linux/wireless mtd/mtd-abi mtd/ubi-user rdma/rdma_user_ioctl sound/asound
sound/asequencer sound/compress_offload
""".split()

# Headers of a C library that the kernel's ask for: as much of them as is needed to know the size of a structure.
STUBS = {
    "sys/socket.h": "#include <linux/socket.h>\ntypedef unsigned short sa_family_t;\ntypedef unsigned int socklen_t;\n"
    "struct sockaddr { sa_family_t sa_family; char sa_data[14]; };\n",
    "sys/time.h": "#include <linux/time.h>\ntypedef __kernel_old_time_t time_t;\n",
    "stddef.h": "typedef __SIZE_TYPE__ size_t;\n#undef NULL\n#define NULL ((void *)0)\n",
    "stdint.h": "#include <linux/types.h>\n" + "".join(
        f"typedef __{sign}{bits} {name}int{bits}_t;\n" for sign, name in (("u", "u"), ("s", "")) for bits in (8, 16, 32, 64))
    + "typedef unsigned long uintptr_t;\n",
    "time.h": "#include <sys/time.h>\n",
}
EMPTY_STUBS = ("sys/ioctl.h", "unistd.h", "sys/types.h", "limits.h", "string.h", "stdio.h", "stdlib.h", "errno.h", "endian.h")

FAMILIES = """
UNSPEC 0 UNIX 1 LOCAL 1 FILE 1 INET 2 AX25 3 IPX 4 APPLETALK 5 NETROM 6 BRIDGE 7 ATMPVC 8 X25 9 INET6 10 ROSE 11 DECnet 12
NETBEUI 13 SECURITY 14 KEY 15 NETLINK 16 ROUTE 16 PACKET 17 ASH 18 ECONET 19 ATMSVC 20 RDS 21 SNA 22 IRDA 23 PPPOX 24
WANPIPE 25 LLC 26 IB 27 MPLS 28 CAN 29 TIPC 30 BLUETOOTH 31 IUCV 32 RXRPC 33 ISDN 34 PHONET 35 IEEE802154 36 CAIF 37 ALG 38
NFC 39 VSOCK 40 KCM 41 QIPCRTR 42 SMC 43 XDP 44 MCTP 45
""".split()
LEVELS = """
IP 0 TCP 6 UDP 17 IPV6 41 ICMPV6 58 SCTP 132 UDPLITE 136 RAW 255 IPX 256 AX25 257 ATALK 258 NETROM 259 ROSE 260 DECNET 261 X25 262
PACKET 263 ATM 264 AAL 265 IRDA 266 NETBEUI 267 LLC 268 DCCP 269 NETLINK 270 TIPC 271 RXRPC 272 PPPOL2TP 273 BLUETOOTH 274
PNPIPE 275 RDS 276 IUCV 277 CAIF 278 ALG 279 NFC 280 KCM 281 TLS 282 XDP 283 MPTCP 284 MCTP 285 SMC 286 VSOCK 287
""".split()
MESSAGES = """
OOB 0x1 PEEK 0x2 DONTROUTE 0x4 TRYHARD 0x4 CTRUNC 0x8 PROBE 0x10 PROXY 0x10 TRUNC 0x20 DONTWAIT 0x40 EOR 0x80 WAITALL 0x100
FIN 0x200 EOF 0x200 SYN 0x400 CONFIRM 0x800 RST 0x1000 ERRQUEUE 0x2000 NOSIGNAL 0x4000 MORE 0x8000 WAITFORONE 0x10000 BATCH 0x40000
SOCK_DEVMEM 0x2000000 ZEROCOPY 0x4000000 FASTOPEN 0x20000000 CMSG_CLOEXEC 0x40000000
""".split()
SUPPLEMENT = """
#ifdef __mips__
#define SOCK_DGRAM 1
#define SOCK_STREAM 2
#else
#define SOCK_STREAM 1
#define SOCK_DGRAM 2
#endif
#define SOCK_RAW 3
#define SOCK_RDM 4
#define SOCK_SEQPACKET 5
#define SOCK_DCCP 6
#define SOCK_PACKET 10
#define SOCK_CLOEXEC O_CLOEXEC
#ifndef SOCK_NONBLOCK
#define SOCK_NONBLOCK O_NONBLOCK
#endif
#define SCM_RIGHTS 1
#define SCM_CREDENTIALS 2
#define IPV6_JOIN_GROUP IPV6_ADD_MEMBERSHIP
#define IPV6_LEAVE_GROUP IPV6_DROP_MEMBERSHIP
#define BTPROTO_L2CAP 0
#define BTPROTO_HCI 1
#define BTPROTO_SCO 2
#define BTPROTO_RFCOMM 3
#define BTPROTO_BNEP 4
#define BTPROTO_CMTP 5
#define BTPROTO_HIDP 6
#define BTPROTO_AVDTP 7
#define BTPROTO_ISO 8
#define SHUT_RD 0
#define SHUT_WR 1
#define SHUT_RDWR 2
#define F_OK 0
#define X_OK 1
#define W_OK 2
#define R_OK 4
#define MNT_FORCE 1
#define MNT_DETACH 2
#define MNT_EXPIRE 4
#define UMOUNT_NOFOLLOW 8
#define SWAP_FLAG_PREFER 0x8000
#define SWAP_FLAG_PRIO_MASK 0x7fff
#define SWAP_FLAG_DISCARD 0x10000
#define SWAP_FLAG_DISCARD_ONCE 0x20000
#define SWAP_FLAG_DISCARD_PAGES 0x40000
#define SPLICE_F_MOVE 1
#define SPLICE_F_NONBLOCK 2
#define SPLICE_F_MORE 4
#define SPLICE_F_GIFT 8
#define O_ASYNC FASYNC
#define O_RSYNC O_SYNC
#define O_FSYNC O_SYNC
#define MAP_ANON MAP_ANONYMOUS
#ifndef MAP_FILE
#define MAP_FILE 0
#endif
#ifndef ENOTSUP
#define ENOTSUP EOPNOTSUPP
#endif
#ifndef SIGCLD
#define SIGCLD SIGCHLD
#endif
#define SCHED_OTHER SCHED_NORMAL
#define RLIMIT_OFILE RLIMIT_NOFILE
#define S_IREAD S_IRUSR
#define S_IWRITE S_IWUSR
#define S_IEXEC S_IXUSR
#if !defined(F_GETLK64) && __SIZEOF_LONG__ == 4
#define F_GETLK64 12
#define F_SETLK64 13
#define F_SETLKW64 14
#elif !defined(F_GETLK64)
#define F_GETLK64 F_GETLK
#define F_SETLK64 F_SETLK
#define F_SETLKW64 F_SETLKW
#endif
#define SCSI_IOCTL_SEND_COMMAND 0x1
#define SCSI_IOCTL_GET_IDLUN 0x5382
#define SCSI_IOCTL_PROBE_HOST 0x5385
#define SCSI_IOCTL_GET_BUS_NUMBER 0x5386
#define SCSI_IOCTL_GET_PCI 0x5387
#define SG_SET_TIMEOUT 0x2201
#define SG_GET_TIMEOUT 0x2202
#define SG_EMULATED_HOST 0x2203
#define SG_SET_COMMAND_Q 0x2271
#define SG_GET_RESERVED_SIZE 0x2272
#define SG_SET_RESERVED_SIZE 0x2275
#define SG_GET_SCSI_ID 0x2276
#define SG_GET_SG_TABLESIZE 0x227f
#define SG_GET_VERSION_NUM 0x2282
#define SG_NEXT_CMD_LEN 0x2283
#define SG_SCSI_RESET 0x2284
#define SG_IO 0x2285
#define RB_AUTOBOOT LINUX_REBOOT_CMD_RESTART
#define RB_HALT_SYSTEM LINUX_REBOOT_CMD_HALT
#define RB_ENABLE_CAD LINUX_REBOOT_CMD_CAD_ON
#define RB_DISABLE_CAD LINUX_REBOOT_CMD_CAD_OFF
#define RB_POWER_OFF LINUX_REBOOT_CMD_POWER_OFF
#define RB_SW_SUSPEND LINUX_REBOOT_CMD_SW_SUSPEND
#define RB_KEXEC LINUX_REBOOT_CMD_KEXEC
"""


def pairs(words: list[str]) -> Iterator[tuple[str, str]]:
    """Yield each name with the number behind it."""
    return zip(words[::2], words[1::2], strict=True)


def supplement() -> str:
    """Return the definitions that no header of the kernel exports, as C."""
    lines = [f"#define {kind}_{name} {value}" for name, value in pairs(FAMILIES) for kind in ("AF", "PF")]
    lines += [f"#define SOL_{name} {value}" for name, value in pairs(LEVELS)]
    lines += [f"#define MSG_{name} {value}" for name, value in pairs(MESSAGES)]
    return "\n".join(lines) + SUPPLEMENT


NAME = re.compile(r"[A-Z][A-Z0-9_]{2,}|[AP]F_DECnet")
LEFT_OUT = re.compile(
    r"SIGRTM(IN|AX)|NULL|TCPOPT|EMT_\w+|NSIG\w*|NCCS|HV_\w+|STAT64_\w+"  # libc's SIGRTMIN is not this one
    r"|MAX_\w+|RWF_SUPPORTED|SECURE_ALL_\w+|FUTEX_CMD_MASK|IORING_URING_CMD_MASK|MOVE_MOUNT__MASK|UFFD_API_(FEATURES|RANGE_IOCTLS\w*|IOCTLS)|TCP_(RESERVED_BITS|DATA_OFFSET)"
    r"|BPF_(FUNC|SKB|SOCK|CORE|LINE|PSEUDO|SK|ADJ|RINGBUF|HDR|OK|DROP|REDIRECT|FLOW|TCP|LWT|REG|FIB|CSUM|RB|LOAD|XDP|DEVCG|FD|TCX)_?\w*"
    r"|BPF_(B|H|W|DW|LD|LDX|ST|STX|ALU|ALU64|JMP|JMP32|RET|MISC|K|X|A|IMM|ABS|IND|MEM|LEN|MSH|ADD|SUB|MUL|DIV|OR|AND|LSH|RSH|NEG|MOD|XOR|MOV)"
    r"|(TCP_BPF|TCPF|TCPI|TCP_NLA|TCP_FLAG|SER|SERIAL|PORT|N|TP|LO|NLM|NLMSG|NLMSGERR|NL|NLA|KVM|X86|CX86|IORING_OFF|IORING_CQE|IORING_SQ)_\w*"
    r"|PERF_(RECORD|MEM|SAMPLE|TXN|BR|BRANCH|AUX|REG|FORMAT)_\w*|\w*(_MAX|_LAST|_CNT|_MAXNR|_NUM|MAXNAME|_ARRAY_SIZE|_SIZE_VER\d+)|B\d+"
)
"""Names that are no arguments of calls, or whose value changes with the release."""
NO_REQUEST = re.compile(r"B[CR]_\w+|SIOC\w+(FIRST|LAST)(PRIV)?|\w+_MAX")
"""What looks like a request of ioctl(2) and is none: binder's commands, limits."""
IOCTL_BODY = re.compile(r"\b(_IOC?|_IOR|_IOW|_IOWR|\w+_IO|\w+_IOR|\w+_IOW|\w+_IOWR)\s*\(")
OLD_IOCTL = re.compile(
    r"(TC(?!SA|[IO]FLUSH|[IO]O)[A-Z0-9]+|TIOC(?!M_|PKT_|SER_)[A-Z0-9]+|FIO[A-Z]+|SIOC?[A-Z0-9]+(_OLD|_NEW)?|LOOP_(CTL_|SET_|CLR_|GET_|CHANGE_|CONF)\w+"
    r"|KD[A-Z0-9]+|GIO_\w+|PIO_\w+|VT_(OPENQRY|GETMODE|SETMODE|GETSTATE|SENDSIG|RELDISP|ACTIVATE|WAITACTIVE|DISALLOCATE|RESIZEX?|\w*LOCKSWITCH)"
    r"|HDIO_\w+|CDROM[A-Z0-9_]+|DVD_\w+|FBIO[A-Z0-9_]+|PPPIOC\w+|SG_(GET|SET|SCSI|NEXT|IO|EMULATED)\w*|SCSI_IOCTL_\w+|I2C_(RDWR|SMBUS|SLAVE\w*|FUNCS|TENBIT|PEC)"
    r"|LP[A-Z]+|BLK[A-Z0-9]+|FIBMAP|FIGETBSZ|EVIOC\w+)"
)
"""Requests of ioctl(2) from before _IO()."""
ASM_PART = re.compile(
    r"asm(-generic)?/(errno|fcntl|ioctls|mman|poll|ptrace|resource|siginfo|signal|socket|sockios|stat|termbits|termios|hugetlb_encode)"
    r"(-base|-common|-defs|-abi)?\.h|linux/(bpf_common|io_uring/\w+)\.h"
)
"""Headers that those of HEADERS are made of."""
ENUM_REQUEST = re.compile(r"\s*([A-Z]\w+)\s*=\s*\(.*<<\s*\(\(\(0\s*\+\s*8\)\s*\+\s*8\)")
"""A request in an enum, where the preprocessor has replaced _IO() by shifts already."""
REGISTERS = ("asm/ptrace", "asm-generic/ptrace")
"""Headers of which only PTRACE_ names are taken; the others are registers and their bits."""


@dataclass
class Found:
    """What one port's headers say: each constant's value, which are requests of ioctl(2), and which are errnos."""

    values: dict[str, int]
    requests: set[str]
    packed: set[str]
    """The requests that _IO(), _IOR(), _IOW() or _IOWR() makes."""
    errnos: set[str]

    def direction(self, way: int) -> int:
        """Return the direction bits of a request that does nothing (0), reads (1), writes (2) or both (3)."""
        read, write, none = (self.values[f"_IOC_{name}"] for name in ("READ", "WRITE", "NONE"))
        return (none, read, write, read | write)[way]


class Reader:
    """Runs gcc over the headers below a root."""

    def __init__(self, root: Path, stubs: Path) -> None:
        self.include = root / "usr/include"
        self.stubs = stubs

    def has(self, port: Port) -> bool:
        """Tell whether the headers of the port are there."""
        return (self.include / port.folder / "asm/errno.h").exists()

    def version(self) -> str:
        """Return the release of the headers, as 6.12.43."""
        text = (self.include / "linux/version.h").read_text()
        code = int(re.search(r"LINUX_VERSION_CODE (\d+)", text)[1])  # type: ignore[index]
        return f"{code >> 16}.{code >> 8 & 255}.{code & 255}"

    def gcc(self, port: Port, source: str, *options: str) -> subprocess.CompletedProcess[str]:
        """Run gcc for a port; what it says of an error does not depend on the locale."""
        size = "unsigned long" if port.name in WIDE_PORTS else "unsigned int"
        macros = ("__linux__", "__GNUC__=12", "__CHAR_BIT__=8", f"__SIZE_TYPE__={size}", *port.defines)
        folders = (self.stubs, self.include / port.folder, self.include)
        command = ["gcc", *port.options, "-w", "-ftrack-macro-expansion=0", "-nostdinc", "-undef", *(f"-D{one}" for one in macros), *(f"-I{one}" for one in folders)]
        return subprocess.run([*command, *options, "-xc", "-"], input=source, text=True, capture_output=True, env={"LC_ALL": "C", "PATH": "/usr/bin:/bin"})

    def includes(self, port: Port) -> str:
        """Return C that reads all headers which the port has."""
        names = ["sys/socket.h", "stddef.h", "stdint.h", "sys/time.h", "linux/types.h", *(f"{name}.h" for name in HEADERS + IOCTL_HEADERS)]
        pack = f"#pragma pack({port.pack})\n" if port.pack else ""
        kvm = "" if (self.include / port.folder / "asm/kvm.h").exists() else "linux/kvm.h"
        return pack + "".join(f"#if __has_include(<{name}>)\n#include <{name}>\n#endif\n" for name in names if name != kvm) + supplement()

    def names(self, port: Port) -> tuple[list[str], set[str], set[str], set[str]]:
        """Return the names that the port's headers define, and which of them are requests, are made by _IO(), and are errnos."""
        done = self.gcc(port, self.includes(port), "-E", "-dD")
        if done.returncode:
            raise SystemExit(f"{port.name}: {done.stderr[:2000]}")
        whole = {f"{name}.h" for name in HEADERS}
        found: dict[str, str] = {}
        code: list[str] = []
        errnos = {"ENOTSUP"}
        wanted, registers = True, False
        for line in done.stdout.splitlines():
            if line.startswith("# "):
                path = line.split('"')[1]
                name = re.sub(rf"^.*/include/({re.escape(port.folder)}/)?|^.*/uapi/\w+/", "", path)
                registers = name.startswith(REGISTERS)
                wanted = path == "<stdin>" or name in whole or ASM_PART.fullmatch(name) is not None
            elif match := re.match(r"#define (\w+)(?: (.+))?$", line):
                body = match[2] or ""
                if body and not (registers and not match[1].startswith("PTRACE_")) and (wanted or IOCTL_BODY.search(body) or OLD_IOCTL.fullmatch(match[1])):
                    found[match[1]] = body
                    if "/errno" in name:
                        errnos.add(match[1])
            elif match := re.match(r"#undef (\w+)", line):
                found.pop(match[1], None)
            elif match := ENUM_REQUEST.match(line):
                found[match[1]] = "_IO()"
            elif not line.startswith("#") and (wanted or "{" in line or "}" in line):
                code.append(line if wanted else "".join(c for c in line if c in "{}"))
        for body in re.findall(r"\benum\b\s*\w*\s*\{([^{}]*)\}", "\n".join(code)):
            for entry in body.split(","):
                if match := re.match(r"\s*(\w+)", entry):
                    found.setdefault(match[1], "")
        names = sorted(name for name in found if NAME.fullmatch(name) and not NO_REQUEST.fullmatch(name))
        packed = {name for name in names if IOCTL_BODY.search(found[name])}
        packed |= {name for name in names if found[name] in packed}
        requests = packed | {name for name in names if OLD_IOCTL.fullmatch(name)}
        wanted_names = [name for name in names if (name in requests or not LEFT_OUT.fullmatch(name)) and name not in port.unknown]
        return wanted_names, requests, packed, errnos

    def read(self, port: Port) -> Found:
        """Return the constants of a port."""
        names, requests, packed, errnos = self.names(port)
        names += ["_IOC_NONE", "_IOC_READ", "_IOC_WRITE", "_IOC_DIRSHIFT", "_IOC_SIZESHIFT"]
        start = self.includes(port)
        while True:
            lines = [f"enum {{ PSC_{at} = ({name}) }}; const long long psc_{at} __attribute__((section(\"psc\"))) = (long long)({name});"
                     for at, name in enumerate(names)]
            with tempfile.NamedTemporaryFile(suffix=".o") as out:
                source = start + '\n#line 1 "psc.c"\n' + "\n".join(lines) + "\n"
                done = self.gcc(port, source, "-fmax-errors=0", "-fno-toplevel-reorder", "-c", "-o", out.name)
                bad = {int(at) - 1 for at in re.findall(r"^psc\.c:(\d+):\d+: error:", done.stderr, re.M)}
                if done.returncode and not bad:
                    raise SystemExit(f"{port.name}: {done.stderr[:2000]}")
                if not bad:
                    with tempfile.NamedTemporaryFile() as raw:
                        subprocess.run(["objcopy", "-O", "binary", "-j", "psc", out.name, raw.name], check=True)
                        data = raw.read()
                    numbers = struct.unpack(f"<{len(names)}q", data)
                    return Found(dict(zip(names, numbers, strict=True)), requests, packed, errnos)
            names = [name for at, name in enumerate(names) if at not in bad]



def token(name: str, found: Found) -> str:
    """Return how the file writes a constant of one port; a request of ioctl(2) without the port's way to pack its parts."""
    value = found.values.get(name)
    if value is None:
        return "-"
    if name in found.packed and value >= 0:
        size = value >> found.values["_IOC_SIZESHIFT"] & (1 << found.values["_IOC_DIRSHIFT"] - 16) - 1
        direction = value >> found.values["_IOC_DIRSHIFT"]
        way = [n for n in range(4) if found.direction(n) == direction]
        if way and value >> 32 == 0:
            return f"{'nrwb'[way[0]]}.{value >> 8 & 255:x}.{value & 255:x}.{size:x}"
    return str(value) if abs(value) < 10 else hex(value)


def label(members: frozenset[str]) -> str:
    """Name a set of ports shortly: 64 and 32 are those of a word size, x* all whose names begin with x."""
    narrow = frozenset(port.name for port in PORTS) - WIDE_PORTS
    parts, rest = [], set(members)
    for name, group in (("64", WIDE_PORTS), ("32", narrow)):
        if group <= rest:
            parts.append(name)
            rest -= group
    for family in ("x", "mips", "parisc", "ppc", "s390", "sh"):
        group = {port.name for port in PORTS if port.name.startswith(family)}
        if group & rest and group <= members:
            parts.append(f"{family}*")
            rest -= group
    return ",".join(parts + [port.name for port in PORTS if port.name in rest])


def line(name: str, ports: dict[str, Found]) -> str:
    """Write one constant: its usual value, and the values of the ports on which it is another."""
    tokens = {port: token(name, found) for port, found in ports.items()}
    groups: dict[str, set[str]] = {}
    for port, text in tokens.items():
        groups.setdefault(text, set()).add(port)
    usual = max(groups, key=lambda text: (len(groups[text]), text))
    others = sorted(f"{label(frozenset(members))}={text}" for text, members in groups.items() if text != usual)
    return " ".join([name, usual, *others])


def reader(root: Path, stubs: Path) -> Reader:
    """Return a reader of the headers below root; stubs is an empty folder, which gets the C library's headers."""
    for name, text in {**STUBS, **dict.fromkeys(EMPTY_STUBS, "")}.items():
        (stubs / name).parent.mkdir(exist_ok=True)
        (stubs / name).write_text("#pragma once\n" + text)
    return Reader(root, stubs)


def generate(root: Path) -> str:
    """Return the file's text."""
    with tempfile.TemporaryDirectory() as folder:
        headers = reader(root, Path(folder))
        missing = [port.name for port in PORTS if not headers.has(port)]
        if missing:
            raise SystemExit(f"no headers below {root} for {', '.join(missing)}: linux-libc-dev of Debian 13 or newer has those of all ports")
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            ports = {port.name: found for port, found in zip(PORTS, pool.map(headers.read, PORTS), strict=True)}
        version = headers.version()
    packings: dict[str, set[str]] = {}
    for port, found in ports.items():
        shape = [found.values[f"_IOC_{part}"] for part in ("DIRSHIFT", "SIZESHIFT", "NONE", "READ", "WRITE")]
        packings.setdefault(" ".join(map(str, shape)), set()).add(port)
    names = sorted({name for found in ports.values() for name in found.values if not name.startswith("_")})
    requests = {name for found in ports.values() for name in found.requests}
    head = [
        "# Generated by csrc/syscalls/generate_constants.py from the uapi headers of Linux; do not edit.",
        "# NAME VALUE PORTS=VALUE...: the value, and those of the ports on which it is another (-: not there). 64 and 32 are all ports of",
        "# that word size, x* those whose names begin so. n. r. w. b.: an ioctl request that reads and writes nothing, reads, writes, or both,",
        "# with its type, number and size in hexadecimal; a packing line has DIRSHIFT, SIZESHIFT, NONE, READ and WRITE of _IOC().",
        f"kernel {version}",
        f"ports {' '.join(ports)}",
        *(f"packing {shape} {label(frozenset(members))}" for shape, members in sorted(packings.items())),
    ]
    errnos = {name for found in ports.values() for name in found.errnos}
    kinds = {"errnos": errnos, "ioctls": requests, "others": set(names) - errnos - requests}
    body = [text for kind, members in kinds.items() for text in (kind, *(line(name, ports) for name in names if name in members))]
    return "\n".join([*head, *body]) + "\n"


def main() -> None:
    """Write the file to standard output."""
    parser = argparse.ArgumentParser(description="Generate pyseccomp/constants.txt.")
    parser.add_argument("--root", type=Path, default=Path("/"), help="the folder that has usr/include")
    sys.stdout.write(generate(parser.parse_args().root))


if __name__ == "__main__":
    main()
