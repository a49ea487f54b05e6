"""The plan against the Function driver and torch autograd, over replays with new data and weights."""

import pytest
import torch

from bpexp import functional
from bpexp.plan import Plan, PlanError
from bpexp.rules import RULES, Rule
from bpexp.rules.activations import samples_at

ACTIVATIONS = [
    name for name in RULES if name in {"sigmoid", "tanh", "relu", "selu", "gelu", "gelu_tanh", "silu", "softsign"}
]


@pytest.fixture(scope="module")
def add():
    rule = Rule(
        "add_in_test",
        lambda a, b: a + b,
        {"a": lambda grad: grad, "b": lambda grad: grad},
        torch.add,
        samples_at(),
        "definition",
    )
    yield rule
    del RULES["add_in_test"]


@pytest.fixture(scope="module")
def mean_square():
    rule = Rule(
        "mean_square_in_test",
        lambda x: (x * x).mean((1, 2)),
        {"x": lambda grad, x: x * (grad * (2 / (x.shape[1] * x.shape[2])))[:, None, None]},
        lambda x: (x * x).mean((1, 2)),
        samples_at(),
        "definition",
    )
    yield rule
    del RULES["mean_square_in_test"]


def network(networks: int, depth: int, width: int):
    generator = torch.Generator().manual_seed(0)
    parameters = []
    for _ in range(depth + 1):
        weight = torch.randn(networks, width, width, generator=generator, dtype=torch.float64) * width**-0.5
        parameters += [weight, torch.randn(networks, width, generator=generator, dtype=torch.float64)]
    return parameters, torch.randn(networks, 5, width, generator=generator, dtype=torch.float64)


def forward(x, parameters, activation, add, loss):
    linear = RULES["linear"]
    for weight, bias in zip(parameters[:-2:2], parameters[1:-2:2], strict=True):
        x = add(x, RULES[activation](linear(x, weight, bias)))
    return loss(linear(x, *parameters[-2:]))


@pytest.mark.parametrize("keep", [False, True], ids=["reused-buffers", "kept-buffers"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_replays_equal_autograd_of_the_functions(activation, keep, add, mean_square):
    parameters, x = network(3, 4, 6)
    plan = Plan(lambda x: forward(x, parameters, activation, add, mean_square), (x,), parameters, keep=keep)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        for tensor in (x, *parameters):
            tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype))
        loss = plan.step()
        leaves = [p.clone().requires_grad_() for p in parameters]
        expected = forward(x, leaves, activation, add, mean_square)
        torch.testing.assert_close(loss, expected.detach(), rtol=0, atol=1e-12)
        torch.testing.assert_close(plan.grads, torch.autograd.grad(expected.sum(), leaves), rtol=0, atol=1e-12)


def test_reuse_takes_fewer_buffers(add, mean_square):
    parameters, x = network(1, 12, 6)
    counts = []
    for keep in (False, True):
        plan = Plan(lambda x: forward(x, parameters, "tanh", add, mean_square), (x,), parameters, keep=keep)
        counts.append(len({storage.data_ptr() for storage, _ in plan.buffers.places.values()}))
    assert counts[0] < counts[1]


def test_a_kept_tensor_and_its_gradient_can_be_read(mean_square):
    parameters, x = network(2, 0, 4)
    seen = []

    def model(x):
        seen.append(RULES["linear"](x, *parameters))
        return mean_square(seen[-1])

    plan = Plan(model, (x,), parameters, keep=True)
    x.mul_(2)
    plan.step()
    z = torch.baddbmm(parameters[1][:, None], x, parameters[0].mT)
    torch.testing.assert_close(plan.value(seen[0]), z)
    torch.testing.assert_close(plan.gradient(seen[0]), z * 2 / z[0].numel())


def test_tensors_returned_beside_the_loss_can_be_read_after_every_step(mean_square):
    parameters, x = network(2, 3, 4)
    affine = [torch.ones(2, 4, dtype=torch.float64), torch.zeros(2, 4, dtype=torch.float64)]
    seen = []

    def model(x, *, shown=True):
        seen.clear()
        for weight, bias in zip(parameters[:-2:2], parameters[1:-2:2], strict=True):
            z = RULES["linear"](x, weight, bias)
            x, mean, var = RULES["network_batch_norm"].outputs(z, *affine, 1e-5)
            seen.extend([z, mean, var])
        loss = mean_square(RULES["linear"](x, *parameters[-2:]))
        return (loss, *seen) if shown else loss

    plan = Plan(model, (x,), [*parameters, *affine])
    recorded = list(seen)
    silent = Plan(lambda x: model(x, shown=False), (x,), [*parameters, *affine])
    for _ in range(2):
        x.mul_(1.5).add_(0.1)
        loss = plan.step()
        assert torch.equal(loss, silent.step())
        assert torch.equal(plan.flat_grad, silent.flat_grad)
        for z, mean, var in zip(*[iter(map(plan.value, recorded))] * 3, strict=True):
            torch.testing.assert_close([mean, var], [z.mean(1), z.var(1, correction=0)], rtol=1e-12, atol=1e-12)
        with torch.no_grad():
            torch.testing.assert_close(plan.value(recorded[0]), RULES["linear"](x, *parameters[:2]))


def test_an_intermediate_is_a_constant_for_both_drivers(mean_square):
    parameters, x = network(1, 0, 4)
    affine = [torch.ones(1, 4, dtype=torch.float64), torch.zeros(1, 4, dtype=torch.float64)]
    shape = (1, 1, 4)

    def model(x, weight, bias, *affine):
        y, mean, _ = RULES["network_batch_norm"].outputs(RULES["linear"](x, weight, bias), *affine, 1e-5)
        return mean_square(RULES["multiply"](y, RULES["reshape"](mean, shape)))

    plan = Plan(lambda x: model(x, *parameters, *affine), (x,), [*parameters, *affine])
    leaves = [p.clone().requires_grad_() for p in (*parameters, *affine)]
    loss = model(x, *leaves)
    torch.testing.assert_close(plan.step(), loss.detach(), rtol=1e-12, atol=1e-12)
    grads = torch.autograd.grad(loss.sum(), leaves)
    torch.testing.assert_close(list(plan.grads), list(grads), rtol=1e-12, atol=1e-12)


def test_running_statistics_that_a_replay_would_not_move_are_refused(mean_square):
    parameters, x = network(1, 0, 4)
    running = [torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)]

    def model(x):
        z = RULES["reshape"](RULES["linear"](x, *parameters), (5, 4))
        return mean_square(RULES["reshape"](functional.batch_norm(z, *running, training=True), (1, 5, 4)))

    with pytest.raises(PlanError, match=r"aten::add_\.Tensor outside the rules writes what the model computes"):
        Plan(model, (x,), parameters)


def test_what_is_made_or_changed_outside_the_rules_is_refused(mean_square):
    parameters, x = network(1, 0, 4)
    linear = RULES["linear"]
    with pytest.raises(PlanError, match=r"made outside the rules by aten::mul\.Tensor"):
        Plan(lambda x: mean_square(linear(x, *parameters) * 2), (x,), parameters)
    with pytest.raises(PlanError, match="changed in place outside the rules"):
        Plan(lambda x: mean_square(linear(x, *parameters).mul_(2)), (x,), parameters)
    with pytest.raises(PlanError, match="the model's result was made outside the rules"):
        Plan(lambda x: linear(x, *parameters).sum(), (x,), parameters)
    with pytest.raises(PlanError, match="the model's result was made outside the rules"):
        Plan(lambda x: (mean_square(linear(x, *parameters)), x * 2), (x,), parameters)


def test_recording_draws_nothing_from_a_stream_that_a_replay_would_draw(mean_square):
    generator = torch.Generator().manual_seed(3)
    noise = Rule(
        "noise_in_test",
        lambda x: x + torch.empty_like(x).normal_(generator=generator),
        {"x": lambda grad: grad},
        lambda x: x,
        samples_at(),
        "definition",
    )
    del RULES["noise_in_test"]
    parameters, x = network(1, 0, 4)
    plan = Plan(lambda x: mean_square(RULES["linear"](noise(x), *parameters)), (x,), parameters)
    first, second = plan.step().clone(), plan.step().clone()
    generator.manual_seed(3)
    for loss in (first, second):
        noisy = x + torch.empty_like(x).normal_(generator=generator)
        z = torch.baddbmm(parameters[1][:, None], noisy, parameters[0].mT)
        torch.testing.assert_close(loss, z.square().mean((1, 2)), rtol=0, atol=1e-12)


def test_a_parameter_that_leads_nowhere_is_refused(mean_square):
    parameters, x = network(1, 0, 4)
    spare = torch.zeros(1, 2, 3, dtype=torch.float64)
    with pytest.raises(PlanError, match=r"nothing leads from a parameter of shape \(1, 2, 3\) to the loss"):
        Plan(lambda x: mean_square(RULES["linear"](x, *parameters)), (x,), [*parameters, spare])


def test_autocast_is_refused(mean_square):
    parameters, x = network(1, 0, 4)
    x, *parameters = (tensor.float() for tensor in (x, *parameters))
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(PlanError, match="linear: a plan does not record under autocast"),
    ):
        Plan(lambda x: mean_square(RULES["linear"](x, *parameters)), (x,), parameters)


def every_sample():
    for rule in list(RULES.values()):
        for sample in rule.samples(torch.Generator().manual_seed(0)):
            if any(isinstance(a, torch.Tensor) and a.is_complex() for a in sample.args):
                continue  # a plan differentiates a real loss of real numbers
            yield pytest.param(rule, sample, id=f"{rule.name}-{sample.name}")


@pytest.mark.filterwarnings("ignore:Using a target size")  # torch's, of samples that broadcast
@pytest.mark.parametrize("keep", [False, True], ids=["reused-buffers", "kept-buffers"])
@pytest.mark.parametrize(("rule", "sample"), list(every_sample()))
def test_every_rule_replays_as_its_function(rule, sample, keep):
    wanted = {argument for gradient in rule.backward for argument in gradient.arguments}
    args = [a.clone() if isinstance(a, torch.Tensor) else a for a in sample.args]
    places = [
        place
        for place, a in enumerate(args)
        if isinstance(a, torch.Tensor)
        and a.is_floating_point()
        and rule.parameters[min(place, len(rule.parameters) - 1)] in wanted
    ]
    total = RULES["sum"]
    tensors = [a for a in args if isinstance(a, torch.Tensor)]
    plan = Plan(lambda *_: total(rule(*args), None, False), tensors, [args[place] for place in places], keep=keep)
    for _ in range(2):
        for place in places:
            args[place].mul_(1.25)
        leaves = list(args)
        for place in places:
            leaves[place] = args[place].clone().requires_grad_()
        expected = rule(*leaves).sum()
        torch.testing.assert_close(plan.step(), expected.detach(), rtol=1e-12, atol=1e-12, equal_nan=True)
        grads = torch.autograd.grad(expected, [leaves[place] for place in places])
        torch.testing.assert_close(list(plan.grads), list(grads), rtol=1e-12, atol=1e-12, equal_nan=True)
