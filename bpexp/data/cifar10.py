"""CIFAR-10: 32x32 images in three colours, ten classes, in the batches for Python that the user has.

The folder, or cifar-10-batches-py in it, holds data_batch_1 to data_batch_5 and test_batch, each a pickle of a dict
with `data`, (N, 3072) bytes (the red of each image by rows, then the green, then the blue), and `labels`, N numbers
from 0 to 9. test_batch stays the test part; the five others are split into training and validation, 75 % to 25 %.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from bpexp.data.folder import File, Files, FolderData, MissingFileError, check_classes, check_public, refuse, unreadable
from bpexp.data.pickles import Array, RefusedPickleError, loads
from bpexp.data.splits import DataSet

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

SUB_FOLDER = "cifar-10-batches-py"
BATCHES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")
FEATURES, CLASSES = 3 * 32 * 32, 10


def find(folder: Path) -> Mapping[str, Path]:
    """Return the file of each batch, in the folder or in the sub-folder of the published archive.

    Raises:  MissingFileError: a batch is missing
    """
    if (folder / SUB_FOLDER).is_dir() and not any((folder / name).is_file() for name in BATCHES):
        folder /= SUB_FOLDER
    for name in BATCHES:
        if not (folder / name).is_file():
            raise MissingFileError(name)
    return {name: folder / name for name in BATCHES}


def describe(files: Files) -> DataSet:
    """Return what the labels tell: a pickle has no header, so each is read, and its images left.

    Raises:  ValueError: a file that is not of the form
    """
    import numpy as np

    *train, test = (_read_batch(file)[1] for file in files)
    check_classes(files[:-1], np.concatenate(train), CLASSES, test_part=True)
    samples = sum(map(len, train)) + len(test)
    return DataSet(
        name="cifar10",
        task="classification",
        samples=samples,
        features=FEATURES,
        outputs=CLASSES,
        source=CIFAR10.source,
        read=functools.partial(read, files, samples),
        shape=(3, 32, 32),
        test_samples=len(test),
        as_bytes=True,
    )


@functools.lru_cache(maxsize=1)
def read(files: Files, samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the images, (N, 3072) uint8, and their labels, (N,): the training batches' first, then the test batch's.

    Raises:  ValueError: a file that is not of the form, or not what was published
    """
    import numpy as np
    import torch

    images, labels, start = np.empty((samples, FEATURES), np.uint8), np.empty(samples, np.int64), 0
    for file in files:
        check_public(file)
        some, of = _read_batch(file)
        images[start : start + len(some)], labels[start : start + len(some)] = some, of
        start += len(some)
    return torch.from_numpy(images), torch.from_numpy(labels)


def _read_batch(file: File) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return the images and the labels of a batch.

    Raises:  ValueError: a pickle that is refused; keys that are missing; other shapes; labels that are no integers
    """
    try:
        content = file.path.read_bytes()
    except OSError as error:
        unreadable(file, error)
    try:
        batch = loads(content)
    except RefusedPickleError as error:
        refuse(file, f"{error}; expected a pickle of nothing but arrays, lists, texts and numbers")
    if not isinstance(batch, dict):
        refuse(file, f"holds a {type(batch).__name__}; expected a dict with data and labels")
    for key in ("data", "labels"):
        if key not in batch and key.encode() not in batch:
            refuse(file, f"has no {key}; expected a dict with data and labels")
    found, labels = (batch.get(key, batch.get(key.encode())) for key in ("data", "labels"))
    images = _images(file, found)
    return images, _labels(file, labels, len(images))


def _images(file: File, found: object) -> NDArray[np.uint8]:
    import numpy as np

    values = found.values if isinstance(found, Array) else None
    if values is None or values.dtype != np.uint8:
        refuse(file, "has data that is no array of bytes; expected images of 3072 bytes")
    if values.ndim != 2 or values.shape[1] != FEATURES:
        refuse(file, f"has data of shape {'x'.join(map(str, values.shape))}; expected images of {FEATURES} bytes")
    if len(values) == 0:
        refuse(file, "has no images; expected some")
    return values.astype(np.uint8, copy=False)


def _labels(file: File, found: object, images: int) -> NDArray[np.int64]:
    import numpy as np

    if isinstance(found, Array) and found.values is not None and found.values.ndim == 1:
        found = found.values.tolist()
    # bool is an int to Python, but no label.
    if not isinstance(found, list) or any(type(label) is not int for label in found):
        refuse(file, "has labels that are no list of integers; expected numbers from 0 to 9")
    if len(found) != images:
        refuse(file, f"has {images} images, but {len(found)} labels; expected as many")
    beyond = [label for label in found if not 0 <= label < CLASSES]
    if beyond:
        # Python writes no more than some thousand digits.
        label = str(beyond[0]) if beyond[0].bit_length() < 64 else f"of {beyond[0].bit_length()} bits"
        refuse(file, f"has the label {label} at sample {found.index(beyond[0])}; expected 0 to {CLASSES - 1}")
    return np.array(found, np.int64)


CIFAR10 = FolderData(
    name="cifar10",
    task="classification",
    source="Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images, University of Toronto",
    expected=f"data_batch_1 to data_batch_5 and test_batch, or {SUB_FOLDER} with them",
    find=find,
    describe=describe,
)
