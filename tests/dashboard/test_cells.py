"""The runs of a sweep's cells: means and intervals of the records, and what stands beside them."""

import itertools
import math
import re

import numpy as np
import polars
import pytest
from conftest import configure
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from test_dashboard import OUTCOME, curve, files, make_records, metadata_of, pins, read

from bpexp import dashboard, spec
from bpexp.dashboard import tags
from bpexp.records import RESULTS_FILE, read_sweep, write_records
from bpexp.statistics import mean_interval
from bpexp.sweep.job import existing_names

DEPTH = 2


def scaled(records, factor):
    return records.with_columns(polars.col("value") * factor)


def make_sweep(folder, factors, **others):
    """Leave records and results of a job for each initialization and seed, its records scaled by a factor."""
    rows = []
    for (init, seed), factor in factors.items():
        config = configure({"init.name": init, "seed": seed, "model.depth": DEPTH} | others)
        job = f"init={init},seed={seed}-{seed}{init[:3]}"
        values = {name.removesuffix(".name"): value for name, value in spec.flatten(config).items()}
        rows.append({"job": job, **values, **OUTCOME, "error": None, "test_loss": 0.2, "test_accuracy": 0.9})
        if factor is not None:
            write_records(folder / job, scaled(make_records(DEPTH, last=40), factor))
    results = polars.DataFrame(rows, infer_schema_length=None)
    results.write_parquet(folder / RESULTS_FILE)
    return results


FACTORS = {("he", 0): 1.0, ("he", 1): 2.0, ("he", 2): 4.0, ("glorot", 0): 1.0, ("glorot", 1): 1.5}


def value(measure, layer, step):
    records = make_records(DEPTH, last=40)
    at = (polars.col("measure") == measure) & (polars.col("step") == step) & polars.col("layer").eq_missing(layer)
    return records.filter(at)["value"].item()


def test_means_and_intervals_are_those_of_the_networks(tmp_path):
    results = make_sweep(tmp_path, FACTORS)
    assert dashboard.write_cells(tmp_path, results, 64) == 2
    found = read(tmp_path / "summary/init=he-3_networks")
    factors = [1.0, 2.0, 4.0]
    cases = [("loss/train", "train_loss", None, step, step, False) for step in range(0, 41, 10)]
    cases += [("accuracy/test", "test_accuracy", None, 20, 20, False)]
    cases += [("gradients/log10_middle_layer", "grad_norm", 2, 30, 30, True)]
    cases += [("gradients/log10_whole_network", "grad_norm", None, 30, 30, True)]
    for end, step in (("first", 0), ("last", 40)):
        cases += [(f"by_layer/log10_delta_rms_{end}_step", "delta_rms", layer, step, layer, True) for layer in (1, 3)]
    for tag, measure, layer, step, place, logged in cases:
        values = [factor * value(measure, layer, step) for factor in factors]
        expected = mean_interval([math.log10(one) for one in values] if logged else values)
        for name, number in (
            (f"mean_{tag}", expected.mean),
            (tags.interval(tag, "low"), expected.low),
            (tags.interval(tag, "high"), expected.high),
        ):
            assert curve(found, name)[place] == pytest.approx(number, rel=1e-5), (name, place)
    assert set(curve(found, "mean_loss/train")) == set(range(0, 41, 10))
    assert set(curve(found, "cell/networks").values()) == {3}
    assert {f"mean_{tag}" for tag in tags.MEANS} <= found.keys()


def test_a_network_that_ended_early_counts_as_far_as_it_came(tmp_path):
    results = make_sweep(tmp_path, FACTORS)
    short = scaled(make_records(DEPTH, last=20), 2.0)
    bad = (polars.col("measure") == "delta_rms") & (polars.col("step") == 20) & (polars.col("layer") == 1)
    write_records(
        tmp_path / results["job"][1], short.with_columns(value=polars.when(bad).then(math.inf).otherwise("value"))
    )
    dashboard.write_cells(tmp_path, results, 64)
    found = read(tmp_path / "summary/init=he-3_networks")
    assert curve(found, "cell/networks") == {0: 3, 10: 3, 20: 3, 30: 2, 40: 2}
    last = curve(found, "mean_by_layer/log10_delta_rms_last_step")
    ends = [value("delta_rms", 2, 40), 2 * value("delta_rms", 2, 20), 4 * value("delta_rms", 2, 40)]
    assert last[2] == pytest.approx(np.log10(ends).mean(), rel=1e-5)
    finite = [value("delta_rms", 1, 40), 4 * value("delta_rms", 1, 40)]
    assert last[1] == pytest.approx(np.log10(finite).mean(), rel=1e-5)


def test_a_single_network_has_no_interval(tmp_path):
    results = make_sweep(tmp_path, FACTORS | {("lecun", 0): 1.0, ("zeros", 0): None})
    assert dashboard.write_cells(tmp_path, results, 64) == 3  # the one without records has no run
    found = read(tmp_path / "summary/init=lecun-1_networks")
    assert not [tag for tag in found if tag.startswith(tags.INTERVALS)]
    assert "mean_loss/train" in found


def test_cells_of_one_network_each_need_no_means(tmp_path):
    results = make_sweep(tmp_path, FACTORS)
    dashboard.write_cells(tmp_path, results, 64)
    (tmp_path / "summary/notes.txt").write_text("mine")
    assert dashboard.write_cells(tmp_path, results.filter(polars.col("seed") == 0), 64) == 0
    assert files(tmp_path / "summary") == ["notes.txt"]  # those of the earlier command are gone


def test_only_so_many_cells_and_the_table_names_all(tmp_path):
    results = make_sweep(tmp_path, FACTORS)
    dashboard.write_cells(tmp_path, results, 64)
    assert dashboard.write_cells(tmp_path, results, 1) == 1
    runs = [path.name for path in (tmp_path / "summary").glob("*/")]
    assert len(runs) == 1
    for path in (tmp_path / "summary").glob("*/"):
        assert len(files(path)) == 1
    (event,) = (tmp_path / "summary").glob("*tfevents*")
    folder = tmp_path / "alone"
    folder.mkdir()
    (folder / event.name).write_bytes(event.read_bytes())
    found = read(folder)
    table = found["cells"][0][1].item().decode()
    assert table.startswith("1 of 2 cells have a run")
    assert len(re.findall(r"^\| init=(?:he-3|glorot-2)_networks \|", table, re.MULTILINE)) == 2
    assert table.count("| yes |") == 1
    assert dashboard.write_cells(tmp_path, results, 0) == 0
    assert not (tmp_path / "summary").exists()
    assert not (tmp_path / ".charts").exists()


def test_charts_and_descriptions(tmp_path):
    dashboard.write_cells(tmp_path, make_sweep(tmp_path, FACTORS), 64)
    run = tmp_path / "summary/init=he-3_networks"
    found = read(run)
    for tag, meta in metadata_of(run).items():
        assert meta.summary_description == tags.describe(tag)
    ((_, content),) = read(tmp_path / ".charts")["custom_scalars__config__"]
    charts = [chart for category in Layout.FromString(content.item()).category for chart in category.chart]
    series = [one for chart in charts for one in chart.margin.series]
    assert len(series) == len(tags.MEANS)
    assert {tag for one in series for tag in (one.value, one.lower, one.upper)} <= found.keys()


def test_no_section_is_empty_where_cells_alone_are_shown(tmp_path):
    results = make_sweep(tmp_path, FACTORS)
    dashboard.write_run(tmp_path / results["job"][0], make_records(DEPTH), configure({"model.depth": DEPTH}), OUTCOME)
    dashboard.write_cells(tmp_path, results)
    layouts = {}
    for run in (".charts", results["job"][0]):
        ((_, content),) = read(tmp_path / run)["custom_scalars__config__"]
        layouts[run] = Layout.FromString(content.item()).category
    assert min(layouts) == ".charts"  # TensorBoard joins them in the order of their runs
    found = read(tmp_path / "summary/init=he-3_networks")
    for category in itertools.chain(*layouts.values()):
        wanted = [tag for chart in category.chart for tag in chart.multiline.tag]
        wanted += [re.escape(one.value) for chart in category.chart for one in chart.margin.series]
        assert any(re.match(one, tag) for one in wanted for tag in found), category.title


def test_no_hint_where_there_is_no_event_file(tmp_path):
    make_sweep(tmp_path, FACTORS)
    assert dashboard.hint(tmp_path) == ""


def test_the_summary_is_no_job(tmp_path):
    results = make_sweep(tmp_path, FACTORS)
    before = read_sweep(tmp_path)
    dashboard.write_cells(tmp_path, results, 64)
    assert read_sweep(tmp_path).equals(before)
    names = existing_names(tmp_path)
    assert {names[job.rpartition("-")[2]] for job in results["job"]} == set(results["job"])


def test_link_and_hint_of_a_sweep_with_cells(tmp_path, monkeypatch):
    sweep = tmp_path / "outputs/gradient_flow"
    sweep.mkdir(parents=True)
    results = make_sweep(sweep, FACTORS)
    dashboard.write_run(sweep / results["job"][0], make_records(DEPTH), configure({"model.depth": DEPTH}), OUTCOME)
    dashboard.write_cells(sweep, results, 64)
    monkeypatch.chdir(tmp_path)
    command, url, bands = dashboard.hint(sweep).splitlines()
    assert bands.startswith("Custom Scalars (mean and 95 % interval over the seeds): filter runs by summary/")
    runs = [path.relative_to(sweep).as_posix() for path in sweep.glob("*/*/")]
    assert [run for run in runs if re.search(bands.rpartition(" ")[2], run)] == ["summary/init=glorot-2_networks"]
    assert "# 1 of 5 networks and the means of 2 cells; " in command
    assert len(url) < 600
    query, cards = pins(url)
    assert {card["tag"] for card in cards} <= read(sweep / "summary/init=he-3_networks").keys()
    shown = [f"gradient_flow/summary/init={name}_networks" for name in ("he-3", "glorot-2")]
    assert all(re.search(query["runFilter"], run) for run in shown)
    assert not re.search(query["runFilter"], f"gradient_flow/{results['job'][0]}")
    expression = query["runColorGroup"].removeprefix("regex:")
    assert {re.search(expression, run).groups() for run in shown} == {("he",), ("glorot",)}


def test_what_an_option_decides_names_no_cell(tmp_path):
    results = make_sweep(tmp_path, FACTORS)
    results = results.with_columns(
        polars.when(polars.col("init") == "he").then(None).otherwise("init.bias_std").alias("init.bias_std")
    )
    dashboard.write_cells(tmp_path, results, 64)
    assert (tmp_path / "summary/init=he-3_networks").is_dir()


def test_a_run_that_is_not_shown_leaves_no_old_curves(tmp_path):
    dashboard.write_run(tmp_path, make_records(DEPTH), configure({"model.depth": DEPTH}), OUTCOME)
    (tmp_path / "run.json").touch()
    dashboard.remove_run(tmp_path)
    assert files(tmp_path) == ["run.json"]
