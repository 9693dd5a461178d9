"""The step benchmark on a tiny model: it checks before it times, and what it writes adds up."""

import json
import os
import subprocess
import sys
import time

import pytest
import torch
from helpers import to_transformers

from dynadapt import _C
from dynadapt.bench import compare, side_by_side
from dynadapt.bench import step as bench
from dynadapt.model import random_model, tiny_config
from dynadapt.ops import attention


@pytest.fixture
def directory(tmp_path):
    live = to_transformers(random_model(tiny_config("llama"), seed=0, std=0.1))
    live.save_pretrained(tmp_path / "tiny")
    return str(tmp_path / "tiny")


def segments(vocabulary, streams, segment):
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(vocabulary, (streams, segment + 1), generator=generator).tolist() for _ in range(4)]


@pytest.mark.parametrize("dtype,streams", [("fp32", 1), ("bf16", 2)])
def test_step_is_checked_then_timed(directory, monkeypatch, dtype, streams):
    monkeypatch.setattr(bench, "_segments", lambda model, s, t: segments(tiny_config("llama").vocab_size, s, t))
    result = bench.run_step(directory, ["peft-eager"], dtype, streams, 24, 3, rounds=2, say=lambda text: None)
    json.dumps(result)
    ours, theirs = result["providers"]["dynadapt"], result["providers"]["peft-eager"]
    for row in (ours, theirs):
        assert (
            2 <= row["seconds"]["runs"] <= 2 * side_by_side.MOST
            and row["seconds"]["p20"] <= row["seconds"]["median"] <= row["seconds"]["p80"]
        )
        assert row["peak_memory_bytes"] > 5e7 and row["first_step_seconds"] > 0
        assert 0 < row["error"]["nll"] < 0.1 and 0 < row["error"]["gradient"] < 0.1
    assert result["flops_per_step"] > 0 and result["ceiling"]["gflops"] > 0
    assert theirs["speedup_of_dynadapt"] == pytest.approx(theirs["seconds"]["median"] / ours["seconds"]["median"])


def test_nothing_is_timed_when_the_step_is_wrong():
    row = {"provider": "dynadapt", "dtype": "bf16", "error": {"nll": 0.5, "gradient": 1e-6}}
    with pytest.raises(RuntimeError, match="dynadapt: nll differs"):
        compare.check({"dynadapt": row}, {"bf16": {"nll": 0.1, "gradient": 1e-3}}, bench.FLOOR)


def test_a_provider_that_dies_says_why(tmp_path):
    options = {"model": str(tmp_path / "absent"), "dtype": "fp32", "streams": 1, "segment": 8, "rank": 2, "isa": None, "tokens": []}
    with pytest.raises(RuntimeError, match="provider dynadapt ended with status 1(.|\n)*does not exist"):
        side_by_side.ModuleWorker("dynadapt", "dynadapt.bench.step_worker", options, 1)


def test_several_dtypes_and_an_instruction_set(directory, monkeypatch):
    monkeypatch.setattr(bench, "_segments", lambda model, s, t: segments(tiny_config("llama").vocab_size, s, t))
    isa = "avx2" if _C.isa().startswith("avx") else None
    result = bench.run_step(directory, [], ["bf16", "fp32"], 1, 24, 3, rounds=1, say=lambda text: None, isa=isa)
    json.dumps(result)
    rows = result["providers"]
    assert list(rows) == ["dynadapt bf16", "dynadapt fp32"] and set(result["peak_gflops"]) == {"bf16", "fp32"}
    assert min(row["speedup_of_dynadapt"] for row in rows.values()) == 1.0
    for row in rows.values():
        assert set(row["by_threads"]) == {"1", str(result["environment"]["cores"])} and str(row["threads"]) in row["by_threads"]
        assert 0 < row["share_of_peak"] < 1 and row["seconds"]["median"] == min(each["median"] for each in row["by_threads"].values())
    bench.print_table(result)


class Stub:
    """A worker whose steps take what the script says: {threads: seconds}, after the first `noise` steps, which take ten times that."""

    def __init__(self, script, threads, noise=0):
        self.script, self.threads, self.noise, self.asked = script, threads, noise, []
        self.process = type("P", (), {"pid": os.getpid()})

    def ask(self, do, **arguments):
        self.asked.append(do)
        return {"threads": lambda count: {}, "time": self.time}[do](**arguments)

    def time(self, runs):
        self.noise -= 1
        return {"seconds": [self.script[self.threads] * (10 if self.noise >= 0 else 1)] * runs}


def test_thread_settings_race_and_the_slower_one_is_dropped():
    fast, even = Stub({2: 1.0, 1: 1.9}, 2), Stub({2: 1.0, 1: 1.1}, 2)
    runners = [*side_by_side.runners_of("a", [fast], (2, 1)), *side_by_side.runners_of("b", [even], (2, 1))]
    found = side_by_side.race(runners, 8)
    assert found["rounds"] == 8 and found["dropped"] == ["a, 1 threads"]
    assert [len(r.seconds) for r in runners] == [8, side_by_side.PROBE, 8, 8]
    assert {name: r.threads for name, r in side_by_side.best_of(runners).items()} == {"a": 2, "b": 2}


def test_one_noisy_start_decides_nothing():
    """Three slow steps at the start, as of a busy neighbour, used to choose the wrong number of threads for good."""
    noisy = Stub({2: 1.0, 1: 1.9}, 2, noise=2)
    runners = side_by_side.runners_of("a", [noisy], (2, 1))
    found = side_by_side.race(runners, 9)
    assert side_by_side.best_of(runners)["a"].threads == 2
    assert found["rounds"] >= 9


def test_rounds_go_on_while_the_medians_are_unsure():
    class Wild(Stub):
        def time(self, runs):
            self.noise += 1
            return {"seconds": [1.0 + self.noise % 2] * runs}

    found = side_by_side.race(side_by_side.runners_of("a", [Wild({}, 1)], (1,)), 4)
    assert found["rounds"] == 4 * side_by_side.MOST


def test_the_load_of_others_is_seen():
    meter = side_by_side.Meter([])
    busy = subprocess.Popen([sys.executable, "-c", "import time\nend = time.time() + 1.0\nwhile time.time() < end: pass"])
    busy.wait()
    assert meter.others() > 0.5 / (os.cpu_count() or 1)
    mine = side_by_side.Meter([])
    assert mine.others() is None or 0 <= mine.others() <= 1


def test_the_peak_is_above_any_product():
    """Of our own: torch may use a higher instruction set than the one that was asked for."""
    from dynadapt.bench.ceiling import instruction_peak, native_product

    try:
        for dtype in (torch.float32, torch.bfloat16):
            _C.set_num_threads(1)
            call, seconds = native_product(512, 512, 512, dtype), []
            for _ in range(8):
                start = time.thread_time()
                call()
                seconds.append(time.thread_time() - start)
            assert instruction_peak(dtype, 1) > 0.7 * 2e-9 * 512**3 / min(seconds[1:]) > 0
    finally:
        _C.set_num_threads(0)


def test_masked_flops_are_those_above_the_diagonal():
    segment, heads, d = 5, 3, 4
    product = 2 * heads * d * int(torch.ones(segment, segment).triu(1).sum())  # of one matrix product over what is masked
    assert attention.masked_flops(segment, heads, d) == (2 * product, 5 * product)
    on_and_below = 2 * heads * d * int(torch.ones(segment, segment).tril().sum())
    assert attention.forward_flops(segment, 0, heads, d) - 2 * product == 2 * on_and_below


@pytest.mark.parametrize(
    "options,said",
    [
        (["--isa", "sse"], "--isa sse: expected some of avx2"),
        (["--dtype", "bf16,int4"], "--dtype int4"),
        (["--against", "jax"], "--against jax"),
    ],
)
def test_names_are_checked(options, said):
    from dynadapt.cli import build_parser

    arguments = build_parser().parse_args(["bench", "step", *options])
    with pytest.raises(ValueError, match=said):
        arguments.function(arguments)


def test_help_knows_what_the_benchmark_knows():
    from dynadapt.commands import bench_step

    assert (bench.PEERS, bench.DTYPES, tuple(bench.LIMITS)) == (bench_step.PEERS, bench_step.DTYPES, bench_step.ISAS)
