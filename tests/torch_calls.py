"""A call of every op of dynadapt.torch_ops, small, for the tests that go through all of them: the op's case by the schema's names."""

import torch

from dynadapt.adapt.optimizers import SGD, Adam
from dynadapt.bench.cases import Draw, OpCase
from dynadapt.bench.cases.activation import activation_backward, activation_forward
from dynadapt.bench.cases.attention import attention_backward, attention_forward
from dynadapt.bench.cases.base import convert
from dynadapt.bench.cases.bias_gradient import bias_gradient
from dynadapt.bench.cases.cross_entropy import (
    adapted_cross_entropy,
    adapted_cross_entropy_gradient,
    cross_entropy,
    cross_entropy_weight_gradient,
    distillation,
)
from dynadapt.bench.cases.delta_gates import delta_gates_backward, delta_gates_forward
from dynadapt.bench.cases.delta_rule import delta_rule_backward, delta_rule_forward
from dynadapt.bench.cases.embedding import adapted_embedding_backward, adapted_embedding_forward, embedding_backward, embedding_forward
from dynadapt.bench.cases.gated_norm import gated_norm_backward, gated_norm_forward
from dynadapt.bench.cases.head_norm import head_norm_backward, head_norm_forward
from dynadapt.bench.cases.linear import linear_backward, linear_forward
from dynadapt.bench.cases.linear_activation import linear_activation_backward, linear_activation_forward
from dynadapt.bench.cases.linear_mse import linear_mse
from dynadapt.bench.cases.lora_gradient import lora_gradient
from dynadapt.bench.cases.memory import memory_advance, memory_fill
from dynadapt.bench.cases.norm import norm_backward, norm_forward
from dynadapt.bench.cases.reset import reset
from dynadapt.bench.cases.short_convolution import short_convolution_backward, short_convolution_forward
from dynadapt.bench.cases.update import lora_gradient_update, update, weight_gradient_update
from dynadapt.bench.cases.weight_gradient import row_scores, weight_gradient
from dynadapt.interop import torch_ops  # noqa: F401  (registers the ops)

I32 = {"dtype": torch.int32}
TARGETS = torch.tensor([3, -1, 0, 10, 7, 2])
LAYER = (6, 5, (4, 3), 2, 2)  # rows, inputs, parts, rank, streams
ATTENTION = (2, 3, 4, 2, 1, 4)  # streams, tokens, memory, query heads, kv heads, head size
DELTA = (2, 3, 1, 2, 3, 4)  # streams, tokens, key heads, value heads, key size, value size
WEIGHT = (6, 7, 5, 2)  # rows, outputs, inputs, chosen rows
SGD_RULE, ADAM_RULE = SGD(clip=0.0).rule(), Adam(clip=1.0, decay=0.1).rule()
# op -> (the function that makes its case, sizes, arguments of the schema that the case does not have)
CALLS = {
    "linear": (linear_forward, LAYER, {}),
    "linear_backward": (linear_backward, LAYER, {"need_dx": True}),
    "linear_activation": (linear_activation_forward, (6, 5, 4, 2, 2), {}),
    "linear_activation_backward": (linear_activation_backward, (6, 5, 4, 2, 2), {}),
    "lora_gradient": (lora_gradient, LAYER, {"slot_count": 4}),
    "weight_gradient": (weight_gradient, WEIGHT, {}),
    "row_scores": (row_scores, WEIGHT[:3], {}),
    "bias_gradient": (bias_gradient, (6, 7), {}),
    "cross_entropy": (cross_entropy, (6, 5, 11), {}),
    "cross_entropy_weight_gradient": (cross_entropy_weight_gradient, (6, 5, 11), {}),
    "adapted_cross_entropy": (adapted_cross_entropy, (6, 5, 11, 2, 2), {}),
    "adapted_cross_entropy_gradient": (adapted_cross_entropy_gradient, (6, 5, 11, 2, 2), {}),
    "distillation": (distillation, (6, 5, 11, 3), {}),
    "scored_targets": (cross_entropy, (6, 5, 11), {"vocabulary": 11, "ignore_index": -100}),
    "linear_mse": (linear_mse, (6, 5), {}),
    "linear_mse_backward": (linear_mse, (6, 5), {}),
    "norm": (norm_forward, (6, 8, "layer", False), {}),
    "add_norm": (norm_forward, (6, 8, "rms"), {}),
    "norm_backward": (norm_backward, (6, 8, "rms"), {}),
    "head_norm": (head_norm_forward, (6, 2, 1, 4), {}),
    "head_norm_backward": (head_norm_backward, (6, 2, 1, 4), {}),
    "activation": (activation_forward, (6, 4, "swiglu"), {}),
    "activation_backward": (activation_backward, (6, 8, "gelu"), {}),
    "embedding": (embedding_forward, (3, 3, 5, 4), {}),
    "embedding_backward": (embedding_backward, (3, 3, 5), {"rows": 5}),
    "adapted_embedding": (adapted_embedding_forward, (6, 3, 5, 2, 2), {}),
    "adapted_embedding_backward": (adapted_embedding_backward, (6, 3, 5, 2, 2), {}),
    "attention": (attention_forward, ATTENTION, {}),
    "attention_backward": (attention_backward, ATTENTION, {}),
    "short_convolution": (short_convolution_forward, (2, 3, 5), {}),
    "short_convolution_backward": (short_convolution_backward, (2, 3, 5), {}),
    "delta_gates": (delta_gates_forward, (6, 4), {}),
    "delta_gates_backward": (delta_gates_backward, (6, 4), {}),
    "delta_rule": (delta_rule_forward, DELTA, {}),
    "delta_rule_backward": (delta_rule_backward, DELTA, {}),
    "gated_norm": (gated_norm_forward, (6, 2, 4), {}),
    "gated_norm_backward": (gated_norm_backward, (6, 2, 4), {}),
    "update": (update, (5, 1, ADAM_RULE), {}),
    "reset": (reset, (5, 1), {}),
    "memory_advance": (memory_advance, (2, 2, 3, 4, (0, 3), 2, 1), {}),
    "memory_fill": (memory_fill, (2, 3, 4), {}),
    "lora_gradient_update": (lora_gradient_update, (*LAYER, SGD_RULE), {}),
    "weight_gradient_update": (weight_gradient_update, (*WEIGHT, SGD_RULE), {}),
}
NAMES = {"weights": "parts", "g": "weights"}  # where the schema's is not the case's
NO_GRADIENT = ("mem_k", "mem_v", "cos", "sin", "state")


def rand(*shape, seed=0, dtype=torch.float32, grad=False):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_(grad)


def adapter(dtype, grad):
    """Two parts, two of four slots, six rows of five."""
    return call("linear", dtype, grad)


def schema(name):
    return getattr(torch.ops.dynadapt, name).default._schema.arguments


def look_up(case: OpCase, name: str):
    """An argument of the schema: one of the case's, of its rule or of its states (``a_master``: the master of ``a``)."""
    for key in (NAMES.get(name), name):
        if key in case.arguments:
            return case[key]
    prefix, _, field = name.partition("_")
    if prefix in ("a", "bt"):
        return getattr(case[prefix], field)
    return getattr(case["rule"] if hasattr(case["rule"], name) else case["state"], name)


def call(name, dtype, grad):
    make, sizes, others = CALLS[name]
    case, found = make(Draw(dtype), *sizes), {"gradient": grad, **others}
    for argument in schema(name):
        of = argument.name
        leaf = lambda t, learns=grad and of not in NO_GRADIENT: t.detach().requires_grad_(learns and t.is_floating_point())  # noqa: E731
        if not argument.kwarg_only and of not in found:
            found[of] = convert(look_up(case, of), leaf)
    return tuple(found[argument.name] for argument in schema(name) if not argument.kwarg_only)


def calls(dtype, grad):
    """op -> its arguments; ``grad`` where the op has a gradient."""
    return {name: call(name, dtype, grad) for name in CALLS}


KEYWORDS = {
    name: {a.name: getattr(sizes[-1], a.name) for a in schema(name) if a.kwarg_only}
    for name, (_, sizes, _) in CALLS.items()
    if name.endswith("update")
}
