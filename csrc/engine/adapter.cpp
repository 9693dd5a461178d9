#include "engine/adapter.h"

#include <cmath>
#include <random>

#include "cpu/update.h"

namespace dynadapt {

namespace {

constexpr int64_t kAlign = 32;  // elements; the gaps stay zero

int64_t aligned(int64_t count) { return (count + kAlign - 1) / kAlign * kAlign; }

bool is_target(const std::string& targets, int group) {
  const bool attention = group == kQkv || group == kO;
  return targets == "all" || (targets == "attn") == attention;
}

Storage zeros(DType dtype, int64_t count) {
  Storage out(dtype, count);
  out.clear();
  return out;
}

}  // namespace

Adapters::Adapters(const LoraSettings& lora, const OptimizerSettings& optimizer, const ModelConfig& config,
                   const std::vector<GroupShape>& groups, int64_t streams, DType dtype)
    : lora_(lora), optimizer_(optimizer), dtype_(dtype), streams_(streams), places_(size_t(config.layers * kGroups)) {
  for (int64_t layer = lora.first_layer; layer < lora.last_layer; layer++)
    for (int g = 0; g < kGroups; g++) {
      if (!is_target(lora.targets, g)) continue;
      if (first_group_ == kGroups) first_group_ = g;
      const int64_t a = int64_t(groups[g].parts.size()) * lora.rank * groups[g].K, b = lora.rank * groups[g].outputs();
      places_[size_t(layer * kGroups + g)] = AdapterPlace{row_, row_ + aligned(a)};
      row_ += aligned(a) + aligned(b);
      parameters_ += a + b;
    }
  const UpdateState state = state_of(optimizer.kind, optimizer.beta1, optimizer.momentum);
  master_ = zeros(kF32, streams * row_);
  gradient_ = zeros(kF32, streams * row_);
  if (state.first) first_ = zeros(kF32, streams * row_);
  if (state.second) second_ = zeros(kF32, streams * row_);
  if (dtype == kBF16) working_ = zeros(kBF16, streams * row_);
  lr_ = Storage(kF32, streams);
  step_ = zeros(kI32, streams);
  draw(groups);
  for (int64_t s = 0; s < streams; s++) {
    set_lr(s, float(optimizer.lr));
    reset(s);
  }
}

/// A uniform in +-1/sqrt(K), B zero. The numbers are those that a torch.Generator of the same seed gives uniform_: the lower 24
/// bits of each draw of a Mersenne twister, and one rounding in the step to the interval.
void Adapters::draw(const std::vector<GroupShape>& groups) {
  prior_ = zeros(kF32, row_);
  std::mt19937 twister{uint32_t(lora_.seed)};
  for (int64_t layer = lora_.first_layer; layer < lora_.last_layer; layer++)
    for (int g = 0; g < kGroups; g++) {
      const AdapterPlace* at = place(layer, g);
      if (!at) continue;
      const float bound = float(1 / std::sqrt(double(groups[g].K))), span = bound - -bound;
      const int64_t count = int64_t(groups[g].parts.size()) * lora_.rank * groups[g].K;
      for (int64_t i = 0; i < count; i++)
        prior_.as<float>()[at->A + i] = std::fma(float(uint32_t(twister()) & 0xffffff) * 0x1p-24f, span, -bound);
    }
}

void Adapters::update(const std::vector<int32_t>& slots, float* norms, int32_t* skipped) {
  Update c{};
  c.kind = optimizer_.kind;
  c.streams = slots.size();
  c.parameters = size_t(row_);
  c.slots = slots.data();
  c.master = master_.as<float>();
  c.grad = gradient_.as<float>();
  c.first = first_.as<float>();
  c.second = second_.as<float>();
  c.prior = prior_.as<float>();
  c.working = working_.data();
  c.lr = lr_.as<float>();
  c.step = step_.as<int32_t>();
  c.decay = optimizer_.decay;
  c.clip = optimizer_.clip;
  c.beta1 = optimizer_.beta1;
  c.beta2 = optimizer_.beta2;
  c.eps = optimizer_.eps;
  c.weight_decay = optimizer_.weight_decay;
  c.momentum = optimizer_.momentum;
  c.norms = norms;
  c.skipped = skipped;
  kernels<ByType<UpdateKernels>>().of(working_ ? dtype_ : kF32).update(c);
}

void Adapters::reset(int64_t stream) {
  std::memcpy(master(stream), prior_.data(), prior_.bytes());
  clear_optimizer(stream);
  refresh(stream);
}

void Adapters::clear_optimizer(int64_t stream) {
  for (const Storage* buffer : {&gradient_, &first_, &second_})
    if (*buffer) std::memset(buffer->as<float>() + stream * row_, 0, size_t(row_) * sizeof(float));
  step_.as<int32_t>()[stream] = 0;
}

void Adapters::refresh(int64_t stream) {
  if (!working_) return;
  // Rounding to nearest even, as the update kernels do.
  const float* from = master(stream);
  uint16_t* to = working_.as<uint16_t>() + stream * row_;
  for (int64_t i = 0; i < row_; i++) to[i] = to_bf16(from[i]);
}

size_t Adapters::bytes() const {
  return prior_.bytes() + master_.bytes() + gradient_.bytes() + first_.bytes() + second_.bytes() + working_.bytes();
}

}  // namespace dynadapt
