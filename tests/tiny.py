"""A tiny model directory with a tokenizer of its own, and runs with it that take no time."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from dynadapt.experiments.config import EvalConfig
from dynadapt.model import hf_name, random_model, tiny_config
from dynadapt.model.hf_config import config_to_hf
from dynadapt.model.layout import hf_tensor

WORDS = "the cat sat on a mat and saw what the other cat had seen before it ran to find some food near an old house".split()


def english(words: int, seed: int = 0) -> str:
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randint(len(WORDS), (words,), generator=generator).tolist()
    return " ".join(WORDS[pick] + ("." if i % 11 == 10 else "") for i, pick in enumerate(picks)) + "\n"


def tiny_tokenizer(size: int = 300) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator([english(3000)], trainer)
    return tokenizer


def tiny_directory(path: Path, family: str = "llama", **changes) -> Path:
    """Writes config.json, model.safetensors and tokenizer.json of a random model; `changes` replace tensors by name."""
    path.mkdir(parents=True, exist_ok=True)
    tokenizer = tiny_tokenizer()
    tokenizer.save(str(path / "tokenizer.json"))
    config = tiny_config(family, vocab_size=tokenizer.get_vocab_size(), layers=2)
    model = random_model(config, seed=1, std=0.1)
    state = {}
    for name in model.names():
        state[hf_name(config, name)] = hf_tensor(config, name, changes.get(name, model.tensor(name))).contiguous()
    save_file(state, str(path / "model.safetensors"))
    (path / "config.json").write_text(json.dumps(config_to_hf(config)))
    return path


def tiny_root(path: Path, words: int) -> Path:
    """A directory with a tiny model and a text of so many words: model/ and a.txt."""
    tiny_directory(path / "model")
    (path / "a.txt").write_text(english(words))
    return path


def two_texts_root(path: Path) -> Path:
    """A directory with a tiny model and two texts: model/, a.txt of 150 words and b.txt of 90."""
    tiny_directory(path / "model")
    for name, words in (("a.txt", 150), ("b.txt", 90)):
        (path / name).write_text(english(words, words))
    return path


def two_texts_config(root: Path, **settings) -> EvalConfig:
    """Of a run over both texts of ``two_texts_root``."""
    return EvalConfig(model=str(root / "model"), text=tuple(str(root / name) for name in ("a.txt", "b.txt")), **settings)


def reweight_settings(model, domains: dict, /, **changes) -> dict:
    """A reweighting of a few small steps, on the plain reference."""
    settings = dict(segment=16, rows=3, evaluate=4, backend="reference", dtype="fp32", lr=0.01, policy="repeat")
    return {"model": str(model), "domains": {name: str(path) for name, path in domains.items()}, **settings, **changes}


def eval_config(model, texts, /, **changes) -> EvalConfig:
    """LoRA on the plain reference, without memory."""
    settings = dict(segment=16, rank=2, backend="reference", dtype="fp32", lr=0.01, memory=0)
    return EvalConfig(**{"model": str(model), "text": tuple(map(str, texts)), **settings, **changes})


def config_of(root: Path, **changes) -> EvalConfig:
    """Of what `tiny_root` made."""
    return eval_config(root / "model", [root / "a.txt"], **changes)
