"""Runs over one text, token by token: what is joined, what is refused, the tables, the files and the page."""
import csv
import json
import shutil
import subprocess

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from dynadapt.cli import main
from dynadapt.experiments.compare import read_compared, summarise, write_page
from dynadapt.experiments.config import EvalConfig
from dynadapt.experiments.diagnose.classes import CLASSES
from dynadapt.experiments.dyneval import RunOptions, run
from dynadapt.experiments.rundir import RunError
from tiny import english, tiny_directory

TEXT = english(400) + "\tEnde. \U0001f642 w\u00f6rld </script><b>\n\n" + english(60, seed=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two documents scored three ways, and the first of them in two parts."""
    base = tmp_path_factory.mktemp("compare")
    model = tiny_directory(base / "model")
    (base / "a.txt").write_text(TEXT, encoding="utf-8")
    (base / "b.txt").write_text(english(150, seed=5), encoding="utf-8")
    both = (str(base / "a.txt"), str(base / "b.txt"))
    common = dict(model=str(model), segment=16, rank=2, dtype="fp32", backend="cpu", lr=1e-2)
    for name, changes in {"static": {"text": both, "adapt": "none"}, "lora": {"text": both}, "streams": {"text": both, "streams": 2},
                          "short": {"text": both, "tokens": 100}, "split": {"text": both[:1], "split": True, "streams": 2},
                          "split-static": {"text": both[:1], "split": True, "streams": 2, "adapt": "none"}}.items():
        run(EvalConfig(**{**common, **changes}), base / name, RunOptions(scores=name != "unscored"))
    run(EvalConfig(text=both, **common), base / "unscored", RunOptions())
    return base


def test_every_token_has_its_text(folder):
    compared = read_compared([folder / "static", folder / "lora"])
    for number, name in enumerate(("a.txt", "b.txt")):
        whole, inside = (folder / name).read_bytes(), compared.document == number
        start, stop = compared.start[inside], compared.stop[inside]
        assert stop[-1] == len(whole) and (start[1:] == stop[:-1]).all() and (start <= stop).all()
        text = "".join(piece for piece, one in zip(compared.pieces, inside) if one)
        assert text == whole[start[0]:].decode() and len(text) > 100
    assert "\U0001f642" in "".join(compared.pieces)


def test_scores_are_those_of_the_runs(folder):
    compared = read_compared([folder / "static", folder / "lora", folder / "streams"])
    for path, nll in zip(("static", "lora", "streams"), compared.nll):
        summary = json.loads((folder / path / "summary.json").read_text())
        assert len(nll) == summary["tokens"] and nll.mean() == pytest.approx(summary["nll"], rel=1e-6)


def test_parts_of_one_text_have_their_own_bytes(folder):
    compared = read_compared([folder / "split-static", folder / "split"])
    whole = (folder / "a.txt").read_bytes()
    assert compared.names == ("a.txt, part 1", "a.txt, part 2")
    texts = ["".join(p for p, d in zip(compared.pieces, compared.document) if d == part) for part in (0, 1)]
    assert whole.decode().endswith(texts[1]) and texts[0] in whole.decode() and len(texts[0]) > 100
    assert compared.start[compared.document == 1].min() > compared.stop[compared.document == 0].max()


def test_tokens_that_only_one_run_scored_are_left_out(folder):
    compared = read_compared([folder / "static", folder / "short"])
    assert len(compared.token) == json.loads((folder / "short" / "summary.json").read_text())["tokens"] < 100


def test_last_seen_counts_tokens_back(folder):
    compared = read_compared([folder / "static", folder / "lora"])
    for i in np.random.default_rng(0).integers(0, len(compared.token), 40):
        earlier = [j for j in range(i) if compared.document[j] == compared.document[i] and compared.token[j] == compared.token[i]]
        assert compared.last_seen[i] == (i - earlier[-1] if earlier else 0)


def test_tables_add_up(folder):
    compared = read_compared([folder / "static", folder / "lora"])
    (pair,) = summarise(compared)["pairs"]
    gain = compared.nll[0].mean() - compared.nll[1].mean()
    assert pair["gain"] == pytest.approx(gain) and sum(row["part"] for row in pair["classes"]) == pytest.approx(gain)
    assert sum(row["tokens"] for row in pair["classes"]) == sum(row["tokens"] for row in pair["documents"]) == len(compared.token)
    assert pair["interval"][0] < gain < pair["interval"][1]
    assert pair["new"]["tokens"] + pair["repeated"]["tokens"] == len(compared.token)


def test_bytes_of_a_character_are_no_whitespace(folder, tmp_path):
    text = tmp_path / "t.txt"
    text.write_text("\u732b\u304c\u597d\u304d\u3002\U0001f642 the cat sat.\n" * 12, encoding="utf-8")
    common = dict(model=str(folder / "model"), text=(str(text),), segment=16, rank=2, dtype="fp32", backend="cpu")
    for name, adapt in (("static", "none"), ("lora", "lora")):
        run(EvalConfig(**common, adapt=adapt), tmp_path / name, RunOptions(scores=True))
    compared = read_compared([tmp_path / "static", tmp_path / "lora"])
    classes, blank = compared.classes, CLASSES.index("newline and whitespace")
    partial = compared.partial
    assert partial.sum() > 50 and not (classes[partial] == blank).any()
    assert all(not piece.strip() for piece, kind in zip(compared.pieces, classes) if kind == blank)


def test_other_weights_under_the_same_name_are_said(folder, tmp_path, capsys):
    model = shutil.copytree(folder / "model", tmp_path / "model")
    config = EvalConfig(model=str(model), text=(str(folder / "b.txt"),), segment=16, rank=2, dtype="fp32", backend="cpu", adapt="none")
    run(config, tmp_path / "one", RunOptions(scores=True))
    tensors = load_file(model / "model.safetensors")
    save_file({name: tensor * 1.01 for name, tensor in tensors.items()}, model / "model.safetensors", {"format": "pt"})
    run(config, tmp_path / "other", RunOptions(scores=True))
    with pytest.raises(SystemExit):
        main(["compare", str(tmp_path / "one"), str(tmp_path / "other")])
    assert "its weights were others" in capsys.readouterr().out
    assert "its weights were others" in (tmp_path / "compare.html").read_text(encoding="utf-8")


def test_the_same_text_under_another_name(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    common = dict(model=str(folder / "model"), segment=16, rank=2, dtype="fp32", backend="cpu", adapt="none")
    for name, text in (("one", "b.txt"), ("two", "./b.txt")):
        run(EvalConfig(**common, text=(text,)), tmp_path / name, RunOptions(scores=True))
    assert len(read_compared([tmp_path / "one", tmp_path / "two"]).token) > 50
    monkeypatch.chdir(tmp_path)
    assert len(read_compared([tmp_path / "one", tmp_path / "two"]).token) > 50         # found where the runs were made
    environment = json.loads((tmp_path / "one" / "env.json").read_text())
    (tmp_path / "one" / "env.json").write_text(json.dumps({**environment, "folder": "/nowhere"}))
    with pytest.raises(RunError, match="is not in .* or /nowhere: put it back, or run this where the run was made"):
        read_compared([tmp_path / "one", tmp_path / "two"])
    (tmp_path / "b.txt").write_text("another")
    with pytest.raises(RunError, match="is not what .* scored: it has changed since, or .* has another of that name"):
        read_compared([tmp_path / "one", tmp_path / "two"])


def test_files_are_whole_and_have_names_of_their_own(folder, tmp_path, capsys):
    def compare(*words):
        with pytest.raises(SystemExit) as end:
            main(["compare", str(folder / "static"), str(folder / "lora"), *map(str, words)])
        return end.value.code or 0, capsys.readouterr().err
    assert compare("--out", tmp_path / "a", "--json", tmp_path / "a")[0] == 2
    (tmp_path / "folder").mkdir()
    code, said = compare("--out", tmp_path / "folder")
    assert code == 2 and "can't write: it is a directory" in said and "--resume" not in said
    (tmp_path / "j.json.tmp").write_text("mine")
    assert compare("--out", tmp_path / "p.html", "--json", tmp_path / "j.json")[0] == 0
    assert (tmp_path / "j.json.tmp").read_text() == "mine" and not list(tmp_path.glob(".*"))


def damaged(folder, tmp_path, name):
    """A copy of a run to spoil, without the digests that would give the damage away."""
    copy = shutil.copytree(folder / name, tmp_path / name)
    summary = json.loads((copy / "summary.json").read_text())
    (copy / "summary.json").write_text(json.dumps({key: value for key, value in summary.items() if key != "files"}))
    return copy


def test_what_cannot_be_compared_is_refused_by_name(folder, tmp_path):
    def refused(words, *paths):
        with pytest.raises(RunError, match=words):
            read_compared(paths)
    refused("at least two runs", folder / "static")
    refused("unscored has no scores of single tokens .* --scores", folder / "static", folder / "unscored")
    refused("no such run directory", folder / "static", folder / "a.txt")
    refused("split has text", folder / "static", folder / "split")
    refused("no such run directory", folder / "static", folder / "nowhere")
    old = damaged(folder, tmp_path, "lora")
    rows = np.load(old / "scores.npy")
    np.save(old / "scores.npy", rows[["document", "position", "nll"]].astype([("document", "<i4"), ("position", "<i4"), ("nll", "<f4")]))
    refused("lora was made by a version whose scores keep no tokens", folder / "static", old)
    rows["token"][7] += 1
    np.save(old / "scores.npy", rows)
    refused("other tokens than", folder / "static", old)
    reweighted = damaged(folder, tmp_path, "static")
    config = json.loads((reweighted / "config.json").read_text())
    (reweighted / "config.json").write_text(json.dumps({**config, "kind": "reweight"}))
    refused("is a run of dynadapt reweight", reweighted, folder / "lora")


def test_a_text_that_has_changed_is_refused(folder, tmp_path):
    text = tmp_path / "t.txt"
    text.write_text(english(100))
    config = EvalConfig(model=str(folder / "model"), text=(str(text),), segment=16, rank=2, dtype="fp32", backend="cpu")
    run(config, tmp_path / "before", RunOptions(scores=True))
    run(config.with_(adapt="none"), tmp_path / "after", RunOptions(scores=True))
    text.write_text(english(100, seed=9))
    with pytest.raises(RunError, match="has changed since"):
        read_compared([tmp_path / "before", tmp_path / "after"])
    run(config.with_(adapt="none"), tmp_path / "later", RunOptions(scores=True))
    with pytest.raises(RunError, match="another version of"):
        read_compared([tmp_path / "before", tmp_path / "later"])


def test_the_command_writes_page_numbers_and_tokens(folder, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(["compare", *(str(folder / name) for name in ("static", "lora", "streams")), "--out", str(tmp_path / "new" / "page.html"),
              "--json", str(tmp_path / "numbers.json"), "--csv", str(tmp_path / "tokens.csv")])
    assert not end.value.code
    said = capsys.readouterr().out
    assert "nats a token over static" in said and str(tmp_path / "tokens.csv") in said
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert len(numbers["runs"]) == 3 and len(numbers["pairs"]) == 2
    with open(tmp_path / "tokens.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == numbers["tokens"] and {"text", "class", "last_seen"} <= set(rows[0])
    page = (tmp_path / "new" / "page.html").read_text(encoding="utf-8")
    assert "@DATA@" not in page and page.count("</script>") == 2     # the text's own is data, not markup
    assert "http://" not in page and "https://" not in page and "src=" not in page


# ---- in a browser

ACTIONS = """<script>
addEventListener("load", () => setTimeout(() => {
  const said = {}, view = $("view");
  const spans = () => [...document.querySelectorAll("#tall span[data-i]")];
  try {
    said.rows = rows.length; said.drawn = spans().length; said.columns = columns; said.n = N; said.overflow = document.documentElement.scrollWidth - innerWidth;
    said.lines = rows.map(r => r.map(p => p[1]).join("")).join("\\n");
    const widest = Math.max(...[...document.querySelectorAll(".row")].map(r => r.getBoundingClientRect().right));
    said.fits = widest <= view.getBoundingClientRect().right + 1;
    const one = spans()[12], box = one.getBoundingClientRect();
    one.dispatchEvent(new MouseEvent("mousemove", {bubbles: true, clientX: box.left + 2, clientY: box.top + 2}));
    said.tip = $("tip").innerText; const t = $("tip").getBoundingClientRect(); said.tip_inside = t.left >= 0 && t.right <= innerWidth && t.bottom <= innerHeight;
    for (const which of ["new", "repeated", "gains", "losses"]) {
      $("which").value = which; $("which").onchange(); said[which] = matches.length;
      const faint = spans().filter(s => s.classList.contains("faint")).length; said[which + "_faint"] = faint;
    }
    $("which").value = "all"; $("class").value = $("class").options[1].value; $("class").onchange(); said.class = matches.length;
    $("next").onclick(); said.at = at; $("next").onclick(); said.at2 = at; $("previous").onclick(); said.back = at;
    $("class").value = "-1"; $("class").onchange();
    const begun = performance.now(); let longest = 0;
    for (let i = 0; i < 60; i++) { const b = performance.now(); view.scrollTop = i / 60 * view.scrollHeight; draw(false); view.getBoundingClientRect(); longest = Math.max(longest, performance.now() - b); }
    said.scroll = (performance.now() - begun) / 60; said.longest = longest; said.kept = spans().length;
    goTo(N - 1); said.last = spans().some(s => +s.dataset.i === N - 1);
    if ($("after").options.length > 1) { const first = $("verdict").textContent; $("after").value = 2; $("after").onchange(); said.changed = first !== $("verdict").textContent; }
  } catch (error) { said.error = String(error) + error.stack; }
  const out = document.createElement("pre"); out.id = "said"; out.textContent = JSON.stringify(said); document.body.append(out);
}, 50));
</script></body>"""
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def browse(page, tmp_path, width):
    """What a real browser makes of the page at this width: the answers of ACTIONS."""
    import html
    import re
    copy = tmp_path / f"acted-{width}.html"
    copy.write_text(page.read_text(encoding="utf-8").replace("</body>", ACTIONS), encoding="utf-8")
    done = subprocess.run([CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900",
                           "--virtual-time-budget=20000", "--dump-dom", f"file://{copy}"], capture_output=True, text=True, timeout=180)
    found = re.search(r'<pre id="said">(.*?)</pre>', done.stdout, re.S)
    assert found, done.stderr[-2000:]
    said = json.loads(html.unescape(found[1]))
    assert "error" not in said, said["error"]
    return said


@pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed")
@pytest.mark.parametrize("width", [1300, 500])
def test_the_page_in_a_browser(folder, tmp_path, width):
    compared = read_compared([folder / "static", folder / "lora", folder / "streams"])
    write_page(tmp_path / "page.html", compared, summarise(compared))
    said = browse(tmp_path / "page.html", tmp_path, width)
    n = len(compared.token)
    assert said["n"] == n and said["overflow"] <= 0 and said["fits"]
    shown = said["lines"].replace("\n", "").replace("\u21b5", "\n")
    assert "</script><b>" in shown and "\U0001f642" in shown
    assert "before" in said["tip"] and "nats" in said["tip"] and "segment" in said["tip"] and said["tip_inside"]
    assert said["new"] + said["repeated"] == n and said["new"] == int((compared.last_seen == 0).sum())
    assert 0 < said["gains"] <= n // 50 and 0 < said["losses"] <= n // 50 and said["gains_faint"] > 0
    assert 0 < said["class"] < n and said["at2"] > said["at"] == said["back"]
    assert said["last"] and said["changed"]


@pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed")
def test_a_page_of_100000_tokens_stays_fluent(folder, tmp_path):
    small = read_compared([folder / "static", folder / "lora"])
    times = -(-100_000 // len(small.token))
    big = _repeated(small, times)
    write_page(tmp_path / "big.html", big, summarise(big))
    assert (tmp_path / "big.html").stat().st_size < 8e6
    said = browse(tmp_path / "big.html", tmp_path, 1300)
    assert said["n"] >= 100_000 and said["rows"] > 1500
    assert said["drawn"] < 3000 and said["kept"] < 3000              # the lines in view, no others
    assert said["scroll"] < 50


def _repeated(compared, times):
    """The same documents many times over, as one longer text each."""
    from dynadapt.experiments.compare import Compared
    part = np.flatnonzero(compared.document == 0)
    size, begin = int(compared.stop[part[-1]]), int(compared.start[part[0]])
    length, times = size - begin, -(-times * len(compared.token) // len(part))
    tile = lambda array: np.tile(array[..., part], times)  # noqa: E731
    shift = np.repeat(np.arange(times), len(part))
    text = compared.texts[0][:begin] + compared.texts[0][begin:size] * times
    return Compared(compared.runs, compared.names[:1], tile(compared.document), np.arange(1, times * len(part) + 1), tile(compared.token),
                    tile(compared.start) + shift * length, tile(compared.stop) + shift * length, tile(compared.nll), (text,))
