"""The one wrapper around the entry points: arguments in, exit code out.

Exit codes: 0 done, diverged networks included; 1 jobs failed; 2 a user's mistake; 130 interrupted.
"""

from __future__ import annotations

import contextlib
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from bpexp.spec import UserError
from bpexp.sweep.command import Command
from bpexp.sweep.job import register
from bpexp.sweep.usage import usage

if TYPE_CHECKING:
    from hydra._internal.hydra import Hydra

    from bpexp.sweep.command import Check, Finish, Program

CONF = Path(__file__).parents[1] / "conf"
"""Beside the packages `bpexp` and `experiments` in a checkout."""

MULTIRUN_FLAGS = ("-m", "--multirun")
HELP_FLAGS = ("-h", "--help")
DEBUG = ("debug=true", "debug=True")


class FailedJobsError(Exception):
    """Jobs failed, after all others finished; the message has a line for each."""


def main(
    experiment: str,
    doc: str | None,
    *,
    program: Program | None = None,
    check: Check | None = None,
    finish: Finish | None = None,
    arguments: Sequence[str] | None = None,
) -> int:
    """Run an experiment from the command line and return the exit code.

    An experiment either trains the networks of its grid, and then calls `finish` with the folder of their results, or
    is a `program` that gets its configuration and its folder, after `check` had nothing against it. `doc` is the
    module's docstring, shown by `--help`.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        with _raising_interrupts():
            if any(flag in arguments for flag in HELP_FLAGS):
                print(describe(experiment, doc))
            else:
                call(experiment, arguments, program=program, check=check, finish=finish)
    except KeyboardInterrupt as interrupt:
        kept = f"{interrupt};" if str(interrupt) else "interrupted; finished jobs are kept, and"
        return _stop(f"{kept} {_how_to_go_on(interrupt)}", 130)
    except FailedJobsError as error:
        return _stop(str(error), 1)
    except (UserError, HydraException, OmegaConfBaseException) as error:
        if any(argument in DEBUG for argument in arguments):
            traceback.print_exc()
        return _stop(one_line(error), 2)
    except OSError as error:
        if any(argument in DEBUG for argument in arguments):
            traceback.print_exc()
        place = "" if error.filename is None else f"{error.filename}: "
        return _stop(f"{place}{error.strerror or error}; what is finished is kept, and {_how_to_go_on(error)}", 1)
    return 0


@contextlib.contextmanager
def _raising_interrupts() -> Iterator[None]:
    """Raise Ctrl-C itself where an error came of it: OmegaConf may stumble over one and raise an error of its own."""
    try:
        yield
    except Exception as error:
        cause = error.__context__
        while cause is not None and not isinstance(cause, KeyboardInterrupt):
            cause = cause.__context__
        if cause is None:
            raise
        raise cause from None


def _how_to_go_on(error: BaseException) -> str:
    return next(iter(getattr(error, "__notes__", ())), "the same command goes on")


def _stop(message: str, code: int) -> int:
    print(message, file=sys.stderr)
    return code


def call(
    experiment: str,
    arguments: Sequence[str],
    *,
    program: Program | None = None,
    check: Check | None = None,
    finish: Finish | None = None,
) -> Path:
    """Run an experiment from Python, as its command would; return the folder of its results.

    Raises:  UserError: a mistake in the arguments, before work starts; FailedJobsError: after all other jobs finished
    """
    flags = [argument for argument in arguments if argument.startswith("-")]
    for flag in flags:
        if flag not in MULTIRUN_FLAGS:
            raise UserError(f"{flag}: unknown flag; choose from -m, --help, or write key=value")
    overrides = [argument for argument in arguments if argument not in flags]
    with _session(experiment) as hydra:
        command = Command(hydra, experiment, overrides, multirun=bool(flags))
        if program is not None:
            return command.run_program(program, check)
        folder, failures = command.run_networks()
    if finish is not None:
        finish(folder)
    if failures:
        raise FailedJobsError("\n".join(failures))
    return folder


@contextlib.contextmanager
def _session(experiment: str) -> Iterator[Hydra]:
    """Start Hydra on conf/, in place of one that runs already: a program may run a sweep."""
    register()
    outer = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), job_name=experiment, version_base="1.3"):
            hydra = GlobalHydra.instance().hydra
            assert hydra is not None
            yield hydra
    finally:
        GlobalHydra.instance().hydra = outer


def describe(experiment: str, doc: str | None) -> str:
    """Return the help of an experiment: its docstring, its grid, its keys with their defaults and choices."""
    with _session(experiment) as hydra:
        return usage(hydra, experiment, doc)


def one_line(error: Exception) -> str:
    """Return an error of ours or of Hydra's as one line."""
    text = str(error)
    if isinstance(error, UserError):
        return text
    if unknown := re.match(r"Could not override '([^']+)'", text):
        return f"{unknown[1]}: unknown key of Hydra"
    lines = [line.strip() for line in f"{text}\n{error.__cause__ or ''}".splitlines() if line.strip()]
    return "; ".join(lines[:2]) or type(error).__name__
