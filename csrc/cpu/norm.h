// What the norm kernels are given once the tensors have been checked.
// `T` is the activation type, float or bf16.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/by_type.h"

namespace dynadapt {

struct NormForward {
  size_t rows, width;
  bool layer;  // LayerNorm, else RMSNorm
  float eps;
  const void* x;             // T [rows, width]
  const void* delta;         // T [rows, width] or null
  const void* weight;        // T [width], or float; null: nothing is normalised, res is all that is written
  const void* bias;          // T [width] or null
  void* res;                 // T [rows, width]; null only without delta
  void* y;                   // T [rows, width]
  float* stat;               // [rows, 2]
  bool wide_weight = false;  // float whatever T is
};

struct NormBackward {
  size_t rows, width;
  bool layer;
  const void* dy;      // T [rows, width]
  const void* res;     // T [rows, width]
  const void* weight;  // T [width], or float; null: nothing was normalised, dx is dy + dres
  const float* stat;   // [rows, 2]
  const void* dres;    // T [rows, width] or null
  void* dx;            // T [rows, width]
  float* dweight;      // [width] or null, added to
  float* dbias;        // [width] or null, added to
  const void* bias;    // T [width] or null, for y
  void* y;             // T [rows, width] or null: the forward's output again
  bool wide_weight = false;
};

struct NormKernels {
  void (*forward)(const NormForward&);
  void (*backward)(const NormBackward&);
};
DYN_TABLE(ByType<NormKernels>, norm_kernels)

}  // namespace dynadapt
