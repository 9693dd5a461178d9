"""What a run is made of: its model, engine, reference and mixer."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from dynadapt.engine import Engine
from dynadapt.engine.state import state_tensors
from dynadapt.experiments.config import ConfigError, check_rank
from dynadapt.experiments.dyneval import adapt_of, optimizer_of
from dynadapt.experiments.mixers import MIXERS, Mixer, MixerError, Shaping, make_mixer, proportions
from dynadapt.experiments.mixers.mixer import by_domain, check_weights
from dynadapt.model import ModelConfig, load, random_model
from dynadapt.model.geometries import llama
from dynadapt.runs.checkpoints import last_state
from dynadapt.runs.rundir import RunError, read_json

from .config import ReweightConfig, scratch_size

NEED_TARGET = ("velocitune", "dynamic-batch-loading")


def load_model(config: ReweightConfig):
    """The model to train: as it is, or of the size of `scratch` with random weights and the tokenizer of the one named."""
    model = load(config.model)
    if model.tokenizer is None:
        raise RunError(
            f"model {config.model!r} has no tokenizer; put its tokenizer.json next to the weights, or take a GGUF file that holds one"
        )
    if not config.scratch:
        model.check_finite()
        return model
    return random_model(scratch_config(config, model.config), seed=config.seed, tokenizer=model.tokenizer)


def scratch_config(config: ReweightConfig, other: ModelConfig) -> ModelConfig:
    """A llama with tied head, heads of 64 (16 in the smallest), a feed-forward of 8/3 of its width and the other's vocabulary."""
    layers, hidden = scratch_size(config.scratch)
    head = next(size for size in (64, 32, 16) if hidden % size == 0)
    return llama(
        vocab_size=other.vocab_size,
        hidden_size=hidden,
        layers=layers,
        heads=hidden // head,
        kv_heads=hidden // head,
        head_dim=head,
        ffn_size=-(-8 * hidden // 3 // 32) * 32,
        rope_theta=10000.0,
        max_positions=max(2048, config.segment),
        tied_head=True,
        bos_token_id=other.bos_token_id,
        eos_token_id=other.eos_token_id,
    )


def build_engine(model, config: ReweightConfig, device: str | None = None):
    """One set of weights for all rows of a step: ordinary training on their mean loss."""
    check_rank(config, model.config)
    return Engine(
        model,
        adapt=adapt_of(config),
        optimizer=optimizer_of(config),
        shared=True,
        streams=config.rows,
        segment=config.segment,
        dtype=config.dtype,
        backend=config.backend,
        device=device or config.device,
        recompute=config.recompute or None,
        seed=config.seed,
    )


def trained_engine(run: Path, **changes):
    """The engine of a run as its last checkpoint has it; `changes` replace settings of how it computes (backend, device)."""
    config = replace(ReweightConfig.from_dict(read_json(run / "config.json")), **changes)
    state = last_state(run)
    engine = build_engine(load_model(config), config)
    engine.restore(state / "engine")
    return engine


def learned_digest(engine) -> str:
    """Hex sha256 of the model of an engine and of what it learned."""
    digest = hashlib.sha256(engine.model.fingerprint().encode())
    for name, value in sorted(state_tensors(engine).items()):
        if not name.endswith(".grad"):
            digest.update(name.encode() + value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def build_reference(config: ReweightConfig, vocabulary: int, device: str | None = None):
    """What DoReMi's excess is measured against: a model as it is, or one that an earlier run trained."""
    if config.reference is None:
        raise ConfigError(
            f"reference: mixer {config.mixer!r} compares with a reference model; name a model, or the directory of a run that trained one"
        )
    run, device = Path(config.reference), device or config.device
    if (run / "summary.json").is_file() and read_json(run / "config.json").get("kind") == "reweight":
        engine = trained_engine(run, backend=config.backend, device=device)
    else:
        engine = Engine(
            load(config.reference), streams=config.rows, segment=config.segment, dtype=config.dtype, backend=config.backend, device=device
        )
    if engine.config.vocab_size != vocabulary:
        raise ConfigError(
            f"reference {config.reference!r} has a vocabulary of {engine.config.vocab_size}, the model has "
            f"{vocabulary}; their tokenizers must be the same"
        )
    return engine


def initial_weights(config: ReweightConfig, sizes: Mapping[str, int]) -> dict[str, float]:
    """By domain; sizes are training rows."""
    if config.weights == "proportional":
        return proportions(tuple(sizes), sizes)
    if config.weights == "uniform":
        return {domain: 1.0 / len(sizes) for domain in sizes}
    return dict(zip(sizes, check_weights("initial weights", tuple(sizes), config.weights).tolist()))


def check_mixer(config: ReweightConfig, sizes: Mapping[str, int]) -> None:
    """Everything about the mixer that can be refused before any work is."""
    if config.mixer in NEED_TARGET:
        if config.target is None:
            raise MixerError(
                f"target losses: mixer {config.mixer!r} needs one for every domain ({', '.join(sizes)}): give "
                "--target NAME=NATS, or the file that `dynadapt reweight fit` writes"
            )
        by_domain("target losses", tuple(sizes), config.target, least=0.0)
    elif config.target is not None:
        raise MixerError(f"target losses: mixer {config.mixer!r} uses none; {' and '.join(NEED_TARGET)} do")
    if config.reference is not None and MIXERS[config.mixer].signal != "excess":
        raise ConfigError(f"reference {config.reference!r}: mixer {config.mixer!r} uses none; doremi does")
    dry = replace(config, target=None) if config.mixer not in NEED_TARGET else config
    high = None if config.target is None else {domain: value + 1e6 for domain, value in config.target.items()}
    build_mixer(dry, sizes, high or dict.fromkeys(sizes, 0.0), 2)


def build_mixer(config: ReweightConfig, sizes: Mapping[str, int], start: Mapping[str, float], vocabulary: int) -> Mixer:
    """The mixer with what it needs of the run; `settings` win. start: held-out losses before training."""
    known = {
        "velocitune": {"start": start, "target": config.target},
        "dynamic-batch-loading": {"target": config.target},
        "proportional": {"sizes": sizes},
        "ado": {"sample_tokens": config.segment},
        "doremi": {"vocabulary": vocabulary, "rows": config.rows},
    }
    shaping = Shaping(config.pace, config.smoothing, config.floor)
    settings = {**known.get(config.mixer, {}), **config.settings}
    return make_mixer(config.mixer, tuple(sizes), initial_weights(config, sizes), shaping, **settings)
