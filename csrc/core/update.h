// What an optimizer step is given once its tensors have been checked.
#pragma once

#include <cstddef>
#include <cstdint>

namespace dynadapt {

enum class UpdateKind {
  kSgd,
  kAdam,
  kAdamW,
  kRms
};

struct Update {
  UpdateKind kind;
  size_t streams, parameters;
  const int32_t* slots;  // [streams], distinct, or -1 for a stream that does not move
  float* master;         // [slots, parameters], as the next three where not null
  float* grad;
  float* first;
  float* second;
  const float* prior;                                             // [parameters] or null
  const float* prior_rate;                                        // [parameters] or null
  const float* stat;                                              // [parameters], for kRms
  void* working;                                                  // activation type [slots, parameters] or null
  const float* lr;                                                // [slots]
  int32_t* step;                                                  // [slots]
  double decay, clip, beta1, beta2, eps, weight_decay, momentum;  // clip 0: none
  float* norms;                                                   // [streams]
  int32_t* skipped;                                               // [streams]
};

}  // namespace dynadapt
