"""`dynadapt bench score`: scoring a text beside llama.cpp and transformers."""

from __future__ import annotations

from dynadapt.experiments.config import EvalConfig

from .bench_step import add_arithmetic, add_rounds
from .early import check_model
from .parsing import at_least

# What dynadapt.bench knows, by name: help is printed without importing it.
PEERS, GROUPS = ("llama.cpp", "torch-eager", "torch-compile"), ("torch",)

EXAMPLES = """examples:
  dynadapt fetch smollm2-135m --gguf smollm2-135m.gguf
  dynadapt bench score --against llama.cpp,torch --model smollm2-135m.gguf --out score.json
  dynadapt bench score --against llama.cpp,torch --model smollm2-135m.gguf --dtype all --isa all --llama-cpp builds/{isa}
      on each instruction set of this processor; llama.cpp is compiled for one, so there is a build of it for each
  dynadapt bench score --against torch                       # a model in any form
A text is scored in segments of --segment tokens; nothing learns, nothing is remembered. Scores are checked against float64 before
anything is timed. Every provider runs in a process of its own, takes turns with the others and is timed with one thread and with all;
llama.cpp with several settings too (tokens that go through the layers together, fused attention or not), of which its best counts;
torch is transformers in eager mode and under torch.compile with frozen weights. With several --streams llama.cpp takes one after the
other, torch that or all as one batch, whichever is faster. Rounds go on as in dynadapt bench step.

llama.cpp is compiled when it is installed, which takes some minutes:
  pip install llama-cpp-python==0.3.36
  CMAKE_ARGS='-DGGML_NATIVE=OFF' pip install --no-cache-dir --target builds/avx2 --no-deps llama-cpp-python==0.3.36 diskcache     # for --isa avx2"""


def add_options(command) -> None:
    command.add_argument(
        "--against",
        default="",
        metavar="A,B",
        help=f"providers to compare with: {', '.join((*PEERS, *GROUPS))} (torch: both) (default: none)",
    )
    command.add_argument(
        "--model", default=EvalConfig.model, metavar="NAME", help=f"for llama.cpp a .gguf file (default: {EvalConfig.model})"
    )
    command.add_argument(
        "--llama-cpp", metavar="DIR", help="a folder that llama-cpp-python was installed into; {isa} in it is the instruction set"
    )
    command.add_argument("--streams", type=at_least(1), default=1, metavar="S", help="texts that are scored at a time (default: 1)")
    add_arithmetic(command)
    add_rounds(command)


def run(arguments) -> int:
    check_model(arguments.model)
    from dynadapt.bench.score import bench_score

    return bench_score(arguments)
