"""Adapters on some linears, of ranks and scales of their own: PEFT's gradients and files, at the FLOPs of what is there."""

import json
import pickle

import pytest
import torch
from helpers import LINEARS, nll_of, peft_model, to_transformers, token_rows
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

from dynadapt import SGD, Adam, AdamW, Engine, Lion, LoRA, SegmentMemory
from dynadapt.adapt.targets import adapted_parts, targeted
from dynadapt.engine.learners.peft import write_adapter
from dynadapt.model import ModelError, random_model, tiny_config

pytestmark = pytest.mark.filterwarnings("ignore")
T = 20
MIXED = dict(targets=["q", "v", "gate", "down"], rank_pattern={"q": 5, r"layers\.0\..*down_proj": 1}, alpha_pattern={"v": 9})
CASES = {
    "names": ("llama", dict(targets=["q", "v"])),
    "one": ("qwen3", dict(targets="down")),
    "up": ("qwen2", dict(targets=["up"], layers=range(1, 3))),
    "expression": ("llama", dict(targets=r".*\.layers\.[12]\.(self_attn\.k_proj|mlp\.up_proj)")),
    "ranks": ("llama", MIXED),
    "rslora": ("llama", dict(**MIXED, rslora=True)),
    "gpt2": ("gpt2", dict(targets=["qkv", "up"], rank_pattern={"up": 2})),
    "head": ("llama", dict(targets=["q", "v", "head"], rank_pattern={"head": 6}, alpha_pattern={"head": 9})),
    "head alone": ("llama", dict(targets="head")),
    "tied head": ("qwen2", dict(targets=r"lm_head|.*layers\.2\..*v_proj")),
    "head and a layer": ("granite", dict(targets=["down", "lm_head"], layers=range(1, 2))),
    "capped head": ("gemma2", dict(targets=["q", "head"])),
    "head behind a norm": ("gpt2", dict(targets=["up", "head"])),
}


def model(family="llama"):
    return random_model(tiny_config(family), seed=1, std=0.1)


def engine(m, backend="cpu", optimizer=None, segment=T, **lora):
    optimizer = SGD(lr=0.5, clip=0.0) if optimizer is None else optimizer
    return Engine(m, adapt=LoRA(**{"rank": 3, "alpha": 5, **lora}), optimizer=optimizer, segment=segment, dtype="fp32", backend=backend)


def with_a_live_b(e):
    """Every B drawn, so that every gradient is there."""
    state = e.learners[0].state
    state.master += 0.02 * torch.randn(state.master.shape, generator=torch.Generator().manual_seed(7))
    return e.learners[0]


def peft_of(directory, m):
    import peft

    return peft.PeftModel.from_pretrained(to_transformers(m), directory, is_trainable=True)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("case", CASES)
def test_a_step_equals_pefts_and_its_files_come_back(tmp_path, case, backend):
    family, lora = CASES[case]
    m, row = model(family), token_rows(1, T + 1, seed=2)
    e = engine(m, backend, **lora)
    learner = with_a_live_b(e)
    write_adapter(tmp_path / "before", learner, m.config, 0, "tiny")
    live = peft_of(tmp_path / "before", m)
    trained = {name.replace(".default", ""): p for name, p in live.named_parameters() if p.requires_grad}
    assert sum(p.numel() for p in trained.values()) == e.learned_parameters
    logits = live(row[:, :-1]).logits.double()
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), row[:, 1:].flatten())
    loss.backward()
    assert float(e.step(row).mean()) == pytest.approx(loss.item(), abs=2e-5)
    write_adapter(tmp_path / "after", learner, m.config, 0, "tiny")
    after = load_file(str(tmp_path / "after" / "adapter_model.safetensors"))
    assert after.keys() == trained.keys()
    for name, parameter in trained.items():
        assert torch.allclose(after[name], parameter.detach() - 0.5 * parameter.grad, atol=2e-5), name
        assert parameter.grad.abs().max() > 1e-6
    fresh = engine(m, backend, **lora)
    fresh.load_adapter(tmp_path / "after")
    assert torch.equal(fresh.score(row), e.score(row))
    live.save_pretrained(tmp_path / "theirs")  # as PEFT writes it
    fresh.load_adapter(tmp_path / "theirs")


@pytest.mark.parametrize("optimizer", [Adam(lr=0.02, decay=0.1), AdamW(lr=0.02), Lion(lr=1e-3), SGD(lr=0.1, momentum=0.9)])
def test_what_lies_beyond_a_parts_rank_stays_zero(optimizer):
    e = engine(model(), optimizer=optimizer, **MIXED)
    for _ in range(3):
        e.step(token_rows(1, T + 1, seed=2))
    learner = e.learners[0]
    Bt = learner.layout.view(learner.state.master, "1.qkv.Bt")[0]  # ranks 5, 0, 3
    assert Bt.shape == (5, 60 + 20 + 20) and not Bt[:, 60:80].any() and not Bt[3:, 80:].any()
    assert Bt[:, :60].all() and Bt[:3, 80:].all()
    assert learner.layout.view(learner.state.master, "1.qkv.A").shape[1:] == (8, 60)


@pytest.mark.parametrize(
    "lora",
    [
        dict(targets="down"),
        dict(targets=["q"]),
        dict(targets=["head", "q"]),
        dict(targets="head"),
        MIXED,
        dict(layers=range(2, 3)),
        dict(targets=["v"], layers=range(2, 3)),
    ],
)
def test_flops_are_those_that_torch_counts(lora):
    e = engine(model(), "reference", **lora)
    row = token_rows(1, T + 1, seed=2)
    with FlopCounterMode(display=False) as counter:
        e.step(row)
    assert counter.get_total_flops() == sum(n for phase, n in e.flops.items() if phase != "update")


def test_backward_stops_where_nothing_below_learns():
    row = token_rows(1, T + 1, seed=2)
    backward = {}
    for name, lora in {
        "all": {},
        "q": dict(targets="q"),
        "down": dict(targets="down"),
        "head": dict(targets="head"),
        "last": dict(layers=range(2, 3)),
    }.items():
        e = engine(model(), **lora)
        e.step(row)
        backward[name] = e.flops["backward"]
    assert backward["head"] < backward["last"] < backward["down"] < backward["q"] < backward["all"]
    e = engine(model(), targets="q", layers=range(2, 3))
    assert e.lowest == (2, "qkv") and "backward stops at layer 2, qkv" in e.explain()


def test_with_memory_and_streams_of_their_own():
    """Two streams together are two alone, and memory goes on with the adapted keys."""
    m, rows = model(), token_rows(2, 2 * T + 1, seed=3)
    make = lambda streams: Engine(  # noqa: E731
        m,
        adapt=LoRA(rank=3, **MIXED),
        memory=SegmentMemory(8, 1),
        optimizer=Adam(lr=0.02),
        streams=streams,
        segment=T,
        dtype="fp32",
        backend="cpu",
    )
    both, alone = make(2), [make(1), make(1)]
    for start in (0, T):
        together = both.step(rows[:, start : start + T + 1])
        apart = [e.step(rows[i : i + 1, start : start + T + 1])[0] for i, e in enumerate(alone)]
        assert torch.equal(together, torch.stack(apart))


def test_a_saved_state_goes_on_and_one_from_before_there_were_patterns_is_read(tmp_path):
    m, row = model(), token_rows(1, T + 1, seed=2)
    e = engine(m, optimizer=Adam(lr=0.02), **MIXED)
    e.step(row)
    e.save(tmp_path)
    again = engine(m, optimizer=Adam(lr=0.02), **MIXED)
    again.restore(tmp_path)
    assert torch.equal(again.step(row), e.step(row))
    with pytest.raises(ModelError, match="saved with adapt="):
        engine(m, optimizer=Adam(lr=0.02), **{**MIXED, "rank_pattern": {"q": 4}}).restore(tmp_path)
    assert json.dumps(engine(m).describe()["adapt"]) == '{"kind": "LoRA", "rank": 3, "alpha": 5.0, "targets": "all", "layers": null}'
    assert pickle.loads(pickle.dumps(e.adapt)) == e.adapt and hash(e.adapt) == hash(again.adapt)


def test_what_a_model_is_told_of_its_linears():
    config = tiny_config("llama")
    assert targeted(LoRA(targets=["q_proj", "mlp.down_proj"]), config)[:2] == [(0, "qkv"), (0, "down")]
    parts = adapted_parts(LoRA(rank=4, **MIXED), config)
    assert parts[0, "qkv"] == [(5, 8.0), (0, 8.0), (4, 9.0)] and parts[0, "down"] == [(1, 8.0)] and parts[1, "down"] == [(4, 8.0)]
    assert parts[2, "mlp_in"] == [(4, 8.0), (0, 8.0)] and (0, "o") not in parts


@pytest.mark.parametrize("targets", ["embed", ["embed"], ["embed_tokens"], r"model\.embed.*"], ids=str)
def test_the_embedding_is_a_target_by_every_name(targets):
    config = tiny_config("llama")
    assert adapted_parts(LoRA(rank=4, targets=targets, layers=range(1, 2)), config) == {(-1, "embed"): [(4, 8.0)]}
    assert list(adapted_parts(LoRA(targets=["head", "down", "embed"]), config)) == [
        (-1, "embed"),
        *((i, "down") for i in range(3)),
        (3, "head"),
    ]
    with pytest.raises(ValueError, match="matches transformer.wpe, which has no adapter"):
        adapted_parts(LoRA(targets=r".*(wte|wpe)"), tiny_config("gpt2"))


@pytest.mark.parametrize(
    "lora, message",
    [
        (dict(targets="everything"), "targets='everything': expected one of all, attn, mlp, a list of linears"),
        (dict(targets=[]), r"targets=\[\]: expected"),
        (dict(targets=["q", 3]), r"targets=\['q', 3\]: expected"),
        (dict(targets="(q"), "targets has '.q', which is no regular expression"),
        (dict(targets=["q", "positions"]), "targets has 'positions', which names no linear"),
        (dict(rank_pattern={"q": 0}), r"rank_pattern\['q'\]=0: expected an integer of at least 1"),
        (dict(rank_pattern=["q"]), r"rank_pattern=\['q'\]: expected"),
        (dict(alpha_pattern={"q": -1.0}), r"alpha_pattern\['q'\]=-1.0: expected a positive number"),
        (dict(rslora=1), "rslora=1: expected True or False"),
        (
            dict(targets=["qkv"]),
            "targets has 'qkv', which names no linear: the linears of llama are embed, q, k, v, o, gate, up, down, head .model.embed_tokens, "
            "self_attn.q_proj.* lm_head",
        ),
        (dict(targets=r".*\.lm_head"), "matches no linear"),
        (dict(rate_pattern={"embed": 2}), "rate_pattern has 'embed', which fits no linear that learns"),
        (dict(targets=["q"], rank_pattern={"v": 2}), "rank_pattern has 'v', which fits no linear that learns"),
        (dict(alpha_pattern={"lm_head": 2}), "alpha_pattern has 'lm_head', which fits no linear that learns"),
        (dict(layers=range(2, 9)), "layers=2:9: the model has layers 0:3"),
    ],
    ids=str,
)
def test_what_is_not_there_is_refused_by_name(lora, message):
    with pytest.raises(ValueError, match=message):
        engine(model(), **lora)


# ---- PEFT's own files


@pytest.mark.parametrize(
    "theirs, ours",
    [
        (dict(rank_pattern={"q_proj": 2, "layers.1.mlp.down_proj": 5}), dict(rank_pattern={"q": 2, "layers.1.mlp.down_proj": 5})),
        (dict(alpha_pattern={"v_proj": 2}), dict(alpha_pattern={"v": 2})),
        (dict(use_rslora=True), dict(rslora=True)),
        (
            dict(use_rslora=True, rank_pattern={"o_proj": 1}, target_modules=["o_proj", "k_proj"]),
            dict(rslora=True, targets=["k", "o"], rank_pattern={"o": 1}),
        ),
    ],
    ids=str,
)
def test_what_peft_wrote_is_scored_the_same(tmp_path, theirs, ours):
    m, row = model(), token_rows(1, T + 1, seed=2)
    live = peft_model(m, **{"target_modules": LINEARS, **theirs})
    live.save_pretrained(tmp_path / "theirs")
    expected = nll_of(live.eval(), row)
    e = engine(m, alpha=6, **ours)
    e.load_adapter(tmp_path / "theirs")
    assert torch.allclose(e.score(row).double(), expected, atol=5e-5)
    with pytest.raises(ModelError, match="adapter has (rank_pattern=|alpha_pattern=|use_rslora=True)"):
        engine(m, alpha=6, **({"targets": ours["targets"]} if "targets" in ours else {})).load_adapter(tmp_path / "theirs")


def test_an_adapter_of_the_engines_is_refused_where_only_its_scale_differs(tmp_path):
    m = model()
    write_adapter(tmp_path, engine(m, rslora=True).learners[0], m.config, 0, "tiny")
    with pytest.raises(ModelError, match="use_rslora=True, which is True for .*q_proj; the engine's LoRA has False"):
        engine(m).load_adapter(tmp_path)
