"""The pull to the prior is the divergence written out, is nothing at the prior, is each stream's own, and goes on bit for bit."""

import pytest
import torch
from engine_states import assert_equal, state_of
from helpers import descent_error, linear_weights, to_transformers
from torch.utils.flop_counter import FlopCounterMode

from dynadapt import SGD, Adam, Engine, Full, KeepPrior, LoRA, Overlap, RowSparse, SegmentMemory, Slow
from dynadapt.model import ModelError, hf_name, random_model, tiny_config
from dynadapt.model.hf_config import config_from_hf, config_to_hf
from dynadapt.model.layout import hf_order

FAMILIES = ["llama", "qwen2", "qwen3", "gpt2", "gemma3", "granite", "gptneox"]
MODELS = {family: random_model(tiny_config(family), seed=1, std=0.1) for family in FAMILIES}
T, N = 10, 6
PLACES = {"reference": {"backend": "reference", "dtype": "fp64"}, "fp32": {"backend": "cpu", "dtype": "fp32"}}
PLACES["bf16"] = {"backend": "cpu", "dtype": "bf16"}


def text(rows=1, seed=0, length=T):
    return torch.randint(90, (rows, length + 1), generator=torch.Generator().manual_seed(seed))


REFERENCE = text(1, 7, 5 * N)[0]  # five pieces


def kept(**options):
    return KeepPrior(**{"reference": REFERENCE, "weight": 0.7, "tokens": N, **options})


def engine(place="reference", family="llama", **options):
    given = {"adapt": LoRA(2), "optimizer": SGD(lr=0.5, clip=0.0), "segment": T, "keep": kept(), **PLACES[place]}
    return Engine(MODELS[family], **{**given, **options})


def masters(e):
    return torch.cat([learner.state.master for learner in e.learners]).clone()


def divergence(prior, live, piece):
    """KL(prior || live) of the next token behind each input of ``piece``, in nats a token."""
    log_p, log_q = (torch.log_softmax(m(piece[None, :-1]).logits[0].double(), -1) for m in (prior, live))
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean()


def by_hand(family, steps, lr=0.5, weight=0.7, names=None):
    """Weights by canonical name and the divergences behind ``steps`` of plain descent by autograd in float64 on NLL + weight KL."""
    model = MODELS[family]
    live, prior = (to_transformers(model, torch.float64) for _ in range(2))
    parameters, found, pieces = dict(live.named_parameters()), [], kept().pieces
    learn = [name for name in model.names() if name in names]
    for k in range(steps):
        row = text(1, k)
        logits = live(row[:, :-1]).logits[0]
        kl = divergence(prior, live, pieces[k % len(pieces)])
        found.append(float(kl.detach()))
        loss = torch.nn.functional.cross_entropy(logits, row[0, 1:]) + weight * kl
        chosen = [parameters[hf_name(model.config, name)] for name in learn]
        with torch.no_grad():
            for p, g in zip(chosen, torch.autograd.grad(loss, chosen)):
                p -= lr * g
    return {name: hf_order(model.config, name, parameters[hf_name(model.config, name)].detach()) for name in learn}, found


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "gptneox"])
def test_what_is_learned_is_the_loss_as_written(family):
    e = engine(family=family, adapt=Full())
    names = linear_weights(e.learners[0], e.config)
    expected, divergences = by_hand(family, 7, names=names)  # past the last piece, so that the first comes again
    for k in range(7):
        e.step(text(1, k))
        assert e.keeping.divergence[0] == pytest.approx(divergences[k], rel=1e-4, abs=1e-9)
    assert abs(divergences[0]) < 1e-15 and divergences[-1] > 1e-5
    for name, weight in linear_weights(e.learners[0], e.config).items():
        assert torch.allclose(weight, expected[name], rtol=0, atol=40 * descent_error(e.config)), name
    without, _ = by_hand(family, 7, weight=0.0, names=names)
    assert max((expected[name] - without[name]).abs().max() for name in names) > 1e-5


@pytest.mark.parametrize("place,tolerance", [("fp32", 2e-5), ("bf16", 6e-3)])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("adapt", [LoRA(2), Full()], ids=str)
def test_kernels_learn_what_the_reference_learns(family, adapt, place, tolerance):
    same = dict(family=family, adapt=adapt, optimizer=SGD(lr=0.1, clip=0.0), streams=2)
    truth, native = engine(**same), engine(place, **same)
    before = masters(truth)
    for e in (truth, native):
        for k in range(3):
            e.step(text(2, k), [T, 7])
    moved, ours = masters(truth) - before, masters(native).double() - before
    assert (moved - ours).abs().max() <= tolerance + (0.03 * moved.abs().max() if place == "bf16" else 0)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("adapt", [LoRA(2), Full(), Full(targets="norms"), RowSparse(0.3)], ids=str)
def test_at_the_prior_nothing_pulls(place, adapt):
    """To the bit with the native kernels, whose rows do not depend on their neighbours; torch's products do."""
    pulled, plain = engine(place, adapt=adapt), engine(place, adapt=adapt, keep=None)
    for e in (pulled, plain):
        e.step(text())
    torch.testing.assert_close(masters(pulled), masters(plain), rtol=0, atol=1e-14 if place == "reference" else 0)
    assert abs(pulled.keeping.divergence[0]) <= (1e-14 if place == "reference" else 0)
    for e in (pulled, plain):
        e.step(text(1, 1))
    assert not torch.allclose(masters(pulled), masters(plain), rtol=0, atol=1e-6)


def test_what_was_not_read_is_forgotten_less():
    weak, strong = (engine("fp32", optimizer=Adam(lr=0.02), keep=kept(weight=weight)) for weight in (1e-9, 3.0))
    for e in (weak, strong):
        before = float(e.score(text()).mean())
        for _ in range(20):
            e.step(text())
        assert float(e.score(text()).mean()) < 0.5 * before
    assert strong.keeping.divergence[0] < 0.5 * weak.keeping.divergence[0]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("adapt", [LoRA(2), Full()], ids=str)
def test_a_stream_learns_the_same_alone(place, adapt):
    together = engine(place, adapt=adapt, streams=3, reset=2 * T)
    alone = [engine(place, adapt=adapt, reset=2 * T) for _ in range(3)]
    for k, lengths in enumerate([[T, T, T], [0, T, 4], [T, 3, T], [T, T, 0]]):
        rows = text(3, k)
        scores = together.step(rows, lengths)
        for s, e in enumerate(alone):
            if lengths[s]:
                close = {"rtol": 0, "atol": 1e-12 if place == "reference" else 0}  # torch's products depend on the rows beside
                torch.testing.assert_close(e.step(rows[s : s + 1], lengths[s : s + 1])[0], scores[s], **close)
                assert e.keeping.divergence[0] == pytest.approx(together.keeping.divergence[s], abs=close["atol"], rel=0)


@pytest.mark.parametrize("memory", [SegmentMemory(7, 2), SegmentMemory(7, 2, refresh="reproject"), Overlap(5)], ids=str)
@pytest.mark.parametrize("place", PLACES)
def test_the_pass_over_the_reference_leaves_a_segments_memory_alone(place, memory):
    """With a pull that is too weak to move a weight, all is as without."""
    weak, plain = (
        engine(place, memory=memory, streams=2, keep=keep, optimizer=SGD(lr=0.05, clip=0.0)) for keep in (kept(weight=1e-30), None)
    )
    more = []
    for k in range(4):
        assert torch.equal(weak.step(text(2, k), [T, 6]), plain.step(text(2, k), [T, 6]))
        more.append({phase: n - plain.last.flops[phase] for phase, n in weak.last.flops.items()})
    assert torch.equal(masters(weak), masters(plain))
    assert all(one == more[0] for one in more) and min(more[0]["forward"], more[0]["backward"]) > 0 and more[0]["update"] == 0


@pytest.mark.parametrize(
    "options", [{"every": 2}, {"every": 2, "accumulate": True}, {"shared": True, "streams": 2}, {"adapt": RowSparse(0.3)}], ids=str
)
def test_one_pull_an_update(options):
    """A step in two is the step, and where an update goes by several segments it has one pull."""
    whole, halves = engine(**options), engine(**options)
    for k in range(6):
        rows = text(options.get("streams", 1), k)
        whole.step(rows)
        if options.get("every", 1) == 1 or options.get("accumulate"):
            halves.forward_backward(rows)
            if k % options.get("every", 1) == options.get("every", 1) - 1:
                halves.optim_step()
        else:
            halves.step(rows)
    assert torch.equal(masters(whole), masters(halves)) and whole.keeping.divergence == halves.keeping.divergence
    assert whole.updates == halves.updates == 6 // options.get("every", 1)


@pytest.mark.parametrize("adapt", [LoRA(2), Full()], ids=str)
def test_the_ledger_is_torchs_count(adapt):
    with FlopCounterMode(display=False) as counter:
        e = engine(adapt=adapt, streams=2)
        made = dict(e.flops)
        assert made["forward"] > 0 and made["update"] == made["recompute"] == 0
        for k in range(2):
            e.step(text(2, k))
    flops = e.flops
    assert flops["forward"] + flops["backward"] + flops["recompute"] == counter.get_total_flops()
    assert sum(made.values()) + 2 * sum(e.last.flops.values()) == sum(flops.values())


@pytest.mark.parametrize("adapt", [LoRA(2), Full(), RowSparse(0.3, every=2)], ids=str)
def test_a_saved_engine_and_a_snapshot_go_on_with_the_next_piece(adapt, tmp_path):
    e = engine("bf16", adapt=adapt, memory=SegmentMemory(7, 2), optimizer=Adam(lr=0.01), streams=2)
    for k in range(2):
        e.step(text(2, k))
    e.save(tmp_path)
    snapshots = [e.snapshot(s) for s in (0, 1)]
    for k in range(2, 5):
        e.step(text(2, k))
    other = engine("bf16", adapt=adapt, memory=SegmentMemory(7, 2), optimizer=Adam(lr=0.01), streams=2)
    other.restore(tmp_path)
    for k in range(2, 5):
        other.step(text(2, k))
    assert_equal(state_of(other), state_of(e), but=("last",))
    for s in (0, 1):
        other.rollback(s, snapshots[s])
    for k in range(2, 5):
        other.step(text(2, k))
    assert torch.equal(masters(other), masters(e)) and other.keeping.divergence == e.keeping.divergence
    with pytest.raises(ModelError, match="saved with keep={.*this engine has {"):
        engine("bf16", adapt=adapt, memory=SegmentMemory(7, 2), optimizer=Adam(lr=0.01), streams=2, keep=kept(seed=1)).restore(tmp_path)


def test_it_is_explained_and_counted_among_what_is_held():
    from dynadapt.engine.footprint import footprint

    e = engine()
    assert "keeps:  the model as it was, 0.7 x KL on 6 of 30 reference tokens an update" in e.explain()
    assert footprint(e)["the prior on reference tokens"] >= 2 * 30 * e.config.hidden_size * 8


def test_a_loss_that_is_no_number_is_skipped():
    e = engine(streams=2)
    e.step(text(2))
    e.learners[0].state.master[1, 0] = e.learners[0].state.compute[1, 0] = float("nan")
    before = masters(e)
    e.step(text(2, 1))
    assert e.last.skipped == [False, True] and torch.equal(before[1].nan_to_num(), masters(e)[1].nan_to_num())


@pytest.mark.parametrize(
    "options,message",
    [
        ({"keep": 0.1}, r"^keep=0.1: expected KeepPrior\(reference, weight, tokens, seed\), or None$"),
        ({"adapt": None, "optimizer": None}, "^adapt=None with keep=.*: nothing learns that could forget"),
        ({"adapt": Full(targets="model")}, "^adapt=Full.*: both models must have one head"),
        ({"adapt": LoRA(2, targets=("q", "head"))}, "^adapt=LoRA.*: both models must have one head"),
        ({"slow": Slow()}, "^slow=Slow.* with keep=KeepPrior"),
        ({"static": True}, "^static=True with keep=KeepPrior.*: a recorded step has one pass before its update; use static=False"),
        ({"adapt": [LoRA(2), LoRA(3)], "streams": 2}, "^optimizer=.*: streams that learn in different ways"),
        ({"keep": kept(reference=REFERENCE + 500)}, r"^keep.reference"),
    ],
)
def test_what_it_does_not_go_with_is_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        engine(**options)


@pytest.mark.parametrize("family", ["gemma2", "qwen3_5"])
def test_models_that_it_is_not_for_are_refused_by_name(family):
    with pytest.raises(ValueError, match="^keep=KeepPrior.*: .* (caps its logits|gated delta rule)"):
        Engine(random_model(tiny_config(family), seed=1), adapt=LoRA(2), segment=T, keep=kept())


@pytest.mark.parametrize(
    "options,message",
    [
        ({"reference": REFERENCE[:N]}, r"^keep.reference has shape \(6,\): expected token ids \[7..262144\], more than tokens=6$"),
        ({"reference": REFERENCE[None]}, r"^keep.reference has shape \(1, 31\)"),
        ({"reference": "a text"}, "^keep.reference='a text': expected token ids"),
        ({"weight": 0}, "^keep.weight=0: expected a positive number"),
        ({"tokens": 0}, "^keep.tokens=0: expected an integer of at least 1"),
        ({"seed": -1}, "^keep.seed=-1: expected an integer of at least 0"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        kept(**options)


def test_pieces_are_all_of_the_text_each_once():
    pieces = kept(reference=torch.arange(3 * N + 4)).pieces
    assert sorted(piece.tolist() for piece in pieces) == [list(range(i * N, (i + 1) * N + 1)) for i in range(3)]
    other = kept(reference=torch.arange(20 * N + 1), seed=1).pieces
    assert not torch.equal(other, kept(reference=torch.arange(20 * N + 1)).pieces)


def test_a_guard_scores_the_prior_as_ever():
    e, static = (
        engine("bf16", guard="exact", memory=SegmentMemory(7, 2)),
        engine("bf16", adapt=None, optimizer=None, keep=None, memory=SegmentMemory(7, 2)),
    )
    for k in range(3):
        e.step(text(1, k))
        assert torch.equal(e.last.nll_static, static.step(text(1, k)))
    assert e.keeping.divergence[0] > 0


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_pieces_may_be_longer_than_the_window(family):
    """In positions that the text's own segments never reach."""
    short, long = (engine("fp32", family, segment=segment) for segment in (N - 2, T))
    for e in (short, long):
        for k in range(3):
            e.step(text(1, k, N - 2))
    assert torch.equal(masters(short), masters(long)) and short.keeping.divergence == long.keeping.divergence


def test_pieces_that_would_be_rotated_otherwise_are_refused():
    scaling = {"rope_type": "longrope", "short_factor": [1.0] * 5, "long_factor": [1.0 + i for i in range(5)]}
    raw = {**config_to_hf(tiny_config("llama")), "rope_scaling": {**scaling, "original_max_position_embeddings": N - 1}}
    model = random_model(config_from_hf(raw), seed=1, std=0.1)
    with pytest.raises(ValueError, match=f"keep.tokens={N} with a window of {N - 2} tokens: llama rotates so many positions otherwise"):
        Engine(model, LoRA(2), segment=N - 2, keep=kept(), **PLACES["fp32"])
    Engine(model, LoRA(2), segment=N, keep=kept(), **PLACES["fp32"])  # there the window's are rotated so, too
