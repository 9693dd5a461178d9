// Which rows of an adapter belong to which part of a layer.
#pragma once

#include "core/check.h"

namespace dynadapt {

constexpr int kMaxParts = 16;

/// One part's share: rows first .. first + rank - 1 of A (and such columns of u and dU), of its columns of Bt the upper `rank` rows.
struct PartRank {
  int64_t first = 0, rank = 0;
  float scale = 1;
};

struct Ranks {
  PartRank part[kMaxParts];
  int64_t width = 0;  // rows of A

  void add(int p, int64_t rank, float scale) {
    part[p] = {width, rank, scale};
    width += rank;
  }
};

inline Ranks equal_ranks(int parts, int64_t rank, float scale) {
  Ranks out;
  for (int p = 0; p < parts; p++) out.add(p, rank, scale);
  return out;
}

/// `ranks` and `scales` of each part, or both null: each has Bt's `rank` and `scale`.
Ranks check_ranks(const Op& op, const int64_t* ranks, const float* scales, float scale, int parts, int64_t rank);

}  // namespace dynadapt
