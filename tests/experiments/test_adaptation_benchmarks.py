"""The verdicts of benchmarks/{levels,resets,guard}.py and the page that benchmarks/adaptation.py makes of them."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks import adaptation, adaptation_rows, guard, levels, resets, script  # noqa: E402


def cells(worth: dict[str, float], flops: dict[str, float], noise: float = 0.001, domains: int = 6) -> dict:
    """Levels whose worths add up, a little different from domain to domain."""
    found = {}
    for d in range(domains):
        found[f"d{d}"] = {
            levels.name(arm): {
                "nll": 3 + d - sum(worth[level] + noise * ((d + i) % 3 - 1) for i, level in enumerate(levels.LEVELS) if level in arm),
                "flops_per_token": 1.0 + sum(flops[level] for level in arm),
            }
            for arm in levels.ARMS
        }
    return found


@pytest.mark.parametrize(
    "slow,cost,nats,flops,together",
    [
        (0.02, 0.1, "confirmed", "confirmed", "confirmed"),
        (0.02, 1.0, "confirmed", "refuted", "refuted"),
        (0.005, 0.1, "refuted", "confirmed", "refuted"),
        (0.01, 0.1, "not decided", "confirmed", "not decided"),
    ],
)
def test_three_levels_beside_the_best_pair(slow, cost, nats, flops, together):
    v = levels.verdicts(cells({"memory": 0.3, "fast": 0.05, "slow": slow}, {"memory": 0.0, "fast": 1.0, "slow": cost}))
    assert v["best_pair"] == "memory, fast"
    assert (v["nats"]["verdict"], v["flops"]["verdict"], v["verdict"]) == (nats, flops, together)
    assert v["nats"]["mean"] == pytest.approx(slow)
    assert {(row["level"], row["beside"]) for row in v["worth"]} >= {("slow", "memory, fast"), ("memory", "none"), ("fast", "slow")}
    assert len(v["worth"]) == 12 and all("verdict" not in row for row in v["worth"])


def test_settings_of_every_arm_are_runs(tmp_path):
    rates = {"fast": 1e-3, "slow": 4e-3}
    for arm in levels.ARMS:
        config = levels.config_of(tmp_path / "a.jsonl", arm, rates, "smollm2-135m")
        assert (config.memory == 512, config.adapt == "lora", config.levels is not None) == tuple(level in arm for level in levels.LEVELS)
        assert config.slow_every == (levels.EVERY if "slow" in arm else None)
        assert config.reset == ("document" if "fast" in arm else "never")


def row_of(arms: dict[str, float], splices=(1536,)) -> dict:
    return {
        "text": "t",
        "kind": None,
        "splices": list(splices),
        "segments": 32,
        "arms": {a: {"nll": x, "resets": []} for a, x in arms.items()},
    }


@pytest.mark.parametrize("alarm,verdict", [(-0.01, "confirmed"), (0.01, "refuted"), (0.0, "open")])
def test_the_alarms_part_is_beside_the_lower_rate(alarm, verdict):
    rows = [
        row_of({"oracle": 2.0, "never": 2.02, "lower": 2.0 + d, "slower": 2.0 + d + alarm + 0.001 * (i % 3 - 1)})
        for i, d in enumerate((0.0, 0.3, 0.1, 0.2, 0.4, 0.5))
    ]
    found = resets.verdicts(rows)
    assert found["the alarm's part"]["verdict"] == verdict
    assert found["the alarm's part"]["slower_less_lower"] == pytest.approx(alarm)
    assert "the alarm's part" not in resets.verdicts([{**row, "arms": {a: row["arms"][a] for a in ("oracle", "never")}} for row in rows])


def test_an_arm_has_to_stand_with_the_others_counted():
    """Half is within 0.005 of the oracle by itself, with a p above 2.5%, and with never the last of four that are counted."""
    off = (-1.0, 0.6, -0.4, 1.0, -0.6, 0.4)
    arms = {"oracle": (2.0, 0.0), "never": (2.005, 0.004), "half": (2.001, 0.0043), "full": (2.06, 0.001), "slower": (1.95, 0.001)}
    rows = [row_of({arm: nll + by * d + 0.1 * i for arm, (nll, by) in arms.items()}, splices=(1536, 3072)) for i, d in enumerate(off)]
    found = resets.verdicts(rows)["spliced"]
    says = {arm: (of["verdict"], of.get("by_itself")) for arm, of in found.items()}
    assert says == {
        "never": ("open", "open"), "oracle": ("-", None), "full": ("refuted", "refuted"), "half": ("open", "confirmed"), "slower": ("confirmed", "confirmed"),
    }  # fmt: skip
    assert 0.025 < found["half"]["p"] < 0.05 and found["half"]["p_together"] == pytest.approx(2 * found["half"]["p"])
    assert found["slower"]["helps"] and not found["full"]["helps"] and not found["never"]["helps"] and "helps" not in found["oracle"]
    page = resets.page({"verdicts": {"spliced": found, "stationary": {}}})
    assert "| 0 | open (confirmed by itself) |" in page and "| 12, given | - |" in page  # the oracle's resets are no alarms
    listed = adaptation_rows.of_resets({"verdicts": {"spliced": found, "stationary": {}}, "rows": rows})
    half = next(row for row in listed if row.claim.startswith("reset half"))
    assert half.verdict == "open (confirmed by itself)" and "(of 4 together" in half.found


def test_of_two_designs_of_a_script_one_name_is_given(capsys):
    with pytest.raises(SystemExit):
        adaptation.main(["--help"])
    assert "guard,resets,levels" in capsys.readouterr().out.replace(" ", "").replace("\n", "")


def test_false_alarms_are_counted_kind_by_kind():
    still = {"text": "s", "splices": [], "segments": 32}
    alarmed = {"nll": 2.0, "resets": [{"segment": 3, "to": "prior"}]}
    quiet = {"nll": 2.0, "resets": []}
    rows = [{**still, "kind": "shuffled", "arms": {"full": alarmed, "auto": quiet}}, {**still, "kind": "words", "arms": {"full": quiet}}]
    found = resets.verdicts(rows)["stationary"]
    assert list(found) == ["shuffled", "words"]
    assert (found["shuffled"]["full"]["alarms"], found["words"]["full"]["alarms"]) == (1, 0)
    assert found["shuffled"]["full"]["rate"] == 8 and "recipe" not in found["words"]
    assert found["shuffled"]["full"]["verdict"] == "refuted" and found["words"]["full"]["verdict"] == "open"


class Words:
    """A token a word."""

    def encode(self, text):
        return text.split()


def test_kinds_of_stationary_text():
    run = 300
    text = "\n\n".join(f"p{i} a{i} b{i}" for i in range(2000))
    of = {kind: resets.stationary(kind, text.split(), text, Words(), run) for kind in resets.KINDS}
    assert all(len(ids) == run for ids in of.values())
    assert of["held out"] == text.split()[-run:]
    firsts = [word for word in of["shuffled"] if word.startswith("p")]
    assert firsts != sorted(firsts, key=lambda word: int(word[1:])) and len(set(firsts)) == len(firsts)
    assert of["shuffled"][1] == "a" + of["shuffled"][0][1:] and of["words"][1] != "a" + of["words"][0][1:]
    with pytest.raises(SystemExit, match="shuffled text has 3 tokens"):
        resets.stationary("shuffled", [], "p a b", Words(), run)


def test_pieces_of_spliced_texts_are_of_one_text_each():
    """Short: the same number of every text; long: one of each domain that still has one, none of them in the stationary text."""
    short, long = resets.DESIGNS["short"], resets.DESIGNS["long"]
    ids = {f"d{i}": list(range(100_000 * i, 100_000 * i + (2 + 3 * i) * long.part + long.run + 5)) for i in range(4)}
    for design, counts in ((short, [3] * short.texts), (long, [4, 4, 3, 3, 3, 2])):
        found = resets.pieces_of(ids, design)
        assert [len(pieces) for pieces in found] == counts
        used = [token for pieces in found for piece in pieces.values() for token in piece]
        assert len(set(used)) == len(used) == sum(counts) * design.part
        assert not set(used) & {token for own in ids.values() for token in own[-design.run :]}
        assert any(list(pieces) != sorted(pieces) for pieces in found)
        joined, splices = resets.spliced(found[0], [7])
        assert joined[0] == 7 and len(joined) == counts[0] * design.part and splices == [design.part * i for i in range(1, counts[0])]
    with pytest.raises(SystemExit, match="d9 holds out 9000 tokens; 16384 are needed"):
        resets.pieces_of({"d9": [0] * 9000}, long)


RESULTS = ROOT / "benchmarks" / "results"
STORED = [(script, file) for script in (guard, resets) for file in sorted(RESULTS.glob(f"{script.__name__.rpartition('.')[2]}*.json"))]


@pytest.mark.parametrize("script,file", STORED, ids=lambda of: getattr(of, "stem", ""))
def test_results_have_the_verdicts_that_their_rows_give(script, file):
    content = json.loads(file.read_text())
    assert json.loads(json.dumps(script.verdicts(content["rows"]))) == content["verdicts"]


def test_the_page_has_the_tables_of_the_results(tmp_path, capsys, monkeypatch):
    assert adaptation.main(["--check"]) == 0
    page = adaptation.PAGE.read_text()
    monkeypatch.setattr(adaptation, "ROOT", tmp_path)
    monkeypatch.setattr(adaptation, "PAGE", tmp_path / "page.md")
    row = next(line for line in page.split("\n") if line.startswith("| a guard: never worse"))
    (tmp_path / "page.md").write_text(page.replace(row, row.replace("confirmed", "refuted")))
    assert adaptation.main(["--check"]) == 1 and "page.md differs" in capsys.readouterr().out
    assert adaptation.main(["--write"]) == 0 and (tmp_path / "page.md").read_text() == page


def test_what_has_no_results_is_not_run(tmp_path):
    table = adaptation.table(tmp_path)
    assert table.count("not run.") == 2 * 5 + 5 and "|" not in table  # five runs on two models, five on one
    (tmp_path / "guard-gemma3-270m.json").write_text((ROOT / "benchmarks" / "results" / "guard.json").read_text())
    table = adaptation.table(tmp_path)
    assert "**`guard.py`, smollm2-135m**: not run." in table and "**`guard.py`, gemma3-270m** (" in table


def test_what_is_not_independent_counts_once_beside_the_verdict():
    texts = ["man-french", "code", "man-german", "log"]
    assert adaptation_rows.pages_as_one([1.0, 2.0, 3.0, 4.0], texts) == [2.0, 4.0, 2.0]
    assert adaptation_rows.pages_as_one([2.0, 4.0], ["code", "log"]) == [2.0, 4.0]
    assert adaptation_rows.by_domain([("a, first", 1.0), ("b, first", 4.0), ("a, last", 3.0), ("one sentence", 9.0)]) == [2.0, 4.0]
    long = adaptation_rows.of_long(json.loads((RESULTS / "long-streams.json").read_text()))
    four = next(row for row in long if row.claim.startswith("lora-memory-512 worse than full") and "65,536" in row.claim)
    assert (
        four.verdict == "not decided (confirmed by itself)" and "p 0.0414 (of 4 together 0.1657)" in four.found
    )  # Holm's: the least of four p's by four
    assert four.texts == "8; 5 with the manual pages as one: +0.0192 [-0.0130, +0.0513]"


def test_intervals_give_back_the_power_of_their_differences():
    values = [0.1, 0.14, 0.09, 0.2, 0.12, 0.16]
    found = script.judged(values)
    row = adaptation_rows.with_interval("c", "r", "v", found, 6)
    assert float(row.power) == pytest.approx(found["seen_with_80%"], abs=1e-4) and row.found == script.shown(found, 4)


def test_it_runs_each_script_on_each_model_and_collects(tmp_path, monkeypatch):
    ran = []

    class Done:
        returncode = 0

    def call(command):
        ran.append(command)
        out = Path(command[command.index("--out") + 1])
        out.mkdir(parents=True)
        (out / "results.json").write_text("{}")
        return Done

    monkeypatch.setattr(adaptation.subprocess, "run", call)
    adaptation.run(tmp_path / "corpus", tmp_path / "out", list(adaptation.PIECES), list(adaptation.MODELS))
    assert len(ran) == 15 and sum("--model" in command for command in ran) == 10
    (beside,) = (command for command in ran if "--beside" in command)
    assert beside[1].endswith("long_ranks.py") and beside[-1] == str(tmp_path / "out" / "results" / "long-streams.json")
    assert {path.name for path in (tmp_path / "out" / "results").iterdir()} == {
        f"{stem}{model}.json" for stem in ("guard", "resets", "resets-long", "levels", "long-streams") for model in ("", "-gemma3-270m")
    } | {"score-first.json", "long-ranks.json", "long-orders.json", "learning-from.json", "distillation.json"}
    Done.returncode = 3
    monkeypatch.setattr(adaptation.subprocess, "run", lambda command: Done)
    with pytest.raises(SystemExit, match="guard.py on gemma3-270m did not come to its end"):
        adaptation.run(tmp_path / "corpus", tmp_path / "out", list(adaptation.PIECES), ["gemma3-270m"])


def rows_in(out: Path, tokens: int, arms=("static", "lora"), stop: str | None = None) -> tuple[dict, list]:
    """What by_text_and_arm leaves of two texts, and what it measured; ends before the text and arm ``stop``."""
    ran = []

    def measure(text, arm):
        if f"{text} {arm}" == stop:
            raise KeyboardInterrupt
        ran.append((text, arm))
        return {"nll": len(ran)}

    heads = [{"text": "a", "kind": 1}, {"text": "b", "kind": 2}]
    facts = {"model": "m", "tokens": tokens, "rates": (1e-3, 2e-3)}
    return script.by_text_and_arm(
        out, facts, heads, lambda row: arms, measure, lambda rows: {"texts": len(rows)}, lambda row, arm: arm
    ), ran


def test_a_benchmark_goes_on_with_the_arm_at_which_it_was_stopped(tmp_path):
    with pytest.raises(SystemExit, match=f"interrupted; the same command goes on in {tmp_path}"):
        rows_in(tmp_path, 10, stop="b static")
    results, ran = rows_in(tmp_path, 10)
    assert ran == [("b", "static"), ("b", "lora")] and results["verdicts"] == {"texts": 2}
    assert results["rows"][0] == {"text": "a", "kind": 1, "arms": {"static": {"nll": 1}, "lora": {"nll": 2}}}
    assert rows_in(tmp_path, 10)[1] == []  # nothing is left
    assert rows_in(tmp_path, 10, arms=("static", "full"))[1] == [("a", "full"), ("b", "full")]


def test_a_benchmark_does_not_go_on_with_other_settings(tmp_path):
    rows_in(tmp_path, 10)
    with pytest.raises(SystemExit, match="has tokens 10, not 12: give another --out"):
        rows_in(tmp_path, 12)


def test_a_benchmark_does_not_go_on_with_other_texts(tmp_path):
    head = {"text": "a", "ids": "0123"}
    measured = lambda head: script.by_text_and_arm(  # noqa: E731
        tmp_path, {}, [head], lambda row: ["static"], lambda text, arm: {}, lambda rows: {}, lambda row, arm: arm
    )
    assert measured({"text": "a"})["rows"] == measured(head)["rows"]  # of before there were digests
    (tmp_path / "results.json").unlink()
    measured(head)
    with pytest.raises(SystemExit, match="has text 'a' with ids '0123', not '4567': give another --out"):
        measured({**head, "ids": "4567"})
    file = script.text_once(tmp_path / "texts" / "a.txt", "a\r\nb\n", tmp_path)
    assert script.text_once(file, "a\r\nb\n", tmp_path).read_bytes() == b"a\r\nb\n"
    with pytest.raises(SystemExit, match="a.txt holds another text than is made of .* now: give another --out"):
        script.text_once(file, "a\nb\n", tmp_path)


def test_a_text_that_was_begun_is_not_taken_for_one(tmp_path):
    def killed(path):
        path.write_text("half of")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        script.made_once(tmp_path / "text", killed)
    assert script.made_once(tmp_path / "text", lambda path: path.write_text("all of it")).read_text() == "all of it"
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


def test_what_is_refused_is_one_line(tmp_path):
    from dynadapt.runs.rundir import RunError
    from dynadapt.runs.stopping import Interrupted

    for error, said in ((RunError("no\nway"), "no way"), (Interrupted("stopped"), f"stopped; the same command goes on in {tmp_path}")):
        with pytest.raises(SystemExit) as end, script.going_on(tmp_path):
            raise error
        assert end.value.code == said
    with pytest.raises(ValueError, match="ours"), script.going_on(tmp_path):
        raise ValueError("ours: a mistake of the program, whose place is of use")


def test_a_diverged_domain_does_not_end_the_others(tmp_path, monkeypatch):
    from benchmarks import odyssey
    from dynadapt.runs.rundir import RunError
    from dynadapt.runs.stopping import Interrupted

    ran, written = [], {}

    def run_domain(name, condition, arguments, reference):
        ran.append(name)
        if len(ran) == 1:
            raise RunError("diverged")
        if len(ran) == 3:
            raise Interrupted("stopped after step 3")
        return {"domain": name}

    monkeypatch.setattr(odyssey, "domains_of", lambda corpus, wanted: ["a", "b", "c"])
    monkeypatch.setattr(odyssey, "sampled", lambda model, out: out)
    monkeypatch.setattr(odyssey, "run_domain", run_domain)
    monkeypatch.setattr(odyssey, "write_done", lambda arguments, done, failed: written.update(done=done, failed=failed))
    monkeypatch.setattr(sys, "argv", ["odyssey.py", str(tmp_path), "--out", str(tmp_path), "--conditions", "lora"])
    with pytest.raises(SystemExit, match="stopped after step 3; the same command goes on"):
        odyssey.main()
    assert ran == ["a", "b", "c"] and written["done"] == {"lora": [{"domain": "b"}]} and written["failed"][0]["domain"] == "a"
