"""hydra/sweeper=ensemble and hydra/launcher=ensemble: the whole batch of jobs goes to the task at once.

Hydra loads plugins from the namespace package `hydra_plugins` alone, and executes this module twice: so it holds no
dataclass and no logic, which is in `bpexp.sweep`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from bpexp.sweep import grid
from bpexp.sweep.compose import parse


class EnsembleSweeper(Sweeper):
    """Expands the grid without composing every job once more, and launches it as one batch."""

    def __init__(self, params: dict[str, Any] | None = None) -> None:
        self.params = params

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.folder, self.master, self.loader = Path(config.hydra.sweep.dir), config, hydra_context.config_loader
        self.batch_launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        given = parse(arguments, self.loader)
        cells = [parse(cell, self.loader) for cell in grid.cells(self.params, given)]
        jobs = grid.expand([*parse(grid.axes(self.params), self.loader), *given], cells)
        self.folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.master, self.folder / "multirun.yaml")
        return [self.batch_launcher.launch(jobs, initial_job_idx=0)]


class EnsembleLauncher(Launcher):
    """Hands all jobs to the task's `together`, which trains networks of one structure side by side."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.master, self.task = config, task_function

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        returns: list[JobReturn] = self.task.together(self.master, job_overrides)  # type: ignore[attr-defined]
        return returns


for name, node in (
    ("sweeper", {"_target_": f"{__name__}.EnsembleSweeper", "params": None}),
    ("launcher", {"_target_": f"{__name__}.EnsembleLauncher"}),
):
    ConfigStore.instance().store(group=f"hydra/{name}", name="ensemble", node=node, provider="bpexp")
