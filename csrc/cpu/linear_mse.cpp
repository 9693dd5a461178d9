// The C entry point of the read-out: arguments are checked here, and nowhere below.
#include "cpu/linear_mse.h"

using namespace dynadapt;

extern "C" int dynadapt_linear_mse(const DLTensor* h, const DLTensor* weight, const DLTensor* bias, const DLTensor* target,
                                   const DLTensor* weights, const DLTensor* pred, const DLTensor* loss, const DLTensor* dh,
                                   const DLTensor* dweight, const DLTensor* dbias) {
  return guarded([&] {
    const Op op("linear_mse");
    LinearMse c{};
    const View in = op.tensor("h", h, {-1, -1}, kAct);
    const int64_t N = in.size[0], H = in.size[1];
    c.rows = N;
    c.width = H;
    c.h = in.data;
    c.weight = op.tensor("weight", weight, {H}, in.dtype).data;
    c.bias = op.optional("bias", bias, {1}, kF32).as<float>();
    c.target = op.tensor("target", target, {N}, kF32).as<float>();
    c.weights = op.optional("weights", weights, {N}, kF32).as<float>();
    c.pred = op.output("pred", pred, {N}, kF32).as<float>();
    c.loss = op.output("loss", loss, {N}, kF32).as<float>();
    c.dh = op.optional_output("dh", dh, {N, H}, in.dtype).data;
    c.dweight = op.optional_output("dweight", dweight, {H}, kF32).as<float>();
    c.dbias = op.optional_output("dbias", dbias, {1}, kF32).as<float>();
    if (N) kernels<ByType<LinearMseKernels>>().of(in.dtype).linear_mse(c);
  });
}
