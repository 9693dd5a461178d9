"""Layers of the gated delta rule beside attention (Qwen3.5): what their state is, with and without memory; what they refuse."""

from dataclasses import replace

import peft
import pytest
import torch
from helpers import nll_of, to_transformers
from torch.utils.flop_counter import FlopCounterMode

from dynadapt import SGD, Adam, Engine, Full, LoRA, Overlap, RowSparse, SegmentMemory
from dynadapt.engine.generation import generate
from dynadapt.engine.learners.peft import write_adapter
from dynadapt.model import ModelError, from_state, load, random_model, tiny_config
from dynadapt.model.convert import write_directory
from dynadapt.model.hf_config import config_from_hf, config_to_hf
from dynadapt.ops import delta_rule as op_delta_rule

T = 13
LONG = SegmentMemory(200, 4)
BACKENDS = [("reference", "fp32"), ("cpu", "fp32"), ("cpu", "bf16")]


def model():
    """With decays that keep a state for some tens of tokens, so that what is carried on shows in every score."""
    drawn = random_model(tiny_config("qwen3_5"), seed=1, std=0.15)
    state = {name: drawn.tensor(name) for name in drawn.names()}
    for name in state:
        if name.endswith("delta.A_log"):
            state[name] = state[name] - 3
        elif name.endswith("convolution.weight"):
            state[name] = 3 * state[name]
    return from_state(drawn.config, state, name="tiny-hybrid")


MODEL = model()


def tokens(rows=1, length=4 * T + 1, seed=2):
    return torch.randint(MODEL.config.vocab_size, (rows, length), generator=torch.Generator().manual_seed(seed))


def engine(backend="cpu", dtype="fp32", segment=T, **options):
    return Engine(MODEL, backend=backend, dtype=dtype, segment=segment, **options)


def learning(backend="cpu", dtype="fp32", **options):
    return engine(backend, dtype, adapt=LoRA(rank=3), optimizer=Adam(lr=0.05), **options)


def scores(e, row, segment=T):
    return torch.cat([e.step(row[:, at : at + segment + 1]).clone() for at in range(0, row.shape[1] - 1, segment)], 1)


# ---- the state


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("segment", [1, 7, T, 60])
def test_with_memory_segments_are_invisible(backend, segment):
    row = tokens(2)
    expected = nll_of(to_transformers(MODEL), row)
    found = scores(engine(backend, segment=segment, streams=2, memory=LONG), row, segment)
    assert torch.allclose(found.double(), expected, atol=5e-5)


def test_without_memory_a_segment_begins_with_a_state_of_zero():
    row, live = tokens(), to_transformers(MODEL)
    apart = torch.cat([nll_of(live, row[:, at : at + T + 1]) for at in range(0, 4 * T, T)], 1)
    found = scores(engine(), row)
    assert torch.allclose(found.double(), apart, atol=5e-5)
    assert (apart - nll_of(live, row)).abs().max() > 1e-2  # there is something to carry on


@pytest.mark.parametrize("backend,dtype", BACKENDS)
def test_the_state_outlives_the_window(backend, dtype):
    """What attention has dropped is still in it: beside another past, the same last tokens score otherwise. The keys of the one layer with
    attention could not know of it but from the state of the layer in front."""
    row, other = tokens(), tokens()
    other[:, 0] = (other[:, 0] + 1) % MODEL.config.vocab_size
    a, b = (scores(engine(backend, dtype, memory=SegmentMemory(T, 0)), r)[:, 2 * T :] for r in (row, other))
    assert not torch.equal(a, b)


@pytest.mark.parametrize("backend,dtype", BACKENDS)
@pytest.mark.parametrize("learns", [False, True])
def test_each_stream_moves_on_by_its_own_count(backend, dtype, learns):
    """Whatever stands behind a row's length, and whoever shares the batch."""
    make = learning if learns else engine
    row, lengths = tokens(3, 2 * T + 1), ((T, 5, 0), (3, T, T))
    together = make(backend, dtype, streams=3, memory=LONG)
    alone = [make(backend, dtype, memory=LONG) for _ in range(3)]
    at = [0, 0, 0]
    for counts in lengths:
        given = torch.stack([row[s, at[s] : at[s] + T + 1] for s in range(3)])
        noisy = torch.where(torch.arange(T + 1) <= torch.tensor(counts)[:, None], given, 7)
        found = together.step(noisy, lengths=list(counts))
        for s, count in enumerate(counts):
            if count:
                expected = alone[s].step(given[s : s + 1, : count + 1])[0]
                close = torch.equal if backend == "cpu" else lambda a, b: torch.allclose(a, b, atol=2e-5)
                assert close(found[s, :count], expected), (s, counts)
            at[s] += count
    held = together.decoder.memory
    for s in range(3):
        for mine, theirs in zip(held.delta.tensors().values(), alone[s].decoder.memory.delta.tensors().values()):
            assert torch.allclose(mine[:, s].float(), theirs[:, 0].float(), atol=1e-5)


@pytest.mark.parametrize("learns", [False, True])
def test_fixed_shapes_give_the_same(learns):
    """The step that never looks at a length: a state moves on by the count that the device is given."""
    make = learning if learns else engine
    row = tokens(2, 2 * T + 1)
    a, b = (make("reference", static=static, streams=2, memory=SegmentMemory(T, 2)) for static in (False, True))
    for at, counts in ((0, (T, 4)), (T, (T, 0)), (T, (3, 9))):
        given = torch.stack([row[0, at : at + T + 1], row[1, : T + 1]])
        x, y = (e.step(given, lengths=list(counts)) for e in (a, b))
        assert torch.allclose(x, y, atol=2e-5)
    for x, y in zip(a.decoder.memory.delta.tensors().values(), b.decoder.memory.delta.tensors().values()):
        assert torch.allclose(x, y, atol=1e-4)


@pytest.mark.parametrize("learns", [False, True])
def test_a_document_that_enters_finds_nothing_of_the_last(learns):
    make = learning if learns else engine
    row = tokens(2)
    fresh = scores(make(memory=LONG, **({"reset": "document"} if learns else {})), row[1:])
    e = make(memory=LONG, **({"reset": "document"} if learns else {}))
    scores(e, row[:1])
    e.enter(0)
    assert torch.equal(scores(e, row[1:]), fresh)


def test_a_saved_state_goes_on_bit_for_bit(tmp_path):
    row = tokens(2)
    whole = learning(streams=2, memory=SegmentMemory(T, 2))
    expected = scores(whole, row)
    first = learning(streams=2, memory=SegmentMemory(T, 2))
    scores(first, row[:, : 2 * T + 1])
    first.save(tmp_path)
    second = learning(streams=2, memory=SegmentMemory(T, 2))
    second.restore(tmp_path)
    assert torch.equal(scores(second, row[:, 2 * T :]), expected[:, 2 * T :])
    first.decoder.memory.delta.states[0, 0, 0, 0, 0] = float("nan")
    first.save(tmp_path)
    with pytest.raises(ModelError, match="tensor memory.delta.states holds a NaN"):
        second.restore(tmp_path)


def test_score_and_generate_leave_the_state_alone():
    row, live = tokens(), to_transformers(MODEL)
    e = engine(memory=LONG, segment=2 * T)
    e.step(row[:, : T + 1])
    before = {name: t.clone() for name, t in e.decoder.memory.tensors().items()}
    assert torch.allclose(e.score(row[:, : T + 1]).double(), nll_of(live, row[:, : T + 1]), atol=5e-5)
    prompt = row[0, :9].tolist()
    made = generate(e, prompt, 12)
    text = torch.tensor([prompt])
    for _ in range(12):
        with torch.no_grad():
            text = torch.cat([text, live(text).logits[:, -1:].argmax(-1)], 1)
    assert made == text[0, 9:].tolist()
    assert all(torch.equal(t, before[name]) for name, t in e.decoder.memory.tensors().items())


def test_overlap_runs_the_last_tokens_again():
    row, live = tokens(), to_transformers(MODEL)
    found = scores(engine(memory=Overlap(9)), row)
    expected = [nll_of(live, row[:, max(0, at - 9) : at + T + 1])[:, -T:] for at in range(0, 4 * T, T)]
    assert torch.allclose(found.double(), torch.cat(expected, 1), atol=5e-5)


def test_bf16_is_no_further_from_float64_than_transformers():
    """Over several models: gates turn a rounding into much or little, so that one model says little."""
    errors = []
    for seed in range(6):
        m = random_model(tiny_config("qwen3_5"), seed=seed, std=0.1, dtype=torch.bfloat16)
        row = tokens(8, 2 * T + 1, seed)
        exact, theirs = (nll_of(to_transformers(m, dtype), row) for dtype in (torch.float64, torch.bfloat16))
        ours = Engine(m, segment=2 * T, streams=8, dtype="bf16", backend="cpu").step(row).double()
        errors.append([(nll - exact).square().mean() for nll in (ours, theirs)])
    ours, theirs = torch.tensor(errors).mean(0).sqrt()
    assert ours <= theirs


# ---- learning


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_behind_a_memory_are_those_with_a_detached_cache(tmp_path, backend, recompute):
    from safetensors.torch import load_file
    from transformers import DynamicCache

    row = tokens(length=2 * T + 1)
    e = engine(backend, adapt=LoRA(rank=3, alpha=5), optimizer=SGD(lr=0.0, clip=0.0), memory=LONG, recompute=recompute)
    learner = e.learners[0]
    learner.state.master += 0.05 * torch.randn(learner.state.master.shape, generator=torch.Generator().manual_seed(7))
    write_adapter(tmp_path / "before", learner, MODEL.config, 0, "tiny")
    live = peft.PeftModel.from_pretrained(to_transformers(MODEL), tmp_path / "before", is_trainable=True)
    cache = DynamicCache(config=live.base_model.model.config)
    with torch.no_grad():
        live(row[:, :T], past_key_values=cache, use_cache=True)
    cache.update_recurrent_state = lambda states, *_, **__: states  # not in place, which autograd would refuse
    logits = live(row[:, T : 2 * T], past_key_values=cache, use_cache=True).logits[0]
    loss = torch.nn.functional.cross_entropy(logits.double(), row[0, T + 1 :])
    loss.backward()

    e.step(row[:, : T + 1])
    e.set_lr(0, 0.5)
    assert float(e.step(row[:, T:]).mean()) == pytest.approx(loss.item(), abs=2e-5)
    write_adapter(tmp_path / "after", learner, MODEL.config, 0, "tiny")
    after = load_file(str(tmp_path / "after" / "adapter_model.safetensors"))
    for name, parameter in live.named_parameters():
        if parameter.requires_grad:
            ours = after[name.replace(".default", "")]
            assert torch.allclose(ours, parameter.detach() - 0.5 * parameter.grad, atol=2e-5), name


@pytest.mark.parametrize(
    "targets,layers",
    [
        (["delta_qkv", "q", "delta_o"], None),
        (["delta_a", "delta_b"], range(2, 3)),
        (["out_proj"], None),
        (["delta_o", "o"], range(1, 3)),
        (["o"], range(1, 2)),
        (r".*in_proj_(z|b)", None),
        ("attn", range(1, 3)),
        ("mlp", range(2, 3)),
    ],
)
@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_do_not_depend_on_what_else_learns(targets, layers, recompute):
    def gradients(adapt, backend="cpu", dtype="fp32", **options):
        e = engine(backend, dtype, adapt=adapt, optimizer=SGD(lr=0.5, clip=0.0), **options)
        learner, found = e.learners[0], {}
        for layer, group in learner.sizes:
            A = learner.layout.view(learner.state.master, f"{layer}.{group}.A")
            A.copy_(0.3)
        e.step(tokens(length=T + 1))
        for key, own in learner.parts_of.items():
            start = 0
            for (rank, _), size in zip(own, learner.sizes[key][1]):
                if rank:
                    found[key, start] = learner.adapter(*key)[1][0][:, start : start + size].double().clone()
                start += size
        return found

    expected = gradients(LoRA(rank=3), "reference", "fp64")
    found = gradients(LoRA(rank=3, targets=targets, layers=layers), recompute=recompute)
    assert found and set(found) <= set(expected)
    for key, value in found.items():
        assert (value - expected[key]).abs().max() <= 2e-5, key


@pytest.mark.parametrize("memory", [None, SegmentMemory(T, 2)], ids=["nothing", "keep"])
@pytest.mark.parametrize("adapt", [None, LoRA(rank=3), RowSparse(density=0.3, every=2)], ids=["none", "lora", "rows"])
def test_ledger_equals_torchs_flop_counter(adapt, memory):
    e = engine("reference", adapt=adapt, optimizer=None if adapt is None else Adam(lr=0.01), memory=memory)
    with FlopCounterMode(display=False) as counter:
        scores(e, tokens(length=2 * T + 6))
    assert sum(n for phase, n in e.flops.items() if phase != "update") == counter.get_total_flops()


def test_the_plan_counts_what_a_step_does():
    from dynadapt.bench.plan.work import step_work

    for memory in (None, SegmentMemory(T, 2)):
        e = engine(adapt=LoRA(rank=3), optimizer=Adam(lr=0.01), memory=memory, streams=2, batch=2)
        scores(e, tokens(2, 6 * T + 1))
        work = step_work(MODEL.config, LoRA(rank=3), Adam(lr=0.01), memory, streams=2, segment=T, dtype=torch.float32, batch=2)
        assert work.flops == e.last.flops
        assert work.ops["delta_rule_forward"].flops == 2 * op_delta_rule.forward_flops(2 * T, 4, 10, 6)


def test_the_plan_of_a_gpu_counts_the_scratch_of_the_delta_rule():
    """What kernels/delta_rule.py takes (tests/gpu/test_delta_rule.py): once for all layers; without learning, the forward's alone."""
    from dynadapt.bench.plan.work import step_work

    held = lambda **options: step_work(MODEL.config, memory=LONG, streams=2, segment=70, dtype=torch.float32, **options).memory  # noqa: E731
    name = "scratch of the delta rule"
    forward = 4 * 2 * (4 * 3 * 32 * 32 + 70 * 2 * 2)
    backward = 2 * 4 * 4 * 10 * 6 + 2 * 4 * 3 * 32 * 6 + 4 * 3 * 2 * 32 * 32 + 4 * 3 * 2 * 32
    assert held(on_gpu=True)[name] == forward
    assert held(adapt=LoRA(rank=3), on_gpu=True)[name] == forward + 4 * 2 * backward
    assert name not in held(adapt=LoRA(rank=3))


@pytest.mark.parametrize("adapt", [RowSparse(density=0.3, every=2), Full()], ids=["rows", "full"])
def test_weights_learn(adapt):
    e = engine(adapt=adapt, optimizer=Adam(lr=0.005), memory=SegmentMemory(T, 2))
    row = tokens(length=T + 1)
    first, *_, last = [float(e.step(row).mean()) for _ in range(8)]
    assert last < first - 0.05


def test_int8_scores_and_learns_alike_on_both_backends():
    """Next to what it scores in float32; what is learned from there on is as far apart as so small a model makes it."""
    row, found = tokens(length=T + 1), {}
    for backend, base in (("cpu", "same"), ("cpu", "int8"), ("reference", "int8")):
        e = engine(backend, adapt=LoRA(rank=3), optimizer=Adam(lr=0.01), base=base)
        found[backend, base] = torch.tensor([float(e.step(row).mean()) for _ in range(4)])
    same, ours, plain = found.values()
    assert abs(ours[0] - same[0]) < 0.05 and not torch.equal(ours, same)
    assert torch.allclose(ours, plain, atol=0.02) and ours[-1] < ours[0] - 0.3


# ---- what is refused, what is said


def test_what_cannot_be_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"adapt=Full\(targets='model'.*convolutions, decays and norms of qwen3_5's"):
        engine(adapt=Full(targets="model"))
    with pytest.raises(ValueError, match=r"refresh='reproject'\): the state of qwen3_5's layers of the gated delta rule"):
        engine(memory=SegmentMemory(20, 2, "reproject"))
    with pytest.raises(ValueError, match=r"adapt=\(LoRA.*\) with backend='triton': qwen3_5 has four linears side by side"):
        engine("triton", adapt=[LoRA(rank=3), LoRA(rank=2)], streams=2)
    with pytest.raises(ValueError, match="targets has 'q_prj', which names no linear: the linears of qwen3_5 are .*delta_qkv.*in_proj_qkv"):
        engine(adapt=LoRA(targets=["q_prj"]))
    write_directory(MODEL, tmp_path / "model", torch.float32)
    assert load(tmp_path / "model").config == MODEL.config


def test_configs_of_every_kind():
    raw = config_to_hf(MODEL.config)
    assert config_from_hf(raw) == MODEL.config
    every = {key: value for key, value in raw.items() if key != "layer_types"} | {"num_hidden_layers": 8}
    assert config_from_hf(every).attention_layers == [3, 7]
    assert config_from_hf(every | {"full_attention_interval": 3}).attention_layers == [2, 5]
    text = {"mrope_interleaved": True, "mrope_section": [1, 1, 1], "rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25}
    assert config_from_hf(raw | {"rope_parameters": text}) == replace(MODEL.config, rope_theta=1e7)
    for change, said in (
        ({"layer_types": ["linear_attention"] * 3}, "layer_types = .*at least one of either"),
        ({"layer_types": ["full_attention"] * 3}, "layer_types = .*at least one of either"),
        ({"layer_types": ["sliding_attention"] * 3}, "layer_types = "),
        ({"linear_num_value_heads": 3}, "linear_num_value_heads = 3 is no multiple of linear_num_key_heads = 2"),
        ({"linear_conv_kernel_dim": 0}, "linear_conv_kernel_dim = 0"),
        ({"attn_output_gate": False}, "attn_output_gate = False"),
        ({"rope_parameters": text | {"mrope_section": "x"}}, "rope_parameters.mrope_section = 'x'"),
        ({"num_experts": 4}, "num_experts = 4"),
    ):
        with pytest.raises(ModelError, match=said):
            config_from_hf(raw | change)
    with pytest.raises(ModelError, match="'qwen3_next' is not supported"):
        config_from_hf({"model_type": "qwen3_next"})


def test_the_text_model_within_one_of_images_and_text(tmp_path):
    """As the published models are stored: another prefix, tensors of images, and of layers that draft tokens."""
    import transformers
    from safetensors.torch import load_file, save_file

    text = {key: value for key, value in config_to_hf(MODEL.config).items() if key != "architectures"}
    vision = dict(depth=1, hidden_size=16, intermediate_size=16, num_heads=2, patch_size=4, out_hidden_size=44, num_position_embeddings=16)
    around = transformers.Qwen3_5ForConditionalGeneration(transformers.Qwen3_5Config(text_config=text, vision_config=vision))
    around.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    assert "model.language_model.layers.0.linear_attn.A_log" in state and any(name.startswith("model.visual.") for name in state)
    save_file(state | {"mtp.norm.weight": torch.zeros(44)}, tmp_path / "model.safetensors", {"format": "pt"})
    loaded = load(tmp_path)
    assert loaded.config == MODEL.config
    live = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert type(live).__name__ == "Qwen3_5ForCausalLM"
    row = tokens()
    found = Engine(loaded, segment=4 * T, dtype="fp32", backend="cpu").step(row)
    assert torch.allclose(found.double(), nll_of(live.eval(), row), atol=5e-5)
    with pytest.raises(ModelError, match="architecture 'qwen3_5' is not supported"):
        load(around)


def test_explain_says_what_becomes_of_the_state():
    assert "2 of 3 layers have the gated delta rule: a state of 240 numbers each, zero where a segment begins" in engine().explain()
    assert "carried on from segment to segment, detached" in engine(memory=LONG).explain()
    from dynadapt.model import describe

    assert "2 layers of the gated delta rule: 2 heads of 10 for queries and keys, 4 of 6 for values" in describe(MODEL)


def test_the_state_is_counted():
    e = engine(streams=3, memory=SegmentMemory(T, 2))
    held = sum(t.numel() * t.element_size() for t in e.decoder.memory.delta.tensors().values())
    assert held == 3 * 2 * 4 * (4 * 10 * 6 + 3 * (2 * 2 * 10 + 4 * 6))
    from dynadapt.engine.footprint import footprint

    assert footprint(e)["segment memory"] >= held
