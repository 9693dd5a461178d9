"""Which linears learn, and their ranks, in a command line's words: what LoRA gets of them, and what a run keeps."""

import json

import pytest
from command_line import call
from tiny import english, tiny_directory

import dynadapt
from dynadapt import Full, LoRA
from dynadapt.common.errors import ConfigError
from dynadapt.experiments.config import EvalConfig
from dynadapt.experiments.dyneval import adapt_of
from dynadapt.experiments.evaluation_settings import _adapt


@pytest.mark.parametrize(
    "words, adapt",
    [
        ({"targets": "mlp"}, LoRA(targets="mlp")),
        ({"targets": "q,v"}, LoRA(targets=["q", "v"])),
        ({"targets": ["q_proj", "mlp.down_proj"]}, LoRA(targets=["q_proj", "mlp.down_proj"])),
        ({"targets": r".*\.(q|v)_proj"}, LoRA(targets=r".*\.(q|v)_proj")),
        ({"rank_pattern": "q=4,down=32"}, LoRA(rank_pattern={"q": 4, "down": 32})),
        (
            {"rank_pattern": {"q": 4}, "alpha_pattern": "v=0.5", "rslora": True},
            LoRA(rank_pattern={"q": 4}, alpha_pattern={"v": 0.5}, rslora=True),
        ),
        ({"rate_pattern": "q=0.5,head=0", "b_rate": 16}, LoRA(rate_pattern={"q": 0.5, "head": 0}, b_rate=16)),
        ({"rate_pattern": {"down": 2}}, LoRA(rate_pattern={"down": 2.0})),
        ({"adapt": "full", "targets": "norms"}, Full("norms")),
        ({"adapt": "full", "targets": "biases,norms"}, Full(["norms", "biases"])),
        ({"adapt": "full", "targets": ["norms", "biases"], "layers": "1:2"}, Full(["norms", "biases"], range(1, 2))),
        ({"keep_a": True, "reset": "document"}, LoRA(keep_a=True)),
        ({"also": "biases,norms", "targets": "embed,q"}, LoRA(also=["norms", "biases"], targets=["embed", "q"])),
        ({"also": ["norms"]}, LoRA(also="norms")),
        ({"dora": True, "targets": "attn"}, LoRA(dora=True, targets="attn")),
    ],
    ids=str,
)
def test_words_and_what_they_mean(words, adapt):
    config = EvalConfig(**words)
    assert adapt_of(config) == adapt
    assert adapt_of(EvalConfig.from_dict(json.loads(json.dumps(config.to_dict())))) == adapt
    assert adapt_of(EvalConfig(**_adapt(adapt))) == adapt


def test_a_run_from_before_has_the_same_configuration():
    assert (
        not {"rank_pattern", "alpha_pattern", "rslora", "keep_a", "rate_pattern", "b_rate", "also", "dora"} & EvalConfig().to_dict().keys()
    )


@pytest.mark.parametrize(
    "words, said",
    [
        ({"targets": ""}, "targets '': give one of all, attn, mlp, model, norms, biases, norms and biases with a comma"),
        ({"targets": "(q"}, "targets '.q': targets has '.q', which is no regular expression"),
        ({"rank_pattern": "q"}, "rank_pattern 'q': give LINEAR=R"),
        ({"rank_pattern": "q=0"}, "rank_pattern 'q=0': rank_pattern.'q'.=0: expected an integer of at least 1"),
        ({"rank_pattern": "q=1.5"}, "rank_pattern 'q=1.5': give"),
        ({"rank_pattern": {"a{1,2}": 3}}, "patterns with a comma in them are for an Engine's LoRA"),
        ({"alpha_pattern": "q=-1"}, "alpha_pattern 'q=-1': .*expected a positive number"),
        ({"rate_pattern": "q=-1"}, "rate_pattern 'q=-1': .*expected a finite number >= 0"),
        ({"rate_pattern": "q"}, "rate_pattern 'q': give LINEAR=FACTOR"),
        ({"also": "head"}, "also 'head': give norms, biases, or both with a comma between them"),
        ({"b_rate": 0}, "b_rate 0: "),
        ({"targets": "q,v", "adapt": "rows"}, "targets 'q,v' with adapt 'rows': give adapt lora, or targets all, attn or mlp"),
        ({"targets": "norms"}, "targets 'norms' with adapt 'lora': give adapt full"),
        ({"targets": "norms,biases", "adapt": "rows"}, "targets 'norms,biases' with adapt 'rows': give adapt full"),
        ({"targets": "norms,q", "adapt": "full"}, "targets 'norms,q' with adapt 'full'"),
        ({"targets": "model"}, "targets 'model' with adapt 'lora'"),
    ],
    ids=str,
)
def test_what_is_refused(words, said):
    with pytest.raises(ConfigError, match=said):
        EvalConfig(**words)


def test_eval_learns_with_them_and_exports_what_peft_reads(tmp_path, capsys):
    tiny_directory(tmp_path / "model")
    (tmp_path / "a.txt").write_text(english(200))
    words = ["--model", str(tmp_path / "model"), "--text", str(tmp_path / "a.txt"), "--segment", "16", "--tokens", "60", "--quiet"]
    chosen = ["--targets", "q,down", "--rank", "4", "--rank-pattern", "down=2", "--alpha-pattern", "q=3", "--rslora"]
    assert call("eval", *words, *chosen, "--out", str(tmp_path / "run")) == 0
    assert call("export", str(tmp_path / "run"), "--out", str(tmp_path / "adapter")) == 0
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    named = {name: settings[name] for name in ("r", "lora_alpha", "use_rslora", "target_modules", "rank_pattern", "alpha_pattern")}
    assert named == {
        "r": 4,
        "lora_alpha": 8,
        "use_rslora": True,
        "target_modules": ["down_proj", "q_proj"],
        "rank_pattern": {"down_proj": 2},
        "alpha_pattern": {"q_proj": 3},
    }
    assert dynadapt.load(tmp_path / "adapter").config.layers
    assert call("eval", *words, "--targets", "q,embed", "--also", "norms", "--out", str(tmp_path / "more")) == 0
    assert call("export", str(tmp_path / "more"), "--out", str(tmp_path / "more adapter")) == 0
    settings = json.loads((tmp_path / "more adapter" / "adapter_config.json").read_text())
    assert call("eval", *words, "--targets", "q", "--dora", "--out", str(tmp_path / "dora")) == 0
    assert call("export", str(tmp_path / "dora"), "--out", str(tmp_path / "dora adapter")) == 0
    assert dynadapt.load(tmp_path / "dora adapter").config.layers
    assert settings["target_modules"] == ["model.embed_tokens", "q_proj"] and "model.norm" in settings["modules_to_save"]
    assert call("eval", *words, "--targets", "q,w", "--out", str(tmp_path / "other")) != 0
    assert "names no linear: the linears of llama are embed, q, k, v, o, gate, up, down" in capsys.readouterr().err
    assert call("eval", *words, "--rank-pattern", "q=5000", "--out", str(tmp_path / "other")) != 0
    assert "rank_pattern 'q=5000': give ranks from 1 to" in capsys.readouterr().err
