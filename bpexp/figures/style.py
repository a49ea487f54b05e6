"""The style that all figures share, and how a figure becomes a file.

A figure is a plain `matplotlib.figure.Figure`, made under `styled`, so that neither a user's own settings nor another
library's change a byte of it. Colours are those of Okabe and Ito (2008), which the colour-blind tell apart; a series
has a marker of its own as well, for a print in grey.
"""

import base64
import functools
import hashlib
import io
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib
import matplotlib.style
from matplotlib import font_manager
from matplotlib.figure import Figure

from bpexp.figures.compact import compact

Parameters = ParamSpec("Parameters")

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D1F")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "h")
GREY = "#666666"

STYLE: dict[str, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "axes.labelsize": 9,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 9,
    "figure.facecolor": "white",
    "figure.titlesize": 10,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "lines.markersize": 4,
    "savefig.facecolor": "white",
    "svg.fonttype": "path",
    "svg.hashsalt": "bpexp",
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
}


def prefer_own_fonts() -> None:
    """Let matplotlib find the fonts that it ships before a system's of the same name, whose letters differ.

    Its list of fonts is a file that all environments of a user share, so it may even lack those of this one.
    """
    fonts = font_manager.fontManager
    for path in sorted(Path(matplotlib.get_data_path(), "fonts", "ttf").glob("*.ttf"), reverse=True):
        fonts.addfont(path)
        fonts.ttflist.insert(0, fonts.ttflist.pop())


prefer_own_fonts()

NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


def styled(draw: Callable[Parameters, Figure]) -> Callable[Parameters, Figure]:
    """Decorate a function that draws a figure: matplotlib's defaults and STYLE hold while it runs."""

    @functools.wraps(draw)
    def drawn(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Figure:
        with matplotlib.style.context(["default", STYLE]):
            return draw(*args, **kwargs)

    return drawn


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure, sizes in inches; axes, and legends placed `outside`, are kept from overlapping."""
    return Figure(figsize=(width, height), layout="constrained")


def svg(figure: Figure) -> str:
    """Return a figure as one SVG element: the same figure is the same text, byte for byte.

    Text is drawn as paths, so it looks the same everywhere. Every id and class starts with a hash of the figure, so
    that many figures can stand in one page.
    """
    buffer = io.StringIO()
    with matplotlib.style.context(["default", STYLE]):
        figure.savefig(buffer, format="svg", metadata=NO_METADATA)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    digest = hashlib.sha256(text.encode()).digest()
    letter, rest = chr(ord("a") + digest[0] % 26), base64.b32encode(digest[1:]).decode()
    return compact(text, letter + rest[:4].lower())


def png(figure: Figure, dpi: int = 100) -> bytes:
    """Return a figure as a PNG image."""
    buffer = io.BytesIO()
    with matplotlib.style.context(["default", STYLE]):
        figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def looks(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return a colour and a marker for each name, in order; past the last colour they start again."""
    return {
        name: {"color": COLOURS[k % len(COLOURS)], "marker": MARKERS[k % len(MARKERS)]}
        for k, name in enumerate(dict.fromkeys(names))
    }
