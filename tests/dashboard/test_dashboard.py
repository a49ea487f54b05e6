import json
import math
import re
import urllib.parse
from pathlib import Path

import numpy as np
import polars
import pytest
from conftest import configure
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader, LegacyEventFileLoader
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams import api_pb2, metadata
from tensorboard.util import tensor_util

from bpexp import dashboard
from bpexp.dashboard import heatmap, links, tags
from bpexp.records import SCHEMA, layer_name

ALL_LAYERS = ("preactivation_rms", "delta_rms", "grad_norm", "weight_norm", "update_ratio")
HIDDEN = ("activation_rms", "activation_mean", "dead_fraction", "saturated_fraction")


def value_of(measure, layer, step):
    """Return a number that tells measure, layer and step apart."""
    if measure == "activation_mean":
        return -0.01 * layer
    return 10 ** (-0.1 * layer - 0.001 * step) * (1 + len(measure) / 10)


def make_records(depth, last=100, every=10, *, classes=True, clip=False, until=None, changed=None):
    """Return the records of a run that was measured until `until`; `changed` has values by (measure, layer, step)."""
    rows = []
    steps = {*range(0, last + 1, every), until or last}
    for step in range(last + 1):
        networks = ["train_loss"]
        if step in steps:
            networks += ["val_loss", "test_loss", "grad_norm"] + ["clip_fraction"] * clip
            networks += ["train_accuracy", "val_accuracy", "test_accuracy"] * classes
        rows += [(step, None, None, name, value_of(name, 0, step)) for name in networks]
        if step in steps:
            for name in (*ALL_LAYERS, *HIDDEN):
                for layer in range(1, depth + 1 + (name in ALL_LAYERS)):
                    rows.append((step, layer, layer_name(layer, depth), name, value_of(name, layer, step)))
    rows = [(*row[:4], (changed or {}).get((row[3], row[1], row[0]), row[4])) for row in rows]
    return polars.DataFrame(rows, schema=SCHEMA, orient="row")


OUTCOME = {
    "status": "ok",
    "verdict": "healthy",
    "backward_gain": 0.9,
    "backward_gain_low": 0.8,
    "backward_gain_high": 1.1,
    "trained": True,
    "step": 100,
    "diverged_step": None,
    "diverged_layer": None,
    "train_loss": 0.1,
    "train_accuracy": 0.95,
}


def write(folder, records, values=None, **outcome):
    folder.mkdir(parents=True, exist_ok=True)
    config = configure({"model.depth": records["layer"].max() - 1} | (values or {}))
    dashboard.write_run(folder, records, config, OUTCOME | outcome)
    return folder


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def read(folder):
    """Return the values of a folder's event files as TensorBoard reads them: {tag: [(step, value)]}."""
    found = {}
    for name in files(folder):
        for event in EventFileLoader(str(folder / name)).Load():
            for value in event.summary.value:
                array = tensor_util.make_ndarray(value.tensor)
                found.setdefault(value.tag, []).append((event.step, array))
    return found


def curve(found, tag):
    return {step: float(value) for step, value in found[tag]}


def text(found):
    ((_, value),) = found["verdict"]
    return value.item().decode()


def metadata_of(folder):
    """Return the metadata that the first value of each tag carries."""
    found = {}
    for name in files(folder):
        for event in EventFileLoader(str(folder / name)).Load():
            for value in event.summary.value:
                found.setdefault(value.tag, value.metadata)
    return found


def log10(value):
    return max(math.log10(value), tags.FLOOR) if value else tags.FLOOR


def expected_curves(records, depth):
    """Return each curve from the records, row by row, by another way than the program's."""
    last = records["step"].max()
    measured = set(records.filter(polars.col("measure") != "train_loss")["step"])
    found, band = {}, {}
    for step, layer, _, name, value in records.rows():
        if step not in {*measured, last} or not math.isfinite(value) or (name == "train_loss" and value > 3.5e38):
            continue
        for tag, place, shown in expected_points(name, layer, step, value, depth, max(measured)):
            found.setdefault(tag, {})[place] = shown
        if layer and name == "grad_norm":
            band.setdefault(step, []).append(log10(value))
    for word, reduce in (("median", np.median), ("smallest", min), ("largest", max)):
        if band:
            found[f"gradients/log10_{word}_of_layers"] = {step: reduce(values) for step, values in band.items()}
    return found


def expected_points(name, layer, step, value, depth, last):
    """Yield the points that a row of the records gives: tag, place, value."""
    part, _, quantity = name.partition("_")
    if layer is None and part in tags.PARTS:
        yield f"{quantity}/{tags.PARTS[part]}", step, value
    if name == "clip_fraction":
        yield "clipping/clip_fraction", step, value
    if layer is None and name == "grad_norm":
        yield "gradients/log10_whole_network", step, log10(value)
    if layer and name in tags.PROFILES:
        for end in ["first"] * (step == 0) + ["last"] * (step == last > 0):
            yield f"by_layer/log10_{name}_{end}_step", layer, log10(value)
    if layer and name == "grad_norm":
        for place, which in (("first", 1), ("middle", (depth + 1) // 2 + 1), ("last", depth + 1)):
            if layer == which:
                yield f"gradients/log10_{place}_layer", step, log10(value)


INFINITE = {("delta_rms", 3, 30): math.inf, ("delta_rms", 2, 30): math.nan, ("train_loss", None, 30): math.nan}
HUGE = {("train_loss", None, 20): 4e38, ("delta_rms", 1, 20): 1e200}
ZEROS = {("grad_norm", layer, step): 0.0 for layer in (1, 2) for step in (20, 40)} | {("delta_rms", 1, 0): 1e-60}
RUNS = {
    "one-layer": (1, {}),
    "four": (4, {}),
    "sixty-four": (64, {}),
    "at-initialization": (4, {"last": 0}),
    "regression": (4, {"classes": False}),
    "clipped": (4, {"clip": True}),
    "uneven-last-step": (4, {"last": 47}),
    "diverged": (4, {"last": 30, "changed": INFINITE}),
    "diverged-between-measures": (4, {"last": 35, "until": 30, "changed": {("train_loss", None, 35): math.nan}}),
    "partly-diverged": (4, {"last": 20, "changed": {("grad_norm", 2, 20): math.inf, ("grad_norm", 3, 10): math.nan}}),
    "all-diverged": (4, {"last": 10, "changed": {("grad_norm", layer, 10): math.nan for layer in (1, 2, 3, 4, 5)}}),
    "beyond-float32": (4, {"last": 30, "changed": HUGE}),
    "zeros": (4, {"last": 40, "changed": ZEROS}),
}


@pytest.mark.parametrize("name", RUNS)
def test_curves_are_those_of_the_records(tmp_path, name):
    depth, options = RUNS[name]
    records = make_records(depth, **options)
    found = read(write(tmp_path / "job", records))
    groups = ("by_layer", "gradients", "loss", "accuracy", "clipping")
    curves = {tag: curve(found, tag) for tag in found if tag.partition("/")[0] in groups}
    expected = expected_curves(records, depth)
    assert curves.keys() == expected.keys()
    for tag, points in expected.items():
        assert curves[tag] == pytest.approx(points, rel=1e-6), tag
        assert len(found[tag]) == len(points), tag


def test_zeros_and_values_not_finite_are_counted(tmp_path):
    runs = {
        "four": ({}, {}),
        "diverged-between-measures": ({}, {"not_finite/train_loss": {35: 1}}),
        "beyond-float32": ({}, {"not_finite/train_loss": {20: 1}}),
        "zeros": ({"zeros/grad_norm": {0: 0, 10: 0, 20: 2, 30: 0, 40: 2}}, {}),
        "diverged": ({}, {"not_finite/delta_rms": {30: 2}, "not_finite/train_loss": {30: 1}}),
    }
    for name, (zeros, not_finite) in runs.items():
        depth, options = RUNS[name]
        found = read(write(tmp_path / name, make_records(depth, **options)))
        counts = {tag: curve(found, tag) for tag in found if tag.startswith(("zeros/", "not_finite/"))}
        assert set(counts) == {*zeros, *not_finite}
        for tag, points in (zeros | not_finite).items():
            steps = {*range(0, options["last"] + 1, 10), *points}
            assert counts[tag] == dict.fromkeys(steps, 0) | points


def test_the_floor_is_where_float32_ends():
    assert math.floor(math.log10(np.finfo(np.float32).smallest_subnormal)) == tags.FLOOR


def test_last_layer_and_middle_of_one_hidden_layer(tmp_path):
    found = read(write(tmp_path / "job", make_records(1)))
    first, middle, last = (curve(found, f"gradients/log10_{place}_layer") for place in ("first", "middle", "last"))
    assert first[0] == pytest.approx(log10(value_of("grad_norm", 1, 0)))
    assert middle[0] == last[0] == pytest.approx(log10(value_of("grad_norm", 2, 0)))


def test_more_steps_than_are_shown_are_thinned(tmp_path, monkeypatch):
    monkeypatch.setattr(dashboard, "MOST_STEPS", 5)
    found = read(write(tmp_path / "job", make_records(2)))
    assert list(curve(found, "loss/test")) == [0, 20, 50, 80, 100]
    assert curve(found, "by_layer/log10_delta_rms_last_step")[1] == pytest.approx(log10(value_of("delta_rms", 1, 100)))


def test_scalars_are_plain_values_for_other_readers(tmp_path):
    folder = write(tmp_path / "job", make_records(2))
    (name,) = files(folder)
    kinds, described = {}, {}
    for event in LegacyEventFileLoader(str(folder / name)).Load():
        for value in event.summary.value:
            kinds.setdefault(value.WhichOneof("value"), set()).add(value.tag)
            described.setdefault(value.tag, value.metadata)
    assert {"by_layer/log10_delta_rms_first_step", "loss/train", "outcome/verdict"} <= kinds["simple_value"]
    assert kinds["image"] == {"heatmap/delta_rms", "heatmap/grad_norm"}
    # Without its plugin's name TensorBoard's fast loader drops a description.
    for kind, plugin in (("simple_value", "scalars"), ("image", "images")):
        assert {described[tag].plugin_data.plugin_name for tag in kinds[kind]} == {plugin}


def test_first_event_is_the_version_and_steps_rise(tmp_path):
    folder = write(tmp_path / "job", make_records(4))
    (name,) = files(folder)
    first, *events = LegacyEventFileLoader(str(folder / name)).Load()
    assert first.file_version == "brain.Event:2"
    steps = [event.step for event in events]
    assert steps == sorted(set(steps))


def test_outcome(tmp_path):
    rows = {
        "vanishing": ({"verdict": "vanishing", "trained": False}, {"verdict": -1, "backward_gain": 0.9, "trained": 0}),
        "exploding": ({"verdict": "exploding", "backward_gain": None}, {"verdict": 1, "trained": 1}),
        "diverged": (
            {"status": "diverged", "diverged_step": 70, "diverged_layer": 2},
            {"verdict": 0, "backward_gain": 0.9, "trained": 1, "diverged_step": 70, "diverged_layer": 2},
        ),
    }
    for name, (outcome, expected) in rows.items():
        found = read(write(tmp_path / name, make_records(2), **outcome))
        values = {tag: curve(found, tag) for tag in found if tag.startswith("outcome/")}
        assert values == {f"outcome/{key}": {100: pytest.approx(value)} for key, value in expected.items()}


def test_every_tag_says_what_it_means(tmp_path):
    shown = set()
    for name, (depth, options) in RUNS.items():
        outcome = {"status": "diverged", "diverged_step": 30, "diverged_layer": 2} if name == "diverged" else {}
        for tag, meta in metadata_of(write(tmp_path / name, make_records(depth, **options), **outcome)).items():
            if tag.partition("/")[0] in ("_hparams_", "custom_scalars__config__", "verdict"):
                continue
            shown.add(tag)
            assert meta.summary_description == tags.describe(tag)
    assert {*tags.PINS, *tags.PINS_OF_ONE_RUN, *tags.METRICS} <= shown
    for measure in tags.PROFILES:
        for step in ("first", "last"):
            assert tags.define(measure) in tags.describe(f"by_layer/log10_{measure}_{step}_step")
    with pytest.raises(KeyError):
        tags.describe("loss/other")


def test_hyperparameters_and_metrics(tmp_path):
    values = {"init.name": "he", "optimizer.lr": 0.1, "model.activation": "relu"}
    folder = tmp_path / "depth=4,lr=0.1,seed=0-0123456789"
    contents = {
        tag: meta.plugin_data.content
        for tag, meta in metadata_of(write(folder, make_records(4), values)).items()
        if meta.plugin_data.plugin_name == metadata.PLUGIN_NAME
    }
    start = metadata.parse_session_start_info_plugin_data(contents[metadata.SESSION_START_INFO_TAG])
    assert start.hparams["model.depth"].number_value == 4
    assert start.hparams["optimizer.lr"].number_value == 0.1
    assert start.hparams["init"].string_value == "he"
    assert not {"device", "debug", "sweep.executor", "optimizer.momentum"} & set(start.hparams)
    experiment = metadata.parse_experiment_plugin_data(contents[metadata.EXPERIMENT_TAG])
    assert set(start.hparams) <= {info.name for info in experiment.hparam_infos}
    assert {info.name for info in experiment.hparam_infos if info.differs} == {"model.depth", "optimizer.lr", "seed"}
    assert tuple(info.name.tag for info in experiment.metric_infos) == tags.METRICS
    end = metadata.parse_session_end_info_plugin_data(contents[metadata.SESSION_END_INFO_TAG])
    assert end.status == api_pb2.STATUS_SUCCESS


def test_hyperparameters_of_a_single_and_of_a_diverged_regression(tmp_path):
    records = make_records(2, classes=False)
    found = metadata_of(write(tmp_path / "0123456789", records, status="diverged", diverged_step=3))
    experiment = metadata.parse_experiment_plugin_data(found[metadata.EXPERIMENT_TAG].plugin_data.content)
    assert {info.name for info in experiment.hparam_infos if info.differs} == set(dashboard.AXES)
    assert not any("accuracy" in info.name.tag for info in experiment.metric_infos)
    end = metadata.parse_session_end_info_plugin_data(found[metadata.SESSION_END_INFO_TAG].plugin_data.content)
    assert end.status == api_pb2.STATUS_FAILURE


def test_charts_name_tags_that_are_there(tmp_path):
    for classes in (True, False):
        found = read(write(tmp_path / str(classes), make_records(4, classes=classes)))
        ((_, content),) = found["custom_scalars__config__"]
        charts = [chart for category in Layout.FromString(content.item()).category for chart in category.chart]
        assert len(charts) == 3 + classes
        patterns = [tag for chart in charts for tag in chart.multiline.tag]
        patterns += [tag for chart in charts for s in chart.margin.series for tag in (s.value, s.lower, s.upper)]
        assert len(patterns) == 5 + classes
        for pattern in patterns:
            assert any(re.match(pattern, tag) for tag in found), pattern


def test_a_rerun_replaces_the_file(tmp_path):
    folder = write(tmp_path / "job", make_records(4))
    (first,) = files(folder)
    (folder / "records.parquet").touch()
    write(folder, make_records(4, last=50))
    second, other = files(folder)
    assert other == "records.parquet"
    assert second > first
    assert list(curve(read_one(folder / second), "loss/test")) == [0, 10, 20, 30, 40, 50]


def read_one(path):
    found = {}
    for event in EventFileLoader(str(path)).Load():
        for value in event.summary.value:
            found.setdefault(value.tag, []).append((event.step, tensor_util.make_ndarray(value.tensor)))
    return found


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    folder = write(tmp_path / "job", make_records(4))
    before = {name: (folder / name).read_bytes() for name in files(folder)}
    seen = []

    def interrupt(path, target):
        seen.append(path.name)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write(folder, make_records(4, last=50))
    assert {name: (folder / name).read_bytes() for name in files(folder)} == before
    assert "tfevents" not in seen[0]  # a half-written file must not be read


def test_heatmap_in_the_file_is_that_of_the_records(tmp_path):
    found = read(write(tmp_path / "job", make_records(4, last=20)))
    for name in tags.HEATMAPS:
        ((step, (width, height, png)),) = found[f"heatmap/{name}"]
        grid = np.array([[value_of(name, layer, step) for step in (0, 10, 20)] for layer in range(1, 6)])
        assert step == 20
        assert (int(width), int(height)) == (heatmap.WIDTH, heatmap.HEIGHT)
        assert png == heatmap.draw(f"{name} of each layer and step", grid, (0, 10, 20))


def test_verdict_in_words(tmp_path):
    down = {("delta_rms", layer, step): 0.1 ** (4 - layer) for layer in (1, 2, 3, 4) for step in (0, 100)}
    none = {("delta_rms", 1, 0): 0.0, ("delta_rms", 1, 100): math.nan}
    lost = {"verdict": "vanishing", "backward_gain": 0.1, "trained": False}
    cases = [
        (
            {},
            {},
            ["healthy", "4 hidden layers of 64 tanh units", "It trained", "0.9 (interval 0.8 to 1.1)", "| 0.95 |"],
        ),
        (down, lost, ["vanishing", "shrinks by a factor of 1e+03", "init.gain=10", "residual=plain", "did not train"]),
        (none, lost | {"backward_gain": None}, ["0 at layer 1", "not a number", "model.residual=plain"]),
        (
            {},
            {"verdict": "exploding", "backward_gain": 2.0},
            ["exploding", "grows by a factor of 2 ", "init.gain=0.5", "clip=norm"],
        ),
        (
            {},
            {"status": "diverged", "diverged_step": 7, "diverged_layer": 3},
            ["diverged (healthy)", "At step 7", "at layer 3", "optimizer.lr=0.005"],
        ),
        ({}, {"trained": False}, ["train.steps=400", "optimizer.lr=0.15"]),
    ]
    for number, (changed, outcome, words) in enumerate(cases):
        found = text(read(write(tmp_path / str(number), make_records(4, changed=changed), **outcome)))
        for word in words:
            assert word in found, (word, found)


def pins(url):
    parts = urllib.parse.urlsplit(url)
    query = dict(urllib.parse.parse_qsl(parts.query, strict_parsing=True))
    assert parts.fragment == "timeseries"
    assert re.fullmatch(r"[\w:/?=&%.,#^*+-]+", url), url  # nothing at which a terminal would end the link
    return query, json.loads(query["pinnedCards"])


def test_link_of_a_sweep(tmp_path):
    outputs = tmp_path / "outputs"
    sweep = outputs / "gradient_flow"
    for depth in (2, 3):
        for init in ("he", "glorot"):
            name = f"depth={depth},activation=tanh,init={init},seed=0-{depth}{init[:2]}456789a"
            write(sweep / name, make_records(depth))
    query, cards = pins(dashboard.link(outputs, sweep, 7007))
    assert [card["tag"] for card in cards] == [*tags.PINS]
    assert {card["tag"] for card in cards} <= read(sweep / name).keys()
    assert query["smoothing"] == "0"
    kind, _, expression = query["runColorGroup"].partition(":")
    assert kind == "regex"
    groups = {re.search(expression, name).groups() for name in files(sweep)}
    assert groups == {("he",), ("glorot",)}
    assert all(re.search(query["runFilter"], f"gradient_flow/{name}") for name in files(sweep))
    assert not re.search(query["runFilter"], "overfitting/0123456789")
    # The report's runs lie in folders of their own below its folder.
    above = dashboard.link(tmp_path, outputs)
    assert pins(above)[0]["runColorGroup"] == query["runColorGroup"]


def test_colours_of_a_sweep_are_what_was_swept():
    sweeps = [
        (["lr=1e-05,seed=0-0123456789", "lr=0.1,seed=1-0123456789"], {("1e-05",), ("0.1",)}),
        (["seed=0,lr=1e-05-0123456789", "seed=1,lr=0.1-0123456789"], {("1e-05",), ("0.1",)}),
        (["depth=2,lr=1,seed=0-01234", "depth=3,lr=1,seed=0-01235"], {("2",), ("3",)}),
        (["activation=relu,init=he-01234", "activation=tanh,init=lecun-01235"], {("relu", "he"), ("tanh", "lecun")}),
        (["activation=relu,init=he,seed=0-0", "activation=tanh,init=he,seed=0-1"], {("relu",), ("tanh",)}),
    ]
    for names, groups in sweeps:
        assert {re.search(links._colours(names), name).groups() for name in names} == groups
    many = [f"activation={a},init={i}-01234" for a in ("relu", "tanh") for i in ("he", "lecun", "glorot", "zeros")]
    assert {re.search(links._colours(many), name).groups() for name in many} == {("relu",), ("tanh",)}
    assert links._colours(["seed=0-01234", "seed=1-01235"]) == ""
    assert links._colours(["0123456789"]) == ""


def test_link_and_hint_of_a_single_run(tmp_path, monkeypatch):
    job = write(tmp_path / "outputs" / "gradient_flow" / "0123456789", make_records(4))
    query, cards = pins(dashboard.link(tmp_path / "outputs", job))
    assert re.search(query["runFilter"], "gradient_flow/0123456789")
    assert not re.search(query["runFilter"], "gradient_flow/0123456788")
    assert "runColorGroup" not in query
    assert {card["tag"] for card in cards} <= read(job).keys()
    images = [card for card in cards if card["plugin"] == "images"]
    assert [card["tag"] for card in images] == ["heatmap/delta_rms", "heatmap/grad_norm"]
    assert {card["runId"] for card in images} == {"defaultExperimentId/gradient_flow/0123456789"}
    monkeypatch.chdir(tmp_path)
    command, url = dashboard.hint(Path("outputs/gradient_flow/0123456789")).splitlines()
    assert command.startswith("tensorboard --logdir outputs ")
    assert url == dashboard.link(tmp_path / "outputs", job)


def test_hint_outside_of_outputs(tmp_path):
    sweep = tmp_path / "my sweep"
    job = write(sweep / "depth=2-0123456789", make_records(2))
    for folder in (sweep, job):
        command, url = dashboard.hint(folder).splitlines()
        assert command.startswith(f"tensorboard --logdir '{sweep}' ")
        assert url.startswith("http://localhost:6006/?")
    write(sweep / "depth=3-0123456780", make_records(3))
    assert "runFilter" not in pins(dashboard.hint(sweep).splitlines()[1])[0]
