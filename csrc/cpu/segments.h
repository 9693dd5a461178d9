// The streams of a call whose layers keep a state: slots, and how many rows of each segment count.
#pragma once

#include "core/check.h"

namespace dynadapt {

struct Segments {
  /// For N rows; `state_slots`: how many slots the state has, -1 where there is none.
  Segments(const Op& op, const DLTensor* slots_tensor, const DLTensor* lengths_tensor, int64_t N, int64_t state_slots) {
    const View given = op.tensor("slots", slots_tensor, {-1}, kI32);
    op.require(given.size[0] >= 1 && N % given.size[0] == 0,
               "slots has %lld entries for %lld rows, accepted is a divisor of the rows", (long long)given.size[0], (long long)N);
    streams = given.size[0];
    segment = N / streams;
    slots = state_slots < 0 ? given.as<int32_t>() : op.indices32("slots", given, 0, state_slots);
    const View counts = op.optional("lengths", lengths_tensor, {streams}, kI32);
    if (counts) lengths = op.indices32("lengths", counts, 0, segment + 1);
  }

  int64_t streams, segment;
  const int32_t* slots;
  const int32_t* lengths = nullptr;
};

}  // namespace dynadapt
