// The decoder's forward and backward passes over the kernels, for a batch of streams.
//
// Decoder knows the order of the layers and which activations backward needs; it does not know when to learn. All of its
// memory is taken once, for the largest batch, so that a step allocates nothing.
#pragma once

#include <vector>

#include "cpu/attention.h"
#include "cpu/head_norm.h"
#include "cpu/linear.h"
#include "engine/adapter.h"
#include "engine/flops.h"
#include "engine/rope.h"
#include "engine/weights.h"
#include "engine/window.h"

namespace dynadapt {

/// One pass: the inputs of some streams, each of `segment` tokens.
struct Batch {
  std::vector<int32_t> streams;
  int64_t segment = 0;
  std::vector<int64_t> inputs;  // [streams, segment]

  int64_t rows() const { return int64_t(inputs.size()); }
};

class Decoder {
 public:
  /// `most_rows` is the largest Batch::rows(); `adapters` and `window` may be null.
  Decoder(const Model& model, Adapters* adapters, Window* window, int64_t streams, int64_t segment);

  /// Runs the layers. With `learn`, keeps what backward reads.
  void forward(const Batch& batch, bool learn);

  /// NLLs [n] of the rows `scored` of the last forward and, where weights [n] are given, d-hidden for backward.
  void score(const std::vector<int64_t>& scored, const std::vector<int64_t>& targets, const float* weights, float* nll);

  /// Gradients of the adapters of the batch's streams from the last score; nothing below what learns is computed.
  void backward(const Batch& batch);

  /// The first counts[i] rows of each stream's segment enter its memory.
  void remember(const Batch& batch, const std::vector<int64_t>& counts);

  Flops flops;  // counted since it was last cleared
  size_t bytes() const;

 private:
  /// What a layer leaves for backward; layers below everything that learns share one.
  struct Kept {
    Storage res1, n1, out, o, res2, n2, h, y, down, u[kGroups];  // o and down where a norm stands behind them
    Storage lse, attn_stat, mlp_stat, attn_post_stat, mlp_post_stat, head_stat;
    const void* residual = nullptr;  // what the first norm read: res1, or the embedding in layer 0
    const void *attn_in = nullptr,
               *mlp_in = nullptr;  // what attention and feed-forward read: the norms' outputs, or the residuals
  };
  /// A group's weights as the kernels take them.
  struct Parts {
    const Matrix* list[3];
    int count = 0;
  };

  Kept make_kept() const;
  Parts group_parts(int64_t layer, int group) const;
  Storage make(int64_t width) const { return Storage(dtype_, most_rows_ * width); }
  Kept& kept(int64_t layer) { return layer < first_kept_ ? shared_ : kept_[size_t(layer - lowest_layer_)]; }
  /// Memory takes the qkv of every layer, so that each then has its own.
  size_t qkv_place(int64_t layer) const { return size_t(window_ ? layer : layer < first_kept_ ? 0 : layer - lowest_layer_ + 1); }
  void* raw_qkv(int64_t layer) const { return raw_[qkv_place(layer)].data(); }
  void* attended_qkv(int64_t layer) const { return c_.qk_norm ? normed_[qkv_place(layer)].data() : raw_qkv(layer); }
  bool is_lowest(int64_t layer, int group) const {
    return layer == adapters_->first_layer() && group == adapters_->first_group();
  }

  void scale_rows(const Storage& rows, float factor);
  const void* norm(const void* x, const void* delta, const Storage& weight, void* res, void* y, Storage& stat);
  const void* post_norm(const void* x, const Storage& weight, void* y, Storage& stat);
  void norm_backward(const void* dy, const void* res, const Storage& weight, const Storage& stat, const void* dres, void* dx);
  void linear(const Batch& batch, int64_t layer, int group, const void* x, void* u, void* y);
  bool linear_backward(const Batch& batch, int64_t layer, int group, const void* dy, void* dx);
  void learn(const Batch& batch, int64_t layer, int group, const void* dy, const void* x);
  StreamAdapters adapters(const Batch& batch, int64_t layer, int group) const;
  AttentionShape attention_shape(const Batch& batch, int64_t layer) const;
  NormedPieces normed_heads() const { return {size_t(c_.heads), size_t(c_.kv_heads), size_t(c_.head_dim), c_.normed_together}; }
  int64_t seen(int64_t layer, int32_t stream) const { return window_ ? c_.seen_memory(layer, window_->filled(stream)) : 0; }
  void attention_backward(const Batch& batch, int64_t layer, const void* dout);
  const void* layer_backward(const Batch& batch, int64_t layer, const void* d);

  const Model& model_;
  const ModelConfig& c_;
  Adapters* adapters_;
  Window* window_;
  DType dtype_;
  int64_t most_rows_, lowest_layer_, first_kept_ = 0, rows_ = 0;
  RopeTables rope_, window_rope_;  // of layers with a window, where they are rotated otherwise
  std::vector<Kept> kept_;
  Kept shared_;
  std::vector<Storage> raw_, normed_;  // qkv before and after the norm of heads; of every layer where memory or backward needs it
  Storage embedded_, o_, down_, attended_, fed_, dpost_, final_res_, hidden_,
      final_stat_;  // attended_, fed_: o_ and down_, normalised
  Storage scored_, lse_, dscored_, dhidden_;
  Storage dU_[kGroups], dx_[kGroups], dh_, dqkv_, draw_, dres_[3];
};

}  // namespace dynadapt
