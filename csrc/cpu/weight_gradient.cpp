// The C entry points of weight gradients and of the scores that choose rows: arguments are checked here, and nowhere below.
#include "cpu/weight_gradient.h"

#include <cstddef>

using namespace dynadapt;

extern "C" {

int dynadapt_weight_gradient(const DLTensor* dy, const DLTensor* x, const DLTensor* rows, const DLTensor* dW,
                             const dynadapt_gradient_params* params) {
  return guarded([&] {
    const Op op("weight_gradient");
    const auto& p = op.params(params, offsetof(dynadapt_gradient_params, softcap));
    op.require(p.softcap == 0 && p.scale == 0, "softcap and scale are %g and %g, accepted is 0: there are no logits",
               double(p.softcap), double(p.scale));
    const View y = op.tensor("dy", dy, {-1, -1}, kAct, Layout::rows);
    const View in = op.tensor("x", x, {y.size[0], -1}, y.dtype);
    const View r = op.optional("rows", rows, {-1}, kI32);
    const int64_t count = r ? r.size[0] : y.size[1];
    if (r) op.indices32("rows", r, 0, y.size[1]);
    const View out = op.output("dW", dW, {count, in.size[1]}, kF32);
    if (count)
      kernels<WeightGradientKernels>().gradient({y.dtype, y.size[0], in.size[1], y.size[1], y.data, y.ld(), in.data,
                                                 r.as<int32_t>(), count, out.as<float>(), bool(p.accumulate)});
  });
}

int dynadapt_row_scores(const DLTensor* dy, const DLTensor* x, const DLTensor* out) {
  return guarded([&] {
    const Op op("row_scores");
    const View y = op.tensor("dy", dy, {-1, -1}, kAct, Layout::rows);
    const View in = op.tensor("x", x, {y.size[0], -1}, y.dtype);
    const View o = op.output("out", out, {y.size[1]}, kF32);
    kernels<WeightGradientKernels>().row_scores(
        {y.dtype, y.size[0], in.size[1], y.size[1], y.data, y.ld(), in.data, o.as<float>()});
  });
}

}  // extern "C"
