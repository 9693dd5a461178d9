"""`RowSparse(select="contrast")`: the rows that a text moves more than the reference text does."""

import pytest
import torch
from helpers import descended, token_rows

from dynadapt import RMS, SGD, Adam, Engine, RowSparse
from dynadapt.engine.learners.rows import RowLearner
from dynadapt.model import ModelError, linear_shapes, random_model, tiny_config

MODEL = random_model(tiny_config("llama", layers=1), seed=1, std=0.1)


def engine(select="contrast", *, density=0.2, lr=0.01, optimizer=None, **more) -> Engine:
    settings = {"dtype": "fp64", "backend": "reference", "segment": 4, **more}
    return Engine(MODEL, RowSparse(density, select=select, every=2), optimizer=optimizer or Adam(lr=lr), **settings)


def gradient_norms(tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """The norm [O] of each row of every linear's gradient, by transformers and torch's autograd."""
    cross_entropy = lambda logits: torch.nn.functional.cross_entropy(logits, tokens[0, 1:])  # noqa: E731
    after = descended(MODEL, tokens, cross_entropy, lr=1.0)
    names = [f"layers.{i}.{part}.weight" for i in range(MODEL.config.layers) for part in linear_shapes(MODEL.config, i)]
    return {name: (after[name] - MODEL.tensor(name).double()).norm(dim=1) for name in names}


def chosen(e: Engine) -> dict[str, set[int]]:
    from dynadapt.model import layout

    learner, named = e.learners[0], {}
    for name, rows in learner.rows.items():
        layer, group, part = name.split(".")
        named[f"layers.{layer}.{layout(MODEL.config, int(layer))[group][int(part)]}.weight"] = set(rows.tolist())
    return named


def test_rows_are_those_whose_gradient_is_largest_over_that_of_the_reference_text():
    """Of single tokens, where the estimate of a row's norm is the norm itself."""
    e, reference, text = engine(), token_rows(3, 2, seed=4), token_rows(1, 2, seed=5)
    assert e.gather_statistics(list(reference)) == 3
    e.step(text)
    means = [gradient_norms(row[None]) for row in reference]
    for name, norms in gradient_norms(text).items():
        if norms.max() < 1e-9:  # one token attends to itself alone: queries and keys have no gradient, and nothing is chosen anew
            assert name.split(".")[2] in ("q", "k") and chosen(e)[name] == chosen(engine())[name]
            continue
        mean = sum(each[name] for each in means) / 3
        ratio = norms / mean.clamp(min=1e-3 * mean.mean())
        assert chosen(e)[name] == set(ratio.topk(max(1, round(0.2 * len(ratio)))).indices.tolist()), name


def test_where_the_reference_moves_all_rows_alike_it_chooses_as_the_gradient_does():
    e, plain = engine(), engine("gradient")
    e.learners[0].take_reference({name: torch.ones(size).double() for _, _, size, name in e.learners[0]._parts()})
    for seed in range(4):
        rows = token_rows(1, 5, seed=seed)
        assert torch.equal(e.step(rows), plain.step(rows))
    assert chosen(e) == chosen(plain) and e.flops == plain.flops


def test_fixed_shapes_choose_the_same_rows():
    e, eager = engine(static=True), engine(static=False)
    for each in (e, eager):
        each.gather_statistics(list(token_rows(2, 5, seed=8)))
    for seed in range(4):
        assert torch.equal(e.step(token_rows(1, 5, seed=seed)), eager.step(token_rows(1, 5, seed=seed)))
    assert chosen(e) == chosen(eager)


def test_it_chooses_otherwise_and_costs_the_same():
    e, plain = engine(), engine("gradient")
    before = e.flops
    e.gather_statistics(list(token_rows(2, 5, seed=8)))
    assert e.flops == before and not any(e.flops.values())
    for each in (e, plain):
        each.step(token_rows(1, 5, seed=9))
    assert chosen(e) != chosen(plain) and e.flops == plain.flops


@pytest.mark.parametrize("backend, dtype", [("cpu", "fp32"), ("reference", "fp32")])
def test_native_kernels_choose_the_same_rows(backend, dtype):
    e, exact = engine(backend=backend, dtype=dtype), engine()
    for each in (e, exact):
        each.gather_statistics(list(token_rows(2, 5, seed=8)))
        each.step(token_rows(1, 5, seed=9))
    ours, theirs = chosen(e), chosen(exact)
    assert sum(len(ours[name] & theirs[name]) for name in ours) >= 0.98 * sum(
        map(len, theirs.values())
    )  # two that are nearly alike may change places


def test_gathering_changes_nothing_but_the_choice():
    """Scores before the first update, weights and optimizer state are as without; every stream has the same reference."""
    e, plain = engine(streams=2, lr=0.0), engine("gradient", streams=2, lr=0.0)
    e.gather_statistics(list(token_rows(3, 5, seed=8)))
    rows = token_rows(2, 5, seed=9)
    assert torch.equal(e.step(rows), plain.step(rows)) and torch.equal(e.step(rows), plain.step(rows))
    one, other = (learner.reference for learner in e.learners)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_it_is_refused_without_a_reference_text_and_with_rms():
    with pytest.raises(
        RuntimeError, match=r"^adapt=RowSparse\(.*select='contrast'.* has no gradient statistics yet: call Engine.gather_statistics"
    ):
        engine().step(token_rows(1, 5))
    with pytest.raises(ValueError, match=r"^adapt=RowSparse\(.*with optimizer=RMS\(.*give select='gradient'"):
        engine(optimizer=RMS())
    with pytest.raises(ValueError, match="only RMS uses gradient statistics, and RowSparse"):
        engine("gradient").gather_statistics(list(token_rows(1, 5)))
    with pytest.raises(ValueError, match="^segments"):
        engine().gather_statistics([])


def test_a_failed_gathering_leaves_the_learner_as_it_was(monkeypatch):
    e = engine()
    monkeypatch.setattr(RowLearner, "_row_scores", lambda *given: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        e.gather_statistics(list(token_rows(1, 5)))
    assert e.learners[0].adding is None and not e.learners[0].reference


def test_a_saved_state_has_the_reference(tmp_path):
    e, other = engine(optimizer=SGD(lr=0.1)), engine(optimizer=SGD(lr=0.1))
    e.gather_statistics(list(token_rows(2, 5, seed=8)))
    e.step(token_rows(1, 5, seed=9))
    e.save(tmp_path / "state")
    other.restore(tmp_path / "state")
    for seed in range(3):
        assert torch.equal(e.step(token_rows(1, 5, seed=seed)), other.step(token_rows(1, 5, seed=seed)))
    assert chosen(e) == chosen(other)
    with pytest.raises((ModelError, ValueError), match="select|adapt"):
        engine("gradient", optimizer=SGD(lr=0.1)).restore(tmp_path / "state")


def test_explain_times_it():
    assert "row_scores" in engine(dtype="fp32").explain(time=True)
