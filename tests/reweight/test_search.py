"""Searching for a mixture: what is measured, what is counted, that it can be killed anywhere, and what it refuses."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from run_files import Killed, kill_at
from tiny import english, reweight_settings, tiny_directory

import dynadapt
from dynadapt import AdamW, Engine, LoRA
from dynadapt.experiments.config import ConfigError
from dynadapt.experiments.reweight import ReweightConfig, run
from dynadapt.experiments.reweight import search as search_module
from dynadapt.experiments.reweight.domains import read_domains
from dynadapt.experiments.reweight.mixture_law import LawError
from dynadapt.experiments.reweight.probes import Probes, merged_model
from dynadapt.experiments.reweight.search import SearchConfig, drawn, search_mixture
from dynadapt.runs.rundir import RunError
from dynadapt.runs.stopping import Interrupted

pytestmark = pytest.mark.usefixtures("one_thread")
EVEN = np.full(2, 0.5)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Two domains that differ: English words, and digits."""
    root = tmp_path_factory.mktemp("search")
    tiny_directory(root / "model")
    digits = np.random.default_rng(5)
    texts = {"prose": lambda i: english(80, seed=i), "digits": lambda i: " ".join(map(str, digits.integers(0, 99, 160)))}
    for name, text in texts.items():
        (root / name).mkdir()
        for i in range(8):
            (root / name / f"{i}.txt").write_text(text(i))
    return root


def config_for(root, **changes) -> ReweightConfig:
    settings = {"steps": 40, "heldout_rows": 3, "adapt": "lora", "rank": 2, "optimizer": "adamw", "weights": "uniform", **changes}
    return ReweightConfig(**reweight_settings(root / "model", {name: root / name for name in ("prose", "digits")}, **settings))


PROXIES = dict(scratch="1x16", adapt="full", targets="model", heldout_rows=2)
OPMIX = SearchConfig(mixtures=8, probe_rank=4, part=0.3, probe_lr=0.02)


def test_probes_side_by_side_are_those_learned_alone(root, tmp_path):
    """One stream's adapter, learned with the others and by itself from the same rows."""
    config, model = config_for(root), dynadapt.load(str(root / "model"))
    domains = read_domains(config, model)

    class Nothing:
        state = None

    probes = Probes(config, OPMIX, Nothing(), model, domains, EVEN)
    again = Probes(config, OPMIX, Nothing(), model, domains, EVEN)
    alone = Engine(
        model,
        adapt=LoRA(rank=4),
        optimizer=AdamW(lr=0.02, clip=config.clip),
        segment=16,
        every=config.rows,
        accumulate=True,
        dtype="fp32",
        backend="reference",
    )
    rows = {domain.name: domain.train for domain in domains}
    for step in range(4):
        probes._update()
        for name, row in again.samplers[1].draw(step, config.rows, again.shares[1]):
            alone.step(torch.from_numpy(rows[name][row])[None])
    together = probes.engine.snapshot(1).learned["master"]
    assert together == pytest.approx(alone.snapshot(0).learned["master"], abs=1e-6) and probes.engine.updates == 2 * 4
    assert probes.shares == [
        {"prose": pytest.approx(0.95), "digits": pytest.approx(0.05)},
        {"prose": pytest.approx(0.05), "digits": pytest.approx(0.95)},
    ]
    flops = sum(probes.engine.ledger.totals.values())
    assert flops == pytest.approx(2 * sum(alone.ledger.totals.values()), rel=1e-9)

    # all of one probe is that stream's model; products are summed, not A and B by themselves
    tokens = torch.from_numpy(np.stack([domains[0].heldout[row] for row in range(3)]))
    score = lambda model: Engine(model, segment=16, dtype="fp32", backend="reference").score(tokens)  # noqa: E731
    only, _ = merged_model(probes.engine, np.array([0.0, 1.0]))
    assert score(only) == pytest.approx(probes.engine.score(tokens, stream=1), abs=1e-5)
    name = "layers.0.q.weight"
    half, cost = merged_model(probes.engine, EVEN)
    ends = [merged_model(probes.engine, np.eye(2)[i])[0].tensor(name) for i in range(2)]
    assert half.tensor(name) == pytest.approx((ends[0] + ends[1]) / 2, abs=1e-6)
    assert not torch.equal(ends[0], model.tensor(name)) and cost > 2 * 4 * 2 * half.tensor(name).numel()


@pytest.mark.parametrize("method", ["op-mix", "proxies"])
def test_a_killed_search_goes_on_with_the_same_losses(method, root, tmp_path):
    config = config_for(root, **(PROXIES if method == "proxies" else {}))
    how = OPMIX if method == "op-mix" else SearchConfig(method="proxies", mixtures=8, part=0.5)
    whole = search_mixture(config, how, tmp_path / "whole", checkpoint=4)
    points = [{"kind": "mixture", "mixture": 3}] + [{"kind": "probes", "step": 6}] * (method == "op-mix")
    for number, point in enumerate(points):
        out = tmp_path / f"killed-{number}"
        with pytest.raises(Killed):
            search_mixture(config, how, out, checkpoint=4, progress=kill_at(**point))
        found = search_mixture(config, how, out, resume=True, checkpoint=4)
        same = ("weights", "losses", "mixtures", "flops", "error", "predicted")
        assert {key: found[key] for key in same} == {key: whole[key] for key in same}
    assert search_mixture(config, how, tmp_path / "whole", resume=True) == whole
    assert sum(whole["weights"].values()) == pytest.approx(1) and set(whole["weights"]) == {"prose", "digits"}
    assert all(whole["error"][name] < whole["error_of_mean"][name] for name in whole["weights"])
    losses, mixtures = np.array(whole["losses"]), np.array(whole["mixtures"])
    assert losses[mixtures[:, 0].argmax(), 0] < losses[mixtures[:, 0].argmin(), 0]  # more of a domain, less of its loss
    if method == "proxies":
        summaries = [json.loads((tmp_path / "whole" / "proxies" / f"{i:03d}" / "summary.json").read_text()) for i in range(8)]
        assert whole["flops"]["heldout"] + whole["flops"]["proxies"] == sum(sum(one["flops"].values()) for one in summaries)
        assert summaries[0]["heldout"]["prose"] == losses[0, 0] and summaries[0]["steps"] == 20
    assert min(whole["flops"].values()) > 0


def test_going_on_with_other_settings_names_those_alone(root, tmp_path):
    out = tmp_path / "search"
    with pytest.raises(Interrupted):
        search_mixture(config_for(root), OPMIX, out, progress=lambda line: False)
    changes = {"steps": 30, "domains": {"prose": str(root / "prose"), "digits": str(root / "digits" / "0.txt")}}
    with pytest.raises(RunError) as refused:
        search_mixture(replace(config_for(root), **changes), replace(OPMIX, part=0.2), out, resume=True)
    said = str(refused.value)
    assert "another configuration: part is 0.3 there and 0.2 here; domains.digits is " in said and "steps is 40 there and 30 here" in said
    assert "{" not in said and "prose" not in said and "heldout" not in said


def test_a_size_is_refused_by_its_own_name():
    with pytest.raises(ConfigError, match="^proxy 'big': give LAYERSxHIDDEN"):
        SearchConfig(method="proxies", proxy="big")


def test_what_was_found_is_what_a_run_is_given(root, tmp_path):
    found = search_mixture(config_for(root), OPMIX, tmp_path / "search")
    from dynadapt.experiments.reweight.config import named_weights

    weights = named_weights([str(tmp_path / "search" / "summary.json")])
    summary = run(config_for(root, mixer="fixed", weights=weights, steps=2), tmp_path / "run")
    assert summary["weights"] == pytest.approx(found["weights"])


def test_a_law_that_foresees_nothing_is_refused_by_name_and_decided_anew(root, tmp_path, monkeypatch):
    def noise(config, how, directory, model, domains, mixtures, *rest):
        losses = 3.0 + 0.1 * (-1.0) ** np.arange(mixtures.size).reshape(mixtures.shape)[::-1].cumsum(0)
        losses[:, 1] = 3.0 - mixtures[:, 1]
        return {"mixtures": mixtures.tolist(), "losses": losses.tolist(), "flops": {"probes": 1}}

    monkeypatch.setattr(search_module.probes, "measure", noise)
    how = SearchConfig(mixtures=20)
    with pytest.raises(LawError, match="'prose': .*--unforeseen hold"):
        search_mixture(config_for(root), how, tmp_path / "search")
    held = SearchConfig(mixtures=20, unforeseen="hold")
    found = search_mixture(config_for(root), held, tmp_path / "search", resume=True)
    assert found["held"] == ["prose"] and found["weights"]["digits"] > 0.9
    with pytest.raises(RunError, match="finished, with unforeseen 'hold'"):
        search_mixture(config_for(root), how, tmp_path / "search", resume=True)


def test_mixtures_lie_around_the_initial_weights():
    prior = np.array([0.7, 0.2, 0.1])
    found = drawn(SearchConfig(mixtures=4000), prior, 0)
    assert (
        found[0] == pytest.approx(prior)
        and found.sum(1) == pytest.approx(np.ones(4000))
        and found.mean(0) == pytest.approx(prior, abs=0.02)
    )
    near = drawn(SearchConfig(mixtures=4000, spread=20.0), prior, 0)
    assert near.std(0).max() < found.std(0).max() / 3 and np.array_equal(found, drawn(SearchConfig(mixtures=4000), prior, 0))


@pytest.mark.parametrize(
    "how, changes, said",
    [
        (dict(mixtures=4), {}, "mixtures 4 for 2 domains: a law has 3 numbers and is fitted to 3, four parts of five; give at least 5"),
        ({}, PROXIES, "method 'op-mix' with scratch '1x16': .*dynadapt export"),
        (dict(method="proxies", proxy="1x16"), {}, "proxy '1x16' without scratch"),
        (dict(), dict(weights={"prose": 0, "digits": 1}), "weights: domain 'prose' has 0: .*a weight above 0, or leave it out"),
        (dict(method="proxies", mixtures=5, part=1.0), dict(policy="stop", steps=500, **PROXIES), "proxy 0: .*out of data"),
        (dict(mixtures=5, part=1.0), dict(policy="stop", steps=500), "of the probes: .*out of data.*--policy repeat"),
    ],
)
def test_what_is_refused(how, changes, said, root, tmp_path):
    with pytest.raises((ConfigError, RunError), match=said):
        search_mixture(config_for(root, **changes), SearchConfig(**how), tmp_path / "search")
    assert not (tmp_path / "search" / "summary.json").exists()
