"""Timing on a machine that others use as well: sides take turns, and are compared turn by turn.

Letters: N rounds, a turn of every side each.
"""

from __future__ import annotations

import contextlib
import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from bpexp.statistics import LEVEL, Interval

FEWEST = 3
"""Steps of a turn: enough that the first, which finds the other side's numbers in the caches, does not decide."""


@dataclass(frozen=True)
class Seconds:
    """What a step took: of the processor, which waits for nobody, and by the clock on the wall."""

    processor: float
    wall: float

    def since(self, start: Seconds, steps: int) -> Seconds:
        return Seconds((self.processor - start.processor) / steps, (self.wall - start.wall) / steps)


class Side(Protocol):
    """One way to do the same work."""

    def reset(self) -> None:
        """Go back to the state before the first step, so that every turn does the same work."""

    def run(self, steps: int) -> None:
        """Do so many steps."""


Clock = Callable[[], Seconds]


def now() -> Seconds:
    return Seconds(time.process_time(), time.perf_counter())


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread, and collect no garbage between steps, for a while."""
    import torch

    threads, collects = torch.get_num_threads(), gc.isenabled()
    torch.set_num_threads(1)
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        if collects:
            gc.enable()


def take_turns(sides: Mapping[str, Side], rounds: int, seconds: float, clock: Clock = now) -> dict[str, list[Seconds]]:
    """Return what a step of each side took in each of N rounds.

    In a round every side has a turn of about `seconds`, FEWEST steps at least, and the next round goes through them
    backwards: whatever slows the machine down for a while slows all of them.
    """
    steps = {}
    for name, side in sides.items():
        _turn(side, FEWEST, clock)
        steps[name] = max(FEWEST, round(seconds / max(_turn(side, FEWEST, clock).wall, 1e-9)))
    order = list(sides)
    taken: dict[str, list[Seconds]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name in order:
            taken[name].append(_turn(sides[name], steps[name], clock))
        order.reverse()
    return taken


def _turn(side: Side, steps: int, clock: Clock) -> Seconds:
    side.reset()
    start = clock()
    side.run(steps)
    return clock().since(start, steps)


def processor(taken: Sequence[Seconds]) -> list[float]:
    return [one.processor for one in taken]


def wall(taken: Sequence[Seconds]) -> list[float]:
    return [one.wall for one in taken]


def ratios(taken: Sequence[float], others: Sequence[float]) -> list[float]:
    """Return what one side took over what another took in the same round."""
    return [one / other for one, other in zip(taken, others, strict=True)]


def median_interval(values: Sequence[float]) -> Interval:
    """Return the median, in the place of the mean, and where it lies with at least 95 % confidence.

    Math:    [x_(k), x_(N+1-k)] with the largest k for which 2 P(Binomial(N, 1/2) < k) <= 0.05
    Edge:    fewer than 6 values have no such interval: NaN
    Source:  order statistics; it asks nothing of the distribution of the noise
    """
    ordered, count = sorted(values), len(values)
    rank = 0
    while 2 * sum(math.comb(count, k) for k in range(rank + 1)) <= (1 - LEVEL) * 2**count:
        rank += 1
    low, high = (ordered[rank - 1], ordered[count - rank]) if rank else (math.nan, math.nan)
    return Interval(statistics.median(ordered), low, high, count)
