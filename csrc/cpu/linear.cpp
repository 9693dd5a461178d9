// The C entry points of the linear family: arguments are checked here, and nowhere below.
#include "cpu/linear.h"

#include <cstddef>

using namespace dynadapt;

namespace {

typedef long long ll;

/// Checks that parts fit together and returns the sum of their rows (output columns).
int64_t check_parts(const Op& op, const dynadapt_matrix* const* parts, int32_t count, int64_t K, DType dtype) {
  op.require(count >= 1 && count <= kMaxParts, "part_count is %d: parts has %d matrices, accepted are 1 to %d", count, count,
             kMaxParts);
  op.array("parts", parts, count);
  int64_t O = 0;
  for (int p = 0; p < count; p++) {
    op.require(parts[p] != nullptr, "parts[%d] is NULL", p);
    op.require(K < 0 || parts[p]->columns == K, "parts[%d] has shape [%lld, %lld], accepted is [any, %lld]", p,
               (ll)parts[p]->rows, (ll)parts[p]->columns, (ll)K);
    op.require(parts[p]->dtype == dtype, "parts[%d] has dtype %s, accepted is that of the activations, %s", p,
               dtype_name(parts[p]->dtype), dtype_name(dtype));
    op.require(is_int8(*parts[p]) == is_int8(*parts[0]),
               "parts[%d] is stored as %s and parts[0] as %s, accepted is int8 for all or none", p,
               storage_name(parts[p]->storage), storage_name(parts[0]->storage));
    K = parts[p]->columns;
    O += parts[p]->rows;
  }
  return O;
}

void check_slots(const Op& op, const View& slots, int64_t limit, int64_t N) {
  const int64_t streams = slots.size[0];
  op.require(streams >= 1 && N % streams == 0, "slots has %lld entries for %lld rows, accepted is a divisor of the rows",
             (ll)streams, (ll)N);
  op.indices32("slots", slots, 0, limit);
}

struct AdapterTensors {
  const DLTensor *A, *Bt, *slots, *low;  // low: u or dU
  const char* low_name;
};

/// The adapter of a call, and its low-rank activations through `low`.
Adapter check_adapter(const Op& op, const AdapterTensors& t, DType dtype, int64_t N, int64_t K, int64_t O, int parts,
                      const dynadapt_linear_params& p, void** low) {
  Adapter adapter;
  op.require(!t.A == !t.Bt, "%s is given without %s, accepted are both or none", t.A ? "A" : "Bt", t.A ? "Bt" : "A");
  if (!t.A) return adapter;
  const View Bt = op.tensor("Bt", t.Bt, {-1, -1, O}, dtype, Layout::slots);
  adapter.rank = Bt.size[1];
  adapter.ranks = check_ranks(op, p.part_ranks, p.part_scales, p.scale, parts, adapter.rank);
  const View A = op.tensor("A", t.A, {Bt.size[0], adapter.ranks.width, K}, dtype, Layout::slots);
  const View slots = op.tensor("slots", t.slots, {-1}, kI32);
  check_slots(op, slots, Bt.size[0], N);
  *low = op.output(t.low_name, t.low, {N, adapter.ranks.width}, dtype).data;
  adapter.A = A.data;
  adapter.A_stride = A.stride[0];
  adapter.Bt = Bt.data;
  adapter.Bt_stride = Bt.stride[0];
  adapter.slots = slots.as<int32_t>();
  adapter.streams = slots.size[0];
  return adapter;
}

}  // namespace

extern "C" {

int dynadapt_linear_forward(const DLTensor* x, const dynadapt_matrix* const* parts, int32_t part_count, const DLTensor* bias,
                            const DLTensor* A, const DLTensor* Bt, const DLTensor* slots, const DLTensor* u, const DLTensor* y,
                            const dynadapt_linear_params* params) {
  return guarded([&] {
    const Op op("linear_forward");
    const auto& p = op.params(params, offsetof(dynadapt_linear_params, part_ranks));
    LinearForward c{};
    const View in = op.tensor("x", x, {-1, -1}, kAct, Layout::rows);
    c.dtype = in.dtype;
    c.N = in.size[0];
    c.K = in.size[1];
    c.x = in.data;
    c.ldx = in.ld();
    c.O = check_parts(op, parts, part_count, c.K, c.dtype);
    c.parts = parts;
    c.part_count = part_count;
    c.bias = op.optional("bias", bias, {c.O}, c.dtype).data;
    c.adapter = check_adapter(op, {A, Bt, slots, u, "u"}, c.dtype, c.N, c.K, c.O, part_count, p, &c.u);
    c.y = op.output("y", y, {c.N, c.O}, c.dtype).data;
    if (c.N) linear_kernels_of(*parts[0]).forward(c);
  });
}

int dynadapt_linear_backward(const DLTensor* dy, const dynadapt_matrix* const* parts, int32_t part_count, const DLTensor* A,
                             const DLTensor* Bt, const DLTensor* slots, const DLTensor* dU, const DLTensor* dx,
                             const dynadapt_linear_params* params) {
  return guarded([&] {
    const Op op("linear_backward");
    const auto& p = op.params(params, offsetof(dynadapt_linear_params, part_ranks));
    LinearBackward c{};
    const View in = op.tensor("dy", dy, {-1, -1}, kAct);
    c.dtype = in.dtype;
    c.N = in.size[0];
    c.dy = in.data;
    c.O = check_parts(op, parts, part_count, -1, c.dtype);
    op.require(in.size[1] == c.O, "dy has shape [%lld, %lld], accepted is [any, %lld]", (ll)c.N, (ll)in.size[1], (ll)c.O);
    c.K = parts[0]->columns;
    c.parts = parts;
    c.part_count = part_count;
    c.adapter = check_adapter(op, {A, Bt, slots, dU, "dU"}, c.dtype, c.N, c.K, c.O, part_count, p, &c.dU);
    c.dx = op.optional_output("dx", dx, {c.N, c.K}, c.dtype).data;
    if (c.N && (c.dx || c.adapter.A)) linear_kernels_of(*parts[0]).backward(c);
  });
}

}  // extern "C"
