"""An adapt step whose streams have ranks of their own, beside steps where all have the mean rank or the largest: python benchmarks/heterogeneous.py

Each stream of the mixed engine is first held against an engine of its rank alone: the scores of two steps have to be the same to the
bit. Then the engines take turns in one process, each round in another order; a row is the median of its rounds with its quantiles, and
the ratio that of rounds, mixed by mean rank. Streams that differ in targets and optimizer, too: --targets, --optimizers.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a source tree needs no installation

import dynadapt
from benchmarks.script import ended_by_a_line
from dynadapt.adapt.optimizers import OPTIMIZERS, WITHOUT_STATISTICS
from dynadapt.bench.quantiles import median_interval, quantiles
from dynadapt.bench.side_by_side import check_out, write
from dynadapt.common.environment import environment
from dynadapt.runs.progress import say


def arguments(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="as dynadapt.load takes it (default: %(default)s)")
    parser.add_argument("--ranks", type=int, nargs="+", default=[4, 8, 16, 36], help="of each stream (default: 4 8 16 36, mean 16)")
    parser.add_argument("--targets", nargs="+", default=["all"], help="of each stream in turn")
    parser.add_argument("--optimizers", nargs="+", default=["adam"], choices=WITHOUT_STATISTICS, help="of each stream in turn")
    parser.add_argument("--segment", type=int, default=512, help="tokens of a step (default: %(default)s)")
    parser.add_argument("--dtype", default="auto", choices=("auto", "bf16", "fp32"))
    parser.add_argument("--rounds", type=int, default=20, help="steps of each engine that are timed (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="results, as JSON")
    options = parser.parse_args(argv)
    for name in ("segment", "rounds"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} {getattr(options, name)}: give at least 1")
    if min(options.ranks) < 1:
        parser.error(f"--ranks {min(options.ranks)}: give at least 1")
    if sum(options.ranks) % len(options.ranks):
        parser.error(f"--ranks {options.ranks}: their mean is {sum(options.ranks) / len(options.ranks):g}, expected a whole number")
    try:
        check_out(options.out)
    except ValueError as error:
        parser.error(str(error))
    return options


def texts(model, rows: int, segment: int, count: int) -> list[torch.Tensor]:
    """Random tokens [rows, segment + 1]: what a step costs does not depend on them."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(model.config.vocab_size, (rows, segment + 1), generator=generator) for _ in range(count)]


def engines(model, options) -> dict[str, dynadapt.Engine]:
    streams = len(options.ranks)
    turn = lambda values, s: values[s % len(values)]  # noqa: E731
    optimizers = [OPTIMIZERS[turn(options.optimizers, s)]() for s in range(streams)]
    adapts = lambda ranks: [dynadapt.LoRA(rank=r, targets=turn(options.targets, s)) for s, r in enumerate(ranks)]  # noqa: E731
    make = lambda adapt, optimizer, count=streams: dynadapt.Engine(  # noqa: E731
        model, adapt=adapt, optimizer=optimizer, streams=count, segment=options.segment, dtype=options.dtype
    )
    mean, largest = sum(options.ranks) // streams, max(options.ranks)
    say(f"making the mixed engine and {streams} of one stream, ranks {' '.join(map(str, options.ranks))}")
    mixed = make(adapts(options.ranks), optimizers)
    alone = [make(adapts(options.ranks)[s], optimizers[s], 1) for s in range(streams)]
    say("two steps of each: are the scores the same?")
    check(mixed, alone, texts(model, streams, options.segment, 2))
    say(f"making engines of rank {mean} and {largest}, then {options.rounds} rounds")
    return {
        "mixed": mixed,
        "mean rank": make(dynadapt.LoRA(rank=mean), optimizers[0]),
        "largest rank": make(dynadapt.LoRA(rank=largest), optimizers[0]),
    }


def check(mixed, alone, rows) -> None:
    """Raises SystemExit where a stream has other scores than in an engine of its own."""
    for tokens in rows:
        scores = mixed.step(tokens)
        for stream, engine in enumerate(alone):
            if not torch.equal(engine.step(tokens[stream : stream + 1])[0], scores[stream]):
                raise SystemExit(f"stream {stream} has other scores than in an engine of its own: nothing is timed")


def timed(contestants: dict, rows: list[torch.Tensor], rounds: int) -> dict[str, list[float]]:
    """Seconds of a step, by engine: all in each round, the first one another each time."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    names = list(contestants)
    for engine in contestants.values():
        engine.step(rows[0])  # makes its buffers
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            start = time.perf_counter()
            contestants[name].step(rows[i % len(rows)])
            seconds[name].append(time.perf_counter() - start)
    return seconds


def main(argv=None) -> dict:
    options = arguments(argv)
    with ended_by_a_line():
        return measured(options, sys.argv[1:] if argv is None else argv)


def measured(options, argv: list[str]) -> dict:
    model = dynadapt.load(options.model)
    try:
        contestants = engines(model, options)
    except ValueError as error:  # of a setting that the model or an engine has not
        raise SystemExit(" ".join(str(error).split())) from None
    seconds = timed(contestants, texts(model, len(options.ranks), options.segment, 4), options.rounds)
    rows = {}
    for name, engine in contestants.items():
        flops = sum(n for phase, n in engine.last.flops.items() if phase != "update")
        rows[name] = {**quantiles([1e3 * s for s in seconds[name]], "_ms"), "flops_per_step": flops}
        print(
            f"{name:<14} {rows[name]['median_ms']:9.1f} ms   {rows[name]['p20_ms']:.1f} .. {rows[name]['p80_ms']:.1f}   {flops / 1e9:.1f} GFLOP"
        )
    ratios = [a / b for a, b in zip(seconds["mixed"], seconds["mean rank"])]
    low, high = median_interval(ratios)
    ratio = {**quantiles(ratios), "low": low, "high": high}
    print(f"mixed / mean rank: {ratio['median']:.3f} ({low:.3f} .. {high:.3f})")
    result = {
        "benchmark": "heterogeneous",
        "command": " ".join(["python benchmarks/heterogeneous.py", *argv]),
        "model": Path(options.model).name,
        "ranks": options.ranks,
        "targets": options.targets,
        "optimizers": options.optimizers,
        "segment": options.segment,
        "dtype": contestants["mixed"].dtype,
        "rounds": options.rounds,
        "rows": rows,
        "mixed_by_mean_rank": ratio,
        "environment": environment(),
    }
    if options.out:
        write(options.out, result)
    return result


if __name__ == "__main__":
    main()
