"""The plan is the step: its FLOPs are the ledger's, its buffers the engine's, and measured steps stand beside it."""

import json
import math
import random
import re
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch

from dynadapt import SGD, AdamW, Engine, Full, LoRA, Overlap, RowSparse, SegmentMemory, Slow
from dynadapt.bench.made_up_quants import write_made_up
from dynadapt.bench.plan import Ceilings, datasheet, from_campaign, measured, most_streams, predict, slow_work, step_work
from dynadapt.bench.plan.ceilings import machine_memory
from dynadapt.cli import main
from dynadapt.engine.footprint import bytes_held
from dynadapt.model import random_model
from dynadapt.model.config import tiny_config
from dynadapt.model.geometries import GEOMETRIES
from dynadapt.model.hf_config import config_to_hf
from dynadapt.model.layout import linear_shapes

ROOT = Path(__file__).parents[2]
CASES = {
    "static": {},
    "lora": {"adapt": LoRA(rank=4)},
    "lora of upper layers": {"adapt": LoRA(rank=4, layers=range(1, 2))},
    "lora, memory, streams": {"adapt": LoRA(rank=4), "memory": SegmentMemory(length=12, sinks=2), "streams": 3},
    "lora, batch": {"adapt": LoRA(rank=4), "streams": 3, "batch": 2},
    "lora, recompute": {"adapt": LoRA(rank=4), "recompute": True},
    "reprojected memory": {"adapt": LoRA(rank=4), "memory": SegmentMemory(length=12, sinks=2, refresh="reproject")},
    "overlap": {"adapt": LoRA(rank=4), "memory": Overlap(context=8)},
    "rows": {"adapt": RowSparse(density=0.25, select="fixed"), "streams": 2},
    "full": {"adapt": Full(), "optimizer": AdamW()},
    "whole model": {"adapt": Full(targets="model"), "shared": True, "streams": 2},
    "norms": {"adapt": Full(targets="norms"), "streams": 2},
    "lora of several rates": {"adapt": LoRA(rank=4, rate_pattern={"q": 0.5}, b_rate=4), "streams": 2},
}


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("case", list(CASES))
def test_flops_and_buffers_are_the_engines(case, family):
    settings = {"streams": 1, "segment": 8, **CASES[case]}
    config = tiny_config(family)
    engine = Engine(random_model(config), **settings, dtype="fp32", backend="reference", static=False)
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):  # until every memory is full
        engine.step(torch.randint(config.vocab_size, (settings["streams"], 9), generator=generator))
    work = step_work(config, **settings, dtype=torch.float32)
    assert {k: v for k, v in work.flops.items() if v} == {k: v for k, v in engine.last.flops.items() if v}
    assert work.memory["activations and buffers"] == engine.workspace.nbytes
    assert work.learned_parameters == engine.learned_parameters
    products = sum(n for phase, n in work.flops.items() if phase != "update")
    assert sum(op.flops for op in work.ops.values()) == products
    assert all(0 <= op.skipped <= op.flops for op in work.ops.values())


def test_rows_by_contrast_are_work_as_rows_by_gradient():
    """And hold the reference's scores beside."""
    config = tiny_config("llama")
    works = [
        step_work(config, adapt=RowSparse(density=0.25, select=s), streams=1, segment=8, dtype=torch.float32)
        for s in ("gradient", "contrast")
    ]
    assert works[0].flops == works[1].flops and works[0].learned_parameters == works[1].learned_parameters
    held = [work.memory["what learns, with its optimizer state"] for work in works]
    assert held[1] - held[0] == 4 * sum(o for i in range(config.layers) for o, _ in linear_shapes(config, i).values())


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_quantised_file_takes_the_bytes_that_the_engine_keeps(tied, tmp_path):
    config = tiny_config("llama", vocab_size=160, hidden_size=256, heads=4, kv_heads=2, head_dim=64, ffn_size=512, layers=2, tied_head=tied)
    engine = Engine(write_made_up(config, tmp_path / "a.gguf", "q4_k", "q6_k"), LoRA(rank=4), segment=8, dtype="fp32", base="quants")
    engine.step(torch.zeros(1, 9, dtype=torch.int64))
    work = step_work(config, LoRA(rank=4), segment=8, dtype=torch.float32, quants="q4_k")
    plain = step_work(config, LoRA(rank=4), segment=8, dtype=torch.float32)
    matrices = {id(m): m.nbytes for parts in engine.weights.parts.values() for m in parts}
    matrices |= {id(m): m.nbytes for m in (engine.weights.head, engine.weights.embedding)}
    norms = 4 * 256 * (2 * config.layers + 1)
    assert work.memory["frozen weights"] == sum(matrices.values()) + norms
    assert work.flops == plain.flops == {**plain.flops, **engine.last.flops}
    saved = sum(4 * m.shape[0] * m.shape[1] - m.nbytes for parts in engine.weights.parts.values() for m in parts)
    assert plain.ops["linear_forward"].bytes - work.ops["linear_forward"].bytes == saved
    with pytest.raises(ValueError, match="quants='q4_k' with adapt=Full"):
        step_work(config, Full(), quants="q4_k")


SLOW = {  # windows of one length, of two, and one that is longer than the text between two updates
    "full": Slow(Full(), SGD(lr=0.1, momentum=0.9), every=40, window=12),
    "lora": Slow(LoRA(4), every=40, window=10),
    "lora of some": Slow(LoRA(4, targets=("q", "down")), every=33, window=64),
}


@pytest.mark.parametrize("slow", list(SLOW))
def test_a_slow_level_is_the_engines(slow):
    config, given = tiny_config("llama"), {"adapt": LoRA(rank=2), "streams": 2, "segment": 8}
    engine = Engine(random_model(config), **given, slow=SLOW[slow], dtype="fp32", backend="reference", static=False)
    text = torch.randint(config.vocab_size, (2, 6 * 8 + 1), generator=torch.Generator().manual_seed(0))
    counted = []
    for i in range(6):
        engine.step(text[:, 8 * i : 8 * i + 9])
        counted.append(dict(engine.last.flops))
    learner = engine.slow_level.learner
    found = slow_work(config, SLOW[slow], 2, 8, torch.float32, learner.recompute)
    assert found.steps == 3 and counted[2] == counted[5] != counted[4]
    assert found.work.flops == {phase: n - counted[0][phase] for phase, n in counted[2].items()}
    assert sum(op.flops for op in found.work.ops.values()) == sum(n for phase, n in found.work.flops.items() if phase != "update")
    together = found.with_step(step_work(config, **given, dtype=torch.float32))
    held = bytes_held(engine.weights, learner.weights, engine.learners, learner.learners)
    assert together.bytes_held == held + engine.workspace.nbytes + learner.workspace.nbytes


def test_the_command_counts_a_slow_level(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(
        "dynadapt.bench.plan.ceilings.measured_here", lambda dtypes: Ceilings("x", "cpu", "made up", {"fp32": 1e11}, 1e10, 64e9)
    )
    arguments = ("--model", "smollm2-135m", "--dtype", "fp32", "--streams", "4", "--segment", "256", "--json", str(tmp_path / "plan.json"))
    code, said = _plan(capsys, *arguments, "--levels", "fast,slow", "--slow-every", "4096")
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert code == 0 and "behind every 4 steps" in said and plan["slow_level"]["steps_between_updates"] == 4
    assert (
        plan["memory_bytes"]["slow level's what learns, with its optimizer state"] > 12 * 106e6
    )  # masters, gradient, momentum of the linears
    assert plan["slow_level"]["floor_seconds"] > plan["floor_seconds"]


@pytest.mark.parametrize("accumulate", [False, True])
def test_the_command_counts_the_steps_between_two_updates(accumulate, capsys, tmp_path):
    """As the engine's ledger does: they score alone, or leave the update out of what it takes."""
    config = tiny_config("llama")
    (tmp_path / "config.json").write_text(json.dumps(config_to_hf(config)))
    options = ("--every", "3", *["--accumulate"] * accumulate)
    sizes = ("--rank", "4", "--segment", "8", "--memory", "0", "--dtype", "fp32", "--gpu", "h100", "--json", str(tmp_path / "plan.json"))
    code, said = _plan(capsys, "--model", str(tmp_path), *sizes, *options)
    plan = json.loads((tmp_path / "plan.json").read_text())
    found = plan["between_updates"]
    assert code == 0 and f"2 of 3 steps {'add their gradient' if accumulate else 'score alone'}" in said and found["steps"] == 2
    engine = Engine(
        random_model(config),
        LoRA(4),
        every=3,
        accumulate=accumulate,
        segment=8,
        dtype="fp32",
        backend="reference",
        static=False,
        recompute=False,
    )
    for flops in (found["flops"], found["flops"], plan["flops"]):
        engine.step(torch.zeros(1, 9, dtype=torch.int64))
        assert {phase: n for phase, n in flops.items() if n} == {phase: n for phase, n in engine.last.flops.items() if n}
    assert found["floor_seconds"] < found["mean_floor_seconds"] < plan["floor_seconds"]
    assert found["mean_floor_seconds"] == pytest.approx((plan["floor_seconds"] + 2 * found["floor_seconds"]) / 3)


def test_traffic_of_one_product():
    config = tiny_config("llama", layers=1)
    op = step_work(config, segment=8, dtype=torch.float32).ops["linear_forward"]
    h, f, q, kv = config.hidden_size, config.ffn_size, config.heads * config.head_dim, config.kv_heads * config.head_dim
    weights = h * (q + 2 * kv) + q * h + 2 * h * f + f * h
    rows = 8 * ((h + q + 2 * kv) + (q + h) + (h + 2 * f) + (f + h))
    slots = 4  # one int32 that says whose adapter it is
    assert op.calls == 4 and op.bytes == 4 * (weights + rows) + 4 * slots


@pytest.mark.parametrize("adapt", [LoRA(4), RowSparse(0.5), Full("model")])
def test_traffic_of_an_update_is_all_that_it_keeps_read_and_written(adapt):
    config, optimizer = tiny_config("llama"), AdamW()
    op = step_work(config, adapt=adapt, optimizer=optimizer, dtype=torch.float32, streams=2, segment=7).ops["update"]
    engine = Engine(random_model(config), adapt, optimizer=optimizer, dtype="fp32", backend="reference", streams=2, segment=7)
    kept = sum(
        t.nbytes
        for learner in engine.learners
        for t in (learner.state.master, learner.state.grad, learner.state.first, learner.state.second)
    )
    assert 2 * kept <= op.bytes < 3 * kept


def test_a_prediction_is_the_sum_of_what_limits_each_op():
    work = step_work(tiny_config("llama"), LoRA(rank=4), segment=8)
    slow_memory = Ceilings("x", "cpu", "made up", {"bf16": 1e30}, 1e3)
    p = predict(work, slow_memory)
    assert p.floor == pytest.approx(sum(op.bytes for op in work.ops.values()) / 1e3) and p.binding == "traffic" and p.seconds is None
    slow_products = Ceilings("x", "cpu", "made up", {"bf16": 1e3}, 1e30)
    p = predict(work, slow_products, [2.0, 1.5, 4.0])
    assert p.floor == pytest.approx(sum(op.flops - op.skipped for op in work.ops.values()) / 1e3) and p.binding == "products"
    assert p.seconds == pytest.approx((2 * p.floor, 1.5 * p.floor, 4 * p.floor))
    small = Ceilings("x", "gpu", "made up", {"bf16": 1e12}, 1e12, memory=work.bytes_held - 1)
    assert predict(work, small).binding == "memory"


def test_stored_rows_are_the_results_files():
    rows = measured.rows()
    assert rows == measured.collect(ROOT / "benchmarks" / "results", rows[0]["copy_gb_per_s"])


def test_the_plan_is_near_what_was_measured():
    found = measured.comparisons("cpu")
    assert len(found) >= 5
    for m in found:
        assert 1.0 < m.slowdown < 1.5, m.row
        assert m.held < m.row["peak_memory_bytes"], m.row


def test_ceilings_of_a_campaign(tmp_path):
    path = tmp_path / "ceilings.json"
    path.write_text(
        json.dumps(
            {
                "rows": [
                    {"what": "copy", "gb_per_s": 4000.0},
                    {"what": "matmul bf16", "tflops": 700.0},
                    {"what": "matmul bf16", "tflops": 800.0},
                ]
            }
        )
    )
    found = from_campaign(path)
    assert found.product_rate("bf16") == 8e14 and found.bandwidth == 4e12
    with pytest.raises(ValueError, match="fp32"):
        found.product_rate("fp32")
    path.write_text(json.dumps({"rows": []}))
    with pytest.raises(ValueError, match="ceilings"):
        from_campaign(path)


def _plan(capsys, *arguments) -> tuple[int, str]:
    with pytest.raises(SystemExit) as stop:
        main(["plan", *arguments])
    said = capsys.readouterr()
    return stop.value.code, said.out + said.err


def test_command(capsys, tmp_path):
    code, said = _plan(
        capsys, "--model", "smollm2-135m", "--streams", "16", "--gpu", "h200", "--gpus", "4", "--json", str(tmp_path / "plan.json")
    )
    assert (
        code == 0
        and "at most 4 streams each" in said
        and "datasheet" in said
        and "6.8 times this floor at 1 x 512" in " ".join(said.split())
    )
    steps = json.loads((ROOT / "benchmarks" / "results" / "h200" / "third-run.json").read_text())["steps"]
    for model, streams, times in (("smollm2-135m", 1, 6.8), ("smollm2-135m", 64, 2.2), ("llama-3.2-1b", 1, 2.2), ("llama-3.2-1b", 8, 1.7)):
        shape = ("--streams", str(streams), "--segment", "512", "--memory", "512")
        assert _plan(capsys, "--model", model, *shape, "--gpu", "h200", "--json", str(tmp_path / "one.json"))[0] == 0
        floor = json.loads((tmp_path / "one.json").read_text())["floor_seconds"]
        measured_step = next(
            r for r in steps if (r["provider"], r["model"], r["streams"], r["segment"]) == ("dynadapt", model, streams, 512)
        )
        assert round(measured_step["seconds"]["median"] / floor, 1) == times
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["streams_a_gpu"] == 4 and plan["binding"] in ("products", "traffic") and plan["expected_seconds"] is None


def test_what_does_not_fit_says_what_would(capsys):
    code, said = _plan(capsys, "--model", "llama-3.1-8b", "--streams", "64", "--gpu", "h200")
    assert code == 0 and "does not fit" in said and "--recompute" in said


@pytest.mark.parametrize(
    "arguments, named",
    [
        (("--gpu", "h300"), "h300"),
        (("--gpu", "h200", "--gpus", "0"), "gpus 0"),
        (("--model", "nix", "--gpu", "h200"), "'nix'"),
        (("--gpu", "h200", "--gpus", "2", "--shared"), "shared"),
        (("--gpu", "h200", "--dtype", "fp64"), "fp64"),
        (("--gpu", "h200", "--base", "float8"), "float8"),
        (("--base", "int8"), "'int8': no ceiling says how fast its products are"),
        (("--gpu", "h200", "--json", f"{__file__}/p.json"), "p.json: expected a file that can be written"),
        (("--gpu", "h200", "--base", "quants"), "quants"),
        (("--base", "quants", "--adapt", "full"), "quants"),
        (("--explain",), "name it with --gpu"),
        (("--gpu", "h200", "--levels", "fast,slow"), "gpu 'h200' with levels 'fast,slow'"),
        (("--gpus", "2", "--levels", "fast,slow"), "gpus 2 with levels 'fast,slow'"),
        (("--base", "quants", "--levels", "fast,slow"), "base 'quants' with levels 'fast,slow'"),
        (("--shared", "--levels", "fast,slow"), "shared True with levels 'fast,slow'"),
        (("--gpu", "a10", "--explain"), "'a10': its number of multiprocessors"),
    ],
)
def test_bad_input_is_refused_by_name(capsys, arguments, named):
    code, said = _plan(capsys, *arguments)
    assert code == 2 and named in said


def test_datasheet_names_what_there_is():
    with pytest.raises(ValueError, match="h200"):
        datasheet("b300")


# ---- how many streams fit


@pytest.mark.parametrize("seed", range(20))
def test_most_streams_is_the_largest_that_fits(seed):
    """Lines, stairs and bends that grow, looked through one by one."""
    draw = random.Random(seed)
    base, slope, stair, bend = draw.randint(0, 1000), draw.randint(1, 50), draw.randint(1, 40), draw.choice([0, 0, 1, 3])
    asked = []

    def held(n: int) -> int:
        asked.append(n)
        return base + slope * n + 30 * (n // stair) + bend * max(0, n - 50) ** 2

    for capacity in (0, base, base + slope, base + slope + 1, *(draw.randint(0, 40_000) for _ in range(20))):
        asked.clear()
        most = draw.choice([7, 400, 100_000])
        found = most_streams(held, capacity, most)
        assert len(asked) < 40
        assert not found or held(found) <= capacity
        assert found == most or held(found + 1) > capacity


@pytest.mark.parametrize("case", [name for name in CASES if name != "static"])
def test_one_stream_more_does_not_fit(case):
    """The number is the sizes' arithmetic: at it the step's own buffers fit, with one stream more they do not."""
    settings = {k: v for k, v in CASES[case].items() if k not in ("streams", "shared")}
    shared = CASES[case].get("shared", False)
    held = lambda n, only=True: (
        step_work(tiny_config("llama"), **settings, streams=n, segment=8, shared=shared, memory_only=only).bytes_held
    )  # noqa: E731
    assert all(held(n) == held(n, False) for n in (1, 2, 5))
    sizes = [held(n) for n in range(1, 12)]
    assert sizes == sorted(sizes)
    capacity = held(7) + 1
    assert held(most_streams(held, capacity)) <= capacity < held(most_streams(held, capacity) + 1)
    assert most_streams(held, held(1) - 1) == 0


def test_the_command_says_how_many_streams_fit(capsys, tmp_path):
    code, said = _plan(capsys, "--model", "qwen3-0.6b", "--gpu", "NVIDIA L4", "--json", str(tmp_path / "plan.json"))
    plan = json.loads((tmp_path / "plan.json").read_text())
    fit = plan["streams_that_fit"]
    found = re.search(r"fits +(\d+) streams of 512 tokens in 24.00 GB \((\S+) GB; (\d+) would take (\S+) GB\)", said)
    assert code == 0 and int(found[1]) == fit and int(found[3]) == fit + 1 and float(found[2]) <= 24.0 < float(found[4])
    code, said = _plan(capsys, "--model", "qwen3-0.6b", "--gpu", "l4", "--fit", "--gpus", "2", "--json", str(tmp_path / "fit.json"))
    at = json.loads((tmp_path / "fit.json").read_text())
    assert (
        code == 0 and at["settings"]["streams"] == 2 * fit and at["streams_a_gpu"] == fit and f"{fit} streams" in said and "in all" in said
    )
    assert sum(at["memory_bytes"].values()) <= 24e9 and at["floor_seconds"] > plan["floor_seconds"]
    code, said = _plan(capsys, "--model", "qwen3-14b", "--gpu", "l4", "--segment", "8")
    assert code == 0 and "not one stream of 8 tokens in 24.00 GB" in said
    code, said = _plan(capsys, "--model", "qwen3-14b", "--gpu", "l4", "--segment", "8", "--fit")
    assert code == 2 and "fit: not one stream of 8 tokens of qwen3-14b fits in 24.00 GB" in said


def test_a_machines_memory_is_no_more_than_its_group_may_use(tmp_path):
    (tmp_path / "limit").write_text("123456789\n")
    (tmp_path / "none").write_text("max\n")
    assert machine_memory(tmp_path / "limit") == 123456789
    assert machine_memory(tmp_path / "none") == machine_memory(tmp_path / "nowhere") > 1e9


# ---- kernels


def launches_of(config, streams=2, segment=48, adapt=LoRA(rank=4), **options):
    from dynadapt.bench.plan.launches import step_launches

    return step_launches(132, config, adapt, AdamW(), SegmentMemory(16, 2), streams, segment, **options)


@pytest.mark.parametrize("adapt", [LoRA(rank=4), LoRA(rank=4, targets=["q", "head"])], ids=["all", "q and head"])
def test_launches_are_those_of_the_step(adapt):
    """An engine's own step on Triton's interpreter launches the same kernels with the same programs, but for what fills its memory."""
    from triton.runtime.interpreter import GridExecutor

    config = tiny_config("llama")
    _, found = launches_of(config, adapt=adapt)
    model, real = random_model(config, seed=0, std=0.1), GridExecutor.__call__
    engine = Engine(
        model,
        adapt=adapt,
        optimizer=AdamW(),
        memory=SegmentMemory(16, 2),
        streams=2,
        segment=48,
        dtype="bf16",
        backend="triton",
        device="cpu",
    )
    noted = []

    def call(executor, *args, **kwargs):
        noted.append((executor.fn.__name__.removeprefix("dynadapt_"), math.prod(executor.grid)))
        return real(executor, *args, **kwargs)

    tokens = torch.randint(config.vocab_size, (2, 49), generator=torch.Generator().manual_seed(0))
    engine.step(tokens)  # fills the memory
    with mock.patch.object(GridExecutor, "__call__", call):
        engine.step(tokens)
    apart = ("memory", "reset")
    expected = [pair for pair in noted if not pair[0].startswith(apart)]
    assert [(launch.kernel, launch.programs) for launch in found if not launch.kernel.startswith("cuBLAS")] == expected


def test_every_product_of_the_ledger_is_some_kernels():
    work, found = launches_of(GEOMETRIES["smollm2-135m"], streams=1, segment=512)
    counted = sum(op.flops for op in work.ops.values())
    assert abs(sum(launch.flops for launch in found) - counted) < 0.01 * counted
    assert {launch.op for launch in found} <= set(work.ops)


def test_a_launch_takes_what_limits_it():
    from dynadapt.bench.plan.launches import LATENCY, REACHED, Launch, time_of

    card = Ceilings("card", "gpu", "made up", {"bf16": 1e12}, 1e9)
    assert time_of(Launch("op", "tiny", 1, 8), card, 10, "bf16")[1:] == (LATENCY, "latency")
    full, half = (time_of(Launch("op", "p", programs, 8, 10**12), card, 10, "bf16") for programs in (10, 11))
    assert full == (1.0, pytest.approx(1 / REACHED["products"]), "products")
    assert half[1] == pytest.approx(full[1] * 20 / 11)  # the eleventh program runs alone
    assert time_of(Launch("op", "attention_dq", 20, 8, 10**12), card, 10, "bf16")[1] == pytest.approx(1 / REACHED["attention"])
    few, many = (time_of(Launch("op", "t", programs, 10**9), card, 10, "bf16") for programs in (1, 50))
    assert many == (1.0, pytest.approx(1 / REACHED["traffic"]), "traffic") and few[1] == pytest.approx(5 * many[1])


def test_rows_of_a_norm_together_are_predicted_to_gain_nothing():
    """Why a program of kernels/norm.py has one row. docs/gpu.md says it with these figures; where the model comes to another answer, norms deserve another look."""
    from dynadapt.bench.plan.launches import time_of

    def norms(model, streams):
        found = [launch for launch in launches_of(GEOMETRIES[model], streams, 512)[1] if launch.kernel in ("norm_forward", "norm_backward")]
        assert {launch.programs for launch in found} == {streams * 512}
        return found

    def seconds(found, rows, weight=0):
        """``weight``: bytes that every program reads from memory once more."""
        changed = [replace(one, programs=math.ceil(one.programs / rows), bytes=one.bytes + weight * one.programs) for one in found]
        return sum(time_of(launch, datasheet("h100"), 132, "bf16")[1] for launch in changed)

    few, many, large = norms("smollm2-135m", 1), norms("smollm2-135m", 64), norms("llama-3.2-1b", 1)
    for found, ms in ((few, 0.3025), (many, 6.388), (large, 0.1908)):
        assert len({seconds(found, rows) for rows in (1, 2, 4)}) == 1 and 1e3 * seconds(found, 1) == pytest.approx(ms, rel=1e-3)
    assert 1e3 * seconds(large, 8) == pytest.approx(0.1966, rel=1e-3)
    assert 1e3 * seconds(many, 1, weight=2 * 576) == pytest.approx(7.992, rel=1e-3)


def test_the_command_explains_kernels(capsys, tmp_path):
    file = tmp_path / "plan.json"
    code, said = _plan(capsys, "--model", "smollm2-135m", "--gpu", "h100", "--explain", "--json", str(file))
    assert code == 0
    assert "not measured, from these assumptions" in said and "attention_dkv" in said and "cuBLAS 512 x" in said
    plan = json.loads(file.read_text())
    assert plan["kernels"]["seconds"] == pytest.approx(sum(row["seconds"] for row in plan["kernels"]["rows"]))
    assert plan["kernels"]["seconds"] > plan["floor_seconds"]
