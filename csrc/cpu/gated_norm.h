// What the gated norm kernels are given once the tensors have been checked.
// `T` is the activation type, float or bf16; strides are in elements.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/by_type.h"

namespace dynadapt {

struct GatedNormForward {
  size_t rows, heads, head_dim;
  float eps;
  const void* x;       // T [rows, heads head_dim]
  const void* gate;    // T like x
  const void* weight;  // T [head_dim]
  void* y;             // T like x
  float* rstd;         // [rows, heads]
  int64_t x_stride, gate_stride, y_stride;
};

struct GatedNormBackward {
  size_t rows, heads, head_dim;
  const void* dy;      // T [rows, heads head_dim]
  const void* x;       // T like dy
  const void* gate;    // T like dy
  const void* weight;  // T [head_dim]
  const float* rstd;   // [rows, heads]
  void* dx;            // T like dy
  void* dgate;         // T like dy
  float* dweight;      // [head_dim] or null, added to
  int64_t dy_stride, x_stride, gate_stride, dx_stride, dgate_stride;
};

struct GatedNormKernels {
  void (*forward)(const GatedNormForward&);
  void (*backward)(const GatedNormBackward&);
};
DYN_TABLE(ByType<GatedNormKernels>, gated_norm_kernels)

}  // namespace dynadapt
