import json
import os
import sys
import types

import pytest

from bpexp import spec

os.environ.setdefault("OMP_NUM_THREADS", "1")


def configure(values):
    """Return the default configuration with values set by their Hydra names."""
    config = spec.Config()
    for name, value in values.items():
        *groups, last = name.split(".")
        target = config
        for group in groups:
            target = getattr(target, group)
        assert hasattr(target, last)
        setattr(target, last, value)
    return config


class FakeRunner:
    """Stands for bpexp.runner: notes the groups it gets and the jobs it writes, and leaves a run.json for each job."""

    def __init__(self):
        self.groups = []
        self.written = []
        self.status = {}
        self.raises = {}

    def run_group(self, jobs, *, report, kept=()):
        self.groups.append([job.identity for job in jobs])
        report(0)
        for job in jobs:
            if job.config.seed in self.raises:
                raise self.raises[job.config.seed]
        return [self.leave(job) for job in jobs if job.identity not in kept]

    def leave(self, job):
        self.written.append(job.identity)
        status = self.status.get(job.config.seed, "ok")
        error = "it broke" if status == "failed" else None
        row = {"verdict": "healthy", "backward_gain": 1.0, "trained": True, "train_loss": job.config.seed / 10}
        run = {
            "identity": job.identity,
            "status": status,
            "error": error,
            "commit": "0",
            "group": job.group,
            "row": row,
        }
        job.folder.mkdir(parents=True, exist_ok=True)
        (job.folder / "run.json").write_text(json.dumps(run))
        return types.SimpleNamespace(job=job, status=status, error=error, row=row)

    @property
    def trained(self):
        return [identity for group in self.groups for identity in group]


@pytest.fixture
def runner(monkeypatch):
    fake = FakeRunner()
    module = types.ModuleType("bpexp.runner")
    module.run_group = fake.run_group
    module.forget_ensemble = lambda: None
    monkeypatch.setitem(sys.modules, "bpexp.runner", module)
    monkeypatch.setattr("bpexp.sweep.executors.count_cores", lambda: 1)
    return fake
