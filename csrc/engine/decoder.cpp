#include "engine/decoder.h"

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
      rope_(rope_tables(model.config, segment + (window ? window->capacity() : 0))) {
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
  for (Storage* buffer : {&k.res1, &k.n1, &k.res2, &k.n2}) *buffer = make(c_.hidden);
  k.out = make(c_.q_width());
  k.h = make(2 * c_.ffn);
  k.y = make(c_.ffn);
  for (int g = 0; adapters_ && g < kGroups; g++) k.u[g] = make(int64_t(model_.groups[g].parts.size()) * adapters_->lora().rank);
  k.lse = Storage(kF32, most_rows_ * c_.heads);
  for (Storage* stat : {&k.attn_stat, &k.mlp_stat}) *stat = Storage(kF32, most_rows_ * 2);
  if (c_.qk_norm) k.head_stat = Storage(kF32, most_rows_ * (c_.heads + c_.kv_heads));
  return k;
}

size_t Decoder::bytes() const {
  const auto of = [](const Kept& k) {
    size_t total = k.res1.bytes() + k.n1.bytes() + k.out.bytes() + k.res2.bytes() + k.n2.bytes() + k.h.bytes() + k.y.bytes() +
                   k.lse.bytes() + k.attn_stat.bytes() + k.mlp_stat.bytes() + k.head_stat.bytes();
    for (const Storage& u : k.u) total += u.bytes();
    return total;
  };
  size_t total = of(shared_) + (rope_.cos.size() + rope_.sin.size()) * sizeof(float);
  for (const Kept& k : kept_) total += of(k);
  for (const Storage& qkv : raw_) total += qkv.bytes();
  for (const Storage& qkv : normed_) total += qkv.bytes();
  for (const Storage* buffer : {&embedded_, &o_, &down_, &final_res_, &hidden_, &final_stat_, &scored_, &lse_, &dscored_,
                                &dhidden_, &dh_, &dqkv_, &draw_})
    total += buffer->bytes();
  for (const Storage& buffer : dU_) total += buffer.bytes();
  for (const Storage& buffer : dx_) total += buffer.bytes();
  for (const Storage& buffer : dres_) total += buffer.bytes();
  return total;
}

// ---- the ops, as the decoder calls them

void Decoder::norm(const void* x, const void* delta, const Storage& weight, void* res, void* y, Storage& stat) {
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

Adapter Decoder::adapter(const Batch& batch, int64_t layer, int group) const {
  Adapter out;
  const AdapterPlace* at = adapters_ ? adapters_->place(layer, group) : nullptr;
  if (!at) return out;
  out.A = offset(adapters_->compute(), dtype_, at->A);
  out.Bt = offset(adapters_->compute(), dtype_, at->Bt);
  out.A_stride = out.Bt_stride = adapters_->row();
  out.slots = batch.streams.data();
  out.streams = int64_t(batch.streams.size());
  out.rank = adapters_->lora().rank;
  out.ranks = equal_ranks(int(model_.groups[group].parts.size()), out.rank, adapters_->lora().scale());
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
  a.adapter = adapter(batch, layer, group);
  a.u = u;
  a.y = y;
  linear_kernels_of(*a.parts[0]).forward(a);
  flops.linear_forward(rows_, shape, a.adapter.rank);
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
  a.adapter = adapter(batch, layer, group);
  a.dU = dU_[group].data();
  a.dx = below ? dx : nullptr;
  linear_kernels_of(*a.parts[0]).backward(a);
  flops.linear_backward(rows_, shape, a.adapter.rank, below);
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
  a.slots = batch.streams.data();
  a.streams = int64_t(batch.streams.size());
  a.rank = adapters_->lora().rank;
  a.ranks = equal_ranks(a.part_count, a.rank, adapters_->lora().scale());
  a.dA = adapters_->gradient() + at->A;
  a.dBt = adapters_->gradient() + at->Bt;
  a.dA_stride = a.dBt_stride = adapters_->row();
  kernels<LoraGradientKernels>().gradient(a);
  flops.lora_gradient(rows_, shape, a.rank);
}

AttentionShape Decoder::attention_shape(const Batch& batch, int64_t layer) const {
  AttentionShape s{};
  s.streams = batch.streams.size();
  s.segment = size_t(batch.segment);
  s.query_heads = size_t(c_.heads);
  s.kv_heads = size_t(c_.kv_heads);
  s.head_dim = size_t(c_.head_dim);
  s.slots = batch.streams.data();
  s.cos = rope_.cos.data();
  s.sin = rope_.sin.data();
  s.scale = c_.attention_scale;
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
    norm(x, delta, layer.attn_norm, k.res1.data(), k.n1.data(), k.attn_stat);
    k.residual = delta ? k.res1.data() : x;
    linear(batch, i, kQkv, k.n1.data(), k.u[kQkv].data(), raw_qkv(i));
    if (c_.qk_norm)
      kernels<ByType<HeadNormKernels>>().of(dtype_).forward({size_t(rows_), size_t(c_.heads), size_t(c_.kv_heads),
                                                             size_t(c_.head_dim), c_.norm_eps, raw_qkv(i), layer.q_norm.data(),
                                                             layer.k_norm.data(), attended_qkv(i), k.head_stat.as<float>()});
    kernels<ByType<AttentionForwardKernels>>().of(dtype_).run(
        {attention_shape(batch, i), attended_qkv(i), k.out.data(), k.lse.as<float>()});
    for (const int32_t s : batch.streams) flops.attention_forward(batch.segment, window_ ? window_->filled(s) : 0, c_);
    linear(batch, i, kO, k.out.data(), k.u[kO].data(), o_.data());
    norm(k.residual, o_.data(), layer.mlp_norm, k.res2.data(), k.n2.data(), k.mlp_stat);
    linear(batch, i, kMlpIn, k.n2.data(), k.u[kMlpIn].data(), k.h.data());
    kernels<ByType<ActivationKernels>>().of(dtype_).forward(
        {size_t(rows_), size_t(c_.ffn), ActivationKind::kSwiglu, k.h.data(), k.y.data()});
    linear(batch, i, kDown, k.y.data(), k.u[kDown].data(), down_.data());
    x = k.res2.data();
    delta = down_.data();
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
  for (const int32_t s : batch.streams) flops.attention_backward(batch.segment, window_ ? window_->filled(s) : 0, c_);
  if (c_.qk_norm)
    kernels<ByType<HeadNormKernels>>().of(dtype_).backward(
        {size_t(rows_), size_t(c_.heads), size_t(c_.kv_heads), size_t(c_.head_dim), dqkv_.data(), raw_qkv(layer), w.q_norm.data(),
         w.k_norm.data(), k.head_stat.as<float>(), draw_.data(), nullptr, nullptr});
}

/// The gradient of the layer's input residual, or null when nothing below learns.
const void* Decoder::layer_backward(const Batch& batch, int64_t i, const void* d) {
  const Kept& k = kept(i);
  const LayerWeights& w = model_.weights.layers[size_t(i)];
  bool below = linear_backward(batch, i, kDown, d, dx_[kDown].data());
  learn(batch, i, kDown, d, k.y.data());
  if (!below) return nullptr;
  kernels<ByType<ActivationKernels>>().of(dtype_).backward(
      {size_t(rows_), size_t(c_.ffn), ActivationKind::kSwiglu, dx_[kDown].data(), k.h.data(), dh_.data(), nullptr});
  below = linear_backward(batch, i, kMlpIn, dh_.data(), dx_[kMlpIn].data());
  learn(batch, i, kMlpIn, dh_.data(), k.n2.data());
  if (!below) return nullptr;
  norm_backward(dx_[kMlpIn].data(), k.res2.data(), w.mlp_norm, k.mlp_stat, d, dres_[0].data());
  d = dres_[0].data();

  below = linear_backward(batch, i, kO, d, dx_[kO].data());
  learn(batch, i, kO, d, k.out.data());
  if (!below) return nullptr;
  attention_backward(batch, i, dx_[kO].data());
  const void* dqkv = c_.qk_norm ? draw_.data() : dqkv_.data();
  below = linear_backward(batch, i, kQkv, dqkv, dx_[kQkv].data());
  learn(batch, i, kQkv, dqkv, k.n1.data());
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
