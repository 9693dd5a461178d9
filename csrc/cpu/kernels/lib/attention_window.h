// What attention's forward and backward share: where a stream's rows lie, rotation, and how the work is cut.
//
// Queries of all heads of a group are stacked into one operand, so that the keys and values of their shared head are
// multiplied with many rows at a time. How queries and keys are cut into blocks depends on the sizes of one stream
// only, never on the number of streams or threads.
#pragma once

#include "core/threads.h"
#include "cpu/attention.h"
#include "cpu/kernels/lib/gemm.h"
#include "cpu/kernels/lib/vector_math.h"

namespace dynadapt::DYN_ISA {

constexpr int64_t kMostQueries = 96;  // of all heads of a group in a block, where one head's 16 are not more already
constexpr float kLog2E = 1.44269504088896341f, kLn2 = 0.693147180559945309f;

/// The sizes that decide how work is cut.
struct AttentionPlan {
  explicit AttentionPlan(const AttentionShape& s)
      : segment(s.segment),
        heads(s.query_heads),
        kv_heads(s.kv_heads),
        group(s.query_heads / s.kv_heads),
        d(s.head_dim),
        qkv_width((heads + 2 * kv_heads) * d),
        block(larger<int64_t>(16, (kMostQueries / group + 8) / 16 * 16)),
        stacked(group * block),
        blocks((segment + block - 1) / block) {}

  int64_t first_query(int64_t b) const { return b * block; }
  int64_t queries(int64_t b) const { return smaller(block, segment - b * block); }

  int64_t segment, heads, kv_heads, group, d, qkv_width;
  int64_t block;    // queries of one head in a block
  int64_t stacked;  // rows of a full block: its queries for every head of the group
  int64_t blocks;   // blocks of queries in a segment
};

/// One stream's rows of activations and of memory.
template <class T>
struct Stream {
  Stream(const AttentionShape& s, const AttentionPlan& plan, const void* qkv, int64_t index)
      : row(index * plan.segment),
        slot(s.slots[index]),
        memory(s.mem_len ? s.mem_len[slot] : 0),
        memory_stride(plan.kv_heads * plan.d),
        qkv_stride(plan.qkv_width),
        qkv(static_cast<const T*>(qkv) + row * plan.qkv_width) {
    if (!s.mem_k) return;
    mem_k = static_cast<const T*>(s.mem_k) + slot * s.memory_capacity * memory_stride;
    mem_v = static_cast<const T*>(s.mem_v) + slot * s.memory_capacity * memory_stride;
  }

  /// Key or value of kv head `h` at window position `j`: memory first, then the segment.
  const T* key(const AttentionPlan& p, int64_t h, int64_t j) const {
    return j < memory ? mem_k + j * memory_stride + h * p.d : qkv + (j - memory) * qkv_stride + (p.heads + h) * p.d;
  }
  const T* value(const AttentionPlan& p, int64_t h, int64_t j) const {
    return j < memory ? mem_v + j * memory_stride + h * p.d : qkv + (j - memory) * qkv_stride + (p.heads + p.kv_heads + h) * p.d;
  }
  const T* query(const AttentionPlan& p, int64_t h, int64_t t) const { return qkv + t * qkv_stride + h * p.d; }

  int64_t row, slot, memory, memory_stride, qkv_stride;
  const T* qkv;
  const T* mem_k = nullptr;
  const T* mem_v = nullptr;
};

/// to = from rotated to window position `at`, or back from it where `direction` is -1; a copy without tables.
template <class From, class To>
inline void rotate(const AttentionShape& s, const From* from, int64_t at, float direction, int64_t d, To* to) {
  if (!s.cos) {
    for_vectors(d, [&](size_t i, auto part) { store(to + i, load(from + i, part), part); });
    return;
  }
  const int64_t half = d / 2;
  const float* cos = s.cos + at * half;
  const float* sin = s.sin + at * half;
  for_vectors(half, [&](size_t i, auto part) {
    const vfloat c = load(cos + i, part), r = direction * load(sin + i, part);
    const vfloat x1 = load(from + i, part), x2 = load(from + half + i, part);
    store(to + i, x1 * c - x2 * r, part);
    store(to + half + i, x2 * c + x1 * r, part);
  });
}

/// Streams go through in waves, so that scratch memory is bounded: enough for every one of `threads` to find work.
inline int64_t wave_size(const AttentionShape& s, int threads) {
  const int64_t wanted = (2 * threads + s.kv_heads - 1) / s.kv_heads;
  return smaller<int64_t>(s.streams, larger<int64_t>(1, wanted));
}

/// The longest window of any stream.
inline int64_t longest_window(const AttentionShape& s) {
  int64_t memory = 0;
  for (size_t i = 0; s.mem_len && i < s.streams; i++) memory = larger<int64_t>(memory, s.mem_len[s.slots[i]]);
  return memory + s.segment;
}

/// c [M, N] = a [M, K] B or +=, for the first K rows of a B that was packed with `packed` rows.
template <class T>
inline void gemm_first(int64_t M, int64_t N, int64_t K, int64_t packed, const T* a, int64_t lda, const void* panels, float* c,
                       int64_t ldc, bool accumulate) {
  const RowTiles rows(M);
  for (int64_t n = 0; n < N; n += kNR) {
    const Panel<T>* panel = static_cast<const Panel<T>*>(panels) + n / kNR * panel_size<T>(packed);
    const Term<T> term{a, lda, panel, K, 1.0f};
    for (int64_t t = 0; t < rows.count; t++)
      multiply_into(rows.size(t), int(smaller<int64_t>(kNR, N - n)), term.from_row(rows.begin(t)), c + rows.begin(t) * ldc + n,
                    ldc, accumulate);
  }
}

/// Products of queries and keys, [rows, ld] of which `columns` (whole vectors) count, become what the scale makes capped scores of: cap tanh(scale
/// x / cap) / scale. Without a cap they stay.
inline void cap_scores(const AttentionShape& s, float* scores, int64_t rows, int64_t columns, int64_t ld) {
  if (s.softcap == 0 || s.scale == 0) return;
  const float in = s.scale / s.softcap, out = s.softcap / s.scale;
  for (int64_t r = 0; r < rows; r++)
    for (int64_t j = 0; j < columns; j += kWidth)
      store(scores + r * ld + j, out * hyperbolic_tangent(load(scores + r * ld + j) * in));
}

/// The derivative of a capped score in the score, from what cap_scores has left.
inline vfloat score_slope(const AttentionShape& s, vfloat x) {
  const vfloat t = x * (s.scale / s.softcap);
  return 1.0f - t * t;
}

/// The first window position that a query at position `p` sees.
inline int64_t first_seen(const AttentionShape& s, int64_t p) { return larger<int64_t>(0, p - s.window + 1); }

/// The largest of one row's scores `from`..seen-1, in every lane; -inf where there are none.
inline vfloat row_maximum(const float* scores, int64_t from, int64_t seen) {
  const vfloat lowest = splat(-__builtin_inff());
  vfloat top[4] = {lowest, lowest, lowest, lowest};
  int64_t j = from / int64_t(kWidth) * int64_t(kWidth);
  if (j < from && j < seen) {
    const vfloat inside = lane_numbers() < int(smaller<int64_t>(kWidth, seen - j)) ? load(scores + j) : lowest;
    top[3] = lane_numbers() < int(from - j) ? lowest : inside;
    j += kWidth;
  }
  for (; j + 4 * kWidth <= seen; j += 4 * kWidth)
    for (int i = 0; i < 4; i++) top[i] = fast_maximum(top[i], load(scores + j + i * kWidth));
  for (; j + kWidth <= seen; j += kWidth) top[0] = fast_maximum(top[0], load(scores + j));
  if (j < seen) top[1] = lane_numbers() < int(seen - j) ? fast_maximum(top[1], load(scores + j)) : top[1];
  return largest_everywhere(fast_maximum(fast_maximum(top[0], top[1]), fast_maximum(top[2], top[3])));
}

/// 2^(score - highest) of one row's keys `from`..seen-1, zero before and beyond, up to `width`; added to `total` [kWidth].
template <class T>
inline void exponentials(const float* scores, int64_t from, int64_t seen, int64_t width, float scale, float highest,
                         T* probabilities, float* total) {
  const int64_t whole = seen / kWidth * kWidth;
  vfloat sums = load(total);
  int64_t j = 0;
  for (; j + int64_t(kWidth) <= from && j < width; j += kWidth) store(probabilities + j, vfloat{});
  if (j < from && j < width) {
    const vfloat e = exp2_nonpositive(load(scores + j) * scale - highest);
    const vfloat inside = lane_numbers() < int(smaller<int64_t>(kWidth, seen - j)) ? e : vfloat{};
    const vfloat kept = lane_numbers() < int(from - j) ? vfloat{} : inside;
    store(probabilities + j, kept);
    sums += kept;
    j += kWidth;
  }
  for (; j < whole; j += kWidth) {
    const vfloat e = exp2_nonpositive(load(scores + j) * scale - highest);
    store(probabilities + j, e);
    sums += e;
  }
  for (; j < width; j += kWidth) {
    const vfloat e = exp2_nonpositive(load(scores + j) * scale - highest);
    const vfloat kept = lane_numbers() < int(seen - j) ? e : vfloat{};
    store(probabilities + j, kept);
    sums += kept;
  }
  store(total, sums);
}

}  // namespace dynadapt::DYN_ISA
