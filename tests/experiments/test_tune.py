"""`dynadapt tune`: the plan, the windows, the statistics, and the whole of it on a tiny model."""

import io
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest
from command_line import call
from tiny import english, eval_config, tiny_directory

import dynadapt
from dynadapt.cli import command_parser
from dynadapt.experiments import config as settings
from dynadapt.experiments.config import ConfigError, EvalConfig
from dynadapt.experiments.dyneval import run
from dynadapt.experiments.tune import Recommendation, tune
from dynadapt.experiments.tune import plan as planning
from dynadapt.experiments.tune.driver import fitting_memories
from dynadapt.experiments.tune.estimate import estimate, late_mean
from dynadapt.experiments.tune.measure import Bench
from dynadapt.experiments.tune.plan import Candidate, Cost, grids, least_seconds, least_segments, make_plan, schedule
from dynadapt.experiments.tune.report import print_recommendation
from dynadapt.experiments.tune.windows import draw, read_text, spread, write_rest
from dynadapt.model import random_model, tiny_config
from dynadapt.runs.rundir import RunError
from dynadapt.runs.text import TextError, streaming_tokenizer

KINDS = ("none", "lora", "rows", "full")


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tiny_directory(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def model(directory):
    return dynadapt.load(str(directory))


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Three documents of unequal length, and their paths."""
    folder = tmp_path_factory.mktemp("texts")
    for name, words in (("a", 3000), ("b", 40), ("c", 1500)):
        (folder / f"{name}.txt").write_text(english(words, seed=words).replace(". ", ".\n"))
    return tuple(str(folder / f"{name}.txt") for name in "abc")


config_for = partial(eval_config, backend="cpu", lr=None)


def costs_of(candidates, generator) -> dict:
    return {each: Cost(*generator.uniform(0.001, 0.5, 2)) for each in candidates}


# ------------------------------------------------------------------------------------------------------------------- plan


def test_the_grid_is_what_learns_times_memory_times_rates():
    whole, left_out = grids(KINDS, (0, 512, 1536), EvalConfig())[0]
    assert not left_out and len(whole) == 3 + 3 * 3 * 3
    assert {each.lr for each in whole if each.adapt == "lora"} == {0.00067, 0.002, 0.006}
    centred = grids(KINDS, (0,), EvalConfig(adapt="lora", lr=0.03))[0][0]
    assert {each.lr for each in centred if each.adapt == "lora"} == {0.01, 0.03, 0.09}
    assert {each.lr for each in centred if each.adapt == "full"} == {3.3e-5, 1e-4, 3e-4}
    given = grids(KINDS, (0,), EvalConfig(adapt="lora", rates="0.04,0.01,0.02,0.08"))
    assert [each.lr for each in given[0][0] if each.adapt == "lora"] == [0.01, 0.02, 0.04, 0.08]
    assert {each.lr for each in given[0][0] if each.adapt == "full"} == {3.3e-5, 1e-4, 3e-4}
    assert [each.lr for each in given[1][0] if each.adapt == "lora"] == [0.04] and "other rates than the middle one" in given[1][1]


def test_rates_lie_around_what_the_models_family_wants():
    wanted, config = {"lora": 2.5e-4, "full": 1.25e-5}, EvalConfig(lr=2.5e-4)  # as it is settled on such a model
    assert planning.rates(config, "lora", wanted) == (8.3e-5, 2.5e-4, 7.5e-4)
    assert planning.rates(config, "full", wanted) == (4.2e-6, 1.25e-5, 3.8e-5)
    assert planning.rates(config, "full")[1] == 1e-4
    tried = {c.lr for c in grids(("none", "lora", "full"), (0, 512), config, wanted)[0][0] if c.adapt == "full"}
    assert tried == {4.2e-6, 1.25e-5, 3.8e-5}


@pytest.mark.parametrize("kinds", [KINDS, KINDS[:2], KINDS[:3]])
@pytest.mark.parametrize("memories", [(0, 512, 1536), (0, 512), (0,)])
def test_grids_shrink_and_say_what_they_leave_out(kinds, memories):
    found = grids(kinds, memories, EvalConfig())
    assert [bool(left_out) for _, left_out in found] == [False] + [True] * (len(found) - 1)
    for larger, smaller in zip(found, found[1:]):
        assert len(larger[0]) > len(smaller[0])
    for candidates, _ in found:
        assert {each.adapt for each in candidates} >= {"none", "lora"} and len(set(candidates)) == len(candidates)
        assert {each.memory for each in candidates if each.adapt != "none"} <= {each.memory for each in candidates if each.adapt == "none"}


def test_a_schedule_keeps_to_its_seconds_whoever_goes_on():
    generator = np.random.default_rng(0)
    for trial in range(200):
        candidates = grids(KINDS, (0, 512, 1536), EvalConfig())[trial % 5][0]
        costs, seconds, segments, most = (
            costs_of(candidates, generator),
            float(generator.uniform(1, 300)),
            int(generator.integers(2, 9)),
            int(generator.integers(2, 30)),
        )
        rounds = schedule(candidates, costs, seconds, segments, most)
        if rounds is None:
            continue
        learners, spent = [each for each in candidates if each.adapt != "none"], 0.0
        for before, after in zip(rounds, rounds[1:]):
            assert after.windows == min(most, 2 * before.windows) and after.learners < before.learners
        for each_round in rounds:  # the dearest go on
            going = sorted(learners, key=lambda each: -costs[each].of(1, segments))[: each_round.learners]
            spent += sum(costs[each].of(each_round.windows, segments) for each in going)
        spent += sum(costs[each].of(rounds[-1].windows, segments) for each in candidates if each.adapt == "none")
        assert spent <= seconds and rounds[0].learners == len(learners) and rounds[-1].learners <= 2 and rounds[0].windows >= 2
        more = schedule(candidates, costs, 2 * seconds, segments, most)
        assert more[0].windows >= rounds[0].windows


MEMORIES = (0, 512, 1536)


def test_a_plan_fits_into_its_time_and_its_text():
    generator = np.random.default_rng(1)
    found = grids(KINDS, MEMORIES, EvalConfig())
    plan_for = lambda costs, seconds, length, **changes: make_plan(KINDS, MEMORIES, EvalConfig(**changes), costs, seconds, length)  # noqa: E731
    for _ in range(200):
        costs, seconds, length = costs_of(found[0][0], generator), float(generator.uniform(0.1, 2000)), int(generator.integers(10, 3000))
        plan = plan_for(costs, seconds, length)
        if plan is None:
            assert length < 200 or seconds < 400
            continue
        assert (plan.windows + plan.judging) * plan.segments <= planning.APART * length and plan.judging >= 6
    cheap = dict.fromkeys(found[0][0], Cost(0.01, 0.01))
    assert plan_for(cheap, 1000, 100_000).left_out == ""
    sizes = [len(plan_for(cheap, seconds, 100_000).candidates) for seconds in (1000, 20, 10, 5, 2, 1)]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] == 30 and sizes[-1] < 13
    for segment in (32, 128, 512):  # windows are long enough for the memory that is tried in them
        for seconds in (1000, 20, 10, 5, 2, 1):
            plan = plan_for(cheap, seconds, 100_000, segment=segment)
            tried = {each.memory for each in plan.candidates}
            assert max(tried) <= (plan.segments - 1) * segment
            assert 1536 in tried or "memory" in plan.left_out


def test_the_least_that_is_named_would_do():
    generator = np.random.default_rng(2)
    candidates = grids(KINDS, MEMORIES, EvalConfig())[0][0]
    for _ in range(50):
        costs, config = costs_of(candidates, generator), EvalConfig(segment=int(generator.choice([16, 128, 512])))
        least = least_seconds(KINDS, MEMORIES, config, costs)
        assert make_plan(KINDS, MEMORIES, config, costs, least, 10_000) is not None
        assert make_plan(KINDS, MEMORIES, config, costs, least / 2, 10_000) is None
        assert make_plan(KINDS, MEMORIES, config, costs, 1e9, least_segments()) is not None
        assert make_plan(KINDS, MEMORIES, config, costs, 1e9, least_segments() - 2) is None


# ------------------------------------------------------------------------------------------------------------- statistics

GROWTH = {
    "none": lambda n: 1.0 + 0 * n,
    "saturating": lambda n: 1 - np.exp(-n / 20),
    "slowly": lambda n: 1 - np.exp(-n / 100),
    "logarithm": lambda n: np.log1p(n / 4) / 6,
    "power": lambda n: 1 - (1 + n / 10) ** -0.5,
}


def simulated(growth, windows: int, generator, size: int = 2000, window: int = 4, gain: float = 0.3):
    """(estimate, gain over the whole stream) of one stream of segments: growth, topics that change, noise; windows as tune draws them."""
    topics = np.repeat(generator.normal(0, 0.1, size // 40 + 1), 40)[:size] + generator.normal(0, 0.1, size)
    truth, seen, gains = (gain * growth(np.arange(size)) + topics).mean(), 0, []
    for part in generator.permutation(windows):
        start = size * part // windows + generator.integers(size // windows - window)
        learned = np.arange(seen + 1, seen + window)  # the first segment is not counted
        gains.append((gain * growth(learned) + topics[start + 1 : start + window]).mean())
        seen += window
    return estimate(gains, windows * window, size), truth


@pytest.mark.parametrize("windows", [6, 12, 24])
@pytest.mark.parametrize("name", GROWTH)
def test_the_interval_holds_the_gain_over_the_whole_stream(name, windows):
    generator = np.random.default_rng(3)
    found = [simulated(GROWTH[name], windows, generator) for _ in range(400)]
    assert np.mean([each.low <= truth <= each.high for each, truth in found]) >= 0.92
    assert np.mean([each.low <= truth for each, truth in found]) >= 0.95
    assert np.mean([each.gain - truth for each, truth in found]) < 0.01  # never promises more than there is


def test_where_learning_gains_nothing_static_is_kept():
    generator = np.random.default_rng(4)
    said = [simulated(GROWTH["none"], 12, generator, gain=0.0)[0].low > 0 for _ in range(400)]
    assert np.mean(said) < 0.05


def test_an_estimate_of_equal_windows_is_theirs_and_a_diverged_candidate_loses():
    found = estimate([0.25] * 8, 8, 1000)
    assert (found.gain, found.low, found.high) == pytest.approx((0.25, 0.25, 0.25)) and found.windows == 8
    short, long = estimate([0.0] * 4 + [1.0] * 4, 800, 1600), estimate([0.0] * 4 + [1.0] * 4, 800, 1e9)
    assert short.gain == pytest.approx(0.75) and long.gain == pytest.approx(1.0, abs=1e-6)  # of a long text little is its beginning
    assert late_mean([0.1, np.nan, 0.3], 3, 100) == -np.inf and late_mean([0.1], 1, 100) == pytest.approx(0.1)
    for wrong in ([0.1] * 3, [0.1, 0.2, 0.3, np.inf]):
        with pytest.raises(ValueError, match="at least 4 finite"):
            estimate(wrong, 4, 100)


# ---------------------------------------------------------------------------------------------------------------- windows


@pytest.mark.parametrize("count", [1, 2, 7, 24, 64])
def test_every_beginning_of_the_order_is_spread(count):
    order = spread(count)
    assert sorted(order) == list(range(count))
    for some in range(2, count + 1):
        gaps = np.diff(sorted(order[:some]))
        assert gaps.max() <= 4 * count / some


def test_windows_and_rest_are_the_text(model, texts, tmp_path):
    tokenizer = streaming_tokenizer(model.tokenizer)
    text = read_text(texts, tokenizer, tmp_path)
    assert text.exact and text.tokens == sum(len(tokenizer.encode(open(path).read()).ids) for path in texts)
    for seed in range(5):
        windows = draw(text, tokenizer, 20, 64, 16, seed)
        assert len(windows) == 20 and {piece.source for window in windows for piece in window.pieces} >= {0, 2}
        contents = [open(path, "rb").read() for path in texts]
        pieces = sorted((piece.source, piece.start, piece.stop) for window in windows for piece in window.pieces)
        for (one, _, stop), (other, start, _) in zip(pieces, pieces[1:]):
            assert one != other or stop <= start
        for window in windows:
            assert 32 < window.learned <= 64 and window.counted <= window.learned
            for piece in window.pieces:
                covered = contents[piece.source][piece.start : piece.stop].decode()
                assert tokenizer.decode(piece.ids.tolist()) == covered and piece.skip == (16 if piece.start else 0)
                assert len(piece.ids) == len(piece.sizes) + 1
        folder = tmp_path / f"rest-{seed}"
        names = write_rest(text, windows, folder)
        for name in names:
            number, left = int(name[:4]), []
            at = 0
            for _, start, stop in [each for each in pieces if each[0] == number]:
                left.append(contents[number][at:start])
                at = stop
            assert (folder / name).read_bytes() == b"".join(left) + contents[number][at:]
    assert [w.pieces[0].start for w in draw(text, tokenizer, 20, 64, 16, 0)] == [
        w.pieces[0].start for w in draw(text, tokenizer, 20, 64, 16, 0)
    ]


def test_short_documents_follow_one_another_in_a_window(model, tmp_path):
    paths = []
    for number in range(60):
        (tmp_path / f"{number}.txt").write_text(english(12, seed=number))
        paths.append(str(tmp_path / f"{number}.txt"))
    tokenizer = streaming_tokenizer(model.tokenizer)
    windows = draw(read_text(tuple(paths), tokenizer, tmp_path), tokenizer, 4, 64, 16, 0)
    for window in windows:
        assert len(window.pieces) > 1 and window.learned > 48
        assert [piece.source for piece in window.pieces] == sorted({piece.source for piece in window.pieces})


def test_a_long_text_is_estimated_from_places_in_it(model, texts, tmp_path, monkeypatch):
    from dynadapt.experiments.tune import windows

    tokenizer = streaming_tokenizer(model.tokenizer)
    exact = read_text(texts, tokenizer, tmp_path)
    monkeypatch.setattr(windows, "COUNTED", 100)
    estimated = read_text(texts, tokenizer, tmp_path)
    assert not estimated.exact and estimated.tokens == pytest.approx(exact.tokens, rel=0.05)


# ---------------------------------------------------------------------------------------------------------------- measure


@pytest.mark.parametrize("guard", [None, "exact", 2])
def test_side_by_side_scores_what_each_scores_alone(guard, directory, model, texts, tmp_path):
    tokenizer = streaming_tokenizer(model.tokenizer)
    windows = draw(read_text(texts, tokenizer, tmp_path), tokenizer, 6, 64, 16, 0)
    rates = [Candidate("lora", 32, rate) for rate in (1e-3, 1e-2, 1e6)]
    bench = Bench(model, config_for(directory, (), guard=guard))
    bench.streams = {"none": 1, "lora": 1}
    alone, static = bench.learning(rates, windows), bench.static(Candidate("none", 32), windows)
    bench.streams = {"none": 4, "lora": 3}
    wide = bench.learning(rates, windows)
    assert bench.static(Candidate("none", 32), windows).nll == static.nll
    for rate in rates[:2]:
        assert wide[rate].nll == alone[rate].nll and wide[rate].tokens == sum(window.learned for window in windows)
    assert np.mean(wide[rates[1]].nll) < np.mean(static.nll)
    assert wide[rates[2]].nll[0] != alone[rates[0]].nll[0]
    spent = [sum(each.flops for each in found.values()) for found in (wide, alone)]
    if guard == "exact":  # the prior is scored once for the three
        forward = static.flops
        assert abs(spent[1] - spent[0] - 2 * forward) <= len(rates)
    elif guard is None:
        assert abs(spent[1] - spent[0]) <= len(rates)
    if guard == "exact":  # the last diverges, and costs no more than the bound: ln 2 for each piece, and the share
        assert np.mean(wide[rates[2]].nll) < np.mean(static.nll) + 0.1
    else:
        assert not np.mean(wide[rates[2]].nll) < np.mean(static.nll) + 0.1


def test_what_is_counted_is_what_an_evaluation_scores(directory, model, texts, tmp_path):
    """One window that is a whole document: the numbers of `dynadapt eval`."""
    tokenizer = streaming_tokenizer(model.tokenizer)
    (window,) = draw(read_text(texts[1:2], tokenizer, tmp_path), tokenizer, 1, 10_000, 16, 0)
    for candidate, guard in (
        (Candidate("none", 32), "exact"),
        (Candidate("lora", 32, 1e-2), None),
        (Candidate("lora", 32, 1e-2), "exact"),
        (Candidate("full", 0, 1e-3), None),
    ):
        bench = Bench(model, config_for(directory, (), guard=guard))
        config = candidate.configure(config_for(directory, texts[1:2], guard=guard))
        assert config.guard == (guard if candidate.adapt != "none" else None)
        expected = run(config, tmp_path / f"{candidate.adapt}-{guard}", model=model)
        found = bench.static(candidate, [window]) if candidate.adapt == "none" else bench.learning([candidate], [window])[candidate]
        assert found.nll[0] == pytest.approx(expected["nll"], abs=1e-9) and window.bytes == expected["bytes"]
        assert found.flops == sum(expected["flops"].values())


def test_memory_that_a_model_has_no_positions_for_is_left_out(directory, model):
    config = config_for(directory, ())
    assert fitting_memories(model.config, config)[0] == (0,)  # 512 positions in all
    for memory, note in zip((512, 1536), fitting_memories(model.config, config)[1]):
        assert f"memory {memory:,} is left out" in note and "the model has 512" in note
    gpt2 = random_model(tiny_config("gpt2", vocab_size=300, layers=1), seed=0)
    fit, notes = fitting_memories(gpt2.config, config)
    assert fit == (0,) and "learned absolute positions" in notes[0]


# ------------------------------------------------------------------------------------------------------------- whole runs


def test_a_guard_is_on_all_that_learns(directory, model, texts, tmp_path):
    found = tune(config_for(directory, texts, guard="exact"), 2, tmp_path / "out", model=model)
    assert found.adapts and "--guard exact" in found.command and "--guard" not in found.static_command
    with pytest.raises(ConfigError, match="levels .*in tune, which compares settings of one level"):
        tune(config_for(directory, texts, levels="fast,slow"), 2, tmp_path / "never", model=model)
    with pytest.raises(ConfigError, match="rates .* with adapt 'none': say what learns"):
        tune(config_for(directory, texts, rates="1e-3,1e-2", adapt="none"), 2, tmp_path / "never", model=model)


@pytest.mark.parametrize("guard", [None, "exact"])
def test_rates_that_are_given_are_compared(guard, directory, model, texts, tmp_path):
    found = tune(config_for(directory, texts, rates="0.04,1e-3,1e-2,0.02", guard=guard), 3, tmp_path / "out", model=model)
    assert {row["lr"] for row in found.tried if row["adapt"] == "lora"} <= {1e-3, 1e-2, 0.02, 0.04}
    assert "--rates" not in found.command and found.adapts and f"--lr {found.judged.rpartition(' ')[2]}" in found.command


def test_from_a_text_to_a_command_that_keeps_its_promise(directory, texts, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    out = tmp_path / "it is tuned"
    started = time.monotonic()
    assert (
        call("tune", *texts, "--model", directory, "--segment", "16", "--dtype", "fp32", "--minutes", "2", "--out", out) == 0
        and time.monotonic() - started < 120
    )
    said = capsys.readouterr().out
    found = json.loads((out / "recommendation.json").read_text())
    assert (out / "picture.png").stat().st_size > 10_000 and sorted(os.listdir(out)) == ["picture.png", "recommendation.json", "rest"]
    low, high = found["interval"]
    assert found["adapts"] and 0 < low < found["gain_nats"] < high <= found["static_nll"] and found["minutes"] > 0
    assert found["gain_bits_per_byte"] == pytest.approx(found["gain_nats"] * found["interval_bits_per_byte"][0] / low)
    assert found["machine"]["dtype"] == "fp32" and found["machine"]["instruction_set"] and found["seconds"] < 120
    assert {row["adapt"] for row in found["tried"]} == set(KINDS) and all(
        row["seconds"] > 0 and row["flops_per_token"] > 0 for row in found["tried"]
    )
    for phrase in (
        "expected gain over static",
        "bits per byte",
        "95% interval",
        "price:",
        "set apart",
        "run, on the rest of the text:",
        "memory 512 is left out",
    ):
        assert phrase in said
    assert found["command"] in said.replace("\n", " ").replace("  ", " ") or found["command"] in said

    nll = {}
    for name in ("command", "static_command"):
        program, command, *words = shlex.split(found[name])
        assert (program, command) == ("dynadapt", "eval")
        arguments = command_parser("eval").parse_args(words)
        assert all(path.startswith(str(out / "rest")) for path in arguments.text) and arguments.dtype == "fp32"
        assert call(command, *words, "--quiet") == 0
        nll[name] = json.loads((out / os.path.basename(arguments.out) / "summary.json").read_text())
    gain = nll["static_command"]["nll"] - nll["command"]["nll"]
    assert low <= gain <= high
    assert nll["command"]["tokens"] == pytest.approx(found["text"]["rest_tokens"], rel=0.05)
    assert shlex.split(found["whole_text_command"])[shlex.split(found["whole_text_command"]).index("--text") + 1 :][:3] == list(texts)


def test_where_every_rate_diverges_the_static_command_is_recommended(directory, model, texts, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(settings, "LEARNING_RATES", settings.LEARNING_RATES)
    for kind, rates in settings.LEARNING_RATES.items():
        monkeypatch.setitem(settings.LEARNING_RATES, kind, dict.fromkeys(rates, 1e30))
    found = tune(config_for(directory, texts[2:]), 2, tmp_path / "out", model=model)
    assert isinstance(found, Recommendation) and not found.adapts
    assert found.command == found.static_command and "--adapt none" in found.command
    print_recommendation(found)
    assert "stay static: nothing that learns beats static" in " ".join(capsys.readouterr().out.split())
    assert json.loads((tmp_path / "out" / "recommendation.json").read_text())["command"] == found.command


def test_a_pipe_is_tuned_on_and_its_rest_kept(directory, texts, tmp_path, monkeypatch, capsys):
    content = open(texts[2], "rb").read()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert call("tune", "-", "--model", directory, "--segment", "16", "--minutes", "2", "--out", tmp_path / "out", "--quiet") == 0
    done = capsys.readouterr()
    found = json.loads((tmp_path / "out" / "recommendation.json").read_text())
    assert done.out.strip() == found["command"] and found["whole_text_command"] is None and not done.err
    rest = (tmp_path / "out" / "rest" / "0000-stdin.txt").read_bytes()
    assert 0.4 * len(content) < len(rest) < len(content)


@pytest.mark.parametrize(
    "changes, minutes, error, message",
    [
        ({}, 0, ConfigError, "minutes 0"),
        ({}, float("nan"), ConfigError, "minutes nan"),
        ({}, True, ConfigError, "minutes True"),
        ({"streams": 2}, 1, ConfigError, "streams 2"),
        ({"tokens": 99}, 1, ConfigError, "tokens 99"),
        ({"context": 8}, 1, ConfigError, "context 8"),
        ({"optimizer": "rms", "adapt": "full"}, 1, ConfigError, "'rms'"),
        ({"select": "contrast"}, 1, ConfigError, "select 'contrast': tune tries rows by their gradient"),
        ({"segment": 400}, 1, TextError, "needs at least 12,800"),
        ({"text": ()}, 1, TextError, "none given"),
        ({"text": ("/nowhere.txt",)}, 1, TextError, "no such file"),
        ({"text": ("-", "-")}, 1, TextError, "given twice"),
    ],
)
def test_what_can_not_be_tuned_is_refused_by_name(changes, minutes, error, message, directory, model, texts, tmp_path):
    with pytest.raises(error, match=message.replace("(", r"\(")):
        tune(config_for(directory, texts, **changes), minutes, tmp_path / "out", model=model)
    assert not (tmp_path / "out").exists()


def test_too_few_minutes_are_refused_with_what_would_do(directory, model, texts, tmp_path):
    with pytest.raises(ConfigError, match="minutes 0.001: too few .* give at least ([0-9.]+)") as refused:
        tune(config_for(directory, texts), 0.001, tmp_path / "out", model=model)
    enough = float(str(refused.value).rpartition(" ")[2])
    assert 0.001 < enough < 5 and not (tmp_path / "out").exists()
    assert tune(config_for(directory, texts), max(enough, 1), tmp_path / "out", model=model).seconds < 60 * max(enough, 1)


def test_a_directory_that_holds_something_is_left_alone(directory, model, texts, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(RunError, match="not empty"):
        tune(config_for(directory, texts), 1, tmp_path, model=model)
    (tmp_path / "recommendation.json").write_text("{}")
    with pytest.raises(RunError, match="holds a recommendation"):
        tune(config_for(directory, texts), 1, tmp_path, model=model)
    assert sorted(os.listdir(tmp_path)) == ["mine.txt", "recommendation.json"]


def test_a_stopped_tune_leaves_nothing_behind(directory, texts, tmp_path):
    words = [sys.executable, "-m", "dynadapt", "tune", *texts, "--model", str(directory), "--segment", "16", "--out", str(tmp_path / "out")]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if "choosing" in line:
            process.send_signal(signal.SIGINT)
            break
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and errors == "dynadapt: stopped\n"
    assert not os.listdir(tmp_path)


@pytest.mark.slow
@pytest.mark.model
def test_a_real_model_on_a_real_text(tmp_path):
    config = EvalConfig(text=("builtin:python-reference",), segment=128, memory=0)
    try:
        found = tune(config, 4, tmp_path / "out")
    except ConfigError as refused:  # a machine on which much else runs: what it asks for
        found = tune(config, 1.5 * float(str(refused).rpartition(" ")[2]), tmp_path / "out")
    assert found.adapts and found.gain_nats > 0.05 and found.interval[0] > 0
