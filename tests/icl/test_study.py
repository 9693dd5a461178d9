"""Evaluations of models: which baselines apply, results on the same prompts, predictions along a line, figures."""

import json

import pytest
import torch
from command_line import call
from helpers import seeded

from dynadapt.experiments.icl import (
    ConvexCombination,
    DecisionTree,
    DenseLinear,
    FourierSeries,
    IclError,
    Mixture,
    NoisyLinear,
    Quadratic,
    ReluNetwork,
    Sinusoid,
    SparseLinear,
    averaging,
    curves,
    draw,
    lasso,
    least_squares,
    make_inputs,
)
from dynadapt.experiments.icl.applicable_baselines import TITLES, baselines_for
from dynadapt.experiments.icl.eval_command import class_of, evaluate, table_of
from dynadapt.experiments.icl.figures import draw_figures
from dynadapt.experiments.icl.study import Settings, Study, Subject, cosine
from dynadapt.runs.rundir import RunError, write_json

ALWAYS = {"zero", "nearest_neighbours", "least_squares"}
SMALL = Settings(prompts=40, draws=50)
WAVES = Sinusoid(1, amplitude=(0.5, 2.0), frequency=(2.0, 2.0))


def subject(answer=least_squares, name="fake", kind=DenseLinear(4), points=9, **more):
    return Subject(name, answer, kind.dims, points, kind, **more)


@pytest.mark.parametrize(
    "kind, more",
    [
        (DenseLinear(4), {"averaging"}),
        (SparseLinear(4, nonzeros=2), {"averaging", "lasso", "sparse_bayes"}),
        (SparseLinear(4, nonzeros=2, scale=2.0), {"averaging", "lasso"}),
        (NoisyLinear(4, noise=0.5), {"averaging", "ridge"}),
        (NoisyLinear(4, noise=0.5, pool=3), {"averaging", "ridge", "discrete_posterior"}),
        (NoisyLinear(4, noise=0.0), {"averaging"}),
        (ReluNetwork(4), {"network_gradient_descent"}),
        (DecisionTree(4), set()),
        (Quadratic(4), {"basis_least_squares"}),
        (WAVES, {"basis_least_squares"}),
        (Sinusoid(1, frequency=(1.0, 2.0)), set()),
        (FourierSeries(1), {"basis_least_squares"}),
        (ConvexCombination(DenseLinear(1), WAVES), {"basis_least_squares"}),
        (ConvexCombination(DenseLinear(4), DecisionTree(4)), set()),
        (Mixture([DenseLinear(4), SparseLinear(4)]), {"mixture_bayes"}),
        (Mixture([DenseLinear(4), DecisionTree(4)]), set()),
    ],
    ids=lambda value: value.name if hasattr(value, "name") else "",
)
def test_baselines_that_apply(kind, more):
    assert set(baselines_for(kind)) == ALWAYS | more


@pytest.mark.parametrize(
    "kind, best, from_k",
    [
        (Quadratic(3), "basis_least_squares", 4),
        (WAVES, "basis_least_squares", 3),
        (ConvexCombination(DenseLinear(1), WAVES), "basis_least_squares", 4),
        (SparseLinear(8, nonzeros=1), "sparse_bayes", 2),
        (NoisyLinear(3, noise=0.5, pool=5, scale=2.0, renormalise=True), "discrete_posterior", 2),
    ],
    ids=["quadratic", "sinusoid", "combination", "sparse", "pool"],
)
def test_the_informed_baseline_is_the_best(kind, best, from_k):
    found = curves(baselines_for(kind), kind, 12, seeded(), prompts=150, dtype=torch.float64)
    assert best in found
    for name, curve in found.items():
        assert sum(found[best].mean[from_k:]) <= sum(curve.mean[from_k:]) * 1.001, name
    if best == "basis_least_squares":
        assert max(found[best].mean[from_k:]) < 1e-3 < found["least_squares"].mean[from_k]


def test_the_prior_of_the_mixture_is_used_on_its_classes():
    mixture = Mixture([DenseLinear(4), SparseLinear(4, nonzeros=1)], [0.3, 0.7])
    p = draw(DenseLinear(4), 5, 6, seeded())
    on_a_part, on_the_whole = (baselines_for(kind, mixture)["mixture_bayes"] for kind in (DenseLinear(4), mixture))
    assert torch.equal(on_a_part(p.x, p.y), on_the_whole(p.x, p.y))
    assert "mixture_bayes" not in baselines_for(DenseLinear(4))


def test_a_model_that_does_least_squares_is_least_squares():
    found = Study([subject()], SMALL).classes()["linear"]
    assert found["curves"]["fake"] == found["curves"]["least_squares"]
    assert found["excess"]["fake"]["least_squares"]["mean"] == [0.0] * 9
    other = found["excess"]["fake"]["averaging"]
    for k in range(9):
        assert other["mean"][k] == pytest.approx(found["curves"]["fake"]["mean"][k] - found["curves"]["averaging"]["mean"][k])
    assert found["curves"]["zero"]["overall"]["mean"] == pytest.approx(sum(found["curves"]["zero"]["mean"]) / 9)
    assert json.loads(json.dumps(found)) == found == Study([subject()], SMALL).classes()["linear"]


def test_subjects_see_the_same_prompts_whoever_is_there():
    alone = Study([subject()], SMALL).classes()["linear"]["curves"]
    both = Study([subject(averaging, "other"), subject()], SMALL).classes()["linear"]
    assert both["curves"]["fake"] == alone["fake"] and both["curves"]["other"] == both["curves"]["averaging"]
    assert both["excess"]["fake"]["other"]["mean"][3] == pytest.approx(-both["excess"]["other"]["fake"]["mean"][3])


def test_paired_bands_are_narrower_than_the_curves():
    noisy = subject(lambda x, y: least_squares(x, y) + 0.1)
    found = Study([noisy], Settings(prompts=100, draws=200)).classes()["linear"]
    width = lambda curve: curve["high"][2] - curve["low"][2]  # noqa: E731
    assert 0 < width(found["excess"]["fake"]["least_squares"]) < 0.5 * width(found["curves"]["fake"])
    assert found["excess"]["fake"]["least_squares"]["mean"][8] == pytest.approx(0.01 / 4, rel=0.05)


def test_queries_of_their_own_reach_the_model():
    found = Study([subject()], SMALL).out_of_distribution(["random_quadrants", "orthogonal", "scale_y=3"])
    for entry in found.values():
        assert entry["curves"]["fake"]["mean"] == pytest.approx(entry["curves"]["least_squares"]["mean"], rel=1e-4, abs=1e-6)
    assert found["orthogonal"]["points"] == 4 and found["scale_y=3"]["curves"]["zero"]["overall"]["mean"] > 5
    assert "half_subspace" not in Study([subject(kind=DenseLinear(1))], SMALL).out_of_distribution()


def test_along_a_line():
    study = Study([subject(averaging, kind=DenseLinear(1), inputs=make_inputs("uniform", low=-2.0, high=2.0))], SMALL)
    line = study.line(ConvexCombination(DenseLinear(1), WAVES))
    assert len(line["shown_y"]) == line["examples"] == 8 and len(line["truth"]) == len(line["x"]) == 121
    assert line["predictions"]["basis_least_squares"] == pytest.approx(line["truth"], abs=1e-3)
    slope = sum(x * y for x, y in zip(line["shown_x"], line["shown_y"])) / 8
    assert line["predictions"]["fake"] == pytest.approx([slope * x for x in line["x"]], abs=1e-4)


def test_gradient_of_least_squares_is_the_projection():
    found = Study([subject()], SMALL).gradient(prompts=12)["cosine"]["fake"]
    assert found["projection"][1:] == pytest.approx([1.0] * 8, abs=1e-3)
    assert found["w"][0] == 0.0 and found["w"][1] < 0.9 and found["w"][4:] == pytest.approx([1.0] * 5, abs=1e-3)
    assert cosine(torch.zeros(3), torch.ones(3)) == 0


def everything():
    mixture = Mixture([DenseLinear(4), SparseLinear(4, nonzeros=1)])
    training = {"step": [0, 10, 20], "loss": [4.0, 2.0, 1.0]}
    both = [subject(name="dense"), subject(lasso, "both", mixture, about={"training": training})]
    pair = (DenseLinear(4), class_of("sinusoid:frequency=[2;2]", 4))
    return evaluate(both, SMALL, ood=["skewed", "scale_x=2"], nonzeros=[], pairs=[pair], weights=(0.0, 0.5), gradient=True)


def test_figures_come_from_the_results_alone(tmp_path):
    results = everything()
    assert set(results["classes"]) == {"linear", "sparse_linear:1"} and list(results["nonzeros"]) == ["1", "2", "3", "4"]
    assert results["nonzeros"]["1"]["curves"] == results["classes"]["sparse_linear:1"]["curves"]
    write_json(tmp_path / "eval.json", results)
    drawn = draw_figures([tmp_path / "eval.json"], tmp_path / "figures")
    names = {"class-linear", "class-sparse_linear-1", "classes", "ood", "selection", "combination-linear-sinusoid", "gradient", "training"}
    assert {path.stem for path in drawn} == names and all(path.stat().st_size > 10_000 for path in drawn)
    one = {**results, "classes": {"linear": results["classes"]["linear"]}, "subjects": {"dense": {}, "both": {}}}
    few = {key: value for key, value in one.items() if key not in ("ood", "nonzeros", "combinations", "gradient")}
    for name in ("few.json", "more.json"):
        write_json(tmp_path / name, few)
    two = draw_figures([tmp_path / "few.json", tmp_path / "more.json"], tmp_path / "two")
    assert [path.relative_to(tmp_path / "two").as_posix() for path in two] == ["few/class-linear.png", "more/class-linear.png"]
    table = table_of(results["classes"], ["dense", "both"])
    assert table.row_count == 2 + sum(len(entry["curves"]) for entry in results["classes"].values())
    (tmp_path / "else.json").write_text("{}")
    with pytest.raises(RunError, match="not the results of dynadapt icl eval"):
        draw_figures([tmp_path / "else.json"], tmp_path)


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: Study([]), "subjects: none"),
        (lambda: Study([subject(), subject(name="b", kind=DenseLinear(3))]), "b has 3 dimensions and fake 4"),
        (lambda: Study([subject(), subject()]), "two runs are called 'fake'"),
        (lambda: Study([subject()], Settings(points=10)), "points 10: give 2 to 9, the prompt of the model"),
        (lambda: Study([subject()], Settings(prompts=1)), "prompts 1"),
        (lambda: Study([subject(name="zero")], SMALL).classes(), "a run is called 'zero', as a baseline is"),
        (lambda: Study([subject()], SMALL).out_of_distribution(["scale_z"]), "test 'scale_z': give one of random_quadrants"),
        (lambda: Study([subject(kind=DenseLinear(1))], SMALL).out_of_distribution(["half_subspace"]), "half_subspace: dims 1"),
        (lambda: Study([subject()], SMALL).by_nonzeros([5]), "nonzeros 5: give 1 to 4"),
        (lambda: Study([subject()], SMALL).line(DenseLinear(4), examples=9), "examples 9: give 1 to 8"),
        (lambda: evaluate([subject()], Settings(baselines=("ols",))), "baseline 'ols': give any of zero"),
        (lambda: class_of("sparse-linear:9", 4), "nonzeros 9"),
        (lambda: class_of("tree", 4), "function class 'tree'"),
    ],
)
def test_refusals(build, message):
    with pytest.raises(IclError, match=message):
        build()


def test_command_line(tmp_path, capsys):
    """Two trained runs of three steps, evaluated together and drawn."""
    from dynadapt.experiments.icl.config import TrainConfig
    from dynadapt.experiments.icl.train import train

    small = dict(dims=3, points=4, layers=1, hidden=16, heads=2, positions=7, batch=4, steps=3, log=3, lr=1e-3, device="cpu")
    for name, classes in (("dense", ("dense-linear",)), ("both", ("dense-linear", "sparse-linear:1"))):
        train(TrainConfig(classes=classes, **small), tmp_path / name)

    def run(*arguments):
        code, said = call("icl", *arguments), capsys.readouterr()
        return code, said.out + said.err

    runs = ("eval", tmp_path / "dense", tmp_path / "both", "--prompts", 6)
    code, said = run(*runs, "--ood", "skewed", "--combine", "dense-linear", "decision-tree:2")
    assert code == 0 and "Bayes, prior of the mixture" in said and "skewed" in said, said
    results = json.loads((tmp_path / "eval.json").read_text())
    assert set(results["subjects"]) == {"dense", "both"} and results["subjects"]["both"]["training"]["step"] == [3]
    assert results["settings"]["prompts"] == 6
    assert [entry["weight"] for entry in results["combinations"][0]["weights"]] == [0, 0.25, 0.5, 0.75, 1]
    code, said = run(*runs, "--out", tmp_path / "again.json", "--baselines", "zero")
    again = json.loads((tmp_path / "again.json").read_text())["classes"]["linear"]["curves"]
    assert code == 0 and set(again) == {"dense", "both", "zero"}
    assert again["both"] == results["classes"]["linear"]["curves"]["both"]
    code, said = run("figures", tmp_path / "again.json", "--out", tmp_path / "figures")
    assert code == 0 and "figures/class-linear.png" in said
    for arguments, message in (
        ((tmp_path / "dense", "--nonzeros", 4), "--nonzeros 4: give whole numbers from 1 to 3"),
        ((tmp_path / "dense", "--points", 5), "points 5: give 2 to 4"),
        ((tmp_path / "dense", "--points", 0), "points 0: give 2 to 4"),
        ((tmp_path / "no",), "no such file"),
        ((tmp_path / "dense", "--ood", "all", "skewed"), "--ood all skewed: give all, or names"),
        ((tmp_path / "dense", "--on", "sparse-linear:7"), "nonzeros 7"),
        ((tmp_path / "dense", "--out", tmp_path), "is a directory; --out names a file"),
    ):
        code, said = run("eval", *arguments)
        assert code == 2 and message in said, said


def test_every_baseline_has_a_title():
    mixture = Mixture([DenseLinear(4), SparseLinear(4)])
    kinds = [*mixture.classes, mixture, NoisyLinear(4, pool=3), ReluNetwork(4), Quadratic(4)]
    assert {name for kind in kinds for name in baselines_for(kind)} == set(TITLES)
