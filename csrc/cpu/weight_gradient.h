// Arguments of weight gradients and row scores, checked, as the kernels take them.
#pragma once

#include "core/check.h"
#include "cpu/dispatch.h"

namespace dynadapt {

struct WeightGradient {
  DType dtype;
  int64_t N, K, O;
  const void* dy;
  int64_t ldy;
  const void* x;
  const int32_t* rows;  // or null: all O
  int64_t row_count;
  float* dW;
  bool accumulate;
};

struct RowScores {
  DType dtype;
  int64_t N, K, O;
  const void* dy;
  int64_t ldy;
  const void* x;
  float* out;
};

struct WeightGradientKernels {
  void (*gradient)(const WeightGradient&);
  void (*row_scores)(const RowScores&);
};
DYN_TABLE(WeightGradientKernels, weight_gradient_kernels)

}  // namespace dynadapt
