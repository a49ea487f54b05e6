"""The plan: the backward pass is recorded after the forward pass, and both become one program."""

from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from bpexp.plan.buffers import assign, release
from bpexp.plan.calls import compile_operator
from bpexp.plan.passes import PASSES, chosen
from bpexp.plan.products import silent
from bpexp.plan.program import ALIGNED, Places, Program, key_of, tensors_in
from bpexp.plan.tape import PlanError, Tape
from bpexp.rules.table import RECORDERS, named

Observe = Callable[[Callable[[Tensor], Tensor]], Sequence[Tensor]]


class Plan:
    """Records `model(*inputs)` once; `step()` then replays forward and backward on what inputs and parameters hold.

    Shapes:  the model returns () or (R,): a loss, or one for each network, whose sum is differentiated; or a tuple of
             that and of tensors that `value` is to give after a step
    keep:    keeps every rule's output and gradient readable after a step (`value`, `gradient`); else buffers are reused
    flat:    where all gradients go, one vector; made where it is not given
    observe: records what is to be seen of a step, as formulas of what the plan recorded: it is called once, with a
             function that gives the gradient of a tensor of the model, and returns tensors; `step(observe=True)` makes
             them, for `observed`, and a step without them computes the same numbers
    passes:  those of `PASSES` that make the program faster; the numbers are the same, bit for bit, whichever they are
    Raises:  PlanError: a tensor was made or changed outside the rules, or nothing leads from a parameter to the loss
             ValueError: no such pass
    """

    def __init__(
        self,
        model: Callable[..., Tensor | tuple[Tensor, ...]],
        inputs: Sequence[Tensor],
        parameters: Sequence[Tensor],
        *,
        keep: bool = False,
        flat: Tensor | None = None,
        observe: Observe | None = None,
        passes: Collection[str] = tuple(PASSES),
    ) -> None:
        passes_ = chosen(passes)
        self.tape = tape = Tape({id(t): t for t in (*inputs, *parameters)})
        self.parameters = tuple(parameters)
        total = sum(p.numel() for p in parameters)
        self.flat_grad = (
            torch.zeros(total, dtype=parameters[0].dtype, device=parameters[0].device) if flat is None else flat
        )
        shares = self.flat_grad.split([p.numel() for p in parameters])
        self.grads = tuple(share.view(p.shape) for share, p in zip(shares, parameters, strict=True))
        state = torch.get_rng_state()
        with silent(), torch.no_grad():
            RECORDERS.append(tape)
            try:
                with tape:
                    result = model(*inputs)
                    self.loss, *shown = result if isinstance(result, tuple) else (result,)
                    if not all(id(tensor) in tape.known for tensor in (self.loss, *shown)):
                        raise PlanError("the model's result was made outside the rules")
                    self.gradients = self.backward(tape, self.loss)
                    pinned = self.place_gradients(tape, in_place="place_gradients" in passes_)
                    unobserved = set(tape.made)
                    with tape.formula():
                        observed = [] if observe is None else list(observe(lambda t: self.gradients[id(t)]))
            finally:
                RECORDERS.pop()
            kept = [self.loss, *shown, *observed, *((*tape.known.values(), *self.gradients.values()) if keep else ())]
            for tensor in kept:
                if key_of(tensor) in tape.made:
                    pinned.setdefault(key_of(tensor), (tensor.untyped_storage(), 0))
            program = Program(tape.operators, tape.made, pinned, tape.made - unobserved, tape.alive)
            recorded = set(tape.made)
            for one in passes_.values():
                if one.rewrite is not None:
                    one.rewrite(program)
            self.buffers = assign(program, reuse="reuse_buffers" in passes_, in_place="write_in_place" in passes_)
            release(program, self.buffers, recorded)
            self.observing = [compile_operator(operator, self.buffers) for operator in program.operators]
            calls = zip(self.observing, program.operators, strict=True)
            self.program = [call for call, operator in calls if not program.observes(operator)]
        for generator, before in tape.streams.values():
            generator.set_state(before)
        torch.set_rng_state(state)
        self.loss = self.buffers.tensor(self.loss)
        self.observed = tuple(map(self.buffers.tensor, observed))

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

    def place_gradients(self, tape: Tape, *, in_place: bool = True) -> Places:
        """Let every parameter's gradient be made in its share of the flat vector, or be copied there."""
        places: Places = {}
        for parameter, share in zip(self.parameters, self.grads, strict=True):
            grad = self.gradients.get(id(parameter))
            if grad is None:
                raise PlanError(f"nothing leads from a parameter of shape {tuple(parameter.shape)} to the loss")
            key, whole = key_of(grad), grad.numel() * grad.itemsize
            aligned = share.storage_offset() * share.itemsize % ALIGNED == 0
            if (
                in_place
                and key in tape.made
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

    def step(self, *, observe: bool = False) -> Tensor:
        """Replay forward and backward; the loss, () or (R,), and `grads` hold until the next step."""
        with silent(), torch.inference_mode():  # a little faster than no_grad
            for call in self.observing if observe else self.program:
                call()
        return self.loss

    def value(self, recorded: Tensor) -> Tensor:
        """What a tensor of the recorded model holds after the step."""
        return self.buffers.tensor(recorded)

    def gradient(self, recorded: Tensor) -> Tensor:
        """The gradient of the summed loss with respect to a tensor of the recorded model, after the step."""
        return self.buffers.tensor(self.gradients[id(recorded)])
