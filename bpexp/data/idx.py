"""IDX: a folder of images and labels in the form of MNIST, of any number, size and count of classes.

The files are train-images-idx3-ubyte and train-labels-idx1-ubyte, and t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte
where the data set has a test part; plain or .gz, with a dash or a dot before idx. A test part stays the test part, and
the training files are split into training and validation, 75 % to 25 %; without one they are split 60/20/20.

A file is two zero bytes, a code of the type of its numbers, the number of its axes, the length of each axis, and the
numbers; all big-endian. Only unsigned bytes are taken.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import io
import math
import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bpexp.data.folder import (
    File,
    Files,
    FolderData,
    MissingFileError,
    check_classes,
    check_public,
    check_range,
    refuse,
    unreadable,
)
from bpexp.data.splits import DataSet

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

EXPECTED = "train-images-idx3-ubyte and train-labels-idx1-ubyte (t10k-... for a test part), plain or .gz"
ROLES = ("train-images", "train-labels", "t10k-images", "t10k-labels")
FILE_NAME = re.compile(r"(train|t10k)-(images|labels)[-.]idx\d-ubyte(\.gz)?")

UNSIGNED_BYTE = 8
TYPES = {9: "signed bytes", 11: "16-bit integers", 12: "32-bit integers", 13: "floats", 14: "doubles"}
BEST_RATIO = 1032
"""How many bytes a byte of deflate's can stand for at most, RFC 1951."""


class Header(NamedTuple):
    """What an IDX file says of itself: the lengths of its axes, and how many bytes come before its numbers."""

    shape: tuple[int, ...]
    length: int


def find(folder: Path) -> Mapping[str, Path]:
    """Return the file of each role; of a plain and a compressed one the plain.

    Raises:  MissingFileError: a role is missing
    """
    found: dict[str, Path] = {}
    # In descending order the last of a role, which stays, is the plain one with a dash.
    for path in sorted(folder.iterdir(), reverse=True, key=lambda path: (path.suffix == ".gz", path.name)):
        if (match := FILE_NAME.fullmatch(path.name)) and path.is_file():
            found[f"{match[1]}-{match[2]}"] = path
    has_test = any(role in found for role in ROLES[2:])
    roles = ROLES if has_test else ROLES[:2]
    for role in roles:
        if role not in found:
            raise MissingFileError(f"{role} file")
    return {role: found[role] for role in roles}


def describe(files: Files) -> DataSet:
    """Return what the headers and the labels tell.

    Raises:  ValueError: a file that is not of the form, or does not fit the others
    """
    shapes = [read_header(file).shape for file in files]
    (train, *size), test, outputs = shapes[0], sum(shape[0] for shape in shapes[2::2]), 0
    for place in range(0, len(files), 2):
        images, labels = files[place], files[place + 1]
        (count, *found), (labelled,) = shapes[place], shapes[place + 1]
        if count != labelled:
            refuse(images, f"has {count} images, but {labels.path.name} has {labelled} labels; expected as many")
        if found != size:
            refuse(images, f"has images of {_by(found)}; expected {_by(size)} as in {files[0].path.name}")
        values = _read_labels(labels, labelled)
        if place == 0:
            outputs = int(values.max()) + 1
            check_classes((labels,), values, outputs, test_part=test > 0)
        else:
            check_range(labels, values, outputs)
    return DataSet(
        name="idx",
        task="classification",
        samples=train + test,
        features=math.prod(size),
        outputs=outputs,
        source=IDX.source,
        read=functools.partial(read, files),
        shape=(1, size[0], size[1]) if len(size) == 2 else None,
        test_samples=test,
        as_bytes=True,
    )


@functools.lru_cache(maxsize=1)
def read(files: Files) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the images, (N, F) uint8, and their labels, (N,): the training files' first, then the test files'.

    Raises:  ValueError: a file that is not whole
    """
    import numpy as np
    import torch

    headers = [read_header(file) for file in files]
    images, labels = [
        np.empty((sum(header.shape[0] for header in headers[of::2]), math.prod(headers[of].shape[1:])), np.uint8)
        for of in (0, 1)
    ]
    for values, of in ((images, 0), (labels, 1)):
        start = 0
        for file, header in zip(files[of::2], headers[of::2], strict=True):
            _fill(file, header, values[start : start + header.shape[0]])
            start += header.shape[0]
    return torch.from_numpy(images), torch.from_numpy(labels[:, 0]).long()


@functools.lru_cache(maxsize=4)
def _read_labels(file: File, count: int) -> NDArray[np.uint8]:
    import numpy as np

    labels = np.empty((count, 1), np.uint8)
    _fill(file, read_header(file), labels)
    return labels[:, 0]


def read_header(file: File) -> Header:
    """Return what a file says of itself.

    Raises:  ValueError: not an IDX file of unsigned bytes; not of the axes of its role; not of the size that it says
    """
    with _opened(file) as stream:
        start = stream.read(4)
        if len(start) < 4:
            refuse(file, f"ends after {len(start)} bytes; expected the header of an IDX file")
        zeros, code, axes = start[:2], start[2], start[3]
        if zeros != b"\0\0":
            hint = ", a compressed file; is .gz missing in its name?" if zeros == b"\x1f\x8b" else ""
            refuse(file, f"begins with {start.hex()}{hint or '; expected 0000 and a type, as IDX files do'}")
        if code != UNSIGNED_BYTE:
            refuse(file, f"has numbers of type {code:02x} ({TYPES.get(code, 'unknown')}); expected 08 (unsigned bytes)")
        if file.role.endswith("labels") and axes != 1:
            refuse(file, f"has {axes} axes; expected 1, a label for each image")
        if file.role.endswith("images") and axes < 2:
            refuse(file, f"has {axes} axes; expected at least 2, the images and their pixels")
        lengths = stream.read(4 * axes)
    if len(lengths) < 4 * axes:
        refuse(file, f"ends after {4 + len(lengths)} bytes; expected a header of {4 + 4 * axes}")
    header = Header(struct.unpack(f">{axes}I", lengths), 4 + 4 * axes)
    numbers = math.prod(header.shape)
    if numbers == 0:
        refuse(file, f"holds {_by(header.shape)} numbers, none at all; expected some")
    size, compressed = header.length + numbers, file.path.suffix == ".gz"
    if file.size * (BEST_RATIO if compressed else 1) < size:
        refuse(file, f"is truncated: {file.size} bytes cannot hold the {size} that its header tells")
    if not compressed and file.size > size:
        refuse(file, f"has {file.size} bytes; expected {size}, as its header tells")
    return header


def _fill(file: File, header: Header, values: NDArray[np.uint8]) -> None:
    """Fill an array with a file's numbers.

    Raises:  ValueError: fewer or more than its header tells; not what was published
    """
    check_public(file)
    room, filled = values.data.cast("B"), 0
    with _opened(file) as stream:
        stream.read(header.length)
        while count := stream.readinto(room[filled : filled + 2**20]):
            filled += count
        if filled < len(room):
            refuse(file, f"is truncated: it holds {filled} numbers of the {len(room)} that its header tells")
        # The end is where gzip compares its checksum.
        if stream.read(1):
            refuse(file, f"holds more than the {len(room)} numbers that its header tells")


@contextlib.contextmanager
def _opened(file: File) -> Iterator[io.BufferedIOBase]:
    """Open a file, decompressed where its name ends in .gz.

    Raises:  ValueError: it cannot be opened; in the block, it cannot be read or decompressed
    """
    compressed = file.path.suffix == ".gz"
    try:
        with gzip.open(file.path) if compressed else file.path.open("rb") as stream:
            yield stream
    except (gzip.BadGzipFile, zlib.error) as error:
        refuse(file, f"is not a gzip file: {error}" if "Not a gzipped" in str(error) else f"is damaged: {error}")
    except EOFError:
        refuse(file, "is truncated: its compressed data ends too early")
    except OSError as error:
        unreadable(file, error)


def _by(lengths: tuple[int, ...] | list[int]) -> str:
    return "x".join(map(str, lengths))


IDX = FolderData(
    name="idx",
    task="classification",
    source="the user's own files; of the form of LeCun, Cortes and Burges, the MNIST database of handwritten digits",
    expected=EXPECTED,
    find=find,
    describe=describe,
)
