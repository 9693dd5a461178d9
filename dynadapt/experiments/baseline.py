"""The static run that a run's gain is counted against."""

from __future__ import annotations

from pathlib import Path

from dynadapt.runs.rundir import RunError, read_json

from .config import EvalConfig


def find_baseline(path: Path | None, config: EvalConfig) -> dict[int, float]:
    """Tokens scored -> mean NLL so far, of a static run on the same text in the same parent directory; {} if there is none."""
    if path is None or config.adapt == "none" or not path.parent.is_dir():
        return {}
    from dynadapt.runs.append_only import read_metrics
    from dynadapt.runs.kinds import kind_of

    keys = ("model", "text", "field", "tokens", "streams", "split", "segment", "memory", "sinks", "context", "bos")
    mine = config.to_dict()
    for other in sorted(path.parent.iterdir()):
        if other == path or not (other / "config.json").is_file():
            continue
        try:
            theirs = read_json(other / "config.json")
        except RunError:
            continue
        if kind_of(theirs) == "eval" and theirs.get("adapt") == "none" and all(theirs.get(key) == mine.get(key) for key in keys):
            try:
                return {line["total_tokens"]: line["total_nll"] for line in read_metrics(other)}
            except RunError:  # another run's files: it says so itself
                continue
    return {}
