// The C entry point of the bias gradient: arguments are checked here, and nowhere below.
#include "cpu/bias_gradient.h"

using namespace dynadapt;

extern "C" int dynadapt_bias_gradient(const DLTensor* dy, const DLTensor* db) {
  return guarded([&] {
    const Op op("bias_gradient");
    const View in = op.tensor("dy", dy, {-1, -1}, kAct, Layout::rows);
    const View out = op.output("db", db, {in.size[1]}, kF32);
    const BiasGradient c{size_t(in.size[0]), size_t(in.size[1]), in.data, size_t(in.ld()), out.as<float>()};
    if (c.rows && c.width) kernels<ByType<BiasGradientKernels>>().of(in.dtype).bias_gradient(c);
  });
}
