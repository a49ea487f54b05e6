"""Initializations against torch.nn.init with the same generator, and against their stated variances."""

import math
import re
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch.nn import init as torch_init

from bpexp.init import INITS, initialize

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
}
SHAPES = [(5, 3), (3, 5), (7, 7), (1, 6), (6, 1), (64, 48), (10, 129)]
DTYPES = [torch.float64, torch.float32]
BIAS_FREE = [name for name in INITS if name != "pytorch"]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(
    name: str, shape: tuple[int, int] = (6, 4), gain: float = 1.0, bias_std: float | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    return initialize(name, shape, gain=gain, bias_std=bias_std, generator=seeded(), dtype=torch.float64)


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


@pytest.mark.parametrize("name", INITS)
def test_bias_std_draws_a_normal_bias_after_the_same_weight(name: str) -> None:
    weight, bias = draw(name, (10_000, 2), bias_std=0.3, gain=2.0)
    assert bias.std().item() == pytest.approx(0.3, rel=0.03)
    assert bias.abs().max().item() > 0.9, "a uniform of this deviation would end at 0.52"
    assert INITS[name].bias_variance(2, 0.3) == pytest.approx(0.09)
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
