"""benchmarks/flops_vs_loss.py: intervals, the claims' rules on made-up scores, and the whole grid on a tiny model."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import flops_vs_loss  # noqa: E402
from flops import claims, evidence  # noqa: E402
from flops.cells import main_cells  # noqa: E402
from flops.evidence import Scored  # noqa: E402
from tiny import english, tiny_directory  # noqa: E402

N = 2048


def scored(mean: float, cost: float = 1.0, noise: float = 0.02, seed: int = 0, learned: int = 10) -> Scored:
    """Scores around ``mean`` over a text whose difficulty all cells share."""
    shared = np.random.default_rng(7).normal(0, 1, N)
    shared -= shared.mean()
    own = np.random.default_rng(seed).normal(0, noise, N)
    return Scored(mean + shared + own - own.mean(), 4 * N, {"forward": cost}, learned)


def text(**means) -> dict[str, Scored]:
    """Every cell of one text: what ``means`` gives (underscores for dashes), else what the claims expect of it."""
    cells = {}
    for i, cell in enumerate(main_cells()):
        memory = 0.2 * ("memory" in cell.settings) + 0.2 * ("context" in cell.settings)
        learns = {"none": 0.0, "lora": 0.3, "rows": 0.25, "full": 0.4}[cell.settings["adapt"]]
        learns = 0.05 if cell.tuned and learns else learns - 0.02 * (cell.settings.get("every", 1) - 1)
        cost = 1.0 + 2 * (cell.settings["adapt"] != "none") / cell.settings.get("every", 1) + ("context" in cell.settings)
        learned = {"none": 0, "lora": 10, "rows": 50, "full": 100}[cell.settings["adapt"]]
        mean = means.get(cell.name.replace("-", "_"), 3.0 - memory - learns)
        cells[cell.name] = scored(mean, cost, seed=i, learned=learned)
    return cells


def test_interval_covers_the_mean_of_correlated_values():
    inside, random = 0, np.random.default_rng(0)
    for trial in range(200):
        values = np.repeat(random.normal(0, 1, 32), 64)  # runs of 64 alike: single tokens drawn alone would be far too sure
        low, high = evidence.interval(values)
        inside += low <= 0 <= high
    assert 180 <= inside <= 199  # of eight blocks, by Student's t
    assert evidence.interval(np.arange(200.0)) == (None, None)  # one block says nothing


def test_masked_flops_follow_context_and_frequency():
    class Config:
        heads, head_dim, attention_layers = 2, 8, (0,)
        window = staticmethod(lambda layer: None)

    of = lambda tokens, **settings: evidence.masked_per_token(Config, tokens, {"segment": 4, "adapt": "none", **settings}) * tokens  # noqa: E731
    triangle = lambda n: 2 * n * (n - 1) * 16  # of two products  # noqa: E731
    assert of(8) == 2 * triangle(4)
    assert of(6) == triangle(4) + triangle(2)  # the last segment is shorter
    assert of(12, context=6) == triangle(4) + triangle(8) + triangle(10)  # the first has no context, the second only four tokens
    assert of(8, adapt="lora") == 2 * triangle(4) * 3.5
    assert of(8, adapt="lora", every=2) == triangle(4) + triangle(4) * 3.5
    assert of(8, adapt="lora", every=2, accumulate=True) == of(8, adapt="lora")
    assert of(8, memory=4) == of(8)  # in front of every query
    Config.window = staticmethod(lambda layer: 5)
    # the second segment has the first behind it: its last three queries miss one, two and three of these four tokens
    assert of(8, memory=4) == of(8) + 4 * (1 + 2 + 3) * 16


def test_difference_is_paired():
    found = evidence.difference(scored(2.9, seed=1), scored(3.0, seed=2))
    assert found["mean"] == pytest.approx(-0.1) and found["high"] < -0.09 and found["low"] > -0.11
    with pytest.raises(ValueError, match="same tokens"):
        evidence.difference(scored(3.0), Scored(np.zeros(3), 3, {}, 0))


def test_last_seen():
    assert evidence.last_seen(np.array([5, 7, 5, 5, 9, 7])).tolist() == [0, 2, 1, 0, 4]


def test_fronts():
    front = evidence.cheapest_front([(3, 1.0), (1, 2.0), (2, 2.5), (1, 2.2)])
    assert front == [(1, 2.0), (3, 1.0)]
    assert evidence.front_at(front, 2.9) == 2.0 and evidence.front_at(front, 3) == 1.0 and evidence.front_at(front, 0.5) is None


def six(**means) -> dict[str, dict[str, Scored]]:
    return {name: text(**means) for name in "abcdef"}


def test_verdicts_follow_the_scores():
    good = six()
    assert claims.improves(good)["verdict"] == "confirmed"
    assert claims.improves({name: good[name] for name in "abcde"})["verdict"] == "not decided"  # five texts decide nothing
    assert claims.improves(six(full_512=3.1))["verdict"] == "refuted"
    one = {**good, "a": text(full_512=3.9)}  # one text of six contradicts: the mean is below 0, its interval is not
    found = claims.improves(one)
    assert found["verdict"] == "not decided" and [row["verdict"] for row in found["over_texts"]].count("confirmed") == 5
    assert claims.memory_for_less(good)["verdict"] == "confirmed"
    assert claims.memory_for_less(six(static_memory_512=2.9))["verdict"] == "refuted"
    assert claims.frequency_trades(good)["verdict"] == "confirmed"
    assert claims.frequency_trades(six(lora_every_8=2.0))["verdict"] == "refuted"
    alone = claims.frequency_trades(six(lora_accumulate_8=2.505, lora_every_1=2.5))["frequency_alone"]
    assert alone["equivalent"] and alone["mean"] == pytest.approx(0.005, abs=1e-6)
    assert not claims.frequency_trades(six(lora_accumulate_8=2.52, lora_every_1=2.5))["frequency_alone"]["equivalent"]
    between = claims.frequency_trades(six(lora_accumulate_2=2.4, lora_every_1=2.5))["frequencies_between"]
    assert [(row["every"], row["verdict"]) for row in between] == [(2, None), (4, None)]
    assert between[0]["mean"] == pytest.approx(-0.1, abs=1e-6)
    assert claims.front_below(good)["verdict"] == "confirmed"
    assert claims.front_below(six(static_2048=1.0))["verdict"] == "refuted"
    assert claims.lora_between(good)["verdict"] == "confirmed"
    assert claims.lora_between(six(full_512=2.9))["verdict"] == "refuted"
    assert claims.short_matches_long(good)["verdict"] == "confirmed"
    assert claims.short_matches_long(six(static_2048=2.5))["verdict"] == "refuted"
    assert claims.shrinks_when_tuned(good)["verdict"] == "confirmed"
    assert claims.shrinks_when_tuned(six(tuned_lora_512=2.0))["verdict"] == "refuted"


def test_one_of_several_comparisons_refutes_only_at_its_share_of_the_level():
    values = [0.1, 0.2, 0.05, -0.01, 0.12, 0.02]  # Student's t is 2.6 with 5 degrees of freedom: p is 0.05 alone, not over six
    assert claims.over_texts(values)["verdict"] == "refuted"
    assert claims.over_texts(values, places=6)["verdict"] == "not decided"
    assert claims.over_texts([0.1] * 5 + [0.101], places=6)["verdict"] == "refuted"


def test_gain_against_shift():
    domains = {str(i): {"static-512": scored(2.0 + i), "lora-512": scored(2.0 + i - 0.1 * (i + 1), seed=i)} for i in range(8)}
    found = claims.grows_with_shift(domains)
    assert found["verdict"] == "confirmed" and found["rho"] == pytest.approx(1.0)
    falling = {str(i): {"static-512": scored(2.0 + i), "lora-512": scored(2.0 + i - 0.1 * (9 - i), seed=i)} for i in range(8)}
    assert claims.grows_with_shift(falling)["verdict"] == "refuted"
    assert claims.grows_with_shift(dict(list(domains.items())[:3]))["verdict"] == "not decided"


def test_weights_and_activations_by_class():
    tokens = np.arange(N + 1) % 1001  # from the 1,001st target on, each was seen 1,001 tokens ago
    cells = text()
    cells["lora-512"] = Scored(cells["static-512"].nll - 1.0 * (np.arange(N) >= 1000), 4 * N, {"forward": 1.0}, 10)
    found = claims.weights_and_activations({"a": cells}, {"a": tokens})
    assert found["verdict"] == "not decided"  # one text
    row = found["rows"][0]
    new, old, recent = row["classes"].values()
    assert new["share"] == pytest.approx(1000 / N, abs=1e-3) and recent["share"] == 0 and recent["weights"] is None
    assert old["weights"] == pytest.approx(1.0) and new["weights"] == pytest.approx(0.0)


@pytest.mark.filterwarnings("ignore:window of")
def test_whole_grid_on_a_tiny_model(tmp_path, monkeypatch, capsys):
    model = tiny_directory(tmp_path / "model")
    for i, name in enumerate(("one", "two")):
        (tmp_path / "corpus" / name).mkdir(parents=True)
        for part, words in (("train", 500), ("heldout", 500)):
            lines = [json.dumps({"id": str(j), "text": english(words, seed=10 * i + j)}) for j in range(2)]
            (tmp_path / "corpus" / name / f"{part}.jsonl").write_text("\n".join(lines) + "\n")
    small = flops_vs_loss.Grid(1100, 600, main_cells(ranks=(4,), densities=(0.1,)))
    monkeypatch.setitem(flops_vs_loss.GRIDS, "small", small)
    arguments = [
        "flops_vs_loss.py",
        str(tmp_path / "corpus"),
        "--model",
        str(model),
        "--dtype",
        "fp32",
        "--texts",
        "one",
        "--out",
        str(tmp_path / "out"),
    ]
    monkeypatch.setattr(sys, "argv", arguments)
    flops_vs_loss.main()
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(results["claims"]) == ["1", "2", "3a", "3b", "4", "5", "6a", "6b", "7"]
    assert {c["text"] for c in results["cells"]} == {"one", "two"} and all(c["tokens"] == 1099 for c in results["cells"])
    by = {c["name"]: c for c in results["cells"] if c["text"] == "one"}
    assert by["lora-every-8"]["flops_per_token"] < by["lora-every-1"]["flops_per_token"]
    assert by["static-overlap-512"]["flops_per_token"] > by["static-memory-512"]["flops_per_token"]
    assert str(tmp_path) not in json.dumps({k: v for k, v in results.items() if k != "settings"})
    report = (tmp_path / "out" / "report.md").read_text()
    assert all(f"claim-{n}.png" in report and (tmp_path / "out" / f"claim-{n}.png").exists() for n in results["claims"])
    before = (tmp_path / "out" / "results.json").read_text()
    flops_vs_loss.main()  # everything is finished: read, not run again
    assert (tmp_path / "out" / "results.json").read_text() == before
    monkeypatch.setattr(sys, "argv", [*arguments[:-4], "--texts", "three"])
    with pytest.raises(SystemExit, match="three"):
        flops_vs_loss.main()


def test_claim_6a_says_its_power_and_both_axes_in_bits():
    from benchmarks.flops.report import _shift
    from benchmarks.shift import power

    rows = [
        {"text": str(i), "bits_per_byte": 1.0 + i, "mean": 0.1 * (9 - i), "low": 0.0, "high": 1.0, "share": 0.01 * (i + 1)}
        for i in range(9)
    ]
    (said,) = [line for line in _shift({"rows": rows, "rho": -1.0, "p": 0.001}) if line.startswith("Spearman")]
    assert "9 domains; with bits per byte on both axes +1.00, p = 0.000" in said and said.endswith("%.")
    assert power([9], 0.0) < 0.1 < power([9], 0.8) < power([48], 0.8)  # at no correlation about the level
