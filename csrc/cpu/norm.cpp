// The C entry points of the norms: arguments are checked here, and nowhere below.
#include "cpu/norm.h"

using namespace dynadapt;

namespace {

bool is_layer(const Op& op, int32_t kind) {
  op.require(kind == DYNADAPT_NORM_RMS || kind == DYNADAPT_NORM_LAYER, "kind is %d, accepted is 0 (rms) or 1 (layer)", kind);
  return kind == DYNADAPT_NORM_LAYER;
}

/// The weight [H], of the activations' dtype or float32, which `wide` says.
const void* weight_of(const Op& op, const DLTensor* weight, int64_t H, DType dtype, bool& wide) {
  const View view = op.tensor("weight", weight, {H}, dtype | kF32);
  wide = view.dtype == kF32;
  return view.data;
}

}  // namespace

extern "C" {

int dynadapt_norm_forward(const DLTensor* x, const DLTensor* delta, const DLTensor* weight, const DLTensor* bias,
                          const DLTensor* res, const DLTensor* y, const DLTensor* stat, const dynadapt_norm_params* params) {
  return guarded([&] {
    const Op op("norm_forward");
    const auto& p = op.params(params);
    NormForward c{};
    const View in = op.tensor("x", x, {-1, -1}, kAct);
    const int64_t N = in.size[0], H = in.size[1];
    op.require(H >= 1, "x has width 0, accepted is at least 1");
    op.require(res || !delta, "res is missing, a tensor is needed where delta is given");
    c.rows = N;
    c.width = H;
    c.layer = is_layer(op, p.kind);
    c.eps = float(op.number("eps", p.eps, 0, 1e30));
    c.x = in.data;
    c.delta = op.optional("delta", delta, {N, H}, in.dtype).data;
    c.weight = weight_of(op, weight, H, in.dtype, c.wide_weight);
    c.bias = op.optional("bias", bias, {H}, in.dtype).data;
    c.res = op.optional_output("res", res, {N, H}, in.dtype, Layout::contiguous, {"x", "delta"}).data;
    c.y = op.output("y", y, {N, H}, in.dtype, Layout::contiguous, {"x", "delta"}).data;
    c.stat = op.output("stat", stat, {N, 2}, kF32).as<float>();
    if (N) kernels<ByType<NormKernels>>().of(in.dtype).forward(c);
  });
}

int dynadapt_norm_backward(const DLTensor* dy, const DLTensor* res, const DLTensor* weight, const DLTensor* stat,
                           const DLTensor* dres, const DLTensor* dx, const DLTensor* dweight, const DLTensor* dbias,
                           const DLTensor* bias, const DLTensor* y, const dynadapt_norm_params* params) {
  return guarded([&] {
    const Op op("norm_backward");
    const auto& p = op.params(params);
    NormBackward c{};
    const View in = op.tensor("dy", dy, {-1, -1}, kAct);
    const int64_t N = in.size[0], H = in.size[1];
    op.require(H >= 1, "dy has width 0, accepted is at least 1");
    c.rows = N;
    c.width = H;
    c.layer = is_layer(op, p.kind);
    c.dy = in.data;
    c.res = op.tensor("res", res, {N, H}, in.dtype).data;
    c.weight = weight_of(op, weight, H, in.dtype, c.wide_weight);
    c.stat = op.tensor("stat", stat, {N, 2}, kF32).as<float>();
    c.dres = op.optional("dres", dres, {N, H}, in.dtype).data;
    c.dx = op.output("dx", dx, {N, H}, in.dtype, Layout::contiguous, {"dy", "dres"}).data;
    c.dweight = op.optional_output("dweight", dweight, {H}, kF32).as<float>();
    c.dbias = op.optional_output("dbias", dbias, {H}, kF32).as<float>();
    c.bias = op.optional("bias", bias, {H}, in.dtype).data;
    c.y = op.optional_output("y", y, {N, H}, in.dtype).data;
    if (N) kernels<ByType<NormKernels>>().of(in.dtype).backward(c);
  });
}

}  // extern "C"
