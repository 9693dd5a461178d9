// Two streams adapt side by side, each with a low-rank adapter of its own over one frozen weight: linear, linear cross-entropy,
// the way back, and one Adam step of both adapters. Every result is held against plain loops.
#include "dynadapt.hpp"

#include <cstdio>
#include <cstring>

#include "plain_loops.h"

using dynadapt::check;
using dynadapt::View;
using Floats = std::vector<float>;
using Doubles = std::vector<double>;

namespace {

constexpr int S = 2, T = 12, K = 20, H = 16, R = 4, V = 50;  // streams, tokens, input, output, rank, vocabulary
constexpr int N = S * T, A = R * K, P = R * K + R * H;       // rows, numbers of A, numbers of an adapter
constexpr float kScale = 2, kLearningRate = 0.05f;

struct Layer {
  Floats x, W, head, adapters;  // [N, K], [H, K], [V, H], [S, P]
  Doubles wide_x, wide_W, wide_head, wide_adapters;
  std::vector<int64_t> targets;

  Layer() : targets(N) {
    fill(x, wide_x, N * K, 1);
    fill(W, wide_W, H * K, 0.4);
    fill(head, wide_head, V * H, 0.5);
    fill(adapters, wide_adapters, S * P, 0.3);
    for (int i = 0; i < N; i++) targets[i] = (7 * i) % V;
  }

  static void fill(Floats& values, Doubles& wide, int count, double scale) {
    values.resize(count);
    wide.resize(count);
    plain_random(count, scale, values.data(), wide.data());
  }
};

struct Results {
  Floats h = Floats(N * H), u = Floats(N * R), nll = Floats(N), lse = Floats(N), dh = Floats(N * H), dU = Floats(N * R);
  Floats gradients = Floats(S * P);
};

/// A [S, R, K] or Bt [S, R, H] within buffers that hold [A, Bt] for each stream: the stride between streams is P.
struct AdapterView {
  int64_t shape[3], strides[3];
  DLTensor tensor;

  AdapterView(Floats& buffer, int offset, int width) : shape{S, R, width}, strides{P, width, 1}, tensor{} {
    tensor.data = buffer.data() + offset;
    tensor.device = {kDLCPU, 0};
    tensor.ndim = 3;
    tensor.dtype = dynadapt::dtype_of<float>();
    tensor.shape = shape;
    tensor.strides = strides;
  }
  AdapterView(const AdapterView&) = delete;
  operator const DLTensor*() const { return &tensor; }
};

void forward_and_backward(Layer& layer, const dynadapt::Matrix& weight, const dynadapt::Matrix& head, Results& r) {
  std::vector<int32_t> slots{0, 1};  // rows of the first T tokens use adapter 0, the others adapter 1
  Floats weights(N, 1.0f / T);       // each stream's loss is the mean over its tokens
  const AdapterView a(layer.adapters, 0, K), bt(layer.adapters, A, H), da(r.gradients, 0, K), dbt(r.gradients, A, H);
  const View x(layer.x, {N, K}), slot(slots, {S}), u(r.u, {N, R}), h(r.h, {N, H}), dh(r.dh, {N, H}), du(r.dU, {N, R});
  const dynadapt_matrix* const part[] = {weight.get()};

  auto linear = dynadapt::params<dynadapt_linear_params>();
  linear.scale = kScale;
  check(dynadapt_linear_forward(x, part, 1, nullptr, a, bt, slot, u, h, &linear));
  check(dynadapt_cross_entropy(h, head.get(), View(layer.targets, {N}), View(weights, {N}), View(r.nll, {N}), View(r.lse, {N}),
                               dh));
  check(dynadapt_linear_backward(dh, part, 1, a, bt, slot, du, nullptr, &linear));  // nothing below learns: no dx

  const int64_t part_sizes[] = {H};
  auto lora = dynadapt::params<dynadapt_lora_gradient_params>();
  lora.scale = kScale;
  lora.part_count = 1;
  lora.part_sizes = part_sizes;
  check(dynadapt_lora_gradient(dh, x, u, du, slot, da, dbt, &lora));
}

/// One Adam step of both streams, each clipped to a gradient norm of 1.
void update(Layer& layer, Results& r) {
  Floats first(S * P), second(S * P), lr(S, kLearningRate), norms(S);
  std::vector<int32_t> slots{0, 1}, step(S), skipped(S);
  auto adam = dynadapt::params<dynadapt_update_params>();
  adam.kind = DYNADAPT_ADAM;
  adam.clip = 1;
  adam.beta1 = 0.9;
  adam.beta2 = 0.999;
  adam.eps = 1e-8;
  check(dynadapt_update(View(layer.adapters, {S, P}), View(r.gradients, {S, P}), View(first, {S, P}), View(second, {S, P}),
                        nullptr, nullptr, nullptr, View(slots, {S}), View(lr, {S}), View(step, {S}), View(norms, {S}),
                        View(skipped, {S}), nullptr, &adam));
}

/// One stream in plain loops: its output, scores and gradient, and the adapter after the update.
struct Plain {
  Doubles h = Doubles(T * H), nll = Doubles(T), gradient = Doubles(P), adapter;

  Plain(const Layer& layer, int stream)
      : adapter(layer.wide_adapters.begin() + stream * P, layer.wide_adapters.begin() + (stream + 1) * P) {
    const double *x = &layer.wide_x[stream * T * K], *a = adapter.data(), *bt = a + A;
    const std::vector<long long> targets(layer.targets.begin() + stream * T, layer.targets.begin() + (stream + 1) * T);
    Doubles u(T * R), logits(T * V), dh(T * H), du(T * R);
    plain_product(T, H, K, 1, x, 0, layer.wide_W.data(), 1, h.data());
    plain_product(T, R, K, 1, x, 0, a, 1, u.data());
    plain_product(T, H, R, kScale, u.data(), 0, bt, 0, h.data());
    plain_product(T, V, H, 1, h.data(), 0, layer.wide_head.data(), 1, logits.data());
    plain_cross_entropy(T, V, targets.data(), 1.0 / T, logits.data(), nll.data());
    plain_product(T, H, V, 1, logits.data(), 0, layer.wide_head.data(), 0, dh.data());
    plain_product(T, R, H, kScale, dh.data(), 0, bt, 1, du.data());
    plain_product(R, K, T, 1, du.data(), 1, x, 0, gradient.data());
    plain_product(R, H, T, kScale, u.data(), 1, dh.data(), 0, gradient.data() + A);
    plain_first_adam_step(P, kLearningRate, 1e-8, 1, gradient.data(), adapter.data());
  }
};

/// Errors arrive as exceptions that name the argument: here a parameter struct that is too small.
void show_refusal(const dynadapt::Matrix& weight, Layer& layer, Results& r) {
  auto linear = dynadapt::params<dynadapt_linear_params>();
  linear.struct_size = 1;
  const dynadapt_matrix* const part[] = {weight.get()};
  try {
    check(dynadapt_linear_forward(View(layer.x, {N, K}), part, 1, nullptr, nullptr, nullptr, nullptr, nullptr, View(r.h, {N, H}),
                                  &linear));
  } catch (const dynadapt::Error& error) {
    if (error.status != DYNADAPT_INVALID || !std::strstr(error.what(), "struct_size")) throw;
    std::printf("refused, as it must be: %s\n", error.what());
    return;
  }
  throw std::logic_error("a struct_size of 1 was accepted");
}

}  // namespace

int main() try {
  Layer layer;
  Results results;
  const dynadapt::Matrix weight(View(layer.W, {H, K})), head(View(layer.head, {V, H}));

  forward_and_backward(layer, weight, head, results);
  const Floats gradients = results.gradients;  // the update leaves zeros
  update(layer, results);
  for (int s = 0; s < S; s++) {
    std::printf("stream %d\n", s);
    const Plain plain(layer, s);
    plain_check("  h, the linear's output", T * H, &results.h[s * T * H], plain.h.data(), 1e-5);
    plain_check("  negative log-likelihoods", T, &results.nll[s * T], plain.nll.data(), 1e-5);
    plain_check("  gradient of the adapter", P, &gradients[s * P], plain.gradient.data(), 1e-5);
    plain_check("  adapter after the update", P, &layer.adapters[s * P], plain.adapter.data(), 1e-5);
  }
  show_refusal(weight, layer, results);
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
