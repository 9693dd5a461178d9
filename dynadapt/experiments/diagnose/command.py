"""The command line's part: options to a configuration, a directory, progress, and what is printed."""

from __future__ import annotations

import sys
from pathlib import Path

from dynadapt.experiments.config import ConfigError, EvalConfig
from dynadapt.experiments.diagnose.config import DiagnoseConfig
from dynadapt.experiments.dyneval import Interrupted
from dynadapt.progress import progress_for


def diagnose(arguments, config: EvalConfig) -> int:
    out = Path(arguments.out) if arguments.out else _free_directory(arguments, config)
    progress = _Progress()
    try:
        if arguments.advise:
            return _advise(arguments, config, out, progress)
        return _diagnose(arguments, config, out, progress)
    except Interrupted as stopped:
        print(f"dynadapt: {stopped}; go on with the same command and --out {out} --resume", file=sys.stderr)
        return 130
    finally:
        progress.close()


def _diagnose(arguments, config: EvalConfig, out: Path, progress) -> int:
    from dynadapt.experiments.diagnose.driver import run_diagnosis
    from dynadapt.experiments.diagnose.report import print_diagnosis
    chosen = DiagnoseConfig(config, arguments.after, tuple(arguments.learn), arguments.learn_tokens, tuple(arguments.reference),
                            arguments.control, arguments.embeddings)
    summary = run_diagnosis(chosen, out, arguments.resume, progress)
    progress.close()
    print_diagnosis(summary, out)
    return 0


def _advise(arguments, config: EvalConfig, out: Path, progress) -> int:
    from dynadapt.experiments.diagnose.advise import advise, print_advice
    for name in ("after", "learn", "text"):
        if getattr(arguments, name):
            raise ConfigError(f"{name} {getattr(arguments, name)!r}: not with --advise, which reads its own texts only")
    summary = advise(config, tuple(arguments.advise), tuple(arguments.reference), arguments.windows, out, arguments.embeddings,
                     announce=progress)
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
        self.shown = progress_for()
        return self.shown.__enter__()

    def close(self) -> None:
        if self.shown is not None:
            self.shown.__exit__(None, None, None)
            self.shown = None
