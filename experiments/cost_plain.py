"""The baseline of a sweep: a job is a plain loop in torch, as a user of torch writes it.

`python -m experiments.cost_plain JOB.pt` is such a job in a process of its own.

Letters: N training samples, B samples of a batch, F features.
"""

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from bpexp.spec import Config
from experiments.cost_torch import dense, ordered


class Loop:
    """A network of torch's own modules, its optimizer and its data, and the loop that trains it; nothing is measured.

    The data lie where the network does. Every epoch has a new order, and the samples that do not fill a batch are left
    out, as in the product.

    Shapes:  x: (N, F), y: (N,), classes; start: parameters as the product lays them, else weights are He's
    """

    def __init__(
        self,
        config: Config,
        x: Tensor,
        y: Tensor,
        *,
        outputs: int,
        optimizer: str = "fused",
        order: torch.Generator | None = None,
        start: Sequence[Tensor] | None = None,
    ) -> None:
        self.x, self.y, self.batch = x, y, config.train.batch_size
        self.generator = torch.Generator().manual_seed(config.seed) if order is None else order
        self.model = dense(config.model, x.shape[1], outputs, x.dtype, inplace=True)
        with torch.no_grad():
            if start is None:
                initialize(self.model)
            else:
                for parameter, value in zip(self.ordered(), start, strict=True):
                    parameter.copy_(value)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=config.optimizer.lr, **{optimizer: True})
        self.loss = nn.CrossEntropyLoss()
        self.epoch: list[Tensor] = []
        """The batches that are left of the epoch, last one first: places of samples, (B,) each."""

    def ordered(self) -> list[nn.Parameter]:
        """Return the parameters as the product lays them."""
        return ordered(self.model)

    def reset(self) -> None:
        """Go on where the last turn ended: a step costs the same wherever training is."""

    def run(self, steps: int) -> None:
        for _ in range(steps):
            if not self.epoch:
                order = torch.randperm(len(self.x), generator=self.generator)
                self.epoch = [batch for batch in order.split(self.batch) if len(batch) == self.batch][::-1]
            batch = self.epoch.pop()
            self.optimizer.zero_grad(set_to_none=True)
            loss: Tensor = self.loss(self.model(self.x.index_select(0, batch)), self.y.index_select(0, batch))
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()


def initialize(model: nn.Sequential) -> None:
    """Draw weights as `init=he` does, biases zero."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def main(path: Path) -> None:
    """Train the one job of a file, after the imports that a user's script has, on one thread."""
    for name in ("hydra", "torch.utils.tensorboard"):
        importlib.import_module(name)
    torch.set_num_threads(1)
    job = torch.load(path, weights_only=False)
    Loop(job["config"], job["x"], job["y"], outputs=job["outputs"], optimizer=job["optimizer"]).run(job["steps"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
