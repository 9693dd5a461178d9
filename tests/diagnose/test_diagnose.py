"""`dynadapt diagnose` from texts and models to files, on a tiny model."""

import csv
import json
import re
import shlex
import shutil
import xml.etree.ElementTree
from functools import partial

import numpy as np
import pytest
import torch
from command_line import call, words_of
from run_files import Killed
from safetensors.torch import load_file, save_file
from tiny import english, tiny_directory

import dynadapt.model
from dynadapt.common.notes import RunNote
from dynadapt.experiments.config import ConfigError, EvalConfig
from dynadapt.experiments.diagnose import models
from dynadapt.experiments.diagnose.advise import ADAPT, LEAVE, UNCLEAR, advice, outcome_interval, size_factor
from dynadapt.experiments.diagnose.config import DiagnoseConfig
from dynadapt.experiments.diagnose.driver import run_diagnosis
from dynadapt.experiments.diagnose.texts import gather, joined_lines, write_control
from dynadapt.experiments.diagnose.verdict import DIVERGED, UNCHANGED
from dynadapt.experiments.dyneval import build_engine, run
from dynadapt.model.errors import ModelError
from dynadapt.runs.rundir import RunError
from dynadapt.runs.text import TextError

words_for = partial(words_of, "diagnose", segment=48, backend="cpu")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_directory(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A directory of 12 documents."""
    folder = tmp_path_factory.mktemp("texts")
    for i in range(12):
        (folder / f"{i:02d}.txt").write_text(english(60, seed=i).replace(". ", ".\n"))
    return folder


def config_for(base, texts, **changes) -> DiagnoseConfig:
    of_eval = {"model": str(base), "text": (str(texts),), "segment": 48, "rank": 2, "backend": "cpu", "dtype": "fp32", "lr": 0.01}
    here = {name: changes.pop(name) for name in list(changes) if name in DiagnoseConfig.__dataclass_fields__}
    return DiagnoseConfig(EvalConfig(**{**of_eval, **changes}), **here)


def changed_model(base, folder, **tensors):
    shutil.copytree(base, folder)
    state = load_file(str(folder / "model.safetensors"))
    for name, change in tensors.items():
        key = name.replace("__", ".")
        state[key] = change(state[key]).contiguous()
    save_file(state, str(folder / "model.safetensors"))
    return folder


# ------------------------------------------------------------------------------------------------------------- whole runs


def test_two_models_give_the_change_of_their_own_scores(base, texts, tmp_path):
    """A final norm scaled up makes every prediction more extreme: the change is that of two static runs."""
    after = changed_model(base, tmp_path / "after", model__norm__weight=lambda weight: 1.5 * weight)
    config = config_for(base, texts, after=str(after), reference=(str(texts / "03.txt"),))
    titles = []
    summary = run_diagnosis(config, tmp_path / "out", announce=lambda title: titles.append(title))
    files = tuple(sorted(str(path) for path in texts.iterdir()))
    nll = {}
    for name, model in (("before", base), ("after", after)):
        nll[name] = run(
            EvalConfig(model=str(model), text=files, segment=48, adapt="none", memory=0, backend="cpu", dtype="fp32"),
            tmp_path / f"alone-{name}",
        )["nll"]
    assert summary["nll"] == pytest.approx(nll, abs=1e-6)
    assert summary["change"] == pytest.approx(nll["after"] - nll["before"], abs=1e-6) and summary["identity_error"] < 1e-6
    assert summary["verdict"] == "hurts broadly" and summary["units"] == {"name": "document", "count": 12}
    assert len(titles) == 4 and "lines of each paragraph joined" in titles[2]
    (control,) = summary["controls"]
    assert control["name"] == "newlines" and control["change"] > 0
    assert summary["similarity"]["orders"][0]["divergence"] < 0.3 and summary["keywords_known"]
    assert summary == json.loads((tmp_path / "out" / "summary.json").read_text())
    with open(tmp_path / "out" / "types.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == summary["types"] and sum(int(row["count"]) for row in rows) == summary["tokens"]
    assert sum(float(row["contribution"]) for row in rows) == pytest.approx(summary["change"], abs=1e-6)


def test_a_shifted_head_row_is_found_as_the_token_it_belongs_to(base, texts, tmp_path):
    """The newline's score is pushed down in the model itself, untied, so the rise is the newline's."""
    newline = dynadapt.model.load(str(base)).tokenizer.encode("\n")[0]
    head = "lm_head__weight" if "lm_head.weight" in load_file(str(base / "model.safetensors")) else None
    assert head, "the tiny llama has a head of its own"

    def push(weight):
        weight = weight.clone()
        weight[newline] = 0.02 * weight[newline]
        return weight

    after = changed_model(base, tmp_path / "after", **{head: push})
    summary = run_diagnosis(config_for(base, texts, after=str(after), control="none"), tmp_path / "out")
    by_size = max(summary["top_types"], key=lambda record: abs(record["change"]))
    assert by_size["text"] == "\n"


def test_learning_now_is_the_run_of_eval_and_its_weights_score(base, texts, tmp_path):
    (tmp_path / "train.txt").write_text(english(600, seed=99))
    config = config_for(base, texts, learn=(str(tmp_path / "train.txt"),), control="none")
    summary = run_diagnosis(config, tmp_path / "out")
    assert summary["verdict"] == "helps" and summary["change"] < -0.1 and summary["repeats"]["paragraphs"] == 12
    engine = build_engine(dynadapt.model.load(str(base)), config.learning([str(tmp_path / "train.txt")]))
    reader = torch.tensor(dynadapt.model.load(str(base)).tokenizer.encode((tmp_path / "train.txt").read_text()))
    for start in range(0, len(reader) - 1, 48):
        engine.step(reader[None, start : start + 49])
    assert summary["learned"]["updates"] == engine.updates
    adapter = load_file(
        str(next((tmp_path / "out" / "learn" / "checkpoint").iterdir()) / "engine" / "adapter" / "adapter_model.safetensors")
    )
    engine.save(tmp_path / "same")
    mine = load_file(str(tmp_path / "same" / "adapter" / "adapter_model.safetensors"))
    assert all(torch.equal(adapter[key], mine[key]) for key in mine)
    # and the adapter as a directory gives the same scores
    second = run_diagnosis(config_for(base, texts, after=str(tmp_path / "same" / "adapter"), control="none"), tmp_path / "adapter")
    for name in ("before", "after"):
        assert np.array_equal(np.load(tmp_path / "out" / name / "scores.npy"), np.load(tmp_path / "adapter" / name / "scores.npy"))
    assert second["change"] == summary["change"] and second["learned"] is None


@pytest.mark.parametrize("adapt", ["rows", "full"])
def test_other_ways_of_learning(adapt, base, texts, tmp_path):
    (tmp_path / "train.txt").write_text(english(300, seed=99))
    config = config_for(base, texts / "00.txt", learn=(str(tmp_path / "train.txt"),), adapt=adapt, density=0.5, control="none")
    assert run_diagnosis(config, tmp_path / "out")["change"] < 0


def test_an_adapter_of_some_linears_is_scored_as_peft_does(base, texts, tmp_path):
    """PEFT's usual targets, q and v: the others get zeros. Against the sum of weight and adapter in transformers."""
    peft = pytest.importorskip("peft")
    from helpers import to_transformers

    model = dynadapt.model.load(str(base))
    torch.manual_seed(0)
    live = peft.get_peft_model(
        to_transformers(model), peft.LoraConfig(r=3, lora_alpha=5, use_rslora=True, target_modules=["q_proj", "v_proj"])
    )
    for name, value in live.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(value, std=0.2)
    live.save_pretrained(tmp_path / "adapter")
    summary = run_diagnosis(config_for(base, texts / "00.txt", after=str(tmp_path / "adapter"), control="none"), tmp_path / "out")
    ids = torch.tensor(model.tokenizer.encode((texts / "00.txt").read_text()))
    total = 0.0
    with torch.no_grad():
        for start in range(0, len(ids) - 1, 48):
            window = ids[start : start + 49]
            total += torch.nn.functional.cross_entropy(live(window[None, :-1]).logits[0], window[1:], reduction="sum").item()
    assert summary["nll"]["after"] == pytest.approx(total / (len(ids) - 1), abs=1e-4)
    assert abs(summary["change"]) > 1e-3


def test_a_stopped_diagnosis_goes_on_and_a_finished_one_stays(base, texts, tmp_path, monkeypatch):
    after = changed_model(base, tmp_path / "after", model__norm__weight=lambda weight: 0.7 * weight)
    config = config_for(base, texts, after=str(after))
    whole = run_diagnosis(config, tmp_path / "whole")

    def killed(title):
        if "after" in title:
            raise Killed

    with pytest.raises(Killed):
        run_diagnosis(config, tmp_path / "out", announce=killed)
    with pytest.raises(RunError, match="--resume"):
        run_diagnosis(config, tmp_path / "out")
    titles = []
    assert run_diagnosis(config, tmp_path / "out", resume=True, announce=titles.append) == whole
    assert run_diagnosis(config, tmp_path / "out", resume=True) == whole
    with pytest.raises(RunError, match="finished"):
        run_diagnosis(config, tmp_path / "out")
    with pytest.raises(RunError, match="segment is 48 there and 8 here"):
        run_diagnosis(config_for(base, texts, after=str(after), segment=8), tmp_path / "out", resume=True)


# -------------------------------------------------------------------------------------------------------------- the page


def test_the_page_is_one_file_with_its_plots(base, texts, tmp_path):
    after = changed_model(base, tmp_path / "after", model__norm__weight=lambda weight: 1.5 * weight)
    (tmp_path / "odd.txt").write_text("<script>alert('&')</script> $x_1$ \\frac{a}{b} \u4e2d\u6587 the cat\n" * 12 + english(100))
    run_diagnosis(
        config_for(
            base, texts, text=(str(tmp_path / "odd.txt"), str(texts)), after=str(after), control="all", reference=(str(texts / "03.txt"),)
        ),
        tmp_path / "out",
    )
    page = (tmp_path / "out" / "page.html").read_text("utf-8")
    assert page.startswith("<!DOCTYPE html>") and page.count("<svg") == page.count("</svg>") == 6
    assert "<script" not in page and not re.findall(r"(?:src|href)=[\"'](?!#)", page.replace("xlink:href", "href"))
    for element in re.findall(r"<svg.*?</svg>", page, re.S):
        xml.etree.ElementTree.fromstring(element)
    ids = re.findall(r'\bid="([^"]+)"', page)
    used = re.findall(r'(?:href="#|url\(#)([^")]+)', page)
    assert used and set(used) <= set(ids) and len(ids) == len(set(ids))
    for word in ("95%", "Jensen-Shannon", "one stream"):
        assert word in page


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    "changes, message",
    [
        ({}, "after None and learn"),
        ({"after": "a", "learn": ("b",)}, "give one of them"),
        ({"after": "a", "text": ()}, "text: none given"),
        ({"after": "a", "text": ("-",)}, "text -"),
        ({"after": "a", "streams": 2}, "streams 2"),
        ({"after": "a", "control": "some"}, "control 'some'"),
        ({"after": "a", "embeddings": "mini"}, "--reference"),
        ({"after": "a", "learn_tokens": 5}, "only with --learn"),
        ({"learn": ("b",), "adapt": "none"}, "adapt 'none'"),
        ({"learn": ("b",), "reset": "document"}, "reset 'document'"),
    ],
)
def test_settings_that_can_not_be_are_refused(changes, message, base, texts):
    with pytest.raises(ConfigError, match=re.escape(message)):
        config_for(base, texts, **changes)


def test_texts_that_can_not_be_are_refused_before_anything_is_written(base, texts, tmp_path):
    (tmp_path / "nothing").mkdir()
    (tmp_path / "empty.txt").touch()
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{"words": "b"}\n')
    for text, message in (
        ("nowhere.txt", "no such file"),
        ("nothing", "without text files"),
        ("empty.txt", "is empty"),
        ("bad.jsonl", "line 2"),
    ):
        with pytest.raises(TextError, match=message):
            run_diagnosis(config_for(base, tmp_path / text, after=str(base)), tmp_path / "out")
        assert not (tmp_path / "out").exists()
    with pytest.raises(TextError, match="00.txt' is held out, but .*copy.txt' to learn from"):
        shutil.copy(texts / "00.txt", tmp_path / "copy.txt")
        run_diagnosis(config_for(base, texts, learn=(str(tmp_path / "copy.txt"),)), tmp_path / "out")


def test_tokenizers_that_differ_are_refused(base, texts, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(base, other)
    content = json.loads((other / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["!"], vocabulary["#"] = vocabulary["#"], vocabulary["!"]
    (other / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match="tokenizers of .* differ: token '[!#]'"):
        run_diagnosis(config_for(base, texts, after=str(other)), tmp_path / "out")
    content = json.loads((base / "tokenizer.json").read_text())
    content["model"]["merges"] = content["model"]["merges"][:3]
    (other / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match="cut the text differently"):
        run_diagnosis(config_for(base, texts, after=str(other)), tmp_path / "out")
    (other / "tokenizer.json").unlink()
    with pytest.raises(RunError, match="no tokenizer"):
        run_diagnosis(config_for(base, texts, after=str(other)), tmp_path / "out")


@pytest.mark.parametrize(
    "settings, tensors, message",
    [
        ({"peft_type": "LOHA"}, {}, "type 'LOHA'"),
        ({"use_dora": True}, {}, "use_dora=True"),
        ({"r": None}, {}, "r=None"),
        ({}, {"lm_head.lora_A": torch.zeros(2, 64), "lm_head.lora_B": torch.zeros(131, 2)}, "lm_head"),
        (
            {},
            {"model.layers.0.self_attn.q_proj.lora_A": torch.zeros(2, 3), "model.layers.0.self_attn.q_proj.lora_B": torch.zeros(64, 2)},
            "shape",
        ),
    ],
)
def test_adapters_that_can_not_be_run_exactly_are_refused(settings, tensors, message, base, tmp_path):
    config = dynadapt.model.load(str(base)).config
    content = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], **settings}
    content = {key: value for key, value in content.items() if value is not None}
    (tmp_path / "adapter_config.json").write_text(json.dumps(content))
    named = {f"base_model.model.{name}.weight": value for name, value in tensors.items()}
    save_file(named or {"x": torch.zeros(1)}, str(tmp_path / "adapter_model.safetensors"))
    with pytest.raises(ModelError, match=message):
        models.complete_adapter(tmp_path, config, tmp_path / "whole")


# ---------------------------------------------------------------------------------------------------------------- texts


def test_directories_and_lines_become_documents(tmp_path):
    (tmp_path / "b").mkdir()
    for name, text in (("b/2.txt", "two"), ("1.md", "one"), (".hidden", "no"), ("empty", "")):
        (tmp_path / name).write_text(text)
    with pytest.warns(RunNote, match="1 empty, 1 hidden"):
        assert [source.spec for source in gather((str(tmp_path),))] == [str(tmp_path / "1.md"), str(tmp_path / "b" / "2.txt")]
    lines = tmp_path / "docs.jsonl"
    lines.write_text('{"text": "one\\r\\n"}\n{"text": " "}\n{"text": "two"}\n')
    with pytest.warns(RunNote, match="docs.jsonl: 1 document of nothing but spaces"):
        sources = gather((str(lines), "builtin:python-reference"))
    assert [source.content() for source in sources[:2]] == [b"one\r\n", b"two"] and sources[2].name == "python-reference"


def test_normal_forms(tmp_path):
    wrapped = "A line\r\n  and its rest. \n\n\n \nNew\tparagraph\n"
    assert joined_lines(wrapped) == "A line and its rest.\n\nNew\tparagraph\n"
    assert joined_lines(joined_lines(wrapped)) == joined_lines(wrapped)
    (tmp_path / "a").write_text(joined_lines(wrapped))
    (tmp_path / "b").write_text("more\n")
    texts = gather((str(tmp_path / "a"), str(tmp_path / "b")))
    assert write_control("newlines", texts, tmp_path / "made", None) == []
    (packed,) = write_control("packing", texts, tmp_path / "made", None)
    assert gather((packed,))[0].document()[1] == "A line and its rest.\n\nNew\tparagraph\n\nmore\n"
    assert write_control("packing", texts[:1], tmp_path / "made", None) == []


# --------------------------------------------------------------------------------------------------- advice, command line


def test_advice_follows_from_the_later_windows():
    random = np.random.default_rng(0)
    static = random.normal(3, 0.3, 40)
    steady = lambda mean: static + mean + 0.05 * random.standard_normal(40)  # noqa: E731
    assert advice(static, steady(-0.2))["advice"] == ADAPT
    assert advice(static, steady(0.2))["advice"] == LEAVE
    assert advice(static, steady(0.0) - np.repeat([5.0, 0.0], 20))["advice"] == UNCLEAR  # early windows don't count
    found = advice(static, steady(-0.2))
    assert found["interval"][0] < found["expected_change"] == pytest.approx(-0.2, abs=0.03)


def test_advice_names_what_is_no_change_and_what_diverged():
    random = np.random.default_rng(0)
    static = random.normal(3, 0.3, 40)
    found = advice(static, static - 0.004 + 0.005 * random.standard_normal(40))
    assert found["advice"] == UNCHANGED and advice(static, static - 0.004, margin=0.001)["advice"] == ADAPT
    late = static + np.repeat([0.1, 9.0], 20)
    assert advice(static, late, ceiling=np.log(50000))["advice"] == DIVERGED
    assert advice(static, late)["advice"] == LEAVE


def test_an_outcome_is_foreseen_within_a_factor():
    random = np.random.default_rng(1)
    ratios = np.exp(0.5 * random.standard_normal(4000))
    factor = size_factor(ratios)
    assert np.mean((ratios > 1 / factor) & (ratios < factor)) == pytest.approx(0.95, abs=0.015)
    assert size_factor(ratios[:5]) != factor and size_factor(np.array([1.0, 1.0])) == 1.0
    assert outcome_interval(-0.2, (-0.25, -0.1), 3.0) == pytest.approx([-0.6, -0.2 / 3])
    assert outcome_interval(-0.2, (-0.25, 0.1), 3.0) == pytest.approx([-0.6, 0.1])
    assert outcome_interval(0.2, (0.1, 0.3), 3.0) == pytest.approx([0.2 / 3, 0.6])
    with pytest.raises(ValueError, match="above 0"):
        size_factor([0.5, -1.0])


def test_the_command_line_from_advice_to_diagnosis(base, texts, tmp_path, capsys):
    (tmp_path / "train.txt").write_text(english(600, seed=99))
    words = [word for word in words_for(base, "x", tmp_path / "advice", "--lr", 0.01, "--reference", texts) if word not in ("--text", "x")]
    assert call(*words, "--advise", tmp_path / "train.txt", "--windows", 12) == 0
    output = capsys.readouterr().out
    advised = json.loads((tmp_path / "advice" / "summary.json").read_text())
    assert advised["advice"] == ADAPT and "expected change" in output and advised["windows"] == 12
    assert (tmp_path / "advice" / "page.html").read_text().count("<svg") == 1
    assert call(*words_for(base, texts, tmp_path / "run", "--lr", 0.01, "--learn", tmp_path / "train.txt", "--control", "none")) == 0
    output = capsys.readouterr().out
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["verdict"] == "helps" and "helps" in output and "function words" in output and "page.html" in output
    assert summary["change"] < 0 and advised["expected_change"] < 0
    assert (
        call(*words_for(base, texts, tmp_path / "run", "--lr", 0.01, "--learn", tmp_path / "train.txt", "--control", "none", "--resume"))
        == 0
    )


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "give one of them"),
        (["--after", "/nowhere"], "/nowhere"),
        (["--learn", "/nowhere.txt"], "no such file"),
        (["--advise", "/nowhere.txt"], "not with --advise"),
        (["--after", "x", "--control", "most"], "invalid choice"),
    ],
)
def test_errors_are_one_line(words, message, base, texts, tmp_path, capsys):
    assert call(*words_for(base, texts, tmp_path / "out", *words)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error


def test_a_text_too_short_to_probe_is_refused(base, tmp_path):
    from dynadapt.experiments.diagnose.advise import advise

    (tmp_path / "short.txt").write_text("the cat")
    config = config_for(base, "x", after="y").eval
    with pytest.raises(TextError, match="too short for 4 windows"):
        advise(config, (str(tmp_path / "short.txt"),), (), 8, tmp_path / "out")


def test_no_advice_reaches_below_zero_nats():
    """On text that is nearly known already a factor of the gain would be more than there is."""
    generator = np.random.default_rng(5)
    for _ in range(200):
        static = generator.exponential(generator.uniform(0.01, 3), 16)
        found = advice(static, static * generator.uniform(0, 1.2, 16))
        for change in (found["expected_change"], *found["interval"], *found["outcome_interval"]):
            assert found["base_nll"] + change >= -1e-12
        assert found["outcome_interval"][0] <= found["expected_change"] <= found["outcome_interval"][1]


def test_advice_ends_with_the_next_command(base, texts, tmp_path, capsys):
    from dynadapt.cli import command_parser

    words = [word for word in words_for(base, "x", tmp_path / "advice", "--lr", 0.01) if word not in ("--text", "x")]
    (tmp_path / "a text.txt").write_text(" ".join((texts / f"{i:02d}.txt").read_text() for i in range(12)))
    assert call(*words, "--advise", tmp_path / "a text.txt", "--windows", 12) == 0
    said, summary = " ".join(capsys.readouterr().out.split()), json.loads((tmp_path / "advice" / "summary.json").read_text())
    assert "minutes here" in said and summary["text_minutes"] > 0 and "measured instead of predicted: dynadapt tune" in said
    for command in filter(None, (summary["next_command"], summary["tune_command"])):
        _, name, *rest = shlex.split(command)
        found = command_parser(name).parse_args(rest)
        assert list(found.text) == [str(tmp_path / "a text.txt")] and found.model == str(base) and found.segment == 48
