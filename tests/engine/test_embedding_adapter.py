"""Adapters on the embedding: PEFT's values, gradients and files, and each stream's own in every way in which an engine learns."""

import json

import pytest
import torch
from helpers import nll_of, peft_model, seeded, to_transformers, token_rows
from test_head_adapter import streams_stand_alone
from test_lora_beside import counts_are_torchs_and_a_plans

from dynadapt import SGD, Adam, Engine, LoRA, Overlap, SegmentMemory, Slow, attach, load
from dynadapt.experiments.diagnose.models import complete_adapter
from dynadapt.model import ModelError, random_model, tiny_config
from dynadapt.model.layout import hf_module, peft_name

pytestmark = pytest.mark.filterwarnings("ignore")
T = 16
EMBED = LoRA(rank=3, targets=["q", "embed"])
FAMILIES = ["llama", "qwen2", "gpt2", "gemma2", "gemma3", "granite", "gptneox"]


def model(family="llama", **changes):
    return random_model(tiny_config(family, **changes), seed=1, std=0.1)


def engine(m, adapt=EMBED, backend="cpu", dtype="fp32", **options):
    return Engine(m, adapt=adapt, **{"optimizer": Adam(lr=0.05), "segment": T, **options}, dtype=dtype, backend=backend)


def theirs(m, **settings):
    """PEFT's model in float64 with an adapter on the embedding and one linear, both halves of which are not zero."""
    part = "qkv" if m.config.family in ("gpt2", "gptneox") else "q"
    live = peft_model(m, target_modules=[hf_module(m.config, "embed"), peft_name(m.config, 1, part)], **settings)
    for name, p in live.named_parameters():
        if "lora_embedding_A" in name:
            torch.nn.init.normal_(p, std=0.3, generator=seeded(6))
    return live.double().eval(), LoRA(rank=3, alpha=6, targets=["embed", part], layers=range(1, 2))


def rows_of(count=2, seed=3, length=T):
    """Without token 0, where Gemma's padding has no gradient in transformers; every other token comes more than once."""
    return token_rows(count, length + 1, seed=seed).clamp(min=1) % 23 + 1


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("backend,dtype,tolerance", [("reference", "fp64", 1e-6), ("cpu", "fp32", 3e-5)])  # theirs has float32 norms
def test_scores_and_a_step_are_pefts_in_float64(tmp_path, family, backend, dtype, tolerance):
    """Where the embedding is multiplied with a number (Gemma, Granite), so is what the adapter adds."""
    m, row = model(family), rows_of()
    live, adapt = theirs(m)
    live.save_pretrained(tmp_path)
    e = engine(m, adapt, backend, dtype, optimizer=SGD(lr=1.0, clip=0.0), streams=2, shared=True)
    e.load_adapter(tmp_path)
    before = e.learners[0].state.master[0].clone()
    truth = nll_of(live, row)
    found = e.step(row)
    assert (found.double() - truth.double()).abs().max() < 100 * tolerance
    logits = live(row[:, :-1]).logits.double()
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), row[:, 1:].flatten()).backward()
    moved = before - e.learners[0].state.master[0]
    names = {"A": "lora_embedding_A.default", "Bt": "lora_embedding_B.default"}
    for half, name in names.items():
        (expected,) = [p.grad for at, p in live.named_parameters() if at.endswith(name)]
        ours = e.learners[0].layout.view(moved, f"-1.embed.{half}").double()
        expected = expected if half == "A" else expected.t()
        assert expected.abs().max() > 1e-3
        assert (ours - expected).abs().max() < tolerance * max(1, expected.abs().max()), half


@pytest.mark.parametrize("family", FAMILIES)
def test_it_begins_as_pefts_and_adds_nothing(family):
    """A at zero, B normal; the other adapters begin as they do without it."""
    m, row = model(family), rows_of(1)
    part = "qkv" if family in ("gpt2", "gptneox") else "q"
    e, without = engine(m, LoRA(rank=3, targets=[part, "embed"])), engine(m, LoRA(rank=3, targets=part))
    assert torch.equal(e.score(row), without.score(row))
    own, initial = e.learners[0], e.learners[0].initial
    A, Bt = (own.layout.view(initial, f"-1.embed.{half}") for half in ("A", "Bt"))
    assert not A.any() and 0.7 < float(Bt.std()) < 1.3
    assert torch.equal(initial[own.layout.offsets["0.qkv.A"] :], without.learners[0].initial)


@pytest.mark.parametrize("options", [{}, {"memory": SegmentMemory(8, 1)}, {"memory": Overlap(5)}, {"batch": 1}, {"static": True}], ids=str)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_streams_together_are_streams_alone(options, dtype):
    streams_stand_alone(model(), lambda m, **more: engine(m, dtype=dtype, **options, **more))


@pytest.mark.parametrize("base", ["same", "int8"])
def test_over_any_base_native_steps_follow_the_reference(base):
    m, rows = model("gemma2"), token_rows(2, 2 * T + 1, seed=4)
    options = dict(streams=2, optimizer=SGD(lr=0.5, clip=1.0))
    native, plain = (
        engine(m, base=base, **options),
        engine(m, EMBED, "reference", "fp32" if base == "int8" else "fp64", base=base, **options),
    )
    for start in (0, T, 0):
        found, truth = (e.step(rows[:, start : start + T + 1]) for e in (native, plain))
        torch.testing.assert_close(found.double(), truth.double(), atol=2e-5 if base == "same" else 5e-2, rtol=0)
    assert native.flops == plain.flops


@pytest.mark.parametrize("adapt", [EMBED, LoRA(rank=3, targets="embed"), LoRA(rank=2, targets=["embed", "down", "head"])], ids=str)
def test_flops_are_torchs_and_a_plans(adapt):
    e = counts_are_torchs_and_a_plans(model("gemma2"), adapt)
    assert "goes down to the embedding" in e.explain() and "adapted_embedding_backward" in e.explain()


def test_rates_ranks_and_what_a_reset_leaves():
    m, row = model(), rows_of(1)
    patterns = dict(rank_pattern={"embed": 2, "q": 4}, alpha_pattern={"embed_tokens": 5}, rate_pattern={"embed": 0.0})
    e = engine(m, LoRA(rank=3, targets=["q", "embed"], **patterns))
    learner, start = e.learners[0], e.learners[0].initial
    assert learner.ranks[-1, "embed"] == (2,) and learner.scales[-1, "embed"] == 2.5 and learner.ranks[0, "qkv"] == (4, 0, 0)
    e.step(row)
    halves = lambda row: [learner.layout.view(row, f"-1.embed.{half}") for half in ("A", "Bt")]  # noqa: E731
    assert all(map(torch.equal, halves(learner.state.master[0]), halves(start)))
    assert not torch.equal(learner.state.master[0], start)

    e = engine(m, LoRA(rank=3, targets=["q", "embed"], keep_a=True))
    learner, before = e.learners[0], e.score(row)
    for _ in range(3):
        e.step(row)
    A, Bt = (half.clone() for half in halves_of(learner))
    e.reset(0)
    assert torch.equal(e.score(row), before)
    assert A.any() and not halves_of(learner)[0].any() and torch.equal(halves_of(learner)[1], Bt)
    assert not torch.equal(Bt, learner.layout.view(learner.initial, "-1.embed.Bt"))


def halves_of(learner):
    return [learner.layout.view(learner.state.master[0], f"-1.embed.{half}") for half in ("A", "Bt")]


def test_gradients_add_up_and_what_was_learned_is_saved_generated_with_and_put_back(tmp_path):
    m, rows = model(), token_rows(1, 2 * T + 1, seed=6)
    whole, split = (engine(m, optimizer=SGD(lr=0.5, clip=0.0)) for _ in range(2))
    assert torch.equal(whole.step(rows[:, : T + 1]), split.forward_backward(rows[:, : T + 1]))
    split.optim_step()
    assert torch.equal(whole.learners[0].state.master, split.learners[0].state.master)
    twice = engine(m, optimizer=SGD(lr=0.25, clip=0.0))
    twice.forward_backward(rows[:, : T + 1]), twice.forward_backward(rows[:, : T + 1])
    twice.optim_step()
    torch.testing.assert_close(twice.learners[0].state.master, whole.learners[0].state.master, atol=1e-6, rtol=0)

    e = engine(m)
    before, start = e.generate([3, 5, 7], max_tokens=8, end=False).ids, e.snapshot()
    for _ in range(6):
        e.step(rows[:, : T + 1])
    e.save(tmp_path)
    again = engine(m)
    again.restore(tmp_path)
    assert torch.equal(again.step(rows[:, T:]), e.step(rows[:, T:]))
    text = rows[:, :6]
    greedy = e.generate(text[0].tolist(), max_tokens=1, end=False).ids[-1]
    scores = [float(e.score(torch.cat([text, torch.tensor([[v]])], 1))[0, -1]) for v in range(m.config.vocab_size)]
    assert min(range(len(scores)), key=scores.__getitem__) == greedy
    e.rollback(0, start)
    assert e.generate([3, 5, 7], max_tokens=8, end=False).ids == before


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3"])
@pytest.mark.parametrize("layers", [None, range(1, 2)], ids=str)
def test_peft_reads_our_files(tmp_path, family, layers):
    from peft import PeftModel

    m, row = model(family), rows_of(1)
    e = engine(m, LoRA(rank=3, targets=["q", "down", "embed", "head"], layers=layers, rank_pattern={"embed": 2}, rslora=True))
    for _ in range(3):
        e.step(row)
    e.save(tmp_path)
    live = PeftModel.from_pretrained(to_transformers(m), tmp_path / "adapter")
    assert torch.allclose(nll_of(live.eval(), row), e.score(row).double(), atol=5e-5)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3"])
def test_merged_it_leaves_a_tied_head_as_it_is(tmp_path, family):
    m, row = model(family), rows_of(1)
    live, adapt = theirs(m)
    live.float().save_pretrained(tmp_path / "adapter")
    to_transformers(m).save_pretrained(tmp_path / "base")
    settings = tmp_path / "adapter" / "adapter_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "base_model_name_or_path": "../base"}))
    merged = load(tmp_path / "adapter")
    head = "embed.weight" if m.config.tied_head else "head.weight"
    assert not merged.config.tied_head and torch.equal(merged.tensor("head.weight"), m.tensor(head))
    assert torch.allclose(engine(merged, None, optimizer=None).score(row).double(), nll_of(live, row), atol=5e-5)
    with pytest.raises(ModelError, match="has the tensor .*lora_embedding_A; accepted"):
        complete_adapter(tmp_path / "adapter", m.config, tmp_path / "out")


def test_what_does_not_go_with_it_is_refused_by_name(tmp_path):
    m = model()
    with pytest.raises(ValueError, match="streams that differ have adapters in the layers alone; leave embed out of targets"):
        engine(m, [EMBED, LoRA(rank=2)], streams=2)
    with pytest.raises(ValueError, match="slow.adapt=.*targets without head and embed"):
        engine(m, LoRA(), slow=Slow(LoRA(targets=["embed"])))
    with pytest.raises(ValueError, match="a session's adapters are on linears; leave embed out of targets"):
        attach(to_transformers(m), EMBED)
    with pytest.raises(ValueError, match="adapt=.*with backend='triton': it has no kernels for an adapter on the embedding"):
        engine(m, backend="triton")
    live, adapt = theirs(m)
    live.save_pretrained(tmp_path)
    settings = tmp_path / "adapter_config.json"
    said = settings.read_text()
    settings.write_text(json.dumps({**json.loads(said), "ensure_weight_tying": True}))
    with pytest.raises(ModelError, match="ensure_weight_tying=True and tensors of model.embed_tokens, which a tied head would have"):
        engine(m, adapt).load_adapter(tmp_path)
    settings.write_text(said)
    with pytest.raises(
        ModelError, match="adapter has base_model.model.model.embed_tokens.lora_embedding_A and 0 modules more that targets="
    ):
        engine(m, LoRA(rank=3, alpha=6, targets="q", layers=range(1, 2))).load_adapter(tmp_path)
