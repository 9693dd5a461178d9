// The C entry points of the delta rule's gates: arguments are checked here, and nowhere below.
#include "cpu/delta_gates.h"

using namespace dynadapt;

namespace {

GateInputs check_inputs(const Op& op, const DLTensor* a, const DLTensor* b, const DLTensor* a_log, const DLTensor* dt_bias,
                        DType& dtype) {
  GateInputs c{};
  const View steps = op.tensor("a", a, {-1, -1}, kAct, Layout::rows);
  const int64_t N = steps.size[0], heads = steps.size[1];
  dtype = steps.dtype;
  c.rows = N;
  c.heads = heads;
  c.a = steps.data;
  c.a_stride = steps.ld();
  const View rates = op.tensor("b", b, {N, heads}, dtype, Layout::rows);
  c.b = rates.data;
  c.b_stride = rates.ld();
  c.a_log = op.tensor("a_log", a_log, {heads}, kF32).as<float>();
  c.dt_bias = op.tensor("dt_bias", dt_bias, {heads}, kF32).as<float>();
  return c;
}

}  // namespace

extern "C" {

int dynadapt_delta_gates_forward(const DLTensor* a, const DLTensor* b, const DLTensor* a_log, const DLTensor* dt_bias,
                                 const DLTensor* g, const DLTensor* beta) {
  return guarded([&] {
    const Op op("delta_gates_forward");
    DType dtype;
    DeltaGatesForward c{};
    c.in = check_inputs(op, a, b, a_log, dt_bias, dtype);
    const int64_t N = int64_t(c.in.rows), heads = int64_t(c.in.heads);
    c.g = op.output("g", g, {N, heads}, kF32).as<float>();
    c.beta = op.output("beta", beta, {N, heads}, kF32).as<float>();
    if (N) kernels<ByType<DeltaGatesKernels>>().of(dtype).forward(c);
  });
}

int dynadapt_delta_gates_backward(const DLTensor* dg, const DLTensor* dbeta, const DLTensor* a, const DLTensor* b,
                                  const DLTensor* a_log, const DLTensor* dt_bias, const DLTensor* da, const DLTensor* db,
                                  const DLTensor* da_log, const DLTensor* ddt_bias) {
  return guarded([&] {
    const Op op("delta_gates_backward");
    DType dtype;
    DeltaGatesBackward c{};
    c.in = check_inputs(op, a, b, a_log, dt_bias, dtype);
    const int64_t N = int64_t(c.in.rows), heads = int64_t(c.in.heads);
    c.dg = op.tensor("dg", dg, {N, heads}, kF32).as<float>();
    c.dbeta = op.tensor("dbeta", dbeta, {N, heads}, kF32).as<float>();
    const View of_a = op.output("da", da, {N, heads}, dtype, Layout::rows, {"a"});
    c.da = of_a.data;
    c.da_stride = of_a.ld();
    const View of_b = op.output("db", db, {N, heads}, dtype, Layout::rows, {"b"});
    c.db = of_b.data;
    c.db_stride = of_b.ld();
    c.da_log = op.optional_output("da_log", da_log, {heads}, kF32).as<float>();
    c.ddt_bias = op.optional_output("ddt_bias", ddt_bias, {heads}, kF32).as<float>();
    if (N) kernels<ByType<DeltaGatesKernels>>().of(dtype).backward(c);
  });
}

}  // extern "C"
