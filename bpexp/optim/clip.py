"""Clipping of flat gradients, with a threshold of each network's own."""

import torch
from torch import Tensor

from bpexp.optim.layout import Layout, first, shrink_units, unit_norms


def clip_by_norm(layout: Layout, grads: Tensor, max_norm: Tensor) -> Tensor:
    """Scale each network's gradients together so that their joint 2-norm is at most `max_norm`.

    Math:    g <- g * min(1, max_norm / ||g||)
    Shapes:  grads: flat, changed in place; max_norm: (R,)
    Units:   max_norm in loss per unit of parameter
    Returns: the norms before clipping, (R,)
    Edge:    a zero gradient stays zero; NaN is returned, not hidden
    Source:  Pascanu et al. 2013, arXiv:1211.5063
    """
    norms = layout.norms(grads)
    # Not clamp(max=1): that would let torch's own 1e-6 in the denominator decide what "at most" means.
    scale = torch.where(norms > max_norm, max_norm / norms, 1.0).to(grads.dtype)
    for run in layout.runs(grads):
        run.mul_(first(scale, run)[:, None])
    return norms


def clip_by_value(layout: Layout, grads: Tensor, threshold: Tensor) -> Tensor:
    """Clamp each entry of each network's gradients to [-threshold, threshold].

    Shapes:  grads: flat, changed in place; threshold: (R,)
    Returns: the largest magnitudes before clipping, (R,)
    """
    largest = layout.largest(grads)
    for run in layout.runs(grads):
        bound = first(threshold, run)[:, None]
        torch.clamp(run, -bound, bound, out=run)
    return largest


def clip_by_unit(layout: Layout, grads: Tensor, values: Tensor, threshold: Tensor, *, floor: float = 1e-3) -> Tensor:
    """Scale the gradient of each unit so that its 2-norm is at most `threshold` times that of the unit's parameters.

    A unit is a row of a weight; a bias, and the gains of a layer, are one unit each. Every layer is clipped, the output
    layer too, which the paper leaves out.

    Math:    g <- g * min(1, threshold * max(||w||, floor) / ||g||), unit by unit
    Shapes:  grads: flat, changed in place; values: flat; threshold: (R,)
    Units:   threshold is a ratio of norms; times lr it bounds a plain step relative to the weights
    Returns: whether any unit of a network was clipped, (R,)
    Edge:    a zero gradient stays zero; NaN spreads over its unit and is not counted; biases at 0 are let go by
             threshold * floor
    Source:  Brock et al. 2021, arXiv:2102.06171, section 4
    """
    ratio, scales = threshold[:, None, None], []
    for grad, value in zip(layout.units(grads), layout.units(values), strict=True):
        largest = first(ratio, grad) * unit_norms(value).clamp_(min=floor)
        scales.append(layout.filled(shrink_units(grad, largest).amin((0, 2, 3)), 1.0))
    return torch.stack(scales).amin(0) < 1


def clip_effect(layout: Layout, before: Tensor, after: Tensor, *, turned: bool = True) -> tuple[Tensor, Tensor]:
    """Return the norms of clipped gradients, and the cosine of the angle by which clipping turned each.

    Math:    a = before, b = after, r = ||b|| / ||a||: ||b||; <a, b> / (||a|| ||b||) = 1 - (||b - r a|| / ||b||)^2 / 2
    Shapes:  before, after: flat; returns (R,) float64 each
    turned:  whether clipping can turn a gradient; clipping by norm does not, and then `before` is not looked at
    Edge:    a zero gradient has no direction: its cosine is NaN; so are both of a NaN
    """
    norms = layout.norms(after)
    if not turned:
        return norms, norms / norms
    ratios = (norms / layout.norms(before)).to(before.dtype)
    rests = torch.zeros_like(norms)
    for run_before, run_after in zip(layout.runs(before), layout.runs(after), strict=True):
        rest = torch.addcmul(run_after, first(ratios, run_after)[:, None], run_before, value=-1)
        found = torch.linalg.vector_norm(rest, dim=2, dtype=torch.float64) / first(norms, run_after)
        rests += layout.filled(found.square().sum(0))
    return norms, 1 - rests / 2
