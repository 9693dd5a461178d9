"""What a run's files say, held against what its settings give, and against themselves."""

from __future__ import annotations

import math

import numpy as np

from dynadapt.common.environment import environment
from dynadapt.runs.whole_files import read_json_or

from .moves import Moves, at, largest, nats, same
from .replay import Replay, place_of
from .report import FAILED, NOT_JUDGED, PASSED, Report

BITS_DEPEND_ON = ("dynadapt", "isa", "torch", "gpu")  # of the machine and the installation: on one of each, bits are promised
SUMS = 1e-9  # by which a mean may differ that was added up in another order, as a share
WITHOUT = "several processes made the run, and it kept no scores: run it again with --scores"


def hold(report: Report, replay: Replay, scored: list[np.ndarray]) -> None:
    """The check "record": whether `scored`, [S, T] of each segment, is what the record has, and its mean what the summary says."""
    unlike = Moves(report.settings["tolerance"])
    if replay.kept_scores:
        what = "scores"
        _hold_against_scores(unlike, replay, scored)
    elif not replay.in_parts:
        what = "means of segments (--scores keeps all scores)"
        _hold_against_metrics(unlike, replay, scored)
    else:
        report.add("record", NOT_JUDGED, WITHOUT)
        return
    if claimed := _other_mean(replay):
        report.add("record", FAILED, claimed, unlike.tried)
    elif not unlike.evidence:
        said = f"{unlike.tried:,} {what} are what these settings give, {same(unlike.largest)}, with nothing later there yet"
        report.add("record", PASSED, said, unlike.tried)
    else:
        first, evidence = unlike.evidence[0], unlike.sorted()
        said = (
            f"{len(evidence):,} of {unlike.tried:,} {what} are not what these settings give: the first is {at(first)}, which differs "
            f"{nats(first['moved'])}; the most {nats(evidence[0]['moved'])}"
        )
        elsewhere = _made_elsewhere(replay.run)
        if elsewhere:
            said += f". The record was made with {elsewhere}: the same bits are promised on one alone; give a --tolerance"
        report.add("record", NOT_JUDGED if elsewhere else FAILED, said, unlike.tried, evidence)


def _hold_against_scores(unlike: Moves, replay: Replay, scored: list[np.ndarray]) -> None:
    rows = replay.run.scores()
    known = {(int(d), int(p)): float(x) for d, p, x in zip(rows["document"], rows["position"], rows["nll"])}
    for segment, nll in zip(replay.segments, scored):
        for stream, n in enumerate(segment.lengths):
            for j in range(n):
                place = place_of(segment, stream, j)
                was = known.get((place["document"], place["position"]), math.nan)
                _, moved = largest(np.array([was]), nll[stream, j : j + 1].astype(np.float64))
                unlike.see(moved, place)


def _hold_against_metrics(unlike: Moves, replay: Replay, scored: list[np.ndarray]) -> None:
    for line, segment, nll in zip(replay.run.metrics, replay.segments, scored):
        for stream, n in enumerate(segment.lengths):
            if n:
                was = np.array([line["stream_nll"][stream]], np.float64)
                _, moved = largest(was, np.array([float(nll[stream, :n].astype(np.float64).sum()) / int(n)]))
                unlike.see(moved, {**place_of(segment, stream, 0), "segment": line["segment"]})


def _other_mean(replay: Replay) -> str | None:
    """What is wrong with the loss that the summary states."""
    run = replay.run
    if run.summary is None:
        return None
    if replay.kept_scores:
        mean = float(run.scores()["nll"].astype(np.float64).mean())
    else:
        mean = math.fsum(line["nll"] * line["tokens"] for line in run.metrics) / max(1, sum(line["tokens"] for line in run.metrics))
    if abs(mean - run.summary["nll"]) <= SUMS * abs(mean):
        return None
    return f"summary.json says {run.summary['nll']:.6f} nats a token, and the mean of what was recorded is {mean:.6f}"


def once(report: Report, replay: Replay) -> None:
    """The check "scored once": whether the record has each token of the text once."""
    total = replay.recorded
    if replay.kept_scores:
        wrong = _other_rows(replay)
        said = f"{total:,} positions, each once, none left out, and with the text's own tokens where it was played again"
    elif replay.in_parts:
        report.add("scored once", NOT_JUDGED, WITHOUT)
        return
    else:
        wrong = _other_segments(replay)
        said = f"the record's segments are the text's, one behind the other: {total:,} tokens"
    if not wrong and replay.whole and total != replay.tokens:
        wrong = [{"wrong": f"{total:,} tokens are in the record, and the text has {replay.tokens:,} to score"}]
    if wrong:
        report.add("scored once", FAILED, f"{wrong[0]['wrong']}; {len(wrong)} such findings", total, wrong)
    else:
        report.add("scored once", PASSED, said, total)


def _other_segments(replay: Replay) -> list[dict]:
    wrong = []
    for line, segment in zip(replay.run.metrics, replay.segments):
        ours, theirs = (segment.documents, segment.lengths.tolist()), (line["documents"], line["lengths"])
        if ours != theirs:
            wrong.append(
                {"wrong": f"segment {line['segment']} has documents {theirs[0]} of {theirs[1]} tokens, the text {ours[0]} of {ours[1]}"}
            )
    return wrong


def _other_rows(replay: Replay) -> list[dict]:
    rows = replay.run.scores()
    keys = rows["document"].astype(np.int64) << 32 | rows["position"]
    unique, counts = np.unique(keys, return_counts=True)
    wrong = []
    for key, times in zip(unique[counts > 1].tolist(), counts[counts > 1]):
        place = _place_in(key)
        wrong.append({**place, "wrong": f"{at(place)} was scored {times} times"})
    gaps = (np.diff(unique, prepend=-1) != 1) & ((unique & 0xFFFFFFFF) != 1)
    for key in unique[gaps].tolist():
        place = _place_in(key)
        wrong.append({**place, "wrong": f"what precedes {at(place)} was not scored"})
    tokens = dict(zip(keys.tolist(), rows["token"].tolist()))
    for segment in replay.segments:
        for stream, n in enumerate(segment.lengths):
            for j in range(n):
                place = place_of(segment, stream, j)
                was, now = tokens.get(place["document"] << 32 | place["position"]), int(segment.tokens[stream, j + 1])
                if was != now:
                    wrong.append({**place, "wrong": f"{at(place)} has token {was} in the record and {now} in the text"})
    return wrong


def _place_in(key: int) -> dict:
    return {"document": key >> 32, "position": key & 0xFFFFFFFF}


def _made_elsewhere(run) -> str:
    """What the record was made with, as far as its bits depend on it and it is not what is here; "" where it is the same."""
    made, here = read_json_or(run.path / "env.json", {}), environment()
    parts = [made, *made.get("earlier", [])]
    of = lambda env: {  # noqa: E731
        "dynadapt": env.get("dynadapt"),
        "isa": (env.get("native") or {}).get("isa"),
        "torch": (env.get("packages") or {}).get("torch"),
        "gpu": env.get("gpu"),
    }
    return "; ".join(
        f"{name} {of(part)[name]} (here {of(here)[name]})" for part in parts for name in BITS_DEPEND_ON if of(part)[name] != of(here)[name]
    )
