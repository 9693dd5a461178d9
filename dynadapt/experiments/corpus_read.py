"""Reading the documents of a domain, and of a corpus whose manifest says what each file must hold.

What a manifest names lies in the corpus's own folder, and is what was written there: bytes, documents and SHA-256 are compared.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from dynadapt.common.digests import digest_of
from dynadapt.runs.rundir import RunError, read_json
from dynadapt.runs.texts.expanding import SELECTED, expand
from dynadapt.runs.texts.records import open_records
from dynadapt.runs.texts.source import TextError

FORMAT = 1
PARTS = ("train", "heldout")


class CorpusError(ValueError):
    """A corpus that can't be built or read; the message names the domain or the file, and what is missing."""


# ------------------------------------------------------------------------------------------------------- documents


def read_documents(path: str | Path, field: str = "text") -> Iterator[tuple[str, str]]:
    """(id, text) of every document of a domain: what `dynadapt.text.expand` takes, so a file, a directory, or .jsonl with "id" where it has one.

    CorpusError names the file and the line, and a domain without any text. Texts of nothing but spaces are passed over.
    """
    path, empty = str(path), True
    if not os.path.exists(path) and not path.startswith("builtin:") and not SELECTED.fullmatch(path):
        raise CorpusError(f"domain {path!r}: no such file or directory")
    try:
        for source in expand([path], field):
            name, text = source.document()
            if text and not text.isspace():
                empty = False
                yield name, text
    except TextError as error:
        raise CorpusError(str(error).replace("text ", "domain ", 1)) from None
    if empty:
        raise CorpusError(f"domain {path!r} is empty")


# -------------------------------------------------------------------------------------------------------- manifests


def read_manifest(corpus: str | Path) -> dict:
    """manifest.json of a corpus, its form checked. CorpusError says what does not fit."""
    manifest = Path(corpus) / "manifest.json"
    if not manifest.is_file():
        raise CorpusError(f"{corpus}: no manifest.json in it; make a corpus with `dynadapt corpus build --out {corpus}`")
    try:
        content = read_json(manifest)
    except (RunError, RecursionError) as error:
        raise CorpusError(str(error) if isinstance(error, RunError) else f"{manifest}: nested too deeply") from None
    found = content.get("format") if isinstance(content, dict) else content
    if not isinstance(content, dict) or found != FORMAT:
        raise CorpusError(f"{manifest}: format {found!r}; this version reads {FORMAT}")
    domains = content.get("domains")
    if not isinstance(domains, dict) or not domains:
        raise CorpusError(f"{manifest}: domains is {domains!r}; expected an object with an entry for each domain")
    for name, entry in domains.items():
        _check_entry(manifest, name, entry)
    return content


def _check_entry(manifest: Path, name: str, entry) -> None:
    if not name or name in (".", "..") or set(name) & set("/\\\0"):
        raise CorpusError(f"{manifest}: domain {name!r} is not the name of a folder in {manifest.parent}")
    for part in PARTS:
        found = entry.get(part) if isinstance(entry, dict) else None
        if not isinstance(found, dict):
            raise CorpusError(f"{manifest}: domain {name!r} has no {part!r}; expected its file, documents, bytes and sha256")
        expected = f"{name}/{part}.jsonl"
        if found.get("file") != expected:
            raise CorpusError(f"{manifest}: domain {name!r}: {part}.file is {found.get('file')!r}; expected {expected!r}")
        for key, kind in (("documents", int), ("bytes", int), ("sha256", str)):
            if type(found.get(key)) is not kind:
                raise CorpusError(
                    f"{manifest}: domain {name!r}: {part}.{key} is {found.get(key)!r}; expected "
                    + ("a whole number" if kind is int else "64 hexadecimal digits")
                )


def part_files(corpus: str | Path) -> dict[str, dict[str, Path]]:
    """domain -> part -> file, of a corpus's manifest. CorpusError for a file that is missing or whose link leads out of the corpus."""
    corpus = Path(corpus)
    files = {name: {part: corpus / entry[part]["file"] for part in PARTS} for name, entry in read_manifest(corpus)["domains"].items()}
    home = corpus.resolve()
    for path in (path for parts in files.values() for path in parts.values()):
        try:
            target = path.resolve(strict=True)
        except (OSError, RuntimeError) as error:
            raise CorpusError(
                f"{path}: named by the corpus's manifest and not to be read ({getattr(error, 'strerror', None) or error})"
            ) from None
        if not target.is_relative_to(home):
            raise CorpusError(f"{path} leads out of the corpus, to {target}; copy the file into {corpus}")
        if not target.is_file():
            raise CorpusError(f"{path}: named by the corpus's manifest and not a file")
    return files


def check_corpus(corpus: str | Path) -> None:
    """Compares every file with what the manifest says of it. CorpusError names the first file that differs."""
    manifest, files = read_manifest(corpus), part_files(corpus)
    for name, parts in files.items():
        for part, file in parts.items():
            expected, found = manifest["domains"][name][part], describe_part(file)
            for key, value in found.items():
                if value != expected[key]:
                    raise CorpusError(
                        f"{file}: its {key} is {value}, the manifest says {expected[key]}: it was changed or damaged "
                        "after the corpus was built"
                    )


def describe_part(file: Path) -> dict:
    """sha256 of the file, and documents and bytes (of UTF-8 text) in it."""
    digest = digest_of(file)["sha256"]
    try:
        entries = open_records(str(file), "text").entries
    except TextError as error:
        raise CorpusError(str(error).removeprefix("text ")) from None
    return {"sha256": digest, "documents": len(entries), "bytes": sum(entry.size for entry in entries)}
