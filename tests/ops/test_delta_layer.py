"""A gated delta rule layer of these ops against transformers' own, and the rules of its state."""

import pytest
import torch
from op_cases import make_case, run
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.qwen3_next import modeling_qwen3_next as theirs
from transformers.models.qwen3_next.configuration_qwen3_next import Qwen3NextConfig

from dynadapt.bench.cases.delta_rule import delta_rule_backward, delta_rule_forward
from dynadapt.bench.cases.short_convolution import short_convolution_backward, short_convolution_forward
from dynadapt.interop import torch_ops
from dynadapt.ops import delta_rule as op_delta_rule

SIZES = {"hk": 2, "hv": 4, "dk": 16, "dv": 8}
QKV = 2 * 2 * 16 + 4 * 8


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


@pytest.mark.parametrize("function", [theirs.torch_chunk_gated_delta_rule, theirs.torch_recurrent_gated_delta_rule])
@pytest.mark.parametrize("tokens", [1, 63, 130])
def test_equals_transformers_forward_and_backward(function, tokens):
    qkv, gates, state, dout = rand(2 * tokens, QKV), rand(2, tokens, 4).abs(), rand(2, 4, 16, 8), rand(2, tokens, 4, 8)
    g, beta = -gates, torch.sigmoid(rand(2, tokens, 4, seed=1))
    leaves = [t.clone().requires_grad_() for t in (qkv, g, beta)]
    q, k, v = leaves[0].view(2, tokens, QKV).split([32, 32, 32], 2)
    heads = q.unflatten(2, (2, 16)), k.unflatten(2, (2, 16)), v.unflatten(2, (4, 8))
    out, final = function(*heads, *leaves[1:], initial_state=state, output_final_state=True, use_qk_l2norm_in_kernel=True)
    expected = [out, final, *torch.autograd.grad(out, leaves, dout)]

    ours = [t.clone().requires_grad_() for t in (qkv, g.view(-1, 4), beta.view(-1, 4))]
    slots = torch.arange(2, dtype=torch.int32)
    out, final = torch_ops.delta_rule(*ours, **SIZES, slots=slots, state=state)
    results = [out, final, *torch.autograd.grad(out, ours, dout.view(-1, 32))]
    for a, b in zip(results, expected, strict=True):
        torch.testing.assert_close(a, b.reshape(a.shape), atol=2e-5, rtol=2e-4)


def test_a_layer_equals_transformers():
    """Projections and gates in torch, all else in these ops, over two segments."""
    torch.manual_seed(0)
    config = Qwen3NextConfig(
        hidden_size=24,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=16,
        linear_value_head_dim=8,
        num_hidden_layers=1,
        layer_types=["linear_attention"],
    )
    layer = theirs.Qwen3NextGatedDeltaNet(config, 0).float()
    x = torch.randn(1, 90, 24)
    expected = layer(x)[0]

    states, results = (None, None), []
    for part in x.split([70, 20], 1):
        q, k, v, z, b, a = layer.fix_query_key_value_ordering(layer.in_proj_qkvz(part), layer.in_proj_ba(part))
        mixed = torch.cat([t[0].flatten(1) for t in (q, k, v)], 1)
        mixed, rows = torch_ops.short_convolution(mixed, layer.conv1d.weight[:, 0], state=states[0])
        g = -layer.A_log.exp() * torch.nn.functional.softplus(a + layer.dt_bias)
        out, final = torch_ops.delta_rule(mixed, g[0], b[0].sigmoid(), **SIZES, state=states[1])
        y = torch_ops.gated_norm(out, z[0].flatten(1), layer.norm.weight, 8, config.rms_norm_eps)
        results.append(layer.out_proj(y))
        states = rows, final
    torch.testing.assert_close(torch.cat(results), expected, atol=1e-5, rtol=1e-4)


def in_two(case, at):
    """The case's stream as two segments, the second of which goes on from where the first ended: the outputs of both."""
    cut = lambda part: case.change(slots=torch.zeros(1, dtype=torch.int32)).cut(part)  # noqa: E731
    first = run(cut(slice(0, at)).change(state=None), "reference")
    second = run(cut(slice(at, None)).change(state=first["final"]), "reference")
    return first, second


@pytest.mark.parametrize("make,size", [(delta_rule_forward, (1, 9, 2, 4, 3, 2, False)), (short_convolution_forward, (1, 9, 5, 4, False))])
def test_segments_are_invisible(make, size):
    case = make_case(make, size, torch.float64)
    whole, output = run(case, "reference"), case.about.outputs[0]
    for at in (1, 2, 5):
        first, second = in_two(case, at)
        torch.testing.assert_close(torch.cat([first[output], second[output]]), whole[output])
        torch.testing.assert_close(second["final"], whole["final"])


LENGTHS = [(2, 0), (5, 1)]


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize(
    "make,size",
    [
        (delta_rule_forward, (2, 5, 2, 4, 3, 2)),
        (delta_rule_backward, (2, 5, 2, 4, 3, 2)),
        (short_convolution_forward, (2, 5, 5)),
        (short_convolution_backward, (2, 5, 5)),
    ],
)
def test_rows_behind_a_streams_length_do_not_count(make, size, lengths):
    """Whatever is in them: they are 0, and all else is what the stream gives without them."""
    case = make_case(make, size, torch.float64).change(lengths=torch.tensor(lengths, dtype=torch.int32))
    beyond = torch.cat([torch.arange(5) >= length for length in lengths])
    noisy = case
    for name in set(case.about.rows) - set(case.about.outputs):
        noisy = noisy.spoil(name, beyond)
    outputs = run(noisy, "reference")
    for i, length in enumerate(lengths):
        alone = run(case.cut(slice(5 * i, 5 * i + length), slice(i, i + 1)).change(lengths=None), "reference")
        for name, t in outputs.items():
            if name in case.about.rows:
                assert torch.equal(t[5 * i : 5 * i + length], alone[name]) and not t[5 * i + length : 5 * i + 5].any()
            elif name in case.about.streams:
                assert torch.equal(t[i], alone[name][0])
            else:
                assert torch.isfinite(t).all()


def test_flops_are_those_of_the_recurrence():
    for make in (delta_rule_forward, delta_rule_backward):
        case = make_case(make, (1, 7, 2, 4, 3, 5), torch.float64)
        with FlopCounterMode(display=False) as counter:
            run(case, "reference")
        assert counter.get_total_flops() == case.flops
    assert op_delta_rule.forward_flops(7, 4, 3, 5) == 6 * 7 * 60 and sum(op_delta_rule.backward_flops(7, 4, 3, 5)) == 16 * 7 * 60
