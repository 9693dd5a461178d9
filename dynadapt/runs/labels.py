"""What tells runs of `dynadapt eval` apart in a picture or a table: words, colours, markers; and which of them scored the same."""

from __future__ import annotations

import json
from pathlib import Path

from .drawing import COLOURS, CYCLE
from .kinds import learns, remembers
from .metrics import Run
from .whole_files import RunError

MARKERS = {"window": "o", "overlap": "^", "memory": "s", "long window": "D"}
DASHES = {"window": "-", "overlap": ":", "memory": "--", "long window": "-."}
MANY = ["o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*"]  # of runs beyond the first ten, one for every ten
LINES = ["-", "--", ":", "-."]
MOST = len(CYCLE) * len(MANY)  # runs that a picture can tell apart


def describe(config: dict, varied: set[str]) -> str:
    """What learns and what remembers, then whatever else differs among the runs."""
    parts = [learns(config), *remembers(config)]
    said = {"adapt", "rank", "density", "memory", "context"}
    if config.get("adapt") == "none":
        said |= {"lr", "optimizer", "every", "accumulate", "decay", "clip", "reset", "targets", "layers", "alpha", "seed"}
    if not config.get("memory"):
        said |= {"sinks", "refresh"}
    for key in sorted(varied - said):
        value = config.get(key)
        if value is None or value is False:
            continue
        text = (
            "+".join(Path(str(v).removeprefix("builtin:")).stem for v in value)
            if key == "text"
            else f"{value:g}"
            if isinstance(value, float)
            else value
        )
        parts.append(key if value is True else f"{key} {text}")
    return ", ".join(parts)


def labels_of(runs: list[Run], titles: dict[str, str] | None = None) -> list[str]:
    """A label a run, no two the same."""
    if titles:
        return [titles.get(run.name, run.name) for run in runs]
    varied = {key for run in runs for key in {**runs[0].config, **run.config} if run.config.get(key) != runs[0].config.get(key)}
    rates = {}  # a rate that follows from what learns is not worth saying
    for run in runs:
        rates.setdefault((run.config.get("adapt"), run.config.get("optimizer")), set()).add(run.config.get("lr"))
    if all(len(values) == 1 for values in rates.values()):
        varied.discard("lr")
    found = [describe(run.config, varied) for run in runs]
    found = [label if found.count(label) == 1 else f"{label} ({run.name})" for label, run in zip(found, runs)]
    return [label if found.count(label) == 1 else f"{label} [{run.path}]" for label, run in zip(found, runs)]


def looks_of(runs: list[Run]) -> list[dict]:
    """Colour says what learns and marker what remembers, as long as that tells the runs apart; else each run has a pair of its own."""
    shortest = min((run.config["segment"] for run in runs), default=0)
    kinds = [(run.config["adapt"], "long window" if run.config["segment"] > shortest else _remembers(run.config)) for run in runs]
    if len(set(kinds)) == len(kinds) and all(adapt in COLOURS for adapt, _ in kinds):
        return [{"color": COLOURS[adapt], "marker": MARKERS[how], "linestyle": DASHES[how]} for adapt, how in kinds]
    tens = [i // len(CYCLE) for i in range(len(runs))]
    return [
        {"color": CYCLE[i % len(CYCLE)], "marker": MANY[ten % len(MANY)], "linestyle": LINES[ten % len(LINES)]}
        for i, ten in enumerate(tens)
    ]


def _remembers(config: dict) -> str:
    return "memory" if config.get("memory") else "overlap" if config.get("context") else "window"


def scored_the_same(run: Run) -> str:
    """Equal for two runs whose NLLs are of the same tokens, by the same model before it learned: texts by their contents where those are
    known, else by name."""
    try:
        inputs, texts = run.inputs(), run.texts()
    except RunError:
        inputs, texts = {}, list(run.config.get("text") or ())
    config = run.config
    parts = config.get("streams") if config.get("split") else 1
    return json.dumps(
        [texts, config.get("tokens"), config.get("field"), parts, inputs.get("the model", config.get("model")), inputs.get("the tokenizer")]
    )


def plain_static(runs: list[Run]) -> Run | None:
    """The static run without memory that has the shortest segments."""
    statics = [run for run in runs if run.config["adapt"] == "none" and not run.config.get("memory") and not run.config.get("context")]
    return min(statics, key=lambda run: run.config["segment"], default=None)
