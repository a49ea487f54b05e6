"""Data sets: what the table declares, how it is split and standardized, and what is refused."""

import dataclasses
import importlib.util
import math
import re
import statistics

import numpy as np
import pytest
import torch

from bpexp.data import (
    DATA,
    DataSet,
    Splits,
    check_batch_size,
    check_contents,
    check_sizes,
    describe,
    digits,
    fingerprint,
    load,
)
from bpexp.data.splits import byte_standardization, part_sizes, standardization, standardized, stratified_order

PARTS = ("train", "val", "test")

ROWS = [name for name, row in DATA.items() if isinstance(row, DataSet)]
"""The data sets that come with a package; those of folders have tests of their own."""

OF_COLUMNS = [name for name in ROWS if name != "mnist"]
"""Those whose columns are each standardized by themselves."""


def loaded(name: str, seed: int = 0, train_size: int | None = None, dtype: torch.dtype = torch.float64) -> Splits:
    return load(name, seed, train_size=train_size, dtype=dtype)


def exactly(message: str) -> str:
    """Return the pattern of the whole message."""
    return f"^{re.escape(message)}$"


def stub(monkeypatch: pytest.MonkeyPatch, x: torch.Tensor, y: torch.Tensor, task: str = "classification") -> None:
    """Put a data set named "stub" into the table."""
    outputs = int(y.max()) + 1 if task == "classification" else y.shape[1]
    row = DataSet("stub", task, len(x), x.shape[1], outputs, "test", lambda: (x, y))  # type: ignore[arg-type]
    monkeypatch.setitem(DATA, "stub", row)


def numbered(monkeypatch: pytest.MonkeyPatch, counts: list[int]) -> None:
    """Put in a stub whose only feature is the sample's number, with `counts` samples a class."""
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    stub(monkeypatch, torch.arange(len(labels), dtype=torch.float64)[:, None], labels)


def members(splits: Splits, part: str) -> list[int]:
    """Return the numbers of a part's samples, from a `numbered` stub."""
    x: torch.Tensor = getattr(splits, f"x_{part}")
    return (x * splits.std + splits.mean).round().long().squeeze(1).tolist()


@pytest.mark.parametrize("name", ROWS)
def test_row_declares_what_is_read(name: str) -> None:
    row = describe(name)
    assert row is DATA[name]
    x, y = row.read()
    assert row.name == name
    assert row.source
    assert row.read()[0] is x, "a group of networks reads once"
    assert x.shape == (row.samples, row.features)
    assert x.dtype == (torch.uint8 if row.as_bytes else torch.float64)
    assert row.as_bytes == (name == "mnist")
    assert row.shape is None or math.prod(row.shape) == row.features
    if row.task == "classification":
        assert y.dtype == torch.int64
        assert set(y.tolist()) == set(range(row.outputs))
    else:
        assert y.dtype == torch.float64
        assert y.shape == (row.samples, row.outputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", ROWS)
def test_splits_have_the_stated_shapes(name: str, dtype: torch.dtype) -> None:
    row, splits = describe(name), loaded(name, dtype=dtype)
    assert (splits.name, splits.task, splits.features, splits.outputs) == (name, row.task, row.features, row.outputs)
    assert splits.shape == row.shape
    for part, size in zip(PARTS, part_sizes(row.samples), strict=True):
        x, y = getattr(splits, f"x_{part}"), getattr(splits, f"y_{part}")
        assert x.dtype == dtype
        assert x.shape == (size, row.features)
        if row.task == "classification":
            assert y.dtype == torch.int64
            assert y.shape == (size,)
        else:
            assert y.dtype == dtype
            assert y.shape == (size, row.outputs)


@pytest.mark.parametrize(("samples", "sizes"), [(1797, (1078, 359, 360)), (1000, (600, 200, 200)), (5, (3, 1, 1))])
def test_part_sizes(samples: int, sizes: tuple[int, int, int]) -> None:
    assert part_sizes(samples) == sizes


@pytest.mark.parametrize(
    ("samples", "own_test", "sizes"), [(70000, 10000, (45000, 15000, 10000)), (11, 1, (7, 3, 1)), (9, 5, (3, 1, 5))]
)
def test_part_sizes_beside_a_test_part(samples: int, own_test: int, sizes: tuple[int, int, int]) -> None:
    assert part_sizes(samples, own_test) == sizes


@pytest.mark.parametrize("train_size", [None, 6])
def test_parts_are_disjoint_and_samples_keep_their_labels(
    monkeypatch: pytest.MonkeyPatch, train_size: int | None
) -> None:
    numbered(monkeypatch, [30, 50, 20])
    splits = loaded("stub", train_size=train_size)
    parts = {part: members(splits, part) for part in PARTS}
    everything = [sample for part in parts.values() for sample in part]
    assert len(set(everything)) == len(everything) == (100 if train_size is None else 46)
    labels = describe("stub").read()[1]
    for part, samples in parts.items():
        assert torch.equal(getattr(splits, f"y_{part}"), labels[samples])


def test_evaluation_parts_do_not_move_with_train_size_and_subsets_are_nested(monkeypatch: pytest.MonkeyPatch) -> None:
    numbered(monkeypatch, [30, 50, 20])
    whole = loaded("stub")
    for train_size in range(3, 61):
        subset = loaded("stub", train_size=train_size)
        assert members(subset, "train") == members(whole, "train")[:train_size]
        assert members(subset, "val") == members(whole, "val")
        assert members(subset, "test") == members(whole, "test")


def test_split_is_a_function_of_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    numbered(monkeypatch, [30, 50, 20])
    for part in PARTS:
        assert members(loaded("stub", 1), part) == members(loaded("stub", 1), part)
        assert set(members(loaded("stub", 1), part)) != set(members(loaded("stub", 2), part))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("train_size", [None, 10, 11, 37, 100, 500, 1077])
def test_digits_parts_are_stratified(seed: int, train_size: int | None) -> None:
    share = describe("digits").read()[1].bincount() / describe("digits").samples
    splits = loaded("digits", seed, train_size)
    for labels in (splits.y_train, splits.y_val, splits.y_test):
        counts = labels.bincount(minlength=10)
        assert (counts - share * len(labels)).abs().max() <= 1
        assert counts.min() >= 1


def test_every_class_comes_first_once_and_then_in_proportion() -> None:
    labels = torch.tensor([0] * 90 + [1] * 9 + [2])
    ordered = labels[stratified_order(labels, torch.Generator().manual_seed(0))]
    assert sorted(ordered[:3].tolist()) == [0, 1, 2]
    for length in range(3, 101):
        rare = int((ordered[:length] == 1).sum())
        assert abs(rare - 0.09 * length) <= 1.1


@pytest.mark.parametrize("train_size", [None, 40])
@pytest.mark.parametrize("name", OF_COLUMNS)
def test_standardization_is_fitted_on_the_training_samples(name: str, train_size: int | None) -> None:
    splits = loaded(name, train_size=train_size)
    standardized = [splits.x_train] if splits.task == "classification" else [splits.x_train, splits.y_train]
    for values in standardized:
        spread = values.std(0, correction=0)
        constant = values.amax(0) == values.amin(0)
        torch.testing.assert_close(values.mean(0), torch.zeros_like(spread), rtol=0, atol=1e-12)
        torch.testing.assert_close(spread, (~constant).double(), rtol=0, atol=1e-12)
    assert splits.x_val.mean(0).abs().max() > 1e-3, "the validation part has means of its own"


@pytest.mark.parametrize("name", ROWS)
def test_mean_and_std_lead_back_to_the_raw_features(name: str) -> None:
    splits = loaded(name)
    restored = torch.cat([getattr(splits, f"x_{part}") for part in PARTS]) * splits.std + splits.mean
    raw = describe(name).read()[0].double()
    torch.testing.assert_close(restored.sort(0).values, raw.sort(0).values, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("train_size", [None, 40])
def test_images_of_bytes_have_one_mean_and_deviation(train_size: int | None) -> None:
    splits = loaded("mnist", train_size=train_size)
    torch.testing.assert_close(splits.x_train.mean(), torch.zeros((), dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(splits.x_train.square().mean(), torch.ones((), dtype=torch.float64), rtol=0, atol=1e-12)
    assert len(splits.mean.unique()) == len(splits.std.unique()) == 1
    assert splits.x_val.abs().max() < 4, "no pixel is far away because few training images light it"


@pytest.mark.parametrize("groups", [1, 3, 6, 12])
@pytest.mark.parametrize("rows", [1, 5, 300, 600])
def test_bytes_of_a_group_of_columns_have_their_exact_mean_and_deviation(groups: int, rows: int) -> None:
    """600 rows are several pieces; `statistics` computes in fractions."""
    stream = torch.Generator().manual_seed(0)
    x = torch.randint(256, (700, 12), dtype=torch.uint8, generator=stream)
    x[:, :4] = 7
    train = torch.randperm(700, generator=stream)[:rows]
    mean, std = byte_standardization(x, train, groups)
    size = 12 // groups
    for group in range(groups):
        columns = slice(group * size, (group + 1) * size)
        values = x[train][:, columns].flatten().tolist()
        expected = statistics.pstdev(values) if len(set(values)) > 1 else 1.0
        assert mean[columns].tolist() == pytest.approx([statistics.mean(values)] * size, rel=1e-15)
        assert std[columns].tolist() == pytest.approx([expected] * size, rel=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_pieces_are_standardized_as_the_whole_bit_for_bit(dtype: torch.dtype) -> None:
    x = torch.randint(256, (700, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    rows = torch.arange(699, -1, -1)
    mean, std = standardization(x.double())
    assert torch.equal(standardized(x, rows, mean, std, dtype), ((x[rows] - mean) / std).to(dtype))


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e6 / 3])
def test_constant_feature_becomes_zero(monkeypatch: pytest.MonkeyPatch, constant: float) -> None:
    stub(monkeypatch, torch.full((100, 1), constant, dtype=torch.float64), torch.arange(100) % 2)
    splits = loaded("stub")
    assert splits.std.tolist() == [1.0]
    assert splits.x_val.abs().max() <= 1e-9


@pytest.mark.parametrize("name", ROWS)
def test_loading_changes_neither_the_cached_data_nor_the_global_generator(name: str) -> None:
    x, y = (values.clone() for values in describe(name).read())
    state = torch.get_rng_state()
    splits = loaded(name)
    splits.x_train.zero_()
    splits.y_train.zero_()
    assert torch.equal(describe(name).read()[0], x)
    assert torch.equal(describe(name).read()[1], y)
    assert torch.equal(torch.get_rng_state(), state)


def test_regression_is_one_problem_that_a_linear_model_cannot_solve() -> None:
    x, y = describe("regression").read()
    describe("regression").read.cache_clear()
    again_x, again_y = describe("regression").read()
    assert torch.equal(x, again_x)
    assert torch.equal(y, again_y)
    design = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], dim=1)
    residual = y - design @ torch.linalg.lstsq(design, y).solution
    assert 0.1 < (residual.var() / y.var()).item() < 0.9


SIZE_ERRORS = [
    (
        "digits",
        5000,
        "data.train_size: 5000 is larger than the training part of digits (1078); choose at most 1078",
    ),
    ("digits", 7, "data.train_size: 7 is too small to stratify 10 classes; choose at least 10"),
    ("digits", -1, "data.train_size: -1 is too small to stratify 10 classes; choose at least 10"),
    ("regression", 1, "data.train_size: 1 is too small to standardize; choose at least 2"),
    (
        "regression",
        601,
        "data.train_size: 601 is larger than the training part of regression (600); choose at most 600",
    ),
]


@pytest.mark.parametrize(("name", "train_size", "message"), SIZE_ERRORS)
def test_bad_train_size_is_refused(name: str, train_size: int, message: str) -> None:
    with pytest.raises(ValueError, match=exactly(message)):
        loaded(name, train_size=train_size)
    with pytest.raises(ValueError, match=exactly(message)):
        check_sizes(name, train_size, 1)


def test_digits_are_those_that_scikit_learn_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    for found in (lambda name: None, importlib.util.find_spec):  # by the package, and from its file
        monkeypatch.setattr(importlib.util, "find_spec", found)
        x, y = digits.read.__wrapped__()
        np.testing.assert_array_equal(x.numpy(), images)
        np.testing.assert_array_equal(y.numpy(), labels)
        assert (x.dtype, y.dtype, x.is_contiguous()) == (torch.float64, torch.int64, True)


@pytest.mark.parametrize(("name", "train_size"), [("digits", 10), ("digits", 1078), ("regression", 2)])
def test_sizes_at_the_limits_are_accepted(name: str, train_size: int) -> None:
    splits = loaded(name, train_size=train_size)
    assert len(splits.x_train) == len(splits.y_train) == train_size
    check_batch_size(splits, train_size)
    check_sizes(name, train_size, train_size)


BATCH_ERRORS = [
    (None, 2000, "train.batch_size: 2000 is larger than the training set (1078); choose at most 1078"),
    (100, 101, "train.batch_size: 101 is larger than the training set (100); choose at most 100"),
    (None, 0, "train.batch_size: 0 is too small; choose at least 1"),
]


@pytest.mark.parametrize(("train_size", "batch_size", "message"), BATCH_ERRORS)
def test_bad_batch_size_is_refused(train_size: int | None, batch_size: int, message: str) -> None:
    splits = loaded("digits", train_size=train_size)
    with pytest.raises(ValueError, match=exactly(message)):
        check_batch_size(splits, batch_size)
    with pytest.raises(ValueError, match=exactly(message)):
        check_sizes("digits", train_size, batch_size)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_bad_feature_is_refused(monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    x, y = describe("digits").read()
    x = x.clone()
    x[17, 3] = value
    x[40, 1] = math.nan
    monkeypatch.setitem(DATA, "digits", dataclasses.replace(describe("digits"), read=lambda: (x, y)))
    with pytest.raises(ValueError, match=exactly(f"data: digits: feature 3 of sample 17 is {value}")):
        loaded("digits")


def test_bad_target_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = torch.zeros(20, 2, dtype=torch.float64), torch.zeros(20, 3, dtype=torch.float64)
    y[5, 2] = math.inf
    stub(monkeypatch, x, y, "regression")
    with pytest.raises(ValueError, match=exactly("data: stub: target 2 of sample 5 is inf")):
        loaded("stub")


@pytest.mark.parametrize("name", ROWS)
def test_a_folder_for_a_data_set_that_needs_none_is_refused(name: str) -> None:
    message = f"data.root: 'somewhere' would be ignored by data={name}; choose data=idx or data=cifar10"
    with pytest.raises(ValueError, match=exactly(message)):
        check_sizes(name, None, 1, root="somewhere")
    with pytest.raises(ValueError, match=exactly(message)):
        load(name, 0, root="somewhere", dtype=torch.float32)


@pytest.mark.parametrize("name", ROWS)
def test_data_of_a_package_is_whole_and_has_no_fingerprint(name: str) -> None:
    check_contents(name)
    assert fingerprint(name, None) == ""


def test_check_contents_names_what_is_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(20, 2, dtype=torch.float64)
    x[3, 1] = math.nan
    stub(monkeypatch, x, torch.arange(20) % 2)
    with pytest.raises(ValueError, match=exactly("data: stub: feature 1 of sample 3 is nan")):
        check_contents("stub")


@pytest.mark.parametrize(
    "action", [lambda: loaded("digit"), lambda: check_sizes("digit", None, 1)], ids=["load", "check_sizes"]
)
def test_unknown_data_set_is_refused_with_the_nearest(action) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(
        ValueError, match=exactly(f"data: unknown 'digit'; did you mean 'digits'? choose from {', '.join(DATA)}")
    ):
        action()
