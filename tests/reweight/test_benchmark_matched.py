"""`benchmarks/reweighting.py --equal-flops-of`: the comparisons at equal FLOPs of a results file whose runs are gone."""

import json
import shutil
import subprocess

import pytest
from corpora import write_manifest
from test_benchmark_searches import ROOT, small_corpus

from benchmarks.reweighting_matched import matching_steps
from benchmarks.reweighting_study import METHODS, READS_HELDOUT

RESULTS = ROOT / "benchmarks" / "results" / "reweighting-1m.json"
STEPS = 24


def test_steps_are_those_of_the_flops_that_were_counted():
    results = json.loads(RESULTS.read_text())
    found, runs = matching_steps(results["cases"]["scratch"], results["settings"]["scratch"]), results["cases"]["scratch"]["methods"]
    a_step = runs["stratified"]["flops"]["training"] / 3200
    assert found.keys() == runs.keys() - {"stratified"} and found["proportional"] == found["odm"] == 3200
    for name, step in found.items():
        flops = runs[name]["flops"]
        whole = flops["training"] + flops["excess"] + flops["made_first"]
        if METHODS[name].mixer in READS_HELDOUT:
            whole += flops["heldout"]
        assert (step - 1) * a_step < whole <= step * a_step * (1 + 1e-12), name


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """(command, sizes, results file) of two seeds of two methods and the stratified runs that equal FLOPs need."""
    out, command = small_corpus(tmp_path_factory.mktemp("matched"))
    sizes = f"--case scratch --scratch 1x16 --rows 4 --share 1 --steps {STEPS} --seeds 2".split()
    ran = said(*command, *sizes, "--mixers", "stratified", "proportional", "velocitune")
    assert ran.returncode == 0, ran.stderr
    return command[:-1], sizes, out / "results.json"


def said(*command):
    return subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=ROOT)


def without_equal_flops(results: dict) -> dict:
    bare = json.loads(json.dumps(results))
    for row in bare["runs"]["scratch"]:
        row.pop("equal_flops", None)
    bare["cases"]["scratch"]["by_flops"] = {}
    return bare


def test_it_is_what_the_study_itself_finds(tmp_path, study):
    """The runs that a study makes for its second judgement, and those made later for its results file, are one to the bit."""
    command, sizes, results = study
    whole, file = json.loads(results.read_text()), tmp_path / "kept.json"
    assert whole["cases"]["scratch"]["by_flops"]["against_stratified"].keys() == {"proportional", "velocitune"}
    file.write_text(json.dumps(without_equal_flops(whole)))
    later = [*command, tmp_path / "later", *sizes, "--equal-flops-of", file]
    half = said(*later, "--seeds", "1")
    assert half.returncode == 0, half.stderr
    assert json.loads(file.read_text())["cases"]["scratch"]["by_flops"]["against_stratified"]["velocitune"]["seeds"] == 1
    ran = said(*later)
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "later" / "results.png").stat().st_size > 10_000
    assert "| velocitune | 2 | " in ran.stdout and "less stratified at equal FLOPs" in ran.stdout
    found = json.loads(file.read_text())
    assert found.pop("equal_flops_made_on")["cpu"] == whole["environment"]["cpu"]
    assert found.pop("stratified_again") == {"scratch": {"0": 0.0, "1": 0.0}}  # on the same machine
    assert found["runs"] == whole["runs"]
    pairs = zip(*(of["cases"]["scratch"]["by_flops"]["against_stratified"].values() for of in (found, whole)), strict=True)
    for one, other in pairs:  # from six decimals there
        assert [one["mean"], *one["interval"], one["p"]] == pytest.approx([other["mean"], *other["interval"], other["p"]], abs=3e-5)
        assert one["says"] == other["says"] and one["times_the_tokens"] == other["times_the_tokens"]


def test_other_texts_sizes_and_files_are_refused(tmp_path, study):
    command, sizes, results = study
    other = tmp_path / "other"
    shutil.copytree(command[3], other)
    held_out = other / "prose" / "heldout.jsonl"
    held_out.write_text("\n".join(held_out.read_text().splitlines()[:-3]) + "\n")
    write_manifest(other)
    of = ["--equal-flops-of", results]
    texts = said(*command[:3], other, "--out", tmp_path / "a", *sizes, *of)
    assert (
        texts.returncode == 1 and "tokens a byte of prose's test text" in texts.stderr and "give the --corpus of its runs" in texts.stderr
    )
    rows = said(*command, tmp_path / "b", *sizes, *of, "--rows", "8")
    assert rows.returncode == 1 and "was made with rows 4, not 8: give the --size and options of its runs" in rows.stderr
    steps = said(*command, tmp_path / "c", *sizes, *of, "--steps", "30")
    assert steps.returncode == 1 and f"{STEPS * 4 * 128} tokens a run, not {30 * 4 * 128}" in steps.stderr
    seeds = said(*command, tmp_path / "d", *sizes, *of, "--seeds", "5", "--first-seed", "3")
    assert seeds.returncode == 1 and "has seeds 0, 1: none of 3, 4" in seeds.stderr
    none = said(*command, tmp_path / "e", *sizes, "--equal-flops-of", tmp_path / "other" / "manifest.json")
    assert none.returncode == 1 and "no results of this script" in none.stderr
    continual = said(*command, tmp_path / "f", *sizes, *of, "--case", "continual")
    assert continual.returncode == 1 and "for the case 'continual'" in continual.stderr
