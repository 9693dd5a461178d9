"""In-context learning: what models trained on one function class, or on a mixture, do inside it and outside.

    python benchmarks/icl.py --out runs/icl          # goes on where it was stopped; results.json, results.md and a picture
    python benchmarks/icl.py --out runs/icl-longer --scale longer --together 12   # twice the steps, twelve runs beside each other on a GPU
    python benchmarks/icl.py --out runs/icl --seeds 1 --minutes 20   # a part of it
    python benchmarks/icl.py --out runs/icl --evaluate               # no training: what the finished seeds say
    python benchmarks/icl.py --out runs/icl-garg --scale garg --device cuda --dtype bf16 --minutes 9

Trains six models a seed on classes of unit variance, and those of linear functions also on classes in their own scales; measures
them on 2,560 prompts of each test, and judges four claims by the rules of icl_rules.py: that a mixture does as well as the right
specialist, tracks the best baseline, predicts in between where it was trained on neither class, and fails outside.
"""

from __future__ import annotations

import json
import math
import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a source tree needs no installation

from benchmarks import script  # noqa: E402
from benchmarks.icl_measure import KEPT, PROMPTS, measure_linear, measure_number, moved  # noqa: E402
from benchmarks.icl_page import markdown, picture  # noqa: E402
from benchmarks.icl_rules import LINEAR, NUMBER, SEEDS, verdicts_of  # noqa: E402
from dynadapt.experiments.icl.config import TrainConfig  # noqa: E402
from dynadapt.experiments.icl.presets import from_preset  # noqa: E402
from dynadapt.experiments.icl.progress import progress_for  # noqa: E402
from dynadapt.experiments.icl.train import TrainOptions, train_together  # noqa: E402
from dynadapt.runs.append_only import read_metrics  # noqa: E402
from dynadapt.runs.whole_files import read_json, read_json_or, write_json  # noqa: E402

WAVES = "sinusoid:amplitude=[0.5;2],frequency=[2;2]"
FAMILIES = ("linear", "number", "own")
OWN = "own-"  # before the names of runs whose classes keep their own scales

# Without the curriculum three specialists of six stayed where nothing is learned (docs/icl-claims.md).
SMALL = TrainConfig(
    dims=3, points=8, layers=4, hidden=64, heads=2, positions=20, batch=64, steps=25_000, lr=2e-3, schedule="cosine", warmup=1000, clip=1.0,
    dims_start=1, dims_every=1000,
)  # fmt: skip
TINY = TrainConfig(dims=3, points=4, layers=1, hidden=16, heads=2, positions=7, batch=4, steps=10, log=2, lr=1e-3)
# a specialist's settings, non-zeros of the sparse class, and what is different for functions of one number (share: of the steps);
# longer is for a class that was not learned in small's steps, tiny for dry runs
ONE = {"share": 0.6, "points": 6, "layers": 3}
SCALES = {
    "small": (SMALL, 1, ONE),
    "longer": (replace(SMALL, steps=50_000), 1, ONE),
    "garg": (from_preset("garg-standard", steps=200_000), 2, {}),
    "tiny": (TINY, 1, {}),
}


def runs_of(
    scale: str, seeds: int = SEEDS, steps: int | None = None, device: str = "auto", dtype: str | None = None, own: bool = True
) -> dict[str, TrainConfig]:
    """The training runs of a scale by name, seed by seed, those in their own scales last. Those of a family differ in their classes,
    and a mixture takes twice the steps, so that it sees as many prompts of each class as the others.

    steps: of a specialist. own: also the linear ones in their own scales, but for what is the same in both: one non-zero weight has
    unit variance as it is.

    Raises:
        SystemExit: steps of which no fifth can be kept.
    """
    base, nonzeros, one = SCALES[scale]
    one, steps = dict(one), steps or base.steps
    few = round(steps * one.pop("share", 1.0))
    if steps % (KEPT * base.log) or few % (KEPT * base.log):
        needed = KEPT * base.log * (5 if few < steps else 1)
        raise SystemExit(f"--steps {steps}: give a multiple of {needed:,}, so that the weights before every last fifth are kept")
    common = {"preset": f"icl-claims-{scale}", "device": device, "dtype": dtype or base.dtype, "unit_variance": True}
    base = replace(base, **common, steps=steps, warmup=min(base.warmup, steps))
    number = replace(base, dims=1, dims_start=0, dims_every=TrainConfig.dims_every, steps=few, warmup=min(base.warmup, few), **one)
    sparse = f"sparse-linear:{nonzeros}"
    linear = {"mixture": ("dense-linear", sparse), "dense": ("dense-linear",), "sparse": (sparse,)}
    waves = {"waves": ("dense-linear", WAVES), "line": ("dense-linear",), "wave": (WAVES,)}
    raw = replace(base, unit_variance=False)
    arms = [[*((name, base, classes) for name, classes in linear.items()), *((name, number, classes) for name, classes in waves.items())]]
    if own:
        arms.append([(OWN + name, raw, classes) for name, classes in linear.items() if name != "sparse" or nonzeros > 1])
    found = {}
    for seed, arm in ((seed, arm) for arm in arms for seed in range(seeds)):
        for name, settings, classes in arm:
            longer = {"steps": settings.steps * len(classes), "warmup": settings.warmup * len(classes)}
            found[f"seed{seed}/{name}"] = replace(settings, classes=classes, seed=seed, **longer)
    return found


def train_all(configs: dict[str, TrainConfig], out: Path, minutes: float | None = None, together: int = 1) -> dict[str, dict]:
    """The summaries of these runs, trained now or before, so many beside each other. Interrupted when the time is over; the same call
    goes on from there."""
    end, summaries = math.inf if minutes is None else time.monotonic() + 60 * minutes, {}
    names = list(configs)
    for group in [names] if together > 1 else [[name] for name in names]:
        left = None if minutes is None else max(0.0, (end - time.monotonic()) / 60)
        runs = {}
        for name in group:
            config = configs[name]
            print(f"{name}: {', '.join(config.classes)}", flush=True)
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            options = TrainOptions(resume=True, checkpoint=max(1, config.steps // 10), keep=config.steps // KEPT, minutes=left)
            runs[name] = config, out / name, options
        steps = {name: configs[name].steps for name in group}
        if together > 1:
            shown = progress_for(steps, every=30.0, done={name: steps_of(out / name) for name in group})
        else:
            shown = progress_for(steps[group[0]], every=30.0)
        with shown as progress:
            summaries |= train_together(runs, lambda name, line: progress({**line, "run": name}), together)  # noqa: B023
    return summaries


def steps_of(run: Path) -> int:
    """That a begun run has logged."""
    lines = read_metrics(run) if (run / "metrics.jsonl").exists() else []
    return lines[-1]["step"] if lines else 0


def check_begun(configs: dict[str, TrainConfig], out: Path) -> None:
    """SystemExit where a run that is there was begun with other settings, but for where and in which arithmetic it runs."""
    for name, config in configs.items():
        begun = read_json_or(out / name / "config.json", {})
        for setting, value in json.loads(json.dumps(config.to_dict())).items():
            if setting not in ("device", "dtype") and begun.get(setting, value) != value:
                raise SystemExit(
                    f"{out / name} was begun with {setting} {begun[setting]!r}, not {value!r}: give the --scale and --steps of it"
                )


def measured(configs: dict[str, TrainConfig], out: Path, prompts: int = PROMPTS) -> dict[str, list[dict]]:
    """{"linear", "number", "own": what each finished seed's models do}; measured once and kept beside the seed's runs."""
    found: dict[str, list[dict]] = {family: [] for family in FAMILIES}
    for seed in sorted({config.seed for config in configs.values()}):
        families = {"linear": (LINEAR.models, measure_linear), "number": (NUMBER.models, measure_number)}
        if f"seed{seed}/{OWN}mixture" in configs:
            families["own"] = ([OWN + name if f"seed{seed}/{OWN}{name}" in configs else name for name in LINEAR.models], measure_linear)
        for family, (names, measure) in families.items():
            runs = {name: f"seed{seed}/{name}" for name in names}
            if not all((out / run / "summary.json").exists() for run in runs.values()):
                continue
            kept = out / f"seed{seed}" / f"{family}-{prompts}.json"
            if not kept.exists():
                print(f"measuring seed {seed}, {family}", flush=True)
                plain = {name.removeprefix(OWN): run for name, run in runs.items()}
                arguments = ({n: configs[run] for n, run in plain.items()}, {n: out / run for n, run in plain.items()})
                write_json(kept, measure(*arguments, prompts))
            found[family].append(read_json(kept))
    return found


def results_of(configs: dict[str, TrainConfig], out: Path, prompts: int = PROMPTS) -> dict:
    """Measures and verdicts of the finished seeds; in "own scales" the verdicts of the linear family there."""
    found = measured(configs, out, prompts)
    runs = {name: described(config, out / name) for name, config in configs.items() if (out / name / "summary.json").exists()}
    first = {name: read_json_or(out / name / "config.json", configs[name].to_dict()) for name in ("seed0/mixture", "seed0/waves")}
    return {
        "configs": first,
        "prompts": prompts,
        "runs": runs,
        **verdicts_of({"configs": first, **found}),
        "posterior moved by noise": moved(found["linear"] + found["own"]),
        **found,
    }


def described(config: TrainConfig, run: Path) -> dict:
    summary = read_json(run / "summary.json")
    kept = {key: summary[key] for key in ("parameters", "seconds", "dtype", "device")}
    made = {"classes": list(config.classes), "unit_variance": config.unit_variance, "steps": summary["steps"], "seed": config.seed}
    return {**made, **kept, "machines": machines_of(read_json_or(run / "env.json", {}))}


def machines_of(env: dict) -> list[dict]:
    """Where a run was made, in order; all but the last with the step until which it was there."""
    on_gpu = lambda part: part.get("gpu") and part.get("device") != "cpu"  # noqa: E731
    there = lambda part: part["gpu"] if on_gpu(part) else f"{part.get('cpu')}, {part.get('native', {}).get('isa')}"  # noqa: E731
    earlier = [{"on": there(part), "until": part["until"]} for part in env.get("earlier", [])]
    return [*earlier, {"on": there(env)}] if env else []


def write_results(out: Path, results: dict) -> None:
    script.write_results(out, results, markdown(results))
    if results["linear"] and results["number"]:
        picture(results).savefig(out / "claims.png", dpi=100)


def main() -> None:
    parser = script.parser_of(__doc__, "runs/icl")
    parser.add_argument(
        "--scale",
        choices=list(SCALES),
        default="small",
        help="small: 3 dimensions, an hour or two on a CPU; longer: the same with twice the steps; garg: 20 dimensions, 200,000 steps; tiny: a dry run",
    )
    parser.add_argument("--seeds", type=int, default=SEEDS, help="(default: %(default)s, the fewest that give a verdict)")
    parser.add_argument("--steps", type=int, help="of a specialist (default: those of the scale)")
    parser.add_argument("--prompts", type=int, default=PROMPTS, help="of every test (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="cpu, cuda or cuda:N (default: a GPU where there is one)")
    parser.add_argument("--dtype", choices=("bf16", "fp32"), help="(default: that of the scale)")
    parser.add_argument(
        "--together",
        type=int,
        default=1,
        help="runs trained beside each other, for a GPU, of which one such model needs a small part (default: %(default)s)",
    )
    parser.add_argument("--evaluate", action="store_true", help="train no more: measure and judge the seeds that are finished")
    parser.add_argument("--minutes", type=float, help="stop after so many minutes of training, with a checkpoint")
    arguments = parser.parse_args()
    if arguments.seeds < 1 or arguments.prompts < 2 or arguments.prompts % 2:
        parser.error(f"--seeds {arguments.seeds}, --prompts {arguments.prompts}: give at least 1, and an even number")
    script.refuse_below(parser, arguments, 1, "steps", "together")
    script.refuse_below(parser, arguments, 0, "minutes")
    configs = runs_of(arguments.scale, arguments.seeds, arguments.steps, arguments.device, arguments.dtype)
    with script.going_on(arguments.out):
        check_begun(configs, arguments.out)
        if not arguments.evaluate:
            train_all(configs, arguments.out, arguments.minutes, arguments.together)
        results = results_of(configs, arguments.out, arguments.prompts)
    if not any(results[family] for family in FAMILIES):
        raise SystemExit(f"{arguments.out}: no seed is finished yet")
    write_results(arguments.out, results)
    print(markdown(results))


if __name__ == "__main__":
    main()
