"""CIFAR-10's batches: what is read, and what each damage is answered with."""

import os
import pickle
import re

import numpy as np
import pytest
import torch
from data_files import BATCHES, batch, write_cifar10

from bpexp.data import check_contents, check_sizes, describe, fingerprint, load

EXPECTED = "data_batch_1 to data_batch_5 and test_batch, or cifar-10-batches-py with them"


def loaded(root, seed=0, **options):
    return load("cifar10", seed, root=str(root), dtype=torch.float64, **options)


def refused(action, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        action()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("place", [".", "cifar-10-batches-py"])
def test_batches_are_read_in_their_order(tmp_path, protocol, place):
    write_cifar10(tmp_path / place, protocol=protocol)
    row = describe("cifar10", str(tmp_path))
    assert (row.task, row.parts, row.features, row.outputs, row.shape) == (
        "classification",
        (37, 13, 10),
        3072,
        10,
        (3, 32, 32),
    )
    x, y = row.read()
    assert x.dtype == torch.uint8
    assert torch.equal(x, torch.from_numpy(np.concatenate([batch(10, n)[b"data"] for n in range(6)])))
    assert y.tolist() == [label for n in range(6) for label in batch(10, n)[b"labels"]]
    assert torch.equal(loaded(tmp_path).y_test, y[50:])


def test_texts_as_keys_arrays_as_labels_and_batches_of_other_sizes(tmp_path):
    write_cifar10(tmp_path)
    some = batch(13, 3)
    labels = np.array(some[b"labels"], np.int64)
    (tmp_path / "data_batch_4").write_bytes(pickle.dumps({"data": some[b"data"], "labels": labels, "more": None}))
    x, y = describe("cifar10", str(tmp_path)).read()
    assert len(x) == 63
    assert y[30:43].tolist() == some[b"labels"]


def test_each_channel_has_a_mean_and_a_deviation(tmp_path):
    write_cifar10(tmp_path)
    splits = loaded(tmp_path)
    channels = splits.x_train.view(-1, 3, 1024)
    torch.testing.assert_close(channels.mean((0, 2)), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(
        channels.std((0, 2), correction=0), torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-12
    )
    assert len(splits.mean.unique()) == len(splits.std.unique()) == 3


def test_fingerprint_is_of_the_contents(tmp_path):
    prints = {
        fingerprint("cifar10", str(write_cifar10(tmp_path / name, **options)))
        for name, options in {
            "one": {},
            "two": {},
            "three/cifar-10-batches-py": {},
            "other": {"count": 11},
        }.items()
    }
    prints.add(fingerprint("cifar10", str(tmp_path / "three")))
    assert len(prints) == 2


def with_keys(values):
    return pickle.dumps({key: value for key, value in values.items() if value is not None}, 2)


class Malicious:
    def __reduce__(self):
        return os.system, ("touch ran",)


DATA, LABELS = batch()[b"data"], batch()[b"labels"]
SYSTEM = f"{os.system.__module__}.system"
BAD = [
    (b"", "is not a whole pickle; expected a pickle of nothing but arrays, lists, texts and numbers"),
    (
        with_keys(batch())[:20000],
        "is not a whole pickle; expected a pickle of nothing but arrays, lists, texts and numbers",
    ),
    (
        with_keys(batch()) + b"\0",
        "is not a pickle to its end; expected a pickle of nothing but arrays, lists, texts and numbers",
    ),
    (
        with_keys(batch() | {b"filenames": [Malicious()]}),
        f"holds {SYSTEM}; expected a pickle of nothing but arrays, lists, texts and numbers",
    ),
    (pickle.dumps([1, 2]), "holds a list; expected a dict with data and labels"),
    (with_keys(batch() | {b"data": None}), "has no data; expected a dict with data and labels"),
    (with_keys(batch() | {b"labels": None}), "has no labels; expected a dict with data and labels"),
    (
        with_keys(batch() | {b"data": DATA.tolist()}),
        "has data that is no array of bytes; expected images of 3072 bytes",
    ),
    (
        with_keys(batch() | {b"data": DATA.astype(np.int16)}),
        "has data that is no array of bytes; expected images of 3072 bytes",
    ),
    (with_keys(batch() | {b"data": DATA[:, :784]}), "has data of shape 10x784; expected images of 3072 bytes"),
    (with_keys(batch() | {b"data": DATA.ravel()}), "has data of shape 30720; expected images of 3072 bytes"),
    (with_keys({b"data": DATA[:0], b"labels": []}), "has no images; expected some"),
    (with_keys(batch() | {b"labels": LABELS[1:]}), "has 10 images, but 9 labels; expected as many"),
    (
        with_keys(batch() | {b"labels": "0123456789"}),
        "has labels that are no list of integers; expected numbers from 0 to 9",
    ),
    (
        with_keys(batch() | {b"labels": [*LABELS[1:], True]}),
        "has labels that are no list of integers; expected numbers from 0 to 9",
    ),
    (with_keys(batch() | {b"labels": [*LABELS[1:], 10]}), "has the label 10 at sample 9; expected 0 to 9"),
    (with_keys(batch() | {b"labels": [-1, *LABELS[1:]]}), "has the label -1 at sample 0; expected 0 to 9"),
    (with_keys(batch() | {b"labels": [2**80, *LABELS[1:]]}), "has the label of 81 bits at sample 0; expected 0 to 9"),
    (
        with_keys(batch() | {b"labels": [*LABELS[1:], 2**99999]}),
        "has the label of 100000 bits at sample 9; expected 0 to 9",
    ),
]


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch"])
@pytest.mark.parametrize(("content", "problem"), BAD, ids=[f"{n}-{row[1][:40]}" for n, row in enumerate(BAD)])
def test_bad_batch(tmp_path, monkeypatch, content, problem, name):
    write_cifar10(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(content)
    message = f"data.root: '{tmp_path / name}' {problem}"
    refused(lambda: check_sizes("cifar10", None, 1, root=str(tmp_path)), message)
    refused(lambda: check_contents("cifar10", str(tmp_path)), message)
    assert not (tmp_path / "ran").exists()


def test_a_class_with_too_few_samples_is_of_all_training_batches(tmp_path):
    write_cifar10(tmp_path)
    few = batch()[b"labels"]
    for name in BATCHES[:2]:
        labels = [1 if label == 0 else label for label in few]
        (tmp_path / name).write_bytes(with_keys(batch() | {b"labels": labels}))
    message = "to data_batch_5 has 3 samples of the label 0; expected at least 4 of each label that occurs"
    refused(lambda: describe("cifar10", str(tmp_path)), f"data.root: '{tmp_path / 'data_batch_1'}' {message}")


@pytest.mark.parametrize("missing", BATCHES)
def test_missing_batch(tmp_path, missing):
    write_cifar10(tmp_path, batches=[name for name in BATCHES if name != missing])
    message = f"data.root: '{tmp_path}' has no {missing}; expected {EXPECTED}"
    refused(lambda: describe("cifar10", str(tmp_path)), message)


def test_no_folder():
    message = f"data.root: null is not a folder; data=cifar10 needs the folder of {EXPECTED}"
    refused(lambda: check_sizes("cifar10", None, 1), message)
