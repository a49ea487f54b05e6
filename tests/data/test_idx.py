"""IDX folders: what is read, how a test part is kept, and what each damage is answered with."""

import gzip
import hashlib
import re
import struct

import numpy as np
import pytest
import torch
from data_files import idx_bytes, images_of, labels_of, put, write_idx

from bpexp.data import check_contents, check_sizes, describe, fingerprint, folder, load

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"
EXPECTED = "train-images-idx3-ubyte and train-labels-idx1-ubyte (t10k-... for a test part), plain or .gz"


def loaded(root, seed=0, **options):
    return load("idx", seed, root=str(root), dtype=torch.float64, **options)


def raw(splits, part):
    """Return a part's images as they were before they were standardized."""
    return (getattr(splits, f"x_{part}") * splits.std + splits.mean).round().long()


def numbered(texts):
    return [f"{number}-{text[:40]}" for number, text in enumerate(texts)]


def refused(action, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        action()


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("joint", ["-", "."])
def test_names_of_either_form_are_found_and_hold_the_same(tmp_path, suffix, joint):
    splits = loaded(write_idx(tmp_path / "some", suffix=suffix, joint=joint))
    plain = loaded(write_idx(tmp_path / "plain"))
    for part in ("train", "val", "test"):
        assert torch.equal(getattr(splits, f"x_{part}"), getattr(plain, f"x_{part}"))
        assert torch.equal(getattr(splits, f"y_{part}"), getattr(plain, f"y_{part}"))


def test_of_two_files_of_a_role_the_plain_one_with_a_dash_is_read(tmp_path):
    write_idx(tmp_path)
    for name in ("train-images.idx3-ubyte", "train-images-idx3-ubyte.gz", "train-labels.idx1-ubyte.gz"):
        (tmp_path / name).write_bytes(b"nothing of the kind")
    check_contents("idx", str(tmp_path))


def test_a_compressed_file_is_preferred_only_to_none(tmp_path):
    write_idx(tmp_path, joint=".")
    (tmp_path / f"{IMAGES}.gz").write_bytes(b"nothing of the kind")
    check_contents("idx", str(tmp_path))


@pytest.mark.parametrize("test", [0, 20])
def test_description_needs_the_headers_alone(tmp_path, test):
    row = describe("idx", str(write_idx(tmp_path, test=test)))
    assert (row.task, row.samples, row.features, row.outputs, row.shape) == (
        "classification",
        60 + test,
        12,
        3,
        (1, 4, 3),
    )
    assert row.parts == ((45, 15, 20) if test else (36, 12, 12))
    assert row.as_bytes


@pytest.mark.parametrize("size", [(7,), (2, 3), (5, 1), (2, 3, 4)])
def test_images_of_any_number_of_axes(tmp_path, size):
    splits = loaded(write_idx(tmp_path, size=size))
    images = images_of(labels_of(20, 3), size, 1).reshape(20, -1)
    assert torch.equal(raw(splits, "test"), torch.from_numpy(images))
    assert splits.shape == ((1, *size) if len(size) == 2 else None)


def test_a_test_part_is_kept_in_its_order_and_the_rest_is_split_by_the_seed(tmp_path):
    write_idx(tmp_path)
    one, two = loaded(tmp_path, 1), loaded(tmp_path, 2)
    labels = labels_of(20, 3)
    for splits in (one, two):
        assert torch.equal(splits.y_test, torch.from_numpy(labels))
        assert torch.equal(raw(splits, "test"), torch.from_numpy(images_of(labels, seed=1).reshape(20, 12)))
        rows = torch.cat([raw(splits, "train"), raw(splits, "val")]).tolist()
        assert sorted(rows) == sorted(images_of(labels_of(60, 3)).reshape(60, 12).tolist())
        assert splits.y_train.bincount().tolist() == [15, 15, 15]
        assert splits.y_val.bincount().tolist() == [5, 5, 5]
    assert not torch.equal(raw(one, "val"), raw(two, "val"))


def test_labels_stay_with_their_images(tmp_path):
    write_idx(tmp_path, test=0)
    label_of = {
        tuple(image.ravel()): label for image, label in zip(images_of(labels_of(60, 3)), labels_of(60, 3), strict=True)
    }
    splits = loaded(tmp_path)
    for part in ("train", "val", "test"):
        of = [label_of[tuple(image)] for image in raw(splits, part).tolist()]
        assert getattr(splits, f"y_{part}").tolist() == of


@pytest.mark.parametrize("test", [0, 20])
def test_a_smaller_training_set_is_the_beginning_of_a_larger_one(tmp_path, test):
    write_idx(tmp_path, test=test)
    whole = loaded(tmp_path)
    for train_size in range(3, len(whole.x_train) + 1):
        some = loaded(tmp_path, train_size=train_size)
        assert torch.equal(raw(some, "train"), raw(whole, "train")[:train_size])
        assert torch.equal(raw(some, "val"), raw(whole, "val"))
        assert torch.equal(raw(some, "test"), raw(whole, "test"))


def test_split_and_fingerprint_are_the_same_wherever_the_folder_is(tmp_path, monkeypatch):
    here, there = write_idx(tmp_path / "here"), write_idx(tmp_path / "deep" / "there")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    roots = [str(here), str(there), "here", "deep/../here", "~/here"]
    assert len({fingerprint("idx", root) for root in roots}) == 1
    first = loaded(roots[0])
    for root in roots:
        assert torch.equal(loaded(root).x_train, first.x_train)
        assert torch.equal(loaded(root).y_val, first.y_val)


def test_fingerprint_tells_contents_apart(tmp_path):
    prints = [
        fingerprint("idx", str(write_idx(tmp_path / str(number), **options)))
        for number, options in enumerate([{}, {"seed": 1}, {"test": 0}, {"test": 21}, {"suffix": ".gz"}])
    ]
    assert len(set(prints)) == len(prints)
    write_idx(tmp_path / "swapped")
    for one, other in ((IMAGES, TEST_IMAGES), (LABELS, TEST_LABELS)):
        held = (tmp_path / "swapped" / one).read_bytes()
        (tmp_path / "swapped" / one).write_bytes((tmp_path / "swapped" / other).read_bytes())
        (tmp_path / "swapped" / other).write_bytes(held)
    assert fingerprint("idx", str(tmp_path / "swapped")) not in prints


def test_fingerprint_and_data_follow_a_file_that_changes(tmp_path):
    write_idx(tmp_path)
    before, splits = fingerprint("idx", str(tmp_path)), loaded(tmp_path)
    assert fingerprint("idx", str(tmp_path)) == before
    write_idx(tmp_path, train=75)
    assert fingerprint("idx", str(tmp_path)) != before
    assert len(loaded(tmp_path).x_train) > len(splits.x_train)


def test_a_group_of_networks_reads_once(tmp_path):
    write_idx(tmp_path)
    assert describe("idx", str(tmp_path)).read()[0] is describe("idx", str(tmp_path)).read()[0]


FOLDERS = [
    (lambda folder: None, None, "data.root: null is not a folder; data=idx needs the folder of {expected}"),
    (
        lambda folder: folder / "no",
        None,
        "data.root: '{folder}/no' does not exist; expected the folder of {expected}",
    ),
    (
        lambda folder: folder / "file",
        lambda folder: (folder / "file").write_text("text"),
        "data.root: '{folder}/file' is not a folder; expected the folder of {expected}",
    ),
    (lambda folder: folder, None, "data.root: '{folder}' is empty; expected {expected}"),
    (
        lambda folder: folder,
        lambda folder: (folder / "notes.txt").write_text("text"),
        "data.root: '{folder}' has no train-images file; expected {expected}",
    ),
    (
        lambda folder: folder,
        lambda folder: (write_idx(folder), (folder / LABELS).unlink()),
        "data.root: '{folder}' has no train-labels file; expected {expected}",
    ),
    (
        lambda folder: folder,
        lambda folder: (write_idx(folder), (folder / TEST_LABELS).unlink()),
        "data.root: '{folder}' has no t10k-labels file; expected {expected}",
    ),
    (
        lambda folder: folder,
        lambda folder: (write_idx(folder), (folder / IMAGES).unlink(), (folder / IMAGES).mkdir()),
        "data.root: '{folder}' has no train-images file; expected {expected}",
    ),
]


@pytest.mark.parametrize(("root", "make", "message"), FOLDERS, ids=numbered(row[2] for row in FOLDERS))
def test_bad_folder(tmp_path, root, make, message):
    if make:
        make(tmp_path)
    given, message = root(tmp_path), message.format(folder=tmp_path, expected=EXPECTED)
    given = None if given is None else str(given)
    for action in (
        lambda: check_sizes("idx", None, 1, root=given),
        lambda: load("idx", 0, root=given, dtype=torch.float32),
        lambda: fingerprint("idx", given),
        lambda: check_contents("idx", given),
    ):
        refused(action, message)


def header(*lengths, code=8):
    return struct.pack(f">HBB{len(lengths)}I", 0, code, len(lengths), *lengths)


PIXELS = bytes(60 * 12)
LABELS_OK = idx_bytes(labels_of(60, 3))

SEEN_IN_HEADERS = [
    (IMAGES, b"", "ends after 0 bytes; expected the header of an IDX file"),
    (IMAGES, b"\0\0\x08", "ends after 3 bytes; expected the header of an IDX file"),
    (IMAGES, header(60, 4, 3)[:10], "ends after 10 bytes; expected a header of 16"),
    (IMAGES, b"P6 4", "begins with 50362034; expected 0000 and a type, as IDX files do"),
    (
        IMAGES,
        gzip.compress(b"images", mtime=0),
        "begins with 1f8b0800, a compressed file; is .gz missing in its name?",
    ),
    (
        IMAGES,
        header(60, 4, 3, code=13) + 4 * PIXELS,
        "has numbers of type 0d (floats); expected 08 (unsigned bytes)",
    ),
    (IMAGES, header(60, 4, 3, code=7) + PIXELS, "has numbers of type 07 (unknown); expected 08 (unsigned bytes)"),
    (IMAGES, header(60) + bytes(60), "has 1 axes; expected at least 2, the images and their pixels"),
    (LABELS, header(60, 1) + bytes(60), "has 2 axes; expected 1, a label for each image"),
    (IMAGES, header(60, 4, 3) + PIXELS[1:], "is truncated: 735 bytes cannot hold the 736 that its header tells"),
    (
        IMAGES,
        header(2**32 - 1, 2**32 - 1, 2**32 - 1) + PIXELS,
        f"is truncated: 736 bytes cannot hold the {(2**32 - 1) ** 3 + 16} that its header tells",
    ),
    (IMAGES, header(60, 4, 3) + PIXELS + b"\0", "has 737 bytes; expected 736, as its header tells"),
    (IMAGES, header(0, 4, 3), "holds 0x4x3 numbers, none at all; expected some"),
    (IMAGES, header(60, 4, 0), "holds 60x4x0 numbers, none at all; expected some"),
    (
        IMAGES,
        header(59, 4, 3) + PIXELS[12:],
        "has 59 images, but train-labels-idx1-ubyte has 60 labels; expected as many",
    ),
    (
        TEST_IMAGES,
        idx_bytes(np.zeros((19, 4, 3))),
        "has 19 images, but t10k-labels-idx1-ubyte has 20 labels; expected as many",
    ),
    (
        TEST_IMAGES,
        idx_bytes(np.zeros((20, 3, 4))),
        "has images of 3x4; expected 4x3 as in train-images-idx3-ubyte",
    ),
    (LABELS, idx_bytes(np.zeros(60)), "has no label but 0; expected at least two classes"),
    (
        LABELS,
        idx_bytes([1] * 57 + [0] * 3),
        "has 3 samples of the label 0; expected at least 4 of each label that occurs",
    ),
    (LABELS, idx_bytes([2] * 60), "has no label but 2; expected at least two classes"),
    (TEST_LABELS, idx_bytes([0] * 5 + [7] * 15), "has the label 7 at sample 5; expected 0 to 2"),
]


@pytest.mark.parametrize(
    ("name", "content", "problem"), SEEN_IN_HEADERS, ids=numbered(row[2] for row in SEEN_IN_HEADERS)
)
def test_bad_file_is_seen_without_reading_the_images(tmp_path, name, content, problem):
    write_idx(tmp_path)
    (tmp_path / name).write_bytes(content)
    message = f"data.root: '{tmp_path / name}' {problem}"
    refused(lambda: check_sizes("idx", None, 1, root=str(tmp_path)), message)
    refused(lambda: loaded(tmp_path), message)


def test_labels_may_begin_at_one_and_leave_numbers_out(tmp_path):
    write_idx(tmp_path, test=0)
    (tmp_path / LABELS).write_bytes(idx_bytes([1, 2, 4] * 20))
    assert describe("idx", str(tmp_path)).outputs == 5
    splits = loaded(tmp_path)
    for part in ("train", "val", "test"):
        assert set(getattr(splits, f"y_{part}").tolist()) == {1, 2, 4}


def test_without_a_test_part_a_class_needs_a_sample_more(tmp_path):
    write_idx(tmp_path, test=0)
    for count, fits in ((4, False), (5, True)):
        (tmp_path / LABELS).write_bytes(idx_bytes([1] * count + [0] * (60 - count)))
        if fits:
            check_contents("idx", str(tmp_path))
        else:
            problem = "has 4 samples of the label 1; expected at least 5 of each label that occurs"
            refused(lambda: describe("idx", str(tmp_path)), f"data.root: '{tmp_path / LABELS}' {problem}")


COMPRESSED = gzip.compress(LABELS_OK, mtime=0)
TINY = gzip.compress(header(2**32 - 1), mtime=0)
DAMAGED = [
    (LABELS_OK, "is not a gzip file: Not a gzipped file (b'\\x00\\x00')"),
    (b"", "ends after 0 bytes; expected the header of an IDX file"),
    (COMPRESSED[:15], "is truncated: its compressed data ends too early"),
    (COMPRESSED[:-9], "is truncated: its compressed data ends too early"),
    (COMPRESSED[:-1], "is truncated: its compressed data ends too early"),
    (COMPRESSED[:-8] + b"\0\0\0\0" + COMPRESSED[-4:], "is damaged: CRC check failed 0x0 != {crc}"),
    (COMPRESSED + b"more", "is not a gzip file: Not a gzipped file (b'mo')"),
    (COMPRESSED[:10] + b"\xff" * 20, "is damaged: Error -3 while decompressing data: invalid block type"),
    (gzip.compress(LABELS_OK[:-1]), "is truncated: it holds 59 numbers of the 60 that its header tells"),
    (gzip.compress(LABELS_OK + b"\0"), "holds more than the 60 numbers that its header tells"),
    (
        TINY,
        f"is truncated: {len(TINY)} bytes cannot hold the {2**32 + 7} that its header tells",
    ),
]


@pytest.mark.parametrize(("content", "problem"), DAMAGED, ids=numbered(row[1] for row in DAMAGED))
def test_bad_compressed_file(tmp_path, content, problem):
    write_idx(tmp_path, suffix=".gz")
    (tmp_path / f"{LABELS}.gz").write_bytes(content)
    crc = hex(struct.unpack("<I", COMPRESSED[-8:-4])[0])
    problem = problem.format(crc=crc) if "{crc}" in problem else problem
    message = f"data.root: '{tmp_path / LABELS}.gz' {problem}"
    refused(lambda: check_contents("idx", str(tmp_path)), message)


def test_compressed_images_that_end_early_are_seen_when_they_are_read(tmp_path):
    write_idx(tmp_path, suffix=".gz")
    whole = gzip.decompress((tmp_path / f"{IMAGES}.gz").read_bytes())
    put(tmp_path / f"{IMAGES}.gz", whole[:-100])
    describe("idx", str(tmp_path))
    message = f"data.root: '{tmp_path / IMAGES}.gz' is truncated: it holds 620 numbers of the 720 that its header tells"
    refused(lambda: check_contents("idx", str(tmp_path)), message)


def test_a_published_file_must_have_its_checksum(tmp_path, monkeypatch):
    """The published files are not here: a table for the files of the test stands for theirs."""
    write_idx(tmp_path, suffix=".gz")
    path = tmp_path / f"{IMAGES}.gz"
    md5 = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    public = {(path.name, path.stat().st_size): ("MNIST", md5)}
    monkeypatch.setattr(folder, "PUBLIC", public)
    check_contents("idx", str(tmp_path))
    damaged = bytearray(path.read_bytes())
    damaged[200] ^= 1
    path.write_bytes(damaged)
    found = hashlib.md5(damaged, usedforsecurity=False).hexdigest()
    message = f"has the size of MNIST's, but is another: its md5 is {found}; expected {md5}"
    refused(lambda: check_contents("idx", str(tmp_path)), f"data.root: '{path}' {message}")
    path.write_bytes(bytes(damaged) + b"\0")
    with pytest.raises(ValueError, match=r"is damaged|is not a gzip file"):
        check_contents("idx", str(tmp_path))


def test_the_table_of_published_files_is_of_the_names_that_are_read():
    names = [name for name, _ in folder.PUBLIC]
    assert len(folder.PUBLIC) == 14
    assert set(names) == {
        f"{role}-{kind}.gz" for role in ("train", "t10k") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
    } | {
        *(f"data_batch_{number}" for number in range(1, 6)),
        "test_batch",
    }
    digests = [md5 for _, md5 in folder.PUBLIC.values()]
    assert len(set(digests)) == len(digests)
    assert all(re.fullmatch("[0-9a-f]{32}", md5) for md5 in digests)


@pytest.mark.parametrize("reading", ["open", "iterdir"])
def test_a_system_that_refuses_is_quoted(tmp_path, monkeypatch, reading):
    write_idx(tmp_path)

    def deny(path, *_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(f"pathlib.Path.{reading}", deny)
    where = tmp_path / IMAGES if reading == "open" else tmp_path
    refused(lambda: describe("idx", str(tmp_path)), f"data.root: '{where}' cannot be read: Permission denied")


def test_sizes_that_do_not_fit(tmp_path):
    root = str(write_idx(tmp_path))
    check_sizes("idx", 3, 3, root=root)
    check_sizes("idx", None, 45, root=root)
    for train_size, batch_size, message in (
        (46, 1, "data.train_size: 46 is larger than the training part of idx (45); choose at most 45"),
        (2, 1, "data.train_size: 2 is too small to stratify 3 classes; choose at least 3"),
        (None, 46, "train.batch_size: 46 is larger than the training set (45); choose at most 45"),
    ):
        refused(lambda sizes=(train_size, batch_size): check_sizes("idx", *sizes, root=root), message)
