// Arguments of the adapters' gradient, checked, as the kernels take them.
#pragma once

#include "core/check.h"
#include "cpu/dispatch.h"
#include "cpu/low_rank.h"

namespace dynadapt {

struct LoraGradient {
  DType dtype;
  int64_t N, K, O;
  const void *dy, *x, *u, *dU;
  const int64_t* part_sizes;
  int part_count;
  int64_t low_width;  // elements of a row of u and dU
  StreamPairs<float*> gradients;
  bool accumulate;
};

struct LoraGradientKernels {
  void (*gradient)(const LoraGradient&);
};
DYN_TABLE(LoraGradientKernels, lora_gradient_kernels)

}  // namespace dynadapt
