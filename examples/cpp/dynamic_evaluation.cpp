// Dynamic evaluation in a C++ program: reads a text as a language model's tokens, scores every segment, and learns from it
// right after scoring it. No Python is in the process.
//
//   dynamic_evaluation MODEL_DIR TOKENS [segment=512] [memory=0] [rank=16] [lr=0.002] [dtype=bf16] [out=DIR]
//
// MODEL_DIR is a Hugging Face directory; TOKENS a file of int32 token ids, for example from
//   numpy.array(tokenizer.encode(text), dtype=numpy.int32).tofile("tokens.bin")
// rank=0 scores without learning; out= keeps what was learned as a PEFT adapter.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "dynadapt.hpp"

namespace {

using dynadapt::check;

struct Destroy {
  void operator()(dynadapt_engine* engine) const { dynadapt_engine_destroy(engine); }
};
using Engine = std::unique_ptr<dynadapt_engine, Destroy>;

Engine load(const std::string& directory, const dynadapt_engine_params& params) {
  dynadapt_engine* engine = nullptr;
  check(dynadapt_engine_create(&params, directory.c_str(), &engine));
  return Engine(engine);
}

std::vector<int32_t> read_tokens(const std::string& path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) throw std::runtime_error(path + ": cannot be read");
  const std::streamsize bytes = file.tellg();
  if (bytes % 4 || bytes < 8)
    throw std::runtime_error(path + ": " + std::to_string(bytes) + " bytes are not two or more int32 tokens");
  std::vector<int32_t> tokens(size_t(bytes) / 4);
  file.seekg(0);
  file.read(reinterpret_cast<char*>(tokens.data()), bytes);
  if (!file) throw std::runtime_error(path + ": ended while it was read");
  return tokens;
}

/// The name=value arguments, over what they mean when they are left out.
std::map<std::string, std::string> options(int argc, char** argv) {
  std::map<std::string, std::string> known = {{"segment", "512"}, {"memory", "0"},   {"rank", "16"},
                                              {"lr", "0.002"},    {"dtype", "bf16"}, {"out", ""}};
  for (int i = 3; i < argc; i++) {
    const std::string argument = argv[i];
    const size_t equals = argument.find('=');
    const auto found = known.find(argument.substr(0, equals));
    if (equals == std::string::npos || found == known.end())
      throw std::runtime_error(argument + ": expected name=value, see the top of the source");
    found->second = argument.substr(equals + 1);
  }
  if (known["dtype"] != "bf16" && known["dtype"] != "fp32")
    throw std::runtime_error("dtype=" + known["dtype"] + ": expected bf16 or fp32");
  return known;
}

void run(int argc, char** argv) {
  auto option = options(argc, argv);
  dynadapt_engine_params params;
  check(dynadapt_engine_params_default(&params, sizeof params));
  params.dtype = option["dtype"] == "bf16" ? DYNADAPT_BF16 : DYNADAPT_F32;
  params.segment = std::stoi(option["segment"]);
  params.memory_length = std::stoi(option["memory"]);
  params.rank = std::stoi(option["rank"]);
  params.lr = std::stod(option["lr"]);
  const std::vector<int32_t> tokens = read_tokens(argv[2]);
  const Engine engine = load(argv[1], params);

  std::vector<float> nll(size_t(params.segment));
  double total = 0;
  const size_t last = tokens.size() - 1;  // the first token has nothing before it that could predict it
  for (size_t start = 0; start < last; start += size_t(params.segment)) {
    const int32_t length = int32_t(std::min(size_t(params.segment), last - start));
    auto report = dynadapt::params<dynadapt_engine_report>();
    check(dynadapt_engine_step(engine.get(), tokens.data() + start, length, nullptr, nll.data(), &report));
    total += report.nll_sum;
    std::printf("%zu %d %.6f\n", start, length, report.nll_sum / length);
  }
  std::printf("mean %.6f nats over %zu tokens\n", total / double(last), last);
  if (!option["out"].empty()) check(dynadapt_engine_save(engine.get(), 0, option["out"].c_str()));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: %s MODEL_DIR TOKENS [segment=512] [memory=0] [rank=16] [lr=0.002] [dtype=bf16] [out=DIR]\n",
                 argv[0]);
    return 2;
  }
  try {
    run(argc, argv);
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
