"""`dynadapt diagnose`: two models on held-out text, or whether adapting is likely to help."""

from __future__ import annotations

import sys
from pathlib import Path

from dynadapt.common.errors import ConfigError
from dynadapt.common.notes import note
from dynadapt.common.options import add_settings, given
from dynadapt.experiments.config import EvalConfig
from dynadapt.experiments.diagnose.config import SCORING, WINDOWS, DiagnoseConfig
from dynadapt.runs.progress import say

from .early import check_files, check_model
from .parsing import at_least
from .settings import add_log_option, config_from, unmixed

EXAMPLES = """\
examples:
  dynadapt diagnose --model base --after tuned --text held-out/ --reference news.txt --out runs/tuned
      two models, or a model and a PEFT adapter of it, on every file of a directory
  dynadapt diagnose --learn train.txt --text held-out.txt --reference builtin:python-reference
      adapt now, with the options of `dynadapt eval`, and see what that does to text that was held out
  dynadapt diagnose --advise train.txt
      before spending the compute: does adapting to this text look worth it? (measured instead of predicted: dynadapt tune train.txt)

A text is what `dynadapt eval` takes: files, directories, .jsonl and .parquet files, each document by itself. --out gets summary.json,
types.csv (every token type) and page.html (verdict, plots and tables in one file)."""


def add_options(command) -> None:
    add_settings(command, EvalConfig, unmixed(), memory=0)
    add_settings(command, DiagnoseConfig)
    command.add_argument(
        "--advise",
        nargs="+",
        default=[],
        metavar="FILE",
        help="instead: probe whether adapting to these texts would help (measured instead of predicted: dynadapt tune)",
    )
    command.add_argument(
        "--windows",
        type=at_least(4),
        default=WINDOWS,
        metavar="N",
        help=f"with --advise: windows of --segment tokens that the probe reads (default: {WINDOWS})",
    )
    command.add_argument("--out", metavar="runs/NAME", help="directory of the diagnosis (default: runs/diagnose-MODEL-TEXT)")
    command.add_argument("--resume", action="store_true", help="go on with a diagnosis that was stopped; finished scorings are kept")
    add_log_option(command)


def run(arguments) -> int:
    config, compared = config_from(arguments, memory=0), given(DiagnoseConfig, arguments)
    for name in ("after", "learn", "text") if arguments.advise else ():
        if hasattr(arguments, name):
            raise ConfigError(f"{name} {getattr(arguments, name)!r}: not with --advise, which reads its own texts only")
    chosen = None if arguments.advise else DiagnoseConfig(config, **compared)
    check_files((*config.text, *compared.get("learn", ()), *compared.get("reference", ()), *arguments.advise))
    models = (config.model, *filter(None, [compared.get("after")]))
    for model in models:
        check_model(model)
    if chosen and chosen.after is not None:
        for name in (name for name in given(EvalConfig, arguments) if name not in SCORING):
            note(f"{name} {getattr(config, name)!r} has no effect with after {chosen.after!r}, since nothing is learned here")
    say(f"loading {' and '.join(models)}")
    from dynadapt.experiments.dyneval import Interrupted

    out = Path(arguments.out) if arguments.out else _free_directory(arguments, config)
    progress = _Progress()
    try:
        if arguments.advise:
            return _advise(arguments, config, compared, out, progress)
        return _diagnose(arguments, chosen, out, progress)
    except Interrupted as stopped:
        print(f"dynadapt: {stopped}; go on with the same command and --out {out} --resume", file=sys.stderr)
        return 130
    finally:
        progress.close(ended=False)


def _diagnose(arguments, chosen: DiagnoseConfig, out: Path, progress) -> int:
    from dynadapt.experiments.diagnose.driver import run_diagnosis
    from dynadapt.experiments.diagnose.report import print_diagnosis

    summary = run_diagnosis(chosen, out, arguments.resume, progress, log=arguments.logs)
    progress.close()
    print_diagnosis(summary, out)
    return 0


def _advise(arguments, config: EvalConfig, compared: dict, out: Path, progress) -> int:
    from dynadapt.experiments.diagnose.advise import advise, print_advice
    from dynadapt.experiments.diagnose.verdict import MARGIN

    summary = advise(
        config,
        tuple(arguments.advise),
        tuple(compared.get("reference", ())),
        arguments.windows,
        out,
        compared.get("embeddings"),
        announce=progress,
        log=arguments.logs,
        margin=compared.get("margin", MARGIN),
    )
    progress.close()
    print_advice(summary, out)
    return 0


def _free_directory(arguments, config: EvalConfig) -> Path:
    """runs/diagnose-MODEL-TEXT, or the first free number behind it; with --resume the last one there is."""
    texts = arguments.advise or list(config.text) or ["nothing"]
    kind = "advise" if arguments.advise else "diagnose"
    name = "-".join([kind, Path(config.model).stem, Path(texts[0].removeprefix("builtin:")).stem])
    candidates = [Path("runs") / (name if i == 1 else f"{name}-{i}") for i in range(1, 1000)]
    there = [path for path in candidates if path.exists()]
    if arguments.resume and there:
        return there[-1]
    return next(path for path in candidates if not path.exists())


class _Progress:
    """Called with a title before each run; gives the run's own progress display."""

    def __init__(self):
        self.shown = None

    def __call__(self, title: str):
        self.close()
        print(title, flush=True)
        from dynadapt.runs.progress import progress_for

        self.shown = progress_for()
        return self.shown.__enter__()

    def close(self, ended: bool = True) -> None:
        """Where a run did not come to its end, its last line says how far it came."""
        if self.shown is not None:
            self.shown.__exit__(*((None,) if ended else (RuntimeError,)), None, None)
            self.shown = None
