// Linear read-out with squared error: prediction, loss and all gradients from one pass over the rows.
#include "cpu/linear_mse.h"

#include "cpu/kernels/lib/rows.h"

namespace dynadapt::DYN_ISA {
namespace {

// Row n's prediction, loss and dh; returns the derivative of the weighted loss with respect to the prediction.
template <class T>
float row(const LinearMse& a, size_t n) {
  const T* weight = static_cast<const T*>(a.weight);
  const float pred = dot(static_cast<const T*>(a.h) + n * a.width, weight, a.width) + (a.bias ? a.bias[0] : 0.0f);
  const float error = pred - a.target[n];
  const float slope = 2.0f * error * (a.weights ? a.weights[n] : 1.0f);
  a.pred[n] = pred;
  a.loss[n] = error * error;
  if (a.dh) {
    T* dh = static_cast<T*>(a.dh) + n * a.width;
    for_vectors(a.width, [&](size_t i, auto part) { store(dh + i, slope * load(weight + i, part), part); });
  }
  return slope;
}

template <class T>
void linear_mse(const LinearMse& a) {
  const size_t width = a.width + 1;  // a block's dweight, then its dbias
  const bool learns = a.dweight || a.dbias;
  const BlockSums sums(static_cast<float*>(scratch(learns ? BlockSums::floats(a.rows, width) * sizeof(float) : 0)), width,
                       learns);
  for_row_blocks(a.rows, [&](int64_t b, int64_t first, int64_t end) {
    float* block = sums.start(b);
    for (int64_t n = first; n < end; ++n) {
      const float slope = row<T>(a, n);
      if (!learns) continue;
      block[a.width] += slope;
      if (a.dweight) add_scaled(block, static_cast<const T*>(a.h) + n * a.width, slope, a.width);
    }
  });
  sums.add_to(a.dweight, row_blocks(a.rows), 0, a.width);
  sums.add_to(a.dbias, row_blocks(a.rows), a.width, 1);
}

}  // namespace

const ByType<LinearMseKernels> linear_mse_kernels = {{linear_mse<float>}, {linear_mse<bf16>}};

}  // namespace dynadapt::DYN_ISA
