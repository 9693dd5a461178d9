// RMS norm of each head of a row, times SiLU of its gate.
#include "cpu/gated_norm.h"

#include "cpu/kernels/lib/rows.h"

namespace dynadapt::DYN_ISA {
namespace {

template <class T>
void forward(const GatedNormForward& a) {
  const size_t d = a.head_dim;
  const T* weight = static_cast<const T*>(a.weight);
  for_rows(a.rows, [&](int64_t n) {
    for (size_t head = 0; head < a.heads; head++) {
      const T* x = static_cast<const T*>(a.x) + n * a.x_stride + head * d;
      const T* gate = static_cast<const T*>(a.gate) + n * a.gate_stride + head * d;
      T* y = static_cast<T*>(a.y) + n * a.y_stride + head * d;
      const float rstd = 1.0f / __builtin_sqrtf(dot(x, x, d) / float(d) + a.eps);
      a.rstd[n * int64_t(a.heads) + int64_t(head)] = rstd;
      for_vectors(d, [&](size_t i, auto part) {
        const vfloat z = load(gate + i, part);
        store(y + i, load(x + i, part) * rstd * load(weight + i, part) * (z * sigmoid(z)), part);
      });
    }
  });
}

// One head of one row; its share of the weight gradient is added to `dweight` [d] where there is one. dx may be dy or x, dgate may be
// gate: each vector is read before it is written, and once more only by the loop that writes dx.
template <class T>
void backward_head(const T* dy, const T* x, const T* gate, const T* weight, float rstd, size_t d, float* gw, T* dx, T* dgate,
                   float* dweight) {
  vfloat along{};
  for_vectors(d, [&](size_t i, auto part) {
    const vfloat g = load(dy + i, part), z = load(gate + i, part), w = load(weight + i, part);
    const vfloat xhat = load(x + i, part) * rstd, sigma = sigmoid(z);
    const vfloat through = g * (z * sigma);
    along += through * w * xhat;
    store(gw + i, through * w, part);
    store(dgate + i, g * xhat * w * sigma * (1.0f + z * (1.0f - sigma)), part);
    if (dweight) store(dweight + i, load(dweight + i, part) + through * xhat, part);
  });
  const float mean_along = sum(along) / float(d);
  for_vectors(
      d, [&](size_t i, auto part) { store(dx + i, (load(gw + i, part) - load(x + i, part) * rstd * mean_along) * rstd, part); });
}

template <class T>
void backward_row(const GatedNormBackward& a, int64_t n, float* gw, float* dweight) {
  for (size_t head = 0; head < a.heads; head++) {
    const int64_t at = int64_t(head * a.head_dim);
    backward_head(static_cast<const T*>(a.dy) + n * a.dy_stride + at, static_cast<const T*>(a.x) + n * a.x_stride + at,
                  static_cast<const T*>(a.gate) + n * a.gate_stride + at, static_cast<const T*>(a.weight),
                  a.rstd[n * int64_t(a.heads) + int64_t(head)], a.head_dim, gw, static_cast<T*>(a.dx) + n * a.dx_stride + at,
                  static_cast<T*>(a.dgate) + n * a.dgate_stride + at, dweight);
  }
}

template <class T>
void backward(const GatedNormBackward& a) {
  const size_t stride = BlockSums::stride(a.head_dim), sums = BlockSums::floats(a.rows, a.head_dim);
  float* storage = static_cast<float*>(scratch((sums + row_blocks(a.rows) * stride) * sizeof(float)));
  const BlockSums dweight(storage, a.head_dim, a.dweight);
  for_row_blocks(a.rows, [&](int64_t b, int64_t first, int64_t end) {
    float* block = dweight.start(b);
    for (int64_t n = first; n < end; ++n) backward_row<T>(a, n, storage + sums + b * stride, block);
  });
  dweight.add_to(a.dweight, row_blocks(a.rows), 0, a.head_dim);
}

}  // namespace

const ByType<GatedNormKernels> gated_norm_kernels = {{forward<float>, backward<float>}, {forward<bf16>, backward<bf16>}};

}  // namespace dynadapt::DYN_ISA
