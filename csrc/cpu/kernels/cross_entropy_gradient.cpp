// Gradients of what makes the logits: the head itself, or its adapters.
//
// The gradient of the logits is made anew from the lse of each row, a block of the vocabulary at a time, turned so that the vocabulary
// runs down and the tokens across: then dW is a product with h, and a block of dBt, turned once more, one with u. The tokens of one adapter
// are summed in one chain, whatever else is in the call.
#include "core/threads.h"
#include "cpu/kernels/lib/head_adapter.h"
#include "cpu/kernels/lib/matrix_panels.h"
#include "cpu/kernels/lib/transpose.h"

namespace dynadapt::DYN_ISA {

namespace {

constexpr int kHeadPanels =
    96 / kNR;  // of vocabulary columns at a time: enough rows of a product to reuse each panel of the other
constexpr int64_t kRows = kHeadPanels * kNR;

/// to[j][i] = from[i][j] for `rows` rows of kNR; the rows of `to` are `ldt` apart.
template <class P>
void turn_tile(const float* from, int rows, P* to, int64_t ldt) {
  for (int i = 0; i < rows; i += kWidth)
    for (int j = 0; j < kNR; j += kWidth) {
      const int height = smaller(kWidth, rows - i);
      vfloat r[kWidth];
#pragma GCC unroll 16
      for (int k = 0; k < kWidth; k++) r[k] = k < height ? load(from + (i + k) * kNR + j) : vfloat{};
      turn_registers(r);
      P* out = to + j * ldt + i;
      if (height == kWidth)
        for (int k = 0; k < kWidth; k++) store(out + k * ldt, r[k]);
      else
        for (int k = 0; k < kWidth; k++) store(out + k * ldt, r[k], height);
    }
}

/// g[v][n] = weight * (exp(logit - lse) - onehot) * slope for the rows of one tile and one panel of the head, `logits` of which stand in
/// [rows, kNR]; 0 where not scored. The rows of g are `ldg` apart.
template <class T>
void probability_gradient(const CrossEntropyGradient& c, float* logits, int64_t vocabulary, int64_t n, int rows, Panel<T>* g,
                          int64_t ldg) {
  const float inverse = c.softcap > 0 ? 1.0f / c.softcap : 0.0f;
  alignas(64) float slopes[kNR];
  for (int i = 0; i < rows; i++) {
    float* row = logits + i * kNR;
    const int64_t target = c.targets[n + i];
    if (target < 0) {
      for (int j = 0; j < kNR; j += kWidth) store(row + j, vfloat{});
      continue;
    }
    const float weight = c.weights ? c.weights[n + i] : 1.0f;
    if (c.softcap > 0) {
      cap_row(row, kNR, c.softcap);
      for (int j = 0; j < kNR; j += kWidth) store(slopes + j, cap_slope(load(row + j), inverse));
    }
    for (int j = 0; j < kNR; j += kWidth) store(row + j, exponential(load(row + j) - c.lse[n + i]));
    if (target >= vocabulary && target < vocabulary + kNR) row[target - vocabulary] -= 1.0f;
    for (int j = 0; j < kNR && c.softcap > 0; j += kWidth) store(row + j, load(row + j) * load(slopes + j));
    for (int j = 0; j < kNR; j += kWidth) store(row + j, load(row + j) * weight);
  }
  turn_tile(logits, rows, g + n, ldg);
}

/// g [kNR, N] for the rows [from, to), which one adapter serves, and one panel of the head; `thin` has room for a panel of Bt. The rows
/// of g are `ldg` apart.
template <class T>
void panel_gradient(const CrossEntropyGradient& c, const Panel<T>* panel, int64_t vocabulary, int64_t from, int64_t to,
                    Panel<T>* thin, Panel<T>* g, int64_t ldg) {
  alignas(64) float logits[kMR * kNR];
  const RowTiles tiles(to - from);
  if (c.adapters.rank)
    pack_panel_nn(static_cast<const T*>(c.adapters.Bt) + c.adapters.slots[from] * c.adapters.Bt_stride + vocabulary, c.head->rows,
                  int(smaller<int64_t>(kNR, c.head->rows - vocabulary)), c.adapters.rank, thin);
  for (int64_t t = 0; t < tiles.count; t++) {
    const int64_t n = from + tiles.begin(t);
    const Term<T> term{static_cast<const T*>(c.h) + n * c.H, c.H, panel, c.H, 1.0f};
    multiply_tile(tiles.size(t), kNR, &term, 1, logits, kNR, Into::write);
    if (c.adapters.rank) {
      const Term<T> low{static_cast<const T*>(c.adapters.u) + n * c.adapters.rank, c.adapters.rank, thin, c.adapters.rank,
                        c.adapters.scale};
      multiply_tile(tiles.size(t), kNR, &low, 1, logits, kNR, Into::add);
    }
    probability_gradient<T>(c, logits, vocabulary, n, tiles.size(t), g, ldg);
  }
}

// ---- the head's own ----

template <class T>
void weight_gradient(const CrossEntropyGradient& c) {
  const int64_t panels = panel_count(c.H), depth = panel_size<T>(c.N), ldg = turned_stride<Panel<T>>(c.N),
                blocks = (panel_count(c.head->rows) + kHeadPanels - 1) / kHeadPanels;
  const auto carve = [&](Arena arena, Panel<T>*& h, Panel<T>*& g, Panel<T>*& wide, int threads) {
    h = arena.take<Panel<T>>(panels * depth);
    g = arena.take<Panel<T>>(threads * kRows * ldg);
    wide = arena.take<Panel<T>>(threads * forward_room<T>(*c.head));
    return arena.used();
  };
  Panel<T>*h, *all_g, *all_wide;
  const int threads = num_threads();
  carve(Arena(scratch(carve(Arena(), h, all_g, all_wide, threads))), h, all_g, all_wide, threads);
  TaskQueue queue(blocks);
  parallel(threads, blocks, [&](Team team) {
    Panel<T>*g = all_g + team.rank * kRows * ldg, *wide = all_wide + team.rank * forward_room<T>(*c.head);
    const auto packed = team.share(panels);
    const int64_t begin = packed.begin * kNR, end = smaller(packed.end * kNR, c.H);
    if (begin < end) pack_nn(static_cast<const T*>(c.h) + begin, c.H, c.N, end - begin, h + packed.begin * depth);
    team.barrier();

    for (Range r = queue.take(team.size, 1); r.begin < r.end; r = queue.take(team.size, 1)) {
      const int64_t v = r.begin * kRows;
      const int64_t rows = smaller(kRows, c.head->rows - v);
      for (int64_t r = 0; r < rows; r += kNR)
        panel_gradient<T>(c, forward_panel<T>(*c.head, (v + r) / kNR, wide), v + r, 0, c.N, nullptr, g + r * ldg, ldg);
      for (int64_t j = 0; j < panels; j++) {
        const Term<Panel<T>> term{g, ldg, h + j * depth, c.N, 1.0f};
        multiply_panel(rows, int(smaller<int64_t>(kNR, c.H - j * kNR)), term, c.dW + v * c.H + j * kNR, c.H, c.accumulate);
      }
    }
  });
}

// ---- its adapters' ----

template <class T>
struct AdapterRoom {
  Panel<T>*g, *wide, *thin;  // [kRows, N]; a panel of the head; one of Bt, of u or of h
  Panel<T>* turned;          // [R, N]: dU transposed
  int64_t ldt;               // from one row of g and of `turned` to the next
  float* products;           // [kRows, kNR]
  size_t bytes;
  AdapterRoom(const CrossEntropyGradient& c, void* base) {
    Arena arena(base);
    ldt = turned_stride<Panel<T>>(c.N);
    g = arena.take<Panel<T>>(kRows * ldt);
    wide = arena.take<Panel<T>>(forward_room<T>(*c.head));
    thin = arena.take<Panel<T>>(panel_size<T>(larger(c.adapters.rank, c.N)));
    turned = arena.take<Panel<T>>(c.adapters.rank * ldt);
    products = arena.take<float>(kRows * kNR);
    bytes = arena.used();
  }
};

/// Columns [v, v + rows) of dBt for one adapter, whose rows are [from, to).
template <class T>
void adapter_dBt(const CrossEntropyGradient& c, const AdapterRoom<T>& room, int64_t v, int64_t rows, int64_t slot, int64_t from,
                 int64_t to) {
  const HeadAdapters& a = c.adapters;
  float* dBt = c.dBt + slot * c.dBt_stride + v;
  for (int64_t r = 0; r < a.rank; r += kNR) {
    const int columns = int(smaller<int64_t>(kNR, a.rank - r));
    pack_panel_nn(static_cast<const T*>(a.u) + from * a.rank + r, a.rank, columns, to - from, room.thin);
    const Term<Panel<T>> term{room.g + from, room.ldt, room.thin, to - from, a.scale};
    multiply_panel(rows, kNR, term, room.products, kNR, false);
    for (int k = 0; k < columns; k++)
      for (int64_t i = 0; i < rows; i++) {
        float& element = dBt[(r + k) * c.head->rows + i];
        element = room.products[i * kNR + k] + (c.accumulate ? element : 0.0f);
      }
  }
}

/// Columns kNR * j.. of dA for one adapter.
template <class T>
void adapter_dA(const CrossEntropyGradient& c, const AdapterRoom<T>& room, int64_t j, int64_t slot, int64_t from, int64_t to) {
  const HeadAdapters& a = c.adapters;
  const int64_t length = to - from;
  const int columns = int(smaller<int64_t>(kNR, c.H - j * kNR));
  transpose(static_cast<const T*>(a.dU) + from * a.rank, a.rank, length, a.rank, room.turned, room.ldt);
  pack_panel_nn(static_cast<const T*>(c.h) + from * c.H + j * kNR, c.H, columns, length, room.thin);
  const Term<Panel<T>> term{room.turned, room.ldt, room.thin, length, 1.0f};
  multiply_panel(a.rank, columns, term, c.dA + slot * c.dA_stride + j * kNR, c.H, c.accumulate);
}

template <class T>
void adapter_gradient(const CrossEntropyGradient& c) {
  const int64_t blocks = (panel_count(c.head->rows) + kHeadPanels - 1) / kHeadPanels, tasks = blocks + panel_count(c.H);
  const size_t bytes = AdapterRoom<T>(c, nullptr).bytes;
  const int threads = num_threads();
  char* base = static_cast<char*>(scratch(bytes * threads));
  TaskQueue queue(tasks);
  parallel(threads, tasks, [&](Team team) {
    const AdapterRoom<T> room(c, base + bytes * team.rank);
    for (Range range = queue.take(team.size, 1); range.begin < range.end; range = queue.take(team.size, 1)) {
      const int64_t task = range.begin, v = task * kRows, rows = smaller(kRows, c.head->rows - v);
      for (int64_t r = 0; task < blocks && r < rows; r += kNR) {
        const Panel<T>* panel = forward_panel<T>(*c.head, (v + r) / kNR, room.wide);
        for_adapters(c.adapters, 0, c.N, [&](int64_t, int64_t from, int64_t to) {
          panel_gradient<T>(c, panel, v + r, from, to, room.thin, room.g + r * room.ldt, room.ldt);
        });
      }
      for_adapters(c.adapters, 0, c.N, [&](int64_t slot, int64_t from, int64_t to) {
        if (task < blocks)
          adapter_dBt(c, room, v, rows, slot, from, to);
        else
          adapter_dA(c, room, task - blocks, slot, from, to);
      });
    }
  });
}

}  // namespace

extern const CrossEntropyGradientKernels cross_entropy_gradient_kernels = {
    [](const CrossEntropyGradient& c) { c.dtype == kF32 ? weight_gradient<float>(c) : weight_gradient<bf16>(c); },
    [](const CrossEntropyGradient& c) { c.dtype == kF32 ? adapter_gradient<float>(c) : adapter_gradient<bf16>(c); },
};

}  // namespace dynadapt::DYN_ISA
