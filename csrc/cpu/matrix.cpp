// The C entry points of packed matrices.
#include "cpu/matrix.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

using namespace dynadapt;

namespace {

constexpr int64_t kMostRows = int64_t(1) << 31;  // and columns: the bytes of as many blocks can be counted

/// Rows that are written at once, by different threads.
void check_distinct(const Op& op, const int32_t* rows, int64_t count) {
  std::vector<int32_t> sorted(rows, rows + count);
  std::sort(sorted.begin(), sorted.end());
  const auto twice = std::adjacent_find(sorted.begin(), sorted.end());
  op.require(twice == sorted.end(), "rows has %d more than once, accepted are distinct rows", twice == sorted.end() ? 0 : *twice);
}

/// The blocks of a storage's name; throws where there are none.
BlockSize blocks_named(const Op& op, const char* name) {
  op.held("storage", name);
  std::string accepted;
  for (const BlockSize& block : kBlockSizes) {
    if (!std::strcmp(block.name, name)) return block;
    accepted += (accepted.empty() ? "" : ", ") + std::string(block.name);
  }
  op.require(false, "storage is \"%.40s\", accepted are %s", name, accepted.c_str());
  return {};
}

}  // namespace

dynadapt_matrix::~dynadapt_matrix() { std::free(panels); }

namespace dynadapt {

const char* storage_name(MatrixStorage storage) {
  for (const BlockSize& block : kBlockSizes)
    if (block.storage == storage) return block.name;
  switch (storage) {
    case MatrixStorage::bf16:
      return "bfloat16";
    case MatrixStorage::int8:
      return "int8";
    default:
      return "float32";
  }
}

std::unique_ptr<Matrix> make_matrix(int64_t rows, int64_t columns, DType dtype, MatrixStorage storage, const void* weight) {
  auto matrix = std::make_unique<Matrix>();
  matrix->rows = rows;
  matrix->columns = columns;
  matrix->dtype = dtype;
  matrix->storage = storage;
  matrix->bytes = kernels<MatrixKernels>().bytes(*matrix);
  matrix->panels = std::aligned_alloc(64, (matrix->bytes + 63) / 64 * 64);
  if (!matrix->panels) throw std::bad_alloc();
  kernels<MatrixKernels>().pack(*matrix, weight);
  return matrix;
}

}  // namespace dynadapt

extern "C" {

int dynadapt_matrix_create(const DLTensor* weight, dynadapt_matrix** out) {
  return guarded([&] {
    const Op op("PackedMatrix");
    const View w = op.tensor("weight", weight, {-1, -1}, kAct);
    op.require(w.size[0] > 0 && w.size[1] > 0, "weight has shape [%lld, %lld], accepted are sizes of at least 1",
               (long long)w.size[0], (long long)w.size[1]);
    op.output_array("out", out, 1);
    *out = make_matrix(w.size[0], w.size[1], w.dtype, plain_storage(w.dtype), w.data).release();
  });
}

int dynadapt_matrix_create_quantised(const char* storage, int64_t rows, int64_t columns, const uint16_t* blocks, int64_t bytes,
                                     int bf16, dynadapt_matrix** out) {
  return guarded([&] {
    const Op op("PackedMatrix");
    const BlockSize block = blocks_named(op, storage);
    op.whole("rows", rows, 1, kMostRows);
    op.whole("columns", columns, 1, kMostRows);
    op.require(columns % block.columns == 0, "columns is %lld, accepted are multiples of %d, the columns of a block of %s",
               (long long)columns, block.columns, storage);
    const int64_t needed = rows * (columns / block.columns) * block.bytes;
    op.require(bytes == needed, "bytes is %lld, accepted is %lld, that of %lld rows of %lld columns in %s", (long long)bytes,
               (long long)needed, (long long)rows, (long long)columns, storage);
    op.whole("bf16", bf16, 0, 1);
    op.array("blocks", blocks, bytes / 2);
    op.output_array("out", out, 1);
    *out = make_matrix(rows, columns, bf16 ? kBF16 : kF32, block.storage, blocks).release();
  });
}

int dynadapt_matrix_create_int8(const DLTensor* weight, DLDataType dtype, dynadapt_matrix** out) {
  return guarded([&] {
    const Op op("PackedMatrix.int8");
    const View w = op.tensor("weight", weight, {-1, -1}, kF32);
    op.require(w.size[0] > 0 && w.size[1] > 0, "weight has shape [%lld, %lld], accepted are sizes of at least 1",
               (long long)w.size[0], (long long)w.size[1]);
    const bool f32 = dtype.code == kDLFloat && dtype.bits == 32 && dtype.lanes == 1;
    op.require(f32 || (dtype.code == kDLBfloat && dtype.bits == 16 && dtype.lanes == 1),
               "dtype has code %d, %d bits and %d lanes, accepted are float32 and bfloat16", dtype.code, dtype.bits, dtype.lanes);
    op.output_array("out", out, 1);
    *out = make_matrix(w.size[0], w.size[1], f32 ? kF32 : kBF16, MatrixStorage::int8, w.data).release();
  });
}

void dynadapt_matrix_destroy(dynadapt_matrix* matrix) { delete matrix; }

int64_t dynadapt_matrix_rows(const dynadapt_matrix* matrix) {
  int64_t rows = -1;
  guarded([&] { rows = Op("PackedMatrix.rows").held("matrix", matrix).rows; });
  return rows;
}

int64_t dynadapt_matrix_columns(const dynadapt_matrix* matrix) {
  int64_t columns = -1;
  guarded([&] { columns = Op("PackedMatrix.columns").held("matrix", matrix).columns; });
  return columns;
}

int64_t dynadapt_matrix_bytes(const dynadapt_matrix* matrix) {
  int64_t bytes = -1;
  guarded([&] { bytes = int64_t(Op("PackedMatrix.bytes").held("matrix", matrix).bytes); });
  return bytes;
}

DLDataType dynadapt_matrix_dtype(const dynadapt_matrix* matrix) {
  DLDataType dtype{0, 0, 0};
  guarded([&] {
    const bool f32 = Op("PackedMatrix.dtype").held("matrix", matrix).dtype == kF32;
    dtype = f32 ? DLDataType{kDLFloat, 32, 1} : DLDataType{kDLBfloat, 16, 1};
  });
  return dtype;
}

const char* dynadapt_matrix_storage(const dynadapt_matrix* matrix) {
  const char* name = nullptr;
  guarded([&] { name = storage_name(Op("PackedMatrix.storage").held("matrix", matrix).storage); });
  return name;
}

int dynadapt_matrix_gather_rows(const dynadapt_matrix* matrix, const DLTensor* index, const DLTensor* out) {
  return guarded([&] {
    const Op op("PackedMatrix.gather_rows");
    op.held("matrix", matrix);
    const View i = op.tensor("index", index, {-1}, kI64);
    const View o = op.output("out", out, {i.size[0], matrix->columns}, matrix->dtype);
    op.indices64("index", i, 0, matrix->rows);
    kernels<MatrixKernels>().gather_rows(*matrix, i.as<int64_t>(), i.size[0], o.data);
  });
}

int dynadapt_matrix_update_rows(dynadapt_matrix* matrix, const DLTensor* rows, const DLTensor* values) {
  return guarded([&] {
    const Op op("PackedMatrix.update_rows");
    op.held("matrix", matrix);
    op.require(matrix->plain(), "matrix is stored as %s, accepted are float32 and bfloat16", storage_name(matrix->storage));
    const View r = op.optional("rows", rows, {-1}, kI32);
    const int64_t count = r ? r.size[0] : matrix->rows;
    const View v = op.tensor("values", values, {count, matrix->columns}, kF32);
    if (r) check_distinct(op, op.indices32("rows", r, 0, matrix->rows), count);
    kernels<MatrixKernels>().update_rows(*matrix, r ? r.as<int32_t>() : nullptr, count, v.as<float>());
  });
}

int dynadapt_matrix_unpack(const dynadapt_matrix* matrix, const DLTensor* out) {
  return guarded([&] {
    const Op op("PackedMatrix.unpack");
    op.held("matrix", matrix);
    const View o = op.output("out", out, {matrix->rows, matrix->columns}, matrix->dtype);
    kernels<MatrixKernels>().unpack(*matrix, o.data);
  });
}

}  // extern "C"
