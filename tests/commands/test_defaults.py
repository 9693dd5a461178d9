"""What `dynadapt eval` does without options: memory as far as positions go, arithmetic by what the processor does fastest, both said."""

import io
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import EVENT, call
from tiny import english, tiny_directory, tiny_root

import dynadapt.model
from dynadapt.experiments import defaults
from dynadapt.experiments.config import EvalConfig
from dynadapt.experiments.defaults import family_rates, fastest, fitting_memory, opening, settle
from dynadapt.experiments.dyneval import Interrupted, RunOptions, build_engine, run
from dynadapt.experiments.sweep import Cell, run_cells
from dynadapt.model import tiny_config
from dynadapt.runs.progress import Bar, Lines
from dynadapt.runs.rundir import RunError


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    base = tiny_root(tmp_path_factory.mktemp("defaults"), 300)
    tiny_directory(base / "gpt2", "gpt2")
    return base


def config_of(folder, **changes) -> EvalConfig:
    return EvalConfig(**{"model": str(folder / "model"), "text": (str(folder / "a.txt"),), "segment": 16, "rank": 2, **changes})


# ---- what is chosen


def test_memory_is_512_or_what_positions_leave():
    for seed in range(200):
        draw = random.Random(seed)
        positions, segment, sinks = draw.randint(1, 4000), draw.randint(1, 2048), draw.randint(0, 8)
        model = tiny_config("llama", max_positions=positions)
        config = settle(EvalConfig(segment=segment, sinks=sinks, dtype="fp32"), model)
        assert config.memory <= 512 and config.open == ("bos",)  # which the tokenizer settles
        assert not config.memory or segment + config.memory + sinks <= positions
        assert config.memory == 512 or config.memory == max(0, positions - segment - sinks)
        assert (
            settle(EvalConfig(segment=segment, memory=700, dtype="fp32"), model).memory == 700
        )  # asked for: the engine says what it thinks of it
        assert settle(EvalConfig(segment=segment, context=64, dtype="fp32"), model).memory == 0
        said = opening(EvalConfig(segment=segment, sinks=sinks), config, model)
        assert "\n" not in said and (f"memory {config.memory}" in said if config.memory else "no memory" in said)
    assert fitting_memory(EvalConfig(), tiny_config("gpt2")) == 0
    assert "learned positions; --context" in opening(EvalConfig(), EvalConfig(memory=0, dtype="fp32"), tiny_config("gpt2"))


def test_a_memory_that_was_asked_for_and_does_not_fit_is_refused(folder, tmp_path, capsys):
    words = ["eval", "--model", folder / "gpt2", "--text", folder / "a.txt", "--segment", 16, "--rank", 2]
    assert call(*words, "--memory", 8, "--out", tmp_path / "asked") == 2
    assert "learned absolute positions" in capsys.readouterr().err and not (tmp_path / "asked").exists()
    assert call(*words, "--out", tmp_path / "left") == 0
    assert "no memory (learned positions" in capsys.readouterr().out.splitlines()[0]
    assert json.loads((tmp_path / "left" / "config.json").read_text())["memory"] == 0


def test_a_rank_above_the_models_width_is_refused(folder, tmp_path, capsys):
    sizes = dynadapt.model.load(str(folder / "model")).config
    width = max(sizes.hidden_size, sizes.ffn_size)
    words = ["--model", folder / "model", "--segment", 16, "--rank", width + 1]
    train = ["reweight", "train", "--domains", f"a={folder / 'a.jsonl'}", "--adapt", "lora", "--heldout", 0.5, "--steps", 1]
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": english(60, seed)}) + "\n" for seed in range(8)))
    for command in (["eval", "--text", folder / "a.txt"], ["eval", "--text", folder / "a.txt", "--memory", 0], train):
        assert call(*command, *words, "--out", tmp_path / "out") == 2
        assert f"rank {width + 1}: give a whole number from 1 to {width}, the model's largest width" in capsys.readouterr().err
        assert not list(tmp_path.glob("out/*"))
    assert call("explain", *words) == call("plan", *words) == 2
    assert capsys.readouterr().err.count("the model's largest width") == 2


@pytest.mark.parametrize(
    "isa, dtype, why",
    [
        ("avx512_bf16", "bf16", "AVX512-BF16"),
        ("avx512", "fp32", "faster and more exact here: no AVX512-BF16"),
        ("avx2", "fp32", "faster and more exact"),
        ("neon", "fp32", "no 64-bit Arm processor was timed"),
        ("portable", "fp32", "not timed"),
    ],
)
def test_arithmetic_is_what_the_instruction_set_in_use_does_fastest(isa, dtype, why, monkeypatch):
    from dynadapt import _C

    monkeypatch.setattr(_C, "isa", lambda: isa)
    assert fastest("cpu")[0] == dtype and why in fastest("cpu")[1]
    said = opening(EvalConfig(device="cpu"), settle(EvalConfig(device="cpu"), tiny_config("llama")), tiny_config("llama"))
    assert said.startswith(f"smollm2-135m, {dtype} (") and why in said
    assert fastest("cpu", "reference")[0] == "fp32"
    assert settle(EvalConfig(dtype="fp64", backend="reference", memory=0), None).dtype == "fp64"


def test_a_gpu_takes_bf16(monkeypatch):
    import torch

    import dynadapt.ops

    monkeypatch.setattr(dynadapt.ops, "choose_device", lambda *of: torch.device("cuda"))
    assert fastest()[0] == "bf16"


EVERYWHERE = """
import json
from dynadapt.bench.step import dtypes_of
from dynadapt.engine import Engine
from dynadapt.engine.arithmetic import fastest
from dynadapt.experiments.config import EvalConfig
from dynadapt.experiments.defaults import opening, settle, settled_dtype
from dynadapt.experiments.dyneval import build_engine
from dynadapt.experiments.reweight.config import ReweightConfig
from dynadapt.model import random_model, tiny_config
model = random_model(tiny_config("llama"))
asked = EvalConfig(device="cpu", segment=8, memory=0, adapt="none")
engine = Engine(model, segment=8, device="cpu")
narrow = Engine(model, segment=8, device="cpu", dtype="bf16")
print(json.dumps({
    "chosen": fastest("cpu"),
    "engine": engine.dtype,
    "eval": settle(asked, model.config).dtype,
    "demo, tune, sweep": build_engine(model, asked).dtype,
    "reweight": settled_dtype(ReweightConfig(domains={"a": "a"}, device="cpu"), "nowhere", False),
    "diagnose": settled_dtype(asked, "nowhere", False),
    "bench": dtypes_of("auto", None)[0],
    "explain": engine.explain(),
    "explain bf16": narrow.explain(),
    "first line": opening(asked, settle(asked, model.config), model.config),
    "first line bf16": opening(asked.with_(dtype="bf16"), asked.with_(dtype="bf16"), model.config),
}))
"""


def test_every_command_chooses_the_same_on_every_instruction_set():
    """DYNADAPT_CPU_ISA is read once, so in processes of their own, which run side by side."""
    from dynadapt.bench.machine import instruction_sets, limits

    environments = {isa: limits(isa) for isa in instruction_sets()} | {"portable": {"DYNADAPT_CPU_ISA": "portable"}}
    started = {
        isa: subprocess.Popen(
            [sys.executable, "-c", EVERYWHERE], env={**os.environ, **own}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for isa, own in environments.items()
    }
    for isa, process in started.items():
        output, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        found = json.loads(output)
        dtype, why = found["chosen"]
        assert dtype == ("bf16" if isa == "avx512_bf16" else "fp32")
        for name in ("engine", "eval", "demo, tune, sweep", "reweight", "diagnose", "bench"):
            assert found[name] == dtype, (isa, name)
        assert f"{dtype} ({why})" in found["explain"] and f"{dtype} ({why})" in found["first line"]
        stored = "bf16 (stored in bf16, multiplied in float32: half the memory of weights"
        for name in ("explain bf16", "first line bf16"):
            assert (stored in found[name]) == (isa != "avx512_bf16"), (isa, name)
            assert ("slower than fp32" in found[name]) == (isa in ("avx2", "avx512"))
    assert "DYNADAPT_CPU_ISA" in (
        subprocess.run(
            [sys.executable, "-c", "from dynadapt import _C"],
            env={**os.environ, "DYNADAPT_CPU_ISA": "sse2"},
            capture_output=True,
            text=True,
            timeout=120,
        ).stderr
    )


def test_bf16_is_stored_and_multiplied_where_there_is_no_instruction_for_it(monkeypatch):
    """bf16 stays to be had everywhere; what it is there is said, and no speed is claimed for it."""
    from dynadapt import _C
    from dynadapt.engine.arithmetic import why

    for isa in ("avx2", "avx512", "portable"):
        monkeypatch.setattr(_C, "isa", lambda: isa)
        said = why("bf16", "cpu")
        assert said.startswith("stored in bf16, multiplied in float32: half the memory of weights") and "faster" not in said
        assert said.endswith("slower than fp32") == (isa != "portable") and why("fp32", "cpu") == fastest("cpu")[1]
    monkeypatch.setattr(_C, "isa", lambda: "avx512_bf16")
    assert "AVX512-BF16" in why("bf16", "cpu") and why("fp32", "cpu") == why("bf16", "cpu", "reference") == ""


# ---- where it is settled


def test_what_was_settled_is_kept_and_gone_on_with(folder, tmp_path, monkeypatch):
    """A run is begun where bf16 is faster, and resumed where fp32 would be chosen: it goes on in bf16, to the same bits."""
    other = {"bf16": "fp32", "fp32": "bf16"}
    for first in ("bf16", "fp32"):
        monkeypatch.setattr(defaults, "fastest", lambda *of: (first, "here"))
        config, out = config_of(folder, lr=0.01), tmp_path / first
        whole = run(config, tmp_path / f"{first}-whole")
        stop_after(config, out, 3)
        begun = json.loads((out / "config.json").read_text())
        assert (begun["dtype"], begun["memory"]) == (first, fitting_memory(config, dynadapt.model.load(config.model).config))
        monkeypatch.setattr(defaults, "fastest", lambda *of: (other[first], "there"))
        monkeypatch.setattr(defaults, "MEMORY", 8)
        assert config.matches(begun) and config.as_begun(begun).to_dict() == begun
        assert run(config, out, RunOptions(resume=True))["nll"] == whole["nll"]
        assert run(config, out, RunOptions(resume=True))["dtype"] == first  # finished: the model is not asked for
        with pytest.raises(RunError, match=f"dtype is '{first}' there"):
            run(config.with_(dtype=other[first]), out, RunOptions(resume=True))
        monkeypatch.setattr(defaults, "MEMORY", 512)


def stop_after(config, out, segments):
    import signal

    def progress(event):
        if event["segment"] == segments:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted):
        run(config, out, RunOptions(), progress)


def test_open_settings_are_equal_to_what_they_became(folder, tmp_path):
    config = config_of(folder, adapt="none")
    run(config, tmp_path / "a")
    begun = json.loads((tmp_path / "a" / "config.json").read_text())
    assert config.matches(begun) and not config.with_(lr=0.5, adapt="lora").matches(begun) and not config.with_(memory=1).matches(begun)
    assert config.with_(memory=begun["memory"]).matches(begun) and config.with_(dtype=begun["dtype"]).matches(begun)
    assert not config.matches({"kind": "reweight"})
    assert {"--memory", "--dtype"}.isdisjoint(config.arguments())
    assert "--memory" in config.with_(memory=0).arguments()


def test_a_sweep_knows_its_finished_cells(folder, tmp_path, monkeypatch):
    from dynadapt.experiments import sweep

    ran = []
    monkeypatch.setattr(
        sweep, "_run_child", lambda words: (ran.append(words) or run(config, Path(words[words.index("--out") + 1]))) and (0, "")
    )
    config = config_of(folder, adapt="none")
    for _ in range(2):
        assert not run_cells([Cell("one", config)], tmp_path)
    assert len(ran) == 1


def test_an_engine_of_an_open_configuration_has_memory(folder):
    model = dynadapt.model.load(str(folder / "model"))
    engine = build_engine(model, config_of(folder))
    assert engine.memory.length == fitting_memory(config_of(folder), model.config) > 0


# ---- what is said


def test_the_first_line_says_what_was_chosen_and_how_to_choose(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["eval", "--model", folder / "model", "--text", folder / "a.txt", "--segment", 16]
    assert call(*words) == 0
    first = capsys.readouterr().out.splitlines()[0]
    begun = json.loads((tmp_path / "runs" / "model-a-lora" / "config.json").read_text())
    assert first.startswith(f"model, {begun['dtype']} (") and f"memory {begun['memory']} + 4 sinks" in first and "LoRA r16" in first
    assert "positions leave" in first and "--dtype" in first and "--memory" in first
    assert call(*words, "--memory", 0, "--dtype", "fp32", "--quiet") == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith("model, fp32, LoRA r16, no memory, segments of 16;")
    assert (tmp_path / "runs" / "model-a-lora-memory0" / "summary.json").is_file()
    assert call(*words, "--resume") == 0
    assert capsys.readouterr().out.count("is finished") == 1
    assert call("explain", *words[1:]) == 0
    assert capsys.readouterr().out.startswith("model, ")


def test_plan_and_harness_settle_too(tmp_path, capsys):
    assert call("plan", "--model", "smollm2-135m", "--gpu", "h100", "--json", tmp_path / "plan.json") == 0
    assert "memory 512, bf16, on NVIDIA H100" in " ".join(capsys.readouterr().out.split())
    settings = json.loads((tmp_path / "plan.json").read_text())["settings"]
    assert (settings["memory"], settings["dtype"]) == (512, "bf16")
    from dynadapt.interop.lm_eval import _config

    config = _config("document", {})
    assert config.memory == 0 and config.dtype in ("bf16", "fp32")  # as it scored before
    from dynadapt.experiments.diagnose.config import DiagnoseConfig

    assert DiagnoseConfig(EvalConfig(text=("a",)), after="b").eval.memory == 0


def test_reweighting_settles_its_arithmetic_and_goes_on_in_it(tmp_path, monkeypatch):
    from dynadapt.experiments.defaults import settled_dtype
    from dynadapt.experiments.reweight.config import ReweightConfig

    config = ReweightConfig(domains={"a": "a"})
    monkeypatch.setattr(defaults, "fastest", lambda *of: ("fp32", "here"))
    assert settled_dtype(config, tmp_path, False) == "fp32"
    (tmp_path / "config.json").write_text('{"dtype": "bf16"}')
    assert settled_dtype(config, tmp_path, True) == "bf16" and settled_dtype(config, tmp_path, False) == "fp32"


# ---- the last line of progress

CASES = {
    "whole": {},
    "odd": {"segment": 17},
    "first tokens": {"tokens": 100},
    "beyond the end": {"tokens": 10**6},
    "one token short": {"tokens": 34},
    "split": {"split": True, "streams": 3},
    "split beyond": {"split": True, "streams": 3, "tokens": 10**6},
    "documents": {"documents": 4, "streams": 3},
    "documents and tokens": {"documents": 3, "tokens": 150},
    "a token left over": {"documents": 3, "rest": 1},
    "pipe": {"pipe": True},
    "pipe that ends early": {"pipe": True, "tokens": 10**6},
    "unicode": {"text": "žluťoučký kůň 😀 " * 40 + "\u0301"},
    "static": {"adapt": "none"},
}


@pytest.mark.parametrize("case", CASES)
def test_the_last_progress_line_says_100(case, folder, tmp_path):
    settings = dict(CASES[case])
    texts = [settings.pop("text", None) or english(120 + 7 * number, seed=number) for number in range(settings.pop("documents", 1))]
    files = [tmp_path / f"{number}.txt" for number in range(len(texts))]
    for file, text in zip(files, texts):
        file.write_text(text)
    if settings.pop("rest", None):
        tokenizer = dynadapt.model.load(str(folder / "model")).tokenizer
        settings["tokens"] = len(tokenizer.encode(texts[0])) + 1  # one token of the second document: too few to score
    pipe = settings.pop("pipe", False)
    config = config_of(folder, **{"text": ("-",) if pipe else tuple(map(str, files)), **settings})
    events, stream = [], io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        if pipe:
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(texts[0].encode())))
        with Lines(stream, every=3600) as lines:
            run(config, tmp_path / "run", progress=lambda event: (events.append(event), lines(event)))
    last = stream.getvalue().splitlines()[-1]
    assert "100%" in last and "left 0:00" in last and f"segment {len(events)} " in last
    fractions = [event["fraction"] for event in events if event["fraction"] is not None]
    assert fractions == sorted(fractions) and all(0 < fraction <= 1 for fraction in fractions)
    assert all(fraction < 1 for fraction in fractions[:-1])  # 100% is never said before the last segment
    if not pipe and not settings.get("rest") and case != "a token left over":
        assert fractions[-1] == 1.0


def test_a_run_that_stopped_does_not_say_100(folder, tmp_path):
    for kind in (Lines, Bar):
        stream = io.StringIO()
        with pytest.raises(Interrupted):
            with kind(stream) as shown:
                shown(EVENT)
                raise Interrupted("stopped")
        assert "25%" in stream.getvalue() and "100%" not in stream.getvalue()
        stream = io.StringIO()
        with kind(stream) as shown:
            shown(EVENT)
        assert "100%" in stream.getvalue().splitlines()[-1]


# ---- the learning rate of a family


def test_gemma_3_learns_at_an_eighth_of_the_usual_rate(tmp_path, capsys):
    base = tiny_root(tmp_path, 300)
    tiny_directory(base / "gemma", "gemma3")
    (base / "gemma" / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    words = ["eval", "--model", base / "gemma", "--text", base / "a.txt", "--segment", 16, "--rank", 2, "--dtype", "fp32", "--bos", "no"]
    rate_of = lambda name: json.loads((tmp_path / name / "config.json").read_text())["lr"]  # noqa: E731
    for name, more, rate in (
        ("usual", [], 2.5e-4),
        ("given", ["--lr", 2e-3], 2e-3),
        ("full", ["--adapt", "full"], 1.25e-5),
        ("rows", ["--adapt", "rows"], 3.75e-5),
        ("full given", ["--adapt", "full", "--lr", 1e-4], 1e-4),
        ("sgd", ["--optimizer", "sgd"], 1 / 8),
    ):
        assert call(*words, *more, "--out", tmp_path / name) == 0
        said = capsys.readouterr().out.splitlines()[0]
        assert rate_of(name) == pytest.approx(rate)
        assert (f" at {rate:g} (what gemma3 wants; --lr has another)" in said) == ("given" not in name), said
    assert call(*words, "--out", tmp_path / "usual", "--resume") == 0
    assert call(*words, "--lr", 2e-3, "--out", tmp_path / "usual", "--resume") == 2  # another rate is another run
    assert "0.002" in capsys.readouterr().err
    text = {"string": english(40, 1), "segment": 16, "rank": 2, "dtype": "fp32", "memory": 0, "bos": "no"}
    one, same, other = (dynadapt.evaluate(base / "gemma", **text, **lr).summary["nll"] for lr in ({}, {"lr": 2.5e-4}, {"lr": 2e-3}))
    assert one == same != other
    assert settle(EvalConfig(rates="1e-3,2e-3"), tiny_config("gemma3")).lr is None  # each learner has its own
    assert settle(EvalConfig(), tiny_config("llama")).lr is None and family_rates("adam", tiny_config("llama")) == {}
    assert family_rates("adam", tiny_config("gemma3")) == {"lora": 2.5e-4, "rows": 3.75e-5, "full": 1.25e-5}


@pytest.mark.parametrize("family", ["gemma3", "llama"])
def test_a_reweighting_runs_usual_rate_is_noted_for_gemma_3(family, tmp_path, capsys):
    """It has one for all models, at which learning did harm there."""
    tiny_directory(tmp_path / "model", family)
    (tmp_path / "model" / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    noted = "at usual rates learning did harm on gemma3 (docs/defaults.md): give a lower one with --lr"
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        for i in range(4):
            (tmp_path / name / f"{i}.txt").write_text(english(60, seed=i))
    domains = ["--domains", *(f"{name}={tmp_path / name}" for name in ("one", "two"))]
    sizes = ["--segment", 16, "--dtype", "fp32", "--steps", 1, "--rows", 2, "--heldout-rows", 2, "--policy", "repeat"]
    for number, more in enumerate([["--adapt", "lora"], ["--adapt", "full"], ["--adapt", "full", "--lr", 1e-5]]):
        out = ["--out", tmp_path / f"reweight{number}"]
        assert call("reweight", "train", "--model", tmp_path / "model", *sizes, *domains, *more, *out) == 0
        said = " ".join(capsys.readouterr().err.split())
        assert (noted in said) == (family == "gemma3" and "--lr" not in more), said


def test_a_diagnosis_says_the_rate_that_it_learned_at(tmp_path, capsys):
    base = tiny_root(tmp_path, 300)
    tiny_directory(base / "gemma", "gemma3")
    (base / "gemma" / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    (base / "b.txt").write_text(english(200, 7))
    words = ["diagnose", "--model", base / "gemma", "--text", base / "b.txt", "--learn", base / "a.txt", "--segment", 16, "--rank", 2]
    words += ["--dtype", "fp32", "--out", tmp_path / "found"]
    assert call(*words) == 0
    assert json.loads((tmp_path / "found" / "config.json").read_text())["lr"] == 2.5e-4
    capsys.readouterr()
    assert call(*words, "--resume", "--lr", 2.5e-4) == 0
    assert call(*words, "--resume", "--lr", 2e-3) == 2 and "lr is 0.00025" in capsys.readouterr().err
