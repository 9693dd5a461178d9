"""`--preset`: the recipe's settings, below what a command line gives, the same as the engine's preset, and kept in a run's description."""

import argparse
import json
from dataclasses import replace

import pytest
from tiny import english, tiny_directory

from dynadapt.adapt import AdamW
from dynadapt.commands.evaluate import add_options
from dynadapt.commands.settings import config_from
from dynadapt.engine import presets as engine_presets
from dynadapt.experiments.config import ConfigError, EvalConfig
from dynadapt.experiments.dyneval import RunOptions, run
from dynadapt.experiments.engine_of_config import adapt_of, memory_of, optimizer_of
from dynadapt.model import random_model, tiny_config


def parsed(*words: str) -> EvalConfig:
    parser = argparse.ArgumentParser()
    add_options(parser)
    return config_from(parser.parse_args(["--text", "a.txt", "--quiet", *words]))


def test_the_engine_s_recipe():
    config = parsed("--preset", "score-first")
    recipe = engine_presets.score_first(random_model(tiny_config("llama", max_positions=2048), seed=0))
    adapt = adapt_of(config)
    assert set(adapt.targets) == set(recipe["adapt"].targets) and replace(adapt, targets="all") == replace(recipe["adapt"], targets="all")
    assert optimizer_of(config) == recipe["optimizer"] and memory_of(config) == recipe["memory"]
    assert (config.segment, config.streams, config.reset) == (recipe["segment"], 1, recipe["reset"])
    assert config.levels == "fast,slow" and config.slow_every is None


def test_what_is_given_goes_before_it():
    config = parsed("--preset", "score-first", "--rank", "8", "--sinks", "4", "--weight-decay", "0")
    assert (config.rank, config.sinks, config.weight_decay, config.alpha) == (8, 4, 0, 144)
    context = parsed("--preset", "score-first", "--context", "100")
    assert context.context == 100 and context.memory is None
    assert parsed().rank == EvalConfig().rank


def test_betas_and_weight_decay():
    config = EvalConfig(optimizer="adamw", betas="0,0.99", weight_decay=0.5)
    assert optimizer_of(config) == AdamW(lr=config.learning_rate, betas=(0.0, 0.99), weight_decay=0.5)
    assert EvalConfig(betas=[0, 0.99]).betas == "0,0.99"
    for bad in ("1,0.9", "0.9", "0.9,0", "a,b", 3):
        with pytest.raises(ConfigError, match="betas .*: give B1,B2"):
            EvalConfig(betas=bad)
    with pytest.raises(ConfigError, match="weight_decay -1"):
        EvalConfig(weight_decay=-1)


def test_a_zero_is_kept_in_the_description():
    settings = {"optimizer": "adamw", "weight_decay": 0.0, "levels": "fast,slow", "slow_lr": 0.0}
    content = EvalConfig(**settings).to_dict()
    assert content["weight_decay"] == content["slow_lr"] == 0 and "betas" not in content
    assert EvalConfig.from_dict(content).slow_lr == 0
    assert not {"betas", "weight_decay", "slow_lr", "levels"} & set(EvalConfig().to_dict())


def test_a_run_keeps_what_it_became(tmp_path):
    tiny_directory(tmp_path / "model")
    (tmp_path / "a.txt").write_text(english(100, 1))
    words = ("--preset", "score-first", "--rank", "4", "--memory", "20", "--segment", "8", "--streams", "1", "--slow-every", "30")
    config = parsed(*words, "--model", str(tmp_path / "model"), "--backend", "cpu", "--dtype", "fp32").with_(
        text=(str(tmp_path / "a.txt"),)
    )
    summary = run(config, tmp_path / "run", RunOptions(checkpoint=0))
    kept = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (kept["betas"], kept["weight_decay"], kept["keep_a"], kept["rank"], kept["alpha"]) == ("0,0.99", 0.5, True, 4, 144)
    assert summary["levels"] == "fast,slow" and summary["slow_updates"] >= 1
