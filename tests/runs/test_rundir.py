"""Run directories: nothing is written before all is checked, nothing is lost, and nothing is accepted that is not whole."""

import ast
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from run_files import Killed, contents, kill_at
from safetensors.torch import load_file, save_file
from tiny import config_of, english, reweight_settings, tiny_root
from tokenizers import Tokenizer

from dynadapt.experiments.config import EvalConfig
from dynadapt.experiments.dyneval import Interrupted, RunOptions, run
from dynadapt.experiments.reweight import ReweightConfig, ReweightOptions
from dynadapt.experiments.reweight import run as reweight
from dynadapt.runs import rundir
from dynadapt.runs.checkpoints import last_state, saved_states
from dynadapt.runs.metrics import read_run
from dynadapt.runs.rundir import RunDirectory, RunError, RunNote, read_json
from dynadapt.runs.text import TextError

OPTIONS = RunOptions(scores=True, checkpoint=2)
RESUME = RunOptions(resume=True, scores=True, checkpoint=2)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A model, a text, a run of it that is whole, and one that was stopped with a checkpoint of segment 4."""
    root = tiny_root(tmp_path_factory.mktemp("base"), 120)
    config = config_of(root)
    run(config, root / "whole", OPTIONS)
    with pytest.raises(Killed):
        run(config, root / "stopped", OPTIONS, kill_at(segment=4))
    return root


@pytest.fixture
def stopped(base, tmp_path) -> Path:
    return Path(shutil.copytree(base / "stopped", tmp_path / "run"))


def goes_on(config: EvalConfig, out: Path, whole: Path) -> None:
    run(config, out, RESUME)
    assert (out / "scores.npy").read_bytes() == (whole / "scores.npy").read_bytes()
    assert read_run(out).summary["nll"] == read_run(whole).summary["nll"]


# ---- damage


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)


STATE = "checkpoint/00000004/"
FILES = (
    "metrics.jsonl",
    "scores.npy",
    STATE + "engine/state.safetensors",
    STATE + "engine/engine.json",
    STATE + "state.json",
    STATE + "engine/adapter/adapter_model.safetensors",
)


@pytest.mark.parametrize("damage", [shorten, flip, Path.unlink], ids=["short", "flipped", "missing"])
@pytest.mark.parametrize("name", FILES)
def test_what_is_not_whole_is_refused_by_name_and_kept(name, damage, base, stopped):
    good = (stopped / name).read_bytes()
    damage(stopped / name)
    before = contents(stopped)
    with pytest.raises(RunError, match=f"{Path(name).name}.*(short|damaged|bytes|can't be read|no such file|not readable)"):
        run(config_of(base), stopped, RESUME)
    assert contents(stopped) == before
    (stopped / name).write_bytes(good)
    goes_on(config_of(base), stopped, base / "whole")


def test_an_older_state_that_is_whole_is_used_and_that_is_said(base, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(Killed):
        run(config_of(base), out, OPTIONS, kill_at(segment=2))
    older = tmp_path / "older"
    shutil.copytree(out / "checkpoint" / "00000002", older)
    with pytest.raises(Killed):
        run(config_of(base), out, RESUME, kill_at(segment=4))
    shutil.copytree(older, out / "checkpoint" / "00000002")
    flip(out / "checkpoint" / "00000004" / "engine" / "state.safetensors")
    with pytest.warns(RunNote, match="state.safetensors is damaged.*going on from the older .*00000002"):
        goes_on(config_of(base), out, base / "whole")
    assert [state.name for state in saved_states(out)] == [state.name for state in saved_states(base / "whole")]


def test_a_finished_run_whose_files_are_others_is_refused(base, tmp_path):
    for name, damage in (("scores.npy", shorten), ("metrics.jsonl", flip), ("metrics.jsonl", Path.unlink)):
        out = Path(shutil.copytree(base / "whole", tmp_path / f"{name}-{damage.__name__}"))
        assert run(config_of(base), out, RESUME) == read_json(out / "summary.json")
        damage(out / name)
        with pytest.raises(RunError, match=name):
            run(config_of(base), out, RESUME)
        with pytest.raises(RunError, match=name):
            read_run(out)
    torn = Path(shutil.copytree(base / "whole", tmp_path / "torn"))
    shorten(torn / "summary.json")
    with pytest.raises(RunError, match="summary.json: not readable.*remove it, and --resume writes it again"):
        run(config_of(base), torn, RESUME)
    (torn / "summary.json").unlink()
    goes_on(config_of(base), torn, base / "whole")


def as_before_checksums(run: Path) -> None:
    """A stopped run as versions wrote it whose checkpoints had no digests, and whose scores had three columns."""
    path = run / STATE / "state.json"
    state = read_json(path)
    seen = state.pop("seen")
    for name in ("files", "digest"):
        del state[name]
    count = 0
    if seen["scores"]:
        rows = np.load(run / "scores.npy")
        count = len(rows)
        np.save(
            run / "scores.npy", rows[["document", "position", "nll"]].astype([("document", "<i4"), ("position", "<i4"), ("nll", "<f4")])
        )
    path.write_text(json.dumps({**state, "metrics_bytes": seen["metrics"]["bytes"], "scores": count}))
    (run / "inputs.json").unlink()


def test_runs_without_checksums_go_on_and_say_so(base, tmp_path):
    whole, out = run(config_of(base), tmp_path / "whole", RunOptions()), tmp_path / "run"
    with pytest.raises(Killed):
        run(config_of(base), out, RunOptions(checkpoint=2), kill_at(segment=4))
    as_before_checksums(out)
    short = Path(shutil.copytree(out, tmp_path / "short"))
    shorten(short / "metrics.jsonl")
    again = RunOptions(resume=True, checkpoint=2)
    with pytest.warns(RunNote, match="kept no checksums"), pytest.raises(RunError, match="metrics.jsonl is too short"):
        run(config_of(base), short, again)
    with pytest.warns(RunNote, match="kept no checksums"), pytest.warns(RunNote, match="kept no digests of texts and model"):
        assert run(config_of(base), out, again)["nll"] == whole["nll"]


def test_scores_of_other_columns_are_refused_and_kept(base, stopped):
    as_before_checksums(stopped)
    short = Path(shutil.copytree(stopped, stopped.with_name("short")))
    shorten(short / "scores.npy")
    for out, message in ((short, "scores.npy is too short"), (stopped, "kept document, position, nll of each token")):
        before = contents(out)
        with pytest.warns(RunNote, match="kept no checksums"), pytest.raises(RunError, match=message):
            run(config_of(base), out, RESUME)
        assert contents(out) == before


def test_a_text_that_turns_out_empty_leaves_nothing_to_go_on_with(base, tmp_path):
    with pytest.raises(TextError, match="text '/dev/null'"):
        run(config_of(base, text=("/dev/null",)), tmp_path / "run", OPTIONS)
    run(config_of(base), tmp_path / "run", OPTIONS)
    assert read_run(tmp_path / "run").summary["nll"] == read_run(base / "whole").summary["nll"]


def test_lost_checkpoints_are_said(base, stopped):
    shutil.rmtree(stopped / "checkpoint")
    with pytest.warns(RunNote, match="has no checkpoint: it starts over"):
        goes_on(config_of(base), stopped, base / "whole")


# ---- what a run depends on


def other_merges(root: Path) -> None:
    path = root / "model" / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["merges"] = content["model"]["merges"][:-20]
    path.write_text(json.dumps(content))
    Tokenizer.from_file(str(path))


def other_weight(root: Path) -> None:
    path = root / "model" / "model.safetensors"
    state = load_file(str(path))
    state["model.embed_tokens.weight"][1, 1] += 0.5
    save_file(state, str(path))


def other_text(root: Path) -> None:
    (root / "a.txt").write_text(english(120, seed=3))


@pytest.mark.filterwarnings("ignore:.*has no checkpoint")
@pytest.mark.parametrize("state", ["stopped", "before its first checkpoint"])
@pytest.mark.parametrize(
    "change, error, said",
    [
        (other_merges, RunError, "the tokenizer has changed"),
        (other_weight, RunError, "the model has changed"),
        (other_text, TextError, "text '.*a.txt' has changed"),
    ],
)
def test_what_a_run_depends_on_does_not_change(change, error, said, state, base, tmp_path):
    root = Path(shutil.copytree(base, tmp_path / "base", ignore=shutil.ignore_patterns("whole", "stopped")))
    with pytest.raises(Killed):
        run(config_of(root), tmp_path / "run", OPTIONS, kill_at(segment=4 if state == "stopped" else 0))
    before = contents(tmp_path / "run")
    change(root)
    with pytest.raises(error, match=said):
        run(config_of(root), tmp_path / "run", RESUME)
    assert contents(tmp_path / "run") == before


def test_scores_are_of_all_tokens_or_of_none(base, stopped, tmp_path):
    with pytest.raises(RunError, match="was begun with --scores; go on with it"):
        run(config_of(base), stopped, RunOptions(resume=True, checkpoint=2))
    with pytest.raises(Killed):
        run(config_of(base), tmp_path / "none", RunOptions(checkpoint=2), progress=kill_at(segment=3))
    with pytest.raises(RunError, match="was begun without --scores; go on without it"):
        run(config_of(base), tmp_path / "none", RESUME)
    run(config_of(base), tmp_path / "none", RunOptions(resume=True, checkpoint=2))
    with pytest.raises(RunError, match="finished without scores"):
        run(config_of(base), tmp_path / "none", RESUME)


def test_the_statistics_text_is_one_of_them(base, tmp_path):
    (tmp_path / "other.txt").write_text(english(90, seed=7))
    config = config_of(base, adapt="rows", optimizer="rms", density=0.3, lr=1e-4, statistics=str(tmp_path / "other.txt"))
    with pytest.raises(Killed):
        run(config, tmp_path / "run", OPTIONS, kill_at(segment=4))
    (tmp_path / "other.txt").write_text(english(90, seed=8))
    with pytest.raises(RunError, match="statistics text '.*other.txt' has changed"):
        run(config, tmp_path / "run", RESUME)


def test_another_pipe_is_refused(base, tmp_path, monkeypatch):
    config = config_of(base, text=("-",))

    def pipe(words: str):
        reader, writer = os.pipe()
        os.write(writer, words.encode())
        os.close(writer)
        monkeypatch.setattr(sys, "stdin", os.fdopen(reader, encoding="utf-8"))

    pipe(english(120))
    with pytest.raises(Killed):
        run(config, tmp_path / "run", OPTIONS, kill_at(segment=4))
    before = contents(tmp_path / "run")
    pipe(english(120, seed=3))
    with pytest.raises(TextError, match="text '-' is not the one the run began with"):
        run(config, tmp_path / "run", RESUME)
    assert contents(tmp_path / "run") == before
    pipe(english(120))
    goes_on(config, tmp_path / "run", base / "whole")


def test_going_on_elsewhere_is_said_and_both_records_stay(base, stopped, monkeypatch):
    here = rundir.environment()
    with monkeypatch.context() as patch:
        patch.setattr(rundir, "environment", lambda: {**here, "native": {"isa": "another"}, "memory_bytes": 1})
        with pytest.warns(RunNote, match="goes on elsewhere.*native was .* and is .'isa': 'another'"), pytest.raises(Killed):
            run(config_of(base), stopped, RESUME, kill_at(segment=4))
        env = read_json(stopped / "env.json")
        assert env["native"] == {"isa": "another"} and [(e["native"], e["until"]) for e in env["earlier"]] == [(here["native"], 4)]
    goes_on(config_of(base), stopped, base / "whole")  # back again: the other made nothing that was kept
    assert "earlier" not in read_json(stopped / "env.json")


# ---- beginning


def test_a_failed_command_leaves_no_directory(base, tmp_path):
    bare = Path(shutil.copytree(base / "model", tmp_path / "bare"))
    (bare / "tokenizer.json").unlink()
    short = tmp_path / "short.txt"
    short.write_text("a")
    for changes in (
        dict(model=str(bare)),
        dict(model=str(tmp_path / "none")),
        dict(text=(str(short),)),
        dict(layers=(5, 9)),
        dict(adapt="rows", optimizer="rms", statistics=str(tmp_path / "none.txt")),
        dict(streams=200, split=True),
    ):
        try:
            run(config_of(base, **changes), tmp_path / "run", OPTIONS)
        except (ValueError, RuntimeError):
            assert not (tmp_path / "run").exists(), changes
        else:
            pytest.fail(f"{changes} was accepted")
    with pytest.raises(RunError, match="diverged"):
        run(config_of(base, optimizer="sgd", lr=1e30, clip=0.0, segment=64), tmp_path / "first", OPTIONS)
    assert run(config_of(base), tmp_path / "run", OPTIONS)["nll"] == read_json(base / "whole" / "summary.json")["nll"]


def test_nothing_scored_is_no_run(base, tmp_path):
    """What a command leaves that failed in its first segment, or was killed while it began, makes room for any other."""
    out = tmp_path / "run"
    for number, names in enumerate(
        [
            (),
            (".lock",),
            (".lock", "env.json.tmp"),
            (".lock", "env.json", "inputs.json", "config.json.tmp"),
            (".lock", "env.json", "inputs.json", "config.json"),
            ("config.json", "inputs.json", "env.json", "metrics.jsonl", "scores.npy"),
        ]
    ):
        out = tmp_path / f"run{number}"
        out.mkdir()
        for name in names:
            (out / name).write_text('{"segment": 3}' if name.startswith("config") else "")
        assert (
            run(config_of(base), out, RESUME if number % 2 else OPTIONS)["segments"]
            == read_json(base / "whole" / "summary.json")["segments"]
        )
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "metrics.jsonl").write_text("mine\n")
    with pytest.raises(RunError, match="holds no run"):
        run(config_of(base), tmp_path / "mine", OPTIONS)
    assert contents(tmp_path / "mine") == {"metrics.jsonl": b"mine\n"}


def test_a_directory_has_one_owner_from_the_start(base, tmp_path):
    first, second = (RunDirectory(tmp_path / "run", {"a": 1}, False, False) for _ in range(2))
    first.begin()
    with pytest.raises(RunError, match="being written by another process"):
        second.begin()
    with pytest.raises(RunError, match="being written by another process"):
        RunDirectory(tmp_path / "run", {"a": 1}, True, False)
    first.append({"segment": 0})
    first.close()
    with pytest.raises(RunError, match="begun by another process in the meantime"):
        second.begin()


def test_what_can_not_be_made_is_refused(base, tmp_path):
    (tmp_path / "file").write_text("")
    for out, said in ((tmp_path / "file", "is a file"), (tmp_path / "file" / "run", "can't make this directory")):
        with pytest.raises(RunError, match=said):
            run(config_of(base), out, OPTIONS)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_read_only_directory(base, stopped, tmp_path):
    whole = Path(shutil.copytree(base / "whole", tmp_path / "whole"))
    for out in (whole, stopped):
        (out / ".lock").unlink()
        out.chmod(0o555)
    assert run(config_of(base), whole, RESUME)["nll"] == read_json(base / "whole" / "summary.json")["nll"]
    with pytest.raises(RunError, match="can't write there"):
        run(config_of(base), stopped, RESUME)


# ---- stopping


@pytest.mark.parametrize("signals", [[signal.SIGINT], [signal.SIGTERM], [signal.SIGINT, signal.SIGINT]])
def test_signals_stop_after_the_segment_and_twice_at_once(signals, base, tmp_path):
    def progress(event):
        if event["segment"] == 2:
            for number in signals:
                signal.raise_signal(number)

    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt if len(signals) == 2 else Interrupted):
        run(config_of(base), out, OPTIONS, progress)
    assert [state.name for state in saved_states(out)] == ["00000002" if len(signals) == 2 else "00000003"]
    goes_on(config_of(base), out, base / "whole")


def test_a_state_that_takes_the_place_of_another_is_named_before_that_one_goes(base, stopped, monkeypatch):
    """Weights changed on the way are saved at the step where the run had stopped."""
    rename, seen = os.rename, []

    def watched(source, target):
        rename(source, target)
        seen.append([state.name for state in saved_states(stopped)])

    directory = RunDirectory(stopped, config_of(base).to_dict(), True, True)
    directory.begin()
    monkeypatch.setattr(os, "rename", watched)

    class Engine:
        def save(self, folder):
            shutil.copytree(stopped / STATE / "engine", folder)

    directory.save(Engine(), {"segments": 4, "anew": True})
    directory.close()
    assert seen == [["00000004", "00000004-1"], ["00000004-1"], ["00000004"]]
    assert read_json(last_state(stopped) / "state.json")["anew"]


def test_changed_weights_need_a_run_to_go_on_with(base, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for part in range(4):
            (tmp_path / name / f"{part}.txt").write_text(english(60, seed=part))
    domains = {name: tmp_path / name for name in ("a", "b")}
    changes = dict(rows=2, steps=4, heldout_rows=2, mixer="fixed", weights="uniform", rank=2)
    config = ReweightConfig(**reweight_settings(base / "model", domains, **changes))
    change = ReweightOptions(resume=True, checkpoint=2, change={"a": 0.9, "b": 0.1})
    with pytest.raises(RunError, match="has no checkpoint to go on from"):
        reweight(config, tmp_path / "run", change)
    assert not (tmp_path / "run").exists()
    stop = kill_at(kind="step", step=3)
    with pytest.raises(Killed):
        reweight(config, tmp_path / "run", ReweightOptions(checkpoint=2), stop)
    with pytest.raises(Killed):
        reweight(config, tmp_path / "run", change, stop)
    assert len(reweight(config, tmp_path / "run", change)["changes"]) == 1  # asked for twice
    assert reweight(config, tmp_path / "run", change) == read_json(tmp_path / "run" / "summary.json")
    with pytest.raises(RunError, match="is finished"):
        reweight(config, tmp_path / "run", ReweightOptions(resume=True, change={"a": 0.1, "b": 0.9}))


# ---- locale

OURS = ("common/*.py", "model/**/*.py", "engine/state.py", "runs/**/*.py", "experiments/**/*.py", "distributed/*.py", "interop/publish.py")


def test_files_are_utf8_under_any_locale():
    """No text is read or written in whatever encoding the locale has."""
    package = Path(rundir.__file__).parents[1]
    files = [file for pattern in OURS for file in package.glob(pattern)]
    assert len(files) > 100
    for file in files:
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            words = {word.value for word in ast.walk(node) if isinstance(word, ast.Constant) and isinstance(word.value, str)}
            named = {keyword.arg for keyword in node.keywords} | words
            if name in ("read_text", "write_text") and isinstance(node.func, ast.Attribute):
                assert {"utf-8", "encoding"} & named, f"{file}:{node.lineno}"
            elif name == "open" and isinstance(node.func, ast.Name):
                binary = any("b" in word and len(word) <= 3 for word in words)
                assert binary or "encoding" in named, f"{file}:{node.lineno}"


def test_a_reader_that_leaves_stops_the_run_with_what_was_scored(base, tmp_path):
    """As `dynadapt eval | head -1`, or a sweep that is killed while its cell prints."""

    def gone(event):
        if event["segment"] == 2:
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        run(config_of(base), tmp_path / "run", RunOptions(scores=True, checkpoint=1000), gone)
    assert [state.name for state in saved_states(tmp_path / "run")] == ["00000003"]
    goes_on(config_of(base), tmp_path / "run", base / "whole")
