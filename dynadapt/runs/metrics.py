"""Reading what runs wrote: `dynadapt.read_run`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .append_only import read_metrics
from .kinds import headline, kind_of, what
from .rundir import RunError, check_finished, locked, read_json, unscored
from .whole_files import read_json_or

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, repr=False)
class Run:
    """One run as its files tell it, of any kind: `dynadapt.read_run(path)` makes it.

    path      the run's directory.
    config    what it computes (config.json): its settings, by name.
    summary   what it found (summary.json); None while it is unfinished.
    metrics   a dict a segment (eval), a step or evaluation (reweight), or a logging point (icl), in order; diagnoses have none.
    """

    path: Path
    config: dict
    summary: dict | None
    metrics: list[dict]

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def kind(self) -> str:
        """eval, reweight, icl, diagnose or advise."""
        return kind_of(self.config) or "unknown"

    @property
    def state(self) -> str:
        """finished, running (a process writes there), stopped, or failed (nothing was scored), at this moment."""
        if self.summary is not None:
            return "finished"
        return (
            "running" if locked(self.path) else "failed" if self.kind in ("eval", "reweight", "icl") and unscored(self.path) else "stopped"
        )

    def frame(self):
        """The metrics as a pandas DataFrame, a row a line: what is nested has dotted names (flops.forward, heldout.code), lists with a
        value a stream or place are columns NAME.0, NAME.1, ... (NAME where there is one); what a line lacks is None or NaN.
        ImportError without pandas."""
        return _pandas().DataFrame(self.columns())

    def columns(self) -> dict[str, list]:
        """The columns of `frame` as lists, without pandas."""
        from .columns import columns

        return columns(self.metrics)

    def scores(self) -> np.ndarray:
        """A structured array [N] of all scored tokens, in the order of scoring, as the run kept them with --scores: `document` (number),
        `position` (in its document, from 1), `nll` (nats), `token` (id), `start` and `stop` (bytes of the text that it covers).
        `pandas.DataFrame(run.scores())` is a table of it. RunError where the run kept none."""
        import numpy as np

        path = self.path / "scores.npy"
        if not path.exists():
            how = ": run it again with --scores" if self.kind == "eval" else f"; runs of {self.kind} keep none"
            raise RunError(f"{self.path} has no scores of single tokens (scores.npy){how}")
        try:
            return np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise RunError(f"{path}: not readable as an array ({error})") from None

    def inputs(self) -> dict:
        """What inputs.json keeps of what the numbers depend on: digests of texts, model, tokenizer, by name; {} of an older run."""
        return read_json_or(self.path / "inputs.json", {})

    def texts(self) -> list[str]:
        """The sha256 of each text's content, in the order given; the text's name where it is not known."""
        inputs = self.inputs()
        return [(inputs.get(f"text {spec!r}") or {}).get("sha256", spec) for spec in self.config.get("text") or ()]

    def result(self) -> tuple[str, float | None, str]:
        """(name, value, unit) of the number that this kind of run is about: ("NLL", 3.41, "nats/token"). None: not known yet."""
        last = self.metrics[-1] if self.metrics else {}
        means = [line["mean"] for line in self.metrics if "mean" in line]
        so_far = {"nll": last.get("total_nll"), "mean": means[-1] if means else None, "last": last}
        return headline(self.kind, self.summary if self.summary is not None else so_far)

    def __repr__(self) -> str:
        name, value, unit = self.result()
        found = f"{name} {value:.4f} {unit}" if value is not None else "no result yet"
        return f"Run({str(self.path)!r}: {self.kind}, {what(self.kind, self.config)}; {self.state}, {found}; {len(self.metrics)} lines of metrics)"

    def _repr_html_(self) -> str:
        from .notebook import html

        return html(self)


def _pandas():
    try:
        import pandas
    except ImportError:
        raise ImportError("a DataFrame needs pandas: pip install pandas (Run.metrics and Run.columns() need nothing)") from None
    return pandas


def read_run(path: str | Path) -> Run:
    """The run in a directory, of any kind, finished or not. RunError names what is no run, and a file that a finished run did not leave
    like this."""
    path = Path(path)
    if not path.is_dir():
        raise RunError(f"{path}: no such run directory")
    summary = read_json_or(path / "summary.json")
    if summary is not None:
        if not isinstance(summary, dict):
            raise RunError(f"{path / 'summary.json'} is damaged: it holds no object")
        check_finished(path, summary)
    config = read_json(path / "config.json")
    if kind_of(config) is None:
        raise RunError(f"{path} is no run: its config.json is not one that dynadapt writes")
    return Run(path, config, summary, read_metrics(path))
