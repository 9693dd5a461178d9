// The C entry points of the activations: arguments are checked here, and nowhere below.
#include "cpu/activation.h"

using namespace dynadapt;

namespace {

ActivationKind kind_of(const Op& op, int32_t kind) {
  op.require(kind >= DYNADAPT_SWIGLU && kind <= DYNADAPT_GLU,
             "kind is %d, accepted is 0 (swiglu), 1 (gelu_tanh), 2 (gelu), 3 (geglu_tanh) or 4 (glu)", kind);
  return ActivationKind(kind);
}

int64_t inputs(ActivationKind kind, int64_t F) { return is_gated(kind) ? 2 * F : F; }

}  // namespace

extern "C" {

int dynadapt_activation_forward(const DLTensor* h, const DLTensor* y, const dynadapt_activation_params* params) {
  return guarded([&] {
    const Op op("activation_forward");
    ActivationForward c{};
    c.kind = kind_of(op, op.params(params).kind);
    const View out = op.output("y", y, {-1, -1}, kAct);
    c.rows = out.size[0];
    c.width = out.size[1];
    c.y = out.data;
    c.h = op.tensor("h", h, {out.size[0], inputs(c.kind, out.size[1])}, out.dtype).data;
    if (c.rows) kernels<ByType<ActivationKernels>>().of(out.dtype).forward(c);
  });
}

int dynadapt_activation_backward(const DLTensor* dy, const DLTensor* h, const DLTensor* dh, const DLTensor* y,
                                 const dynadapt_activation_params* params) {
  return guarded([&] {
    const Op op("activation_backward");
    ActivationBackward c{};
    c.kind = kind_of(op, op.params(params).kind);
    const View in = op.tensor("dy", dy, {-1, -1}, kAct);
    c.rows = in.size[0];
    c.width = in.size[1];
    c.dy = in.data;
    c.h = op.tensor("h", h, {in.size[0], inputs(c.kind, in.size[1])}, in.dtype).data;
    c.dh = op.output("dh", dh, {in.size[0], inputs(c.kind, in.size[1])}, in.dtype, Layout::contiguous, {"h", "dy"}).data;
    c.y = op.optional_output("y", y, {in.size[0], in.size[1]}, in.dtype).data;
    if (c.rows) kernels<ByType<ActivationKernels>>().of(in.dtype).backward(c);
  });
}

}  // extern "C"
