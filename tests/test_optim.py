"""Update rules and clipping against torch.optim and torch.nn.utils, network by network."""

import pytest
import torch

from bpexp.optim import SGD, clip_by_norm, clip_by_value, flatten

NETWORKS = 3


def blocks(seed: int):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=generator, dtype=torch.float64) for s in ((3, 4, 2), (3, 4), (3, 1, 4), (3, 1))]


def vector(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("same", [True, False], ids=["shared", "per-network"])
@pytest.mark.parametrize("decay", ["none", "l2", "decoupled"])
@pytest.mark.parametrize("kind", ["sgd", "momentum", "nesterov"])
def test_sgd_equals_torch_network_by_network(kind, decay, same):
    lr = vector(0.1, 0.1, 0.1) if same else vector(0.1, 0.03, 0.5)
    mu = vector(0, 0, 0) if kind == "sgd" else vector(0.9, 0.9, 0.9) if same else vector(0.9, 0.5, 0.0)
    rate = vector(0, 0, 0) if decay == "none" else vector(0.01, 0.02, 0.0)
    l2 = rate if decay == "l2" else 0 * rate
    decoupled = rate if decay == "decoupled" else 0 * rate
    layout, values = flatten(blocks(0))
    ours = SGD(layout, values, lr=lr, momentum=mu, l2=l2, weight_decay=decoupled, nesterov=kind == "nesterov")
    theirs, optimizers = [], []
    for r in range(NETWORKS):
        leaves = [p[r].clone().requires_grad_() for p in blocks(0)]
        theirs.append(leaves)
        weights = [leaf for leaf in leaves if leaf.dim() > 1]
        biases = [leaf for leaf in leaves if leaf.dim() == 1]
        groups = [{"params": weights, "weight_decay": l2[r].item()}, {"params": biases, "weight_decay": 0}]
        nesterov = kind == "nesterov" and mu[r].item() > 0
        optimizers.append(torch.optim.SGD(groups, lr=lr[r].item(), momentum=mu[r].item(), nesterov=nesterov))
    for step in range(1, 6):
        _, grads = flatten(blocks(step))
        ours.penalize(grads)
        ours.step(grads)
        for r in range(NETWORKS):
            for leaf, grad in zip(theirs[r], blocks(step), strict=True):
                leaf.grad = grad[r].clone()
                if leaf.dim() > 1:
                    leaf.data.mul_(1 - lr[r] * decoupled[r])
            optimizers[r].step()
    for k, view in enumerate(layout.views(values)):
        for r in range(NETWORKS):
            torch.testing.assert_close(view[r], theirs[r][k].detach(), rtol=0, atol=1e-12)


def test_clip_by_norm_equals_torch_and_leaves_small_gradients_alone():
    layout, grads = flatten(blocks(1))
    before = grads.clone()
    thresholds = vector(0.5, 1e9, 2.0)
    norms = clip_by_norm(layout, grads, thresholds)
    for r in range(NETWORKS):
        leaves = [torch.zeros_like(p[r]).requires_grad_() for p in blocks(1)]
        for leaf, grad in zip(leaves, blocks(1), strict=True):
            leaf.grad = grad[r].clone()
        total = torch.nn.utils.clip_grad_norm_(leaves, thresholds[r].item())
        torch.testing.assert_close(norms[r], total)
        for view, leaf in zip(layout.views(grads), leaves, strict=True):
            torch.testing.assert_close(view[r], leaf.grad, rtol=3e-6, atol=0)  # torch adds 1e-6 to the norm
    assert torch.equal(layout.views(grads)[0][1], layout.views(before)[0][1])
    torch.testing.assert_close(layout.norms(grads), torch.minimum(norms, thresholds))


def test_clip_by_norm_keeps_zero_at_zero_and_shows_nan():
    layout, grads = flatten([torch.zeros(2, 3, 2, dtype=torch.float64)])
    layout.views(grads)[0][1, 0, 0] = torch.nan
    norms = clip_by_norm(layout, grads, vector(1.0, 1.0))
    assert norms[0] == 0
    assert norms[1].isnan()
    assert torch.equal(layout.views(grads)[0][0], torch.zeros(3, 2, dtype=torch.float64))


def test_clip_by_value_equals_torch():
    layout, grads = flatten(blocks(2))
    thresholds = vector(0.3, 5.0, 1.0)
    largest = clip_by_value(layout, grads, thresholds)
    assert largest.tolist() == [max(float(b[r].abs().max()) for b in blocks(2)) for r in range(NETWORKS)]
    for view, block in zip(layout.views(grads), blocks(2), strict=True):
        for r in range(NETWORKS):
            assert torch.equal(view[r], block[r].clamp(-thresholds[r], thresholds[r]))
