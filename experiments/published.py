"""The records of a report: what was computed, where it comes from, and the tracked copy of it at full scale.

An experiment's published records are outputs/published/NAME/*.parquet, its first picture as NAME/figure.svg, and
NAME/published.json, which says how they were made and is written last: without it there are none. The table that
bears the name of its experiment, as the ledger of claims does, is outputs/published/NAME.parquet.
"""

from __future__ import annotations

import importlib.metadata
import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bpexp.entry import CONF
from bpexp.spec import UserError
from bpexp.sweep.files import read_json, replacing, write_json, write_text
from bpexp.sweep.results import RUN_FILE, count_status, current_commit

if TYPE_CHECKING:
    import polars

FOLDER = CONF.parent / "outputs" / "published"
ORIGIN_FILE = "published.json"

LARGEST = 5_000_000
"""Bytes of all that is published."""


@dataclass(frozen=True)
class Records:
    """The summary tables of an experiment, by name in alphabetical order, and their origin.

    `origin` has `experiment`, `scale`, `extent` (what the scale computes), `command`, `commit`, `packages` and, where
    networks were trained, `networks`.
    """

    tables: Mapping[str, polars.DataFrame]
    origin: Mapping[str, Any]


def packages() -> dict[str, str]:
    """Return the versions that decide what is computed, and the one that decides how it is drawn."""
    from bpexp import runner

    return runner.packages() | {"matplotlib": importlib.metadata.version("matplotlib")}


def records_of(tables: Mapping[str, polars.DataFrame], folder: Path, origin: Mapping[str, Any]) -> Records:
    """Return the records of what was computed now in `folder`; `origin` says what, and what commit and packages not."""
    here = {"commit": current_commit(), "packages": packages()}
    trained = networks(folder)
    return Records(dict(sorted(tables.items())), {**origin, **here, **({"networks": trained} if trained else {})})


def networks(folder: Path) -> dict[str, Any]:
    """Return how many networks the sweeps of a folder trained, and their seeds; nothing where there are none.

    `other_commits` counts those that were kept from a run of another commit.
    """
    import polars

    from bpexp.records import job_folder

    sweeps = sorted(folder.rglob("results.parquet"))
    if not sweeps:
        return {}
    frames = [polars.read_parquet(sweep, columns=["job", "seed", "status"]) for sweep in sweeps]
    jobs = [job_folder(sweep.parent, job) for sweep, frame in zip(sweeps, frames, strict=True) for job in frame["job"]]
    frame = polars.concat(frames)
    return {
        "trained": len(frame),
        "status": dict(count_status(frame)),
        "seeds": frame["seed"].unique().sort().to_list(),
        "other_commits": sum(read_json(job / RUN_FILE).get("commit") != current_commit() for job in jobs),
    }


def describe(origin: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Return what a page says about an origin: pairs of what and which."""
    commit = origin["commit"] or "none: not made in a checkout"
    trained = origin.get("networks", {})
    if trained.get("other_commits"):
        commit += f" ({trained['other_commits']} of {trained['trained']} networks are kept from another commit)"
    pairs = [("Command", f"`{origin['command']}`"), ("Commit", commit)]
    if trained:
        status = ", ".join(f"{count} {name}" for name, count in trained["status"].items())
        pairs += [("Networks", f"{trained['trained']}: {status}"), ("Seeds", ", ".join(map(str, trained["seeds"])))]
    return (*pairs, ("Packages", ", ".join(f"{name} {version}" for name, version in origin["packages"].items())))


def read(name: str) -> Records | None:
    """Return the published records of an experiment, if there are any."""
    import polars

    origin = read_json(FOLDER / name / ORIGIN_FILE)
    tables = {path.stem: polars.read_parquet(path) for path in _table_files(name)}
    return Records(tables, origin) if origin else None


def _table_files(name: str) -> list[Path]:
    """Return the files of an experiment's tables that are there, by the names of the tables."""
    files = [*(FOLDER / name).glob("*.parquet"), *FOLDER.glob(f"{name}.parquet")]
    return sorted(files, key=lambda path: path.stem)


def write(
    name: str, records: Records, page: Callable[[Mapping[str, Records]], str], names: Iterable[str], picture: str = ""
) -> None:
    """Publish the records and a `picture` of one experiment, and the `page` that shows all `names` that have records.

    Raises:  UserError: it would be more than LARGEST; nothing is written then
    """
    import polars

    files = {table: _parquet(frame) for table, frame in records.tables.items()}
    # The page is made from what will be read again, not from what was in memory.
    again = Records({table: polars.read_parquet(io.BytesIO(file)) for table, file in files.items()}, records.origin)
    others = {other: read(other) for other in names}
    index = page({other: found for other in others if (found := again if other == name else others[other]) is not None})
    _check_size(name, len((index + picture).encode()) + sum(map(len, files.values())))
    folder = FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ORIGIN_FILE).unlink(missing_ok=True)
    for stale in _table_files(name):
        if stale.stem not in files:
            stale.unlink()
    for table, file in files.items():
        with replacing((FOLDER if table == name else folder) / f"{table}.parquet") as temporary:
            temporary.write_bytes(file)
    if picture:
        write_text(folder / "figure.svg", picture)
    write_json(folder / ORIGIN_FILE, records.origin)
    write_text(FOLDER / "index.html", index)


def _parquet(frame: polars.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.write_parquet(buffer)
    return buffer.getvalue()


def _check_size(name: str, new: int) -> None:
    """Refuse to publish `new` bytes beside those that stay."""
    replaced = (FOLDER / name, FOLDER / f"{name}.parquet", FOLDER / "index.html")
    stay = [path for path in FOLDER.rglob("*") if path.is_file() and not any(path.is_relative_to(r) for r in replaced)]
    total = new + sum(path.stat().st_size for path in stay)
    if total > LARGEST:
        raise UserError(
            f"publish: {FOLDER.name} would hold {total / 1e6:.2f} MB with {name}, and {LARGEST / 1e6:g} MB is the most;"
            " make its tables or its figures smaller"
        )
