"""The same training step in two ways: by the plan, and by torch's own layers, autograd and optimizer."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from bpexp.spec import Config, Init, Model, Optimizer, Train

if TYPE_CHECKING:
    import torch

    from bpexp.ensemble import Ensemble
    from experiments.cost_plain import Loop

LR = 0.01
INITS = {"relu": "he", "tanh": "glorot", "gelu": "he", "sigmoid": "glorot"}


@dataclass(frozen=True)
class Size:
    """What is timed: R networks of L hidden layers of D units, B samples a batch, on digits."""

    networks: int
    depth: int
    width: int
    batch: int
    activation: str = "relu"
    dtype: str = "float32"
    norm: str = "none"
    residual: str = "none"
    dropout: float = 0.0

    @property
    def name(self) -> str:
        networks = f"{self.networks} networks of " if self.networks > 1 else ""
        parts = [f"{self.norm} norm"] * (self.norm != "none") + ["skips"] * (self.residual != "none")
        parts += [f"dropout {self.dropout:g}"] * (self.dropout > 0)
        return f"{networks}L{self.depth} D{self.width} B{self.batch}" + f" with {', '.join(parts)}" * bool(parts)

    def configs(self) -> list[Config]:
        """Return the networks' configurations: plain SGD, a seed each."""
        return [
            Config(
                seed=seed,
                dtype=self.dtype,
                model=Model(
                    depth=self.depth,
                    width=self.width,
                    activation=self.activation,
                    norm=self.norm,
                    residual=self.residual,
                    dropout=self.dropout,
                ),
                init=Init(name=INITS[self.activation]),
                optimizer=Optimizer(lr=LR),
                train=Train(batch_size=self.batch),
            )
            for seed in range(self.networks)
        ]

    def ensemble(self) -> Ensemble:
        """Return the networks as `ensemble_of` does."""
        return ensemble_of(self.configs())


def ensemble_of(configs: Sequence[Config], without: str | None = None) -> Ensemble:
    """Return networks with their first batch drawn, their plan without a pass perhaps.

    It is the batch of every step: drawing is not timed. Masks of dropout are drawn anew in every step, on both sides.
    """
    from bpexp.ensemble import Ensemble
    from bpexp.plan import PASSES

    ensemble = Ensemble(configs, passes=[name for name in PASSES if name != without])
    ensemble.batches.fill()
    return ensemble


class Ours:
    """The step of the product; with `draws`, the drawing of its batch as well; with `observe`, its measures."""

    def __init__(self, ensemble: Ensemble, *, draws: bool = False, observe: bool = False) -> None:
        self.ensemble, self.start, self.observe = ensemble, ensemble.values.clone(), observe
        self.step = self._drawn_step if draws else self._step

    def reset(self) -> None:
        self.ensemble.values.copy_(self.start)

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.step()

    def _step(self) -> None:
        if self.ensemble.masks is not None:
            self.ensemble.masks.fill()
        self.ensemble.differentiate(observe=self.observe)
        self.ensemble.update()

    def _drawn_step(self) -> None:
        self.ensemble.compute()
        self.ensemble.update()


class Measured:
    """The product's own loop, as it runs in a sweep, with all measures every so many steps; what it finds is dropped.

    A turn has a multiple of that many steps. Where it does not evaluate, validation and test part are left out.
    """

    def __init__(self, size: Size, every: int, *, evaluates: bool = True) -> None:
        from bpexp.ensemble import Ensemble
        from bpexp.train import Loop

        endless = Train(steps=10**9, batch_size=size.batch, measure_every=every)
        endless = endless if evaluates else replace(endless, evaluate_every=endless.steps)
        self.ensemble = Ensemble([replace(config, train=endless) for config in size.configs()])
        self.start, self.every = self.ensemble.values.clone(), every
        self.snapshots = Loop(self.ensemble).run()
        next(self.snapshots)

    def reset(self) -> None:
        self.ensemble.values.copy_(self.start)

    def run(self, steps: int) -> None:
        for _ in range(steps // self.every):
            next(self.snapshots)


@dataclass(frozen=True)
class Choice:
    """What a user of torch may choose in a training step without changing what it computes."""

    optimizer: str
    set_to_none: bool
    inplace: bool
    compiled: bool = False

    def __str__(self) -> str:
        parts = [f"SGD({self.optimizer}=True)", f"set_to_none={self.set_to_none}"]
        return ", ".join(parts + ["inplace"] * self.inplace + ["torch.compile"] * self.compiled)


def choices(activation: str) -> list[Choice]:
    """Return every choice that there is; torch's tanh has no `inplace`."""
    inplace = (False, True) if activation == "relu" else (False,)
    return [Choice(*choice) for choice in itertools.product(("fused", "foreach"), (True, False), inplace)]


class Torch:
    """The networks of an ensemble, from the same weights and on the same batches, one after another."""

    def __init__(self, ensemble: Ensemble, choice: Choice) -> None:
        self.steps: list[Callable[[], object]] = []
        self.models: list[torch.nn.Sequential] = []
        for network in range(len(ensemble.configs)):
            self._add(ensemble, network, choice)
        self.start = [parameter.detach().clone() for parameter in self.parameters()]

    def _add(self, ensemble: Ensemble, network: int, choice: Choice) -> None:
        import torch

        from experiments.cost_torch import dense, ordered

        config, parameters = ensemble.configs[network], [p[network] for p in ensemble.parameters]
        shape = ensemble.model.features, ensemble.model.outputs
        model = dense(config.model, *shape, ensemble.dtype, inplace=choice.inplace)
        with torch.no_grad():
            for parameter, start in zip(ordered(model), parameters, strict=True):
                parameter.copy_(start)
        optimizer = torch.optim.SGD(model.parameters(), lr=config.optimizer.lr, **{choice.optimizer: True})
        x, target = ensemble.batches.x[network].clone(), ensemble.batches.y[network].clone()
        cross_entropy = torch.nn.CrossEntropyLoss()

        def loss() -> torch.Tensor:
            result: torch.Tensor = cross_entropy(model(x), target)
            return result

        forward = torch.compile(loss) if choice.compiled else loss

        def step() -> None:
            optimizer.zero_grad(set_to_none=choice.set_to_none)
            forward().backward()  # type: ignore[no-untyped-call]
            optimizer.step()

        self.models.append(model)
        self.steps.append(step)

    def parameters(self) -> Iterable[torch.Tensor]:
        return itertools.chain.from_iterable(model.parameters() for model in self.models)

    def reset(self) -> None:
        import torch

        with torch.no_grad():
            for parameter, start in zip(self.parameters(), self.start, strict=True):
                parameter.copy_(start)

    def run(self, steps: int) -> None:
        """Take the steps of one network, then those of the next: each finds its own numbers in the caches."""
        for step in self.steps:
            for _ in range(steps):
                step()


def plain_loop(size: Size, optimizer: str) -> Loop:
    """Return the loop of one network of a size as a user of torch writes it: it draws its batches."""
    import torch

    from bpexp.data import load
    from experiments.cost_plain import Loop

    config = size.configs()[0]
    data = load(config.data.name, config.seed, dtype=getattr(torch, config.dtype))
    return Loop(config, data.x_train, data.y_train, outputs=data.outputs, optimizer=optimizer)


def compiled(choice: Choice) -> Choice:
    """Return the choice under torch.compile, which decides about `inplace` itself."""
    return replace(choice, inplace=False, compiled=True)


def can_compile() -> bool:
    """Whether there is the C++ compiler that torch.compile needs."""
    return any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++")))


def buffer_bytes(ensemble: Ensemble, *, keep: bool = False) -> int:
    """Return the size of the buffers in which a step of the plan computes, and of the masks that it is given.

    All networks' gradients are left out. `keep`: of the plan that keeps all values.
    """
    step = ensemble.keeping if keep else ensemble.training
    buffers = {storage.data_ptr(): storage.nbytes() for storage, _ in step.plan.buffers.places.values()}
    buffers.pop(ensemble.grads.untyped_storage().data_ptr(), None)
    masks = [] if ensemble.masks is None else [ensemble.masks.words]
    return sum(buffers.values()) + sum(tensor.nbytes for tensor in masks)


def saved_bytes(ensemble: Ensemble) -> int:
    """Return what torch's autograd saves between the forward and the backward pass of the networks, together."""
    import torch

    side = Torch(ensemble, choices(ensemble.config.model.activation)[0])
    known = {tensor.untyped_storage().data_ptr() for tensor in (ensemble.batches.x, ensemble.batches.y)}
    known |= {parameter.untyped_storage().data_ptr() for parameter in side.parameters()}
    saved: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    losses = []  # they hold what is saved, so that no two of it have one address
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        for model, x, y in zip(side.models, ensemble.batches.x, ensemble.batches.y, strict=True):
            losses.append(torch.nn.functional.cross_entropy(model(x), y))
    return sum(saved.values())
