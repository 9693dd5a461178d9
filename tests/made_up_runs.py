"""The files of runs that nobody ran, of every kind: for tests of what reads them."""

import json
import random
import zlib
from pathlib import Path

import numpy as np

from dynadapt.experiments.config import EvalConfig
from dynadapt.experiments.icl.config import TrainConfig
from dynadapt.experiments.reweight.config import ReweightConfig
from dynadapt.runs.append_only import SCORE

ENV = {"dynadapt": "0.1.0", "python": "3.11", "packages": {"torch": "2.11"}, "cpu": "made up"}


def write(path: Path, config: dict, lines: list[dict], summary: dict | None, inputs: dict | None = None) -> Path:
    path.mkdir(parents=True)
    (path / ".lock").touch()
    for name, content in (("env.json", ENV), ("inputs.json", inputs or {}), ("config.json", config), ("summary.json", summary)):
        if content is not None:
            (path / name).write_text(json.dumps(content))
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def eval_run(
    path: Path,
    segments: int = 4,
    of: int | None = None,
    nll: float = 3.0,
    cost: float = 3e8,
    finished: bool = True,
    scores: bool = False,
    sha: str | None = "a" * 64,
    **config,
) -> Path:
    """`of`: tokens to score, in segments of 16."""
    settings = EvalConfig(**{"text": ("a.txt",), "segment": 16, "tokens": None if of is None else 16 * of, **config})
    lines = [
        {
            "segment": i,
            "documents": [0],
            "nll": nll + 0.1 / (i + 1),
            "total_tokens": 16 * (i + 1),
            "total_nll": nll + 0.1,
            "bytes": 64,
            "tokens": 16,
            "total_bits_per_byte": (nll + 0.1) * 16 / (0.6931471805599453 * 64),
            "seconds": 0.5,
            "total_seconds": 0.5 * (i + 1),
            "flops": {"forward": 10, "backward": 20},
            "updated": [True],
        }
        for i in range(segments)
    ]
    summary = (
        {
            "nll": nll,
            "bits_per_byte": nll / 4,
            "perplexity": 20.0,
            "tokens": 16 * segments,
            "seconds": 0.5 * segments,
            "flops_per_token": cost,
            "flops": {"forward": 10 * segments},
        }
        if finished
        else None
    )
    inputs = {f"text {spec!r}": {"bytes": 640, "sha256": sha} if sha else None for spec in settings.text}
    write(path, settings.to_dict(), lines, summary, {**inputs, "the model": "m", "the tokenizer": "t"})
    if scores:
        rows = np.zeros(16 * segments, SCORE)
        rows["position"], rows["nll"] = np.arange(1, len(rows) + 1), nll
        np.save(path / "scores.npy", rows)
    return path


def checkpoint(run: Path, step: int = 4) -> Path:
    state = run / "checkpoint" / f"{step:08d}"
    state.mkdir(parents=True)
    (state / "state.json").write_text("{}")
    return state


def reweight_run(
    path: Path,
    domains=("code", "prose"),
    shift: float = 0.0,
    steps: int = 6,
    finished: bool = True,
    rows: int = 4,
    seed: int = 0,
    noise: float = 0.01,
    corpus: str = "x",
    keeps_rows: bool = True,
    evaluate: int = 2,
    **config,
) -> Path:
    settings = ReweightConfig(domains={name: f"/somewhere/{name}" for name in domains}, steps=steps, seed=seed, **config)
    level = np.random.default_rng([seed, 7])  # what runs of one seed share
    own = np.random.default_rng([seed, zlib.crc32(settings.mixer.encode())])
    base = {name: level.normal(3.0, 0.5, rows) for name in domains}
    weights, lines = dict.fromkeys(domains, 1 / len(domains)), []
    for step in range(steps + 1):
        if step:
            lines.append(
                {
                    "kind": "step",
                    "step": step,
                    "total_tokens": 64 * step,
                    "loss": 3.0,
                    "losses": {domains[step % len(domains)]: 3.0 - step / 50},
                    "weights": weights,
                    "total_seconds": step,
                }
            )
        if step % evaluate == 0:
            by_row = {name: [float(x) for x in values + (shift + own.normal(0, noise, rows)) * (step > 0)] for name, values in base.items()}
            heldout = {name: float(np.mean(values)) for name, values in by_row.items()}
            lines.append(
                {
                    "kind": "evaluation",
                    "step": step,
                    "total_tokens": 64 * step,
                    "heldout": heldout,
                    "mean": float(np.mean(list(heldout.values()))),
                    "weights": weights,
                    "total_seconds": step,
                    **({"heldout_rows": by_row} if keeps_rows else {}),
                }
            )
    last = [line for line in lines if line["kind"] == "evaluation"][-1]
    summary = {"mean": last["mean"], "heldout": last["heldout"], "tokens": 64 * steps, "seconds": steps} if finished else None
    inputs = {"the tokenizer": "t", **{f"the text of domain {name!r}": f"{corpus}-{name}" for name in domains}}
    return write(path, settings.to_dict(), lines, summary, inputs)


def icl_run(path: Path, finished: bool = True, steps: int = 500, done: int = 500) -> Path:
    settings = TrainConfig(classes=("dense-linear",), steps=steps, log=100, dims=4, points=9)
    lines = [
        {"step": step, "loss": 4 / step, "error": 1 / step, "by_k": [1.0, 0.5], "total_seconds": step / 100}
        for step in range(100, done + 1, 100)
    ]
    curve = {"mean": [1.0] * 9, "low": [0.9] * 9, "high": [1.1] * 9}
    summary = (
        {"errors": {"linear": {"model": curve, "zero": curve, "least_squares": curve}}, "last": lines[-1], "seconds": 5.0}
        if finished
        else None
    )
    return write(path, settings.to_dict(), lines, summary)


def diagnosis(path: Path, finished: bool = True, names=("a.txt",)) -> Path:
    chosen = random.Random(0)
    config = {
        **EvalConfig(text=("a.txt",)).to_dict(),
        "after": "other",
        "learn": [],
        "learn_tokens": None,
        "reference": [],
        "control": "none",
        "embeddings": None,
    }
    part = lambda text: {"class": text, "shown": text, "contribution": chosen.uniform(-1, 1), "contribution_interval": [-0.1, 0.1]}  # noqa: E731
    summary = {
        "kind": "diagnosis",
        "change": -0.1,
        "interval": [-0.2, -0.05],
        "classes": [part(f"class {i}") for i in range(6)],
        "top_types": [part(f"type{i}") for i in range(20)],
        "concentration": [{"types": n, "net": 0.5, "held_out": 0.4, "tokens": 0.1} for n in (1, 10, 100)],
        "documents": [{"name": name, "tokens": 100, "before": 3.0, "after": 2.9} for name in names],
        "controls": [],
        "places": [{"first": 0, "last": 63, "tokens": 64, "change": -0.1}, {"first": 64, "last": 64, "tokens": 1, "change": 0.1}],
    }
    return write(path, config, [], summary if finished else None)
