#include "engine/decoder.h"

#include <array>

#include "cpu/activation.h"
#include "cpu/cross_entropy.h"
#include "cpu/embedding.h"
#include "cpu/head_norm.h"
#include "cpu/lora_gradient.h"
#include "cpu/norm.h"

namespace dynadapt {

Decoder::Decoder(const Model& model, Adapters* adapters, Window* window, int64_t streams, int64_t segment)
    : model_(model),
      c_(model.config),
      adapters_(adapters),
      window_(window),
      dtype_(model.weights.dtype),
      most_rows_(streams * segment),
      lowest_layer_(adapters ? adapters->first_layer() : model.config.layers),
      rope_(rope_tables(model.config, segment + (window ? window->capacity() : 0))),
      window_rope_(window_rope_tables(model.config, segment + (window ? window->capacity() : 0))) {
  shared_ = make_kept();
  for (int64_t i = lowest_layer_; i < c_.layers; i++) kept_.push_back(make_kept());
  const int64_t qkv = model.groups[kQkv].outputs();
  for (size_t i = 0, count = window ? c_.layers : 1 + kept_.size(); i < count; i++) {
    raw_.push_back(make(qkv));
    normed_.push_back(c_.qk_norm ? make(qkv) : Storage());
  }
  for (Storage* buffer :
       {&embedded_, &o_, &down_, &final_res_, &hidden_, &scored_, &dscored_, &dhidden_, &dres_[0], &dres_[1], &dres_[2]})
    *buffer = make(c_.hidden);
  if (c_.norm_after)
    for (Storage* buffer : {&attended_, &fed_, &dpost_}) *buffer = make(c_.hidden);
  final_stat_ = Storage(kF32, most_rows_ * 2);
  lse_ = Storage(kF32, most_rows_);
  if (!adapters) return;
  for (int g = 0; g < kGroups; g++) {
    dU_[g] = make(int64_t(model.groups[g].parts.size()) * adapters->lora().rank);
    dx_[g] = make(model.groups[g].K);
  }
  dh_ = make(2 * c_.ffn);
  dqkv_ = make(qkv);
  if (c_.qk_norm) draw_ = make(qkv);
}

Decoder::Kept Decoder::make_kept() const {
  Kept k;
  for (Storage* buffer : {&k.res1, &k.res2}) *buffer = make(c_.hidden);
  for (Storage* buffer : {&k.n1, &k.n2})
    if (!c_.norm_after) *buffer = make(c_.hidden);
  for (Storage* buffer : {&k.o, &k.down})
    if (c_.norm_after) *buffer = make(c_.hidden);
  k.out = make(c_.q_width());
  k.h = make(2 * c_.ffn);
  k.y = make(c_.ffn);
  for (int g = 0; adapters_ && g < kGroups; g++) k.u[g] = make(int64_t(model_.groups[g].parts.size()) * adapters_->lora().rank);
  k.lse = Storage(kF32, most_rows_ * c_.heads);
  for (Storage* stat : c_.norm_after ? std::array{&k.attn_post_stat, &k.mlp_post_stat} : std::array{&k.attn_stat, &k.mlp_stat})
    *stat = Storage(kF32, most_rows_ * 2);
  if (c_.qk_norm) k.head_stat = Storage(kF32, most_rows_ * int64_t(normed_heads().count()));
  return k;
}

size_t Decoder::bytes() const {
  const auto of = [](const Kept& k) {
    size_t total = 0;
    for (const Storage* buffer : {&k.res1, &k.n1, &k.out, &k.o, &k.res2, &k.n2, &k.h, &k.y, &k.down, &k.lse, &k.attn_stat,
                                  &k.mlp_stat, &k.attn_post_stat, &k.mlp_post_stat, &k.head_stat})
      total += buffer->bytes();
    for (const Storage& u : k.u) total += u.bytes();
    return total;
  };
  size_t total = of(shared_) + 2 * (rope_.cos.size() + window_rope_.cos.size()) * sizeof(float);
  for (const Kept& k : kept_) total += of(k);
  for (const Storage& qkv : raw_) total += qkv.bytes();
  for (const Storage& qkv : normed_) total += qkv.bytes();
  for (const Storage* buffer : {&embedded_, &o_, &down_, &attended_, &fed_, &dpost_, &final_res_, &hidden_, &final_stat_,
                                &scored_, &lse_, &dscored_, &dhidden_, &dh_, &dqkv_, &draw_})
    total += buffer->bytes();
  for (const Storage& buffer : dU_) total += buffer.bytes();
  for (const Storage& buffer : dx_) total += buffer.bytes();
  for (const Storage& buffer : dres_) total += buffer.bytes();
  return total;
}

// ---- the ops, as the decoder calls them

/// res = x + delta and its norm at y, which is returned; without a weight the sum, which is x where there is no delta.
const void* Decoder::norm(const void* x, const void* delta, const Storage& weight, void* res, void* y, Storage& stat) {
  if (!weight && !delta) return x;
  NormForward a{};
  a.rows = size_t(rows_);
  a.width = size_t(c_.hidden);
  a.eps = c_.norm_eps;
  a.x = x;
  a.delta = delta;
  a.weight = weight.data();
  a.res = delta ? res : nullptr;
  a.y = y;
  a.stat = stat.as<float>();
  kernels<ByType<NormKernels>>().of(dtype_).forward(a);
  return weight ? y : res;
}

/// What attention or feed-forward adds to the residual: x normalised, or as it is where no norm stands behind it.
const void* Decoder::post_norm(const void* x, const Storage& weight, void* y, Storage& stat) {
  return weight ? norm(x, nullptr, weight, nullptr, y, stat) : x;
}

void Decoder::norm_backward(const void* dy, const void* res, const Storage& weight, const Storage& stat, const void* dres,
                            void* dx) {
  NormBackward a{};
  a.rows = size_t(rows_);
  a.width = size_t(c_.hidden);
  a.dy = dy;
  a.res = res;
  a.weight = weight.data();
  a.stat = stat.as<float>();
  a.dres = dres;
  a.dx = dx;
  kernels<ByType<NormKernels>>().of(dtype_).backward(a);
}

StreamAdapters Decoder::adapters(const Batch& batch, int64_t layer, int group) const {
  StreamAdapters out;
  const AdapterPlace* at = adapters_ ? adapters_->place(layer, group) : nullptr;
  if (!at) return out;
  const LoraSettings& lora = adapters_->lora();
  const Ranks ranks = equal_ranks(int(model_.groups[group].parts.size()), lora.rank, lora.scale());
  for (const int32_t stream : batch.streams) {
    const int64_t row = stream * adapters_->row();
    out.push_back({offset(adapters_->compute(), dtype_, row + at->A), offset(adapters_->compute(), dtype_, row + at->Bt), ranks});
  }
  return out;
}

Decoder::Parts Decoder::group_parts(int64_t layer, int group) const {
  Parts out;
  for (const MatrixPtr& part : model_.weights.layers[size_t(layer)].parts[group]) out.list[out.count++] = part.get();
  return out;
}

void Decoder::linear(const Batch& batch, int64_t layer, int group, const void* x, void* u, void* y) {
  const GroupShape& shape = model_.groups[group];
  const Parts parts = group_parts(layer, group);
  LinearForward a{};
  a.dtype = dtype_;
  a.N = rows_;
  a.K = a.ldx = shape.K;
  a.O = shape.outputs();
  a.x = x;
  a.parts = parts.list;
  a.part_count = parts.count;
  a.bias = model_.weights.layers[size_t(layer)].bias[group].data();
  a.adapters = adapters(batch, layer, group);
  a.low_width = a.adapters.widest();
  a.u = u;
  a.y = y;
  linear_kernels_of(*a.parts[0]).forward(a);
  flops.linear_forward(rows_, shape, a.adapters.largest());
}

/// d-input at dx, unless nothing below learns: then false. What the adapter's own gradient needs of it stays in dU.
bool Decoder::linear_backward(const Batch& batch, int64_t layer, int group, const void* dy, void* dx) {
  const GroupShape& shape = model_.groups[group];
  const Parts parts = group_parts(layer, group);
  const bool below = !is_lowest(layer, group);
  LinearBackward a{};
  a.dtype = dtype_;
  a.N = rows_;
  a.K = shape.K;
  a.O = shape.outputs();
  a.dy = dy;
  a.parts = parts.list;
  a.part_count = parts.count;
  a.adapters = adapters(batch, layer, group);
  a.low_width = a.adapters.widest();
  a.dU = dU_[group].data();
  a.dx = below ? dx : nullptr;
  linear_kernels_of(*a.parts[0]).backward(a);
  flops.linear_backward(rows_, shape, a.adapters.largest(), below);
  return below;
}

/// The adapter's gradient of one group, where it has one.
void Decoder::learn(const Batch& batch, int64_t layer, int group, const void* dy, const void* x) {
  const AdapterPlace* at = adapters_->place(layer, group);
  if (!at) return;
  const GroupShape& shape = model_.groups[group];
  int64_t sizes[3];
  for (size_t p = 0; p < shape.parts.size(); p++) sizes[p] = shape.parts[p].size;
  LoraGradient a{};
  a.dtype = dtype_;
  a.N = rows_;
  a.K = shape.K;
  a.O = shape.outputs();
  a.dy = dy;
  a.x = x;
  a.u = kept(layer).u[group].data();
  a.dU = dU_[group].data();
  a.part_sizes = sizes;
  a.part_count = int(shape.parts.size());
  const LoraSettings& lora = adapters_->lora();
  const Ranks ranks = equal_ranks(a.part_count, lora.rank, lora.scale());
  a.low_width = ranks.width;
  for (const int32_t stream : batch.streams) {
    float* row = adapters_->gradient() + stream * adapters_->row();
    a.gradients.push_back({row + at->A, row + at->Bt, ranks});
  }
  kernels<LoraGradientKernels>().gradient(a);
  flops.lora_gradient(rows_, shape, lora.rank);
}

AttentionShape Decoder::attention_shape(const Batch& batch, int64_t layer) const {
  AttentionShape s{};
  s.streams = batch.streams.size();
  s.segment = size_t(batch.segment);
  s.query_heads = size_t(c_.heads);
  s.kv_heads = size_t(c_.kv_heads);
  s.head_dim = size_t(c_.head_dim);
  s.slots = batch.streams.data();
  const RopeTables& rope = c_.window(layer) && c_.window_rope_theta ? window_rope_ : rope_;
  s.cos = c_.rotates(layer) ? rope.cos.data() : nullptr;
  s.sin = c_.rotates(layer) ? rope.sin.data() : nullptr;
  s.scale = c_.attention_scale;
  if (c_.window(layer)) s.window = c_.window(layer);
  if (!window_) return s;
  s.memory_capacity = size_t(window_->capacity());
  s.mem_k = window_->keys(layer);
  s.mem_v = window_->values(layer);
  s.mem_len = window_->lengths();
  return s;
}

// ---- forward

void Decoder::forward(const Batch& batch, bool learn) {
  rows_ = batch.rows();
  first_kept_ = learn ? lowest_layer_ : c_.layers;
  const Weights& w = model_.weights;
  if (w.table) {
    EmbeddingForward a{};
    a.rows = size_t(rows_);
    a.width = size_t(c_.hidden);
    a.tokens = batch.inputs.data();
    a.table = w.table.data();
    a.out = embedded_.data();
    kernels<ByType<EmbeddingKernels>>().of(dtype_).forward(a);
  } else {
    kernels<MatrixKernels>().gather_rows(*w.head, batch.inputs.data(), rows_, embedded_.data());
  }
  scale_rows(embedded_, c_.embedding_scale);
  const void *x = embedded_.data(), *delta = nullptr;
  for (int64_t i = 0; i < c_.layers; i++) {
    const LayerWeights& layer = w.layers[size_t(i)];
    Kept& k = kept(i);
    k.attn_in = norm(x, delta, layer.attn_norm, k.res1.data(), k.n1.data(), k.attn_stat);
    k.residual = delta ? k.res1.data() : x;
    linear(batch, i, kQkv, k.attn_in, k.u[kQkv].data(), raw_qkv(i));
    if (c_.qk_norm)
      kernels<ByType<HeadNormKernels>>().of(dtype_).forward({size_t(rows_), normed_heads(), c_.norm_eps, raw_qkv(i),
                                                             layer.q_norm.data(), layer.k_norm.data(), attended_qkv(i),
                                                             k.head_stat.as<float>()});
    kernels<ByType<AttentionForwardKernels>>().of(dtype_).run(
        {attention_shape(batch, i), attended_qkv(i), k.out.data(), k.lse.as<float>()});
    for (const int32_t s : batch.streams) flops.attention_forward(batch.segment, seen(i, s), c_);
    void* o = k.o ? k.o.data() : o_.data();
    linear(batch, i, kO, k.out.data(), k.u[kO].data(), o);
    const void* attended = post_norm(o, layer.attn_post_norm, attended_.data(), k.attn_post_stat);
    k.mlp_in = norm(k.residual, attended, layer.mlp_norm, k.res2.data(), k.n2.data(), k.mlp_stat);
    linear(batch, i, kMlpIn, k.mlp_in, k.u[kMlpIn].data(), k.h.data());
    kernels<ByType<ActivationKernels>>().of(dtype_).forward(
        {size_t(rows_), size_t(c_.ffn), ActivationKind::kSwiglu, k.h.data(), k.y.data()});
    void* down = k.down ? k.down.data() : down_.data();
    linear(batch, i, kDown, k.y.data(), k.u[kDown].data(), down);
    x = k.res2.data();
    delta = post_norm(down, layer.mlp_post_norm, fed_.data(), k.mlp_post_stat);
  }
  norm(x, delta, w.final_norm, final_res_.data(), hidden_.data(), final_stat_);
  scale_rows(hidden_, c_.hidden_scale);
}

/// The rows of this pass in [rows, H], in place.
void Decoder::scale_rows(const Storage& rows, float factor) {
  const int64_t count = factor == 1.0f ? 0 : rows_ * c_.hidden;
  if (dtype_ == kF32) {
    for (int64_t i = 0; i < count; i++) rows.as<float>()[i] *= factor;
    return;
  }
  for (int64_t i = 0; i < count; i++) {
    uint16_t& value = rows.as<uint16_t>()[i];
    const uint32_t bits = uint32_t(value) << 16;
    float wide;
    std::memcpy(&wide, &bits, 4);
    value = to_bf16(wide * factor);
  }
}

void Decoder::score(const std::vector<int64_t>& scored, const std::vector<int64_t>& targets, const float* weights, float* nll) {
  const int64_t n = int64_t(scored.size());
  const bool all = n == rows_;
  const size_t row = size_t(c_.hidden) * item_bytes(dtype_);
  if (!all)
    for (int64_t i = 0; i < n; i++)
      std::memcpy(scored_.as<char>() + size_t(i) * row, hidden_.as<char>() + size_t(scored[size_t(i)]) * row, row);
  CrossEntropy a{};
  a.dtype = dtype_;
  a.N = n;
  a.H = c_.hidden;
  a.h = all ? hidden_.data() : scored_.data();
  a.head = model_.weights.head.get();
  a.targets = targets.data();
  a.weights = weights;
  a.nll = nll;
  a.lse = lse_.as<float>();
  a.dh = !weights ? nullptr : all ? dhidden_.data() : dscored_.data();
  kernels<CrossEntropyKernels>().score(a);
  flops.cross_entropy(n, c_, weights != nullptr);
  if (!weights || all) return;
  std::memset(dhidden_.data(), 0, size_t(rows_) * row);
  for (int64_t i = 0; i < n; i++)
    std::memcpy(dhidden_.as<char>() + size_t(scored[size_t(i)]) * row, dscored_.as<char>() + size_t(i) * row, row);
}

// ---- backward

void Decoder::backward(const Batch& batch) {
  scale_rows(dhidden_, c_.hidden_scale);
  norm_backward(dhidden_.data(), final_res_.data(), model_.weights.final_norm, final_stat_, nullptr, dres_[2].data());
  const void* d = dres_[2].data();
  for (int64_t i = c_.layers; d && i-- > lowest_layer_;) d = layer_backward(batch, i, d);
}

void Decoder::attention_backward(const Batch& batch, int64_t layer, const void* dout) {
  const Kept& k = kept(layer);
  const LayerWeights& w = model_.weights.layers[size_t(layer)];
  kernels<ByType<AttentionBackwardKernels>>().of(dtype_).run(
      {attention_shape(batch, layer), dout, attended_qkv(layer), k.out.data(), k.lse.as<float>(), dqkv_.data()});
  for (const int32_t s : batch.streams) flops.attention_backward(batch.segment, seen(layer, s), c_);
  if (c_.qk_norm)
    kernels<ByType<HeadNormKernels>>().of(dtype_).backward({size_t(rows_), normed_heads(), dqkv_.data(), raw_qkv(layer),
                                                            w.q_norm.data(), w.k_norm.data(), k.head_stat.as<float>(),
                                                            draw_.data(), nullptr, nullptr});
}

/// The gradient of the layer's input residual, or null when nothing below learns.
const void* Decoder::layer_backward(const Batch& batch, int64_t i, const void* d) {
  const Kept& k = kept(i);
  const LayerWeights& w = model_.weights.layers[size_t(i)];
  const auto post_backward = [&](const void* dy, const Storage& x, const Storage& weight, const Storage& stat) -> const void* {
    if (!weight) return dy;
    norm_backward(dy, x.data(), weight, stat, nullptr, dpost_.data());
    return dpost_.data();
  };
  const void* ddown = post_backward(d, k.down, w.mlp_post_norm, k.mlp_post_stat);
  bool below = linear_backward(batch, i, kDown, ddown, dx_[kDown].data());
  learn(batch, i, kDown, ddown, k.y.data());
  if (!below) return nullptr;
  kernels<ByType<ActivationKernels>>().of(dtype_).backward(
      {size_t(rows_), size_t(c_.ffn), ActivationKind::kSwiglu, dx_[kDown].data(), k.h.data(), dh_.data(), nullptr});
  below = linear_backward(batch, i, kMlpIn, dh_.data(), dx_[kMlpIn].data());
  learn(batch, i, kMlpIn, dh_.data(), k.mlp_in);
  if (!below) return nullptr;
  norm_backward(dx_[kMlpIn].data(), k.res2.data(), w.mlp_norm, k.mlp_stat, d, dres_[0].data());
  d = dres_[0].data();

  const void* do_ = post_backward(d, k.o, w.attn_post_norm, k.attn_post_stat);
  below = linear_backward(batch, i, kO, do_, dx_[kO].data());
  learn(batch, i, kO, do_, k.out.data());
  if (!below) return nullptr;
  attention_backward(batch, i, dx_[kO].data());
  const void* dqkv = c_.qk_norm ? draw_.data() : dqkv_.data();
  below = linear_backward(batch, i, kQkv, dqkv, dx_[kQkv].data());
  learn(batch, i, kQkv, dqkv, k.attn_in);
  if (!below) return nullptr;
  norm_backward(dx_[kQkv].data(), k.residual, w.attn_norm, k.attn_stat, d, dres_[1].data());
  return dres_[1].data();
}

// ---- memory

void Decoder::remember(const Batch& batch, const std::vector<int64_t>& counts) {
  if (!window_) return;
  const int64_t width = model_.groups[kQkv].outputs();
  for (size_t s = 0; s < batch.streams.size(); s++) {
    std::vector<Window::Rows> rows;
    for (int64_t i = 0; i < c_.layers; i++) {
      const void* first = offset(attended_qkv(i), dtype_, int64_t(s) * batch.segment * width + c_.q_width());
      rows.push_back({first, offset(first, dtype_, c_.kv_width()), width});
    }
    window_->advance(batch.streams[s], counts[s], rows);
  }
}

}  // namespace dynadapt
