// The C entry point of the adapters' gradient: arguments are checked here, and nowhere below.
#include "cpu/lora_gradient.h"

#include <algorithm>
#include <cstddef>
#include <utility>
#include <vector>

#include "cpu/linear.h"

using namespace dynadapt;

namespace {

typedef long long ll;

struct GradientTensors {
  const DLTensor *dA, *dBt, *slots;
};

/// Every slot has the ranks that the parts have.
void alike_gradients(const Op& op, const GradientTensors& t, const dynadapt_lora_gradient_params& p, LoraGradient& c) {
  const View Bt = op.output("dBt", t.dBt, {-1, -1, c.O}, kF32, Layout::slots);
  const Ranks ranks = check_ranks(op, p.part_ranks, p.part_scales, p.scale, p.part_count, Bt.size[1]);
  const View A = op.output("dA", t.dA, {Bt.size[0], ranks.width, c.K}, kF32, Layout::slots);
  const View slots = op.tensor("slots", t.slots, {-1}, kI32);
  check_own_slots(op, slots, Bt.size[0], c.N);
  c.low_width = ranks.width;
  for (int64_t s = 0; s < slots.size[0]; s++) {
    const int64_t slot = slots.as<int32_t>()[s];
    c.gradients.push_back({A.as<float>() + slot * A.stride[0], Bt.as<float>() + slot * Bt.stride[0], ranks});
  }
}

/// No two gradients of a call have an element in common.
void check_apart(const Op& op, const LoraGradient& c) {
  std::vector<std::pair<const float*, const float*>> written;
  for (const auto& one : c.gradients) {
    if (one.ranks.width && c.K) written.push_back({one.A, one.A + one.ranks.width * c.K});
    if (one.ranks.largest) written.push_back({one.Bt, one.Bt + one.ranks.largest * c.O});
  }
  std::sort(written.begin(), written.end());
  for (size_t i = 1; i < written.size(); i++)
    op.require(written[i - 1].second <= written[i].first,
               "slot_table has adapters of the call that overlap, accepted are elements of their own for each A and Bt");
}

/// Each slot has its own.
void own_gradients(const Op& op, const GradientTensors& t, const dynadapt_lora_gradient_params& p, LoraGradient& c) {
  const SlotTable table{p.slot_count, p.slot_table, p.slot_scales, p.part_count, c.K, c.O};
  check_slot_table(op, table);
  const View A = op.output("dA", t.dA, {-1}, kF32), Bt = op.output("dBt", t.dBt, {-1}, kF32, Layout::contiguous, {"dA"});
  check_slot_places(op, table, A.size[0], Bt.size[0]);
  const View slots = op.tensor("slots", t.slots, {-1}, kI32);
  check_own_slots(op, slots, table.slots, c.N);
  for (int64_t s = 0; s < slots.size[0]; s++) {
    const int64_t slot = slots.as<int32_t>()[s];
    c.gradients.push_back({A.as<float>() + table.first(slot, 0), Bt.as<float>() + table.first(slot, 1), table.ranks(slot)});
  }
  c.low_width = c.gradients.widest();
  check_apart(op, c);
}

}  // namespace

extern "C" int dynadapt_lora_gradient(const DLTensor* dy, const DLTensor* x, const DLTensor* u, const DLTensor* dU,
                                      const DLTensor* slots, const DLTensor* dA, const DLTensor* dBt,
                                      const dynadapt_lora_gradient_params* params) {
  return guarded([&] {
    const Op op("lora_gradient");
    const auto& p = op.params(params, offsetof(dynadapt_lora_gradient_params, part_ranks));
    LoraGradient c{};
    const View y = op.tensor("dy", dy, {-1, -1}, kAct);
    c.dtype = y.dtype;
    c.N = y.size[0];
    c.O = y.size[1];
    const View in = op.tensor("x", x, {c.N, -1}, c.dtype);
    c.K = in.size[1];
    op.whole("part_count", p.part_count, 1, kMaxParts);
    op.array("part_sizes", p.part_sizes, p.part_count);
    int64_t total = 0;
    for (int i = 0; i < p.part_count; i++) {
      op.require(p.part_sizes[i] >= 1 && p.part_sizes[i] <= c.O, "part_sizes[%d] is %lld, accepted is 1 to the width of dy, %lld",
                 i, (ll)p.part_sizes[i], (ll)c.O);
      total += p.part_sizes[i];
    }
    op.require(total == c.O, "part_sizes add up to %lld, accepted is the width of dy, %lld", (ll)total, (ll)c.O);
    p.slot_count ? own_gradients(op, {dA, dBt, slots}, p, c) : alike_gradients(op, {dA, dBt, slots}, p, c);
    c.dy = y.data;
    c.x = in.data;
    const View low = op.tensor("u", u, {c.N, p.slot_count ? -1 : c.low_width}, c.dtype);
    op.require(low.size[1] >= c.low_width, "u has %lld columns, accepted is at least %lld, the most rows of a slot's A",
               (ll)low.size[1], (ll)c.low_width);
    c.low_width = low.size[1];
    c.u = low.data;
    c.dU = op.tensor("dU", dU, {c.N, c.low_width}, c.dtype).data;
    c.part_sizes = p.part_sizes;
    c.part_count = p.part_count;
    c.accumulate = p.accumulate;
    kernels<LoraGradientKernels>().gradient(c);
  });
}
