// What the score and the gradient of a head with adapters share: its rows adapter by adapter, and what adapters add to logits.
#pragma once

#include "cpu/cross_entropy.h"
#include "cpu/kernels/lib/gemm.h"
#include "cpu/kernels/lib/vector_math.h"

namespace dynadapt::DYN_ISA {

/// Calls run(slot, from, to) for the rows [begin, end), those of one adapter at a time.
template <class Run>
inline void for_adapters(const HeadAdapters& a, int64_t begin, int64_t end, const Run& run) {
  for (int64_t from = begin, to; from < end; from = to) {
    for (to = from + 1; to < end && a.slots[to] == a.slots[from];) to++;
    run(int64_t(a.slots[from]), from, to);
  }
}

/// logits [to - from, ld] += scale u Bt for `columns` columns of the vocabulary from `column`, rows of one adapter; `panel` has room for
/// panel_size<T>(rank).
template <class T>
inline void add_adapted(const HeadAdapters& a, int64_t V, int64_t slot, int64_t from, int64_t to, int64_t column, int columns,
                        float* logits, int64_t ld, Panel<T>* panel) {
  pack_panel_nn(static_cast<const T*>(a.Bt) + slot * a.Bt_stride + column, V, columns, a.rank, panel);
  const RowTiles tiles(to - from);
  for (int64_t t = 0; t < tiles.count; t++) {
    const Term<T> term{static_cast<const T*>(a.u) + (from + tiles.begin(t)) * a.rank, a.rank, panel, a.rank, a.scale};
    multiply_tile(tiles.size(t), kNR, &term, 1, logits + tiles.begin(t) * ld, ld, Into::add);
  }
}

/// x [n] becomes cap tanh(x / cap); n counts whole vectors.
inline void cap_row(float* x, int64_t n, float cap) {
  const float inverse = 1.0f / cap;
  for (int64_t i = 0; i < n; i += kWidth) store(x + i, cap * hyperbolic_tangent(load(x + i) * inverse));
}

/// The derivative of a capped value in what it was made of, from the value itself; `inverse` = 1 / cap.
inline vfloat cap_slope(vfloat capped, float inverse) {
  const vfloat t = capped * inverse;
  return 1.0f - t * t;
}
inline float cap_slope(float capped, float inverse) {
  const float t = capped * inverse;
  return 1.0f - t * t;
}

}  // namespace dynadapt::DYN_ISA
