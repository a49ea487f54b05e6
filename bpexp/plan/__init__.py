"""The suite's own backward pass: a model is run once and recorded, then replayed without autograd.

Two levels are recorded. Rule by rule, what was computed from what: from that the backward pass is scheduled, output to
input. And under each formula, the torch operators that it called: these make the program, which `passes` rewrites and
`buffers` puts into fixed buffers. So formulas stay pure, and a step is a flat list of calls that allocates nothing.
"""

from bpexp.plan.passes import PASSES
from bpexp.plan.plan import Plan
from bpexp.plan.tape import PlanError

__all__ = ["PASSES", "Plan", "PlanError"]
