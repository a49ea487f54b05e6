"""What the studies of small systems show, as tables to draw: the wall, the bound on gradients, the counts of updates.

Their claims are in clipping_claims; here are their numbers, along with the laws.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bpexp.statistics import geometric_interval, share_interval
from experiments import clipping_bound, clipping_smoothness, clipping_wall

if TYPE_CHECKING:
    import polars

VISIBLE = 0.03
"""Distance in w and b below which the next point of a path is not drawn."""
DRAWN_LOSSES = 20
"""Every so many updates the loss is drawn."""
DIGITS = 4


def compute_systems(seeds: tuple[int, int, int]) -> dict[str, polars.DataFrame]:
    """Return the tables surface, paths, shares, reach and counts; seeds: of wall, bound and counts."""
    wall, bound, counts = seeds
    return {
        "surface": surface(),
        "paths": thin(clipping_wall.drawn_paths()),
        "shares": shares(clipping_wall.compute(wall)),
        "reach": reach(clipping_bound.compute(bound)),
        "counts": counts_of(clipping_smoothness.compute(counts)),
    }


def surface() -> polars.DataFrame:
    import polars

    return clipping_wall.surface().with_columns(polars.all().round(DIGITS))


def thin(paths: polars.DataFrame) -> polars.DataFrame:
    """Return the points that a path shows: every DRAWN_LOSSES-th, and those VISIBLE away from the last shown.

    `jumped` says of a path whether it left the valley.
    """
    import polars

    parts = []
    for _, own in paths.group_by("clip", maintain_order=True):
        w, b = own["w"].to_numpy(), own["b"].to_numpy()
        kept, last = [0], 0
        for k in range(1, own.height):
            if k % DRAWN_LOSSES == 0 or k == own.height - 1 or np.hypot(w[k] - w[last], b[k] - b[last]) > VISIBLE:
                kept.append(k)
                last = k
        left = bool(own["loss"][-1] >= clipping_wall.VALLEY)
        parts.append(own[kept].with_columns(jumped=polars.lit(left)))
    return polars.concat(parts).with_columns(polars.col("w", "b").round(DIGITS), polars.col("loss").round_sig_figs(4))


def shares(rows: polars.DataFrame) -> polars.DataFrame:
    """Return the share of starts that left the valley at each learning rate, with and without clipping."""
    import polars

    found = []
    for (lr, clip), own in rows.group_by("optimizer.lr", "clip", maintain_order=True):
        left = share_interval(own.height - int(own["stayed"].sum()), own.height)
        found.append(
            {"lr": lr, "clip": clip, "starts": own.height, "left": left.mean, "low": left.low, "high": left.high}
            | {"longest": own["longest"].max()}
        )
    return polars.DataFrame(found)


def reach(rows: polars.DataFrame) -> polars.DataFrame:
    """Return how much of a gradient arrives over all steps, and by how much each law is exceeded at most.

    smallest, largest: ||dx_T/dx_0|| of the systems; bound: the law's number to the power of the steps
    """
    import polars

    found: list[dict[str, Any]] = []
    keys = ("activation", "matrix", "level")
    for case, own in rows.group_by(keys, maintain_order=True):
        worst = {law: own.filter(law=law)["violation"].max() for law in clipping_bound.LAWS}
        systems = own.filter(law=clipping_bound.LAWS[0])
        found.append(
            dict(zip(keys, case, strict=True))
            | {"systems": systems.height, "smallest": systems["reach"].min(), "largest": systems["reach"].max()}
            | {"steps": clipping_bound.STEPS, **worst}
        )
    return polars.DataFrame(found)


def counts_of(rows: polars.DataFrame) -> polars.DataFrame:
    """Return the updates to the end for each function, size and method, and what is derived for them."""
    import polars

    laws = {"fixed": clipping_smoothness.expected_fixed, "clipped": clipping_smoothness.expected_clipped}
    found = []
    for (function, size, method), own in rows.group_by("function", "size", "method", maintain_order=True):
        updates = geometric_interval(own["updates"])
        log_m = float(own["log_m"].to_numpy().mean())
        law = laws[str(method)](log_m) if function == "exponential" else None
        found.append(
            {"function": function, "size": size, "method": method, "starts": own.height, "log_m": log_m}
            | {"updates": updates.mean, "low": updates.low, "high": updates.high, "law": law}
        )
    return polars.DataFrame(found, schema_overrides={"law": polars.Float64})
