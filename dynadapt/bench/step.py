"""``dynadapt bench step``: one adapt step, side by side with transformers + peft.

Every provider is held against transformers + peft in float64 by its per-token NLL and its adapters' gradients. With several dtypes
each provider runs in each of them.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from dynadapt.runs.progress import say

from .bases import bounds_of, known_bases
from .compare import Benchmark, Provider, compare, errors_line, table, thread_choices
from .machine import held_to, limits, some
from .pieces import pieces
from .plain_directory import plain_directory
from .rates import COLUMNS, ceiling_lines, put_rates
from .side_by_side import OURS, check_out, remarks, write

PEERS = ("peft-eager", "peft-compile")
DTYPES = ("bf16", "fp32")
FLOOR = {"nll": 1e-5, "gradient": 1e-4}


def _random_adapter(directory: Path, model_name: str, rank: int) -> None:
    """A PEFT adapter with B away from zero, so that every gradient is too."""
    import torch

    from dynadapt.adapt import Adam, LoRA
    from dynadapt.adapt.targets import adapted_parts
    from dynadapt.engine.decoder import group_sizes
    from dynadapt.engine.learners.lora import LoraLearner
    from dynadapt.engine.learners.peft import write_adapter
    from dynadapt.model import load

    model, adapt = load(model_name), LoRA(rank)
    learner = LoraLearner(adapt, Adam(), group_sizes(model.config), adapted_parts(adapt, model.config), 1, torch.float32, 0)
    generator = torch.Generator().manual_seed(2)
    learner.state.master += 0.01 * torch.randn(learner.state.master.shape, generator=generator)
    learner.state.master.copy_(learner.state.master.bfloat16())  # the same numbers in every precision
    write_adapter(directory, learner, model.config, 0, model_name)


def _masked_flops(model_name: str, streams: int, segment: int) -> int:
    """Of the ledger's count, what causal masking throws away: a kernel may skip it, so no provider's share of a ceiling has it."""
    from dynadapt.model import load
    from dynadapt.ops import attention

    c = load(model_name).config
    return streams * sum(sum(attention.masked_flops(segment, c.heads, c.head_dim, 0, c.window(i))) for i in c.attention_layers)


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
    bases: tuple[str, ...] = ("same",),
    busy: bool = False,
) -> dict:
    """The whole benchmark on one instruction set (None: the processor's best); returns what ``--out`` writes."""
    from dynadapt.common.environment import environment

    dtypes = [dtypes] if isinstance(dtypes, str) else list(dtypes)
    with tempfile.TemporaryDirectory() as work:
        adapter = Path(work) / "adapter"
        _random_adapter(adapter, model, rank)
        options = {
            "model": model,
            "directory": plain_directory(model, Path(work)),
            "streams": streams,
            "segment": segment,
            "rank": rank,
            "isa": isa,
            "tokens": pieces(model, streams, segment),
            "adapter": str(adapter),
        }
        rows = step_rows(against, dtypes, bases, options)
        truth = Provider("peft-fp64", {**options, "dtype": "fp64"})
        benchmark = Benchmark(
            "dynadapt.bench.step_worker", rows, truth, "peft-eager", FLOOR, thread_choices(), environment=limits(isa), busy=busy
        )
        found = compare(benchmark, rounds, 1, say)
    masked = _masked_flops(model, streams, segment)
    put_rates(found, streams * segment, masked)
    if len(dtypes) == 1:
        found |= {"ceiling": found["ceiling"][dtypes[0]], "peak_gflops": found["peak_gflops"][dtypes[0]]}
    return {
        "benchmark": "step",
        "model": Path(model).name,
        "dtype": dtypes[0] if len(dtypes) == 1 else dtypes,
        "isa": isa,
        "streams": streams,
        "segment": segment,
        "rank": rank,
        "masked_flops_per_step": masked,
        **found,
        "environment": environment(),
    }


def dtypes_of(value: str, isa: str | None) -> list[str]:
    """The dtypes that --dtype names; "auto" is what is fastest on `isa`, as everywhere."""
    if value != "auto":
        return some("dtype", value or ",", DTYPES, lambda: DTYPES)
    from dynadapt.engine.arithmetic import fastest

    return [fastest("cpu", isa=isa)[0]]


def opening_line(value: str, dtypes: list[str], isa: str | None) -> str:
    """Which arithmetic is timed on which instruction set, and why."""
    from dynadapt.engine.arithmetic import fastest

    chosen, why = fastest("cpu", isa=isa)
    where = f"{isa}: " if isa else ""
    return f"{where}{' and '.join(dtypes)}" + (f" ({why}); choose with --dtype" if value == "auto" and dtypes == [chosen] else "")


def step_rows(against: list[str], dtypes: list[str], bases: tuple[str, ...], options: dict) -> dict[str, Provider]:
    """What is timed, by its name in the results: ours with each base, and the peers, in each dtype."""
    rows = {}
    for dtype in dtypes:
        end = f" {dtype}" if len(dtypes) > 1 else ""
        for base in bases:
            kept = "" if base == "same" else f" {base}"
            rows[f"{OURS}{end}{kept}"] = Provider(OURS, {**options, "dtype": dtype, "base": base}, bounds=bounds_of(base, *FLOOR))
        for name in against:
            rows[f"{name}{end}"] = Provider(name, {**options, "dtype": dtype}, name == "peft-compile")
    return rows


def print_table(result: dict) -> None:
    several = not isinstance(result["dtype"], str)
    title = (
        f"one adapt step: {result['model']}, {' and '.join(result['dtype']) if several else result['dtype']}, LoRA rank {result['rank']}, "
        f"{result['streams']} x {result['segment']} tokens" + (f", {result['isa']}" if result["isa"] else "")
    )
    console = table(title, COLUMNS, result["providers"])
    ceilings = result["ceiling"] if several else {result["dtype"]: result["ceiling"]}
    for line in ceiling_lines(ceilings, result["peak_gflops"] if several else {result["dtype"]: result["peak_gflops"]}):
        console.print(line)
    console.print("Shares leave out what the causal mask throws away. first s: from the start of the process to the end of its first step.")
    console.print(errors_line(result["providers"], "NLL and gradient"))
    for remark in remarks(result):
        console.print(remark)


def bench_step(arguments) -> int:
    """The command: ``arguments`` as cli.py parses them."""
    against = some("against", arguments.against, PEERS)
    check_out(arguments.out)
    isas = held_to(arguments.isa)
    if arguments.dtype != "auto":
        dtypes_of(arguments.dtype, None)
    from dynadapt.common.environment import need

    need("dynadapt bench step, which checks against float64 in transformers + peft,", ("transformers", "peft"), "bench")
    say(f"loading {arguments.model}")
    bases = known_bases(arguments.base, arguments.model)
    results = []
    for isa in isas:
        a, dtypes = arguments, dtypes_of(arguments.dtype, isa)
        say(opening_line(arguments.dtype, dtypes, isa))
        results.append(
            run_step(a.model, against, dtypes, a.streams, a.segment, a.rank, a.rounds, isa=isa, bases=bases, busy=a.busy_neighbour)
        )
        print_table(results[-1])
    if arguments.out:
        write(arguments.out, results[0] if len(results) == 1 else {"benchmark": "steps", "results": results})
        print(arguments.out)
    return 0
