"""How deep a network can be and still train: where theory says so beforehand, and where an oracle says so.

Networks over sigma_w^2 (init=lecun, init.gain=sigma_w, init.bias_std=sigma_b) and depth are trained; mean-field theory
has depth scales on both sides of the critical line, and how many multiples of them can be trained is fitted, for each
step budget. The oracle gives the probability that a network trains, stalls or diverges, from theory's numbers of its
initialization and its learning rate alone; a single network's is printed beside what became of it.

Tables are left in the results' folder as map, multiples, variances (a multiple for each sigma_w^2), comparisons (of the
depth scales), curves and foreseen.parquet (what the published oracle says of these networks), figures as figures/*.svg.
The claims on the multiple are rows of the ledger: `python -m experiments.claims scale=full only=4`.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from bpexp import entry
from bpexp.spec import UserError

if TYPE_CHECKING:
    import polars

    from experiments.page import Picture, Section

SCALES = {
    "smoke": "2 depths x 2 values of sigma_w^2 x 2 seeds, 40 steps; an oracle of 32 networks of 20 steps.",
    "default": "9 depths x 4 values of sigma_w^2 x 3 seeds; an oracle that is fitted to plain networks alone.",
    "full": "The declared grid: 9 depths x 7 values of sigma_w^2 x 5 seeds; an oracle that is fitted to networks with"
    " norms, skip connections, dropout and of several widths as well.",
}
GRIDS: dict[str, tuple[str, ...]] = {
    "smoke": ("model.depth=4,8", "init.gain=1.0,2.0", "seed=range(2)", "train.steps=40", "train.measure_every=20"),
    "default": ("init.gain=1.0,1.0954,1.327,2.0", "seed=range(3)"),
    "full": (),
}


def finish(folder: Path) -> None:
    """Leave tables and figures in the folder of a command's results, and print what they say."""
    from bpexp.sweep.files import write_parquet, write_text
    from experiments.trainability_map import read_networks
    from experiments.trainability_oracle import foresee, published_oracle
    from experiments.trainability_text import report_lines

    try:
        tables = summarize(folder)
    except UserError as error:  # the failures themselves are told by the command
        print(error)
        return
    oracle = published_oracle()
    if oracle is not None:
        tables["foreseen"] = foresee(oracle, read_networks(folder))
    for name, table in tables.items():
        write_parquet(folder / f"{name}.parquet", table)
    (folder / "figures").mkdir(exist_ok=True)
    for picture in pictures(tables):
        write_text(folder / "figures" / f"{picture.name}.svg", picture.svg)
    print("\n".join(report_lines(folder, tables)))


def summarize(folder: Path) -> dict[str, polars.DataFrame]:
    """Return the tables of a folder of results: map, multiples, variances, comparisons, curves, settings.

    Raises:  UserError: there are no results, or no network of them has finished
    """
    from bpexp.records import read_results
    from bpexp.summary import summarize_settings
    from experiments.trainability_map import (
        read_networks,
        summarize_comparisons,
        summarize_curves,
        summarize_map,
        summarize_multiples,
        summarize_variances,
    )

    networks = read_networks(folder)
    return {
        "map": summarize_map(networks),
        "multiples": summarize_multiples(networks),
        "variances": summarize_variances(networks),
        "comparisons": summarize_comparisons(networks),
        "curves": summarize_curves(networks),
        "settings": summarize_settings(read_results(folder)),
    }


def compute(scale: str, folder: Path) -> dict[str, polars.DataFrame]:
    """Run what a scale states, below `folder`, and return the summary tables."""
    import polars

    from experiments.trainability_oracle import compute_oracle

    sweep = entry.call("trainability", ["-m", *GRIDS[scale], f"hydra.sweep.dir={folder / 'map'}"])
    tables = summarize(sweep)
    tables |= compute_oracle(scale, folder)
    command = shlex.join(["python", "-m", "experiments.trainability", "-m", *GRIDS[scale]])
    return {**tables, "scale": polars.DataFrame({"scale": [scale], "command": [command]})}


def pictures(tables: Mapping[str, polars.DataFrame]) -> list[Picture]:
    """Draw the figures of the tables."""
    from bpexp import figures
    from experiments.page import Picture
    from experiments.trainability_oracle import SPEAKERS, reliability
    from experiments.trainability_text import MAP_WORDS, MULTIPLE_WORDS, ORACLE_WORDS

    cells, multiples = tables["map"], tables["multiples"]
    found = []
    if cells["model.depth"].n_unique() > 1:
        drawing = figures.trainability_map(cells, multiples, tables["curves"])
        found.append(Picture("trainability_map", figures.svg(drawing), *MAP_WORDS))
    if multiples["train.steps"].n_unique() > 1:
        found.append(Picture("multiples", figures.svg(figures.fitted_multiples(multiples)), *MULTIPLE_WORDS))
    said = tables.get("held_out", tables.get("foreseen"))
    if said is not None and said.height > 1:
        drawing = figures.oracle_reliability(
            {name: reliability(said, column) for name, column in SPEAKERS.items() if column in said.columns}
        )
        found.append(Picture("oracle_reliability", figures.svg(drawing), *ORACLE_WORDS))
    return found


def section(tables: Mapping[str, polars.DataFrame]) -> Section:
    """Return the section that the tables make: those of `compute`, or of one sweep by `summarize`."""
    from experiments.page import Section
    from experiments.trainability_text import (
        answer,
        measured,
        multiples_table,
        oracle_table,
        scores_table,
        variances_table,
    )

    scale = tables.get("scale")
    roles = tables["settings"].group_by("role", maintain_order=True).agg("text").rows()
    return Section(
        name="trainability",
        title="How deep a network trains",
        question="How deep can a network be and still train, and can one say so before training it?",
        prediction="A network trains as deep as a signal tells two samples apart, and a gradient arrives: up to a "
        "multiple of xi_c on the ordered side of the critical line, about 6 in the paper's words, and about as many "
        "multiples of the gradient's scale 1/|ln chi_1| on the chaotic side. The multiple is no constant: from a "
        "budget of T to one of 4 T steps it should rise by log 4. Theory's numbers of the initialization and of the "
        "learning rate should tell what trains, for activations and depths that were never seen.",
        answer=answer(tables),
        method=(*((role, "; ".join(texts)) for role, texts in roles), *measured(tables)),
        commands=() if scale is None else tuple(scale["command"]),
        pictures=tuple(pictures(tables)),
        tables=(
            multiples_table(tables["multiples"]),
            *((variances_table(tables["variances"]),) if "variances" in tables else ()),
            *((scores_table(tables["scores"]), oracle_table(tables["oracle"])) if "scores" in tables else ()),
        ),
    )


if __name__ == "__main__":
    sys.exit(entry.main("trainability", __doc__, finish=finish))
