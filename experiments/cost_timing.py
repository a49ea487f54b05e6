"""Timing on a machine that others use as well: sides take turns, and are compared turn by turn.

Letters: N rounds, a turn of every side each.
"""

from __future__ import annotations

import contextlib
import gc
import math
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from bpexp.statistics import LEVEL, Interval, decide

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


def now_with_children() -> Seconds:
    """Return the time, that of the processor with what finished processes took that this one had started."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Seconds(time.process_time() + children.ru_utime + children.ru_stime, time.perf_counter())


@contextlib.contextmanager
def one_thread(*, collects_garbage: bool = False) -> Iterator[None]:
    """Use one thread for a while, and collect garbage only where it is said: between steps it disturbs."""
    from bpexp.threads import one_thread as compute_on_one

    collects = gc.isenabled()
    gc.collect()
    if not collects_garbage:
        gc.disable()
    try:
        with compute_on_one():
            yield
    finally:
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


@dataclass(frozen=True)
class Turn:
    """What a side does once or more in a round: so many steps."""

    name: str
    side: Side
    steps: int


def take_rounds(turns: Sequence[Turn], rounds: int, clock: Clock = now_with_children) -> dict[str, list[Seconds]]:
    """Return what a step of each side took in each of N rounds, of the turns of a name together.

    For sides whose turns are long and of a given length. Turns before and after another are what it is compared with:
    a machine that slows down steadily changes both alike. Nothing is done to warm up.
    """
    taken: dict[str, list[Seconds]] = {turn.name: [] for turn in turns}
    for _ in range(rounds):
        found: dict[str, list[Seconds]] = {name: [] for name in taken}
        for turn in turns:
            found[turn.name].append(_turn(turn.side, turn.steps, clock))
        for name, parts in found.items():
            taken[name].append(Seconds(statistics.fmean(processor(parts)), statistics.fmean(wall(parts))))
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


def columns(name: str, found: Interval) -> dict[str, Any]:
    """Return an interval as columns of a table."""
    return {name: found.mean, f"{name}_low": found.low, f"{name}_high": found.high, "rounds": found.count}


def at_most(found: Interval, target: float | None) -> str | None:
    """Return `confirmed` where the whole interval is at or below the target, `refuted` where all of it is above."""
    return None if target is None else decide(found, 0.0, target)


def at_least(found: Interval, target: float | None) -> str | None:
    """Return `confirmed` where the whole interval is at or above the target, `refuted` where all of it is below."""
    return None if target is None else decide(found, target, math.inf)
