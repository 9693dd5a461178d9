#include "cpu/low_rank.h"

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
  int64_t largest = 0;
  for (int p = 0; p < parts; p++) {
    op.whole("part_ranks", ranks[p], 0, rank);
    out.add(p, ranks[p], op.finite("part_scales", scales[p]));
    largest = ranks[p] > largest ? ranks[p] : largest;
  }
  op.require(largest == rank, "part_ranks are at most %lld, accepted is that the largest is Bt's rank, %lld", (long long)largest,
             (long long)rank);
  return out;
}

}  // namespace dynadapt
