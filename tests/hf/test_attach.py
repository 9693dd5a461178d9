"""attach: a live transformers model sees what the engine learns, and is itself again after detach."""

import copy

import pytest
import torch
from helpers import nll_of, to_transformers, token_rows

import dynadapt
from dynadapt import Adam, Full, LoRA, RowSparse, SegmentMemory
from dynadapt.engine.generation import generate
from dynadapt.model import ModelError, layout, peft_name, random_model, tiny_config
from dynadapt.model.layout import to_hf_rows

FAMILIES = ["llama", "qwen2", "qwen3", "gpt2", "gemma2", "gemma3", "granite", "phi3", "gptneox", "qwen3_5"]
T = 12
FAST = dict(optimizer=Adam(lr=0.02), segment=T)
WRITTEN = {"rows": RowSparse(density=0.3, every=2), "full": Full(), "model": Full(targets="model"), "norms": Full(targets="norms")}


def live_model(family="llama", dtype=torch.float32):
    untied = (
        {"tied_head": False} if family in ("gemma2", "gemma3", "granite") else {}
    )  # a scaled embedding that is the head too says its token for ever
    model = to_transformers(random_model(tiny_config(family, **untied), seed=1, std=0.2), dtype)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def ids(count=T + 1, seed=0, rows=1):
    return token_rows(rows, count, seed)


def logits(model, seed=9):
    with torch.no_grad():
        return model(ids(9, seed)).logits


def generated(model):
    return model.generate(ids(5, seed=3), max_new_tokens=12, do_sample=False)


def merged_copy(model, session, stream=0):
    """A copy of the model before attaching, with the adapters of one stream added to its weights."""
    copied, learner, config = copy.deepcopy(model), session.engine.learners[0], session.engine.config
    for (layer, group), (_, sizes) in learner.sizes.items():
        A, Bt = (t[stream] for t in learner.adapter(layer, group))
        start, rank = 0, session.engine.adapt.rank
        for p, (part, size) in enumerate(zip(layout(config, layer)[group], sizes)):
            delta = session.engine.adapt.scale * Bt[:, start : start + size].t() @ A[p * rank : (p + 1) * rank]
            delta = to_hf_rows(config, part, delta)
            weight = copied.get_submodule(peft_name(config, layer, part)).weight
            with torch.no_grad():
                weight += delta.t() if config.family == "gpt2" else delta
            start += size
    return copied


def record(model):
    """What detach must bring back: values, and the identity of parameters and modules."""
    return (
        {n: p.detach().clone() for n, p in model.named_parameters()},
        {n: id(p) for n, p in model.named_parameters()},
        {n: p.data_ptr() for n, p in model.named_parameters()},
        {n: id(m) for n, m in model.named_modules()},
        [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
    )


def same_record(a, b):
    return all(torch.equal(a[0][n], b[0][n]) for n in a[0]) and a[1:] == b[1:]


@pytest.mark.parametrize("family", FAMILIES)
def test_lora_is_seen_by_forward_and_generate(family):
    model = live_model(family)
    before, plain, plain_text = record(model), logits(model), generated(model)
    untouched = copy.deepcopy(model)
    with dynadapt.attach(model, adapt=LoRA(rank=3, alpha=6), **FAST) as session:
        assert torch.equal(logits(model), plain)  # B is zero
        for seed in range(4):
            expected = nll_of(model, ids(seed=seed))
            assert torch.allclose(session.step(ids(seed=seed)).double(), expected, atol=5e-5)
        merged = merged_copy(untouched, session)
        assert (logits(model) - plain).abs().max() > 0.1
        assert torch.allclose(logits(model), logits(merged), atol=2e-4)
        assert torch.equal(generated(model), generated(merged))
        assert not torch.equal(generated(model), plain_text)
        assert all(torch.equal(p, before[0][n]) for n, p in model.named_parameters())  # hooks alone carry the adapter
    assert same_record(record(model), before)
    assert torch.equal(logits(model), plain)


@pytest.mark.parametrize("family", ["qwen2", "llama", "gemma2"])
def test_an_adapter_of_the_head_is_seen(family):
    """A tied head (qwen2) keeps its embedding."""
    model = live_model(family)
    plain = logits(model)
    with dynadapt.attach(model, adapt=LoRA(rank=3, alpha=6, targets=["v", "head"]), **FAST) as session:
        for seed in range(3):
            expected = nll_of(model, ids(seed=seed))
            assert torch.allclose(session.step(ids(seed=seed)).double(), expected, atol=5e-5)
        assert (logits(model) - plain).abs().max() > 0.1
    assert torch.equal(logits(model), plain)


@pytest.mark.parametrize("what", WRITTEN)
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "gptneox", "qwen3_5"])
def test_written_weights_are_seen_and_taken_back(family, what):
    model = live_model(family)
    before, plain = record(model), logits(model)
    if family == "qwen3_5" and what == "model":
        with pytest.raises(ValueError, match="adapt=Full.targets='model'.*qwen3_5"):
            dynadapt.attach(model, adapt=WRITTEN[what], **FAST)
        return
    with dynadapt.attach(model, adapt=WRITTEN[what], **FAST) as session:
        for seed in range(5):
            expected = nll_of(model, ids(seed=seed))
            assert torch.allclose(session.step(ids(seed=seed)).double(), expected, atol=1e-4), seed
        learned = logits(model)
        assert (learned - plain).abs().max() > 0.1
        fresh = copy.deepcopy(model)  # parameters alone carry what was learned
        assert torch.equal(logits(fresh), learned)
        session.reset()
        assert torch.equal(logits(model), plain)
        assert record(model)[1] == before[1]
        session.step(ids())
    assert same_record(record(model), before)


@pytest.mark.parametrize("adapt", [LoRA(rank=3), Full()], ids=["lora", "full"])
@pytest.mark.parametrize("family", FAMILIES)
def test_engine_and_live_model_generate_the_same(family, adapt):
    model = live_model(family)
    with dynadapt.attach(model, adapt=adapt, **FAST) as session:
        for seed in range(3):
            session.step(ids(seed=seed))
        assert generate(session.engine, ids(5, seed=3)[0], 7) == generated(model)[0, 5:12].tolist()


def test_a_step_with_fixed_shapes_is_seen():
    """What a GPU runs, in Triton's interpreter: the hooks read the buffers that its update writes."""
    model = to_transformers(random_model(tiny_config("llama", layers=1), seed=1, std=0.2))
    with dynadapt.attach(model, adapt=LoRA(rank=4), backend="triton", optimizer=Adam(lr=0.05), segment=4) as session:
        plain = logits(model)
        session.step(ids(5))
        assert session.engine.static is not None and (logits(model) - plain).abs().max() > 0.1
        assert torch.allclose(session.engine.score(ids(5, seed=4)).double(), nll_of(model, ids(5, seed=4)), atol=5e-5)
        session.rollback()
        assert torch.equal(logits(model), plain)


def test_bfloat16_model():
    for adapt in (LoRA(rank=2), Full(targets="model")):
        model = live_model(dtype=torch.bfloat16)
        before = record(model)
        with dynadapt.attach(model, adapt=adapt, **FAST) as session:
            assert session.engine.dtype == "bf16"
            session.step(ids())
            assert torch.allclose(session.engine.score(ids(seed=4)).double(), nll_of(model, ids(seed=4)), atol=0.15)
        assert same_record(record(model), before)


@pytest.mark.parametrize("adapt", [LoRA(rank=2), RowSparse(density=0.2, every=1), Full()], ids=["lora", "rows", "full"])
def test_rollback_and_snapshot(adapt):
    """Scores after going back equal those of a session that never went there."""
    model, memory = live_model(), SegmentMemory(length=10, sinks=2)
    with dynadapt.attach(live_model(), adapt=adapt, memory=memory, **FAST) as straight:
        expected = [straight.step(ids(seed=seed)) for seed in (0, 1, 2)]
        seen = logits(straight.model)
    with dynadapt.attach(model, adapt=adapt, memory=memory, history=2, **FAST) as session:
        assert torch.equal(session.step(ids(seed=0)), expected[0])
        kept, shown = session.snapshot(), logits(model)
        session.step(ids(seed=7))
        session.step(ids(seed=8))
        session.rollback(2)
        assert torch.equal(logits(model), shown)
        assert torch.equal(session.step(ids(seed=1)), expected[1])
        session.rollback(kept)
        assert torch.equal(logits(model), shown) and session.engine.updates == 1
        assert torch.equal(session.step(ids(seed=1)), expected[1])
        session.step(ids(seed=9))
        session.rollback()
        assert torch.equal(session.step(ids(seed=2)), expected[2])
        assert torch.equal(logits(model), seen)
        with pytest.raises(ValueError, match=r"to=3: 2 steps are kept \(history=2\)"):
            session.rollback(3)
        with pytest.raises(ValueError, match="to=0"):
            session.rollback(0)
        with pytest.raises(ValueError, match="another session"):
            with dynadapt.attach(live_model(), adapt=adapt, **FAST) as other:
                other.rollback(kept)


def test_what_is_kept_by_default():
    with dynadapt.attach(live_model(), adapt=LoRA(rank=2), **FAST) as session:
        session.step(ids())
        session.rollback()
        assert session.engine.updates == 0
    with dynadapt.attach(live_model(), adapt=Full(), **FAST) as session:
        session.step(ids())
        with pytest.raises(ValueError, match="history=0"):
            session.rollback()
    with dynadapt.attach(live_model(), adapt=LoRA(rank=2), **FAST) as session:
        with pytest.raises(ValueError, match="ids"):  # a step that is refused is not in the history
            session.step(torch.full((1, 4), 10_000))
        with pytest.raises(ValueError, match="0 steps are kept"):
            session.rollback()


@pytest.mark.parametrize("adapt", [LoRA(rank=2), Full()], ids=["lora", "full"])
def test_streams_are_shown_one_at_a_time(adapt):
    model = live_model()
    with dynadapt.attach(model, adapt=adapt, streams=2, **FAST) as session:
        session.step(ids(rows=2))
        first = logits(model)
        session.stream = 1
        assert not torch.equal(logits(model), first)
        row = ids(seed=5)
        assert torch.allclose(session.engine.score(row, stream=1).double(), nll_of(model, row), atol=5e-5)
        session.reset(1)
        untouched = logits(live_model())
        assert torch.equal(logits(model), untouched)
        session.stream = 0
        assert torch.equal(logits(model), first)
        with pytest.raises(ValueError, match="stream=2"):
            session.stream = 2


def test_a_reset_inside_a_step_is_seen():
    model = live_model()
    plain = logits(model)
    with dynadapt.attach(model, adapt=RowSparse(density=0.2, every=1), reset=2 * T, **FAST) as session:
        session.step(ids(seed=0))
        assert not torch.equal(logits(model), plain)
        session.step(ids(seed=1))
        assert torch.equal(logits(model), plain)
    with dynadapt.attach(model, adapt=Full(), reset="document", **FAST) as session:
        session.step(ids(seed=0))
        session.enter(0)
        assert torch.equal(logits(model), plain)


def test_a_tied_head_of_its_own_storage_follows_the_embedding():
    model = live_model("gpt2")
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    before = record(model)
    with dynadapt.attach(model, adapt=Full(targets="model"), **FAST) as session:
        session.step(ids())
        assert torch.equal(model.lm_head.weight, model.transformer.wte.weight)
        assert torch.allclose(session.engine.score(ids(seed=4)).double(), nll_of(model, ids(seed=4)), atol=1e-4)
    assert same_record(record(model), before)


def test_the_base_model_alone_can_be_attached():
    model = live_model("gpt2").transformer
    with dynadapt.attach(model, adapt=LoRA(rank=2), **FAST) as session:
        plain = model(ids()).last_hidden_state
        session.step(ids())
        assert not torch.equal(model(ids()).last_hidden_state, plain)
    assert torch.equal(model(ids()).last_hidden_state, plain)


def test_a_model_is_held_once():
    model = live_model()
    session = dynadapt.attach(model, adapt=LoRA(rank=2), **FAST)
    for held in (model, model.model):
        with pytest.raises(ValueError, match="attached already"):
            dynadapt.attach(held, adapt=LoRA(rank=2), **FAST)
    session.detach()
    session.detach()
    for call in (lambda: session.step(ids()), session.rollback, session.snapshot, session.reset, lambda: session.save("nowhere")):
        with pytest.raises(RuntimeError, match="session is closed"):
            call()
    with dynadapt.attach(model, adapt=None, segment=T) as again:
        again.step(ids())


def test_an_error_inside_the_block_detaches():
    model = live_model()
    before = record(model)
    with pytest.raises(KeyError), dynadapt.attach(model, adapt=Full(), **FAST) as session:
        session.step(ids())
        raise KeyError
    assert same_record(record(model), before)


def test_what_is_refused_by_name():
    import peft
    import transformers

    opt = transformers.OPTForCausalLM(
        transformers.OPTConfig(
            vocab_size=50, hidden_size=16, num_hidden_layers=1, ffn_dim=16, num_attention_heads=2, word_embed_proj_dim=16
        )
    )
    with pytest.raises(ModelError, match="opt"):
        dynadapt.attach(opt)
    with pytest.raises(ValueError, match="model is a str"):
        dynadapt.attach("smollm2-135m")
    with pytest.raises(ModelError, match="PEFT"):
        dynadapt.attach(peft.get_peft_model(live_model(), peft.LoraConfig(r=2, target_modules=["q_proj"])))
    with pytest.raises(ValueError, match="dtype='bf16' with adapt=Full on a model of float32"):
        dynadapt.attach(live_model(), adapt=Full(), dtype="bf16", segment=T)
    with pytest.raises(ModelError, match="model is float16: give dtype"):
        dynadapt.attach(live_model(dtype=torch.float16), segment=T)
    with pytest.raises(ValueError, match="history=-1"):
        dynadapt.attach(live_model(), history=-1, segment=T)
    model = live_model()
    with pytest.raises(ValueError, match="rank=0"):
        dynadapt.attach(model, adapt=LoRA(rank=0))
    with pytest.raises(ValueError, match="segment=0"):
        dynadapt.attach(model, segment=0)
    dynadapt.attach(model, segment=T).detach()  # a refusal leaves nothing behind


def _scaling(model):
    model.model.layers[1].self_attn.scaling *= 2


def _multiplied(model):
    model.config.attention_multiplier = 0.5


def _hook(model):
    model.model.layers[0].mlp.register_forward_hook(lambda module, inputs, output: 2 * output)


def _forward(model):
    forward = model.model.layers[0].mlp.forward
    model.model.layers[0].mlp.forward = lambda x: 2 * forward(x)


def _softcap(model):
    model.lm_head.register_forward_hook(lambda module, inputs, output: 5 * (output / 5).tanh())


def _activation(model):
    model.model.layers[0].mlp.act_fn = torch.nn.GELU()


def _activation_hook(model):
    model.model.layers[0].mlp.act_fn.register_forward_hook(lambda module, inputs, output: 2 * output)


def _eps(model):
    model.model.norm.variance_epsilon = 1e-2


def _frequencies(model):
    model.model.rotary_emb.inv_freq.mul_(0.5)


def _dropout(model):
    model.train()
    model.model.layers[0].self_attn.attention_dropout = 0.1


def _fewer_layers(model):
    model.model.layers = model.model.layers[:1]


def _reordered(model):
    model.model.forward = lambda input_ids, own=model.model.forward, **kwargs: own(input_ids.flip(1), **kwargs)


class Packed(torch.nn.Module):
    """A linear as GPTQ and its like keep it: whole numbers, and no weight."""

    def __init__(self, linear):
        super().__init__()
        self.register_buffer("qweight", linear.weight.detach().to(torch.int8))


def _gptq(model):
    model.model.layers[0].self_attn.q_proj = Packed(model.model.layers[0].self_attn.q_proj)


def _bitsandbytes(model):
    model.model.layers[0].self_attn.q_proj.weight.quant_state = object()


def _dynamic(model):
    torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8, inplace=True)


class Wrapped(torch.Tensor):
    """A tensor subclass in place of a plain weight, as torchao's and DTensor are."""


def _subclass(model):
    linear = model.model.layers[0].mlp.up_proj
    linear.weight = torch.nn.Parameter(linear.weight.detach().as_subclass(Wrapped))


def _meta(model):
    model.model.layers[0].self_attn.q_proj.to("meta")


def _wrapper(model):
    model.model.layers[0] = torch.compile(model.model.layers[0], backend="eager")


CHANGES = {
    _scaling: r"layers\.1\.self_attn\.scaling is 0\.\d+, the config gives",
    _multiplied: "attention_multiplier = 0.5",
    _hook: r"differ by .* forward hooks on model\.layers\.0\.mlp",
    _forward: r"a forward of its own on model\.layers\.0\.mlp",
    _softcap: "forward hooks on lm_head",
    _activation: r"layers\.0\.mlp\.act_fn is a GELU",
    _activation_hook: r"layers\.0\.mlp\.act_fn has forward hooks",
    _eps: r"model\.norm\.variance_epsilon is 0\.01",
    _frequencies: r"rotary_emb\.inv_freq has other values",
    _dropout: r"self_attn\.attention_dropout is 0\.1",
    _fewer_layers: "is missing",
    _reordered: "a forward of its own on model",
    _gptq: "q_proj is a Packed with a weight of NoneType, qweight",
    _bitsandbytes: "q_proj is a Linear with a weight of Parameter, quant_state",
    _dynamic: "is a Linear with a weight of method",
    _subclass: "up_proj is a Linear with a weight of Parameter|with a weight of Wrapped",
    _meta: "meta device",
    _wrapper: "made by torch.compile",
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__[1:])
def test_a_model_that_computes_something_else_is_refused_by_name(change):
    model = live_model()
    change(model)
    with pytest.raises(ModelError, match=CHANGES[change]):
        dynadapt.attach(model, adapt=LoRA(rank=2), **FAST)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("adapt", [LoRA(rank=2), None], ids=["lora", "none"])
def test_what_changes_nothing_is_let_in(family, adapt):
    model, seen = live_model(family), []
    model.register_forward_hook(lambda module, inputs, output: seen.append(1))
    model.train()  # without dropout
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    with dynadapt.attach(model, adapt=adapt, segment=T) as session:
        assert seen and session.engine.flops == dict.fromkeys(session.engine.flops, 0)


def test_a_change_inside_the_session_is_refused_at_the_next_step():
    def weight(model):
        with torch.no_grad():
            model.model.layers[0].mlp.up_proj.weight[0] += 1

    def replaced(model):
        model.model.norm.weight = torch.nn.Parameter(2 * model.model.norm.weight.detach())

    for change, why in (
        (_scaling, "scaling is"),
        (_eps, "variance_epsilon"),
        (_frequencies, "inv_freq"),
        (weight, r"up_proj\.weight was changed since attach"),
        (replaced, r"norm\.weight was changed since attach"),
    ):
        model = live_model()
        with dynadapt.attach(model, adapt=LoRA(rank=2), **FAST) as session:
            session.step(ids())
            change(model)
            with pytest.raises(ModelError, match=why):
                session.step(ids())


@pytest.mark.parametrize(
    "what,when",
    [
        ("a part", "before"),
        *(
            pytest.param(what, when, marks=pytest.mark.slow)
            for what, when in (
                ("a part", "inside"),
                ("the model", "before"),
                ("the model", "inside"),
                ("a function", "before"),
                ("a function", "inside"),
            )
        ),
    ],
)
def test_compiled_code_sees_the_adapter_come_learn_and_go(what, when):
    torch.compiler.reset()
    model = to_transformers(random_model(tiny_config("llama", layers=1), seed=1, std=0.2))

    def compiled():
        if what == "a function":
            call = torch.compile(lambda tokens: model(tokens).logits, backend="eager")
            return lambda model: call(ids(9, 9)).detach()
        (model if what == "the model" else model.model.layers[0].mlp).compile(backend="eager")
        return logits

    run = compiled() if when == "before" else logits
    plain = run(model)
    with dynadapt.attach(model, adapt=LoRA(rank=3), **FAST) as session:
        run = compiled() if when == "inside" else run
        assert torch.allclose(run(model), plain, atol=1e-5)
        for seed in (0, 1):
            session.step(ids(seed=seed))
            row = ids(9, 9)
            expected = torch.nn.functional.cross_entropy(run(model)[0, :-1].double(), row[0, 1:], reduction="none")
            assert torch.allclose(session.engine.score(row)[0].double(), expected, atol=5e-5)
        assert not torch.allclose(run(model), plain, atol=1e-3)
    assert torch.allclose(run(model), plain, atol=1e-5)


def test_an_adapter_from_a_session_loads_into_peft(tmp_path):
    import peft

    model = live_model()
    with dynadapt.attach(model, adapt=LoRA(rank=3, alpha=5), **FAST) as session:
        session.step(ids())
        session.save(tmp_path)
        seen = logits(model)
    with_adapter = peft.PeftModel.from_pretrained(model, tmp_path / "adapter")
    assert torch.allclose(logits(with_adapter), seen, atol=1e-5)


def test_streams_of_a_session_learn_in_one_way():
    live = live_model()
    with pytest.raises(ValueError, match=r"optimizer=\[Adam\(.*attach takes one for all streams"):
        dynadapt.attach(live, LoRA(rank=2), optimizer=[Adam(), dynadapt.SGD()], streams=2, segment=T)
    with pytest.raises(ValueError, match=r"adapt=\[LoRA\(.*expected LoRA"):
        dynadapt.attach(live, [LoRA(rank=2), LoRA(rank=3)], streams=2, segment=T)
