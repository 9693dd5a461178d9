// What the kernels of the delta rule's gates are given once the tensors have been checked.
// `T` is the activation type, float or bf16; strides are in elements.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/by_type.h"

namespace dynadapt {

struct GateInputs {
  size_t rows, heads;
  const void* a;         // T [rows, heads]
  const void* b;         // T like a
  const float* a_log;    // [heads]
  const float* dt_bias;  // [heads]
  int64_t a_stride, b_stride;
};

struct DeltaGatesForward {
  GateInputs in;
  float* g;     // [rows, heads]
  float* beta;  // like g
};

struct DeltaGatesBackward {
  GateInputs in;
  const float* dg;     // [rows, heads]
  const float* dbeta;  // like dg
  void* da;            // T like a
  void* db;            // T like b
  float* da_log;       // [heads] or null, added to
  float* ddt_bias;     // [heads] or null, added to
  int64_t da_stride, db_stride;
};

struct DeltaGatesKernels {
  void (*forward)(const DeltaGatesForward&);
  void (*backward)(const DeltaGatesBackward&);
};
DYN_TABLE(ByType<DeltaGatesKernels>, delta_gates_kernels)

}  // namespace dynadapt
