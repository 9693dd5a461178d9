// Attention forward, flash style: blocks of queries against blocks of keys, a running maximum and a rescaled sum, so
// that scores are never whole in memory. Keys are rotated and packed once per stream and kv head; blocks of keys that
// no query of the block may see, behind it or before its window, are not multiplied.
#include "cpu/kernels/lib/attention_short.h"

namespace dynadapt::DYN_ISA {
namespace {

constexpr int64_t kKeys = 128;  // keys in a block; a multiple of kNR

/// Rotated keys and values of one kv head of one stream, packed for q k^T and for p v.
template <class T>
struct PackedWindow {
  PackedWindow(void* base, int64_t d)
      : base_(static_cast<char*>(base)), key_bytes_(panels_bytes<T>(kKeys, d)), value_bytes_(panels_bytes<T>(d, kKeys)) {}
  static size_t bytes(int64_t window, int64_t d) {
    return (window + kKeys - 1) / kKeys * (panels_bytes<T>(kKeys, d) + panels_bytes<T>(d, kKeys));
  }
  char* keys(int64_t block) const { return base_ + block * (key_bytes_ + value_bytes_); }
  char* values(int64_t block) const { return keys(block) + key_bytes_; }

 private:
  char* base_;
  size_t key_bytes_, value_bytes_;
};

/// Packs block `b` of keys and values; `rows` holds kKeys * d elements.
template <class T>
void pack_block(const AttentionShape& s, const AttentionPlan& p, const Stream<T>& stream, int64_t kv, int64_t b, T* rows,
                const PackedWindow<T>& to) {
  const int64_t first = b * kKeys, count = smaller(kKeys, stream.memory + p.segment - first);
  for (int64_t j = 0; j < count; j++) rotate(s, stream.key(p, kv, first + j), first + j, 1.0f, p.d, rows + j * p.d);
  pack_nt(rows, p.d, count, p.d, to.keys(b));
  for (int64_t j = 0; j < count; j++) memcpy(rows + j * p.d, stream.value(p, kv, first + j), p.d * sizeof(T));
  pack_nn(rows, p.d, count, p.d, to.values(b));
}

/// What one thread works in.
template <class T>
struct Buffers {
  Buffers(Arena& arena, const AttentionPlan& p)
      : q(arena.take<T>(larger(p.stacked, kKeys) * p.d)),
        scores(arena.take<float>(p.stacked * kKeys)),
        probabilities(arena.take<T>(p.stacked * kKeys)),
        out(arena.take<float>(p.stacked * p.d)),
        highest(arena.take<float>(p.stacked)),
        factor(arena.take<float>(p.stacked)),
        total(arena.take<float>(p.stacked * kWidth)) {}

  T* q;              // [stacked, d], rotated; while packing, a block of keys
  float* scores;     // [stacked, kKeys]
  T* probabilities;  // [stacked, kKeys]
  float* out;        // [stacked, d], not yet divided by total
  float* highest;    // [stacked], running maximum of scores in units of log2
  float* factor;     // [stacked], a row's maximum in this block, then what its earlier sums are multiplied with
  float* total;      // [stacked, kWidth], running sums of 2^(score - highest)
};

/// Which keys of a block the rows of a block of queries see.
struct Visible {
  int64_t queries;  // rows of one head
  int64_t first;    // keys of the block that the first query sees; one more for each further query
  int64_t count;    // keys that the last one sees, at most the block
  int64_t window;
  int64_t of(int64_t query) const { return larger<int64_t>(0, smaller(count, first + query)); }
  int64_t from(int64_t query) const { return larger<int64_t>(0, first + query - window); }
};

/// Probabilities of a block of keys from its scores. Where a row's maximum grows, what was summed before shrinks.
template <class T>
void softmax(const AttentionPlan& p, const Visible& seen, float scale, bool first_block, const Buffers<T>& w) {
  const int64_t rows = p.group * seen.queries, width = round_up(seen.count, kWidth);
  for (int64_t h = 0, r = 0; h < p.group; h++)
    for (int64_t t = 0; t < seen.queries; t++, r++) w.factor[r] = row_maximum(w.scores + r * kKeys, seen.from(t), seen.of(t))[0];
  for (int64_t r = 0; r < rows; r += kWidth) {
    const vfloat before = load(w.highest + r), now = fast_maximum(before, load(w.factor + r) * scale);
    store(w.highest + r, now);
    store(w.factor + r, exp2_nonpositive(before - now));
  }
  for (int64_t h = 0, r = 0; h < p.group; h++) {
    for (int64_t t = 0; t < seen.queries; t++, r++) {
      float* total = w.total + r * kWidth;
      if (!first_block && w.factor[r] != 1.0f) {
        store(total, load(total) * w.factor[r]);
        float* out = w.out + r * p.d;
        for_vectors(p.d, [&](size_t i, auto part) { store(out + i, load(out + i, part) * w.factor[r], part); });
      }
      exponentials(w.scores + r * kKeys, seen.from(t), seen.of(t), width, scale, w.highest[r], w.probabilities + r * kKeys,
                   total);
    }
  }
}

/// One block of queries of one kv head: its output rows and their lse.
template <class T>
void query_block(const AttentionForward& a, const AttentionPlan& p, const Stream<T>& stream, int64_t index, int64_t kv, int64_t b,
                 const PackedWindow<T>& window, const Buffers<T>& w) {
  const AttentionShape& s = a.shape;
  const int64_t first = p.first_query(b), queries = p.queries(b), rows = p.group * queries;
  for (int64_t t = 0; t < queries; t++)
    for (int64_t h = 0; h < p.group; h++)
      rotate(s, stream.query(p, kv * p.group + h, first + t), stream.memory + first + t, 1.0f, p.d,
             w.q + (h * queries + t) * p.d);
  for (int64_t r = 0; r < rows; r++) store(w.total + r * kWidth, vfloat{});
  // The lowest number and not -inf: a row may see no key of the first block, and a difference of two infinities is none.
  for (int64_t r = 0; r < p.stacked; r++) w.highest[r] = w.factor[r] = -__FLT_MAX__;
  const int64_t visible = stream.memory + first + queries;  // to the block's last query
  const int64_t first_key = first_seen(s, stream.memory + first) / kKeys * kKeys;
  for (int64_t key = first_key; key < visible; key += kKeys) {
    const int64_t count = smaller(kKeys, visible - key), packed = smaller(kKeys, stream.memory + p.segment - key);
    gemm(rows, round_up(count, kNR), p.d, w.q, p.d, window.keys(key / kKeys), w.scores, kKeys, false);
    cap_scores(s, w.scores, rows, round_up(count, kNR), kKeys);
    softmax(p, {queries, stream.memory + first + 1 - key, count, s.window}, s.scale * kLog2E, key == first_key, w);
    gemm_first(rows, p.d, count, packed, w.probabilities, kKeys, window.values(key / kKeys), w.out, p.d, key > first_key);
  }
  for (int64_t t = 0; t < queries; t++) {
    for (int64_t h = 0; h < p.group; h++) {
      const int64_t head = kv * p.group + h, r = h * queries + t;
      T* out = static_cast<T*>(a.out) + ((stream.row + first + t) * p.heads + head) * p.d;
      const float total = sum(load(w.total + r * kWidth)), inverse = 1.0f / total;
      for_vectors(p.d, [&](size_t i, auto part) { store(out + i, load(w.out + r * p.d + i, part) * inverse, part); });
      a.lse[(index * p.heads + head) * p.segment + first + t] = w.highest[r] * kLn2 + __builtin_logf(total);
    }
  }
}

/// Streams [first, first + count): their windows are packed, then their blocks of queries are shared out, the ones
/// with most keys first.
template <class T>
void wave(const AttentionForward& a, const AttentionPlan& p, int threads, int64_t first, int64_t count, char* windows,
          size_t window_bytes, char* buffers, size_t buffer_bytes) {
  const int64_t heads = count * p.kv_heads, window_blocks = window_bytes / PackedWindow<T>::bytes(kKeys, p.d);
  TaskQueue blocks(heads * p.blocks);
  parallel(threads, heads * p.blocks, [&](Team team) {
    Arena arena(buffers + team.rank * buffer_bytes);
    const Buffers<T> mine(arena, p);
    const auto share = team.share(heads * window_blocks);
    for (int64_t item = share.begin; item < share.end; item++) {
      const int64_t head = item / window_blocks, b = item % window_blocks;
      const Stream<T> stream(a.shape, p, a.qkv, first + head / p.kv_heads);
      if (b * kKeys >= stream.memory + p.segment || (b + 1) * kKeys <= first_seen(a.shape, stream.memory)) continue;
      pack_block(a.shape, p, stream, head % p.kv_heads, b, mine.q, PackedWindow<T>(windows + head * window_bytes, p.d));
    }
    team.barrier();
    for (Range r = blocks.take(team.size, 1); r.begin < r.end; r = blocks.take(team.size, 1)) {
      const int64_t item = r.begin, b = p.blocks - 1 - item / heads, head = item % heads, index = first + head / p.kv_heads;
      const Stream<T> stream(a.shape, p, a.qkv, index);
      query_block(a, p, stream, index, head % p.kv_heads, b, PackedWindow<T>(windows + head * window_bytes, p.d), mine);
    }
  });
}

template <class T>
void forward(const AttentionForward& a) {
  const AttentionPlan p(a.shape);
  if (is_short(a.shape, p)) return short_forward<T>(a, p);
  const int threads = num_threads();
  const int64_t streams = wave_size(a.shape, threads);
  Arena measure;
  Buffers<T>(measure, p);
  const size_t window_bytes = PackedWindow<T>::bytes(longest_window(a.shape), p.d), buffer_bytes = measure.used();
  char* buffers = static_cast<char*>(scratch(threads * buffer_bytes + streams * p.kv_heads * window_bytes));
  char* windows = buffers + threads * buffer_bytes;
  for (int64_t first = 0; first < int64_t(a.shape.streams); first += streams)
    wave<T>(a, p, threads, first, smaller(streams, int64_t(a.shape.streams) - first), windows, window_bytes, buffers,
            buffer_bytes);
}

}  // namespace

const ByType<AttentionForwardKernels> attention_forward_kernels = {{forward<float>}, {forward<bf16>}};

}  // namespace dynadapt::DYN_ISA
