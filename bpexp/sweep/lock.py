"""Locks: one process at a time writes a folder or trains a group.

The operating system frees the lock of a process that is gone, however it ended: what a lock file says tells a reader
who holds it, and decides nothing. Only where the file system has no such locks does the file decide: whoever makes it
holds it. That its process is gone is then told by that one's number and start on its own machine, and on another
machine by the user alone.
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
        if _is_file(descriptor, path):
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
        if not _lock(descriptor, path, shared=True):
            _left_by(path)
    finally:
        os.close(descriptor)


def _acquire(path: Path) -> int:
    """Return the lock file `path`, open, made or taken over from a process that is gone.

    Raises:  LockedError: another process holds it
    """
    while True:
        descriptor, made = _open(path)
        locks = True
        try:
            locks = _lock(descriptor, path)
            # With locks it may have been deleted by its holder in the meantime.
            if _is_file(descriptor, path) if locks else made:
                os.truncate(descriptor, 0)
                os.write(descriptor, json.dumps(_holder()).encode())
                return descriptor
        except BaseException:
            if made and not locks:
                path.unlink(missing_ok=True)
            os.close(descriptor)
            raise
        os.close(descriptor)
        if not locks and (taken := _take_over(path)) is not None:
            return taken


def _open(path: Path) -> tuple[int, bool]:
    """Return a file, open, and whether it was made for it."""
    while True:
        try:
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666), True
        except FileExistsError:
            with contextlib.suppress(FileNotFoundError):  # deleted in the meantime
                return os.open(path, os.O_RDWR), False


def _lock(descriptor: int, path: Path, *, shared: bool = False) -> bool:
    """Lock an open file; return whether the file system has locks.

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
    return False


def _take_over(path: Path) -> int | None:
    """Take over the lock file of a process that is gone; return it, open, or None where another was faster.

    Whoever takes over holds a lock file of the process that is gone, which then replaces that one's: of those that saw
    that process gone one alone gets on, and it sees whether another had replaced the file before.
    """
    holder = _left_by(path)
    if not holder:
        return None
    claim = path.with_name(f"{path.name}.{holder['pid']}.claim")
    descriptor = _acquire(claim)
    if read_json(path) == holder:
        claim.replace(path)
        return descriptor
    claim.unlink()
    os.close(descriptor)
    return None


def _left_by(path: Path) -> dict[str, Any]:
    """Return the process that left a lock file and is gone; nothing where there is no such file any more.

    Raises:  LockedError: it is not gone, as far as can be told
    """
    holder = read_json(path)
    if _is_gone(holder):
        return holder
    if not path.exists():
        return {}
    here = _is_here(holder)
    locked = LockedError(_describe(holder) + ("" if here else f"; if it is gone, delete {path}"))
    locked.lives = here
    raise locked


def _is_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _holder() -> dict[str, Any]:
    command = shlex.join([Path(sys.executable).name, *sys.orig_argv[1:]])
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    pid = os.getpid()
    return {"pid": pid, "host": socket.gethostname(), "started": _start(pid), "since": since, "command": command}


def _start(pid: int) -> int | None:
    """Return when a process started, in ticks since the machine did: no later one of its number has the same."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None


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
        pass  # it is another user's
    starts = holder.get("started"), _start(pid)
    return None not in starts and starts[0] != starts[1]
