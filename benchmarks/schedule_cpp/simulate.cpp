// One adapt step of a decoder with LoRA on all linears, by the engine's own code and the kernels' own code, with products, loads and stores
// counted instead of done: who of how many threads does how much of it, between which barriers.
//
//   simulate name=value...
//
// Writes a line a kernel: its name and the fields of counting::Total. The step of a model of many layers is that of one and of two: all layers
// above the lowest are alike. Linked with team.cpp its threads are simulated; with pool_team.cpp and csrc/core/pool.cpp they are real.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "cpu/update.h"
#include "dynadapt/dynadapt.h"
#include "engine/decoder.h"
#include "team.h"

using namespace dynadapt;

namespace {

std::map<std::string, double> given;

double option(const char* name) {
  const auto found = given.find(name);
  if (found == given.end()) std::fprintf(stderr, "%s is missing\n", name), std::exit(2);
  return found->second;
}
int64_t whole(const char* name) { return int64_t(option(name)); }

DType dtype() { return whole("bf16") ? kBF16 : kF32; }

/// Nothing is in it, and nothing reads it.
MatrixPtr matrix(int64_t rows, int64_t columns) {
  auto made = std::make_unique<Matrix>();
  made->rows = rows;
  made->columns = columns;
  made->dtype = dtype();
  made->storage = dtype() == kBF16 ? MatrixStorage::bf16 : MatrixStorage::f32;
  made->bytes = kernels<MatrixKernels>().bytes(*made);
  made->panels = std::aligned_alloc(64, (made->bytes + 63) / 64 * 64);
  return made;
}

Model make_model(int64_t layers) {
  Model model;
  ModelConfig& c = model.config;
  c = {"llama",
       whole("vocabulary"),
       whole("hidden"),
       layers,
       whole("heads"),
       whole("kv_heads"),
       whole("head_dim"),
       whole("ffn"),
       whole("segment"),
       1e-5f,
       1e4,
       {},
       true,
       false,
       false,
       false,
       false};
  model.groups = group_shapes(c);
  model.weights.dtype = dtype();
  for (int64_t i = 0; i < layers; i++) {
    LayerWeights& layer = model.weights.layers.emplace_back();
    layer.attn_norm = Storage(dtype(), c.hidden);
    layer.mlp_norm = Storage(dtype(), c.hidden);
    for (int g = 0; g < kGroups; g++)
      for (const Part& part : model.groups[g].parts) layer.parts[g].push_back(matrix(part.size, model.groups[g].K));
  }
  model.weights.final_norm = Storage(dtype(), c.hidden);
  model.weights.head = matrix(c.vocabulary, c.hidden);
  return model;
}

/// Forward, score and backward with `layers` layers; elements of a stream's adapter.
int64_t pass(int64_t layers) {
  const Model model = make_model(layers);
  const LoraSettings lora{whole("rank"), 2.0 * option("rank"), "all", 0, layers, 0};
  Adapters adapters(lora, {UpdateKind::kAdam, 1e-3, 0.9, 0.999, 1e-8, 1, 0, 0, 0}, model.config, model.groups, 1, dtype());
  const int64_t streams = whole("streams"), segment = whole("segment"), rows = streams * segment;
  Decoder decoder(model, &adapters, nullptr, streams, segment);
  // Every stream is the first one: what they would write is not written.
  const Batch batch{std::vector<int32_t>(size_t(streams), 0), segment, std::vector<int64_t>(size_t(rows), 0)};
  std::vector<int64_t> scored(static_cast<size_t>(rows));
  for (int64_t n = 0; n < rows; n++) scored[size_t(n)] = n;
  std::vector<float> weights(size_t(rows), 1.0f), nll(static_cast<size_t>(rows));
  counting::clear();
  decoder.forward(batch, true);
  decoder.score(scored, batch.inputs, weights.data(), nll.data());
  decoder.backward(batch);
  counting::settle();
  return adapters.row();
}

void update(int64_t parameters) {
  const size_t streams = size_t(whole("streams"));
  const std::vector<int32_t> slots(streams, 0);
  std::vector<float> gradient(static_cast<size_t>(parameters)), norms(streams);
  std::vector<int32_t> skipped(streams);
  float lr = 1e-3f, other = 0;
  int32_t step = 0;
  Update c{};
  c.kind = UpdateKind::kAdam;
  c.streams = streams;
  c.parameters = size_t(parameters);
  c.slots = slots.data();
  c.grad = gradient.data();
  c.master = c.first = c.second = &other;
  c.working = &other;
  c.lr = &lr;
  c.step = &step;
  c.clip = 1;
  c.beta1 = 0.9;
  c.beta2 = 0.999;
  c.eps = 1e-8;
  c.norms = norms.data();
  c.skipped = skipped.data();
  kernels<ByType<UpdateKernels>>().of(dtype()).update(c);
  counting::settle();
}

/// to + factor * what.
counting::Total added(const counting::Total& to, double factor, const counting::Total& what) {
  counting::Total out = to;
  const auto add = [&](auto& a, auto b) { a += static_cast<std::decay_t<decltype(a)>>(factor) * b; };
  add(out.regions, what.regions);
  add(out.barriers, what.barriers);
  add(out.tasks, what.tasks);
  add(out.members, what.members);
  add(out.work.flops, what.work.flops);
  add(out.work.accesses, what.work.accesses);
  add(out.work.functions, what.work.functions);
  add(out.busy, what.busy);
  add(out.longest, what.longest);
  add(out.seconds, what.seconds);
  for (int i = 0; i < 2; i++) add(out.shares[i], what.shares[i]);
  return out;
}

}  // namespace

int main(int argc, char** argv) {
  for (int i = 1; i < argc; i++) {
    const char* equals = std::strchr(argv[i], '=');
    if (!equals) return std::fprintf(stderr, "%s is not name=value\n", argv[i]), 2;
    given[std::string(argv[i], size_t(equals - argv[i]))] = std::atof(equals + 1);
  }
  counting::rates = {option("flops"), option("accesses"), option("functions"), option("barrier"), option("member")};
  dynadapt_set_num_threads(int(whole("threads")));
  const int64_t layers = whole("layers"), row = pass(1);
  auto totals = counting::totals;
  if (layers > 1) {
    const int64_t more = pass(2) - row;
    for (const auto& [name, two] : counting::totals) {
      const counting::Total one = totals[name];
      totals[name] = added(one, double(layers - 1), added(two, -1, one));
    }
    counting::clear();
    update(row + (layers - 1) * more);
  } else {
    counting::clear();
    update(row);
  }
  for (const auto& [name, total] : counting::totals) totals[name] = added(totals[name], 1, total);
  for (const auto& [name, t] : totals)
    std::printf("%s\t%lld %lld %lld %lld %.17g %.17g %.17g %.17g %.17g %.17g %.17g %.17g\n", name.c_str(), (long long)t.regions,
                (long long)t.barriers, (long long)t.tasks, (long long)t.members, t.work.flops, t.work.accesses, t.work.functions,
                t.busy, t.longest, t.seconds, t.shares[0], t.shares[1]);
}
