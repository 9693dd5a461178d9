"""A transformers model whose loss is computed without the logits.

The model's own forward runs. When it is given labels its head hands on what it is given, the loss takes that for the logits and
computes them with the head's weight, a few rows at a time, and the output has none.
"""

from __future__ import annotations

import functools
import inspect

import torch

from dynadapt.interop.torch_ops import freeze

from .autocast import in_autocast
from .cross_entropy import LinearCrossEntropy
from .packed import KeepsPacked

# Settings by which an architecture changes its logits after the head, and the value that leaves them alone.
BETWEEN = {"final_logit_softcapping": None, "logits_soft_cap": None, "logit_scale": 1.0, "logits_scaling": 1.0, "lm_head_multiplier": 1.0}
REMEDY = "give loss='model'"


class PassingHead(KeepsPacked, torch.nn.Linear):
    """The output embedding, which hands on its input while ``passing``."""

    passing = False
    given = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.passing:
            self.given = x
            return x
        x, weight = in_autocast(x, self.weight)
        return torch.nn.functional.linear(x, weight)

    def _freeze(self) -> None:
        weight = self.weight
        if not weight.is_meta and not weight.requires_grad and not weight.is_inference():
            freeze(weight)


def check_fusable(model) -> torch.nn.Linear:
    """The model's head. Raises ValueError, naming the reason, where its loss is more than cross-entropy of head(hidden)."""
    kind = type(model)
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if head is None or "labels" not in inspect.signature(kind.forward).parameters:
        raise ValueError(f"loss='fused': model is a {kind.__name__}, without a language-model head or without labels; {REMEDY}")
    if (
        type(head) is not torch.nn.Linear
        or head.bias is not None
        or head._forward_hooks
        or head._forward_pre_hooks
        or "forward" in vars(head)
    ):
        raise ValueError(
            f"loss='fused': the head of {kind.__name__} is a {type(head).__name__} with a bias, hooks or a forward of its own; "
            f"expected a plain torch.nn.Linear without bias; {REMEDY}"
        )
    from transformers.loss.loss_utils import ForCausalLMLoss

    if getattr(model, "loss_function", None) is not ForCausalLMLoss or "forward" in vars(model):
        raise ValueError(
            f"loss='fused': {kind.__name__} has a loss or a forward of its own; expected transformers' ForCausalLMLoss; {REMEDY}"
        )
    for name, plain in BETWEEN.items():
        value = getattr(model.config, name, plain)
        if value not in (None, plain):
            raise ValueError(f"loss='fused': {kind.__name__} changes its logits after the head ({name}={value!r}); {REMEDY}")
    return head


def fuse(model) -> None:
    head = model.get_output_embeddings()
    head.__class__ = PassingHead
    head._freeze()
    model.__class__ = fused_class(type(model))


def unfuse(model) -> None:
    model.get_output_embeddings().__class__ = torch.nn.Linear
    model.__class__ = type(model).__bases__[0]


def is_fused(model) -> bool:
    return type(model) is getattr(type(model), "fused", None)


def _of_class(base: type):
    """An empty model for pickle and deepcopy, which know classes by name."""
    kind = fused_class(base)
    return kind.__new__(kind)


@functools.cache
def fused_class(base: type) -> type:
    """``base`` under its own name, with the loss without logits."""
    place = list(inspect.signature(base.forward).parameters).index("labels") - 1

    class Fused(base):
        @functools.wraps(base.forward)
        def forward(self, *args, **kwargs):
            labels = args[place] if len(args) > place else kwargs.get("labels")
            if labels is None:
                return super().forward(*args, **kwargs)
            head = self.get_output_embeddings()
            head.passing = True
            try:
                output = super().forward(*args, **kwargs)
            finally:
                head.passing, hidden, head.given = False, head.given, None
            return without(output, hidden)

        @property
        def loss_function(self):
            return self.fused_loss

        def fused_loss(self, logits, labels, vocab_size=None, num_items_in_batch=None, ignore_index: int = -100, shift_labels=None, **_):
            head = self.get_output_embeddings()
            if not head.passing:
                return super().loss_function(
                    logits=logits,
                    labels=labels,
                    vocab_size=vocab_size,
                    num_items_in_batch=num_items_in_batch,
                    ignore_index=ignore_index,
                    shift_labels=shift_labels,
                    **_,
                )
            if logits is not head.given:
                raise ValueError(f"loss='fused': {base.__name__} changes its logits between head and loss; {REMEDY}")
            return causal_loss(logits, head.weight, labels, num_items_in_batch, ignore_index, shift_labels)

        def __reduce_ex__(self, protocol):
            return _of_class, (base,), self.__dict__

    Fused.__name__, Fused.__qualname__, Fused.__module__, Fused.__doc__ = base.__name__, base.__qualname__, base.__module__, base.__doc__
    Fused.fused = Fused
    return Fused


def causal_loss(hidden, weight, labels, num_items_in_batch=None, ignore_index: int = -100, shift_labels=None) -> torch.Tensor:
    """transformers' ForCausalLMLoss of the logits hidden weight^T: token t predicts label t + 1.

    Args:
        hidden: [B, T, H]; weight: [V, H]; labels: int64 [B, T], or ``shift_labels``, already shifted.
        num_items_in_batch: the sum over the labels that count is divided by it; None: the mean.
    """
    if shift_labels is None:
        shift_labels = torch.nn.functional.pad(labels, (0, 1), value=ignore_index)[..., 1:]
    if shift_labels.shape != hidden.shape[:-1]:
        raise ValueError(
            f"labels has shape {tuple(shift_labels.shape)}: expected {tuple(hidden.shape[:-1])}, one for each scored position "
            "(logits_to_keep leaves positions out)"
        )
    shift_labels = shift_labels.to(hidden.device)
    loss = LinearCrossEntropy("mean" if num_items_in_batch is None else "sum", ignore_index)(hidden, weight, shift_labels)
    if num_items_in_batch is None:
        return loss
    return loss / (num_items_in_batch.to(loss.device) if torch.is_tensor(num_items_in_batch) else num_items_in_batch)


def without(output, hidden):
    """The output without the field that is ``hidden``; a tuple without that element."""
    if isinstance(output, tuple):
        return tuple(value for value in output if value is not hidden)
    return type(output)(**{name: value for name, value in output.items() if name != "logits"})
