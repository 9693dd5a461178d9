"""benchmarks/long_ranks.py: what it calls confirmed and refuted, and which earlier runs it refuses to stand beside."""

import hashlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT)]

from flops.evidence import Scored  # noqa: E402

from benchmarks import long_ranks, long_streams  # noqa: E402

TEXTS = [f"t{i}" for i in range(8)]
NOISE = [0.01 * (-1) ** i * (1 + i) for i in range(8)]


def means(**less: float) -> dict[str, dict[str, float]]:
    """{arm: {text: NLL}}, each so much below 3 nats, what differs between texts aside."""
    return {arm: {text: 3 + noise - by + 0.1 * (arm == "full") * noise for text, noise in zip(TEXTS, NOISE)} for arm, by in less.items()}


def test_verdicts():
    of = lambda found: {(row["arm"], row["less"]): row["verdict"] for row in found}  # noqa: E731
    higher = long_ranks.verdicts(means(**{"rank-4": 0.0, "rank-16": 0.1, "rank-64": 0.2, "full": 0.15}))
    assert of(higher) == {
        ("rank-64", "rank-16"): "confirmed", ("rank-16", "rank-4"): "confirmed", ("rank-4", "full"): "confirmed", ("rank-64", "full"): "refuted",
    }  # fmt: skip
    lower = long_ranks.verdicts(means(**{"rank-4": 0.2, "rank-16": 0.1, "rank-64": 0.0}))
    assert of(lower) == {("rank-64", "rank-16"): "refuted", ("rank-16", "rank-4"): "refuted"}
    two = long_ranks.verdicts(
        {"rank-16": dict.fromkeys(TEXTS, 3.0), "rank-4": {text: 3 + 0.3 * noise + 0.014 for text, noise in zip(TEXTS, NOISE)}}
    )
    assert two[0]["p_together"] == pytest.approx(4 * two[0]["p"])  # those that were not run count


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run on three texts whose cells are made up: rank 64 is best at the end of its grid. Returns (its settings, the earlier results' file)."""
    files = {name: tmp_path / name for name in TEXTS[:6]}
    for file in files.values():
        file.write_text(file.name)
    digests = {name: hashlib.sha256(name.encode()).hexdigest() for name in files}
    earlier = {
        "settings": {"model": "m"},
        "texts": digests,
        "rates": {"lora, memory": {"rate": 1e-3}},
        "arms": [{"name": name, "tokens": 1024, "nll": dict.fromkeys(files, 3.0)} for name in ("lora-memory-512", "full-memory-512")],
    }
    (tmp_path / "earlier.json").write_text(json.dumps(earlier))

    def cell(self, file, arm, tokens, rate, name):
        best = {4: 1e-3, 16: 1e-3, 64: 2.5e-4}[arm.rank]
        loss = 3 - 0.01 * (arm.rank == 64) + 0.1 * abs(rate / best - 1)
        return Scored(long_streams.np.full(tokens - 1, loss), tokens, {"forward": 1.0}, 1)

    monkeypatch.setattr(long_streams, "texts_of", lambda corpus, out: (files, {"tuning": tmp_path / "tuning"}))
    monkeypatch.setattr(long_streams.Runner, "cell", cell)
    monkeypatch.setattr(long_streams, "usual_rate", lambda config: 2e-3)
    monkeypatch.setattr("dynadapt.load", lambda name: SimpleNamespace(config=None))
    (tmp_path / "out").mkdir()
    return SimpleNamespace(
        model="m", dtype="bf16", tokens=1025, tuning=1025, corpus=tmp_path, out=tmp_path / "out", beside=tmp_path / "earlier.json"
    )


def test_each_rank_has_a_rate_of_its_own(run):
    long_ranks.measure(run)
    found = json.loads((run.out / "results.json").read_text())
    assert [(name, row["rate"], row["end"], len(row["nll"])) for name, row in found["rates"].items()] == [
        ("rank-4", 1e-3, False, 4),
        ("rank-64", 2.5e-4, False, 6),
    ]
    assert found["again"] == {"text": "t0", "here": 3.0, "there": 3.0} and len(found["verdicts"]) == 4
    page = (run.out / "results.md").read_text()
    assert "| rank-64 | 2.990" in page and "| rank-64 less rank-16 | -0.010" in page and "Rates: rank-4 0.001; rank-64 0.00025." in page


@pytest.mark.parametrize(
    "change,said",
    [
        (lambda found: found["settings"].update(model="n"), "is of n, not of m"),
        (lambda found: found["texts"].update(t1="other"), "its text 't1' is another than the corpus holds now"),
        (lambda found: found["arms"].pop(), "has no arm 'full-memory-512'"),
        (lambda found: found["arms"][0].update(tokens=512), "lora-memory-512 has 512 tokens of a text, not 1,024"),
        (lambda found: found.pop("rates"), "no results of long_streams.py"),
    ],
)
def test_an_earlier_run_of_something_else_is_refused(run, change, said, monkeypatch):
    monkeypatch.setattr("dynadapt.load", lambda name: pytest.fail("a model was loaded"))
    found = json.loads(run.beside.read_text())
    change(found)
    run.beside.write_text(json.dumps(found))
    with pytest.raises(SystemExit, match=said):
        long_ranks.measure(run)
    run.beside.unlink()
    with pytest.raises(SystemExit, match="no such file; long_streams.py makes it"):
        long_ranks.measure(run)
