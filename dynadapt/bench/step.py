"""``dynadapt bench step``: one adapt step, side by side with transformers + peft.

Every provider is held against transformers + peft in float64 by its per-token NLL and its adapters' gradients. With several dtypes
each provider runs in each of them.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from dynadapt.ops import attention
from dynadapt.runs.progress import say

from .compare import Benchmark, Provider, compare, errors_line, table, thread_choices
from .side_by_side import OURS, remarks, write

PEERS = ("peft-eager", "peft-compile")
DTYPES = ("bf16", "fp32")
FLOOR = {"nll": 1e-5, "gradient": 1e-4}


def _segments(model: str, streams: int, segment: int) -> list:
    """Four [S, T+1] pieces of real text."""
    from dynadapt.model import load
    from dynadapt.runs.text import BUILTINS

    ids = load(model).tokenizer.encode(BUILTINS["python-reference"]()[: 40 * streams * (segment + 1)])
    size = streams * (segment + 1)
    pieces = [ids[i * size : (i + 1) * size] for i in range(4) if len(ids) >= (i + 1) * size]
    return [[piece[s * (segment + 1) : (s + 1) * (segment + 1)] for s in range(streams)] for piece in pieces]


def _random_adapter(directory: Path, model_name: str, rank: int) -> None:
    """A PEFT adapter with B away from zero, so that every gradient is too."""
    import torch

    from dynadapt.adapt import Adam, LoRA
    from dynadapt.engine.decoder import group_sizes
    from dynadapt.engine.learners.lora import LoraLearner
    from dynadapt.engine.learners.peft import write_adapter
    from dynadapt.model import load

    model = load(model_name)
    learner = LoraLearner(LoRA(rank), Adam(), group_sizes(model.config), 1, torch.float32, 0)
    generator = torch.Generator().manual_seed(2)
    learner.state.master += 0.01 * torch.randn(learner.state.master.shape, generator=generator)
    learner.state.master.copy_(learner.state.master.bfloat16())  # the same numbers in every precision
    write_adapter(directory, learner, model.config, 0, model_name)


def _masked_flops(model_name: str, streams: int, segment: int) -> int:
    """Of the ledger's count, what causal masking throws away: a kernel may skip it, so no provider's share of a ceiling has it."""
    from dynadapt.model import load

    c = load(model_name).config
    return c.layers * streams * sum(attention.masked_flops(segment, c.heads, c.head_dim))


# What holds a process to an instruction set: our own variable, and those of torch, oneDNN and MKL for the peers.
LIMITS = {
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "avx512": {"ATEN_CPU_CAPABILITY": "avx512", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI", "MKL_ENABLE_INSTRUCTIONS": "AVX512"},
    "avx512_bf16": {},
}


def limits(isa: str | None) -> dict[str, str]:
    """Environment of a process that is to use no more than `isa`; {} for None, which is whatever the processor has."""
    return {} if isa is None else {"DYNADAPT_CPU_ISA": isa, **LIMITS[isa]}


def run_step(
    model: str,
    against: list[str],
    dtypes: str | list[str],
    streams: int,
    segment: int,
    rank: int,
    rounds: int,
    say=say,
    isa: str | None = None,
) -> dict:
    """The whole benchmark on one instruction set (None: the processor's best); returns what ``--out`` writes."""
    from dynadapt.common.environment import environment

    dtypes = [dtypes] if isinstance(dtypes, str) else list(dtypes)
    say(f"loading {model}")
    with tempfile.TemporaryDirectory() as adapter:
        _random_adapter(Path(adapter), model, rank)
        options = {
            "model": model,
            "streams": streams,
            "segment": segment,
            "rank": rank,
            "isa": isa,
            "tokens": _segments(model, streams, segment),
            "adapter": adapter,
        }
        rows = {
            name if len(dtypes) == 1 else f"{name} {dtype}": Provider(name, {**options, "dtype": dtype}, name == "peft-compile")
            for dtype in dtypes
            for name in (OURS, *against)
        }
        truth = Provider("peft-fp64", {**options, "dtype": "fp64"})
        benchmark = Benchmark("dynadapt.bench.step_worker", rows, truth, "peft-eager", FLOOR, thread_choices(), environment=limits(isa))
        found = compare(benchmark, rounds, 1, say)
    masked, flops = _masked_flops(model, streams, segment), found["flops_per_step"]
    for row in found["providers"].values():
        row["tokens_per_second"] = streams * segment / row["seconds"]["median"]
        done = (1 - masked / flops) * row["gflops"]
        row["share_of_ceiling"] = done / found["ceiling"][row["dtype"]]["gflops"]
        row["share_of_peak"] = done / found["peak_gflops"][row["dtype"]]
    if len(dtypes) == 1:
        found |= {"ceiling": found["ceiling"][dtypes[0]], "peak_gflops": found["peak_gflops"][dtypes[0]]}
    return {
        "benchmark": "step",
        "model": model,
        "dtype": dtypes[0] if len(dtypes) == 1 else dtypes,
        "isa": isa,
        "streams": streams,
        "segment": segment,
        "rank": rank,
        "masked_flops_per_step": masked,
        **found,
        "environment": environment(),
    }


def print_table(result: dict) -> None:
    several = not isinstance(result["dtype"], str)
    title = (
        f"one adapt step: {result['model']}, {' and '.join(result['dtype']) if several else result['dtype']}, LoRA rank {result['rank']}, "
        f"{result['streams']} x {result['segment']} tokens" + (f", {result['isa']}" if result["isa"] else "")
    )
    columns = {
        "tokens/s": lambda name, row: f"{row['tokens_per_second']:,.0f}",
        "of ceiling": lambda name, row: f"{row['share_of_ceiling']:.0%}",
        "of peak": lambda name, row: f"{row['share_of_peak']:.0%}",
    }
    console = table(title, columns, result["providers"], 120)
    for dtype, c in (result["ceiling"] if several else {result["dtype"]: result["ceiling"]}).items():
        peak = result["peak_gflops"][dtype] if several else result["peak_gflops"]
        console.print(
            f"{dtype}: ceiling {c['gflops']:.0f} GFLOP/s, the best matrix product of this run ({c['provider']}, "
            f"{'x'.join(map(str, c['shape']))}); peak {peak:.0f}, the same instructions on registers alone"
        )
    console.print("Shares leave out what the causal mask throws away. first s: from the start of the process to the end of its first step.")
    console.print(errors_line(result["providers"], "NLL and gradient"))
    for remark in remarks(result):
        console.print(remark)


def bench_step(arguments) -> int:
    """The command: ``arguments`` as cli.py parses them."""
    against = _some("against", arguments.against, PEERS)
    dtypes = _some("dtype", arguments.dtype, DTYPES)
    isas = _some("isa", arguments.isa, tuple(LIMITS)) or [None]
    from dynadapt.common.environment import need

    need("dynadapt bench step, which checks against float64 in transformers + peft,", ("transformers", "peft"), "bench")
    results = []
    for isa in isas:
        if isa:
            say(f"{isa}:")
        results.append(
            run_step(arguments.model, against, dtypes, arguments.streams, arguments.segment, arguments.rank, arguments.rounds, isa=isa)
        )
        print_table(results[-1])
    if arguments.out:
        write(arguments.out, results[0] if len(results) == 1 else {"benchmark": "steps", "results": results})
        print(arguments.out)
    return 0


def _some(option: str, value: str, known: tuple[str, ...]) -> list[str]:
    names = [name for name in (value or "").split(",") if name]
    for name in names:
        if name not in known:
            raise ValueError(f"--{option} {name}: expected some of {', '.join(known)}, with commas between")
    return list(dict.fromkeys(names))
