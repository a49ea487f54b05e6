"""Batches: whole epochs without repetition, each network's own split and order, the same alone and in a group."""

import pytest
import torch

from bpexp.data import batches as module
from bpexp.data import load
from bpexp.data.batches import Batches, Bytes, Parts, make_parts
from bpexp.streams import generator

SIZES = [("digits", 100, 16), ("digits", 100, 100), ("digits", 37, 36), ("digits", 10, 1), ("regression", 50, 7)]


def part_of(name, size, seeds, which, part="train"):
    splits = [load(name, seed, train_size=size, dtype=torch.float64) for seed in seeds]
    x, y = (torch.stack([getattr(split, f"{letter}_{part}") for split in splits]) for letter in "xy")
    return Parts(x, y, torch.tensor(which)), splits


def batches_of(name, size, batch_size, seeds, which):
    return Batches(part_of(name, size, seeds, which)[0], seeds, batch_size)


def rows_of(batch, split):
    """Which training sample each row of a batch is; the rows of a split differ from one another."""
    same = (batch[:, None] == split.x_train[None]).all(2)
    assert (same.sum(1) == 1).all()
    return same.int().argmax(1)


def epoch_of(batches, network, split):
    found = []
    for _ in range(len(split.x_train) // batches.batch_size):
        batches.fill()
        rows = rows_of(batches.x[network], split)
        assert torch.equal(batches.y[network], split.y_train[rows])
        found.append(rows)
    return torch.cat(found)


@pytest.mark.parametrize(("name", "size", "batch_size"), SIZES)
def test_an_epoch_has_every_sample_once_and_leaves_out_what_fills_no_batch(name, size, batch_size):
    seeds, which = (4, 0), [1, 0, 1]
    part, splits = part_of(name, size, seeds, which)
    for network, place in enumerate(which):
        batches = Batches(part, seeds, batch_size)
        epochs = [epoch_of(batches, network, splits[place]) for _ in range(3)]
        for epoch in epochs:
            assert len(epoch.unique()) == len(epoch) == size // batch_size * batch_size
        assert not torch.equal(epochs[0], epochs[1])
        assert not torch.equal(epochs[1], epochs[2])


@pytest.mark.parametrize(("name", "size", "batch_size"), SIZES)
def test_the_order_is_a_permutation_from_the_seeds_own_stream(name, size, batch_size):
    """Samples that an epoch leaves out are others in the next: each is seen, a permutation's first ones at a time."""
    _, (split,) = part_of(name, size, (6,), [0])
    batches, stream = batches_of(name, size, batch_size, (6,), [0]), generator(6, "order")
    used = size // batch_size * batch_size
    for _ in range(4):
        expected = torch.randperm(size, generator=stream)[:used]
        assert torch.equal(epoch_of(batches, 0, split), expected)


def test_every_sample_comes_up_as_often_as_any_other():
    """Of 10 samples a batch of 7 leaves out 3, not always the same."""
    _, (split,) = part_of("regression", 10, (1,), [0])
    batches, counts = batches_of("regression", 10, 7, (1,), [0]), torch.zeros(10)
    for _ in range(400):
        counts += epoch_of(batches, 0, split).bincount(minlength=10)
    # 400 epochs, each with probability 0.7: within 5 standard deviations
    assert ((counts - 280).abs() <= 5 * (400 * 0.7 * 0.3) ** 0.5).all()


@pytest.mark.parametrize("name", ["digits", "regression"])
def test_alone_and_in_a_group_the_batches_are_the_same_and_seeds_share_an_order(name):
    seeds, which = (3, 8, 1), [0, 2, 1, 2, 0]
    group = batches_of(name, 60, 25, seeds, which)
    singles = [batches_of(name, 60, 25, (seeds[place],), [0]) for place in which]
    for _ in range(7):
        group.fill()
        for network, single in enumerate(singles):
            single.fill()
            assert torch.equal(group.x[network], single.x[0])
            assert torch.equal(group.y[network], single.y[0])
        assert torch.equal(group.x[0], group.x[4])
        assert not torch.equal(group.x[0], group.x[1])


@pytest.mark.parametrize("before", [0, 1, 3, 4, 31, 32, 33])
def test_a_restored_state_goes_on_with_the_same_batches(before):
    """From the start, within an epoch, at its end, and around the next draw; as often as is asked for."""
    batches = batches_of("digits", 100, 25, (2, 5), [0, 1])
    assert batches.epochs * batches.batches == 32  # to a draw
    batches.state()
    for _ in range(before):
        batches.fill()
    state = batches.state()

    def following():
        found = []
        for _ in range(34):
            batches.fill()
            found.append(batches.x.clone())
        return torch.stack(found)

    first = following()
    for _ in range(2):
        batches.restore(state)
        assert torch.equal(following(), first)


def test_batches_are_filled_in_place():
    batches = batches_of("regression", 20, 6, (0, 1), [0, 1, 1])
    assert (batches.x.shape, batches.y.shape) == ((3, 6, 8), (3, 6, 1))
    before = batches.x.data_ptr(), batches.y.data_ptr()
    for _ in range(5):
        batches.fill()
    assert (batches.x.data_ptr(), batches.y.data_ptr()) == before


def test_samples_of_a_part_are_those_of_each_networks_seed():
    seeds, which = (7, 2), [1, 0, 1]
    for part in ("val", "test"):
        parts, splits = part_of("digits", 40, seeds, which, part)
        for some in (slice(None), slice(0, 100), slice(300, 400)):
            x, y = parts.some(some)
            for network, place in enumerate(which):
                assert torch.equal(x[network], getattr(splits[place], f"x_{part}")[some])
                assert torch.equal(y[network], getattr(splits[place], f"y_{part}")[some])


HELD = [([0, 1], torch.float32), ([1, 0, 1], torch.float32), ([1, 0, 1], torch.float64)]


@pytest.mark.parametrize(("which", "dtype"), HELD, ids=["own-float32", "shared-float32", "shared-float64"])
def test_samples_held_as_bytes_are_bit_for_bit_those_standardized_beforehand(monkeypatch, which, dtype):
    seeds, found = (3, 8), []
    splits = [load("mnist", seed, train_size=300, dtype=dtype) for seed in seeds]
    for largest in (2**40, 0):
        monkeypatch.setattr(module, "LARGEST_COPIES", largest)
        parts = make_parts(splits, torch.tensor(which), lambda y: y)
        assert [isinstance(part.x, Bytes) for part in parts] == [largest == 0] * 3
        batches, numbers = Batches(parts[0], seeds, 140), []
        for _ in range(3):
            batches.fill()
            numbers += [batches.x.clone(), batches.y.clone()]
        found.append(numbers + [tensor for part in parts for tensor in part.some(slice(5, 200))])
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))
    for network, place in enumerate(which):
        assert torch.equal(found[1][-2][network], splits[place].x_test[5:200])
        stream = generator(seeds[place], "order")
        order = torch.cat([torch.randperm(300, generator=stream)[:280] for _ in range(2)])
        for number, some in enumerate(order.split(140)[:3]):
            assert torch.equal(found[1][2 * number][network], splits[place].x_train[some])
            assert torch.equal(found[1][2 * number + 1][network], splits[place].y_train[some])


def test_seeds_share_the_bytes_that_are_held(monkeypatch):
    monkeypatch.setattr(module, "LARGEST_COPIES", 0)
    splits = [load("mnist", seed, dtype=torch.float32) for seed in range(3)]
    parts = make_parts(splits, torch.tensor([0, 1, 2]), lambda y: y)
    assert {part.x.raw.data_ptr() for part in parts} == {splits[0].x.data_ptr()}


def test_small_data_and_what_is_no_bytes_are_held_as_numbers(monkeypatch):
    for largest, name in ((0, "digits"), (2**40, "mnist")):
        monkeypatch.setattr(module, "LARGEST_COPIES", largest)
        parts = make_parts([load(name, 0, dtype=torch.float32)], torch.tensor([0]), lambda y: y)
        assert all(isinstance(part.x, torch.Tensor) for part in parts)
