"""Everything worth doing on a GPU machine, in stages of less than nine minutes.

    python benchmarks/gpu_campaign.py [STAGE...] [--out DIR] [--list] [--bundle FILE.tar.gz] [--resume]
    python benchmarks/gpu_campaign.py first-half-hour-1 --resume --bundle OUT/all.tar.gz      # and -2 to -4: nine minutes each at most
    python benchmarks/gpu_campaign.py --device cpu        # dry run of the campaign's own code on tiny sizes, no GPU

Needs no network and no installation: torch, Triton, transformers, peft, pytest, CMake, ninja and a C++ compiler on the machine,
ncu and compute-sanitizer for the stages of that name. Optional peers (liger-kernel, cut-cross-entropy) are skipped by name where
they are absent. Each stage is a process of its own with a time limit and writes DIR/STAGE.json as it goes, so that a killed stage
keeps what it had; ``summary`` renders DIR/summary.md from all of them.
"""

from __future__ import annotations

import argparse
import ast
import os
import sys
import tarfile
import time
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

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
    "icl-standard": ("icl", "standard"),
    "icl-mixture": ("icl", "mixture"),
    "icl-claims": ("icl_claims", "claims"),
    "summary": ("summary", "summary"),
}
ONLY_ON_A_GPU = ("core", "correctness", "sanitizers", "profiles", "step-1b", "step-8b")
# The first half hour on a card, as calls of nine minutes at most: what decides most comes first, and what is cut short goes on in the
# next call. stage -> seconds it may take.
FIRST_HALF_HOUR = (
    {"environment": 20, "build": 120, "ceilings": 30, "core": 240, "choices-135m": 50, "step-135m": 60},
    {"environment": 20, "build": 60, "core": 90, "step-135m": 180, "choices-1b": 50, "step-1b": 120},
    {"environment": 20, "build": 60, "step-1b": 180, "ops-linear": 50, "ops-head": 50, "ops-rest": 50, "profiles": 110},
    {"environment": 20, "build": 60, "correctness": 150, "sanitizers": 110, "real": 80, "step-8b": 100},
)
CALLS = {f"first-half-hour-{i}": call for i, call in enumerate(FIRST_HALF_HOUR, 1)}
PARTS = ("core", "choices-135m", "choices-1b")  # of stages that run whole where none is named
LEAST = 40.0  # seconds worth starting a stage for
SETS_UP = ("environment", "build")  # without these nothing else makes sense


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
    from benchmarks.gpu.campaign import RESTARTED, Campaign, Record, Restart

    campaign = Campaign(Path(args.out), args.device, args.seconds, args.model, args.text, args.curve, args.steps)
    record = Record(campaign.out / f"{name}.json", name, args.device, args.resume)
    try:
        stage_function(name, args.device)(campaign, record)
    except Restart as error:
        print(f"{name}: the GPU is lost to this process ({error}); going on in a new one", flush=True)
        os.environ[RESTARTED] = "1"
        os.execv(sys.executable, [sys.executable, *sys.argv, f"--seconds={campaign.left}", "--resume"])
    except BaseException as error:
        record.finish(f"failed: {type(error).__name__}: {str(error)[:1000]}")
        raise
    if record.data["status"] == "cut short":
        record.finish()
    return 0


def outside(args, name: str, seconds: float) -> bool:
    """Run one stage in a process of its own; True when it ended well."""
    from benchmarks.gpu.campaign import child

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
    status, text = child(command, args.device, seconds + 15)
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
        print("\n".join(f"{name}: {', '.join(f'{stage} ({limit} s)' for stage, limit in call.items())}" for name, call in CALLS.items()))
        return 0
    folder = Path(args.out)
    folder.mkdir(parents=True, exist_ok=True)
    if args.restore:
        restore(folder, args.restore)
    if args.inside:
        return inside(args, args.stages[0])
    failed, left_out, end = [], [], time.monotonic() + (args.total or float("inf"))
    able = lambda name: args.device == "cuda" or name not in ONLY_ON_A_GPU  # noqa: E731
    asked = [pair for name in args.stages for pair in (CALLS[name].items() if name in CALLS else [(name, args.seconds)])]
    limits = args.device == "cuda"  # a dry run shows that stages work, however slow the machine
    asked = [(name, limit if limits else args.seconds) for name, limit in asked if able(name) or name in args.stages]
    for name, limit in asked or [(name, args.seconds) for name in STAGES if able(name) and name not in PARTS]:
        seconds = min(args.seconds, limit, end - time.monotonic() - 20)
        if seconds < min(LEAST, limit) and name != "summary":
            left_out.append(name)
            continue
        if not outside(args, name, max(seconds, 15.0)):
            failed.append(name)
            if name in SETS_UP:
                break
        bundle(folder, args.bundle)
    if any(name in CALLS for name in args.stages):
        outside(args, "summary", 15.0)
        bundle(folder, args.bundle)
    if left_out:
        print(f"left out for want of time: {', '.join(left_out)}")
    if failed:
        print(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
