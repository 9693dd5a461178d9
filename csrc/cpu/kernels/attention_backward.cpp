// Attention backward. Probabilities come again from the saved lse, block by block and transposed (keys down, queries
// across), which makes the operands of dK and dV row-major as they are:
//
//   S' = K Q^T   dP' = V dO^T   P' = 2^(S' - lse)   dS' = scale P' (dP' - delta)
//   dV += P' dO   dK += dS' Q   dQ' += K^T dS'
//
// Memory gets no gradient, so its blocks take three products instead of five; blocks of keys before a block of queries' window
// take none. The blocks of queries of a kv head are
// dealt to a fixed number of units with sums of dK and dV of their own, added in order at the end: the work is
// balanced between threads while the order of every sum stays the same for any number of them.
#include "cpu/kernels/lib/attention_short.h"

namespace dynadapt::DYN_ISA {
namespace {

constexpr int64_t kKeys = 96;   // keys in a block; a multiple of kMR
constexpr int64_t kAlign = 16;  // queries of a head are padded to a multiple of it
constexpr int64_t kUnits = 6;   // units wanted for one stream, where there are blocks enough

/// Units per kv head: a power of two, an even number of units in all.
int64_t units_per_head(const AttentionPlan& p) {
  int64_t units = 1;
  while (units * p.kv_heads < kUnits || units * p.kv_heads % 2) units *= 2;
  return smaller(units, p.blocks);
}

/// The unit that takes block `b`: from the longest block on, there and back, so that each gets as much work.
int64_t unit_of(int64_t b, int64_t units, const AttentionPlan& p) {
  const int64_t place = p.blocks - 1 - b, turn = place / units, step = place % units;
  return turn % 2 ? units - 1 - step : step;
}

/// A block of keys of one stream: `count` of them from window position `at`.
struct KeyBlock {
  int64_t at, count;
  bool learns;      // a block of the segment, not of memory
  int64_t segment;  // its first key's place in the segment
};

struct KeyBlocks {
  KeyBlocks(int64_t memory, int64_t segment)
      : memory(memory),
        segment(segment),
        in_memory((memory + kKeys - 1) / kKeys),
        total(in_memory + (segment + kKeys - 1) / kKeys) {}
  KeyBlock operator[](int64_t b) const {
    if (b < in_memory) return {b * kKeys, smaller(kKeys, memory - b * kKeys), false, 0};
    const int64_t first = (b - in_memory) * kKeys;
    return {memory + first, smaller(kKeys, segment - first), true, first};
  }
  int64_t memory, segment, in_memory, total;
};

/// Scratch of one kv head of one stream.
template <class T>
struct HeadBuffers {
  HeadBuffers(Arena& arena, const AttentionPlan& p, int64_t window)
      : keys(arena.take<T>(window * p.d)),
        transposed(arena.take<Panel<T>>((window / kKeys + 2) * kKeys * p.d)),
        sums(arena.take<float>(units_per_head(p) * 2 * p.segment * p.d)) {}

  float* dk(int64_t unit, const AttentionPlan& p) const { return sums + 2 * unit * p.segment * p.d; }
  float* dv(int64_t unit, const AttentionPlan& p) const { return dk(unit, p) + p.segment * p.d; }

  T* keys;               // [window, d], rotated
  Panel<T>* transposed;  // [blocks, d, kKeys], rotated
  float* sums;           // [units, dk and dv, segment, d]
};

/// What one thread works in.
template <class T>
struct Buffers {
  Buffers(Arena& arena, const AttentionPlan& p)
      : width(p.group * round_up(p.block, kAlign)),
        q(arena.take<T>(width * p.d)),
        dout(arena.take<T>(width * p.d)),
        lse(arena.take<float>(width)),
        delta(arena.take<float>(width)),
        q_nt(arena.take<char>(panels_bytes<T>(width, p.d))),
        dout_nt(arena.take<char>(panels_bytes<T>(width, p.d))),
        q_nn(arena.take<char>(panels_bytes<T>(p.d, width))),
        dout_nn(arena.take<char>(panels_bytes<T>(p.d, width))),
        ds_nn(arena.take<char>(panels_bytes<T>(width, kKeys))),
        scores(arena.take<float>(kKeys * width)),
        dscores(arena.take<float>(kKeys * width)),
        probabilities(arena.take<T>(kKeys * width)),
        ds(arena.take<T>(kKeys * width)),
        dq(arena.take<float>(p.d * width)),
        dq_rows(arena.take<float>(p.d * width)),
        row(arena.take<float>(p.d)) {}

  int64_t width;            // most columns: padded queries of all heads of the group
  T *q, *dout;              // [columns, d]
  float *lse, *delta;       // [columns]; lse in units of log2
  char *q_nt, *dout_nt;     // packed, for S' and dP'
  char *q_nn, *dout_nn;     // packed, for dK and dV
  char* ds_nn;              // packed, for dQ'
  float *scores, *dscores;  // [kKeys, columns]
  T *probabilities, *ds;    // [kKeys, columns]
  float* dq;                // [d, columns]
  float* dq_rows;           // [columns, d]
  float* row;               // [d]
};

template <class T>
void prepare_block(const AttentionShape& s, const AttentionPlan& p, const Stream<T>& stream, int64_t kv, int64_t b,
                   const HeadBuffers<T>& head) {
  const KeyBlock block = KeyBlocks(stream.memory, p.segment)[b];
  T* keys = head.keys + block.at * p.d;
  for (int64_t j = 0; j < block.count; j++) rotate(s, stream.key(p, kv, block.at + j), block.at + j, 1.0f, p.d, keys + j * p.d);
  transpose(keys, p.d, block.count, p.d, head.transposed + b * kKeys * p.d, kKeys);
}

/// One block of queries of one kv head, as the products need it.
template <class T>
struct Queries {
  Queries(const AttentionBackward& a, const AttentionPlan& p, const Stream<T>& stream, int64_t index, int64_t kv, int64_t b,
          const Buffers<T>& w)
      : first(p.first_query(b)), count(p.queries(b)), padded(round_up(count, kAlign)), columns(p.group * padded) {
    for (int64_t t = 0; t < padded; t++)
      for (int64_t h = 0; h < p.group; h++) load_query(a, p, stream, index, kv * p.group + h, t, h * padded + t, w);
    pack_nt(w.q, p.d, columns, p.d, w.q_nt);
    pack_nt(w.dout, p.d, columns, p.d, w.dout_nt);
    pack_nn(w.q, p.d, columns, p.d, w.q_nn);
    pack_nn(w.dout, p.d, columns, p.d, w.dout_nn);
  }

  /// Column `c`: query `t` of the block for one head.
  void load_query(const AttentionBackward& a, const AttentionPlan& p, const Stream<T>& stream, int64_t index, int64_t head,
                  int64_t t, int64_t c, const Buffers<T>& w) {
    T* q = w.q + c * p.d;
    T* dout = w.dout + c * p.d;
    if (t >= count) {  // a column of zeros adds nothing to any product
      memset(static_cast<void*>(q), 0, p.d * sizeof(T));
      memset(static_cast<void*>(dout), 0, p.d * sizeof(T));
      w.lse[c] = w.delta[c] = 0.0f;
      return;
    }
    const int64_t at = ((stream.row + first + t) * p.heads + head) * p.d;
    const T* out = static_cast<const T*>(a.out) + at;
    memcpy(dout, static_cast<const T*>(a.dout) + at, p.d * sizeof(T));
    rotate(a.shape, stream.query(p, head, first + t), stream.memory + first + t, 1.0f, p.d, q);
    vfloat delta{};
    for_vectors(p.d, [&](size_t i, auto part) { delta += load(dout + i, part) * load(out + i, part); });
    w.delta[c] = sum(delta);
    w.lse[c] = a.lse[(index * p.heads + head) * p.segment + first + t] * kLog2E;
  }

  int64_t first, count;  // in the segment
  int64_t padded;        // columns of one head
  int64_t columns;
};

/// P' and dS' from S' and dP', for one key that queries `from`..until-1 of the block see.
template <class T>
void softmax_row(const Queries<T>& queries, const Buffers<T>& w, int64_t key, int64_t from, int64_t until,
                 const AttentionShape& s) {
  const float log2_scale = s.scale * kLog2E;
  for (int64_t begin = 0; begin < queries.columns; begin += queries.padded) {
    for (int64_t t = 0; t < queries.padded; t += kWidth) {
      const int64_t c = begin + t, at = key * queries.columns + c;
      vfloat p = exp2_nonpositive(load(w.scores + at) * log2_scale - load(w.lse + c));
      vfloat ds = p * (load(w.dscores + at) - load(w.delta + c)) * s.scale;
      if (s.softcap > 0) ds *= score_slope(s, load(w.scores + at));
      if (t < from) {
        const vint hidden = lane_numbers() < int(smaller<int64_t>(kWidth, from - t));
        p = hidden ? vfloat{} : p;
        ds = hidden ? vfloat{} : ds;
      }
      if (t + int64_t(kWidth) > until) {
        const vint seen = lane_numbers() < int(larger<int64_t>(0, until - t));
        p = seen ? p : vfloat{};
        ds = seen ? ds : vfloat{};
      }
      store(w.probabilities + at, p);
      store(w.ds + at, ds);
    }
  }
}

/// The first query of a stream without memory sees one key. Its probability is 1 whatever q and k are, so its dS' is 0, where
/// dP' - delta would be the rounding of two sums that are equal. A product, so that what is not finite stays so.
template <class T>
void clear_lone_key(const Queries<T>& queries, const Buffers<T>& w) {
  for (int64_t c = 0; c < queries.columns; c += queries.padded) assign(w.ds[c], 0.0f * to_float(w.ds[c]));
}

/// All products of one block of queries with one block of keys.
template <class T>
void block_pair(const AttentionShape& s, const AttentionPlan& p, const Stream<T>& stream, int64_t kv, int64_t b,
                const KeyBlock& keys, int64_t count, const Queries<T>& queries, const HeadBuffers<T>& head, int64_t unit,
                bool first_block, const Buffers<T>& w) {
  const int64_t columns = queries.columns;
  const int64_t value_stride = keys.learns ? stream.qkv_stride : stream.memory_stride;
  gemm(count, columns, p.d, head.keys + keys.at * p.d, p.d, w.q_nt, w.scores, columns, false);
  cap_scores(s, w.scores, count, columns, columns);
  gemm(count, columns, p.d, stream.value(p, kv, keys.at), value_stride, w.dout_nt, w.dscores, columns, false);
  const int64_t behind = keys.at - (stream.memory + queries.first);  // of the block's first key from its first query
  for (int64_t j = 0; j < count; j++) softmax_row(queries, w, j, keys.learns ? behind + j : 0, behind + j + s.window, s);
  if (keys.at == 0 && stream.memory + queries.first == 0) clear_lone_key(queries, w);
  if (keys.learns) {
    const int64_t at = keys.segment * p.d;
    gemm(count, p.d, columns, w.probabilities, columns, w.dout_nn, head.dv(unit, p) + at, p.d, true);
    gemm(count, p.d, columns, w.ds, columns, w.q_nn, head.dk(unit, p) + at, p.d, true);
  }
  pack_nn(w.ds, columns, count, columns, w.ds_nn);
  gemm<Panel<T>>(p.d, columns, count, head.transposed + b * kKeys * p.d, kKeys, w.ds_nn, w.dq, columns, !first_block);
}

/// dq of a block, rotated back.
template <class T>
void write_dq(const AttentionBackward& a, const AttentionPlan& p, const Stream<T>& stream, int64_t kv, const Queries<T>& queries,
              const Buffers<T>& w) {
  transpose(w.dq, queries.columns, p.d, queries.columns, w.dq_rows, p.d);
  for (int64_t t = 0; t < queries.count; t++) {
    for (int64_t h = 0; h < p.group; h++)
      rotate(a.shape, w.dq_rows + (h * queries.padded + t) * p.d, stream.memory + queries.first + t, -1.0f, p.d,
             static_cast<T*>(a.dqkv) + (stream.row + queries.first + t) * p.qkv_width + (kv * p.group + h) * p.d);
  }
}

/// One unit: its blocks of queries against all keys that they see.
template <class T>
void run_unit(const AttentionBackward& a, const AttentionPlan& p, int64_t index, int64_t kv, int64_t unit,
              const HeadBuffers<T>& head, const Buffers<T>& w) {
  const Stream<T> stream(a.shape, p, a.qkv, index);
  const KeyBlocks keys(stream.memory, p.segment);
  memset(head.dk(unit, p), 0, 2 * p.segment * p.d * sizeof(float));
  for (int64_t q = p.blocks - 1; q >= 0; q--) {
    if (unit_of(q, units_per_head(p), p) != unit) continue;
    const Queries<T> queries(a, p, stream, index, kv, q, w);
    const int64_t visible = stream.memory + queries.first + queries.count;
    const int64_t oldest = first_seen(a.shape, stream.memory + queries.first);
    bool first_block = true;
    for (int64_t b = 0; b < keys.total && keys[b].at < visible; b++) {
      if (keys[b].at + keys[b].count <= oldest) continue;
      block_pair(a.shape, p, stream, kv, b, keys[b], smaller(keys[b].count, visible - keys[b].at), queries, head, unit,
                 first_block, w);
      first_block = false;
    }
    write_dq(a, p, stream, kv, queries, w);
  }
}

/// dk and dv of segment row `t`: the units' sums in order, keys rotated back.
template <class T>
void write_dkv(const AttentionBackward& a, const AttentionPlan& p, int64_t index, int64_t kv, int64_t t,
               const HeadBuffers<T>& head, float* row) {
  const Stream<T> stream(a.shape, p, a.qkv, index);
  T* to = static_cast<T*>(a.dqkv) + (stream.row + t) * p.qkv_width + (p.heads + kv) * p.d;
  const int64_t units = units_per_head(p);
  const auto add_units = [&](const float* sums, size_t i, auto part) {
    vfloat total = load(sums + i, part);
    for (int64_t unit = 1; unit < units; unit++) total += load(sums + 2 * unit * p.segment * p.d + i, part);
    return total;
  };
  const float* dk = head.dk(0, p) + t * p.d;
  const float* dv = head.dv(0, p) + t * p.d;
  for_vectors(p.d, [&](size_t i, auto part) { store(row + i, add_units(dk, i, part), part); });
  rotate(a.shape, row, stream.memory + t, -1.0f, p.d, to);
  for_vectors(p.d, [&](size_t i, auto part) { store(to + p.kv_heads * p.d + i, add_units(dv, i, part), part); });
}

/// Streams [first, first + count): keys are rotated, then units run, then their sums are added.
template <class T>
void wave(const AttentionBackward& a, const AttentionPlan& p, int threads, int64_t first, int64_t count, int64_t window,
          char* heads_base, size_t head_bytes, char* buffers, size_t buffer_bytes) {
  const int64_t heads = count * p.kv_heads, units = units_per_head(p), most_blocks = window / kKeys + 2;
  const auto head_buffers = [&](int64_t head) {
    Arena arena(heads_base + head * head_bytes);
    return HeadBuffers<T>(arena, p, window);
  };
  TaskQueue queue(heads * units);
  parallel(threads, heads * units, [&](Team team) {
    Arena arena(buffers + team.rank * buffer_bytes);
    const Buffers<T> mine(arena, p);
    const auto prepare = team.share(heads * most_blocks);
    for (int64_t item = prepare.begin; item < prepare.end; item++) {
      const int64_t head = item / most_blocks, b = item % most_blocks;
      const Stream<T> stream(a.shape, p, a.qkv, first + head / p.kv_heads);
      if (b < KeyBlocks(stream.memory, p.segment).total)
        prepare_block(a.shape, p, stream, head % p.kv_heads, b, head_buffers(head));
    }
    team.barrier();
    for (Range r = queue.take(team.size, 1); r.begin < r.end; r = queue.take(team.size, 1)) {
      const int64_t head = r.begin / units;
      run_unit(a, p, first + head / p.kv_heads, head % p.kv_heads, r.begin % units, head_buffers(head), mine);
    }
    team.barrier();
    const auto rows = team.share(heads * p.segment);
    for (int64_t item = rows.begin; item < rows.end; item++) {
      const int64_t head = item / p.segment;
      write_dkv(a, p, first + head / p.kv_heads, head % p.kv_heads, item % p.segment, head_buffers(head), mine.row);
    }
  });
}

template <class T>
void backward(const AttentionBackward& a) {
  const AttentionPlan p(a.shape);
  if (is_short(a.shape, p)) return short_backward<T>(a, p);
  const int threads = num_threads();
  const int64_t streams = wave_size(a.shape, threads), window = longest_window(a.shape);
  Arena per_thread, per_head;
  Buffers<T>(per_thread, p);
  HeadBuffers<T>(per_head, p, window);
  char* buffers = static_cast<char*>(scratch(threads * per_thread.used() + streams * p.kv_heads * per_head.used()));
  char* heads = buffers + threads * per_thread.used();
  for (int64_t first = 0; first < int64_t(a.shape.streams); first += streams)
    wave<T>(a, p, threads, first, smaller(streams, int64_t(a.shape.streams) - first), window, heads, per_head.used(), buffers,
            per_thread.used());
}

}  // namespace

const ByType<AttentionBackwardKernels> attention_backward_kernels = {{backward<float>}, {backward<bf16>}};

}  // namespace dynadapt::DYN_ISA
