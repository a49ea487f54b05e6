"""Checkpoints of a group of networks: what its next steps depend on, and what it has shown so far.

A checkpoint is a folder with two files. `records` holds the snapshots, and is only added to; `state` holds the rest and
how much of `records` counts, and is replaced whole. So a process that is killed leaves the checkpoint before, or the
new one. Every part carries a checksum, and reading executes nothing.

Letters: R networks.
"""

from __future__ import annotations

import io
import os
import pickle
import struct
import sys
import time
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch

from bpexp.sweep.checkpoints import SNAPSHOTS_FILE, STATE_FILE, remove_checkpoint
from bpexp.sweep.files import clear_unfinished, replacing
from bpexp.sweep.results import current_commit
from bpexp.train import Divergence, Snapshot

KIND = b"bpexp checkpoint "
VERSION = 1
"""Of what `Loop.state` returns and of the files: a checkpoint of another version is not gone on from."""

MAGIC = KIND + b"%d\n" % VERSION
HEADER = struct.Struct("<QI")
"""Before every part: its bytes, and their CRC-32."""

TRIES = 3


class Found(NamedTuple):
    """What a checkpoint holds: the state of the loop, the snapshots so far, and the seconds that they took."""

    loop: dict[str, Any]
    snapshots: list[Snapshot]
    seconds: float


class UnusableError(Exception):
    """A checkpoint that cannot be gone on from; the message says why."""


class Checkpoint:
    """The checkpoint of one group, written every so many seconds.

    about: what must be equal for a checkpoint to be of this group: plain values by name
    every: seconds from the end of a writing to the next
    """

    def __init__(self, folder: Path, about: Mapping[str, Any], every: float) -> None:
        self.folder, self.about, self.every = folder, dict(about), every
        self.exists = False
        self.size = 0  # bytes of the records that count
        self.new: list[Snapshot] = []  # not yet among them
        self.next = time.monotonic() + every
        self.failed = False

    @property
    def due(self) -> bool:
        """Whether it is time to write."""
        return time.monotonic() >= self.next

    def load(self) -> Found | None:
        """Return what the checkpoint holds, if there is one; one that is of no use is told, and removed."""
        clear_unfinished(self.folder)
        if not (self.folder / STATE_FILE).exists():
            return None
        try:
            with (self.folder / STATE_FILE).open("rb") as state, (self.folder / SNAPSHOTS_FILE).open("rb") as records:
                found = self._read(state, records)
        except (UnusableError, OSError) as error:
            why = f"not readable ({error.strerror})" if isinstance(error, OSError) else error
            print(f"{self.folder}: the checkpoint is {why}; the group starts over", file=sys.stderr)
            remove_checkpoint(self.folder)
            return None
        self.exists = True
        return found

    def _read(self, state_file: BinaryIO, records: BinaryIO) -> Found:
        magic = state_file.readline(len(MAGIC))
        if magic != MAGIC:
            raise UnusableError("of another version" if magic.startswith(KIND) else "damaged")
        state = _read_part(state_file)
        for name, value in self.about.items():
            if state["about"].get(name) != value:
                raise UnusableError(f"of another {name}")
        snapshots: list[Snapshot] = []
        while records.tell() < state["records"]:
            snapshots += unpack(_read_part(records))
        self.size = records.tell()
        if state["commit"] != current_commit():
            print(f"{self.folder}: warning: goes on from what another commit trained", file=sys.stderr)
        return Found(state["loop"], snapshots, state["seconds"])

    def add(self, snapshot: Snapshot) -> None:
        """Take a snapshot, which belongs to every state from now on."""
        self.new.append(snapshot)

    def save(self, loop: Mapping[str, Any], seconds: float) -> None:
        """Write a checkpoint; that it cannot be written is told, and no reason to stop."""
        try:
            self._write(loop, seconds)
            self.exists, self.failed = True, False
        except OSError as error:
            if not self.failed:
                why = f"the checkpoint cannot be written: {error.strerror or error}"
                print(f"{self.folder}: {why}; training goes on without", file=sys.stderr)
            self.failed = True
        self.next = time.monotonic() + self.every

    def _write(self, loop: Mapping[str, Any], seconds: float) -> None:
        part = _part(pack(self.new)) if self.new else b""
        _make(self.folder)
        with (self.folder / SNAPSHOTS_FILE).open("ab") as file:
            file.truncate(self.size)  # what a writing that failed left behind
            file.write(part)
            _force(file)
        size = self.size + len(part)
        commit = current_commit()
        state = {"about": self.about, "commit": commit, "seconds": seconds, "records": size, "loop": dict(loop)}
        with replacing(self.folder / STATE_FILE) as temporary, temporary.open("wb") as file:
            file.write(MAGIC)
            file.write(_part(state))
            _force(file)
        self.size, self.new = size, []

    def remove(self) -> None:
        """Remove what was written, by this process or before."""
        remove_checkpoint(self.folder)


def _make(folder: Path) -> None:
    """Make a folder, while another group may remove the one around it for being empty."""
    for _ in range(TRIES):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return
        except FileNotFoundError:
            continue
    folder.mkdir(parents=True, exist_ok=True)


def _force(file: BinaryIO) -> None:
    """Have a file on the disk before another refers to it or takes its name: the power may be cut."""
    file.flush()
    os.fsync(file.fileno())


def _part(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    payload = buffer.getbuffer()
    return b"".join((HEADER.pack(len(payload), zlib.crc32(payload)), payload))


def _read_part(file: BinaryIO) -> Any:
    """Return the content of the next part.

    Raises:  UnusableError: it is not as it was written
    """
    header = file.read(HEADER.size)
    if len(header) < HEADER.size:
        raise UnusableError("damaged")
    size, checksum = HEADER.unpack(header)
    rest = os.fstat(file.fileno()).st_size - file.tell()
    payload = file.read(size) if size <= rest else b""
    if len(payload) < size or zlib.crc32(payload) != checksum:
        raise UnusableError("damaged")
    try:
        return torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError):  # made by something else, on purpose
        raise UnusableError("damaged") from None


def pack(snapshots: Sequence[Snapshot]) -> dict[str, Any]:
    """Return snapshots as plain values, and all their numbers as one tensor, which is quick to write."""
    plain, numbers = [], []
    for one in snapshots:
        layers = {name: (of.start, of.stop) for name, (of, _) in one.layers.items()}
        diverged = [(network, at.step, at.layer) for network, at in one.diverged.items()]
        plain.append((one.step, len(one.train_loss), layers, list(one.networks), diverged))
        numbers += [one.finished, one.train_loss, *(values for _, values in one.layers.values())]
        numbers += one.networks.values()
    flat = np.concatenate([values.ravel() for values in numbers], dtype=np.float64)
    return {"networks": len(snapshots[0].finished), "snapshots": plain, "numbers": torch.from_numpy(flat)}


def unpack(packed: Mapping[str, Any]) -> list[Snapshot]:
    """Return the snapshots that were packed."""
    networks, numbers, start = packed["networks"], packed["numbers"].numpy(), 0
    snapshots = []

    def take(*shape: int) -> np.ndarray[Any, np.dtype[np.float64]]:
        nonlocal start
        size = int(np.prod(shape))
        start += size
        taken: np.ndarray[Any, np.dtype[np.float64]] = numbers[start - size : start].reshape(shape)
        return taken

    for step, losses, layers, measures, diverged in packed["snapshots"]:
        snapshots.append(
            Snapshot(
                step=step,
                finished=take(networks).astype(bool),
                train_loss=take(losses, networks),
                layers={name: (range(*of), take(networks, len(range(*of)))) for name, of in layers.items()},
                networks={name: take(networks) for name in measures},
                diverged={network: Divergence(at, layer) for network, at, layer in diverged},
            )
        )
    return snapshots
