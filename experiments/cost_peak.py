"""What memory a group of networks takes, as it is told beforehand and as it is measured.

`python -m experiments.cost_peak SIZE` trains a group for a few steps in a process of its own, and prints the most that
it ever took, in bytes. Table: `peaks`.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bpexp.spec import Train
from experiments.cost_sides import Size
from experiments.cost_sweeps import start
from experiments.cost_timing import at_most

SIZES = {
    "smoke": (),
    "default": (Size(32, 10, 32, 128),),
    "full": (
        Size(32, 10, 32, 128),
        Size(32, 10, 256, 256),
        Size(32, 100, 64, 128, "tanh"),
        Size(32, 10, 256, 256, norm="batch", residual="plain", dropout=0.1),
    ),
}
STEPS = 20
STATUS = Path("/proc/self/status")


def measure(scale: str, report: Callable[[str], None]) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of the table; a scale without sizes has none."""
    if not SIZES[scale]:
        return {}
    report("measuring memory")
    return {
        "peaks": [
            peak_row(size, int(start("experiments.cost_peak", json.dumps(asdict(size))))) for size in SIZES[scale]
        ]
    }


def peak_row(size: Size, peak: int) -> dict[str, Any]:
    """Return the row of a size: what is told beforehand, what was measured, and whether it was enough."""
    from bpexp.memory import estimate
    from bpexp.statistics import Interval

    told = estimate(size.configs()).total
    ratio = peak / told
    return {
        "size": size.name,
        "activation": size.activation,
        "told": told,
        "peak": peak,
        "ratio": ratio,
        "ratio_low": ratio,
        "ratio_high": ratio,
        "target": 1.0,
        "verdict": at_most(Interval(ratio, ratio, ratio, 1), 1.0),
    }


def main(size: Size) -> None:
    """Train a group with measures at every tenth step, and print the peak of this process's memory."""
    import torch

    from bpexp.train import train

    torch.set_num_threads(1)
    for _snapshot in train([replace(config, train=Train(STEPS, size.batch, 10)) for config in size.configs()]):
        pass
    print(peak_bytes())


def peak_bytes() -> int:
    """Return the most memory that this process ever took."""
    # What Linux tells of a process's resources counts the one that it was forked from.
    if STATUS.exists():
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return 1024 * int(line.split()[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main(Size(**json.loads(sys.argv[1])))
