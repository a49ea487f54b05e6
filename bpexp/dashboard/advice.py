"""What happened to a network, in words: its verdict, the numbers behind it, and the overrides to try next."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeGuard

from bpexp import spec

HEADLINES = {
    "vanishing": "the gradient is lost on its way to the input",
    "exploding": "the gradient grows on its way to the input",
    "healthy": "the gradient reaches the input",
}

FITTING_INIT = {"relu": "he", "leaky_relu": "he", "gelu": "he", "silu": "he", "selu": "lecun", "tanh": "glorot"}


class Change(NamedTuple):
    """`delta_rms` of layer 1 over that of layer `depth`, at a step."""

    step: int
    factor: float


def card(row: Mapping[str, Any], config: spec.Config, changes: Sequence[Change]) -> str:
    """Return the verdict on a network as Markdown."""
    verdict = row.get("verdict")
    if row.get("status") == "diverged":
        headline = f"diverged ({verdict}): the network left the finite numbers"
    else:
        headline = f"{verdict}: {HEADLINES.get(str(verdict), 'there is no verdict')}"
    happened = [*_describe_change(config, changes), *_describe_gain(row), *_describe_outcome(row, config)]
    tips = "\n".join(f"- {line}" for line in advice(row, config))
    return "\n\n".join(
        (
            f"## {headline}",
            f"*{_describe_network(config)}*",
            f"**What happened.** {' '.join(happened)}",
            _measures(row),
            f"**What to try.**\n\n{tips}",
        )
    )


def _describe_network(config: spec.Config) -> str:
    model, optimizer = config.model, config.optimizer
    norm = "" if model.norm == "none" else f", {model.norm} norm"
    residual = "" if model.residual == "none" else f", {model.residual} residuals"
    return (
        f"{model.depth} hidden layers of {model.width} {model.activation} units{norm}{residual}, "
        f"init {config.init.name} with gain {config.init.gain:g}, on {config.data.name}, "
        f"{optimizer.name} with lr {optimizer.lr:g}, seed {config.seed}"
    )


def _describe_change(config: spec.Config, changes: Sequence[Change]) -> list[str]:
    found = []
    closed = config.model.residual == "rezero" and config.init.gate == 0
    if config.init.name == "fixup":
        found.append(
            "Fixup starts the output layer at 0, so no gradient reaches a hidden layer before the first update."
        )
    elif closed:
        found.append(
            "At step 0 every gate is 0: branches receive nothing, and the gradient passes along the skips alone."
        )
    for step, factor in changes:
        way = f"from layer {config.model.depth} to layer 1"
        if step == 0 and (closed or config.init.name == "fixup"):
            continue
        if not math.isfinite(factor):
            found.append(f"At step {step} the factor by which `delta_rms` changes {way} is not a number.")
        elif factor == 0:
            found.append(f"At step {step} `delta_rms` is 0 at layer 1: nothing arrives.")
        else:
            verb, size = ("grows", factor) if factor >= 1 else ("shrinks", 1 / factor)
            found.append(f"At step {step} `delta_rms` {verb} by a factor of {size:.3g} {way}.")
    return found


def _describe_gain(row: Mapping[str, Any]) -> list[str]:
    gain, low, high = (row.get(f"backward_gain{end}") for end in ("", "_low", "_high"))
    if not _known(gain):
        return []
    interval = f" (interval {low:.3g} to {high:.3g})" if _known(low) and _known(high) else ""
    return [f"Fitted over the layers, a layer multiplies it by {gain:.3g}{interval}."]


def _describe_outcome(row: Mapping[str, Any], config: spec.Config) -> list[str]:
    if row.get("status") == "diverged":
        where = f", first at layer {row['diverged_layer']:.0f}" if _known(row.get("diverged_layer")) else ""
        return [f"At step {row['diverged_step']:.0f} values stopped being finite{where}; training ended there."]
    if config.train.steps == 0:
        return ["It was measured at initialization only."]
    if row.get("trained") is None:
        return []
    return ["It trained." if row["trained"] else f"It did not train in {config.train.steps} steps."]


def _measures(row: Mapping[str, Any]) -> str:
    lines = ["| at the end | train | validation | test |", "| --- | --- | --- | --- |"]
    for name in ("loss", "accuracy"):
        values = [row.get(f"{part}_{name}") for part in ("train", "val", "test")]
        if any(value is not None for value in values):
            lines.append(f"| {name} | " + " | ".join("" if v is None else f"{v:.4g}" for v in values) + " |")
    return "\n".join(lines)


def advice(row: Mapping[str, Any], config: spec.Config) -> list[str]:
    """Return overrides to try, with a reason each; the likeliest first."""
    verdict, diverged = row.get("verdict"), row.get("status") == "diverged"
    if config.init.name == "fixup" and not diverged:
        verdict = "healthy"  # no gradient at the start is how it is meant
    tips = []
    if diverged:
        tips.append(
            f"`optimizer.lr={config.optimizer.lr / 10:g}`: a smaller step stays where the gradient describes it."
        )
    if (diverged or verdict == "exploding") and config.clip.name == "none":
        tips.append("`clip=norm clip.threshold=1`: bounds the step, though not the gradient of single layers.")
    if verdict in ("vanishing", "exploding"):
        tips += _balance(row, config)
    if verdict == "vanishing" and config.model.residual == "none":
        tips.append("`model.residual=plain`: gives the gradient a way past each layer.")
    if verdict == "exploding" and config.model.residual == "plain":
        tips.append("`model.residual=scaled`: branches of 1/sqrt(L) add up to a bounded growth.")
    if verdict in ("vanishing", "exploding") and config.model.norm == "none":
        tips.append("`model.norm=layer`: sets the size of the signal anew in every layer.")
    if verdict == "healthy" and not diverged and config.train.steps > 0:
        if row.get("trained"):
            return [f"Nothing is to be mended; `model.depth={2 * config.model.depth}` is harder."]
        tips.append(f"`train.steps={2 * config.train.steps}`: the gradient arrives, so it may only need time.")
        tips.append(f"`optimizer.lr={3 * config.optimizer.lr:g}` or `{config.optimizer.lr / 3:.2g}`.")
    return tips or ["`train.steps=200`: to see whether it learns."]


def _balance(row: Mapping[str, Any], config: spec.Config) -> list[str]:
    """Return what brings the factor of a layer nearer to 1."""
    activation, tips = config.model.activation, []
    if activation == "sigmoid" and row.get("verdict") == "vanishing":
        tips.append("`model.activation=tanh`: the slope of sigmoid is 1/4 at most, that of tanh reaches 1.")
    fitting = FITTING_INIT.get(activation)
    if fitting and config.init.name != fitting:
        tips.append(f"`init={fitting}`: its variance is made for {activation}.")
    gain = row.get("backward_gain")
    plain = config.model.residual == "none" and config.model.norm == "none" and config.init.name != "lsuv"
    if plain and _known(gain) and gain > 0 and config.init.gain > 0:
        tips.append(
            f"`init.gain={config.init.gain / gain:.3g}`: the factor a layer is proportional to the standard deviation "
            "of the weights as long as the slopes stay what they are."
        )
    return tips


def _known(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)
