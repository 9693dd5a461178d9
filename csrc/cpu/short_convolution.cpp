// The C entry points of the short convolution: arguments are checked here, and nowhere below.
#include "cpu/short_convolution.h"

#include "cpu/segments.h"

using namespace dynadapt;

namespace {

constexpr int64_t kMostTaps = 1 << 20;

struct Tensors {
  const DLTensor *x, *weight, *state, *slots, *lengths;
};

ConvolutionInputs check_inputs(const Op& op, const Tensors& t, DType& dtype) {
  ConvolutionInputs c{};
  const View x = op.tensor("x", t.x, {-1, -1}, kAct, Layout::rows);
  const View weight = op.tensor("weight", t.weight, {x.size[1], -1}, x.dtype);
  op.require(weight.size[1] >= 1 && weight.size[1] <= kMostTaps, "weight has %lld columns, accepted is 1 to %lld",
             (long long)weight.size[1], (long long)kMostTaps);
  const View state = op.optional("state", t.state, {-1, weight.size[1] - 1, x.size[1]}, x.dtype);
  const Segments s(op, t.slots, t.lengths, x.size[0], t.state ? state.size[0] : -1);
  dtype = x.dtype;
  c.streams = s.streams;
  c.segment = s.segment;
  c.channels = x.size[1];
  c.width = weight.size[1];
  c.x = x.data;
  c.x_stride = x.ld();
  c.weight = weight.data;
  c.state = state.data;
  c.slots = s.slots;
  c.lengths = s.lengths;
  return c;
}

}  // namespace

extern "C" {

int dynadapt_short_convolution_forward(const DLTensor* x, const DLTensor* weight, const DLTensor* state, const DLTensor* slots,
                                       const DLTensor* lengths, const DLTensor* y, const DLTensor* final) {
  return guarded([&] {
    const Op op("short_convolution_forward");
    DType dtype;
    ConvolutionForward c{};
    c.in = check_inputs(op, {x, weight, state, slots, lengths}, dtype);
    const int64_t S = int64_t(c.in.streams), C = int64_t(c.in.channels);
    const View out = op.output("y", y, {S * int64_t(c.in.segment), C}, dtype, Layout::rows);
    c.y = out.data;
    c.y_stride = out.ld();
    c.final = op.optional_output("final", final, {S, int64_t(c.in.width) - 1, C}, dtype).data;
    kernels<ByType<ConvolutionKernels>>().of(dtype).forward(c);
  });
}

int dynadapt_short_convolution_backward(const DLTensor* dy, const DLTensor* x, const DLTensor* weight, const DLTensor* state,
                                        const DLTensor* slots, const DLTensor* lengths, const DLTensor* dx,
                                        const DLTensor* dweight) {
  return guarded([&] {
    const Op op("short_convolution_backward");
    DType dtype;
    ConvolutionBackward c{};
    c.in = check_inputs(op, {x, weight, state, slots, lengths}, dtype);
    const int64_t N = int64_t(c.in.streams) * int64_t(c.in.segment), C = int64_t(c.in.channels);
    const View given = op.tensor("dy", dy, {N, C}, dtype, Layout::rows);
    const View out = op.output("dx", dx, {N, C}, dtype, Layout::rows);
    c.dy = given.data;
    c.dy_stride = given.ld();
    c.dx = out.data;
    c.dx_stride = out.ld();
    c.dweight = op.optional_output("dweight", dweight, {C, int64_t(c.in.width)}, kF32).as<float>();
    if (N && C) kernels<ByType<ConvolutionKernels>>().of(dtype).backward(c);
  });
}

}  // extern "C"
