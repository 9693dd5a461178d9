"""`dynadapt plan`: what a step would take, on a machine that need not be at hand."""

from __future__ import annotations

import functools
import textwrap
from dataclasses import replace
from typing import TYPE_CHECKING

from dynadapt.common.options import add_settings
from dynadapt.experiments.config import ConfigError, EvalConfig
from dynadapt.runs.console import print_whole, table_console

from .settings import config_from, unmixed

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from dynadapt.bench.plan.ceilings import Ceilings
    from dynadapt.bench.plan.measured import Measured
    from dynadapt.bench.plan.predict import Prediction
    from dynadapt.bench.plan.slow import SlowLevelWork
    from dynadapt.bench.plan.work import Work

# What dynadapt.model.geometries and dynadapt.bench.plan.ceilings know, by name: help is printed without importing them.
MODELS = (
    "smollm2-135m",
    "smollm2-360m",
    "smollm2-1.7b",
    "llama-2-7b",
    "llama-2-13b",
    "llama-2-70b",
    "llama-3-8b",
    "llama-3-70b",
    "llama-3.1-8b",
    "llama-3.1-70b",
    "llama-3.1-405b",
    "llama-3.2-1b",
    "llama-3.2-3b",
    "llama-3.3-70b",
    "mistral-7b-v0.2",
    "mistral-7b-v0.3",
    "qwen2-0.5b",
    "qwen2-1.5b",
    "qwen2-7b",
    "qwen2-72b",
    "qwen2.5-0.5b",
    "qwen2.5-1.5b",
    "qwen2.5-3b",
    "qwen2.5-7b",
    "qwen2.5-14b",
    "qwen2.5-32b",
    "qwen2.5-72b",
    "qwen3-0.6b",
    "qwen3-1.7b",
    "qwen3-4b",
    "qwen3-8b",
    "qwen3-14b",
    "qwen3-32b",
    "gemma-2-2b",
    "gemma-2-9b",
    "gemma-3-270m",
    "gemma-3-1b",
    "gpt2",
    "gpt2-medium",
    "gpt2-large",
    "gpt2-xl",
    "granite-3.0-2b",
    "granite-3.0-8b",
    "phi-3-mini-4k",
    "pythia-70m",
    "pythia-160m",
    "pythia-410m",
    "pythia-1b",
    "pythia-1.4b",
    "pythia-2.8b",
    "pythia-6.9b",
    "pythia-12b",
)
GPUS = (
    "b200",
    "h200",
    "h200-nvl",
    "h100",
    "h100-nvl",
    "h100-pcie",
    "a100",
    "a100-pcie",
    "a100-40gb",
    "a100-pcie-40gb",
    "l40s",
    "l4",
    "a40",
    "a10",
    "rtx-6000-ada",
    "rtx-a6000",
    "rtx-5090",
    "rtx-4090",
    "rtx-3090",
)


def _lines(names) -> str:
    return textwrap.fill(", ".join(names), 110, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)


EXAMPLES = f"""\
examples:
  dynadapt plan --model llama-3.1-8b --streams 64 --segment 512 --gpu h200
      time, memory and binding limit of a LoRA step of 64 streams, from the vendor's figures
  dynadapt plan --model llama-3.2-1b --streams 512 --segment 512 --gpu h200 --gpus 8
      the same with the streams sharded over eight GPUs, one process each
  dynadapt plan --model smollm2-135m --memory 512
      on this machine's CPU, whose ceilings are measured first (a few seconds)
  dynadapt plan --model llama-3.2-1b --base quants
      the same with the weights in the integers of a Q4_K file, its embedding and head in Q6_K

  dynadapt plan --model smollm2-135m --streams 1 --gpu h100 --explain
      every kernel that the step launches: programs, waves, and a time that is to be held against a measured one

  dynadapt plan --model Qwen/Qwen3-8B --memory 512 --gpu "RTX 4090" --fit
      how many streams fit, and the plan for that number

--model is a Hugging Face directory, of which only config.json is read, or one of these, also as hubs write them (owner/Name-Instruct):
{_lines(MODELS)}
--gpu is one of these, also as drivers write them (NVIDIA A100-SXM4-40GB); with no other word it is the SXM card:
{_lines(GPUS)}

The options that say what learns and what remembers are those of `dynadapt eval`. The floor is every op at the ceiling that limits it: FLOPs from the ledger against the
rate of products, each tensor that an op touches once against the memory bandwidth. Nothing is run and no weights are needed."""

EXPECTED = {  # where no step stands beside it; benchmarks/results/h200/third-run.json has those of a GPU
    "cpu": "no step has been measured on a CPU yet, so how far above the floor is not known",
    "gpu": "on an H200 SmolLM2-135M's step took 6.8 times this floor at 1 x 512 and 2.2 times at 64 x 512, Llama-3.2-1B's 2.2 and, at 8 x 512, 1.7 times",
}
LIMITS = {"products": "the rate of matrix products", "traffic": "memory bandwidth", "memory": "memory capacity: it does not fit"}


def add_options(command) -> None:
    add_settings(command, EvalConfig, unmixed() - {"bos"} | {"levels", "slow_every"})
    where = command.add_mutually_exclusive_group()
    where.add_argument(
        "--gpu",
        metavar="NAME",
        help="plan for this card, by its usual name, from the vendor's datasheet (default: this machine's CPU, measured)",
    )
    where.add_argument("--ceilings", metavar="FILE", help="plan for the GPU whose ceilings `benchmarks/gpu_campaign.py ceilings` measured")
    command.add_argument("--gpus", type=int, default=1, metavar="N", help="shard the streams over N GPUs or processes (default: 1)")
    command.add_argument(
        "--fit", action="store_true", help="plan for the largest number of streams that the memory holds, in place of --streams"
    )
    command.add_argument(
        "--explain",
        action="store_true",
        help="with --gpu: each kernel that the step launches there, its programs, waves and predicted time (needs Triton, no GPU)",
    )
    command.add_argument("--shared", action="store_true", help="the streams are rows of one set of weights")
    command.add_argument("--json", metavar="FILE", help="write the plan there as well")


def run(arguments) -> int:
    """Plans, prints, and writes --json. Raises ConfigError or ValueError naming the option that does not fit."""
    config = config_from(arguments)
    if arguments.gpus < 1:
        raise ConfigError(f"gpus {arguments.gpus}: give a whole number of at least 1")
    if arguments.shared and arguments.gpus > 1:
        raise ConfigError(
            f"gpus {arguments.gpus} with shared: sharding streams needs weights of their own; rows of one model exchange gradients"
        )
    if arguments.explain and not arguments.gpu:
        raise ConfigError("explain: kernels are those of a GPU; name it with --gpu (dynadapt explain is about this machine's CPU)")
    if config.dtype == "fp64":
        raise ConfigError(f"dtype {config.dtype!r}: a plan is for bf16 or fp32")
    if config.base not in ("same", "quants"):
        raise ConfigError(
            f"base {config.base!r}: no ceiling says how fast its products are, and those of --dtype would not be theirs; plans are for "
            "--base same or quants"
        )
    if config.base == "quants" and (arguments.gpu or arguments.ceilings or config.adapt not in ("none", "lora")):
        raise ConfigError(
            f"base {config.base!r}: kept by native kernels on the CPU, beside adapters; leave --gpu out, take --adapt lora or none"
        )
    if config.levels:
        _check_levels(config, arguments)
    from dynadapt.bench.side_by_side import check_out, write

    check_out(arguments.json, "json")
    from dynadapt.bench.plan.ceilings import datasheet, from_campaign, measured_here
    from dynadapt.bench.plan.measured import comparisons
    from dynadapt.bench.plan.predict import predict
    from dynadapt.experiments.defaults import settle
    from dynadapt.model.geometries import geometry
    from dynadapt.ops.dispatch import native_module

    ceilings = datasheet(arguments.gpu) if arguments.gpu else from_campaign(arguments.ceilings) if arguments.ceilings else None
    if ceilings is not None and config.dtype == "auto":
        config = config.with_(dtype="bf16" if ceilings.kind == "gpu" else "fp32")
    config = settle(config.with_(device="cpu", backend="cpu"), geometry(config.model)).with_(device=config.device, backend=config.backend)
    shard = -(-config.streams // arguments.gpus)  # the fullest GPU sets the time
    threads = None if ceilings else native_module().num_threads()  # of a plan for this CPU
    work = planned_work(config, shard, arguments.shared, threads)  # what does not fit together is refused before anything is measured
    ceilings = ceilings or measured_here((config.dtype,))
    fit = fitting(config, ceilings, arguments.shared, threads)
    if arguments.fit:
        if not fit:
            said = (
                f"not one stream of {config.segment} tokens of {config.model} fits in {_size(ceilings.memory)}"
                if fit == 0
                else f"the memory of {ceilings.name} is not known"
            )
            raise ConfigError(f"fit: {said}; plan without --fit for what one step takes")
        shard, config = fit, config.with_(streams=fit * arguments.gpus)
        work = planned_work(config, shard, arguments.shared, threads)
    trust = comparisons(ceilings.kind)
    prediction = predict(work, ceilings, [m.slowdown for m in trust])
    console = table_console(soft_wrap=True, highlight=False)
    show(console, config, prediction, trust, arguments.gpus, arguments.shared, fit, threads)
    plan = as_dict(config, prediction, trust, arguments.gpus, fit)
    if config.every > 1 and config.adapt != "none":
        plan["between_updates"] = show_between(console, config, between_updates(config, work, arguments.shared, threads), prediction)
    if config.levels:
        plan["slow_level"] = show_slow_level(console, planned_slow_level(config, shard), prediction)
    if arguments.explain:
        plan["kernels"] = explain(console, config, shard, arguments.shared, ceilings, arguments.gpu)
    if arguments.json:
        write(arguments.json, plan)
    return 0


def _check_levels(config: EvalConfig, arguments) -> None:
    """Raises ConfigError for what an engine with a slow level refuses."""
    found = {
        "gpu": (arguments.gpu or arguments.ceilings, "its updates are the CPU's so far"),
        "gpus": (arguments.gpus > 1 and arguments.gpus, "it learns from the streams of one process"),
        "shared": (arguments.shared, "one set of weights learns from all rows already"),
        "base": (config.base != "same" and config.base, "what it learns is added to weights as floats"),
    }
    for name, (value, why) in found.items():
        if value:
            raise ConfigError(f"{name} {value!r} with levels {config.levels!r}: {why}; leave one of them out")


def explain(console: Console, config: EvalConfig, streams: int, shared: bool, ceilings: Ceilings, gpu: str) -> dict:
    """Prints the kernels that a step launches and what they are predicted to take; returns it as plain data."""
    from dynadapt.bench.plan.launches import ASSUMED, multiprocessors_of, step_time

    positional, options = step_arguments(config, streams, shared, None)
    found, count = step_time(gpu, ceilings, *positional, **options), multiprocessors_of(gpu)
    console.print(
        f"[bold]predicted[/] {_ms(found.seconds)} a step, {streams * config.segment / found.seconds:,.0f} tokens/s, "
        f"{found.share_of_product_rate:.0%} of the rate of products: {found.launches:,} launches on {count} multiprocessors; not measured, "
        f"from these assumptions:\n{ASSUMED}"
    )
    table = _table("kernel", "op", "launches", "programs", "waves", "floor", "predicted", "share", "limit")
    for k in found.kernels:
        sizes = f"{k.count:,}", f"{k.programs:,}", f"{k.waves:,.2f}"
        table.add_row(k.kernel, k.op, *sizes, _ms(k.floor), _ms(k.seconds), f"{k.seconds / found.seconds:.0%}", k.limit)
    print_whole(console, table)
    return {
        "seconds": found.seconds,
        "share_of_product_rate": found.share_of_product_rate,
        "launches": found.launches,
        "multiprocessors": count,
        "assumed": ASSUMED,
        "rows": [vars(kernel) for kernel in found.kernels],
    }


def fitting(config: EvalConfig, ceilings: Ceilings, shared: bool, threads: int | None) -> int | None:
    """The largest number of streams whose step fits on one such machine, 0 for none; None where its memory is not known."""
    from dynadapt.bench.plan.fit import most_streams

    return most_streams(lambda n: held_bytes(config.with_(streams=1), n, shared, threads), ceilings.memory) if ceilings.memory else None


@functools.lru_cache(64)
def held_bytes(config: EvalConfig, streams: int, shared: bool, threads: int | None) -> int:
    return planned_work(config, streams, shared, threads, memory_only=True).bytes_held


def planned_work(config: EvalConfig, streams: int, shared: bool, threads: int | None, memory_only: bool = False) -> Work:
    """``threads``: of the CPU that it is for; None: it is for a GPU."""
    from dynadapt.bench.plan.work import step_work

    positional, options = step_arguments(config, streams, shared, threads)
    work = step_work(*positional, **options, memory_only=memory_only)
    return planned_slow_level(config, streams, memory_only).with_step(work) if config.levels else work


def between_updates(config: EvalConfig, step: Work, shared: bool, threads: int | None) -> Work:
    """A step whose update is not due, of the streams of ``step``, whose update is: it scores alone, or with accumulate leaves the update out."""
    from dynadapt.bench.plan.work import step_work

    if config.accumulate:
        ops = {name: op for name, op in step.ops.items() if name != "update"}
        return replace(step, flops={**step.flops, "update": 0}, ops=ops)
    positional, options = step_arguments(config, step.streams, shared, threads)
    return step_work(*positional, **options, learn=False)


def planned_slow_level(config: EvalConfig, streams: int, memory_only: bool = False) -> SlowLevelWork:
    from dynadapt.bench.plan.measured import DTYPES
    from dynadapt.bench.plan.slow import slow_work
    from dynadapt.experiments.engine_of_config import slow_of
    from dynadapt.model.geometries import geometry

    return slow_work(geometry(config.model), slow_of(config), streams, config.segment, DTYPES[config.dtype], True, memory_only)


def step_arguments(config: EvalConfig, streams: int, shared: bool, threads: int | None) -> tuple[tuple, dict]:
    """Those of ``step_work``."""
    from dynadapt.adapt.optimizers import Adam
    from dynadapt.bench.plan.measured import DTYPES
    from dynadapt.engine.settings import cpu_batch
    from dynadapt.experiments.engine_of_config import adapt_of, memory_of, optimizer_of
    from dynadapt.model.geometries import geometry

    adapt = adapt_of(config)
    optimizer = optimizer_of(config) if adapt else Adam()
    batch = config.batch or (None if threads is None or shared else cpu_batch(streams, config.context + config.segment, threads))
    positional = (
        geometry(config.model),
        adapt,
        optimizer,
        memory_of(config),
        streams,
        config.segment,
        shared,
        DTYPES[config.dtype],
        batch,
        config.recompute or threads is not None,
    )
    return positional, {"quants": "q4_k" if config.base == "quants" else None, "on_gpu": threads is None}


def show(
    console: Console,
    config: EvalConfig,
    p: Prediction,
    trust: list[Measured],
    gpus: int,
    shared: bool,
    fit: int | None,
    threads: int | None,
) -> None:
    w, c = p.work, p.ceilings
    per = "each of " + f"{gpus} GPUs" if gpus > 1 else "the step"
    console.print(
        f"[bold]{config.model}[/], {config.adapt}, {config.streams} x {config.segment} tokens, {remembered(config)}, {config.dtype}, on {c.name} ({c.source}: "
        f"{c.product_rate(config.dtype) / 1e12:.3g} TFLOP/s, {c.bandwidth / 1e9:,.0f} GB/s)"
    )
    if gpus > 1:
        console.print(f"{gpus} processes, at most {w.streams} streams each; streams exchange nothing but their scores")
    gflop = sum(n for phase, n in w.flops.items() if phase != "update") / 1e9
    console.print(
        f"work    {gflop:,.1f} GFLOP for {per} ({', '.join(f'{k} {n / 1e9:,.1f}' for k, n in w.flops.items() if n)}), "
        f"{sum(op.bytes for op in w.ops.values()) / 1e9:,.2f} GB of traffic, {sum(op.calls for op in w.ops.values()):,} op calls"
    )
    tokens = config.streams * config.segment
    console.print(
        f"floor   [bold]{_ms(p.floor)}[/] a step, {tokens / p.floor:,.0f} tokens/s: "
        + ", ".join(f"{share:.0%} {name}" for name, share in p.limits.items())
    )
    if p.seconds:
        middle, low, high = p.seconds
        console.print(
            f"expect  [bold]{_ms(middle)}[/] ({_ms(low)} to {_ms(high)}), {tokens / middle:,.0f} tokens/s, from the measured steps below"
        )
    else:
        console.print(
            f"expect  {EXPECTED[c.kind]}; each microsecond between ops adds {sum(op.calls for op in w.ops.values()) / 1e3:.1f} ms"
        )
    room = f" of {c.memory / 1e9:,.0f} GB" if c.memory else ""
    console.print(f"memory  [bold]{_size(w.bytes_held)}[/]{room}: {', '.join(f'{name} {_size(n)}' for name, n in w.memory.items())}")
    if fit is not None:
        console.print(f"fits    {_fit_line(config, c, fit, gpus, shared, threads)}")
    if trust:
        console.print(
            f"        and {_size(min(m.beyond for m in trust))} to {_size(max(m.beyond for m in trust))} for the process and the loaded model, as measured below"
        )
    console.print(
        f"limit   {LIMITS[p.binding]}" + (f"; {said}" if p.binding == "memory" and (said := _what_fits(config, p, shared, threads)) else "")
    )
    print_whole(console, _ops_table(p))
    if trust:
        print_whole(console, _trust_table(trust))


def show_between(console: Console, config: EvalConfig, work: Work, step: Prediction) -> dict:
    """Prints what the steps between two updates take, of which the step above is none; returns it as plain data."""
    from dynadapt.bench.plan.predict import predict

    floor, others = predict(work, step.ceilings).floor, config.every - 1
    mean = (step.floor + others * floor) / config.every
    gflop = sum(n for phase, n in work.flops.items() if phase != "update") / 1e9
    console.print(
        f"every   {others} of {config.every} steps {'add their gradient and make no update' if config.accumulate else 'score alone'}: {gflop:,.1f} GFLOP, "
        f"floor [bold]{_ms(floor)}[/]; over all {_ms(mean)} a step. The figures above are of a step that updates"
    )
    return {"steps": others, "flops": work.flops, "floor_seconds": floor, "mean_floor_seconds": mean}


def show_slow_level(console: Console, slow: SlowLevelWork, step: Prediction) -> dict:
    """Prints what the updates of a slow level take beside the steps; returns it as plain data."""
    from dynadapt.bench.plan.predict import predict

    update = predict(slow.work, step.ceilings)
    gflop = sum(n for phase, n in slow.work.flops.items() if phase != "update") / 1e9
    console.print(
        f"slow    an update of the slow level behind every {slow.steps:,} steps: {gflop:,.1f} GFLOP, floor [bold]{_ms(update.floor)}[/], which is "
        f"{_ms(update.floor / slow.steps)} a step, not in the figures above; its memory is"
    )
    return {"steps_between_updates": slow.steps, "flops": slow.work.flops, "floor_seconds": update.floor}


def remembered(config: EvalConfig) -> str:
    return f"memory {config.memory}" if config.memory else f"context {config.context}" if config.context else "no memory"


def _fit_line(config: EvalConfig, c: Ceilings, fit: int, gpus: int, shared: bool, threads: int | None) -> str:
    held = lambda n: _size(held_bytes(config.with_(streams=1), n, shared, threads))  # noqa: E731
    if not fit:
        return f"not one stream of {config.segment} tokens in {_size(c.memory)}: one takes {held(1)}"
    each = f" on each of {gpus}, {fit * gpus:,} in all" if gpus > 1 else ""
    return (
        f"[bold]{fit:,} stream{'s' * (fit > 1)}[/] of {config.segment} tokens in {_size(c.memory)}{each} ({held(fit)}; {fit + 1:,} would take {held(fit + 1)}), "
        "beside what the driver and other programs hold"
    )


def _what_fits(config: EvalConfig, p: Prediction, shared: bool, threads: int | None) -> str:
    """Options with which the step fits, the least costly first; empty when none of those tried does."""
    streams, batches = p.work.streams, []
    while not shared and (batch := (batches[-1] if batches else streams) // 2):
        batches.append(batch)
    for changes in [{"recompute": True}, *({"recompute": True, "batch": batch} for batch in batches)]:
        held = planned_work(config.with_(**changes), streams, shared, threads).bytes_held
        if held <= p.ceilings.memory:
            return f"with {' '.join(f'--{name}' + ('' if value is True else f' {value}') for name, value in changes.items())} it takes {_size(held)}"
    return ""


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:,.{2 if seconds < 0.01 else 1 if seconds < 0.1 else 0}f} ms"


def _size(count: float) -> str:
    return f"{count / 1e9:,.2f} GB" if count >= 1e9 else f"{count / 1e6:,.0f} MB"


def _table(*titles: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, title in enumerate(titles):
        table.add_column(title, justify="right" if i else "left", no_wrap=True)
    return table


def _ops_table(p: Prediction) -> Table:
    table = _table("op", "floor", "share", "limit", "calls", "GFLOP", "MB")
    for op in p.ops:
        work = p.work.ops[op.name]
        table.add_row(
            op.name,
            _ms(op.seconds),
            f"{op.seconds / p.floor:.0%}",
            op.limit,
            f"{work.calls:,}",
            f"{(work.flops - work.skipped) / 1e9:,.1f}",
            f"{work.bytes / 1e6:,.0f}",
        )
    return table


def _trust_table(trust: list[Measured]) -> Table:
    middle = sorted(m.slowdown for m in trust)[len(trust) // 2]
    table = _table("measured", "floor", "took", "slower", "estimate", "held", "peak")
    table.caption, table.caption_justify = (
        "steps of LoRA r16 on other runs: floor, what it took, how much slower, how far off the estimate is, bytes planned and peak",
        "left",
    )
    for m in trust:
        r = m.row
        table.add_row(
            f"{r['model']}, {r['streams']} x {r['segment']}, {r['dtype']}",
            _ms(m.floor),
            _ms(r["seconds"]),
            f"{m.slowdown:.2f}x",
            f"{m.floor * middle / r['seconds'] - 1:+.0%}",
            _size(m.held),
            _size(r["peak_memory_bytes"]),
        )
    return table


def as_dict(config: EvalConfig, p: Prediction, trust: list[Measured], gpus: int, fit: int | None) -> dict:
    w, c = p.work, p.ceilings
    return {
        "settings": config.to_dict(),
        "gpus": gpus,
        "streams_a_gpu": w.streams,
        "ceilings": {
            "name": c.name,
            "source": c.source,
            "flops_per_second": c.product_rate(config.dtype),
            "bytes_per_second": c.bandwidth,
            "memory_bytes": c.memory,
        },
        "flops": w.flops,
        "floor_seconds": p.floor,
        "expected_seconds": p.seconds and dict(zip(("median", "low", "high"), p.seconds)),
        "streams_that_fit": fit,
        "limits": p.limits,
        "binding": p.binding,
        "memory_bytes": w.memory,
        "learned_parameters": w.learned_parameters,
        "ops": {op.name: {"floor_seconds": op.seconds, "limit": op.limit, **vars(w.ops[op.name])} for op in p.ops},
        "measured": [{**m.row, "floor_seconds": m.floor, "held_bytes": m.held} for m in trust],
    }
