"""The word and the gain at the edges, the interval against scipy."""

import math

import numpy as np
import pytest
from scipy import stats

from bpexp.verdict import LIMIT, judge

INF, NAN = math.inf, math.nan


def up(x):
    return float(np.nextafter(x, INF))


def down(x):
    return float(np.nextafter(x, 0))


# delta_rms by layer, 1 next to the input; the word
WORDS = {
    "even": ([1, 1, 1], "healthy"),
    "a-hundredth": ([0.01, 0.3, 1], "healthy"),
    "below-a-hundredth": ([down(0.01), 0.3, 1], "vanishing"),
    "a-hundredfold": ([100, 3, 1], "healthy"),
    "above-a-hundredfold": ([up(100), 3, 1], "exploding"),
    "only-the-ends-count": ([1, 1e9, 1e-9, 1], "healthy"),
    "one-layer": ([5], "healthy"),
    "one-tiny-layer": ([1e-300], "healthy"),
    "two-layers": ([1, 1], "healthy"),
    "two-vanishing": ([1e-3, 1], "vanishing"),
    "two-exploding": ([1e3, 1], "exploding"),
    "a-zero-at-the-input": ([0, 0.9, 1], "vanishing"),
    "zeros": ([0, 0, 0], "vanishing"),
    "one-zero-layer": ([0], "vanishing"),
    "infinite": ([INF, 1e30, 1], "exploding"),
    "nan": ([NAN, NAN, NAN], "exploding"),
    "one-infinite-layer": ([INF], "exploding"),
    "a-zero-and-an-infinity": ([0, 1, INF], "exploding"),
    "the-ends-of-float64-up": ([1e300, 1, 1e-300], "exploding"),
    "the-ends-of-float64-down": ([1e-300, 1, 1e300], "vanishing"),
}


@pytest.mark.parametrize(("delta", "word"), WORDS.values(), ids=WORDS)
def test_the_word(delta, word):
    assert judge(delta).word == word
    assert judge(np.array(delta, dtype=float)).word == word


def test_the_limit_is_a_factor_of_a_hundred():
    assert LIMIT == 100


@pytest.mark.parametrize("depth", [3, 4, 16, 64])
def test_the_gain_and_its_interval_are_scipys(depth):
    factors = np.exp(np.random.default_rng(depth).normal(-0.05, 0.2, depth - 1))
    delta = np.append(np.cumprod(factors[::-1])[::-1], 1.0) * 1e-3
    found = judge(delta)
    logs = np.log(factors)
    low, high = stats.t.interval(0.95, depth - 2, loc=logs.mean(), scale=stats.sem(logs))
    assert found.backward_gain == pytest.approx((delta[0] / delta[-1]) ** (1 / (depth - 1)), rel=1e-12)
    assert found.backward_gain == pytest.approx(stats.gmean(factors), rel=1e-12)
    assert found.low == pytest.approx(math.exp(low), rel=1e-12)
    assert found.high == pytest.approx(math.exp(high), rel=1e-12)


def test_the_direction_is_towards_the_input():
    assert judge([8, 4, 2, 1]).backward_gain == pytest.approx(2, rel=1e-15)
    assert judge([1, 2, 4, 8]).backward_gain == pytest.approx(0.5, rel=1e-15)


UNKNOWN = {
    "one-layer": ([2], (False, False)),
    "two-layers": ([2, 1], (True, False)),
    "three-layers": ([4, 2, 1], (True, True)),
    "zeros": ([0, 0, 0, 0], (False, False)),
    "infinite": ([INF, 1, 1, 1], (False, False)),
    "nan": ([1, 1, NAN, 1], (False, False)),
    "zeros-to-the-last": ([0, 0, 0, 1], (False, False)),
    "zeros-but-for-two": ([0, 0, 1, 2], (True, False)),
}


@pytest.mark.parametrize(("delta", "known"), UNKNOWN.values(), ids=UNKNOWN)
def test_what_cannot_be_said_is_nan(delta, known):
    found = judge(delta)
    assert (math.isfinite(found.backward_gain), math.isfinite(found.low)) == known
    assert math.isfinite(found.low) == math.isfinite(found.high)


def test_the_gain_beside_zeros_is_that_of_the_layers_above():
    found, above = judge([0, 0, 1, 2, 4, 6]), judge([1, 2, 4, 6])
    assert found.word == "vanishing"
    assert (found.backward_gain, found.low, found.high) == (above.backward_gain, above.low, above.high)
    # The layer next to the zeros stands; a zero between others hides all below it.
    assert judge([1, 0, 3, 6, 12]).backward_gain == pytest.approx(0.5, rel=1e-15)


def test_what_is_not_above_the_smallest_counts_as_zero():
    delta = [1e-40, 1e-38, 1e-36, 1e-34]
    assert judge(delta).backward_gain == pytest.approx(1e-2, rel=1e-12)
    found = judge(delta, smallest=1e-38)
    assert found.word == "vanishing"
    assert found.backward_gain == judge(delta[2:]).backward_gain
    assert judge([1e-38, 1e-38], smallest=1e-38).word == "vanishing"
    assert judge([1e-37, 1e-37], smallest=1e-38).word == "healthy"
