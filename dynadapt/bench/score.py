"""``dynadapt bench score``: a text is scored and nothing learns, side by side with llama.cpp and transformers.

Every provider is held by its per-token NLL against transformers in float64, with the weights that the file's numbers stand for. On a
.gguf file dynadapt and torch compute with weights rounded to their dtype, llama.cpp with the file's integers and activations in 8 bits.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from dynadapt.runs.progress import say

from .bases import COARSE, bounds_of, known_bases
from .compare import Benchmark, Provider, compare, errors_line, table, thread_choices
from .llama_cpp import PeerError, check_llama_cpp, folder_for
from .machine import held_to, limits, some
from .pieces import pieces
from .plain_directory import plain_directory
from .rates import COLUMNS, ceiling_lines, put_rates
from .side_by_side import OURS, check_out, remarks, write
from .step import dtypes_of, opening_line

PEERS = ("llama.cpp", "torch-eager", "torch-compile")
GROUPS = {"torch": ("torch-eager", "torch-compile")}
FLOOR = {"nll": 1e-5}
FILE = "gguf"  # the dtype of a row that multiplies what the file holds


def _masked_flops(model: str, streams: int, segment: int) -> int:
    from dynadapt.model import load
    from dynadapt.ops import attention

    c = load(model).config
    return streams * sum(attention.masked_flops(segment, c.heads, c.head_dim, 0, c.window(i))[0] for i in c.attention_layers)


def score_rows(against: list[str], dtypes: list[str], bases: tuple[str, ...], options: dict) -> dict[str, Provider]:
    """What is timed, by its name in the results: ours with each base and torch in each dtype, and llama.cpp once."""
    together = tuple({"together": value} for value in (False, True)) if options["streams"] > 1 else ({},)
    rows = {}
    for dtype in dtypes:
        for base in bases:
            kept = "" if base == "same" else f" {base}"
            rows[f"{OURS} {dtype}{kept}"] = Provider(OURS, {**options, "dtype": dtype, "base": base}, bounds=bounds_of(base, *FLOOR))
        for name in (name for name in against if name != "llama.cpp"):
            rows[f"{name} {dtype}"] = Provider(name, {**options, "dtype": dtype}, name == "torch-compile", together)
    if "llama.cpp" in against:
        sizes = dict.fromkeys(min(size, options["segment"]) for size in (512, 128))
        settings = tuple({"n_ubatch": size, "flash": flash} for size in sizes for flash in (True, False))
        rows["llama.cpp"] = Provider("llama.cpp", {**options, "dtype": FILE}, settings=settings, bounds={"nll": COARSE["nll"]})
    return rows


def run_score(
    model: str,
    against: list[str],
    dtypes: list[str],
    streams: int,
    segment: int,
    rounds: int,
    say=say,
    isa: str | None = None,
    bases: tuple[str, ...] = ("same",),
    busy: bool = False,
    llama_cpp: str | None = None,
) -> dict:
    """The whole benchmark on one instruction set (None: the processor's best); returns what ``--out`` writes."""
    from dynadapt.common.environment import environment

    peer = {"llama_cpp": check_llama_cpp(llama_cpp, isa)} if "llama.cpp" in against else {}
    with tempfile.TemporaryDirectory() as work:
        options = {
            "model": model,
            "directory": plain_directory(model, Path(work)),
            "streams": streams,
            "segment": segment,
            "isa": isa,
            "base": "same",
            "llama_cpp": folder_for(llama_cpp, isa),
            "tokens": pieces(model, streams, segment),
        }
        rows = score_rows(against, dtypes, bases, options)
        truth = Provider("torch-fp64", {**options, "dtype": "fp64"})
        benchmark = Benchmark(
            "dynadapt.bench.score_worker", rows, truth, "torch-eager", FLOOR, thread_choices(), environment=limits(isa), busy=busy
        )
        found = compare(benchmark, rounds, 1, say)
    masked = _masked_flops(model, streams, segment)
    put_rates(found, streams * segment, masked)
    return {
        "benchmark": "score",
        "model": Path(model).name,
        "dtype": dtypes,
        "isa": isa,
        "streams": streams,
        "segment": segment,
        "masked_flops_per_step": masked,
        **peer,
        **found,
        "environment": environment(),
    }


def print_table(result: dict) -> None:
    title = f"scoring: {result['model']}, {result['streams']} x {result['segment']} tokens, nothing learns" + (
        f", {result['isa']}" if result["isa"] else ""
    )
    columns = {**COLUMNS, "nats/token": lambda name, row: f"{row['nats_per_token']:.4f}"}
    console = table(title, columns, result["providers"])
    for line in ceiling_lines(result["ceiling"], result["peak_gflops"]):
        console.print(line)
    console.print("Shares leave out what the causal mask throws away. first s: from the start of the process to the end of its first step.")
    if "llama_cpp" in result:
        own, best = result["llama_cpp"], result["providers"]["llama.cpp"]["setting"]
        console.print(
            f"llama.cpp: llama-cpp-python {own['version']}, compiled for {', '.join(own['built_for'])}; its best of the settings tried: "
            + ", ".join(f"{key} {value}" for key, value in best.items())
        )
    console.print(errors_line(result["providers"], "NLL, root mean square in nats"))
    for remark in remarks(result):
        console.print(remark)


def bench_score(arguments) -> int:
    """The command: ``arguments`` as cli.py parses them."""
    a = arguments
    named = some("against", a.against, (*PEERS, *GROUPS))
    against = list(dict.fromkeys(peer for name in named for peer in GROUPS.get(name, (name,))))
    check_out(a.out)
    isas = held_to(a.isa)
    if a.dtype != "auto":
        dtypes_of(a.dtype, None)
    if "llama.cpp" in against:
        if not (Path(a.model).suffix == ".gguf" and Path(a.model).is_file()):
            raise PeerError(
                f"--against llama.cpp --model {a.model}: it reads a .gguf file, and is compared on the same one; that of smollm2-135m "
                "is had with: dynadapt fetch smollm2-135m --gguf smollm2-135m.gguf"
            )
        for isa in isas:
            check_llama_cpp(a.llama_cpp, isa)
    from dynadapt.common.environment import need

    need("dynadapt bench score, which checks against float64 in transformers,", ("transformers",), "bench")
    say(f"loading {a.model}")
    bases = known_bases(a.base, a.model)
    results = []
    for isa in isas:
        dtypes = dtypes_of(a.dtype, isa)
        say(opening_line(a.dtype, dtypes, isa))
        results.append(run_score(a.model, against, dtypes, a.streams, a.segment, a.rounds, say, isa, bases, a.busy_neighbour, a.llama_cpp))
        print_table(results[-1])
    if a.out:
        write(a.out, results[0] if len(results) == 1 else {"benchmark": "scores", "results": results})
        print(a.out)
    return 0
