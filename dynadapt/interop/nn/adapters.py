"""`add_lora`: adapters on the linear layers of a live model, and a loss without its logits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from dynadapt.common.checks import choice, path, shown, wrong

from .fused_loss import check_fusable, fuse, is_fused, unfuse
from .lora_linear import LoRAConv1D, LoRALinear, check_adapter
from .targets import adapter_class, endings, targeted

LOSSES = ("fused", "model")
RECORD = "_dynadapt_lora"
DTYPES = (torch.float32, torch.bfloat16, torch.float64)


@dataclass(frozen=True)
class Record:
    """What add_lora did, kept on the model: names of the adapted modules, and of the parameters that had required gradients."""

    rank: int
    alpha: float
    modules: tuple[str, ...]
    learned: tuple[str, ...]


class Adapters:
    """The adapters that ``add_lora`` put on ``model``. Of a copy of the model: ``Adapters(copy)``.

    Raises:
        ValueError: for a model without them.
    """

    def __init__(self, model: torch.nn.Module):
        if not isinstance(getattr(model, RECORD, None), Record):
            raise ValueError(f"model is a {type(model).__name__} without adapters of add_lora")
        self.model = model

    @property
    def record(self) -> Record:
        record = getattr(self.model, RECORD, None)
        if record is None:
            raise ValueError("the adapters were merged or removed: call add_lora again")
        return record

    @property
    def modules(self) -> dict[str, LoRALinear]:
        """{name: module}"""
        return {name: self.model.get_submodule(name) for name in self.record.modules}

    def named_parameters(self):
        """(name in the model, parameter) of every lora_A [R, K] and lora_B [O, R]; of a module with two names once."""
        for name, module in {id(module): (name, module) for name, module in reversed(self.modules.items())}.values():
            yield f"{name}.lora_A", module.lora_A
            yield f"{name}.lora_B", module.lora_B

    def parameters(self) -> list[torch.nn.Parameter]:
        """What learns, for an optimizer."""
        return [parameter for _, parameter in self.named_parameters()]

    def remove(self) -> torch.nn.Module:
        """The model as it was: its layers around the weights they had, its loss, and what required gradients before."""
        return self._replace(lambda module: module.original())

    def merge(self) -> torch.nn.Module:
        """The model with W + (alpha / rank) B A for each weight, rounded once, and without adapters; the old weights stay as they are."""
        return self._replace(lambda module: module.merged())

    def _replace(self, made) -> torch.nn.Module:
        model, record = self.model, self.record
        replace_modules(model, self.modules, made)
        if is_fused(model):
            unfuse(model)
        delattr(model, RECORD)
        for name, parameter in model.named_parameters(remove_duplicate=False):
            if name in record.learned:
                parameter.requires_grad_(True)
        return model

    def save(self, directory) -> None:
        """Write the adapters as a PEFT directory, in their own precision: ``PeftModel.from_pretrained(base, directory)`` loads them.

        Raises:
            OSError: where it can't be written.
        """
        from dynadapt.model.peft import write_files

        directory, record, modules = path("directory", directory), self.record, self.modules
        directory.mkdir(parents=True, exist_ok=True)
        tensors = {
            f"base_model.model.{name}.lora_{which}.weight": getattr(module, f"lora_{which}").detach().cpu().contiguous().clone()
            for name, module in modules.items()
            for which in "AB"
        }
        write_files(Path(directory), tensors, self._settings(record, modules))

    def _settings(self, record: Record, modules) -> dict:
        from dynadapt.model.peft import plain_lora

        everything = [name for name, _ in self.model.named_modules(remove_duplicate=False) if name]
        config = getattr(self.model, "config", None)
        base = getattr(config, "_name_or_path", "") or None
        conv1d = any(isinstance(module, LoRAConv1D) for module in modules.values())
        return plain_lora(record.rank, record.alpha, base, endings(modules, everything), conv1d)

    def __repr__(self) -> str:
        record = getattr(self.model, RECORD, None)
        if record is None:
            return f"Adapters(of {type(self.model).__name__}, merged or removed)"
        count = sum(parameter.numel() for parameter in self.parameters())
        loss = "fused" if is_fused(self.model) else "model"
        return (
            f"Adapters(of {type(self.model).__name__}, rank={record.rank}, alpha={record.alpha:g}, {len(record.modules)} layers, {count:,} "
            f"parameters, loss={loss!r})"
        )


def add_lora(model: torch.nn.Module, rank: int = 16, targets="all", loss: str = "fused", alpha: float | None = None) -> Adapters:
    """Put a trainable adapter on linear layers of ``model``, in place, and freeze everything else.

    Each layer becomes a ``LoRALinear`` around the weight that it has; nothing is copied. Calls of the model, state_dict, training
    loops, Trainer, checkpointing and torch.compile stay as they were. A starts as ``torch.nn.Linear``'s weight does (torch's global
    generator), B at zero, so that a new adapter changes nothing.

    Args:
        model: a transformers model; with ``loss="model"`` any torch module.
        rank: R. alpha: the scale is alpha / rank; None for 2 x rank.
        targets: "all" linear layers but the head, those of "attn" or "mlp", a list of module-name endings (``["q_proj", "v_proj"]``),
            or a regular expression that whole names match.
        loss: "fused": a call with ``labels=`` gives the loss that transformers gives (shift, ignore_index, shift_labels,
            num_items_in_batch), computed without the logits; its output's ``logits`` are None. Calls without labels give logits.
            "model": the model's own, with logits.

    Returns:
        the ``Adapters``: ``parameters()``, ``save(directory)`` for PEFT, ``merge()`` and ``remove()``.

    Raises:
        ValueError: naming the argument; or the module that an adapter would change (quantised, hooks, float16), adapters that are
            there already, and what keeps a loss from being fused. Nothing is changed then.
    """
    if not isinstance(model, torch.nn.Module):
        raise wrong("model", model, "a torch.nn.Module, such as a transformers model")
    choice("loss", loss, LOSSES)
    rank, alpha = check_adapter(rank, alpha)
    there = next((name for name, module in model.named_modules() if hasattr(module, "lora_A")), None)
    if there is not None:
        raise ValueError(f"model has adapters already ({there}): expected one without; remove() or merge() them first")
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    found = targeted(model, targets, head)
    for name, module in found.items():
        check_target(name, module)
    if loss == "fused":
        if check_fusable(model) in found.values():
            raise ValueError(f"targets={shown(targets)} names the head, which loss='fused' multiplies with itself; give loss='model'")
    learned = tuple(name for name, parameter in model.named_parameters(remove_duplicate=False) if parameter.requires_grad)
    model.requires_grad_(False)
    replace_modules(model, found, lambda module: adapter_class(module).from_linear(module, rank, alpha))
    setattr(model, RECORD, Record(rank, alpha, tuple(found), learned))
    if loss == "fused":
        fuse(model)
    return Adapters(model)


def check_target(name: str, module: torch.nn.Module) -> None:
    try:
        adapter_class(module).check(module)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    if module.weight.dtype not in DTYPES or module.weight.is_inference():
        raise ValueError(
            f"{name}: weight has dtype {module.weight.dtype}{', of inference mode' * module.weight.is_inference()}: expected "
            "float32, bfloat16 or float64, made outside inference mode"
        )


def replace_modules(model: torch.nn.Module, modules: dict[str, torch.nn.Module], made) -> None:
    """Put ``made(module)`` in the place of every module of the model; of one with two names the same in both."""
    new: dict[int, torch.nn.Module] = {}
    for name, module in modules.items():
        parent, _, child = name.rpartition(".")
        new.setdefault(id(module), None)
        if new[id(module)] is None:
            new[id(module)] = made(module)
        setattr(model.get_submodule(parent), child, new[id(module)])
