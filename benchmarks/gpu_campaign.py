"""Everything worth doing on a GPU machine, in stages, and in calls of less than ten minutes.

    python benchmarks/gpu_campaign.py [STAGE...] [--out DIR] [--list] [--bundle FILE.tar.gz] [--resume]
    python benchmarks/gpu_campaign.py quarter-hour-1 --resume --bundle OUT/all.tar.gz         # and -2: a quarter of an hour in all
    python benchmarks/gpu_campaign.py ... --keep-compiled OUT/compiled; on the next machine: --compiled OUT/compiled --restore OUT/all.tar.gz
    python benchmarks/gpu_campaign.py first-half-hour-1 --resume --bundle OUT/all.tar.gz      # and -2 to -4
    python benchmarks/gpu_campaign.py --device cpu        # dry run of the campaign's own code on tiny sizes, no GPU

Needs no network and no installation: torch, Triton, safetensors, tokenizers, pytest, CMake, ninja and a C++ compiler on the machine,
ncu and compute-sanitizer for the stages of that name. Optional peers (transformers with peft, liger-kernel, cut-cross-entropy, quack)
are skipped by name where they are absent. Each stage is a process of its own with a time limit and writes DIR/STAGE.json as it goes, so that a killed stage
keeps what it had; ``summary`` renders DIR/summary.md from all of them. A call of a list of stages ends by its own time, whatever they do.
"""

from __future__ import annotations

import argparse
import ast
import lzma
import os
import sys
import tarfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks.gpu import kept  # noqa: E402
from benchmarks.gpu.campaign import GRACE, RESTARTED, Campaign, Record, Restart, child  # noqa: E402
from benchmarks.gpu.choice_table import take_up  # noqa: E402

STEP_MODELS = {"step-135m": "smollm2-135m", "step-1b": "llama-3.2-1b", "step-8b": "llama-3.1-8b"}
OF_ONE_MODEL = {**STEP_MODELS, "choices-135m": "smollm2-135m", "choices-1b": "llama-3.2-1b"}
# stage -> (module of benchmarks/gpu, function); in the order in which they run
STAGES = {
    "environment": ("machine", "environment"),
    "build": ("machine", "build"),
    "compile": ("machine", "compile"),
    "ceilings": ("machine", "ceilings"),
    "core": ("checks", "core"),
    "correctness": ("checks", "correctness"),
    "choices": ("ops", "choices"),
    "choices-135m": ("ops", "choices"),
    "choices-1b": ("ops", "choices"),
    "step-135m": ("step", "run"),
    "step-1b": ("step", "run"),
    "ops-linear": ("ops", "ops_linear"),
    "ops-head": ("ops", "ops_head"),
    "ops-rest": ("ops", "ops_rest"),
    "sanitizers": ("checks", "sanitizers"),
    "profiles": ("checks", "profiles"),
    "real": ("real", "real"),
    "step-8b": ("step", "run"),
    "icl-bench": ("icl", "bench"),
    "icl-small": ("icl", "small"),
    "icl-standard": ("icl", "standard"),
    "icl-mixture": ("icl", "mixture"),
    "icl-claims": ("icl_claims", "claims"),
    "summary": ("summary", "summary"),
}
ONLY_ON_A_GPU = ("core", "correctness", "sanitizers", "profiles", "step-1b", "step-8b")
OVER = 5.0  # seconds that a stage may go on behind its time before it is asked to stop; then it has GRACE
SUMMARY = 15.0
PACKING = 10.0  # of what was compiled


@dataclass(frozen=True)
class Call:
    """Stages of one command: stage -> seconds it may take, what decides most first. What is cut short goes on in the next call.

    seconds: behind which the command has ended, even where every stage has to be killed.
    """

    seconds: float
    stages: dict[str, float]


def late(seconds: float) -> float:
    """When a stage is gone at the latest."""
    return seconds + OVER + GRACE


# A command may take ten minutes. The quarter of an hour is for a card that is there no longer, and begins the half hour's work.
CALLS = {
    "quarter-hour-1": Call(500, {"environment": 15, "build": 70, "ceilings": 20, "core": 120, "choices-135m": 50, "step-135m": 165}),
    "quarter-hour-2": Call(240, {"build": 60, "core": 40, "step-135m": 115}),
    "first-half-hour-1": Call(570, {"environment": 15, "build": 85, "ceilings": 20, "core": 160, "choices-135m": 55, "step-135m": 175}),
    "first-half-hour-2": Call(570, {"build": 60, "core": 60, "step-135m": 100, "choices-1b": 40, "step-1b": 250}),
    "first-half-hour-3": Call(
        570, {"build": 60, "step-1b": 100, "ops-linear": 60, "ops-head": 50, "ops-rest": 60, "profiles": 80, "correctness": 100}
    ),
    "first-half-hour-4": Call(570, {"build": 60, "step-8b": 350, "real": 40, "sanitizers": 60}),
}
PARTS = ("core", "choices-135m", "choices-1b")  # of stages that run whole where none is named
LEAST = 40.0  # seconds worth starting a stage for
OF_THE_BUILD = ("core", "correctness", "sanitizers")  # hold kernels against the native engine; all else does without it


def stage_function(name: str, device: str):
    from importlib import import_module

    module, function = STAGES[name]
    found = getattr(import_module(f"benchmarks.gpu.{module}"), function)
    if name in OF_ONE_MODEL:
        return partial(found, model="tiny" if device == "cpu" else OF_ONE_MODEL[name])
    return found


def describe(name: str) -> str:
    if name in STEP_MODELS:
        return f"The whole adapt step at {STEP_MODELS[name]}'s sizes beside its peers."
    module, function = STAGES[name]  # read, not imported: before the build stage not everything can be
    tree = ast.parse((ROOT / "benchmarks" / "gpu" / f"{module}.py").read_text("utf-8"))
    found = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == function)
    return " ".join((ast.get_docstring(found) or "").split())


def inside(args, name: str) -> int:
    """Run one stage in this process."""
    campaign = Campaign(Path(args.out), args.device, args.seconds, args.model, args.text, args.curve, args.steps)
    record = Record(campaign.out / f"{name}.json", name, args.device, args.resume)
    try:
        stage_function(name, args.device)(campaign, record)
    except Restart as error:
        print(f"{name}: the GPU is lost to this process ({error}); going on in a new one", flush=True)
        os.environ[RESTARTED] = "1"
        os.execv(sys.executable, [sys.executable, *sys.argv, f"--seconds={campaign.left}", "--resume"])
    except KeyboardInterrupt:
        record.finish("stopped at its limit")
        return 1
    except BaseException as error:
        record.finish(f"failed: {type(error).__name__}: {str(error)[:1000]}")
        raise
    if record.data["status"] == "cut short":
        record.finish()
    return 0


def outside(args, name: str, seconds: float) -> bool:
    """Run one stage in a process of its own, which is gone ``late(seconds)`` from now; True when it ended well."""
    options = [f"--{o}={getattr(args, o)}" for o in ("out", "device", "model", "text", "curve", "steps") if getattr(args, o) is not None]
    command = [
        sys.executable,
        str(Path(__file__).resolve()),
        name,
        "--inside",
        f"--seconds={seconds}",
        *options,
        *(["--resume"] if args.resume else []),
    ]
    print(f"== {name}: {describe(name)}", flush=True)
    start = time.monotonic()
    status, text = child(command, args.device, seconds + OVER)
    (Path(args.out) / f"{name}.log").write_text(text)
    print("\n".join(text.strip().splitlines()[-12:]))
    print(f"== {name}: {'stopped at its limit' if status is None else f'status {status}'}, {time.monotonic() - start:.0f} s", flush=True)
    return status == 0


def bundle(folder: Path, target: str | None) -> None:
    if target:
        with tarfile.open(target + ".tmp", "w:gz") as archive:
            archive.add(folder, arcname="campaign", filter=lambda entry: None if "/checkpoint/" in entry.name else entry)
        os.replace(target + ".tmp", target)


def restore(folder: Path, source: str) -> None:
    """The records of an earlier machine, from its bundle; what is there already stays."""
    with tarfile.open(source) as archive:
        for entry in archive.getmembers():
            name = entry.name.removeprefix("campaign/")
            if entry.isfile() and "/" not in name and not (folder / name).exists():
                (folder / name).write_bytes(archive.extractfile(entry).read())


def run(args, folder: Path) -> tuple[list[str], list[str]]:
    """The stages that were asked for, in the time that there is for them; those that failed, and those left out."""
    failed, left_out = [], []
    calls = [CALLS[name] for name in args.stages if name in CALLS]
    limits = args.device == "cuda"  # a dry run shows that stages work, however slow the machine
    total = sum(call.seconds for call in calls) if calls and limits else float("inf")
    end = time.monotonic() + min(total, args.total or float("inf")) - 5 - PACKING * bool(args.keep_compiled)  # to start and to pack
    able = lambda name: args.device == "cuda" or name not in ONLY_ON_A_GPU  # noqa: E731
    asked = [pair for name in args.stages for pair in (CALLS[name].stages.items() if name in CALLS else [(name, args.seconds)])]
    asked = [(name, limit if limits else args.seconds) for name, limit in asked if able(name) or name in args.stages]
    asked = asked or [(name, args.seconds) for name in STAGES if able(name) and name not in PARTS]
    if calls:
        asked.append(("summary", SUMMARY))
    for i, (name, limit) in enumerate(asked):
        behind = late(SUMMARY) if any(later == "summary" for later, _ in asked[i + 1 :]) else 0.0
        if calls and limits and all(later == "summary" for later, _ in asked[i + 1 :]) and name != "summary":
            limit = args.seconds  # the last has what the others have left
        seconds = min(args.seconds, limit, end - time.monotonic() - late(0) - behind)
        if seconds < min(LEAST, limit) and name != "summary":
            left_out.append(name)
            continue
        if not outside(args, name, max(seconds, 1.0)):
            failed.append(name)
            if name == "build":
                left_out += [later for later, _ in asked[i + 1 :] if later in OF_THE_BUILD]
                asked[i + 1 :] = [pair for pair in asked[i + 1 :] if pair[0] not in OF_THE_BUILD]
        bundle(folder, args.bundle)
    return failed, left_out


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "stages", nargs="*", metavar="STAGE", help="see --list; without any, all (with --device cpu: those that a CPU can run)"
    )
    parser.add_argument("--out", default="runs/gpu-campaign", help="directory of the JSON files (default: %(default)s)")
    parser.add_argument("--list", action="store_true", help="say what each stage does")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a dry run on tiny sizes in Triton's interpreter")
    parser.add_argument("--seconds", type=float, default=520.0, help="limit of a stage (default: %(default)s)")
    parser.add_argument("--total", type=float, help="seconds for all stages together: those that don't fit are named and left out")
    parser.add_argument("--resume", action="store_true", help="keep the rows of an earlier run of a stage and measure the others")
    parser.add_argument("--bundle", metavar="FILE", help="pack everything into this .tar.gz after each stage")
    parser.add_argument("--keep-compiled", metavar="DIR", help="at the end, what was compiled goes there in parts of 15 MiB")
    parser.add_argument("--compiled", metavar="DIR", help="begin with what --keep-compiled left on another machine of this kind")
    parser.add_argument("--restore", metavar="FILE", help="begin with the records of an earlier bundle, for --resume on a fresh machine")
    parser.add_argument("--model", help="stage real: the model's directory")
    parser.add_argument("--text", help="stage real: a long text")
    parser.add_argument("--curve", help="stage real: real.json of a run on a CPU, to compare with")
    parser.add_argument("--steps", type=int, default=1000, help="stage real: steps of 512 tokens (default: %(default)s)")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    args.out = str(Path(args.out).resolve())  # stages run in the project's directory, wherever this was called
    unknown = [s for s in args.stages if s not in STAGES and s not in CALLS]
    if unknown:
        parser.error(f"no stage {', '.join(unknown)}; stages: {', '.join(STAGES)}; calls: {', '.join(CALLS)}")
    return args


def main(arguments=None) -> int:
    args = parse(arguments)
    if args.list:
        print("\n".join(f"{name:12} {describe(name)}" for name in STAGES))
        for name, call in CALLS.items():
            print(f"{name}: {', '.join(f'{stage} ({limit} s)' for stage, limit in call.stages.items())}; {call.seconds:g} s in all at most")
        return 0
    folder = Path(args.out)
    folder.mkdir(parents=True, exist_ok=True)
    if args.restore:
        restore(folder, args.restore)
    if args.compiled:
        try:
            print(f"--compiled: {kept.unpack(Path(args.compiled))} files put in their places", flush=True)
        except (FileNotFoundError, lzma.LZMAError) as error:
            print(f"--compiled: {error}", file=sys.stderr)
            return 2
    if args.device == "cuda":
        take_up(folder, ROOT / "kernels" / "choices.json")  # measured in an earlier call: a fresh machine has none of it
    if args.inside:
        return inside(args, args.stages[0])
    failed, left_out = run(args, folder)
    if args.keep_compiled:
        print(f"--keep-compiled: {len(kept.pack(Path(args.keep_compiled)))} parts")
    if left_out:
        print(f"left out for want of time{', or of what was to be built' if 'build' in failed else ''}: {', '.join(left_out)}")
    if failed:
        print(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
