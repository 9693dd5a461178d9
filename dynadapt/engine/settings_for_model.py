"""Which of ``Engine``'s settings a model can't have, refused by name."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from dynadapt.adapt.methods import EMBED, GROUPS, HEAD, LoRA, has_lengths, whole_model, words_beside
from dynadapt.adapt.targets import norms_and_biases, targeted
from dynadapt.model.family import FAMILIES
from dynadapt.ops.dispatch import kernel_module

from .memory import SegmentMemory
from .step_arguments import check_ids
from .weights import group_sizes

if TYPE_CHECKING:
    from .settings import EngineSettings


def check_model(settings: EngineSettings, config) -> None:
    """What depends on the model. Warns where the window exceeds the positions that it was made for."""
    if settings.slow is not None and (settings.slow.window or 0) > config.max_positions:
        raise ValueError(
            f"slow.window={settings.slow.window}: the model has {config.max_positions} positions; expected at most these, or None"
        )
    learning = targeted(settings.adapt, config)
    if settings.keep is not None:
        _check_kept_model(settings, config, learning)
    norms = whole_model(settings.adapt)
    if words_beside(settings.adapt):
        norms = any(name.endswith("norm.weight") for name in norms_and_biases(settings.adapt, config))
    if settings.base == "float8" and settings.owns_weights and len(learning) == config.layers * len(GROUPS):
        raise ValueError(f"base='float8' with adapt={settings.adapt!r}: every linear weight learns and none is frozen; use base='same'")
    if settings.base == "int8" and isinstance(settings.adapt, LoRA) and (config.layers, HEAD) in learning:
        raise ValueError(
            f"base='int8' with adapt={settings.adapt!r}: an adapter learns on a head in int8, whose logits no gradient makes again; leave "
            "the head out of targets, or use base='same'"
        )
    if has_lengths(settings.adapt) and {(-1, EMBED), (config.layers, HEAD)} & {*learning}:
        raise ValueError(f"adapt={settings.adapt!r}: DoRA is for the linears of layers; leave head and embed out of targets")
    if settings.backend == "triton" and isinstance(settings.adapt, LoRA) and (-1, EMBED) in learning:
        raise ValueError(
            f"adapt={settings.adapt!r} with backend='triton': it has no kernels for an adapter on the embedding; leave embed out of targets, or "
            "use backend='cpu'"
        )
    if settings.backend == "triton" and config.head_dim > kernel_module("attention").MAX_HEAD:
        raise ValueError(
            f"backend='triton': its attention takes heads of up to {kernel_module('attention').MAX_HEAD}, this model's have "
            f"{config.head_dim}; use backend='cpu' or 'reference'"
        )
    if settings.base == "float8" and settings.backend == "triton":
        _check_float8_sizes(settings, config, set(learning) if settings.owns_weights else set())
    if norms and settings.optimizer.rule().weight_decay and FAMILIES[config.family].hf_norm_offset:
        raise ValueError(
            f"optimizer={settings.optimizer!r} with adapt={settings.adapt!r}: {config.family} multiplies with 1 + w where w is a norm's weight, "
            "and its weight decay would pull 1 + w to 0; use weight_decay=0, or decay (to the prior)"
        )
    if config.delta is not None:
        _check_delta(settings, config)
    learned_positions = config.rope_theta is None
    if isinstance(settings.memory, SegmentMemory) and learned_positions:
        raise ValueError(
            f"memory={settings.memory!r}: {config.family} has learned absolute positions, which cannot "
            "count inside a moving window; use Overlap(context) instead"
        )
    if settings.window <= config.max_positions:
        return
    text = (
        f"window of {settings.window} tokens (segment={settings.segment} and memory={settings.memory!r}) exceeds the model's "
        f"{config.max_positions} positions"
    )
    if learned_positions:
        raise ValueError(text)
    warnings.warn(text + "; scores beyond them are extrapolation", stacklevel=5)


def _check_kept_model(settings: EngineSettings, config, learning) -> None:
    """What a pull to the prior can't be of."""
    if whole_model(settings.adapt) or (config.layers, HEAD) in learning:
        raise ValueError(
            f"adapt={settings.adapt!r} with keep={settings.keep!r}: both models must have one head; leave it out of what learns"
        )
    if config.logits_softcap is not None:
        raise ValueError(f"keep={settings.keep!r}: {config.family} caps its logits, behind which the divergence has another form; use None")
    if config.delta is not None:
        raise ValueError(
            f"keep={settings.keep!r}: a pass over the reference text would leave {config.family}'s states of the gated delta rule where the "
            "segment's are remembered from; use None"
        )
    if settings.keep.tokens > config.max_positions:
        raise ValueError(f"keep.tokens={settings.keep.tokens}: the model has {config.max_positions} positions; expected at most these")
    check_ids(settings.keep.reference, config.vocab_size, "keep.reference")


def _check_delta(settings: EngineSettings, config) -> None:
    """What a model with layers of the gated delta rule can't have."""
    if whole_model(settings.adapt):
        raise ValueError(
            f"adapt={settings.adapt!r}: the convolutions, decays and norms of {config.family}'s layers of the gated delta rule don't learn; "
            "use Full(targets='all'), which is every linear of the layers, or LoRA or RowSparse"
        )
    if isinstance(settings.memory, SegmentMemory) and settings.memory.refresh == "reproject":
        raise ValueError(
            f"memory={settings.memory!r}: the state of {config.family}'s layers of the gated delta rule can't be made again with other "
            "weights from what is kept; use refresh='keep', or Overlap(context), which runs the last tokens again"
        )
    if settings.backend == "triton" and isinstance(settings.adapt, (list, tuple)):
        raise ValueError(
            f"adapt={settings.adapt!r} with backend='triton': {config.family} has four linears side by side, and adapters of each stream's own "
            "rank stand at three at most there; use one LoRA for all streams, or backend='cpu'"
        )


def _check_float8_sizes(settings: EngineSettings, config, own: set) -> None:
    most = kernel_module("float8").MAX_COLUMNS
    for (layer, group), (k, parts) in group_sizes(config).items():
        o = sum(parts)
        if (layer, group) not in own and (k % 16 or o % 16 or max(k, o if settings.adapt is not None else 0) > most):
            raise ValueError(
                f"base='float8' with backend='triton': the weights {group} of layer {layer} are [{o}, {k}]; expected sizes "
                f"divisible by 16 and at most {most}"
            )
