"""Data sets whose files the user has, in the folder `data.root`: which they are, if whole, and what tells them apart.

Every mistake is a ValueError of one line that names the file and what was expected.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from bpexp.data.splits import DataSet, Task

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SMALLEST_CLASS = {True: 4, False: 5}
"""Samples of which 25 % (where there is a test part of its own) or 20 % are one, so that each part has its share."""


class File(NamedTuple):
    """A file of a data set, and what tells that it is the same as before."""

    role: str
    path: Path
    size: int
    modified: int

    @property
    def shown(self) -> str:
        """Return how a message names the file."""
        return repr(str(self.path))


class MissingFileError(Exception):
    """A file that is not in the folder."""


Files = tuple[File, ...]
"""In the order of a data set's roles, whatever the files are called."""


@dataclass(frozen=True)
class FolderData:
    """A row of DATA that is read from a folder.

    `expected` are the words that say what the folder must hold. `find(folder)` returns the path of each role, and
    raises MissingFileError with the words for what is not there. `describe(files)` looks at the headers and the labels.
    """

    name: str
    task: Task
    source: str
    expected: str
    find: Callable[[Path], Mapping[str, Path]]
    describe: Callable[[Files], DataSet]

    def open(self, root: str | None) -> DataSet:
        """Return what is known of the data set in a folder, without reading its images and without torch.

        Raises:  ValueError: no such folder; files that are missing, or not of the form
        """
        return _described(self.describe, self.files(root))

    def fingerprint(self, root: str | None) -> str:
        """Return a hash of what the data set's files hold: the same for a copy elsewhere.

        Edge:    a compressed file and its plain form have different ones
        Raises:  ValueError: no such folder; files that are missing
        """
        return _hashed(self.files(root))

    def files(self, root: str | None) -> Files:
        """Return the files of the data set in a folder.

        Raises:  ValueError: no such folder; files that are missing
        """
        if root is None:
            raise ValueError(f"data.root: null is not a folder; data={self.name} needs the folder of {self.expected}")
        if not root:
            raise ValueError(f"data.root: '' is not a folder; expected the folder of {self.expected}")
        folder = Path(root).expanduser()
        try:
            if not folder.is_dir():
                problem = "is not a folder" if folder.exists() else "does not exist"
                raise ValueError(f"data.root: {root!r} {problem}; expected the folder of {self.expected}")
            if not any(folder.iterdir()):
                raise ValueError(f"data.root: {root!r} is empty; expected {self.expected}")
            found = self.find(folder)
            stats = {role: path.stat() for role, path in found.items()}
        except MissingFileError as error:
            raise ValueError(f"data.root: {root!r} has no {error}; expected {self.expected}") from None
        except OSError as error:
            raise ValueError(f"data.root: {root!r} cannot be read: {error.strerror}") from None
        return tuple(File(role, found[role].absolute(), stat.st_size, stat.st_mtime_ns) for role, stat in stats.items())


@functools.lru_cache(maxsize=8)
def _described(describe: Callable[[Files], DataSet], files: Files) -> DataSet:
    return describe(files)


@functools.lru_cache(maxsize=8)
def _hashed(files: Files) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.role} {file.size} {digest_of(file, 'sha256')} ".encode())
    return digest.hexdigest()


def digest_of(file: File, algorithm: str) -> str:
    """Return the hexadecimal digest of what a file holds."""
    try:
        with file.path.open("rb") as stream:
            return hashlib.file_digest(stream, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()
    except OSError as error:
        unreadable(file, error)


def refuse(file: File, problem: str) -> NoReturn:
    """Raise the error that names a file and its problem.

    Raises:  ValueError: always
    """
    raise ValueError(f"data.root: {file.shown} {problem}") from None


def unreadable(file: File, error: OSError) -> NoReturn:
    """Raise the error for a file that the system does not give.

    Raises:  ValueError: always
    """
    refuse(file, f"cannot be read: {error.strerror}")


def check_classes(files: Files, labels: NDArray[np.integer], outputs: int, *, test_part: bool) -> None:
    """Refuse the labels of training files where there is but one class, or a class with too few samples, but some.

    Shapes:  labels: (N,) from 0 to outputs - 1
    Raises:  ValueError: naming the first class
    """
    import numpy as np

    others = f"to {files[-1].path.name} " if len(files) > 1 else ""
    counts, smallest = np.bincount(labels, minlength=outputs), SMALLEST_CLASS[test_part]
    if (counts > 0).sum() < 2:
        refuse(files[0], f"{others}has no label but {int(counts.argmax())}; expected at least two classes")
    for label, count in enumerate(counts.tolist()):
        if 0 < count < smallest:
            refuse(
                files[0],
                f"{others}has {count} samples of the label {label}; "
                f"expected at least {smallest} of each label that occurs",
            )


def check_range(file: File, labels: NDArray[np.integer], outputs: int) -> None:
    """Refuse labels beyond the classes that there are.

    Shapes:  labels: (N,)
    Raises:  ValueError: naming the first
    """
    bad = ((labels < 0) | (labels >= outputs)).nonzero()[0]
    if len(bad):
        refuse(file, f"has the label {int(labels[bad[0]])} at sample {int(bad[0])}; expected 0 to {outputs - 1}")


PUBLIC = {
    # name, size: the data set, the file's md5
    ("train-images-idx3-ubyte.gz", 9912422): ("MNIST", "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
    ("train-labels-idx1-ubyte.gz", 28881): ("MNIST", "d53e105ee54ea40749a09fcbcd1e9432"),
    ("t10k-images-idx3-ubyte.gz", 1648877): ("MNIST", "9fb629c4189551a2d022fa330f9573f3"),
    ("t10k-labels-idx1-ubyte.gz", 4542): ("MNIST", "ec29112dd5afa0611ce80d1b7f02629c"),
    ("train-images-idx3-ubyte.gz", 26421880): ("Fashion-MNIST", "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
    ("train-labels-idx1-ubyte.gz", 29515): ("Fashion-MNIST", "25c81989df183df01b3e8a0aad5dffbe"),
    ("t10k-images-idx3-ubyte.gz", 4422102): ("Fashion-MNIST", "bef4ecab320f06d8554ea6380940ec79"),
    ("t10k-labels-idx1-ubyte.gz", 5148): ("Fashion-MNIST", "bb300cfdad3c16e7a12a480ee83cd310"),
    ("data_batch_1", 31035704): ("CIFAR-10", "c99cafc152244af753f735de768cd75f"),
    ("data_batch_2", 31035320): ("CIFAR-10", "d4bba439e000b95fd0a9bffe97cbabec"),
    ("data_batch_3", 31035999): ("CIFAR-10", "54ebc095f3ab1f0389bbae665268c751"),
    ("data_batch_4", 31035696): ("CIFAR-10", "634d18415352ddfa80567beed471001a"),
    ("data_batch_5", 31035623): ("CIFAR-10", "482c414d41f54cd18b22e5b47cb7c3cb"),
    ("test_batch", 31035526): ("CIFAR-10", "40351d587109b95175f43aff81a1287e"),
}
"""The published files: one that has such a name and size must have the checksum.

Plain IDX files are not among them: their size is that of any images as many and as large.
"""


def check_public(file: File) -> None:
    """Refuse a file that has the name and the size of a published one, but not its checksum.

    Raises:  ValueError: naming both checksums
    """
    known = PUBLIC.get((file.path.name, file.size))
    if known and (md5 := digest_of(file, "md5")) != known[1]:
        refuse(file, f"has the size of {known[0]}'s, but is another: its md5 is {md5}; expected {known[1]}")
