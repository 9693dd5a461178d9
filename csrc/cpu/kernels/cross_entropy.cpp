// Linear cross-entropy without logits in memory.
//
// The vocabulary passes by in blocks of kBlock columns, once. For a few tiles of rows at a time, a block's
// logits are computed, folded into each row's running maximum and sum, turned into exp(logit - maximum) and
// multiplied by the same block of the head, all in cache: attention whose keys and values are both W. When
// a row's maximum grows, what it has summed so far is scaled down. Threads share the rows and meet the same
// blocks at about the same time, so that the head comes from memory once. Where each has few rows, making a block
// ready costs as much as multiplying with it: then each makes one ready for all of them.
//
// What adapters add to a block's logits, and the block's part of their dU, are products with a thin slice of Bt, packed for the rows of
// each adapter in turn. A soft-cap is taken as soon as a block's logits are whole; its slope goes into what is summed, not into the total.
#include "cpu/cross_entropy.h"

#include "cpu/kernels/lib/gemm_int8.h"
#include "cpu/kernels/lib/grid.h"
#include "cpu/kernels/lib/head_adapter.h"
#include "cpu/kernels/lib/matrix_panels.h"

namespace dynadapt::DYN_ISA {

namespace {

constexpr int kBlock = 256;     // columns of the vocabulary at a time
constexpr int kGroup = 4;       // tiles of rows at a time
constexpr int kMaxRows = 1024;  // rows of a thread in one pass over the vocabulary
constexpr int kGroupRows = kGroup * kMR;
constexpr int kFewestRows = kMR > 8 ? kMR / 2 : 4;  // that are worth a thread
constexpr int kTogether = 48;  // rows of a thread, up to which the team makes blocks ready together: one pass of each
static_assert(kTogether < kMaxRows);
constexpr int kPanels = kBlock / kNR;
static_assert(kBlock % kNR == 0 && kBlock % kWidth == 0);

/// How logits are made, beside WideBytes and WideWords of a head in int8: from its values.
struct Floats : Words {
  static constexpr bool kInteger = false;
};

template <class Form, class T>
struct Room {
  float *logits, *sums, *maximum, *total, *target;  // sums [rows, ld]: of exp(logit - maximum) W, then from `low` on of Bt^T
  float *chosen, *mixed;                            // [rows, K] logits of a teacher's tokens; [H] sum of p_k W[ids[k]]
  Panel<T>*probability, *wide, *turned;
  IntegerRows<Form> quantised;  // rows of h
  char* integers;               // panels of a block
  T* target_row;
  Panel<T>* thin;  // a panel of Bt or A^T
  int64_t ld, low;
  size_t bytes;
  Room(const CrossEntropy& c, void* base) {
    Arena arena(base);
    const int64_t rows = smaller<int64_t>(c.N, kMaxRows);
    low = c.dh ? round_up(c.H, kNR) : 0;
    ld = low + (c.adapters.dU ? round_up(c.adapters.rank, kNR) : 0);
    logits = arena.take<float>(kGroupRows * kBlock);
    probability = arena.take<Panel<T>>(kGroupRows * kBlock);
    sums = arena.take<float>(rows * ld);
    maximum = arena.take<float>(rows);
    total = arena.take<float>(rows);
    target = arena.take<float>(rows);
    wide = arena.take<Panel<T>>(Form::kInteger ? 0 : kPanels * forward_room<T>(*c.head));
    quantised = IntegerRows<Form>::take(arena, Form::kInteger ? rows : 0, group_count(c.H));
    integers = arena.take<char>(Form::kInteger && Form::kStep < 4 ? kPanels * integer_panel_bytes<Form>(c.H) : 0);
    turned = arena.take<Panel<T>>(c.dh ? panel_count(c.H) * kBlock * kNR : 0);
    target_row = arena.take<T>(c.dh ? c.H : 0);
    chosen = arena.take<float>(rows * c.K);
    mixed = arena.take<float>((c.K || c.adapters.rank) && c.dh ? c.H : 0);
    thin = arena.take<Panel<T>>(c.adapters.rank ? larger(panel_size<T>(larger(c.H, c.adapters.rank)), int64_t(kBlock * kNR)) : 0);
    bytes = arena.used();
  }
};

/// The head's rows [begin, begin + count), for both products, in the room where they are made ready.
template <class Form, class T>
struct HeadBlock {
  int64_t begin;
  int count;
  const Panel<T>* forward[kPanels];
  const char* integers[kPanels];
  char* integer_room;
  Panel<T>*wide, *turned;
  HeadBlock(const CrossEntropy& c, const Room<Form, T>& room, int64_t begin)
      : begin(begin),
        count(int(smaller<int64_t>(kBlock, c.head->rows - begin))),
        integer_room(room.integers),
        wide(room.wide),
        turned(room.turned) {
    for (int i = 0; i * kNR < count; i++)
      if constexpr (Form::kInteger)
        integers[i] = Form::kStep == 4 ? stored_integers(c, i) : integer_room + i * integer_panel_bytes<Form>(c.H);
      else
        forward[i] = forward_place<T>(*c.head, begin / kNR + i, wide + i * panel_size<T>(c.H));
  }
  const char* stored_integers(const CrossEntropy& c, int i) const {
    return static_cast<const char*>(c.head->panels) + (begin / kNR + i) * stored_panel_bytes(c.H);
  }
  void make_ready(const CrossEntropy& c) const {
    for (int i = 0; i * kNR < count; i++)
      if constexpr (Form::kInteger)
        integer_panel<Form>(stored_integers(c, i), c.H, integer_room + i * integer_panel_bytes<Form>(c.H));
      else
        forward_panel<T>(*c.head, begin / kNR + i, wide + i * panel_size<T>(c.H));
    if (!c.dh) return;
    for (int64_t j = 0; j < panel_count(c.H); j++)
      for (int i = 0; i * kNR < count; i++) {
        Panel<T>* to = turned + (j * kBlock + i * kNR) * kNR;
        if constexpr (Form::kInteger)
          backward_block<T>(*c.head, begin + i * kNR, j * kNR, to);
        else
          turn<T>(forward[i] + j * kNR * kNR, smaller<int64_t>(kNR, c.H - j * kNR), to);
      }
  }
};

/// Folds one row's `count` logits into its maximum and total; probability (unless null) = exp(logit - maximum).
/// Returns the factor for what was summed under the old maximum. The row is padded to whole vectors. `inverse` = 1 / softcap of logits that
/// are capped, or 0: their probabilities are multiplied with the cap's slope.
template <class P>
float fold(float* logits, int count, float& maximum, float& total, P* probability, float inverse) {
  for (int i = count; i % kWidth; i++) logits[i] = -__builtin_inff();
  vfloat top = splat(maximum);
  for (int i = 0; i < count; i += kWidth) top = dynadapt::DYN_ISA::maximum(top, load(logits + i));
  const float grown = largest(top);
  const float factor = grown == maximum ? 1.0f : __builtin_expf(maximum - grown);
  const vfloat shift = splat(grown);
  vfloat sums{};
  for (int i = 0; i < count; i += kWidth) {
    const vfloat e = exponential(load(logits + i) - shift);
    sums += e;
    if (!probability) continue;
    store(probability + i,
          inverse > 0 ? (load(logits + i) > -__builtin_inff() ? e * cap_slope(load(logits + i), inverse) : vfloat{}) : e);
  }
  maximum = grown;
  total = total * factor + sum(sums);
  return factor;
}

/// One block of the vocabulary for the rows of a group of tiles; `rows` are in the pass, the first is `row` of the call.
template <class Form, class T>
void group_block(const CrossEntropy& c, const Room<Form, T>& room, const HeadBlock<Form, T>& head, const RowTiles& tiles,
                 int64_t first_tile, int64_t last_tile, int64_t row) {
  const int64_t begin = tiles.begin(first_tile);
  [[maybe_unused]] const T* h = static_cast<const T*>(c.h) + row * c.H;
  for (int i = 0; i * kNR < head.count; i++)
    for (int64_t t = first_tile; t < last_tile; t++) {
      float* logits = room.logits + (tiles.begin(t) - begin) * kBlock + i * kNR;
      if constexpr (Form::kInteger) {
        for (int row = 0; row < tiles.size(t); row++) memset(logits + row * kBlock, 0, sizeof(float) * kNR);
        integer_multiply(tiles.size(t), kNR, room.quantised.from(tiles.begin(t), 0), head.integers[i], group_count(c.H), logits,
                         kBlock);
      } else {
        const Term<T> term{h + tiles.begin(t) * c.H, c.H, head.forward[i], c.H, 1.0f};
        multiply_tile(tiles.size(t), kNR, &term, 1, logits, kBlock, Into::write);
      }
    }

  const int64_t end = tiles.begin(last_tile);
  const auto of_adapters = [&](const auto& run) {
    for_adapters(c.adapters, row + begin, row + end,
                 [&](int64_t slot, int64_t from, int64_t to) { run(slot, from - row, to - row); });
  };
  if (c.adapters.rank)
    of_adapters([&](int64_t slot, int64_t from, int64_t to) {
      for (int i = 0; i * kNR < head.count; i++)
        add_adapted<T>(c.adapters, c.head->rows, slot, row + from, row + to, head.begin + i * kNR,
                       smaller(kNR, head.count - i * kNR), room.logits + (from - begin) * kBlock + i * kNR, kBlock, room.thin);
    });

  for (int64_t n = begin; n < end; n++) {
    float* logits = room.logits + (n - begin) * kBlock;
    if (c.softcap > 0) cap_row(logits, round_up(head.count, kWidth), c.softcap);
    const int64_t target = c.targets[row + n] - head.begin;
    if (target >= 0 && target < head.count) room.target[n] = logits[target];
    for (int64_t k = 0; k < c.K; k++) {
      const int64_t id = c.ids[(row + n) * c.K + k] - head.begin;
      if (id >= 0 && id < head.count) room.chosen[n * c.K + k] = logits[id];
    }
    const float factor =
        fold(logits, head.count, room.maximum[n], room.total[n], c.learns() ? room.probability + (n - begin) * kBlock : nullptr,
             c.softcap > 0 ? 1.0f / c.softcap : 0.0f);
    if (c.learns() && factor != 1.0f && head.begin > 0)
      for (int64_t i = 0; i < room.ld; i += kWidth)
        store(room.sums + n * room.ld + i, load(room.sums + n * room.ld + i) * factor);
  }

  const Into into = head.begin > 0 ? Into::add : Into::write;
  if (c.adapters.dU)
    of_adapters([&](int64_t slot, int64_t from, int64_t to) {
      const T* Bt = static_cast<const T*>(c.adapters.Bt) + slot * c.adapters.Bt_stride + head.begin;
      for (int64_t r = 0; r < c.adapters.rank; r += kNR) {
        pack_panel_nt(Bt + r * c.head->rows, c.head->rows, int(smaller<int64_t>(kNR, c.adapters.rank - r)), head.count,
                      room.thin);
        const RowTiles part(to - from);
        for (int64_t t = 0; t < part.count; t++) {
          const int64_t n = from + part.begin(t);
          const Term<Panel<T>> term{room.probability + (n - begin) * kBlock, kBlock, room.thin, head.count, 1.0f};
          multiply_tile(part.size(t), kNR, &term, 1, room.sums + n * room.ld + room.low + r, room.ld, into);
        }
      }
    });
  if (!c.dh) return;
  for (int64_t j = 0; j < panel_count(c.H); j++)
    for (int64_t t = first_tile; t < last_tile; t++) {
      const Term<Panel<T>> term{room.probability + (tiles.begin(t) - begin) * kBlock, kBlock, head.turned + j * kBlock * kNR,
                                head.count, 1.0f};
      multiply_tile(tiles.size(t), kNR, &term, 1, room.sums + tiles.begin(t) * room.ld + j * kNR, room.ld, into);
    }
}

/// Calls block(HeadBlock) for all of the vocabulary, in its order; `base` has the rooms of the team, `bytes` apart.
template <class Form, class T, class Block>
void for_head_blocks(const CrossEntropy& c, Team team, char* base, size_t bytes, const Block& block) {
  const int64_t vocabulary = c.head->rows;
  const auto of = [&](int64_t v, int rank) { return HeadBlock<Form, T>(c, Room<Form, T>(c, base + bytes * rank), v); };
  if (team.size == 1 || c.N > kTogether * team.size) {
    for (int64_t v = 0; v < vocabulary; v += kBlock) {
      const HeadBlock<Form, T> head = of(v, team.rank);
      head.make_ready(c);
      block(head);
    }
    return;
  }
  for (int64_t v = 0; v < vocabulary; v += kBlock * team.size) {
    if (v + kBlock * team.rank < vocabulary) of(v + kBlock * team.rank, team.rank).make_ready(c);
    team.barrier();
    for (int i = 0; i < team.size && v + kBlock * i < vocabulary; i++) block(of(v + kBlock * i, i));
    team.barrier();
  }
}

/// The slope of a capped logit, 1 without a cap.
inline float slope_of(const CrossEntropy& c, float logit) { return c.softcap > 0 ? cap_slope(logit, 1.0f / c.softcap) : 1.0f; }

/// kl and dh of a scored row: dh = weight (P softmax W - sum p_k W[ids[k]]), P the sum of the p_k.
template <class Form, class T>
void finish_teacher(const CrossEntropy& c, const Room<Form, T>& room, int64_t n, int64_t i) {
  const int64_t* ids = c.ids + n * c.K;
  const float *logp = c.logp + n * c.K, *chosen = room.chosen + i * c.K;
  float mass = 0, kl = 0;
  for (int64_t k = 0; c.dh && k < c.H; k++) room.mixed[k] = 0;
  for (int64_t k = 0; k < c.K; k++) {
    if (ids[k] < 0) continue;
    const float p = __builtin_expf(logp[k]);
    mass += p;
    kl += p * (logp[k] - (chosen[k] - c.lse[n]));
    if (!c.dh) continue;
    const float share = p * slope_of(c, chosen[k]);
    read_row(*c.head, ids[k], room.target_row);
    for (int64_t j = 0; j < c.H; j++) room.mixed[j] += share * to_float(room.target_row[j]);
  }
  c.kl[n] = kl;
  if (!c.dh) return;
  T* dh = static_cast<T*>(c.dh) + n * c.H;
  const float weight = c.weights ? c.weights[n] : 1.0f, scale = weight * mass / room.total[i];
  const float* sums = room.sums + i * room.ld;
  for (int64_t k = 0; k < c.H; k++) assign(dh[k], scale * sums[k] - weight * room.mixed[k]);
}

/// dU of a row n of the call, which is row i of the pass, and with dh what the adapter adds to it, in `mixed`; `scale` of its sums, `share` of
/// the target.
template <class Form, class T>
void finish_adapter(const CrossEntropy& c, const Room<Form, T>& room, int64_t n, int64_t i, float scale, float share) {
  const HeadAdapters& a = c.adapters;
  const T* Bt = static_cast<const T*>(a.Bt) + a.slots[n] * a.Bt_stride;
  const T* A = static_cast<const T*>(a.A) + a.slots[n] * a.A_stride;
  T* dU = static_cast<T*>(a.dU) + n * a.rank;
  const float* sums = room.sums + i * room.ld + room.low;
  const bool scored = c.targets[n] >= 0;
  for (int64_t k = 0; c.dh && k < c.H; k++) room.mixed[k] = 0;
  for (int64_t r = 0; r < a.rank; r++) {
    assign(dU[r], scored ? a.scale * (scale * sums[r] - share * to_float(Bt[r * c.head->rows + c.targets[n]])) : 0.0f);
    if (!c.dh || !scored) continue;
    const float d = to_float(dU[r]);
    for_vectors(c.H, [&](size_t k, auto part) {
      store(room.mixed + k, load(room.mixed + k, part) + d * load(A + r * c.H + k, part), part);
    });
  }
}

/// nll, lse and dh of row n of the call, which is row i of the pass.
template <class Form, class T>
void finish_row(const CrossEntropy& c, const Room<Form, T>& room, int64_t n, int64_t i) {
  const bool scored = c.targets[n] >= 0;
  c.lse[n] = room.maximum[i] + __builtin_logf(room.total[i]);
  c.nll[n] = scored ? c.lse[n] - room.target[i] : 0.0f;
  if (c.K && !scored) c.kl[n] = 0;
  if (c.K && scored) return finish_teacher(c, room, n, i);
  const float weight = c.weights ? c.weights[n] : 1.0f, scale = weight / room.total[i];
  const float share = weight * (scored ? slope_of(c, room.target[i]) : 0.0f);
  if (c.adapters.dU) finish_adapter(c, room, n, i, scale, share);
  if (!c.dh) return;
  T* dh = static_cast<T*>(c.dh) + n * c.H;
  if (!scored) {
    for (int64_t k = 0; k < c.H; k++) assign(dh[k], 0.0f);
    return;
  }
  read_row(*c.head, c.targets[n], room.target_row);
  const float* sums = room.sums + i * room.ld;
  if (c.adapters.dU)
    for (int64_t k = 0; k < c.H; k++) assign(dh[k], scale * sums[k] - share * to_float(room.target_row[k]) + room.mixed[k]);
  else
    for (int64_t k = 0; k < c.H; k++) assign(dh[k], scale * sums[k] - share * to_float(room.target_row[k]));
}

/// u = h A^T of rows [begin, end); `panel` has room for panel_size<T>(H).
template <class T>
void adapted_low(const CrossEntropy& c, int64_t begin, int64_t end, Panel<T>* panel) {
  const HeadAdapters& a = c.adapters;
  for_adapters(a, begin, end, [&](int64_t slot, int64_t from, int64_t to) {
    for (int64_t r = 0; r < a.rank; r += kNR) {
      const int columns = int(smaller<int64_t>(kNR, a.rank - r));
      pack_panel_nt(static_cast<const T*>(a.A) + slot * a.A_stride + r * c.H, c.H, columns, c.H, panel);
      const Term<T> term{static_cast<const T*>(c.h) + from * c.H, c.H, panel, c.H, 1.0f};
      multiply_rounded<T>(to - from, columns, &term, 1, nullptr, static_cast<T*>(a.u) + from * a.rank + r, a.rank);
    }
  });
}

template <class Form, class T>
void score(const CrossEntropy& c) {
  const size_t bytes = Room<Form, T>(c, nullptr).bytes;
  const int threads = num_threads();
  char* base = static_cast<char*>(scratch(bytes * threads));
  parallel(threads, (c.N + kFewestRows - 1) / kFewestRows, [&](Team team) {
    const Room<Form, T> room(c, base + bytes * team.rank);
    const auto share = team.share(c.N);
    for (int64_t row = share.begin; row < share.end; row += kMaxRows) {
      const RowTiles tiles(smaller<int64_t>(kMaxRows, share.end - row));
      for (int64_t i = 0; i < tiles.rows; i++) {
        room.maximum[i] = -__builtin_inff();
        room.total[i] = 0;
        if constexpr (Form::kInteger) quantize_row(static_cast<const T*>(c.h) + (row + i) * c.H, c.H, room.quantised.from(i, 0));
      }
      if (c.adapters.rank) adapted_low<T>(c, row, row + tiles.rows, room.thin);
      for_head_blocks<Form, T>(c, team, base, bytes, [&](const HeadBlock<Form, T>& head) {
        for (int64_t t = 0; t < tiles.count; t += kGroup)
          group_block(c, room, head, tiles, t, smaller<int64_t>(t + kGroup, tiles.count), row);
      });
      for (int64_t i = 0; i < tiles.rows; i++) finish_row(c, room, row + i, i);
    }
  });
}

template <class Form>
void score_of(const CrossEntropy& c) {
  c.dtype == kF32 ? score<Form, float>(c) : score<Form, bf16>(c);
}

}  // namespace

extern const CrossEntropyKernels cross_entropy_kernels = {
    [](const CrossEntropy& c) {
      if (c.head->storage != MatrixStorage::int8)
        score_of<Floats>(c);
      else
        vnni() ? score_of<WideBytes>(c) : score_of<WideWords>(c);
    },
};

}  // namespace dynadapt::DYN_ISA
