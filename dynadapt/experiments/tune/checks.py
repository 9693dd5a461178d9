"""Arguments that can be refused before anything is loaded."""

from __future__ import annotations

from pathlib import Path

from dynadapt.experiments.config import ConfigError
from dynadapt.runs.whole_files import RunError


def check_minutes(minutes: float) -> None:
    if isinstance(minutes, bool) or not isinstance(minutes, (int, float)) or not 0 < minutes < float("inf"):
        raise ConfigError(f"minutes {minutes!r}: give a number above 0")


def free_directory(out: str | Path | None) -> Path | None:
    """`out`, if it can be written. Raises RunError."""
    if out is None:
        return None
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(
            f"{out} holds a recommendation; choose another --out"
            if (out / "recommendation.json").exists()
            else f"{out} is there and not empty; name a directory that does not exist"
        )
    return out
