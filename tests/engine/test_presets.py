"""The score-first preset is the recipe, fits the families, and gives way to what is given."""

import pytest
import torch

from dynadapt import Engine, Overlap, SegmentMemory, Slow
from dynadapt.engine.presets import score_first
from dynadapt.model import random_model, tiny_config


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
def test_scores_and_learns(family):
    model = random_model(tiny_config(family), seed=0, std=0.1)
    engine = Engine(model, **score_first(model, segment=8, streams=2, slow=Slow(every=16), backend="cpu", dtype="fp32"))
    learner, rule = engine.learners[0], engine.optimizer.rule()
    assert (model.config.layers, "head") in learner.sizes and len(learner.sizes) == 4 * model.config.layers + 1
    assert (engine.adapt.rank, engine.adapt.alpha, engine.adapt.keep_a, engine.reset_policy) == (80, 144, True, "document")
    assert (rule.beta1, rule.beta2, rule.weight_decay, engine.optimizer.lr) == (0, 0.99, 0.5, 1e-4)
    assert engine.window <= model.config.max_positions and isinstance(engine.memory, Overlap if family == "gpt2" else SegmentMemory)
    tokens = torch.randint(100, (2, 9), generator=torch.Generator().manual_seed(0))
    before = engine.score(tokens)
    engine.step(tokens)
    assert engine.updates == 2 and engine.slow_level.learner.updates == 1
    assert (engine.score(tokens) != before).any()


def test_sizes_and_what_goes_before():
    model = random_model(tiny_config("llama"), seed=0)
    arguments = score_first(model)
    assert (arguments["segment"], arguments["streams"], arguments["slow"]) == (48, 64, Slow())
    assert score_first(model, slow=None, memory=None)["slow"] is None
