"""The arrow of the data flow: every module imports what stands before it, and nothing that stands after."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

LAYERS = (
    # What needs neither torch nor data at import: the answers to mistakes come from here.
    {"streams", "init", "data", "spec", "chunks", "memory", "threads", "validation", "sweep", "entry"},
    {"rules"},
    {"functional", "activations", "plan", "oracles"},
    {"nn", "check", "optim", "theory", "dropout"},
    {"models"},
    {"measures"},
    {"evaluation", "measuring"},
    {"ensemble"},
    {"train"},
    {"statistics", "records", "checkpoint"},
    {"verdict", "bands", "summary", "attribution"},
    {"figures", "dashboard"},
    {"runner"},
)
FLOW = {name: place for place, names in enumerate(LAYERS) for name in names}

ONLY_IMPORTERS = {
    "matplotlib": {"bpexp.figures"},
    "tensorboard": {"bpexp.dashboard"},
}

HEAVY = ("experiments.cost_torch", "experiments.cost_plain")
"""Modules of experiments that answer nothing themselves: the others import them late."""

LATE = (
    "torch",
    "polars",
    "matplotlib",
    "tensorboard",
    "sklearn",
    "scipy",
    "mlxtend",
    "bpexp.ensemble",
    "bpexp.rules",
    *HEAVY,
)
"""What the modules that answer a mistake import where they use it, so that they answer in under a second."""


def modules():
    for package in ("bpexp", "experiments"):
        for path in sorted((ROOT / package).rglob("*.py")):
            yield ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"), path


MODULES = dict(modules())


def imports(path, *, top_level_only=False):
    """The modules that a file imports; those for annotations alone do not count at the top level."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def begins(name, start):
    return name == start or name.startswith(f"{start}.")


@pytest.mark.parametrize("module", [name for name in MODULES if begins(name, "bpexp")])
def test_the_library_does_not_import_the_experiments(module):
    assert not [name for name in imports(MODULES[module]) if begins(name, "experiments")]


def part(module):
    return module.split(".")[1] if module.count(".") else None


@pytest.mark.parametrize("module", [name for name in MODULES if begins(name, "bpexp") and part(name)])
def test_data_flows_one_way(module):
    assert part(module) in FLOW, f"bpexp.{part(module)} has no place in the flow"
    used = {
        part(name) for name in imports(MODULES[module], top_level_only=True) if begins(name, "bpexp") and part(name)
    }
    later = {name for name in used & set(FLOW) if FLOW[name] > FLOW[part(module)]}
    assert not later


@pytest.mark.parametrize("library", ONLY_IMPORTERS)
def test_a_library_is_imported_in_one_place(library):
    importers = {module for module, path in MODULES.items() if any(begins(name, library) for name in imports(path))}
    outside = {m for m in importers if not any(begins(m, place) for place in ONLY_IMPORTERS[library])}
    assert not outside
    assert importers


@pytest.mark.parametrize(
    "module",
    [name for name in MODULES if part(name) in LAYERS[0] or (begins(name, "experiments") and name not in HEAVY)],
)
def test_what_answers_a_mistake_imports_late(module):
    heavy = [name for name in imports(MODULES[module], top_level_only=True) for late in LATE if begins(name, late)]
    assert not heavy
