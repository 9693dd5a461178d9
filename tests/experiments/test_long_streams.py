"""What benchmarks/long_streams.py calls confirmed and refuted, on made-up scores whose truth is known, with streams of two lengths."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT)]

from flops.evidence import Scored  # noqa: E402

from benchmarks import long_streams, long_streams_rules  # noqa: E402

SHORT, LONG = 65536, 131072
FLOPS = {arm.name: (3e9 if arm.online else 1e9) * (1 + 0.1 * i) for i, arm in enumerate(long_streams.ARMS)}


def cells(gain, texts: int = 8) -> dict:
    """{text: {arm: scores}}: static arms at 3 nats and noise, online ones better by gain(position) [N]."""
    rng, found = np.random.default_rng(0), {}
    for t in range(texts):
        found[f"t{t}"] = {}
        for arm in long_streams.ARMS:
            n = LONG if arm.longer else SHORT
            nll = rng.normal(3 + 0.1 * t, 0.2, n) - (gain(np.arange(n)) if arm.online else 0)
            found[f"t{t}"][arm.name] = Scored(nll, 4 * n, {"forward": FLOPS[arm.name]}, 10)
    return found


@pytest.mark.parametrize(
    "gain,growth,kept",
    [
        (lambda at: 0.1 + at * 1e-6, "confirmed", "confirmed"),
        (lambda at: 0.1 - at * 1e-6, "refuted", "refuted"),
        (lambda at: 0.1 + np.where(at < LONG // 2, 0.1, 0.092), "refuted", "confirmed"),  # a little less, within the margin
    ],
)
def test_the_gain_along_the_longer_streams(gain, growth, kept):
    v = long_streams.verdicts(cells(gain), FLOPS)
    of = {row["online"]: row for row in v["growth"]}
    assert of["lora-memory-512"]["verdict"] == growth and of["lora-memory-512"]["tokens"] == LONG
    assert of["lora-512"]["tokens"] == SHORT and len(of["lora-512"]["gain_by_block"]["t0"]) == SHORT // long_streams.BLOCK
    assert [(row["online"], row["tokens"], row["verdict"]) for row in v["kept"]] == [("lora-memory-512", LONG, kept)]


def test_arms_of_two_lengths_are_compared_on_what_both_scored():
    # Behind 65,536 tokens the longer online arm is much worse: nothing but its own growth may see it.
    v = long_streams.verdicts(cells(lambda at: np.where(at < SHORT, 0.1, -5.0)), FLOPS)
    five = [row for row in v["5"] if row["online"] == "lora-memory-512"]
    assert [row["tokens"] for row in five] == [4096, 16384, 65536]
    assert all(row["verdict"] == "confirmed" and row["mean"] == pytest.approx(-0.1, abs=0.02) for row in five)
    front = next(row for row in v["3b"] if row["online"] == "lora-memory-512")
    assert front["mean"] == pytest.approx(-0.1, abs=0.02) and front["verdict"] == "confirmed"
    assert next(row for row in v["growth"] if row["online"] == "lora-memory-512")["verdict"] == "refuted"


def test_a_verdict_has_to_stand_with_its_claims_others_counted():
    row = lambda p, verdict: {"p": p, "verdict": verdict}  # noqa: E731
    found = long_streams_rules.counted_together(
        [row(0.04, "confirmed"), row(0.3, "not decided"), row(0.001, "refuted"), row(None, "not decided")], 4
    )
    assert [each["verdict"] for each in found] == ["not decided", "not decided", "refuted", "not decided"]
    assert found[0]["by_itself"] == "confirmed" and found[0]["p_together"] == pytest.approx(0.08) and found[3]["p_together"] is None
    kept = json.loads((ROOT / "benchmarks" / "results" / "long-streams.json").read_text())["verdicts"]
    for claim, comparisons in long_streams_rules.COMPARISONS.items():
        assert len(kept[claim]) == comparisons
        assert kept[claim] == long_streams_rules.counted_together(
            [{**each, "verdict": each["by_itself"]} for each in kept[claim]], comparisons
        )
    apart = [(each["lora"], each["tokens"]) for each in kept["4"] if each["verdict"] != each["by_itself"]]
    assert apart == [("lora-memory-512", 65536)]


def test_comparisons_that_were_not_run_count():
    """Arms that are left out make no verdict easier to reach."""
    (found,) = long_streams_rules.counted_together([{"p": 0.02, "verdict": "confirmed"}], 4)
    assert (found["verdict"], found["by_itself"], found["p_together"]) == ("not decided", "confirmed", pytest.approx(0.08))
    made = {text: {name: found[name] for name in ("lora-512", "full-512")} for text, found in cells(lambda at: 0.1).items()}
    lower, higher = sorted(long_streams.verdicts(made, FLOPS)["4"], key=lambda row: row["p"])
    assert lower["p_together"] == pytest.approx(min(1, 4 * lower["p"])) and higher["p_together"] == pytest.approx(
        min(1, max(4 * lower["p"], 3 * higher["p"]))
    )


def test_what_learning_and_memory_gain_together_is_a_share_of_the_sum():
    means = {
        "static-512": {"a": 3.0, "b": 2.0},
        "lora-512": {"a": 2.9, "b": 1.8},
        "static-memory-512": {"a": 2.7, "b": 1.7},
        "lora-memory-512": {"a": 2.64, "b": 1.6},
    }
    (found,) = long_streams_rules.together(means)
    assert (
        found["by_text"] == pytest.approx([0.9, 0.8]) and found["mean"] == pytest.approx(0.85) and found["low"] < 0.8 < 0.9 < found["high"]
    )
    kept = json.loads((ROOT / "benchmarks" / "results" / "long-streams.json").read_text())
    made = long_streams_rules.together({arm["name"]: arm["nll"] for arm in kept["arms"]})
    for row, now in zip(kept["verdicts"]["together"], made, strict=True):
        assert row["learns"] == now["learns"] and row["by_text"] == pytest.approx(now["by_text"], abs=1e-9)


def test_its_page_and_picture(tmp_path):
    made = cells(lambda at: 0.1 + at * 1e-6, texts=6)
    given = SimpleNamespace(model="m", dtype="bf16", tokens=SHORT + 1, longer=LONG + 1, tuning=8193, corpus=tmp_path, out=tmp_path)
    (tmp_path / "text").write_text("a")
    long_streams.put(given, dict.fromkeys(made, tmp_path / "text"), {"lora": {"rate": 1e-3, "end": False}}, made, FLOPS)
    page = (tmp_path / "results.md").read_text()
    assert "lora-memory-512 over static-memory-512 | 131,072" in page and (tmp_path / "gain.png").stat().st_size > 10_000


def test_the_page_says_what_a_verdict_is_by_itself():
    kept = json.loads((ROOT / "benchmarks" / "results" / "long-streams.json").read_text())
    lines = [line for line in long_streams.page(kept).splitlines() if "by itself" in line]
    assert len(lines) == 2
    assert lines[0].startswith("| lora-512 less static-memory-1536 | 16,384") and lines[0].endswith("| not decided (refuted by itself) |")
    assert lines[1].startswith("| lora-memory-512 less full-memory-512 | 65,536") and lines[1].endswith(
        "| not decided (confirmed by itself) |"
    )


def test_shorter_texts_are_said_to_be_shorter(tmp_path):
    """Of a dry run, in which no text has all lengths or a block of the picture."""
    made = {
        text: {arm: Scored(s.nll[:1024], 1024, s.flops, 10) for arm, s in found.items()} for text, found in cells(lambda at: 0.1).items()
    }
    v = long_streams.verdicts(made, FLOPS)
    assert [row["tokens"] for row in v["5"]] == [1024] * 3 and [row["tokens"] for row in v["4"]] == [1024] * 2
    given = SimpleNamespace(model="m", dtype="bf16", tokens=1025, longer=1025, tuning=1025, corpus=tmp_path, out=tmp_path)
    (tmp_path / "text").write_text("a")
    long_streams.put(given, dict.fromkeys(made, tmp_path / "text"), {"lora": {"rate": 1e-3, "end": False}}, made, FLOPS)
    assert "| 1,024 |" in (tmp_path / "results.md").read_text() and not (tmp_path / "gain.png").exists()


@pytest.mark.parametrize(
    "truth,best,end,tried", [(3e-3, 2e-3, False, 4), (6e-3, 4e-3, False, 5), (1.0, 16e-3, True, 6), (1e-9, 1.25e-4, True, 6)]
)
def test_a_grid_goes_on_where_its_best_rate_is_at_the_end(truth, best, end, tried):
    found = long_streams.best_rate([5e-4, 1e-3, 2e-3, 4e-3], lambda rate: abs(np.log(rate / truth) + 0.1))
    assert (found["rate"], found["end"], len(found["nll"])) == (pytest.approx(best), end, tried)
    assert [float(rate) for rate in found["nll"]] == sorted(float(rate) for rate in found["nll"])
