"""What ``dynadapt profile`` measures: every case of an op, or the adapt step of a model with random weights."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from dynadapt.bench import cases
from dynadapt.bench.bases import COARSE
from dynadapt.engine import DTYPES
from dynadapt.ops import choose_backend, choose_device, resolve
from dynadapt.ops.profiler_ranges import named
from dynadapt.ops.quants import BLOCK_FORMATS

from .measure import Runs, timed


class WrongResult(RuntimeError):
    """What was to be timed is wrong; the text says by how much."""


CHECKED = (2, 128)  # streams and tokens at most, where a case is held against float64
# A step's scores against those of the plain reference in float32, after an update: root mean square, nats.
STEP_TOLERANCE = {"bf16": 0.05, "fp32": 1e-3}


def _where(what: dict) -> tuple[str, torch.device, torch.dtype]:
    dtype = DTYPES[what["dtype"]]
    device = choose_device(what["device"], what["backend"], dtype)
    backend = choose_backend(what["backend"], dtype, device.type)
    if what["base"] != "same" and backend != "cpu":
        raise ValueError(f"--base {what['base']} with --backend {backend}: the native kernels of --backend cpu keep weights so")
    return backend, device, dtype


def profile_op(op: str, what: dict, runs: Runs) -> list[dict]:
    """A row a case: label, times, GFLOP/s, GB/s, relative error against float64.

    Raises:
        ValueError: no case has the label that was asked for, or the frozen weights can't be kept so.
        WrongResult: naming the case and its error.
    """
    from dynadapt.model.geometries import geometry

    backend, device, dtype = _where(what)
    function = named(resolve(op, backend, dtype)).function
    config, memory = geometry(what["model"]), what["memory"]
    shape = (what["streams"], what["segment"])
    sizes = ((*map(min, shape, CHECKED),), shape)
    few, full = (cases.OPS[op](cases.Sizes(config, *size, str(device), dtype, base=what["base"]), memory) for size in sizes)
    if what["base"] not in {case.base for case in full}:
        raise ValueError(f"--base {what['base']} with --op {op}: it reads no frozen weights")
    labels = [case.label for case in full]
    if what["case"] and what["case"] not in labels:
        raise ValueError(f"--case {what['case']}: {op} has {', '.join(labels)}")
    rows = {}
    for small, case in zip(few, full):
        if case.label in rows or what["case"] not in ("", case.label):
            continue
        try:
            _, error = cases.check(small, backend)
            # at the timed size, where a kernel may split its work otherwise
            cases.agrees(case, backend, function=function)
        except AssertionError as failure:
            raise WrongResult(f"nothing is timed: {failure}") from None
        arguments = cases.materialise(case, backend)
        times = timed(lambda: function(*arguments), runs, device)
        seconds = 1e-3 * times["median_ms"]
        rows[case.label] = {
            "label": case.label or "-",
            **times,
            "gflop": 1e-9 * case.flops or None,
            "gflop_per_s": 1e-9 * case.flops / seconds or None,
            # bytes are counted with activations of two bytes
            "gb_per_s": 1e-9 * case.bytes / seconds if dtype == torch.bfloat16 else None,
            "error": error,
        }
    return list(rows.values())


def profile_step(what: dict, runs: Runs) -> list[dict]:
    """One row: times, GFLOP/s (without the update's) and tokens/s of an adapt step: LoRA of rank 16, Adam, clip 1."""
    from dynadapt.bench.made_up_quants import write_made_up
    from dynadapt.model import load, random_model
    from dynadapt.model.geometries import geometry

    backend, device, _ = _where(what)
    with TemporaryDirectory() as folder:
        config, kept = geometry(what["model"]), what["base"]
        if kept in BLOCK_FORMATS:
            model = load(write_made_up(config, Path(folder) / "model.gguf", kept, kept))
        else:
            model = random_model(config, dtype=torch.bfloat16)
        engine = _engine(model, what, backend, device, what["streams"], what["segment"])
        error = _check_step(model, what, backend, device)
    shape = (what["streams"], what["segment"] + 1)
    tokens = torch.randint(model.config.vocab_size, shape, generator=torch.Generator().manual_seed(1))
    times = timed(lambda: engine.step(tokens), runs, device)
    seconds = 1e-3 * times["median_ms"]
    gflop = 1e-9 * sum(n for phase, n in engine.last.flops.items() if phase != "update")
    label = f"{what['streams']} x {what['segment']}, memory {what['memory']}"
    return [
        {
            "label": label,
            **times,
            "gflop": gflop,
            "gflop_per_s": gflop / seconds,
            "tokens_per_s": what["streams"] * what["segment"] / seconds,
            "error": error,
        }
    ]


def _engine(model, what, backend, device, streams, segment, **changes):
    from dynadapt.adapt import Adam, LoRA
    from dynadapt.engine import Engine
    from dynadapt.engine.memory import SegmentMemory

    memory = SegmentMemory(what["memory"]) if what["memory"] and model.config.rope_theta is not None else None
    settings = {
        "memory": memory,
        "streams": streams,
        "segment": segment,
        "dtype": what["dtype"],
        "backend": backend,
        "device": str(device),
        "base": "quants" if what["base"] in BLOCK_FORMATS else what["base"],
    }
    return Engine(model, LoRA(cases.RANK), optimizer=Adam(lr=2e-3, clip=1.0), **{**settings, **changes})


def _check_step(model, what, backend, device, segment: int = 32) -> float:
    """Root mean square difference of two steps' scores to the plain reference's, in nats.

    Raises:
        WrongResult: it is more than rounding.
    """
    tokens = torch.randint(model.config.vocab_size, (2, 1, segment + 1), generator=torch.Generator().manual_seed(2))
    ours = _engine(model, what, backend, device, 1, segment)
    truth = _engine(model, what, "reference", torch.device("cpu"), 1, segment, dtype="fp32", base="same")
    differences = [ours.step(part).float().cpu() - truth.step(part).float() for part in tokens]
    error = torch.stack(differences).square().mean().sqrt().item()
    limit = COARSE["nll"] if what["base"] == "int8" else STEP_TOLERANCE[what["dtype"]]
    if not error <= limit:
        raise WrongResult(
            f"nothing is timed: the step's scores differ from the plain reference's by {error:.3g} nats, accepted is {limit:g}"
        )
    return error
