"""`torchrun ... -m dynadapt eval`: documents shared out to processes, and one result.

Documents that know nothing of each other can be scored anywhere, so each process makes an ordinary run of its own documents under
OUT/parts, and nothing is exchanged until all are done; then the first one merges them. That only holds where no document learns
from another, and all that would break it is refused: adaptation that isn't reset at each document, a limit over all texts, a text
that can be read but once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from dynadapt.common.version import VERSION
from dynadapt.distributed import Processes
from dynadapt.engine.ledger import PHASES
from dynadapt.runs.append_only import read_metrics
from dynadapt.runs.rundir import RunDirectory, RunError, check_finished, open_directory, read_json, write_json
from dynadapt.runs.text import Source, expand, inputs
from dynadapt.runs.texts.expanding import selection

from . import guarded
from .config import ConfigError, EvalConfig
from .defaults import settled
from .dyneval import RunOptions, run
from .eval_model import load
from .eval_texts import expect_files
from .eval_totals import bits_per_byte

COUNTS = ("tokens", "bytes", "updates", "skipped_updates", "resets", "segments", "short_documents")


def run_parts(
    config: EvalConfig, out: str | Path, options: RunOptions, processes: Processes, progress: Callable[[dict], None] | None = None
) -> dict:
    """As dyneval.run, by all processes: returns the summary of all documents, and the first one writes OUT.

    progress is called with the lines of this process's own part; options.log get the lines of all of them, when they are merged.
    Raises what dyneval.run does, and ProcessError.
    """
    config = processes.from_first(lambda: settled(config, out, options.resume, lambda: load(config.model)))
    processes.same({**config.to_dict(), **asdict(options), "version": VERSION})
    sources, facts = processes.together(lambda: _check(config, processes.world))
    files = {f"text {path!r}": fact for path, fact in inputs(sources, facts).items()}
    processes.same({name: fact["sha256"] for name, fact in files.items()})
    shares = shared_out([fact["bytes"] for fact in facts], processes.world)
    directory = open_directory(processes, out, config.to_dict(), options.resume, options.scores, options.log)
    try:
        processes.from_first(lambda: expect_files(directory, files))
        if directory.finished:
            return directory.finished
        folders = [directory.path / "parts" / f"{rank}-of-{processes.world}" for rank in range(processes.world)]
        processes.from_first(lambda: _check_begun(folders))
        processes.from_first(lambda: directory.begin(folder=str(Path.cwd())))
        own = replace(config, text=tuple(selection([sources[i] for i in shares[processes.rank]])), device=processes.device(config.device))
        processes.together(lambda: run(own, folders[processes.rank], replace(options, log=()), progress))
        return processes.from_first(lambda: merge(directory, folders, shares, options.scores))
    finally:
        directory.close()


def _check(config: EvalConfig, world: int) -> tuple[list[Source], list[dict]]:
    """The documents, and size and digest of each. ConfigError for what makes a document's score depend on other documents."""
    of = f"with {world} processes"
    guarded.refuse(config, f"{of}: their scores of the prior and of each rate are not merged")
    if config.adapt != "none" and config.learn_from is not None:
        raise ConfigError(f"learn_from {config.learn_from!r} {of}: what share was learned from is not merged; leave it out")
    if config.adapt != "none" and config.keep_prior is not None:
        raise ConfigError(f"keep_prior {config.keep_prior!r} {of}: divergences from the prior are not merged; leave it out")
    if config.adapt != "none" and config.reset != "document":
        raise ConfigError(
            f"reset {config.reset!r} {of}: a document would learn from those before it in its process; give "
            "--reset document, or --adapt none"
        )
    if config.adapt == "lora" and config.keep_a:
        raise ConfigError(f"keep_a {of}: a document would begin with the A of those before it in its process; leave --keep-a out")
    if config.tokens is not None:
        raise ConfigError(f"tokens {config.tokens} {of}: which are the first of all texts depends on who reads; leave it out")
    if config.split:
        raise ConfigError(f"split {of}: they share documents out, not parts of one; give the parts as files")
    if "-" in config.text:
        raise ConfigError(f"text '-' {of}: a pipe can be read by one only; give files")
    sources = expand(config.text, config.field)
    if len(sources) < world:
        raise ConfigError(f"text: {len(sources)} {of}: each needs a document; give more, or start at most {len(sources)}")
    facts = [source.check() for source in sources]
    for source, fact in zip(sources, facts):
        if "sha256" not in fact:
            raise ConfigError(f"text {source.spec!r} {of}: a pipe can be read by one only; give files")
    return sources, facts


def shared_out(sizes: list[int], count: int) -> list[list[int]]:
    """Which things go to each of ``count`` processes: the largest first, to whoever has least; in a share in the order given."""
    shares, loads = [[] for _ in range(count)], [0] * count
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        least = loads.index(min(loads))
        shares[least].append(i)
        loads[least] += sizes[i]
    return [sorted(share) for share in shares]


def _check_begun(folders: list[Path]) -> None:
    """A run that goes on does so with as many processes as it began with."""
    parent = folders[0].parent
    others = sorted(entry.name for entry in parent.iterdir() if entry not in folders) if parent.is_dir() else []
    if others:
        began = others[0].partition("-of-")[2]
        raise RunError(
            f"{parent.parent} was begun with {began} processes, not with {len(folders)}; go on with as many, or choose another --out"
        )


# ---------------------------------------------------------------------------------------------------------------- merging


def merge(directory: RunDirectory, folders: list[Path], shares: list[list[int]], scores: bool) -> dict:
    """Writes what one run of all documents would have; its lines of metrics take turns between the parts."""
    summaries = [read_json(folder / "summary.json") for folder in folders]
    for folder, part in zip(folders, summaries):
        check_finished(folder, part)
    summary = merged_summary(summaries, shares)
    for line in merged_lines([read_metrics(folder) for folder in folders], shares):
        directory.append(line)
    if scores:
        directory.append_scores(merged_scores([np.load(folder / "scores.npy") for folder in folders], shares))
    write_json(directory.path / "env.json", {**read_json(folders[0] / "env.json"), "processes": len(folders)})
    return directory.finish(summary)


def merged_summary(parts: list[dict], shares: list[list[int]]) -> dict:
    """Of all documents, in the order given. Seconds are those of the slowest part, memory that of the largest."""
    documents = [{**document, "number": share[document["number"]]} for part, share in zip(parts, shares) for document in part["documents"]]
    documents.sort(key=lambda document: document["number"])
    summary = {**parts[0], **{name: sum(part.get(name, 0) for part in parts) for name in COUNTS}}
    mean = math.fsum(part["nll"] * part["tokens"] for part in parts) / summary["tokens"]
    flops = {phase: sum(part["flops"][phase] for part in parts) for phase in PHASES}
    seconds = max(part["seconds"] for part in parts)
    gpu = [part["peak_gpu_memory_bytes"] for part in parts]
    summary.update(
        nll=mean,
        perplexity=math.exp(min(mean, 700.0)),
        bits_per_byte=bits_per_byte(mean * summary["tokens"], summary["bytes"]),
        seconds=seconds,
        tokens_per_second=summary["tokens"] / seconds,
        flops=flops,
        flops_per_token=sum(flops.values()) / summary["tokens"],
        peak_memory_bytes=max(part["peak_memory_bytes"] for part in parts),
        peak_gpu_memory_bytes=None if None in gpu else max(gpu),
        processes=len(parts),
        documents=documents,
    )
    return summary


def merged_lines(parts: list[list[dict]], shares: list[list[int]]) -> list[dict]:
    """The first line of every part, then the second of every part, and so on, with totals over all parts."""
    lines, last = [], {}  # last: of each part
    size = 0
    for index, rank in sorted((index, rank) for rank, part in enumerate(parts) for index in range(len(part))):
        line = last[rank] = parts[rank][index]
        size += line["bytes"]
        tokens = sum(of["total_tokens"] for of in last.values())
        nll = math.fsum(of["total_nll"] * of["total_tokens"] for of in last.values())
        lines.append(
            {
                **line,
                "segment": len(lines),
                "process": rank,
                "total_tokens": tokens,
                "total_nll": nll / tokens,
                "total_bits_per_byte": bits_per_byte(nll, size),
                "total_seconds": max(of["total_seconds"] for of in last.values()),
                "documents": [None if i is None else shares[rank][i] for i in line["documents"]],
            }
        )
    return lines


def merged_scores(parts: list[np.ndarray], shares: list[list[int]]) -> np.ndarray:
    """Rows (document, position, nll) by document and position."""
    renamed = []
    for rows, share in zip(parts, shares):
        rows = rows.copy()
        rows["document"] = np.asarray(share, rows["document"].dtype)[rows["document"]]
        renamed.append(rows)
    whole = np.concatenate(renamed)
    return whole[np.lexsort((whole["position"], whole["document"]))]
