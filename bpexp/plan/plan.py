"""The plan: the backward pass is recorded after the forward pass, and both become one program."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bpexp.plan.program import (
    Places,
    assign,
    compile_operator,
    fuse_casts,
    hoist_constants,
    key_of,
    share_results,
    tensors_in,
    wrap_numbers,
)
from bpexp.plan.tape import PlanError, Tape
from bpexp.rules.table import RECORDERS, named


class Plan:
    """Records `model(*inputs)` once; `step()` then replays forward and backward on what inputs and parameters hold.

    Shapes:  the model returns () or (R,): a loss, or one for each network, whose sum is differentiated; or a tuple of
             that and of tensors that `value` is to give after a step
    keep:    keeps every rule's output and gradient readable after a step (`value`, `gradient`); else buffers are reused
    flat:    where all gradients go, one vector; made where it is not given
    Raises:  PlanError: a tensor was made or changed outside the rules, or nothing leads from a parameter to the loss
    """

    def __init__(
        self,
        model: Callable[..., Tensor | tuple[Tensor, ...]],
        inputs: Sequence[Tensor],
        parameters: Sequence[Tensor],
        *,
        keep: bool = False,
        flat: Tensor | None = None,
    ) -> None:
        self.tape = tape = Tape({id(t): t for t in (*inputs, *parameters)})
        self.parameters = tuple(parameters)
        total = sum(p.numel() for p in parameters)
        self.flat_grad = (
            torch.zeros(total, dtype=parameters[0].dtype, device=parameters[0].device) if flat is None else flat
        )
        shares = self.flat_grad.split([p.numel() for p in parameters])
        self.grads = tuple(share.view(p.shape) for share, p in zip(shares, parameters, strict=True))
        state = torch.get_rng_state()
        with torch.no_grad():
            RECORDERS.append(tape)
            try:
                with tape:
                    result = model(*inputs)
                    self.loss, *shown = result if isinstance(result, tuple) else (result,)
                    if not all(id(tensor) in tape.known for tensor in (self.loss, *shown)):
                        raise PlanError("the model's result was made outside the rules")
                    self.gradients = self.backward(tape, self.loss)
                    pinned = self.place_gradients(tape)
            finally:
                RECORDERS.pop()
            kept = [self.loss, *shown, *((*tape.known.values(), *self.gradients.values()) if keep else ())]
            operators = hoist_constants(tape.operators, tape.made, pinned)
            for tensor in kept:
                if key_of(tensor) in tape.made:
                    pinned.setdefault(key_of(tensor), (tensor.untyped_storage(), 0))
            operators = wrap_numbers(fuse_casts(share_results(operators, pinned)))
            self.buffers = assign(operators, tape.made, pinned)
            self.program = [compile_operator(operator, self.buffers) for operator in operators]
        for generator, before in tape.streams.values():
            generator.set_state(before)
        torch.set_rng_state(state)
        self.loss = self.buffers.tensor(self.loss)

    def backward(self, tape: Tape, loss: Tensor) -> dict[int, Tensor]:
        """Record the backward pass: from the output to the input, gradients of several uses added up."""
        wanted = {id(p) for p in self.parameters}
        for call in tape.calls:
            if any(id(t) in wanted for t in tensors_in(call.args)):
                wanted.add(id(call.y))
        with tape.formula():
            grads = {id(loss): torch.ones_like(loss)}
        for call in reversed(tape.calls):
            if id(call.y) not in grads:
                continue
            values = {"grad": grads[id(call.y)], "y": call.y, **named(call.rule.parameters, call.args)}
            if call.rule.intermediates is not None:
                values.update(zip(call.rule.intermediates[0], call.intermediates, strict=True))
            for arguments, formula, needs in call.rule.backward:
                if not any(id(t) in wanted for t in tensors_in([values[a] for a in arguments])):
                    continue
                with tape.formula():
                    result = formula(*[values[need] for need in needs])
                    results = result if len(arguments) > 1 else (result,)
                    targets = [values[argument] for argument in arguments]
                    for tensor, grad in zip(tensors_in(targets), tensors_in(results), strict=True):
                        if id(tensor) in wanted:
                            grads[id(tensor)] = grads[id(tensor)] + grad if id(tensor) in grads else grad
        return grads

    def place_gradients(self, tape: Tape) -> Places:
        """Let every parameter's gradient be made in its share of the flat vector, or be copied there."""
        places: Places = {}
        for parameter, share in zip(self.parameters, self.grads, strict=True):
            grad = self.gradients.get(id(parameter))
            if grad is None:
                raise PlanError(f"nothing leads from a parameter of shape {tuple(parameter.shape)} to the loss")
            key, whole = key_of(grad), grad.numel() * grad.itemsize
            aligned = (share.storage_offset() * share.itemsize) % 64 == 0
            if (
                key in tape.made
                and key not in places
                and grad.is_contiguous()
                and aligned
                and grad.untyped_storage().nbytes() == whole
            ):
                places[key] = (share.untyped_storage(), share.storage_offset() * share.itemsize)
            else:
                with tape.formula():
                    share.copy_(grad)
        return places

    def step(self) -> Tensor:
        """Replay forward and backward; the loss, () or (R,), and `grads` hold until the next step."""
        with torch.inference_mode():  # a little faster than no_grad
            for call in self.program:
                call()
        return self.loss

    def value(self, recorded: Tensor) -> Tensor:
        """What a tensor of the recorded model holds after the step."""
        return self.buffers.tensor(recorded)

    def gradient(self, recorded: Tensor) -> Tensor:
        """The gradient of the summed loss with respect to a tensor of the recorded model, after the step."""
        return self.buffers.tensor(self.gradients[id(recorded)])
