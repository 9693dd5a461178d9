// RMSNorm and LayerNorm, with the residual add that precedes them fused into the forward and the gradient that
// passes the norm by fused into the backward: a row is read once, normalised while it is in cache, and written once.
#include "cpu/norm.h"

#include "cpu/kernels/lib/rows.h"

namespace dynadapt::DYN_ISA {
namespace {

template <class T>
float mean_of(const T* x, size_t width) {
  vfloat total{};
  for_vectors(width, [&](size_t i, auto part) { total += load(x + i, part); });
  return sum(total) / float(width);
}

template <class T>
float variance_of(const T* x, size_t width, float mean) {
  vfloat total{};
  for_vectors(width, [&](size_t i, auto part) {
    const vfloat centred = keep(load(x + i, part) - mean, part);
    total += centred * centred;
  });
  return sum(total) / float(width);
}

// y from a row and its statistics. Forward and backward call the same code, so that both write the same bits.
template <class T, class W>
[[gnu::noinline]] void output_row(const T* row, const W* weight, const T* bias, const float* stat, T* y, size_t width) {
  const float mean = stat[0], rstd = stat[1];
  for_vectors(width, [&](size_t i, auto part) {
    vfloat out = (load(row + i, part) - mean) * rstd * load(weight + i, part);
    if (bias) out += load(bias + i, part);
    store(y + i, out, part);
  });
}

template <class T, class W>
void forward_row(const NormForward& a, size_t n) {
  const T* row = static_cast<const T*>(a.x) + n * a.width;
  if (a.res) {
    T* res = static_cast<T*>(a.res) + n * a.width;
    const T* delta = a.delta ? static_cast<const T*>(a.delta) + n * a.width : nullptr;
    for_vectors(a.width, [&](size_t i, auto part) {
      vfloat total = load(row + i, part);
      if (delta) total += load(delta + i, part);
      store(res + i, total, part);
    });
    row = res;
  }
  if (!a.weight) return;
  const float mean = a.layer ? mean_of(row, a.width) : 0.0f;
  const float rstd = 1.0f / __builtin_sqrtf(variance_of(row, a.width, mean) + a.eps);
  a.stat[2 * n] = mean;
  a.stat[2 * n + 1] = rstd;
  output_row(row, static_cast<const W*>(a.weight), static_cast<const T*>(a.bias), a.stat + 2 * n,
             static_cast<T*>(a.y) + n * a.width, a.width);
}

template <class T>
void forward(const NormForward& a) {
  if (a.wide_weight)
    for_rows(a.rows, [&](int64_t n) { forward_row<T, float>(a, n); });
  else
    for_rows(a.rows, [&](int64_t n) { forward_row<T, T>(a, n); });
}

// One row of dx; the row's share of dweight and dbias is added to the block's sums where there are any.
template <class T, class W>
void backward_row(const NormBackward& a, size_t n, float* dweight, float* dbias) {
  const T* dy = static_cast<const T*>(a.dy) + n * a.width;
  const T* res = static_cast<const T*>(a.res) + n * a.width;
  const T* dres = a.dres ? static_cast<const T*>(a.dres) + n * a.width : nullptr;
  const W* weight = static_cast<const W*>(a.weight);
  T* dx = static_cast<T*>(a.dx) + n * a.width;
  if (!weight)
    return for_vectors(a.width, [&](size_t i, auto part) { store(dx + i, load(dy + i, part) + load(dres + i, part), part); });
  const float mean = a.stat[2 * n], rstd = a.stat[2 * n + 1];
  vfloat along{}, total{};  // sums of gw xhat and of gw, where gw = dy weight
  for_vectors(a.width, [&](size_t i, auto part) {
    const vfloat g = load(dy + i, part);
    const vfloat xhat = (load(res + i, part) - mean) * rstd;
    const vfloat gw = g * load(weight + i, part);
    along += gw * xhat;
    total += gw;
    if (dweight) store(dweight + i, load(dweight + i, part) + g * xhat, part);
    if (dbias) store(dbias + i, load(dbias + i, part) + g, part);
  });
  const float mean_along = sum(along) / float(a.width);
  const float mean_total = a.layer ? sum(total) / float(a.width) : 0.0f;
  for_vectors(a.width, [&](size_t i, auto part) {
    const vfloat xhat = (load(res + i, part) - mean) * rstd;
    const vfloat gw = load(dy + i, part) * load(weight + i, part);
    vfloat d = (gw - xhat * mean_along - mean_total) * rstd;
    if (dres) d += load(dres + i, part);
    store(dx + i, d, part);
  });
  if (a.y) output_row(res, weight, static_cast<const T*>(a.bias), a.stat + 2 * n, static_cast<T*>(a.y) + n * a.width, a.width);
}

template <class T, class W>
void backward_rows(const NormBackward& a) {
  if (!a.dweight && !a.dbias) return for_rows(a.rows, [&](int64_t n) { backward_row<T, W>(a, n, nullptr, nullptr); });
  const size_t floats = BlockSums::floats(a.rows, a.width);
  float* storage = static_cast<float*>(scratch(2 * floats * sizeof(float)));
  const BlockSums dweight(storage, a.width, a.dweight), dbias(storage + floats, a.width, a.dbias);
  for_row_blocks(a.rows, [&](int64_t b, int64_t first, int64_t end) {
    float* dweight_sums = dweight.start(b);
    float* dbias_sums = dbias.start(b);
    for (int64_t n = first; n < end; ++n) backward_row<T, W>(a, n, dweight_sums, dbias_sums);
  });
  dweight.add_to(a.dweight, row_blocks(a.rows), 0, a.width);
  dbias.add_to(a.dbias, row_blocks(a.rows), 0, a.width);
}

template <class T>
void backward(const NormBackward& a) {
  a.wide_weight ? backward_rows<T, float>(a) : backward_rows<T, T>(a);
}

}  // namespace

const ByType<NormKernels> norm_kernels = {{forward<float>, backward<float>}, {forward<bf16>, backward<bf16>}};

}  // namespace dynadapt::DYN_ISA
