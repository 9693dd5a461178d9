"""What the scripts of this folder share: their arguments, the corpus they read, how they stop, and what they write."""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dynadapt.common.environment import environment
from dynadapt.common.making import in_the_making
from dynadapt.experiments.config import EvalConfig
from dynadapt.experiments.corpus_read import check_corpus, read_documents, read_manifest
from dynadapt.experiments.defaults import settle
from dynadapt.experiments.dyneval import Interrupted, RunOptions, run
from dynadapt.experiments.reweight.compare import paired
from dynadapt.experiments.reweight.power import seen
from dynadapt.runs.progress import Scoring
from dynadapt.runs.rundir import take_lock
from dynadapt.runs.whole_files import DiskError, read_json, read_json_or, write_json

# Domains of a corpus that are of authors and projects whose texts served to choose defaults (docs/defaults.md).
TUNED = ("novels", "python-docs", "python-code")
CONFIRMED, REFUTED, OPEN = "confirmed", "refuted", "not decided"
BEGUN, LOCK = "begun.json", ".lock"  # in --out: what it was begun with, and who measures there


def parser_of(doc: str, out: str) -> argparse.ArgumentParser:
    """With the script's text as its help, and --out."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(out), help="directory of what is written (default: %(default)s)")
    return parser


def corpus_parser_of(doc: str, out: str) -> argparse.ArgumentParser:
    """The same with a corpus and the model that reads it."""
    parser = parser_of(doc, out)
    parser.add_argument("corpus", type=Path, help="what `dynadapt corpus build` made")
    parser.add_argument("--model", default="smollm2-135m", help="as dynadapt.load takes it (default: %(default)s)")
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


def judged_domains(corpus: Path, least: int = 1) -> list[str]:
    """Those of a corpus whose texts did not serve to choose defaults.

    Raises:
        SystemExit: it has fewer than ``least``.
    """
    found = [name for name in domains_of(corpus, []) if name not in TUNED]
    if len(found) < least:
        there = f"holds {', '.join(found) or 'none'} beside {', '.join(TUNED)}, whose texts served to choose defaults"
        raise SystemExit(
            f"{corpus}: {there}; {least} domains that can be judged are needed (make them with: dynadapt corpus build --out DIR)"
        )
    return found


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
def ended_by_a_line(after: str = "nothing was written"):
    """Ends the script by one line: when it is interrupted, with what comes ``after``, when what it was given can't be used, with what was refused, and when a
    file can't be read or written, with which."""
    try:
        yield
    except (Interrupted, KeyboardInterrupt) as stopped:
        raise SystemExit(f"{str(stopped) or 'interrupted'}; {after}") from None
    except DiskError as error:
        raise SystemExit(f"{str(error).removesuffix(' and run again with --resume')}; {after}") from None
    except OSError as error:
        raise SystemExit(f"{error.filename or 'the disk'}: {error.strerror or error}; {after}") from None
    except (ValueError, RuntimeError) as error:
        if not type(error).__module__.startswith("dynadapt"):
            raise
        raise SystemExit(" ".join(str(error).split())) from None


@contextmanager
def going_on(out: Path):
    """The same of a script that goes on in ``out``."""
    with ended_by_a_line(f"the same command goes on in {out}"):
        yield


@contextmanager
def measuring(benchmark: str, given: argparse.Namespace, *options: str):
    """The block in which a benchmark measures in --out: ended as by `going_on`, by one process at a time, with the corpus, the model and these options as
    they were when it was begun.

    Raises:
        SystemExit: another process measures there, or it was begun with others, naming the first.
    """
    with going_on(given.out):
        try:
            given.out.mkdir(parents=True, exist_ok=True)
            lock = open(given.out / LOCK, "ab")
        except OSError as error:
            raise SystemExit(f"--out {given.out}: {error.strerror}; give another --out") from None
        with lock:
            try:
                take_lock(lock)
            except BlockingIOError:
                raise SystemExit(f"--out {given.out}: another process measures there; wait for it, or give another --out") from None
            _check_begun(benchmark, given, options)
            yield


def _check_begun(benchmark: str, given: argparse.Namespace, options: Sequence[str]) -> None:
    file, named = given.out / BEGUN, [name for name in ("model", *options) if hasattr(given, name)]
    now = {"benchmark": benchmark, "corpus": _corpus_digest(given.corpus), **{name: getattr(given, name) for name in named}}
    measured = {path.name for path in given.out.iterdir()} - {BEGUN, LOCK}  # without any it is begun anew
    for name, value in ((read_json_or(file) if measured else None) or {}).items():
        if name not in now or None in (value, now[name]) or value == now[name]:
            continue
        if name == "benchmark":
            raise SystemExit(f"--out {given.out} holds results of {value}.py, not of {benchmark}.py: give another --out")
        if name == "corpus":
            raise SystemExit(f"--out {given.out} was begun with other texts than the corpus {given.corpus} holds now: give another --out")
        raise SystemExit(f"--out {given.out} was begun with --{name} {value}, not {now[name]}: give another --out")
    write_json(file, now)


def _corpus_digest(corpus: Path) -> str | None:
    """Of the texts that a corpus's manifest names; None where it has none."""
    if not (corpus / "manifest.json").exists():
        return None
    return hashlib.sha256(json.dumps(read_manifest(corpus)["domains"], sort_keys=True).encode()).hexdigest()[:16]


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


def rows_before(file: Path, facts: dict, of: str = "rows"):
    """Rows of a results file that goes on, or another part of it; none where there is none.

    Raises:
        SystemExit: it was made under other facts (model, sizes), naming the first, or is of another script.
    """
    if not file.exists():
        return []
    begun = read_json(file)
    if not isinstance(begun, dict) or of not in begun:
        raise SystemExit(f"{file} has no {of!r}, as this script's results have: give another --out")
    for name, value in json.loads(json.dumps(facts)).items():
        if begun.get(name) != value:
            raise SystemExit(f"{file} has {name} {begun.get(name)!r}, not {value!r}: give another --out")
    return begun[of]


def _check_rows(file: Path, rows: list[dict], heads: list[dict]) -> None:
    """SystemExit where an earlier part of the run had other texts."""
    now = {head["text"]: head for head in json.loads(json.dumps(heads))}
    for row in rows:
        if row["text"] not in now:
            raise SystemExit(f"{file} has text {row['text']!r}, which is none of this corpus: give another --out")
        for name, value in now[row["text"]].items():
            if row.get(name, value) != value:
                raise SystemExit(f"{file} has text {row['text']!r} with {name} {row[name]!r}, not {value!r}: give another --out")


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
        said: the line that is printed of a row's arm, under the text's name.
    """
    file = out / "results.json"
    put = lambda: write_json(file, {**facts, "environment": environment(), "rows": rows, "verdicts": verdicts(rows)})  # noqa: E731
    with going_on(out):
        out.mkdir(parents=True, exist_ok=True)
        rows = rows_before(file, facts)
        _check_rows(file, rows, heads)
        for number, head in enumerate(heads, 1):
            row = next((row for row in rows if row["text"] == head["text"]), None)
            if row is None:
                row = {**head, "arms": {}}
                rows.append(row)
            left = [arm for arm in arms(row) if arm not in row["arms"]]
            if left:
                print(f"{head['text']} (text {number} of {len(heads)})", flush=True)
            for arm in left:
                row["arms"][arm] = measure(head["text"], arm)
                put()
                print("  " + said(row, arm), flush=True)
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
    told = _telling(f"{folder.parent.name}, {folder.name}")
    summary = run(config, folder, RunOptions(resume=True, scores=True, checkpoint=checkpoint), told, model=model)
    shutil.rmtree(folder / "checkpoint", ignore_errors=True)  # nothing goes on with it; with all weights learning it is gigabytes
    if fresh:
        print(f"{folder.parent.name:24} {folder.name:28} {summary['nll']:.4f}", flush=True)
    return summary


def _telling(name: str, every: float = 60.0) -> Callable[[dict], None]:
    """Of a long cell a line a minute on standard error."""
    status, said = Scoring(), time.monotonic()

    def tell(event: dict) -> None:
        nonlocal said
        status.add(event)
        if time.monotonic() - said >= every:
            said = time.monotonic()
            print(f"  {name}: {status.tokens:,} tokens, {status.share.strip()}, {status.left}", file=sys.stderr, flush=True)

    return tell


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


def said_by_itself(found: dict) -> str:
    """A verdict that stands or falls with others counted together, and what it is without them where that is another."""
    alone = found.get("by_itself", found["verdict"])
    return found["verdict"] + (f" ({alone} by itself)" if alone != found["verdict"] else "")


def shown(row: dict, digits: int = 3) -> str:
    """Mean and interval of what `judged` gives."""
    number = lambda value: f"{value:+.{digits}f}"  # noqa: E731
    return number(row["mean"]) + (" (no interval)" if row["low"] is None else f" [{number(row['low'])}, {number(row['high'])}]")


def power_shown(row: dict, digits: int = 3) -> str:
    """Its "seen_with_80%", of one text none."""
    return "-" if row["seen_with_80%"] is None else f"{row['seen_with_80%']:.{digits}f}"
