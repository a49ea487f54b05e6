"""The charts of the Custom Scalars page, of a run and of the cells of a sweep."""

from __future__ import annotations

import functools
from collections.abc import Collection

from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.custom_scalar import layout_pb2 as layouts

from bpexp.dashboard import tags
from bpexp.dashboard.events import string_value


@functools.cache
def of_run(classes: bool) -> Summary.Value:
    """Return the charts of a network; with accuracies where there are classes.

    The means of cells are in them as well: the page has the charts of all runs, and none of its sections is to be empty
    where cells alone are shown.
    """
    layers = layouts.Chart(
        title="gradient norm of the first, the middle and the last layer (log10)",
        multiline=layouts.MultilineChartContent(tag=["(mean_)?gradients/log10_(first|middle|last)_layer"]),
    )
    median, smallest, largest = (f"gradients/log10_{word}_of_layers" for word in ("median", "smallest", "largest"))
    band = _margin("gradient norm over the layers: median, smallest to largest (log10)", median, smallest, largest)
    learning = [
        layouts.Chart(
            title=title, multiline=layouts.MultilineChartContent(tag=[f"(mean_)?{title}/(train|validation|test)"])
        )
        for title in ("loss", "accuracy")[: 1 + classes]
    ]
    return _layout({"gradients over the steps": [layers, band], "learning": learning})


def of_cells(found: Collection[str]) -> Summary.Value:
    """Return the charts of cells for those of the tags of means that are there."""
    charts: dict[str, list[layouts.Chart]] = {}
    for tag in tags.MEANS:
        if f"mean_{tag}" in found:
            group, _, name = tag.partition("/")
            ends = (tags.interval(tag, end) for end in ("low", "high"))
            title = f"mean and 95 % interval over the seeds: {group.replace('_', ' ')}"
            charts.setdefault(title, []).append(_margin(name.replace("_", " "), f"mean_{tag}", *ends))
    return _layout(charts)


def _margin(title: str, value: str, lower: str, upper: str) -> layouts.Chart:
    series = layouts.MarginChartContent.Series(value=value, lower=lower, upper=upper)
    return layouts.Chart(title=title, margin=layouts.MarginChartContent(series=[series]))


def _layout(charts: dict[str, list[layouts.Chart]]) -> Summary.Value:
    categories = [layouts.Category(title=title, chart=content) for title, content in charts.items()]
    content = layouts.Layout(category=categories).SerializeToString()
    return string_value("custom_scalars__config__", "custom_scalars", content)
