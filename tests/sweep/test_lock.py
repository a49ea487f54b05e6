import contextlib
import errno
import fcntl
import json
import math
import os
import socket
import subprocess
import sys

import pytest

from bpexp.entry import main
from bpexp.sweep import lock
from bpexp.sweep.lock import LockedError, check_free, hold

HOLD = """
import sys
from pathlib import Path
from bpexp.sweep.lock import hold
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "lock"


@pytest.fixture
def without_flock(monkeypatch):
    def refuse(descriptor, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)


def dead_process():
    return subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True
    ).stdout


def test_held_by_one_at_a_time(path):
    with hold(path):
        holder = json.loads(path.read_text())
        with pytest.raises(LockedError) as caught, hold(path):
            pass
    assert str(caught.value).startswith(f"in use by process {os.getpid()} on {socket.gethostname()} since 20")
    assert str(caught.value).endswith(f"({holder['command']})")
    assert not path.exists()
    with hold(path):
        assert json.loads(path.read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("left", ["", "{", '{"pid": 1, "host": "elsewhere"}'])
def test_what_a_dead_process_left_is_taken_over(path, left):
    path.write_text(left)
    check_free(path)
    assert path.read_text() == left
    with hold(path):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert not path.exists()


def test_patience(path):
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with child:
        assert child.stdout.readline() == "held\n"
        with pytest.raises(LockedError, match=f"in use by process {child.pid} on "):
            check_free(path)
        child.kill()  # its file stays, its lock does not
        with hold(path, patience=60):
            assert json.loads(path.read_text())["pid"] == os.getpid()


def test_two_may_look_at_once_whether_it_is_free(path):
    path.write_text("left by a dead process")
    with path.open() as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        check_free(path)
    with hold(path):
        pass
    check_free(path)
    assert not path.exists()


def test_patience_without_end_is_for_those_that_live(path, without_flock, monkeypatch):
    monkeypatch.setattr(lock, "_PATIENCE_WITH_THE_UNKNOWN", 0.0)
    path.write_text(json.dumps({"pid": int(dead_process()), "host": "elsewhere"}))
    with pytest.raises(LockedError, match="if it is gone, delete"), hold(path, patience=math.inf):
        pass


def test_without_locks_of_the_file_system(path, without_flock):
    path.write_text(json.dumps({"pid": int(dead_process()), "host": socket.gethostname()}))
    with hold(path), pytest.raises(LockedError, match=f"in use by process {os.getpid()}"), hold(path):
        pass
    assert not path.exists()
    path.write_text(json.dumps({"pid": int(dead_process()), "host": "elsewhere"}))
    with pytest.raises(LockedError, match=rf"on elsewhere since .*; if it is gone, delete {path}$"), hold(path):
        pass
    assert path.exists()


def left_by_a_dead_process(path):
    path.write_text(json.dumps({"pid": int(dead_process()), "host": socket.gethostname(), "started": 1}))


@pytest.mark.parametrize(("moment", "time"), [("_take_over", 1), ("read_json", 1), ("_acquire", 2)])
def test_one_alone_takes_over_without_locks(path, without_flock, monkeypatch, moment, time):
    """Another does so before, after, or long after this one has seen that the process is gone."""
    left_by_a_dead_process(path)
    act, calls = getattr(lock, moment), []
    with contextlib.ExitStack() as stack:

        def act_later(*arguments):
            found = act(*arguments) if moment == "read_json" else None
            calls.append(arguments)
            if len(calls) == time:
                stack.enter_context(hold(path))
            return found or act(*arguments)

        monkeypatch.setattr(lock, moment, act_later)
        with pytest.raises(LockedError, match=f"in use by process {os.getpid()} on "), hold(path):
            pass
        assert [path] == list(path.parent.iterdir())
        with pytest.raises(LockedError, match="in use"):
            check_free(path)
    assert not list(path.parent.iterdir())


def test_another_that_takes_over_or_begins_holds_it_without_locks(path, without_flock):
    left_by_a_dead_process(path)
    claim = path.with_name(f"lock.{json.loads(path.read_text())['pid']}.claim")
    with hold(claim), pytest.raises(LockedError, match="in use by process"), hold(path):
        pass
    left_by_a_dead_process(claim)
    with hold(path):
        assert list(path.parent.iterdir()) == [path]
    path.touch()
    for use in (check_free, lambda path: hold(path).__enter__()):
        with pytest.raises(LockedError, match=f"^in use by another process; if it is gone, delete {path}$"):
            use(path)


def test_a_process_that_gives_a_lock_free_is_not_gone(path, without_flock, monkeypatch):
    def read(path):
        found = lock_read(path)
        other.close()
        return found

    lock_read = lock.read_json
    monkeypatch.setattr(lock, "read_json", read)
    with contextlib.ExitStack() as other:
        other.enter_context(hold(path))
        assert lock._left_by(path) == {}


def test_a_later_process_of_the_same_number_without_locks(path, without_flock):
    with hold(path):
        left = json.loads(path.read_text())
    path.write_text(json.dumps(left | {"started": left["started"] - 1}))
    with hold(path):
        assert json.loads(path.read_text())["started"] == left["started"]


def test_what_cannot_be_written_is_not_held_without_locks(path, without_flock, monkeypatch):
    def full(descriptor, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space left"), hold(path):
            pass
    with hold(path):
        pass


def test_another_error_of_the_file_system_is_shown(path, monkeypatch):
    def broken(descriptor, operation):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", broken)
    with pytest.raises(OSError, match="Input/output error"), hold(path):
        pass


@pytest.mark.parametrize(
    "arguments", [["-m", "hydra.sweep.dir=here"], ["hydra.run.dir=here"], ["hydra.run.dir=here/job"]]
)
def test_a_folder_in_use_is_refused(arguments, runner, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here/job").mkdir(parents=True)
    with hold(tmp_path / "here/.lock"):
        assert main("gradient_flow", "", arguments=[*arguments, "model.depth=2", "seed=0"]) == 2
    said = capsys.readouterr().err
    assert f" is in use by process {os.getpid()} on " in said
    assert said.endswith("; wait for it, or choose another folder\n")
    assert runner.groups == []
    assert [path.name for path in tmp_path.rglob("*")] == ["here", "job"]
    assert main("gradient_flow", "", arguments=[*arguments, "model.depth=2", "seed=0"]) == 0
    assert not list(tmp_path.rglob(".*lock"))
