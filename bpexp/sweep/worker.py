"""The other end of `processes`: a server that has imported what training needs, and the workers that it forks.

Forking spares each worker the import of torch. The server itself starts no thread, so that a fork is safe; polars
starts some when it is imported, so each worker imports it for itself.
"""

from __future__ import annotations

import _thread
import contextlib
import gc
import importlib
import os
import pickle
import select
import signal
import socket
import sys
import threading
import time
import traceback
from multiprocessing.connection import Connection
from types import FrameType
from typing import NoReturn

from bpexp.sweep.group import Group, import_alone, train
from bpexp.sweep.results import current_commit

PRELOADED = ("torch", "bpexp.train", "tensorboard.compat.proto.event_pb2")
SECONDS_TO_END = 2.0
"""For what is being written to be cleared away, once the command is gone."""

FORK, WAIT = b"f", b"w"
"""The requests to a server: fork a worker with the two files that come along; tell how the one that follows ended."""


def serve(descriptor: int) -> NoReturn:
    """Fork workers as asked through a socket, until its other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    with import_alone():
        for module in PRELOADED:
            importlib.import_module(module)
    gc.freeze()  # nor need workers look through what is imported
    current_commit()
    with socket.socket(fileno=descriptor) as control:
        while True:
            request, descriptors, _, _ = socket.recv_fds(control, 1, 2)
            if request == FORK:
                if os.fork() == 0:
                    control.close()
                    _begin(*descriptors)
                for passed in descriptors:
                    os.close(passed)
            elif request == WAIT:
                control.sendall(_wait(int.from_bytes(control.recv(4), "big")).to_bytes(4, "big", signed=True))
            else:
                os._exit(0)  # what is imported need not be taken down


def _wait(pid: int) -> int:
    """Return the exit code of a worker: negative for the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _begin(connection: int, log: int) -> NoReturn:
    """Be a worker: what it prints goes to the log, and it ends without the server's clean-up."""
    code = 1
    try:
        for stream in (1, 2):
            os.dup2(log, stream)
        work(Connection(connection))
        code = 0
    except Exception:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def work(connection: Connection) -> None:
    """Train the groups that come through a connection until it is closed, be that in the midst of one.

    Sent are the process id first, then the step that a group has come to, and at its end the statuses of its jobs, or
    the error. Another task is called, and what it returns is sent.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave)
    threading.Thread(target=_watch, args=(connection.fileno(),), daemon=True).start()
    runner = importlib.import_module("bpexp.runner")
    try:
        connection.send(os.getpid())
        while True:
            folder, task = connection.recv()
            os.chdir(folder)
            try:
                if isinstance(task, Group):
                    connection.send(train(task, connection.send))
                else:
                    runner.forget_ensemble()
                    found = task()
                    sys.stdout.flush()  # before it is asked for
                    connection.send(found)
            except Exception as error:
                connection.send(_sendable(error))
    except (EOFError, ConnectionError):
        return


def _sendable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def _watch(descriptor: int) -> None:
    """End this process when the other end of a connection is closed, be its owner killed."""
    poll = select.poll()
    poll.register(descriptor, 0)  # a hang-up alone
    poll.poll()
    _thread.interrupt_main(signal.SIGTERM)
    time.sleep(SECONDS_TO_END)
    os._exit(1)
