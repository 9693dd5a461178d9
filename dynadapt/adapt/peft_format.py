"""LoRA adapters in PEFT's own files: adapter_config.json and adapter_model.safetensors.

Keys are ``base_model.model.<module>.lora_A.weight`` [R, in] and ``...lora_B.weight`` [out, R]; the scale is alpha / R.
"""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

from ..model import ModelError, layout, peft_name

# settings of a PEFT adapter under which it is more, or something else, than B A times one scale
UNSUPPORTED = ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save", "lora_bias", "target_parameters",
               "trainable_token_indices", "layer_replication", "alora_invocation_tokens", "use_qalora", "use_bdlora",
               "arrow_config", "kasa_config", "velora_config", "monteclora_config", "megatron_config")
BASE_CHANGING = ("pissa", "olora", "corda", "loftq", "lora_ga")  # initialisations that also change the base's weights


def _modules(learner, config):
    """(layer, group, part index, first column, last column, PEFT module name) of every adapted weight."""
    for (layer, group), (_, sizes) in learner.sizes.items():
        start = 0
        for p, (part, size) in enumerate(zip(layout(config)[group], sizes)):
            yield layer, group, p, start, start + size, peft_name(config, layer, part)
            start += size


def _key(module: str, which: str) -> str:
    return f"base_model.model.{module}.lora_{which}.weight"


def _master(learner, slot, layer, group):
    view = learner.layout.view
    return (view(learner.state.master, f"{layer}.{group}.A")[slot], view(learner.state.master, f"{layer}.{group}.Bt")[slot])


def write_adapter(directory, learner, config, slot: int, base_model: str) -> None:
    """Write the adapter of one slot, float32 masters, as a PEFT directory."""
    directory, rank = Path(directory), learner.adapt.rank
    directory.mkdir(parents=True, exist_ok=True)
    tensors, names = {}, set()
    for layer, group, p, lo, hi, module in _modules(learner, config):
        A, Bt = _master(learner, slot, layer, group)
        tensors[_key(module, "A")] = A[p * rank : (p + 1) * rank].float().contiguous()
        tensors[_key(module, "B")] = Bt[:, lo:hi].t().float().contiguous()
        names.add(".".join(module.split(".")[-2 if config.family == "gpt2" else -1 :]))  # c_proj alone is two modules
    span = learner.adapt.layers
    settings = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base_model, "r": rank,
        "lora_alpha": learner.adapt.alpha, "target_modules": sorted(names), "lora_dropout": 0.0, "bias": "none",
        "fan_in_fan_out": config.family == "gpt2", "inference_mode": True, "init_lora_weights": True, "use_rslora": False,
        "use_dora": False, "rank_pattern": {}, "alpha_pattern": {}, "modules_to_save": None,
        "layers_to_transform": None if span is None else list(span),
        "layers_pattern": None if span is None else ("h" if config.family == "gpt2" else "layers"),
    }
    save_file(tensors, str(directory / "adapter_model.safetensors"), metadata={"format": "pt"})
    (directory / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def read_settings(directory, accepted: tuple[str, ...] = ()) -> dict:
    """adapter_config.json of a LoRA adapter that this package can run; ``accepted``: settings of UNSUPPORTED to let pass.

    Raises:
        ModelError: naming the file that can't be read, or what the adapter is that it may not be (DoRA, patterns, ...).
    """
    directory = Path(directory)
    try:
        settings = json.loads((directory / "adapter_config.json").read_text())
        kind, rank, _ = settings.get("peft_type"), settings["r"], settings["lora_alpha"]
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise ModelError(f"adapter {str(directory)!r}: adapter_config.json can't be used ({error!r})") from None
    if kind != "LORA":
        raise ModelError(f"adapter {str(directory)!r} is of type {kind!r}; accepted: LORA")
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise ModelError(f"adapter {str(directory)!r} has r={rank!r}; expected a whole number of at least 1")
    for name in UNSUPPORTED:
        if settings.get(name) and name not in accepted:
            raise ModelError(f"adapter {str(directory)!r} has {name}={settings[name]!r}, which is not supported")
    if settings.get("bias", "none") != "none":
        raise ModelError(f"adapter {str(directory)!r} has bias={settings['bias']!r}, which is not supported; accepted: 'none'")
    if str(settings.get("init_lora_weights")).lower().startswith(BASE_CHANGING):
        raise ModelError(f"adapter {str(directory)!r} has init_lora_weights={settings['init_lora_weights']!r}, which also changes "
                         "the base model's weights and is not supported; convert it to plain LoRA when saving it")
    return settings


def read_adapter(directory, learner, config, slot: int) -> None:
    """Load a PEFT adapter of the same rank, alpha and targets into one slot's masters, or change nothing.

    Raises:
        ModelError: naming what the adapter has that this engine does not (rank, alpha, DoRA, patterns, modules).
    """
    directory, rank = Path(directory), learner.adapt.rank
    settings = read_settings(directory)
    for name, expected in (("r", rank), ("lora_alpha", learner.adapt.alpha)):
        if settings[name] != expected:
            raise ModelError(f"{directory}: adapter has {name}={settings[name]}; the engine's LoRA has {expected}")
    values = []
    with safe_open(str(directory / "adapter_model.safetensors"), framework="pt") as file:
        left = set(file.keys())
        for layer, group, p, lo, hi, module in _modules(learner, config):
            A, Bt = _master(learner, slot, layer, group)
            for which, target in (("A", A[p * rank : (p + 1) * rank]), ("B", Bt[:, lo:hi].t())):
                key = _key(module, which)
                if key not in left:
                    raise ModelError(f"{directory}: adapter has no {key}, which targets={learner.adapt.targets!r} needs")
                left.remove(key)
                value = file.get_tensor(key)
                if value.shape != target.shape:
                    raise ModelError(f"{directory}: {key} has shape {tuple(value.shape)}; expected {tuple(target.shape)}")
                values.append((target, value))
    if left:
        raise ModelError(f"{directory}: adapter has {sorted(left)[0]} and {len(left) - 1} more that "
                         f"targets={learner.adapt.targets!r} does not cover")
    for target, value in values:
        target.copy_(value)
    if learner.state.working is not None:
        learner.state.working[slot] = learner.state.master[slot].to(learner.state.working.dtype)
