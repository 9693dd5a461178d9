"""`dynadapt audit RUN`: whatever learns and remembers passes; what was tampered with, and an engine that cheats, are caught."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import config_of, english, eval_config, tiny_directory, tiny_root

from dynadapt.adapt import mixture
from dynadapt.adapt.mixture import fixed_share
from dynadapt.engine import Engine
from dynadapt.engine.decoder import Decoder
from dynadapt.experiments import dyneval
from dynadapt.experiments.audit import audit_run
from dynadapt.experiments.audit.distributions import fixed_share_weights
from dynadapt.experiments.audit.report import FAILED, LEFT_OUT, NOT_JUDGED, PASSED, Report
from dynadapt.runs.whole_files import RunError

SCORES = dyneval.RunOptions(scores=True)
ALL = dict.fromkeys(("record", "scored once", "repeatable", "later tokens", "own token", "distribution", "documents"), PASSED)
LEARNS_ON = {**ALL, "documents": LEFT_OUT}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    path = tiny_root(tmp_path_factory.mktemp("root"), 60)
    for number, words in enumerate((30, 22, 41)):
        (path / f"{number}.txt").write_text(english(words, seed=number))
    return path


def three(root: Path, **changes):
    return eval_config(root / "model", [root / f"{n}.txt" for n in range(3)], **changes)


def verdicts(report: Report) -> dict[str, str]:
    json.dumps(report.to_dict(), allow_nan=False)
    return {check.name: check.verdict for check in report.checks}


def said(report: Report, name: str) -> str:
    return next(check.said for check in report.checks if check.name == name)


def audited(config, out: Path, options=SCORES, positions=8, **more) -> Report:
    dyneval.run(config, out, options)
    return audit_run(out, positions=positions, **more)


NATIVE = {"backend": "cpu", "memory": 16}
KINDS = {
    "static": ({"adapt": "none"}, ALL),
    "static, with what learners have": ({"adapt": "none", "guard": "exact", "slow_every": 40}, ALL),
    "lora": ({"memory": 16, "refresh": "reproject"}, LEARNS_ON),
    "lora, bf16": ({**NATIVE, "dtype": "bf16"}, LEARNS_ON),
    "int8": ({**NATIVE, "base": "int8"}, LEARNS_ON),
    "rows": ({**NATIVE, "adapt": "rows", "density": 0.3}, LEARNS_ON),
    "full": ({**NATIVE, "adapt": "full", "optimizer": "muon", "decay": 0.01}, LEARNS_ON),
    "every parameter": ({"adapt": "full", "targets": "model", "optimizer": "sgd"}, LEARNS_ON),
    "overlap": ({"context": 8}, LEARNS_ON),
    "every second segment": ({"every": 2}, LEARNS_ON),
    "changes": ({"reset": "auto"}, LEARNS_ON),
    "every 40 tokens": ({"reset": 40, "optimizer": "lion"}, LEARNS_ON),
    "guard": ({**NATIVE, "guard": "exact"}, LEARNS_ON),
    "guard, every third": ({"guard": 3, "lr": 0.05, "dtype": "fp64"}, LEARNS_ON),
    "guard, rows and alarms": ({**NATIVE, "adapt": "full", "guard": "exact", "lr": 0.1, "reset": "auto"}, LEARNS_ON),
    "guard, the head": ({"guard": "exact", "targets": "q,head", "context": 8}, LEARNS_ON),
    "two parts": ({"split": True, "streams": 2}, {**LEARNS_ON, "streams": PASSED}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_learns_and_remembers_passes(kind, root, tmp_path):
    changes, expected = KINDS[kind]
    report = audited(config_of(root, **changes), tmp_path / "run")
    assert verdicts(report) == expected and report.status == 0 and report.tried == 8 and not report.notes


@pytest.mark.parametrize("changes", [{"streams": 1}, {"streams": 2, "memory": 16, "backend": "cpu"}, {"streams": 2, "adapt": "none"}])
def test_documents_that_know_nothing_of_each_other_pass(changes, root, tmp_path):
    report = audited(three(root, reset="document", **changes), tmp_path / "run")
    assert verdicts(report) == {**ALL, **({"streams": PASSED} if changes["streams"] == 2 else {})}
    assert "3 documents behind other texts, 3 in reverse order" in said(report, "documents")


@pytest.mark.parametrize("what", [{"optimizer": "rms"}, {"select": "contrast"}])
def test_gradient_statistics_are_gathered_again(what, root, tmp_path):
    changes = {"adapt": "rows", **what, "statistics": str(root / "0.txt")}
    assert verdicts(audited(config_of(root, **changes), tmp_path / "run")) == LEARNS_ON


def test_documents_that_share_a_are_not_said_to_be_independent(root, tmp_path):
    report = audited(three(root, reset="document", keep_a=True), tmp_path / "run")
    assert verdicts(report) == LEARNS_ON and "A stays" in said(report, "documents")


def test_a_run_without_scores_is_held_against_its_metrics(root, tmp_path):
    report = audited(config_of(root), tmp_path / "run", dyneval.RunOptions())
    assert verdicts(report) == LEARNS_ON and "means of segments" in said(report, "record")


def test_a_part_of_a_run(root, tmp_path):
    report = audited(config_of(root), tmp_path / "run", tokens=40)
    assert verdicts(report) == LEARNS_ON and "48 of " in report.notes[0] and "--tokens N" in report.notes[0]


def test_a_run_that_is_not_finished(root, tmp_path):
    def stop(event):
        return event["segment"] < 2

    with pytest.raises(dyneval.Interrupted):
        dyneval.run(config_of(root), tmp_path / "run", SCORES, stop)
    report = audit_run(tmp_path / "run", positions=4)
    assert verdicts(report) == LEARNS_ON and "not finished (stopped)" in report.notes[-1]


# ---- records


def tampered(run: Path, change) -> None:
    """The rows of scores.npy otherwise, and a digest that fits."""
    rows = change(np.load(run / "scores.npy").copy())
    content = (run / "scores.npy").read_bytes()[:256]
    old = repr({"descr": rows.dtype.descr, "fortran_order": False, "shape": np.load(run / "scores.npy").shape})
    new = repr({"descr": rows.dtype.descr, "fortran_order": False, "shape": rows.shape})
    header = content.replace(old.encode(), new.encode())
    header = header.rstrip(b"\n")[:255].ljust(255) + b"\n"
    (run / "scores.npy").write_bytes(header + rows.tobytes())
    summary = json.loads((run / "summary.json").read_text())
    summary["files"]["scores.npy"] = {"bytes": len(rows.tobytes()), "sha256": hashlib.sha256(rows.tobytes()).hexdigest()}
    (run / "summary.json").write_text(json.dumps(summary))
    assert len(np.load(run / "scores.npy")) == len(rows)


def better(rows):
    """By what the mean does not show."""
    assert (rows["nll"][37:39] > 4).all() and (rows["nll"][37:39] < 7.9).all()  # so that both numbers have the same grid
    rows["nll"][37:39] += np.float32([-(2**-20), 2**-20])
    return rows


def twice(rows):
    return np.concatenate([rows, rows[5:6]])


def left_out(rows):
    return np.delete(rows, 20)


def other_token(rows):
    rows["token"][9] += 1
    return rows


@pytest.mark.parametrize(
    "change, failed, words",
    [
        (better, "record", "2 of {n} scores are not what these settings give: the first is document 0, position 38"),
        (twice, "scored once", "document 0, position 6 was scored 2 times"),
        (left_out, "scored once", "what precedes document 0, position 22 was not scored"),
        (other_token, "scored once", "document 0, position 10 has token "),
    ],
)
def test_records_that_were_tampered_with_are_caught(change, failed, words, root, tmp_path):
    dyneval.run(config_of(root), tmp_path / "run", SCORES)
    count = len(np.load(tmp_path / "run" / "scores.npy"))
    tampered(tmp_path / "run", change)
    report = audit_run(tmp_path / "run", positions=2)
    assert verdicts(report)[failed] == FAILED and report.status == 1
    assert words.format(n=count) in said(report, failed)
    assert audit_run(tmp_path / "run", positions=2, tolerance=1e-5).status == (0 if change is better else 1)


@pytest.mark.parametrize("options", [SCORES, dyneval.RunOptions()])
def test_a_summary_that_states_another_loss_is_caught(options, root, tmp_path):
    dyneval.run(config_of(root), tmp_path / "run", options)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    (tmp_path / "run" / "summary.json").write_text(json.dumps({**summary, "nll": summary["nll"] - 0.01}))
    report = audit_run(tmp_path / "run", positions=2)
    assert verdicts(report)["record"] == FAILED and "summary.json says " in said(report, "record")


def test_metrics_that_were_tampered_with_are_caught(root, tmp_path):
    run = tmp_path / "run"
    dyneval.run(config_of(root), run, dyneval.RunOptions())
    lines = (run / "metrics.jsonl").read_text().splitlines()
    line = json.loads(lines[2])
    line["stream_nll"][0] -= 1e-9
    lines[2] = json.dumps(line)
    content = ("\n".join(lines) + "\n").encode()
    (run / "metrics.jsonl").write_bytes(content)
    with pytest.raises(RunError, match="metrics.jsonl"):
        audit_run(run)
    summary = json.loads((run / "summary.json").read_text())
    summary["files"]["metrics.jsonl"] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (run / "summary.json").write_text(json.dumps(summary))
    assert verdicts(audit_run(run, positions=2))["record"] == FAILED


def test_a_record_of_another_machine_is_not_judged_by_its_bits(root, tmp_path):
    run = tmp_path / "run"
    dyneval.run(config_of(root), run, SCORES)
    environment = json.loads((run / "env.json").read_text())
    (run / "env.json").write_text(json.dumps({**environment, "dynadapt": "0.0.1"}))
    assert audit_run(run, positions=2).status == 0  # its bits are these all the same
    tampered(run, better)
    report = audit_run(run, positions=2)
    assert verdicts(report)["record"] == NOT_JUDGED and report.status == 2
    assert "made with dynadapt 0.0.1 (here " in said(report, "record")


def test_several_processes_without_scores_are_not_judged(root, tmp_path):
    dyneval.run(config_of(root), tmp_path / "run", dyneval.RunOptions())
    (tmp_path / "run" / "parts").mkdir()
    report = audit_run(tmp_path / "run", positions=2)
    assert verdicts(report) == {**LEARNS_ON, "record": NOT_JUDGED, "scored once": NOT_JUDGED}


@pytest.mark.parametrize("what", ["text", "model"])
def test_what_the_run_read_must_still_be_there(what, tmp_path):
    root = tiny_root(tmp_path / "root", 40)
    dyneval.run(config_of(root), tmp_path / "run", SCORES)
    if what == "text":
        (root / "a.txt").write_text("another text")
    else:
        tiny_directory(root / "model", **{"norm.weight": torch.full((60,), 1.5)})
    with pytest.raises(RunError, match="changed since"):
        audit_run(tmp_path / "run")


def test_a_run_of_another_kind_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"mixer": "proportional", "domains": {}}))
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(RunError, match="a run of dynadapt reweight; audit takes runs of dynadapt eval"):
        audit_run(tmp_path)


# ---- engines that cheat, in the run and in its audit alike


def after(step, enter):
    """The score is that of a second pass, behind the update."""

    def cheating(self, tokens, lengths=None, streams=None, weights=None):
        kept = [self.snapshot(s) for s in range(self.streams)]
        step(self, tokens, lengths, streams, weights)
        learned = [self.learners[0].slot_copy(s) for s in range(self.streams)]
        for s, snapshot in enumerate(kept):
            self.rollback(s, snapshot)
            self.learners[0].slot_load(s, learned[s])
        return step(self, tokens, lengths, streams, weights)

    return cheating, enter


def statistics(step, enter):
    """The mean score of the whole segment is drawn towards."""

    def cheating(self, *given, **named):
        nll = step(self, *given, **named)
        return nll + 1e-3 * nll.mean()

    return cheating, enter


def leak(step, enter):
    """What was learned stays when another document enters."""

    def cheating(self, stream, lr=None, **more):
        kept = self.learners[0].slot_copy(stream)
        enter(self, stream, lr, **more)
        self.learners[0].slot_load(stream, kept)

    return step, cheating


def mixed_streams(step, enter):
    """All streams of a step have a part of each other's scores."""

    def cheating(self, *given, **named):
        nll = step(self, *given, **named)
        return nll + 1e-3 * nll.sum() * (nll != 0)

    return cheating, enter


def noise(step, enter):
    def cheating(self, *given, **named):
        nll = step(self, *given, **named)
        return nll + 1e-6 * torch.rand(nll.shape)

    return cheating, enter


@pytest.mark.parametrize(
    "cheat, failed, words",
    [
        (after, "later tokens", "scores see later tokens: document "),
        (statistics, "later tokens", "scores see later tokens: document "),
        (leak, "documents", "documents leak into each other: document "),
        (mixed_streams, "streams", "streams leak into each other: document "),
        (noise, "repeatable", "the same segment gave other scores: document "),
    ],
)
def test_engines_that_cheat_are_caught(cheat, failed, words, root, tmp_path, monkeypatch):
    step, enter = cheat(Engine.step, Engine.enter)
    monkeypatch.setattr(Engine, "step", step)
    monkeypatch.setattr(Engine, "enter", enter)
    report = audited(three(root, reset="document", streams=2), tmp_path / "run", positions=4)
    assert verdicts(report)[failed] == FAILED and report.status == 1
    assert words in said(report, failed)


def test_scores_that_are_no_probabilities_are_caught(root, tmp_path, monkeypatch):
    score = Decoder.score
    monkeypatch.setattr(Decoder, "score", lambda *given: (lambda nll, dh: (nll - 0.1, dh))(*score(*given)))
    report = audited(config_of(root), tmp_path / "run")
    assert verdicts(report)["distribution"] == FAILED and "probabilities sum to 1.105" in said(report, "distribution")


def test_documents_of_a_guarded_run_know_nothing_of_each_other(root, tmp_path):
    report = audited(three(root, reset="document", streams=2, guard="exact", memory=16, lr=0.05), tmp_path / "run")
    assert verdicts(report) == {**ALL, "streams": PASSED}


@pytest.mark.parametrize(
    "settings,word",
    [({"rates": "1e-3,1e-2"}, "rates"), ({"levels": "fast,slow"}, "levels"), ({"levels": "slow", "adapt": "none"}, "levels")],
)
def test_learners_side_by_side_and_levels_are_refused(settings, word, root, tmp_path):
    dyneval.run(config_of(root, backend="cpu", **settings), tmp_path / "run", SCORES)
    with pytest.raises(ValueError, match=f"{word} .*in the run: an audit goes back"):
        audit_run(tmp_path / "run")


def test_mixtures_that_see_the_token_are_caught(root, tmp_path, monkeypatch):
    """The better expert of each token has the weight that it has behind it: sums over all tokens are above one."""

    def cheating(log_weights, losses, counted, share):
        mixed, after = fixed_share(log_weights, losses, counted, share)
        return torch.where(counted, 0.9 * mixed + 0.1 * losses.amin(2), mixed), after

    monkeypatch.setattr(mixture, "fixed_share", cheating)
    report = audited(config_of(root, guard="exact", lr=0.05), tmp_path / "run")
    assert verdicts(report)["own token"] == FAILED and verdicts(report)["distribution"] == FAILED


def test_weights_of_two_experts_are_those_of_the_mixture():
    generator = torch.Generator().manual_seed(0)
    losses = 3 * torch.rand(1, 20, 2, generator=generator, dtype=torch.float64)
    losses[0, 4, 0], losses[0, 9, 1], losses[0, 12] = torch.nan, torch.inf, torch.nan
    log_weights = torch.tensor([[0.3, 0.7]], dtype=torch.float64).log()
    mixed, _ = fixed_share(log_weights, losses, torch.ones(1, 20, dtype=torch.bool), 0.01)
    weights = fixed_share_weights(np.array([0.3, 0.7]), [losses[0, :, 0].numpy(), losses[0, :, 1].numpy()], 0.01)
    known = np.arange(20) != 12
    expected = -np.log(np.where(known, (weights * np.exp(-losses[0].nan_to_num(torch.inf, torch.inf).numpy())).sum(1), 1.0))
    assert np.allclose(expected[known], mixed[0].numpy()[known], rtol=1e-12) and bool(mixed[0, 12].isnan())
    assert np.allclose(weights[13], weights[12], rtol=0, atol=0)


def test_scores_that_see_their_own_token_are_caught(root, tmp_path, monkeypatch):
    """Odd tokens come cheaper than the distribution has them: it sums to one, and is not what they are scored by."""
    score = Engine.step

    def cheating(self, tokens, *given, **named):
        nll = score(self, tokens, *given, **named)
        return nll - 0.1 * (torch.as_tensor(tokens)[:, 1:] % 2) * (nll != 0)

    monkeypatch.setattr(Engine, "step", cheating)
    report = audited(config_of(root), tmp_path / "run")
    assert verdicts(report)["own token"] == FAILED and verdicts(report)["distribution"] == FAILED
    assert "its distribution says" in said(report, "distribution")
