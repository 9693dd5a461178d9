// Arguments of the linear family, checked, as the kernels take them.
#pragma once

#include "cpu/low_rank.h"
#include "cpu/matrix.h"

namespace dynadapt {

/// Low-rank adapters by slot. Rows i * N / streams.. of the call belong to slots[i].
struct Adapter {
  const void* A = nullptr;   // [slots][ranks.width][K]; null: no adapter
  int64_t A_stride = 0;      // elements between slots
  const void* Bt = nullptr;  // [slots][rank][O]
  int64_t Bt_stride = 0;
  const int32_t* slots = nullptr;
  int64_t streams = 1;
  int64_t rank = 0;  // of Bt: the largest of the parts
  Ranks ranks;
};

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

struct LinearKernels {
  void (*forward)(const LinearForward&);
  void (*backward)(const LinearBackward&);
};
DYN_TABLE(LinearKernels, linear_kernels)

/// The same over parts that are all stored as int8.
struct Int8LinearKernels {
  LinearKernels linear;
};
DYN_TABLE(Int8LinearKernels, int8_linear_kernels)

inline bool is_int8(const Matrix& matrix) { return matrix.storage == MatrixStorage::int8; }

/// The kernels of a layer that has this part.
inline const LinearKernels& linear_kernels_of(const Matrix& part) {
  return is_int8(part) ? kernels<Int8LinearKernels>().linear : kernels<LinearKernels>();
}

}  // namespace dynadapt
