"""The table of ops: one row each, which dispatch, explain, the bindings and docs/ops.md read.

A row says what can't be read off a file's name. The rest follows from the op's and the family's name, on every floor:

    dynadapt/ops/<family>.py               contract, the reference ``<op>``, formulas of its FLOPs
    csrc/cpu/<family>.cpp, kernels/        ``dynadapt_<op>`` of the C ABI, ``_C.<op>``: checks, and the kernel
    kernels/<family>.py                    the Triton form ``<op>``
    dynadapt/bench/cases/<family>.py       its arguments for given sizes, its error bound, the bytes that it can't avoid
    dynadapt/interop/torch_ops/<family>.py, jax/<family>.py

docs/ops.md shows it with links (page.py). Nothing is imported before it is asked for: the command line reads the names without torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

# What may hold for a configuration; an engine says of each whether it does (engine/needed_ops.py).
CONDITIONS = {
    "learning": "something learns",
    "adapters": "adapters learn",
    "adapted head": "the head has an adapter",
    "adapted embedding": "the embedding has an adapter",
    "weights": "weights themselves learn, all or some rows",
    "whole": "the whole model learns",
    "learned biases": "biases of linears learn, or lengths of rows (DoRA)",
    "scored rows": "rows are chosen by their gradient",
    "fused": "the gradient's kernel updates",
    "joined": "the backend joins the activation to the linears around it",
    "head norms": "query and key heads are normalised",
    "delta layers": "layers of the gated delta rule stand beside attention",
    "own table": "tokens are not looked up in a packed head",
    "device memory": "the device moves the memory on",
    "device resets": "the device decides on resets",
}


@dataclass(frozen=True)
class Row:
    """What the table says of one op.

    Args:
        name: of the reference, of the implementations and of ``dynadapt_<name>``.
        family: module of the contract, the reference and the FLOPs, which names the files of all floors.
        says: the mathematics, in a line.
        used: the part of a step that calls it: forward, score, backward, update, memory, or training in context.
        when: the CONDITIONS that all hold where an engine's step calls it.
        flops: the family's formula for it, None where torch's FlopCounterMode counts nothing.
        native: whether libdynadapt has it for the CPU. Where not, torch's ops take the reference there.
        kernel: its file in csrc/cpu/kernels, where that is not the family's.
        triton: whether kernels/ has it for the GPU.
        torch: the ops of torch.library that it serves; None: one of its own name, ``_forward`` taken off.
        derivative: whether those have one. Without: it is a gradient itself, or changes its arguments in place.
        jax: whether dynadapt.jax calls it.
    """

    name: str
    family: str
    says: str
    used: str
    when: tuple[str, ...] = ()
    flops: str | None = None
    native: bool = True
    kernel: str | None = None
    triton: bool = True
    torch: tuple[str, ...] | None = None
    derivative: bool = False
    jax: bool = True

    @property
    def module(self) -> ModuleType:
        return import_module(f".{self.family}", __package__)

    @property
    def reference(self) -> Callable:
        return getattr(self.module, self.name)

    @property
    def formula(self) -> Callable | None:
        """Of its FLOPs."""
        return None if self.flops is None else getattr(self.module, self.flops)

    @property
    def torch_names(self) -> tuple[str, ...]:
        return (self.name.removesuffix("_forward"),) if self.torch is None else self.torch


_ROWS = (
    Row("embedding_forward", "embedding", "rows of a table, plus learned positions", "forward", ("own table",), derivative=True),
    Row("norm_forward", "norm", "RMSNorm or LayerNorm behind a residual add", "forward", torch=("norm", "add_norm"), derivative=True),
    Row("norm_backward", "norm", "gradient of norm_forward, and its output again", "backward", ("learning",)),
    Row(
        "linear_forward",
        "linear",
        "y = x Wᵀ + b + s (x Aᵀ) B, with a stream's own A and B",
        "forward",
        flops="forward_flops",
        derivative=True,
    ),
    Row("linear_backward", "linear", "dx = dy W + dU A, dU = s dy Bᵀ", "backward", ("learning",), "backward_flops"),
    Row(
        "linear_activation_forward",
        "linear_activation",
        "linear_forward and activation_forward in one",
        "forward",
        ("joined",),
        "forward_flops",
        native=False,
        jax=False,
    ),
    Row(
        "linear_activation_backward",
        "linear_activation",
        "linear_backward and activation_backward in one",
        "backward",
        ("joined", "learning"),
        "backward_flops",
        native=False,
        jax=False,
    ),
    Row("lora_gradient", "lora_gradient", "dA = dUᵀ x, dB = s uᵀ dy", "backward", ("adapters",), "flops"),
    Row("weight_gradient", "weight_gradient", "dW = dyᵀ x, all or chosen rows", "backward", ("weights",), "flops"),
    Row(
        "lora_gradient_update",
        "lora_gradient",
        "lora_gradient and the optimizer's step in one",
        "update",
        ("adapters", "fused"),
        "flops",
        native=False,
        jax=False,
    ),
    Row(
        "weight_gradient_update",
        "weight_gradient",
        "weight_gradient and the optimizer's step in one",
        "update",
        ("weights", "fused"),
        "flops",
        native=False,
        jax=False,
    ),
    Row(
        "row_scores", "weight_gradient", "√Σ dy² ‖x‖², the norm of each row's gradient by estimate", "backward", ("scored rows",), jax=False
    ),
    Row("head_norm_forward", "head_norm", "RMSNorm of every query and key head", "forward", ("head norms",), derivative=True),
    Row("head_norm_backward", "head_norm", "gradient of head_norm_forward", "backward", ("head norms", "learning")),
    Row(
        "attention_forward",
        "attention",
        "causal softmax attention over sinks, memory and segment, rotated on load",
        "forward",
        flops="forward_flops",
        kernel="attention_forward",
        derivative=True,
    ),
    Row(
        "attention_backward",
        "attention",
        "gradient of attention_forward, none for memory",
        "backward",
        ("learning",),
        "backward_flops",
        kernel="attention_backward",
    ),
    Row(
        "short_convolution_forward",
        "short_convolution",
        "causal depthwise convolution over a few tokens, then SiLU",
        "forward",
        ("delta layers",),
        derivative=True,
        jax=False,
    ),
    Row(
        "short_convolution_backward",
        "short_convolution",
        "gradient of short_convolution_forward, none for rows before the segment",
        "backward",
        ("delta layers", "learning"),
        jax=False,
    ),
    Row(
        "delta_gates_forward",
        "delta_gates",
        "decay g = -eᴬ softplus(a + dt) and rate β = σ(b) of every value head",
        "forward",
        ("delta layers",),
        derivative=True,
        jax=False,
    ),
    Row("delta_gates_backward", "delta_gates", "gradient of delta_gates_forward", "backward", ("delta layers", "learning"), jax=False),
    Row(
        "delta_rule_forward",
        "delta_rule",
        "gated delta rule: o = Sᵀ q, S = eᵍ S + k (β (v - eᵍ Sᵀ k))ᵀ, with q and k of length 1",
        "forward",
        ("delta layers",),
        "forward_flops",
        derivative=True,
        jax=False,
    ),
    Row(
        "delta_rule_backward",
        "delta_rule",
        "gradient of delta_rule_forward, none for states",
        "backward",
        ("delta layers", "learning"),
        "backward_flops",
        jax=False,
    ),
    Row(
        "gated_norm_forward",
        "gated_norm",
        "RMSNorm of every head, times SiLU of a gate",
        "forward",
        ("delta layers",),
        derivative=True,
        jax=False,
    ),
    Row("gated_norm_backward", "gated_norm", "gradient of gated_norm_forward", "backward", ("delta layers", "learning"), jax=False),
    Row("activation_forward", "activation", "SwiGLU, GEGLU, GELU, GLU", "forward", derivative=True),
    Row("activation_backward", "activation", "gradient of activation_forward, and its output again", "backward", ("learning",)),
    Row(
        "cross_entropy",
        "cross_entropy",
        "each token's NLL and dh in one pass, logits never whole",
        "score",
        flops="flops",
        torch=("cross_entropy", "scored_targets"),
        derivative=True,
    ),
    Row(
        "distillation",
        "cross_entropy",
        "Σ p (log p − log q) from a teacher's K tokens, each token's NLL and dh in one pass",
        "score",
        ("learning",),
        flops="flops",
        jax=False,
    ),
    Row(
        "adapted_cross_entropy",
        "cross_entropy",
        "cross_entropy with each stream's own adapter on the head: h Wᵀ + s (h Aᵀ) Bᵀ",
        "score",
        ("adapted head",),
        flops="adapted_flops",
        jax=False,
    ),
    Row(
        "adapted_cross_entropy_gradient",
        "cross_entropy",
        "gradient of the head's adapters: dA = dUᵀ h, dB = s gᵀ u",
        "backward",
        ("adapted head",),
        "adapted_gradient_flops",
        kernel="cross_entropy_gradient",
        jax=False,
    ),
    Row(
        "cross_entropy_weight_gradient",
        "cross_entropy",
        "gradient of the head",
        "backward",
        ("whole",),
        "weight_gradient_flops",
        kernel="cross_entropy_gradient",
    ),
    Row("embedding_backward", "embedding", "gradient of the table", "backward", ("whole",)),
    Row(
        "adapted_embedding_forward",
        "embedding",
        "a stream's own adapter on the embedding: out += s A[:, token]ᵀ Bᵀ",
        "forward",
        ("adapted embedding",),
        "adapted_forward_flops",
        triton=False,
        jax=False,
    ),
    Row(
        "adapted_embedding_backward",
        "embedding",
        "gradient of the embedding's adapters: dA[:, token] += s B dout, dB = s A[:, tokens] dout",
        "backward",
        ("adapted embedding", "learning"),
        "adapted_backward_flops",
        triton=False,
        jax=False,
    ),
    Row("bias_gradient", "bias_gradient", "column sums of dy", "backward", ("learned biases",)),
    Row(
        "linear_mse",
        "linear_mse",
        "(h·w + b − target)² and its gradients",
        "training in context",
        flops="flops",
        torch=("linear_mse", "linear_mse_backward"),
        derivative=True,
    ),
    Row("update", "update", "clip, optimizer, decay to the prior, working copy", "update", ("learning",), "flops"),
    Row("memory_advance", "memory", "a segment enters the memory, all layers", "memory", ("device memory",), native=False, jax=False),
    Row("memory_fill", "memory", "how much of each memory is filled", "memory", ("device memory",), native=False, jax=False),
    Row("reset", "reset", "streams go back to the prior", "update", ("learning", "device resets"), native=False, jax=False),
)
OPS: dict[str, Row] = {row.name: row for row in _ROWS}
