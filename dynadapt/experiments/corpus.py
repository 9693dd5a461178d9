"""A corpus of several domains of real text, made from what a machine has or its package index gives.

`build` takes these steps:
  1. read each domain from the first of its sources that is there (corpus_sources.py);
  2. drop paragraphs that were seen before, in any domain, and documents that were mostly such paragraphs (`Deduplicator`);
  3. take documents in an order that depends on the seed and their names alone: first the held-out ones, then the training ones;
  4. write DOMAIN/train.jsonl and DOMAIN/heldout.jsonl, a document a line, and manifest.json with sources, licences and sizes.

Nothing is written unless everything is: it is made beside the target and renamed. Because of 2., no paragraph of `PARAGRAPH` characters
or more is in both training and held-out text.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from dynadapt.runs.rundir import write_json
from dynadapt.runs.whole_files import new_directory

from .corpus_read import FORMAT, CorpusError, check_corpus, part_files, read_documents, read_manifest
from .corpus_sources import DOMAINS, Domain, Missing

__all__ = ["CorpusError", "Deduplicator", "Settings", "build", "check_corpus", "part_files", "read_documents", "read_manifest", "split"]

PARAGRAPH = 80  # characters, spaces squeezed: shorter ones (headings, "RETURN VALUE") may repeat
SHORTEST = 200  # characters: shorter documents are left out
LEAST_BYTES = 1_000_000  # of a domain
LEAST_DOMAINS = 5  # unless domains are named


@dataclass(frozen=True)
class Settings:
    """megabytes: most text of a domain, 10^6 bytes. heldout: share of it, by document. offline: don't ask the package index."""

    domains: tuple[str, ...] = ()
    megabytes: float = 4.0
    heldout: float = 0.1
    seed: int = 0
    offline: bool = False

    def __post_init__(self):
        for name in self.domains:
            if name not in DOMAINS:
                raise CorpusError(f"domains: unknown domain {name!r}; there are {', '.join(DOMAINS)}")
        if not self.megabytes * 1e6 >= LEAST_BYTES:
            raise CorpusError(f"megabytes {self.megabytes!r}: give at least {LEAST_BYTES / 1e6:g}")
        if not 0 < self.heldout <= 0.5:
            raise CorpusError(f"heldout {self.heldout!r}: give a share above 0 and at most 0.5")


# ------------------------------------------------------------------------------------------------------- duplicates


@dataclass
class Deduplicator:
    """Remembers paragraphs across documents and domains."""

    seen: set[bytes] = field(default_factory=set)
    paragraphs: int = 0  # dropped

    def __call__(self, text: str) -> str | None:
        """The text without paragraphs that an earlier document (or this one) has; None if under half of it is left, or too little."""
        kept, new = [], set()
        for paragraph in re.split(r"\n(?:[ \t]*\n)+", text.strip("\n")):
            key = _key(paragraph)
            if key is None:
                kept.append(paragraph)
            elif key not in self.seen and key not in new:
                new.add(key)
                kept.append(paragraph)
        left = "\n\n".join(kept) + "\n"
        if len(left) < max(SHORTEST, len(text) / 2):
            return None
        self.seen |= new
        self.paragraphs += len(re.split(r"\n(?:[ \t]*\n)+", text.strip("\n"))) - len(kept)
        return left


def _key(paragraph: str) -> bytes | None:
    """What makes two paragraphs the same; None for one that is too short to matter."""
    squeezed = " ".join(paragraph.split())
    return hashlib.blake2b(squeezed.encode(), digest_size=12).digest() if len(squeezed) >= PARAGRAPH else None


# ------------------------------------------------------------------------------------------------------------ build


def build(out: str | Path, settings: Settings = Settings(), progress: Callable[[str], None] = lambda text: None) -> dict:
    """Makes the corpus in `out`, which must not exist or be empty; returns the manifest. CorpusError says which domain lacks what,
    RunError that the disk fails."""
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CorpusError(f"{out} is not an empty directory; choose another --out")
    with new_directory(out, or_empty=True) as work:
        return _build(work, settings, progress)


def _build(folder: Path, settings: Settings, progress) -> dict:
    domains, missing, unique = {}, {}, Deduplicator()
    for name in settings.domains or DOMAINS:
        before = set(unique.seen)
        try:
            progress(f"{name} ...")
            domains[name] = _domain(folder, DOMAINS[name], settings, unique)
            progress(f"{name}: {domains[name]['train']['bytes']:,} bytes to train on, {domains[name]['heldout']['bytes']:,} held out")
        except Missing as reason:
            missing[name], unique.seen = str(reason), before
            progress(f"{name}: left out: {reason}")
    wanted = len(settings.domains) or LEAST_DOMAINS
    if len(domains) < wanted:
        raise CorpusError(
            f"{len(domains)} of {wanted} domains found; missing: " + "; ".join(f"{name}: {reason}" for name, reason in missing.items())
        )
    manifest = {
        "format": FORMAT,
        "python": platform.python_version(),
        "seed": settings.seed,
        "megabytes": settings.megabytes,
        "heldout": settings.heldout,
        "domains": domains,
        "missing": missing,
    }
    write_json(folder / "manifest.json", manifest)
    return manifest


def _domain(folder: Path, domain: Domain, settings: Settings, unique: Deduplicator) -> dict:
    sources, documents = _read(domain, settings.offline)
    dropped_before = unique.paragraphs
    kept = {name: text for name in sorted(documents) if (text := unique(documents[name])) is not None}
    heldout, train = split(kept, settings.megabytes * 1e6, settings.heldout, f"{settings.seed}:{domain.name}")
    size = {name: len(text.encode()) for name, text in kept.items()}
    if sum(size.values()) < LEAST_BYTES:
        raise Missing(f"{sum(size.values()):,} bytes in {len(kept)} documents from {_named(sources)}; at least {LEAST_BYTES:,} are needed")
    if not heldout or sum(size[name] for name in heldout + train) < LEAST_BYTES:
        raise Missing(f"its {len(kept)} documents from {_named(sources)} are too long to be split")
    (folder / domain.name).mkdir()
    return {
        "language": domain.language,
        "licence": domain.licence,
        "sources": sources,
        "documents_read": len(documents),
        "documents_dropped": len(documents) - len(kept),
        "paragraphs_dropped": unique.paragraphs - dropped_before,
        "train": _write(folder, domain.name, "train", train, kept),
        "heldout": _write(folder, domain.name, "heldout", heldout, kept),
    }


def _read(domain: Domain, offline: bool) -> tuple[list[dict], dict[str, str]]:
    """From the first reader that finds something; Missing with every reader's reason."""
    reasons = []
    for reader in domain.readers:
        if offline and not reader.local:
            continue
        try:
            return reader.read()
        except Missing as reason:
            reasons.append(str(reason))
    raise Missing("; ".join(reasons) or "it comes from the package index only")


def _named(sources: list[dict]) -> str:
    return ", ".join(source.get("package") or source["folder"] for source in sources)


def split(documents: dict[str, str], most: float, share: float, salt: str) -> tuple[list[str], list[str]]:
    """Names of the held-out and the training documents: in an order drawn by hash, up to `share` of `most` bytes, and to the rest.

    A document that is larger than a quarter of the held-out text goes into training, so that one can't make up the evaluation.
    """
    size = {name: len(text.encode()) for name, text in documents.items()}
    order = sorted(documents, key=lambda name: hashlib.sha256(f"{salt}:{name}".encode()).digest())
    most = min(most, sum(size.values()))
    heldout, train, room = [], [], {"heldout": most * share, "train": most * (1 - share)}
    for name in order:
        if size[name] <= min(room["heldout"], most * share / 4):
            heldout.append(name)
            room["heldout"] -= size[name]
        elif size[name] <= room["train"]:
            train.append(name)
            room["train"] -= size[name]
    return heldout, train


def _write(folder: Path, domain: str, part: str, names: list[str], documents: dict[str, str]) -> dict:
    file = f"{domain}/{part}.jsonl"
    lines = "".join(json.dumps({"id": name, "text": documents[name]}, ensure_ascii=False) + "\n" for name in names)
    (folder / file).write_text(lines, "utf-8")
    return {
        "file": file,
        "documents": len(names),
        "bytes": sum(len(documents[name].encode()) for name in names),
        "sha256": hashlib.sha256(lines.encode()).hexdigest(),
    }
