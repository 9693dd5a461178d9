"""What the scripts of this folder share: their arguments, the corpus they read, how they stop, and what they write."""

from __future__ import annotations

import argparse
import math
from contextlib import contextmanager
from pathlib import Path

from dynadapt.common.environment import environment
from dynadapt.experiments.corpus_read import check_corpus
from dynadapt.experiments.dyneval import Interrupted
from dynadapt.runs.rundir import read_json, write_json

# Domains of a corpus that are of authors and projects whose texts served to choose defaults (docs/defaults.md).
TUNED = ("novels", "python-docs", "python-code")


def parser_of(doc: str, out: str) -> argparse.ArgumentParser:
    """With the script's text as its help, and --out."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(out), help="directory of what is written (default: %(default)s)")
    return parser


def corpus_parser_of(doc: str, out: str) -> argparse.ArgumentParser:
    """The same with a corpus and the model that reads it."""
    parser = parser_of(doc, out)
    parser.add_argument("corpus", type=Path, help="what `dynadapt corpus build` made")
    parser.add_argument("--model", default="smollm2-135m", help="(default: %(default)s)")
    return parser


def domains_of(corpus: Path, wanted: list[str]) -> list[str]:
    """The domains of a corpus; its files are checked against its manifest.

    Raises:
        SystemExit: it has none, or not one of `wanted`.
    """
    there = sorted(path.parent.name for path in corpus.glob("*/heldout.jsonl"))
    unknown = [name for name in wanted if name not in there]
    if not there or unknown:
        raise SystemExit(
            f"{corpus}: holds no domain {repr(unknown[0]) if unknown else 'at all'}; there are {', '.join(there) or 'none'} "
            "(make it with: dynadapt corpus build --out DIR)"
        )
    if (corpus / "manifest.json").exists():
        check_corpus(corpus)
    return there


def mean_error(values: list[float]) -> tuple[float, float]:
    """(mean, its standard error)."""
    mean = math.fsum(values) / len(values)
    return mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values)) if len(values) > 1 else math.inf


def corpus_facts(corpus: Path) -> dict | None:
    """What identifies a corpus; None where it has no manifest."""
    manifest = corpus / "manifest.json"
    return {key: value for key, value in read_json(manifest).items() if key != "domains"} if manifest.exists() else None


@contextmanager
def going_on(out: Path):
    """Ends the script when it is interrupted, and says how it goes on."""
    try:
        yield
    except Interrupted as stopped:
        raise SystemExit(f"{stopped}; the same command goes on in {out}") from None


def write_results(out: Path, results: dict, page: str, name: str = "results.md") -> None:
    """results.json, with the machine and the versions first, and the page made of them."""
    write_json(out / "results.json", {"environment": environment(), **results})
    (out / name).write_text(page)
