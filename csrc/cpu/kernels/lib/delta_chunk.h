// What forward and backward of the gated delta rule share: one chunk of tokens as products of matrices.
//
// In a chunk, G_i is the sum of g up to token i and D_ij = e^(G_i - G_j) for j <= i. With k of length 1, q of length `scale` (rows of K, Q), S the state
// ahead of the chunk and W the writes of its tokens (rows w_i = beta_i (v_i - what the state before i reads by k_i)):
//
//   (I + A) W = diag(beta) (V - e^G K S)      A_ij = beta_i D_ij k_i.k_j, j < i
//   O = e^G Q S + P W                         P_ij = D_ij q_i.k_j, j <= i
//   S' = e^(G_end) S + (e^(G_end - G) K)' W
//
// All that is as wide as values lies in panels of kNR columns (see gemm.h), the state too: a product's result is the next one's
// operand, and a panel of the state stays in the first level of the cache. Everything is float32. How tokens are cut does not depend
// on the number of streams or threads, and a token's result not on those behind it.
#pragma once

#include "core/threads.h"
#include "cpu/delta_rule.h"
#include "cpu/kernels/lib/gemm.h"
#include "cpu/kernels/lib/rows.h"
#include "cpu/kernels/lib/transpose.h"

namespace dynadapt::DYN_ISA {

constexpr int64_t kChunk = 64;
constexpr int64_t kSquare = kChunk * kChunk;

/// The sizes of a call.
struct DeltaPlan {
  explicit DeltaPlan(const DeltaRuleInputs& in)
      : segment(in.segment),
        group(in.value_heads / in.key_heads),
        dk(in.key_dim),
        dv(in.value_dim),
        values(in.value_heads * dv),
        keys(in.key_heads * dk),
        width(2 * keys + values),
        panels(panel_count(dv)),
        state(dk * panels * kNR),
        chunks((segment + kChunk - 1) / kChunk),
        scale(in.scale),
        eps(in.eps) {}

  int columns(int64_t panel) const { return int(smaller<int64_t>(kNR, dv - panel * kNR)); }

  int64_t segment, group, dk, dv;
  int64_t values, keys, width;  // of a row: its values, its keys, all of qkv
  int64_t panels, state;        // of values; elements of a head's state
  int64_t chunks;
  float scale, eps;
};

/// c [M, kNR] = (or +=) the sum of terms, one panel. Columns beyond `columns` hold nothing that is used.
inline void into_panel(int64_t M, int columns, const Term<float>* terms, int count, float* c, Into into) {
  Term<float> here[2];
  const RowTiles tiles(M);
  for (int64_t t = 0; t < tiles.count; t++) {
    for (int i = 0; i < count; i++) here[i] = terms[i].from_row(tiles.begin(t));
    multiply_tile(tiles.size(t), columns, here, count, c + tiles.begin(t) * kNR, kNR, into);
  }
}

/// Calls body(column) for every vector of `columns` columns of a panel.
template <class Body>
inline void for_panel(int columns, const Body& body) {
  for (int c = 0; c < columns; c += kWidth) body(c);
}

/// x = (I + A)^-1 x for one panel of n rows; `minus_a` [kChunk, kChunk]. Rows go in blocks, each at its own place.
inline void solve(const float* minus_a, int64_t n, int columns, float* x) {
  for (int64_t b = 0; b < n; b += kMR) {
    const int rows = int(smaller<int64_t>(kMR, n - b));
    const Term<float> before{minus_a + b * kChunk, kChunk, x, b, 1.0f};
    if (b) multiply_tile(rows, columns, &before, 1, x + b * kNR, kNR, Into::add);
    for (int64_t i = b + 1; i < b + rows; i++)
      for_panel(columns, [&](int c) {
        vfloat sum = load(x + i * kNR + c);
        for (int64_t j = b; j < i; j++) sum += minus_a[i * kChunk + j] * load(x + j * kNR + c);
        store(x + i * kNR + c, sum);
      });
  }
}

/// x = (I + A')^-1 x, A' the transpose; `minus_at` [kChunk, kChunk] is that of minus_a.
inline void solve_transposed(const float* minus_at, int64_t n, int columns, float* x) {
  for (int64_t b = (n - 1) / kMR * kMR; b >= 0; b -= kMR) {
    const int64_t end = smaller<int64_t>(n, b + kMR);
    const Term<float> behind{minus_at + b * kChunk + end, kChunk, x + end * kNR, n - end, 1.0f};
    if (end < n) multiply_tile(int(end - b), columns, &behind, 1, x + b * kNR, kNR, Into::add);
    for (int64_t i = end - 2; i >= b; i--)
      for_panel(columns, [&](int c) {
        vfloat sum = load(x + i * kNR + c);
        for (int64_t j = i + 1; j < end; j++) sum += minus_at[i * kChunk + j] * load(x + j * kNR + c);
        store(x + i * kNR + c, sum);
      });
  }
}

/// Queries and keys of one chunk of one key head: what all its value heads share.
struct KeyChunk {
  KeyChunk(Arena& arena, const DeltaPlan& p)
      : q(arena.take<float>(kChunk * p.dk)),
        k(arena.take<float>(kChunk * p.dk)),
        packed(arena.take<char>(panels_bytes<float>(kChunk, p.dk))),
        kk(arena.take<float>(kSquare)),
        qk(arena.take<float>(kSquare)) {}

  /// `row`: the first token's qkv, at this head's query.
  template <class T>
  void load_tokens(const DeltaPlan& p, const T* row, int64_t tokens) {
    n = tokens;
    for (int64_t t = 0; t < n; t++) {
      q_inverse[t] = unit(row + t * p.width, p.eps, p.dk, q + t * p.dk);
      k_inverse[t] = unit(row + t * p.width + p.keys, p.eps, p.dk, k + t * p.dk);
    }
    pack_nt(k, p.dk, n, p.dk, packed);
    gemm(n, n, p.dk, k, p.dk, packed, kk, kChunk, false);
    gemm(n, n, p.dk, q, p.dk, packed, qk, kChunk, false);
  }

  int64_t n = 0;
  float *q, *k;                                // [n, dk], of length 1
  char* packed;                                // k for products with its transpose
  float *kk, *qk;                              // [n, kChunk]
  float q_inverse[kChunk], k_inverse[kChunk];  // 1 / length

 private:
  template <class T>
  static float unit(const T* from, float eps, int64_t d, float* to) {
    const float inverse = 1.0f / __builtin_sqrtf(dot(from, from, d) + eps);
    for_vectors(d, [&](size_t i, auto part) { store(to + i, load(from + i, part) * inverse, part); });
    return inverse;
  }
};

/// The gates of one chunk of one value head, and the matrices made of them.
struct Gates {
  explicit Gates(Arena& arena)
      : decay(arena.take<float>(kSquare)), minus_a(arena.take<float>(kSquare)), p(arena.take<float>(kSquare)) {}

  /// `g`, `b`: of the first token, `stride` apart.
  void load_gates(const float* g, const float* b, int64_t stride, float scale, const KeyChunk& chunk) {
    // The sums may be large where the differences that count are small: they are kept in two floats.
    alignas(64) float high[kChunk] = {}, low[kChunk] = {};
    double total = 0;
    for (int64_t t = 0; t < chunk.n; t++) {
      total += g[t * stride] < -2000.0f ? -2000.0f : g[t * stride];  // e^-2000 is 0 as that of less is
      high[t] = float(total);
      low[t] = float(total - double(high[t]));
      beta[t] = b[t * stride];
    }
    const float end = high[chunk.n - 1], end_low = low[chunk.n - 1];
    for (int64_t t = 0; t < kChunk; t += kWidth) {
      store(from_start + t, exponential(load(high + t)));
      store(to_end + t, exponential((end - load(high + t)) + (end_low - load(low + t))));
    }
    whole = from_start[chunk.n - 1];
    for (int64_t i = 0; i < chunk.n; i++)
      for (int64_t j = 0; j < chunk.n; j += kWidth) {
        const int64_t at = i * kChunk + j;
        const vint column = lane_numbers() + int(j);
        const vfloat e = exponential((high[i] - load(high + j)) + (low[i] - load(low + j)));
        const vfloat seen = column <= int(i) ? e : vfloat{};
        store(decay + at, seen);
        store(p + at, column <= int(i) ? scale * seen * load(chunk.qk + at) : vfloat{});
        store(minus_a + at, column < int(i) ? -beta[i] * seen * load(chunk.kk + at) : vfloat{});
      }
  }

  alignas(64) float beta[kChunk], from_start[kChunk], to_end[kChunk];  // beta, e^G, e^(G_end - G)
  float whole;                                                         // e^G_end
  float *decay, *minus_a, *p;                                          // [n, kChunk]: D, -A, P
};

/// to [n, d] = from times a factor for each row, and one for all.
inline void scale_rows(const float* from, const float* factors, float scale, int64_t n, int64_t d, float* to) {
  for (int64_t t = 0; t < n; t++) {
    const float factor = factors[t] * scale;
    for_vectors(d, [&](size_t i, auto part) { store(to + t * d + i, load(from + t * d + i, part) * factor, part); });
  }
}

/// What a pass over the chunks wants of each, beside the state behind it; null where it does not.
template <class T>
struct ChunkOutputs {
  T* out;         // rows `stride` apart
  float* lacks;   // [n, dv]: v - e^G K S, which beta multiplies
  float* writes;  // [n, dv]: W
};

/// Scratch of one value head in one chunk.
struct HeadWork {
  HeadWork(Arena& arena, const DeltaPlan& p)
      : scaled(arena.take<float>(kChunk * p.dk)),
        queries(arena.take<float>(kChunk * p.dk)),
        turned(arena.take<float>(kChunk * p.dk)),
        panel(arena.take<float>(kChunk * kNR)) {}

  float *scaled, *queries;  // [n, dk]: keys, queries times a factor of each row
  float* turned;            // [dk, kChunk]
  float* panel;             // [n, kNR]
};

/// One value head over one chunk: `state` [panels][dk][kNR] goes from ahead of it to behind it. `values`: of the first token.
template <class T>
void advance(const DeltaPlan& p, const KeyChunk& chunk, const Gates& gates, const T* values, float* state, const HeadWork& w,
             const ChunkOutputs<T>& want) {
  const int64_t n = chunk.n;
  scale_rows(chunk.k, gates.to_end, 1.0f, n, p.dk, w.scaled);
  transpose(w.scaled, p.dk, n, p.dk, w.turned, kChunk);
  scale_rows(chunk.k, gates.from_start, 1.0f, n, p.dk, w.scaled);
  if (want.out) scale_rows(chunk.q, gates.from_start, p.scale, n, p.dk, w.queries);
  for (int64_t b = 0; b < p.panels; b++) {
    float* const s = state + b * p.dk * kNR;
    const int columns = p.columns(b);
    const Term<float> read{w.scaled, p.dk, s, p.dk, 1.0f};
    into_panel(n, columns, &read, 1, w.panel, Into::write);
    for (int64_t t = 0; t < n; t++)
      for_vectors(columns, [&](size_t c, auto part) {
        const vfloat lack = load(values + t * p.width + b * kNR + c, part) - load(w.panel + t * kNR + c);
        if (want.lacks) store(want.lacks + t * p.dv + b * kNR + c, lack, part);
        store(w.panel + t * kNR + c, gates.beta[t] * keep(lack, part));
      });
    solve(gates.minus_a, n, columns, w.panel);
    if (want.writes)
      for (int64_t t = 0; t < n; t++)
        for_vectors(columns,
                    [&](size_t c, auto part) { store(want.writes + t * p.dv + b * kNR + c, load(w.panel + t * kNR + c), part); });
    if (want.out)
      for (int64_t t = 0; t < n; t += kMR) {
        const int rows = int(smaller<int64_t>(kMR, n - t));
        alignas(64) float sums[kMR * kNR];
        const Term<float> terms[2] = {{w.queries + t * p.dk, p.dk, s, p.dk, 1.0f},
                                      {gates.p + t * kChunk, kChunk, w.panel, t + rows, 1.0f}};
        multiply_tile(rows, columns, terms, 2, sums, kNR, Into::write);
        store_rounded<T>(rows, columns, sums, nullptr, want.out + t * p.values + b * kNR, p.values);
      }
    for (int64_t i = 0; i < p.dk; i++)
      for_panel(columns, [&](int c) { store(s + i * kNR + c, load(s + i * kNR + c) * gates.whole); });
    const Term<float> write{w.turned, kChunk, w.panel, n, 1.0f};
    into_panel(p.dk, columns, &write, 1, s, Into::add);
  }
}

/// The state of value head `head` that stream `index` starts from, in panels.
inline void load_state(const DeltaRuleInputs& in, const DeltaPlan& p, int64_t index, int64_t head, float* to) {
  if (!in.state) {
    memset(to, 0, p.state * sizeof(float));
    return;
  }
  pack_nn(in.state + (in.slots[index] * int64_t(in.value_heads) + head) * p.dk * p.dv, p.dv, p.dk, p.dv, to);
}

/// Calls task(stream, key head, room) for each key head of each stream; `bytes` of 64-byte aligned room for each thread.
template <class Task>
inline void for_key_heads(const DeltaRuleInputs& in, size_t bytes, const Task& task) {
  const int64_t heads = int64_t(in.key_heads), items = int64_t(in.streams) * heads;
  const int threads = num_threads();
  char* rooms = static_cast<char*>(scratch(bytes * threads));
  TaskQueue queue(items);
  parallel(threads, items, [&](Team team) {
    for (Range r = queue.take(team.size, 1); r.begin < r.end; r = queue.take(team.size, 1))
      for (int64_t item = r.begin; item < r.end; item++) task(item / heads, item % heads, rooms + bytes * team.rank);
  });
}

inline int64_t length_of(const DeltaRuleInputs& in, int64_t stream) {
  return in.lengths ? in.lengths[stream] : int64_t(in.segment);
}

}  // namespace dynadapt::DYN_ISA
