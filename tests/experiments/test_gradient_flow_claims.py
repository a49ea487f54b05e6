"""The claims of gradient_flow: on records that follow a law, on records that do not, and the laws by simulation."""

import dataclasses
import itertools
import math
import statistics

import polars
import pytest
import torch
from synthetic_sweep import make_sweep

from bpexp.models import MLP, Trace
from bpexp.spec import ACTIVATIONS, Config
from bpexp.statistics import Interval, mean_interval
from bpexp.theory import activation_second_moment, gaussian_mean, selu_map
from experiments.gradient_flow_claims import (
    CLAIMS,
    GAINS_1,
    GAINS_2,
    LEARNING_RATES,
    LSUV,
    SELU_ABOVE,
    SELU_BELOW,
    STALL,
)
from experiments.gradient_flow_quantities import (
    AWAY,
    LAST,
    best_accuracy,
    gates_moved,
    job_gains,
    length_change,
    settled,
    variance_error,
    variance_interval,
    worst,
)
from experiments.gradient_flow_residual_claims import (
    FLUCTUATION,
    GROWTH_LINEAR,
    GROWTH_RELU,
    GROWTH_SCALED,
    REZERO_START,
    REZERO_TRAINS,
    VARIANCE_OF_RELU,
)
from experiments.ledger import judge_claim

NAN = float("nan")


def of_sweep(sweep, number=None):
    return [claim for claim in CLAIMS if claim.sweep is sweep and number in (None, claim.claim)]


# Claims 1 and 2.


def gain_sweep(sweep, gain, *, seeds=5):
    """Results and records of the networks of a claim's sweep; each key that it sweeps is one of its columns."""
    values = dict(override.split("=") for override in sweep.overrides)
    parts = [
        make_sweep(
            depths=(int(values["model.depth"]),),
            activations=tuple(values["model.activation"].split(",")),
            inits=tuple(values["init"].split(",")),
            seeds=range(seeds),
            gain=gain,
            **{"optimizer.lr": float(lr)},
        )
        for lr in values.get("optimizer.lr", "0.05").split(",")
    ]
    return polars.concat([results for results, _ in parts]), polars.concat([records for _, records in parts])


def expected_gain(depth, activation, init, seed):
    """What the claims say, with a little noise."""
    square = {"pytorch": 1 / 3, "glorot": 1.0, "he": 2.0}[init] * {"tanh": 1.0, "relu": 0.5}[activation]
    return math.sqrt(square) * (1 + 0.002 * (seed - 2))


def judged(sweep, gain, **options):
    results, records = gain_sweep(sweep, gain, **options)
    return {claim.title: judge_claim(claim, results, records) for claim in of_sweep(sweep) if claim.claim < 8}


GAINS = pytest.mark.parametrize("sweep", [GAINS_1, GAINS_2], ids=lambda sweep: sweep.name)


@GAINS
def test_networks_as_claimed_confirm_and_their_controls_refute(sweep):
    for title, row in judged(sweep, expected_gain).items():
        assert (row["verdict"], row["control_verdict"]) == ("confirmed", "refuted"), title
        assert row["low"] < row["expected"] < row["high"]
        assert row["measured_low"] < row["measured"] < row["measured_high"]
        assert row["seeds"] == 5


@pytest.mark.parametrize(
    ("factor", "noise", "verdict"),
    [(1.05, 0.0005, "refuted"), (1.02, 0.005, "inconclusive"), (1.0, 0.2, "inconclusive")],
)
@GAINS
def test_networks_that_are_not_as_claimed_do_not_confirm(sweep, factor, noise, verdict):
    def other(depth, activation, init, seed):
        return factor * expected_gain(depth, activation, init, 2) * (1 + noise * (seed - 2))

    assert {row["verdict"] for row in judged(sweep, other).values()} == {verdict}


def test_one_seed_decides_nothing():
    assert {row["verdict"] for row in judged(GAINS_1, expected_gain, seeds=1).values()} == {"inconclusive"}


def test_the_bounds_of_gains_are_two_per_cent_a_layer():
    for claim in CLAIMS:
        if claim.sweep in (GAINS_1, GAINS_2):
            assert claim.low == pytest.approx(claim.expected * 0.98)
            assert claim.high == pytest.approx(claim.expected * 1.02)
    assert {round(claim.expected, 6) for claim in CLAIMS} >= {0.57735, 0.408248, 0.707107, 1.0}


def test_a_linear_gain_leaves_out_the_layers_that_are_not_linear():
    results, records = make_sweep(depths=(4,), activations=("tanh",), inits=("pytorch",), seeds=(0,))
    deltas = {1: 100.0, 2: 0.25, 3: 0.5, 4: 1.0}
    curved = records.with_columns(
        value=polars.when(polars.col("measure") == "delta_rms")
        .then(polars.col("layer").replace_strict(deltas, default=1.0, return_dtype=polars.Float64))
        .otherwise("value")
    )
    assert job_gains(results, curved, linear=True) == pytest.approx([0.5])
    assert job_gains(results, curved, linear=False) == pytest.approx([100 ** (1 / 3)])
    saturated = curved.with_columns(
        value=polars.when(polars.col("measure") == "preactivation_rms").then(1.0).otherwise("value")
    )
    assert job_gains(results, saturated, linear=True) == [None]


def test_the_best_learning_rate_of_each_seed_counts_and_a_divergence_is_no_success():
    rows = [(0, 0.1, 0.3), (0, 0.5, 0.9), (1, 0.1, 0.7), (1, 0.5, None)]
    results = polars.DataFrame(rows, schema=["seed", "optimizer.lr", "train_accuracy"], orient="row")
    found = best_accuracy(results, polars.DataFrame())
    assert found == dataclasses.replace(mean_interval([0.9, 0.7]), low=0.0, high=1.0)
    assert math.isnan(best_accuracy(results[:1], polars.DataFrame()).low)


STALLS = [
    (lambda init, seed: 0.1 if init == "glorot" else 0.9, "confirmed", "refuted", "confirmed", "refuted"),
    (lambda init, seed: 0.9, "refuted", "refuted", "confirmed", "confirmed"),
    (lambda init, seed: 0.1 + 0.04 * seed, "inconclusive", "inconclusive", "refuted", "refuted"),
]


@pytest.mark.parametrize(("accuracy", "stall", "stall_control", "converge", "converge_control"), STALLS)
def test_stall_against_convergence(accuracy, stall, stall_control, converge, converge_control):
    results, records = gain_sweep(STALL, lambda *cell: 1.0)
    assert results["optimizer.lr"].unique().to_list() == list(LEARNING_RATES)
    values = [accuracy(init, seed) for init, seed in results.select("init", "seed").rows()]
    results = results.with_columns(train_accuracy=polars.Series(values))
    stalled, converged = (judge_claim(claim, results, records) for claim in of_sweep(STALL))
    assert (stalled["verdict"], stalled["control_verdict"]) == (stall, stall_control)
    assert (converged["verdict"], converged["control_verdict"]) == (converge, converge_control)


# Claims 8, 9, 10 and 13: networks of a sweep, made from a law.


def networks(sweep, seeds):
    """Yield the keys of every network of a sweep, as its results have them."""
    values = {"model.residual": "none", "model.input_dropout": 0.0} | dict(o.split("=") for o in sweep.overrides)
    choices = [[(name, number(one)) for one in str(text).split(",")] for name, text in values.items()]
    for keys in itertools.product(*choices):
        for seed in range(seeds):
            yield {**dict(keys), "seed": seed}


def number(text):
    try:
        return int(text) if "." not in text else float(text)
    except ValueError:
        return text


def make(sweep, law, seeds=20):
    """Results and records of networks that show what `law(keys)` says: by measure, and step if not 0, the layers."""
    results, records = [], []
    for job, keys in enumerate(networks(sweep, seeds)):
        shown = law(keys)
        results.append({"job": str(job), "status": "ok", **keys, "train_accuracy": shown.pop("train_accuracy", 0.1)})
        for name, profile in shown.items():
            measure, step = name if isinstance(name, tuple) else (name, 0)
            records += [(str(job), step, layer, measure, float(value)) for layer, value in profile.items()]
    schema = {"job": str, "step": polars.Int64, "layer": polars.Int64, "measure": str, "value": polars.Float64}
    return polars.DataFrame(results, infer_schema_length=None), polars.DataFrame(records, schema=schema, orient="row")


def hidden(keys):
    return range(1, keys["model.depth"] + 1)


def branch(keys):
    return {"none": 0.0, "plain": 1.0, "scaled": keys["model.depth"] ** -0.5}[keys["model.residual"]]


def grows(keys, growth=lambda c: 1 + c * c):
    """Mean squares grow by `growth(c)` a layer in both directions, but for an error of some per cent over all."""
    depth, c = keys["model.depth"], branch(keys)
    noise = 1 + 0.01 * (keys["seed"] % 5 - 2)
    lengths = {layer: noise * growth(c) ** ((layer - 1) / 2) for layer in hidden(keys)}
    gradients = {layer: noise ** (layer == 1) * growth(c) ** ((depth - layer) / 2) for layer in hidden(keys)}
    behind = {layer: c if layer > 1 and c > 0 else 1.0 for layer in hidden(keys)}
    lengths[1] /= noise
    return {"activation_rms": lengths, "delta_rms": {layer: behind[layer] * gradients[layer] for layer in gradients}}


def fluctuates(keys, factor=1.0):
    """Log squared lengths are normal quantiles, times a standard deviation."""
    depth, width = keys["model.depth"], keys["model.width"]
    variance = 5 * (depth - 1) / width if keys["model.residual"] == "none" else 8 * VARIANCE_OF_RELU / width
    quantile = statistics.NormalDist().inv_cdf((keys["seed"] + 0.5) / 100)
    return {"activation_rms": {1: 1.0, depth: math.exp(quantile * math.sqrt(factor * variance) / 2)}}


def closed_gates(keys, spoil=None):
    """A gate of 0 changes nothing and lets no gradient through, and moves unless the branch is zero."""
    open_, zeros = keys["init.gate"] > 0, keys["init"] == "zeros"
    found = {
        "activation_rms": {layer: 0.7 * (1.01**layer if open_ else 1) for layer in hidden(keys)},
        "activation_mean": dict.fromkeys(hidden(keys), 0.3),
        "grad_norm": {layer: 1.0 if layer == 1 or open_ else 0.0 for layer in range(1, keys["model.depth"] + 2)},
        "gate": dict.fromkeys(range(2, keys["model.depth"] + 1), keys["init.gate"]),
        ("gate", 1): {layer: keys["init.gate"] + (0.0 if zeros else 1e-9) for layer in hidden(keys) if layer > 1},
    }
    if spoil is not None and keys["seed"] == 1 and not open_ and not zeros:
        name, layer, value = spoil
        found[name][layer] = value
    return found


def settles(keys, mean=0.0, variance=1.0):
    """The last layers have a mean and a variance, selu's as given; layer 1 starts far from it."""
    mean, variance = {"selu": (mean, variance), "elu": (0.0, 0.01), "sigmoid": (0.5, 0.02)}[keys["model.activation"]]
    variance += 0.002 * (keys["seed"] % 3 - 1)
    start = 4.0 if keys["init"] == "lecun" else 0.25
    return {
        "activation_mean": dict.fromkeys(hidden(keys), mean),
        "activation_rms": dict.fromkeys(hidden(keys), math.sqrt(variance + mean**2)),
        "preactivation_mean": dict.fromkeys(hidden(keys), 0.0),
        "preactivation_rms": dict.fromkeys(hidden(keys), math.sqrt(start)),
    }


def unit_variance(keys, error=0.09):
    """LSUV leaves the variance 1 to 1.09, and `error` in one layer of one network."""
    errors = dict.fromkeys(range(1, keys["model.depth"] + 2), 0.09 if keys["init"] == "lsuv" else 0.6)
    if keys["seed"] == 1 and keys["init"] == "lsuv" and keys["model.activation"] == "gelu":
        errors[5] = error
    return {
        "preactivation_mean": dict.fromkeys(errors, 2.0),
        "preactivation_rms": {layer: math.sqrt(1 + error + 4) for layer, error in errors.items()},
    }


def trains(keys, accuracy=0.95):
    reached = accuracy if keys["model.residual"] == "rezero" and keys["optimizer.lr"] == 0.003 else 0.1
    return {"train_accuracy": reached + 0.01 * (keys["seed"] % 3 - 1)}


RIGHT = {
    GROWTH_LINEAR.name: (GROWTH_LINEAR, grows, 20),
    GROWTH_RELU.name: (GROWTH_RELU, grows, 20),
    GROWTH_SCALED.name: (GROWTH_SCALED, grows, 20),
    FLUCTUATION.name: (FLUCTUATION, fluctuates, 100),
    REZERO_START.name: (REZERO_START, closed_gates, 3),
    REZERO_TRAINS.name: (REZERO_TRAINS, trains, 20),
    SELU_ABOVE.name: (SELU_ABOVE, settles, 20),
    SELU_BELOW.name: (SELU_BELOW, settles, 20),
    LSUV.name: (LSUV, unit_variance, 3),
}


@pytest.mark.parametrize("name", RIGHT)
def test_records_that_follow_the_law_confirm_and_the_controls_are_refuted(name):
    sweep, law, seeds = RIGHT[name]
    results, records = make(sweep, law, seeds)
    rows = [judge_claim(claim, results, records) for claim in of_sweep(sweep)]
    assert rows
    for row in rows:
        assert (row["verdict"], row["control_verdict"]) == ("confirmed", "refuted"), row


WRONG = [
    (GROWTH_LINEAR, lambda keys: grows(keys, lambda c: 1 + 2 * c * c), 20, None),
    (GROWTH_LINEAR, lambda keys: grows(keys, lambda c: (1 + c) ** 2), 20, None),
    (GROWTH_RELU, lambda keys: grows(keys, lambda c: 1 + 2 * c * c), 20, None),
    (FLUCTUATION, lambda keys: fluctuates(keys, 5.0), 100, None),
    (REZERO_START, lambda keys: closed_gates(keys, ("activation_rms", 500, 0.7 * (1 + 1e-12))), 3, "activation_rms"),
    (REZERO_START, lambda keys: closed_gates(keys, ("activation_mean", 2, 0.3000001)), 3, "activation_rms"),
    (REZERO_START, lambda keys: closed_gates(keys, ("grad_norm", 1000, 1e-30)), 3, "grad_norm"),
    (REZERO_START, lambda keys: closed_gates(keys, (("gate", 1), 700, 0.0)), 3, "share of gates"),
    (REZERO_TRAINS, lambda keys: trains(keys, 0.6), 20, None),
    (SELU_ABOVE, lambda keys: settles(keys, mean=0.2), 20, "mean"),
    (SELU_ABOVE, lambda keys: settles(keys, variance=1.2), 20, "the variance of"),
    (SELU_BELOW, lambda keys: settles(keys, variance=0.8), 20, None),
    (LSUV, lambda keys: unit_variance(keys, 0.101), 3, None),
]


@pytest.mark.parametrize(("sweep", "law", "seeds", "words"), WRONG)
def test_records_that_break_the_law_refute(sweep, law, seeds, words):
    results, records = make(sweep, law, seeds)
    claims = [claim for claim in of_sweep(sweep) if words is None or words in claim.title.partition(":")[2]]
    assert claims
    assert {judge_claim(claim, results, records)["verdict"] for claim in claims} == {"refuted"}


def test_the_length_of_a_plain_net_is_a_row_too():
    results, records = make_sweep(depths=(30,), activations=("relu",), inits=("glorot", "he"), seeds=range(5))
    factor = polars.when(polars.col("job").str.contains("glorot")).then(0.5**0.5).otherwise(1.001)
    records = records.with_columns(
        value=polars.when(polars.col("measure") == "activation_rms")
        .then(factor ** (polars.col("layer") - 1))
        .otherwise("value")
    )
    (claim,) = of_sweep(GAINS_2, 8)
    row = judge_claim(claim, results, records)
    assert (row["verdict"], row["control_verdict"]) == ("confirmed", "refuted")
    assert (row["measured"], row["control_measured"]) == pytest.approx((1.001, 0.5**0.5))


# What is measured, at its edges.

WORST = [
    ([0.1, 0.3, 0.2], Interval(0.3, 0.3, 0.3, 3)),
    ([0.3], Interval(0.3, NAN, NAN, 1)),
    ([0.1, NAN], Interval(NAN, NAN, NAN, 2)),
    ([], Interval(NAN, NAN, NAN, 0)),
]


@pytest.mark.parametrize(("values", "expected"), WORST)
def test_the_worst_of_all_has_no_width(values, expected):
    assert dataclasses.astuple(worst(values)) == pytest.approx(dataclasses.astuple(expected), nan_ok=True)


def test_a_variance_has_the_interval_of_chi_squared():
    # s^2 = 1 of 1, 2, 3; chi2(0.975; 2) = 7.377759 and chi2(0.025; 2) = 0.0506356
    found = variance_interval([1.0, None, 2.0, math.inf, 3.0])
    assert dataclasses.astuple(found) == pytest.approx((1.0, 2 / 7.377759, 2 / 0.0506356, 3), rel=1e-6)
    assert math.isnan(variance_interval([1.0]).mean)


def test_networks_without_records_decide_nothing():
    for sweep in (GROWTH_RELU, REZERO_START, SELU_ABOVE):
        results, records = make(sweep, lambda keys: {"activation_rms": {}}, 2)
        for claim in of_sweep(sweep):
            if "constants" not in claim.measure.__name__:
                assert judge_claim(claim, results, records)["verdict"] == "inconclusive", claim.title


def test_a_net_that_hands_on_nothing_shows_no_identity():
    results = polars.DataFrame({"job": ["a", "b"], "model.depth": [2, 2]})
    rows = [(job, 0, layer, f"activation_{name}", 0.0) for job in "ab" for layer in (1, 2) for name in ("rms", "mean")]
    records = polars.DataFrame(rows, schema=["job", "step", "layer", "measure", "value"], orient="row")
    assert math.isnan(length_change(results, records).mean)
    assert math.isnan(gates_moved(results, records).mean)


def test_a_net_that_starts_near_the_fixed_point_does_not_show_that_it_contracts():
    def near(keys):
        shown = settles(keys)
        shown["preactivation_rms"][1] = math.sqrt(1 + 0.9 * AWAY)
        return shown

    assert all(math.isnan(variance) for _, variance in settled(*make(SELU_ABOVE, near, 2)))


def test_a_network_that_lsuv_cannot_initialize_refutes_it():
    results, records = make(LSUV, unit_variance, 2)
    failed = results["job"][0]
    assert variance_error(results, records.filter(polars.col("job") != failed)).mean == 1.0


# The derivations, by simulation in plain torch.


def simulate(width, layers, c, generator, *, ours, top=None):
    """Return |h|^2 and |g|^2 of residual layers by depth, h_0 = relu of a Gaussian, and every h; g is random on top."""
    h = torch.randn(width, generator=generator, dtype=torch.float64)
    lengths, steps = [h.relu() if ours else h], []
    for _ in range(layers):
        weight = torch.randn(width, width, generator=generator, dtype=torch.float64) * math.sqrt(2 / width)
        h = lengths[-1]
        on = ((weight @ h if ours else h) > 0).double()
        steps.append((weight, on))
        lengths.append(h + c * ((weight @ h) * on if ours else weight @ (h * on)))
    g = torch.randn(width, generator=generator, dtype=torch.float64) if top is None else top
    gradients = [g]
    for weight, on in reversed(steps):
        g = gradients[-1]
        gradients.append(g + c * (weight.T @ (on * g) if ours else on * (weight.T @ g)))
    return lengths, gradients[::-1]


def mean_and_error(values):
    return statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))


@pytest.mark.parametrize(("width", "layers", "c"), [(64, 8, 1.0), (32, 16, 0.25)])
def test_the_form_of_the_paper_grows_by_one_and_a_squared_in_both_directions(width, layers, c):
    generator = torch.Generator().manual_seed(8)
    growths = [[], []]
    for _ in range(300):
        h, g = simulate(width, layers, c, generator, ours=False)
        growths[0].append(float(h[-1].square().sum() / h[0].square().sum()))
        growths[1].append(float(g[0].square().sum() / g[-1].square().sum()))
    for growth in growths:
        mean, error = mean_and_error(growth)
        assert abs(mean - (1 + c * c) ** layers) < 4 * error
        assert error < 0.1 * mean


def test_our_form_has_its_law_when_wide_and_shallow_and_the_derived_excess_otherwise():
    generator = torch.Generator().manual_seed(8)
    for width, layers, c, draws, excess_is in ((512, 3, 1.0, 60, "small"), (64, 7, 1.0, 400, "large")):
        found, derived = [], []
        for _ in range(draws):
            h, g = simulate(width, layers, c, generator, ours=True)
            bulk = (1 + c * c) ** layers
            found.append(float(g[0].square().sum() / g[-1].square().sum()) / bulk)
            square = [float(one.square().sum()) for one in h]
            total = 0.0
            for k in range(1, layers + 1):
                cosine = float(h[k] @ h[k - 1]) / math.sqrt(square[k] * square[k - 1])
                rest = (square[k] / square[k - 1] - cosine**2) * square[-1] / square[k]
                total += rest * (1 + c * c) ** -(layers - k + 1)
            derived.append(1 + total / width)
        mean, error = mean_and_error(found)
        expected = statistics.fmean(derived)
        assert (expected < 1.02) if excess_is == "small" else (expected > 1.3)
        assert abs(mean - expected) < 4 * error + 0.1 * (expected - 1)


def test_gradient_times_activation_is_one_number_in_all_layers_of_a_relu_net():
    generator = torch.Generator().manual_seed(1)
    h, g = simulate(16, 6, 0.7, generator, ours=True)
    products = [float(one @ other) for one, other in zip(h, g, strict=True)]
    assert products == pytest.approx([products[-1]] * 7, rel=1e-10)


@pytest.mark.parametrize(("layers", "scaled"), [(31, False), (31, True), (127, True)])
def test_the_log_of_a_squared_length_varies_as_derived(layers, scaled):
    generator = torch.Generator().manual_seed(3)
    nets, width = 400, 32
    h = torch.randn(nets, width, 1, generator=generator).relu()
    start = h.square().sum((1, 2))
    for _ in range(layers):
        weight = torch.randn(nets, width, width, generator=generator) * math.sqrt(2 / width)
        made = (weight @ h).relu()
        h = h + made / math.sqrt(layers + 1) if scaled else made
    found = variance_interval((h.square().sum((1, 2)) / start).log().tolist())
    expected = 8 / width * VARIANCE_OF_RELU * layers / (layers + 1) if scaled else 5 * layers / width
    assert found.mean == pytest.approx(expected, rel=0.25)


def test_a_closed_gate_is_the_identity_bit_for_bit_and_its_jacobian_the_unit_matrix():
    model = MLP(8, 3, 20, 6, "relu", "rezero")
    config = Config(seed=2)
    config.model.activation, config.model.residual, config.init.name = "relu", "rezero", "he"
    parameters, trace = model.parameters([config], torch.float32), Trace()
    x = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    model(x, parameters, trace=trace)
    first, last = trace.a[0], trace.a[-1]
    assert all(torch.equal(first, h) for h in trace.a)
    for unit in range(6):
        (row,) = torch.autograd.grad(last[0, :, unit].sum(), first, retain_graph=True)
        assert torch.equal(row[0], torch.eye(6)[unit].expand(5, 6))


def test_the_numbers_of_selu_s_bounds():
    slope = (activation_second_moment("selu", 1.001) - activation_second_moment("selu", 0.999)) / 0.002
    assert float(slope) == pytest.approx(0.78, abs=0.005)
    spread = float(gaussian_mean("selu", lambda x: torch.nn.functional.selu(x) ** 4, 1.0)) - 1
    assert spread / (1 - float(slope) ** 2) == pytest.approx(3.9, abs=0.05)
    mean, variance = 0.25, 2.9  # about what layer 1 makes of inputs of four times the variance
    for _ in range(30 - LAST):
        mean, variance = selu_map(mean, variance)
    assert (mean, variance) == pytest.approx((0, 1), abs=0.02)


# The tables.


def test_every_claim_has_a_sweep_that_states_its_grid_and_is_run_at_full_scale():
    assert {claim.claim for claim in CLAIMS} == {1, 2, 8, 9, 10, 13}
    for sweep in {claim.sweep.name: claim.sweep for claim in CLAIMS}.values():
        keys = {override.partition("=")[0] for override in sweep.overrides}
        assert {"model.depth", "model.activation", "init", "train.steps"} <= keys, sweep.name
        assert sweep.seeds["full"] >= 20, sweep.name
    assert len(dict(o.split("=") for o in LSUV.overrides)["model.activation"].split(",")) == len(ACTIVATIONS)
