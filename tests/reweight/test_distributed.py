"""Two processes do what one does: the same rows, losses and weights, however gradients are sent, and stop and go on like one.

The two are started once (processes_worker.py) and run all cases one after the other: starting them costs more than the cases.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from run_files import Killed, final_state, kill_at, without_time
from tiny import english, reweight_settings, tiny_directory

from dynadapt import Adam, Engine, LoRA
from dynadapt.distributed import Processes
from dynadapt.distributed.learn import connect
from dynadapt.experiments.config import ConfigError
from dynadapt.experiments.reweight import ReweightConfig, ReweightOptions, run
from dynadapt.model import random_model, tiny_config
from dynadapt.runs.append_only import read_metrics

pytestmark = pytest.mark.usefixtures("one_thread")

WORKER = Path(__file__).with_name("processes_worker.py")
ENVIRONMENT = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}

# what learns, by which mixer, on which backend; with 3 rows the two have 1 and 2
TRAINED = {
    "lora": dict(mixer="odm", adapt="lora", rank=2, backend="reference"),
    "rows": dict(mixer="doremi", settings={"acts": "sampling"}, reference="model", adapt="rows", density=0.5, backend="reference"),
    "model": dict(mixer="doremi", reference="model", targets="model", backend="cpu"),
}
COMPRESSED = {"bf16": dict(compress="bf16"), "powersgd": dict(compress="powersgd", powersgd_rank=4)}
REFUSED = {
    "another rate": (dict(rank_1=dict(lr=0.02)), r"lr differs between processes: 0.01 in process 0, 0.02 in process 1"),
    "another text": (dict(config=dict(domains={"code": "text.jsonl"})), r"the text of domain 'code' differs between processes"),
    "no text": (dict(config=dict(domains={"code": "only-here.jsonl"})), r"process 1 of 2: domain 'code': only-here.jsonl: no such file"),
    "one row": (dict(config=dict(rows=1)), r"rows 1 with 2 processes: .* at least 2"),
    "adapters sharded": (dict(config=dict(adapt="lora"), options=dict(shard=True)), r"shard with adapt 'lora'"),
    "matrices sharded": (dict(config=dict(adapt="full", optimizer="muon"), options=dict(shard=True)), r"shard with optimizer 'muon'"),
    "shards and factors": (
        dict(config=dict(adapt="full", compress="powersgd"), options=dict(shard=True)),
        r"shard with compress 'powersgd'",
    ),
}


def documents(path: Path, seed: int, count: int = 12) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": english(90, seed=seed + i)}) + "\n" for i in range(count)))


def config_of(root: Path, **changes) -> dict:
    domains = {name: root / f"{name}.jsonl" for name in ("code", "prose")}
    settings = reweight_settings(root / "model", domains, **{"steps": 8, "heldout_rows": 3, **changes})
    if "reference" in settings:
        settings["reference"] = str(root / "model")
    return settings


def cases_of(root: Path) -> dict[str, dict]:
    def case(name: str, changes: dict, **more) -> dict:
        return {"config": config_of(root, **changes), "out": str(root / "two" / name), **more}

    model = TRAINED["model"]
    cases = {name: case(name, changes) for name, changes in TRAINED.items()}
    cases.update({name: case(name, {**model, **changes}) for name, changes in COMPRESSED.items()})
    cases["sharded"] = case("sharded", model, options={"shard": True})
    cases["sharded, bf16"] = case("sharded, bf16", {**model, "compress": "bf16"}, options={"shard": True})
    # killed by both, gone on with by both, in other ways too
    cases["kill"] = case("killed", model, kill=5)
    cases["resume"] = case("killed", model, options={"resume": True})
    factors = {**model, **COMPRESSED["powersgd"]}
    cases["kill powersgd"] = case("killed, powersgd", factors, kill=5)
    cases["resume powersgd"] = case("killed, powersgd", factors, options={"resume": True})
    cases["kill sharded"] = case("killed, sharded", model, kill=5, options={"shard": True})
    cases["resume whole"] = case("killed, sharded", model, options={"resume": True})
    cases["kill for one"] = case("killed, for one", model, kill=5)
    cases["resume of one"] = case("killed by one", model, options={"resume": True, "shard": True})
    for name, (changes, _) in REFUSED.items():
        cases[name] = case(
            f"refused, {name}",
            {**TRAINED["lora"], **changes.get("config", {})},
            **{key: value for key, value in changes.items() if key != "config"},
        )
    return cases


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("distributed")
    tiny_directory(root / "model")
    documents(root / "code.jsonl", 0)
    documents(root / "prose.jsonl", 50)
    documents(root / "place-0" / "only-here.jsonl", 0)
    for rank in range(2):
        documents(root / f"place-{rank}" / "text.jsonl", 100 * rank)
    return root


@pytest.fixture(scope="module")
def two(root) -> dict[str, list[str]]:
    """How every case ended, by process; their run directories are in root/two."""
    with pytest.raises(Killed):
        run(
            ReweightConfig(**config_of(root, **TRAINED["model"])),
            root / "two" / "killed by one",
            ReweightOptions(checkpoint=3),
            kill_at(kind="step", step=5),
        )
    cases = cases_of(root)
    (root / "cases.json").write_text(json.dumps(cases))
    workers = [
        subprocess.Popen([sys.executable, str(WORKER), str(rank), str(root)], env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    errors = [worker.communicate(timeout=400)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(errors)
    ended = [json.loads((root / f"ended-{rank}.json").read_text()) for rank in range(2)]
    return {name: [of[name] for of in ended] for name in ended[0]}


@pytest.fixture(scope="module")
def one(root) -> dict[str, Path]:
    """The same runs by one process."""
    for name, changes in TRAINED.items():
        run(ReweightConfig(**config_of(root, **changes)), root / "one" / name, ReweightOptions(checkpoint=3))
    return {name: root / "one" / name for name in TRAINED}


def losses(out: Path) -> tuple[list, list]:
    """Losses of the steps and of the evaluations."""
    lines = read_metrics(out)
    return [line["loss"] for line in lines if "loss" in line], [line["mean"] for line in lines if "mean" in line]


def furthest(out: Path, other: Path) -> float:
    return max(abs(a - b) for mine, theirs in zip(losses(out), losses(other)) for a, b in zip(mine, theirs, strict=True))


def summary(out: Path) -> dict:
    return json.loads((out / "summary.json").read_text())


def assert_same_run(out: Path, other: Path) -> None:
    """The same rows; losses and mixer weights to 2e-6; learned weights to 1e-4, of 0.08 at most that eight Adam steps at 0.01 go.

    Adam divides by the root of squared gradients, so that a last bit of a gradient near zero shows in a step."""
    mine, theirs = read_metrics(out), read_metrics(other)
    assert [line.get("rows") for line in mine] == [line.get("rows") for line in theirs]
    assert furthest(out, other) < 2e-6
    for line, same in zip(mine, theirs):
        assert line["weights"] == pytest.approx(same["weights"], abs=2e-6)
        assert line.get("losses", {}) == pytest.approx(same.get("losses", {}), abs=2e-6)
        assert line.get("grad_norm", 0) == pytest.approx(same.get("grad_norm", 0), rel=1e-4)
    a, b = final_state(out), final_state(other)
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("name", TRAINED)
def test_two_processes_train_as_one(name, root, one, two):
    out = root / "two" / name
    assert two[name] == ["finished"] * 2
    assert_same_run(out, one[name])
    mine, theirs = summary(out), summary(one[name])
    assert (mine["processes"], theirs["processes"]) == (2, 1)
    assert mine["updates"] == theirs["updates"] == 8 and mine["tokens_by_domain"] == theirs["tokens_by_domain"]
    assert theirs["mean"] < theirs["mean_start"] - 0.1  # something was learned, far beyond the tolerance
    update = mine["flops"].pop("update"), theirs["flops"].pop("update")
    assert mine["flops"] == theirs["flops"] and update[0] == 2 * update[1]  # each process updates all of its weights


def test_shards_train_as_whole_copies_do(root, one, two):
    assert two["sharded"] == ["finished"] * 2
    assert_same_run(root / "two" / "sharded", one["model"])
    assert_same_run(root / "two" / "sharded", root / "two" / "model")
    assert summary(root / "two" / "sharded")["flops"] == summary(one["model"])["flops"]  # each updates its part


@pytest.mark.parametrize("name, least, most", [("bf16", 1e-6, 0.02), ("sharded, bf16", 1e-6, 0.02), ("powersgd", 1e-4, 0.35)])
def test_compressed_gradients_come_close(name, least, most, root, one, two):
    """Losses up to `most` nats from exact gradients', where training moves them by 2; not the same, since less was sent."""
    assert two[name] == ["finished"] * 2
    assert least < furthest(root / "two" / name, one["model"]) < most
    fell = [summary(out)["mean_start"] - summary(out)["mean"] for out in (root / "two" / name, one["model"])]
    assert fell[1] > 1.5 and fell[0] > 0.8 * fell[1]


def test_killed_and_gone_on_with(root, one, two):
    """Bit for bit by as many processes; to rounding when whole copies go on with shards, two with one, or one with two."""
    names = ("kill", "resume", "kill sharded", "resume whole", "kill for one", "resume of one")
    assert [two[name] for name in names] == [["killed"] * 2, ["finished"] * 2] * 2 + [["killed"] * 2, ["finished"] * 2]
    assert [two["kill powersgd"], two["resume powersgd"]] == [["killed"] * 2, ["finished"] * 2]
    for killed, whole in (("killed, powersgd", "powersgd"), ("killed", "model")):
        killed, whole = root / "two" / killed, root / "two" / whole
        assert without_time(read_metrics(killed)) == without_time(read_metrics(whole))
        a, b = final_state(killed), final_state(whole)
        assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert_same_run(root / "two" / "killed, sharded", whole)
    assert_same_run(root / "two" / "killed by one", whole)
    run(ReweightConfig(**config_of(root, **TRAINED["model"])), root / "two" / "killed, for one", ReweightOptions(resume=True))
    assert_same_run(root / "two" / "killed, for one", whole)


@pytest.mark.parametrize("name", REFUSED)
def test_processes_that_do_not_fit_are_refused_by_name(name, root, two):
    first, second = two[name]
    assert re.search(REFUSED[name][1], first), first
    assert "Error: " in second and not (root / "two" / f"refused, {name}" / "summary.json").exists()


@pytest.mark.parametrize("how", ["whole", "sharded", "powersgd"])
def test_a_gradient_that_is_not_finite_on_one_is_skipped_by_both(how, two):
    updated, skipped = [True, False, True, True], [False, True, False, True]  # updated, skipped, weights moved, weights finite
    assert [found for found, _, _ in two[f"skip, {how}"]] == [[updated, updated, skipped, updated, updated]] * 2


def test_shards_hold_half_of_masters_and_moments(two):
    held = [held for _, *held in two["skip, sharded"]]
    assert [share == pytest.approx(0.5, abs=0.01) for share, _ in held] == [True] * 2 and sum(share for share, _ in held) == 1
    assert [gone for _, gone in held] == [True] * 2 and two["skip, whole"][0][1:] == [1, False]


@pytest.mark.parametrize(
    "changes, options, said",
    [(dict(compress="bf16"), {}, "compress 'bf16' with one process"), ({}, dict(shard=True), "shard with one process")],
)
def test_one_process_has_nobody_to_send_to(changes, options, said, root, tmp_path):
    with pytest.raises(ConfigError, match=said):
        run(ReweightConfig(**config_of(root, **changes)), tmp_path / "run", ReweightOptions(**options))


def test_streams_of_their_own_are_not_averaged():
    model = random_model(tiny_config("llama"), seed=0)
    with pytest.raises(ValueError, match="shared=False"):
        connect(
            Engine(model, adapt=LoRA(rank=2), optimizer=Adam(), streams=2, segment=8, dtype="fp32", backend="reference"), Processes(0, 2)
        )


@pytest.mark.parametrize("count, world", [(3, 2), (8, 4), (1, 1), (2, 3)])
def test_shares_are_all_of_it_and_even(count, world):
    shares = [Processes(rank, world).share(count) for rank in range(world)]
    assert [i for share in shares for i in share] == list(range(count)) and max(map(len, shares)) - min(map(len, shares)) <= 1


def test_torchrun_stopped_and_gone_on_with_alone(root, tmp_path):
    """The command line: one process speaks and writes, a signal saves, and one goes on to where it would have come by itself."""
    changes = dict(mixer="odm", rows=4, steps=100_000, evaluate=50, adapt="lora", rank=2, lr=0.002, backend="reference")
    config = config_of(root, **changes)
    domains = [f"{name}={path}" for name, path in config.pop("domains").items()]
    words = [word for name, value in config.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "dynadapt"]
    process = subprocess.Popen(
        [*torchrun, "reweight", "train", *words, "--domains", *domains, "--out", str(tmp_path / "run"), "--checkpoint", "20"],
        env=ENVIRONMENT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    limit = time.monotonic() + 240
    while not list(tmp_path.glob("run/checkpoint/[0-9]*")) and time.monotonic() < limit and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    shown, errors = process.communicate(timeout=120)
    saved = int(max(path.name for path in tmp_path.glob("run/checkpoint/[0-9]*")))
    assert process.returncode and saved >= 20 and errors.count(f"stopped by SIGTERM after step {saved}") == 1, errors
    assert shown.count("step 0/100000") == 1, shown
    stop_soon_after = kill_at(kind="step", step=saved + 3)
    for out, resume in (("run", True), ("whole", False)):
        with pytest.raises(Killed):
            run(ReweightConfig(**config_of(root, **changes)), tmp_path / out, ReweightOptions(resume=resume), stop_soon_after)
    steps = len(losses(tmp_path / "run")[0])
    assert steps == saved + 3 and furthest(tmp_path / "run", tmp_path / "whole") < 1e-3
