"""``dynadapt bench step``: one adapt step, side by side with transformers + peft.

Order of work: every provider loads in a process of its own and makes its first step; its memory is read after a few
more; its per-token NLL and adapter gradients are held against transformers + peft in float64; only then providers are
timed, taking turns, one step at a time, each with one thread and with all (bench_race.py). With several dtypes each
provider runs in each of them, and its faster one is what it is compared by.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from dynadapt.common import children

from .side_by_side import BUSY, best_of, quantiles, race, runners_of

PEERS = ("peft-eager", "peft-compile")
DTYPES = ("bf16", "fp32")
WARM = 3
# Nothing is timed unless the step is no further from float64 than transformers + peft in eager torch is in the same dtype
# (NLL by root mean square, gradients by 2-norm over all tensors); peers may be twice as far.
YARDSTICK = "peft-eager"
SLACK = {"dynadapt": 1.0}
FLOOR = {"nll": 1e-5, "gradient": 1e-4}


class Child:
    """A provider's process that answers every line it is sent with a line of JSON."""

    def __init__(self, provider: str, threads: int, command: list[str], environment: dict[str, str], cwd: Path | None = None):
        self.provider, self.threads = provider, threads
        self.log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            encoding="utf-8",
            env=children.environment(OMP_NUM_THREADS=str(threads), **environment),
            cwd=cwd,
        )

    def exchange(self, line: str) -> dict:
        """Sends a line, waits for the answer. Raises RuntimeError with the end of the process's errors when it has died."""
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            self.process.wait()
            self.log.seek(0)
            tail = "\n".join(self.log.read().strip().splitlines()[-12:])
            raise RuntimeError(f"provider {self.provider} ended with status {self.process.returncode}:\n{tail}")
        return json.loads(answer)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.stdin.close()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.log.close()


class Worker(Child):
    """A provider of a step. ``ask`` sends a command and waits for the answer."""

    def __init__(self, provider: str, options: dict, threads: int, module: str = "dynadapt.bench.step_worker", **environment: str):
        self.compile_cache = tempfile.TemporaryDirectory()  # compiled code of earlier runs would hide what compiling costs
        started = time.time()
        super().__init__(
            provider,
            threads,
            children.command(module),
            {
                "OMP_WAIT_POLICY": "passive",
                "TOKENIZERS_PARALLELISM": "false",
                "HF_HUB_OFFLINE": "1",
                "TORCHINDUCTOR_CACHE_DIR": self.compile_cache.name,
                **environment,
            },
        )
        self.dtype = options.get("dtype")
        first = self.exchange(json.dumps({**options, "provider": provider, "threads": threads}))
        self.first_step_seconds = first["first_step_at"] - started

    def ask(self, command: str) -> dict:
        return self.exchange(command)

    def time(self, steps: int = 1) -> dict:
        return self.ask(f"time {steps}")

    def close(self) -> None:
        super().close()
        self.compile_cache.cleanup()


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


def _errors(ours: Path, truth: Path) -> dict[str, float]:
    from safetensors.torch import load_file

    a, b = load_file(str(ours)), load_file(str(truth))
    if set(a) != set(b):
        raise RuntimeError(f"check: tensors differ: {sorted(set(a) ^ set(b))[:3]}")
    nll = (a["nll"] - b["nll"]).square().mean().sqrt()
    names = [n for n in b if n != "nll"]
    wrong = sum((a[n] - b[n]).square().sum() for n in names)
    return {"nll": float(nll), "gradient": float((wrong / sum(b[n].square().sum() for n in names)).sqrt())}


def _masked_flops(model_name: str, streams: int, segment: int) -> int:
    """The part of the ledger's count that causal masking throws away: 2 products forward and 5 backward over the upper triangle.

    A kernel may skip it, so the share of the ceiling leaves it out for every provider.
    """
    from dynadapt.model import load

    c = load(model_name).config
    return 7 * streams * segment * (segment - 1) * c.heads * c.head_dim * c.layers


def _start(name: str, options: dict, cores: int, say) -> list[Worker]:
    """The provider's processes: a compiled one fixes its threads when it compiles, so it gets one for each setting."""
    settings = [cores, 1] if name == "peft-compile" and cores > 1 else [cores]
    workers = []
    for threads in settings:
        say(f"{name}: starting in {options['dtype']}" + (f" with {threads} threads" if len(settings) > 1 else ""))
        workers.append(Worker(name, options, threads, **limits(options["isa"])))
    return workers


# What holds a process to an instruction set: our own variable, and those of torch, oneDNN and MKL for the peers.
LIMITS = {
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "avx512": {"ATEN_CPU_CAPABILITY": "avx512", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI", "MKL_ENABLE_INSTRUCTIONS": "AVX512"},
    "avx512_bf16": {},
}


def limits(isa: str | None) -> dict[str, str]:
    """Environment of a process that is to use no more than `isa`; {} for None, which is whatever the processor has."""
    return {} if isa is None else {"DYNADAPT_CPU_ISA": isa, **LIMITS[isa]}


def _measure_error(worker: Worker, folder: Path) -> dict[str, float]:
    out = folder / f"{worker.provider}.safetensors"
    worker.ask(f"check {folder / 'adapter'} {out}")
    return _errors(out, folder / "truth.safetensors")


def _check(rows: dict[str, dict], yardsticks: dict[str, dict[str, float]]) -> None:
    """RuntimeError naming the row that is too far from float64; yardsticks: the errors of eager torch, by dtype."""
    for name, row in rows.items():
        for measure, error in row["error"].items():
            bound = SLACK.get(row["provider"], 2.0) * yardsticks[row["dtype"]][measure] + FLOOR[measure]
            if not error <= bound:
                raise RuntimeError(
                    f"provider {name}: {measure} differs from float64 by {error:.3g}, more than {bound:.3g}; nothing was timed"
                )


def run_step(
    model: str,
    against: list[str],
    dtypes: str | list[str],
    streams: int,
    segment: int,
    rank: int,
    rounds: int,
    say=print,
    isa: str | None = None,
) -> dict:
    """The whole benchmark on one instruction set (None: the processor's best); returns what ``--out`` writes."""
    from dynadapt.common.environment import environment

    dtypes = [dtypes] if isinstance(dtypes, str) else list(dtypes)
    say(f"loading {model}")
    cores = len(os.sched_getaffinity(0))
    options = {
        "model": model,
        "streams": streams,
        "segment": segment,
        "rank": rank,
        "isa": isa,
        "tokens": _segments(model, streams, segment),
    }
    rows, runners, yardsticks, workers = {}, [], {}, []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _random_adapter(folder / "adapter", model, rank)
        say("float64 truth: transformers + peft")
        truth = Worker("peft-fp64", {**options, "dtype": "fp64"}, cores)
        truth.ask(f"check {folder / 'adapter'} {folder / 'truth.safetensors'}")
        truth.close()
        try:
            for dtype in dtypes:
                here = {**options, "dtype": dtype}
                for provider in ("dynadapt", *against):
                    row = provider if len(dtypes) == 1 else f"{provider} {dtype}"
                    started = _start(provider, here, cores, say)
                    workers += started
                    warm = started[0].time(WARM)
                    for other in started[1:]:
                        other.time(WARM)
                    rows[row] = {
                        "provider": provider,
                        "dtype": dtype,
                        "first_step_seconds": started[0].first_step_seconds,
                        "peak_memory_bytes": warm["peak_memory_bytes"],
                        "error": _measure_error(started[0], folder),
                    }
                    runners += runners_of(row, started, tuple(dict.fromkeys((cores, 1))))
                    if provider == YARDSTICK:
                        yardsticks[dtype] = rows[row]["error"]
                if dtype not in yardsticks:
                    say(f"{YARDSTICK}: starting, for its error in {dtype} only")
                    plain = Worker(YARDSTICK, here, cores, **limits(isa))
                    yardsticks[dtype] = _measure_error(plain, folder)
                    plain.close()
            _check(rows, yardsticks)
            ours = {r["dtype"]: next(w for w in workers if w.provider == "dynadapt" and w.dtype == r["dtype"]) for r in rows.values()}
            flops = next(iter(ours.values())).time(1)["flops"]
            ceilings, peaks = {dtype: [] for dtype in dtypes}, {dtype: [] for dtype in dtypes}

            def after(turn: int) -> None:
                for dtype, worker in ours.items():
                    ceilings[dtype].append(worker.ask("ceiling"))
                    peaks[dtype].append(worker.ask("peak")["gflops"])
                say(f"round {turn}: " + ", ".join(f"{n} {1e3 * r.seconds[-1]:.0f} ms" for n, r in best_of(runners).items()))

            found = race(runners, rounds, after=after)
        finally:
            for worker in workers:
                worker.close()
    masked, best = _masked_flops(model, streams, segment), best_of(runners)
    ceiling = {dtype: max(each, key=lambda c: c["gflops"]) for dtype, each in ceilings.items()}
    peak = {dtype: max(each) for dtype, each in peaks.items()}
    fastest = min(best[name].median for name, row in rows.items() if row["provider"] == "dynadapt")
    for name, row in rows.items():
        row["seconds"], row["all_seconds"], row["threads"] = quantiles(best[name].seconds), best[name].seconds, best[name].threads
        row["by_threads"] = {str(r.threads): quantiles(r.seconds) for r in runners if r.name == name}
        row["tokens_per_second"] = streams * segment / row["seconds"]["median"]
        row["gflops"] = flops / row["seconds"]["median"] / 1e9
        done = (1 - masked / flops) * row["gflops"]
        row["share_of_ceiling"], row["share_of_peak"] = done / ceiling[row["dtype"]]["gflops"], done / peak[row["dtype"]]
        row["speedup_of_dynadapt"] = row["seconds"]["median"] / fastest
    return {
        "benchmark": "step",
        "model": model,
        "dtype": dtypes[0] if len(dtypes) == 1 else dtypes,
        "isa": isa,
        "streams": streams,
        "segment": segment,
        "rank": rank,
        **found,
        "flops_per_step": flops,
        "masked_flops_per_step": masked,
        "ceiling": ceiling[dtypes[0]] if len(dtypes) == 1 else ceiling,
        "peak_gflops": peak[dtypes[0]] if len(dtypes) == 1 else peak,
        "providers": rows,
        "environment": environment(),
    }


def print_table(result: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    several = not isinstance(result["dtype"], str)
    title = (
        f"one adapt step: {result['model']}, {' and '.join(result['dtype']) if several else result['dtype']}, LoRA rank {result['rank']}, "
        f"{result['streams']} x {result['segment']} tokens" + (f", {result['isa']}" if result["isa"] else "")
    )
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for heading in ("provider", "ms", "20..80%", "tokens/s", "of ceiling", "of peak", "dynadapt is", "peak MB", "first s", "threads: ms"):
        table.add_column(heading, justify="left" if heading == "provider" else "right", no_wrap=True)
    for name, row in result["providers"].items():
        s = row["seconds"]
        threads = ", ".join(f"{n}: {1e3 * each['median']:.0f}" for n, each in sorted(row["by_threads"].items()))
        table.add_row(
            name,
            f"{1e3 * s['median']:.0f}",
            f"{1e3 * s['p20']:.0f}..{1e3 * s['p80']:.0f}",
            f"{row['tokens_per_second']:,.0f}",
            f"{row['share_of_ceiling']:.0%}",
            f"{row['share_of_peak']:.0%}",
            "" if row["provider"] == "dynadapt" else f"{row['speedup_of_dynadapt']:.2f}x",
            f"{row['peak_memory_bytes'] / 1e6:,.0f}",
            f"{row['first_step_seconds']:.1f}",
            threads,
        )
    console = Console(highlight=False)
    console = console if console.width >= 120 else Console(width=120, highlight=False)
    console.print(table)
    for dtype, c in (result["ceiling"] if several else {result["dtype"]: result["ceiling"]}).items():
        peak = result["peak_gflops"][dtype] if several else result["peak_gflops"]
        console.print(
            f"{dtype}: ceiling {c['gflops']:.0f} GFLOP/s, the best matrix product of this run ({c['provider']}, "
            f"{'x'.join(map(str, c['shape']))}); peak {peak:.0f}, the same instructions on registers alone"
        )
    console.print("Shares leave out what the causal mask throws away. first s: from the start of the process to the end of its first step.")
    console.print(
        "error against float64, NLL and gradient: "
        + "; ".join(f"{name} {row['error']['nll']:.1e}, {row['error']['gradient']:.1e}" for name, row in result["providers"].items())
    )
    if result["dropped"]:
        console.print(f"clearly slower, and dropped after the first rounds: {'; '.join(result['dropped'])}")
    if result["other_load"] is not None and result["other_load"] > BUSY:
        console.print(
            f"warning: other processes used {result['other_load']:.0%} of this machine while this ran; a quiet machine gives other ratios"
        )


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
            print(f"{isa}:", file=sys.stderr, flush=True)
        results.append(
            run_step(
                arguments.model,
                against,
                dtypes,
                arguments.streams,
                arguments.segment,
                arguments.rank,
                arguments.rounds,
                say=lambda text: print(text, file=sys.stderr, flush=True),
                isa=isa,
            )
        )
        print_table(results[-1])
    if arguments.out:
        Path(arguments.out).parent.mkdir(parents=True, exist_ok=True)
        content = results[0] if len(results) == 1 else {"benchmark": "steps", "results": results}
        Path(arguments.out).write_text(json.dumps(content, indent=1) + "\n", "utf-8")
        print(arguments.out)
    return 0


def _some(option: str, value: str, known: tuple[str, ...]) -> list[str]:
    names = [name for name in (value or "").split(",") if name]
    for name in names:
        if name not in known:
            raise ValueError(f"--{option} {name}: expected some of {', '.join(known)}, with commas between")
    return list(dict.fromkeys(names))
