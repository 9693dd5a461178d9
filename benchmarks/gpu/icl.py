"""Stages ``icl-*``: training in context at the sizes of the paper, and one training step beside the same model in torch.

A training stage stops with a checkpoint before its time is up; called again, it goes on from there, bit for bit. The run is in
DIR/STAGE-run, beside the record, which has a row for every few thousand of its steps.
"""

from __future__ import annotations

import json

import torch

SPARE = 40.0  # seconds for the last checkpoint and, at the end, for the errors of model and baselines
ROW = 5000  # steps
MIXTURE = ("dense-linear", "sparse-linear:2")
TINY = dict(
    layers=1,
    hidden=32,
    heads=2,
    batch=4,
    dims=3,
    points=4,
    dims_start=2,
    dims_every=4,
    points_start=3,
    points_step=1,
    points_every=4,
    steps=12,
    log=4,
    dtype="fp32",
)


def small(campaign, record) -> None:
    """Garg et al.'s small model on dense linear functions, 500,000 steps in bf16: call until it is complete."""
    _train(campaign, record, "icl-small", preset="garg-small", classes=("dense-linear",))


def standard(campaign, record) -> None:
    """Garg et al.'s standard model on dense linear functions, 500,000 steps in bf16: call until it is complete."""
    _train(campaign, record, "icl-standard", classes=("dense-linear",))


def mixture(campaign, record) -> None:
    """The same on dense and sparse (2 of 20) linear functions, half of the prompts each: call until it is complete."""
    _train(campaign, record, "icl-mixture", classes=MIXTURE)


def _config(campaign, preset: str, **changes):
    from dynadapt.experiments.icl.presets import from_preset

    sizes = TINY if campaign.tiny else {"dtype": "bf16"}
    return from_preset(preset, device=campaign.device, **{**sizes, **changes})


def _train(campaign, record, stage: str, classes, preset: str = "garg-standard") -> None:
    from dynadapt.experiments.dyneval import Interrupted
    from dynadapt.experiments.icl.train import TrainOptions, train

    config = _config(campaign, preset, classes=classes)
    folder = campaign.out / f"{stage}-run"
    options = TrainOptions(resume=True, checkpoint=config.steps // 10, minutes=max(0.1, (campaign.left - SPARE) / 60))
    record.note(config=config.to_dict())
    say = lambda line: print(f"step {line['step']}: error {line['error']:.4f}", flush=True)  # noqa: E731
    try:
        summary = train(config, folder, options, say)
    except Interrupted as stopped:
        record.note(status=f"out of time: {stopped}; call the stage again to go on")
    else:
        record.note(
            **{
                key: summary[key]
                for key in ("steps", "seconds", "steps_per_second", "above_least_squares", "errors", "parameters", "peak_gpu_memory_bytes")
            }
        )
    record.data["rows"] = []  # of all calls
    every = min(ROW, config.steps)
    for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()):
        if line["step"] % every == 0:
            record.add(**{key: line[key] for key in ("step", "error", "by_k", "grad_norm", "dims", "points", "total_seconds")})


def bench(campaign, record) -> None:
    """A training step of garg-tiny and garg-standard beside Hugging Face's GPT-2, eager and compiled, on the same prompts."""
    from dynadapt.experiments.icl.bench import bench_config, run_icl

    peers = ["gpt2-eager"] if campaign.tiny else ["gpt2-eager", "gpt2-compile"]
    rounds, steps = (1, 2) if campaign.tiny else (10, 100)
    for preset in ("garg-tiny",) if campaign.tiny else ("garg-tiny", "garg-standard"):
        for dtype in ("fp32",) if campaign.tiny else ("bf16", "fp32"):
            if campaign.left < 60 and not campaign.tiny:
                record.finish("out of time")
                return
            sizes = {key: TINY[key] for key in ("layers", "hidden", "heads", "batch", "dims", "points")} if campaign.tiny else {}
            result = run_icl(
                bench_config(preset, device=campaign.device, dtype=dtype, **sizes),
                peers,
                rounds,
                steps,
                say=lambda text: print(text, flush=True),
            )
            for name, found in result["providers"].items():
                record.add(
                    preset=preset,
                    dtype=dtype,
                    provider=name,
                    median_ms=1e3 * found["seconds"]["median"],
                    steps_per_second=found["steps_per_second"],
                    gflops=found["gflops"],
                    dynadapt_is=found["speedup_of_dynadapt"],
                    error=found["error"],
                )
            if campaign.device == "cuda":
                torch.cuda.empty_cache()
