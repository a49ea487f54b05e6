"""The samples that torch tests its own functions and modules with."""

import random
import sys
import types
import unittest
import warnings

import numpy as np
import torch


def databases() -> tuple[list, list]:
    """The rows of torch's tables of functions and of modules that bpexp has under the same name."""
    if "expecttest" not in sys.modules:  # torch's test code imports it; its tables do not use it
        stub = types.ModuleType("expecttest")
        stub.TestCase = unittest.TestCase
        sys.modules["expecttest"] = stub
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.testing._internal import common_utils
        from torch.testing._internal.common_methods_invocations import op_db
        from torch.testing._internal.common_modules import module_db
        from torch.testing._internal.opinfo import core
    # Both take longer than the samples: the one walks the stack for a unittest, the other notes it for each device.
    core.extract_test_fn = common_utils.extract_test_fn = lambda: None
    common_utils.set_rng_seed = seed
    return op_db, module_db


def seed(number: int) -> None:
    """What torch's own tests do before each sample, on the host alone."""
    torch.default_generator.manual_seed(number)
    random.seed(number)
    np.random.seed(number)


OP_DB, MODULE_DB = databases()


MADE: dict[tuple, list] = {}


def sample_inputs(op, dtype, requires_grad: bool) -> list:
    """The samples of an operator, made once: that takes longer than most tests of them."""
    key = op.name, op.variant_test_name, dtype, requires_grad
    if key not in MADE:
        MADE[key] = list(op.sample_inputs("cpu", dtype, requires_grad=requires_grad))
    return MADE[key]


def some(samples, limit: int) -> list:
    """At most `limit` of the samples, spread over all of them."""
    samples = list(samples)
    stride = max(1, -(-len(samples) // limit))
    return samples[::stride]
