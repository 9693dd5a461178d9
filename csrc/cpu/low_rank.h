// Which rows of an adapter belong to which part of a layer, and where each stream's adapter lies.
#pragma once

#include <vector>

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
  int64_t width = 0;    // rows of A
  int64_t largest = 0;  // rows of Bt

  void add(int p, int64_t rank, float scale) {
    part[p] = {width, rank, scale};
    width += rank;
    if (rank > largest) largest = rank;
  }
};

inline Ranks equal_ranks(int parts, int64_t rank, float scale) {
  Ranks out;
  for (int p = 0; p < parts; p++) out.add(p, rank, scale);
  return out;
}

/// One stream's adapter, or its gradient: A [ranks.width, K] and Bt [ranks.largest, O]. Of width 0 where it has none.
template <class Pointer>
struct StreamPair {
  Pointer A, Bt;
  Ranks ranks;
};

/// Those of a call's streams, in order. Rows i * N / streams.. of the call belong to stream i.
template <class Pointer>
struct StreamPairs : std::vector<StreamPair<Pointer>> {
  int64_t streams() const { return this->empty() ? 1 : int64_t(this->size()); }
  /// The most rows of A, and columns of u and dU, that a stream has.
  int64_t widest() const {
    int64_t most = 0;
    for (const auto& one : *this) most = one.ranks.width > most ? one.ranks.width : most;
    return most;
  }
  /// The largest rank that a stream has in part p; p < 0: in any.
  int64_t largest(int p = -1) const {
    int64_t most = 0;
    for (const auto& one : *this) {
      const int64_t rank = p < 0 ? one.ranks.largest : one.ranks.part[p].rank;
      most = rank > most ? rank : most;
    }
    return most;
  }
};

/// `ranks` and `scales` of each part, or both null: each has Bt's `rank` and `scale`.
Ranks check_ranks(const Op& op, const int64_t* ranks, const float* scales, float scale, int parts, int64_t rank);

/// Checks the slots that a gradient is written to: two streams can't write to one.
void check_own_slots(const Op& op, const View& slots, int64_t limit, int64_t N);

/// What a caller says of adapters that are each slot's own (dynadapt_linear_params.slot_table).
struct SlotTable {
  int64_t slots;
  const int64_t* table;  // [slots, 2 + parts]
  const float* scales;   // [slots, parts]
  int parts;
  int64_t K, O;

  int64_t first(int64_t slot, int of) const { return table[slot * (2 + parts) + of]; }  // element of A (0) or Bt (1)
  Ranks ranks(int64_t slot) const {
    Ranks out;
    for (int p = 0; p < parts; p++) out.add(p, table[slot * (2 + parts) + 2 + p], scales[slot * parts + p]);
    return out;
  }
};

/// Checks that the table is there, and each rank and scale.
void check_slot_table(const Op& op, const SlotTable& table);
/// Checks that every slot's adapter lies within a buffer of `a` elements (A) and one of `bt` (Bt).
void check_slot_places(const Op& op, const SlotTable& table, int64_t a, int64_t bt);

}  // namespace dynadapt
