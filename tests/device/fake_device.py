"""A device that is not there: tensors on it have shapes and types but no numbers, and what no device allows is refused.

Refused are operators on tensors of two devices (an index on the host too), a device's generator on another's tensor
and, while a `step` runs, every copy between host and device and every number that the host asks for. torch's fake
tensors do most of it; what they let pass, or cannot do on a device without numbers, is here.
"""

import contextlib
import functools
import os
import sys

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "fakegpu"
SMALL = 4096  # numbers that are remembered of what the host sent, so that it may ask for them while it prepares


class DeviceError(RuntimeError):
    """Something that a device cannot do, or that would make the host wait for it."""


class FakeDevice(TorchDispatchMode):
    """Entered, it makes the device `fakegpu` usable in this process, which is of no other use afterwards."""

    def __init__(self):
        super().__init__()
        _setup_privateuseone_for_python_backend(NAME)
        self.fake = FakeTensorMode(allow_non_fake_inputs=False)
        self.generators, self.stepping = [], False
        self.sent, self.fetched = 0, 0  # copies of tensors to the device, and from it
        FakeTensor.numpy = lambda tensor: np.zeros(tensor.shape, str(tensor.dtype).removeprefix("torch."))
        self.new_generator, self.new_storage = torch.Generator, torch.UntypedStorage
        torch.Generator, torch.UntypedStorage = self.generator, self.storage

    def generator(self, device="cpu"):
        """Stand for torch.Generator: the host's, marked, where it would be the device's."""
        made = self.new_generator()
        if torch.device(device).type == NAME:
            self.generators.append(made)
        return made

    def storage(self, size, device="cpu"):
        """Stand for torch.UntypedStorage, which has no form for tensors without numbers."""
        if torch.device(device).type == NAME:
            return torch.empty(size, dtype=torch.uint8, device=device).untyped_storage()
        return self.new_storage(size, device=device)

    @contextlib.contextmanager
    def steps(self, sent=0, fetched=0):
        """What runs in the block may copy so many tensors to the device and from it, and otherwise wait for nothing."""
        self.sent, self.fetched, self.stepping = 0, 0, True
        try:
            yield
        finally:
            self.stepping = False
        if (self.sent, self.fetched) != (sent, fetched):
            raise DeviceError(f"copied to the device: {self.sent}, not {sent}; from it: {self.fetched}, not {fetched}")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        tensors = tensors_in((args, kwargs))
        to = kwargs.get("device")
        on_device = any(map(is_on_device, tensors)) or (to is not None and torch.device(to).type == NAME)
        if not on_device:
            return func(*args, **kwargs)
        if func is torch.ops.aten._local_scalar_dense.default:
            return self.read(args[0])
        self.check_generator(func, kwargs)
        known = None if self.stepping else self.computed_on_host(func, tensors, args, kwargs)
        if not all(isinstance(tensor, FakeTensor) for tensor in tensors):
            args, kwargs = self.on_device(func, args, kwargs)
        with self.fake:
            result = func(*args, **kwargs)
        made = tensors_in(result)
        if any(map(is_on_device, tensors)) and not all(map(is_on_device, made)):
            self.fetched += 1
        if is_writing(func):
            tensors[0].host = None
        elif known is not None:
            for tensor, host in zip(made, tensors_in(known), strict=True):
                tensor.host = host
        return result

    def read(self, tensor):
        host = getattr(tensor, "host", None)
        if self.stepping or host is None:
            raise DeviceError("the host asks for a number of the device")
        return host.item()

    def check_generator(self, func, kwargs):
        used = kwargs.pop("generator", None)
        if used is not None and all(used._cdata != one._cdata for one in self.generators):
            raise DeviceError(f"{func.name()} draws on the device with a generator of the host")

    def on_device(self, func, args, kwargs):
        """Return arguments with the host's tensors as the device's operators get them."""
        name = func.overloadpacket.__name__
        sends = name in ("_to_copy", "copy_")
        source = args[1 if name == "copy_" else 0] if sends else None

        def send(tensor):
            if isinstance(tensor, FakeTensor):
                return tensor
            if tensor is source and tensor.dim() > 0:
                self.sent += 1
            # torch takes a number of the host's beside tensors of any device; the fake mode knows that rule.
            return self.fake.from_tensor(tensor, static_shapes=True) if sends or tensor.dim() == 0 else tensor

        return tree_map_only(torch.Tensor, send, (args, kwargs))

    def computed_on_host(self, func, tensors, args, kwargs):
        """Return what the operator gives on what the host sent, if it sent all of it, and all is small."""
        hosts = [getattr(tensor, "host", None if isinstance(tensor, FakeTensor) else tensor) for tensor in tensors]
        if not hosts or any(host is None or host.numel() > SMALL for host in hosts) or is_writing(func):
            return None
        args, kwargs = tree_map_only(FakeTensor, lambda tensor: tensor.host, (args, kwargs))
        kwargs.pop("device", None)
        return func(*args, **kwargs)


def leave(code):
    """End the process at once: autograd's thread of the device would not end with the interpreter."""
    sys.stdout.flush()
    os._exit(code)


def tensors_in(values):
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


def is_on_device(value):
    return isinstance(value, FakeTensor) and value.device.type == NAME


@functools.cache
def is_writing(func):
    return any(argument.alias_info is not None and argument.alias_info.is_write for argument in func._schema.arguments)
