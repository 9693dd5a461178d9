"""Pictures of runs of every kind: nothing covers anything else, nothing leaves the picture, and nothing is joined that is not comparable."""

import itertools
import json
import random
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from command_line import call
from made_up_runs import diagnosis, eval_run, icl_run, reweight_run
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dynadapt.experiments.plot import plot_cost, plot_runs
from dynadapt.experiments.reweight.paired import compare_runs, draw_pairs
from dynadapt.runs.drawing import _round_between, drawable, fitted, shortened, text_width, told_apart
from dynadapt.runs.labels import MOST, looks_of
from dynadapt.runs.metrics import read_run
from dynadapt.runs.rundir import RunError, RunNote


@pytest.fixture
def figures(monkeypatch) -> list[Figure]:
    """The figures that are saved while a test runs, coarsely, which is faster."""
    kept, save = [], Figure.savefig

    def saving(figure, *arguments, **options):
        kept.append(figure)
        return save(figure, *arguments, **{**options, "dpi": 30})

    monkeypatch.setattr(Figure, "savefig", saving)
    return kept


def faults(figure: Figure) -> list[str]:
    """Texts of a figure that cover one another, or leave it; lines and markers under a legend."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    texts = [text for text in figure.findobj(matplotlib.text.Text) if text.get_visible() and text.get_text().strip()]
    drawn = set()
    for axis in figure.axes:
        for side in (axis.xaxis, axis.yaxis):
            low, high = sorted(side.get_view_interval())
            ticks = (*side.get_major_ticks(), *side.get_minor_ticks())
            drawn |= {
                label
                for tick in ticks
                for label in (tick.label1, tick.label2)
                if not low <= tick.get_loc() <= high or not label.get_visible()
            }
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in texts if text not in drawn]
    found = [
        f"{name!r} leaves the picture"
        for name, box in boxes
        if box.x0 < -1 or box.y0 < -1 or box.x1 > figure.bbox.x1 + 1 or box.y1 > figure.bbox.y1 + 1
    ]
    for (one, first), (other, second) in itertools.combinations(boxes, 2):
        if first.x0 + 1 < second.x1 and second.x0 + 1 < first.x1 and first.y0 + 1 < second.y1 and second.y0 + 1 < first.y1:
            found.append(f"{one!r} covers {other!r}")
    for legend in figure.legends:
        frame = legend.get_window_extent(renderer)
        found += ["the legend covers an axis" for axis in figure.axes if frame.overlaps(axis.get_window_extent(renderer))]
    return found


def name_of(chosen: random.Random) -> str:
    return chosen.choice(
        [
            "x",
            "lr=0.001,memory=512",
            "$alpha_1$ ^{",
            "_hidden",
            "名前 \U0001f642",
            "run " * 30,
            "a-name-without-spaces-" * 8,
            "tab\tnew\nline",
        ]
    )


@pytest.mark.parametrize("seed", [*range(8), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(8, 80))])
def test_pictures_of_any_runs_are_clean(seed, tmp_path, figures):
    """One to thirty runs, of one text or several, long names, costs of any size, losses that are equal, missing or not finite."""
    chosen = random.Random(seed)
    count, paths = (1, 2, 5, 30)[seed % 4], []
    scale, spread = chosen.choice([1e-3, 1.0, 1e9]), chosen.choice([0, 1e-9, 0.1, 3.0])
    for i in range(count):
        adapt = chosen.choice(["none", "lora", "full"])
        path = eval_run(
            tmp_path / f"{i}{name_of(chosen)}",
            segments=chosen.choice([1, 2, 9]),
            nll=3 + spread * chosen.random(),
            adapt=adapt,
            cost=chosen.choice([0.0, scale, scale * (1 + chosen.random()), 100 * scale]),
            finished=chosen.random() < 0.8,
            memory=chosen.choice([0, 512]),
            lr=chosen.choice([None, 1e-3]),
            text=(name_of(chosen) + chosen.choice("ab"),) if seed % 2 else ("a.txt",),
        )
        if chosen.random() < 0.15 and (path / "summary.json").exists():
            (path / "summary.json").write_text(json.dumps({**json.loads((path / "summary.json").read_text()), "nll": float("nan")}))
        paths.append(str(path))
    plot_runs(paths, str(tmp_path / "p.png"))
    finished = [run for run in map(read_run, paths) if run.summary and run.summary["nll"] == run.summary["nll"]]
    if finished:
        plot_cost(finished, tmp_path / "cost.png", {})
    assert len(figures) == 1 + bool(finished)
    for figure in figures:
        assert not faults(figure)


@pytest.mark.parametrize("seed", range(4))
def test_pictures_of_reweighting_runs_are_clean(seed, tmp_path, figures):
    chosen = random.Random(seed)
    domains = tuple(f"{i}{chosen.choice(['code', 'a domain with a long name ' * 3, '$x$', 'é'])}" for i in range((1, 3, 12, 25)[seed]))
    runs = [
        reweight_run(tmp_path / f"r{i}", domains, shift=0.1 * i, mixer=mixer, seed=seed_, steps=(2, 6)[seed % 2])
        for i, mixer in enumerate(("stratified", "odm", "proportional"))
        for seed_ in (0, 1)
        if seed % 2 or not seed_
        for i in [2 * i + seed_]
    ]
    plot_runs([str(run) for run in runs])
    draw_pairs(compare_runs(runs), tmp_path / "pairs.png")
    assert len(figures) == len(runs) + 1
    for figure in figures:
        assert not faults(figure)


def test_each_kind_has_its_picture_and_the_rest_is_said(tmp_path, figures, capsys):
    root = tmp_path / "runs"
    for make, name in ((eval_run, "a"), (eval_run, "b"), (reweight_run, "even"), (icl_run, "icl"), (diagnosis, "diagnosis")):
        make(root / name)
    eval_run(root / "failed", segments=0, finished=False)
    diagnosis(root / "begun", finished=False)
    (root / "model").mkdir()
    (root / "model" / "config.json").write_text('{"model_type": "llama"}')
    (root / "notes.txt").touch()
    (eval_run(root / "broken") / "metrics.jsonl").write_text("{]\n")
    assert call("plot", *sorted(root.iterdir())) == 0
    captured = capsys.readouterr()
    drawn = [Path(line).relative_to(root) for line in captured.out.splitlines()]
    assert {str(path) for path in drawn} == {
        "plot.png",
        "even/weights.png",
        "icl/figures/training.png",
        "icl/figures/errors.png",
        *(f"diagnosis/figures/{name}.png" for name in ("classes", "types", "concentration", "documents", "places")),
    }
    assert all((root / path).stat().st_size > 1000 for path in drawn)
    for reason in (
        "failed: nothing scored yet",
        "begun is not finished",
        "model is no run (its config.json is another's)",
        "notes.txt is a file",
        "broken is damaged (",
    ):
        assert reason in captured.err
    assert captured.err.count("left out") == 5
    for figure in figures:
        assert not faults(figure)
    with pytest.warns(RunNote):
        beside = plot_runs([str(path) for path in root.iterdir() if path.is_dir()], str(tmp_path / "all.svg"))
    assert len(beside) == len(set(beside)) == len(drawn) and all(path.parent == tmp_path and path.suffix == ".svg" for path in beside)
    assert tmp_path / "all-even.svg" in beside
    with pytest.raises(RunError, match="nothing scored yet"):
        plot_runs([str(root / "failed")])


def lines_between(axis) -> list:
    """Lines that join runs: the fronts."""
    return [line for line in axis.lines if len(line.get_xdata()) > 1]


@pytest.mark.parametrize(
    "changes, sha, joined",
    [
        ({}, "a" * 64, True),
        ({"text": ("b.txt",)}, "b" * 64, False),
        ({"text": ("b.txt",)}, "a" * 64, True),
        ({"tokens": 32}, "a" * 64, False),
        ({}, "b" * 64, False),
        ({}, None, False),
    ],
)
def test_only_runs_of_the_same_tokens_are_joined(changes, sha, joined, tmp_path, figures):
    """A text of another name with the same contents is the same; the same name with others is another."""
    paths = [
        eval_run(tmp_path / "static", adapt="none"),
        eval_run(tmp_path / "lora", nll=2.5, cost=6e8),
        eval_run(tmp_path / "other", nll=2.4, cost=7e8, sha=sha, **changes),
    ]
    plot_runs([str(path) for path in paths])
    computation, _, stream = figures[0].axes
    assert bool(lines_between(computation)) == joined and ("not of the same tokens" in computation.get_ylabel()) != joined
    assert stream.get_title(loc="left") == ("Over the stream, less static" if joined else "Over the stream")
    assert (stream.lines[0].get_ydata() == 0).all() == joined


def test_another_model_is_not_joined(tmp_path, figures):
    paths = [eval_run(tmp_path / name, cost=cost) for name, cost in (("a", 1e8), ("b", 2e8))]
    (paths[1] / "inputs.json").write_text(json.dumps({"the model": "another"}))
    plot_runs([str(path) for path in paths])
    assert not lines_between(figures[0].axes[0])


def test_each_text_may_have_a_static_run_of_its_own(tmp_path, figures):
    paths = [
        eval_run(tmp_path / f"{adapt}-{text}", adapt=adapt, text=(text,), sha=text * 64, nll=3.0 - (adapt == "lora"))
        for text in "ab"
        for adapt in ("none", "lora")
    ]
    plot_runs([str(path) for path in paths])
    stream = figures[0].axes[2]
    assert "less static" in stream.get_title(loc="left") and [float(line.get_ydata()[-1]) for line in stream.lines] == pytest.approx(
        [0, -1, 0, -1]
    )


def test_looks_tell_any_number_of_runs_apart(tmp_path):
    run = read_run(eval_run(tmp_path / "x"))
    for count in (1, 2, 11, 40, MOST):
        looks = looks_of([run] * count)
        assert len({(look["color"], look["marker"]) for look in looks}) == count
    with pytest.raises(RunError, match=f"{MOST + 1} runs: a picture can tell at most {MOST} apart"):
        from dynadapt.experiments.plot import plot_evaluations

        plot_evaluations([run] * (MOST + 1), tmp_path / "p.png")


def test_ticks_are_round_and_few():
    chosen = random.Random(0)
    for _ in range(300):
        low = 10 ** chosen.uniform(-6, 12)
        ticks = _round_between(low, low * 10 ** chosen.choice([0.06, 0.1, 0.5, 2, 9]))
        assert 2 <= len(ticks) <= 5 and ticks == sorted(set(ticks)) and all(tick >= low for tick in ticks)
        assert all(float(f"{tick:.4g}") == tick for tick in ticks)


def test_labels_fit_and_stay_apart():
    assert shortened("abcdefghij", 7) == "abcd\u2026ij" and shortened("abc", 7) == "abc"
    assert drawable("a\tb\n\x07\U0001f642") == "a b U+0007U+1F642"
    long = "a name that is much too long for its place " * 5
    assert text_width(fitted(long, 2.0)) <= 2.0 and fitted("short", 2.0) == "short"
    assert told_apart(["a", "b", "a"]) == ["a (1)", "b", "a (2)"]


# ---- reweight compare


def test_differences_are_paired_over_seeds_where_there_are_some(tmp_path):
    """Levels of seeds are half a nat apart; the difference of 0.05 is found all the same."""
    runs = [
        reweight_run(tmp_path / f"{mixer}-{seed}", mixer=mixer, shift=shift, seed=seed, noise=0.005)
        for mixer, shift in (("stratified", 0.0), ("odm", -0.05))
        for seed in range(4)
    ]
    (pair,) = compare_runs(runs)["pairs"]
    assert (pair["kind"], pair["n"], pair["seeds"], pair["says"]) == ("seeds", 4, [0, 1, 2, 3], "better")
    assert pair["mean"]["interval"][0] < -0.05 < pair["mean"]["interval"][1] < 0 and pair["tokens"] == [384] * 4
    by_hand = [read_run(runs[4 + seed]).summary["heldout"]["code"] - read_run(runs[seed]).summary["heldout"]["code"] for seed in range(4)]
    assert pair["domains"]["code"]["difference"] == pytest.approx(np.mean(by_hand))


def test_with_one_seed_rows_are_paired_and_it_is_said(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one, other = reweight_run(tmp_path / "even", rows=8), reweight_run(tmp_path / "odm", mixer="odm", shift=0.1, rows=8)
    (pair,) = compare_runs([one, other])["pairs"]
    assert (pair["kind"], pair["n"], pair["says"]) == ("rows", 16, "worse") and pair["mean"]["interval"][0] > 0.05
    assert call("reweight", "compare", "even", "odm", "--json", "c.json") == 0
    output = capsys.readouterr().out
    assert "worse" in output and "over 16 held-out rows of seed 0; other seeds may differ" in output
    assert (
        output.splitlines()[-2:] == ["reweighting.png", "c.json"] and json.loads((tmp_path / "c.json").read_text())["base"] == "stratified"
    )
    old = [reweight_run(tmp_path / f"old-{mixer}", mixer=mixer, keeps_rows=False) for mixer in ("stratified", "odm")]
    (pair,) = compare_runs(old)["pairs"]
    assert (pair["kind"], pair["says"], pair["mean"]["interval"]) == ("none", "undecided", None)


def test_rows_intervals_hold_the_truth(tmp_path):
    """Two runs that differ by 0.02 and noise: the interval of the mean holds 0.02 about 95 times in 100."""
    inside = 0
    for i in range(60):
        both = []
        for mixer, shift in (("stratified", 0.0), ("odm", 0.02)):
            path = reweight_run(tmp_path / f"{i}-{mixer}", ("a", "b"), mixer=mixer, rows=6, steps=2)
            lines, own = (
                [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()],
                np.random.default_rng([i, len(mixer)]),
            )
            for name in ("a", "b"):
                lines[-1]["heldout_rows"][name] = [3.0 + shift + x for x in own.normal(0, 0.03, 6)]
                lines[-1]["heldout"][name] = float(np.mean(lines[-1]["heldout_rows"][name]))
            (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            both.append(path)
        low, high = compare_runs(both)["pairs"][0]["mean"]["interval"]
        inside += low <= 0.02 <= high
    assert 51 <= inside <= 60


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda path: reweight_run(path, ("code", "other")), "has the domains code, other"),
        (lambda path: reweight_run(path, corpus="y"), "another version of text of domain 'code'"),
        (lambda path: reweight_run(path, segment=64), "has segment 64"),
        (lambda path: reweight_run(path, mixer="odm", seed=1), "other seeds hold out other rows"),
        (lambda path: reweight_run(path, seed=1), "differ in their seeds alone"),
        (lambda path: reweight_run(path, steps=1), "no held-out losses after its start"),
        (lambda path: eval_run(path), "runs of eval have dynadapt compare"),
        (lambda path: icl_run(path), "is a run of dynadapt icl"),
    ],
)
def test_runs_that_can_not_be_compared_are_refused_by_name(make, message, tmp_path):
    first, other = reweight_run(tmp_path / "first"), make(tmp_path / "other")
    with pytest.raises(RunError, match=message) as said:
        compare_runs([first, other])
    assert "other" in str(said.value)
    with pytest.raises(RunError, match="at least two"):
        compare_runs([first])


def test_runs_of_other_lengths_are_compared_where_both_were_evaluated(tmp_path):
    found = compare_runs([reweight_run(tmp_path / "short", steps=4), reweight_run(tmp_path / "long", steps=8, mixer="odm")])
    assert found["pairs"][0]["tokens"] == [256] and "long went on to 512 tokens" in found["notes"][0]
