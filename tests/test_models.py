"""R networks side by side against one torch.nn.Sequential for each, and how their parameters are drawn."""

import itertools
import math

import pytest
import torch
from conftest import configure
from torch import nn

from bpexp.dropout import Masks
from bpexp.init import INITS
from bpexp.models import LSUV_TOLERANCE, MLP, DeadNetworkError, Trace
from bpexp.spec import ACTIVATIONS, NORMS, RESIDUALS
from bpexp.streams import generator

NETWORKS, SAMPLES, FEATURES, OUTPUTS, WIDTH = 3, 5, 7, 4, 6

MODULES = {
    "celu": nn.CELU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU("tanh"),
    "hardtanh": nn.Hardtanh,
    "identity": nn.Identity,
    "leaky_relu": nn.LeakyReLU,
    "mish": nn.Mish,
    "prelu": lambda: nn.PReLU(dtype=torch.float64),
    "relu": nn.ReLU,
    "selu": nn.SELU,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "softsign": nn.Softsign,
    "tanh": nn.Tanh,
}


class Times(nn.Module):
    def __init__(self, mask):
        super().__init__()
        self.mask = mask

    def forward(self, x):
        return x * self.mask


class Skip(nn.Sequential):
    def __init__(self, scale, *modules):
        super().__init__(*modules)
        self.scale = scale

    def forward(self, x):
        return x + self.scale * super().forward(x)


NORM_MODULES = {"none": nn.Identity, "batch": nn.BatchNorm1d, "layer": nn.LayerNorm}


def sequential(model, parameters, network, masks):
    """One network of the group from torch's modules alone; norms and slopes as torch starts them."""
    linears, p = [], model.sort(parameters)
    biases = [None] * (len(p.weights) - len(p.biases)) + list(p.biases)
    for weight, bias in zip(p.weights, biases, strict=True):
        linear = nn.Linear(weight.shape[2], weight.shape[1], bias=bias is not None, dtype=weight.dtype)
        values = {"weight": weight, "bias": bias} if bias is not None else {"weight": weight}
        linear.load_state_dict({name: value[network] for name, value in values.items()})
        linears.append(linear)
    blocks = []
    for layer, linear in enumerate(linears[:-1]):
        dropped = [Times(masks[layer])] if len(masks) > 0 else []
        norm = NORM_MODULES[model.norm](WIDTH, dtype=torch.float64)
        branch = (linear, norm, MODULES[model.activation](), *dropped)
        if layer == 0 or model.residual == "none":
            blocks.append(nn.Sequential(*branch))
        else:
            gate = p.gates[layer - 1][network] if p.gates else 1.0
            blocks.append(
                Skip({"scaled": 1 / math.sqrt(model.depth), "rezero": gate}.get(model.residual, 1.0), *branch)
            )
    return nn.Sequential(*blocks, linears[-1])


def networks(depth=3, **values):
    given = {"model.depth": depth, "init.bias_std": 0.3, "init.gate": 0.4}
    configs = [configure(given | {"seed": seed}) for seed in range(NETWORKS)]
    return MLP(FEATURES, OUTPUTS, depth, WIDTH, values.pop("activation", "tanh"), **values), configs


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "dropout"])
@pytest.mark.parametrize(
    "values",
    [
        *({"activation": activation} for activation in ACTIVATIONS),
        *({"residual": residual, "norm": norm} for residual in RESIDUALS for norm in NORMS),
    ],
    ids=lambda values: "-".join(values.values()),
)
def test_forward_is_torchs_network_by_network(values, masked):
    stream = torch.Generator().manual_seed(0)
    for depth in (1, 3):
        model, configs = networks(depth, **values)
        parameters = model.parameters(configs, torch.float64)
        x = torch.randn(NETWORKS, SAMPLES, FEATURES, generator=stream, dtype=torch.float64)
        drawn = Masks([0.1, 0.3, 0.6], range(NETWORKS), torch.arange(NETWORKS), (depth, SAMPLES, WIDTH), torch.float64)
        drawn.fill()
        masks = drawn.layers if masked else []
        trace = Trace()
        outputs = model(x, parameters, masks, trace)
        for network in range(NETWORKS):
            theirs = sequential(model, parameters, network, drawn.values[network] if masked else [])
            torch.testing.assert_close(outputs[network], theirs(x[network]), rtol=0, atol=1e-13)
            h = x[network]
            for layer, block in enumerate(theirs):
                linear = block[0] if layer < depth else block
                torch.testing.assert_close(trace.z[layer][network], linear(h), rtol=0, atol=1e-13)
                h = block(h)
                if layer < depth:
                    torch.testing.assert_close(trace.a[layer][network], h, rtol=0, atol=1e-13)
        assert (len(trace.z), len(trace.n), len(trace.a)) == (depth + 1, depth, depth)


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_shapes(depth):
    model, configs = networks(depth)
    weights = [(WIDTH, FEATURES), *[(WIDTH, WIDTH)] * (depth - 1), (OUTPUTS, WIDTH)]
    assert [slot.shape for slot in model.slots()] == weights + [w[:1] for w in weights]
    model, configs = networks(depth, norm="batch", residual="rezero", activation="prelu")
    slots = model.slots()
    found = [tuple(p.shape) for p in model.parameters(configs, torch.float32)]
    assert found == [(NETWORKS, *slot.shape) for slot in slots]
    hidden = list(range(1, depth + 1))
    layers = {kind: [slot.layer for slot in slots if slot.kind == kind] for kind in ("norm_weight", "gate", "slope")}
    assert layers == {"norm_weight": hidden, "gate": hidden[1:], "slope": hidden}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_parameters_come_from_the_seeds_own_stream_layer_by_layer(dtype):
    model, configs = networks()
    for config in configs:
        config.init.name, config.init.bias_std = "pytorch", None
    parameters = model.parameters(configs, dtype)
    for network, config in enumerate(configs):
        stream = generator(config.seed, "init")
        shapes = [slot.shape for slot in model.slots() if slot.kind == "weight"]
        for layer, (fan_out, fan_in) in enumerate(shapes):
            bound = 1 / math.sqrt(fan_in)
            weight = torch.empty(fan_out, fan_in, dtype=dtype).uniform_(-bound, bound, generator=stream)
            bias = torch.empty(fan_out, dtype=dtype).uniform_(-bound, bound, generator=stream)
            drawn = parameters[layer][network], parameters[model.depth + 1 + layer][network]
            torch.testing.assert_close(drawn, (weight, bias), rtol=4 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("init", INITS)
def test_a_network_draws_the_same_parameters_alone_and_in_a_group(init):
    model, configs = networks()
    others = [name for name in INITS if name not in (init, "zeros", "fixup")]
    configs[1].init.bias_std = 0.0 if init == "fixup" else 0.3
    batches = torch.randn(NETWORKS, 20, FEATURES, generator=torch.Generator().manual_seed(1))
    for network, config in enumerate(configs):
        config.init.name = init if network == 1 else others[network]
    together = model.parameters(configs, torch.float32, lambda network: batches[network])
    alone = model.parameters([configs[1]], torch.float32, lambda network: batches[1])
    assert all(torch.equal(one[0], group[1]) for one, group in zip(alone, together, strict=True))


def test_parameters_depend_on_seed_and_init_and_on_nothing_else():
    values = {"seed": 3, "init.name": "glorot", "init.gain": 1.5, "init.bias_std": 0.1}
    nothing = {
        "optimizer.lr": 0.7,
        "optimizer.l2": 0.1,
        "optimizer.weight_decay": 0.1,
        "model.dropout": 0.4,
        "train.steps": 9,
        "train.batch_size": 5,
        "data.train_size": 50,
        "clip.threshold": 0.2,
        "loss": "mse",
    }
    something = {"seed": 4, "init.name": "he", "init.gain": 1.6, "init.bias_std": 0.2}
    model = MLP(FEATURES, OUTPUTS, 3, WIDTH, "tanh")

    def draw(change):
        return torch.cat([p.flatten() for p in model.parameters([configure(values | change)], torch.float64)])

    first = draw({})
    for name, value in nothing.items():
        assert torch.equal(draw({name: value}), first), name
    for name, value in something.items():
        assert not torch.equal(draw({name: value}), first), name
    for activation, residual in (("relu", "none"), ("tanh", "plain")):
        other = MLP(FEATURES, OUTPUTS, 3, WIDTH, activation, residual).parameters([configure(values)], torch.float64)
        assert torch.equal(torch.cat([p.flatten() for p in other]), first)


def test_every_network_has_its_own_init():
    stds = {"lecun": 1 / math.sqrt(200), "he": math.sqrt(2 / 200), "normal": 0.5, "zeros": 0.0}
    configs = [configure({"init.name": name, "init.gain": 0.5 if name == "normal" else 1.0}) for name in stds]
    configs[1].init.bias_std = 0.25
    parameters = MLP(FEATURES, OUTPUTS, 2, 200, "tanh").parameters(configs, torch.float64)
    drawn = parameters[1].std((1, 2))
    for network, std in enumerate(stds.values()):
        # 40,000 normal values: a deviation within 5 standard errors of it, 5 / sqrt(2 * 40,000)
        assert abs(float(drawn[network]) - std) <= std * 5 / math.sqrt(80_000)
    biases = torch.cat(parameters[3:], 1)
    assert [bool(row.any()) for row in biases] == [False, True, False, False]


def test_different_seeds_draw_different_numbers():
    model, configs = networks()
    for parameter in model.parameters(configs, torch.float64):
        assert not any(torch.equal(a, b) for a, b in itertools.combinations(parameter, 2))


def test_norms_start_at_the_identity_gates_at_their_first_value_and_slopes_at_a_quarter():
    model, configs = networks(norm="layer", residual="rezero", activation="prelu")
    configs[1].init.gate = -0.5
    p = model.sort(model.parameters(configs, torch.float64))
    assert all((weight == 1).all() for weight in p.norm_weights)
    assert not any(bias.any() for bias in p.norm_biases)
    assert [gate.tolist() for gate in p.gates] == [[0.4, -0.5, 0.4]] * 2
    assert [slope.tolist() for slope in p.slopes] == [[0.25] * 3] * 3


def test_batch_norm_uses_the_statistics_that_are_given_and_hands_out_those_of_the_batch():
    model, configs = networks(norm="batch")
    parameters = model.parameters(configs, torch.float64)
    x = torch.randn(NETWORKS, SAMPLES, FEATURES, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    trace = Trace()
    outputs = model(x, parameters, trace=trace)
    for z, (mean, variance) in zip(trace.z, trace.statistics, strict=False):
        torch.testing.assert_close(mean, z.mean(1), rtol=0, atol=1e-14)
        torch.testing.assert_close(variance, z.var(1, correction=0), rtol=1e-12, atol=0)
    again = model(x, parameters, statistics=trace.statistics)
    torch.testing.assert_close(again, outputs, rtol=0, atol=1e-13)
    one = model(x[:, :1], parameters, statistics=trace.statistics)
    torch.testing.assert_close(one, outputs[:, :1], rtol=0, atol=1e-13)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("gain", "bias_std"), [(1.0, 0.0), (1.5, 0.5)])
def test_lsuv_gives_every_layer_the_variance_that_is_asked(activation, gain, bias_std):
    model, configs = networks(8, activation=activation)
    for config in configs:
        config.init.name, config.init.gain, config.init.bias_std = "lsuv", gain, bias_std
    batches = torch.randn(NETWORKS, 64, FEATURES, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    parameters = model.parameters(configs, torch.float64, lambda network: batches[network])
    trace = Trace()
    model(batches, parameters, trace=trace)
    for z in trace.z:
        assert ((z.var((1, 2), correction=0) / gain**2 - 1).abs() < LSUV_TOLERANCE).all()


DEAD = {
    "input": ({}, 0.0, "layer 1 have the variance 0 on the first batch: the network is dead there"),
    "biases": ({"init.bias_std": 30.0}, 1.0, "after 10 passes, not 1; choose a smaller init.bias_std"),
    "overflow": ({}, math.inf, "layer 1 have the variance nan on the first batch: the network is dead there"),
}


@pytest.mark.parametrize(("values", "scale", "message"), DEAD.values(), ids=DEAD)
def test_lsuv_on_a_dead_network(values, scale, message):
    model, configs = networks()
    dead = configure({"init.name": "lsuv"} | values)
    batches = [torch.ones(8, FEATURES), scale * torch.randn(8, FEATURES, generator=torch.Generator().manual_seed(0))]
    with pytest.raises(DeadNetworkError, match="init: lsuv: the outputs of .*" + message) as error:
        model.parameters([configs[0], dead], torch.float32, lambda network: batches[network])
    assert error.value.network == 1
