"""What a live model's modules hold beside tensors and config: refused by name where the decoder would compute something else."""

from __future__ import annotations

import math

import torch

from .config import ModelConfig
from .errors import ModelError
from .rope import rope_frequencies, rope_scale

# Attributes of linear layers whose weight is stored in another form: GPTQ and AWQ, bitsandbytes, HQQ, compressed tensors, torch.ao.
_QUANTISED = ("qweight", "quant_state", "SCB", "W_q", "weight_packed", "_packed_params")
_EPS = ("Gemma3RMSNorm", "Qwen3_5RMSNorm")  # norms that have `eps`, which others call variance_epsilon
_ACTIVATIONS = {
    "swiglu": torch.nn.functional.silu,
    "geglu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
}
_KINDS = {"": False, "full_attention_": False, "sliding_attention_": True}  # of layers, as rotary modules call them -> with a window


def refuse_modules(model, name: str) -> None:
    """Raise ModelError for a module whose weights or forward can't be read as they are: quantised, compiled apart, scripted."""
    for path, module in model.named_modules():
        where = f"{name}: module {path or 'itself'} is a {type(module).__name__}"
        if hasattr(module, "_orig_mod"):
            raise ModelError(
                f"{where} made by torch.compile(module); accepted: the module it was made from (._orig_mod), or "
                "module.compile(), which is in place"
            )
        if isinstance(module, torch.jit.ScriptModule):
            raise ModelError(f"{where}: its code can't be followed; accepted: the model before torch.jit")
        weight = getattr(module, "weight", None)
        forms = [a for a in _QUANTISED if getattr(module, a, None) is not None or getattr(weight, a, None) is not None]
        plain = weight is None or isinstance(weight, torch.Tensor) and type(weight.detach()) is torch.Tensor
        if forms or not plain or getattr(weight, "is_quantized", False):
            raise ModelError(
                f"{where} with a weight of {type(weight).__name__}{''.join(f', {a}' for a in forms)}: quantised "
                "and wrapped weights are not supported; accepted: the model with plain floating-point weights"
            )


def refuse_changes(model, config: ModelConfig, name: str) -> None:
    """Raise ModelError where a module computes with another number or function than the model's config says."""
    for path, module in model.named_modules():
        for attribute, value, expected in _settings(module, config):
            if not math.isclose(value, expected, rel_tol=1e-6):
                raise ModelError(
                    f"{name}: {path}.{attribute} is {value!r}, the config gives {expected!r}: changed after the model "
                    "was made, which the decoder would not follow"
                )
        for kind, windowed in _KINDS.items():
            buffer = f"{kind}{_frequencies(config)}"
            frequencies = getattr(module, buffer, None)
            if isinstance(frequencies, torch.Tensor) and config.rope_theta is not None and not frequencies.is_meta:
                _check_frequencies(f"{name}: {path}.{buffer}", frequencies, config, windowed)
        scale = getattr(module, "embed_scale", None)
        if isinstance(scale, torch.Tensor) and not scale.is_meta:
            _check_scale(f"{name}: {path}.embed_scale", scale, config)
        if getattr(module, "use_parallel_residual", config.parallel_residual) != config.parallel_residual:
            raise ModelError(f"{name}: {path}.use_parallel_residual is {not config.parallel_residual}: changed after the model was made")
        for attribute in ("act_fn", "act", "activation_fn"):
            if callable(getattr(module, attribute, None)):
                _check_activation(f"{name}: {path}.{attribute}", getattr(module, attribute), config)


def _frequencies(config):
    """The rotary modules' buffer: where the frequencies depend on the last call's length, that of those before any call."""
    depends = config.rope_scaling is not None and config.rope_scaling["rope_type"] in ("dynamic", "longrope")
    return "original_inv_freq" if depends else "inv_freq"


def _settings(module, config):
    """(attribute, its value, the config's) of what one module computes with."""
    numbers = {"variance_epsilon": config.norm_eps, "residual_multiplier": config.residual_scale}
    numbers["embedding_multiplier"] = config.embedding_scale
    if config.rope_theta is not None:
        numbers |= {f"{kind}attention_scaling": rope_scale(config, windowed) for kind, windowed in _KINDS.items()}
    if hasattr(module, "layer_idx"):  # an attention
        numbers["scaling"] = config.scores_scale
        if (window := config.window(module.layer_idx)) is not None:
            numbers["sliding_window"] = window
    if isinstance(module, torch.nn.LayerNorm) or type(module).__name__ in _EPS:
        numbers["eps"] = config.norm_eps
    if getattr(module, "training", False):
        numbers["attention_dropout"] = 0.0
        if isinstance(module, torch.nn.Dropout):
            numbers["p"] = 0.0
    for attribute, expected in numbers.items():
        value = getattr(module, attribute, None)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            yield attribute, value, expected


def _check_scale(what, found, config):
    rounding = max(1e-6, torch.finfo(found.dtype).eps)
    if not math.isclose(float(found), config.embedding_scale, rel_tol=rounding):
        raise ModelError(f"{what} is {float(found)!r}, the config gives {config.embedding_scale!r}: changed after the model was made")


def _check_frequencies(what, found, config, windowed):
    expected = rope_frequencies(config, windowed=windowed)
    rounding = max(1e-5, 2 * torch.finfo(found.dtype).eps)  # model.to(bfloat16) rounds the buffer too
    if found.shape != expected.shape or not torch.allclose(found.detach().double().cpu(), expected, rtol=rounding, atol=0):
        raise ModelError(f"{what} has other values than the config gives: changed after the model was made")


@torch.no_grad()
def _check_activation(what, function, config):
    if getattr(function, "_forward_hooks", None) or getattr(function, "_forward_pre_hooks", None):
        raise ModelError(f"{what} has forward hooks, which may change what it computes: remove them first")
    x = torch.linspace(-4, 4, 33)
    expected = _ACTIVATIONS[config.activation](x)
    y = function(x)
    if not isinstance(y, torch.Tensor) or y.shape != x.shape or not torch.allclose(y, expected, atol=1e-5):
        raise ModelError(
            f"{what} is a {type(function).__name__}, which is not the config's {config.activation}: changed after the model was made"
        )


def unlike(model) -> str:
    """What in a model, beside all that is checked by name, may change its forward: for an error that has to guess."""
    hooked = [path or type(model).__name__ for path, m in model.named_modules() if m._forward_hooks or m._forward_pre_hooks]
    replaced = [path or type(model).__name__ for path, m in model.named_modules() if "forward" in vars(m)]
    found = [
        f"{what} on {', '.join(paths[:3])}" for what, paths in (("forward hooks", hooked), ("a forward of its own", replaced)) if paths
    ]
    return " and ".join(found) or "no hooks, and no forward that was replaced; perhaps a module of another class"
