// A frozen weight [N, K] by panels of rows and in a storage of its own: the only copy of it.
//
// A matrix has values of one dtype, that of the activations it is multiplied with, and a storage they are made from. Panel j
// holds rows kNR * j.. of the weight. Stored plainly, its elements lie as in gemm_layout.h, in their dtype also where
// the kernels compute in float: such panels are widened when they are used. Any other storage is expanded when it is
// used (cpu/kernels/lib/storage.h). The backward product reads the weight transposed; its panels are made from the same
// ones, block by block, each used for all rows of the call.
#pragma once

#include <memory>

#include "core/check.h"
#include "cpu/dispatch.h"

namespace dynadapt {

/// What the values of a matrix are made from; the first two are the values themselves.
enum class MatrixStorage {
  f32,
  bf16,
  q8_0,  // blocks of integers, as GGUF files have them
  q4_0,
  q4_1,
  q5_0,
  q4_k,
  q6_k,
  int8,  // with a scale per row and group of 64 columns; made from float32
};
const char* storage_name(MatrixStorage storage);

/// A storage of quantised blocks: `bytes` hold `columns` columns of a row.
struct BlockSize {
  MatrixStorage storage;
  const char* name;
  int columns, bytes;
};
constexpr BlockSize kBlockSizes[] = {
    {MatrixStorage::q8_0, "q8_0", 32, 34}, {MatrixStorage::q4_0, "q4_0", 32, 18},   {MatrixStorage::q4_1, "q4_1", 32, 20},
    {MatrixStorage::q5_0, "q5_0", 32, 22}, {MatrixStorage::q4_k, "q4_k", 256, 144}, {MatrixStorage::q6_k, "q6_k", 256, 210},
};

}  // namespace dynadapt

struct dynadapt_matrix {
  int64_t rows = 0;
  int64_t columns = 0;
  dynadapt::DType dtype = dynadapt::kF32;
  dynadapt::MatrixStorage storage = dynadapt::MatrixStorage::f32;
  void* panels = nullptr;
  size_t bytes = 0;

  dynadapt_matrix() = default;
  dynadapt_matrix(const dynadapt_matrix&) = delete;
  dynadapt_matrix& operator=(const dynadapt_matrix&) = delete;
  ~dynadapt_matrix();

  bool plain() const { return storage <= dynadapt::MatrixStorage::bf16; }
};

namespace dynadapt {

using Matrix = dynadapt_matrix;

inline MatrixStorage plain_storage(DType dtype) { return dtype == kF32 ? MatrixStorage::f32 : MatrixStorage::bf16; }

/// A matrix from `weight`: row-major elements, or the rows' blocks one after the other.
std::unique_ptr<Matrix> make_matrix(int64_t rows, int64_t columns, DType dtype, MatrixStorage storage, const void* weight);

struct MatrixKernels {
  /// Bytes that the panels of a matrix take, by its shape and storage.
  size_t (*bytes)(const Matrix& matrix);
  void (*pack)(Matrix& matrix, const void* weight);
  void (*unpack)(const Matrix& matrix, void* out);
  void (*gather_rows)(const Matrix& matrix, const int64_t* index, int64_t count, void* out);
  /// Of a plain matrix. rows null: all of them.
  void (*update_rows)(Matrix& matrix, const int32_t* rows, int64_t count, const float* values);
};
DYN_TABLE(MatrixKernels, matrix_kernels)

}  // namespace dynadapt
