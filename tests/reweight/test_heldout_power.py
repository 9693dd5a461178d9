"""Sizes of held-out rows by power: against simulation, the default, the note where they are too few, and what a run's own rows say."""

import json
import math
import warnings
from dataclasses import fields

import numpy as np
import pytest
from document_blocks import ROOT
from scipy.stats import ttest_1samp

from dynadapt.common.notes import RunNote
from dynadapt.experiments.reweight import ReweightConfig
from dynadapt.experiments.reweight import heldout_power as held
from dynadapt.runs.rundir import read_json


@pytest.mark.parametrize("spread, difference", [(0.114, 0.1), (0.3, 0.1), (0.2, 0.2)])
def test_the_number_of_rows_finds_the_difference_four_times_of_five(spread, difference):
    rows = held.rows_needed(spread, difference)
    rng = np.random.default_rng(0)

    def called(n: int) -> float:
        return float((ttest_1samp(rng.normal(difference, spread, (4000, n)), 0.0, axis=1).pvalue < held.LEVEL).mean())

    assert called(rows) > 0.77  # the sum over a found spread is a little on the careful side
    assert called(rows - 2 if rows > 4 else 2) < 0.81


def test_more_rows_see_less_and_one_sees_nothing():
    seen = [held.sees(0.2, rows) for rows in (1, 2, 3, 4, 16, 64)]
    assert seen[0] == math.inf and seen == sorted(seen, reverse=True)
    assert held.sees(0.2, held.rows_needed(0.2, 0.05)) <= 0.05 < held.sees(0.2, held.rows_needed(0.2, 0.05) - 1)
    with pytest.raises(ValueError, match="difference 0"):
        held.rows_needed(0.2, 0.0)
    with pytest.raises(ValueError, match="more than"):
        held.rows_needed(5.0, 1e-3)


def test_the_assumed_spreads_are_those_of_the_results_file():
    rows = read_json(ROOT / "benchmarks/results/scratch-rates.json")["spreads"].values()
    assert pytest.approx(max(row["fall_of_last_tenth"] for row in rows), abs=0.001) == held.CHANGES
    assert pytest.approx(max(row["loss"] for row in rows), abs=0.001) == held.LOSSES


def test_the_default_is_enough():
    default = next(field.default for field in fields(ReweightConfig) if field.name == "heldout_rows")
    assert default >= held.rows_needed(held.CHANGES)


def config(**changes) -> ReweightConfig:
    return ReweightConfig(**{"domains": {"a": "a", "b": "b"}, "mixer": "skill-it", **changes})


@pytest.mark.parametrize("rows, says", [(2, "heldout_rows 2 with mixer 'skill-it': .* under [0-9.]+ nats"), (1, "show nothing")])
def test_too_few_are_said_by_name(rows, says):
    with pytest.warns(RunNote, match=says):
        held.check_rows(config(heldout_rows=rows))


@pytest.mark.parametrize("changes", [{}, {"heldout_rows": 2, "mixer": "stratified"}, {"heldout_rows": 2, "mixer": "odm"}])
def test_nothing_is_said_of_enough_or_where_no_mixer_reads_them(changes):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        held.check_rows(config(**changes))


def written(folder, evaluations: list[dict]):
    (folder / "config.json").write_text(json.dumps({"kind": "reweight"}))
    lines = [{"kind": "evaluation", "step": at, "heldout_rows": rows} for at, rows in enumerate(evaluations)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_a_run_says_what_its_own_rows_see(tmp_path):
    rng = np.random.default_rng(3)
    own, noise = rng.normal(3.0, 0.5, 16), rng.normal(0.0, 0.05, (2, 16))
    clear, unclear = [own, own - 0.5, own - 1.0 + noise[0]], [own, own - 0.01, own - 0.01 + noise[1]]
    run = written(tmp_path, [{"clear": list(a), "unclear": list(b)} for a, b in zip(clear, unclear)])
    found = held.of_run(run)
    change = unclear[2] - unclear[0]
    assert found["unclear"]["change"] == pytest.approx(change.mean())
    assert found["unclear"]["change_sees"] == pytest.approx(held.sees(change.std(ddof=1), 16))
    assert found["clear"]["velocity"] == pytest.approx((clear[2] - clear[1]).mean())
    assert found["unclear"]["rows"] == 16 and found["clear"]["change_rows_needed"] == held.rows_needed(noise[0].std(ddof=1))
    said = held.told(found)
    assert "unclear" in said and "; --heldout-rows has more" in said and " clear " not in said


def test_a_run_without_rows_says_nothing(tmp_path):
    assert held.of_run(written(tmp_path, [{"a": [1.0, 2.0]}])) == {} and held.told({}) == ""


def test_rows_without_spread(tmp_path):
    (found,) = held.of_run(written(tmp_path, [{"a": [2.0]}, {"a": [1.0]}])).values()
    assert found["change_sees"] == math.inf and found["change_rows_needed"] is None
