"""Adapters on the head: each stream's own, in every way in which an engine scores, learns, saves and writes."""

import pytest
import torch
from helpers import nll_of, peft_model, to_transformers, token_rows
from safetensors.torch import load_file, save_file

from dynadapt import SGD, Adam, Engine, LoRA, Overlap, SegmentMemory, load
from dynadapt.bench.plan.work import step_work
from dynadapt.model import ModelError, random_model, tiny_config

pytestmark = pytest.mark.filterwarnings("ignore")
T = 16
HEAD = LoRA(rank=3, targets=["q", "head"])


def model(family="llama", **changes):
    return random_model(tiny_config(family, **changes), seed=1, std=0.1)


def engine(m, adapt=HEAD, backend="cpu", dtype="fp32", **options):
    return Engine(m, adapt=adapt, **{"optimizer": Adam(lr=0.05), "segment": T, **options}, dtype=dtype, backend=backend)


def streams_stand_alone(m, make):
    """To the bit, also where they end at different lengths."""
    rows = token_rows(3, 3 * T + 1, seed=3)
    both, alone = make(m, streams=3), [make(m) for _ in range(3)]
    for start, lengths in ((0, [T, T, T]), (T, [T, 5, 0]), (2 * T, [3, T, T])):
        together = both.step(rows[:, start : start + T + 1], lengths)
        for i, (e, n) in enumerate(zip(alone, lengths)):
            assert torch.equal(together[i], e.step(rows[i : i + 1, start : start + T + 1], [n])[0])
    learned = [e.learners[0].state.master for e in (both, *alone)]
    assert torch.equal(learned[0], torch.cat(learned[1:]))


@pytest.mark.parametrize("options", [{}, {"memory": SegmentMemory(8, 1)}, {"memory": Overlap(5)}, {"batch": 1}, {"static": True}], ids=str)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_streams_together_are_streams_alone(options, dtype):
    streams_stand_alone(model(), lambda m, **more: engine(m, dtype=dtype, **options, **more))


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("adapt", [HEAD, LoRA(rank=3, targets="head")], ids=["q and head", "head"])
def test_native_steps_follow_the_reference(family, adapt):
    m, rows = model(family), token_rows(2, 2 * T + 1, seed=4)
    options = dict(streams=2, optimizer=SGD(lr=0.5, clip=1.0))
    native, plain = engine(m, adapt, **options), engine(m, adapt, "reference", "fp64", **options)
    for start in (0, T, 0):
        found, truth = (e.step(rows[:, start : start + T + 1]) for e in (native, plain))
        torch.testing.assert_close(found.double(), truth, atol=2e-5, rtol=0)
    a, b = (e.learners[0].state.master.double() for e in (native, plain))
    assert (a - b).abs().max() < 2e-5 and native.flops == plain.flops


def test_shared_weights_learn_from_all_rows_and_gradients_add_up():
    m, rows = model(), token_rows(2, T + 1, seed=5)
    options = dict(streams=2, shared=True, optimizer=SGD(lr=0.5, clip=0.0))
    whole, split = engine(m, **options), engine(m, **options)
    assert torch.equal(whole.step(rows), split.forward_backward(rows))
    split.optim_step()
    assert torch.equal(whole.learners[0].state.master, split.learners[0].state.master)
    twice = engine(m, **options)
    twice.forward_backward(rows), twice.forward_backward(rows)
    once = engine(m, **{**options, "optimizer": SGD(lr=1.0, clip=0.0)})
    once.step(rows)
    twice.optim_step()
    torch.testing.assert_close(twice.learners[0].state.master, once.learners[0].state.master, atol=1e-6, rtol=0)


def test_importance_sampling_reaches_the_heads_adapter():
    """With advantages of 1 and the scores as they are it is cross-entropy, and with 0 nothing is learned."""
    m, rows = model(), token_rows(1, T + 1, seed=5)
    make = lambda: engine(m, optimizer=SGD(lr=0.5, clip=0.0))  # noqa: E731
    plain, sampled, still = make(), make(), make()
    logp = -plain.step(rows)
    for e, advantage in ((sampled, 1.0), (still, 0.0)):
        e.forward_backward(
            rows, loss="importance_sampling", inputs={"logp": logp.clamp(max=0), "advantages": torch.full((1, T), advantage)}
        )
        e.optim_step()
    torch.testing.assert_close(sampled.learners[0].state.master, plain.learners[0].state.master, atol=1e-6, rtol=0)
    assert torch.equal(still.learners[0].state.master[0], still.learners[0].initial)


def test_what_the_head_learned_is_saved_generated_with_and_put_back(tmp_path):
    m, rows = model(), token_rows(1, 2 * T + 1, seed=6)
    e = engine(m)
    before = e.generate([3, 5, 7], max_tokens=8, end=False).ids
    start = e.snapshot()
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


@pytest.mark.parametrize("family", ["qwen2", "llama", "gemma2"])
def test_pefts_own_file_has_the_heads_weight_beside_and_merges_into_the_head_alone(tmp_path, family):
    """Tied (qwen2, gemma2): the embedding stays, as it does in PEFT."""
    m, row = model(family), token_rows(1, T + 1, seed=2)
    live = peft_model(m, target_modules=["q_proj", "lm_head"])
    with pytest.warns(UserWarning) if m.config.tied_head else pytest.MonkeyPatch.context():
        live.save_pretrained(tmp_path / "theirs")
    assert "base_model.model.lm_head.base_layer.weight" in load_file(str(tmp_path / "theirs" / "adapter_model.safetensors"))
    expected = nll_of(live.eval(), row)
    e = engine(m, LoRA(rank=3, alpha=6, targets=["q", "head"]))
    e.load_adapter(tmp_path / "theirs")
    assert torch.allclose(e.score(row).double(), expected, atol=5e-5)
    e.save(tmp_path / "ours")
    fresh = engine(m, LoRA(rank=3, alpha=6, targets=["q", "head"]))
    fresh.load_adapter(tmp_path / "ours" / "adapter")
    assert torch.equal(fresh.score(row), e.score(row))

    to_transformers(m).save_pretrained(tmp_path / "base")
    settings = (tmp_path / "theirs" / "adapter_config.json").read_text()
    (tmp_path / "theirs" / "adapter_config.json").write_text(
        settings.replace('"base_model_name_or_path": null', '"base_model_name_or_path": "../base"')
    )
    merged = load(tmp_path / "theirs")
    assert not merged.config.tied_head and torch.equal(merged.tensor("embed.weight"), m.tensor("embed.weight"))
    assert torch.allclose(engine(merged, None, optimizer=None).score(row).double(), expected, atol=5e-5)

    file = tmp_path / "theirs" / "adapter_model.safetensors"
    tensors = load_file(str(file))
    tensors["base_model.model.lm_head.base_layer.weight"] += 1
    save_file(tensors, str(file))
    with pytest.raises(ModelError, match="lm_head.base_layer.weight, a weight of the base with other values than this model's"):
        e.load_adapter(tmp_path / "theirs")


def test_a_head_alone_costs_no_pass_through_the_layers():
    m, row = model(), token_rows(1, T + 1, seed=2)
    e = engine(m, LoRA(rank=3, targets="head"))
    e.step(row)
    c = m.config
    assert e.lowest == (c.layers, "head") and "backward stops at the head" in e.explain()
    assert e.last.flops["backward"] == 2 * T * 3 * (c.vocab_size + c.hidden_size + c.vocab_size)
    assert e.last.flops["recompute"] == 2 * T * (c.hidden_size + 3) * c.vocab_size


@pytest.mark.parametrize("adapt", [HEAD, LoRA(rank=3, targets="head")], ids=["q and head", "head"])
def test_a_plan_counts_what_the_engine_does(adapt):
    m, rows = model(), token_rows(2, T + 1, seed=2)
    e = engine(m, adapt, streams=2, batch=2)
    e.step(rows)
    work = step_work(m.config, adapt, optimizer=Adam(lr=0.05), streams=2, segment=T, dtype=torch.float32)
    assert work.flops == e.last.flops


def test_what_the_head_can_not_be_learned_with_is_refused_by_name():
    m, rows = model(), token_rows(1, T + 1, seed=2)
    with pytest.raises(ValueError, match="base='int8' with adapt=LoRA.*: an adapter learns on a head in int8"):
        engine(m, base="int8")
    ids = torch.zeros(1, T, 1, dtype=torch.int64)
    with pytest.raises(
        ValueError, match="loss='kl' with adapt=LoRA.*: the head's adapter learns from cross_entropy and importance_sampling"
    ):
        engine(m).forward_backward(rows, loss="kl", inputs={"ids": ids, "logp": torch.full((1, T, 1), -1.0)})
