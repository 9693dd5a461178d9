// The gated delta rule, forward and backward, chunk by chunk; the algebra of a chunk's forward pass is in lib/delta_chunk.h.
//
// A task is a key head of a stream with its value heads. Backward passes over the chunks twice: ahead, for the states, the writes
// W and what they lack (Y = V - e^G K S), which stay in scratch; and back, with dS the gradient of the state behind a chunk:
//
//   dW = P' dO + (e^(G_end - G) K) dS       dR = (I + A)^-T dW      X = -beta e^G dR
//   dV = beta dR    dbeta_i = dR_i.Y_i      dA = -dR W'             dP = dO W'
//   dQ = e^G dO S' + (dP D) K               dK = X S' + e^(G_end - G) W dS' + (dP D)' Q + (N + N') K,  N = beta dA D
//   dS <- e^G_end dS + (e^G Q)' dO + K' X
//
// Each factor that holds e^(G_i - G_j) gives its share of the loss to dG_i and takes it from dG_j; dg is the sum of dG from there on.
#include "cpu/kernels/lib/delta_chunk.h"

namespace dynadapt::DYN_ISA {
namespace {

// ---- forward ----

template <class T>
struct ForwardRoom {
  ForwardRoom(void* base, const DeltaPlan& p) : arena(base), chunk(arena, p), gates(arena), work(arena, p) {
    states = arena.take<float>(p.group * p.state);
  }
  Arena arena;
  KeyChunk chunk;
  Gates gates;
  HeadWork work;
  float* states;  // of the group's value heads
};

template <class T>
void forward_task(const DeltaRuleForward& a, const DeltaPlan& p, int64_t index, int64_t key_head, void* base) {
  ForwardRoom<T> room(base, p);
  const DeltaRuleInputs& in = a.in;
  const int64_t first = index * p.segment, length = length_of(in, index), heads = int64_t(in.value_heads);
  for (int64_t j = 0; j < p.group; j++) load_state(in, p, index, key_head * p.group + j, room.states + j * p.state);
  for (int64_t t = 0; t < length; t += kChunk) {
    const T* row = static_cast<const T*>(in.qkv) + (first + t) * p.width;
    room.chunk.load_tokens(p, row + key_head * p.dk, smaller(kChunk, length - t));
    for (int64_t j = 0; j < p.group; j++) {
      const int64_t head = key_head * p.group + j, gate = (first + t) * heads + head;
      room.gates.load_gates(in.g + gate, in.beta + gate, heads, p.scale, room.chunk);
      T* out = static_cast<T*>(a.out) + (first + t) * p.values + head * p.dv;
      advance<T>(p, room.chunk, room.gates, row + 2 * p.keys + head * p.dv, room.states + j * p.state, room.work,
                 {out, nullptr, nullptr});
    }
  }
  for (int64_t t = length; t < p.segment; t++)
    memset(static_cast<void*>(static_cast<T*>(a.out) + (first + t) * p.values + key_head * p.group * p.dv), 0,
           p.group * p.dv * sizeof(T));
  if (!a.final) return;
  for (int64_t j = 0; j < p.group; j++) {
    float* to = a.final + (index * heads + key_head * p.group + j) * p.dk * p.dv;
    for (int64_t b = 0; b < p.panels; b++)
      for (int64_t i = 0; i < p.dk; i++)
        memcpy(to + i * p.dv + b * kNR, room.states + j * p.state + (b * p.dk + i) * kNR, p.columns(b) * sizeof(float));
  }
}

template <class T>
void forward(const DeltaRuleForward& a) {
  const DeltaPlan p(a.in);
  for_key_heads(a.in, ForwardRoom<T>(nullptr, p).arena.used(),
                [&](int64_t stream, int64_t head, void* room) { forward_task<T>(a, p, stream, head, room); });
}

// ---- backward ----

/// Scratch of one key head of one stream.
template <class T>
struct BackwardRoom {
  BackwardRoom(void* base, const DeltaPlan& p) : arena(base), chunk(arena, p), gates(arena), work(arena, p) {
    states = arena.take<float>(p.chunks * p.group * p.state);
    lacks = arena.take<float>(p.chunks * p.group * kChunk * p.dv);
    writes = arena.take<float>(p.chunks * p.group * kChunk * p.dv);
    dstates = arena.take<float>(p.group * p.state);
    dout = arena.take<float>(kChunk * p.dv);
    dout_panels = arena.take<float>(kChunk * p.panels * kNR);
    dr = arena.take<float>(kChunk * p.dv);
    x_panels = arena.take<float>(kChunk * p.panels * kNR);
    writes_nt = arena.take<char>(panels_bytes<float>(kChunk, p.dv));
    state_nt = arena.take<char>(panels_bytes<float>(p.dk, p.dv));
    keys_nn = arena.take<char>(panels_bytes<float>(p.dk, kChunk));
    queries_nn = arena.take<char>(panels_bytes<float>(p.dk, kChunk));
    keys_turned = arena.take<float>(p.dk * kChunk);
    turned = arena.take<float>(kSquare);
    da = arena.take<float>(kSquare);
    dp = arena.take<float>(kSquare);
    sums = arena.take<float>(kSquare);
    part = arena.take<float>(kChunk * p.dk);
    dq = arena.take<float>(kChunk * p.dk);
    dk = arena.take<float>(kChunk * p.dk);
  }
  Arena arena;
  KeyChunk chunk;
  Gates gates;
  HeadWork work;
  float* states;          // [chunks, group]: ahead of each chunk
  float *lacks, *writes;  // [chunks, group, kChunk, dv]
  float* dstates;         // [group]: of the state behind the chunk
  float *dout, *dr;       // [n, dv]; dr becomes X
  float *dout_panels, *x_panels;
  char *writes_nt, *state_nt;      // packed for products with their transpose
  char *keys_nn, *queries_nn;      // packed
  float* keys_turned;              // [dk, kChunk]
  float *turned, *da, *dp, *sums;  // [n, kChunk]
  float *part, *dq, *dk;           // [n, dk]; the last two of the group's heads together
};

/// Packs the transpose of a state that lies in panels.
inline void pack_state_nt(const DeltaPlan& p, const float* state, char* to) {
  float* panel = reinterpret_cast<float*>(to);
  for (int64_t d = 0; d < p.dk; d += kNR, panel += p.dv * kNR)
    for (int64_t b = 0; b < p.panels; b++)
      pack_panel_nt(state + (b * p.dk + d) * kNR, kNR, int(smaller<int64_t>(kNR, p.dk - d)), p.columns(b), panel + b * kNR * kNR);
}

/// sums [t] += factor_t part_t . x_t, and to = or += factor_t part_t, for n rows of d.
inline void take_part(const float* part, const float* x, const float* factors, int64_t n, int64_t d, bool add, float* to,
                      double* shares) {
  for (int64_t t = 0; t < n; t++) {
    const float factor = factors ? factors[t] : 1.0f;
    vfloat along{};
    for_vectors(d, [&](size_t i, auto lanes) {
      const vfloat value = load(part + t * d + i, lanes) * factor;
      along += value * load(x + t * d + i, lanes);
      store(to + t * d + i, add ? load(to + t * d + i, lanes) + value : value, lanes);
    });
    shares[t] = sum(along);
  }
}

/// What the pair (i, j) of tokens gives: `of_pairs` [n, kChunk] holds the gradient of a matrix that D is a factor of and becomes
/// that of the other factors' product; `matrix` holds that matrix. dG gets its shares.
inline void through_decay(const float* matrix, const float* decay, int64_t n, float* of_pairs, double* dG) {
  alignas(64) float taken[kChunk] = {};
  for (int64_t i = 0; i < n; i++) {
    vfloat given{};
    for (int64_t j = 0; j <= i; j += kWidth) {
      const int64_t at = i * kChunk + j;
      const vfloat gradient = lane_numbers() + int(j) <= int(i) ? load(of_pairs + at) : vfloat{};
      const vfloat share = gradient * load(matrix + at);
      given += share;
      store(taken + j, load(taken + j) + share);
      store(of_pairs + at, gradient * load(decay + at));
    }
    for (int64_t j = round_up(i + 1, kWidth); j < n; j += kWidth) store(of_pairs + i * kChunk + j, vfloat{});
    dG[i] += sum(given);
  }
  for (int64_t j = 0; j < n; j++) dG[j] -= taken[j];
}

/// One value head of one chunk, `rows` the first row, `at` of the head in scratch. Adds to dq, dk (`first`: writes).
template <class T>
void backward_head(const DeltaRuleBackward& a, const DeltaPlan& p, BackwardRoom<T>& w, int64_t row, int64_t head, int64_t at,
                   float* dstate, bool first) {
  const int64_t n = w.chunk.n, heads = int64_t(a.in.value_heads), gate = row * heads + head;
  const Gates& gates = w.gates;
  w.gates.load_gates(a.in.g + gate, a.in.beta + gate, heads, p.scale, w.chunk);
  const float* const state = w.states + at * p.state;
  const float* const writes = w.writes + at * kChunk * p.dv;
  const float* const lacks = w.lacks + at * kChunk * p.dv;
  const T* const dout = static_cast<const T*>(a.dout) + row * p.values + head * p.dv;
  for (int64_t t = 0; t < n; t++)
    for_vectors(p.dv, [&](size_t i, auto part) { store(w.dout + t * p.dv + i, load(dout + t * p.values + i, part), part); });
  pack_nn(w.dout, p.dv, n, p.dv, w.dout_panels);

  // dW and dR, panel by panel
  scale_rows(w.chunk.k, gates.to_end, 1.0f, n, p.dk, w.work.scaled);
  transpose(gates.p, kChunk, n, n, w.turned, kChunk);
  transpose(gates.minus_a, kChunk, n, n, w.sums, kChunk);
  for (int64_t b = 0; b < p.panels; b++) {
    const int columns = p.columns(b);
    const Term<float> terms[2] = {{w.turned, kChunk, w.dout_panels + b * n * kNR, n, 1.0f},
                                  {w.work.scaled, p.dk, dstate + b * p.dk * kNR, p.dk, 1.0f}};
    into_panel(n, columns, terms, 2, w.work.panel, Into::write);
    solve_transposed(w.sums, n, columns, w.work.panel);
    for (int64_t t = 0; t < n; t++)
      for_vectors(columns,
                  [&](size_t c, auto part) { store(w.dr + t * p.dv + b * kNR + c, load(w.work.panel + t * kNR + c), part); });
  }

  // dV, dbeta, dA, dP, X
  pack_nt(writes, p.dv, n, p.dv, w.writes_nt);
  gemm(n, n, p.dv, w.dr, p.dv, w.writes_nt, w.da, kChunk, false);
  gemm(n, n, p.dv, w.dout, p.dv, w.writes_nt, w.dp, kChunk, false);
  double dG[kChunk] = {}, shares[kChunk];
  for (int64_t t = 0; t < n; t++) {
    T* dv = static_cast<T*>(a.dqkv) + (row + t) * p.width + 2 * p.keys + head * p.dv;
    float* dr = w.dr + t * p.dv;
    const float of_state = -gates.beta[t] * gates.from_start[t];
    vfloat along{};
    for_vectors(p.dv, [&](size_t i, auto part) {
      const vfloat g = load(dr + i, part);
      along += g * load(lacks + t * p.dv + i, part);
      store(dv + i, g * gates.beta[t], part);
      store(dr + i, g * of_state, part);
    });
    // beta is also a factor of A: row t of -dR W' times D k_t.k_j
    vfloat of_a{};
    for (int64_t j = 0; j < t; j += kWidth) {
      const int64_t pair = t * kChunk + j;
      const vfloat value = load(w.da + pair) * load(gates.decay + pair) * load(w.chunk.kk + pair);
      of_a += lane_numbers() + int(j) < int(t) ? value : vfloat{};
    }
    a.dbeta[gate + t * heads] = sum(along) - sum(of_a);
  }
  through_decay(gates.minus_a, gates.decay, n, w.da, dG);  // dR W' is the gradient of -A
  through_decay(gates.p, gates.decay, n, w.dp, dG);

  // dQ and dK
  pack_state_nt(p, state, w.state_nt);
  gemm(n, p.dk, p.dv, w.dout, p.dv, w.state_nt, w.part, p.dk, false);
  scale_rows(w.chunk.q, gates.from_start, p.scale, n, p.dk, w.work.queries);
  take_part(w.part, w.chunk.q, gates.from_start, n, p.dk, !first, w.dq, shares);
  for (int64_t t = 0; t < n; t++) dG[t] += p.scale * shares[t];
  gemm(n, p.dk, p.dv, w.dr, p.dv, w.state_nt, w.part, p.dk, false);
  take_part(w.part, w.chunk.k, nullptr, n, p.dk, !first, w.dk, shares);
  for (int64_t t = 0; t < n; t++) dG[t] += shares[t];
  pack_state_nt(p, dstate, w.state_nt);
  gemm(n, p.dk, p.dv, writes, p.dv, w.state_nt, w.part, p.dk, false);
  take_part(w.part, w.chunk.k, gates.to_end, n, p.dk, true, w.dk, shares);
  for (int64_t t = 0; t < n; t++) dG[t] -= shares[t], dG[n - 1] += shares[t];
  gemm(n, p.dk, n, w.dp, kChunk, w.keys_nn, w.dq, p.dk, true);
  transpose(w.dp, kChunk, n, n, w.turned, kChunk);
  for (int64_t i = 0; i < n; i++)
    for_vectors(
        n, [&](size_t j, auto part) { store(w.turned + i * kChunk + j, load(w.turned + i * kChunk + j, part) * p.scale, part); });
  gemm(n, p.dk, n, w.turned, kChunk, w.queries_nn, w.dk, p.dk, true);
  for (int64_t i = 0; i < n; i++)
    for_vectors(n, [&](size_t j, auto part) {
      float* to = w.da + i * kChunk + j;
      store(to, lane_numbers() + int(j) < int(i) ? load(to, part) * -gates.beta[i] : vfloat{}, part);
    });
  transpose(w.da, kChunk, n, n, w.turned, kChunk);
  for (int64_t i = 0; i < n; i++) add_scaled(w.da + i * kChunk, w.turned + i * kChunk, 1.0f, n);
  gemm(n, p.dk, n, w.da, kChunk, w.keys_nn, w.dk, p.dk, true);

  // dS, and what its decay gives
  pack_nn(w.dr, p.dv, n, p.dv, w.x_panels);
  transpose(w.work.queries, p.dk, n, p.dk, w.work.turned, kChunk);
  for (int64_t b = 0; b < p.panels; b++) {
    vfloat kept{};
    float* const ds = dstate + b * p.dk * kNR;
    const int columns = p.columns(b);
    for (int64_t i = 0; i < p.dk; i++)
      for_vectors(columns, [&](size_t c, auto part) {
        const vfloat value = load(ds + i * kNR + c) * gates.whole;
        kept += keep(value * load(state + (b * p.dk + i) * kNR + c), part);
        store(ds + i * kNR + c, value);
      });
    const Term<float> terms[2] = {{w.work.turned, kChunk, w.dout_panels + b * n * kNR, n, 1.0f},
                                  {w.keys_turned, kChunk, w.x_panels + b * n * kNR, n, 1.0f}};
    into_panel(p.dk, columns, terms, 2, ds, Into::add);
    dG[n - 1] += sum(kept);
  }
  double total = 0;
  for (int64_t t = n - 1; t >= 0; t--) {
    total += dG[t];
    a.dg[gate + t * heads] = float(total);
  }
}

/// The gradient of raw rows from that of rows of length 1: to = (scale dy - y (y . scale dy)) / length.
template <class T>
inline void through_unit(const float* dy, const float* y, float scale, float inverse, int64_t d, T* to) {
  const float along = dot(dy, y, d);
  for_vectors(
      d, [&](size_t i, auto part) { store(to + i, (load(dy + i, part) - load(y + i, part) * along) * (scale * inverse), part); });
}

template <class T>
void backward_task(const DeltaRuleBackward& a, const DeltaPlan& p, int64_t index, int64_t key_head, void* base) {
  BackwardRoom<T> w(base, p);
  const DeltaRuleInputs& in = a.in;
  const int64_t first = index * p.segment, length = length_of(in, index), heads = int64_t(in.value_heads);
  const int64_t chunks = (length + kChunk - 1) / kChunk, first_head = key_head * p.group;
  const auto load_chunk = [&](int64_t c) {
    const T* row = static_cast<const T*>(in.qkv) + (first + c * kChunk) * p.width;
    w.chunk.load_tokens(p, row + key_head * p.dk, smaller(kChunk, length - c * kChunk));
    return row;
  };
  for (int64_t j = 0; j < p.group; j++) load_state(in, p, index, first_head + j, w.states + j * p.state);
  for (int64_t c = 0; c < chunks; c++) {
    const T* row = load_chunk(c);
    for (int64_t j = 0; j < p.group; j++) {
      const int64_t head = first_head + j, gate = (first + c * kChunk) * heads + head, at = c * p.group + j;
      float* state = w.states + at * p.state;
      w.gates.load_gates(in.g + gate, in.beta + gate, heads, p.scale, w.chunk);
      float* ahead = c + 1 < chunks ? state + p.group * p.state : w.dstates;
      memcpy(ahead, state, p.state * sizeof(float));
      advance<T>(p, w.chunk, w.gates, row + 2 * p.keys + head * p.dv, ahead, w.work,
                 {nullptr, w.lacks + at * kChunk * p.dv, w.writes + at * kChunk * p.dv});
    }
  }
  memset(w.dstates, 0, p.group * p.state * sizeof(float));
  for (int64_t c = chunks - 1; c >= 0; c--) {
    load_chunk(c);
    const int64_t row = first + c * kChunk, n = w.chunk.n;
    pack_nn(w.chunk.k, p.dk, n, p.dk, w.keys_nn);
    pack_nn(w.chunk.q, p.dk, n, p.dk, w.queries_nn);
    transpose(w.chunk.k, p.dk, n, p.dk, w.keys_turned, kChunk);
    for (int64_t j = 0; j < p.group; j++)
      backward_head(a, p, w, row, first_head + j, c * p.group + j, w.dstates + j * p.state, j == 0);
    for (int64_t t = 0; t < n; t++) {
      T* to = static_cast<T*>(a.dqkv) + (row + t) * p.width + key_head * p.dk;
      through_unit(w.dq + t * p.dk, w.chunk.q + t * p.dk, p.scale, w.chunk.q_inverse[t], p.dk, to);
      through_unit(w.dk + t * p.dk, w.chunk.k + t * p.dk, 1.0f, w.chunk.k_inverse[t], p.dk, to + p.keys);
    }
  }
  for (int64_t t = length; t < p.segment; t++) {
    T* to = static_cast<T*>(a.dqkv) + (first + t) * p.width;
    memset(static_cast<void*>(to + key_head * p.dk), 0, p.dk * sizeof(T));
    memset(static_cast<void*>(to + p.keys + key_head * p.dk), 0, p.dk * sizeof(T));
    memset(static_cast<void*>(to + 2 * p.keys + first_head * p.dv), 0, p.group * p.dv * sizeof(T));
    memset(a.dg + (first + t) * heads + first_head, 0, p.group * sizeof(float));
    memset(a.dbeta + (first + t) * heads + first_head, 0, p.group * sizeof(float));
  }
}

template <class T>
void backward(const DeltaRuleBackward& a) {
  const DeltaPlan p(a.in);
  for_key_heads(a.in, BackwardRoom<T>(nullptr, p).arena.used(),
                [&](int64_t stream, int64_t head, void* room) { backward_task<T>(a, p, stream, head, room); });
}

}  // namespace

const ByType<DeltaRuleKernels> delta_rule_kernels = {{forward<float>, backward<float>}, {forward<bf16>, backward<bf16>}};

}  // namespace dynadapt::DYN_ISA
