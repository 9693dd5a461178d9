"""What `benchmarks/reweighting.py` trains and judges on: a subset of a corpus, and a small tokenizer of its own.

Held-out documents are split in two by turns: a mixer may read the losses of the one half while it trains (heldout.jsonl), and all
mixers are judged on the other (test.jsonl), which no rule ever sees.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from benchmarks.script import made_once
from dynadapt.experiments.corpus_read import check_corpus, part_files, read_documents, read_manifest
from dynadapt.experiments.reweight import ReweightConfig
from dynadapt.experiments.reweight.domains import Rows, encode_rows, made_by
from dynadapt.model import random_model, tiny_config
from dynadapt.model.convert import write_directory
from dynadapt.model.tokenizer import Tokenizer as ModelTokenizer
from dynadapt.runs.rundir import read_json, write_json

EXCERPT = 2000  # characters of each held-out document
END = "<|endoftext|>"
MADE_OF = "made-of.json"  # digests of the texts that a vocabulary is made of


def subset(corpus: Path, out: Path, share: float) -> dict[str, str]:
    """Paths of the domains under `out`: `share` of each one's training text, by document, and its held-out documents.

    Raises:
        SystemExit: a share that is none, or other texts that lie there already.
    """
    if not 0 < share <= 1:
        raise SystemExit(f"--share {share}: give a number above 0, up to 1")
    check_corpus(corpus)
    return {name: str(_subset(corpus / name, out / name, share)) for name in sorted(part_files(corpus))}


def _subset(source: Path, out: Path, share: float) -> Path:
    train = [text for _, text in read_documents(source / "train.jsonl")]
    texts = {"train": _kept(train, share), **_held_out(source)}
    made_once(out, lambda folder: _write(folder, texts))
    for part, lines in texts.items():
        if (out / f"{part}.jsonl").read_text("utf-8") != lines:
            raise SystemExit(f"{out / part}.jsonl holds other texts than a share of {share:g} of {source}: give another --out")
    return out


def _write(folder: Path, texts: dict[str, str]) -> None:
    folder.mkdir()
    for part, lines in texts.items():
        (folder / f"{part}.jsonl").write_text(lines, "utf-8")


def _kept(train: list[str], share: float) -> str:
    wanted, kept, so_far = share * sum(map(len, train)), [], 0
    for index in np.random.default_rng(0).permutation(len(train)):
        if so_far >= wanted:
            break
        kept.append(train[index][: int(wanted) + 1])
        so_far += len(kept[-1])
    return _lines(kept)


def _held_out(source: Path) -> dict[str, str]:
    """By part of a domain's folder: what mixers may read, and what all are judged on."""
    held = [text[:EXCERPT] for _, text in read_documents(source / "heldout.jsonl")]
    return {"heldout": _lines(held[0::2]), "test": _lines(held[1::2])}


def _lines(texts: list[str]) -> str:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts)


def check_judged(corpus: Path, out: Path) -> None:
    """SystemExit where the texts under `out`, if there are any, are judged on other documents than this corpus holds out."""
    read_manifest(corpus)
    for folder in sorted(out.glob("*/test.jsonl")):
        source = corpus / folder.parent.name
        if not source.is_dir() or folder.read_text("utf-8") != _held_out(source)["test"]:
            raise SystemExit(f"{folder} holds other texts than {source}: give the --corpus that {out.parent} was made of")


def small_vocabulary(domains: dict[str, str], out: Path, size: int) -> str:
    """A model directory whose tokenizer is a byte-level BPE of `size` tokens, trained on the domains' training text.

    Only the tokenizer is used: a model from scratch takes it over, and has random weights of its own.

    Raises:
        SystemExit: the one that is there was made of other texts.
    """
    made_of = {name: hashlib.sha256((Path(path) / "train.jsonl").read_bytes()).hexdigest()[:16] for name, path in domains.items()}
    made_once(out, lambda folder: _make_vocabulary(domains, folder, size, made_of))
    if (out / MADE_OF).exists() and read_json(out / MADE_OF) != made_of:  # an earlier version kept none
        raise SystemExit(f"{out} is a vocabulary of other texts than are given now: give another --out")
    return str(out)


def _make_vocabulary(domains: dict[str, str], folder: Path, size: int, made_of: dict[str, str]) -> None:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=[END], show_progress=False
    )
    texts = (text for path in domains.values() for _, text in read_documents(Path(path) / "train.jsonl"))
    backend.train_from_iterator(texts, trainer)
    config = tiny_config("llama", vocab_size=backend.get_vocab_size(), layers=1, eos_token_id=backend.token_to_id(END))
    write_directory(random_model(config, tokenizer=ModelTokenizer(backend, eos_id=config.eos_token_id)), folder)
    write_json(folder / MADE_OF, made_of)


def judged(config: ReweightConfig, engine, rows: int) -> dict[str, float]:
    """Mean NLL of each domain's first `rows` test rows, nats per token."""
    losses, by = {}, made_by(engine.model)
    for name, path in config.domains.items():
        texts = [text for _, text in read_documents(Path(path) / "test.jsonl")]
        found: Rows = encode_rows(texts, config.segment, engine.model, by)
        chosen = np.linspace(0, len(found) - 1, min(rows, len(found))).astype(int)
        scores = [
            engine.score(torch.from_numpy(np.stack([found[row] for row in chosen[first : first + config.rows]])))
            for first in range(0, len(chosen), config.rows)
        ]
        losses[name] = float(torch.cat(scores).double().mean())
    return losses


def tokens_per_byte(config: ReweightConfig, model) -> dict[str, float]:
    """Of each domain's test text in UTF-8: what nats per token become nats per byte with."""
    found, by = {}, made_by(model)
    for name, path in config.domains.items():
        texts = [text for _, text in read_documents(Path(path) / "test.jsonl")]
        found[name] = len(encode_rows(texts, config.segment, model, by).tokens) / sum(len(text.encode()) for text in texts)
    return found


def rounded(content):
    """Floats to six decimals, wherever they are: nats and shares are not known better."""
    if isinstance(content, dict):
        return {key: rounded(value) for key, value in content.items()}
    if isinstance(content, list):
        return [rounded(value) for value in content]
    return round(content, 6) if isinstance(content, float) else content
