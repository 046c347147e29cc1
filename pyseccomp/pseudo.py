"""The negative numbers by which libseccomp names the calls that an architecture does not have.

They are part of its interface: ``resolve_syscall`` answers them and ``add_rule`` takes them. From the header that libseccomp
2.5 installs (``seccomp-syscalls.h``); calls that came later are on every architecture or have none.
"""

from __future__ import annotations

from typing import Final

_RUNS: Final = (
    (
        -101,
        """
        socket bind connect listen accept getsockname getpeername socketpair send recv sendto recvfrom shutdown
        setsockopt getsockopt sendmsg recvmsg accept4 recvmmsg sendmmsg
        """,
    ),
    (
        -201,
        """
        semop semget semctl semtimedop
        """,
    ),
    (
        -211,
        """
        msgsnd msgrcv msgget msgctl
        """,
    ),
    (
        -221,
        """
        shmat shmdt shmget shmctl
        """,
    ),
    (
        -10001,
        """
        arch_prctl bdflush break chown32 epoll_ctl_old epoll_wait_old fadvise64_64 fchown32 fcntl64 fstat64 fstatat64
        fstatfs64 ftime ftruncate64 getegid32 geteuid32 getgid32 getgroups32 getresgid32 getresuid32 getuid32 gtty
        idle ipc lchown32 _llseek lock lstat64 mmap2 mpx newfstatat _newselect nice oldfstat oldlstat oldolduname
        oldstat olduname prof profil readdir security sendfile64 setfsgid32 setfsuid32 setgid32 setgroups32 setregid32
        setresgid32 setresuid32 setreuid32 setuid32 sgetmask sigaction signal sigpending sigprocmask sigreturn
        sigsuspend socketcall ssetmask stat64 statfs64 stime stty truncate64 tuxcall ugetrlimit ulimit umount vm86
        vm86old waitpid create_module get_kernel_syms get_thread_area nfsservctl query_module set_thread_area _sysctl
        uselib vserver arm_fadvise64_64 arm_sync_file_range
        """,
    ),
    (
        -10086,
        """
        pciconfig_iobase pciconfig_read pciconfig_write sync_file_range2 syscall afs_syscall fadvise64 getpmsg ioperm
        iopl
        """,
    ),
    (
        -10097,
        """
        migrate_pages modify_ldt putpmsg sync_file_range select vfork cachectl cacheflush
        """,
    ),
    (
        -10106,
        """
        sysmips timerfd time getrandom memfd_create kexec_file_load
        """,
    ),
    (
        -10145,
        """
        sysfs oldwait4 access alarm chmod chown creat dup2 epoll_create epoll_wait eventfd fork futimesat getdents
        getpgrp inotify_init lchown link lstat mkdir mknod open pause pipe poll readlink rename rmdir signalfd stat
        symlink unlink ustat utime utimes getrlimit mmap breakpoint set_tls usr26 usr32 multiplexer rtas spu_create
        spu_run swapcontext sys_debug_setcontext
        """,
    ),
    (
        -10191,
        """
        switch_endian get_mempolicy move_pages mbind set_mempolicy s390_runtime_instr s390_pci_mmio_read
        s390_pci_mmio_write membarrier userfaultfd pkey_mprotect pkey_alloc pkey_free get_tls s390_guarded_storage
        s390_sthyi subpage_prot statx io_pgetevents rseq setrlimit clock_adjtime64 clock_getres_time64 clock_gettime64
        clock_nanosleep_time64 clock_settime64 clone3 fsconfig fsmount fsopen fspick futex_time64 io_pgetevents_time64
        move_mount mq_timedreceive_time64 mq_timedsend_time64 open_tree pidfd_open pidfd_send_signal ppoll_time64
        pselect6_time64 recvmmsg_time64 rt_sigtimedwait_time64 sched_rr_get_interval_time64 semtimedop_time64
        timer_gettime64 timer_settime64 timerfd_gettime64 timerfd_settime64 utimensat_time64 ppoll renameat
        riscv_flush_icache memfd_secret map_shadow_stack
        """,
    ),
)  # each: the number of the first name, one less for each after it

NUMBERS: Final = {name: first - at for first, names in _RUNS for at, name in enumerate(names.split())}
NAMES: Final = {number: name for name, number in NUMBERS.items()}
