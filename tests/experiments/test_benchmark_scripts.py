"""What the scripts of benchmarks/ that measure in a folder share: who may go on there, what is refused, and how their tables are printed."""

import argparse
import io
import json
import sys
from pathlib import Path

import pytest
from corpora import write_manifest
from rich.console import Console

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks import (  # noqa: E402
    distillation,
    guard,
    heterogeneous,
    learning_from,
    levels,
    long_orders,
    long_ranks,
    long_streams,
    patches,
    printed,
    resets,
    schedule,
    score_first,
    scratch_rates,
    script,
    shift,
)

IN_A_FOLDER = (
    distillation,
    guard,
    learning_from,
    levels,
    long_orders,
    long_ranks,
    long_streams,
    patches,
    resets,
    score_first,
    scratch_rates,
    shift,
)


def corpus_of(folder: Path, *domains: str, word: str = "a") -> Path:
    for name in domains:
        (folder / name).mkdir(parents=True)
        for part in ("train", "heldout"):
            (folder / name / f"{part}.jsonl").write_text(json.dumps({"text": f"{word} text of {name}"}) + "\n")
    write_manifest(folder)
    return folder


def given_of(folder: Path, **options) -> argparse.Namespace:
    return argparse.Namespace(**{"out": folder / "out", "corpus": folder / "corpus", "model": "m", "documents": 4, **options})


def measured(given, benchmark: str = "shift", result: str | None = "results.json") -> None:
    with script.measuring(benchmark, given, "documents"):
        if result:
            (given.out / result).write_text("{}")


def test_a_folder_goes_on_as_it_was_begun(tmp_path):
    corpus_of(tmp_path / "corpus", "a")
    corpus_of(tmp_path / "other", "a", word="another")
    given = given_of(tmp_path)
    measured(given)
    measured(given)
    for changes, said in (
        ({"documents": 5}, "was begun with --documents 4, not 5: give another --out"),
        ({"model": "n"}, "was begun with --model m, not n"),
        ({"corpus": tmp_path / "other"}, f"was begun with other texts than the corpus {tmp_path / 'other'} holds now"),
    ):
        with pytest.raises(SystemExit, match=said):
            measured(given_of(tmp_path, **changes))
    with pytest.raises(SystemExit, match="holds results of shift.py, not of guard.py"):
        measured(given, "guard")
    measured(given)


def test_what_was_refused_before_anything_was_measured_begins_nothing(tmp_path):
    corpus_of(tmp_path / "corpus", "a")
    measured(given_of(tmp_path), result=None)
    measured(given_of(tmp_path, documents=5))


def test_one_process_measures_in_a_folder(tmp_path):
    given = given_of(tmp_path)
    with script.measuring("shift", given):
        with pytest.raises(SystemExit, match="another process measures there"):
            measured(given)
    measured(given)


def test_a_folder_that_can_not_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match="--out .*/file/out: Not a directory; give another --out"):
        measured(given_of(tmp_path, out=tmp_path / "file" / "out"))
    from dynadapt.runs.whole_files import disk_error

    with pytest.raises(SystemExit) as end, script.going_on(tmp_path):
        raise disk_error(OSError(28, "No space left"), tmp_path / "results.json")
    assert "no space left on the disk" in end.value.code and "--resume" not in end.value.code
    assert end.value.code.endswith(f"make room; the same command goes on in {tmp_path}")


def test_rows_of_other_texts_are_refused_before_a_text_is_read(tmp_path):
    def run(*texts: str):
        measure = lambda text, arm: ran.append(text) or {}  # noqa: E731
        ran: list[str] = []
        script.by_text_and_arm(
            tmp_path, {}, [{"text": text} for text in texts], lambda row: ["x"], measure, lambda rows: {}, lambda row, arm: arm
        )
        return ran

    assert run("a", "b") == ["a", "b"]
    with pytest.raises(SystemExit, match="has text 'b', which is none of this corpus: give another --out"):
        run("c", "a")
    (tmp_path / "results.json").write_text('{"cells": {}}')
    with pytest.raises(SystemExit, match="has no 'rows', as this script's results have"):
        run("a")


@pytest.mark.parametrize("benchmark", IN_A_FOLDER, ids=lambda module: module.__name__)
def test_a_corpus_is_looked_at_before_a_model_is_loaded(benchmark, tmp_path, monkeypatch):
    monkeypatch.setattr("dynadapt.load", lambda name: pytest.fail("a model was loaded"))
    if hasattr(benchmark, "load"):
        monkeypatch.setattr(benchmark, "load", lambda name: pytest.fail("a model was loaded"))
    corpus = corpus_of(tmp_path / "corpus", patches.DOMAIN, *script.TUNED)
    for file in corpus.glob("*/heldout.jsonl"):
        file.write_text("{half of a li")
    monkeypatch.setattr(sys, "argv", [benchmark.__name__, str(corpus), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as end:
        benchmark.main()
    assert "heldout.jsonl" in end.value.code and "\n" not in end.value.code
    monkeypatch.setattr(sys, "argv", [benchmark.__name__, str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="nowhere"):
        benchmark.main()


def test_too_few_domains_to_judge(tmp_path):
    corpus = corpus_of(tmp_path / "corpus", "a", *script.TUNED)
    assert script.judged_domains(corpus) == ["a"]
    with pytest.raises(SystemExit, match="holds a beside novels, python-docs, python-code, .*; 2 domains that can be judged are needed"):
        script.judged_domains(corpus, 2)
    uneven = {"a": [0] * 100_000, "b": [0] * 20_000}
    with pytest.raises(SystemExit, match="1 domains hold out 24576 tokens; 2 are needed"):
        resets.pieces_of(uneven, resets.DESIGNS["long"])


@pytest.mark.parametrize(
    "benchmark,options,said",
    [
        (shift, ["c", "--documents", "1"], "--documents 1: give at least 3"),
        (long_streams, ["c", "--tokens", "5"], "--tokens 5: give at least 1024"),
        (long_orders, ["c", "--quarter", "100"], "--quarter 100: give a multiple of 512"),
        (long_ranks, ["c", "--tuning", "5"], "--tuning 5: give at least 1024"),
        (long_streams, ["c", "--arms", "x"], "--arms x: there are static-512, "),
        (long_streams, ["c", "--dtype", "x"], "--dtype: invalid choice: 'x'"),
        (scratch_rates, ["c", "--rates", "1e-3", "nan"], "--rates nan: give numbers above 0"),
        (scratch_rates, ["c", "--rates", "0"], "--rates 0: give numbers above 0"),
        (scratch_rates, ["c", "--share", "nan"], "--share nan: give a number above 0, up to 1"),
        (scratch_rates, ["c", "--steps", "0"], "--steps 0: give at least 1"),
        (scratch_rates, ["c", "--warmup", "-1"], "--warmup -1: give at least 0"),
        (heterogeneous, ["--ranks", "0", "2"], "--ranks 0: give at least 1"),
        (heterogeneous, ["--rounds", "0"], "--rounds 0: give at least 1"),
        (heterogeneous, ["--segment", "-1"], "--segment -1: give at least 1"),
        (heterogeneous, ["--out", "/"], "--out /: expected a file that can be written"),
        (schedule, ["--out", "/"], "--out /: expected a file that can be written"),
        (schedule, ["--out", "/tmp/x.json", "--sources", "/"], "--sources /: no csrc of a checkout"),
    ],
)
def test_nonsense_is_one_line_that_names_the_option(benchmark, options, said, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [benchmark.__name__, *options])
    with pytest.raises(SystemExit):
        benchmark.main()
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_steps_to_stand_beside_are_read_before_anything_is_compiled(tmp_path, monkeypatch):
    monkeypatch.setattr(schedule, "build", lambda *given: pytest.fail("it was compiled"))
    other = tmp_path / "other.json"
    other.write_text("{}")
    for file, said in ((other, "no results of this script"), (tmp_path / "none", "no such file")):
        monkeypatch.setattr(sys, "argv", ["schedule.py", "--out", str(tmp_path / "out.json"), "--before", str(file)])
        with pytest.raises(SystemExit, match=said):
            schedule.main()


def test_levels_of_one_domain_have_a_page():
    arms = {levels.name(arm): {"nll": 3.0 - 0.1 * len(arm), "flops_per_token": 1.0 + len(arm)} for arm in levels.ARMS}
    rates = {"fast": {"rate": 1e-3, "end": False}}
    page = levels.page({"cells": {"a": arms}, "rates": rates, "verdicts": levels.verdicts({"a": arms})})
    assert "nats a token, no interval (seen with 80%: -): by 0.01 not decided" in page


def printed_at(page: str, width: int) -> list[str]:
    console = Console(width=width, file=io.StringIO(), highlight=False, markup=False, emoji=False)
    printed.print_page(page, console)
    return [line.rstrip() for line in console.file.getvalue().splitlines() if line.strip()]


def test_pages_are_laid_out_by_width():
    page = "**5** by [0.1]\n\n| arm | gain over static, nats | verdict |\n|---|---|---|\n| LoRA, memory 512 | +0.0123 [-0.0100, +0.0300] | confirmed |\n"
    wide, narrow = printed_at(page, 80), printed_at(page, 20)
    assert wide[0] == "5 by [0.1]" and [" ".join(line.split()) for line in wide[1:]] == [
        "arm gain over static, nats verdict",
        wide[2].strip(),
        "LoRA, memory 512 +0.0123 [-0.0100, +0.0300] confirmed",
    ]
    assert max(map(len, wide)) <= 80 and len(narrow) > len(wide)  # lines run on where words can't be narrower
    for number in ("+0.0123", "[-0.0100,", "+0.0300]", "confirmed", "verdict"):
        assert sum(number in line for line in narrow) == 1
    for results, module in (
        ("learning-from", learning_from),
        ("resets", resets),
        ("levels", levels),
        ("guard", guard),
        ("distillation", distillation),
    ):
        content = json.loads((ROOT / "benchmarks" / "results" / f"{results}.json").read_text())
        made = module.page(content["verdicts"] if module in (guard, distillation) else content)
        for width in (20, 80, 200):
            lines = printed_at(made, width)
            words = {word for line in lines for word in line.split()}
            assert words >= {
                word
                for line in made.replace("**", "").splitlines()
                if not line.startswith("|--")
                for word in line.replace("|", " ").split()
            }
    arms = json.loads((ROOT / "benchmarks" / "results" / "patches.json").read_text())["arms"]
    assert "| full, 1e-5 | " in patches.page(arms)


def test_a_long_cell_says_how_far_it_is(capsys):
    told = script._telling("text, arm", every=0.0)
    event = {"total_tokens": 50, "tokens": 50, "total_seconds": 1.0, "seconds": 1.0, "fraction": 0.5, "gain": None, "segment": 0}
    told({**event, "total_nll": 3.0, "nll": 3.0})
    assert capsys.readouterr().err == "  text, arm: 50 tokens, 50%, left 0:01\n"
