import math

import pytest
from conftest import configure

from bpexp import spec
from bpexp.spec import UserError
from bpexp.validation import Criterion, parse_criterion, validate

ADAM = {"optimizer.name": "adam", "optimizer.beta1": 0.9, "optimizer.beta2": 0.999}


def message(values):
    with pytest.raises(UserError) as caught:
        validate(configure(values))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_defaults_are_valid():
    for schema in spec.SCHEMAS.values():
        if schema is not spec.Report:
            validate(schema())


OUT_OF_RANGE = [
    ("seed", -1, "must be at least 0"),
    ("seed", 2**63, f"must be at most {2**63 - 1}"),
    ("data.train_size", 0, "must be at least 1"),
    ("model.depth", 0, "must be at least 1"),
    ("model.depth", -3, "must be at least 1"),
    ("model.width", 0, "must be at least 1"),
    ("model.dropout", 1.0, "must be at least 0 and below 1"),
    ("model.dropout", -0.1, "must be at least 0 and below 1"),
    ("model.input_dropout", 1.0, "must be at least 0 and below 1"),
    ("label_smoothing", 1.0, "must be at least 0 and below 1"),
    ("init.gain", -1.0, "must be at least 0"),
    ("init.bias_std", -1.0, "must be at least 0"),
    ("optimizer.lr", -0.1, "must be at least 0"),
    ("optimizer.momentum", 1.0, "must be at least 0 and below 1"),
    ("optimizer.beta1", 1.0, "must be at least 0 and below 1"),
    ("optimizer.beta2", -0.1, "must be at least 0 and below 1"),
    ("optimizer.max_norm", 0.0, "must be greater than 0"),
    ("optimizer.warmup", -1, "must be at least 0"),
    ("optimizer.l2", -0.1, "must be at least 0"),
    ("optimizer.weight_decay", -0.1, "must be at least 0"),
    ("clip.threshold", 0.0, "must be greater than 0"),
    ("train.steps", -1, "must be at least 0"),
    ("train.batch_size", 0, "must be at least 1"),
    ("train.measure_every", 0, "must be at least 1"),
    ("train.evaluate_every", 0, "must be at least 1"),
    ("sweep.checkpoint_every", 0.0, "must be greater than 0"),
    ("sweep.memory", 0.0, "must be greater than 0"),
    ("sweep.minutes", 0, "must be at least 1"),
    ("sweep.workers", 0, "must be at least 1"),
    ("sweep.max_runs", -1, "must be at least 0"),
]


@pytest.mark.parametrize(("name", "value", "bound"), OUT_OF_RANGE)
def test_out_of_range(name, value, bound):
    assert message({name: value}) == f"{name}: {value} is out of range; {bound}"


def test_every_number_has_a_range():
    numbers = {name for name, key in spec.keys().items() if key.type in (int, float)}
    assert numbers == {name for name, _, _ in OUT_OF_RANGE} | {"init.gate"}  # a gate may be negative


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", [name for name, key in spec.keys().items() if key.type is float])
def test_not_finite(name, value):
    assert message({name: value}) == f"{name}: {value} is not a finite number"


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("model.depth", "four", "'four' is not an integer"),
        ("model.depth", 2.5, "2.5 is not an integer"),
        ("model.depth", True, "True is not an integer"),
        ("model.depth", None, "null is not an integer"),
        ("optimizer.lr", "fast", "'fast' is not a number"),
        ("optimizer.lr", True, "True is not a number"),
        ("model.activation", 3, "3 is not a text"),
        ("debug", 1, "1 is not true or false"),
    ],
)
def test_wrong_type(name, value, kind):
    assert message({name: value}) == f"{name}: {kind}"


@pytest.mark.parametrize("name", [name for name, key in spec.keys().items() if key.choices])
def test_unknown_choice_lists_the_choices(name):
    choices = spec.keys()[name].choices
    said = message({name: f"{choices[0]}_"})
    assert said.startswith(f"{name.removesuffix('.name')}: unknown '{choices[0]}_'; ")
    assert said.endswith(f"choose from {', '.join(choices)}")


def test_a_near_choice_is_suggested():
    assert message({"model.activation": "rellu"}).startswith(
        "model.activation: unknown 'rellu'; did you mean 'relu'? choose from celu, elu, "
    )


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"clip.threshold": 1.0},
            "clip.threshold: 1.0 would be ignored by clip=none; choose clip=norm or clip=value or clip=adaptive",
        ),
        (
            {"optimizer.momentum": 0.9},
            "optimizer.momentum: 0.9 would be ignored by optimizer=sgd; "
            "choose optimizer=momentum or optimizer=nesterov",
        ),
        (
            {"optimizer.beta1": 0.9},
            "optimizer.beta1: 0.9 would be ignored by optimizer=sgd; choose optimizer=adam or optimizer=adamw",
        ),
        (
            ADAM | {"optimizer.momentum": 0.9},
            "optimizer.momentum: 0.9 would be ignored by optimizer=adam; "
            "choose optimizer=momentum or optimizer=nesterov",
        ),
        ({"optimizer.name": "adam"}, "optimizer.beta1: null is not a number; optimizer=adam needs one"),
        (
            ADAM | {"optimizer.weight_decay": 0.1},
            "optimizer.weight_decay: 0.1 is decoupled, which makes adam adamw; choose optimizer=adamw, or optimizer.l2",
        ),
        (
            {"optimizer.warmup": 300},
            "optimizer.warmup: 300 steps would end after train.steps=200; choose at most 200",
        ),
        (
            {"optimizer.schedule": "cosine", "optimizer.warmup": 200},
            "optimizer.schedule: cosine would be ignored by optimizer.warmup=200, which ends with train.steps=200",
        ),
        (
            {"model.residual": "scaled", "model.depth": 1},
            "model.residual: scaled would be ignored by model.depth=1, whose input is of another size",
        ),
        (
            {"init.gate": 0.5, "model.residual": "plain"},
            "init.gate: 0.5 would be ignored by model.residual=plain; choose model.residual=rezero",
        ),
        (
            {"model.norm": "batch", "train.batch_size": 1},
            "model.norm: batch needs more than one sample to normalize over, and train.batch_size is 1; "
            "choose a larger batch or model.norm=layer",
        ),
        (
            {"model.norm": "layer", "model.width": 1},
            "model.norm: layer needs more than one unit to normalize over, and model.width is 1; choose a larger width",
        ),
        (
            {"init.name": "lsuv", "init.gain": 0.0},
            "init.gain: 0.0 leaves lsuv no variance to reach; choose a positive one",
        ),
        (
            {"init.name": "fixup"},
            "init: fixup starts every residual branch at zero, and model.residual=none has none; "
            "choose model.residual=plain or scaled, or rezero with init.gate=1",
        ),
        (
            {"init.name": "fixup", "model.residual": "rezero"},
            "init.gate: 0.0 closes gates on branches that fixup starts at zero, so that neither would ever learn; "
            "choose init.gate=1, Fixup's multiplier",
        ),
        (
            {"init.name": "fixup", "model.residual": "plain", "model.norm": "layer"},
            "model.norm: layer would divide by the deviation of branches that fixup starts at zero; "
            "choose model.norm=none, which fixup is made for",
        ),
        ({"label_smoothing": 0.1, "loss": "mse"}, "label_smoothing: 0.1 would be ignored by loss=mse"),
        (
            {"init.name": "zeros", "init.gain": 2.0},
            "init.gain: 2.0 would be ignored by init=zeros; choose another init",
        ),
        (
            {"train.until": "train_loss<1", "train.steps": 0},
            "train.until: 'train_loss<1' would be ignored with train.steps=0; choose more steps",
        ),
        ({"clip.name": "norm"}, "clip.threshold: null is not a number; clip=norm needs one"),
        ({"optimizer.name": "momentum"}, "optimizer.momentum: null is not a number; optimizer=momentum needs one"),
        (
            {"init.bias_std": None},
            "init.bias_std: null is pytorch's own biases; give a number or choose init=pytorch",
        ),
        (
            {"data.name": "regression"},
            "loss: cross_entropy needs classes, which regression has not; choose mse",
        ),
        (
            {"data.name": "regression", "loss": "mse", "train.until": "val_accuracy>0.9"},
            "train.until: val_accuracy is not defined on regression; choose a loss",
        ),
        (
            {"data.train_size": 5000},
            "data.train_size: 5000 is larger than the training part of digits (1078); choose at most 1078",
        ),
        (
            {"data.train_size": 9},
            "data.train_size: 9 is too small to stratify 10 classes; choose at least 10",
        ),
        (
            {"data.train_size": 100},
            "train.batch_size: 128 is larger than the training set (100); choose at most 100",
        ),
    ],
)
def test_values_that_contradict_each_other(values, said):
    assert message(values) == said


ALLOWED = {
    "mse on classes": {"loss": "mse"},
    "adamw with decay": ADAM | {"optimizer.name": "adamw", "optimizer.weight_decay": 0.1},
    "a schedule that is not reached": {"optimizer.schedule": "cosine", "optimizer.warmup": 5, "train.steps": 0},
    "a warm-up to the end": {"optimizer.warmup": 200},
    "a negative gate": {"init.gate": -1.0, "model.residual": "rezero"},
    "critical": {"init.name": "critical"},
    "fixup": {"init.name": "fixup", "model.residual": "plain"},
}


@pytest.mark.parametrize("values", ALLOWED.values(), ids=ALLOWED)
def test_allowed(values):
    validate(configure(values))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"init.name": "critical", "model.activation": "softplus"}, "init: critical: softplus has no critical point"),
        (
            {"init.name": "fixup", "model.residual": "plain", "model.activation": "relu"},
            "init: fixup starts branches at",
        ),
    ],
)
def test_an_initialization_that_the_activation_does_not_allow(values, said):
    assert message(values).startswith(said)


def test_criterion():
    criterion = parse_criterion("train_accuracy >= 0.99")
    assert criterion == Criterion("train_accuracy", ">=", 0.99)
    assert criterion.met(0.99)
    assert not criterion.met(0.98)
    assert not criterion.met(math.nan)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("soon", "train.until: 'soon' is not a criterion; write one such as 'train_loss<0.01'"),
        ("train_los<1", "train.until: unknown 'train_los'; did you mean 'train_loss'?"),
        ("train_loss<low", "train.until: 'low' is not a number"),
        ("train_loss<nan", "train.until: 'nan' is not a finite number"),
    ],
)
def test_criterion_refused(text, said):
    assert message({"train.until": text}).startswith(said)
