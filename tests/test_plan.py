"""The plan is the step: its FLOPs are the ledger's, its buffers the engine's, and measured steps stand beside it."""

import json
from pathlib import Path

import pytest
import torch

from dynadapt import Adam, AdamW, Engine, Full, LoRA, Overlap, RowSparse, SegmentMemory
from dynadapt.cli import main
from dynadapt.model import random_model
from dynadapt.model.config import tiny_config
from dynadapt.plan import Ceilings, datasheet, from_campaign, measured, predict, step_work

ROOT = Path(__file__).parents[1]
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


def test_traffic_of_one_product():
    config = tiny_config("llama", layers=1)
    op = step_work(config, segment=8, dtype=torch.float32).ops["linear_forward"]
    h, f, q, kv = config.hidden_size, config.ffn_size, config.heads * config.head_dim, config.kv_heads * config.head_dim
    weights = h * (q + 2 * kv) + q * h + 2 * h * f + f * h
    rows = 8 * ((h + q + 2 * kv) + (q + h) + (h + 2 * f) + (f + h))
    slots = 4  # one int32 that says whose adapter it is
    assert op.calls == 4 and op.bytes == 4 * (weights + rows) + 4 * slots


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
    path.write_text(json.dumps({"rows": [{"what": "copy", "gb_per_s": 4000.0}, {"what": "matmul bf16", "tflops": 700.0}, {"what": "matmul bf16", "tflops": 800.0}]}))
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
    code, said = _plan(capsys, "--model", "smollm2-135m", "--streams", "16", "--gpu", "h200", "--gpus", "4", "--json", str(tmp_path / "plan.json"))
    assert code == 0 and "at most 4 streams each" in said and "datasheet" in said and "no step has been measured on a GPU" in said
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["streams_a_gpu"] == 4 and plan["binding"] in ("products", "traffic") and plan["expected_seconds"] is None


def test_what_does_not_fit_says_what_would(capsys):
    code, said = _plan(capsys, "--model", "llama-3.1-8b", "--streams", "64", "--gpu", "h200")
    assert code == 0 and "does not fit" in said and "--recompute" in said


@pytest.mark.parametrize("arguments, named", [
    (("--gpu", "h300"), "h300"), (("--gpu", "h200", "--gpus", "0"), "gpus 0"), (("--model", "nix", "--gpu", "h200"), "'nix'"),
    (("--gpu", "h200", "--gpus", "2", "--shared"), "shared"), (("--gpu", "h200", "--dtype", "fp64"), "fp64"), (("--gpu", "h200", "--base", "float8"), "float8")])
def test_bad_input_is_refused_by_name(capsys, arguments, named):
    code, said = _plan(capsys, *arguments)
    assert code == 2 and named in said


def test_datasheet_names_what_there_is():
    with pytest.raises(ValueError, match="h200"):
        datasheet("b300")
