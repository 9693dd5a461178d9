// The C entry points of packed matrices.
#include "cpu/matrix.h"

#include <cstdlib>
#include <memory>

using namespace dynadapt;

dynadapt_matrix::~dynadapt_matrix() { std::free(panels); }

extern "C" {

int dynadapt_matrix_create(const DLTensor* weight, dynadapt_matrix** out) {
  return guarded([&] {
    const Op op("PackedMatrix");
    const View w = op.tensor("weight", weight, {-1, -1}, kAct);
    op.require(w.size[0] > 0 && w.size[1] > 0, "weight has shape [%lld, %lld], accepted are sizes of at least 1",
               (long long)w.size[0], (long long)w.size[1]);
    op.require(out != nullptr, "out is NULL");
    auto matrix = std::make_unique<dynadapt_matrix>();
    matrix->rows = w.size[0];
    matrix->columns = w.size[1];
    matrix->dtype = w.dtype;
    matrix->bytes = kernels<MatrixKernels>().bytes(w.dtype, w.size[0], w.size[1]);
    matrix->panels = std::aligned_alloc(64, (matrix->bytes + 63) / 64 * 64);
    if (!matrix->panels) throw std::bad_alloc();
    kernels<MatrixKernels>().pack(*matrix, w.data);
    *out = matrix.release();
  });
}

void dynadapt_matrix_destroy(dynadapt_matrix* matrix) { delete matrix; }

int64_t dynadapt_matrix_rows(const dynadapt_matrix* matrix) { return matrix->rows; }
int64_t dynadapt_matrix_columns(const dynadapt_matrix* matrix) { return matrix->columns; }
int64_t dynadapt_matrix_bytes(const dynadapt_matrix* matrix) { return int64_t(matrix->bytes); }

DLDataType dynadapt_matrix_dtype(const dynadapt_matrix* matrix) {
  if (matrix->dtype == kF32) return {kDLFloat, 32, 1};
  return {kDLBfloat, 16, 1};
}

int dynadapt_matrix_gather_rows(const dynadapt_matrix* matrix, const DLTensor* index, const DLTensor* out) {
  return guarded([&] {
    const Op op("PackedMatrix.gather_rows");
    op.require(matrix != nullptr, "matrix is NULL");
    const View i = op.tensor("index", index, {-1}, kI64);
    const View o = op.tensor("out", out, {i.size[0], matrix->columns}, matrix->dtype);
    for (int64_t n = 0; n < i.size[0]; n++)
      op.require(i.as<int64_t>()[n] >= 0 && i.as<int64_t>()[n] < matrix->rows,
                 "index[%lld] is %lld, accepted is 0 to %lld", (long long)n, (long long)i.as<int64_t>()[n],
                 (long long)matrix->rows - 1);
    kernels<MatrixKernels>().gather_rows(*matrix, i.as<int64_t>(), i.size[0], o.data);
  });
}

int dynadapt_matrix_update_rows(dynadapt_matrix* matrix, const DLTensor* rows, const DLTensor* values) {
  return guarded([&] {
    const Op op("PackedMatrix.update_rows");
    op.require(matrix != nullptr, "matrix is NULL");
    const View r = op.optional("rows", rows, {-1}, kI32);
    const int64_t count = r ? r.size[0] : matrix->rows;
    const View v = op.tensor("values", values, {count, matrix->columns}, kF32);
    for (int64_t n = 0; r && n < count; n++)
      op.require(r.as<int32_t>()[n] >= 0 && r.as<int32_t>()[n] < matrix->rows,
                 "rows[%lld] is %d, accepted is 0 to %lld", (long long)n, r.as<int32_t>()[n],
                 (long long)matrix->rows - 1);
    kernels<MatrixKernels>().update_rows(*matrix, r ? r.as<int32_t>() : nullptr, count, v.as<float>());
  });
}

int dynadapt_matrix_unpack(const dynadapt_matrix* matrix, const DLTensor* out) {
  return guarded([&] {
    const Op op("PackedMatrix.unpack");
    op.require(matrix != nullptr, "matrix is NULL");
    const View o = op.tensor("out", out, {matrix->rows, matrix->columns}, matrix->dtype);
    kernels<MatrixKernels>().unpack(*matrix, o.data);
  });
}

}  // extern "C"
