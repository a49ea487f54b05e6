import pytest

from experiments import exercise


def right_z(grad, y):
    return grad * (1 - y * y)


SOLUTION = {
    "grad_z": right_z,
    "grad_x": lambda grad, y, x, weight, bias: right_z(grad, y) @ weight,
    "grad_weight": lambda grad, y, x, weight, bias: right_z(grad, y).T @ x,
    "grad_bias": lambda grad, y, x, weight, bias: right_z(grad, y).sum(0),
}

ONE, SAMPLE, BATCH, SQUARE = exercise.SHAPES
ALL = (ONE, SAMPLE, BATCH, SQUARE)

MISTAKES = {
    # what the reader wrote: the argument, its formula, the samples that show it, what the reader is told
    "x: weight transposed": ("x", lambda g, y, x, w, b: right_z(g, y) @ w.T, ALL[1:], exercise.FACTORS),
    "x: no slope of tanh": ("x", lambda g, y, x, w, b: g @ w, ALL, exercise.NO_TANH),
    "x: sign": ("x", lambda g, y, x, w, b: -right_z(g, y) @ w, ALL, "its sign is wrong"),
    "x: nothing": ("x", lambda g, y, x, w, b: None, ALL, "None was returned"),
    "x: a typing error": ("x", lambda g, y, x, w, b: weigth, ALL, "NameError: name 'weigth' is not defined"),  # noqa: F821
    "weight: transposed": ("weight", lambda g, y, x, w, b: x.T @ right_z(g, y), ALL[1:], "it is transposed"),
    "weight: zero": ("weight", lambda g, y, x, w, b: 0 * w, ALL, "it is zero everywhere: not written yet"),
    "weight: sign, no slope": (
        "weight",
        lambda g, y, x, w, b: -g.T @ x,
        ALL,
        f"its sign is wrong; {exercise.NO_TANH}",
    ),
    "weight: a mean": (
        "weight",
        lambda g, y, x, w, b: right_z(g, y).T @ x / len(x),
        (BATCH, SQUARE),
        "it is a mean over the samples, where a sum is due",
    ),
    "bias: not summed": (
        "bias",
        lambda g, y, x, w, b: right_z(g, y),
        ALL,
        "it is not summed over the samples",
    ),
    "bias: summed over outputs": (
        "bias",
        lambda g, y, x, w, b: right_z(g, y).sum(1),
        ALL[1:],
        "shape",
    ),
    "bias: off by a thousandth": ("bias", lambda g, y, x, w, b: 1.001 * right_z(g, y).sum(0), ALL, "off by"),
    "bias: one sample too few": ("bias", lambda g, y, x, w, b: right_z(g, y)[:3].sum(0), (BATCH,), "off by"),
}


@pytest.fixture
def solved(monkeypatch):
    for name, formula in SOLUTION.items():
        monkeypatch.setattr(exercise, name, formula)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path / "outputs" / "exercise"


@pytest.mark.parametrize("seed", range(2))
def test_it_can_be_solved(seed, solved, capsys, folder):
    assert exercise.main([f"seed={seed}"]) == 0
    said = capsys.readouterr().out
    assert said.count("right") >= len(exercise.SHAPES) * len(exercise.ARGUMENTS)
    assert said.endswith("\n".join(exercise.CONGRATULATION) + "\n")
    assert (folder / "exercise.txt").read_text() == said


def test_as_shipped_every_argument_is_wrong_on_every_sample(capsys):
    assert exercise.main([]) == 1
    said = capsys.readouterr()
    assert said.err == ""
    for argument in exercise.ARGUMENTS:
        assert f"\n{argument}: wrong on 'one number', 'one sample', 'batch', 'square'\n" in said.out
        assert exercise.HINTS[argument] in said.out
    assert said.out.count("it is zero everywhere: not written yet") == 3
    assert said.out.endswith("\n0 of 3 arguments are right. Edit experiments/exercise.py and run again.\n")


def test_the_slope_that_is_missing_as_shipped_is_found(monkeypatch):
    monkeypatch.setattr(exercise, "grad_x", lambda g, y, x, w, b: exercise.grad_z(g, y) @ w)
    monkeypatch.setattr(exercise, "grad_weight", lambda g, y, x, w, b: exercise.grad_z(g, y).T @ x)
    monkeypatch.setattr(exercise, "grad_bias", lambda g, y, x, w, b: exercise.grad_z(g, y).sum(0))
    found = exercise.mistakes(exercise.samples(0))
    assert exercise.text(found, exercise.samples(0)).count(f"It looks as if {exercise.NO_TANH}.") == 3
    monkeypatch.setattr(exercise, "grad_z", right_z)
    assert exercise.mistakes(exercise.samples(0)) == []


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_found_in_its_argument_and_on_its_samples(mistake, solved, monkeypatch):
    argument, formula, shown_by, told = MISTAKES[mistake]
    monkeypatch.setattr(exercise, f"grad_{argument}", formula)
    calls = exercise.samples(0)
    found = exercise.mistakes(calls)
    assert [(one.argument, one.sample) for one in found] == [(argument, sample) for sample in shown_by]
    said = exercise.text(found, calls)
    assert f"\n{argument}: wrong on {', '.join(map(repr, shown_by))}\n" in said
    assert told in said[said.index(f"\n{argument}: wrong") :]
    assert said.count("wrong on ") == 1
    assert "2 of 3 arguments are right." in said


def test_a_changed_forward_is_told(solved, monkeypatch, capsys):
    monkeypatch.setattr(exercise, "forward", lambda x, weight, bias: (x @ weight.T + bias).sin())
    assert exercise.main([]) == 1
    assert "\nvalue, sample 'one number': " in capsys.readouterr().out


def test_hints_and_samples_are_complete():
    assert set(exercise.HINTS) == set(exercise.ARGUMENTS) == set(exercise.formulas())
    assert [sample.name for sample in exercise.samples(0)] == list(exercise.SHAPES)


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("sed=1", "sed: unknown key; did you mean seed?"),
        ("seed=-1", "seed: -1 is out of range; must be at least 0"),
        ("-m", "-m: exercise has no grid; run it without -m"),
    ],
)
def test_a_wrong_argument_is_one_line(argument, said, capsys, folder):
    assert exercise.main([argument]) == 2
    assert capsys.readouterr() == ("", f"{said}\n")
    assert not folder.exists()
