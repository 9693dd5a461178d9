"""Every CPU result of this machine: each instruction set that it has, one after the other.

    python benchmarks/cpu_campaign.py --list                      # what would be run, and about how long it takes
    python benchmarks/cpu_campaign.py --gguf smollm2-135m.gguf --llama-cpp 'builds/{isa}' --out benchmarks/results/cpu
    python benchmarks/cpu_tables.py                               # README.md and docs/speed.md from the files

For each instruction set: the adapt step beside transformers + peft (alone and beside a busy core), four streams of it, scoring beside
llama.cpp and torch, and the products of a step beside MKL and oneDNN. All in bf16 and fp32 where the set multiplies bf16 itself; else in
fp32, and our own step in bf16 too: torch without such instructions takes more than a minute for one. What has been measured is not measured again,
so a campaign that was stopped goes on with the same command; --again begins anew. Close what else runs on the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]  # a source tree needs no installation

from dynadapt.bench.machine import instruction_sets, limits  # noqa: E402
from dynadapt.bench.side_by_side import check_out, write  # noqa: E402
from dynadapt.commands.parsing import at_least  # noqa: E402
from dynadapt.common import children  # noqa: E402
from dynadapt.runs.progress import clock, say  # noqa: E402

DONE = "campaign.json"  # by file, the command that made it
DTYPES = ("bf16", "fp32")
MULTIPLIED = {"avx512_bf16": DTYPES}  # by instruction set, what it has products of; the others fp32 alone
# For the estimate alone: of an instruction set's peak, what a provider reaches, and seconds that it takes to start.
SHARES = {"dynadapt": 0.7, "peft-eager": 0.2, "peft-compile": 0.3, "torch-eager": 0.25, "torch-compile": 0.35, "llama.cpp": 0.25}
STARTS = {"peft-compile": 120.0, "torch-compile": 60.0}  # with each number of threads
START = 6.0
PARAMETERS, TOKENS = 134.5e6, 512  # SmolLM2-135M; a forward is two FLOPs a parameter and token, a step two forwards


@dataclass(frozen=True)
class Task:
    """A results file and the `dynadapt` command that makes it; streams and forwards are for the estimate."""

    file: str
    isa: str
    words: tuple[str, ...]
    providers: tuple[str, ...]
    forwards: float
    dtypes: tuple[str, ...]
    races: int = 1

    def seconds(self, peaks: dict[str, float], rounds: int, cores: int) -> float:
        """About how long it takes; peaks: GFLOP/s of the instruction set on all cores, by dtype."""
        total = 2 * START  # the float64 reference
        for dtype in self.dtypes:
            for provider in self.providers:
                if provider == "llama.cpp" and dtype != self.dtypes[0]:
                    continue
                once = self.forwards * 2 * PARAMETERS * TOKENS / (1e9 * peaks[dtype] * SHARES[provider])
                # one thread takes `cores` times as long; where that is far behind it rests in most rounds
                total += STARTS.get(provider, START) * (2 if provider in STARTS else 1) + self.races * rounds * once * (1 + 0.4 * cores)
        return total


def tasks(isas: list[str], settings) -> list[Task]:
    rounds, model = ("--rounds", str(settings.rounds)), ("--model", settings.model)
    base = ("--base", settings.base)
    peers, found = ("peft-eager", "peft-compile"), []
    scored = ("torch-eager", "torch-compile") + (("llama.cpp",) if settings.gguf else ())
    built = ("--llama-cpp", settings.llama_cpp) if settings.gguf and settings.llama_cpp else ()
    for isa in isas:
        dtypes = MULTIPLIED.get(isa, ("fp32",))

        def add(end: str, words: tuple[str, ...], *more, dtypes=dtypes, **fields) -> None:
            arithmetic = ("--isa", isa, "--dtype", ",".join(dtypes))
            given = (*words, *arithmetic, *(base if words[1] != "products" else ()), *rounds, *more)
            found.append(Task(f"{words[1]}-{isa}{end}.json", isa, given, dtypes=dtypes, **fields))

        step, score = ("bench", "step", *model), ("bench", "score", "--model", settings.gguf or settings.model)
        against = ("--against", ",".join(peers), "--busy-neighbour")
        add("", step, *against, providers=("dynadapt", *peers), forwards=2.0, races=2)
        if "bf16" not in dtypes:
            add("-bf16", step, dtypes=("bf16",), providers=("dynadapt",), forwards=2.0)
        add("-s4", step, "--streams", "4", providers=("dynadapt",), forwards=8.0)
        add("", score, "--against", ",".join(scored), *built, providers=("dynadapt", *scored), forwards=1.0)
        add("", ("bench", "products"), providers=("dynadapt", "torch-eager"), forwards=5.0)
    return [task for task in found if settings.only in task.file]


def peaks_of(isa: str) -> dict[str, float]:
    """GFLOP/s of register-only loops on all cores, by dtype, measured in a process that is held to `isa`."""
    ask = (
        "import json, os, torch; from dynadapt.bench.ceiling import instruction_peak as peak; n = len(os.sched_getaffinity(0)); "
        "print(json.dumps({'bf16': peak(torch.bfloat16, n), 'fp32': peak(torch.float32, n)}))"
    )
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, cwd=ROOT, env={**os.environ, **limits(isa)})
    if done.returncode:
        raise SystemExit(f"{isa}: its peak can't be measured:\n{done.stderr.strip()}")
    return json.loads(done.stdout)


def launch(words: tuple[str, ...]) -> int:
    """`dynadapt words...` as a process of its own; its exit status."""
    environment = children.environment(OMP_WAIT_POLICY=os.environ.get("OMP_WAIT_POLICY", "passive"))
    return subprocess.run(children.command("dynadapt", *words), cwd=ROOT, env=environment).returncode


def done_before(folder: Path) -> dict[str, list[str]]:
    path = folder / DONE
    try:
        found = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise SystemExit(f"{path}: damaged: {error}; --again measures anew, and writes it anew") from error
    if not isinstance(found, dict):
        raise SystemExit(f"{path}: damaged: expected the commands by file; --again measures anew, and writes it anew")
    return found


def is_done(task: Task, folder: Path, before: dict[str, list[str]]) -> bool:
    """Whether the same command made a file that is whole."""
    if before.get(task.file) != list(task.words):
        return False
    try:
        json.loads((folder / task.file).read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return True


def written(path: Path) -> int | None:
    """When a file was last written to, None where there is none."""
    return path.stat().st_mtime_ns if path.is_file() else None


def run(todo: list[Task], folder: Path, estimates: dict[str, float], before: dict[str, list[str]]) -> list[str]:
    """Runs them in turn; the files that could not be made. What is done is written down after each."""
    failed, spent, expected = [], 0.0, 0.0
    for number, task in enumerate(todo, 1):
        left = sum(estimates[t.file] for t in todo[number - 1 :]) * (spent / expected if expected else 1.0)
        say(f"[{number}/{len(todo)}] {task.file}; about {clock(left)} left in all")
        start, old = time.monotonic(), written(folder / task.file)
        try:
            status = launch((*task.words, "--out", str(folder / task.file)))
        except KeyboardInterrupt:
            status = 130
        spent, expected = spent + time.monotonic() - start, expected + estimates[task.file]
        if status in (130, -2):
            raise SystemExit(f"stopped; the same command goes on in {folder}")
        if status or written(folder / task.file) == old:
            failed.append(task.file)
            continue
        before[task.file] = list(task.words)
        write(folder / DONE, before)
    return failed


def parse(argv: list[str] | None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cpu"), help="folder of the files (default: %(default)s)")
    parser.add_argument("--list", action="store_true", help="say what would be run and about how long it takes, and run nothing")
    parser.add_argument("--again", action="store_true", help="measure what is there once more")
    parser.add_argument("--only", default="", metavar="WORD", help="files whose name contains this: step, score, products, avx2-, ...")
    parser.add_argument("--isa", default="", metavar="A,B", help="instruction sets (default: all that the processor has)")
    parser.add_argument("--rounds", type=at_least(1), default=10)
    parser.add_argument("--base", default="same", metavar="A,B", help="how dynadapt keeps frozen weights, as dynadapt bench step --base")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--gguf", metavar="FILE", help="a .gguf file to score; without it llama.cpp is left out")
    parser.add_argument("--llama-cpp", metavar="DIR", help="as of dynadapt bench score: 'builds/{isa}'")
    settings = parser.parse_args(argv)
    if settings.gguf and not Path(settings.gguf).is_file():
        parser.error(f"--gguf {settings.gguf}: there is no such file")
    settings.out = settings.out.resolve()
    for name in ("gguf", "llama_cpp"):  # the commands run in the project's directory
        if getattr(settings, name):
            setattr(settings, name, str(Path(getattr(settings, name)).resolve()))
    return settings


def main(argv: list[str] | None = None) -> int:
    settings = parse(argv)
    here = instruction_sets()
    isas = [name for name in settings.isa.split(",") if name] or here
    if unknown := [isa for isa in isas if isa not in here]:
        raise SystemExit(f"--isa {unknown[0]}: this processor has {', '.join(here) or 'none of them'}")
    every, before = tasks(isas, settings), {} if settings.again else done_before(settings.out)
    if not every:
        raise SystemExit(f"--only {settings.only}: no file has this in its name")
    todo = [task for task in every if not is_done(task, settings.out, before)]
    peaks, cores = {isa: peaks_of(isa) for isa in isas}, len(os.sched_getaffinity(0))
    estimates = {task.file: task.seconds(peaks[task.isa], settings.rounds, cores) for task in todo}
    for task in every:
        took = f"about {clock(estimates[task.file])}" if task.file in estimates else "is there"
        say(f"{task.file:28} {took:16} dynadapt {' '.join(task.words)}")
    if not settings.gguf:
        say("llama.cpp is left out: it needs --gguf FILE, and a llama-cpp-python for each instruction set (dynadapt bench score --help)")
    say(f"{len(todo)} of {len(every)} to measure, about {clock(sum(estimates.values()))}; up to three times that on a noisy machine")
    if settings.list:
        return 0
    try:
        check_out(settings.out / DONE)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    failed = run(todo, settings.out, estimates, before)
    if failed:
        say(f"failed: {', '.join(failed)}; the same command tries them again")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
