"""What is slow to read, kept in the user's cache folder: bytes whose checksum is known, and nothing else.

The folder is $XDG_CACHE_HOME/bpexp, or ~/.cache/bpexp. All of it can be deleted at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path


def folder() -> Path | None:
    """Return the cache folder, which need not exist; None for a user without a home.

    Edge:    a relative $XDG_CACHE_HOME counts as none, as its specification says
    """
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():
        try:
            base = Path.home() / ".cache"
        except RuntimeError:
            return None
    return base / "bpexp"


def cached(name: str, size: int, sha256: str, make: Callable[[], bytes]) -> bytes:
    """Return the bytes of this size and checksum, from the cache or made, and then kept there.

    A file that is damaged, truncated or another's is made again. Where nothing can be written, nothing is kept.

    Raises:  ValueError: what `make` makes has another checksum
    """
    path = None if (home := folder()) is None else home / name
    if path is not None:
        found = _read(path, size)
        if found is not None and hashlib.sha256(found).hexdigest() == sha256:
            return found
    made = make()
    if (digest := hashlib.sha256(made).hexdigest()) != sha256:
        raise ValueError(f"its sha256 is {digest}; expected {sha256}")
    if path is not None:
        with contextlib.suppress(OSError):
            _write(path, made)
    return made


def _read(path: Path, size: int) -> bytes | None:
    try:
        # A folder or a pipe of that name has another size, and is not opened.
        return path.read_bytes() if path.is_file() and path.stat().st_size == size else None
    except OSError:
        return None


def _write(path: Path, content: bytes) -> None:
    """Write a file whole: other processes see the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(temporary).replace(path)
    finally:
        Path(temporary).unlink(missing_ok=True)
