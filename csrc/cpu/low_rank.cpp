#include "cpu/low_rank.h"

#include <algorithm>

namespace dynadapt {

Ranks check_ranks(const Op& op, const int64_t* ranks, const float* scales, float scale, int parts, int64_t rank) {
  op.require(rank >= 1, "Bt has rank 0, accepted is at least 1");
  op.require(!ranks == !scales, "part_%s is given without part_%s, accepted are both or none", ranks ? "ranks" : "scales",
             ranks ? "scales" : "ranks");
  op.finite("scale", scale);
  if (!ranks) return equal_ranks(parts, rank, scale);
  op.array("part_ranks", ranks, parts);
  op.array("part_scales", scales, parts);
  Ranks out;
  for (int p = 0; p < parts; p++) {
    op.whole("part_ranks", ranks[p], 0, rank);
    out.add(p, ranks[p], op.finite("part_scales", scales[p]));
  }
  op.require(out.largest == rank, "part_ranks are at most %lld, accepted is that the largest is Bt's rank, %lld",
             (long long)out.largest, (long long)rank);
  return out;
}

void check_own_slots(const Op& op, const View& slots, int64_t limit, int64_t N) {
  const int64_t streams = slots.size[0];
  op.require(streams >= 1 && N % streams == 0, "slots has %lld entries for %lld rows, accepted is a divisor of the rows",
             (long long)streams, (long long)N);
  std::vector<int32_t> sorted(slots.as<int32_t>(), slots.as<int32_t>() + streams);
  std::sort(sorted.begin(), sorted.end());
  op.require(sorted.front() >= 0 && sorted.back() < limit, "slots has entries from %d to %d, accepted are 0 to %lld",
             sorted.front(), sorted.back(), (long long)limit - 1);
  const auto twice = std::adjacent_find(sorted.begin(), sorted.end());
  op.require(twice == sorted.end(), "slots has %d more than once, accepted are distinct slots",
             twice == sorted.end() ? 0 : *twice);
}

void check_slot_table(const Op& op, const SlotTable& t) {
  op.whole("slot_count", t.slots, 1, int64_t(1) << 30);
  op.array("slot_table", t.table, t.slots * (2 + t.parts));
  op.array("slot_scales", t.scales, t.slots * t.parts);
  for (int64_t slot = 0; slot < t.slots; slot++)
    for (int p = 0; p < t.parts; p++) {
      op.whole("slot_table", t.table[slot * (2 + t.parts) + 2 + p], 0, int64_t(1) << 20);
      op.finite("slot_scales", t.scales[slot * t.parts + p]);
    }
}

void check_slot_places(const Op& op, const SlotTable& t, int64_t a, int64_t bt) {
  typedef long long ll;
  for (int64_t slot = 0; slot < t.slots; slot++) {
    const Ranks ranks = t.ranks(slot);
    const int64_t rows[] = {ranks.width, ranks.largest}, columns[] = {t.K, t.O}, room[] = {a, bt};
    for (int of = 0; of < 2; of++) {
      const int64_t first = t.first(slot, of);
      const bool empty = !rows[of] || !columns[of];
      op.require(empty || (rows[of] <= room[of] / columns[of] && first >= 0 && first <= room[of] - rows[of] * columns[of]),
                 "slot_table has %s of slot %lld, [%lld, %lld], at element %lld, accepted is within its %lld elements",
                 of ? "Bt" : "A", (ll)slot, (ll)rows[of], (ll)columns[of], (ll)first, (ll)room[of]);
    }
  }
}

}  // namespace dynadapt
