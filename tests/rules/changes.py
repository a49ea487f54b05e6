"""What can be changed in an expression: a sign, an operand, a constant, a term, a transpose, a comparison, a call."""

import ast
import math
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

FLIPS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.Gt, ast.LtE),
    ast.Gt: (ast.Lt, ast.GtE),
    ast.LtE: (ast.GtE, ast.Lt),
    ast.GtE: (ast.LtE, ast.Gt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
OTHERS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
# The arguments that a function treats alike with the next one: to swap them is no change.
SYMMETRIC = {
    "max": (0,),
    "min": (0,),
    "maximum": (0,),
    "minimum": (0,),
    "transpose": (0,),
    "addcmul": (1,),
    "add_tangent": (0,),
}

Known = Mapping[str, Any]


def changes_of(parent: ast.AST, field: str, node: ast.expr, known: Known) -> Iterator[ast.expr]:
    """Every change of an expression that stands in `parent.field`; `known` are the function's names from outside."""
    if isinstance(parent, ast.Return) or (isinstance(parent, ast.Lambda) and field == "body"):
        yield ast.UnaryOp(ast.USub(), node)
        yield scaled(node)
    if isinstance(parent, ast.If | ast.IfExp) and field == "test":
        yield ast.UnaryOp(ast.Not(), node)
    yield from CHANGES.get(type(node), lambda *_: iter(()))(node, known)


def scaled(node: ast.expr) -> ast.expr:
    return ast.BinOp(node, ast.Mult(), ast.Constant(1.001))


def operation(node: ast.BinOp, known: Known) -> Iterator[ast.expr]:
    yield node.left
    yield node.right
    if type(node.op) in OTHERS:
        yield ast.BinOp(node.left, OTHERS[type(node.op)](), node.right)
    if isinstance(node.op, ast.Sub | ast.Div | ast.MatMult | ast.Pow) and not same(node.left, node.right):
        yield ast.BinOp(node.right, node.op, node.left)
    if isinstance(node.op, ast.MatMult):
        yield ast.BinOp(ast.Attribute(node.left, "mT", ast.Load()), node.op, node.right)
        yield ast.BinOp(node.left, node.op, ast.Attribute(node.right, "mT", ast.Load()))


def same(one: ast.expr, other: ast.expr) -> bool:
    return ast.dump(one) == ast.dump(other)


def unary(node: ast.UnaryOp, known: Known) -> Iterator[ast.expr]:
    yield node.operand


def constant(node: ast.Constant, known: Known) -> Iterator[ast.expr]:
    match node.value:
        case bool(value):
            yield ast.Constant(not value)
        case str(value):
            yield ast.Constant(value + "?")
        case int(value) | float(value):
            yield ast.Constant(value + 1)
            if value:
                yield ast.Constant(value * 1.001)


def comparison(node: ast.Compare, known: Known) -> Iterator[ast.expr]:
    for other in FLIPS[type(node.ops[0])] if len(node.ops) == 1 else ():
        yield ast.Compare(node.left, [other()], node.comparators)


def logic(node: ast.BoolOp, known: Known) -> Iterator[ast.expr]:
    yield ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
    yield from node.values


def choice(node: ast.IfExp, known: Known) -> Iterator[ast.expr]:
    yield node.body
    yield node.orelse


def call(node: ast.Call, known: Known) -> Iterator[ast.expr]:
    """Leave the call out, swap neighbouring arguments, leave a keyword out."""
    method = isinstance(node.func, ast.Attribute) and not is_module(node.func.value, known)
    if method:
        yield node.func.value
    elif node.args and not isinstance(node.args[0], ast.Starred):
        yield node.args[0]
    name = getattr(node.func, "attr", getattr(node.func, "id", ""))
    args = node.args
    for i in range(len(args) - 1):
        if i not in SYMMETRIC.get(name, ()) and not same(args[i], args[i + 1]):
            yield ast.Call(node.func, [*args[:i], args[i + 1], args[i], *args[i + 2 :]], node.keywords)
    for keyword in node.keywords:
        yield ast.Call(node.func, args, [k for k in node.keywords if k is not keyword])


def attribute(node: ast.Attribute, known: Known) -> Iterator[ast.expr]:
    if not is_module(node.value, known):
        yield node.value
    elif isinstance(node.value, ast.Name) and is_factor(getattr(known[node.value.id], node.attr)):
        yield scaled(node)


def name(node: ast.Name, known: Known) -> Iterator[ast.expr]:
    if is_factor(known.get(node.id)):
        yield scaled(node)


def subscript(node: ast.Subscript, known: Known) -> Iterator[ast.expr]:
    yield node.value


def is_module(node: ast.expr, known: Known) -> bool:
    return isinstance(node, ast.Name) and isinstance(known.get(node.id), types.ModuleType)


def is_factor(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value) and value != 0


CHANGES: dict[type[ast.expr], Callable[[Any, Known], Iterator[ast.expr]]] = {
    ast.BinOp: operation,
    ast.UnaryOp: unary,
    ast.Constant: constant,
    ast.Compare: comparison,
    ast.BoolOp: logic,
    ast.IfExp: choice,
    ast.Call: call,
    ast.Attribute: attribute,
    ast.Name: name,
    ast.Subscript: subscript,
}
