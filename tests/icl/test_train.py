"""Training in context: the model against Hugging Face's GPT-2, the curriculum, run directories, what is refused."""

import json
import os
import signal
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from command_line import call
from run_files import Killed, kill_at
from safetensors.torch import load_file, save_file

from benchmarks import icl as icl_benchmark
from dynadapt.common.digests import digest_of
from dynadapt.experiments import icl
from dynadapt.experiments.dyneval import Interrupted
from dynadapt.experiments.icl import progress as progress_module
from dynadapt.experiments.icl import train as train_module
from dynadapt.experiments.icl.config import TrainConfig
from dynadapt.experiments.icl.curriculum import Ramp, Rate
from dynadapt.experiments.icl.function_class import IclError
from dynadapt.experiments.icl.model import Geometry, Regressor, initial_weights
from dynadapt.experiments.icl.presets import PRESETS, from_preset
from dynadapt.experiments.icl.reference import HuggingFaceRegressor
from dynadapt.experiments.icl.train import Trainer, TrainOptions, train, train_together
from dynadapt.runs.checkpoints import state_digest
from dynadapt.runs.rundir import RunError

GEOMETRY = Geometry(dims=3, layers=2, hidden=36, heads=3, positions=15)
SMALL = dict(preset="test", dims=3, points=6, layers=2, hidden=32, heads=2, positions=12, batch=8, steps=60, log=10, lr=3e-3, device="cpu")


def prompts(count=5, points=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, points, GEOMETRY.dims, generator=generator), torch.randn(count, points, generator=generator)


@pytest.mark.parametrize("backend,dtype,tolerance", [("reference", "fp64", 1e-9), ("cpu", "fp32", 2e-5), ("cpu", "bf16", 0.05)])
def test_predictions_losses_and_every_gradient_equal_hugging_faces(backend, dtype, tolerance):
    weights = initial_weights(GEOMETRY, seed=1)
    for name, value in weights.tensors.items():  # nothing at zero or one, where a gradient could hide
        value += 0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(len(name)))
        if dtype == "bf16":
            value.copy_(value.bfloat16())
    xs, ys = prompts()
    theirs = HuggingFaceRegressor(GEOMETRY, weights).double()
    predicted = theirs(xs.double(), ys.double())
    errors = (predicted - ys.double()).square()
    errors.mean().backward()
    ours = Regressor(GEOMETRY, weights=weights, backend=backend, dtype=dtype, device="cpu")
    assert torch.allclose(ours.predict(xs, ys, batch=2).double(), predicted, atol=max(tolerance, 1e-6))
    assert torch.allclose(ours.gradients(xs, ys).double(), errors, atol=4 * tolerance, rtol=4 * tolerance)
    found, expected = ours.named(ours.learner.state.grad), theirs.gradients()
    assert set(found) == set(expected) == set(weights.tensors)
    for name, value in expected.items():
        scale = value.abs().max()
        assert scale > 1e-6, name
        assert (found[name].view_as(value).double() - value).abs().max() < tolerance * max(scale, 0.01), name


def test_a_prediction_sees_what_is_before_it_and_nothing_else():
    regressor = Regressor(GEOMETRY, seed=3, device="cpu")
    xs, ys = prompts()
    before = regressor.predict(xs, ys)
    changed_x, changed_y = xs.clone(), ys.clone()
    changed_x[0, 4:] += 1.0
    changed_y[0, 3:] += 1.0
    after = regressor.predict(changed_x, changed_y)
    assert torch.equal(before[0, :4], after[0, :4]) and torch.equal(before[1:], after[1:])  # other prompts are other streams
    assert not torch.isclose(before[0, 4:], after[0, 4:]).any()
    assert torch.equal(before[2:4], regressor.predict(xs[2:4], ys[2:4]))


def test_parameters_are_those_of_the_paper():
    standard = PRESETS["garg-standard"].geometry()
    assert Regressor(standard, device="cpu").parameters == 9_534_977
    small = Geometry(4, 2, 64, 2, 8)
    tensors = initial_weights(small, 0).tensors
    assert float(tensors["layers.0.up.weight"].std()) == pytest.approx(0.02, rel=0.05)
    assert float(tensors["layers.1.down.weight"].std()) == pytest.approx(0.01, rel=0.05)
    assert float(tensors["read_in.weight"].abs().max()) == pytest.approx(0.5, rel=0.05)


def test_the_curriculum_is_that_of_the_paper():
    config = PRESETS["garg-standard"]
    dims, points = config.dims_ramp(), config.points_ramp()
    assert (dims.at(0), dims.at(1999), dims.at(2000), dims.at(30_000), dims.at(400_000)) == (5, 5, 6, 20, 20)
    assert (points.at(0), points.at(2000), points.at(29_999), points.at(30_000)) == (11, 13, 39, 41)
    assert dims.done == points.done == 30_000 and Ramp(4, 4).done == 0
    rate = Rate("triangle", 1e-3, 250, 500)
    assert rate.at(0) == pytest.approx(4e-6) and rate.at(249) == 1e-3 and rate.at(375) == pytest.approx(5e-4) and rate.at(499) > 0
    assert Rate("constant", 0.1, 0, 9).at(8) == 0.1 and Rate("cosine", 0.1, 2, 10).at(6) == pytest.approx(0.05)


def test_a_run_with_a_curriculum_follows_it(tmp_path):
    config = TrainConfig(**{**SMALL, "steps": 40}, dims_start=1, dims_every=10, points_start=2, points_step=2, points_every=10)
    trainer = Trainer(config)
    seen, learn = [], trainer.regressor.learn
    trainer.regressor.learn = lambda x, y: seen.append((x.shape[1], int((x != 0).any(0).any(0).sum()))) or learn(x, y)
    for step in range(0, 31, 10):
        trainer.begin_interval(step)
        trainer.step(step)
    assert seen == [(2, 1), (4, 2), (6, 3), (6, 3)]
    summary = train(config, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(line["dims"], line["points"], len(line["by_k"])) for line in lines] == [(1, 2, 2), (2, 4, 4), (3, 6, 6), (3, 6, 6)]
    assert summary["steps"] == 40 and len(summary["errors"]["dense-linear"]["model"]["mean"]) == 6


def sign_again(state: Path) -> None:
    """As if a saved state had been written the way it is now."""
    content = json.loads((state / "state.json").read_text())
    del content["digest"]
    content["files"] = {name: digest_of(state / name) for name in content["files"]}
    (state / "state.json").write_text(json.dumps({**content, "digest": state_digest(content)}))


def test_a_killed_run_resumes_bit_for_bit(tmp_path):
    config = TrainConfig(
        **SMALL, classes=("dense-linear", "sparse-linear:1"), clip=1.0, schedule="cosine", warmup=5, dims_start=2, dims_every=20
    )
    whole = train(config, tmp_path / "whole")
    with pytest.raises(Killed):
        train(config, tmp_path / "cut", TrainOptions(checkpoint=25), kill_at(step=40))
    assert sorted(p.name for p in (tmp_path / "cut" / "checkpoint").iterdir()) == ["00000030"]
    with pytest.raises(RunError, match="add --resume"):
        train(config, tmp_path / "cut")
    resumed = train(config, tmp_path / "cut", TrainOptions(resume=True))
    strip = lambda run: [
        {k: v for k, v in json.loads(line).items() if "seconds" not in k}
        for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()  # noqa: E731
    ]
    assert strip("whole") == strip("cut") and len(strip("whole")) == 6
    assert whole["errors"] == resumed["errors"]
    ours, theirs = (icl.load_run(tmp_path / run) for run in ("whole", "cut"))
    assert torch.equal(ours.learner.state.master, theirs.learner.state.master)


def test_a_run_stops_when_its_minutes_are_over_and_goes_on(tmp_path):
    config = TrainConfig(**{**SMALL, "steps": 30})
    whole = train(config, tmp_path / "whole")
    for number, step in enumerate((10, 20)):
        with pytest.raises(Interrupted, match=f"stopped after 0 minutes after step {step}"):
            train(config, tmp_path / "cut", TrainOptions(resume=number > 0, minutes=0.0))
    assert train(config, tmp_path / "cut", TrainOptions(resume=True))["errors"] == whole["errors"]


def test_a_run_goes_on_on_another_kind_of_device_and_says_so(tmp_path):
    """A GPU's generator has a state of 16 bytes."""
    config = TrainConfig(**{**SMALL, "steps": 40})
    whole = train(config, tmp_path / "whole")
    found = {}
    for name in ("first", "second"):
        run = tmp_path / name
        with pytest.raises(Interrupted):
            train(config, run, TrainOptions(minutes=0.0))
        begun = json.loads((run / "config.json").read_text())
        (run / "config.json").write_text(json.dumps({**begun, "device": "cuda"}))
        kept = run / "checkpoint" / "00000010"
        state = load_file(str(kept / "engine" / "trainer.safetensors"))
        save_file({**state, "generator": torch.zeros(16, dtype=torch.uint8)}, str(kept / "engine" / "trainer.safetensors"))
        sign_again(kept)
        with pytest.warns(UserWarning, match=f"{name} goes on on another kind of device, with other prompts"):
            found[name] = train(config, run, TrainOptions(resume=True))
        lines = [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
        found[name] = [*lines, found[name]["errors"]["dense-linear"]["model"]["mean"]]
        assert json.loads((run / "config.json").read_text())["device"] == "cuda"
    assert found["first"] == found["second"]
    lines = [json.loads(line)["loss"] for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert found["first"][0] == lines[0] and found["first"][1:4] != lines[1:] and whole["steps"] == 40
    with pytest.raises(RunError, match="dtype is 'fp32' there and 'bf16' here"):  # what it computes stays
        train(replace(config, dtype="bf16"), tmp_path / "first", TrainOptions(resume=True))


def test_runs_beside_each_other_are_what_they_are_alone(tmp_path):
    config = TrainConfig(**SMALL)
    runs = {
        "a": (replace(config, steps=40), TrainOptions(keep=20)),
        "b": (replace(config, seed=1, classes=("dense-linear", "sparse-linear:1")), TrainOptions()),
        "c": (replace(config, seed=2, steps=20), TrainOptions()),
    }
    alone = {name: train(each, tmp_path / "alone" / name, options) for name, (each, options) in runs.items()}
    seen = []
    together = {name: (each, tmp_path / "beside" / name, options) for name, (each, options) in runs.items()}
    found = train_together(together, lambda name, line: seen.append((name, line["step"])), at_once=2)
    assert list(found) == list(runs) and all(found[name]["errors"] == alone[name]["errors"] for name in runs)
    for name in runs:
        ours, theirs = (icl.load_run(tmp_path / kind / name) for kind in ("beside", "alone"))
        assert torch.equal(ours.learner.state.master, theirs.learner.state.master)
    assert (tmp_path / "beside" / "a" / "weights" / "00000020.safetensors").exists()
    assert seen[:4] == [("a", 10), ("b", 10), ("a", 20), ("b", 20)]  # two at once, and the third when one of them has ended
    assert seen.index(("c", 10)) > seen.index(("a", 40)) and seen[-1][0] in "bc"
    again = {name: (each, out, TrainOptions(resume=True)) for name, (each, out, _) in together.items()}
    assert train_together(again) == found  # finished ones are read


def test_what_stops_one_of_several_runs_leaves_the_others_whole(tmp_path):
    config = TrainConfig(**{**SMALL, "steps": 30})
    runs = {"wild": (replace(config, lr=1e6), tmp_path / "wild", TrainOptions()), "good": (config, tmp_path / "good", TrainOptions())}
    with pytest.raises(RunError, match="training diverged at step"), pytest.warns(UserWarning, match="wild failed"):
        train_together(runs)
    assert (tmp_path / "good" / "summary.json").exists() and not (tmp_path / "wild" / "summary.json").exists()
    runs = {name: (replace(config, seed=seed), tmp_path / name, TrainOptions(minutes=0.0)) for name, seed in (("x", 1), ("y", 2))}
    with pytest.raises(Interrupted, match="^stopped after 0 minutes with 0 of 2 runs finished, the others after 10 steps$"):
        train_together(runs)
    assert all((tmp_path / name / "checkpoint" / "00000010").exists() for name in "xy")
    with pytest.raises(IclError, match="at_once 0: give at least 1"):
        train_together(runs, at_once=0)


def test_of_several_runs_that_fail_each_is_named_and_a_failure_is_raised_before_a_stop(tmp_path):
    config = TrainConfig(**{**SMALL, "steps": 30})
    wild = replace(config, lr=1e6)
    runs = {
        "late": (config, tmp_path / "late", TrainOptions(minutes=0.0)),
        "first": (wild, tmp_path / "first", TrainOptions()),
        "second": (wild, tmp_path / "second", TrainOptions()),
    }
    with pytest.warns(UserWarning) as notes, pytest.raises(RunError, match="first: training diverged at step") as found:
        train_together(runs)
    assert not isinstance(found.value, Interrupted)
    said = [str(each.message) for each in notes]
    assert [text.partition(" failed: ")[0] for text in said] == ["first", "second"]


def test_runs_that_wait_are_not_begun_when_the_minutes_are_over(tmp_path):
    config = TrainConfig(**{**SMALL, "steps": 30})
    runs = {name: (replace(config, seed=seed), tmp_path / name, TrainOptions(True, minutes=0.0)) for seed, name in enumerate("abc")}
    with pytest.raises(Interrupted, match="^stopped after 0 minutes with 0 of 3 runs finished, the others after 0 to 10 steps$"):
        train_together(runs, at_once=1)
    assert [icl_benchmark.steps_of(tmp_path / name) for name in "abc"] == [10, 0, 0]
    whole = {name: (each, out, TrainOptions(True)) for name, (each, out, _) in runs.items()}
    assert train_together(whole, at_once=2)["c"]["errors"] == train(runs["c"][0], tmp_path / "alone")["errors"]


def test_what_can_not_begin_leaves_nothing_of_the_others(tmp_path):
    config = TrainConfig(**{**SMALL, "steps": 20})
    (tmp_path / "file").write_text("")
    runs = {"a": (config, tmp_path / "a", TrainOptions()), "b": (config, tmp_path / "file" / "b", TrainOptions())}
    with pytest.raises(RunError, match="can't make this directory"):
        train_together(runs)
    assert not (tmp_path / "a").exists()
    runs["b"] = (replace(config, seed=1), tmp_path / "file" / ".." / "a", TrainOptions())
    (tmp_path / "file").unlink()
    (tmp_path / "file").mkdir()
    with pytest.raises(RunError, match="a is the directory of 'a' and of 'b'; choose another for one of them"):
        train_together(runs)
    assert not (tmp_path / "a").exists()


def test_a_signal_during_a_summary_is_not_lost(tmp_path, monkeypatch):
    """A caller that trains one after the other must hear of it."""
    made = train_module.evaluate_class
    monkeypatch.setattr(train_module, "evaluate_class", lambda *each: (os.kill(os.getpid(), signal.SIGTERM), made(*each))[1])
    with pytest.raises(Interrupted, match="stopped by SIGTERM after the last step"):
        train(TrainConfig(**{**SMALL, "steps": 10}), tmp_path / "run")
    assert (tmp_path / "run" / "summary.json").exists()


def test_a_run_begun_before_its_device_was_kept_goes_on_without_a_note(tmp_path):
    config = TrainConfig(**{**SMALL, "steps": 20})
    with pytest.raises(Interrupted):
        train(config, tmp_path, TrainOptions(minutes=0.0))
    env = json.loads((tmp_path / "env.json").read_text())
    assert env.pop("device") == "cpu"
    (tmp_path / "env.json").write_text(json.dumps(env))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(config, tmp_path, TrainOptions(True))
    env = json.loads((tmp_path / "env.json").read_text())
    assert env["device"] == "cpu" and "earlier" not in env


def test_progress_of_runs_beside_each_other_counts_what_was_made_before(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    shown = progress_module.Together({"finished": 100, "resumed": 100, "new": 100}, {"finished": 100, "resumed": 50})
    assert shown.count == "1 of 3 runs, step 150/300" and shown.fraction == 0.5
    for seconds, name, step in ((10, "resumed", 60), (10, "new", 10), (20, "resumed", 70), (20, "new", 20)):
        now[0] = float(seconds)
        shown.add({"run": name, "step": step, "error": 1.0})
    assert shown.count == "1 of 3 runs, step 190/300" and shown.said.endswith("  2.0 steps/s") and shown.seconds_left == 55.0
    for name in ("resumed", "new"):
        shown.add({"run": name, "step": 100, "error": 1.0})
    assert shown.count == "3 of 3 runs, step 300/300" and shown.fraction == 1.0 and shown.seconds_left == 0.0


def test_a_stop_between_logging_points_is_resumed_too(tmp_path):
    config = TrainConfig(**SMALL)
    train(config, tmp_path / "whole")
    trainer = Trainer(config)
    trainer.begin_interval(0)
    for step in range(7):
        trainer.step(step)
    trainer.save(tmp_path / "saved")
    again = Trainer(config)
    assert again.restore(tmp_path / "saved", 7)
    for step in range(7, 10):
        again.step(step)
    first = json.loads((tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()[0])
    losses = again.errors[:10, :-1].double().mean(1)
    assert float(losses.mean()) == first["loss"]


def test_runs_can_be_loaded_at_a_step(tmp_path):
    config = TrainConfig(**SMALL)
    train(config, tmp_path / "run", TrainOptions(keep=20))
    x, y = torch.randn(4, 6, 3), torch.randn(4, 6)
    last, kept = icl.load_run(tmp_path / "run"), icl.load_run(tmp_path / "run", step=60)
    assert torch.equal(last.predict(x, y), kept.predict(x, y))
    assert not torch.equal(last.predict(x, y), icl.load_run(tmp_path / "run", step=20).predict(x, y))
    wide = icl.load_run(tmp_path / "run", dtype="fp64").predict(x, y)
    assert wide.dtype == torch.float32 and torch.allclose(wide, last.predict(x, y), atol=1e-5)
    with pytest.raises(RunError, match="no weights of step 30; it has those of 20, 40, 60"):
        icl.load_run(tmp_path / "run", step=30)
    with pytest.raises(RunError, match="config.json: no such file"):
        icl.load_run(tmp_path)


def test_it_learns_to_regress(tmp_path):
    sizes = {"dims": 1, "points": 3, "hidden": 64, "batch": 32, "positions": 5}
    config = TrainConfig(**{**SMALL, **sizes, "steps": 600, "log": 100}, schedule="cosine", warmup=20, clip=1.0)
    errors = train(config, tmp_path / "run")["errors"]["dense-linear"]
    model, nothing = errors["model"]["mean"], errors["zero"]["mean"]
    assert model[0] == pytest.approx(nothing[0], abs=0.05) and model[1] < 0.6 * nothing[1] and model[2] < 0.75 * nothing[2]


def test_a_run_that_diverges_stops_with_its_step(tmp_path):
    config = TrainConfig(**{**SMALL, "lr": 1e4, "steps": 200})
    with pytest.raises(RunError, match=r"diverged at step \d+: squared error .*; no checkpoint was written before"):
        train(config, tmp_path / "run")
    fine = TrainConfig(**{**SMALL, "steps": 40})

    class Broken(BaseException):
        pass

    def stop(line):
        if line["step"] == 20:
            raise Broken

    with pytest.raises(Broken):
        train(fine, tmp_path / "late", TrainOptions(checkpoint=10), stop)
    from safetensors.torch import load_file, save_file

    path = tmp_path / "late" / "checkpoint" / "00000010" / "engine" / "state.safetensors"
    state = load_file(str(path))
    state["master"][0, 0] = float("nan")
    save_file(state, str(path))
    sign_again(path.parents[1])
    said = r"diverged at step 10: squared error nan.*the last good checkpoint is .*00000010, of step 10"
    with pytest.raises(RunError, match=said):
        train(fine, tmp_path / "late", TrainOptions(resume=True))


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"classes": ("cubic",)}, "function class 'cubic'"),
        ({"classes": ("sparse-linear:4",)}, "nonzeros 4: give 1 to 3, since x has 3 dimensions"),
        ({"classes": ("sparse-linear:x",)}, "value 'x' is no number"),
        ({"classes": ("dense-linear:3",)}, "'3' names no setting"),
        ({"classes": ("sparse-linear:1,2",)}, "is given twice"),
        ({"classes": ("dense-linear", "sparse-linear:1"), "mixture": (0.5, 0.6)}, "sum to 1.1, not to one"),
        ({"classes": ("dense-linear",), "mixture": (0.5, 0.5)}, "1 classes and 2 weights"),
        ({"points": 7}, "points 7: such a prompt has 13 positions and the model 12"),
        ({"heads": 5}, "heads 5: give a divisor of hidden, 32"),
        ({"points_start": 7}, "points_start 7: give 0 to 6, the points of a prompt"),
        ({"dims_start": 4}, "dims_start 4: give 0 to 3, the dimensions of x"),
        ({"schedule": "square"}, "schedule 'square': give one of constant, triangle, cosine"),
        ({"warmup": 61}, "warmup 61: give 0 to 60, the steps of the run"),
        ({"inputs": "gauss"}, "inputs 'gauss'"),
        ({"lr": 0.0}, "lr 0.0: give a number above 0"),
    ],
)
def test_what_does_not_fit_is_named(changes, message):
    with pytest.raises(IclError, match=message.replace("(", r"\(")):
        TrainConfig(**{**SMALL, **changes})


def test_what_does_not_fit_is_named_elsewhere(tmp_path):
    with pytest.raises(IclError, match="preset 'garg': give one of demo, garg-tiny"):
        from_preset("garg")
    with pytest.raises(IclError, match="inputs 'orthogonal': they ask at points of their own"):
        Trainer(TrainConfig(**SMALL, inputs="orthogonal"))
    regressor = Regressor(GEOMETRY, device="cpu")
    with pytest.raises(IclError, match=r"predict: xs has shape \(2, 4, 2\)"):
        regressor.predict(torch.zeros(2, 4, 2), torch.zeros(2, 4))
    with pytest.raises(IclError, match="points 9: such a prompt has 17 positions and the model 15"):
        regressor.predict(torch.zeros(2, 9, 3), torch.zeros(2, 9))


def test_the_command_line(tmp_path, capsys):

    out = str(tmp_path / "run")
    options = (
        "--classes dense-linear sparse-linear:1 --mixture 0.25,0.75 --steps 20 --log 10 --points 4 --layers 1 --hidden 32 --device cpu"
    )
    assert call("icl", "train", "demo", *options.split(), "--out", out) == 0
    said = capsys.readouterr().out
    assert "sparse-linear:1: squared error after k examples" in said and "step 20/20" in said
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["mixture"] == [0.25, 0.75] and config["preset"] == "demo" and config["points"] == 4
    assert (
        call("icl", "train", "demo", "--mixture", "0.5,0.6", "--classes", "dense-linear", "sinusoid", "--out", out) == 2
        and "sum to 1.1" in capsys.readouterr().err
    )
    for minutes in ("nan", "-1"):
        assert call("icl", "train", "demo", "--minutes", minutes, "--out", f"{out}-no") == 2
        assert f"minutes {minutes}: give a number of at least 0" in capsys.readouterr().err and not Path(f"{out}-no").exists()


def test_the_gpus_kernels_train_alike():
    """In Triton's interpreter: the same prompts, losses and weights after a few steps as on the reference path in float64."""
    pytest.importorskip("triton")
    sizes = {**SMALL, "points": 3, "layers": 1, "batch": 2, "dims_start": 1, "dims_every": 2, "log": 4, "steps": 4}
    kinds = {"reference": "fp64", "triton": "fp32"}
    trainers = [Trainer(TrainConfig(**sizes, dtype=dtype, backend=backend)) for backend, dtype in kinds.items()]
    for trainer in trainers:
        trainer.begin_interval(0)
        for step in range(4):
            trainer.step(step)
    truth, ours = (t.errors.double() for t in trainers)
    assert torch.isfinite(ours).all() and float(truth.min()) > 0
    assert ((ours - truth).abs() <= 1e-5 * (1 + truth.abs())).all()
    before = initial_weights(trainers[0].config.geometry(), 0).tensors
    after, expected = (t.regressor.weights() for t in reversed(trainers))
    for name in (name for name in before if name.endswith("weight")):  # the keys' bias has no gradient: Adam moves it by noise
        moved = (expected[name] - before[name].double()).norm()
        assert (after[name].double() - expected[name]).norm() <= 0.01 * moved, name
