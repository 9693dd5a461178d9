"""``dynadapt bench step``: one adapt step, side by side with transformers + peft.

Order of work: every provider loads in a process of its own and makes its first step; its memory is read after a few
more; its per-token NLL and adapter gradients are held against transformers + peft in float64; it tries one thread and
all of them and keeps the faster; only then providers are timed, taking turns, one step at a time.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from . import children

PEERS = ("peft-eager", "peft-compile")
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
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, encoding="utf-8",
                                        env=children.environment(OMP_NUM_THREADS=str(threads), **environment), cwd=cwd)

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

    def __init__(self, provider: str, options: dict, threads: int, module: str = "dynadapt.bench_worker"):
        self.compile_cache = tempfile.TemporaryDirectory()  # compiled code of earlier runs would hide what compiling costs
        started = time.time()
        super().__init__(provider, threads, children.command(module), {
            "OMP_WAIT_POLICY": "passive", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1",
            "TORCHINDUCTOR_CACHE_DIR": self.compile_cache.name})
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
    from .model import load
    from .text import BUILTINS

    ids = load(model).tokenizer.encode(BUILTINS["python-reference"]()[: 40 * streams * (segment + 1)])
    size = streams * (segment + 1)
    pieces = [ids[i * size : (i + 1) * size] for i in range(4) if len(ids) >= (i + 1) * size]
    return [[piece[s * (segment + 1) : (s + 1) * (segment + 1)] for s in range(streams)] for piece in pieces]


def _random_adapter(directory: Path, model_name: str, rank: int) -> None:
    """A PEFT adapter with B away from zero, so that every gradient is too."""
    import torch

    from .adapt import Adam, LoRA
    from .adapt.lora import LoraLearner
    from .adapt.peft_format import write_adapter
    from .decoder import group_sizes
    from .model import load

    model = load(model_name)
    learner = LoraLearner(LoRA(rank, 2 * rank), Adam(), group_sizes(model.config), 1, torch.float32, 0)
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
    from .model import load

    c = load(model_name).config
    return 7 * streams * segment * (segment - 1) * c.heads * c.head_dim * c.layers


def quantiles(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    pick = lambda q: ordered[min(len(ordered) - 1, round(q * (len(ordered) - 1)))]  # noqa: E731
    return {"median": statistics.median(ordered), "p20": pick(0.2), "p80": pick(0.8), "best": ordered[0], "runs": len(ordered)}


def _start(name: str, options: dict, cores: int, say) -> list[Worker]:
    """The provider's processes: a compiled one fixes its threads when it compiles, so it gets one for each setting."""
    settings = [cores, 1] if name == "peft-compile" and cores > 1 else [cores]
    workers = []
    for threads in settings:
        say(f"{name}: starting" + (f" with {threads} threads" if len(settings) > 1 else ""))
        workers.append(Worker(name, options, threads))
    return workers


def _best_threads(workers: list[Worker], cores: int) -> Worker:
    """The faster of one thread and all, by the median of three steps."""
    def pace(worker):
        return statistics.median(worker.time(3)["seconds"])

    if len(workers) > 1:
        paces = {w: pace(w) for w in workers}
        best = min(workers, key=paces.get)
        for worker in workers:
            if worker is not best:
                worker.close()
        return best
    worker = workers[0]
    if cores > 1:
        paces = {}
        for threads in (1, cores):
            worker.ask(f"threads {threads}")
            paces[threads] = pace(worker)
        worker.threads = min(paces, key=paces.get)
        worker.ask(f"threads {worker.threads}")
    return worker


def _measure_error(worker: Worker, folder: Path) -> dict[str, float]:
    out = folder / f"{worker.provider}.safetensors"
    worker.ask(f"check {folder / 'adapter'} {out}")
    return _errors(out, folder / "truth.safetensors")


def _check(rows: dict[str, dict], yardstick: dict[str, float]) -> None:
    for provider, row in rows.items():
        for name, error in row["error"].items():
            bound = SLACK.get(provider, 2.0) * yardstick[name] + FLOOR[name]
            if not error <= bound:
                raise RuntimeError(f"provider {provider}: {name} differs from float64 by {error:.3g}, more than {bound:.3g}; nothing was timed")


def run_step(model: str, against: list[str], dtype: str, streams: int, segment: int, rank: int, rounds: int, say=print) -> dict:
    """The whole benchmark; returns what ``--out`` writes."""
    from .environment import environment

    cores = len(os.sched_getaffinity(0))
    options = {"model": model, "dtype": dtype, "streams": streams, "segment": segment, "rank": rank,
               "tokens": _segments(model, streams, segment)}
    rows, active = {}, []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _random_adapter(folder / "adapter", model, rank)
        say("float64 truth: transformers + peft")
        truth = Worker("peft-fp64", {**options, "dtype": "fp64"}, cores)
        truth.ask(f"check {folder / 'adapter'} {folder / 'truth.safetensors'}")
        truth.close()
        try:
            for provider in ("dynadapt", *against):
                workers = _start(provider, options, cores, say)
                active += workers
                warm = workers[0].time(WARM)
                rows[provider] = {"first_step_seconds": workers[0].first_step_seconds, "peak_memory_bytes": warm["peak_memory_bytes"],
                                  "error": _measure_error(workers[0], folder)}
                best = _best_threads(workers, cores)
                active = [w for w in active if w.provider != provider] + [best]
                rows[provider]["threads"] = best.threads
            if YARDSTICK not in rows:
                say(f"{YARDSTICK}: starting, for its error only")
                plain = Worker(YARDSTICK, options, cores)
                yardstick = _measure_error(plain, folder)
                plain.close()
            else:
                yardstick = rows[YARDSTICK]["error"]
            _check(rows, yardstick)
            flops = active[0].time(1)["flops"]
            seconds, ceilings = {w.provider: [] for w in active}, []
            for turn in range(rounds):
                for worker in active:
                    seconds[worker.provider] += worker.time()["seconds"]
                ceilings.append(active[0].ask("ceiling"))
                say(f"round {turn + 1}/{rounds}: " + ", ".join(f"{n} {1e3 * s[-1]:.0f} ms" for n, s in seconds.items())
                    + f", matrix products {ceilings[-1]['gflops']:.0f} GFLOP/s")
        finally:
            for worker in active:
                worker.close()
    ceiling = max(ceilings, key=lambda c: c["gflops"])
    masked = _masked_flops(model, streams, segment)
    for provider, row in rows.items():
        row["seconds"] = quantiles(seconds[provider])
        row["all_seconds"] = seconds[provider]
        row["tokens_per_second"] = streams * segment / row["seconds"]["median"]
        row["gflops"] = flops / row["seconds"]["median"] / 1e9
        row["share_of_ceiling"] = (1 - masked / flops) * row["gflops"] / ceiling["gflops"]
        row["speedup_of_dynadapt"] = row["seconds"]["median"] / rows["dynadapt"].get("seconds", row["seconds"])["median"]
    return {"benchmark": "step", "model": model, "dtype": dtype, "streams": streams, "segment": segment, "rank": rank,
            "rounds": rounds, "flops_per_step": flops, "masked_flops_per_step": masked, "ceiling": ceiling, "providers": rows, "environment": environment()}


def print_table(result: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    title = (f"one adapt step: {result['model']}, {result['dtype']}, LoRA rank {result['rank']}, "
             f"{result['streams']} x {result['segment']} tokens")
    table = Table(title=title, title_justify="left")
    for heading in ("provider", "ms", "20..80 %", "tokens/s", "ceiling", "dynadapt is", "peak MB", "first s", "threads"):
        table.add_column(heading, justify="left" if heading == "provider" else "right", no_wrap=True)
    for name, row in result["providers"].items():
        s = row["seconds"]
        table.add_row(name, f"{1e3 * s['median']:.0f}", f"{1e3 * s['p20']:.0f}..{1e3 * s['p80']:.0f}", f"{row['tokens_per_second']:.0f}",
                      f"{100 * row['share_of_ceiling']:.0f} %", "" if name == "dynadapt" else f"{row['speedup_of_dynadapt']:.2f}x",
                      f"{row['peak_memory_bytes'] / 1e6:.0f}", f"{row['first_step_seconds']:.1f}", str(row["threads"]))
    console = Console()
    console = console if console.width >= 110 else Console(width=110)
    console.print(table)
    c = result["ceiling"]
    console.print(f"ceiling: {c['gflops']:.0f} GFLOP/s, the best matrix product of this run ({c['provider']}, {'x'.join(map(str, c['shape']))}); "
                  f"shares leave out what the causal mask throws away; first s: from the start of the process to the end of its first step")
    console.print("error against float64, NLL and gradient: " + "; ".join(
        f"{name} {row['error']['nll']:.1e}, {row['error']['gradient']:.1e}" for name, row in result["providers"].items()))


def bench_step(arguments) -> int:
    """The command: ``arguments`` as cli.py parses them."""
    against = [name for name in arguments.against.split(",") if name]
    for name in against:
        if name not in PEERS:
            raise ValueError(f"--against {name}: expected some of {', '.join(PEERS)}")
    from .environment import need
    need("dynadapt bench step, which checks against float64 in transformers + peft,", ("transformers", "peft"), "bench")
    result = run_step(arguments.model, against, arguments.dtype, arguments.streams, arguments.segment, arguments.rank, arguments.rounds,
                      say=lambda text: print(text, file=sys.stderr, flush=True))
    print_table(result)
    if arguments.out:
        Path(arguments.out).parent.mkdir(parents=True, exist_ok=True)
        Path(arguments.out).write_text(json.dumps(result, indent=1) + "\n", "utf-8")
        print(arguments.out)
    return 0
