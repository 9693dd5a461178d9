// The gates of the delta rule: a decay and a rate for every value head, from two numbers that were projected for it.
//   softplus x = max(x, 0) + log(1 + e^-|x|), which neither overflows nor loses the small values of a negative x.
#include "cpu/delta_gates.h"

#include "cpu/kernels/lib/rows.h"

namespace dynadapt::DYN_ISA {
namespace {

inline vfloat softplus(vfloat x) {
  vfloat rest = exponential(-maximum(-x, x));
  for (int i = 0; i < kWidth; i++) rest[i] = __builtin_log1pf(rest[i]);
  return maximum(vfloat{}, x) + rest;
}

/// a + dt_bias of kWidth heads of one row.
template <class T, class Part>
inline vfloat step_of(const GateInputs& in, int64_t n, size_t i, Part part) {
  return load(static_cast<const T*>(in.a) + n * in.a_stride + i, part) + load(in.dt_bias + i, part);
}

template <class T, class Part>
inline vfloat rate_of(const GateInputs& in, int64_t n, size_t i, Part part) {
  return sigmoid(load(static_cast<const T*>(in.b) + n * in.b_stride + i, part));
}

template <class T>
void forward(const DeltaGatesForward& c) {
  const GateInputs& in = c.in;
  for_rows(int64_t(in.rows), [&](int64_t n) {
    for_vectors(in.heads, [&](size_t i, auto part) {
      const size_t at = size_t(n) * in.heads + i;
      store(c.g + at, -exponential(load(in.a_log + i, part)) * softplus(step_of<T>(in, n, i, part)), part);
      store(c.beta + at, rate_of<T>(in, n, i, part), part);
    });
  });
}

/// One row; what it adds to the gradients of a_log and dt_bias goes to `log_sums` and `bias_sums` [heads], where they are there.
template <class T>
void backward_row(const DeltaGatesBackward& c, int64_t n, float* log_sums, float* bias_sums) {
  const GateInputs& in = c.in;
  T* da = static_cast<T*>(c.da) + n * c.da_stride;
  T* db = static_cast<T*>(c.db) + n * c.db_stride;
  for_vectors(in.heads, [&](size_t i, auto part) {
    const size_t at = size_t(n) * in.heads + i;
    const vfloat step = step_of<T>(in, n, i, part), rate = rate_of<T>(in, n, i, part);
    const vfloat decayed = -load(c.dg + at, part) * exponential(load(in.a_log + i, part));
    const vfloat dstep = decayed * sigmoid(step);
    if (log_sums) store(log_sums + i, load(log_sums + i, part) + decayed * softplus(step), part);
    if (bias_sums) store(bias_sums + i, load(bias_sums + i, part) + dstep, part);
    store(da + i, dstep, part);
    store(db + i, load(c.dbeta + at, part) * rate * (1.0f - rate), part);
  });
}

template <class T>
void backward(const DeltaGatesBackward& c) {
  const int64_t rows = int64_t(c.in.rows);
  if (!c.da_log && !c.ddt_bias) return for_rows(rows, [&](int64_t n) { backward_row<T>(c, n, nullptr, nullptr); });
  const size_t floats = BlockSums::floats(rows, c.in.heads);
  float* storage = static_cast<float*>(scratch(2 * floats * sizeof(float)));
  const BlockSums da_log(storage, c.in.heads, c.da_log), ddt_bias(storage + floats, c.in.heads, c.ddt_bias);
  for_row_blocks(rows, [&](int64_t block, int64_t first, int64_t end) {
    float* log_sums = da_log.start(block);
    float* bias_sums = ddt_bias.start(block);
    for (int64_t n = first; n < end; ++n) backward_row<T>(c, n, log_sums, bias_sums);
  });
  da_log.add_to(c.da_log, row_blocks(rows), 0, c.in.heads);
  ddt_bias.add_to(c.ddt_bias, row_blocks(rows), 0, c.in.heads);
}

}  // namespace

const ByType<DeltaGatesKernels> delta_gates_kernels = {{forward<float>, backward<float>}, {forward<bf16>, backward<bf16>}};

}  // namespace dynadapt::DYN_ISA
