"""Filters as bytes: what is needed to manage them on, from another process, when this one is gone.

The format, version 1, all numbers little-endian::

    8 bytes   "PSCCKPT\\0"
    4 bytes   version
    4 bytes   0
    8 bytes   length of the body
    32 bytes  SHA-256 of the 24 bytes above and the body
    the body  JSON in UTF-8: an object with

    boot, pid_namespace   where the pids below mean something
    program, flags, name  the filter: base64 of struct sock_filter[], 1 log | 2 wait_killable | 4 spec_allow, its name or null
    attachments           of each task: pid, start_time (clock ticks since boot) and inode (of its pidfd, from Linux 6.9 on
                          unique until the next boot), together its identity; active, listening, filters (how many its
                          threads carried at least), threads, no_new_privs, timeout, on_deadline
    responder             null, or default, fallback, frozen and rules: arch, nr, answer, conditions, processes, unreadable;
                          an answer is [kind, errno, value], or the name of a function

The digest protects against damage, not against an author: whoever may hand over a checkpoint may choose the filter. All of it
is checked before anything is done, and what a task is asked to carry, it must already carry, or be bound to by the right that
any attach takes.
"""

from __future__ import annotations

import base64
import binascii
import errno
import json
import os
import select
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from pyseccomp import _core
from pyseccomp.actions import Combined
from pyseccomp.attach import Attachment, AttachResult, ThreadOutcome
from pyseccomp.errors import CheckpointError, ReclaimError, SeccompError, TargetGoneError
from pyseccomp.program import Program
from pyseccomp.query import TaskState, query, with_programs
from pyseccomp.responder import Answer, Callback, Responder, Rule, deny, hold

if TYPE_CHECKING:
    from pyseccomp.filter import Filter

_HEAD: Final = struct.Struct("<8sIIQ")
_MAGIC: Final = b"PSCCKPT\0"
_VERSION: Final = 1
_DIGEST: Final = 32
_MAX_BODY: Final = 64 << 20
_QUIET: Final = 1.0
_VALUE_END: Final = 1 << 63


@dataclass(frozen=True, slots=True)
class _Saved:
    """One attachment of a checkpoint."""

    pid: int
    start_time: int
    inode: int
    active: bool
    listening: bool
    filters: int
    threads: Literal["all", "one"]
    no_new_privs: bool | Literal["auto"]
    timeout: float
    on_deadline: Literal["activate", "kill"]


# --------------------------------------------------------------------- saving


def save(filter_: Filter, responder: Responder | None) -> bytes:
    """See :meth:`Filter.checkpoint`."""
    attachments = [a for a in filter_.attachments if a.query().state != "dead"]
    for attachment in attachments:
        _check_savable(filter_, attachment)
    body = {
        **_place(),
        "program": base64.b64encode(bytes(filter_.program)).decode(),
        "flags": filter_._flags,
        "responder": None if responder is None else _save_responder(responder),
    }
    listening = [a for a in attachments if a.listeners]
    for attachment in listening:
        _hold(filter_, attachment)
    _wait_quiet(listening)
    body["name"] = filter_._name
    body["attachments"] = [_save_attachment(a) for a in attachments]
    return _wrap(json.dumps(body, separators=(",", ":")).encode())


def _wrap(body: bytes) -> bytes:
    head = _HEAD.pack(_MAGIC, _VERSION, 0, len(body))
    return head + _core.digest(head + body) + body


def _place() -> dict[str, Any]:
    return {
        "boot": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        "pid_namespace": os.stat("/proc/self/ns/pid").st_ino,
    }


def _check_savable(filter_: Filter, attachment: Attachment) -> None:
    what = f"checkpoint of the attachment to {attachment.pid}"
    if attachment.pid == os.getpid():
        raise CheckpointError(errno.EINVAL, f"{what}: it is this process, which a checkpoint is to outlive")
    if attachment.is_group:
        raise CheckpointError(
            errno.EOPNOTSUPP, f"checkpoint of {attachment!r}: who belongs is decided when it is activated; do that, or close() it, first"
        )
    if attachment.mode != "inject":
        raise CheckpointError(
            errno.EOPNOTSUPP,
            f"{what}: it is in mode={attachment.mode!r}, whose word only the process that made the filter can write; "
            "activate() and harden() it, or attach with mode='inject'",
        )
    if not attachment.activated and (attachment._ward is not None or attachment._watch is not None or type(attachment) is not Attachment):
        raise CheckpointError(
            errno.EOPNOTSUPP, f"{what}: a deadline= or activate_on= is under way there, which ends with this process; close() it first"
        )
    if attachment._ward is not None and attachment._death is not None and attachment._death.kind != 0:
        raise CheckpointError(
            errno.EOPNOTSUPP, f"{what}: on_supervisor_death= answers its calls when this process dies; attach with 'hold' to restore it"
        )
    if attachment.listeners and attachment._ward is None and filter_._guardian is not None and filter_._name is None:
        raise CheckpointError(errno.EOPNOTSUPP, f"{what}: the filter has a guardian without a name; make it with Filter(name=)")


def _hold(filter_: Filter, attachment: Attachment) -> None:
    """See to it that the listener, and the calls that wait there, outlive this process."""
    if attachment._ward is not None:
        return
    if filter_._name is None:
        filter_._name = f"checkpoint-{os.urandom(8).hex()}"
    filter_._guard_active(attachment, hold())


def _wait_quiet(attachments: list[Attachment]) -> None:
    """Wait until what was received before there was a journal has been answered."""
    left = {fd: attachment.pid for attachment in attachments for fd in attachment.listeners}
    end = time.monotonic() + _QUIET
    while True:
        poll = select.poll()
        for fd in left:
            poll.register(fd, select.POLLOUT)
        busy = {fd for fd, events in poll.poll(0) if events & select.POLLOUT}
        left = {fd: pid for fd, pid in left.items() if fd in busy}
        if not left:
            return
        if time.monotonic() > end:
            raise CheckpointError(
                errno.EBUSY,
                f"checkpoint: calls of process {min(left.values())} were received and not answered for {_QUIET:g} s; answer them "
                "first, or attach with on_supervisor_death='hold', which remembers them from the beginning",
            )
        time.sleep(0.0002)


def _save_attachment(attachment: Attachment) -> dict[str, Any]:
    task = query(pidfd=attachment.pidfd)
    counts = [t.filters for t in task.threads if t.alive and t.filters]
    return {
        "pid": attachment.pid,
        "start_time": task.start_time or 0,
        "inode": os.fstat(attachment.pidfd).st_ino,
        "active": attachment.activated,
        "listening": bool(attachment.listeners),
        "filters": min(counts, default=0),
        "threads": attachment.threads,
        "no_new_privs": attachment.no_new_privs,
        "timeout": attachment.timeout,
        "on_deadline": attachment.on_deadline,
    }


def _save_responder(responder: Responder) -> dict[str, Any]:
    rules = [
        {
            "arch": arch,
            "nr": nr,
            "answer": _save_answer(rule.answer),
            "conditions": [[list(c.terms), repr(c), [[kind, text.hex()] for kind, text in c.strings]] for c in rule.conditions],
            "processes": list(rule.processes),
            "unreadable": _save_answer(rule.unreadable),
        }
        for (arch, nr), found in responder._rules.items()
        for rule in found
    ]
    return {
        "default": _save_answer(responder._default),
        "fallback": _save_answer(responder.fallback),
        "frozen": responder._frozen,
        "rules": rules,
    }


def _save_answer(answer: Answer | Callback) -> list[int] | str:
    if not isinstance(answer, Answer):
        return function_name(answer)
    if answer.kind == 5:
        raise CheckpointError(errno.EOPNOTSUPP, "checkpoint: the responder answers with add_fd(), and a descriptor cannot be saved; use a function")
    return [answer.kind, answer.error, answer.value]


def function_name(function: Callback) -> str:
    """The name under which a function is saved: ``module.qualified_name``."""
    return f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', type(function).__qualname__)}"


# ------------------------------------------------------------------- restoring


def restore(
    data: bytes | bytearray | memoryview, functions: Mapping[str, Callback] | None, missing: Literal["refuse", "skip"]
) -> Filter:
    """See :meth:`Filter.restore`."""
    body = _unwrap(bytes(data))
    try:
        program = Program(base64.b64decode(_get(body, "program", str), validate=True))
    except (binascii.Error, ValueError, SeccompError) as error:
        raise CheckpointError(errno.EBADMSG, f"restoring a checkpoint: its program: {error}") from None
    flags, name = _get(body, "flags", int), body.get("name")
    saved = [_read_attachment(one) for one in _get(body, "attachments", list)]
    if not 0 <= flags <= 7 or not (name is None or isinstance(name, str)):
        raise CheckpointError(errno.EBADMSG, "restoring a checkpoint: its flags or name are none")
    responder = None if body.get("responder") is None else _read_responder(body["responder"], functions or {})
    for field, value in _place().items():
        if saved and body.get(field) != value:
            what = "another boot of the machine" if field == "boot" else "another pid namespace"
            raise CheckpointError(errno.EXDEV, f"restoring a checkpoint: it is of {what}, where its pids meant other processes")
    filter_, reclaimed = _take(program, flags, name)
    try:
        problems = [problem for one in saved if (problem := _restore_one(filter_, one)) is not None]
        if problems and missing == "refuse":
            raise CheckpointError(errno.ESRCH, f"restoring a checkpoint: {'; '.join(problems)}")
    except BaseException:
        if reclaimed:
            filter_.leave()
        else:
            filter_.close()
        raise
    filter_._responder = responder
    filter_._unrestored = tuple(problems)
    return filter_


def _unwrap(data: bytes) -> dict[str, Any]:
    where = "restoring a checkpoint"
    if len(data) < _HEAD.size + _DIGEST or data[:8] != _MAGIC:
        raise CheckpointError(errno.EBADMSG, f"{where}: it does not begin like one")
    _, version, zero, length = _HEAD.unpack_from(data)
    if version != _VERSION:
        raise CheckpointError(errno.EBADMSG, f"{where}: it is of version {version}, and this release reads version {_VERSION}")
    head, digest, body = data[: _HEAD.size], data[_HEAD.size : _HEAD.size + _DIGEST], data[_HEAD.size + _DIGEST :]
    if zero or length != len(body) or length > _MAX_BODY:
        raise CheckpointError(errno.EBADMSG, f"{where}: its length is wrong: cut off, or longer than it says")
    if _core.digest(head + body) != digest:
        raise CheckpointError(errno.EBADMSG, f"{where}: it is damaged: its digest does not agree")
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(errno.EBADMSG, f"{where}: its body is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise CheckpointError(errno.EBADMSG, f"{where}: its body is no JSON object")
    return found


def _get(found: Any, key: str, kind: type[Any] | tuple[type[Any], ...]) -> Any:
    value = found.get(key) if isinstance(found, dict) else None
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
        raise CheckpointError(errno.EBADMSG, f"restoring a checkpoint: {key!r} is missing or of the wrong type")
    return value


def _read_attachment(found: Any) -> _Saved:
    one = _Saved(
        pid=_get(found, "pid", int),
        start_time=_get(found, "start_time", int),
        inode=_get(found, "inode", int),
        active=_get(found, "active", bool),
        listening=_get(found, "listening", bool),
        filters=_get(found, "filters", int),
        threads=_get(found, "threads", str),
        no_new_privs=_get(found, "no_new_privs", (bool, str)),
        timeout=float(_get(found, "timeout", (int, float))),
        on_deadline=_get(found, "on_deadline", str),
    )
    good = 0 < one.pid < 1 << 22 and one.threads in ("all", "one") and one.no_new_privs in (True, False, "auto")
    if not good or not 0 < one.timeout < 1e6 or one.on_deadline not in ("activate", "kill"):
        raise CheckpointError(errno.EBADMSG, f"restoring a checkpoint: an attachment makes no sense: {one}")
    return one


def _take(program: Program, flags: int, name: str | None) -> tuple[Filter, bool]:
    """The filter: from its guardian, with its listeners, if it has one; else a new one."""
    from pyseccomp.filter import Filter
    from pyseccomp.reclaim import reclaim

    if name is not None:
        try:
            filter_ = reclaim(name)
        except ValueError as error:
            raise CheckpointError(errno.EBADMSG, f"restoring a checkpoint: {error}") from None
        except ReclaimError as error:
            if error.errno != errno.ENOENT:
                raise
        else:
            if filter_.program == program and filter_._flags == flags:
                return filter_, True
            filter_.leave()
            raise CheckpointError(errno.EBADMSG, f"restoring a checkpoint: the guardian of {name!r} holds another filter")
    return Filter(program, log=bool(flags & 1), wait_killable=bool(flags & 2), spec_allow=bool(flags & 4), name=name), False


def _restore_one(filter_: Filter, one: _Saved) -> str | None:
    """Take a task back; what is wrong with it, or None."""
    try:
        owner = _core.own(os.pidfd_open, one.pid)
    except OSError:
        return f"process {one.pid} has ended"
    pidfd = owner.number
    try:
        task = query(pidfd=pidfd)
    except TargetGoneError:
        return f"process {one.pid} has ended"
    if (task.start_time, os.fstat(pidfd).st_ino) != (one.start_time, one.inode):
        return f"process {one.pid} has ended, and its number belongs to another process now"
    if task.state == "dead":
        return f"process {one.pid} has ended"
    if any(a.pid == one.pid for a in filter_.attachments):
        return None
    if one.listening:
        return f"process {one.pid}: no process kept its listener, so its notified calls fail with ENOSYS"
    if one.active:
        problem = _not_carried(filter_, one, task, pidfd)
        if problem is not None:
            return problem
    attachment = Attachment(filter_, one.pid, owner, one.threads, one.no_new_privs, one.timeout)
    attachment.on_deadline = one.on_deadline
    if one.active:
        outcomes = tuple(ThreadOutcome(t.tid, None, t.filters) for t in task.threads if t.alive)
        attachment._adopt(AttachResult(outcomes, False, False, 0, 0), [])
    filter_._adopt(attachment)
    return None


def _not_carried(filter_: Filter, one: _Saved, task: TaskState, pidfd: int) -> str | None:
    """Whether the filter is in force where it was; by its program, where that may be read."""
    meant = [t for t in task.threads if t.alive and (one.threads == "all" or t.tid == one.pid)]
    if any(t.seccomp != "filter" or (t.filters is not None and t.filters < one.filters) for t in meant):
        return f"process {one.pid} does not carry the filter any more"
    shown = with_programs(task, pidfd, one.timeout)
    for thread in shown.threads:
        known = thread.programs is not None and thread.tid in {t.tid for t in meant}
        if known and filter_.program not in [x.program for x in thread.programs or ()]:
            return f"process {one.pid} carries other filters, and not this one"
    return None


def _read_responder(found: Any, functions: Mapping[str, Callback]) -> Responder:
    unknown: set[str] = set()

    def answer(value: Any) -> Answer | Callback:
        if isinstance(value, str):
            if value in functions:
                return functions[value]
            unknown.add(value)
            return deny()
        if not isinstance(value, list) or len(value) != 3 or not all(type(number) is int for number in value):
            raise CheckpointError(errno.EBADMSG, f"restoring a checkpoint: {value!r} is no answer")
        kind, error, number = value
        if kind not in range(5) or not 0 <= error < 4096 or not -_VALUE_END <= number < _VALUE_END:
            raise CheckpointError(errno.EBADMSG, f"restoring a checkpoint: {value!r} is no answer")
        return Answer(kind, error, number)

    try:
        fallback = answer(found["fallback"])
        if not isinstance(fallback, Answer):
            raise CheckpointError(errno.EBADMSG, "restoring a checkpoint: the fallback is no answer")
        responder = Responder(answer(found["default"]), fallback=fallback)
        for one in found["rules"]:
            conditions = tuple(
                Combined(
                    tuple((int(a), int(b), int(c), int(d), int(e), int(f)) for a, b, c, d, e, f in terms),
                    str(text),
                    tuple((int(kind), bytes.fromhex(wanted)) for kind, wanted in strings),
                )
                for terms, text, strings in one["conditions"]
            )
            rule = Rule(answer(one["answer"]), conditions, tuple(int(pid) for pid in one["processes"]), answer(one["unreadable"]))
            responder._rules.setdefault((int(one["arch"]), int(one["nr"])), []).append(rule)
        responder._frozen = bool(found["frozen"])
        responder._table()
    except CheckpointError:
        raise
    except (SeccompError, ArithmeticError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(errno.EBADMSG, f"restoring a checkpoint: its responder: {type(error).__name__}: {error}") from None
    if unknown:
        raise CheckpointError(
            errno.ENOENT,
            f"restoring a checkpoint: its responder asks functions that only the dead process had; give functions={{name: function}} "
            f"for {', '.join(sorted(unknown))}",
        )
    return responder
