"""Shows what runs and what is left: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections import Counter, deque
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from bpexp.sweep.group import Group, Statuses

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

SECONDS_BETWEEN_LINES = 5.0
WINDOW = 30.0
"""Seconds over which the speed is taken."""


class Progress:
    """Counts what is done of some groups: network-steps, jobs, and the work that is left, which tells the time left.

    Steps that were done before, by a run that was interrupted, count as done but not for the speed. It may be entered
    anew for each of the groups.
    """

    def __init__(self, groups: Sequence[Group]) -> None:
        self.groups, self.groups_done = len(groups), 0
        self.jobs = sum(len(group.running) for group in groups)
        self.left = sum(group.work for group in groups)
        self.total = self.left
        self.statuses: Counter[str] = Counter()
        self.steps: dict[str, int] = {}
        self.network_steps, self.work = 0, 0
        self.speeds = deque([(time.monotonic(), 0, 0)])
        self.shown = -float("inf")
        self.line = ""  # the last one shown
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
        if error is not None or self.groups_done == self.groups:
            self.conclude()

    def conclude(self) -> None:
        """Show the state at which all ends, unless that was the last one shown; a bar is gone by itself."""
        if self.bar is None and self.text() != self.line:
            self._print()

    def _open_bar(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar

        columns = (BarColumn(), TextColumn("{task.description}"))
        self.bar = Bar(*columns, console=Console(stderr=True), transient=True)
        self.task = self.bar.add_task(self.text(), total=self.total)
        self.bar.start()

    def report(self, group: Group, step: int) -> None:
        """Note the step that a group has come to; the first time it is where it starts."""
        before = self.steps.get(group.name)
        self.steps[group.name] = step
        self.left -= (step - (before or 0)) * group.cost
        if before is not None and step > before:
            self.network_steps += (step - before) * len(group.jobs)
            self.work += (step - before) * group.cost
        self._note_speed()
        self._show()

    def finish(self, group: Group, statuses: Statuses) -> None:
        """Note that a group has ended, be it early, and what became of its jobs."""
        self.groups_done += 1
        self.statuses.update(statuses.values())
        self.left -= group.work - self.steps.pop(group.name, 0) * group.cost
        self._show()

    def say(self, line: str) -> None:
        """Show a line apart from the bar."""
        if self.bar is not None:
            self.bar.console.print(line, markup=False, highlight=False)
        else:
            print(line, file=sys.stderr, flush=True)

    def text(self) -> str:
        """Return all that is known as a line."""
        done = sum(self.statuses.values())
        bad = [f"{self.statuses[status]} {status}" for status in ("failed", "diverged") if self.statuses[status]]
        parts = [f"groups {self.groups_done}/{self.groups}", f"jobs {done}/{self.jobs}", *bad]
        (start, steps, work), (now, *_) = self.speeds[0], self.speeds[-1]
        if self.work > work and now > start:
            speed = (self.network_steps - steps) / (now - start)
            left = self.left * (now - start) / (self.work - work)
            parts += [f"{speed:,.0f} network-steps/s", f"{_duration(left)} left"]
        return ", ".join(parts)

    def _note_speed(self) -> None:
        now = time.monotonic()
        if not self.network_steps:
            self.speeds.clear()  # what came before was not training
        self.speeds.append((now, self.network_steps, self.work))
        while now - self.speeds[0][0] > WINDOW and len(self.speeds) > 2:
            self.speeds.popleft()

    def _show(self) -> None:
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, description=self.text(), completed=self.total - self.left)
        elif time.monotonic() - self.shown > SECONDS_BETWEEN_LINES:
            self._print()

    def _print(self) -> None:
        self.shown, self.line = time.monotonic(), self.text()
        print(self.line, file=sys.stderr, flush=True)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
