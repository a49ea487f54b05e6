"""What a layer does to the gradient, split into what its parts do: weights, activation, norm, skip connection.

Letters: h_l = what layer l hands on, n_l = what its activation gets, z_l = what its linear map gives, g = d loss / dh,
delta = d loss / dz, c = factor of a branch (1, 1/sqrt(L) or a gate), m = a mask of dropout.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars
from numpy.typing import NDArray

from bpexp import spec
from bpexp.chunks import chunk_size
from bpexp.threads import one_thread

if TYPE_CHECKING:
    from torch import Tensor

    from bpexp.ensemble import Ensemble

Array = NDArray[np.float64]

TERMS = ("weight", "skip", "activation", "normalization")
"""In the order in which a gradient comes through them."""

SEEDS, NETWORKS = 5, 512
"""Networks of a cell, and of a sweep, that are looked at, at most: of many cells fewer each, of more the first ones."""


def attribute(ensemble: Ensemble) -> list[Array]:
    """Return for each network what changes its gradient from layer l to l - 1, l = 2..L: the terms, (L - 1, 4).

    Math:    log(rms delta_{l-1} / rms delta_l) is the sum of
             weight:        log(rms W_l^T delta_l / rms delta_l)
             skip:          log(rms g_{l-1} / rms W_l^T delta_l) + log |c_{l-1}|, g_{l-1} = W_l^T delta_l (+ g_l)
             activation:    log(rms m phi'(n_{l-1}) g_{l-1} / rms g_{l-1})
             normalization: log(rms delta_{l-1} / rms d loss / dn_{l-1}), 0 without a norm
             each at the network's next batch
    Units:   natural logs; root mean squares over samples and units, of networks in their own precision
    Edge:    a gradient that is zero (behind a gate of 0) makes its terms infinite or NaN
    """
    ensemble.compute(keep=True)
    view = ensemble.view(ensemble.values, ensemble.grads, ensemble.grads)
    plan, trace = ensemble.keeping.plan, ensemble.keeping.trace
    delta = [log_rms(gradient) for gradient in view.delta]
    through = [log_rms(d @ w) for d, w in zip(view.delta, view.weights, strict=True)]
    g, n = ([log_rms(plan.gradient(tensor)) for tensor in tensors] for tensors in (trace.a, trace.n))
    found = []
    for network, config in enumerate(ensemble.configs):
        depth, gates = config.model.depth, [gate[network] for gate in view.gates if network < len(gate)]
        d, w, h, a = (np.array([of[network] for of in by_layer[:depth]]) for by_layer in (delta, through, g, n))
        branch = np.array([log_branch(config, layer, gates) for layer in range(1, depth)])
        with np.errstate(invalid="ignore"):
            terms = (w[1:] - d[1:], h[:-1] - w[1:] + branch, a[:-1] - branch - h[:-1], d[:-1] - a[:-1])
        found.append(np.stack(terms, axis=1))
    return found


def log_rms(values: Tensor) -> Array:
    """Return the log of the root mean square over samples and units of (R_l, B, W), (R_l,)."""
    import torch

    norms = torch.linalg.vector_norm(values, dim=(1, 2), dtype=torch.float64)
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(norms.numpy())) - math.log(values[0].numel()) / 2


def log_branch(config: spec.Config, layer: int, gates: Sequence[Tensor]) -> float:
    """Return log |c| of a layer; gates: those of layers 2..L."""
    if layer == 1 or config.model.residual in ("none", "plain"):
        return 0.0
    if config.model.residual == "scaled":
        return -math.log(config.model.depth) / 2
    gate = abs(float(gates[layer - 2]))
    return math.log(gate) if gate else -math.inf


@one_thread()
def attribute_configs(configs: Mapping[str, spec.Config]) -> dict[str, Array]:
    """Return the terms of networks at initialization, by name; they go side by side where they can.

    Edge:    networks that cannot be initialized, or of which the data cannot be read, are left out
    """
    found: dict[str, Array] = {}
    for names in structures(configs):
        found |= zip(names, attribute_together([configs[name] for name in names]), strict=False)
    return found


def attribute_together(configs: Sequence[spec.Config]) -> list[Array]:
    """Return the terms of networks side by side, nothing where they cannot be made."""
    from bpexp.ensemble import Ensemble

    try:
        ensemble = Ensemble(configs, trains=False)
    except ValueError:
        return []
    found = attribute(ensemble)
    ensemble.close()
    return found


def structures(configs: Mapping[str, spec.Config]) -> Iterator[list[str]]:
    """Yield the names of networks that can be side by side, as many as a group of a sweep has, deepest first."""
    groups: dict[tuple[object, ...], list[str]] = {}
    for name in sorted(configs, key=lambda name: spec.order(configs[name])):
        groups.setdefault(spec.group_key(configs[name], spec.MIXED), []).append(name)
    for names in groups.values():
        size = chunk_size(configs[names[0]])
        for start in range(0, len(names), size):
            yield names[start : start + size]


def attribute_cells(numbered: polars.DataFrame) -> polars.DataFrame:
    """Return the attribution of every cell of a sweep at step 0: means of the logs over some of its seeds.

    cell, layer: the l from which the gradient comes; the terms, with `decay`, their sum; seeds: networks looked at.
    Layers in which a term is not finite are null.
    """
    ran = numbered.filter(numbered["status"] != "failed")
    seeds = min(SEEDS, max(NETWORKS // max(ran["cell"].n_unique(), 1), 1))
    chosen = ran.group_by("cell", maintain_order=True).head(seeds).head(NETWORKS)
    rows = {row["job"]: row for row in chosen.iter_rows(named=True)}
    terms = attribute_configs({job: config_of(row) for job, row in rows.items()})
    by_cell: dict[int, list[Array]] = {}
    for job, found in terms.items():
        by_cell.setdefault(int(rows[job]["cell"]), []).append(found)
    return attribution_table({cell: np.stack(found) for cell, found in sorted(by_cell.items())})


def attribution_table(by_cell: Mapping[int, Array]) -> polars.DataFrame:
    """Return the rows of cells, of each the terms of its networks, (S, L - 1, 4)."""
    rows = []
    for cell, terms in by_cell.items():
        means = terms.mean(axis=0)
        for layer, values in enumerate(means, 2):
            known = [float(value) for value in values] if np.isfinite(values).all() else [None] * len(TERMS)
            decay = None if known[0] is None else float(values.sum())
            rows.append((cell, layer, *known, decay, len(terms)))
    schema: dict[str, Any] = {"cell": polars.Int64, "layer": polars.Int64}
    schema |= dict.fromkeys((*TERMS, "decay"), polars.Float64) | {"seeds": polars.Int64}
    return polars.DataFrame(rows, schema=schema, orient="row")


def config_of(row: Mapping[str, Any]) -> spec.Config:
    """Return the configuration of a row of results."""
    config = copy.deepcopy(spec.Config())
    for name, declared in spec.keys().items():
        *path, last = name.split(".")
        place: Any = config
        for part in path:
            place = getattr(place, part)
        setattr(place, last, row.get(name.removesuffix(".name"), declared.default))
    return config
