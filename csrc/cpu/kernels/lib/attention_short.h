// Attention over short streams without memory, such as the prompts of in-context learning: where all queries of a stream are one block
// and no window ends anywhere (else a row's bits would depend on how long its neighbours are), a kv head is one task. Its thread packs
// what it needs, multiplies and writes, all in its first-level cache, and nothing is handed from one thread to another. Which streams
// go this way depends on the sizes of one stream.
#pragma once

#include "cpu/kernels/lib/attention_window.h"
#include "cpu/kernels/lib/transpose.h"

namespace dynadapt::DYN_ISA {

inline bool is_short(const AttentionShape& s, const AttentionPlan& p) {
  return !s.mem_k && p.blocks == 1 && s.window == kNoWindow;
}

/// Calls task(item, room) for each kv head of each stream; `bytes` of 64-byte aligned room for each thread.
template <class Task>
inline void for_short_heads(const AttentionShape& s, const AttentionPlan& p, size_t bytes, const Task& task) {
  const int64_t items = int64_t(s.streams) * p.kv_heads;
  const int threads = num_threads();
  char* rooms = static_cast<char*>(scratch(bytes * threads));
  TaskQueue queue(items);
  parallel(threads, items, [&](Team team) {
    for (Range r = queue.take(team.size); r.begin < r.end; r = queue.take(team.size))
      for (int64_t item = r.begin; item < r.end; item++) task(item, rooms + bytes * team.rank);
  });
}

template <class T>
struct ShortForward {
  ShortForward(void* base, const AttentionPlan& p) : width(round_up(p.segment, kNR)) {
    Arena arena(base);
    rows = arena.take<T>(p.segment * p.d);
    keys = arena.take<char>(panels_bytes<T>(p.segment, p.d));
    values = arena.take<char>(panels_bytes<T>(p.d, p.segment));
    scores = arena.take<float>(p.segment * width);
    probabilities = arena.take<T>(p.segment * width);
    out = arena.take<float>(p.segment * p.d);
    bytes = arena.used();
  }

  int64_t width;  // the segment, rounded up to a panel
  T* rows;        // [segment, d], rotated keys, then rotated queries of one head
  char *keys, *values;
  float* scores;     // [segment, width]
  T* probabilities;  // [segment, width]
  float* out;        // [segment, d], not yet divided by the sums
  size_t bytes;
};

/// One query head: rows of `out` and of lse.
template <class T>
inline void short_forward_head(const AttentionForward& a, const AttentionPlan& p, const Stream<T>& stream, int64_t index,
                               int64_t head, const ShortForward<T>& w) {
  const float scale = a.shape.scale * kLog2E;
  for (int64_t t = 0; t < p.segment; t++) rotate(a.shape, stream.query(p, head, t), t, 1.0f, p.d, w.rows + t * p.d);
  gemm(p.segment, w.width, p.d, w.rows, p.d, w.keys, w.scores, w.width, false);
  cap_scores(a.shape, w.scores, p.segment, w.width, w.width);
  float* lse = a.lse + (index * p.heads + head) * p.segment;
  alignas(64) float total[kWidth];
  alignas(64) float inverse[kMostQueries];
  for (int64_t t = 0; t < p.segment; t++) {
    const float* scores = w.scores + t * w.width;
    const float highest = row_maximum(scores, 0, t + 1)[0] * scale;
    store(total, vfloat{});
    exponentials(scores, 0, t + 1, round_up(p.segment, kWidth), scale, highest, w.probabilities + t * w.width, total);
    const float sums = sum(load(total));
    inverse[t] = 1.0f / sums;
    lse[t] = highest * kLn2 + __builtin_logf(sums);
  }
  gemm(p.segment, p.d, p.segment, w.probabilities, w.width, w.values, w.out, p.d, false);
  for (int64_t t = 0; t < p.segment; t++) {
    T* out = static_cast<T*>(a.out) + ((stream.row + t) * p.heads + head) * p.d;
    for_vectors(p.d, [&](size_t i, auto part) { store(out + i, load(w.out + t * p.d + i, part) * inverse[t], part); });
  }
}

template <class T>
void short_forward(const AttentionForward& a, const AttentionPlan& p) {
  for_short_heads(a.shape, p, ShortForward<T>(nullptr, p).bytes, [&](int64_t item, char* room) {
    const ShortForward<T> w(room, p);
    const int64_t index = item / p.kv_heads, kv = item % p.kv_heads;
    const Stream<T> stream(a.shape, p, a.qkv, index);
    for (int64_t j = 0; j < p.segment; j++) rotate(a.shape, stream.key(p, kv, j), j, 1.0f, p.d, w.rows + j * p.d);
    pack_nt(w.rows, p.d, p.segment, p.d, w.keys);
    pack_nn(stream.value(p, kv, 0), p.qkv_width, p.segment, p.d, w.values);
    for (int64_t h = 0; h < p.group; h++) short_forward_head(a, p, stream, index, kv * p.group + h, w);
  });
}

/// As in attention_backward.cpp, probabilities come again transposed: keys down, queries across.
template <class T>
struct ShortBackward {
  ShortBackward(void* base, const AttentionPlan& p) : width(round_up(p.segment, kNR)) {
    Arena arena(base);
    keys = arena.take<T>(p.segment * p.d);
    queries = arena.take<T>(p.segment * p.d);
    keys_nn = arena.take<char>(panels_bytes<T>(p.d, p.segment));
    q_nt = arena.take<char>(panels_bytes<T>(p.segment, p.d));
    dout_nt = arena.take<char>(panels_bytes<T>(p.segment, p.d));
    q_nn = arena.take<char>(panels_bytes<T>(p.d, p.segment));
    dout_nn = arena.take<char>(panels_bytes<T>(p.d, p.segment));
    lse = arena.take<float>(width);
    delta = arena.take<float>(width);
    scores = arena.take<float>(p.segment * width);
    dscores = arena.take<float>(p.segment * width);
    probabilities = arena.take<T>(p.segment * width);
    ds = arena.take<T>(width * width);
    turned = arena.take<Panel<T>>(width * width);
    dq = arena.take<float>(p.segment * p.d);
    dk = arena.take<float>(p.segment * p.d);
    dv = arena.take<float>(p.segment * p.d);
    bytes = arena.used();
  }

  int64_t width;
  T *keys, *queries;                      // [segment, d], rotated
  char* keys_nn;                          // packed, for dQ
  char *q_nt, *dout_nt, *q_nn, *dout_nn;  // packed, for S', dP', dK and dV
  float *lse, *delta;                     // [width]; lse in units of log2
  float *scores, *dscores;                // [keys, width]
  T *probabilities, *ds;                  // [keys, width]
  Panel<T>* turned;                       // [queries, width]: ds transposed
  float *dq, *dk, *dv;                    // [segment, d]
  size_t bytes;
};

/// P' and dS' of one key, which queries `key`.. see.
template <class T>
inline void short_softmax_row(const ShortBackward<T>& w, int64_t key, const AttentionShape& s) {
  const float log2_scale = s.scale * kLog2E;
  for (int64_t t = 0; t < w.width; t += kWidth) {
    const int64_t at = key * w.width + t;
    vfloat p = exp2_nonpositive(load(w.scores + at) * log2_scale - load(w.lse + t));
    vfloat ds = p * (load(w.dscores + at) - load(w.delta + t)) * s.scale;
    if (s.softcap > 0) ds *= score_slope(s, load(w.scores + at));
    if (t < key) {
      const vint hidden = lane_numbers() < int(smaller<int64_t>(kWidth, key - t));
      p = hidden ? vfloat{} : p;
      ds = hidden ? vfloat{} : ds;
    }
    store(w.probabilities + at, p);
    store(w.ds + at, ds);
  }
}

/// One query head: its dq, and what it adds to dk and dv (`first`: writes).
template <class T>
inline void short_backward_head(const AttentionBackward& a, const AttentionPlan& p, const Stream<T>& stream, int64_t index,
                                int64_t kv, int64_t head, bool first, const ShortBackward<T>& w) {
  const int64_t width = p.heads * p.d;
  const T* dout = static_cast<const T*>(a.dout) + stream.row * width + head * p.d;
  const T* out = static_cast<const T*>(a.out) + stream.row * width + head * p.d;
  for (int64_t t = 0; t < p.segment; t++) {
    rotate(a.shape, stream.query(p, head, t), t, 1.0f, p.d, w.queries + t * p.d);
    vfloat delta{};
    for_vectors(p.d, [&](size_t i, auto part) { delta += load(dout + t * width + i, part) * load(out + t * width + i, part); });
    w.delta[t] = sum(delta);
    w.lse[t] = a.lse[(index * p.heads + head) * p.segment + t] * kLog2E;
  }
  pack_nt(w.queries, p.d, p.segment, p.d, w.q_nt);
  pack_nn(w.queries, p.d, p.segment, p.d, w.q_nn);
  pack_nt(dout, width, p.segment, p.d, w.dout_nt);
  pack_nn(dout, width, p.segment, p.d, w.dout_nn);
  gemm(p.segment, w.width, p.d, w.keys, p.d, w.q_nt, w.scores, w.width, false);
  cap_scores(a.shape, w.scores, p.segment, w.width, w.width);
  gemm(p.segment, w.width, p.d, stream.value(p, kv, 0), p.qkv_width, w.dout_nt, w.dscores, w.width, false);
  for (int64_t j = 0; j < p.segment; j++) short_softmax_row(w, j, a.shape);
  assign(w.ds[0], 0.0f * to_float(w.ds[0]));  // the first query sees one key: see clear_lone_key
  gemm(p.segment, p.d, p.segment, w.probabilities, w.width, w.dout_nn, w.dv, p.d, !first);
  gemm(p.segment, p.d, p.segment, w.ds, w.width, w.q_nn, w.dk, p.d, !first);
  transpose(w.ds, w.width, w.width, w.width, w.turned, w.width);
  gemm<Panel<T>>(p.segment, p.d, p.segment, w.turned, w.width, w.keys_nn, w.dq, p.d, false);
  for (int64_t t = 0; t < p.segment; t++)
    rotate(a.shape, w.dq + t * p.d, t, -1.0f, p.d, static_cast<T*>(a.dqkv) + (stream.row + t) * p.qkv_width + head * p.d);
}

template <class T>
void short_backward(const AttentionBackward& a, const AttentionPlan& p) {
  for_short_heads(a.shape, p, ShortBackward<T>(nullptr, p).bytes, [&](int64_t item, char* room) {
    const ShortBackward<T> w(room, p);
    const int64_t index = item / p.kv_heads, kv = item % p.kv_heads;
    const Stream<T> stream(a.shape, p, a.qkv, index);
    for (int64_t j = 0; j < p.segment; j++) rotate(a.shape, stream.key(p, kv, j), j, 1.0f, p.d, w.keys + j * p.d);
    pack_nn(w.keys, p.d, p.segment, p.d, w.keys_nn);
    memset(w.lse + p.segment, 0, (w.width - p.segment) * sizeof(float));
    memset(w.delta + p.segment, 0, (w.width - p.segment) * sizeof(float));
    memset(static_cast<void*>(w.ds + p.segment * w.width), 0, (w.width - p.segment) * w.width * sizeof(T));
    for (int64_t h = 0; h < p.group; h++) short_backward_head(a, p, stream, index, kv, kv * p.group + h, h == 0, w);
    for (int64_t j = 0; j < p.segment; j++) {
      T* to = static_cast<T*>(a.dqkv) + (stream.row + j) * p.qkv_width + (p.heads + kv) * p.d;
      rotate(a.shape, w.dk + j * p.d, j, -1.0f, p.d, to);
      for_vectors(p.d, [&](size_t i, auto part) { store(to + p.kv_heads * p.d + i, load(w.dv + j * p.d + i, part), part); });
    }
  });
}

}  // namespace dynadapt::DYN_ISA
