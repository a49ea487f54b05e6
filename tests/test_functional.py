"""Every function of bpexp.functional against the function of torch that has its name."""

import inspect

import pytest
import torch
import torch.nn.functional as F

from bpexp import functional

TARGET = torch.tensor([0, 3, -100, 2, 1])
CLASS_WEIGHT = torch.tensor([0.5, 2.0, 1.0, 0.3])


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def case(name, *args, **options):
    shown = [name, *map(show, args), *(f"{key}={show(value)}" for key, value in options.items())]
    return pytest.param(name, args, options, id="-".join(shown))


def show(value):
    if not isinstance(value, torch.Tensor):
        return str(value)
    return str(value.dtype).removeprefix("torch.") + str(list(value.shape)).replace(" ", "")


CALLS = [
    case("linear", normal(4, 4, seed=1), normal(4, seed=2)),
    case("linear", normal(4, 4, seed=1)),
    case("linear", weight=normal(2, 4, seed=1), bias=normal(2)),
    case("sigmoid"),
    case("tanh"),
    case("relu"),
    case("relu", inplace=True),
    case("leaky_relu"),
    case("leaky_relu", 0.2),
    case("leaky_relu", negative_slope=0.2, inplace=True),
    case("elu"),
    case("elu", alpha=0.5, inplace=True),
    case("selu"),
    case("selu", inplace=True),
    case("gelu"),
    case("gelu", approximate="tanh"),
    case("silu"),
    case("silu", inplace=True),
    case("softplus"),
    case("softplus", beta=2, threshold=1),
    case("softsign"),
    case("hardtanh"),
    case("hardtanh", -0.5, 0.3),
    case("hardtanh", min_val=-0.5, max_val=0.3, inplace=True),
    case("dropout"),
    case("dropout", 0.3),
    case("dropout", p=0.3, inplace=True),
    case("dropout", p=0.0),
    case("dropout", p=1.0),
    case("dropout", training=False),
    case("log_softmax", dim=1),
    case("log_softmax", 0, dtype=torch.float64),
    case("mse_loss", normal(5, 4, seed=3)),
    case("mse_loss", normal(5, 4, seed=3), reduction="sum"),
    case("mse_loss", normal(5, 4, seed=3), reduction="none", weight=normal(5, 4, seed=4)),
    case("mse_loss", normal(5, 4, seed=3), weight=normal(5, 4, seed=4)),
    case("cross_entropy", TARGET),
    case("cross_entropy", TARGET.clamp(min=0), CLASS_WEIGHT, ignore_index=3),
    case("cross_entropy", TARGET, reduction="sum", label_smoothing=0.1),
    case("cross_entropy", TARGET, reduction="none"),
    case("cross_entropy", TARGET.clamp(min=0).to(torch.uint8)),
    case("cross_entropy", normal(5, 4, seed=5).softmax(1), weight=CLASS_WEIGHT, label_smoothing=0.1),
]
OURS = [
    name
    for name, function in vars(functional).items()
    if inspect.isfunction(function) and hasattr(F, name) and not name.startswith("_")
]


def outcome(function, args, options, dtype, x=None):
    """The value and the gradients of every float tensor of one call, under one seed."""
    torch.manual_seed(7)
    x = normal(5, 4, dtype=dtype) if x is None else x
    leaves = []

    def leaf(value):
        if not (isinstance(value, torch.Tensor) and value.is_floating_point()) or value is CLASS_WEIGHT:
            return value.to(dtype) if value is CLASS_WEIGHT else value
        leaves.append(value.detach().to(dtype).requires_grad_())
        return leaves[-1]

    x, *args = [leaf(value) for value in (x, *args)]
    options = {key: leaf(value) for key, value in options.items()}
    given = x * 1.0  # a tensor that may be changed in place
    y = function(given, *args, **options)
    assert (y is given or y.data_ptr() == given.data_ptr()) or not options.get("inplace")
    return y, torch.autograd.grad((y * torch.linspace(1, 2, y.numel(), dtype=y.dtype).view_as(y)).sum(), leaves)


def test_every_function_is_called():
    assert {call.values[0] for call in CALLS} == set(OURS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("name", "args", "options"), CALLS)
def test_value_and_gradients_are_those_of_torch(name, args, options, dtype):
    ours = outcome(getattr(functional, name), args, options, dtype)
    theirs = outcome(getattr(F, name), args, options, dtype)
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 3e-2}[dtype]
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", sorted(set(OURS) - {"linear", "gelu", "softplus"}))  # torch's are builtins
def test_signature_is_that_of_torch(name):
    def plain(function):
        return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]

    assert plain(getattr(functional, name)) == plain(getattr(F, name))


@pytest.mark.parametrize("seed", range(3))
def test_dropout_draws_the_mask_of_torch(seed):
    x = torch.ones(50, 40)
    torch.manual_seed(seed)
    ours = functional.dropout(x, 0.3)
    following = torch.rand(3)
    torch.manual_seed(seed)
    assert torch.equal(ours, F.dropout(x, 0.3))
    assert torch.equal(following, torch.rand(3))
    assert 0.6 < (ours != 0).float().mean() < 0.8


def test_dropout_that_does_nothing_returns_its_input():
    x = torch.ones(3)
    assert functional.dropout(x, 0.0) is x
    assert functional.dropout(x, 0.9, training=False) is x


@pytest.mark.parametrize(
    "options", [{"size_average": False}, {"reduce": False}, {"size_average": True, "reduce": True}], ids=str
)
@pytest.mark.parametrize(("name", "target"), [("mse_loss", normal(5, 4)), ("cross_entropy", TARGET)])
def test_legacy_arguments_warn_and_choose_the_reduction(name, target, options):
    results = []
    for module in (functional, F):
        with pytest.warns(UserWarning, match="size_average and reduce args will be deprecated"):
            results.append(getattr(module, name)(normal(5, 4, seed=1), target, **options))
    torch.testing.assert_close(*results)


def test_cross_entropy_of_ignored_rows_alone_is_nan_with_gradient_zero():
    x = normal(5, 4).requires_grad_()
    loss = functional.cross_entropy(x, torch.full((5,), -100))
    (grad,) = torch.autograd.grad(loss, x)
    assert loss.isnan()
    assert torch.equal(grad, torch.zeros(5, 4))


def test_cross_entropy_bears_a_class_of_probability_zero():
    x = torch.tensor([[0.0, -torch.inf, 1.0]], requires_grad=True)
    target = torch.tensor([2])
    ours = torch.autograd.grad(functional.cross_entropy(x, target), x)
    torch.testing.assert_close(ours, torch.autograd.grad(F.cross_entropy(x, target), x))


def test_mse_loss_of_other_sizes_warns_and_broadcasts():
    results = []
    for module in (functional, F):
        x, target = normal(5, 4).requires_grad_(), normal(4, seed=1).requires_grad_()
        with pytest.warns(UserWarning, match="Using a target size"):
            loss = module.mse_loss(x, target)
        results.append((loss, *torch.autograd.grad(loss, [x, target])))
    torch.testing.assert_close(*results)


def test_log_softmax_without_dimension_warns_and_chooses_as_torch():
    results = []
    for module in (functional, F):
        with pytest.warns(UserWarning, match="Implicit dimension choice for log_softmax"):
            results.append(module.log_softmax(normal(5, 4)))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize(
    ("name", "args", "options"),
    [
        case("linear", normal(2, 3)),
        case("gelu", approximate="sine"),
        case("hardtanh", 1.0, -1.0),
        case("dropout", p=1.5),
        case("dropout", p=-0.1, training=False),
        case("log_softmax", dim=2),
        case("mse_loss", normal(5, 4), reduction="median"),
        case("mse_loss", normal(5, 4), weight=normal(4)),
        case("cross_entropy", torch.tensor([0, 1, 2, 3, 4])),
        case("cross_entropy", torch.tensor([0, 1, 2])),
        case("cross_entropy", torch.zeros(5, 4, dtype=torch.int64)),
        case("cross_entropy", normal(5, 4).softmax(1), ignore_index=2),
        case("cross_entropy", torch.zeros(5)),
        case("cross_entropy", TARGET, torch.ones(3)),
        case("cross_entropy", TARGET, reduction="median"),
        case("cross_entropy", TARGET, label_smoothing=1.5),
    ],
)
def test_errors_are_those_of_torch(name, args, options):
    errors = []
    for module in (functional, F):
        with pytest.raises((RuntimeError, ValueError, IndexError)) as caught:
            getattr(module, name)(normal(5, 4), *args, **options)
        errors.append((caught.type, str(caught.value)))
    assert errors[0] == errors[1]


def test_a_leaf_changed_in_place_is_refused():
    with pytest.raises(RuntimeError, match="a leaf Variable that requires grad is being used in an in-place operation"):
        functional.relu(torch.ones(3, requires_grad=True), inplace=True)


@pytest.mark.parametrize("name", ["linear", "cross_entropy", "mse_loss"])
def test_autocast_gives_the_dtype_of_torch(name):
    others = {"linear": normal(3, 4), "cross_entropy": TARGET, "mse_loss": normal(5, 4)}
    for x in (normal(5, 4), normal(5, 4, dtype=torch.bfloat16)):
        with torch.autocast("cpu", torch.bfloat16):
            ours, theirs = (getattr(module, name)(x, others[name]) for module in (functional, F))
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-2)
