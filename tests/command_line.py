"""The command line as tests run it."""

import pytest

from dynadapt.cli import main

# What a run's progress is told of a segment.
EVENT = {"segment": 0, "total_tokens": 100, "tokens": 100, "total_seconds": 0.5, "seconds": 0.5, "fraction": 0.25} | {
    "gain": None,
    "total_nll": 3.0,
    "nll": 3.0,
}


def call(*words) -> int:
    """The exit status of `dynadapt words...`, run in this process."""
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    return end.value.code or 0


def words_of(command: str, model, text, out, *more, segment=16, rank=2, backend="reference", dtype="fp32") -> list:
    """A command line with sizes for a tiny model."""
    given = {"model": model, "text": text, "segment": segment, "rank": rank, "backend": backend, "dtype": dtype, "out": out}
    return [command, *(word for name, value in given.items() for word in (f"--{name}", value)), *more]
