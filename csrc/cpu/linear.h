// Arguments of the linear family, checked, as the kernels take them.
#pragma once

#include "cpu/matrix.h"

namespace dynadapt {

/// Low-rank adapters by slot. Rows i * N / streams.. of the call belong to slots[i].
struct Adapter {
  const void* A = nullptr;   // [slots][P * rank][K]; null: no adapter
  int64_t A_stride = 0;      // elements between slots
  const void* Bt = nullptr;  // [slots][rank][O]
  int64_t Bt_stride = 0;
  const int32_t* slots = nullptr;
  int64_t streams = 1;
  int64_t rank = 0;
  float scale = 1;
};

constexpr int kMaxParts = 16;

struct LinearForward {
  DType dtype;
  int64_t N, K, O;
  const void* x;
  int64_t ldx;
  const Matrix* const* parts;
  int part_count;
  const void* bias;  // or null
  Adapter adapter;
  void* u;
  void* y;
};

struct LinearBackward {
  DType dtype;
  int64_t N, K, O;
  const void* dy;
  const Matrix* const* parts;
  int part_count;
  Adapter adapter;
  void* dU;
  void* dx;  // or null: only dU
};

struct LoraGradient {
  DType dtype;
  int64_t N, K, O;
  const void *dy, *x, *u, *dU;
  const int64_t* part_sizes;
  int part_count;
  const int32_t* slots;
  int64_t streams, rank;
  float scale;
  float* dA;
  int64_t dA_stride;
  float* dBt;
  int64_t dBt_stride;
  bool accumulate;
};

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

struct LinearKernels {
  void (*forward)(const LinearForward&);
  void (*backward)(const LinearBackward&);
};
DYN_TABLE(LinearKernels, linear_kernels)

struct GradientKernels {
  void (*lora)(const LoraGradient&);
  void (*weight)(const WeightGradient&);
  void (*row_scores)(const RowScores&);
};
DYN_TABLE(GradientKernels, gradient_kernels)

}  // namespace dynadapt
