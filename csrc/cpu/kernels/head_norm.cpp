// RMS norm of the query and key heads of a packed qkv row, each by itself or those of a kind together, ahead of rotation; values
// are copied through.
#include "cpu/head_norm.h"

#include "cpu/kernels/lib/rows.h"

namespace dynadapt::DYN_ISA {
namespace {

template <class T, class W>
void forward_row(const HeadNormForward& a, size_t n) {
  const NormedPieces& p = a.pieces;
  const T* x = static_cast<const T*>(a.qkv) + n * p.row();
  T* y = static_cast<T*>(a.out) + n * p.row();
  for (size_t piece = 0; piece < p.count(); ++piece) {
    const bool query = piece < p.queries;
    const size_t width = query ? p.query_width : p.key_width;
    const W* weight = static_cast<const W*>(query ? a.q_weight : a.k_weight);
    const float rstd = 1.0f / __builtin_sqrtf(dot(x, x, width) / float(width) + a.eps);
    a.rstd[n * p.count() + piece] = rstd;
    for_vectors(width, [&](size_t i, auto part) { store(y + i, load(x + i, part) * rstd * load(weight + i, part), part); });
    x += width;
    y += width;
  }
  memmove(y, x, p.value_width * sizeof(T));
}

template <class T>
void forward(const HeadNormForward& a) {
  if (a.wide_weights)
    for_rows(a.rows, [&](int64_t n) { forward_row<T, float>(a, n); });
  else
    for_rows(a.rows, [&](int64_t n) { forward_row<T, T>(a, n); });
}

// One piece of one row; its share of the weight gradient is added to `dweight` [width] where there is one.
template <class T, class W>
void backward_piece(const T* dout, const T* x, const W* weight, float rstd, size_t width, T* dx, float* dweight) {
  vfloat along{};
  for_vectors(width, [&](size_t i, auto part) {
    const vfloat g = load(dout + i, part);
    const vfloat xhat = load(x + i, part) * rstd;
    along += g * load(weight + i, part) * xhat;
    if (dweight) store(dweight + i, load(dweight + i, part) + g * xhat, part);
  });
  const float mean_along = sum(along) / float(width);
  for_vectors(width, [&](size_t i, auto part) {
    const vfloat xhat = load(x + i, part) * rstd;
    store(dx + i, (load(dout + i, part) * load(weight + i, part) - xhat * mean_along) * rstd, part);
  });
}

template <class T, class W>
void backward_row(const HeadNormBackward& a, size_t n, float* dq_weight, float* dk_weight) {
  const NormedPieces& p = a.pieces;
  const T* dout = static_cast<const T*>(a.dout) + n * p.row();
  const T* x = static_cast<const T*>(a.qkv) + n * p.row();
  T* dx = static_cast<T*>(a.dqkv) + n * p.row();
  for (size_t piece = 0; piece < p.count(); ++piece) {
    const bool query = piece < p.queries;
    const size_t width = query ? p.query_width : p.key_width;
    backward_piece(dout, x, static_cast<const W*>(query ? a.q_weight : a.k_weight), a.rstd[n * p.count() + piece], width, dx,
                   query ? dq_weight : dk_weight);
    dout += width;
    x += width;
    dx += width;
  }
  memmove(dx, dout, p.value_width * sizeof(T));
}

template <class T, class W>
void backward_rows(const HeadNormBackward& a) {
  if (!a.dq_weight && !a.dk_weight) return for_rows(a.rows, [&](int64_t n) { backward_row<T, W>(a, n, nullptr, nullptr); });
  const size_t q = a.pieces.query_width, k = a.pieces.key_width, q_floats = BlockSums::floats(a.rows, q);
  float* storage = static_cast<float*>(scratch((q_floats + BlockSums::floats(a.rows, k)) * sizeof(float)));
  const BlockSums dq_weight(storage, q, a.dq_weight), dk_weight(storage + q_floats, k, a.dk_weight);
  for_row_blocks(a.rows, [&](int64_t b, int64_t first, int64_t end) {
    float* dq_sums = dq_weight.start(b);
    float* dk_sums = dk_weight.start(b);
    for (int64_t n = first; n < end; ++n) backward_row<T, W>(a, n, dq_sums, dk_sums);
  });
  dq_weight.add_to(a.dq_weight, row_blocks(a.rows), 0, q);
  dk_weight.add_to(a.dk_weight, row_blocks(a.rows), 0, k);
}

template <class T>
void backward(const HeadNormBackward& a) {
  a.wide_weights ? backward_rows<T, float>(a) : backward_rows<T, T>(a);
}

}  // namespace

const ByType<HeadNormKernels> head_norm_kernels = {{forward<float>, backward<float>}, {forward<bf16>, backward<bf16>}};

}  // namespace dynadapt::DYN_ISA
