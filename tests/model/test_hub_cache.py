"""Hub ids are found in the Hugging Face cache as its own tools leave it: by name, by revision, whole; else the line that fetches them."""

import shutil
import sys

import pytest
import torch
from tiny import tiny_directory

import dynadapt
from dynadapt.commands import info
from dynadapt.model import ModelError, hub_cache, load
from dynadapt.runs.rundir import RunError

COMMIT, OLDER = "a" * 40, "b" * 40


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache with one model: files are links into blobs, as hf download makes them."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "hf" / "hub", "org/small", COMMIT, "main")
    return tmp_path / "hf" / "hub"


def put(root, repo, commit, ref):
    home = root / ("models--" + repo.replace("/", "--"))
    made = tiny_directory(root / "made")
    snapshot = home / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (home / "blobs").mkdir(exist_ok=True)
    for file in sorted(made.iterdir()):
        blob = home / "blobs" / f"{commit[0]}-{file.name}-digest"
        shutil.move(file, blob)
        (snapshot / file.name).symlink_to(f"../../blobs/{blob.name}")
    made.rmdir()
    if ref:
        (home / "refs").mkdir(exist_ok=True)
        (home / "refs" / ref).write_text(commit)
    return home


def test_an_id_is_loaded_through_links_without_the_hub_library(cache, tmp_path):
    before = set(sys.modules)
    model, expected = load("org/small"), load(tiny_directory(tmp_path / "same"))
    assert not {name for name in set(sys.modules) - before if name.startswith("huggingface_hub")}
    assert (model.name, model.origin) == ("org/small", "org/small")
    assert model.fingerprint() == expected.fingerprint() and model.tokenizer.encode("the cat") == expected.tokenizer.encode("the cat")
    assert torch.isfinite(dynadapt.Engine(model, dtype="fp32", segment=8).score(torch.arange(9)[None])).all()
    assert hub_cache.hub_models() == ["org/small"] and info.hub_models() == "org/small"


def test_the_library_agrees_on_where_it_is(cache):
    hub = pytest.importorskip("huggingface_hub")
    from huggingface_hub.file_download import try_to_load_from_cache

    found = try_to_load_from_cache("org/small", "config.json", cache_dir=cache)
    assert isinstance(found, str) and hub_cache.hub_snapshot("org/small") / "config.json" == type(cache)(found), hub.__version__


@pytest.mark.parametrize(
    "variable,below", [("HF_HUB_CACHE", ""), ("HUGGINGFACE_HUB_CACHE", ""), ("HF_HOME", "hub"), ("XDG_CACHE_HOME", "huggingface/hub")]
)
def test_every_variable_that_moves_the_cache(tmp_path, monkeypatch, variable, below):
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert hub_cache.hub_directory() == tmp_path / "home" / ".cache" / "huggingface" / "hub"
    monkeypatch.setenv(variable, "~/moved")
    assert hub_cache.hub_directory() == tmp_path / "home" / "moved" / below


def test_revisions(cache):
    put(cache, "org/small", OLDER, "v1.0")
    for name, commit in (("org/small", COMMIT), ("org/small@main", COMMIT), ("org/small@v1.0", OLDER), (f"org/small@{OLDER}", OLDER)):
        assert hub_cache.hub_snapshot(name).name == commit
    with pytest.raises(
        ModelError, match=r"revision v2 is not in the Hugging Face cache.*it has .*main, v1.0 .*hf download org/small --revision v2"
    ):
        load("org/small@v2")


def test_a_directory_of_that_name_goes_before_it(cache, tmp_path):
    tiny_directory(tmp_path / "org" / "small", family="qwen2")
    assert load("org/small").config.family == "qwen2"
    shutil.rmtree(tmp_path / "org")
    assert load("org/small").config.family == "llama"


def test_what_is_not_whole_is_refused_with_the_line_that_fetches_it(cache):
    snapshot = cache / "models--org--small" / "snapshots" / COMMIT
    weights = (snapshot / "model.safetensors").resolve()
    (snapshot / "tokenizer.json").unlink()
    with pytest.raises(RunError, match="no tokenizer; .*or fetch it with: hf download org/small"):
        dynadapt.evaluate("org/small", string="the cat sat on the mat")
    weights.rename(weights.with_suffix(".incomplete"))
    with pytest.raises(
        ModelError,
        match="not wholly: model.safetensors leads nowhere .a download was broken off.. Fetch the rest with: hf download org/small",
    ):
        load("org/small")
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="no model.safetensors. If files are missing, fetch them with: hf download org/small"):
        load("org/small")
    (snapshot / "config.json").unlink()
    with pytest.raises(ModelError, match="no config.json"):
        load("org/small")


@pytest.mark.parametrize(
    "given,said",
    [
        ("org/other-thing", "has no model of this name: fetch it with: hf download org/other-thing"),
        ("org/other-thing@v3", "hf download org/other-thing --revision v3"),
        ("https://huggingface.co/org/small", "given as 'org/small'"),
        ("hf:org/small", "given as 'org/small'"),
        ("org/smal", "did you mean 'org/small'.*hf download org/smal"),
        ("smollm2-135", "did you mean 'smollm2-135m'"),
        ("SmolLM2-135M", "did you mean 'smollm2-135m'"),
        ("HuggingFaceTB/SmolLM2-135M", "did you mean 'smollm2-135m'.*hf download HuggingFaceTB/SmolLM2-135M"),
        ("org/--", "does not exist"),
        ("../../x", "does not exist"),
        ("org/small/extra", "does not exist"),
        ("a b", "does not exist"),
        ("é/é", "does not exist"),
    ],
)
def test_what_users_type(cache, given, said):
    with pytest.raises(ModelError, match=said):
        load(given)


def test_files_that_are_no_model(cache, tmp_path):
    model = tiny_directory(tmp_path / "models" / "tiny")
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    (tmp_path / "notes.txt").write_text("x")
    for given, said in (
        (tmp_path / "pytorch_model.bin", "is a pickle.*save_pretrained"),
        (model / "config.json", "is a part of a model; give its directory"),
        (tmp_path / "notes.txt", "is neither .gguf nor .safetensors"),
        (tmp_path / "models", "tiny is a model: give that"),
        (tmp_path / "models" / "tinny", "did you mean '.*tiny'"),
    ):
        with pytest.raises(ModelError, match=said):
            load(given)
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(ModelError) as refused:
        load(tmp_path / "link")
    assert "did you mean" not in str(refused.value)  # itself
    (model / "metrics.jsonl").write_text("")
    with pytest.raises(ModelError, match="is a run, not a model.*dynadapt export"):
        load(model)
