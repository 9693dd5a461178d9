// The C entry points of the gated delta rule: arguments are checked here, and nowhere below.
#include "cpu/delta_rule.h"

#include "cpu/segments.h"

using namespace dynadapt;

namespace {

struct Tensors {
  const DLTensor *qkv, *g, *beta, *state, *slots, *lengths;
};

DeltaRuleInputs check_inputs(const Op& op, const Tensors& t, const dynadapt_delta_rule_params& p, DType& dtype) {
  const std::pair<const char*, int32_t> sizes[] = {
      {"hk", p.key_heads}, {"hv", p.value_heads}, {"dk", p.key_dim}, {"dv", p.value_dim}};
  for (const auto& [name, size] : sizes) op.whole(name, size, 1, kMostHeads);
  op.require(p.value_heads % p.key_heads == 0, "hv is %d, accepted is a multiple of hk, %d", p.value_heads, p.key_heads);
  DeltaRuleInputs c{};
  c.key_heads = p.key_heads;
  c.value_heads = p.value_heads;
  c.key_dim = p.key_dim;
  c.value_dim = p.value_dim;
  c.scale = op.finite("scale", p.scale);
  c.eps = float(op.number("eps", p.eps, 0, 1e30));
  const int64_t width = 2 * int64_t(p.key_heads) * p.key_dim + int64_t(p.value_heads) * p.value_dim;
  const View qkv = op.tensor("qkv", t.qkv, {-1, width}, kAct);
  dtype = qkv.dtype;
  c.qkv = qkv.data;
  c.g = op.tensor("g", t.g, {qkv.size[0], p.value_heads}, kF32).as<float>();
  c.beta = op.tensor("beta", t.beta, {qkv.size[0], p.value_heads}, kF32).as<float>();
  const View state = op.optional("state", t.state, {-1, p.value_heads, p.key_dim, p.value_dim}, kF32);
  c.state = state.as<float>();
  const Segments s(op, t.slots, t.lengths, qkv.size[0], state ? state.size[0] : -1);
  c.streams = s.streams;
  c.segment = s.segment;
  c.slots = s.slots;
  c.lengths = s.lengths;
  return c;
}

}  // namespace

extern "C" {

int dynadapt_delta_rule_forward(const DLTensor* qkv, const DLTensor* g, const DLTensor* beta, const DLTensor* state,
                                const DLTensor* slots, const DLTensor* lengths, const DLTensor* out, const DLTensor* final,
                                const dynadapt_delta_rule_params* params) {
  return guarded([&] {
    const Op op("delta_rule_forward");
    const auto& p = op.params(params);
    DType dtype;
    DeltaRuleForward c{};
    c.in = check_inputs(op, {qkv, g, beta, state, slots, lengths}, p, dtype);
    const int64_t S = int64_t(c.in.streams), N = S * int64_t(c.in.segment);
    c.out = op.output("out", out, {N, int64_t(p.value_heads) * p.value_dim}, dtype).data;
    c.final = op.optional_output("final", final, {S, p.value_heads, p.key_dim, p.value_dim}, kF32).as<float>();
    kernels<ByType<DeltaRuleKernels>>().of(dtype).forward(c);
  });
}

int dynadapt_delta_rule_backward(const DLTensor* dout, const DLTensor* qkv, const DLTensor* g, const DLTensor* beta,
                                 const DLTensor* state, const DLTensor* slots, const DLTensor* lengths, const DLTensor* dqkv,
                                 const DLTensor* dg, const DLTensor* dbeta, const dynadapt_delta_rule_params* params) {
  return guarded([&] {
    const Op op("delta_rule_backward");
    const auto& p = op.params(params);
    DType dtype;
    DeltaRuleBackward c{};
    c.in = check_inputs(op, {qkv, g, beta, state, slots, lengths}, p, dtype);
    const int64_t N = int64_t(c.in.streams) * int64_t(c.in.segment), values = int64_t(p.value_heads) * p.value_dim;
    c.dout = op.tensor("dout", dout, {N, values}, dtype).data;
    c.dqkv = op.output("dqkv", dqkv, {N, 2 * int64_t(p.key_heads) * p.key_dim + values}, dtype).data;
    c.dg = op.output("dg", dg, {N, p.value_heads}, kF32).as<float>();
    c.dbeta = op.output("dbeta", dbeta, {N, p.value_heads}, kF32).as<float>();
    if (c.in.segment) kernels<ByType<DeltaRuleKernels>>().of(dtype).backward(c);
  });
}

}  // extern "C"
