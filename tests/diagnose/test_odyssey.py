"""What benchmarks/odyssey.py makes of domains: correlations, claims, the table."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks import odyssey, odyssey_page, odyssey_rules


def row(i: int, change: float, verdict: str) -> dict:
    return {
        "domain": f"d{i}",
        "change": change,
        "interval": [change - 0.01, change + 0.01],
        "verdict": verdict,
        "perplexity": {"before": 10.0, "after": 10.0},
        "bits_per_byte": 1.0 - change,
        "divergence": 0.5 + 0.01 * i,
        "top10": {"held_out": 0.8, "tokens": 0.1},
        "largest": ["⏎"],
        "expected": change + 0.02,
        "expected_interval": [change - 0.03, change + 0.07],
        "advice": "adapt" if change + 0.07 < 0 else "no clear gain",
    }


def test_claims_count_what_got_worse_and_rank_what_it_goes_with():
    changes = [-0.3, -0.2, -0.1, 0.05, 0.1]
    rows = [row(i, change, "helps" if change < 0 else "hurts on few types") for i, change in enumerate(changes)]
    found = odyssey_rules.claims(rows)
    at_most = found["10"].pop("share_at_most")
    assert found["10"].pop("share_at_most, untuned") == at_most
    least = found["10"].pop("share seen with 80%")
    seen = [1 - (1 - q) ** 5 - 5 * q * (1 - q) ** 4 for q in (least - 0.01, least)]  # that two of five or more get worse: one would not do
    assert seen[0] < 0.8 <= seen[1] and odyssey_rules.seen_share(9, 6) > odyssey_rules.seen_share(9, 9)
    assert found["10"] == {"domains": 5, "worse": ["d3", "d4"], "diverged": []} and set(found["12"]) == {"d3", "d4"}
    assert sum(math.comb(5, k) * at_most**k * (1 - at_most) ** (5 - k) for k in range(3)) == pytest.approx(0.05)  # of two of five or fewer
    found["10"] |= {"share_at_most": at_most, "share_at_most, untuned": at_most, "share seen with 80%": least}
    near = found["11"]["nearness by bits per byte"]
    assert near["rho"] == pytest.approx(1.0) and near["interval"][1] == pytest.approx(1.0) and near["p"] < 0.05
    assert found["11"]["nearness by divergence"]["rho"] == pytest.approx(-1.0)
    assert found["advice"]["right"] == found["advice"]["decided"] == found["advice"]["always_adapting_right"] == 3
    assert found["advice"]["never_adapting_right"] == 0 and found["advice"]["covered"] == 5
    assert found["advice"]["mean_error"] == pytest.approx(-0.02) and found["advice"]["rank_correlation"]["rho"] == pytest.approx(1.0)
    table = odyssey_page.markdown(
        {"conditions": {"lora": {"rows": rows, "claims": found}, "few": {"rows": rows[:2], "claims": odyssey_rules.claims(rows[:2])}}}
    )
    assert "2 of 5 domains got worse (d3, d4)" in table and "in 2 of the 2 domains" in table and table.count("| d0 |") == 2


def test_what_diverged_is_no_harm_and_takes_part_in_no_claim():
    """Above ln V: by its verdict, or, in rows without one, by its perplexity."""
    rows = [row(i, 0.1 + 0.1 * i, "hurts broadly") for i in range(4)]
    without = odyssey_rules.claims(rows)
    rows += [row(4, 9.0, "diverged"), {**row(5, 14.8, "hurts broadly"), "perplexity": {"before": 27.0, "after": 7e7}}]
    found = odyssey_rules.claims(rows)
    shares = {"share_at_most": 1.0, "share_at_most, untuned": 1.0, "share seen with 80%": odyssey_rules.seen_share(4, 4)}
    assert found["10"] == {"domains": 6, "worse": ["d0", "d1", "d2", "d3"], **shares, "diverged": ["d4", "d5"]}
    assert (found["11"], found["12"]) == (without["11"], without["12"])
    lines = odyssey_page.markdown({"conditions": {"hot": {"rows": rows, "claims": found}}})
    assert "4 of 6 domains got worse" in lines and "Diverged (above ln V), and judged by no claim: d4, d5" in lines


def test_claims_of_the_results_file_are_those_of_its_rows():
    stored = json.loads((Path(__file__).parents[2] / "benchmarks" / "results" / "odyssey.json").read_text())["conditions"]
    plain = lambda content: json.loads(json.dumps(content), parse_float=lambda digits: round(float(digits), 6))  # noqa: E731
    for found in stored.values():
        assert plain(found["claims"]) == plain(odyssey_rules.claims(found["rows"]))


def test_factors_of_the_advice_are_those_of_the_stored_runs():
    from dynadapt.experiments.diagnose.advise import GAIN_FACTOR, RISE_FACTOR

    stored = json.loads((Path(__file__).parents[2] / "benchmarks" / "results" / "odyssey.json").read_text())["conditions"]
    rows = {name: found["rows"] for name, found in stored.items()}
    found = odyssey_rules.over_all(rows)
    assert found["gain"]["factor"] == pytest.approx(GAIN_FACTOR, abs=0.05) and found["rise"]["factor"] == pytest.approx(
        RISE_FACTOR, abs=0.05
    )
    assert found == json.loads((Path(__file__).parents[2] / "benchmarks" / "results" / "odyssey.json").read_text())["advice"]


def test_the_advice_of_all_conditions_together():
    """Three domains foreseen to gain, one of them with the other outcome, and one to rise."""
    rows = [
        row(0, -0.3, "helps"),
        row(1, -0.2, "helps"),
        {**row(2, 0.1, "hurts broadly"), "expected": -0.1, "advice": "adapt"},
        row(3, 0.2, "hurts broadly"),
    ]
    rows[3] |= {"expected": 0.2, "expected_interval": [0.1, 0.3], "advice": "leave it alone"}
    found = odyssey_rules.over_all({"a": rows[:2], "b": rows[2:]})
    assert (found["rows"], found["decided"], found["right"]) == (4, 4, 3)
    assert (found["gain"]["of"], found["gain"]["other_sign"]) == (3, 1) and found["gain"]["factor"] > 1
    assert found["rise"] == {"of": 1, "factor": pytest.approx(1.0), "held": 0, "other_sign": 0}  # no other domain to go by


def test_calibration_leaves_a_domain_out():
    """One domain far off its estimate: its own interval, made from the others, does not hold it."""
    rows = [row(i, -0.2 * (1.0 + 0.1 * i), "helps") for i in range(5)] + [row(5, -5.0, "helps")]
    for one in rows:
        one.update(expected=-0.2, expected_interval=[-0.21, -0.19])
    found = odyssey_rules.calibrated(rows)
    assert (found["held"], found["of"], found["other_sign"]) == (5, 6, 0) and found["factor"] > 5
    rows[0]["expected"] = 0.2
    assert odyssey_rules.calibrated(rows)["other_sign"] == 1 and odyssey_rules.calibrated(rows[:2])["factor"] is None


def test_no_correlation_is_not_called_one():
    assert odyssey_rules.spearman([1, 2, 3, 4, 5, 6, 7, 8], [3, 1, 4, 1.5, 5, 9, 2, 0])["p"] > 0.2


def test_excerpts_are_spread_over_the_documents(tmp_path):
    (tmp_path / "all.jsonl").write_text("".join(json.dumps({"text": str(i) * 50}) + "\n" for i in range(9)))
    few = odyssey.excerpts(tmp_path / "all.jsonl", tmp_path / "out" / "few.jsonl", 10, 3)
    assert [json.loads(line)["text"] for line in few.read_text().splitlines()] == ["0" * 10, "4" * 10, "8" * 10]


def worse(n: int, of: int, kind: str = "hurts broadly") -> list[dict]:
    return [row(i, 0.1 if i < n else -0.1, kind if i < n else "helps") for i in range(of)]


@pytest.mark.parametrize(
    "n, of, verdict",
    [(0, 9, "not decided"), (1, 9, "not decided"), (2, 9, "confirmed"), (9, 9, "confirmed"), (0, 58, "not decided"), (0, 59, "refuted")],
)
def test_claim_10_needs_more_worse_domains_than_chance_gives_or_none_of_so_many_that_they_are_rare(n, of, verdict):
    assert odyssey_rules.claims(worse(n, of))["verdicts"]["10"] == verdict


def test_of_the_domains_that_refute_claim_10_none_may_have_chosen_a_default():
    rows = worse(0, 59)
    rows[0]["domain"] = odyssey_rules.TUNED[0]
    assert odyssey_rules.claims(rows)["verdicts"]["10"] == "not decided"


def test_claim_10_is_open_where_a_domain_is_undecided_and_where_all_diverged():
    rows = [*worse(0, 8), {**row(8, -0.005, "inconclusive")}]
    assert odyssey_rules.claims(rows)["verdicts"]["10"] == "not decided"
    assert odyssey_rules.claims([row(i, 9.0, "diverged") for i in range(4)])["verdicts"]["10"] == "not decided"


@pytest.mark.parametrize(
    "names,ten,twelve", [(1, "confirmed", "confirmed"), (2, "not decided", "confirmed"), (3, "not decided", "not decided")]
)
def test_domains_that_chose_defaults_decide_nothing_alone(names, ten, twelve):
    """Three of nine got worse, of which as many are such."""
    rows = worse(3, 9, "hurts on few types")
    for found, name in zip(rows, odyssey_rules.TUNED[:names]):
        found["domain"] = name
    verdicts = odyssey_rules.claims(rows)["verdicts"]
    assert (verdicts["10"], verdicts["12"]) == (ten, twelve)


@pytest.mark.parametrize(
    "few, of, verdict",
    [(0, 5, "refuted"), (0, 4, "not decided"), (1, 3, "not decided"), (2, 3, "confirmed"), (3, 5, "confirmed"), (0, 0, "not decided")],
)
def test_claim_12_by_the_share_of_harmed_domains(few, of, verdict):
    rows = [row(i, 0.1, "hurts on few types" if i < few else "hurts broadly") for i in range(of)] or [row(0, -0.1, "helps")]
    assert odyssey_rules.claims(rows)["verdicts"]["12"] == verdict


def test_claim_11_needs_a_correlation_beyond_chance_and_says_which_it_would_see():
    found = odyssey_rules.claims([row(i, 0.01 * i, "hurts broadly") for i in range(9)])["verdicts"]
    assert found["11"] == "not decided"  # by bits per byte it goes up, by divergence down: the stand-ins contradict each other
    rows = [{**row(i, 0.01 * i, "hurts broadly"), "divergence": 0.5 + 0.1 * (i * 5 % 9)} for i in range(9)]
    found = odyssey_rules.claims(rows)["verdicts"]
    assert found["11"] == "confirmed" and 0.8 <= found["rank correlation seen with 80%"] <= 0.95
    for one, change in zip(rows, (0.02, 0.0, 0.03, 0.01, 0.05, 0.04)):  # of the six that are not tuned it is too weak to be told
        one["change"] = change
    assert odyssey_rules.claims(rows)["verdicts"]["11"] == "confirmed"
    for one, name in zip(rows[6:], odyssey_rules.TUNED):
        one["domain"] = name
    found = odyssey_rules.claims(rows)
    assert found["verdicts"]["11"] == "not decided" and found["11, untuned"]["nearness by bits per byte"]["domains"] == 6
    assert found["verdicts"]["rank correlation seen with 80%"] is None and odyssey_rules.seen_correlation(60, 60) < 0.5


def test_power_of_claim_11_is_that_of_its_whole_rule():
    """Over nine domains and over six of them: by verdict_11 itself, of made-up domains with a true rank correlation of 0.95."""
    random, rho, called, runs = np.random.default_rng(3), 0.95, [0, 0], 100
    pearson = 2 * math.sin(math.pi * rho / 6)
    for _ in range(runs):
        near = random.standard_normal(9)
        change = pearson * near + math.sqrt(1 - pearson**2) * random.standard_normal(9)
        of = lambda n: odyssey_rules.verdict_11({"one": odyssey_rules.spearman(near[:n], change[:n], 400)})  # noqa: B023, E731
        called[0] += of(9) == "confirmed"
        called[1] += odyssey_rules.alike(of(9), of(6)) == "confirmed"
    assert called[0] / runs == pytest.approx(odyssey_rules.correlation_power(9, 9, rho), abs=0.08)
    assert called[1] / runs == pytest.approx(odyssey_rules.correlation_power(9, 6, rho), abs=0.1)
    assert called[1] < 0.8 * called[0]  # what is asked of six is what limits it


def test_advice_is_held_against_one_answer_for_all_domains():
    good = [
        {**row(i, 0.1 if i < 8 else -0.1, "hurts broadly"), "advice": odyssey_rules.LEAVE if i < 8 else odyssey_rules.ADAPT}
        for i in range(16)
    ]
    assert odyssey_rules.claims(good)["verdicts"]["advice"] == "confirmed"
    same = [{**row(i, -0.1, "helps"), "advice": "adapt"} for i in range(16)]
    assert odyssey_rules.claims(same)["verdicts"]["advice"] == "not decided"
    bad = [{**row(i, -0.1, "helps"), "advice": odyssey_rules.LEAVE} for i in range(16)]
    assert odyssey_rules.claims(bad)["verdicts"]["advice"] == "refuted"
