"""bench score: what is timed, what is refused by name, and that every provider scores the same text."""

import sys
from types import SimpleNamespace

import pytest
import torch
from gguf_files import write_gguf
from helpers import nll_of, to_transformers

from dynadapt.bench import compare, llama_cpp, score, score_worker
from dynadapt.bench.llama_cpp import PeerError, check_llama_cpp
from dynadapt.bench.plain_directory import plain_directory
from dynadapt.cli import build_parser
from dynadapt.model import random_model, tiny_config

SEGMENT = 12
STREAMS = 2
OPTIONS = {"streams": STREAMS, "segment": SEGMENT, "isa": None, "base": "same", "threads": 1, "llama_cpp": None}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny model as a .gguf file and as the directory that is made of it for transformers."""
    folder = tmp_path_factory.mktemp("score")
    made = random_model(tiny_config("llama"), seed=0, std=0.1)
    path = str(write_gguf(made, folder / "tiny.gguf"))
    return path, plain_directory(path, folder), made


def pieces_of(vocabulary):
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(vocabulary, (STREAMS, SEGMENT + 1), generator=generator).tolist() for _ in range(3)]


def test_ours_and_torch_score_what_transformers_does_in_float64(model, tmp_path):
    path, directory, made = model
    tokens = pieces_of(made.config.vocab_size)
    options = {**OPTIONS, "model": path, "directory": directory, "tokens": tokens}
    exact = nll_of(to_transformers(made).double(), torch.tensor(tokens[0]))
    threads = torch.get_num_threads()
    try:
        for name, dtype, bound in (("torch-fp64", "fp64", 1e-6), ("torch-eager", "fp32", 1e-5), ("dynadapt", "fp32", 1e-5)):
            worker = score_worker.PROVIDERS.get(name, score_worker.Torch)({**options, "provider": name, "dtype": dtype})
            worker.begin()
            said = worker.check(str(tmp_path / "nll"))
            assert said["nats_per_token"] == pytest.approx(float(exact.mean()), abs=bound)
            from safetensors.torch import load_file

            assert (load_file(tmp_path / "nll")["nll"] - exact).abs().max() < bound, name
            again = worker.score(worker.texts[0])
            assert torch.equal(again, worker.score(worker.texts[0])), "nothing learns and nothing is remembered"
            if name == "dynadapt":
                assert worker.time(1)["flops"] > 0
            else:
                worker.time(1, together=True)
                assert worker.together and (worker.score(worker.texts[0]) - exact).abs().max() < bound, "as one batch"
    finally:
        worker.threads(threads)


def test_rows_are_named_by_what_they_are():
    options = {"streams": 1, "segment": 200, "base": "same"}
    rows = score.score_rows(["llama.cpp", "torch-eager", "torch-compile"], ["bf16", "fp32"], ("same", "int8", "quants"), options)
    ours = [f"dynadapt {dtype}{base}" for dtype in ("bf16", "fp32") for base in ("", " int8", " quants")]
    assert set(rows) == {*ours, *(f"torch-{kind} {dtype}" for kind in ("eager", "compile") for dtype in ("bf16", "fp32")), "llama.cpp"}
    assert rows["dynadapt bf16"].bounds is None and rows["dynadapt bf16 int8"].bounds == rows["llama.cpp"].bounds == {"nll": 0.25}
    assert rows["dynadapt bf16 quants"].bounds is None, "its numbers are those of bf16"
    assert rows["torch-compile fp32"].compiled and not rows["torch-eager fp32"].compiled
    assert rows["torch-eager fp32"].settings == ({},)
    several = score.score_rows(["llama.cpp", "torch-eager"], ["bf16"], ("same",), {**options, "streams": 3})
    assert several["torch-eager bf16"].settings == ({"together": False}, {"together": True}) and several["dynadapt bf16"].settings == ({},)
    tried = [(setting["n_ubatch"], setting["flash"]) for setting in rows["llama.cpp"].settings]
    assert tried == [(200, True), (200, False), (128, True), (128, False)]  # no more than the segment has


def test_a_row_with_bounds_of_its_own_is_held_to_them():
    row = {"provider": "llama.cpp", "dtype": "gguf", "bounds": {"nll": 0.25}, "error": {"nll": 0.2}}
    compare.check({"llama.cpp": row}, {}, score.FLOOR)
    with pytest.raises(RuntimeError, match="llama.cpp: nll differs from float64 by 3, more than 0.25"):
        compare.check({"llama.cpp": {**row, "error": {"nll": 3.0}}}, {}, score.FLOOR)


def installed(folder, info: str):
    """A llama_cpp that only says what it was compiled for."""
    (folder / "llama_cpp").mkdir(parents=True)
    text = f"__version__ = '0.3.36'\ndef llama_print_system_info(): return b'{info}'\n"
    (folder / "llama_cpp" / "__init__.py").write_text(text)


def test_llama_cpp_is_refused_by_name_with_the_line_that_mends_it(tmp_path, monkeypatch):
    monkeypatch.setattr(llama_cpp.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PeerError, match=r"llama-cpp-python is not installed; .*: pip install --no-cache-dir llama-cpp-python==0\.3\.36$"):
        check_llama_cpp(None, None)
    template = str(tmp_path / "{isa}")
    with pytest.raises(
        PeerError, match=r"not installed in .*/avx2; .*CMAKE_ARGS='-DGGML_NATIVE=OFF' pip install --no-cache-dir --target .*/avx2 --no-deps"
    ):
        check_llama_cpp(template, "avx2")
    installed(tmp_path / "avx2", "CPU : AVX = 1 | AVX2 = 1 | AVX512 = 0 | REPACK = 1 | ")
    assert check_llama_cpp(template, "avx2") == {"version": "0.3.36", "built_for": ["AVX", "AVX2", "REPACK"]}
    installed(tmp_path / "all", "CPU : AVX2 = 1 | AVX512 = 1 | AVX512_BF16 = 1 | ")
    for isa, above in (("avx2", "AVX512_BF16"), ("avx512", "AVX512_BF16")):
        with pytest.raises(PeerError, match=rf"--isa {isa}: it was compiled for {above} and can't be held to less"):
            check_llama_cpp(str(tmp_path / "all"), isa)
    assert check_llama_cpp(str(tmp_path / "all"), "avx512_bf16")["built_for"][-1] == "AVX512_BF16"
    (tmp_path / "avx2" / "llama_cpp" / "__init__.py").write_text("raise OSError('libllama.so is not there')\n")
    with pytest.raises(PeerError, match="llama_cpp does not start: OSError: libllama.so is not there"):
        check_llama_cpp(template, "avx2")


@pytest.mark.parametrize(
    "options,said",
    [
        (["--against", "llama.cpp"], "it reads a .gguf file, and is compared on the same one.*dynadapt fetch smollm2-135m --gguf"),
        (["--against", "llama"], "--against llama: expected some of llama.cpp, torch-eager, torch-compile, torch"),
        (["--dtype", "int8"], "--dtype int8: expected some of bf16, fp32"),
    ],
)
def test_names_are_checked(options, said):
    arguments = build_parser().parse_args(["bench", "score", *options])
    with pytest.raises(ValueError, match=said):
        arguments.function(arguments)


def test_help_knows_what_the_benchmark_knows():
    from dynadapt.commands import bench_score

    assert (score.PEERS, tuple(score.GROUPS)) == (bench_score.PEERS, bench_score.GROUPS)
    assert f"llama-cpp-python=={llama_cpp.VERSION}" in bench_score.EXAMPLES and llama_cpp.BUILDS["avx2"] in bench_score.EXAMPLES


def test_llama_cpp_is_asked_for_the_logits_of_every_token(model, monkeypatch):
    """Against a made-up library whose logits are known: tokens, positions and targets are where they belong, settings reach contexts."""
    path, _, made = model
    vocabulary, seen = made.config.vocab_size, []
    logits = torch.randn(SEGMENT, vocabulary, generator=torch.Generator().manual_seed(1))
    cells = lambda: [[0] for _ in range(SEGMENT)]  # noqa: E731
    batch = SimpleNamespace(token=[0] * SEGMENT, pos=[0] * SEGMENT, n_seq_id=[0] * SEGMENT, seq_id=cells(), logits=[0] * SEGMENT)

    def decode(context, given):
        seen.append((context, list(given.token), list(given.pos), list(given.logits), given.n_tokens))
        return 0

    api = SimpleNamespace(
        LLAMA_FLASH_ATTN_TYPE_ENABLED=1,
        LLAMA_FLASH_ATTN_TYPE_DISABLED=0,
        llama_backend_init=lambda: None,
        llama_model_default_params=lambda: None,
        llama_model_load_from_file=lambda name, settings: name.decode() == path,
        llama_model_get_vocab=lambda model: None,
        llama_vocab_n_tokens=lambda vocab: vocabulary,
        llama_batch_init=lambda *sizes: batch,
        llama_context_default_params=SimpleNamespace,
        llama_init_from_model=lambda model, settings: (settings.n_ubatch, settings.flash_attn_type, settings.n_threads, settings.n_ctx),
        llama_get_memory=lambda context: None,
        llama_memory_clear=lambda memory, data: None,
        llama_decode=decode,
        llama_get_logits=lambda context: logits.data_ptr(),
        llama_set_n_threads=lambda context, a, b: seen.append(("threads", a, b)),
    )
    monkeypatch.setitem(sys.modules, "llama_cpp", api)
    tokens, before = pieces_of(vocabulary), torch.get_num_threads()
    try:
        worker = score_worker.LlamaCpp({**OPTIONS, "provider": "llama.cpp", "dtype": "gguf", "model": path, "tokens": tokens})
        rows = worker.texts[0]
        found = worker.score(rows)
        row = rows[-1]
        expected = [torch.nn.functional.cross_entropy(logits, each[1:], reduction="none") for each in rows]
        assert torch.equal(found, torch.stack(expected))
        assert [given[1] for given in seen] == rows[:, :-1].tolist()
        assert seen[-1] == ((SEGMENT, 1, 1, SEGMENT), row[:-1].tolist(), list(range(SEGMENT)), [1] * SEGMENT, SEGMENT)
        assert len(worker.time(2, n_ubatch=4, flash=False)["seconds"]) == 2 and seen[-1][0] == (4, 0, 1, SEGMENT)
        assert sum(context == (4, 0, 1, SEGMENT) for context, *_ in seen) == 3 * STREAMS  # one that is not timed
        worker.threads(1)
        assert seen[-2:] == [("threads", 1, 1)] * 2
    finally:
        torch.set_num_threads(before)
