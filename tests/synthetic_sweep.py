"""Results and records of a sweep that never ran: every number follows from the gain that a test chooses."""

import itertools
import math

import polars

from bpexp import spec

STEPS = (0, 20, 40)


def make_sweep(
    *, depths=(4, 8), activations=("tanh", "relu"), inits=("glorot", "he"), seeds=(0, 1, 2), gain=None, **fixed
):
    """Return (results, records). `gain(depth, activation, init, seed)` is the factor a layer, or None: it diverged.

    delta_rms is 1 at layer L, so it is gain^(L - layer), and 1 at L + 1; grad_norm is twice that;
    activation_rms is 0.5 everywhere.
    """
    gain = gain or (lambda depth, activation, init, seed: 1.0)
    results, records = [], []
    for depth, activation, init, seed in itertools.product(depths, activations, inits, seeds):
        factor = gain(depth, activation, init, seed)
        row, lines = make_job(depth, activation, init, seed, factor, fixed)
        results.append(row)
        records += lines
    schema = {"job": str, "step": polars.Int64, "layer": polars.Int64, "layer_name": str, "measure": str}
    frame = polars.DataFrame(records, schema={**schema, "value": polars.Float64}, orient="row")
    return polars.DataFrame(results, infer_schema_length=None), frame


def make_job(depth, activation, init, seed, factor, fixed):
    job = f"depth={depth},activation={activation},init={init},seed={seed}-{abs(hash(str(fixed))):x}"[:80]
    values = {name.removesuffix(".name"): value for name, value in spec.flatten(spec.Config()).items()}
    values |= {"model.depth": depth, "model.activation": activation, "init": init, "seed": seed}
    values |= {"init.bias_std": None if init == "pytorch" else 0.0, **fixed}
    diverged = factor is None
    change = math.inf if diverged else factor ** (depth - 1)
    verdict = "exploding" if change > 100 else "vanishing" if change < 0.01 else "healthy"
    trained = verdict == "healthy"
    outcome = {"status": "diverged" if diverged else "ok", "error": None, "verdict": None if diverged else verdict}
    outcome |= {"backward_gain": factor, "backward_gain_low": factor, "backward_gain_high": factor}
    outcome |= {"trained": trained, "train_loss": 0.3 if trained else 2.3, "train_accuracy": 0.9 if trained else 0.1}
    outcome |= {"val_loss": 0.4, "val_accuracy": 0.8, "test_loss": 0.4, "test_accuracy": 0.8, "grad_norm": 1.0}
    outcome |= {"clip_fraction": None, "step": STEPS[-1], "diverged_step": 20 if diverged else None}
    lines = []
    for step in STEPS[:2] if diverged else STEPS:
        for layer in range(1, depth + 2):
            delta = (math.nan if step else 1.0) if diverged else factor ** max(depth - layer, 0)
            name = f"hidden_{layer}" if layer <= depth else "output"
            lines += [(job, step, layer, name, "delta_rms", delta), (job, step, layer, name, "grad_norm", 2 * delta)]
            if layer <= depth:
                lines.append((job, step, layer, name, "activation_rms", 0.5))
                rms = 0.5 if layer == 1 else 0.05
                lines.append((job, step, layer, name, "preactivation_rms", rms))
        loss = math.nan if diverged and step else 2.3 - (0.05 * step if trained else 0)
        lines.append((job, step, None, None, "train_loss", loss))
        lines.append((job, step, None, None, "train_accuracy", 0.1))
    return {"job": job, **values, **outcome}, lines
