"""The ledger: its rows, its command, and what it keeps."""

import dataclasses

import polars
import pytest

from bpexp import entry
from bpexp.statistics import mean_interval
from experiments import claims, ledger, published
from experiments.claims_text import claims_answer, claims_table
from experiments.gradient_flow_claims import GAINS_1
from experiments.gradient_flow_quantities import MEASURES, length_change, variance_error
from experiments.ledger import Claim, Study, Sweep, claim_table, compute_claims
from experiments.page import Section

COLUMNS = "claim title expected low high measured measured_low measured_high verdict control_verdict seeds command"


def test_a_command_can_be_pasted_into_a_shell():
    assert GAINS_1.command(5) == (
        "python -m experiments.gradient_flow -m model.depth=20 model.width=256 model.activation=tanh,relu "
        "init=pytorch,he train.steps=0 'seed=range(5)'"
    )


def test_the_ledger_has_its_columns_without_rows():
    table = claim_table([])
    assert set(COLUMNS.split()) <= set(table.columns)
    assert claims_table(table).rows == ()


def test_every_claim_can_be_told_and_has_bounds_around_what_is_expected():
    every = [claim for claim, _ in claims.choose(None)]
    assert len({claim.title for claim in every}) == len(every)
    assert [claim.claim for claim in every] == sorted(claim.claim for claim in every)
    sweeps = {claim.sweep.name: claim.sweep for claim in every}
    for claim in every:
        assert claim.low <= claim.expected <= claim.high, claim.title
        assert claim.wrong is not None or claim.where != claim.control, claim.title
        assert claim.sweep is sweeps[claim.sweep.name], claim.title


def test_every_claim_is_tested_at_full_scale_with_several_seeds():
    for claim, _ in claims.choose(None):
        assert claim.sweep.seeds.keys() <= claims.SCALES.keys()
        assert claim.sweep.seeds["full"] >= 5, claim.sweep.name
        assert all(seeds > 1 for seeds in claim.sweep.seeds.values())


def row(claim, verdict, control="refuted"):
    return {"claim": claim, "verdict": verdict, "control_verdict": control}


ANSWERS = [
    ([row(2, "confirmed")], "Claim 2: 1 of 1 checks are confirmed, 0 inconclusive, 0 refuted."),
    (
        [row(10, "confirmed"), row(2, "refuted"), row(2, "confirmed"), row(8, "inconclusive")],
        "Claims 2, 8 and 10: 2 of 4 checks are confirmed, 1 inconclusive, 1 refuted.",
    ),
    (
        [row(1, "confirmed"), row(2, "confirmed", "confirmed")],
        "Claims 1 and 2: 2 of 2 checks are confirmed, 0 inconclusive, 0 refuted."
        " The negative controls of 1 of them are not refuted, so that these show nothing.",
    ),
]


@pytest.mark.parametrize(("rows", "text"), ANSWERS)
def test_the_answer_counts_verdicts_and_controls(rows, text):
    assert claims_answer(polars.DataFrame(rows)) == text


SMALL = Sweep(
    "small",
    ("model.depth=2", "model.width=8", "model.activation=relu", "init=lsuv,orthogonal", "train.steps=0"),
    {"smoke": 2},
)
SMALL_CLAIMS = (
    Claim(13, "unit variance", 0.0, 0.0, 0.1, SMALL, {"init": "lsuv"}, {"init": "orthogonal"}, variance_error),
    Claim(2, "no change", 0.0, 0.0, 1e-6, SMALL, {"init": "lsuv"}, {"init": "orthogonal"}, length_change),
)


def test_a_scale_runs_the_sweeps_that_it_gives_seeds(tmp_path):
    table = compute_claims(SMALL_CLAIMS, MEASURES, "smoke", tmp_path)
    assert table["claim"].to_list() == [2, 13]
    assert table["verdict"].to_list() == ["refuted", "confirmed"]
    assert table["seeds"].to_list() == [2, 2]
    assert (tmp_path / "small" / "results.parquet").exists()
    assert compute_claims(SMALL_CLAIMS, MEASURES, "full", tmp_path).is_empty()


@pytest.mark.parametrize(("error", "fails"), [("init: lsuv: dead", False), ("RuntimeError: it broke", True)])
def test_a_network_that_cannot_start_is_a_result_and_one_that_breaks_is_not(tmp_path, monkeypatch, error, fails):
    def call(experiment, arguments):
        polars.DataFrame({"job": ["a", "b"], "status": ["ok", "failed"], "error": [None, error]}).write_parquet(
            tmp_path / "results.parquet"
        )
        raise entry.FailedJobsError(error)

    monkeypatch.setattr(ledger.entry, "call", call)
    if fails:
        with pytest.raises(entry.FailedJobsError, match="it broke"):
            ledger.run(SMALL, 2, tmp_path)
    else:
        ledger.run(SMALL, 2, tmp_path)


# The command, with two studies in place of all.


def value_of(rows, records):
    return mean_interval(rows["value"])


class Counting:
    """Stands for what a study computes: case k of seed s has the value k + s / 1000; `calls` are the seeds asked."""

    def __init__(self):
        self.calls = []

    def __call__(self, seeds):
        self.calls.append(seeds)
        rows = [
            {"seed": seed, "case": case, "value": case + seed / 1000} for seed in range(seeds) for case in (0, 1, 2)
        ]
        return polars.DataFrame(rows)


def claim_of(number, title, expected, study, case, control):
    where, other = {"case": case}, {"case": control}
    return Claim(number, title, expected, expected - 0.1, expected + 0.1, study, where, other, value_of)


@pytest.fixture
def studies(tmp_path, monkeypatch):
    """Let the ledger have one claim of a quick study, and two of one of full scale; nothing is published."""
    quick, slow = Counting(), Counting()
    studies = Study("quick", quick, {"smoke": 2, "default": 3, "full": 4}), Study("slow", slow, {"full": 5})
    table = (
        claim_of(7, "is one", 1.0, studies[0], 1, 0),
        claim_of(3, "is two", 2.0, studies[1], 2, 1),
        claim_of(3, "is five", 5.0, studies[1], 2, 1),
    )
    monkeypatch.setattr(claims, "TABLES", ((table, ()),))
    monkeypatch.setattr(published, "FOLDER", tmp_path / "published")
    monkeypatch.chdir(tmp_path)
    return quick, slow


def run(*arguments):
    return entry.main("claims", claims.__doc__, program=claims.program, check=claims.check, arguments=arguments)


def test_the_command_leaves_rows_and_figure_and_keeps_what_a_study_found(studies, tmp_path, capsys):
    assert run("scale=full") == 0
    table = polars.read_parquet("outputs/claims/claims.parquet")
    assert set(COLUMNS.split()) <= set(table.columns)
    assert table.select("claim", "verdict", "control_verdict", "quick", "source").rows() == [
        (3, "confirmed", "refuted", False, "now"),
        (3, "refuted", "refuted", False, "now"),
        (7, "confirmed", "refuted", True, "now"),
    ]
    assert table["command"][2] == "python -m experiments.claims scale=full only=quick"
    assert (tmp_path / "outputs/claims/figures/claims.svg").read_text().startswith("<svg")
    shown = capsys.readouterr().out
    assert "Refuted: 3.2." in shown.replace("\n", " ")
    assert run("scale=full", "only=slow") == 0
    assert polars.read_parquet("outputs/claims/claims.parquet")["row"].to_list() == ["3.1", "3.2"]
    assert run("scale=full", "only=7") == run("only=quick") == 0
    assert [study.calls for study in studies] == [[4, 3], [5]]
    assert polars.read_parquet("outputs/claims/claims.parquet")["claim"].to_list() == [7]


def test_rows_that_a_scale_leaves_out_stand_from_the_published_records(studies, tmp_path):
    whole = claims.compute("full", tmp_path / "full")
    published.write("claims", published.Records(whole, {"commit": None}), lambda records: "", ("claims",))
    assert polars.read_parquet(tmp_path / "published" / "claims.parquet").height == 3
    mixed = claims.compute("default", tmp_path / "default")
    assert mixed["claims"].select("claim", "seeds", "source").rows() == [
        (3, 5, "published"),
        (3, 5, "published"),
        (7, 3, "now"),
    ]
    section = claims.section(mixed)
    assert isinstance(section, Section)
    assert section == claims.section(mixed)
    assert "1 checks were made now, at scale default; 2 stand from the published records" in section.answer
    assert [cells[-1] for cells in section.tables[0].rows] == [
        "published, at full scale",
        "published, at full scale",
        "now, quick",
    ]
    published.write("claims", published.Records(whole, {"commit": "new"}), lambda records: "", ("claims",))
    assert published.read("claims").tables["claims"].equals(whole["claims"])


CHANGED = [{"low": 1.8}, {"title": "is about two"}, {"claim": 5}, {"control": {"case": 0}}]


@pytest.mark.parametrize("changed", CHANGED, ids=lambda changed: next(iter(changed)))
def test_a_published_row_of_a_claim_that_is_no_longer_made_so_is_left_out(
    studies, tmp_path, monkeypatch, capsys, changed
):
    whole = claims.compute("full", tmp_path / "full")
    published.write("claims", published.Records(whole, {"commit": None}), lambda records: "", ("claims",))
    (((first, second, third), measures),) = claims.TABLES
    monkeypatch.setattr(claims, "TABLES", (((first, dataclasses.replace(second, **changed), third), measures),))
    mixed = claims.compute("default", tmp_path / "default")["claims"]
    assert mixed.select("title", "source").rows() == [("is five", "published"), ("is one", "now")]
    assert "1 claims are tested at another scale alone, and not published yet" in capsys.readouterr().err


def test_a_control_can_be_another_law_on_the_same_networks(studies):
    (((first, *_), _),) = claims.TABLES
    twice = dataclasses.replace(
        first, control=first.where, wrong=("twice", lambda rows, _: mean_interval(2 * rows["value"]))
    )
    row = ledger.judge_claim(twice, first.sweep.compute(3), polars.DataFrame())
    assert (row["verdict"], row["control"], row["control_verdict"]) == ("confirmed", "twice", "refuted")
    assert row["control_measured"] == pytest.approx(2 * row["measured"])


def test_a_control_that_is_not_refuted_fails_the_command(studies, monkeypatch, capsys):
    (table, measures), *_ = claims.TABLES
    vain = claim_of(9, "is zero or one", 0.5, table[0].sweep, 0, 1)
    monkeypatch.setattr(claims, "TABLES", (((*table, vain), measures),))
    assert run() == 0
    monkeypatch.setattr(claims, "TABLES", (((*table, claim_of(9, "is one too", 1.0, table[0].sweep, 0, 1)), measures),))
    assert run() == 1
    assert capsys.readouterr().err.endswith("its control is not refuted: claim 9: is one too: confirmed\n")
    assert polars.read_parquet("outputs/claims/claims.parquet").height == 2


MISTAKES = [
    ("only=4", "only: unknown '4'; choose from 3, 7, slow, quick"),
    ("only=quik", "only: unknown 'quik'; did you mean 'quick'? choose from 3, 7, slow, quick"),
    ("only=slow", "only: slow has no seeds at scale=default; choose scale=full"),
    ("scale=huge", "scale: unknown 'huge'; choose from smoke, default, full"),
]


@pytest.mark.parametrize(("argument", "said"), MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(studies, argument, said, tmp_path, capsys):
    assert run(argument) == 2
    assert capsys.readouterr().err == f"{said}\n"
    assert list(tmp_path.iterdir()) == []


def test_the_figure_puts_every_range_on_one_scale():
    from bpexp.figures.claims import FURTHEST, ends, position

    assert [position(value, 2.0, 4.0) for value in (2.0, 3.0, 4.0, 5.0)] == [-1, 0, 1, 2]
    assert ends(position(-1e9, 2.0, 4.0), "o") == "<"
    assert ends(position(1e9, 2.0, 4.0), "o") == ">"
    assert position(float("inf"), 2.0, 4.0) == FURTHEST
    assert [position(value, 1.0, 1.0) for value in (0.9, 1.0, 1.1)] == [-FURTHEST, 0, FURTHEST]
    assert ends(0.0, "o") == "o"
