// What the read-out kernels are given once the tensors have been checked.
// `T` is the activation type, float or bf16.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/by_type.h"

namespace dynadapt {

struct LinearMse {
  size_t rows, width;
  const void* h;         // T [rows, width]
  const void* weight;    // T [width]
  const float* bias;     // [1] or null
  const float* target;   // [rows]
  const float* weights;  // [rows] or null
  float* pred;           // [rows]
  float* loss;           // [rows]
  void* dh;              // T [rows, width] or null
  float* dweight;        // [width] or null, added to
  float* dbias;          // [1] or null, added to
};

struct LinearMseKernels {
  void (*linear_mse)(const LinearMse&);
};
DYN_TABLE(ByType<LinearMseKernels>, linear_mse_kernels)

}  // namespace dynadapt
