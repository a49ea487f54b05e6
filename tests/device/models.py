"""MODELS: together they have every choice that a model, its loss and its update have; few, since each is slow here."""

from conftest import configure

from bpexp import spec

SMALL = {
    "seed": 0,
    "dtype": "float64",
    "data.train_size": 40,
    "model.depth": 2,
    "model.width": 5,
    "train.batch_size": 8,
    "train.steps": 3,
    "train.measure_every": 2,
    "train.evaluate_every": 2,
}
MODELS = {
    "tanh": {"model.activation": "tanh"},
    "relu-dropout": {"model.activation": "relu", "model.dropout": 0.3, "model.input_dropout": 0.1},
    "leaky-batch-rezero-adam": {
        "model.activation": "leaky_relu",
        "model.norm": "batch",
        "model.residual": "rezero",
        "model.dropout": 0.2,
        "optimizer.name": "adam",
        "clip.name": "adaptive",
        "clip.threshold": 0.1,
    },
    "prelu-layer-scaled-momentum": {
        "model.activation": "prelu",
        "model.norm": "layer",
        "model.residual": "scaled",
        "optimizer.name": "momentum",
        "optimizer.momentum": 0.9,
        "optimizer.l2": 0.01,
        "clip.name": "norm",
        "clip.threshold": 0.1,
    },
    "gelu-plain-nesterov": {
        "model.activation": "gelu",
        "model.residual": "plain",
        "optimizer.name": "nesterov",
        "optimizer.momentum": 0.9,
        "optimizer.weight_decay": 0.01,
        "optimizer.schedule": "cosine",
        "clip.name": "value",
        "clip.threshold": 0.1,
    },
    "selu-mse-adamw": {
        "model.activation": "selu",
        "data.name": "regression",
        "loss": "mse",
        "optimizer.name": "adamw",
        "optimizer.weight_decay": 0.01,
        "optimizer.warmup": 3,
        "optimizer.schedule": "cosine",
    },
    "elu-mse-on-classes": {"model.activation": "elu", "loss": "mse", "optimizer.max_norm": 1.0},
    "silu-smoothing": {"model.activation": "silu", "label_smoothing": 0.1, "dtype": "float32", "optimizer.warmup": 2},
    "mish-bytes": {"model.activation": "mish", "data.name": "mnist"},
}
TOGETHER = ("celu", "gelu_tanh", "hardtanh", "identity", "sigmoid", "softplus", "softsign")
"""The activations that are left; networks with them train together."""

BETAS = {"adam": (0.9, 0.99), "adamw": (0.8, 0.95)}


def networks_of(name, networks=3):
    """Return networks of a model that differ in every number that is a network's own; two share a seed."""
    found = []
    for number in range(networks):
        config = configure(SMALL | MODELS[name])
        config.seed, optimizer = number // 2, config.optimizer
        optimizer.lr *= 1 + number
        for key in ("l2", "weight_decay", "momentum", "max_norm"):
            if getattr(optimizer, key):
                setattr(optimizer, key, getattr(optimizer, key) * (1 - 0.1 * number))
        if optimizer.name in BETAS:
            optimizer.beta1, optimizer.beta2 = (beta - 0.01 * number for beta in BETAS[optimizer.name])
        optimizer.warmup += number if optimizer.warmup else 0
        if config.clip.threshold is not None:
            config.clip.threshold *= 1 + number
        for group, key in ((config.model, "dropout"), (config.model, "input_dropout"), (config, "label_smoothing")):
            setattr(group, key, getattr(group, key) * (1 + 0.1 * number))
        found.append(config)
    return found


def mixed():
    """Return networks of several depths and activations that train together."""
    models = [*((2, name) for name in TOGETHER), *((1, name) for name in TOGETHER[:2])]
    values = [SMALL | {"model.depth": depth, "model.activation": name} for depth, name in models]
    return sorted(map(configure, values), key=spec.order)
