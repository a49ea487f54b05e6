"""Mutants of a rule: its formulas, and the helpers that they call, each with one change to its source.

A change is made in the syntax tree: the function is found by its place in the file, one expression is replaced, and the
function is made again with its own globals and closure. Helpers are the functions of the same package that a formula
reaches by a global name or by its closure; the rule's forward formula is not one, for it is no derivative. Only what
the rule's samples evaluate is changed: a change in a branch that no sample enters tells nothing.
"""

import ast
import copy
import functools
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from changes import changes_of

from bpexp import check
from bpexp.rules import RULES, Rule, Sample

TANGENT = "the tangent"
REVERSE_CHECKS = (check.check_gradient, check.check_returned, check.check_second_order, check.check_calls)
FORWARD_CHECKS = (check.check_forward_mode,)  # a tangent that agrees with the reference to 1e-10 agrees to 1e-6

Function = types.FunctionType
Definition = ast.FunctionDef | ast.Lambda


@dataclass(frozen=True)
class Place:
    """An expression of a function's source."""

    function: str
    file: str
    line: int
    number: int  # among the function's expressions

    @classmethod
    def of(cls, function: Function, number: int) -> "Place":
        code = function.__code__
        return cls(code.co_name, Path(code.co_filename).stem, code.co_firstlineno, number)


@dataclass(frozen=True)
class Mutant:
    """A rule of which one formula was changed; `argument` is the one whose gradient it is, or the tangent."""

    rule: Rule
    argument: str
    place: Place
    description: str  # helper, or rule where it is a lambda: expression -> what stands there now
    formula: Function

    def is_caught(self) -> bool:
        subject, samples, checks = trial_of(self.rule, self.argument, self.formula)
        samples = sorted(samples, key=lambda sample: sample.name != LAST_CATCH.get(self.place))
        found = next(check.find(subject, samples, checks), None)
        if found is not None:
            LAST_CATCH[self.place] = found.sample
        return found is not None


LAST_CATCH: dict[Place, str] = {}
"""The sample that caught the last change of a place: most often it catches the next one too, so it is tried first."""


def formulas(rule: Rule) -> dict[str, Any]:
    """A rule's derivatives: backward formulas by argument, and the tangent."""
    named = {key if isinstance(key, str) else ", ".join(key): formula for key, formula in rule.gradients.items()}
    return named if rule.jvp is None else {**named, TANGENT: rule.jvp}


@functools.cache
def samples_of(rule: Rule) -> Sequence[Sample]:
    return rule.samples(torch.Generator().manual_seed(0))


def trial_of(rule: Rule, argument: str, formula: Function) -> tuple[check.Subject, Sequence[Sample], Sequence[Any]]:
    """The rule with another formula, outside the table, and all that can see the difference."""
    if argument == TANGENT:
        twin = replace(rule, name="mutant", jvp=formula)
    else:
        key = next(key for key in rule.gradients if key == argument or ", ".join(key) == argument)
        twin = replace(rule, name="mutant", gradients={**rule.gradients, key: formula})
    del RULES["mutant"]
    subject = check.subject_of(twin, rule.reference, rule.name, None, check.Tolerances())
    return subject, samples_of(rule), FORWARD_CHECKS if argument == TANGENT else REVERSE_CHECKS


def mutants(rule: Rule, is_known: Callable[[str, Place, str], bool] = lambda *_: False) -> Iterator[Mutant]:
    """Every mutant of a rule, less those of which argument, place and description are known."""
    for argument, formula in formulas(rule).items():
        functions = reachable(formula, rule.forward)
        evaluated = evaluated_places(rule, argument, functions)
        for function in functions:
            definition, known = node_of(function), outside(function)
            seen: dict[str, int] = {}
            for number, slot in enumerate(slots(definition)):
                for new in changes_of(slot.parent, slot.field, slot.node, known):
                    owner = rule.name if function.__name__ == "<lambda>" else function.__name__
                    text = f"{owner}: {ast.unparse(slot.node)} -> {ast.unparse(new)}"
                    seen[text] = seen.get(text, 0) + 1
                    place, title = Place.of(function, number), text if seen[text] == 1 else f"{text} ({seen[text]})"
                    if place in evaluated and not is_known(argument, place, title):
                        slot.put(new)
                        mutated = rebuilt(formula, functions, {function: definition})
                        slot.put(slot.node)
                        yield Mutant(rule, argument, place, title, mutated)


@functools.cache
def places(rule: Rule) -> set[Place]:
    """Where the rule's formulas and their helpers can be changed."""
    return {
        Place.of(function, number)
        for formula in formulas(rule).values()
        for function in reachable(formula, rule.forward)
        for number, slot in enumerate(slots(node_of(function)))
        if next(changes_of(slot.parent, slot.field, slot.node, outside(function)), None)
    }


def evaluated_places(rule: Rule, argument: str, functions: Sequence[Function]) -> set[Place]:
    """The places whose value some check of the formula needs."""
    found: set[Place] = set()

    def note(place: Place, value: Any) -> Any:
        found.add(place)
        return value

    names: dict[str, Any] = {"__note__": note}
    definitions: dict[Function, Definition] = {}
    for function in functions:
        definitions[function] = definition = node_of(function)
        for number, slot in enumerate(list(slots(definition))):
            if next(changes_of(slot.parent, slot.field, slot.node, outside(function)), None):
                name = f"__place_{len(names)}__"
                names[name] = Place.of(function, number)
                slot.put(ast.Call(load("__note__"), [load(name), slot.node], []))
    instrumented = rebuilt(functions[0], functions, definitions, names)
    for mismatch in check.find(*trial_of(rule, argument, instrumented)):
        raise AssertionError(f"the unchanged formula is wrong: {mismatch}")
    return found


def load(name: str) -> ast.expr:
    return ast.Name(name, ast.Load())


def reachable(formula: Any, forward: Any) -> list[Function]:
    """The formula and its helpers."""
    package = formula.__module__.split(".")[0]
    found: list[Function] = []
    waiting = [formula]
    while waiting:
        function = waiting.pop()
        if function in found or function is forward:
            continue
        if not isinstance(function, Function):
            raise TypeError(f"{function} has no source: write it as a lambda, so that it can be changed")
        found.append(function)
        for value in outside(function).values():
            if isinstance(value, Function) and value.__module__.split(".")[0] == package:
                waiting.append(value)
            if isinstance(value, types.ModuleType) and value.__name__.split(".")[0] == package:
                raise TypeError(f"{function.__name__} calls into {value.__name__}: import the function itself")
    return found


def outside(function: Function) -> dict[str, Any]:
    """What a function reads from its closure and from its globals."""
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    known = dict(zip(function.__code__.co_freevars, cells, strict=True))
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        codes += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
        known.update({name: function.__globals__[name] for name in code.co_names if name in function.__globals__})
    return known


@functools.cache
def tree_of(file: str) -> ast.Module:
    return ast.parse(Path(file).read_text())


def node_of(function: Function) -> Definition:
    """A copy of the function's definition."""
    return copy.deepcopy(definition_of(function.__code__))


@functools.cache
def definition_of(code: types.CodeType) -> Definition:
    """Of the definitions on the code's first line, the smallest that holds all of it."""
    spans = [(line, end, column, last) for line, end, column, last in code.co_positions() if last]
    start, stop = min((span[0], span[2]) for span in spans), max((span[1], span[3]) for span in spans)
    holding = {}
    for node in ast.walk(tree_of(code.co_filename)):
        if isinstance(node, Definition) and getattr(node, "name", "<lambda>") == code.co_name:
            body = node.body if isinstance(node.body, list) else [node.body]
            first, last = (body[0].lineno, body[0].col_offset), (body[-1].end_lineno, body[-1].end_col_offset)
            if node.lineno == code.co_firstlineno and first <= start and stop <= last:
                holding[last, first] = node
    return holding[min(holding)]


@dataclass(frozen=True)
class Slot:
    """Where an expression stands in the syntax tree."""

    parent: ast.AST
    field: str
    index: int | None
    node: ast.expr

    def put(self, node: ast.expr) -> None:
        if self.index is None:
            setattr(self.parent, self.field, node)
        else:
            getattr(self.parent, self.field)[self.index] = node


def slots(parent: ast.AST) -> Iterator[Slot]:
    """Every expression of a definition's body that has a value: no annotation, default, docstring or target."""
    for field, value in ast.iter_fields(parent):
        if field in ("annotation", "returns", "decorator_list") or (
            field == "args" and isinstance(value, ast.arguments)
        ):
            continue
        for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if not isinstance(child, ast.AST) or (
                isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)
            ):
                continue
            is_callee = field == "func" and isinstance(parent, ast.Call)
            if isinstance(child, ast.expr) and not isinstance(getattr(child, "ctx", None), ast.Store) and not is_callee:
                yield Slot(parent, field, index, child)
            yield from slots(child)


def rebuilt(
    formula: Function,
    functions: Sequence[Function],
    definitions: Mapping[Function, Definition],
    names: Mapping[str, Any] | None = None,
) -> Function:
    """The formula with new definitions of some of the functions that it reaches, and with more global names."""
    namespaces = {id(f.__globals__): {**f.__globals__, **(names or {})} for f in functions}
    twins: dict[Function, Function] = {}

    def twin(value: Any) -> Any:
        if not isinstance(value, Function) or value not in functions:
            return value
        if value not in twins:
            cells = [types.CellType(twin(cell.cell_contents)) for cell in value.__closure__ or ()]
            cell_of = dict(zip(value.__code__.co_freevars, cells, strict=True))
            namespace = namespaces[id(value.__globals__)]
            code = define(definitions[value], value) if value in definitions else value.__code__
            closure = tuple(cell_of[name] for name in code.co_freevars)  # a change may have dropped the last use of one
            twins[value] = made = Function(code, namespace, value.__name__, value.__defaults__, closure)
            made.__kwdefaults__ = value.__kwdefaults__
            made.__dict__.update(value.__dict__)
        return twins[value]

    for function in functions:
        twin(function)
    for namespace in namespaces.values():
        namespace.update({name: twins[v] for name, v in namespace.items() if isinstance(v, Function) and v in twins})
    return twins[formula]


def define(definition: Definition, function: Function) -> types.CodeType:
    """The code of a definition, compiled inside one that has its free variables, so that it closes over them."""
    free = function.__code__.co_freevars
    statement = definition if isinstance(definition, ast.FunctionDef) else ast.Expr(definition)
    arguments = ast.arguments([], [ast.arg(name) for name in free], None, [], [], None, [])
    maker = ast.FunctionDef("maker", arguments, [statement], [], None, None)
    module = compile(ast.fix_missing_locations(ast.Module([maker], [])), function.__code__.co_filename, "exec")
    outer = next(constant for constant in module.co_consts if isinstance(constant, types.CodeType))
    return next(c for c in outer.co_consts if isinstance(c, types.CodeType) and c.co_name == function.__code__.co_name)
