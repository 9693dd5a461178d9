"""`benchmarks/reweighting.py` in a folder that was begun: with other texts, sizes or searches it does not go on, and what is there is said as what it is."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from corpora import write_manifest
from tiny import english

from benchmarks import reweighting, reweighting_data
from benchmarks.reweighting_begun import check_begun
from benchmarks.reweighting_study import Case
from dynadapt.experiments.reweight import ReweightConfig


def corpus_of(folder: Path, seed: int) -> Path:
    for name in ("one", "two"):
        (folder / name).mkdir(parents=True)
        for part, count in (("train", 12), ("heldout", 4)):
            texts = [english(120, seed=100 * seed + i + 20 * (part == "heldout") + 50 * (name == "two")) for i in range(count)]
            (folder / name / f"{part}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    write_manifest(folder)
    return folder


def test_texts_of_another_corpus_or_share_are_refused(tmp_path):
    corpus, other, out = corpus_of(tmp_path / "corpus", 1), corpus_of(tmp_path / "other", 2), tmp_path / "out" / "texts"
    made = reweighting_data.subset(corpus, out, 1.0)
    assert made == reweighting_data.subset(corpus, out, 1.0)
    for source, share in ((other, 1.0), (corpus, 0.5)):
        with pytest.raises(
            SystemExit, match=rf"one/train.jsonl holds other texts than a share of {share:g} of {source}/one: give another --out"
        ):
            reweighting_data.subset(source, out, share)
    for share in (0, -0.1, 1.5, float("nan")):
        with pytest.raises(SystemExit, match=f"--share {share}: give a number above 0, up to 1"):
            reweighting_data.subset(corpus, tmp_path / "new", share)
    reweighting_data.check_judged(corpus, out)
    with pytest.raises(SystemExit, match="give the --corpus that"):
        reweighting_data.check_judged(other, out)


def test_two_processes_may_begin_at_once(tmp_path, monkeypatch):
    corpus, out = corpus_of(tmp_path / "corpus", 1), tmp_path / "texts"
    write, at_once = reweighting_data._write, []

    def interrupted(folder, texts):
        write(folder, texts)
        if len(at_once) < 2:  # the other one comes, and is done, while this one writes
            at_once.append(folder)
            reweighting_data.subset(corpus, out, 1.0)

    monkeypatch.setattr(reweighting_data, "_write", interrupted)
    made = reweighting_data.subset(corpus, out, 1.0)
    assert len(at_once) == 2 and all(Path(path, "test.jsonl").exists() for path in made.values())
    assert sorted(path.name for path in out.iterdir()) == ["one", "two"]  # nothing in the making is left


def test_the_share_that_is_kept():
    """As many documents as it takes, in an order of its own, none of them longer than the share."""
    texts = [english(30 + i, seed=i) for i in range(9)]
    order, kept, wanted = np.random.default_rng(0).permutation(9), [], 0.4 * sum(map(len, texts))
    for index in order:
        if sum(map(len, kept)) < wanted:
            kept.append(texts[index])
    assert [json.loads(line)["text"] for line in reweighting_data._kept(texts, 0.4).splitlines()] == kept


@pytest.mark.parametrize(
    "changes, search, message",
    [
        ({}, {}, None),
        ({"steps": 30}, {}, "odm was begun with steps 20, not 30: give another --out"),
        ({"scratch": "1x32"}, {}, "scratch '1x16', not '1x32'"),
        ({"domains": {"one": "a"}}, {}, r"domains \['one', 'two'\], not \['one'\]"),
        ({"seed": 5, "mixer": "stratified", "evaluate": 3}, {}, None),  # a method's own, and a seed's
        ({}, {"mixtures": 30}, "searches/proxies was begun with mixtures 24, not 30"),
        ({}, {"proxy_size": "2x32"}, "proxy '1x16', not '2x32'"),
    ],
)
def test_seeds_of_another_size_or_search_do_not_go_on(tmp_path, changes, search, message):
    config = ReweightConfig(
        domains={"one": "a", "two": "b"},
        scratch="1x16",
        adapt="full",
        targets="model",
        policy="repeat",
        steps=20,
        rows=4,
        segment=64,
        dtype="bf16",
    )
    case = Case(config, share=1.0, updates=4, sample=0.5, sample_evaluations=4, test_rows=4, proxy_size="1x16")
    for folder, content in (
        ("odm", config.to_dict()),
        ("searches/proxies", case.search("proxies").to_dict(config)),
        ("sample", {"steps": 1}),
    ):
        (tmp_path / "seed-0" / folder).mkdir(parents=True)
        (tmp_path / "seed-0" / folder / "config.json").write_text(json.dumps(content))
    now = Case(ReweightConfig(**{**asdict_of(config), **changes}), 1.0, 4, 0.5, 4, 4, **{"proxy_size": "1x16", **search})
    if message is None:
        return check_begun(tmp_path, ["odm"], now.config, {"proxies": now.search("proxies")})
    with pytest.raises(SystemExit, match=message):
        check_begun(tmp_path, ["odm"], now.config, {"proxies": now.search("proxies")})


def asdict_of(config: ReweightConfig) -> dict:
    return {name: getattr(config, name) for name in config.__dataclass_fields__}


def test_what_can_not_be_used_is_one_line(tmp_path, monkeypatch, capsys):
    corpus = corpus_of(tmp_path / "corpus", 1)

    def said(*options):
        monkeypatch.setattr(sys, "argv", ["reweighting.py", *options])
        with pytest.raises(SystemExit) as end:
            reweighting.main()
        return capsys.readouterr().err if end.value.code == 2 else str(end.value.code)

    given = ["--corpus", str(corpus), "--out", str(tmp_path / "out")]
    for name in ("seeds", "steps", "rows", "mixtures"):
        assert f"--{name} 0: give at least 1" in said(*given, f"--{name}", "0")
    assert "--share 0.0: give a number above 0" in said(*given, "--share", "0")
    assert "--time and --report" in said(*given, "--size", "1m", "--time", "8", "--report")
    assert said("--corpus", str(tmp_path), "--report").startswith(f"{tmp_path}: no manifest.json in it")
    assert said("--judge", str(tmp_path / "nothing.json")).endswith("nothing.json: no such file")
    assert "manifest.json: no results of this script" in said("--judge", str(corpus / "manifest.json"))
    assert said(*given, "--case", "scratch", "--scratch", "7", "--mixers", "odm").startswith("scratch '7'")
    assert said(*given, "--report") == f"{tmp_path / 'out'}: no run is finished yet"


def test_a_vocabulary_of_other_texts_is_not_taken(tmp_path):
    small_vocabulary = reweighting_data.small_vocabulary
    for name, seed in (("a", 1), ("b", 2)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.jsonl").write_text(json.dumps({"text": english(300, seed=seed)}) + "\n")
    made = small_vocabulary({"a": str(tmp_path / "a")}, tmp_path / "words", 300)
    assert small_vocabulary({"a": str(tmp_path / "a")}, tmp_path / "words", 300) == made
    with pytest.raises(SystemExit, match="words is a vocabulary of other texts than are given now"):
        small_vocabulary({"a": str(tmp_path / "b")}, tmp_path / "words", 300)
    (tmp_path / "words" / reweighting_data.MADE_OF).unlink()  # of an earlier version, which kept none
    assert small_vocabulary({"a": str(tmp_path / "b")}, tmp_path / "words", 300) == made
