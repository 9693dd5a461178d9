// RMS norm of each query and key head of a packed qkv row, ahead of rotation; values are copied through.
#include "cpu/head_norm.h"

#include "cpu/kernels/lib/rows.h"

namespace dynadapt::DYN_ISA {
namespace {

template <class T>
void forward_row(const HeadNormForward& a, size_t n) {
  const size_t d = a.head_dim, normed = a.query_heads + a.kv_heads, width = (normed + a.kv_heads) * d;
  const T* qkv = static_cast<const T*>(a.qkv) + n * width;
  T* out = static_cast<T*>(a.out) + n * width;
  for (size_t head = 0; head < normed; ++head) {
    const T* weight = static_cast<const T*>(head < a.query_heads ? a.q_weight : a.k_weight);
    const T* x = qkv + head * d;
    T* y = out + head * d;
    const float rstd = 1.0f / __builtin_sqrtf(dot(x, x, d) / float(d) + a.eps);
    a.rstd[n * normed + head] = rstd;
    for_vectors(d, [&](size_t i, auto part) { store(y + i, load(x + i, part) * rstd * load(weight + i, part), part); });
  }
  memmove(out + normed * d, qkv + normed * d, a.kv_heads * d * sizeof(T));
}

template <class T>
void forward(const HeadNormForward& a) {
  for_rows(a.rows, [&](int64_t n) { forward_row<T>(a, n); });
}

// One head of one row; its share of the weight gradient is added to `dweight` [d] where there is one.
template <class T>
void backward_head(const T* dout, const T* x, const T* weight, float rstd, size_t d, T* dx, float* dweight) {
  vfloat along{};
  for_vectors(d, [&](size_t i, auto part) {
    const vfloat g = load(dout + i, part);
    const vfloat xhat = load(x + i, part) * rstd;
    along += g * load(weight + i, part) * xhat;
    if (dweight) store(dweight + i, load(dweight + i, part) + g * xhat, part);
  });
  const float mean_along = sum(along) / float(d);
  for_vectors(d, [&](size_t i, auto part) {
    const vfloat xhat = load(x + i, part) * rstd;
    store(dx + i, (load(dout + i, part) * load(weight + i, part) - xhat * mean_along) * rstd, part);
  });
}

template <class T>
void backward_row(const HeadNormBackward& a, size_t n, float* dq_weight, float* dk_weight) {
  const size_t d = a.head_dim, normed = a.query_heads + a.kv_heads, width = (normed + a.kv_heads) * d;
  const T* dout = static_cast<const T*>(a.dout) + n * width;
  const T* qkv = static_cast<const T*>(a.qkv) + n * width;
  T* dqkv = static_cast<T*>(a.dqkv) + n * width;
  for (size_t head = 0; head < normed; ++head) {
    const bool query = head < a.query_heads;
    backward_head(dout + head * d, qkv + head * d, static_cast<const T*>(query ? a.q_weight : a.k_weight),
                  a.rstd[n * normed + head], d, dqkv + head * d, query ? dq_weight : dk_weight);
  }
  memmove(dqkv + normed * d, dout + normed * d, a.kv_heads * d * sizeof(T));
}

template <class T>
void backward(const HeadNormBackward& a) {
  if (!a.dq_weight && !a.dk_weight) return for_rows(a.rows, [&](int64_t n) { backward_row<T>(a, n, nullptr, nullptr); });
  const size_t floats = BlockSums::floats(a.rows, a.head_dim);
  float* storage = static_cast<float*>(scratch(2 * floats * sizeof(float)));
  const BlockSums dq_weight(storage, a.head_dim, a.dq_weight), dk_weight(storage + floats, a.head_dim, a.dk_weight);
  for_row_blocks(a.rows, [&](int64_t b, int64_t first, int64_t end) {
    float* dq_sums = dq_weight.start(b);
    float* dk_sums = dk_weight.start(b);
    for (int64_t n = first; n < end; ++n) backward_row<T>(a, n, dq_sums, dk_sums);
  });
  dq_weight.add_to(a.dq_weight, row_blocks(a.rows), 0, a.head_dim);
  dk_weight.add_to(a.dk_weight, row_blocks(a.rows), 0, a.head_dim);
}

}  // namespace

const ByType<HeadNormKernels> head_norm_kernels = {{forward<float>, backward<float>}, {forward<bf16>, backward<bf16>}};

}  // namespace dynadapt::DYN_ISA
