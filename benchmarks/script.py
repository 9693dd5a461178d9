"""What the scripts of this folder share: their arguments, the corpus they read, how they stop, and what they write."""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dynadapt.common.environment import environment
from dynadapt.common.making import in_the_making
from dynadapt.experiments.config import EvalConfig
from dynadapt.experiments.corpus_read import check_corpus, read_documents
from dynadapt.experiments.defaults import settle
from dynadapt.experiments.dyneval import Interrupted, RunOptions, run
from dynadapt.experiments.reweight.compare import paired
from dynadapt.experiments.reweight.power import seen
from dynadapt.runs.rundir import read_json, write_json

# Domains of a corpus that are of authors and projects whose texts served to choose defaults (docs/defaults.md).
TUNED = ("novels", "python-docs", "python-code")
CONFIRMED, REFUTED, OPEN = "confirmed", "refuted", "not decided"


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


def usual_rate(config) -> float:
    """The learning rate that LoRA takes on a model of this ModelConfig where none is given."""
    return settle(EvalConfig(), config).learning_rate


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
    """Ends the script by one line: when it is interrupted, with how it goes on, and when what it was given can't be used, with what was refused."""
    try:
        yield
    except (Interrupted, KeyboardInterrupt) as stopped:
        raise SystemExit(f"{str(stopped) or 'interrupted'}; the same command goes on in {out}") from None
    except (ValueError, RuntimeError) as error:
        if not type(error).__module__.startswith("dynadapt"):
            raise
        raise SystemExit(" ".join(str(error).split())) from None


def refuse_below(parser: argparse.ArgumentParser, given: argparse.Namespace, least: int, *names: str) -> None:
    """Ends the script where one of these options is given and below `least`: 0 is no word for the default."""
    for name in names:
        value = getattr(given, name)
        if value is not None and not value >= least:
            parser.error(f"--{name.replace('_', '-')} {value}: give at least {least}")


def made_once(out: Path, make: Callable[[Path], None]) -> Path:
    """`out`, which `make` makes under the name it is given unless it is there; of several processes that make it at once, the first one's stays."""
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        with in_the_making(out, directory=True) as folder:
            make(folder / "whole")
            try:
                (folder / "whole").rename(out)
            except OSError:
                if not out.exists():
                    raise
    return out


def text_once(file: Path, text: str, source: Path) -> Path:
    """`file`, made with this text unless it is there.

    Raises:
        SystemExit: another text is, of another corpus or by other sizes.
    """
    made_once(file, lambda whole: whole.write_bytes(text.encode()))
    if file.read_bytes() != text.encode():
        raise SystemExit(f"{file} holds another text than is made of {source} now: give another --out")
    return file


def rows_before(file: Path, facts: dict) -> list[dict]:
    """Rows of a results file that goes on; none where there is none.

    Raises:
        SystemExit: it was made under other facts (model, sizes), naming the first.
    """
    if not file.exists():
        return []
    begun = read_json(file)
    for name, value in json.loads(json.dumps(facts)).items():
        if begun.get(name) != value:
            raise SystemExit(f"{file} has {name} {begun.get(name)!r}, not {value!r}: give another --out")
    return begun["rows"]


def by_text_and_arm(
    out: Path,
    facts: dict,
    heads: list[dict],
    arms: Callable[[dict], Iterable[str]],
    measure: Callable[[str, str], dict],
    verdicts: Callable[[list[dict]], dict],
    said: Callable[[dict, str], str],
) -> dict:
    """Measures the arms of each text that ``out``/results.json has not, writes it behind each, and returns what it holds.

    Args:
        facts: model and sizes, of which an earlier part of the run must have had the same.
        heads: a row for each text, "text" its name, without its arms; an earlier part of the run must have had the same.
        arms: those of a row.
        measure: what one arm gives on one text.
        said: the line that is printed of a row's arm.
    """
    out.mkdir(parents=True, exist_ok=True)
    file = out / "results.json"
    rows = rows_before(file, facts)
    put = lambda: write_json(file, {**facts, "environment": environment(), "rows": rows, "verdicts": verdicts(rows)})  # noqa: E731
    with going_on(out):
        for head in heads:
            row = next((row for row in rows if row["text"] == head["text"]), None)
            if row is None:
                row = {**head, "arms": {}}
                rows.append(row)
            for name, value in json.loads(json.dumps(head)).items():
                if row.get(name, value) != value:
                    raise SystemExit(f"{file} has text {head['text']!r} with {name} {row[name]!r}, not {value!r}: give another --out")
            for arm in arms(row):
                if arm not in row["arms"]:
                    row["arms"][arm] = measure(head["text"], arm)
                    put()
                    print(said(row, arm), flush=True)
    if not file.exists():
        put()
    return read_json(file)


def write_results(out: Path, results: dict, page: str, name: str = "results.md") -> None:
    """results.json, with the machine and the versions first, and the page made of them."""
    write_json(out / "results.json", {"environment": environment(), **results})
    (out / name).write_text(page)


def documents_file(corpus: Path, domain: str, tokenizer, file: Path, documents: int, tokens: int) -> Path:
    """The first ``tokens`` tokens of the domain's first ``documents`` documents that are as long, a line each: held-out ones first."""
    lines = itertools.islice(_cut_documents(corpus / domain, tokenizer, tokens), documents)
    return text_once(file, "\n".join(lines) + "\n", corpus / domain)


def _cut_documents(folder: Path, tokenizer, tokens: int) -> Iterator[str]:
    for part in ("heldout", "train"):
        for name, text in read_documents(folder / f"{part}.jsonl"):
            ids, spans = tokenizer.encode_offsets(text[: 20 * tokens])
            if len(ids) >= tokens:
                # where the cut would change the tokens before it, the document is left out
                cut = text[: spans[tokens - 1][1]]
                if len(tokenizer.encode(cut)) == tokens:
                    yield json.dumps({"name": name, "text": cut}, ensure_ascii=False)


def ids_digest(ids: Sequence[int]) -> str:
    """Of the tokens that a text is read as."""
    return hashlib.sha256(json.dumps(list(ids)).encode()).hexdigest()[:16]


def cell(folder: Path, config, model, checkpoint: int = 8) -> dict:
    """The summary of a run in ``folder``: read where it is finished, gone on with where it was stopped; scores.npy lies beside it."""
    fresh = not (folder / "summary.json").exists()
    summary = run(config, folder, RunOptions(resume=True, scores=True, checkpoint=checkpoint), model=model)
    shutil.rmtree(folder / "checkpoint", ignore_errors=True)  # nothing goes on with it; with all weights learning it is gigabytes
    if fresh:
        print(f"{folder.parent.name:24} {folder.name:28} {summary['nll']:.4f}", flush=True)
    return summary


def judged(values: list[float], margin: float = 0.0, below: bool = True) -> dict:
    """The mean of paired differences [texts], its interval (None of one text), and the verdict: `below` (or above) `margin` is what the claim says, and of
    fewer than six texts nothing is decided. "seen_with_80%": how far from the margin a true difference has to lie to be called with that probability; "p": of a
    difference of `margin`."""
    found = paired(values)
    n, (low, high) = len(values), found["interval"] or (None, None)
    error = mean_error(values)[1]
    under, over = n >= 6 and high < margin, n >= 6 and low > margin
    verdict = OPEN if not (under or over) else CONFIRMED if under == below else REFUTED
    return {
        "mean": found["mean"], "low": low, "high": high, "texts": n, "p": paired([v - margin for v in values])["p"], "verdict": verdict,
        "seen_with_80%": seen(error, n - 1, 0.05) if n > 1 else None, "by_text": values,
    }  # fmt: skip


def shown(row: dict, digits: int = 3) -> str:
    """Mean and interval of what `judged` gives."""
    number = lambda value: f"{value:+.{digits}f}"  # noqa: E731
    return number(row["mean"]) + (" (no interval)" if row["low"] is None else f" [{number(row['low'])}, {number(row['high'])}]")


def power_shown(row: dict, digits: int = 3) -> str:
    """Its "seen_with_80%", of one text none."""
    return "-" if row["seen_with_80%"] is None else f"{row['seen_with_80%']:.{digits}f}"
