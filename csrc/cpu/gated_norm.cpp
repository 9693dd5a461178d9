// The C entry points of the gated norm: arguments are checked here, and nowhere below.
#include "cpu/gated_norm.h"

using namespace dynadapt;

namespace {

/// x or dy, the first argument: its width is that of some heads.
View first_tensor(const Op& op, const char* argument, const DLTensor* tensor, int32_t head_dim) {
  op.whole("d", head_dim, 1, kMostHeads);
  const View view = op.tensor(argument, tensor, {-1, -1}, kAct, Layout::rows);
  op.require(view.size[1] % head_dim == 0, "%s has %lld columns, accepted is a multiple of d, %d", argument,
             (long long)view.size[1], head_dim);
  return view;
}

}  // namespace

extern "C" {

int dynadapt_gated_norm_forward(const DLTensor* x, const DLTensor* gate, const DLTensor* weight, const DLTensor* y,
                                const DLTensor* rstd, const dynadapt_gated_norm_params* params) {
  return guarded([&] {
    const Op op("gated_norm_forward");
    const auto& p = op.params(params);
    const View in = first_tensor(op, "x", x, p.head_dim);
    const int64_t N = in.size[0], width = in.size[1];
    GatedNormForward c{};
    c.rows = N;
    c.heads = width / p.head_dim;
    c.head_dim = p.head_dim;
    c.eps = float(op.number("eps", p.eps, 0, 1e30));
    c.x = in.data;
    c.x_stride = in.ld();
    const View gates = op.tensor("gate", gate, {N, width}, in.dtype, Layout::rows);
    c.gate = gates.data;
    c.gate_stride = gates.ld();
    c.weight = op.tensor("weight", weight, {p.head_dim}, in.dtype).data;
    const View out = op.output("y", y, {N, width}, in.dtype, Layout::rows);
    c.y = out.data;
    c.y_stride = out.ld();
    c.rstd = op.output("rstd", rstd, {N, int64_t(c.heads)}, kF32).as<float>();
    if (N) kernels<ByType<GatedNormKernels>>().of(in.dtype).forward(c);
  });
}

int dynadapt_gated_norm_backward(const DLTensor* dy, const DLTensor* x, const DLTensor* gate, const DLTensor* weight,
                                 const DLTensor* rstd, const DLTensor* dx, const DLTensor* dgate, const DLTensor* dweight,
                                 const dynadapt_gated_norm_params* params) {
  return guarded([&] {
    const Op op("gated_norm_backward");
    const auto& p = op.params(params);
    const View in = first_tensor(op, "dy", dy, p.head_dim);
    const int64_t N = in.size[0], width = in.size[1];
    GatedNormBackward c{};
    c.rows = N;
    c.heads = width / p.head_dim;
    c.head_dim = p.head_dim;
    c.dy = in.data;
    c.dy_stride = in.ld();
    const View inputs = op.tensor("x", x, {N, width}, in.dtype, Layout::rows);
    c.x = inputs.data;
    c.x_stride = inputs.ld();
    const View gates = op.tensor("gate", gate, {N, width}, in.dtype, Layout::rows);
    c.gate = gates.data;
    c.gate_stride = gates.ld();
    c.weight = op.tensor("weight", weight, {p.head_dim}, in.dtype).data;
    c.rstd = op.tensor("rstd", rstd, {N, int64_t(c.heads)}, kF32).as<float>();
    const View of_x = op.output("dx", dx, {N, width}, in.dtype, Layout::rows, {"dy", "x"});
    c.dx = of_x.data;
    c.dx_stride = of_x.ld();
    const View of_gate = op.output("dgate", dgate, {N, width}, in.dtype, Layout::rows, {"gate"});
    c.dgate = of_gate.data;
    c.dgate_stride = of_gate.ld();
    c.dweight = op.optional_output("dweight", dweight, {p.head_dim}, kF32).as<float>();
    if (N) kernels<ByType<GatedNormKernels>>().of(in.dtype).backward(c);
  });
}

}  // extern "C"
