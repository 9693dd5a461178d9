// Attention forward, flash style: blocks of queries against blocks of keys, a running maximum and a rescaled sum, so
// that scores are never whole in memory. Keys are rotated and packed once per stream and kv head; blocks of keys that
// no query of the block may see are not multiplied.
#include "cpu/kernels/attention_window.h"

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
      : q(arena.take<T>(larger(p.stacked, kKeys) * p.d)), scores(arena.take<float>(p.stacked * kKeys)),
        probabilities(arena.take<T>(p.stacked * kKeys)), out(arena.take<float>(p.stacked * p.d)),
        highest(arena.take<float>(p.stacked)), total(arena.take<float>(p.stacked)) {}

  T* q;              // [stacked, d], rotated; while packing, a block of keys
  float* scores;     // [stacked, kKeys]
  T* probabilities;  // [stacked, kKeys]
  float* out;        // [stacked, d], not yet divided by total
  float* highest;    // [stacked], running maximum of scores in units of log2
  float* total;      // [stacked], running sum of 2^(score - highest)
};

/// Probabilities of one row's first `seen` keys (zero beyond, up to `width`), given the maximum so far; returns the
/// factor that what was summed before must be multiplied with.
template <class T>
float softmax_row(const float* scores, int64_t seen, int64_t width, float scale, float* highest, float* total,
                  T* probabilities) {
  const vint lanes = lane_numbers();
  const int64_t whole = seen / kWidth * kWidth;
  vfloat top = splat(-__builtin_inff());
  for (int64_t j = 0; j < whole; j += kWidth) top = maximum(top, load(scores + j));
  if (whole < seen) top = lanes < int(seen - whole) ? maximum(top, load(scores + whole)) : top;
  const float before = *highest, block_top = largest(top) * scale;
  const float now = before > block_top ? before : block_top;
  vfloat sums{};
  int64_t j = 0;
  for (; j < whole; j += kWidth) {
    const vfloat e = exp2_nonpositive(load(scores + j) * scale - now);
    store(probabilities + j, e);
    sums += e;
  }
  for (; j < width; j += kWidth) {
    const vfloat e = exp2_nonpositive(load(scores + j) * scale - now);
    const vfloat kept = lanes < int(seen - j) ? e : vfloat{};
    store(probabilities + j, kept);
    sums += kept;
  }
  const float factor = before == now ? 1.0f : exp2_nonpositive(splat(before - now))[0];
  *highest = now;
  *total = *total * factor + sum(sums);
  return factor;
}

/// One block of queries of one kv head: its output rows and their lse.
template <class T>
void query_block(const AttentionForward& a, const AttentionPlan& p, const Stream<T>& stream, int64_t index, int64_t kv,
                 int64_t b, const PackedWindow<T>& window, const Buffers<T>& w) {
  const AttentionShape& s = a.shape;
  const int64_t first = p.first_query(b), queries = p.queries(b), rows = p.group * queries;
  for (int64_t r = 0; r < rows; r++) {
    const int64_t head = kv * p.group + r / queries, t = first + r % queries;
    rotate(s, stream.query(p, head, t), stream.memory + t, 1.0f, p.d, w.q + r * p.d);
    w.highest[r] = -__builtin_inff();
    w.total[r] = 0.0f;
  }
  const float scale = s.scale * kLog2E;
  const int64_t visible = stream.memory + first + queries;  // to the block's last query
  for (int64_t key = 0; key < visible; key += kKeys) {
    const int64_t count = smaller(kKeys, visible - key), width = round_up(count, kWidth);
    const int64_t packed = smaller(kKeys, stream.memory + p.segment - key);
    gemm(rows, round_up(count, kNR), p.d, w.q, p.d, window.keys(key / kKeys), w.scores, kKeys, false);
    for (int64_t r = 0; r < rows; r++) {
      const int64_t seen = larger<int64_t>(0, smaller(count, stream.memory + first + r % queries + 1 - key));
      T* probabilities = w.probabilities + r * kKeys;
      if (seen == 0) {
        memset(static_cast<void*>(probabilities), 0, width * sizeof(T));
        continue;
      }
      const float factor = softmax_row(w.scores + r * kKeys, seen, width, scale, w.highest + r, w.total + r, probabilities);
      if (key > 0 && factor != 1.0f)
        for_vectors(p.d, [&](size_t i, auto part) { store(w.out + r * p.d + i, load(w.out + r * p.d + i, part) * factor, part); });
    }
    gemm_first(rows, p.d, count, packed, w.probabilities, kKeys, window.values(key / kKeys), w.out, p.d, key > 0);
  }
  for (int64_t r = 0; r < rows; r++) {
    const int64_t head = kv * p.group + r / queries, t = first + r % queries;
    T* out = static_cast<T*>(a.out) + ((stream.row + t) * p.heads + head) * p.d;
    const float inverse = 1.0f / w.total[r];
    for_vectors(p.d, [&](size_t i, auto part) { store(out + i, load(w.out + r * p.d + i, part) * inverse, part); });
    a.lse[(index * p.heads + head) * p.segment + t] = w.highest[r] * kLn2 + __builtin_logf(w.total[r]);
  }
}

/// Streams [first, first + count): their windows are packed, then their blocks of queries are shared out, the ones
/// with most keys first.
template <class T>
void wave(const AttentionForward& a, const AttentionPlan& p, int64_t first, int64_t count, char* windows,
          size_t window_bytes, char* buffers, size_t buffer_bytes) {
  const int64_t heads = count * p.kv_heads, window_blocks = window_bytes / PackedWindow<T>::bytes(kKeys, p.d);
  Queue blocks;
  parallel(heads * p.blocks, [&](Team team) {
    Arena arena(buffers + team.rank * buffer_bytes);
    const Buffers<T> mine(arena, p);
    const auto share = team.share(heads * window_blocks);
    for (int64_t item = share.begin; item < share.end; item++) {
      const int64_t head = item / window_blocks, b = item % window_blocks;
      const Stream<T> stream(a.shape, p, a.qkv, first + head / p.kv_heads);
      if (b * kKeys >= stream.memory + p.segment) continue;
      pack_block(a.shape, p, stream, head % p.kv_heads, b, mine.q, PackedWindow<T>(windows + head * window_bytes, p.d));
    }
    team.barrier();
    for (int64_t item = blocks.next(); item < heads * p.blocks; item = blocks.next()) {
      const int64_t b = p.blocks - 1 - item / heads, head = item % heads, index = first + head / p.kv_heads;
      const Stream<T> stream(a.shape, p, a.qkv, index);
      query_block(a, p, stream, index, head % p.kv_heads, b, PackedWindow<T>(windows + head * window_bytes, p.d), mine);
    }
  });
}

template <class T>
void forward(const AttentionForward& a) {
  const AttentionPlan p(a.shape);
  const int64_t streams = wave_size(a.shape);
  Arena measure;
  Buffers<T>(measure, p);
  const size_t window_bytes = PackedWindow<T>::bytes(longest_window(a.shape), p.d), buffer_bytes = measure.used();
  char* buffers = static_cast<char*>(scratch(num_threads() * buffer_bytes + streams * p.kv_heads * window_bytes));
  char* windows = buffers + num_threads() * buffer_bytes;
  for (int64_t first = 0; first < int64_t(a.shape.streams); first += streams)
    wave<T>(a, p, first, smaller(streams, int64_t(a.shape.streams) - first), windows, window_bytes, buffers, buffer_bytes);
}

}  // namespace

const ByType<AttentionForwardKernels> attention_forward_kernels = {{forward<float>}, {forward<bf16>}};

}  // namespace dynadapt::DYN_ISA
