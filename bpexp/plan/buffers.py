"""Where the storages of a program live while it replays."""

import functools
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bpexp.plan.join import moved
from bpexp.plan.program import (
    Key,
    Layout,
    Operator,
    Places,
    Program,
    key_of,
    key_of_storage,
    keys_of,
    layout,
    tensors_in,
    view_in,
)


@dataclass
class Buffers:
    """Where each recorded storage lives while the program replays; a storage that is not here lives where it was."""

    places: Places = field(default_factory=dict)

    def tensor(self, recorded: Tensor) -> Tensor:
        """The recorded tensor's twin in the buffers: same shape, strides and type."""
        place = self.places.get(key_of(recorded))
        if place is None:
            if recorded.numel() > 0 and recorded.untyped_storage().nbytes() == 0:
                raise ValueError(f"the plan keeps no value of this tensor of shape {tuple(recorded.shape)}")
            return recorded.detach() if recorded.requires_grad else recorded
        storage, offset = place
        return view_in(storage, int(recorded.storage_offset()) + offset // recorded.itemsize, recorded)


def assign(program: Program, *, reuse: bool = True, in_place: bool = True) -> Buffers:
    """Give every recorded storage a buffer: its own where it is pinned, else one whose last reader has run.

    A pointwise operator may write over an argument that it is the last to read, if both lie in memory alike.

    reuse, in_place: leave these two out where they are False
    """
    operators, made, pinned = program.operators, program.made, program.pinned
    last = {key_of(tensor): index for index, operator in enumerate(operators) for tensor in operator.tensors()}
    buffers = Buffers(dict(pinned))
    free: dict[tuple[int, torch.device], list[torch.UntypedStorage]] = {}
    for index, operator in enumerate(operators):
        given: set[Key] = set()
        dying = {k for k in map(key_of, operator.tensors()) if k in made and k not in pinned and last[k] == index}
        for tensor in operator.tensors():
            key = key_of(tensor)
            if key in buffers.places or key not in made:
                continue
            size = (tensor.untyped_storage().nbytes(), tensor.device)
            donor = donor_of(operator, layout(tensor), dying - given) if in_place else None
            if donor is not None:
                given.add(donor)
                buffers.places[key] = buffers.places[donor]
            elif free.get(size):
                buffers.places[key] = (free[size].pop(), 0)
            else:
                buffers.places[key] = (torch.UntypedStorage(size[0], device=tensor.device), 0)
        for key in dying - given if reuse else ():
            storage = buffers.places[key][0]
            free.setdefault((storage.nbytes(), storage.device), []).append(storage)
    return buffers


def release(program: Program, buffers: Buffers, recorded: set[Key]) -> None:
    """Free the recorded storages that a replay does not use; of their tensors only shape and identity are left."""
    used = {key for operator in program.operators for key in keys_of(operator.tensors())} - buffers.places.keys()
    used |= {key for key, (storage, _) in buffers.places.items() if key_of_storage(storage) == key}
    freed = recorded - used
    for tensor in tensors_in(program.alive):
        if key_of(tensor) in freed:
            tensor.untyped_storage().resize_(0)


def write_into_shares(program: Program) -> None:
    """Let what a pointwise operator is the last to read lie where its result has a share of a larger storage."""
    last = {key_of(tensor): index for index, operator in enumerate(program.operators) for tensor in operator.tensors()}
    free = program.made - program.pinned.keys()
    free -= {key for operator in program.operators for key in keys_of(operator.written())}
    shares: dict[Key, Tensor] = {}
    for index, operator in reversed(list(enumerate(program.operators))):
        if torch.Tag.pointwise not in operator.tags or len(operator.outputs) != 1:
            continue
        (output,) = operator.outputs
        share = moved(shares, output)
        if share.untyped_storage().nbytes() == share.numel() * share.itemsize:
            continue
        own = layout(torch.empty_like(output))
        dying = {
            key for key in keys_of(operator.arguments()) if key in free and key not in shares and last[key] == index
        }
        donor = donor_of(operator, own, dying)
        if donor is not None:
            shares[donor] = share
    move = functools.partial(moved, shares)
    program.operators = [one.with_tensors(move, tuple(map(move, one.outputs))) for one in program.operators]


def donor_of(operator: Operator, own: Layout, dying: set[Key]) -> Key | None:
    """A dying argument that lies in memory as the output of a pointwise operator does, which may take it over."""
    if torch.Tag.pointwise not in operator.tags or len(operator.outputs) != 1:
        return None
    alike: dict[Key, bool] = {}
    for argument in operator.arguments():
        key = key_of(argument)
        alike[key] = alike.get(key, True) and layout(argument) == own
    return next((key for key, same in alike.items() if same and key in dying), None)
