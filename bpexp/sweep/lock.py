"""Locks: one process at a time writes a folder or trains a group.

The operating system frees the lock of a process that is gone, however it ended: what a lock file says tells a reader
who holds it, and decides nothing. Only where the file system has no such locks does its content decide: then the lock
of a process that is gone is told by its number on its own machine, and on another machine by the user alone.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bpexp.spec import UserError
from bpexp.sweep.files import read_json

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # a module that is not there

_UNSUPPORTED = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)
_SECONDS_BETWEEN_TRIES = (0.05, 1.0)
"""At first, and at most: what waits long asks rarely."""

_PATIENCE_WITH_THE_UNKNOWN = 10.0


class LockedError(UserError):
    """Another process holds a lock; the message says which, where, since when and with what command.

    `lives` is whether that process is sure to be there still.
    """

    lives = True


@contextlib.contextmanager
def hold(path: Path, *, patience: float = 0.0) -> Iterator[None]:
    """Hold the lock file `path` while the block runs; the file is gone afterwards.

    patience: seconds to wait for a process that holds it; at most 10 where nothing tells whether that one lives
    Raises:   LockedError: another holds it still
    """
    started = time.monotonic()
    pause, longest = _SECONDS_BETWEEN_TRIES
    while True:
        try:
            descriptor = _acquire(path)
            break
        except LockedError as error:
            seconds = patience if error.lives else min(patience, _PATIENCE_WITH_THE_UNKNOWN)
            if time.monotonic() - started >= seconds:
                raise
            time.sleep(pause)
            pause = min(2 * pause, longest)
    try:
        yield
    finally:
        # Before it is freed, so that nobody else's is deleted.
        path.unlink(missing_ok=True)
        os.close(descriptor)


def check_free(path: Path) -> None:
    """Refuse where another process holds the lock file `path`; change nothing.

    Raises:  LockedError: naming it
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return
    try:
        _lock(descriptor, path, shared=True)
    finally:
        os.close(descriptor)


def _acquire(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if _lock(descriptor, path) and _is_file(descriptor, path):
                os.truncate(descriptor, 0)
                os.write(descriptor, json.dumps(_holder()).encode())
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # deleted by its holder in the meantime


def _lock(descriptor: int, path: Path, *, shared: bool = False) -> bool:
    """Lock an open file; return whether it was there to be locked.

    Raises:  LockedError: another process holds it
    """
    if fcntl is not None:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            raise LockedError(_describe(read_json(path))) from None
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
    holder = read_json(path)
    if holder and not _is_gone(holder):
        here = _is_here(holder)
        locked = LockedError(_describe(holder) + ("" if here else f"; if it is gone, delete {path}"))
        locked.lives = here
        raise locked
    return True


def _is_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _holder() -> dict[str, Any]:
    command = shlex.join([Path(sys.executable).name, *sys.orig_argv[1:]])
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": since, "command": command}


def _describe(holder: dict[str, Any]) -> str:
    if not holder:
        return "in use by another process"
    since, command = holder.get("since"), holder.get("command")
    return f"in use by process {holder.get('pid')} on {holder.get('host')} since {since} ({command})"


def _is_here(holder: dict[str, Any]) -> bool:
    return holder.get("host") == socket.gethostname()


def _is_gone(holder: dict[str, Any]) -> bool:
    """Return whether the process that wrote a lock file ran on this machine and ended."""
    pid = holder.get("pid")
    if not _is_here(holder) or not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
