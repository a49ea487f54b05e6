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


RUNNING = normal(4, seed=8), 0.1 + normal(4, seed=9).square()


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
    case("celu"),
    case("celu", 0.5),
    case("celu", alpha=2.0, inplace=True),
    case("selu"),
    case("selu", inplace=True),
    case("gelu"),
    case("gelu", approximate="tanh"),
    case("silu"),
    case("silu", inplace=True),
    case("mish"),
    case("mish", inplace=True),
    case("prelu", torch.tensor([0.25])),
    case("prelu", weight=normal(4, seed=1)),
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
    case("layer_norm", (4,)),
    case("layer_norm", [4], normal(4, seed=1), normal(4, seed=2), 0.1),
    case("layer_norm", torch.Size([5, 4]), bias=normal(5, 4, seed=2)),
    case("rms_norm", (4,)),
    case("rms_norm", [5, 4], normal(5, 4, seed=1), 0.1),
    case("batch_norm", None, None, training=True),
    case("batch_norm", None, None, normal(4, seed=1), normal(4, seed=2), True, 0.3, 0.1),
    case("batch_norm", *RUNNING, bias=normal(4, seed=2)),
    case("batch_norm", *RUNNING, normal(4, seed=1), training=True),
    case("softmax", dim=1),
    case("softmax", 0, dtype=torch.float64),
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
        if any(value is constant for constant in (CLASS_WEIGHT, *RUNNING)):
            return value.to(dtype, copy=True)
        if not (isinstance(value, torch.Tensor) and value.is_floating_point()):
            return value
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


# torch's are builtins, whose signatures stand in their documentation alone
BUILTINS = {
    "linear": "(input, weight, bias=None)",
    "gelu": "(input, *, approximate='none')",
    "prelu": "(input, weight)",
    "softplus": "(input, beta=1, threshold=20)",
}


@pytest.mark.parametrize("name", sorted(OURS))
def test_signature_is_that_of_torch(name):
    parameters = [
        p.replace(annotation=p.empty) for p in inspect.signature(getattr(functional, name)).parameters.values()
    ]
    signature = inspect.Signature(parameters)
    if name in BUILTINS:
        assert str(signature) == BUILTINS[name]
        assert str(signature).replace("*, ", "") in F.__dict__[name].__doc__.replace(" = ", "=")
    else:
        theirs = inspect.signature(getattr(F, name)).parameters.values()
        assert parameters == [p.replace(annotation=p.empty) for p in theirs]


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


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax_without_dimension_warns_and_chooses_as_torch(name):
    results = []
    for module in (functional, F):
        with pytest.warns(UserWarning, match=f"Implicit dimension choice for {name}"):
            results.append(getattr(module, name)(normal(5, 4)))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize(
    ("name", "args", "options"),
    [
        case("linear", normal(2, 3)),
        case("gelu", approximate="sine"),
        case("gelu", "tanh"),
        case("dropout", p=float("nan")),
        case("leaky_relu", "steep"),
        case("hardtanh", 1.0, -1.0),
        case("celu", 0.0),
        case("prelu", torch.ones(3)),
        case("prelu", torch.ones(1, 4)),
        case("prelu", torch.ones(4, dtype=torch.float64)),
        case("prelu", 0.25),
        case("dropout", p=1.5),
        case("dropout", p=-0.1, training=False),
        case("softmax", dim=2),
        case("log_softmax", dim=2),
        case("layer_norm", 4),
        case("layer_norm", ()),
        case("layer_norm", (3,)),
        case("layer_norm", (4,), normal(3)),
        case("layer_norm", (4,), bias=normal(3)),
        case("layer_norm", (4,), normal(4).double()),
        case("rms_norm", 4),
        case("rms_norm", ()),
        case("rms_norm", (3,)),
        case("rms_norm", (4,), normal(3)),
        case("batch_norm", None, None),
        case("batch_norm", RUNNING[0], None),
        case("batch_norm", RUNNING[0], None, training=True),
        case("batch_norm", normal(3), normal(3)),
        case("batch_norm", normal(3), normal(3), training=True),
        case("batch_norm", *RUNNING, normal(3)),
        case("batch_norm", *RUNNING, bias=normal(4).double()),
        case("batch_norm", *RUNNING, eps=-1.0),
        case("batch_norm", None, None, training=True, eps=0.0),
        case("batch_norm", *RUNNING, training=True, momentum=None),
        case("batch_norm", RUNNING[0].clone().requires_grad_(), RUNNING[1]),
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
        with pytest.raises((RuntimeError, ValueError, IndexError, TypeError)) as caught:
            getattr(module, name)(normal(5, 4), *args, **options)
        errors.append((caught.type, str(caught.value)))
    assert errors[0] == errors[1]


EDGES = [float("nan"), float("inf"), -float("inf"), 0.0, -0.0]
LARGE = [
    0.0,
    -0.0,
    *(sign * 10.0**e for e in (-45, -38, -10, 0, 1, 2, 3, 4, 15, 30) for sign in (1, -1)),
    40.0,
    -40.0,
    88.0,
]
ELEMENTWISE = [
    ("sigmoid", {}),
    ("tanh", {}),
    ("relu", {}),
    ("leaky_relu", {}),
    ("leaky_relu", {"negative_slope": -0.5}),
    ("leaky_relu", {"negative_slope": 0.0}),
    ("elu", {}),
    ("elu", {"alpha": -0.5}),
    ("elu", {"alpha": 2.0}),
    ("celu", {}),
    ("celu", {"alpha": 2.0}),
    ("selu", {}),
    ("gelu", {}),
    ("gelu", {"approximate": "tanh"}),
    ("silu", {}),
    ("mish", {}),
    ("softplus", {}),
    ("softplus", {"beta": -1.5, "threshold": -2.0}),
    ("softsign", {}),
    ("hardtanh", {}),
    ("hardtanh", {"min_val": 0.0, "max_val": 6.0}),
    ("hardtanh", {"min_val": -float("inf"), "max_val": 1.0}),
    ("hardtanh", {"min_val": 1.0, "max_val": 1.0}),
]


@pytest.mark.parametrize("values", [EDGES, LARGE], ids=["edges", "large"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("name", "options"), ELEMENTWISE, ids=str)
def test_extreme_values_and_their_slopes_are_those_of_torch(name, options, dtype, values):
    results = []
    for module in (functional, F):
        x = torch.tensor(values).to(dtype).requires_grad_()
        y = getattr(module, name)(x, **options)
        (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        results.append([y, slope, *torch.autograd.grad(slope.sum(), x)])
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
    for order, (ours, theirs) in enumerate(zip(*results, strict=True)):
        known = ~theirs.isnan() if order == 2 else slice(None)  # torch's second derivatives overflow to NaN earlier
        torch.testing.assert_close(ours[known], theirs[known], rtol=tolerance, atol=tolerance, equal_nan=True)
    assert torch.equal(results[0][0].signbit(), results[1][0].signbit())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("name", "options"), ELEMENTWISE, ids=str)
def test_low_precision_errs_at_most_twice_as_much_as_torch_and_a_last_place(name, options, dtype):
    given = (2 * normal(1000)).to(dtype)
    slopes = []
    for module, x in ((functional, given), (F, given), (F, given.double())):
        x.requires_grad_()
        slopes.append(torch.autograd.grad(getattr(module, name)(x, **options).sum(), x)[0].double())
    ours, theirs, truth = slopes
    last_place = torch.finfo(dtype).eps * 2.0 ** truth.abs().clamp(min=torch.finfo(dtype).tiny).log2().floor()
    assert ((ours - truth).abs() <= 2 * (theirs - truth).abs() + last_place).all()


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "hardtanh"])
def test_second_derivatives_of_piecewise_linear_functions_are_zeros_and_not_missing(name):
    x = normal(5, 4).requires_grad_()
    (grad,) = torch.autograd.grad(getattr(functional, name)(x).sum(), x, create_graph=True)
    assert torch.equal(torch.autograd.grad(grad.sum(), x)[0], torch.zeros(5, 4))


def cross_entropies(target, **options):
    """The loss and its gradient from logits with infinities, by bpexp and by torch."""
    inf, nan = float("inf"), float("nan")
    rows = [[0, 1, 2], [0, -inf, 1], [inf, 0, 1], [nan, 0, 1], [-inf, -inf, -inf], [1e30, 0, -1e30]]
    for module in (functional, F):
        x = torch.tensor(rows, dtype=torch.float64).requires_grad_()
        loss = module.cross_entropy(x, target, **options)
        yield loss, *torch.autograd.grad(loss.sum(), x)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weight", [None, [0.0, 1.0, 2.0]], ids=str)
@pytest.mark.parametrize(
    "target", [[0, 1, 0, 0, 0, 0], [0, 0, -100, -100, -100, 1], [-100] * 6, [0, -100, 0, -100, 0, -100]], ids=str
)
def test_cross_entropy_of_infinite_logits_and_ignored_rows(target, weight, reduction, label_smoothing):
    weight = None if weight is None else torch.tensor(weight, dtype=torch.float64)
    options = {"weight": weight, "reduction": reduction, "label_smoothing": label_smoothing}
    torch.testing.assert_close(*cross_entropies(torch.tensor(target), **options), equal_nan=True)


def test_class_weights_have_a_gradient_with_probabilities_and_are_refused_with_indices():
    grads, refusals = [], []
    for module in (functional, F):
        weight = CLASS_WEIGHT.clone().requires_grad_()
        target = normal(5, 4, seed=5).softmax(1)
        loss = module.cross_entropy(normal(5, 4), target, weight, label_smoothing=0.1)
        grads.append(torch.autograd.grad(loss, weight))
        with pytest.raises(RuntimeError, match="not differentiable with respect to argument 'weight'") as caught:
            module.cross_entropy(normal(5, 4), TARGET, weight)
        refusals.append(str(caught.value))
        with torch.no_grad():
            module.cross_entropy(normal(5, 4), TARGET, weight)
    torch.testing.assert_close(*grads)
    assert refusals[0] == refusals[1]


@pytest.mark.parametrize("name", ["layer_norm", "rms_norm", "batch_norm"])
@pytest.mark.parametrize(
    "x",
    [torch.ones(5, 4, dtype=torch.int64), torch.ones(1, 4), torch.ones(4), torch.ones(())],
    ids=["integers", "one-row", "vector", "number"],
)
def test_norms_take_and_refuse_what_torch_refuses(name, x):
    outcomes = []
    for module in (functional, F):
        try:
            outcomes.append(getattr(module, name)(x, *example(name)))
        except Exception as error:
            outcomes.append((type(error), str(error)))
    if torch.is_tensor(outcomes[1]):
        torch.testing.assert_close(*outcomes)
    else:
        assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(5, 4), (2, 4), (3, 4, 2), (0, 4), (2, 4, 3, 1)], ids=str)
@pytest.mark.parametrize("momentum", [0.1, 1.0, 0.0, 1])
def test_batch_norm_moves_the_running_statistics_as_torch(momentum, shape, dtype):
    found = []
    for module in (functional, F):
        running = [vector.to(torch.float32 if dtype.itemsize == 2 else dtype, copy=True) for vector in RUNNING]
        affine = [vector.clone() for vector in running]
        for seed in range(3):
            module.batch_norm(normal(*shape, seed=seed, dtype=dtype), *running, *affine, True, momentum)
        found.append(running)
    torch.testing.assert_close(*found)


def test_running_statistics_have_no_part_in_the_graph():
    running = [vector.clone() for vector in RUNNING]
    x = normal(5, 4).requires_grad_()
    y = functional.batch_norm(x, *running, training=True)
    assert not any(vector.requires_grad for vector in running)
    y.square().sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("far", [1e2, 1e4])
@pytest.mark.parametrize("name", ["layer_norm", "batch_norm"])
def test_a_large_mean_costs_no_more_digits_than_in_torch(name, far):
    x = far + normal(64, 4).mT.contiguous().mT
    args = [(4,)] if name == "layer_norm" else example(name)
    found = []
    for module, given in ((functional, x), (F, x), (F, x.double())):
        leaf = given.clone().requires_grad_()
        y = getattr(module, name)(leaf, *args)
        weights = normal(64, 4, seed=1, dtype=given.dtype)
        found.append([y.double(), torch.autograd.grad((y * weights).sum(), leaf)[0].double()])
    for ours, theirs, truth in zip(*found, strict=True):
        assert (ours - truth).abs().max() <= 2 * (theirs - truth).abs().max() + 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["layer_norm", "rms_norm", "batch_norm"])
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # torch's own, of its slower way
def test_norms_of_low_precision_take_affine_vectors_of_float32(name, dtype):
    """As under autocast: the output has the type of the input, each gradient that of its argument."""
    found = []
    for module, exact in ((functional, False), (F, False), (F, True)):
        given = [normal(64, 4, dtype=dtype), normal(4, seed=1), normal(4, seed=2)][: 2 if name == "rms_norm" else 3]
        x, *affine = leaves = [v.to(torch.float64 if exact else v.dtype).requires_grad_() for v in given]
        args = [None, None, *affine, True] if name == "batch_norm" else [(4,), *affine]
        y = getattr(module, name)(x, *args)
        found.append([y, *torch.autograd.grad(y.double().square().sum(), leaves)])
    for ours, theirs, truth in zip(*found, strict=True):
        assert ours.dtype == theirs.dtype
        last_place = torch.finfo(dtype).eps * truth.abs().max() * (ours.dtype == dtype) + 1e-6 * truth.abs().max()
        assert (ours - truth).abs().max() <= 2 * (theirs - truth).abs().max() + last_place


def test_torchs_default_eps_of_rms_norm_is_that_of_the_type_in_which_it_computes():
    for dtype, of in ((torch.float64, torch.float64), (torch.float32, torch.float32), (torch.bfloat16, torch.float32)):
        x = torch.full((1, 4), 1e-3 * torch.finfo(of).eps ** 0.5).to(dtype)
        expected = x.double() / (x.double().square() + torch.finfo(of).eps).sqrt()
        for module in (functional, F):
            tolerance = torch.finfo(dtype).eps
            torch.testing.assert_close(module.rms_norm(x, (4,)).double(), expected, rtol=2 * tolerance, atol=0)


IN_PLACE = ["relu", "leaky_relu", "elu", "celu", "selu", "silu", "mish", "hardtanh", "dropout"]


@pytest.mark.parametrize("name", IN_PLACE)
def test_in_place_acts_as_in_torch(name):
    """On the tensor itself: through a view and an alias, counted as one change, under vmap and forward mode."""
    results = []
    for module in (functional, F):
        torch.manual_seed(0)
        leaf = normal(6).requires_grad_()
        x = leaf * 1
        version, alias = x._version, x.detach()
        getattr(module, name)(x[1:4], inplace=True)
        vmapped = torch.func.vmap(lambda row: getattr(module, name)(row, inplace=True), randomness="same")(normal(3, 4))  # noqa: B023
        tangent = torch.func.jvp(lambda z: getattr(module, name)(z * 1, inplace=True), (normal(4),), (normal(4),))  # noqa: B023
        with pytest.raises(RuntimeError) as caught:
            getattr(module, name)(normal(1, 3).expand(4, 3), inplace=True)
        changed = leaf.tanh()
        getattr(module, name)(changed, inplace=True)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            changed.sum().backward()
        grads = torch.autograd.grad(x.sum(), leaf)
        results.append(([x, alias, vmapped, *tangent, *grads], x._version - version, str(caught.value)))
    torch.testing.assert_close(results[0][0], results[1][0])
    assert results[0][1:] == results[1][1:]


def test_a_leaf_changed_in_place_is_refused():
    with pytest.raises(RuntimeError, match="a leaf Variable that requires grad is being used in an in-place operation"):
        functional.relu(torch.ones(3, requires_grad=True), inplace=True)


def example(name):
    """The other arguments of a call."""
    others = {
        "linear": [normal(3, 4)],
        "layer_norm": [(4,)],
        "rms_norm": [(4,)],
        "batch_norm": [None, None, None, None, True],
        "prelu": [torch.tensor([0.25])],
        "softmax": [1],
        "log_softmax": [1],
        "mse_loss": [normal(5, 4)],
        "cross_entropy": [TARGET],
    }
    return others.get(name, [])


@pytest.mark.parametrize("name", OURS)
def test_autocast_gives_the_dtypes_of_torch(name):
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        alike = name == "prelu" or (name == "linear" and dtype == torch.float64)
        others = [a.to(dtype) if alike else a for a in example(name)]
        for lower in (torch.bfloat16, torch.float16):
            results = []
            for module in (functional, F):
                torch.manual_seed(0)
                x = normal(5, 4, dtype=dtype).requires_grad_()
                with torch.autocast("cpu", lower):
                    y = getattr(module, name)(x, *others)
                results.append((y, torch.autograd.grad(y.sum(), x)))
            torch.testing.assert_close(*results, rtol=3e-2, atol=3e-2)


@pytest.mark.parametrize("name", OURS)
def test_meta_tensors_subclasses_and_parameters(name):
    class Labelled(torch.Tensor):
        pass

    for module in (functional, F):
        call = getattr(module, name)
        meta = torch.empty(5, 4, device="meta", requires_grad=True)
        y = call(meta, *[a.to("meta") if isinstance(a, torch.Tensor) else a for a in example(name)])
        assert y.device.type == "meta"
        assert torch.autograd.grad(y.sum(), meta)[0].shape == (5, 4)
        labelled = normal(5, 4).as_subclass(Labelled).requires_grad_()
        assert type(call(labelled, *example(name))) is Labelled
        y = call(torch.nn.Parameter(normal(5, 4)), *example(name))
        assert type(y) is torch.Tensor
        assert not y.is_leaf


@pytest.mark.parametrize("name", OURS)
def test_the_graph_holds_our_function_alone(name):
    x = normal(5, 4).requires_grad_()
    y = getattr(functional, name)(x, *example(name))
    assert isinstance(y.grad_fn, torch.autograd.function.BackwardCFunction)
    assert y.grad_fn.name() == f"{name}Backward"
    leaves = [following for following, _ in y.grad_fn.next_functions if following is not None]
    assert [leaf.name() for leaf in leaves] == ["torch::autograd::AccumulateGrad"]
