"""`dynadapt patch`: a receiver's files have the sender's bits; what does not fit is refused and leaves nothing behind."""

import json
import os
import stat

import pytest
import torch
from command_line import call, words_of
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import english, tiny_directory

import dynadapt


def stored(state, path, metadata=None):
    save_file(state, str(path), metadata or {"format": "pt"})


def states(seed: int = 0, versions: int = 3) -> list[dict[str, torch.Tensor]]:
    """Versions of two bf16 tensors, each a little different from the one before."""
    generator = torch.Generator().manual_seed(seed)
    found = [{"a": torch.randn(40, 30, generator=generator).bfloat16(), "b": torch.randn(7, generator=generator).bfloat16()}]
    for _ in range(versions - 1):
        moved = {name: torch.where(torch.rand(v.shape, generator=generator) < 0.1, v * 1.02, v) for name, v in found[-1].items()}
        found.append(moved)
    return found


@pytest.fixture
def folder(tmp_path):
    """Directories v0, v1, v2 of a model in two files, and what stands beside them."""
    for i, state in enumerate(states()):
        place = tmp_path / f"v{i}"
        (place / "more").mkdir(parents=True)
        (place / "config.json").write_text("{}")
        (place / "more" / "notes.txt").write_text("kept")
        for name, value in state.items():
            stored({name: value}, place / f"model-{name}.safetensors", {"format": "pt", "version": str(i)})
    return tmp_path


def bits(place) -> dict[str, bytes]:
    found = {}
    for file in sorted(place.glob("*.safetensors")):
        found |= {name: value.view(torch.uint8).numpy().tobytes() for name, value in load_file(file).items()}
    return found


def made(folder, one: int, other: int, number: int = 1):
    path = folder / f"{other}.patch"
    assert call("patch", "make", folder / f"v{one}", folder / f"v{other}", "--out", path, "--number", number) == 0
    return path


def test_a_directory_gets_every_bit_and_keeps_what_stands_beside(folder, capsys):
    path = made(folder, 0, 1)
    assert "patch 1, " in capsys.readouterr().out
    assert call("patch", "apply", folder / "v0", path, "--out", folder / "new") == 0
    assert bits(folder / "new") == bits(folder / "v1") != bits(folder / "v0")
    assert (folder / "new" / "more" / "notes.txt").read_text() == "kept" and (folder / "new" / "config.json").read_text() == "{}"
    with safe_open(folder / "new" / "model-a.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "version": "0"}  # the base's: a patch is of weights


def test_a_chain_is_applied_in_order_or_not_at_all(folder, capsys):
    first, second = made(folder, 0, 1), made(folder, 1, 2, 2)
    assert call("patch", "apply", folder / "v0", first, second, "--out", folder / "new") == 0
    assert bits(folder / "new") == bits(folder / "v2")
    for chain, said in (
        ([second], "starts from other weights"),
        ([second, first], "starts from other weights"),
        ([first, first], "does not start where"),
    ):
        capsys.readouterr()
        assert call("patch", "apply", folder / "v0", *chain, "--out", folder / "other") == 2
        assert said in capsys.readouterr().err and not (folder / "other").exists()
    assert call("patch", "apply", folder / "v1", first, "--out", folder / "other") == 2
    assert "has been applied to these weights already" in capsys.readouterr().err


def test_a_file_by_itself(tmp_path, capsys):
    before, after, _ = states()
    stored(before, tmp_path / "a.safetensors")
    stored(after, tmp_path / "b.safetensors")
    assert call("patch", "make", tmp_path / "a.safetensors", tmp_path / "b.safetensors", "--out", tmp_path / "p") == 0
    assert call("patch", "apply", tmp_path / "a.safetensors", tmp_path / "p", "--out", tmp_path / "c.safetensors") == 0
    assert all(torch.equal(value, after[name]) for name, value in load_file(tmp_path / "c.safetensors").items())
    assert call("patch", "apply", tmp_path / "a.safetensors", tmp_path / "p", "--out", tmp_path / "c.safetensors") == 2
    assert "exists" in capsys.readouterr().err


def test_what_is_shown(folder, capsys):
    path = made(folder, 0, 1)
    before, after = states()[:2]
    changed = {name: int((before[name] != after[name]).sum()) for name in before}
    capsys.readouterr()
    assert call("patch", "show", path) == 0
    said = capsys.readouterr().out
    assert f"{sum(changed.values()):,} of 1,207 weights in 2 tensors change" in said and f"40x30  {changed['a']:,}" in said
    assert call("patch", "show", path, "--json") == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert {name: tensor["changed"] for name, tensor in found["tensors"].items()} == changed
    assert found["number"] == 1 and len(found["tensors"]["a"]["after"]) == 64


@pytest.mark.parametrize(
    "spoil,said",
    [
        (lambda folder: stored({"a": torch.ones(2)}, folder / "v1" / "model-a.safetensors"), "a is stored in float32; patches are of bf16"),
        (lambda folder: stored({"b": torch.ones(7).bfloat16()}, folder / "v1" / "model-c.safetensors"), "b stands in another file"),
        (lambda folder: (folder / "v1" / "model-a.safetensors").write_bytes(b"cut"), "model-a.safetensors: not a whole .safetensors file"),
        (lambda folder: (folder / "v1" / "model-a.safetensors").unlink(), "only one of them has a"),
        (lambda folder: [file.unlink() for file in (folder / "v1").glob("*.safetensors")], "holds no .safetensors file"),
    ],
)
def test_what_is_no_state_of_the_same_weights_is_refused(folder, capsys, spoil, said):
    spoil(folder)
    assert call("patch", "make", folder / "v0", folder / "v1", "--out", folder / "p") == 2
    assert said in capsys.readouterr().err and not (folder / "p").exists()


def test_a_damaged_patch_and_a_name_that_is_not_there(folder, capsys):
    path = made(folder, 0, 1)
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    for words in (["show", path], ["apply", folder / "v0", path, "--out", folder / "new"]):
        capsys.readouterr()
        assert call("patch", *words) == 2 and "damaged" in capsys.readouterr().err
    assert call("patch", "make", folder / "v0", folder / "v9", "--out", folder / "p") == 2
    assert "v9: no such file or directory" in capsys.readouterr().err and not (folder / "new").exists()


def _link(to):
    return lambda place: place.symlink_to(to)


@pytest.mark.parametrize(
    "name,spoil,said",
    [
        ("gone.json", _link("../blobs/1"), "gone.json: is a link to ../blobs/1, which is not there; expected files"),
        ("more/gone", _link("nowhere"), "more/gone: is a link to nowhere, which is not there"),
        ("model-c.safetensors", _link("nowhere"), "model-c.safetensors: is a link to nowhere, which is not there"),
        ("itself", _link("itself"), "itself: is a link to itself, which is not there"),
        ("more/round", _link(".."), "more/round: is a link to .., in which it lies itself"),
        ("pipe", os.mkfifo, "pipe: is a pipe, a socket or a device; expected files"),
    ],
)
def test_what_can_not_be_copied_is_refused_by_name(folder, capsys, name, spoil, said):
    path = made(folder, 0, 1)
    spoil(folder / "v0" / name)
    capsys.readouterr()
    assert call("patch", "apply", folder / "v0", path, "--out", folder / "new") == 2
    assert f"{folder}/v0/{said}" in capsys.readouterr().err and not (folder / "new").exists()


def test_links_to_what_is_there_are_followed(folder):
    path = made(folder, 0, 1)
    (folder / "blob").write_text("kept")
    (folder / "v0" / "linked.json").symlink_to("../blob")
    assert call("patch", "apply", folder / "v0", path, "--out", folder / "new") == 0
    assert (folder / "new" / "linked.json").read_text() == "kept" and not (folder / "new" / "linked.json").is_symlink()


def test_what_a_killed_command_left_goes(folder):
    path = made(folder, 0, 1)
    (folder / ".new.making-abcdefgh").mkdir()
    (folder / ".new.making-abcdefgh" / "half").write_text("half")
    (folder / ".1.patch.making-abcdefgh").write_text("half")
    assert call("patch", "apply", folder / "v0", path, "--out", folder / "new") == 0
    made(folder, 0, 1)
    assert not list(folder.glob(".*"))


def test_a_model_that_dynadapt_reads_comes_out_as_one(tmp_path):
    tiny_directory(tmp_path / "base")
    state = {name: value.bfloat16() for name, value in load_file(tmp_path / "base" / "model.safetensors").items()}
    stored(state, tmp_path / "base" / "model.safetensors")
    stored({name: value * 1.01 for name, value in state.items()}, tmp_path / "after.safetensors")
    assert call("patch", "make", tmp_path / "base", tmp_path / "after.safetensors", "--out", tmp_path / "p") == 0
    assert call("patch", "apply", tmp_path / "base", tmp_path / "p", "--out", tmp_path / "new") == 0
    model = dynadapt.load(tmp_path / "new")
    name = model.names()[0]
    assert not torch.equal(model.tensor(name), dynadapt.load(tmp_path / "base").tensor(name))


@pytest.mark.parametrize("name", ["model-a.safetensors", "config.json", "update.patch"])
def test_a_patch_takes_no_place_of_weights(folder, capsys, name):
    path = made(folder, 0, 1)
    for side in ("v0", "v1"):
        before = bits(folder / side)
        assert call("patch", "make", folder / "v0", folder / "v1", "--out", folder / side / name) == 2
        assert "or inside it" in capsys.readouterr().err and bits(folder / side) == before
    assert call("patch", "apply", folder / "v0", path, "--out", folder / "v0" / "new") == 2
    assert "copied into itself" in capsys.readouterr().err and not (folder / "v0" / "new").exists()


def test_a_pipe_is_not_replaced_by_a_file(folder, capsys):
    os.mkfifo(folder / "pipe")
    assert call("patch", "make", folder / "v0", folder / "v1", "--out", folder / "pipe") == 2
    assert "a device, a pipe or a socket" in capsys.readouterr().err and stat.S_ISFIFO((folder / "pipe").stat().st_mode)


def test_adapters_that_are_exported_in_bf16_are_patched(tmp_path, capsys):
    (tmp_path / "a.txt").write_text(english(120))
    tiny_directory(tmp_path / "model")
    for number, tokens in enumerate((40, 80)):
        words = words_of("eval", tmp_path / "model", tmp_path / "a.txt", tmp_path / f"run{number}", "--tokens", tokens, "--lr", 0.01)
        assert call(*words, "--memory", 0) == 0
        for dtype in ("fp32", "bf16"):
            assert call("export", tmp_path / f"run{number}", "--out", tmp_path / f"{dtype}-{number}", "--dtype", dtype) == 0
    assert call("export", tmp_path / "run0", "--out", tmp_path / "plain") == 0
    files = {place: tmp_path / place / "adapter_model.safetensors" for place in ("plain", "fp32-0", "bf16-0", "bf16-1")}
    whole, stored = (load_file(files[place]) for place in ("plain", "bf16-0"))
    assert all(torch.equal(whole[name].bfloat16(), value) for name, value in stored.items()) and whole.keys() == stored.keys()
    assert all(torch.equal(whole[name], value) for name, value in load_file(files["fp32-0"]).items())
    assert dynadapt.load(tmp_path / "bf16-0") is not None  # an adapter that is read as any other
    patch = tmp_path / "p"
    assert call("patch", "make", tmp_path / "bf16-0", tmp_path / "bf16-1", "--out", patch) == 0
    assert call("patch", "apply", tmp_path / "bf16-0", patch, "--out", tmp_path / "new") == 0
    assert bits(tmp_path / "new") == bits(tmp_path / "bf16-1") != bits(tmp_path / "bf16-0")
    capsys.readouterr()
    assert call("patch", "make", tmp_path / "fp32-0", tmp_path / "fp32-1", "--out", patch) == 2
    assert "patches are of bf16 weights" in capsys.readouterr().err
    assert call("export", tmp_path / "run0", "--csv", tmp_path / "t.csv", "--dtype", "bf16") == 2
    assert "dtype bf16: with --out" in capsys.readouterr().err
