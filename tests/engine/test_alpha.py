"""alpha and rank mean the same wherever a LoRA is described: alone it is twice the rank, and what is given is used and kept."""

import json
from dataclasses import replace

import pytest
import torch
from tiny import english, tiny_directory

from dynadapt import Engine, LoRA
from dynadapt.cli import parse
from dynadapt.commands.settings import config_from
from dynadapt.experiments.config import ConfigError, EvalConfig
from dynadapt.experiments.dyneval import RunOptions, adapt_of, run
from dynadapt.experiments.reweight import ReweightConfig
from dynadapt.experiments.reweight.setup import build_engine as reweight_engine
from dynadapt.interop import nn
from dynadapt.model import random_model, tiny_config
from dynadapt.runs.rundir import RunError


@pytest.mark.parametrize("rank", [1, 3, 16, 64])
def test_alone_it_is_twice_the_rank(rank):
    assert type(LoRA(rank=rank).alpha) is float
    scales = [
        LoRA(rank=rank).scale,
        adapt_of(EvalConfig(rank=rank)).scale,
        adapt_of(config_from(parse(["eval", "--rank", str(rank)]))).scale,
    ]
    layer = nn.LoRALinear(8, 4, rank=rank)
    scales += [layer.alpha / layer.rank, (wrapped := nn.LoRALinear.from_linear(torch.nn.Linear(8, 4), rank=rank)).alpha / wrapped.rank]
    model = random_model(tiny_config("llama"), seed=0)
    config = ReweightConfig(domains={"a": "x"}, adapt="lora", rank=rank, rows=1, segment=4, dtype="fp32", backend="reference")
    scales += [reweight_engine(model, config).adapt.scale, Engine(model, adapt=LoRA(rank=rank), dtype="fp32", segment=4).adapt.scale]
    assert scales == [2.0] * len(scales)
    assert LoRA(rank=rank) == LoRA(rank=rank, alpha=2 * rank)


def test_what_is_given_is_used_and_recorded():
    given = config_from(parse(["eval", "--rank", "4", "--alpha", "6", "--text", "x"]))
    assert adapt_of(given) == LoRA(rank=4, alpha=6.0)
    assert given.to_dict()["alpha"] == 6.0 and EvalConfig.from_dict(given.to_dict()).alpha == 6.0
    assert given.arguments()[-4:] == ["--rank", "4", "--alpha", "6.0"]
    again = parse(["reweight", "train", "--out", "o", "--domains", "a=x", "--adapt", "lora", "--alpha", "5"])
    assert again.alpha == 5.0


@pytest.mark.parametrize("alpha", [0, -1.0, float("nan"), float("inf"), True, "4", 1e40, 1e-60])
def test_nonsense_is_refused_by_name(alpha):
    for make in (lambda: EvalConfig(alpha=alpha), lambda: ReweightConfig(domains={"a": "x"}, alpha=alpha)):
        with pytest.raises(ConfigError, match="alpha.*above 0"):
            make()
    with pytest.raises(ValueError, match="alpha=.*positive number, or None for twice the rank"):
        LoRA(alpha=alpha)


def test_a_run_begun_before_there_was_an_alpha_goes_on(tmp_path):
    (tmp_path / "a.txt").write_text(english(300))
    config = EvalConfig(
        model=str(tiny_directory(tmp_path / "model")), text=(str(tmp_path / "a.txt"),), segment=16, rank=2, dtype="fp32", lr=0.002, memory=0
    )
    run(config, tmp_path / "run")
    recorded = json.loads((tmp_path / "run" / "config.json").read_text())
    assert "alpha" not in recorded and EvalConfig.from_dict(recorded) == config.with_(bos="no")
    for same in (config, replace(config, alpha=4.0)):
        run(same, tmp_path / "run", RunOptions(resume=True))
    with pytest.raises(RunError, match="another configuration: alpha is None there and 8.0 here"):
        run(replace(config, alpha=8.0), tmp_path / "run", RunOptions(resume=True))


def test_an_adapter_file_says_it_as_peft_does(tmp_path):
    for alpha, said in ((None, 4), (3.5, 3.5)):
        engine = Engine(random_model(tiny_config("llama"), seed=0), adapt=LoRA(rank=2, alpha=alpha), dtype="fp32", segment=4)
        engine.save(tmp_path / str(alpha))
        found = json.loads((tmp_path / str(alpha) / "adapter" / "adapter_config.json").read_text())["lora_alpha"]
        assert found == said and type(found) is type(said)
