"""Where the checkpoints of groups lie, and how they are removed: nothing here needs torch."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from bpexp.sweep.job import Job

IN_SWEEP, IN_JOB = ".checkpoints", ".checkpoint"
"""The folder of the checkpoints of a sweep's groups, and that of the checkpoint of a job that trains alone."""

STATE_FILE, SNAPSHOTS_FILE = "state", "records"


def checkpoint_folder(jobs: Sequence[Job]) -> Path:
    """Return the folder of the checkpoint of a group: in that of the sweep, or of a job that trains alone."""
    if len(jobs) == 1:
        return jobs[0].folder / IN_JOB
    return jobs[0].folder.parent / IN_SWEEP / jobs[0].group


def remove_checkpoint(folder: Path) -> None:
    """Remove a group's checkpoint, if there is one."""
    if not folder.is_dir():
        return
    (folder / STATE_FILE).unlink(missing_ok=True)  # first: without it the rest counts for nothing
    for _ in range(2):  # a worker whose command is gone may write there for a moment
        for path in folder.glob("*"):
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            folder.rmdir()
            break
    if folder.parent.name == IN_SWEEP:
        with contextlib.suppress(OSError):  # other groups have theirs
            folder.parent.rmdir()
