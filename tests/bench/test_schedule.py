"""benchmarks/schedule.py: what its simulated threads count is what the formulas say and what real threads do, and its page shows its file."""

import json
from pathlib import Path

import pytest

from benchmarks import schedule
from dynadapt import _C
from dynadapt.model.geometries import GEOMETRIES
from dynadapt.ops import linear, lora_gradient

ROOT = Path(__file__).parents[2]
RESULTS = json.loads((ROOT / "benchmarks" / "results" / "cpu" / "schedule.json").read_text())
MODEL, LAYERS = "smollm2-135m", 3


def test_the_page_shows_the_file():
    page = (ROOT / "docs" / "speed.md").read_text()
    assert schedule.table(RESULTS) in page
    one = {"steps": [row for row in RESULTS["steps"] if (row["model"], row["streams"], row["segment"]) == (MODEL, 1, 512)]}
    assert schedule.chart(one) in page


def test_more_threads_take_no_longer_and_no_step_is_beyond_its_threads():
    for row in RESULTS["steps"] + RESULTS["before"]:
        assert [step["threads"] for step in row["threads"]] == list(schedule.THREADS)
        times = [step["milliseconds"] for step in row["threads"]]
        assert times == sorted(times, reverse=True)
        assert all(0 < step["efficiency"] <= step["balance"] <= 1 for step in row["threads"])


# ---- minutes of compiling: run with -m slow


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    return schedule.build(tmp_path_factory.mktemp("simulated"), "portable")


def run(program, threads, streams=1, segment=128):
    return schedule.simulate(program, MODEL, streams, segment, threads, layers=LAYERS)


@pytest.mark.slow
def test_products_are_the_ledgers(program):
    """To the FLOP: all widths here fill whole panels."""
    c, n, rank = GEOMETRIES[MODEL], 128, schedule.RANK
    h, qkv, f = c.hidden_size, [c.heads * c.head_dim, *[c.kv_heads * c.head_dim] * 2], c.ffn_size
    groups = [(h, qkv), (c.heads * c.head_dim, [h]), (h, [f, f]), (f, [h])]
    counted = {name: kernel["flops"] for name, kernel in run(program, 1).items()}
    assert counted["forward(LinearForward)"] == LAYERS * sum(linear.forward_flops(n, k, parts, rank) for k, parts in groups)
    backward = LAYERS * sum(linear.backward_flops(n, k, parts, rank) for k, parts in groups)
    backward += linear.backward_flops(n, *groups[0], rank, need_dx=False) - linear.backward_flops(n, *groups[0], rank)  # the lowest
    assert counted["backward(LinearBackward)"] == backward
    assert counted["lora_gradient(LoraGradient)"] == LAYERS * sum(lora_gradient.flops(n, k, parts, rank) for k, parts in groups)
    assert counted["score(CrossEntropy)"] == 4 * n * h * c.vocab_size


@pytest.mark.slow
def test_threads_share_the_same_products(program):
    alone = run(program, 1)
    for threads in (2, 7, 64):
        team = run(program, threads)
        assert {name: k["flops"] for name, k in team.items()} == {name: k["flops"] for name, k in alone.items()}
        for name, kernel in team.items():
            assert kernel["busy"] <= threads * kernel["longest"] * (1 + 1e-9), name


@pytest.mark.slow
def test_two_real_threads_do_what_two_simulated_ones_do(program, tmp_path):
    """The library's own pool, with the same counting: the same regions, tasks and work, and where threads have fixed shares, the same shares.
    Who takes which task of a queue depends on the clock, and is not compared."""
    real, simulated = run(schedule.build(tmp_path, "portable", real_threads=True), 2), run(program, 2)
    fixed = ("backward_swiglu(ActivationBackward)", "forward_swiglu(ActivationForward)", "forward(NormForward)", "backward(NormBackward)")
    for name in set(simulated) - {"one thread"}:
        for field in ("regions", "tasks", "flops"):
            assert real[name][field] == simulated[name][field], (name, field)
    for name in (*fixed, "score(CrossEntropy)"):
        for field in ("first", "second", "busy"):
            assert real[name][field] == pytest.approx(simulated[name][field], rel=1e-9), (name, field)


@pytest.mark.slow
def test_the_file_is_of_these_kernels(tmp_path):
    """Steps of it again, with the cutting as it is now."""
    if _C.isa() != RESULTS["isa"]:
        pytest.skip(f"needs a processor with {RESULTS['isa']}")
    program = schedule.build(tmp_path, RESULTS["isa"])
    for row in schedule.measure(program, [MODEL], [(1, 128), (1, 512)], (1, 2, 16)):
        kept = next(r for r in RESULTS["steps"] if all(r[key] == row[key] for key in ("model", "streams", "segment")))
        assert row["threads"] == [step for step in kept["threads"] if step["threads"] in (1, 2, 16)]
