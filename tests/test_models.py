"""R networks side by side against one torch.nn.Sequential for each, and how their parameters are drawn."""

import itertools
import math

import pytest
import torch
from conftest import configure
from torch import nn

from bpexp.init import INITS
from bpexp.models import MLP, Trace
from bpexp.spec import ACTIVATIONS
from bpexp.streams import generator

NETWORKS, SAMPLES, FEATURES, OUTPUTS, WIDTH = 3, 5, 7, 4, 6

MODULES = {
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU("tanh"),
    "hardtanh": nn.Hardtanh,
    "identity": nn.Identity,
    "leaky_relu": nn.LeakyReLU,
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
    def forward(self, x):
        return x + super().forward(x)


def sequential(model, parameters, network, masks):
    """One network of the group from torch's modules alone."""
    linears = []
    for weight, bias in zip(parameters[: model.depth + 1], parameters[model.depth + 1 :], strict=True):
        linear = nn.Linear(weight.shape[2], weight.shape[1], dtype=weight.dtype)
        linear.load_state_dict({"weight": weight[network], "bias": bias[network]})
        linears.append(linear)
    blocks = []
    for layer, linear in enumerate(linears[:-1]):
        kind = Skip if model.residual == "plain" and layer > 0 else nn.Sequential
        dropped = [Times(masks[layer][network])] if masks else []
        blocks.append(kind(linear, MODULES[model.activation](), *dropped))
    return nn.Sequential(*blocks, linears[-1])


def networks(depth=3, **values):
    configs = [configure({"seed": seed, "model.depth": depth, "init.bias_std": 0.3}) for seed in range(NETWORKS)]
    model = MLP(FEATURES, OUTPUTS, depth, WIDTH, values.get("activation", "tanh"), values.get("residual", "none"))
    return model, configs


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "dropout"])
@pytest.mark.parametrize("residual", ["none", "plain"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_forward_is_torchs_network_by_network(activation, residual, masked):
    stream = torch.Generator().manual_seed(0)
    for depth in (1, 3):
        model, configs = networks(depth, activation=activation, residual=residual)
        parameters = model.parameters(configs, torch.float64)
        x = torch.randn(NETWORKS, SAMPLES, FEATURES, generator=stream, dtype=torch.float64)
        kept = torch.rand(depth, NETWORKS, SAMPLES, WIDTH, generator=stream, dtype=torch.float64) > 0.3
        masks = list(kept.double() / 0.7) if masked else []
        trace = Trace()
        outputs = model(x, parameters, masks, trace)
        for network in range(NETWORKS):
            theirs = sequential(model, parameters, network, masks)
            torch.testing.assert_close(outputs[network], theirs(x[network]), rtol=0, atol=1e-13)
            h = x[network]
            for layer, block in enumerate(theirs):
                linear = block[0] if layer < depth else block
                torch.testing.assert_close(trace.z[layer][network], linear(h), rtol=0, atol=1e-13)
                h = block(h)
                if layer < depth:
                    torch.testing.assert_close(trace.a[layer][network], h, rtol=0, atol=1e-13)
        assert (len(trace.z), len(trace.a)) == (depth + 1, depth)


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_shapes(depth):
    model, configs = networks(depth)
    weights = [(WIDTH, FEATURES), *[(WIDTH, WIDTH)] * (depth - 1), (OUTPUTS, WIDTH)]
    assert model.shapes() == weights
    shapes = [tuple(p.shape) for p in model.parameters(configs, torch.float32)]
    assert shapes == [(NETWORKS, *w) for w in weights] + [(NETWORKS, w[0]) for w in weights]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_parameters_come_from_the_seeds_own_stream_layer_by_layer(dtype):
    model, configs = networks()
    for config in configs:
        config.init.name, config.init.bias_std = "pytorch", None
    parameters = model.parameters(configs, dtype)
    for network, config in enumerate(configs):
        stream = generator(config.seed, "init")
        for layer, (fan_out, fan_in) in enumerate(model.shapes()):
            bound = 1 / math.sqrt(fan_in)
            weight = torch.empty(fan_out, fan_in, dtype=dtype).uniform_(-bound, bound, generator=stream)
            bias = torch.empty(fan_out, dtype=dtype).uniform_(-bound, bound, generator=stream)
            drawn = parameters[layer][network], parameters[model.depth + 1 + layer][network]
            torch.testing.assert_close(drawn, (weight, bias), rtol=4 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("init", INITS)
def test_a_network_draws_the_same_parameters_alone_and_in_a_group(init):
    model, configs = networks()
    others = [name for name in INITS if name not in (init, "zeros")]
    for network, config in enumerate(configs):
        config.init.name = init if network == 1 else others[network]
    together = model.parameters(configs, torch.float32)
    alone = model.parameters([configs[1]], torch.float32)
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
