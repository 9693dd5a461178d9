"""What an evaluation's configuration describes: what learns, its optimizer, what is remembered, and the engine of these."""

from __future__ import annotations

from functools import partial

from dynadapt.adapt.methods import LATER
from dynadapt.adapt.optimizers import OPTIMIZERS

from . import guarded, kept_prior
from .adapter_words import PATTERNS, pattern_of, targets_of
from .config import EvalConfig
from .defaults import settle, settle_bos, windows_begin
from .optimizer_words import betas_of


def optimizer_of(config: EvalConfig):
    """The optimizer that a configuration describes."""
    kind, more = OPTIMIZERS[config.optimizer], {}
    if getattr(config, "betas", None) and config.optimizer in ("adam", "adamw"):  # reweighting has neither of the two
        more["betas"] = betas_of(config.betas)
    if getattr(config, "weight_decay", None) is not None and config.optimizer == "adamw":
        more["weight_decay"] = config.weight_decay
    return kind(lr=config.learning_rate, decay=config.decay, clip=config.clip, **more)


def adapt_of(config: EvalConfig):
    """What learns, as a configuration describes it; None for nothing."""
    from dynadapt.adapt import Full, LoRA, RowSparse

    layers = getattr(config, "layers", None)  # which reweighting has none of
    targets = {"targets": targets_of(config.targets), "layers": range(*layers) if layers else None}
    own = {name: pattern_of(getattr(config, name, None), kind) for name, kind in PATTERNS.items()}
    own |= {name: getattr(config, name, LATER[name]) for name in LATER if name not in own}
    own["also"] = own["also"].split(",") if own["also"] else ()
    return {
        "none": lambda: None,
        "lora": lambda: LoRA(rank=config.rank, alpha=config.alpha, **own, **targets),
        "rows": lambda: RowSparse(density=config.density, select=getattr(config, "select", "gradient"), **targets),
        "full": lambda: Full(**targets),
    }[config.adapt]()


def memory_of(config: EvalConfig, model_config=None):
    """What the engine of a model of this ModelConfig remembers, as a configuration describes it; None for nothing."""
    from dynadapt.engine.memory import Overlap, SegmentMemory

    if config.memory:
        return SegmentMemory(length=config.memory, sinks=config.sinks, refresh=config.refresh)
    if config.context:
        return Overlap(context=config.context, begin=int(windows_begin(config, model_config)))
    return SegmentMemory(length=0, sinks=1) if windows_begin(config, model_config) else None


def slow_of(config: EvalConfig):
    """The slow level of a run with levels."""
    from dynadapt.adapt import SGD, Slow

    given = {"every": config.slow_every} if config.slow_every else {}
    return Slow(optimizer=SGD(lr=1e-3 if config.slow_lr is None else config.slow_lr, momentum=0.9), **given)


def build_engine(model, config: EvalConfig):
    """The engine that a configuration describes; what is open in it is settled here."""
    from dynadapt.engine import Engine
    from dynadapt.engine.rate_mixture import RateMixture

    config = settle(settle_bos(config, model.tokenizer) if config.bos == "auto" else config, model.config)
    adapt = adapt_of(config)
    make = Engine
    if adapt and config.rates:
        make = partial(RateMixture, rates=guarded.rates_of(config.rates), halve=config.halve)
    return make(
        model,
        adapt=adapt,
        optimizer=optimizer_of(config) if adapt else None,
        memory=memory_of(config, model.config),
        streams=config.streams,
        segment=config.segment,
        every=config.every,
        accumulate=config.accumulate,
        reset=config.reset,
        dtype=config.dtype,
        backend=config.backend,
        seed=config.seed,
        device=config.device,
        batch=config.batch or None,
        recompute=config.recompute or None,
        base=config.base,
        guard=config.guard if adapt else None,
        learn_from=config.learn_from if adapt else None,
        hypergradient=config.hypergradient if config.adapt == "lora" else None,
        **({"slow": slow_of(config)} if config.levels else {}),
        **kept_prior.engine_options(config, model),
    )
