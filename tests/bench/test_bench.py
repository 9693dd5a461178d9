"""The step benchmark on a tiny model: it checks before it times, and what it writes adds up."""

import json
import math
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import to_transformers

from dynadapt import _C
from dynadapt.bench import compare, machine, neighbour, side_by_side, worker
from dynadapt.bench import step as bench
from dynadapt.bench.plain_directory import plain_directory
from dynadapt.bench.quantiles import median_interval
from dynadapt.model import load, random_model, tiny_config
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
    monkeypatch.setattr(bench, "pieces", lambda model, s, t: segments(tiny_config("llama").vocab_size, s, t))
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
    options = {
        "model": str(tmp_path / "absent"),
        "dtype": "fp32",
        "streams": 1,
        "segment": 8,
        "rank": 2,
        "isa": None,
        "base": "same",
        "tokens": [],
    }
    with pytest.raises(RuntimeError, match="provider dynadapt ended with status 1(.|\n)*does not exist"):
        side_by_side.ModuleWorker("dynadapt", "dynadapt.bench.step_worker", options, 1)


def test_a_provider_that_is_killed_between_two_steps_is_named():
    worker = side_by_side.Worker("slow", [sys.executable, "-c", "input(); print('{\"ready_at\": 0}')"], {}, 1)
    worker.process.wait()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="provider slow ended with status 0"):
            worker.ask("time", runs=1)
    worker.close()


def test_several_dtypes_and_an_instruction_set(directory, monkeypatch):
    monkeypatch.setattr(bench, "pieces", lambda model, s, t: segments(tiny_config("llama").vocab_size, s, t))
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


def test_thread_settings_race_and_the_slower_one_rests():
    fast, even = Stub({2: 1.0, 1: 1.9}, 2), Stub({2: 1.0, 1: 1.1}, 2)
    runners = [*side_by_side.runners_of("a", [fast], (2, 1)), *side_by_side.runners_of("b", [even], (2, 1))]
    found = side_by_side.race(runners, 8)
    assert found["rounds"] == 8 and found["settled"] and found["resting"] == ["a, 1 thread"]
    assert [len(r.seconds) for r in runners] == [8, side_by_side.PROBE + 2, 8, 8]  # looked at again in rounds 4 and 8
    assert {name: r.threads for name, r in side_by_side.best_of(runners).items()} == {"a": 2, "b": 2}
    assert any("every 4th round only: a, 1 thread" in line for line in side_by_side.remarks(found))


def test_one_noisy_start_decides_nothing():
    """Slow steps at the start, as of a busy neighbour, used to choose the wrong number of threads for good."""

    class Disturbed(Stub):
        """Beside a neighbour for the first rounds, which costs two threads more than one."""

        def time(self, runs):
            turns = self.asked.count("time")
            return {"seconds": [{1: 1.9, 2: 5.0 if turns < 2 * 2 * 4 else 1.0}[self.threads]] * runs}

    disturbed = Disturbed({}, 2)
    runners = side_by_side.runners_of("a", [disturbed], (2, 1))
    found = side_by_side.race(runners, 12)
    assert runners[0].seconds[:3] == [5.0] * 3  # behind in every round that was looked at first, ...
    assert side_by_side.best_of(runners)["a"].threads == 2 and found["rounds"] > 12  # ... and chosen at the end, after more rounds
    noisy = Stub({2: 1.0, 1: 1.9}, 2, noise=2)
    side_by_side.race(once := side_by_side.runners_of("a", [noisy], (2, 1)), 9)
    assert side_by_side.best_of(once)["a"].threads == 2


def test_rounds_go_on_while_the_medians_are_unsure():
    class Wild(Stub):
        def time(self, runs):
            self.noise += 1
            return {"seconds": [1.0 + self.noise % 2] * runs}

    found = side_by_side.race(side_by_side.runners_of("a", [Wild({}, 1)], (1,)), 4)
    assert found["rounds"] == 4 * side_by_side.MOST and not found["settled"]
    assert any("not every median is sure to 5% either way" in line for line in side_by_side.remarks(found))

    class Calming(Stub):
        def time(self, runs):
            self.noise += 1
            return {"seconds": [3.0 if self.noise in (1, 3, 4) else 1.0 + 0.001 * self.noise] * runs}

    found = side_by_side.race(side_by_side.runners_of("a", [Calming({}, 1)], (1,)), 6)
    assert 6 < found["rounds"] < 18 and found["settled"]


def test_the_interval_of_a_median_is_as_wide_as_chance_allows():
    """Held to 2,000 draws of a skewed distribution, and to the table of signed ranks at n = 10 (2nd and 9th, 97.9%)."""
    assert median_interval(range(10)) == (1, 8) and median_interval([3.0, 1.0, 2.0]) == (1.0, 3.0)
    assert median_interval(range(6)) == (0, 5) and median_interval(range(100)) == (39, 60)
    draw, inside = random.Random(0), 0
    for _ in range(2000):
        low, high = median_interval([draw.expovariate(1.0) for _ in range(15)])
        inside += low <= math.log(2) <= high
    assert 0.95 <= inside / 2000 <= 0.99


def test_busy_rounds_are_said(monkeypatch):
    loads = iter([0.0, 0.3, 0.0, 0.4, 0.0, 0.5, 0.0, 0.0])
    monkeypatch.setattr(side_by_side.Meter, "others", lambda self: next(loads))
    seen = []
    found = side_by_side.race(side_by_side.runners_of("a", [Stub({1: 1.0}, 1)], (1,)), 8, after=lambda turn, load: seen.append(load))
    assert found["other_load"] == 0.0 and found["busy_rounds"] == 3 and seen[1] == 0.3
    assert any("in 3 of 8 rounds" in line for line in side_by_side.remarks(found))


def test_a_core_is_kept_busy_and_let_go():
    with neighbour.busy_core() as pid:
        time.sleep(0.5)
        others, own = side_by_side.Meter([]), side_by_side.Meter([pid])
        time.sleep(1.0)
        difference = others.others() - own.others()  # what the neighbour alone took
        assert 0.1 / (os.cpu_count() or 1) < difference < 1.5 / (os.cpu_count() or 1)
    assert not Path(f"/proc/{pid}").exists()


def test_rows_beside_a_busy_core():
    """The second race has rows of its own, which its own rows of ours are the measure of; the first ones stay as they are."""
    told = []
    benchmark = compare.Benchmark("", {}, compare.Provider("", {}), "", {"nll": 1.0}, (2, 1), busy=True)
    field = compare._Field(benchmark, Path(), told.append)
    field.runners = [
        *side_by_side.runners_of("dynadapt", [Stub({2: 2.0, 1: 3.0}, 2)], (2, 1)),
        *side_by_side.runners_of("torch", [Stub({2: 5.0, 1: 5.5}, 2)], (2, 1), ubatch=64),
    ]
    field.runners[2].worker.time = field.runners[3].worker.time = lambda runs, ubatch: {"seconds": [5.0] * runs}
    field.rows = {name: {"provider": name, "dtype": "fp32", "error": {"nll": 0.1}} for name in ("dynadapt", "torch")}
    field.flops = 10**9
    found = field.race_beside(4, 1)
    assert found["rounds"] == 4 and found["resting"] == ["dynadapt, a core busy, 1 thread"]
    assert list(field.rows) == ["dynadapt", "torch", "dynadapt, a core busy", "torch, a core busy"]
    ours, theirs = field.rows["dynadapt, a core busy"], field.rows["torch, a core busy"]
    assert ours["busy_neighbour"] and "seconds" not in field.rows["dynadapt"] and not any(r.seconds for r in field.runners)
    assert ours["by_threads"]["1"]["median"] == 3.0 and ours["threads"] == 2 and ours["gflops"] == 0.5
    assert theirs["setting"] == {"ubatch": 64} and set(theirs["by_setting"]) == {"2 threads, ubatch 64", "1 thread, ubatch 64"}
    assert theirs["speedup_of_dynadapt"] == 2.5 and told[-1].startswith("round 4: dynadapt, a core busy 2000 ms")


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


def test_peak_memory_is_a_process_s_own():
    """Not that of the process that started it, which had loaded a model."""
    kept = torch.ones(100_000_000)  # 400 MB here
    code = "from dynadapt.bench import worker; print(worker.peak_memory())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert 1e7 < int(done.stdout) < kept.nbytes + 1e8 and int(done.stdout) < worker.peak_memory()


def test_masked_flops_are_those_above_the_diagonal():
    segment, heads, d = 5, 3, 4
    product = 2 * heads * d * int(torch.ones(segment, segment).triu(1).sum())  # of one matrix product over what is masked
    assert attention.masked_flops(segment, heads, d) == (2 * product, 5 * product)
    on_and_below = 2 * heads * d * int(torch.ones(segment, segment).tril().sum())
    assert attention.forward_flops(segment, 0, heads, d) - 2 * product == 2 * on_and_below


@pytest.mark.parametrize("memory,window", [(0, 3), (4, 5), (4, 7), (2, 20)])
def test_masked_flops_are_those_before_a_window(memory, window):
    segment, heads, d = 6, 3, 4
    seen = attention.seen_memory(memory, window)
    key, query = torch.arange(seen + segment), seen + torch.arange(segment)[:, None]
    hidden = (key > query) | (key <= query - window)
    inside, outside = (2 * heads * d * int(part.sum()) for part in (hidden[:, seen:], hidden[:, :seen]))
    assert attention.masked_flops(segment, heads, d, seen, window) == (2 * (inside + outside), 5 * inside + 3 * outside)


@pytest.mark.parametrize(
    "options,said",
    [
        (["--isa", "sse"], "--isa sse: expected some of avx2"),
        (["--isa", "avx512"], "--isa avx512: this processor has avx2$"),
        (["--isa", ","], "--isa ,: expected some of avx2"),
        (["--dtype", "bf16,int4"], "--dtype int4"),
        (["--dtype", ""], "--dtype ,: expected some of bf16, fp32"),
        (["--out", "."], "--out .: expected a file that can be written; it is a directory"),
        (["--out", f"{__file__}/x.json"], "--out .*x.json: expected a file that can be written; .*: (Not a directory|File exists)"),
    ],
)
@pytest.mark.parametrize("command", ["step", "score", "products"])
def test_names_are_checked(command, options, said, monkeypatch):
    from dynadapt.cli import build_parser

    monkeypatch.setattr(machine, "instruction_sets", lambda: ["avx2"])
    arguments = build_parser().parse_args(["bench", command, *options])
    with pytest.raises(ValueError, match=said):
        arguments.function(arguments)


def test_a_peer_that_is_not_known_is_named():
    from dynadapt.cli import build_parser

    arguments = build_parser().parse_args(["bench", "step", "--against", "jax"])
    with pytest.raises(ValueError, match="--against jax: expected some of peft-eager, peft-compile"):
        arguments.function(arguments)


@pytest.mark.parametrize("command", ["step", "score"])
def test_a_model_that_can_not_take_part_is_refused_before_anything_starts(command, directory, monkeypatch):
    from dynadapt.cli import build_parser

    monkeypatch.setattr(side_by_side, "ModuleWorker", None)
    for options, said in (
        ([], f"model '{directory}' has no tokenizer"),
        (["--base", "quants"], "base='quants' with model 'tiny': it is not"),
    ):
        arguments = build_parser().parse_args(["bench", command, "--model", directory, *options])
        with pytest.raises(ValueError, match=said):
            arguments.function(arguments)


def test_peers_have_the_numbers_of_the_model_that_is_timed(directory, tmp_path):
    """Of a directory itself; of an adapter, not those of its base alone."""
    assert plain_directory(directory, tmp_path) == directory
    bench._random_adapter(tmp_path / "adapter", directory, 3)
    merged = load(plain_directory(str(tmp_path / "adapter"), tmp_path))
    expected, base = load(tmp_path / "adapter"), load(directory)
    name = "layers.0.q.weight"
    assert torch.equal(merged.tensor(name), expected.tensor(name)) and not torch.equal(merged.tensor(name), base.tensor(name))


def test_help_knows_what_the_benchmark_knows():
    from dynadapt.commands import bench_step

    assert (bench.PEERS, bench.DTYPES, tuple(machine.LIMITS)) == (bench_step.PEERS, bench_step.DTYPES, bench_step.ISAS)


def test_gradients_are_the_first_streams_however_many_go_together(directory, tmp_path, monkeypatch):
    """Streams beyond those that keep the threads busy go through the layers in passes of their own, each with its update."""
    from dynadapt.bench.step_worker import Native

    bench._random_adapter(tmp_path / "adapter", directory, 3)
    tokens, found = torch.tensor(segments(tiny_config("llama").vocab_size, 3, 24)[0]), []
    options = {"model": directory, "rank": 3, "streams": 3, "segment": 24, "dtype": "fp32", "base": "same", "tokens": []}
    threads = _C.num_threads(), torch.get_num_threads()
    try:
        for rows, together in ((256, 3), (1, 1)):
            monkeypatch.setattr("dynadapt.engine.settings.ROWS_A_THREAD", rows)
            native = Native({**options, "threads": 1})
            assert native.engine.batch == together
            found.append(native.gradients(tmp_path / "adapter", tokens))
    finally:
        _C.set_num_threads(threads[0]), torch.set_num_threads(threads[1])
    assert all(torch.equal(found[0][name], found[1][name]) and found[0][name].abs().max() > 0 for name in found[0])
