"""Seccomp filters as objects."""

# query
from pyseccomp.query import State as State, TaskState as TaskState, ThreadState as ThreadState, dump as dump, query as query
from pyseccomp.explain import Explanation as Explanation, Opinion as Opinion, explain as explain, explain_chain as explain_chain
from pyseccomp.listeners import ListenerHolder as ListenerHolder, listeners as listeners
from pyseccomp.loaded import LoadedFilter as LoadedFilter
# ---- policies and programs
from pyseccomp.actions import (
    ALLOW as ALLOW,
    EQ as EQ,
    ERRNO as ERRNO,
    GE as GE,
    GT as GT,
    KILL as KILL,
    KILL_PROCESS as KILL_PROCESS,
    KILL_THREAD as KILL_THREAD,
    LE as LE,
    LOG as LOG,
    LT as LT,
    MASKED_EQ as MASKED_EQ,
    NE as NE,
    NOTIFY as NOTIFY,
    RANGE as RANGE,
    TRACE as TRACE,
    TRAP as TRAP,
    Action as Action,
    Arg as Arg,
    Condition as Condition,
    In as In,
)
from pyseccomp.conflicts import Conflict as Conflict
from pyseccomp.decompile import Decompiled as Decompiled, decompile as decompile
from pyseccomp.equivalence import Difference as Difference, difference as difference, equivalent as equivalent
from pyseccomp.policy import Policy as Policy, Rule as Rule
from pyseccomp.program import Decision as Decision, Program as Program
from pyseccomp.syscalls import Arch as Arch
# ---- notifications
from pyseccomp.notify import Notification as Notification, Receiver as Receiver
from pyseccomp.responder import (
    Answer as Answer,
    Responder as Responder,
    ResponderStats as ResponderStats,
    add_fd as add_fd,
    allow as allow,
    deny as deny,
    hold as hold,
    kill as kill,
    reply as reply,
)

# events
from pyseccomp.records import RECORD as RECORD, EventRecord as EventRecord, EventRing as EventRing

# rules
from pyseccomp.strings import StringArg as StringArg

# features
from pyseccomp.features import Feature as Feature, features as features

# ---- filters
from pyseccomp.attach import (
    Attachment as Attachment,
    AttachmentState as AttachmentState,
    AttachResult as AttachResult,
    ThreadOutcome as ThreadOutcome,
)
from pyseccomp.filter import Filter as Filter, FilterState as FilterState
from pyseccomp.follow import Stray as Stray
from pyseccomp.group import GroupAttachment as GroupAttachment, GroupState as GroupState, MemberOutcome as MemberOutcome

# ---- triggers, processes
from pyseccomp.popen import Popen as Popen, create_subprocess_exec as create_subprocess_exec
from pyseccomp.triggers import ForkAttachment as ForkAttachment
from pyseccomp.triggers import TriggeredAttachment as TriggeredAttachment

# ---- errors
from pyseccomp.errors import (
    AttachError as AttachError,
    AttachShortageError as AttachShortageError,
    AttachTimeoutError as AttachTimeoutError,
    CheckpointError as CheckpointError,
    FilterClosedError as FilterClosedError,
    FilterFdError as FilterFdError,
    InactiveError as InactiveError,
    KernelError as KernelError,
    ListenerBusyError as ListenerBusyError,
    NotPermittedError as NotPermittedError,
    NotificationError as NotificationError,
    NotificationGoneError as NotificationGoneError,
    PartialAttachError as PartialAttachError,
    ContradictionError as ContradictionError,
    PolicyTypeError as PolicyTypeError,
    PolicyError as PolicyError,
    PolicyTooLargeError as PolicyTooLargeError,
    ProgramError as ProgramError,
    ReceiveStoppedError as ReceiveStoppedError,
    ReceiveTimeoutError as ReceiveTimeoutError,
    SeccompError as SeccompError,
    ShortageError as ShortageError,
    TargetBusyError as TargetBusyError,
    TargetFilteredError as TargetFilteredError,
    TargetGoneError as TargetGoneError,
    TargetsGoneError as TargetsGoneError,
    UnknownSyscallError as UnknownSyscallError,
    UnsupportedError as UnsupportedError,
)

# ---- formats
from pyseccomp.formats import load as load

# ---- libseccomp's interface
from pyseccomp.compat import (
    Attr as Attr,
    Kver as Kver,
    LibseccompError as LibseccompError,
    LibseccompValueError as LibseccompValueError,
    NotificationAddfd as NotificationAddfd,
    NotificationResponse as NotificationResponse,
    SyscallFilter as SyscallFilter,
    c_str as c_str,
    get_api as get_api,
    resolve_syscall as resolve_syscall,
    set_api as set_api,
    system_arch as system_arch,
)
# ---- embedding
from pyseccomp.embed import (
    get_examples as get_examples,
    get_guardian as get_guardian,
    get_include as get_include,
    get_library as get_library,
)

# ---- files opened for targets
from pyseccomp.emulate import Opening as Opening, begin_open as begin_open, emulate_open as emulate_open
from pyseccomp.errors import OpenDeniedError as OpenDeniedError

# ---- filters of a dead manager
from pyseccomp.errors import ReclaimError as ReclaimError
from pyseccomp.reclaim import reclaim as reclaim
