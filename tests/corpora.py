"""Corpora for tests: the manifest of a folder of domains, as `dynadapt corpus build` writes it."""

import json
from pathlib import Path

from dynadapt.experiments.corpus_read import FORMAT, PARTS, describe_part


def write_manifest(corpus: Path) -> Path:
    """Of every folder with train.jsonl and heldout.jsonl."""
    names = sorted(path.parent.name for path in corpus.glob("*/train.jsonl"))
    domains = {
        name: {part: {"file": f"{name}/{part}.jsonl", **describe_part(corpus / name / f"{part}.jsonl")} for part in PARTS} for name in names
    }
    path = corpus / "manifest.json"
    path.write_text(json.dumps({"format": FORMAT, "seed": 0, "domains": domains, "missing": {}}))
    return path
