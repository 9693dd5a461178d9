"""What a run is given where nothing was said: memory, as far as the model has positions for it, the arithmetic that this machine
does fastest, and the learning rate of families that want another than most. docs/defaults.md has the measurements.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dynadapt.common.notes import note
from dynadapt.common.options import settings_of
from dynadapt.engine.arithmetic import fastest, stored
from dynadapt.model.family import FAMILIES
from dynadapt.runs.kinds import learns

from .config import LEARNING_RATES, ConfigError, EvalConfig, check_rank

MEMORY = 512


def settled(config: EvalConfig, out: str | Path | None, resume: bool, model: Callable) -> EvalConfig:
    """`config` with nothing open: a resumed run goes on with what it has in `out`, wherever it was begun.

    model() gives the Model; it is asked only where memory, the learning rate of adapters, or what a document begins with, is open.
    """
    if _usual_rate(config):
        config = at_family_rate(config, model().config)
    if not config.open:
        return config
    begun = _begun(out, resume)
    if begun is not None and config.matches(begun):
        config = config.as_begun(begun)
    if config.bos != "no":
        config = settle_bos(config, model().tokenizer)
    return settle(config, model().config if "memory" in config.open and not config.context else None)


def settle_bos(config: EvalConfig, tokenizer) -> EvalConfig:
    """`config` that says whether documents begin with a token of the tokenizer's; ``begin_of``'s errors."""
    return config.with_(bos="no" if begin_of(tokenizer, config.bos) is None else "yes")


def begin_of(tokenizer, bos: str) -> int | None:
    """The id that each document begins with; None for none. `tokenizer`: a model's, or None.

    Raises:
        ConfigError: there is none where one was asked for, or the tokenizer begins a text with several.
    """
    if bos == "no" or tokenizer is None:
        return None
    begins = tokenizer.begins
    if not begins and bos == "yes" and (own := tokenizer.special_ids.get("bos_token")) is not None:
        begins = (own,)
    if len(begins) > 1 or not begins and bos == "yes":
        what = f"begins a text with {len(begins)} tokens, {list(begins)}" if begins else "has no beginning-of-text token"
        raise ConfigError(f"bos {bos!r}: the tokenizer {what}; give no")
    return begins[0] if begins else None


def windows_begin(config: EvalConfig, model_config) -> bool:
    """Whether segments without memory see the document's beginning-of-text token in front of them, and of their context: a model that was trained
    with one before everything it read is far off without (Gemma-3-270M: 3.64 instead of 2.89 nats in windows of 512)."""
    if config.bos != "yes" or config.memory or model_config is None:
        return False
    if config.context:  # among the tokens that are run again
        return True
    return model_config.rope_theta is not None and model_config.delta is None and config.segment < model_config.max_positions


def settle(config: EvalConfig, model_config, memory: int | None = None) -> EvalConfig:
    """`config` with nothing open, for a model of this ModelConfig. `memory`: what to take where it is open, instead of what fits.

    Raises:
        ConfigError: a rank above the model's largest width.
    """
    if model_config is not None:
        check_rank(config, model_config)
    if "dtype" in config.open:
        config = config.with_(dtype=fastest(config.device, config.backend)[0])
    if "memory" in config.open:
        chosen = 0 if config.context else memory if memory is not None else fitting_memory(config, model_config)
        config = config.with_(memory=chosen)
    return config if model_config is None else at_family_rate(config, model_config)


def at_family_rate(config: EvalConfig, model_config) -> EvalConfig:
    """`config` at the learning rate of the model's family, where none is given and the family wants another than most."""
    rate = family_rates(config.optimizer, model_config).get(config.adapt) if _usual_rate(config) else None
    return config if rate is None else config.with_(lr=rate)


def family_rates(optimizer: str, model_config) -> dict[str, float]:
    """The learning rates of the model's family by what learns, where it wants others than most."""
    factors = FAMILIES[model_config.family].rate_factors
    return {adapt: LEARNING_RATES[adapt][optimizer] * factor for adapt, factor in factors.items() if optimizer in LEARNING_RATES[adapt]}


def note_usual_rate(config, model_config) -> None:
    """A note where a reweighting run learns at a rate that nobody gave, and the model's family wants another than most: it has one for all models."""
    if config.lr is not None or config.scratch or config.adapt not in family_rates(config.optimizer, model_config):
        return
    note(
        f"adapt {config.adapt!r} learns at {config.learning_rate:g}, the usual rate, found on another family; at usual rates learning did harm on "
        f"{model_config.family} (docs/defaults.md): give a lower one with --lr"
    )


def _usual_rate(config: EvalConfig) -> bool:
    """Whether it learns at a rate that nobody gave."""
    return config.adapt != "none" and config.lr is None and not config.rates


def settled_dtype(config, out: str | Path, resume: bool) -> str:
    """The dtype of a configuration (it has device and backend) that is no run of `dynadapt eval`: a resumed one goes on in its own."""
    if config.dtype != "auto":
        return config.dtype
    begun = _begun(out, resume)
    if begun is not None and begun.get("dtype") in settings_of(EvalConfig)["dtype"].choices[1:]:
        return begun["dtype"]
    return fastest(config.device, config.backend)[0]


def _begun(out: str | Path | None, resume: bool) -> dict | None:
    """The config.json of the run that is resumed; None where there is none."""
    if not resume or out is None or not (Path(out) / "config.json").is_file():
        return None
    from dynadapt.runs.rundir import read_json

    begun = read_json(Path(out) / "config.json")
    return begun if isinstance(begun, dict) else None


def fitting_memory(config: EvalConfig, model_config) -> int:
    """512 tokens, or what the model's positions leave beside a segment and the sinks; none where positions are learned."""
    if model_config.rope_theta is None:
        return 0
    return max(0, min(MEMORY, model_config.max_positions - config.segment - config.sinks))


def opening(asked: EvalConfig, config: EvalConfig, model_config=None, model=None) -> str:
    """A line that says what a run will do and how to choose otherwise: `asked` as the user wrote it, `config` with nothing open; of a
    `model` whose file is quantised, also what becomes of its integers."""
    dtype = config.dtype
    if "dtype" in asked.open:
        chosen, why = fastest(config.device, config.backend)
        dtype += f" ({why})" if chosen == config.dtype else " (as it was begun)"
    elif what := stored(config.dtype, config.device, config.backend):
        dtype += f" ({what})"
    kept = [kept_as(config, model)] if model is not None and model.block_names() else []
    parts = [
        Path(config.model).name,
        dtype,
        *kept,
        learns(vars(config)) + _family_rate(asked, config, model_config),
        remembers(asked, config, model_config),
        f"segments of {config.segment}",
        *(
            [f"documents{' and segments' * windows_begin(config, model_config)} begin with {_begin_word(model)}"]
            if config.bos == "yes"
            else []
        ),
    ]
    return ", ".join(parts) + "; choose with --dtype, --adapt, --memory, --segment"


def _family_rate(asked: EvalConfig, config: EvalConfig, model_config) -> str:
    if asked.lr is not None or config.lr is None or model_config is None:
        return ""
    return f" at {config.lr:g} (what {model_config.family} wants; --lr has another)"


def _begin_word(model) -> str:
    """The beginning-of-text token as the tokenizer spells it."""
    begin = None if model is None else begin_of(model.tokenizer, "yes")
    return "the beginning-of-text token" if begin is None else str(model.tokenizer.backend.id_to_token(begin))


def kept_as(config: EvalConfig, model) -> str:
    """What a run multiplies with, of a file that holds integers."""
    kinds = "/".join(dict.fromkeys(model.kinds[name].lower() for name in model.block_names()))
    if config.base != "same":
        return f"{kinds} as in the file" if config.base == "quants" else f"{kinds} made {config.base}"
    return f"{kinds} made {config.dtype} (--base quants: as in the file)" if keeps_quants(config) else f"{kinds} made {config.dtype}"


def keeps_quants(config: EvalConfig) -> bool:
    """Whether --base quants would serve this configuration."""
    import torch

    from dynadapt.ops import choose_device

    device = choose_device(config.device, config.backend, torch.bfloat16).type
    return device == "cpu" and config.backend in ("auto", "cpu") and config.dtype != "fp64" and config.adapt in ("none", "lora")


def remembers(asked: EvalConfig, config: EvalConfig, model_config=None) -> str:
    if config.context:
        return f"context {config.context}"
    if config.memory:
        limited = "memory" in asked.open and config.memory < MEMORY and model_config is not None
        return (
            f"memory {config.memory}"
            + (f" + {config.sinks} sinks" if config.sinks else "")
            + (f" (what {model_config.max_positions} positions leave)" if limited else "")
        )
    if "memory" not in asked.open or model_config is None:
        return "no memory"
    if model_config.rope_theta is None:
        return "no memory (learned positions; --context N runs earlier tokens again)"
    return f"no memory (a segment takes all {model_config.max_positions} positions)"
