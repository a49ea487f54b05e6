"""ACTIVATIONS: the elementwise rules as functions of one tensor, at the constants of torch's defaults."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bpexp.rules import activations
from bpexp.rules.networks import Part
from bpexp.rules.table import RULES, Rule, names_of

Function = Callable[[Tensor], Tensor]

CONSTANTS: dict[str, tuple[float, ...]] = {  # torch.nn.functional's defaults
    "leaky_relu": (0.01,),
    "elu": (1.0,),
    "celu": (1.0,),
    "softplus": (1.0, 20.0),
    "hardtanh": (-1.0, 1.0),
}
PRELU_START = 0.25  # torch's: the slope that prelu learns starts here


@dataclass(frozen=True)
class Activation:
    """A scalar function, its slope, and the places |x| of its kinks that `bpexp.theory.EDGES_X` has not.

    Of the table's rows the function is the rule itself: it can be differentiated, and recorded by a plan.
    """

    name: str
    function: Function
    slope: Function
    kinks: tuple[float, ...] = ()


def from_rule(name: str, rule: Rule, constants: tuple[float, ...]) -> Activation:
    """Return an elementwise rule as a function of one tensor."""
    return Activation(name, lambda x: rule(x, *constants), slope_of(rule, constants))


def part_of(name: str, networks: int) -> Part:
    """Return an activation as `network_activation` takes it, of that many networks in a row."""
    constants = CONSTANTS.get(name, ())
    names = RULES[name].parameters[1:] if constants else ()
    return name, tuple(zip(names, constants, strict=True)), networks


def slope_of(rule: Rule, constants: tuple[float, ...]) -> Function:
    """Return the slope of an elementwise rule: its own formula of it, or its backward of a gradient of ones."""
    formula, needs = rule.backward[0].formula, rule.backward[0].needs
    if rule.slope is not None:
        formula, needs = rule.slope, names_of(rule.slope)

    def slope(x: Tensor) -> Tensor:
        known = dict(zip(rule.parameters, (x, *constants), strict=True))
        if "grad" in needs:
            known["grad"] = torch.ones_like(x)
        if "y" in needs:
            known["y"] = rule.forward(x, *constants)
        result: Tensor = formula(*[known[need] for need in needs])
        return result

    return slope


ACTIVATIONS = {"identity": Activation("identity", lambda x: x, torch.ones_like)} | {
    rule.name: from_rule(rule.name, rule, CONSTANTS.get(rule.name, ()))
    for rule in vars(activations).values()
    if isinstance(rule, Rule) and rule is not activations.prelu
}
# Before its slope is learned prelu is a function of one tensor, and leaky_relu has that function.
ACTIVATIONS["prelu"] = from_rule("prelu", activations.leaky_relu, (PRELU_START,))
