// Arguments of the linear family, checked, as the kernels take them.
#pragma once

#include "cpu/low_rank.h"
#include "cpu/matrix.h"

namespace dynadapt {

/// The adapters of a call's streams; empty: none.
typedef StreamPairs<const void*> StreamAdapters;

struct LinearForward {
  DType dtype;
  int64_t N, K, O;
  const void* x;
  int64_t ldx;
  const Matrix* const* parts;
  int part_count;
  const void* bias;  // or null
  StreamAdapters adapters;
  void* u;            // [N, low_width]
  int64_t low_width;  // elements from a row of u to the next
  void* y;
};

struct LinearBackward {
  DType dtype;
  int64_t N, K, O;
  const void* dy;
  const Matrix* const* parts;
  int part_count;
  StreamAdapters adapters;
  void* dU;  // [N, low_width]
  int64_t low_width;
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
