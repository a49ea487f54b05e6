"""Every function of bpexp.functional on the samples that torch tests its own function of that name with."""

import copy
import inspect

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import forward_ad
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten
from torch_samples import OP_DB, sample_inputs, some

from bpexp import functional

NAMES = {name for name, f in vars(functional).items() if inspect.isfunction(f) and hasattr(F, name) and name[0] != "_"}
OPS = {op.name + op.variant_test_name: op for op in OP_DB if op.name.removeprefix("nn.functional.") in NAMES}
EVERY_OP = pytest.mark.parametrize("op", OPS.values(), ids=OPS)
TOLERANCES = {
    torch.float64: 1e-10,
    torch.complex128: 1e-10,
    torch.float32: 1e-5,
    torch.bfloat16: 3e-2,
    torch.float16: 4e-3,
    torch.int64: 0,
    torch.uint8: 0,
    torch.bool: 0,
}


def test_every_function_has_samples_of_torch():
    assert {op.name.removeprefix("nn.functional.") for op in OPS.values()} == NAMES


def pair(op):
    name = op.name.removeprefix("nn.functional.")
    return getattr(functional, name), getattr(F, name)


class Sample:
    """A sample's differentiable tensors, and the call of a function on others in their place."""

    def __init__(self, sample):
        self.values, self.spec = tree_flatten((sample.input, sample.args, sample.kwargs))
        self.places = [i for i, v in enumerate(self.values) if isinstance(v, torch.Tensor) and v.requires_grad]
        self.tensors = [self.values[place].detach() for place in self.places]

    def double(self):
        """The same sample in float64."""
        twin = copy.copy(self)
        twin.values = [v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for v in self.values]
        twin.tensors = [tensor.double() for tensor in self.tensors]
        return twin

    def call(self, function, *tensors):
        values = list(self.values)
        for place, tensor in zip(self.places, tensors, strict=True):
            values[place] = tensor
        x, args, kwargs = tree_unflatten(values, self.spec)
        if not torch.compiler.is_compiling():
            torch.default_generator.manual_seed(0)  # torch.manual_seed notes its caller's stack for each device
        return function(x * 1 if kwargs.get("inplace") else x, *args, **kwargs)


def samples_of(op, dtype, limit):
    if op.name == "nn.functional.prelu" and not (dtype.is_floating_point or dtype.is_complex):
        return []  # torch cannot make any
    differentiable = dtype in op.backward_dtypes and (dtype.is_floating_point or dtype.is_complex)
    return [Sample(sample) for sample in some(sample_inputs(op, dtype, differentiable), limit)]


def noise(like):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(like.shape, generator=generator, dtype=torch.promote_types(like.dtype, torch.float64)).to(like)


def result(function, *args):
    """What a call gives, or the kind and the text of what it raises."""
    try:
        return function(*args)
    except Exception as error:
        return type(error), str(error)


def derivatives(function, sample):
    """The value, the gradients, and the derivatives of a function of the gradients, where it has some."""
    leaves = [tensor.clone().requires_grad_() for tensor in sample.tensors]
    y = sample.call(function, *leaves)
    if not leaves:
        return y, (), ()
    cotangent = noise(y).requires_grad_()
    grads = torch.autograd.grad(y, leaves, cotangent, create_graph=True)
    total = sum((grad * grad.conj() * noise(grad)).real.sum() for grad in grads)
    return y, grads, torch.autograd.grad(total, [*leaves, cotangent], allow_unused=True)


@pytest.mark.filterwarnings("ignore:Casting complex values to real")  # log_softmax with a real dtype; torch's own
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@EVERY_OP
def test_values_and_derivatives_are_those_of_torch(op, dtype):
    tolerance = TOLERANCES[dtype]
    for sample in samples_of(op, dtype, 40 if dtype == torch.float64 else 12):
        ours, theirs = [result(derivatives, function, sample) for function in pair(op)]
        if isinstance(theirs[0], type):
            # torch has no derivative of a complex silu or log_softmax; ours is the same formula as for real numbers
            assert ours == theirs or "not support automatic differentiation for outputs with complex" in theirs[1]
            continue
        if op.name == "nn.functional.layer_norm" and dtype == torch.float32:
            # torch takes x / std - mean / std, of which rounding leaves 1e-5 where x is its own mean
            theirs = tree_map(torch.Tensor.float, derivatives(pair(op)[1], sample.double())[:2])
        torch.testing.assert_close(ours[:2], theirs[:2], rtol=tolerance, atol=tolerance)
        if tolerance == 1e-10:
            torch.testing.assert_close(ours[2], theirs[2], rtol=1e-8, atol=1e-8)


@EVERY_OP
def test_extreme_and_strided_inputs_are_as_in_torch(op):
    """The reference inputs hold NaN and infinities, where torch's own elu, selu and hardtanh differ by the layout."""
    for sample in some(op.reference_inputs("cpu", torch.float64, requires_grad=True), 30):
        if sample.input.numel() > 1000 or not sample.input.isfinite().all():
            continue
        if "alpha" in sample.kwargs:  # the gradient of torch's celu rounds it to float32
            sample.kwargs["alpha"] = torch.tensor(sample.kwargs["alpha"], dtype=torch.float32).item()
        made = Sample(sample)
        (y, grads, _), (their_y, their_grads, _) = [derivatives(function, made) for function in pair(op)]
        torch.testing.assert_close((y, grads), (their_y, their_grads), rtol=1e-10, atol=1e-10)
        assert y.stride() == their_y.stride()


@pytest.mark.parametrize("op", [op for op in OPS.values() if op.error_inputs_func], ids=lambda op: op.name)
def test_errors_are_those_of_torch(op):
    for error in op.error_inputs("cpu"):
        sample = Sample(error.sample_input)
        ours, theirs = [result(sample.call, function) for function in pair(op)]
        assert ours == theirs
        assert issubclass(theirs[0], error.error_type)


def forward_mode(call, tensors):
    with forward_ad.dual_level():
        y = call(*[forward_ad.make_dual(tensor, noise(tensor)) for tensor in tensors])
        return forward_ad.unpack_dual(y)


def stacked(tensors):
    return [torch.stack([tensor, 0.5 * tensor + 0.1], -1) for tensor in tensors]


def vmap(call):
    return torch.func.vmap(call, in_dims=-1, randomness="same")


def backward_through_vmap(call, tensors):
    leaves = [tensor.requires_grad_() for tensor in stacked(tensors)]
    y = vmap(call)(*leaves)
    return y, torch.autograd.grad(y, leaves, noise(y))


def vmapped_gradient(call, tensors):
    return vmap(torch.func.grad(lambda *t: call(*t).square().sum(), tuple(range(len(tensors)))))(*stacked(tensors))


def forward_mode_of_vmap(call, tensors):
    stacks = tuple(stacked(tensors))
    return torch.func.jvp(vmap(call), stacks, tuple(noise(stack) for stack in stacks))


def reverse_of_forward(call, tensors):
    forward = torch.func.jacfwd(lambda x: call(x, *tensors[1:]).square().sum(), randomness="same")
    return torch.func.jacrev(forward)(tensors[0])


def forward_of_reverse(call, tensors):
    reverse = torch.func.jacrev(lambda x: call(x, *tensors[1:]).square().sum())
    return torch.func.jacfwd(reverse, randomness="same")(tensors[0])


def expanded_cotangent(call, tensors):
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    y = call(*leaves)
    return torch.autograd.grad(y, leaves, torch.tensor(0.5, dtype=y.dtype).expand(y.shape))


def strided(call, tensors):
    leaves = [torch.stack([tensor, tensor], -1)[..., 1].requires_grad_() for tensor in tensors]
    y = call(*leaves)
    return y, torch.autograd.grad(y, leaves, torch.stack([noise(y)] * 2, -1)[..., 0])


def compiled(call, tensors):
    torch._dynamo.reset()
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    whole = torch.compile(call, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        without = whole(*leaves)
    y = whole(*leaves)
    return without, y, torch.autograd.grad(y, leaves, noise(y))


def uncompiled(call, tensors):
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    with torch.no_grad():
        without = call(*leaves)
    y = call(*leaves)
    return without, y, torch.autograd.grad(y, leaves, noise(y))


TRANSFORMS = [
    forward_mode,
    backward_through_vmap,
    vmapped_gradient,
    forward_mode_of_vmap,
    reverse_of_forward,
    forward_of_reverse,
    expanded_cotangent,
    strided,
    compiled,
]
# torch's own reverse over forward takes a norm's statistics for constants; second derivatives are symmetric
TRANSFORMS_OF_TORCH = {reverse_of_forward: forward_of_reverse, compiled: uncompiled}


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda transform: transform.__name__)
@EVERY_OP
def test_transforms_agree_with_torch(op, transform):
    if torch.float64 not in op.backward_dtypes:
        return
    samples = samples_of(op, torch.float64, 500)
    small = [s for s in samples if all(0 < t.numel() < 30 for t in s.tensors)]
    if not small:  # an elementwise function
        small = samples
        for sample in small:
            sample.tensors = [t.flatten()[:6] for t in sample.tensors]
    for sample in some(small, 1 if transform is compiled else 3):
        transforms = transform, TRANSFORMS_OF_TORCH.get(transform, transform)
        ours, theirs = [
            result(apply, lambda *tensors, f=function, s=sample: s.call(f, *tensors), sample.tensors)
            for apply, function in zip(transforms, pair(op), strict=True)
        ]
        if isinstance(theirs, tuple) and theirs[0] is RuntimeError:  # running statistics that one vmap would share
            assert op.name == "nn.functional.batch_norm"
            assert ours == theirs
            continue
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@EVERY_OP
def test_low_precision_errs_at_most_twice_as_much_as_torch(op, dtype):
    if dtype not in op.backward_dtypes or op.variant_test_name == "with_dtype":
        return
    for sample in samples_of(op, dtype, 12):
        assert_errs_at_most_twice_as_much(*pair(op), sample, dtype)


def assert_errs_at_most_twice_as_much(function, reference, sample, dtype):
    outcomes = []
    for call, case in ((function, sample), (reference, sample), (reference, sample.double())):
        leaves = [tensor.clone().requires_grad_() for tensor in case.tensors]
        y = case.call(call, *leaves)
        cotangent = noise(y.detach().to(dtype)).to(y.dtype)
        outcomes.append([y.detach().double(), *[g.double() for g in torch.autograd.grad(y, leaves, cotangent)]])
    for ours, theirs, truth in zip(*outcomes, strict=True):
        if truth.numel() and truth.abs().max() <= torch.finfo(dtype).max:
            place = truth.abs().max() * torch.finfo(dtype).eps + torch.finfo(dtype).tiny
            assert (ours - truth).abs().max() <= 2 * (theirs - truth).abs().max() + place
