"""What differs between two runs: settings, inputs, environment, results."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from .metrics import Run, read_run
from .whole_files import finite_number, read_json_or

ABSENT = "-"
# Of a summary, what is compared first; the rest follows in the order of the first run.
FIRST = """
nll bits_per_byte perplexity mean change tokens bytes seconds tokens_per_second flops_per_token peak_memory_bytes
""".split()
LEFT_OUT = """
files documents last top_types against classes types places concentration errors above_least_squares
""".split()


def differences(one: str | Path, other: str | Path) -> dict:
    """Everything that differs, ready for JSON: "settings", "inputs" and "environment" as {name: [of one, of other]} (None: not there), and
    "results" as {name: [of one, of other, difference or None]} of the numbers that both summaries have; "notes" say what a reader has to
    know before he takes a difference of results for one of settings. RunError for what is no run, or a damaged one."""
    runs = [read_run(path) for path in (one, other)]
    settings, inputs, environment = (_differing(*(part(run) for run in runs)) for part in (_settings, _inputs, _environment))
    results = _results(*(run.summary or {} for run in runs))
    return {
        "runs": [{"path": str(run.path), "name": run.name, "kind": run.kind, "state": run.state} for run in runs],
        "settings": settings,
        "inputs": inputs,
        "environment": environment,
        "results": results,
        "notes": _notes(runs, inputs),
    }


def flat(content, prefix: str = "") -> dict:
    """{"flops.forward": 1} of {"flops": {"forward": 1}}; lists stay."""
    found = {}
    for key, value in content.items():
        name = f"{prefix}{key}"
        found.update(flat(value, f"{name}.") if isinstance(value, Mapping) and value else {name: value})
    return found


def _settings(run: Run) -> dict:
    return flat(run.config)


def _environment(run: Run) -> dict:
    return flat(read_json_or(run.path / "env.json", {}))


def _inputs(run: Run) -> dict:
    """The digests of what the numbers depend on, whole; a text under its name."""
    return {
        name: value.get("sha256") if isinstance(value, dict) and "sha256" in value else value
        for name, value in run.inputs().items()
        if name != "scores"
    }


def _differing(mine: dict, theirs: dict) -> dict:
    return {name: [mine.get(name), theirs.get(name)] for name in {**mine, **theirs} if mine.get(name) != theirs.get(name)}


def _results(mine: dict, theirs: dict) -> dict:
    mine, theirs = (
        {
            name: value
            for name, value in flat({k: v for k, v in summary.items() if k not in LEFT_OUT}).items()
            if finite_number(value) is not None
        }
        for summary in (mine, theirs)
    )
    names = [name for name in mine if name in theirs]
    names.sort(key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))
    return {name: [mine[name], theirs[name], theirs[name] - mine[name]] for name in names}


def _notes(runs: list[Run], inputs: dict) -> list[str]:
    said, kinds = [], [run.kind for run in runs]
    if kinds[0] != kinds[1]:
        said.append(f"one is a run of {kinds[0]}, the other of {kinds[1]}: their results are not of one kind")
    said += [f"{run.path} is not finished ({run.state}): it has no results yet" for run in runs if run.summary is None]
    changed = [name for name, (a, b) in inputs.items() if None not in (a, b)]
    if "the tokenizer" in changed:
        said.append("their tokenizers differ: nats per token are of other tokens, bits per byte can be compared")
    texts = [name for name in changed if name.startswith(("text ", "the text of "))]
    if texts:
        said.append(f"{texts[0]} has other contents: losses are of other texts")
    if kinds == ["eval", "eval"] and _texts(runs[0]) != _texts(runs[1]) and not texts:
        said.append("they scored other texts, or other parts of them: losses are not of the same tokens")
    if len(said) == 0 and kinds == ["eval", "eval"] and all((run.path / "scores.npy").exists() for run in runs):
        said.append(f"where in the text they differ: dynadapt compare {runs[0].path} {runs[1].path}")
    return said


def _texts(run: Run):
    """What says which tokens were scored."""
    config = run.config
    return run.texts(), config.get("tokens"), config.get("split"), config.get("streams") if config.get("split") else 1


# ---- to be read


def print_differences(found: dict, console) -> None:
    from rich.table import Table
    from rich.text import Text

    from .listing import printable

    names = [run["name"] for run in found["runs"]]
    if names[0] == names[1]:
        names = [run["path"] for run in found["runs"]]
    for run in found["runs"]:
        console.print(Text(printable(f"{run['path']}: {run['kind']}, {run['state']}")), soft_wrap=True)
    for title in ("settings", "inputs", "environment"):
        if not found[title]:
            console.print(Text(f"\n{title}: the same"))
            continue
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in (title, *names):
            table.add_column(Text(printable(column)), overflow="fold")
        for name, pair in found[title].items():
            table.add_row(*(Text(printable(text)) for text in (name, *(_shown(title, value) for value in pair))))
        console.print()
        console.print(table)
    if found["results"]:
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("results", overflow="fold")
        for column in (*names, "second less first"):
            table.add_column(Text(printable(column)), justify="right", overflow="fold")
        for name, values in found["results"].items():
            if values[2]:
                table.add_row(Text(name), *(f"{value:,.6g}" for value in values[:2]), f"{values[2]:+,.4g}")
        console.print()
        console.print(table if table.row_count else Text("results: the same"))
    for text in found["notes"]:
        console.print(Text(printable(f"note: {text}")), soft_wrap=True)


def _shown(title: str, value) -> str:
    if value is None:
        return ABSENT
    if title == "inputs" and isinstance(value, str) and len(value) == 64:
        return value[:12]  # of a sha256; --json has all of it
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
