// The C entry point of the adapters' gradient: arguments are checked here, and nowhere below.
#include "cpu/lora_gradient.h"

#include <algorithm>
#include <cstddef>
#include <vector>

#include "cpu/linear.h"

using namespace dynadapt;

namespace {

typedef long long ll;

/// The slots a gradient is written to; two streams can't write to one.
void check_own_slots(const Op& op, const View& slots, int64_t limit, int64_t N) {
  const int64_t streams = slots.size[0];
  op.require(streams >= 1 && N % streams == 0, "slots has %lld entries for %lld rows, accepted is a divisor of the rows",
             (ll)streams, (ll)N);
  std::vector<int32_t> sorted(slots.as<int32_t>(), slots.as<int32_t>() + streams);
  std::sort(sorted.begin(), sorted.end());
  op.require(sorted.front() >= 0 && sorted.back() < limit, "slots has entries from %d to %d, accepted are 0 to %lld",
             sorted.front(), sorted.back(), (ll)limit - 1);
  const auto twice = std::adjacent_find(sorted.begin(), sorted.end());
  op.require(twice == sorted.end(), "slots has %d more than once, accepted are distinct slots",
             twice == sorted.end() ? 0 : *twice);
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

    const View Bt = op.output("dBt", dBt, {-1, -1, c.O}, kF32, Layout::slots);
    c.rank = Bt.size[1];
    c.ranks = check_ranks(op, p.part_ranks, p.part_scales, p.scale, p.part_count, c.rank);
    const int64_t width = c.ranks.width;
    const View A = op.output("dA", dA, {Bt.size[0], width, c.K}, kF32, Layout::slots);
    const View s = op.tensor("slots", slots, {-1}, kI32);
    check_own_slots(op, s, Bt.size[0], c.N);
    c.dy = y.data;
    c.x = in.data;
    c.u = op.tensor("u", u, {c.N, width}, c.dtype).data;
    c.dU = op.tensor("dU", dU, {c.N, width}, c.dtype).data;
    c.part_sizes = p.part_sizes;
    c.part_count = p.part_count;
    c.slots = s.as<int32_t>();
    c.streams = s.size[0];
    c.accumulate = p.accumulate;
    c.dA = A.as<float>();
    c.dA_stride = A.stride[0];
    c.dBt = Bt.as<float>();
    c.dBt_stride = Bt.stride[0];
    kernels<LoraGradientKernels>().gradient(c);
  });
}
