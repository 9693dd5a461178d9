// What an optimizer step is given once its tensors have been checked.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>

namespace dynadapt {

/// The optimizers, in the order of dynadapt.h, and their names in it and in dynadapt/adapt/optimizers.
enum class UpdateKind {
  kSgd,
  kAdam,
  kAdamW,
  kRms,
  kLion
};
inline constexpr std::initializer_list<const char*> kUpdateKinds = {"sgd", "adam", "adamw", "rms", "lion"};

/// Which moments a step of a kind reads and moves on; `decays`: whether it has a weight decay.
struct UpdateState {
  bool first, second, decays;
};

inline UpdateState state_of(UpdateKind kind, double beta1, double momentum) {
  switch (kind) {
    case UpdateKind::kSgd:
      return {momentum > 0, false, false};
    case UpdateKind::kAdam:
      return {beta1 > 0, true, false};
    case UpdateKind::kAdamW:
      return {beta1 > 0, true, true};
    case UpdateKind::kRms:
      return {false, false, false};
    case UpdateKind::kLion:
      return {beta1 > 0, false, true};
  }
  return {};
}

struct Update {
  UpdateKind kind;
  size_t streams, parameters;
  const int32_t* slots;  // [streams], distinct, or -1 for a stream that does not move
  float* master;         // [slots, parameters], as the next three where not null
  float* grad;
  float* first;
  float* second;
  const float* prior;                                             // [parameters], or [slots, parameters], or null
  size_t prior_stride;                                            // from one slot's prior to the next; 0: one serves all
  const float* prior_rate;                                        // [parameters] or null
  const float* stat;                                              // [parameters], for kRms
  void* working;                                                  // activation type [slots, parameters] or null
  const float* lr;                                                // [slots]
  int32_t* step;                                                  // [slots]
  double decay, clip, beta1, beta2, eps, weight_decay, momentum;  // clip 0: none
  float* norms;                                                   // [streams]
  int32_t* skipped;                                               // [streams]
  const float* rate_factor;                                       // [parameters] or null: of the learning rate, all kinds
};

}  // namespace dynadapt
