"""Files that are either whole or not there."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bpexp.spec import UserError

if TYPE_CHECKING:
    import polars

TEMPORARY = re.compile(r"\..+\.\d+")
"""The name of a file that is being written: that of the file, with a dot before and the writer's process behind."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its place when the block ends without an error."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def clear_unfinished(folder: Path) -> None:
    """Remove what writers that were killed left in a folder in which nobody else writes."""
    if folder.is_dir():
        for path in folder.iterdir():
            if TEMPORARY.fullmatch(path.name):
                path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file whole."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def write_parquet(
    path: Path, frame: polars.DataFrame, *, compression: Literal["zstd", "lz4"] = "zstd", statistics: bool = True
) -> None:
    """Write a table as a parquet file, whole.

    Raises:  OSError: of the disk; polars, were it to write the file, would make another error of it
    """
    content = io.BytesIO()
    frame.write_parquet(content, compression=compression, statistics=statistics)
    with replacing(path) as temporary:
        temporary.write_bytes(content.getbuffer())


def read_json(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file; nothing where there is no such file, or a broken one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def check_writable(folder: Path, key: str) -> None:
    """Make a folder, and refuse one that cannot be written.

    Raises:  UserError: naming the key that chose the folder
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{key}: cannot write in {str(folder)!r}: {error.strerror}; choose another folder") from None
