"""`dynadapt icl eval` and `dynadapt icl figures`: their options, and what they print."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from dynadapt.common.environment import environment
from dynadapt.runs.append_only import read_metrics
from dynadapt.runs.checkpoints import saved_states
from dynadapt.runs.progress import say
from dynadapt.runs.rundir import RunError, write_json

from .by_name import make_function_class
from .checks import IclError
from .config import parse_spec, trained_on
from .defaults import BATCH, PROMPTS, WEIGHTS
from .function_class import FunctionClass

if TYPE_CHECKING:
    from .study import Settings, Subject

EVAL_EXAMPLES = """\
examples:
  dynadapt icl eval runs/dense
      error by number of examples on the run's own classes, beside every baseline that applies: runs/dense/eval.json
  dynadapt icl eval runs/dense --ood all
      also Garg et al.'s tests: scaled, skewed, half-subspace, quadrants, orthogonal, noisy
  dynadapt icl eval runs/dense runs/sparse runs/both --nonzeros all --out runs/selection.json
      model selection: specialists and a mixture on the same prompts, error against the number of non-zeros
  dynadapt icl eval runs/waves --combine dense-linear sinusoid:amplitude=[0.5;2],frequency=[2;2]
      convex combinations of two classes, with predictions along a line
  dynadapt icl figures runs/selection.json --out figures

A class is a name with settings (dense-linear, sparse-linear:2, noisy-linear:noise=0.5,pool=64). Errors are squared errors divided
by the class's variance, so that predicting zero has error 1; bands hold 90% of 1,000 bootstrap means over prompts. All runs see
the same prompts, and the same command writes the same numbers."""


def add_eval_options(command) -> None:
    command.add_argument("run", nargs="+", metavar="RUN", help="directories of training runs, all of the same dimensions")
    command.add_argument(
        "--on", nargs="+", default=[], metavar="CLASS", help="function classes (default: those that the runs were trained on)"
    )
    command.add_argument("--ood", nargs="+", default=[], metavar="NAME", help="tests outside the training distribution, by name, or all")
    command.add_argument(
        "--nonzeros", nargs="+", default=[], metavar="N", help="sparse linear functions with N non-zeros, or all: 1 to the dimensions"
    )
    command.add_argument("--combine", nargs=2, action="append", default=[], metavar="CLASS", help="convex combinations of two classes")
    command.add_argument(
        "--weights",
        nargs="+",
        type=float,
        default=list(WEIGHTS),
        metavar="X",
        help=f"with --combine: weights of the first class (default: {' '.join(f'{w:g}' for w in WEIGHTS)})",
    )
    command.add_argument("--gradient", action="store_true", help="also how well the prediction's gradient in the query points along w")
    command.add_argument("--baselines", nargs="*", metavar="NAME", help="only these baselines (default: all that apply)")
    command.add_argument("--step", type=int, metavar="N", help="the checkpoint of this training step (default: the last)")
    command.add_argument(
        "--device", default="auto", metavar="NAME", help="where the models run: cpu, cuda or cuda:N; auto takes the GPU where there is one"
    )
    command.add_argument("--prompts", type=int, default=PROMPTS, metavar="N", help=f"prompts of each test (default: {PROMPTS:,})")
    command.add_argument("--points", type=int, metavar="N", help="points of a prompt (default: what the runs were trained on)")
    command.add_argument("--batch", type=int, default=BATCH, metavar="N", help=f"prompts drawn at a time (default: {BATCH})")
    command.add_argument("--seed", type=int, default=0, metavar="N", help="of prompts and bands (default: 0)")
    command.add_argument(
        "--out", metavar="FILE", help="results file (default: RUN/eval.json; of several runs eval.json in their common directory)"
    )


def add_figures_options(command) -> None:
    command.add_argument(
        "results", nargs="+", type=Path, metavar="RESULTS", help="files of `dynadapt icl eval`, or run directories that hold eval.json"
    )
    command.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="where the pictures go; of several files, a directory each in it"
    )


def run_eval(arguments) -> int:
    out = Path(arguments.out) if arguments.out else default_out(arguments.run)
    if out.is_dir():
        raise RunError(f"{out} is a directory; --out names a file, such as {out / 'eval.json'}")
    first, *others = [trained_on(path) for path in arguments.run]
    wanted = asked(arguments, first.dims)
    say(f"loading {', '.join(arguments.run)}")
    from .study import Settings

    settings = Settings(
        prompts=arguments.prompts,
        batch=arguments.batch,
        points=arguments.points,
        seed=arguments.seed,
        baselines=None if arguments.baselines is None else tuple(arguments.baselines),
    )
    subjects = [load_subject(path, arguments.step, arguments.device) for path in arguments.run]
    for subject in subjects:
        if subject.about["step"] < subject.about["steps"]:
            print(f"{subject.name}: weights of step {subject.about['step']:,} of {subject.about['steps']:,}")
    announce = lambda text: print(f"  {text}", flush=True)  # noqa: E731
    results = evaluate(subjects, settings, announce=announce, **wanted)

    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, results)
    from dynadapt.runs.console import print_whole, table_console

    console = table_console(soft_wrap=True)
    for section in ("classes", "ood"):
        if results.get(section):
            print_whole(console, table_of(results[section], list(results["subjects"])))
    print(f"written to {out}; draw it with: dynadapt icl figures {out} --out {out.parent / 'figures'}")
    return 0


def run_figures(arguments) -> int:
    from .figures import draw_figures

    for path in draw_figures(arguments.results, arguments.out):
        print(path)
    return 0


def default_out(runs: list[str]) -> Path:
    if len(runs) == 1:
        return Path(runs[0]) / "eval.json"
    return Path(os.path.commonpath([Path(run).resolve().parent for run in runs])) / "eval.json"


def asked(arguments, dims: int) -> dict:
    """What the options ask to be evaluated, checked before anything is computed."""
    return {
        "on": [class_of(text, dims) for text in arguments.on] or None,
        "ood": _all_or(arguments.ood, "--ood"),
        "nonzeros": _counts(_all_or(arguments.nonzeros, "--nonzeros"), dims),
        "pairs": [tuple(class_of(text, dims) for text in pair) for pair in arguments.combine],
        "weights": arguments.weights,
        "gradient": arguments.gradient,
    }


def _all_or(values: list[str], option: str):
    """None: not asked for; []: all; else the values."""
    if "all" in values:
        if len(values) > 1:
            raise IclError(f"{option} {' '.join(values)}: give all, or names")
        return []
    return values or None


def _counts(values: list[str] | None, dims: int) -> list[int] | None:
    if not values:
        return values
    for value in values:
        if not value.isdigit() or not 1 <= int(value) <= dims:
            raise IclError(f"--nonzeros {value}: give whole numbers from 1 to {dims}, the dimensions of the runs, or all")
    return sorted({int(value) for value in values})


def class_of(text: str, dims: int) -> FunctionClass:
    name, settings = parse_spec("class", text)
    return make_function_class(name, dims, **settings)


def evaluate(
    subjects: list[Subject],
    settings: Settings | None = None,
    *,
    on=None,
    ood=None,
    nonzeros=None,
    pairs=(),
    weights=WEIGHTS,
    gradient: bool = False,
    announce=lambda text: None,
) -> dict:
    """The results file's content. on: classes (None: the trained ones). ood, nonzeros: names and numbers, [] for all, None for
    none. pairs: two classes each, combined with these weights."""
    from .applicable_baselines import TITLES
    from .study import Settings, Study

    settings = settings or Settings()
    for name in settings.baselines or ():
        if name not in TITLES:
            raise IclError(f"baseline {name!r}: give any of {', '.join(TITLES)}")
    study = Study(subjects, settings, announce)
    results = {**study.header(), "environment": environment(), "classes": study.classes(on)}
    if ood is not None:
        results["ood"] = study.out_of_distribution(ood or None)
    if nonzeros is not None:
        results["nonzeros"] = study.by_nonzeros(nonzeros or None)
    if pairs:
        results["combinations"] = [study.combination(first, second, weights) for first, second in pairs]
    if gradient:
        results["gradient"] = study.gradient()
    return results


def load_subject(path: str | Path, step: int | None = None, device: str = "auto") -> Subject:
    """A training run, ready to be asked."""
    from .study import Subject
    from .train import load_run

    path = Path(path)
    regressor = load_run(path, step, device=device)
    config = trained_on(path)
    about = {key: getattr(config, key) for key in ("preset", "layers", "hidden", "heads", "batch", "steps", "lr", "seed")}
    about |= {"parameters": regressor.parameters, "step": last_step(path) if step is None else step}
    about["training"] = training_curve(read_metrics(path)) if (path / "metrics.jsonl").exists() else None
    return Subject(path.resolve().name, regressor.predict, config.dims, config.points, config.kind(), config.distribution(), about)


def last_step(run: Path) -> int:
    """Of the last checkpoint, or of the last weights that were kept."""
    kept = [*saved_states(run), *(run / "weights").glob("*.safetensors")]
    return max(int(entry.stem.partition("-")[0]) for entry in kept)


def table_of(entries: dict[str, dict], subjects: list[str]):
    """Each case: every predictor's error after a few numbers of examples, and its mean over the prompt."""
    from rich.table import Table

    from .applicable_baselines import TITLES

    points = max(entry["points"] for entry in entries.values())
    chosen = sorted({0, *(round(share * (points - 1)) for share in (0.1, 0.25, 0.5, 0.75, 1))})
    table = Table(box=None, pad_edge=False, title="squared error, normalised, after k examples", title_justify="left")
    table.add_column("")
    for k in chosen:
        table.add_column(f"k={k}", justify="right")
    table.add_column("mean", justify="right")
    for case, entry in entries.items():
        table.add_row(f"[bold]{case}")
        for name, curve in entry["curves"].items():
            cells = [f"{curve['mean'][k]:.3f}" if k < entry["points"] else "-" for k in chosen]
            title, style = (name, "bold cyan") if name in subjects else (TITLES[name], None)
            table.add_row(f"  {title}", *cells, f"{curve['overall']['mean']:.3f}", style=style)
    return table


def training_curve(lines: list[dict], most: int = 400) -> dict | None:
    """Loss by step of a run's metrics, thinned to `most` points; None without any."""
    taken = lines[:: max(1, -(-len(lines) // most))]
    return {"step": [line["step"] for line in taken], "loss": [line["loss"] for line in taken]} if taken else None
