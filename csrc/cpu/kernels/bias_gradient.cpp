// Column sums of dy: a block of rows adds into sums of its own, which stay in cache, then the blocks are added in order.
#include "cpu/bias_gradient.h"

#include "cpu/kernels/lib/rows.h"

namespace dynadapt::DYN_ISA {
namespace {

template <class T>
void bias_gradient(const BiasGradient& a) {
  const BlockSums sums(static_cast<float*>(scratch(BlockSums::floats(a.rows, a.width) * sizeof(float))), a.width, true);
  for_row_blocks(a.rows, [&](int64_t b, int64_t first, int64_t end) {
    float* block = sums.start(b);
    for (int64_t n = first; n < end; ++n) add_scaled(block, static_cast<const T*>(a.dy) + n * a.stride, 1.0f, a.width);
  });
  sums.add_to(a.db, row_blocks(a.rows), 0, a.width);
}

}  // namespace

const ByType<BiasGradientKernels> bias_gradient_kernels = {{bias_gradient<float>}, {bias_gradient<bf16>}};

}  // namespace dynadapt::DYN_ISA
