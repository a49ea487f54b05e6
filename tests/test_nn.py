"""Every module of bpexp.nn against the module of torch.nn that has its name."""

import copy
import inspect
import pickle

import pytest
import torch
from torch_samples import MODULE_DB, some

from bpexp import nn
from bpexp.rules import table

CASES = [
    ("Linear", (4, 3), {}),
    ("Linear", (4, 3), {"bias": False, "dtype": torch.float64}),
    ("Sigmoid", (), {}),
    ("Tanh", (), {}),
    ("ReLU", (), {}),
    ("ReLU", (True,), {}),
    ("LeakyReLU", (0.3,), {}),
    ("ELU", (0.5,), {"inplace": True}),
    ("CELU", (0.5,), {"inplace": True}),
    ("SELU", (), {}),
    ("GELU", ("tanh",), {}),
    ("GELU", (), {}),
    ("SiLU", (), {}),
    ("Mish", (), {}),
    ("PReLU", (4, 0.1), {}),
    ("PReLU", (), {"dtype": torch.float64}),
    ("Softplus", (2.0,), {"threshold": 1.0}),
    ("Softsign", (), {}),
    ("Hardtanh", (-0.5, 0.3), {}),
    ("Dropout", (0.3,), {}),
    ("LayerNorm", (4,), {}),
    ("LayerNorm", ((5, 4),), {"eps": 0.1, "bias": False}),
    ("LayerNorm", (4,), {"elementwise_affine": False, "dtype": torch.float64}),
    ("RMSNorm", (4,), {}),
    ("RMSNorm", ([5, 4],), {"eps": 0.1, "elementwise_affine": False}),
    ("BatchNorm1d", (4,), {}),
    ("BatchNorm1d", (4, 0.1, None), {"bias": False}),
    ("BatchNorm1d", (4,), {"affine": False, "track_running_stats": False, "dtype": torch.float64}),
    ("BatchNorm2d", (4,), {"momentum": 0.3}),
    ("BatchNorm3d", (4,), {}),
    ("Softmax", (1,), {}),
    ("LogSoftmax", (1,), {}),
    ("MSELoss", (), {"reduction": "sum"}),
    ("CrossEntropyLoss", (torch.tensor([0.5, 1.0, 2.0, 0.1]),), {"ignore_index": 1, "label_smoothing": 0.1}),
    ("Flatten", (), {}),
    ("Identity", (), {}),
]
TARGETS = {"MSELoss": torch.ones(5, 4), "CrossEntropyLoss": torch.tensor([0, 1, 2, 3, 0])}
SHAPES = {"BatchNorm2d": (5, 4, 2, 1), "BatchNorm3d": (5, 4, 1, 2, 1)}


def pair(name, args, options):
    """Our module and torch's, each made under the same seed."""
    modules = []
    for module in (nn, torch.nn):
        torch.manual_seed(3)
        modules.append(getattr(module, name)(*args, **options))
    return modules


def outcome(module, name, dtype=torch.float32):
    torch.manual_seed(5)
    leaf = torch.randn(SHAPES.get(name, (5, 4)), dtype=dtype, requires_grad=True)
    y = module(leaf * 1.0, *([TARGETS[name]] if name in TARGETS else []))
    return y, torch.autograd.grad(y.square().sum(), [leaf, *module.parameters()])


def test_every_module_has_a_case():
    assert {name for name, _, _ in CASES} | {"Sequential"} == set(nn.__all__)


@pytest.mark.parametrize(("name", "args", "options"), CASES)
def test_module_equals_that_of_torch(name, args, options):
    ours, theirs = pair(name, args, options)
    assert str(ours) == str(theirs)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for mine, reference in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, reference)
    dtype = options.get("dtype", torch.float32)
    torch.testing.assert_close(outcome(ours, name, dtype), outcome(theirs, name, dtype))


@pytest.mark.parametrize("name", sorted({name for name, _, _ in CASES}))
def test_constructor_is_that_of_torch(name):
    assert inspect.signature(getattr(nn, name)) == inspect.signature(getattr(torch.nn, name))


@pytest.mark.parametrize("name", sorted(set(nn.__all__) - {"Flatten", "Identity", "Sequential"}))
def test_module_runs_one_of_our_rules(name, monkeypatch):
    class Recorder:
        def record(self, rule, args):
            names.append(rule.name)
            return rule.evaluate(args)

    names: list[str] = []
    monkeypatch.setattr(table, "RECORDERS", [Recorder()])
    _, args, options = next(case for case in CASES if case[0] == name)
    module, _ = pair(name, args, options)
    module(torch.ones(SHAPES.get(name, (5, 4))), *([TARGETS[name]] if name in TARGETS else []))
    assert len(names) == 1


def batches(name, dtype):
    generator = torch.Generator().manual_seed(6)
    return [torch.randn(SHAPES.get(name, (5, 4)), generator=generator, dtype=dtype) for _ in range(4)]


NORMS = [case for case in CASES if case[0].startswith("BatchNorm")]


@pytest.mark.parametrize(("name", "args", "options"), NORMS)
def test_batch_norm_trains_evaluates_and_exchanges_its_state_as_torchs(name, args, options):
    ours, theirs = pair(name, args, options)
    given = batches(name, options.get("dtype", torch.float32))
    for x in given[:2]:
        torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    torch.testing.assert_close(ours.eval()(given[2]), theirs.eval()(given[2]))
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    swapped, fresh = [getattr(module, name)(*args, **options) for module in (torch.nn, nn)]
    swapped.load_state_dict(ours.state_dict())
    fresh.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(fresh(given[3]), swapped(given[3]))
    torch.testing.assert_close(fresh.state_dict(), swapped.state_dict())
    ours.reset_running_stats()
    theirs.reset_running_stats()
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


def test_batch_norm_compiles_and_moves_its_statistics():
    ours, theirs = pair("BatchNorm1d", (4,), {"dtype": torch.float64})
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    for x in batches("BatchNorm1d", torch.float64):
        torch.testing.assert_close(compiled(x), theirs(x))
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


@pytest.mark.parametrize(
    ("name", "shape"),
    [("BatchNorm1d", (1, 4)), ("BatchNorm1d", (2, 4, 1, 1)), ("BatchNorm2d", (2, 4)), ("BatchNorm3d", (1, 4, 1, 1, 1))],
    ids=str,
)
def test_batch_norm_refuses_what_torchs_refuses(name, shape):
    errors = []
    for module in pair(name, (4,), {}):
        with pytest.raises(ValueError, match=r"expected|Expected") as caught:
            module(torch.ones(shape))
        errors.append(str(caught.value))
    assert errors[0] == errors[1]


def network(module):
    torch.manual_seed(2)
    return module.Sequential(
        module.Flatten(),
        module.Linear(8, 6),
        module.GELU(),
        module.Dropout(0.4),
        module.Linear(6, 4),
        module.LogSoftmax(-1),
    )


@pytest.mark.parametrize("there", [True, False], ids=["to-torch", "from-torch"])
def test_state_dict_loads_both_ways(there):
    source, target = (nn, torch.nn) if there else (torch.nn, nn)
    first, second = network(source), network(target)
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(1.0)
    second.load_state_dict(first.state_dict())
    x = torch.linspace(-1, 1, 24).view(3, 2, 4)
    torch.testing.assert_close(first.eval()(x), second.eval()(x))


def test_training_a_network_equals_torch():
    losses = []
    for module in (nn, torch.nn):
        model = network(module).double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        x = torch.linspace(-1, 1, 24, dtype=torch.float64).view(3, 2, 4)
        for _ in range(5):
            loss = module.CrossEntropyLoss()(model(x), torch.tensor([0, 3, 1]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(loss)
    torch.testing.assert_close(*losses, rtol=1e-12, atol=1e-12)


ROWS = {row.name: row for row in MODULE_DB if getattr(torch.nn, row.module_cls.__name__, None) is row.module_cls}
ROWS = {name: row for name, row in ROWS.items() if row.module_cls.__name__ in nn.__all__}


def made_from(given, name, dtype, module):
    torch.manual_seed(3)
    made = getattr(module, name)(*given.constructor_input.args, **given.constructor_input.kwargs)
    return made.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_samples_of_torch_give_what_torch_gives(row, dtype):
    """Values and gradients; then the same from a copy, from a pickle, and after the state went to torch and back."""
    name = row.module_cls.__name__
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-5}[dtype]
    inputs = row.module_inputs_func(row, device="cpu", dtype=dtype, requires_grad=True, training=True)
    for given in some(inputs, 12):
        if given.forward_input is None:
            continue
        ours, theirs = [made_from(given, name, dtype, module) for module in (nn, torch.nn)]
        assert str(ours) == str(theirs)
        fresh = made_from(given, name, dtype, nn)
        fresh.load_state_dict(theirs.state_dict())
        theirs.load_state_dict(ours.state_dict())
        results = []
        for module in (theirs, ours, fresh, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
            args = [
                a.detach().requires_grad_(a.requires_grad) if torch.is_tensor(a) else a
                for a in given.forward_input.args
            ]
            leaves = [a for a in (*args, *module.parameters()) if torch.is_tensor(a) and a.requires_grad]
            y = module(*[a * 1 if a is args[0] else a for a in args], **given.forward_input.kwargs)
            results.append((y, torch.autograd.grad(y.square().sum(), leaves)))
        for result in results[1:]:
            torch.testing.assert_close(result, results[0], rtol=tolerance, atol=tolerance)


def test_torch_has_samples_of_all_but_a_few_modules():
    missing = set(nn.__all__) - {row.module_cls.__name__ for row in ROWS.values()}
    assert missing == {"Dropout", "Flatten", "Identity", "Sequential"}
