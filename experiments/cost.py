"""What training costs: by the suite's own backward pass and its sweeps, against torch with all that makes torch fast.

A step is forward, backward and update of dense networks on a batch of digits, float32, one thread. Torch's side is
nn.Sequential of its own layers, its autograd and torch.optim.SGD, with whichever of fused or foreach, set_to_none and
inplace is fastest for the row. Both sides take turns, and a ratio is taken turn by turn. Also: networks side by side,
what dropout and measuring add, what each pass over the recorded plan brings, what memory a step takes.

A sweep is the product's own command with all that it leaves, against a plain loop in torch for every job; what a job
costs beside its training; and two processes against one. Each table is left in the folder as a parquet file, the
figures as figures/*.svg.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from bpexp import entry
from experiments import cost_launching, cost_passes, cost_peak, cost_steps, cost_sweeps

if TYPE_CHECKING:
    import polars
    from omegaconf import DictConfig

    from experiments.cost_sides import Size
    from experiments.page import Section

SCALES = {
    "smoke": "Steps: the rows with relu, 7 rounds; torch's side is not chosen for each row. Sweeps: 16 jobs of 20"
    " steps, twice. The intervals are wide, and sweeps are not judged.",
    "default": "Steps: the rows with relu and tanh, 21 rounds. Sweeps: 64 jobs of 100 steps, twice; sweeps are not"
    " judged.",
    "full": "Steps: the rows with relu and tanh, against torch.compile too where there is a C++ compiler, 31 rounds."
    " Sweeps: 256 to 1,000 jobs of 300 steps, 1 to 5 rounds.",
}

Report = Callable[[str], None]


def program(config: DictConfig, folder: Path) -> None:
    """Measure, leave tables and figures in the folder, and print what they say."""
    from bpexp.sweep.files import write_parquet, write_text
    from experiments.cost_text import lines, pictures

    tables = measure(config.scale, print)
    for name, table in tables.items():
        write_parquet(folder / f"{name}.parquet", table)
    (folder / "figures").mkdir(exist_ok=True)
    for picture in pictures(tables):
        write_text(folder / "figures" / f"{picture.name}.svg", picture.svg)
    print("\n".join(["", *lines(tables), "", f"tables and figures in {folder}"]))


def compute(scale: str, folder: Path) -> dict[str, polars.DataFrame]:
    """Measure at a scale, and return the summary tables; nothing is left in the folder."""
    return measure(scale, lambda line: None)


def measure(scale: str, report: Report) -> dict[str, polars.DataFrame]:
    """Return the tables of a scale; `report` is told of everything before it is measured."""
    import polars
    import torch

    effort = cost_steps.EFFORTS[scale]

    def optimizer(size: Size) -> str:
        return cost_steps.rank(size, effort)[0].optimizer

    made = {"scale": scale, "torch": torch.__version__, "instructions": torch.backends.cpu.get_cpu_capability()}
    rows = {
        "scale": [made],
        **cost_steps.measure(effort, report),
        **cost_passes.measure(scale, report),
        **cost_sweeps.measure(scale, optimizer, report),
        **cost_launching.measure(scale, report),
        **cost_peak.measure(scale, report),
    }
    return {name: polars.DataFrame(found, infer_schema_length=None) for name, found in rows.items()}


def section(tables: Mapping[str, polars.DataFrame]) -> Section:
    """Return the section of the report that the summary tables make."""
    from experiments.cost_text import make_section

    return make_section(tables, SCALES)


if __name__ == "__main__":
    sys.exit(entry.main("cost", __doc__, program=program))
