// LoRA adapters of all streams: flat buffers of masters, gradients and moments, and the views that the kernels read.
//
// A learned group has A [P R, K], which stacks the P parts, and Bt [R, O], which lays their outputs side by side; all tensors
// of a stream lie one behind the other in a row, so that one update moves them all (dynadapt/engine/learners/flat.py).
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "core/update.h"
#include "engine/config.h"
#include "engine/storage.h"

namespace dynadapt {

struct LoraSettings {
  int64_t rank;
  double alpha;
  std::string targets;  // "all", "attn" or "mlp"
  int64_t first_layer, last_layer;
  uint64_t seed;

  float scale() const { return float(alpha / double(rank)); }
};

struct OptimizerSettings {
  UpdateKind kind;
  double lr, beta1, beta2, eps, clip, decay, weight_decay, momentum;
};

/// Where the adapter of one group lies in a stream's row, in elements.
struct AdapterPlace {
  int64_t A, Bt;
};

class Adapters {
 public:
  Adapters(const LoraSettings& lora, const OptimizerSettings& optimizer, const ModelConfig& config,
           const std::vector<GroupShape>& groups, int64_t streams, DType dtype);

  /// Null where the group does not learn.
  const AdapterPlace* place(int64_t layer, int group) const {
    const auto& found = places_[size_t(layer * kGroups + group)];
    return found ? &*found : nullptr;
  }

  int64_t first_layer() const { return lora_.first_layer; }
  int first_group() const { return first_group_; }  // the lowest that learns in the first layer
  const LoraSettings& lora() const { return lora_; }
  const OptimizerSettings& optimizer() const { return optimizer_; }
  int64_t row() const { return row_; }                // elements from a stream to the next
  int64_t parameters() const { return parameters_; }  // that learn, per stream

  /// What products read: the working copy, or the masters where they are of one dtype.
  const void* compute() const { return working_ ? working_.data() : master_.data(); }
  float* master(int64_t stream) { return master_.as<float>() + stream * row_; }
  float* gradient() { return gradient_.as<float>(); }

  /// One optimizer step of `slots`; the norms of their gradients, and 1 where one was not finite.
  void update(const std::vector<int32_t>& slots, float* norms, int32_t* skipped);

  /// Adapter and optimizer state of one stream back to the start.
  void reset(int64_t stream);

  /// The optimizer's memory of one stream alone; `refresh` brings the working copy up to its masters.
  void clear_optimizer(int64_t stream);
  void refresh(int64_t stream);

  void set_lr(int64_t stream, float lr) { lr_.as<float>()[stream] = lr; }
  size_t bytes() const;

 private:
  void draw(const std::vector<GroupShape>& groups);

  LoraSettings lora_;
  OptimizerSettings optimizer_;
  DType dtype_;
  int64_t streams_, row_ = 0, parameters_ = 0;
  int first_group_ = kGroups;
  std::vector<std::optional<AdapterPlace>> places_;
  Storage prior_;                                         // f32 [row]
  Storage master_, gradient_, first_, second_, working_;  // [streams, row]; first, second and working may be empty
  Storage lr_, step_;                                     // [streams]
};

}  // namespace dynadapt
