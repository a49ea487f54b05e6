"""Shows what runs and what is left: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

SECONDS_BETWEEN_LINES = 5.0


class Progress:
    """Counts finished jobs of `total`, and shows the last text that was reported."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.shown = total, 0, 0.0
        self.bar: Bar | None = None
        self.task: TaskID | None = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            self._open_bar()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def _open_bar(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
        self.bar = Bar(*columns, console=Console(stderr=True), transient=True)
        self.task = self.bar.add_task("", total=self.total)
        self.bar.start()

    def report(self, text: str) -> None:
        """Show what is going on."""
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, description=text)
        elif time.monotonic() - self.shown > SECONDS_BETWEEN_LINES or not self.shown:
            self.shown = time.monotonic()
            print(f"{self.done}/{self.total} {text}", file=sys.stderr, flush=True)

    def advance(self, jobs: int) -> None:
        """Count finished jobs."""
        self.done += jobs
        if self.bar is not None and self.task is not None:
            self.bar.advance(self.task, jobs)
