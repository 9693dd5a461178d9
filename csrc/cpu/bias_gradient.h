// What the kernel of the bias gradient is given once the tensors have been checked.
// `T` is the activation type, float or bf16.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/by_type.h"

namespace dynadapt {

struct BiasGradient {
  size_t rows, width;
  const void* dy;  // T [rows, width], `stride` elements from a row to the next
  size_t stride;
  float* db;  // [width], added to
};

struct BiasGradientKernels {
  void (*bias_gradient)(const BiasGradient&);
};
DYN_TABLE(ByType<BiasGradientKernels>, bias_gradient_kernels)

}  // namespace dynadapt
