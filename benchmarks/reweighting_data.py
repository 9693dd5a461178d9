"""What `benchmarks/reweighting.py` trains and judges on: a subset of a corpus, and a small tokenizer of its own.

Held-out documents are split in two by turns: a mixer may read the losses of the one half while it trains (heldout.jsonl), and all
mixers are judged on the other (test.jsonl), which no rule ever sees.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from dynadapt.experiments.corpus_read import check_corpus, part_files, read_documents
from dynadapt.experiments.reweight import ReweightConfig
from dynadapt.experiments.reweight.domains import Rows, encode_rows
from dynadapt.model import random_model, tiny_config
from dynadapt.model.convert import write_directory
from dynadapt.model.tokenizer import Tokenizer as ModelTokenizer

EXCERPT = 2000  # characters of each held-out document
END = "<|endoftext|>"


def subset(corpus: Path, out: Path, share: float) -> dict[str, str]:
    """Paths of the domains under `out`: `share` of each one's training text, by document, and its held-out documents."""
    check_corpus(corpus)
    return {name: str(_subset(corpus / name, out / name, share)) for name in sorted(part_files(corpus))}


def _subset(source: Path, out: Path, share: float) -> Path:
    if (out / "test.jsonl").exists():
        return out
    train = [text for _, text in read_documents(source / "train.jsonl")]
    order = np.random.default_rng(0).permutation(len(train))
    wanted, kept = share * sum(map(len, train)), []
    for index in order:
        if sum(map(len, kept)) >= wanted:
            break
        kept.append(train[index][: int(wanted) + 1])
    held = [text[:EXCERPT] for _, text in read_documents(source / "heldout.jsonl")]
    temporary = out.with_name(out.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for name, texts in (("train", kept), ("heldout", held[0::2]), ("test", held[1::2])):
        (temporary / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
    temporary.rename(out)
    return out


def small_vocabulary(domains: dict[str, str], out: Path, size: int) -> str:
    """A model directory whose tokenizer is a byte-level BPE of `size` tokens, trained on the domains' training text.

    Only the tokenizer is used: a model from scratch takes it over, and has random weights of its own.
    """
    if not out.exists():
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=[END], show_progress=False
        )
        texts = (text for path in domains.values() for _, text in read_documents(Path(path) / "train.jsonl"))
        backend.train_from_iterator(texts, trainer)
        config = tiny_config("llama", vocab_size=backend.get_vocab_size(), layers=1, eos_token_id=backend.token_to_id(END))
        temporary = out.with_name(out.name + ".tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        write_directory(random_model(config, tokenizer=ModelTokenizer(backend, eos_id=config.eos_token_id)), temporary)
        temporary.rename(out)
    return str(out)


def judged(config: ReweightConfig, engine, rows: int) -> dict[str, float]:
    """Mean NLL of each domain's first `rows` test rows, nats per token."""
    losses = {}
    for name, path in config.domains.items():
        texts = [text for _, text in read_documents(Path(path) / "test.jsonl")]
        found: Rows = encode_rows(texts, config.segment, engine.model)
        chosen = np.linspace(0, len(found) - 1, min(rows, len(found))).astype(int)
        scores = [
            engine.score(torch.from_numpy(np.stack([found[row] for row in chosen[first : first + config.rows]])))
            for first in range(0, len(chosen), config.rows)
        ]
        losses[name] = float(torch.cat(scores).double().mean())
    return losses


def tokens_per_byte(config: ReweightConfig, model) -> dict[str, float]:
    """Of each domain's test text in UTF-8: what nats per token become nats per byte with."""
    found = {}
    for name, path in config.domains.items():
        texts = [text for _, text in read_documents(Path(path) / "test.jsonl")]
        found[name] = len(encode_rows(texts, config.segment, model).tokens) / sum(len(text.encode()) for text in texts)
    return found
