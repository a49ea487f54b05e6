"""Small data sets in the forms that users have, written by the tests."""

import gzip
import pickle
import struct

import numpy as np

BATCHES = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]


def idx_bytes(values, code=8):
    values = np.asarray(values, np.uint8)
    return struct.pack(f">HBB{values.ndim}I", 0, code, values.ndim, *values.shape) + values.tobytes()


def images_of(labels, size=(4, 3), seed=0):
    """Return images that a label decides but for some noise."""
    stream = np.random.default_rng(seed)
    return (np.asarray(labels).reshape(-1, *[1] * len(size)) * 20 + stream.integers(0, 50, (len(labels), *size))) % 256


def labels_of(count, classes, seed=0):
    return np.random.default_rng(seed).permutation(np.arange(count) % classes)


def write_idx(folder, *, train=60, test=20, classes=3, size=(4, 3), suffix="", joint="-", seed=0):
    """Write a folder of IDX files; without a test part for test=0."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, count in (("train", train), ("t10k", test)):
        if count:
            labels = labels_of(count, classes, seed)
            images = images_of(labels, size, seed + (part == "t10k"))
            kind = f"images{joint}idx{images.ndim}-ubyte{suffix}"
            put(folder / f"{part}-{kind}", idx_bytes(images))
            put(folder / f"{part}-labels{joint}idx1-ubyte{suffix}", idx_bytes(labels))
    return folder


def put(path, content):
    """Write bytes, compressed where the name says so; the same bytes give the same file."""
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


def batch(count=10, seed=0):
    labels = labels_of(count, 10, seed)
    return {b"data": images_of(labels, (3072,), seed).astype(np.uint8), b"labels": labels.tolist()}


def write_cifar10(folder, *, count=10, protocol=2, batches=BATCHES):
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(batches):
        (folder / name).write_bytes(pickle.dumps(batch(count, number), protocol))
    return folder
