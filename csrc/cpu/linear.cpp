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

/// The adapters of a call, and its low-rank activations through `low` and `low_width`.
struct CheckedAdapters {
  const Op& op;
  const DLTensor *A, *Bt, *slots, *low;  // low: u or dU
  const char* low_name;
  DType dtype;
  int64_t N, K, O;
  int parts;

  StreamAdapters check(const dynadapt_linear_params& p, void** low_data, int64_t* low_width) const {
    op.require(!A == !Bt, "%s is given without %s, accepted are both or none", A ? "A" : "Bt", A ? "Bt" : "A");
    if (!A) return {};
    return p.slot_count ? own(p, low_data, low_width) : alike(p, low_data, low_width);
  }

 private:
  const int32_t* slot_numbers(int64_t limit, int64_t* streams) const {
    const View which = op.tensor("slots", slots, {-1}, kI32);
    check_slots(op, which, limit, N);
    *streams = which.size[0];
    return which.as<int32_t>();
  }

  const void* at(const View& view, int64_t element) const {
    return static_cast<const char*>(view.data) + element * (dtype == kF32 ? 4 : 2);
  }

  /// Every slot has the ranks that the parts have.
  StreamAdapters alike(const dynadapt_linear_params& p, void** low_data, int64_t* low_width) const {
    const View b = op.tensor("Bt", Bt, {-1, -1, O}, dtype, Layout::slots);
    const Ranks ranks = check_ranks(op, p.part_ranks, p.part_scales, p.scale, parts, b.size[1]);
    const View a = op.tensor("A", A, {b.size[0], ranks.width, K}, dtype, Layout::slots);
    int64_t streams;
    const int32_t* which = slot_numbers(b.size[0], &streams);
    *low_width = ranks.width;
    *low_data = op.output(low_name, low, {N, ranks.width}, dtype).data;
    StreamAdapters out;
    out.reserve(size_t(streams));
    for (int64_t s = 0; s < streams; s++) out.push_back({at(a, which[s] * a.stride[0]), at(b, which[s] * b.stride[0]), ranks});
    return out;
  }

  /// Each slot has its own.
  StreamAdapters own(const dynadapt_linear_params& p, void** low_data, int64_t* low_width) const {
    const SlotTable table{p.slot_count, p.slot_table, p.slot_scales, parts, K, O};
    check_slot_table(op, table);
    const View a = op.tensor("A", A, {-1}, dtype), b = op.tensor("Bt", Bt, {-1}, dtype);
    check_slot_places(op, table, a.size[0], b.size[0]);
    int64_t streams;
    const int32_t* which = slot_numbers(table.slots, &streams);
    StreamAdapters out;
    out.reserve(size_t(streams));
    for (int64_t s = 0; s < streams; s++)
      out.push_back({at(a, table.first(which[s], 0)), at(b, table.first(which[s], 1)), table.ranks(which[s])});
    const View wide = op.output(low_name, low, {N, -1}, dtype);
    *low_width = wide.size[1];
    *low_data = wide.data;
    op.require(*low_width >= out.widest(), "%s has %lld columns, accepted is at least %lld, the most rows of a slot's A",
               low_name, (long long)*low_width, (long long)out.widest());
    return out;
  }
};

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
    c.adapters = CheckedAdapters{op, A, Bt, slots, u, "u", c.dtype, c.N, c.K, c.O, part_count}.check(p, &c.u, &c.low_width);
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
    c.adapters = CheckedAdapters{op, A, Bt, slots, dU, "dU", c.dtype, c.N, c.K, c.O, part_count}.check(p, &c.dU, &c.low_width);
    c.dx = op.optional_output("dx", dx, {c.N, c.K}, c.dtype).data;
    if (c.N && (c.dx || !c.adapters.empty())) linear_kernels_of(*parts[0]).backward(c);
  });
}

}  // extern "C"
