"""Update rules, schedules, bounds and clipping against torch.optim, torch.nn.utils and loops over units."""

import math

import pytest
import torch
from conftest import configure

from bpexp.optim import (
    SGD,
    Rate,
    clip_by_norm,
    clip_by_unit,
    clip_by_value,
    clip_effect,
    factors,
    flatten,
    is_weight,
    make_clipper,
    make_optimizer,
    unit_norms,
)

NETWORKS = 3
STEPS = 50

# Equal neighbours, unequal ones, a weight as long as the bias after it, vectors and gates.
SHAPES = ((4, 2), (4, 4), (4, 4), (1, 4), (4,), (4,), (3,), (), ())


def blocks(seed: int, networks: int = NETWORKS, shapes=SHAPES):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(networks, *s, generator=generator, dtype=torch.float64) for s in shapes]


def vector(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def group(columns: dict, *, alike: bool = False, steps: int = STEPS):
    """The configurations of three networks: a key's value, or three, of which all have the first if they are alike."""
    rows = []
    for r in range(NETWORKS):
        row = {k: v[0 if alike else r] if isinstance(v, tuple) else v for k, v in columns.items()}
        rows.append(configure({"train.steps": steps} | row))
    return rows


def rule(name: str, **columns):
    return {"optimizer.name": name} | {f"optimizer.{key}": value for key, value in columns.items()}


LR, L2, DECAY, MU = (0.1, 0.03, 0.2), (0.01, 0.02, 0.0), (0.05, 0.0, 0.3), (0.9, 0.5, 0.0)
BETAS = {"beta1": (0.9, 0.5, 0.0), "beta2": (0.999, 0.999, 0.8)}
ONE_BETA = {"beta1": 0.9, "beta2": 0.999}
RULES = {
    "sgd": rule("sgd", lr=LR),
    "sgd-l2": rule("sgd", lr=LR, l2=L2),
    "sgd-decay": rule("sgd", lr=LR, weight_decay=DECAY),
    "momentum": rule("momentum", lr=LR, momentum=MU),
    "momentum-l2": rule("momentum", lr=LR, momentum=MU, l2=L2),
    "momentum-decay": rule("momentum", lr=LR, momentum=0.9, weight_decay=DECAY),
    "nesterov": rule("nesterov", lr=LR, momentum=MU),
    "nesterov-l2": rule("nesterov", lr=0.1, momentum=MU, l2=L2),
    "nesterov-decay": rule("nesterov", lr=LR, momentum=MU, weight_decay=DECAY),
    "adam": rule("adam", lr=LR, **BETAS),
    "adam-one-beta": rule("adam", lr=LR, **ONE_BETA),
    "adam-one-lr": rule("adam", lr=0.01, beta1=BETAS["beta1"], beta2=0.999),
    "adam-l2": rule("adam", lr=LR, l2=L2, **BETAS),
    "adamw": rule("adamw", lr=LR, weight_decay=DECAY, **BETAS),
    "adamw-one-beta": rule("adamw", lr=LR, weight_decay=DECAY, **ONE_BETA),
}
SCHEDULES = {
    "constant": {},
    "warm": {"optimizer.warmup": (4, 7, 1)},
    "cosine": {"optimizer.schedule": "cosine"},
    "warm-cosine": {"optimizer.schedule": "cosine", "optimizer.warmup": (10, 3, STEPS)},
    "one-warm-cosine": {"optimizer.schedule": "cosine", "optimizer.warmup": 5},
}


def factor(config, t: int) -> float:
    warmup, steps = config.optimizer.warmup, config.train.steps
    if t < warmup:
        return (t + 1) / warmup
    if config.optimizer.schedule == "constant" or t >= steps:
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (t - warmup) / (steps - warmup)))


class Theirs:
    """One network, updated by torch.optim under torch's LambdaLR."""

    def __init__(self, config, leaves) -> None:
        self.leaves = [leaf.clone().requires_grad_() for leaf in leaves]
        weights, others = ([p for p in self.leaves if (p.dim() > 1) is one] for one in (True, False))
        options, adaptive = config.optimizer, config.optimizer.name in ("adam", "adamw")
        self.decay, self.weights = 0.0 if adaptive else options.weight_decay, weights
        penalty = options.weight_decay if options.name == "adamw" else options.l2
        groups = [{"params": weights, "weight_decay": penalty}, {"params": others, "weight_decay": 0.0}]
        if adaptive:
            kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[options.name]
            self.optimizer = kind(groups, lr=options.lr, betas=(options.beta1, options.beta2), foreach=False)
        else:
            mu = options.momentum or 0.0
            nesterov = options.name == "nesterov" and mu > 0
            self.optimizer = torch.optim.SGD(groups, lr=options.lr, momentum=mu, nesterov=nesterov)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda t: factor(config, t))

    def step(self, grads) -> None:
        for leaf, grad in zip(self.leaves, grads, strict=True):
            leaf.grad = grad.clone()
        for weight in self.weights:  # torch's SGD has no decoupled decay
            weight.data.mul_(1 - self.optimizer.param_groups[0]["lr"] * self.decay)
        self.optimizer.step()
        self.scheduler.step()


def follow(configs, steps: int, dtype=torch.float64):
    """Return layout, values and optimizer after some updates."""
    layout, values = flatten([b[: len(configs)].to(dtype) for b in blocks(0, 4)])
    optimizer = make_optimizer(configs, layout, values)
    run(optimizer, range(steps))
    return layout, values, optimizer


def run(optimizer, steps) -> None:
    networks, values = optimizer.layout.networks, optimizer.values
    for t in steps:
        _, grads = flatten([b[:networks].to(values.dtype) for b in blocks(t + 1, 4)])
        optimizer.penalize(grads)
        optimizer.step(grads)


@pytest.mark.parametrize("alike", [True, False], ids=["alike", "different"])
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("columns", RULES.values(), ids=RULES)
def test_an_update_equals_torch_network_by_network(columns, schedule, alike):
    configs = group(columns | schedule, alike=alike)
    layout, values = flatten(blocks(0))
    ours = make_optimizer(configs, layout, values)
    theirs = [Theirs(config, [b[r] for b in blocks(0)]) for r, config in enumerate(configs)]
    for t in range(1, STEPS + 1):
        _, grads = flatten(blocks(t))
        ours.penalize(grads)
        ours.step(grads)
        for r, network in enumerate(theirs):
            network.step([b[r] for b in blocks(t)])
        _, expected = flatten([torch.stack(leaves) for leaves in zip(*(n.leaves for n in theirs), strict=True)])
        torch.testing.assert_close(values, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("columns", RULES.values(), ids=RULES)
def test_single_precision_stays_with_double(columns):
    single, double = (follow(group(columns), 20, dtype)[1] for dtype in (torch.float32, torch.float64))
    torch.testing.assert_close(single.double(), double, rtol=1e-5, atol=1e-5)


STRANGERS = {
    "sgd-l2": {"optimizer.l2": 0.4},
    "momentum-decay": {"optimizer.momentum": 0.3, "optimizer.weight_decay": 0.6},
    "nesterov-l2": {"optimizer.momentum": 0.3, "optimizer.l2": 0.4},
    "adam-l2": {"optimizer.beta1": 0.3, "optimizer.beta2": 0.7, "optimizer.l2": 0.4},
    "adamw": {"optimizer.beta2": 0.7, "optimizer.weight_decay": 0.6},
    "adamw-one-beta": {"optimizer.beta2": 0.7, "optimizer.weight_decay": 0.6},
}


@pytest.mark.parametrize("schedule", [{}, {"optimizer.schedule": "cosine", "optimizer.warmup": (5, 5, 2)}])
@pytest.mark.parametrize("name", STRANGERS)
def test_what_networks_share_is_as_good_as_a_number_of_each(name, schedule):
    columns = RULES[name] | schedule
    configs = group(columns, alike=True, steps=10)
    stranger = group(columns | {"optimizer.lr": (0.0, 0.0, 0.7)} | STRANGERS[name], steps=10)[2]
    alone_layout, alone, _ = follow(configs, 10)
    layout, together, _ = follow([*configs, stranger], 10)
    for a, b in zip(alone_layout.views(alone), layout.views(together), strict=True):
        torch.testing.assert_close(a, b[:NETWORKS], rtol=1e-15, atol=1e-15)


FACTORS = {
    "warm": ("constant", (4, 0), 6, [[0.25, 1], [0.5, 1], [0.75, 1], [1, 1], [1, 1], [1, 1]]),
    "cosine": ("cosine", (0,), 4, [[1], [0.5 + math.sqrt(0.125)], [0.5], [0.5 - math.sqrt(0.125)]]),
    "warm-cosine": ("cosine", (2, 4), 4, [[0.5, 0.25], [1, 0.5], [1, 0.75], [0.5, 1]]),
    "longer than the run": ("cosine", (4,), 2, [[0.25], [0.5]]),
    "no steps": ("cosine", (0,), 0, [[1]]),
}


@pytest.mark.parametrize("row", FACTORS.values(), ids=FACTORS)
def test_factors(row):
    *asked, expected = row
    torch.testing.assert_close(factors(*asked), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-15)


def test_a_constant_schedule_costs_nothing():
    assert factors("constant", (0, 0), 9) is None
    layout, _ = flatten(blocks(0))
    for numbers in (vector(0.1, 0.1, 0.1), vector(0.1, 0.2, 0.3)):
        rate = Rate(layout, numbers)
        assert rate.at(0) is rate.at(7)


def test_a_rate_is_a_number_where_networks_share_it():
    layout, _ = flatten(blocks(0))
    table = torch.tensor([[0.5], [1.0]], dtype=torch.float64)
    shared = Rate(layout, vector(0.2, 0.2, 0.2), table)
    assert [shared.at(step) for step in range(4)] == [0.1, 0.2, 0.2, 0.2]
    weights = Rate(layout, vector(0.2, 0.2, 0.4), table, is_weight)
    for step, expected in ((1, (0.2, 0.2, 0.4)), (0, (0.1, 0.1, 0.2))):
        for view in layout.views(weights.at(step)):
            for r in range(NETWORKS):
                assert (view[r] == (expected[r] if is_weight(view.shape) else 0)).all()


@pytest.mark.parametrize("schedule", ["constant", "warm-cosine"])
@pytest.mark.parametrize("name", ["sgd-decay", "momentum", "nesterov-l2", "adam", "adam-one-lr", "adamw-one-beta"])
def test_a_restored_state_goes_on_bit_for_bit(name, schedule):
    configs = group(RULES[name] | SCHEDULES[schedule])
    _, values, optimizer = follow(configs, 5)
    before, state = values.clone(), optimizer.state()
    run(optimizer, range(5, 12))
    after, later = values.clone(), optimizer.state()
    values.copy_(before)
    optimizer.restore(state)
    run(optimizer, range(5, 12))
    assert torch.equal(values, after)
    assert not torch.equal(values, before)
    again = optimizer.state()
    assert again["steps"] == later["steps"] == state["steps"] + 7
    assert all(torch.equal(again[k], later[k]) for k in later if k != "steps")


@pytest.mark.parametrize("columns", RULES.values(), ids=RULES)
def test_a_learning_rate_of_zero_and_a_zero_gradient_move_nothing(columns):
    numbers = {"optimizer.lr": (0.0, 0.1, 0.1), "optimizer.weight_decay": (0.3, 0.0, 0.0), "optimizer.l2": 0.0}
    configs = group(columns | numbers)
    layout, values = flatten(blocks(0))
    optimizer = make_optimizer(configs, layout, values)
    for t in range(1, 6):
        _, grads = flatten(blocks(t))
        for view in layout.views(grads):
            view[1] = 0
        optimizer.step(grads)
    for view, block in zip(layout.views(values), blocks(0), strict=True):
        assert torch.equal(view[:2], block[:2])
        assert (view[2] != block[2]).all()


@pytest.mark.parametrize("name", ["sgd", "adamw-one-beta"])
def test_max_norm_scales_back_the_rows_of_weights_alone(name):
    bounds = (0.5, 1.5, 1e6)
    layout, free, _ = follow(group(RULES[name]), 1)
    _, bound, _ = follow(group(RULES[name] | {"optimizer.max_norm": bounds}), 1)
    scaled = set()
    for one, other in zip(layout.views(free), layout.views(bound), strict=True):
        if not is_weight(one.shape):
            assert torch.equal(one, other)
            continue
        for r in range(NETWORKS):
            for row, found in zip(one[r], other[r], strict=True):
                norm = math.sqrt(sum(x * x for x in row.tolist()))
                expected = row * (bounds[r] / norm) if norm > bounds[r] else row
                torch.testing.assert_close(found, expected, rtol=1e-15, atol=1e-15)
                scaled.add((r, norm > bounds[r]))
    assert scaled == {(0, True), (0, False), (1, True), (1, False), (2, False)}


def test_max_norm_holds_after_every_step_and_hides_nothing():
    configs = group(RULES["momentum"] | {"optimizer.max_norm": (0.5, 1.5, 3.0)})
    layout, values = flatten([b.float() for b in blocks(0)])
    optimizer = make_optimizer(configs, layout, values)
    for t in range(1, 20):
        _, grads = flatten([b.float() for b in blocks(t)])
        optimizer.step(grads)
        norms = [unit_norms(units) for units in layout.units(values, is_weight)]
        assert [norm.shape for norm in norms] == [(1, 3, 4, 1), (2, 3, 4, 1), (1, 3, 1, 1)]
        assert all((norm <= vector(0.5, 1.5, 3.0)[:, None, None] * (1 + 1e-6)).all() for norm in norms)
    grads.zero_()
    layout.views(grads)[0][0, 0, 0] = 1e30
    layout.views(grads)[0][1, 0, 0] = torch.nan
    optimizer.step(grads)
    views = layout.views(values)
    torch.testing.assert_close(views[0][0, 0].norm(), torch.tensor(0.5))  # its square overflows
    assert views[0][1, 0, 0].isnan()
    assert all(view[2].isfinite().all() for view in views)


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


def units(parameter):
    """The units of one network's parameter: the rows of a weight, or a vector, or a gate, whole."""
    return list(parameter) if parameter.dim() > 1 else [parameter.reshape(-1)]


def test_clip_by_unit_equals_a_loop_over_the_units():
    layout, grads = flatten(blocks(3))
    _, values = flatten([0.0 * b if k == 4 else b for k, b in enumerate(blocks(4))])
    thresholds = (0.3, 1.0, 1e5)
    clipped = clip_by_unit(layout, grads, values, vector(*thresholds))
    seen = set()
    for found, grad, weight in zip(layout.views(grads), blocks(3), layout.views(values), strict=True):
        for r in range(NETWORKS):
            rows = zip(units(found[r]), units(grad[r]), units(weight[r]), strict=True)
            for after, before, w in rows:
                norm, own = (math.sqrt(sum(x * x for x in v.tolist())) for v in (before, w))
                largest = thresholds[r] * max(own, 1e-3)
                expected = before * (largest / norm) if norm > largest else before
                torch.testing.assert_close(after, expected, rtol=1e-14, atol=1e-15)
                seen.add((r, norm > largest, own < 1e-3))
    assert clipped.tolist() == [True, True, False]
    assert {(0, True, False), (0, False, False), (0, True, True), (1, True, False), (1, False, False)} <= seen


def test_clip_by_unit_keeps_zero_at_zero_and_shows_nan_and_does_not_overflow():
    values = torch.ones(4, 2, 4)
    grads = torch.zeros(4, 2, 4)
    grads[1, 0, 0], grads[2, 1], grads[3, 0, 0] = torch.nan, 1e30, torch.inf
    layout, flat = flatten([grads])
    clipped = clip_by_unit(layout, flat, values.reshape(-1), torch.full((4,), 0.5))
    (after,) = layout.views(flat)
    assert clipped.tolist() == [False, False, True, True]
    assert torch.equal(after[0], grads[0])
    assert after[1, 0].isnan().all()
    assert torch.equal(after[1, 1], grads[1, 1])
    torch.testing.assert_close(after[2, 1], torch.full((4,), 0.5))  # of norm 1 = 0.5 * 2
    assert after[3, 0, 0].isnan()


CLIPS = {"norm": (0.5, 100.0, 2.0), "value": (0.5, 100.0, 0.7), "adaptive": (0.3, 1e5, 1.0)}


@pytest.mark.parametrize("name", CLIPS)
def test_a_clipper_tells_which_networks_it_clipped(name):
    layout, grads = flatten(blocks(1))
    _, values = flatten(blocks(0))
    configs = group({"clip.name": name, "clip.threshold": CLIPS[name]})
    before = grads.clone()
    assert make_clipper(configs, layout, values)(grads).tolist() == [True, False, True]
    for view, old in zip(layout.views(grads), layout.views(before), strict=True):
        assert torch.equal(view[1], old[1])
    expected = before.clone()
    if name == "adaptive":
        clip_by_unit(layout, expected, values, vector(*CLIPS[name]))
    else:
        {"norm": clip_by_norm, "value": clip_by_value}[name](layout, expected, vector(*CLIPS[name]))
    assert torch.equal(grads, expected)
    assert not torch.equal(grads, before)
    norms, cosines = clip_effect(layout, before, grads)
    for r in range(NETWORKS):
        old, new = (torch.cat([view[r].reshape(-1) for view in layout.views(flat)]) for flat in (before, grads))
        torch.testing.assert_close(norms[r], new.norm())
        torch.testing.assert_close(cosines[r], torch.nn.functional.cosine_similarity(old, new, dim=0))
    if name == "norm":
        torch.testing.assert_close(cosines, vector(1, 1, 1), rtol=0, atol=1e-14)
        torch.testing.assert_close(clip_effect(layout, before, grads, turned=False), (norms, vector(1, 1, 1)))
    else:
        assert (cosines[[0, 2]] < 0.999).all()


def test_the_effect_of_clipping_is_unknown_on_a_zero_gradient_and_does_not_overflow():
    layout, before = flatten([torch.full((3, 2, 4), 1e30)])
    layout.views(before)[0][0], layout.views(before)[0][2, 0, 0] = 0.0, torch.nan
    norms, cosines = clip_effect(layout, before, 1e-20 * before)
    torch.testing.assert_close(norms[:2], vector(0.0, 8**0.5 * 1e10))
    torch.testing.assert_close(cosines, vector(torch.nan, 1.0, torch.nan), equal_nan=True)
    _, cosines = clip_effect(layout, before, 1e-20 * before, turned=False)
    torch.testing.assert_close(cosines, vector(torch.nan, 1.0, torch.nan), equal_nan=True)


def test_no_clipping_is_none():
    layout, values = flatten(blocks(0))
    assert make_clipper(group({}), layout, values) is None


def test_a_run_of_no_steps_has_one_update_to_measure():
    layout, values = flatten(blocks(0))
    optimizer = make_optimizer(group(RULES["sgd"] | SCHEDULES["cosine"], steps=0), layout, values)
    _, grads = flatten(blocks(1))
    optimizer.step(grads)
    for view, value, grad in zip(layout.views(values), blocks(0), blocks(1), strict=True):
        for r in range(NETWORKS):
            torch.testing.assert_close(view[r], value[r] - LR[r] * grad[r])


def test_terms_of_zero_are_left_out_and_shared_numbers_are_numbers():
    layout, values = flatten(blocks(0))
    zero = vector(0, 0, 0)
    optimizer = SGD(layout, values, lr=vector(0.1, 0.1, 0.1), momentum=zero, l2=zero, weight_decay=zero)
    assert (optimizer.lr.at(0), optimizer.momentum, optimizer.l2, optimizer.decay) == (0.1, None, None, None)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("columns", RULES.values(), ids=RULES)
def test_cuda_updates_as_the_cpu_does(columns):
    more = {"optimizer.max_norm": 1.5, "clip.name": "adaptive", "clip.threshold": 0.5}
    configs = group(columns | SCHEDULES["warm-cosine"] | more)
    found = []
    for device in ("cpu", "cuda"):
        layout, values = flatten([b.to(device) for b in blocks(0)])
        optimizer, clipper = make_optimizer(configs, layout, values), make_clipper(configs, layout, values)
        for t in range(1, STEPS):
            _, grads = flatten([b.to(device) for b in blocks(t)])
            optimizer.penalize(grads)
            clipper(grads)
            optimizer.step(grads)
        found.append(values.cpu())
    torch.testing.assert_close(*found, rtol=0, atol=1e-12)


# As SHAPES, but only the first one or two of the networks have some of the parameters.
LIVE = (3, 2, 2, 3, 1, 1, 2, 3, 1)


def ragged(seed):
    return [block[:live] for block, live in zip(blocks(seed), LIVE, strict=True)]


RAGGED_RULES = {
    "momentum-l2": RULES["momentum-l2"] | SCHEDULES["warm"] | {"clip.name": "value", "clip.threshold": (0.3, 5.0, 1.0)},
    "nesterov-decay": RULES["nesterov-decay"] | {"optimizer.max_norm": (0.5, 1.5, 3.0)},
    "adam": RULES["adam"] | {"clip.name": "norm", "clip.threshold": (0.5, 100.0, 2.0)},
    "adamw": RULES["adamw"] | SCHEDULES["warm-cosine"] | {"clip.name": "adaptive", "clip.threshold": (0.3, 1e5, 1.0)},
}


@pytest.mark.parametrize("columns", RAGGED_RULES.values(), ids=RAGGED_RULES)
def test_networks_with_fewer_parameters_are_updated_as_alone(columns):
    configs = group(columns)
    layout, values = flatten(ragged(0))
    together, clipper = make_optimizer(configs, layout, values), make_clipper(configs, layout, values)
    alone = []
    for r, config in enumerate(configs):
        own = flatten([block[r : r + 1] for block in ragged(0) if len(block) > r])
        alone.append((*own, make_optimizer([config], *own), make_clipper([config], *own)))
    for t in range(1, 6):
        _, grads = flatten(ragged(t))
        together.penalize(grads)
        clipped = clipper(grads) if clipper else torch.zeros(NETWORKS, dtype=torch.bool)
        for r, (own_layout, _, optimizer, own_clipper) in enumerate(alone):
            _, own = flatten([block[r : r + 1] for block in ragged(t) if len(block) > r])
            optimizer.penalize(own)
            assert not own_clipper or own_clipper(own).tolist() == [clipped[r]]
            of_network = torch.cat([view[r].reshape(-1) for view in layout.views(grads) if len(view) > r])
            torch.testing.assert_close(own, of_network, rtol=1e-14, atol=1e-15)
            torch.testing.assert_close(own_layout.norms(own)[0], layout.norms(grads)[r], rtol=1e-14, atol=0)
            torch.testing.assert_close(own_layout.largest(own)[0], layout.largest(grads)[r], rtol=1e-14, atol=0)
            optimizer.step(own)
        together.step(grads)
        for r, (_, own_values, *_) in enumerate(alone):
            of_network = torch.cat([view[r].reshape(-1) for view in layout.views(values) if len(view) > r])
            torch.testing.assert_close(own_values, of_network, rtol=1e-13, atol=1e-14)
