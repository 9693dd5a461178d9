// A frozen weight [N, K] in forward panel order and its own dtype: the only copy of it.
//
// Panel j holds rows 32j.. of the weight (kNR of them) laid out as in gemm_layout.h, in the storage
// dtype also where the kernels compute in float: such panels are widened when they are used. The
// backward product reads the weight transposed; its panels are made from these, block by block, each
// used for all rows of the call.
#pragma once

#include "core/check.h"
#include "cpu/dispatch.h"

struct dynadapt_matrix {
  int64_t rows = 0;
  int64_t columns = 0;
  dynadapt::DType dtype = dynadapt::kF32;
  void* panels = nullptr;
  size_t bytes = 0;

  dynadapt_matrix() = default;
  dynadapt_matrix(const dynadapt_matrix&) = delete;
  dynadapt_matrix& operator=(const dynadapt_matrix&) = delete;
  ~dynadapt_matrix();
};

namespace dynadapt {

using Matrix = dynadapt_matrix;

struct MatrixKernels {
  /// Bytes that the panels of a [rows, columns] weight take.
  size_t (*bytes)(DType dtype, int64_t rows, int64_t columns);
  void (*pack)(Matrix& matrix, const void* weight);
  void (*unpack)(const Matrix& matrix, void* out);
  void (*gather_rows)(const Matrix& matrix, const int64_t* index, int64_t count, void* out);
  /// rows null: all of them.
  void (*update_rows)(Matrix& matrix, const int32_t* rows, int64_t count, const float* values);
};
DYN_TABLE(MatrixKernels, matrix_kernels)

}  // namespace dynadapt
