"""What a document begins with: the token that its tokenizer puts before a text."""

import json
import shutil

import numpy as np
import pytest
import torch
from run_files import Killed, kill_at, scores_of
from tiny import english, eval_config, tiny_directory, tiny_tokenizer
from tiny_tokenizers import KINDS
from tokenizers import Tokenizer, processors

import dynadapt
import dynadapt.model
from dynadapt.engine.memory import SegmentMemory
from dynadapt.experiments.audit.replay import open_run
from dynadapt.experiments.compare.joined_scores import read_compared
from dynadapt.experiments.config import ConfigError, EvalConfig
from dynadapt.experiments.defaults import opening, settled
from dynadapt.experiments.dyneval import RunOptions, build_engine, run
from dynadapt.experiments.reweight.domains import encode_rows
from dynadapt.experiments.tune.windows import draw, read_text
from dynadapt.model.tokenizer import Tokenizer as Wrapped
from dynadapt.runs.rundir import RunError
from dynadapt.runs.text import streaming_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")
BEGIN = "Z"  # a token that no text here has, but where it is meant


def putting(backend: Tokenizer, words: str, *names: str) -> Tokenizer:
    special = [(name, backend.token_to_id(name)) for name in names]
    backend.post_processor = processors.TemplateProcessing(single=words, pair=f"{words} $B", special_tokens=special)
    return backend


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return tiny_directory(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def begins(tmp_path_factory):
    directory = tiny_directory(tmp_path_factory.mktemp("begins"))
    putting(tiny_tokenizer(), f"{BEGIN} $A", BEGIN).save(str(directory / "tokenizer.json"))
    return directory


def texts(folder, *words: int) -> list:
    for number, count in enumerate(words):
        (folder / f"{number}.txt").write_text(english(count, seed=number) if count else "a")
    return [folder / f"{number}.txt" for number in range(len(words))]


def by_hand(config: EvalConfig, files) -> np.ndarray:
    """Scores of a loop over the ids of transformers' manner: what the tokenizer puts before each text, then the text."""
    model = dynadapt.model.load(config.model)
    engine, found = build_engine(model, config), []
    for file in files:
        engine.enter(0)
        ids = torch.tensor(model.tokenizer.encode(file.read_text(), add_special_tokens=True))[None]
        for start in range(0, ids.shape[1] - 1, config.segment):
            found.append(engine.step(ids[:, start : start + config.segment + 1])[0])
    return torch.cat(found).numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_tokenizer_puts_before_a_text(kind):
    wrapped = Wrapped(KINDS[kind]())
    whole, own = wrapped.encode("the cat", add_special_tokens=True), wrapped.encode("the cat")
    assert list(wrapped.begins) + own == whole[: len(wrapped.begins) + len(own)]
    assert bool(wrapped.begins) == (kind == "metaspace")


def test_nothing_behind_a_text_is_taken_for_its_beginning():
    backend = putting(tiny_tokenizer(), "X $A Y", "X", "Y")
    assert Wrapped(backend).begins == (backend.token_to_id("X"),)


@pytest.mark.parametrize("more", [{}, {"memory": 24, "sinks": 2}, {"memory": 0, "context": 16}, {"reset": "document"}])
def test_scores_are_those_of_a_loop_over_whole_ids(begins, tmp_path, more):
    files = texts(tmp_path, 60, 90)
    config = eval_config(begins, files, **more)
    summary = run(config, tmp_path / "out", RunOptions(scores=True))
    rows = scores_of(tmp_path / "out")
    assert np.array_equal(rows["nll"], by_hand(config, files))
    for number, file in enumerate(files):  # every token of the text, from its first byte to its last
        own = rows[rows["document"] == number]
        assert own["position"].tolist() == list(range(len(own)))
        assert own["start"][0] == 0 and own["stop"][-1] == len(file.read_bytes()) == summary["documents"][number]["bytes"]
        assert own["token"].tolist() == dynadapt.model.load(str(begins)).tokenizer.encode(file.read_text())
    assert json.loads((tmp_path / "out" / "config.json").read_text())["bos"] == "yes"


@pytest.mark.parametrize("streams", [1, 2, 3])
def test_a_killed_run_goes_on(begins, tmp_path, streams):
    config = eval_config(begins, texts(tmp_path, 60, 90, 40, 30), streams=streams, reset="document", memory=24)
    run(config, tmp_path / "whole", RunOptions(scores=True))
    for segment in (1, 3):
        with pytest.raises(Killed):
            run(config, tmp_path / f"{segment}", RunOptions(scores=True, checkpoint=1), kill_at(segment=segment))
        run(config, tmp_path / f"{segment}", RunOptions(scores=True, resume=True))
        assert np.array_equal(scores_of(tmp_path / f"{segment}"), scores_of(tmp_path / "whole"))


@pytest.mark.parametrize("family", ["llama", "qwen3", "olmo2"])
def test_segments_without_memory_begin_with_it(tmp_path, family):
    """Each as a text by itself would: what transformers' users compare with, window by window, when nothing learns."""
    directory = tiny_directory(tmp_path / "model", family=family)
    putting(tiny_tokenizer(), f"{BEGIN} $A", BEGIN).save(str(directory / "tokenizer.json"))
    files, model = texts(tmp_path, 60, 90), dynadapt.model.load(str(directory))
    config = eval_config(str(directory), files, adapt="none", memory=0, dtype="fp64")
    run(config, tmp_path / "out", RunOptions(scores=True))
    alone, found = dynadapt.Engine(model, segment=config.segment + 1, dtype="fp64", backend="reference"), []
    for file in files:
        ids = torch.tensor(model.tokenizer.encode(file.read_text(), add_special_tokens=True))[None]
        begin = ids[:, :1]
        for start in range(0, ids.shape[1] - 1, config.segment):
            window = ids[:, start : start + config.segment + 1]
            alone.reset(0)
            found.append(alone.step(torch.cat([begin, window], 1) if start else window)[0, 1 if start else 0 :])
    assert np.allclose(scores_of(tmp_path / "out")["nll"], torch.cat(found).numpy(), rtol=1e-5)


def test_a_segment_as_long_as_the_positions_has_no_room_for_it(begins, tmp_path):
    model = dynadapt.model.load(str(begins))
    full = eval_config(begins, texts(tmp_path, 60), memory=0, segment=model.config.max_positions)
    assert build_engine(model, full).settings.memory is None
    assert build_engine(model, full.with_(segment=full.segment - 1)).settings.memory == SegmentMemory(0, sinks=1)
    assert build_engine(model, full.with_(segment=8, bos="no")).settings.memory is None


def test_a_text_that_spells_it_is_not_given_another(begins, tmp_path):
    (tmp_path / "a.txt").write_text(BEGIN + english(60))
    config = eval_config(begins, [tmp_path / "a.txt"], memory=24)
    run(config, tmp_path / "out", RunOptions(scores=True))
    run(config.with_(bos="no"), tmp_path / "no", RunOptions(scores=True))
    assert np.array_equal(scores_of(tmp_path / "out"), scores_of(tmp_path / "no"))
    assert scores_of(tmp_path / "out")["position"][0] == 1


def test_parts_of_a_split_text_begin_with_it(begins, tmp_path):
    files = texts(tmp_path, 120)
    run(eval_config(begins, files, split=True, streams=2), tmp_path / "out", RunOptions(scores=True))
    ids = dynadapt.model.load(str(begins)).tokenizer.encode(files[0].read_text())
    assert len(scores_of(tmp_path / "out")) == len(ids)


def test_limits_count_the_text(begins, plain, tmp_path):
    files = texts(tmp_path, 120)
    assert run(eval_config(begins, files, tokens=40), tmp_path / "a")["tokens"] == 40
    assert run(eval_config(plain, files, tokens=40), tmp_path / "b")["tokens"] == 39


def test_a_document_of_one_token_is_scored(begins, plain, tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "a"}) + "\n" + json.dumps({"text": english(30)}) + "\n")
    first = run(eval_config(begins, [tmp_path / "a.jsonl"]), tmp_path / "a")
    second = run(eval_config(plain, [tmp_path / "a.jsonl"]), tmp_path / "b")
    assert first["short_documents"] == 0 and first["documents"][0]["tokens"] == 1
    assert second["short_documents"] == 1


def test_a_model_without_one_is_as_it_was(begins, plain, tmp_path):
    files = texts(tmp_path, 60, 40)
    for name, directory, bos in (("plain", plain, "auto"), ("no", begins, "no")):
        run(eval_config(directory, files, bos=bos), tmp_path / name, RunOptions(scores=True))
        assert "bos" not in json.loads((tmp_path / name / "config.json").read_text())
    assert np.array_equal(scores_of(tmp_path / "plain"), scores_of(tmp_path / "no"))
    assert scores_of(tmp_path / "no")["position"][0] == 1


def test_an_older_run_goes_on_as_it_began(begins, tmp_path):
    """Its config.json says nothing of a beginning."""
    files = texts(tmp_path, 90)
    run(eval_config(begins, files, bos="no"), tmp_path / "whole", RunOptions(scores=True))
    with pytest.raises(Killed):
        run(eval_config(begins, files, bos="no"), tmp_path / "old", RunOptions(scores=True, checkpoint=1), kill_at(segment=2))
    run(eval_config(begins, files), tmp_path / "old", RunOptions(scores=True, resume=True))
    assert np.array_equal(scores_of(tmp_path / "old"), scores_of(tmp_path / "whole"))


def test_what_is_asked_for_and_not_there_is_refused(plain, begins, tmp_path):
    with pytest.raises(ConfigError, match="bos 'yes': the tokenizer has no beginning-of-text token"):
        run(eval_config(plain, texts(tmp_path, 60), bos="yes"), tmp_path / "a")
    with pytest.raises(ConfigError, match="bos"):
        EvalConfig(bos="maybe")
    two = tiny_directory(tmp_path / "two")
    putting(tiny_tokenizer(), "X Y $A", "X", "Y").save(str(two / "tokenizer.json"))
    with pytest.raises(ConfigError, match=r"begins a text with 2 tokens, \[.*\]; give no"):
        run(eval_config(two, texts(tmp_path, 60)), tmp_path / "b")


def test_the_opening_line_says_it(begins, tmp_path):
    model = dynadapt.model.load(str(begins))
    for memory, what in ((24, "documents"), (0, "documents and segments")):
        asked = eval_config(begins, texts(tmp_path, 60), memory=memory)
        config = settled(asked, None, False, lambda: model)
        assert f", {what} begin with {BEGIN};" in opening(asked, config, model.config, model)


def test_generate_begins_a_prompt_of_text_with_it(begins):
    engine = dynadapt.Engine(str(begins), adapt=None, segment=16, backend="reference", dtype="fp32")
    begin = engine.model.tokenizer.begins
    assert tuple(engine.generate("the cat", max_tokens=1).prompt_ids[:1]) == begin
    assert engine.generate(BEGIN + "the cat", max_tokens=1).prompt_ids.count(begin[0]) == 1
    assert begin[0] not in engine.generate(engine.model.tokenizer.encode("the cat"), max_tokens=1).prompt_ids


def test_an_audit_plays_such_a_run_again(begins, tmp_path):
    config = eval_config(begins, texts(tmp_path, 60), backend="cpu")
    run(config, tmp_path / "out", RunOptions(scores=True))
    replay = open_run(tmp_path / "out", 1000)
    tokens = np.concatenate([s.tokens[0, 1 : s.lengths[0] + 1] for s in replay.segments])
    assert np.array_equal(tokens, scores_of(tmp_path / "out")["token"])
    assert replay.segments[0].tokens[0, 0] == dynadapt.model.load(str(begins)).tokenizer.begins[0]


def test_windows_of_tune_begin_with_it(begins, tmp_path):
    model = dynadapt.model.load(str(begins))
    tokenizer = streaming_tokenizer(model.tokenizer)
    text = read_text(tuple(map(str, texts(tmp_path, 400))), tokenizer, tmp_path)
    begin = model.tokenizer.begins[0]
    plain, begun = (draw(text, tokenizer, 3, 48, 16, 0, bos) for bos in (None, begin))
    for a, b in zip(plain, begun):
        for one, other in zip(a.pieces, b.pieces):
            assert other.ids[0] == begin and np.array_equal(other.ids[1:], one.ids)
            assert len(other.sizes) == len(other.ids) - 1 and other.sizes[1:].tolist() == one.sizes.tolist()
            assert other.sizes.sum() == other.stop - other.start


def test_rows_to_train_on_have_it_before_each_document(begins):
    model = dynadapt.model.load(str(begins))
    rows = encode_rows(["the cat", "a mat"], 4, model)
    begin = model.tokenizer.begins[0]
    assert rows.tokens.tolist().count(begin) == 2 and rows.tokens[0] == begin


def test_every_way_to_give_settings_begins_texts_alike(begins, tmp_path):
    """What a run's config.json means that says nothing of it is no default of a call's."""
    from dynadapt.experiments.sweep import expand

    file = texts(tmp_path, 60)[0]
    given = {name: value for name, value in eval_config(begins, [file]).to_dict().items() if name not in ("model", "text", "bos")}
    found = dynadapt.evaluate(str(begins), file, **given)
    assert found.config.bos == "yes" and found.nll == run(eval_config(begins, [file]), tmp_path / "out")["nll"]
    assert dynadapt.evaluate(str(begins), file, bos="no", **given).config.bos == "no"
    assert expand({"model": str(begins), "text": [str(file)]}, {}, [{}])[0].config.bos == "auto"


def test_a_text_to_train_on_that_spells_it_is_given_no_second_one(begins):
    model = dynadapt.model.load(str(begins))
    rows = encode_rows([BEGIN + "the cat", "a mat"], 4, model)
    assert rows.tokens.tolist().count(model.tokenizer.begins[0]) == 2


def test_places_are_told_from_each_documents_own_first(begins, tmp_path):
    """One text spells the token and one does not."""
    (tmp_path / "a.txt").write_text(BEGIN + english(60))
    (tmp_path / "b.txt").write_text(english(60, seed=1))
    config = eval_config(begins, [tmp_path / "a.txt", tmp_path / "b.txt"])
    for name in "xy":
        summary = run(config.with_(lr=0.01 if name == "x" else 0.02), tmp_path / name, RunOptions(scores=True))
    assert summary["begins_with"] == dynadapt.model.load(str(begins)).tokenizer.begins[0]
    compared = read_compared([tmp_path / "x", tmp_path / "y"])
    for number in (0, 1):
        assert np.bincount(compared.segment[compared.document == number])[:-1].tolist() == [16] * int(
            compared.segment[compared.document == number].max()
        )


def test_a_run_does_not_go_on_with_another_beginning(begins, tmp_path):
    directory = tmp_path / "model"
    shutil.copytree(begins, directory)
    config = eval_config(directory, texts(tmp_path, 90))
    with pytest.raises(Killed):
        run(config, tmp_path / "out", RunOptions(checkpoint=1), kill_at(segment=1))
    putting(tiny_tokenizer(), "X $A", "X").save(str(directory / "tokenizer.json"))
    with pytest.raises(RunError, match="the token that texts begin with has changed"):
        run(config, tmp_path / "out", RunOptions(resume=True))


@pytest.mark.parametrize(
    "content", [{"bos": None}, {"bos": True}, {"bos": "Yes"}, {"bos": ["yes"]}, {"add_bos": True}, None, [("bos", "yes")], "bos"]
)
def test_settings_that_say_it_otherwise_are_refused(content):
    with pytest.raises(
        ConfigError, match="bos .*: give one of auto, yes, no|unknown setting 'add_bos'; there are|settings .*: give a dictionary"
    ):
        EvalConfig.from_dict(content)
