"""dynadapt.nn: the modules against torch's own, in eager mode and compiled; and when a frozen weight is packed anew."""

import copy
import io
import math

import pytest
import torch

import dynadapt.interop.numpy as numpy_ops
from dynadapt.interop import torch_ops
from dynadapt.interop.nn import LinearCrossEntropy, LoRALinear
from dynadapt.interop.torch_ops import packing

TOLERANCE = {torch.float32: {"atol": 1e-5, "rtol": 1e-5}, torch.bfloat16: {"atol": 3e-2, "rtol": 3e-2}, torch.float64: {}}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def with_adapter(dtype=torch.float32, bias=True):
    layer = LoRALinear(8, 6, rank=3, alpha=4.0, bias=bias, dtype=dtype)
    torch.nn.init.normal_(layer.lora_B)
    return layer


def plain(layer, x):
    A, B = layer.lora_A.to(x.dtype), layer.lora_B.to(x.dtype)
    return torch.nn.functional.linear(x, layer.weight, layer.bias) + (layer.alpha / layer.rank) * (x @ A.t()) @ B.t()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_lora_linear_equals_its_definition(dtype, bias):
    layer, x = with_adapter(dtype, bias), torch.randn(2, 5, 8, dtype=dtype, requires_grad=True)
    g, leaves = torch.randn(2, 5, 6, dtype=dtype), [x, layer.lora_A, layer.lora_B]
    y, expected = layer(x), plain(layer, x)
    torch.testing.assert_close(y, expected, **TOLERANCE[dtype])
    for ours, theirs in zip(torch.autograd.grad(y, leaves, g), torch.autograd.grad(expected, leaves, g), strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, **TOLERANCE[dtype])
    assert [n for n, p in layer.named_parameters() if p.requires_grad] == ["lora_A", "lora_B"]
    torch.testing.assert_close(layer.merged()(x), expected, **TOLERANCE[dtype])


def test_a_new_adapter_changes_nothing_and_the_state_dict_is_linears():
    linear = torch.nn.Linear(8, 6)
    layer, x = LoRALinear.from_linear(linear, rank=2), torch.randn(5, 8)
    assert layer.weight is linear.weight and not linear.weight.requires_grad
    torch.testing.assert_close(layer(x), linear(x))
    assert {n: tuple(t.shape) for n, t in layer.state_dict().items()} == {
        "weight": (6, 8),
        "bias": (6,),
        "lora_A": (2, 8),
        "lora_B": (6, 2),
    }
    other = LoRALinear(8, 6, rank=2)
    missing = other.load_state_dict(torch.nn.Linear(8, 6).state_dict(), strict=False)
    assert missing.missing_keys == ["lora_A", "lora_B"] and not missing.unexpected_keys
    for wrong in (0, True, 2.0, "4", None):
        with pytest.raises(ValueError, match=f"rank={wrong!r}"):
            LoRALinear(8, 6, rank=wrong)
    for wrong in (math.nan, math.inf, True, "4"):
        with pytest.raises(ValueError, match="alpha="):
            LoRALinear(8, 6, alpha=wrong)
    assert LoRALinear(8, 6, rank=3).alpha == 6 and LoRALinear(8, 6, rank=3, alpha=1).alpha == 1
    with pytest.raises(ValueError, match="ignore_index=True"):
        LinearCrossEntropy(ignore_index=True)
    with pytest.raises(ValueError, match="weight has dtype torch.float16"):
        LoRALinear(8, 6, rank=2).half()(torch.randn(3, 8).half())


def kept(layer) -> bool:
    """Whether the layer's weight is used in the packed form that was made at an earlier call."""
    return packing._packed(layer.weight) is packing._packed(layer.weight)


@pytest.mark.parametrize("change", ["copy_", "load", "assign", "to", "deepcopy", "in place"])
def test_a_packed_weight_follows_its_tensor(change):
    layer, x = with_adapter(), torch.randn(5, 8)
    layer(x)
    packed = packing._packed(layer.weight)
    fresh = torch.nn.Linear(8, 6).state_dict()
    with torch.no_grad():
        if change == "copy_":
            layer.weight.copy_(fresh["weight"])
        elif change == "load":
            layer.load_state_dict(fresh, strict=False)
        elif change == "assign":
            layer.load_state_dict(fresh, strict=False, assign=True)
        elif change == "to":
            layer, x = layer.to(torch.bfloat16), x.bfloat16()
        elif change == "deepcopy":
            layer = copy.deepcopy(layer)
            layer.weight.mul_(2)
        else:
            layer.weight[2:4] += 1
    assert kept(layer) and packing._packed(layer.weight) is not packed
    torch.testing.assert_close(layer(x), plain(layer, x), **TOLERANCE[x.dtype])


def _swapped(layer, dtype=torch.bfloat16):
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        return layer.to(dtype)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def _swap_loaded(layer):
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        layer.load_state_dict(with_adapter().state_dict())
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    return layer


def _parametrized(layer):
    torch.nn.utils.parametrize.register_parametrization(layer, "weight", Doubled())
    return layer


class Doubled(torch.nn.Module):
    def forward(self, weight):
        return 2 * weight


def _swapped_tensors(layer):
    torch.utils.swap_tensors(layer.weight, torch.nn.Parameter(torch.randn(6, 8), requires_grad=False))
    torch.utils.swap_tensors(layer.lora_B, torch.nn.Parameter(torch.randn(6, 3)))
    return layer


def _pickled(layer):
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def _set(layer, make):
    layer.weight = make(layer.weight)
    return layer


MOVES = {
    "swap on conversion": _swapped,
    "swap and back": lambda layer: _swapped(_swapped(layer), torch.float32),
    "swap on loading": _swap_loaded,
    "swap_tensors": _swapped_tensors,
    "bfloat16 and back": lambda layer: layer.bfloat16().float(),
    "double": lambda layer: layer.double(),
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": _pickled,
    "parametrize": _parametrized,
    "parametrized and moved": lambda layer: _parametrized(layer).bfloat16().float(),
    "another parameter": lambda layer: _set(layer, lambda w: torch.nn.Parameter(2 * w, requires_grad=False)),
    "a transposed parameter": lambda layer: _set(layer, lambda w: torch.nn.Parameter(torch.randn(8, 6).t(), requires_grad=False)),
    "a parameter that learns": lambda layer: _set(layer, lambda w: torch.nn.Parameter(3 * w)),
    "a flat parameter's view": lambda layer: _set(
        layer, lambda w: torch.nn.Parameter(torch.randn(100)[3:51].view(6, 8), requires_grad=False)
    ),
    "to_empty": lambda layer: layer.to_empty(device="cpu").load_state_dict(with_adapter().state_dict()) and layer,
}


@pytest.mark.parametrize("move", MOVES)
def test_a_layer_computes_with_the_weight_it_has(move):
    """However torch replaces parameters: value and gradients of the definition, before and after."""
    layer = with_adapter()
    layer(torch.randn(5, 8))
    layer = MOVES[move](layer)
    dtype = layer.weight.dtype
    for _ in range(2):
        x = torch.randn(5, 8, dtype=dtype, requires_grad=True)
        leaves, g = [x, layer.lora_A, layer.lora_B], torch.randn(5, 6, dtype=dtype)
        y, expected = layer(x), plain(layer, x)
        torch.testing.assert_close(y, expected, **TOLERANCE[dtype])
        for a, b in zip(torch.autograd.grad(y, leaves, g), torch.autograd.grad(expected, leaves, g), strict=True):
            torch.testing.assert_close(a, b, **(TOLERANCE[dtype] if dtype != torch.bfloat16 else {"atol": 0.3, "rtol": 0.1}))
        if not torch.nn.utils.parametrize.is_parametrized(layer):
            with torch.no_grad():
                layer.weight.add_(1)


def test_a_square_layer_and_its_transposed_weight():
    linear, x = torch.nn.Linear(8, 8), torch.randn(5, 8)
    layer = LoRALinear.from_linear(linear, rank=2)
    torch.testing.assert_close(layer(x), linear(x))
    torch.testing.assert_close(torch_ops.linear(x, linear.weight.t()), x @ linear.weight)


def test_what_an_adapter_would_leave_out_is_refused():
    hooked, replaced = torch.nn.Linear(8, 6), torch.nn.Linear(8, 6)
    hooked.register_forward_hook(lambda *_: None)
    replaced.forward = lambda x: x
    parametrized = torch.nn.Linear(8, 6)
    torch.nn.utils.parametrize.register_parametrization(parametrized, "weight", Doubled())
    for linear in (hooked, replaced, parametrized):
        with pytest.raises(ValueError, match="hooks, a parametrized weight or a forward of its own"):
            LoRALinear.from_linear(linear)
    for linear in (with_adapter(), torch.nn.Conv1d(8, 6, 1), torch.ao.nn.quantized.dynamic.Linear(8, 6)):
        with pytest.raises(ValueError, match=f"{type(linear).__name__}: expected a torch.nn.Linear"):
            LoRALinear.from_linear(linear)


def test_what_is_not_frozen_is_read_at_every_call():
    weight, x = torch.randn(6, 8), torch.randn(5, 8)
    torch_ops.linear(x, weight)
    weight.data.mul_(2)
    torch.testing.assert_close(torch_ops.linear(x, weight), x @ weight.t())
    identity = packing._identity(torch_ops.freeze(weight))
    assert identity in packing._FROZEN
    part = weight[2:]
    del weight
    assert identity in packing._FROZEN  # its storage lives on
    del part
    assert identity not in packing._FROZEN
    turned = torch_ops.freeze(torch.randn(8, 6).t())
    assert packing._packed(turned) is packing._packed(turned)
    torch.testing.assert_close(torch_ops.linear(x, turned), x @ turned.t())
    for wrong, why in ((torch.randn(6, 8, requires_grad=True), "requires_grad=False"), (torch.randn(12, 8)[::2], "contiguous")):
        with pytest.raises(ValueError, match=why):
            torch_ops.freeze(wrong)
    with torch.inference_mode(), pytest.raises(ValueError, match="inference mode"):
        torch_ops.freeze(torch.randn(6, 8))


def test_in_autocast_both_modules_do_as_torchs_own():
    layer, x, target = with_adapter(), torch.randn(2, 5, 8), torch.randint(6, (2, 5))
    head = torch.randn(6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
        torch.testing.assert_close(y, plain(layer, x), atol=3e-2, rtol=3e-2)
        loss = LinearCrossEntropy()(y.float(), head, target)
        assert y.dtype == torch.bfloat16 and loss.dtype == torch.float32
        assert layer.double()(x.double()).dtype == torch.float64
    expected = torch.nn.functional.cross_entropy((y.float() @ head.t()).flatten(0, 1), target.flatten())
    torch.testing.assert_close(loss, expected, atol=3e-2, rtol=3e-2)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_linear_cross_entropy_equals_torch(reduction, dtype):
    h, weight = torch.randn(2, 7, 16, dtype=dtype, requires_grad=True), torch.randn(33, 16, dtype=dtype, requires_grad=True)
    target = torch.randint(33, (2, 7))
    target[0, 3] = target[1, 0] = -100
    ours = LinearCrossEntropy(reduction)(h, weight, target)
    logits = (h @ weight.t()).flatten(0, 1).to(ours.dtype)
    theirs = torch.nn.functional.cross_entropy(logits, target.flatten(), reduction=reduction)
    theirs = theirs.view(2, 7) if reduction == "none" else theirs
    g = torch.randn(2, 7, dtype=ours.dtype) if reduction == "none" else torch.tensor(1.7, dtype=ours.dtype)
    torch.testing.assert_close(ours, theirs, **TOLERANCE[dtype])
    for a, b in zip(torch.autograd.grad(ours, [h, weight], g), torch.autograd.grad(theirs, [h, weight], g), strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, **(TOLERANCE[dtype] if dtype != torch.bfloat16 else {"atol": 6e-2, "rtol": 3e-2}))
    with pytest.raises(ValueError, match="reduction='max'"):
        LinearCrossEntropy("max")


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["eager", "compiled"])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_targets_that_do_not_count_and_targets_out_of_range(reduction, compiled):
    """What torch gives, or its refusal: with every choice of ignore_index, and where nothing counts or nothing is there."""
    h, weight = torch.randn(4, 8, requires_grad=True), torch.randn(7, 8, requires_grad=True)
    g = torch.randn(4) if reduction == "none" else torch.tensor(1.3)
    for ignore in (-100, -1, 0, 6, 50):
        score = LinearCrossEntropy(reduction, ignore)
        torch.compiler.reset()  # each of these is compiled anew
        score = torch.compile(score, fullgraph=True, backend="aot_eager") if compiled else score
        for target in ([ignore] * 4, [3, ignore, 6, 0], [1, 2, 3, 4], [3, -1, 2, 1], [ignore, -100, 1, 1], [7, 1, 1, 1], [1, 1, 50, 1]):
            target = torch.tensor(target)
            try:
                theirs = torch.nn.functional.cross_entropy(h @ weight.t(), target, ignore_index=ignore, reduction=reduction)
            except IndexError:
                wrong = next(t for t in target.tolist() if t != ignore and not 0 <= t < 7)
                with pytest.raises(ValueError, match=rf"is {wrong}, accepted is 0 to 6, or ignore_index={ignore}"):
                    score(h, weight, target)
                continue
            ours = score(h, weight, target)
            torch.testing.assert_close(ours, theirs, equal_nan=True, **TOLERANCE[torch.float32])
            for a, b in zip(torch.autograd.grad(ours, [h, weight], g), torch.autograd.grad(theirs, [h, weight], g), strict=True):
                torch.testing.assert_close(a, b, **TOLERANCE[torch.float32])
    nothing = LinearCrossEntropy(reduction)(h[:0], weight, torch.zeros(0, dtype=torch.int64))
    expected = torch.nn.functional.cross_entropy(h[:0] @ weight.t(), torch.zeros(0, dtype=torch.int64), reduction=reduction)
    torch.testing.assert_close(nothing, expected, equal_nan=True)
    with pytest.raises(ValueError, match="ignore_index=None"):
        LinearCrossEntropy(ignore_index=None)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_a_target_beyond_the_head_is_refused_in_every_dtype(dtype):
    h, head, target = torch.randn(2, 8, dtype=dtype), torch.randn(7, 8, dtype=dtype), torch.tensor([1, 7])
    for score in (torch_ops.cross_entropy, numpy_ops.cross_entropy):
        arguments = (h, head, target) if score is torch_ops.cross_entropy else (numpy_ops._array(t) for t in (h, head, target))
        with pytest.raises(ValueError, match=r"cross_entropy: targets\[1\] is 7, accepted is up to 6"):
            score(*arguments)
    with pytest.raises(ValueError, match=r"targets\[1\] is 7"):
        torch.ops.dynadapt.cross_entropy_weight_gradient(h, head, target, None, torch.ones(2, dtype=h.dtype).to(torch.float32))


def test_a_transformers_model_with_these_modules_has_pefts_gradients():
    import peft
    from helpers import to_transformers

    from dynadapt.model import random_model, tiny_config

    source, ids = random_model(tiny_config("llama"), seed=1, std=0.1), torch.randint(50, (2, 9))
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj", "down_proj"])
    theirs = peft.get_peft_model(to_transformers(source), config)

    model = to_transformers(source).requires_grad_(False)
    adapters = {}
    for i, block in enumerate(model.model.layers):
        for parent, name in ((block.self_attn, "q_proj"), (block.mlp, "down_proj")):
            layer = LoRALinear.from_linear(getattr(parent, name), rank=3, alpha=6)
            setattr(parent, name, layer)
            adapters[i, name] = layer
    for (i, name), layer in adapters.items():
        block = theirs.base_model.model.model.layers[i]
        own = getattr(block.self_attn if name == "q_proj" else block.mlp, name)
        torch.nn.init.normal_(own.lora_B["default"].weight, std=0.1)
        layer.load_state_dict({"lora_A": own.lora_A["default"].weight, "lora_B": own.lora_B["default"].weight}, strict=False)
    expected = theirs(ids, labels=ids).loss
    hidden = model.model(ids).last_hidden_state
    loss = LinearCrossEntropy()(hidden[:, :-1], torch_ops.freeze(model.lm_head.weight), ids[:, 1:])
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    loss.backward()
    expected.backward()
    wanted = {n: p.grad for n, p in theirs.named_parameters() if p.grad is not None}
    ours = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert len(ours) == len(wanted) == 2 * len(adapters)
    for name, grad in ours.items():
        torch.testing.assert_close(grad, wanted[f"base_model.model.{name}.default.weight"], atol=1e-6, rtol=1e-4)


def test_compiled_training_step_equals_eager():
    torch.compiler.reset()
    loss_of, x, target = LinearCrossEntropy(), torch.randn(9, 8), torch.randint(20, (9,))
    head = torch_ops.freeze(torch.randn(20, 6))

    def train(layer, forward):
        optimizer = torch.optim.SGD([layer.lora_A, layer.lora_B], lr=0.02)
        losses = []
        for _ in range(3):
            optimizer.zero_grad()
            loss = forward(layer, x)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    eager, other = with_adapter(), None
    other = copy.deepcopy(eager)
    score = lambda layer, x: loss_of(layer(x), head, target)  # noqa: E731
    expected, losses = train(eager, score), train(other, torch.compile(score, fullgraph=True))
    assert losses == pytest.approx(expected, rel=1e-6) and losses[2] < losses[0]
    torch.testing.assert_close(other.lora_A, eager.lora_A)
    assert kept(other)
