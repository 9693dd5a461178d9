"""What a model's generation_config.json and a task say about generating, for greedy generation as transformers does it."""

from __future__ import annotations

import os
from collections.abc import Mapping

from dynadapt.experiments.config import ConfigError
from dynadapt.model.json_file import read_json
from dynadapt.model.live import is_live
from dynadapt.model.load import directory_of

# What changes greedy generation, with the values that change nothing.
_NEUTRAL = {
    "num_beams": (1,),
    "num_return_sequences": (1,),
    "no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1,),
    "encoder_no_repeat_ngram_size": (0,),
    "min_length": (0,),
    "diversity_penalty": (0,),
    "num_beam_groups": (1,),
    "guidance_scale": (1,),
    "token_healing": (False,),
    **dict.fromkeys(
        """
        min_new_tokens bad_words_ids force_words_ids suppress_tokens begin_suppress_tokens sequence_bias forced_bos_token_id
        forced_eos_token_id exponential_decay_length_penalty penalty_alpha dola_layers stop_strings constraints max_time
        watermarking_config
        """.split(),
        (),
    ),
}
# Of no effect on greedy generation, or read elsewhere.
_OF_NO_EFFECT = frozenset(
    """
    do_sample temperature top_k top_p min_p top_h typical_p epsilon_cutoff eta_cutoff use_cache length_penalty early_stopping
    renormalize_logits remove_invalid_values repetition_penalty until max_gen_toks
    """.split()
)


def model_defaults(model) -> dict:
    """What the generation_config.json of a directory or of a live model says; empty where there is none.

    `eos_token_id` is that of config.json where there is no generation_config.json.
    """
    if is_live(model):
        generation = getattr(model, "generation_config", None)
        return generation.to_dict() if generation is not None else {}
    if not isinstance(model, (str, os.PathLike)):
        return {}
    path = directory_of(model)
    if path is None:
        return {}
    path = path.parent if path.suffix == ".safetensors" else path
    for name in ("generation_config.json", "config.json"):
        if (path / name).is_file():
            content = read_json(path / name)
            if not isinstance(content, dict):
                raise ConfigError(f"{path / name}: must hold an object")
            return content if name.startswith("generation") else {"eos_token_id": content.get("eos_token_id")}
    return {}


def end_ids(defaults: Mapping, otherwise: int | None) -> tuple[int, ...]:
    """The token ids that end a generation."""
    given = defaults.get("eos_token_id", otherwise)
    return tuple(given) if isinstance(given, list) else () if given is None else (given,)


def check_defaults(defaults: Mapping) -> None:
    """ConfigError for what a model says of generating that greedy generation here would not do."""
    for key, neutral in {**_NEUTRAL, "max_new_tokens": ()}.items():
        if defaults.get(key) is not None and defaults[key] not in neutral:
            raise ConfigError(
                f"generation_config.json: {key} = {defaults[key]!r} is not supported; accepted: {', '.join(map(str, neutral)) or 'absent'}"
            )


def check_request(settings: Mapping) -> None:
    """ConfigError for a setting of a task that greedy generation here would not follow."""
    if settings["do_sample"]:
        raise ConfigError(f"do_sample with temperature {settings.get('temperature', 1)}: this model generates greedily")
    for key, value in settings.items():
        if key not in _OF_NO_EFFECT and not (key in _NEUTRAL and (value is None or value in _NEUTRAL[key])):
            raise ConfigError(f"generation setting {key}={value!r}: expected one of until, max_gen_toks, repetition_penalty")


def repetition_penalty(defaults: Mapping, settings: Mapping) -> float:
    """By how much the logits of tokens that are already there are lowered; 1 is not at all."""
    value = settings.get("repetition_penalty", defaults.get("repetition_penalty"))
    if value is None:
        return 1.0
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e6:
        raise ConfigError(f"repetition_penalty={value!r}: expected a number above 0")
    return float(value)
