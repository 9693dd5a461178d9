// Storages that are not the values themselves: a form each, in a file of its own (cpu/kernels/storage_*.cpp).
#pragma once

#include "cpu/kernels/lib/gemm_layout.h"
#include "cpu/matrix.h"

namespace dynadapt::DYN_ISA {

/// How one storage is kept and read. A new one is a MatrixStorage, a form, and their line in `storage_form`.
struct StorageForm {
  size_t (*bytes)(int64_t rows, int64_t columns);
  /// matrix.panels from `weight`, as the storage's source has it; missing rows of the last panel make finite values.
  void (*pack)(Matrix& matrix, const void* weight);
  /// Columns [column, column + count) of panel j in the order of gemm_layout.h, rounded to the matrix's dtype. `column` is a
  /// multiple of kNR; an odd count is one at the end of the weight, and the last column's partner in a pair is 0.
  void (*expand_f32)(const Matrix& matrix, int64_t j, int64_t column, int64_t count, float* to);
  void (*expand_bf16)(const Matrix& matrix, int64_t j, int64_t column, int64_t count, Panel<bf16>* to);
};

extern const StorageForm int8_storage, q8_0_form, q4_0_form, q4_1_form, q5_0_form, q4_k_form, q6_k_form;

/// Of a matrix that is not plain.
inline const StorageForm& storage_form(const Matrix& matrix) {
  switch (matrix.storage) {
    case MatrixStorage::q8_0:
      return q8_0_form;
    case MatrixStorage::q4_0:
      return q4_0_form;
    case MatrixStorage::q4_1:
      return q4_1_form;
    case MatrixStorage::q5_0:
      return q5_0_form;
    case MatrixStorage::q4_k:
      return q4_k_form;
    case MatrixStorage::q6_k:
      return q6_k_form;
    case MatrixStorage::int8:
      return int8_storage;
    default:
      __builtin_unreachable();
  }
}

template <class T>
inline void expand(const Matrix& matrix, int64_t j, int64_t column, int64_t count, Panel<T>* to) {
  if constexpr (sizeof(T) == 4)
    storage_form(matrix).expand_f32(matrix, j, column, count, to);
  else
    storage_form(matrix).expand_bf16(matrix, j, column, count, to);
}

}  // namespace dynadapt::DYN_ISA
