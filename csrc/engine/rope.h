// Rotary position tables. dynadapt/model/rope.py defines them.
#pragma once

#include <vector>

#include "engine/config.h"

namespace dynadapt {

/// cos and sin, each [length, head_dim / 2], for positions 0..length-1: computed in float64, then rounded once. A scaling that
/// depends on a text's length takes this one.
struct RopeTables {
  std::vector<float> cos, sin;
};
RopeTables rope_tables(const ModelConfig& config, int64_t length);

/// Of the layers with a window, where they are rotated otherwise; else empty.
RopeTables window_rope_tables(const ModelConfig& config, int64_t length);

}  // namespace dynadapt
