"""Initializations against torch.nn.init with the same generator, and against their stated variances."""

import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn import init as torch_init

from bpexp import theory
from bpexp.activations import ACTIVATIONS, Activation, Function
from bpexp.init import INITS, Place, initialize

Reference = Callable[[torch.Tensor, torch.Generator], object]

REFERENCES: dict[str, Reference] = {
    "pytorch": lambda w, g: torch_init.kaiming_uniform_(w, a=math.sqrt(5), generator=g),
    "lecun": lambda w, g: torch_init.kaiming_normal_(w, nonlinearity="linear", generator=g),
    "glorot": lambda w, g: torch_init.xavier_normal_(w, generator=g),
    "he": lambda w, g: torch_init.kaiming_normal_(w, nonlinearity="relu", generator=g),
    "lecun_uniform": lambda w, g: torch_init.kaiming_uniform_(w, nonlinearity="linear", generator=g),
    "glorot_uniform": lambda w, g: torch_init.xavier_uniform_(w, generator=g),
    "he_uniform": lambda w, g: torch_init.kaiming_uniform_(w, nonlinearity="relu", generator=g),
    "orthogonal": lambda w, g: torch_init.orthogonal_(w, generator=g),
    "normal": lambda w, g: torch_init.normal_(w, generator=g),
    "uniform": lambda w, g: torch_init.uniform_(w, -math.sqrt(3), math.sqrt(3), generator=g),
    "zeros": lambda w, g: torch_init.zeros_(w),
    "critical": lambda w, g: torch_init.normal_(w, 0, 1 / math.sqrt(w.shape[1]), generator=g),  # sigma_w of identity
    "identity": lambda w, g: torch_init.eye_(w),
    "lsuv": lambda w, g: torch_init.orthogonal_(w, generator=g),
    "fixup": lambda w, g: torch_init.kaiming_normal_(w, nonlinearity="relu", generator=g),  # of layer 1
}
SHAPES = [(5, 3), (3, 5), (7, 7), (1, 6), (6, 1), (64, 48), (10, 129)]
DTYPES = [torch.float64, torch.float32]
BIAS_FREE = [name for name in INITS if name != "pytorch"]
BIASED = [name for name in INITS if name != "fixup"]  # which refuses biases
DEAD = ("sigmoid", "relu", "softplus")  # activations with which a branch of zeros is not zero, or stays zero


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(
    name: str, shape: tuple[int, int] = (6, 4), gain: float = 1.0, bias_std: float | None = None, **network: object
) -> tuple[torch.Tensor, torch.Tensor]:
    settings = {"activation": "tanh", "generator": seeded(), "dtype": torch.float64, **network}
    return initialize(name, shape, gain=gain, bias_std=bias_std, **settings)


def test_every_row_has_a_reference() -> None:
    assert REFERENCES.keys() == INITS.keys()


@pytest.mark.parametrize("name", INITS)
def test_row_states_its_name_formula_and_source(name: str) -> None:
    row = INITS[name]
    assert row.name == name
    assert "W" in row.formula
    assert row.source


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", INITS)
def test_weight_equals_torch_bit_for_bit(name: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
    expected = torch.empty(shape, dtype=dtype)
    REFERENCES[name](expected, seeded())
    weight, bias = initialize(name, shape, generator=seeded(), dtype=dtype)
    assert weight.dtype == bias.dtype == dtype
    assert weight.is_contiguous()
    assert torch.equal(weight, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_pytorch_equals_linear_weight_and_bias(shape: tuple[int, int], dtype: torch.dtype) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = torch.nn.Linear(shape[1], shape[0], dtype=dtype)
    weight, bias = initialize("pytorch", shape, generator=seeded(), dtype=dtype)
    assert torch.equal(weight, layer.weight)
    assert torch.equal(bias, layer.bias)


@pytest.mark.parametrize("shape", [(400, 300), (300, 400)], ids=str)
@pytest.mark.parametrize("name", INITS)
def test_variances_are_those_of_the_draws(name: str, shape: tuple[int, int]) -> None:
    weight, bias = draw(name, shape)
    # 120,000 draws: the relative standard error of a normal's variance is sqrt(2/120000) = 0.4 %.
    assert weight.square().mean().item() == pytest.approx(INITS[name].variance(shape[1], shape[0]), rel=0.02)
    assert bias.square().mean().item() == pytest.approx(INITS[name].bias_variance(shape[1]), rel=0.25)


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 4)], ids=str)
def test_orthogonal_has_orthonormal_rows_or_columns(shape: tuple[int, int]) -> None:
    weight, _ = draw("orthogonal", shape)
    gram = weight.T @ weight if shape[0] > shape[1] else weight @ weight.T
    torch.testing.assert_close(gram, torch.eye(min(shape), dtype=torch.float64), rtol=0, atol=1e-14)


@pytest.mark.parametrize("gain", [0.0, 0.5, 1.7])
@pytest.mark.parametrize("name", INITS)
def test_gain_scales_the_weight_alone(name: str, gain: float) -> None:
    weight, bias = draw(name)
    scaled_weight, scaled_bias = draw(name, gain=gain)
    assert torch.equal(scaled_weight, weight * gain)
    assert torch.equal(scaled_bias, bias)


@pytest.mark.parametrize("name", BIAS_FREE)
def test_bias_is_zero_unless_asked_for(name: str) -> None:
    assert draw(name)[1].count_nonzero() == 0


@pytest.mark.parametrize("name", BIASED)
def test_bias_std_draws_a_normal_bias_after_the_same_weight(name: str) -> None:
    weight, bias = draw(name, (10_000, 2), bias_std=0.3, gain=2.0)
    assert bias.std().item() == pytest.approx(0.3, rel=0.03)
    assert bias.abs().max().item() > 0.9, "a uniform of this deviation would end at 0.52"
    assert INITS[name].bias_variance(2, 0.3) == pytest.approx(0.09)
    if name != "critical":  # whose gain depends on the biases
        assert torch.equal(weight, draw(name, (10_000, 2), gain=2.0)[0])


@pytest.mark.parametrize("name", INITS)
def test_bias_std_zero_means_no_bias(name: str) -> None:
    assert draw(name, bias_std=0.0)[1].count_nonzero() == 0
    assert INITS[name].bias_variance(4, 0.0) == 0.0


@pytest.mark.parametrize("key", ["gain", "bias_std"])
@pytest.mark.parametrize("value", [-0.5, math.inf, math.nan])
def test_bad_number_is_refused(key: str, value: float) -> None:
    message = f"init.{key}: {value} is not a finite number of at least 0"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        initialize("he", (2, 2), generator=seeded(), dtype=torch.float64, **{key: value})


@pytest.mark.parametrize("bias_std", [None, 0.0, 0.3])
@pytest.mark.parametrize(
    "activation",
    ["tanh", "selu", "sigmoid", torch.tanh, ACTIVATIONS["elu"]],
    ids=["tanh", "selu", "sigmoid", "a function", "an Activation"],
)
def test_critical_weights_have_the_gain_of_their_activation(
    activation: str | Function | Activation, bias_std: float | None
) -> None:
    """With the generator of lecun: the same draws, to rounding, times sigma_w, in whatever layer."""
    expected = theory.critical(activation, bias_std or 0.0) * draw("lecun", (50, 40))[0]
    for layer in (1, 2, 4):
        weight, _ = draw("critical", (50, 40), bias_std=bias_std, activation=activation, layer=layer, depth=3)
        torch.testing.assert_close(weight, expected, rtol=1e-14, atol=0)


def test_critical_relu_is_he() -> None:
    torch.testing.assert_close(draw("critical", activation="relu")[0], draw("he")[0], rtol=1e-14, atol=0)


def test_critical_is_refused_where_there_is_no_such_gain() -> None:
    with pytest.raises(ValueError, match=r"^init: critical: gelu has no critical point at init.bias_std=0: "):
        draw("critical", activation="gelu")
    draw("critical", activation="gelu", bias_std=0.5)


def test_critical_variance_is_that_of_its_place() -> None:
    place = Place("tanh", 0.3, layer=2, depth=3)
    assert INITS["critical"].variance(40, 50, place) == pytest.approx(theory.critical("tanh", 0.3) ** 2 / 40)


def test_fixup_starts_branches_and_outputs_at_zero() -> None:
    """Layer 1 is he; every layer spends the same draws."""
    depth, used = 4, []
    for layer in range(1, depth + 2):
        generator = seeded()
        weight, bias = draw("fixup", layer=layer, depth=depth, generator=generator)
        assert bias.count_nonzero() == 0
        assert torch.equal(weight, draw("he")[0] if layer == 1 else torch.zeros(6, 4, dtype=torch.float64))
        used.append(generator.get_state())
    assert all(torch.equal(state, used[0]) for state in used)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_fixup_takes_what_its_branches_can_learn_with(name: str) -> None:
    """One step of descent on h + phi(W h) from W = 0: nothing is added at first, and W moves."""
    if name in DEAD:
        with pytest.raises(ValueError, match=rf"^init: fixup starts branches at zero: {name} "):
            draw("fixup", activation=name)
        return
    weight = draw("fixup", (4, 4), activation=name, layer=2, depth=2)[0].requires_grad_()
    added = ACTIVATIONS[name].function(torch.ones(3, 4, dtype=torch.float64) @ weight.T)
    assert added.count_nonzero() == 0
    (grad,) = torch.autograd.grad(added.sum(), weight)
    assert grad.count_nonzero() == 16


FIT = "identity, tanh, leaky_relu, elu, celu, selu, gelu, gelu_tanh, silu, mish, softsign, hardtanh, prelu"
STUCK = "relu has the slope 0 there, so the weights of a branch would stay zero for ever"
OFF = "sigmoid hands on 0.5 there, and a branch has to start at 0"
FIXUP_REFUSALS = [
    ({"activation": "relu"}, f"init: fixup starts branches at zero: {STUCK}; choose model.activation from {FIT}"),
    (
        {"activation": torch.nn.functional.relu},
        f"init: fixup starts branches at zero: {STUCK}; choose model.activation from {FIT}",
    ),
    ({"activation": "sigmoid"}, f"init: fixup starts branches at zero: {OFF}; choose model.activation from {FIT}"),
    ({"bias_std": 0.1}, "init.bias_std: 0.1 would start fixup's branches off zero; choose init.bias_std=0"),
]


@pytest.mark.parametrize(("change", "message"), FIXUP_REFUSALS)
def test_fixup_says_what_it_cannot_start(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        draw("fixup", **change)


@pytest.mark.parametrize("layer", [0, 5])
def test_layer_that_a_network_has_not_is_refused(layer: int) -> None:
    with pytest.raises(ValueError, match=rf"^layer: {layer} is not among 1 to depth \+ 1 = 4$"):
        draw("he", layer=layer, depth=3)


def test_only_fixup_and_critical_ask_for_the_place() -> None:
    place = Place(layer=2, depth=3)
    asked = {name for name, row in INITS.items() if row.variance(7, 7, place) != row.variance(7, 7)}
    assert asked == {"fixup"}
    asked = {name for name, row in INITS.items() if row.variance(7, 7, Place("selu")) != row.variance(7, 7)}
    assert asked == {"critical"}


@pytest.mark.parametrize("name", ["critical", "identity", "lsuv", "fixup"])
def test_new_rows_are_options(name: str) -> None:
    assert (Path(__file__).parents[1] / "conf" / "init" / f"{name}.yaml").read_text() == f"name: {name}\n"


def test_unknown_name_is_refused_with_the_nearest() -> None:
    message = f"init: unknown 'hee'; did you mean 'he'? choose from {', '.join(INITS)}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        draw("hee")


def test_name_like_no_other_gets_no_guess() -> None:
    with pytest.raises(ValueError, match=r"^init: unknown 'qqq'; choose from pytorch, lecun, "):
        draw("qqq")


def test_tables_import_without_torch() -> None:
    code = (
        "import sys, bpexp.init, bpexp.data, bpexp.streams; sys.exit(bool({'torch', 'sklearn'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
