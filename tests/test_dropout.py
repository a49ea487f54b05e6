"""Dropout masks: how many units, of which networks, and the same again."""

import math

import pytest
import torch

from bpexp.dropout import LARGEST_DROPOUT, MASK_LEVELS, Masks
from bpexp.rules.regularization import network_dropout

SHAPE = (3, 32, 50)
DEVIATIONS = 5.0
"""A share of n draws lies within 5 standard deviations, sqrt(p (1 - p) / n), of its probability p."""


def masks(probabilities, seeds=(0,), which=None, shape=SHAPE, dtype=torch.float64):
    places = torch.tensor(which if which is not None else [0] * len(probabilities))
    made = Masks(probabilities, seeds, places, shape, dtype)
    made.fill()
    return made


def filled(made, times):
    """Return that many masks in a row, each (R, L, B, W)."""
    found = []
    for _ in range(times):
        made.fill()
        found.append(made.values.clone())
    return torch.stack(found)


def assert_share(dropped, p):
    bound = DEVIATIONS * math.sqrt(p * (1 - p) / dropped.numel())
    assert abs(float(dropped.double().mean()) - p) <= bound


def test_probability_and_scale_of_each_network():
    probabilities = [0.0, 0.01, 0.1, 0.25, 0.5, 0.9, 0.99]
    made = masks(probabilities, seeds=range(7), which=range(7))
    values = filled(made, 20)
    for network, p in enumerate(probabilities):
        of_network = values[:, network]
        assert_share(of_network == 0, p)
        kept = of_network[of_network != 0]
        level = round(p * MASK_LEVELS) / MASK_LEVELS
        assert abs(level - p) <= 0.5 / MASK_LEVELS
        below = math.floor(level * 256)
        thresholds = {below} if below == level * 256 else {below, below + 1}
        assert set(kept.tolist()) == {256 / (256 - t) for t in thresholds}
        # A layer has one of the two at a step; the mean of a mask is 1: kept units stand for the dropped ones.
        for mask in of_network.flatten(0, 1):
            assert mask[mask != 0].unique().numel() == 1
        bound = DEVIATIONS * math.sqrt(level / (1 - level) / of_network.numel())
        assert abs(float(of_network.mean()) - 1) <= bound


def test_every_place_of_a_word_drops_alike():
    """Eight units share 64 bits: none of them has a bit that is stuck."""
    values = filled(masks([0.5], shape=(1, 64, 64)), 20).flatten(1)
    for place in range(8):
        assert_share(values[:, place::8] == 0, 0.5)


def test_the_threshold_between_two_bytes_is_chosen_as_often_as_the_probability_asks():
    """Of 256 p = 76.8 the upper threshold, 77, has a share of 0.8, layer by layer."""
    made = masks([0.3], shape=(4, 8, 8))
    level = round(0.3 * MASK_LEVELS)
    upper = filled(made, 2000).amax((3, 4)).flatten() == 256 / (256 - 77)
    assert_share(upper, (level % 256) / 256)


def test_every_level_is_drawn_as_often_as_any_other():
    """How many of 64 nested masks drop a unit says in which 64th of the levels its bits lie: uniform, by chi-square."""
    from scipy.stats import chi2

    shares = [k / 64 for k in range(1, 64)]
    values = filled(masks(shares, shape=(1, 100, 100)), 10)
    bins = (values == 0).sum(1).flatten().bincount(minlength=64).double()
    expected = bins.sum() / 64
    assert float(((bins - expected) ** 2 / expected).sum()) < chi2.ppf(1 - 1e-6, 63)


def test_networks_of_one_seed_drop_nested_sets():
    probabilities = [0.1, 0.7, 0.3, 0.3]
    dropped = masks(probabilities).values == 0
    for one, p in enumerate(probabilities):
        for other, q in enumerate(probabilities):
            assert bool((dropped[one] <= dropped[other]).all()) == (p <= q)


def test_alone_and_in_a_group_the_masks_are_the_same():
    seeds, which, probabilities = (5, 9, 2), [0, 1, 1, 2, 0], [0.1, 0.5, 0.3, 0.8, 0.6]
    group = masks(probabilities, seeds, which)
    singles = [masks([p], (seeds[place],)) for p, place in zip(probabilities, which, strict=True)]
    for _ in range(3):
        for network, single in enumerate(singles):
            assert torch.equal(single.values[0], group.values[network])
            single.fill()
        group.fill()


def test_alone_and_among_networks_of_other_depths_the_masks_are_the_same():
    """Networks of one seed but of different depth draw different numbers."""
    _, batch, width = SHAPE
    seeds, which, depths, probabilities = (5, 9), [0, 0, 1, 0], [3, 2, 2, 1], [0.1, 0.5, 0.3, 0.8]
    group = Masks(probabilities, seeds, torch.tensor(which), SHAPE, torch.float64, depths=depths)
    assert [len(layer.noise) for layer in group.layers] == [4, 3, 1]
    singles = [
        Masks([p], (seeds[place],), torch.tensor([0]), (depth, batch, width), torch.float64)
        for p, place, depth in zip(probabilities, which, depths, strict=True)
    ]
    for _ in range(3):
        group.fill()
        for network, (single, depth) in enumerate(zip(singles, depths, strict=True)):
            single.fill()
            for layer in range(depth):
                alone, among = (
                    network_dropout(torch.ones(r, batch, width), *masks.layers[layer])
                    for masks, r in ((single, 1), (group, len(group.layers[layer].noise)))
                )
                assert torch.equal(alone[0], among[network])


def test_restore_draws_the_same_again():
    made = masks([0.3, 0.6], (1, 4), [0, 1])
    state = made.state()
    first = filled(made, 3)
    assert not torch.equal(first[0], first[1])
    made.restore(state)
    assert torch.equal(filled(made, 3), first)
    made.restore(state)
    assert torch.equal(filled(made, 1)[0], first[0])


@pytest.mark.parametrize(
    ("p", "scale"), [(0.0, 1.0), (1e-9, 1.0), (1 - 1e-9, 256.0), (0.999999, 256.0), (LARGEST_DROPOUT, 256.0)]
)
def test_probabilities_near_the_ends(p, scale):
    values = filled(masks([p], shape=(4, 64, 64), dtype=torch.float32), 40)
    assert set(values.unique().tolist()) == {0.0, scale} if p > 0.5 else {1.0}
    assert_share(values == 0, LARGEST_DROPOUT if p > 0.5 else 0.0)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 3), (3, 5, 7), (2, 3, 5), (1, 2, 2)])
def test_sizes_that_fill_no_whole_word(shape):
    """Every unit is dropped now and then, the last ones as well; 60 draws miss it with probability 2e-18."""
    values = filled(masks([0.5], shape=shape), 60)
    assert values.shape == (60, 1, *shape)
    assert ((values == 0).any(0) & (values == 2).any(0)).all()


def test_layers_steps_and_seeds_are_independent():
    """Of two masks with p = 0.5, a quarter of the units is dropped by both."""
    values = filled(masks([0.5, 0.5], (0, 1), [0, 1], shape=(2, 100, 100)), 2) == 0
    step, other_step = values
    assert_share(step & other_step, 0.25)
    assert_share(step[0] & step[1], 0.25)
    assert_share(step[:, 0] & step[:, 1], 0.25)
    assert_share(step[..., 1:] & step[..., :-1], 0.25)


def test_masks_are_filled_in_place():
    made = masks([0.5, 0.2], shape=(3, 4, 5), dtype=torch.float32)
    layers = list(made.layers)
    assert [layer.noise.shape for layer in layers] == [(2, 4, 5)] * 3
    before = made.values
    made.fill()
    assert not torch.equal(made.values, before)
    assert made.values.dtype == torch.float32
    for number, layer in enumerate(layers):
        assert torch.equal(network_dropout(torch.ones(2, 4, 5), *layer), made.values[:, number])
