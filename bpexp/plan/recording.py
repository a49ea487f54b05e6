"""A recording: what a function computes of fixed tensors, replayed without allocating anything."""

from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from bpexp.plan.buffers import assign, release
from bpexp.plan.calls import compile_operator
from bpexp.plan.passes import PASSES, chosen
from bpexp.plan.products import silent
from bpexp.plan.program import Program, key_of
from bpexp.plan.tape import Tape


class Recording:
    """Calls a function once; `run()` then computes again what it returned, from what the tensors it read hold now.

    The function draws nothing, and does not branch on numbers.
    """

    def __init__(self, function: Callable[[], Sequence[Tensor]], passes: Collection[str] = tuple(PASSES)) -> None:
        tape = Tape({})
        with silent(), torch.no_grad():
            with tape, tape.formula():
                results = list(function())
            pinned = {key_of(t): (t.untyped_storage(), 0) for t in results if key_of(t) in tape.made}
            program = Program(tape.operators, tape.made, pinned, alive=tape.alive)
            recorded, passes_ = set(tape.made), chosen(passes)
            for one in passes_.values():
                if one.rewrite is not None:
                    one.rewrite(program)
            buffers = assign(program, reuse="reuse_buffers" in passes_, in_place="write_in_place" in passes_)
            release(program, buffers, recorded)
            self.calls = [compile_operator(operator, buffers) for operator in program.operators]
        self.results = tuple(map(buffers.tensor, results))

    def run(self) -> tuple[Tensor, ...]:
        """Replay the function; the results hold until the next time."""
        with silent(), torch.inference_mode():
            for call in self.calls:
                call()
        return self.results
