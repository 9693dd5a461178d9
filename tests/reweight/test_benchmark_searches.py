"""`benchmarks/reweighting.py` with methods that look for a mixture: killed in a search, gone on with, counted, and judged at equal FLOPs."""

import importlib
import json
import math
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from corpora import write_manifest
from tiny import english

from benchmarks import reweighting_study
from benchmarks.reweighting import cases
from dynadapt.experiments.reweight.mixture_law import LawError
from dynadapt.experiments.reweight.setup import scratch_config
from dynadapt.model.layout import tensor_shapes

ROOT = Path(__file__).resolve().parents[2]


def test_a_refused_search_leaves_the_method_out_and_says_why(tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise LawError("no law foresees")

    monkeypatch.setattr(reweighting_study, "search_mixture", refuse)
    study = reweighting_study.Study(cases()["scratch"], tmp_path / "scratch" / "seed-0", 0)
    study.finish("proxies")
    assert study.left_out("proxies") == "no law foresees" and study.left_out("odm") is None
    assert study.searches() == {"proxies": {"refused": "no law foresees"}} and not (study.folder / "proxies").exists()


@pytest.mark.parametrize("size, parameters", [("1m", 1_328_256), ("3m", 3_443_136), ("15m", 15_735_168)])
def test_a_size_has_ten_tokens_a_parameter(size, parameters):
    case = cases(size=size)["scratch"]
    config, vocabulary = case.config, SimpleNamespace(vocab_size=case.vocabulary, bos_token_id=None, eos_token_id=0)
    shapes = tensor_shapes(scratch_config(config, vocabulary)).values()
    assert sum(math.prod(shape) for shape in shapes) == parameters
    assert 9.8 * parameters < config.steps * config.rows * config.segment < 10.2 * parameters and config.schedule == "constant"


def small_corpus(tmp_path):
    digits = np.random.default_rng(5)
    for name, text in {
        "prose": lambda i: english(300, seed=i),
        "digits": lambda i: " ".join(map(str, digits.integers(0, 99, 400))),
    }.items():
        folder = tmp_path / "corpus" / name
        folder.mkdir(parents=True)
        for part, count in (("train", 20), ("heldout", 8)):
            lines = [json.dumps({"text": text(i + 30 * (part == "heldout"))}) for i in range(count)]
            (folder / f"{part}.jsonl").write_text("\n".join(lines) + "\n")
    write_manifest(tmp_path / "corpus")
    out = tmp_path / "study"
    return out, [sys.executable, str(ROOT / "benchmarks" / "reweighting.py"), "--corpus", str(tmp_path / "corpus"), "--out", str(out)]


def test_the_stratified_run_of_equal_flops_is_as_long_as_the_dearest_method():
    """Of the study that was made: held-out losses aside, which are a hundredth."""
    study = json.loads((ROOT / "benchmarks" / "results" / "reweighting-1m.json").read_text())["cases"]["scratch"]["methods"]
    flops = [row["flops"] for row in study.values()]
    dearest = max(of["training"] + of["excess"] + of["made_first"] for of in flops) / flops[0]["training"]
    assert dearest == pytest.approx(importlib.import_module("benchmarks.reweighting_time").LONGER, abs=0.05)


def test_a_timed_size_says_what_it_takes(tmp_path):
    out, command = small_corpus(tmp_path)
    sizes = "--size 1m --scratch 1x16 --rows 4 --share 1"
    ran = subprocess.run([*command, *sizes.split(), "--time", "8"], capture_output=True, text=True, cwd=ROOT)
    assert ran.returncode == 0, ran.stderr
    found = json.loads((out / "time" / "results.json").read_text())
    median = found["step_seconds"]["median"]
    assert found["steps_timed"] == 8 and found["settings"]["steps"] == 3200 and median > 0
    assert found["run_hours"] == pytest.approx(3200 * median / 3600) and found["flops_a_second"] == pytest.approx(
        found["flops_a_step"] / median
    )
    runs, small = found["runs_a_seed"], found["proxy"]
    assert (small["size"], small["models"], small["steps"]) == ("2x64", 24, 640)
    assert runs["proxies"] == pytest.approx(24 * 640 * small["step_seconds"]["median"] / (3600 * found["run_hours"]), rel=1e-4)
    assert runs["equal tokens"] == pytest.approx(9.2 + runs["proxies"]) and runs["equal FLOPs too"] == pytest.approx(12.7 + runs["proxies"])
    assert found["seed_hours"]["equal tokens"] == pytest.approx(runs["equal tokens"] * found["run_hours"])
    assert "24 proxies of 2x64" in ran.stdout
    assert "a run of 3,200 steps" in ran.stdout and not (out / "time" / "run").exists()
    refused = subprocess.run([*command, "--time", "8"], capture_output=True, text=True, cwd=ROOT)
    assert (
        refused.returncode == 2
        and "--time 8: give at least 8 steps, of which the first quarter is left out, and a --size" in refused.stderr
    )


def test_searches_in_the_benchmark(tmp_path):
    out, command = small_corpus(tmp_path)
    sizes = "--seeds 1 --steps 30 --share 1 --scratch 1x16 --proxy 1x16 --mixtures 6 --rows 4"
    command += ["--case", "scratch", *sizes.split(), "--mixers", "stratified", "odm", "op-mix", "proxies"]
    seed = out / "scratch" / "seed-0"

    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    until = time.monotonic() + 300
    while running.poll() is None and not (seed / "searches/op-mix/mixtures/001.json").exists() and time.monotonic() < until:
        time.sleep(0.005)
    running.kill()
    running.wait()
    assert (seed / "searches/op-mix/mixtures/001.json").exists() and not (seed / "op-mix/judged.json").exists()
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert ran.returncode == 0, ran.stderr

    read = lambda path: json.loads((seed / path).read_text())  # noqa: E731
    results = json.loads((out / "results.json").read_text())
    case, rows = results["cases"]["scratch"], {row["method"]: row for row in results["runs"]["scratch"]}
    assert set(rows) == {"stratified", "odm", "op-mix", "proxies"}
    # from the prefix on, the run has the weights that its probes found; they read the texts that the run reads
    found, made = read("searches/op-mix/summary.json"), read("op-mix/summary.json")
    assert made["changes"] == [{"step": 6, "weights": pytest.approx(found["weights"])}] and found["prior"] == {"digits": 0.5, "prose": 0.5}
    texts = [
        {key: value for key, value in read(f"{of}/inputs.json").items() if key.startswith("the text")}
        for of in ("searches/op-mix", "op-mix")
    ]
    assert texts[0] == texts[1] and len(texts[0]) == 2
    assert read("proxies/summary.json")["weights"] == pytest.approx(read("searches/proxies/summary.json")["weights"])
    # all that was made first is counted, and stratified sampling has as much
    a_step = sum(read("stratified/summary.json")["flops"][phase] for phase in ("forward", "backward", "update", "recompute")) / 30
    for name in ("op-mix", "proxies"):
        flops = case["methods"][name]["flops"]
        assert flops["made_first"] == sum(read(f"searches/{name}/summary.json")["flops"].values()) > 0
        spent = flops["training"] + flops["made_first"]
        assert 0 <= rows[name]["equal_flops"]["steps"] * a_step - spent < a_step * 1.0001 and rows[name]["equal_flops"]["steps"] > 30
    assert rows["odm"]["equal_flops"]["test"] == pytest.approx(rows["stratified"]["test"]) and rows["odm"]["equal_flops"]["steps"] == 30
    assert set(case["by_flops"]["against_stratified"]) == {"odm", "op-mix", "proxies"}
    assert all(0 < value < 8 for by in case["bits_per_byte"].values() for value in by.values())
    assert "At equal FLOPs" in ran.stdout and "| bits per byte | digits | prose |" in ran.stdout and "laws take away" in ran.stdout
    again = subprocess.run([*command, "--mixers", "stratified", "op-mix"], capture_output=True, text=True, cwd=ROOT)
    assert again.returncode == 0 and "mean 5" not in again.stdout.split("##")[0]
