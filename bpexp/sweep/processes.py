"""sweep.executor=processes: groups are handed to worker processes, one after another, whichever is free.

The workers are forked from a server that is started while the jobs are still being composed: it imports torch once,
and nothing of the program that asked for it, which may be a notebook, a test or a script without a main guard.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import IO, TypeVar, cast

from bpexp.sweep.group import Ends, Group, Statuses, fail
from bpexp.sweep.lock import LockedError, hold
from bpexp.sweep.progress import Progress
from bpexp.sweep.worker import FORK, WAIT

ROOT = Path(__file__).parents[2]
"""Where this bpexp is imported from: a worker must find the same."""

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "POLARS_MAX_THREADS"), "1")

COMMAND = "from bpexp.sweep.worker import serve; serve({})"


Result = TypeVar("Result")


class Server:
    """The process that workers are forked from; `output` is what it and its dead workers said."""

    def __init__(self) -> None:
        self.output = _log()
        self.control, theirs = socket.socketpair()
        path = os.pathsep.join(dict.fromkeys([str(ROOT), *(folder or str(Path.cwd()) for folder in sys.path)]))
        with theirs, _without_interrupts():
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", COMMAND.format(theirs.fileno())],
                env=os.environ | ONE_THREAD | {"PYTHONPATH": path},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=self.output,
                stderr=self.output,
            )
        atexit.register(self.end)

    def fork(self, *files: int) -> None:
        """Fork a worker that gets these files as soon as all is imported."""
        socket.send_fds(self.control, [FORK], files)

    def exit_code(self, pid: int) -> int | None:
        """Wait for a worker to end; return its exit code, negative for the signal that killed it.

        It is None where the server is dead.
        """
        try:
            self.control.sendall(WAIT + pid.to_bytes(4, "big"))
            answer = self.control.recv(4)
        except OSError:
            return None
        return int.from_bytes(answer, "big", signed=True) if len(answer) == 4 else None

    def end(self) -> None:
        """Kill the server; its workers go on."""
        self.control.close()
        self.process.kill()
        self.process.wait()


@functools.cache
def _server() -> list[Server]:
    return []


def start_server() -> Server:
    """Return the server of this process, started if there is none, or none that lives."""
    servers = _server()
    if not servers or servers[-1].process.poll() is not None:
        servers.append(Server())
    return servers[-1]


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """Start a process without the signal of Ctrl-C, which would end it in the midst of an import."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _log() -> IO[bytes]:
    return tempfile.TemporaryFile("w+b", buffering=0)


class Worker:
    """A worker process and the group that it trains."""

    def __init__(self) -> None:
        self.server = start_server()
        self.log, self.read = _log(), 0
        self.pid: int | None = None
        self.group: Group | None = None
        ours, theirs = socket.socketpair()
        with theirs:
            self.server.fork(theirs.fileno(), self.log.fileno())
        self.connection = Connection(ours.detach())

    @property
    def idle(self) -> bool:
        """Whether it has started and has no group."""
        return self.pid is not None and self.group is None

    def give(self, group: Group) -> None:
        """Hand it a group to train."""
        self.group = group
        # One that died just now is found out where its answer is awaited.
        with contextlib.suppress(OSError):
            self.connection.send((Path.cwd(), group))

    def call(self, task: Callable[[], Result]) -> Result:
        """Have it run something while it is idle, and print what it prints; return what that returns.

        Raises:  EOFError, ConnectionError: it died; what the task raised
        """
        self.connection.send((Path.cwd(), task))
        result = self.connection.recv()
        for line in self.lines():
            print(line)
        if isinstance(result, Exception):
            raise result
        return cast("Result", result)

    def receive(self, progress: Progress) -> tuple[Group, Statuses] | None:
        """Take what it sent; return the group that it finished with, if it has.

        Raises:  EOFError: it died; what training raised
        """
        message = self.connection.recv()
        self.show(progress)
        if isinstance(message, Exception):
            raise message
        if self.pid is None:
            self.pid = message
        elif isinstance(message, int):
            assert self.group is not None
            progress.report(self.group, message)
        else:
            group, self.group = self.group, None
            assert group is not None
            return group, message
        return None

    def show(self, progress: Progress) -> None:
        """Show the whole lines that it printed since the last time."""
        for line in self.lines():
            progress.say(line)

    def lines(self) -> list[str]:
        """Return the whole lines that it printed since the last time."""
        said = os.pread(self.log.fileno(), 2**20, self.read)
        whole = said[: said.rfind(b"\n") + 1]
        self.read += len(whole)
        return whole.decode(errors="replace").splitlines()

    def how_it_ended(self) -> str:
        """Return how a dead worker ended, in words."""
        code = self.server.exit_code(self.pid) if self.pid is not None else None
        if code is None:
            return "worker process is gone"
        if code >= 0:
            return f"worker process {self.pid} ended with exit code {code}"
        why = ", as when memory runs out" if -code == signal.SIGKILL else ""
        return f"worker process {self.pid} was killed by signal {-code} ({signal.Signals(-code).name}{why})"

    def close(self) -> None:
        """End it, whatever it is doing, and wait until it has cleared up."""
        self.connection.close()
        if self.pid is not None:
            self.server.exit_code(self.pid)
        self.log.close()


def run_in_processes(groups: Iterator[Group], progress: Progress, *, workers: int) -> Ends:
    """Train groups in worker processes; yield each with what became of its jobs, as it ends.

    The jobs of a group whose worker dies fail; the others go on with a new one. `groups` prepares a group when it is
    asked for it, which happens while there is nothing else to do.

    Raises:  UserError, OSError: as `train`; ChildProcessError: workers do not start
    """
    pool = [Worker() for _ in range(workers)]
    try:
        yield from _hand_out(groups, pool, progress)
        if "torch" not in sys.modules and not _spare():
            worker = next(worker for worker in pool if worker.idle)
            pool.remove(worker)
            _spare().append(worker)
    finally:
        for worker in pool:
            worker.connection.close()  # all begin to end
        for worker in pool:
            worker.close()


def _hand_out(groups: Iterator[Group], pool: list[Worker], progress: Progress) -> Ends:
    prepared: deque[Group] = deque()
    more = True
    while True:
        for worker in pool:
            if worker.idle and (group := prepared.popleft() if prepared else next(groups, None)) is not None:
                worker.give(group)
        if not prepared and all(worker.group is None for worker in pool) and any(worker.idle for worker in pool):
            return
        ready = wait([worker.connection for worker in pool], 0 if more else None)
        if not ready and more:
            following = next(groups, None)
            more = following is not None
            prepared += [following] if following is not None else []
        for worker in [worker for worker in pool if worker.connection in ready]:
            try:
                ended = worker.receive(progress)
            except (EOFError, ConnectionError):
                ended = _bury(worker, pool, progress)
            if ended is not None:
                yield ended


def _bury(worker: Worker, pool: list[Worker], progress: Progress) -> tuple[Group, Statuses] | None:
    """Replace a dead worker; return its group, whose jobs failed."""
    worker.show(progress)
    if worker.pid is None:
        said = _last_line(worker.log) or _last_line(worker.server.output)
        raise ChildProcessError(f"worker processes do not start: {said}")
    message = worker.how_it_ended()
    worker.pid = None  # waited for
    pool.remove(worker)
    worker.close()
    pool.append(Worker())
    if worker.group is None:
        return None
    if worker.group.lock is not None:
        with contextlib.suppress(LockedError), hold(worker.group.lock):
            pass  # removes the file that it left, unless it waited for another
    return worker.group, fail(worker.group, message)


@functools.cache
def _spare() -> list[Worker]:
    """Return the worker that is kept when the last group has ended, if one is."""
    return []


def run_where_torch_is(task: Callable[[], Result]) -> Result:
    """Run what needs torch: a worker that trained has imported it, and this process has yet to.

    Without such a worker it is run here. `task` and what it returns can be pickled.
    """
    if _spare():
        with contextlib.closing(_spare().pop()) as worker, contextlib.suppress(EOFError, ConnectionError):
            return worker.call(task)
    return task()


@contextlib.contextmanager
def ending_spare() -> Iterator[None]:
    """End the worker that was kept, and that an interrupt has left idle."""
    try:
        yield
    finally:
        while _spare():
            _spare().pop().close()


def _last_line(output: IO[bytes]) -> str:
    lines = os.pread(output.fileno(), 2**20, 0).decode(errors="replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), "")
