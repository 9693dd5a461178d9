"""The campaign goes on where it was stopped, and the pages' tables are what the files say."""

import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
import cpu_campaign  # noqa: E402
import cpu_tables  # noqa: E402


@pytest.fixture
def machine(monkeypatch):
    """One with two instruction sets, where nothing is measured: the words of each command, and a file of each."""
    ran = []

    def launch(words):
        ran.append(words)
        if any("score" in word for word in words) and "fails" in machine_state:
            return 2
        Path(words[words.index("--out") + 1]).write_text(json.dumps({"benchmark": words[1]}))
        return 0

    machine_state: set = set()
    monkeypatch.setattr(cpu_campaign, "instruction_sets", lambda: ["avx2", "avx512"])
    monkeypatch.setattr(cpu_campaign, "peaks_of", lambda isa: {"bf16": 100.0, "fp32": 200.0})
    monkeypatch.setattr(cpu_campaign, "launch", launch)
    return ran, machine_state


def test_a_campaign_measures_all_and_says_how_long_it_takes(machine, tmp_path, capsys):
    ran, _ = machine
    assert cpu_campaign.main(["--list", "--out", str(tmp_path)]) == 0 and not ran
    said = capsys.readouterr().err
    assert "10 of 10 to measure, about " in said and "llama.cpp is left out" in said and "step-avx512.json" in said
    (model := tmp_path / "m.gguf").touch()
    assert cpu_campaign.main(["--out", str(tmp_path), "--gguf", str(model), "--llama-cpp", "b/{isa}"]) == 0
    files = {
        f"{what}-{isa}{end}.json"
        for isa in ("avx2", "avx512")
        for what, end in (("step", ""), ("step", "-bf16"), ("step", "-s4"), ("score", ""), ("products", ""))
    }
    assert {path.name for path in tmp_path.glob("*.json")} == files | {cpu_campaign.DONE} and len(ran) == 10
    parse = __import__("dynadapt.cli", fromlist=["parse"]).parse
    for words in ran:
        parsed = parse(list(words))  # every command is one that dynadapt knows
        assert parsed.isa in ("avx2", "avx512") and Path(parsed.out).parent == tmp_path
        assert parsed.dtype == ("bf16" if parsed.out.endswith("-bf16.json") else "fp32")  # these sets have no products of bf16
    scored = parse(list(next(words for words in ran if words[1] == "score")))
    assert scored.against == "torch-eager,torch-compile,llama.cpp" and scored.llama_cpp.endswith("b/{isa}")
    assert "about 0:" in capsys.readouterr().err


def test_where_bf16_is_multiplied_all_are_measured_in_it(machine, tmp_path, monkeypatch):
    ran, _ = machine
    monkeypatch.setattr(cpu_campaign, "instruction_sets", lambda: ["avx512_bf16"])
    assert cpu_campaign.main(["--out", str(tmp_path)]) == 0
    assert len(ran) == 4 and all(words[words.index("--dtype") + 1] == "bf16,fp32" for words in ran)


def test_a_campaign_that_was_stopped_goes_on(machine, tmp_path, capsys):
    ran, state = machine
    state.add("fails")
    assert cpu_campaign.main(["--out", str(tmp_path), "--isa", "avx2"]) == 1
    assert "failed: score-avx2.json; the same command tries them again" in capsys.readouterr().err
    state.clear()
    ran.clear()
    assert cpu_campaign.main(["--out", str(tmp_path), "--isa", "avx2"]) == 0
    assert [words[1] for words in ran] == ["score"] and "1 of 5 to measure" in capsys.readouterr().err
    ran.clear()
    assert cpu_campaign.main(["--out", str(tmp_path), "--isa", "avx2", "--rounds", "7"]) == 0  # another command: other files
    assert len(ran) == 5
    assert cpu_campaign.main(["--out", str(tmp_path), "--isa", "avx2", "--rounds", "7"]) == 0 and len(ran) == 5
    assert (
        cpu_campaign.main(["--out", str(tmp_path), "--isa", "avx2", "--rounds", "7", "--again", "--only", "products"]) == 0
        and len(ran) == 6
    )
    with pytest.raises(SystemExit, match="--isa sse: this processor has avx2, avx512"):
        cpu_campaign.main(["--isa", "sse", "--out", str(tmp_path)])


def test_what_an_interruption_leaves_is_measured_again(machine, tmp_path, monkeypatch):
    ran, _ = machine
    options = ["--out", str(tmp_path), "--isa", "avx2"]
    assert cpu_campaign.main(options) == 0 and len(ran) == 5
    (tmp_path / "step-avx2.json").write_text('{"benchmark": "st')
    (tmp_path / "products-avx2.json").unlink()
    ran.clear()
    assert cpu_campaign.main(options) == 0 and [words[1] for words in ran] == ["step", "products"]

    def interrupted(words):
        raise KeyboardInterrupt

    monkeypatch.setattr(cpu_campaign, "launch", interrupted)
    with pytest.raises(SystemExit, match="stopped; the same command goes on in"):
        cpu_campaign.main([*options, "--again"])


@pytest.mark.parametrize("content", ['{"step-avx2.json": ["ben', "[]"])
def test_a_damaged_record_of_a_campaign_is_named(machine, tmp_path, content):
    ran, _ = machine
    (tmp_path / cpu_campaign.DONE).write_text(content)
    with pytest.raises(SystemExit, match=r"campaign\.json: damaged: .*--again measures anew"):
        cpu_campaign.main(["--out", str(tmp_path)])
    assert not ran and cpu_campaign.main(["--out", str(tmp_path), "--isa", "avx2", "--again"]) == 0 and len(ran) == 5


@pytest.mark.parametrize(
    "options, said",
    [
        (["--gguf", "nowhere.gguf"], "--gguf nowhere.gguf: there is no such file"),
        (["--rounds", "0"], "--rounds: '0': give a whole number of at least 1"),
        (["--out", __file__], "--out .*: expected a file that can be written; .*Not a directory|File exists"),
    ],
)
def test_a_campaign_refuses_before_it_measures(machine, options, said, capsys):
    ran, _ = machine
    with pytest.raises(SystemExit) as refused:
        cpu_campaign.main(options)
    assert re.search(said, f"{refused.value}{capsys.readouterr().err}") and not ran


def test_what_is_launched_is_the_command_line(capfd):
    assert cpu_campaign.launch(("bench", "step", "--isa", "sse")) == 2
    assert "--isa sse: expected some of avx2" in capfd.readouterr().err


def test_a_command_that_writes_nothing_has_failed(machine, tmp_path, monkeypatch, capsys):
    (tmp_path / "products-avx2.json").write_text("{}")  # of an earlier campaign
    monkeypatch.setattr(cpu_campaign, "launch", lambda words: 0)
    assert cpu_campaign.main(["--out", str(tmp_path), "--isa", "avx2", "--only", "products"]) == 1
    assert "failed: products-avx2.json" in capsys.readouterr().err and not (tmp_path / cpu_campaign.DONE).is_file()


def test_an_estimate_grows_with_the_work():
    task = cpu_campaign.Task("a", "avx2", (), ("dynadapt", "peft-eager"), 2.0, ("fp32",))
    fast, slow = (task.seconds({"fp32": peak}, 10, 2) for peak in (1000.0, 100.0))
    assert slow > fast > 0 and task.seconds({"fp32": 100.0}, 20, 2) > slow
    once = 2 * 2 * cpu_campaign.PARAMETERS * cpu_campaign.TOKENS / (1e9 * 100.0 * 0.7)
    alone = cpu_campaign.Task("a", "avx2", (), ("dynadapt",), 2.0, ("fp32",)).seconds({"fp32": 100.0}, 10, 2)
    assert alone == pytest.approx(3 * cpu_campaign.START + 10 * once * 1.8)


# ---- the tables


def test_the_pages_are_what_the_files_say():
    assert cpu_tables.main(["--check"]) == 0


def spread(seconds):
    return {"median": seconds, "p20": seconds, "p80": seconds}


def row(provider, dtype, seconds, fastest, **more):
    return {
        "provider": provider,
        "dtype": dtype,
        "seconds": spread(seconds),
        "by_threads": {"1": spread(2 * seconds), "2": spread(seconds)},
        "tokens_per_second": 512 / seconds,
        "share_of_ceiling": 0.87,
        "share_of_peak": 0.5,
        "speedup_of_dynadapt": seconds / fastest,
        "peak_memory_bytes": 10**9,
        "first_step_seconds": 1.5,
        **more,
    }


@pytest.fixture
def measured(tmp_path):
    """AVX2 with a peer that loses and, beside a busy core, one that wins; scoring, and two products."""
    providers = {
        "dynadapt fp32": row("dynadapt", "fp32", 2.0, 2.0),
        "dynadapt bf16": row("dynadapt", "bf16", 2.5, 2.0),
        "dynadapt fp32 int8": row("dynadapt", "fp32", 1.9, 2.0),
        "peft-eager fp32": row("peft-eager", "fp32", 5.0, 2.0),
        "peft-compile fp32": row("peft-compile", "fp32", 3.0, 2.0),
        "dynadapt fp32, a core busy": row("dynadapt", "fp32", 4.0, 4.0, busy_neighbour=True),
        "peft-compile fp32, a core busy": row("peft-compile", "fp32", 3.0, 4.0, busy_neighbour=True),
    }
    step = {"benchmark": "step", "isa": "avx2", "dtype": ["bf16", "fp32"], "streams": 1, "segment": 512, "providers": providers}
    scored = {"dynadapt fp32": row("dynadapt", "fp32", 1.0, 1.0), "llama.cpp": row("llama.cpp", "gguf", 2.5, 1.0, share_of_ceiling=None)}
    score = {"benchmark": "score", "isa": "avx2", "dtype": ["fp32"], "segment": 512, "providers": scored}
    shares = [{"product": name, "dtype": "fp32", "threads": 1, "share_of_best": share} for name, share in (("qkv", 1.1), ("down", 0.92))]
    for name, content in (("step", step), ("score", score), ("products", {"benchmark": "products", "isa": "avx2", "rows": shares})):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    (tmp_path / "campaign.json").write_text('{"step.json": ["bench"]}')
    products = [{"isa": "avx2", **each} for each in shares]
    return tmp_path, cpu_tables.rows_of(tmp_path), products


def test_goals_stand_beside_what_was_measured(measured):
    _, rows, products = measured
    lines = {
        cells[1].strip(): cells[3].strip() for cells in (line.split("|") for line in cpu_tables.goals(rows, products).splitlines()[2:])
    }
    assert len(lines) == len(cpu_tables.GOALS)
    assert lines["AVX2: products, of the best of MKL and oneDNN, least"] == "92%"
    assert lines["AVX2: adapt step, times the fastest torch of any dtype"] == "**1.50x, missed**"  # of our 2.0 s: int8 is no race won
    assert lines["AVX2: adapt step, times eager"] == "2.50x"
    assert lines["AVX2: int8 base, times our fp32 step"] == "1.05x"
    assert lines["scoring, times llama.cpp on the same file, least"] == "**2.50x, missed**"
    assert (
        lines["adapting, times the time of scoring, most"] == "2.00x"
        and lines["first step, from the start of the process, most"] == "1.5 s"
    )
    assert lines["four streams of 512, bf16: peak memory"] == lines["AVX-512, fp32: adapt step, times peft compiled"] == cpu_tables.ABSENT


def test_rows_that_lose_stay(measured):
    _, rows, products = measured
    race = cpu_tables.step_race(rows, products).splitlines()
    assert len(race) == 2 + 7 and sum("**0.75x**" in line for line in race) == 1 and "peft-compile fp32, a core busy" in race[-2]
    assert "| avx2 | dynadapt fp32 int8 | 1900 |" in race[2] and race[2].endswith("| 1: 3800, 2: 1900 |")
    assert "llama.cpp gguf | 2500 | 2500..2500 | 205 | - | 50% | 2.50x" in cpu_tables.score_race(rows, products)
    assert "**92%** (down) | 110% |" in cpu_tables.products_table(rows, products)
    page = "a\n<!-- cpu_tables.py: adapt step -->\nold\n<!-- end -->\nb"
    new = cpu_tables.rendered(page, rows, products)
    assert "2500 ms | 2000 ms, **256 tokens/s** | 5000 ms (fp32), 2.50x | 3000 ms (fp32), 1.50x |" in new and "old" not in new
    assert cpu_tables.rendered(new, rows, products) == new and new.endswith("<!-- end -->\nb")
    with pytest.raises(KeyError, match="steps"):
        cpu_tables.rendered("<!-- cpu_tables.py: steps -->\n<!-- end -->", rows, products)


def test_no_table_is_made_of_damaged_files_or_none(measured, monkeypatch):
    folder, *_ = measured
    monkeypatch.setattr(cpu_tables, "ROOT", folder)  # where nothing could be written
    (folder / "more.json").write_text('{"benchmark": "st')
    for results, said in ((folder, r"more\.json: damaged: "), (folder / "nowhere", "--results .*nowhere: expected a folder of results")):
        with pytest.raises(SystemExit, match=said):
            cpu_tables.main(["--results", str(results)])


def test_a_row_in_two_files_is_refused(measured):
    folder, *_ = measured
    (folder / "older.json").write_text((folder / "score.json").read_text())
    with pytest.raises(SystemExit, match="in more than one file; remove the older one"):
        cpu_tables.rows_of(folder)


def test_only_rows_that_took_turns_are_divided(tmp_path):
    """A faster row of another run is no reason for a larger ratio."""

    def run(name, dtype, **seconds):
        providers = {key.replace("_", " "): row("dynadapt", dtype, value, 1.0) for key, value in seconds.items()}
        result = {"benchmark": "step", "isa": "avx2", "dtype": dtype, "segment": 512, "providers": providers}
        (tmp_path / name).write_text(json.dumps(result))

    run("step-avx2.json", "fp32", dynadapt=2.0, dynadapt_int8=1.6)
    run("step-avx2-bf16.json", "bf16", dynadapt=2.2, dynadapt_int8=1.0)
    rows = cpu_tables.rows_of(tmp_path)
    assert cpu_tables._int8("avx2", "fp32")(rows, []) == pytest.approx(1.25)
    assert {r.label for r in rows} == {"dynadapt fp32", "dynadapt fp32 int8", "dynadapt bf16", "dynadapt bf16 int8"}
