"""benchmarks/long_orders.py: each quarter once in each place, each order as a stream that is read alone, and what is called confirmed."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT)]

from benchmarks import long_orders  # noqa: E402
from dynadapt import Adam, Engine, LoRA  # noqa: E402
from dynadapt.model import random_model, tiny_config  # noqa: E402

QUARTER = 32


@pytest.fixture
def model(monkeypatch):
    monkeypatch.setattr(long_orders, "SEGMENT", 16)
    return random_model(tiny_config("llama", layers=2), seed=1, std=0.1)


def ids_of(model, count: int = 4 * QUARTER + 1) -> list[int]:
    return torch.randint(model.config.vocab_size, (count,), generator=torch.Generator().manual_seed(0)).tolist()


def test_each_quarter_is_read_once_in_each_place_and_behind_the_same_one():
    orders = [long_orders.order(begin) for begin in range(4)]
    assert all(sorted(quarters) == [0, 1, 2, 3] for quarters in (*orders, *zip(*orders)))
    assert all(after == (before + 1) % 4 for quarters in orders for before, after in zip(quarters, quarters[1:]))


def test_an_order_is_what_one_stream_of_it_gives(model):
    ids = ids_of(model)
    still, moved = long_orders.static(model, ids, QUARTER), long_orders.learned(model, ids, QUARTER)
    rate = long_orders.usual_rate(model.config)
    for begin in range(4):
        alone = Engine(model, segment=16, adapt=LoRA(), optimizer=Adam(lr=rate))
        plain = Engine(model, segment=16)
        for place, q in enumerate(long_orders.order(begin)):
            segments = [torch.tensor([ids[q * QUARTER + i : q * QUARTER + i + 17]]) for i in (0, 16)]
            assert moved[q][place] == pytest.approx(sum(alone.step(s).double().sum().item() for s in segments) / QUARTER, abs=1e-5)
            assert still[q] == pytest.approx(sum(plain.step(s).double().sum().item() for s in segments) / QUARTER, abs=1e-5)
    assert any(moved[q][0] != moved[q][3] for q in range(4))


def rows_of(by_place, texts: int = 6) -> list[dict]:
    """Texts whose quarters differ widely, with these gains by place."""
    still = [2.0, 3.0, 1.0, 4.0]
    return [
        {
            "text": f"t{i}",
            "arms": {
                "static": {"nll": still},
                "lora": {"nll": [[s - gain - 0.5 * (q == 3) + 0.001 * (i % 3) * (place + 1) for place, gain in enumerate(by_place)] for q, s in enumerate(still)]},
            },
        }
        for i in range(texts)
    ]  # fmt: skip


@pytest.mark.parametrize(
    "by_place,expected",
    [
        ((0.1, 0.2, 0.3, 0.4), ["confirmed", "confirmed"]),
        ((0.1, 0.3, 0.3, 0.3), ["confirmed", "refuted"]),  # by what texts lose with each place, a thousandth
        ((0.4, 0.3, 0.2, 0.1), ["refuted", "refuted"]),
    ],
)
def test_verdicts_are_of_places_not_of_quarters(by_place, expected):
    found = long_orders.verdicts(rows_of(by_place))
    assert [row["verdict"] for row in found] == expected
    assert found[0]["mean"] == pytest.approx(by_place[3] - by_place[0] - 0.003)
    assert {row["verdict"] for row in long_orders.verdicts(rows_of(by_place, texts=5))} == {"not decided"}


def test_it_runs_and_goes_on(model, tmp_path, monkeypatch):
    texts = {f"t{i}": tmp_path / f"t{i}" for i in range(2)}
    for file in texts.values():
        file.write_text("x")
    monkeypatch.setattr(long_orders, "texts_of", lambda corpus, out: (texts, {}))
    monkeypatch.setattr(long_orders, "load", lambda name: model)
    tokenizer = SimpleNamespace(encode=lambda text: ids_of(model))
    monkeypatch.setattr(type(model), "tokenizer", tokenizer)
    given = SimpleNamespace(model="m", corpus=tmp_path, out=tmp_path / "out", quarter=QUARTER)
    results = long_orders.measure(given)
    assert [row["verdict"] for row in results["verdicts"]] == ["not decided"] * 2
    page = long_orders.page(results)
    assert page.startswith("| gain, nats per token, after | 0 | 32 | 64 | 96 |") and "| mean |" in page
    monkeypatch.setattr(long_orders, "learned", lambda *given: pytest.fail("measured again"))
    assert long_orders.measure(given)["rows"] == results["rows"]
    assert json.loads(json.dumps(long_orders.verdicts(results["rows"]))) == results["verdicts"]
    tokenizer.encode = lambda text: ids_of(model)[:-1]
    with pytest.raises(SystemExit, match="t0 has 128 tokens; 129 are needed"):
        long_orders.measure(given)
    tokenizer.begins = [1]
    with pytest.raises(SystemExit, match="--model m: begins each segment with a token of its own"):
        long_orders.measure(given)
