"""The tokens that several runs scored, joined: ids, text, and each run's NLL."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from dynadapt.experiments.diagnose.classes import classify
from dynadapt.runs.document_streams import first_positions
from dynadapt.runs.metrics import Run, read_run
from dynadapt.runs.text import Source, TextError, expand, inputs
from dynadapt.runs.whole_files import RunError, read_json_or

PART = "\ufffd"  # what a token reads as that is some of a character's bytes
SAME = ("text", "field", "split", "streams")  # settings that say which text document i is


@dataclass(frozen=True)
class Compared:
    """N tokens that all R runs scored, by document and place in it. NLLs in nats.

    `texts` [documents] are bytes from the first scored token on; token i covers bytes `start[i]` to `stop[i]` - 1 of its document.
    """

    runs: tuple[Run, ...]
    names: tuple[str, ...]  # of the documents
    document: np.ndarray  # [N] index into names
    position: np.ndarray  # [N] place of the token in its document: from 1, or from 0 where documents begin with a token of no text
    token: np.ndarray  # [N] id
    start: np.ndarray  # [N] bytes
    stop: np.ndarray  # [N]
    nll: np.ndarray  # [R, N] float64
    texts: tuple[bytes, ...]  # of each document

    @cached_property
    def pieces(self) -> list[str]:
        """[N] the text of each token. A character that is spread over several tokens stands at the last of them."""
        return [self.texts[d][a:b].decode("utf-8", "replace") for d, a, b in zip(self.document, self.start, self.stop)]

    @cached_property
    def partial(self) -> np.ndarray:
        """[N] whether a token is some of a character's bytes: it covers none, or the one before it in the text does."""
        empty = self.start == self.stop
        return empty | np.concatenate([[False], empty[:-1] & (self.document[1:] == self.document[:-1])])

    @cached_property
    def classes(self) -> np.ndarray:
        """[N] index into CLASSES of each token. Keywords need a text to compare with and are not told apart here."""
        types, of, counts = np.unique(self.token, return_inverse=True, return_counts=True)
        texts = [""] * len(types)
        for i, piece, part in zip(of, self.pieces, self.partial):
            texts[i] = PART if part else texts[i] or piece
        return classify(texts, counts, None)[of]

    @cached_property
    def last_seen(self) -> np.ndarray:
        """[N] how many tokens ago the same id stood in this document, 0 where it had not."""
        found, where = np.zeros(len(self.token), np.int64), {}
        for i, key in enumerate(zip(self.document.tolist(), self.token.tolist())):
            found[i] = self.position[i] - where[key] if key in where else 0
            where[key] = self.position[i]
        return found

    @property
    def segment(self) -> np.ndarray:
        """[N] number of the segment, of the first run, in its document."""
        return (self.position - first_positions(self.document, self.position)) // self.runs[0].config["segment"]


def read_compared(paths: Sequence[str | Path]) -> Compared:
    """Joins the runs in `paths`. Raises RunError, naming the run, where they did not score the same tokens of the same text."""
    if len(paths) < 2:
        raise RunError(f"{', '.join(map(str, paths)) or 'no run'}: give at least two runs of `dynadapt eval --scores` on the same text")
    runs = tuple(read_run(path) for path in paths)
    for run in runs:
        _check(run)
    for run in runs[1:]:
        _same(runs[0], run)
    rows = [_rows(run) for run in runs]
    keys = [row["document"].astype(np.int64) << 32 | row["position"] for row in rows]
    common = keys[0]
    for other in keys[1:]:
        common = np.intersect1d(common, other, assume_unique=True)
    if not len(common):
        raise RunError(f"{runs[0].path} and {runs[1].path} have scored no token in common")
    rows = [row[np.searchsorted(key, common)] for row, key in zip(rows, keys)]
    for run, row in zip(runs[1:], rows[1:]):
        if any((row[name] != rows[0][name]).any() for name in ("token", "start", "stop")):
            raise RunError(
                f"{run.path} cut the text into other tokens than {runs[0].path}: another tokenizer; score it again with the same one"
            )
    first = rows[0]
    names, texts = _documents(runs[0], first)
    return Compared(
        runs,
        names,
        first["document"].astype(np.int64),
        first["position"].astype(np.int64),
        first["token"].astype(np.int64),
        first["start"],
        first["stop"],
        np.stack([row["nll"] for row in rows]).astype(np.float64),
        texts,
    )


def _check(run: Run) -> None:
    if run.kind != "eval":
        raise RunError(f"{run.path} is a run of dynadapt {run.kind}; compare takes runs of dynadapt eval")
    if not (run.path / "scores.npy").exists():
        raise RunError(f"{run.path} has no scores of single tokens (scores.npy): run it again with --scores")


def _same(first: Run, other: Run) -> None:
    for name in SAME if first.config.get("split") else ("text", "field", "split"):
        mine, theirs = first.config.get(name), other.config.get(name)
        if mine != theirs and not (name in ("text", "field") and _contents(first) == _contents(other) is not None):
            raise RunError(f"{other.path} has {name} {theirs!r}, {first.path} has {mine!r}: they did not score the same text")
    mine, theirs = _digests(first), _digests(other)
    if first.config["text"] == other.config["text"] and mine and theirs and (others := sorted(mine.keys() ^ theirs.keys())):
        raise RunError(
            f"{other.path} scored other files of {' '.join(other.config['text'])} than {first.path}: {others[0]!r} is not in both"
        )
    for spec, digest in mine.items():
        if theirs.get(spec, digest) != digest:
            raise RunError(f"{other.path} scored another version of {spec} than {first.path}: the text has changed in between")


def _digests(run: Run) -> dict[str, str]:
    """The sha256 of each file that could be read twice, by the name that the run had for it, in the order in which it read them."""
    return {
        ast.literal_eval(name.removeprefix("text ")): facts["sha256"]
        for name, facts in run.inputs().items()
        if name.startswith("text ") and facts
    }


def _contents(run: Run) -> list[str] | None:
    """The sha256 of all files in order; None where one is not known."""
    known = [facts for name, facts in run.inputs().items() if name.startswith("text ")]
    return [facts["sha256"] for facts in known] if known and all(known) else None


def _rows(run: Run) -> np.ndarray:
    """scores.npy by document and position."""
    rows = np.load(run.path / "scores.npy")
    if "token" not in (rows.dtype.names or ()):
        raise RunError(f"{run.path} was made by a version whose scores keep no tokens: run it again with --scores")
    return rows[np.lexsort((rows["position"], rows["document"]))]


def sources_of(run: Run) -> list[Source]:
    """The documents of a run, found again from here or from where the run was made, and held against the digests that it kept."""
    specs, field, errors = run.config["text"], run.config.get("field", "text"), []
    made = read_json_or(run.path / "env.json", {}).get("folder")
    places = [Path.cwd()] + [Path(made)] * (made is not None and made != str(Path.cwd()))
    for place in places:
        here = [spec if spec == "-" or spec.startswith("builtin:") or place == Path.cwd() else str(place / spec) for spec in specs]
        try:
            return _verified(run, expand(here, field))
        except TextError as error:
            errors.append(error)
    gone = [error for error in errors if "no such file" not in str(error)]
    if gone:
        raise RunError(f"{gone[0]} ({run.path} scored it)")
    missing = next((spec for spec in specs if spec != "-" and not Path(spec).exists()), specs[0])
    raise RunError(
        f"text {missing!r}, which {run.path} scored, is not in {' or '.join(map(str, places))}: put it back, or run this where the run "
        "was made"
    )


def _verified(run: Run, sources: list[Source]) -> list[Source]:
    for source in sources:
        if not source.seekable:
            raise RunError(f"{run.path} read {source.spec!r}, a pipe, which can't be read again: score a file to see its tokens")
    digests, found = _digests(run), inputs(sources, [source.check() for source in sources])
    for path, known, now in zip(found, digests.values(), found.values()):
        if known != now["sha256"]:
            raise TextError(f"text {path!r} is not what {run.path} scored: it has changed since, or {Path.cwd()} has another of that name")
    if digests and len(digests) != len(found):
        raise TextError(f"text {' '.join(run.config['text'])} is {len(found)} files now, and {run.path} scored {len(digests)}")
    return sources


def _documents(run: Run, rows: np.ndarray) -> tuple[tuple[str, ...], tuple[bytes, ...]]:
    """(name, text) of each document, "" for one of which no token was scored; all parts of a split text have the whole of it."""
    sources, scored = sources_of(run), set(np.unique(rows["document"]).tolist())
    count = max(scored) + 1
    if run.config.get("split"):
        return tuple(f"{sources[0].name}, part {i + 1}" for i in range(count)), (sources[0].content(),) * count
    if count > len(sources):
        raise RunError(f"{run.path} scored document {count}, and its text has {len(sources)}: it has changed since")
    return (
        tuple(source.name for source in sources[:count]),
        tuple(source.content() if number in scored else b"" for number, source in enumerate(sources[:count])),
    )
