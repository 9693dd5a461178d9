// Products of whole numbers: up to kMR rows of quantised activations times one panel of int8 weights.
//
// Both are cut into groups of 64 along the contraction, each with one scale (dynadapt/ops/int8.py is the definition). A group's
// products are summed in int32, which is exact; then sum = fma(float(integers), scale_a * scale_b, sum), groups in order. So an
// element of the result has the same bits on every instruction set, whatever the rows and panels of the call.
//
// A panel is a run of blocks, one a group: 64 x kNR values, interleaved so that each 32 bits of it and of a row of A are what one
// lane of the instruction multiplies, then kNR scales. Two forms of the values exist:
//
//   Bytes  vpdpbusd, AVX512-VNNI and AVX-VNNI: [16][kNR][4] unsigned, 128 more than the weight, times [4] signed of A; the sum
//          starts at -128 times the sum of A's group. This is also how a matrix is stored.
//   Words  vpmaddwd and plain C: [32][kNR][2] int16, made from the stored panel once a call, for all rows. As fast as
//          vpmaddubsw, which needs the sign moved from one side to the other and a second multiplication to widen its sums.
//
// Logits take activations of fifteen bits, because few large ones would leave the others of their group too few steps: WideWords
// have them in 16 bits at no cost, WideBytes as two digits of base 256, one after the other.
#pragma once

#include "core/threads.h"
#include "cpu/kernels/lib/gemm.h"

namespace dynadapt::DYN_ISA {

constexpr int kScaleGroup = 64;  // values that share a scale
constexpr int kIntegerRows = 6;  // of a tile: whole and float sums of all its columns stay in the 32 registers of AVX-512
constexpr float kSmallestScale = 0x1p-100f;

inline int64_t group_count(int64_t size) { return (size + kScaleGroup - 1) / kScaleGroup; }

/// Bytes of one group and of a whole panel of the stored matrix, `depth` columns deep.
constexpr int64_t kStoredBlock = kNR * (kScaleGroup + 4);
inline int64_t stored_panel_bytes(int64_t depth) { return group_count(depth) * kStoredBlock; }

// ---- the two forms ----

inline float multiply_add(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline vfloat multiply_add(vfloat a, vfloat b, vfloat c) {
#if defined(__AVX512F__)
  return (vfloat)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
  return (vfloat)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  vfloat result;
  for (int i = 0; i < kWidth; i++) result[i] = __builtin_fmaf(a[i], b[i], c[i]);  // one rounding here as well
  return result;
#endif
}

/// To the nearest whole number, to even between two.
inline vint nearest(vfloat value) {
#if defined(__AVX512F__)
  return (vint)_mm512_cvtps_epi32((__m512)value);
#elif defined(__AVX2__)
  return (vint)_mm256_cvtps_epi32((__m256)value);
#else
  vint result;
  for (int i = 0; i < kWidth; i++) result[i] = int32_t(__builtin_lrintf(value[i]));
  return result;
#endif
}

/// In two steps: the compiler makes one of eight bits to 32 value by value.
inline vint load(const uint8_t* from) {
  typedef uint8_t bytes __attribute__((vector_size(kWidth)));
  bytes value;
  memcpy(&value, from, sizeof value);
  return __builtin_convertvector(__builtin_convertvector(value, vhalf), vint);
}
inline void store(int16_t* to, vint value) {
  const vhalf half = __builtin_convertvector(value, vhalf);
  memcpy(to, &half, sizeof half);
}
inline void store(int8_t* to, vint value) {
  typedef uint8_t bytes __attribute__((vector_size(kWidth)));
  const bytes narrow = __builtin_convertvector(__builtin_convertvector(value, vhalf), bytes);
  memcpy(to, &narrow, sizeof narrow);
}

struct Words {
  static constexpr bool kInteger = true;
  using Value = int16_t;
  static constexpr int kStep = 2;      // values in 32 bits
  static constexpr int32_t kBias = 0;  // of a panel's values
  static constexpr int kDigits = 1;    // of an activation
  static constexpr int kLargest = 127;

  /// sum + a b by pairs, in each lane; `a` is the same 32 bits for all lanes.
  static vint multiply(vint sum, const char* a, vint b) {
    int32_t pair;
    memcpy(&pair, a, 4);
#if defined(__AVX512F__)
    return sum + (vint)_mm512_madd_epi16(_mm512_set1_epi32(pair), (__m512i)b);
#elif defined(__AVX2__)
    return sum + (vint)_mm256_madd_epi16(_mm256_set1_epi32(pair), (__m256i)b);
#else
    const vint all = pair - vint{};
    return sum + ((all << 16) >> 16) * ((b << 16) >> 16) + (all >> 16) * (b >> 16);
#endif
  }
};

#if defined(__AVX2__)
struct Bytes {
  static constexpr bool kInteger = true;
  using Value = int8_t;
  static constexpr int kStep = 4;
  static constexpr int32_t kBias = 128;
  static constexpr int kDigits = 1;
  static constexpr int kLargest = 127;

  /// As above, by fours. In assembler, because the other kernels of this instruction set must run without it.
  static vint multiply(vint sum, const char* a, vint b) {
    int32_t four;
    memcpy(&four, a, 4);
#if defined(__AVX512F__)
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(b), "v"(_mm512_set1_epi32(four)));
#else
    asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(b), "x"(_mm256_set1_epi32(four)));
#endif
    return sum;
  }
};
struct WideBytes : Bytes {
  static constexpr int kDigits = 2;  // the high one of 64 values first
  static constexpr int kLargest = 127 * 256;
};
#else
using Bytes = Words;  // never asked for
#endif
struct WideWords : Words {
  static constexpr int kLargest = 127 * 256;
};
#if !defined(__AVX2__)
using WideBytes = WideWords;
#endif

/// Bytes of one group of a panel: its values, then its scales.
template <class Form>
constexpr int64_t kBlockBytes = kNR * (kScaleGroup * int64_t(sizeof(typename Form::Value)) + 4);
template <class Form>
constexpr int64_t kScalesAt = kNR * kScaleGroup * int64_t(sizeof(typename Form::Value));

template <class Form>
inline int64_t integer_panel_bytes(int64_t depth) {
  return group_count(depth) * kBlockBytes<Form>;
}

// ---- quantising ----

constexpr int32_t kInfinityBits = 0x7f800000;

/// The scale of values whose largest absolute value has these bits and is to be `steps`; NaN where it is not finite.
inline float scale_of(int32_t bits, int steps) {
  float most;
  memcpy(&most, &bits, 4);
  return bits >= kInfinityBits ? __builtin_nanf("") : larger(most / float(steps), kSmallestScale);
}

inline vint absolute_bits(vfloat value) { return (vint)value & 0x7fffffff; }
inline vint larger_bits(vint a, vint b) { return a > b ? a : b; }

/// Rows of A in groups: group g of row r has its values at values + (g stride + r) 64, its scale at scale + g stride + r. A group's
/// rows lie side by side, so that a tile reads them all from one address.
template <class Form>
struct IntegerRows {
  typename Form::Value* values;
  float* scale;
  int32_t* offset;  // what the sum of a group starts at
  int64_t stride;   // rows from a group to the next

  IntegerRows from(int64_t row, int64_t group) const {
    const int64_t at = group * stride + row;
    return {values + at * kScaleGroup * Form::kDigits, scale + at, offset + at, stride};
  }
  /// Room for `rows` rows; fields stay null where the arena only measures.
  static IntegerRows take(Arena& arena, int64_t rows, int64_t groups) {
    // Groups a power of two apart would push a tile's rows out of the cache between them.
    const int64_t stride = rows < 64 ? rows : round_up(rows, 64) + 16;
    IntegerRows out;
    out.values = arena.take<typename Form::Value>(stride * groups * kScaleGroup * Form::kDigits);
    out.scale = arena.take<float>(stride * groups);
    out.offset = arena.take<int32_t>(stride * groups);
    out.stride = stride;
    return out;
  }
};

/// One group of up to 64 values, the largest to be `steps`: returns its scale, writes all 64 places of q and the sum of them.
template <class Value, class T>
inline float quantize_group(const T* x, int count, int steps, Value* q, int32_t& total) {
  alignas(64) float wide[kScaleGroup];
  vint most{};
  for (int i = 0; i < kScaleGroup; i += kWidth) {
    const vfloat v = i + kWidth <= count ? load(x + i) : i < count ? load(x + i, count - i) : vfloat{};
    store(wide + i, v);
    most = larger_bits(most, absolute_bits(v));
  }
  int32_t bits = 0;
  for (int i = 0; i < kWidth; i++) bits = larger(bits, most[i]);
  const float scale = scale_of(bits, steps);
  total = 0;
  if (scale != scale) {
    memset(q, 0, kScaleGroup * sizeof(Value));
    return scale;
  }
  const vfloat inverse = splat(1.0f / scale);
  vint sums{};
  for (int i = 0; i < kScaleGroup; i += kWidth) {
    const vint n = nearest(load(wide + i) * inverse);
    sums += n;
    store(q + i, n);
  }
  for (int i = 0; i < kWidth; i++) total += sums[i];
  return scale;
}

/// One row of `size` values into the first row of `to`.
template <class Form, class T>
inline void quantize_row(const T* x, int64_t size, const IntegerRows<Form>& to) {
  for (int64_t g = 0; g < group_count(size); g++) {
    const IntegerRows<Form> here = to.from(0, g);
    const int count = int(smaller<int64_t>(kScaleGroup, size - g * kScaleGroup));
    int32_t total;
    if constexpr (Form::kDigits == 2) {
      int16_t q[kScaleGroup];
      *here.scale = quantize_group(x + g * kScaleGroup, count, Form::kLargest, q, total);
      for (int k = 0; k < kScaleGroup; k++) {
        here.values[k] = int8_t((q[k] + 128) >> 8);
        here.values[kScaleGroup + k] = int8_t(q[k]);  // q - 256 high
      }
    } else {
      *here.scale = quantize_group(x + g * kScaleGroup, count, Form::kLargest, here.values, total);
    }
    *here.offset = -Form::kBias * total;
  }
}

// ---- panels ----

/// A panel of the stored matrix in the form that multiplies: as it is, or made in `room` (integer_panel_bytes<Form>).
template <class Form>
inline const char* integer_panel(const char* stored, int64_t depth, char* room) {
  if constexpr (Form::kStep == 4) {
    return stored;
  } else {
    for (int64_t g = 0; g < group_count(depth); g++, stored += kStoredBlock, room += kBlockBytes<Words>) {
      const uint8_t* from = reinterpret_cast<const uint8_t*>(stored);
      int16_t* to = reinterpret_cast<int16_t*>(room);
      for (int four = 0; four < kScaleGroup / 4; four++, from += 4 * kNR, to += 4 * kNR)
        for (int n = 0; n < kNR; n++) {
          to[2 * n] = int16_t(from[4 * n] - 128);
          to[2 * n + 1] = int16_t(from[4 * n + 1] - 128);
          to[2 * kNR + 2 * n] = int16_t(from[4 * n + 2] - 128);
          to[2 * kNR + 2 * n + 1] = int16_t(from[4 * n + 3] - 128);
        }
      memcpy(room + kScalesAt<Words>, stored + kNR * kScaleGroup, kNR * 4);
    }
    return room - group_count(depth) * kBlockBytes<Words>;
  }
}

/// wide[r][n] = the weight's value in row r of a stored panel and column `column` + n, for kNR rows and columns; `most` [kNR] grows to
/// the bits of each column's largest absolute value.
inline void dequantize_square(const char* stored, int64_t column, float* wide, int32_t* most) {
  const char* block = stored + column / kScaleGroup * kStoredBlock;
  const uint8_t* values = reinterpret_cast<const uint8_t*>(block) + column % kScaleGroup * kNR;
  alignas(64) uint8_t turned[kNR * 64];  // row r at 64 r
#if defined(__AVX512F__)
  for (int r = 0; r < kNR; r += 16) transpose_tile<float>(values + 4 * r, 4 * kNR, kNR / 4, turned + 64 * r, 64);
#else
  for (int r = 0; r < kNR; r++)
    for (int n = 0; n < kNR; n += 4) memcpy(turned + 64 * r + n, values + n * kNR + 4 * r, 4);
#endif
  float scales[kNR];
  memcpy(scales, block + kNR * kScaleGroup, sizeof scales);
  for (int n = 0; n < kNR; n += kWidth) {
    vint largest;
    memcpy(&largest, most + n, sizeof largest);
    for (int r = 0; r < kNR; r++) {
      const vfloat value = __builtin_convertvector(load(turned + 64 * r + n) - 128, vfloat) * splat(scales[r]);
      store(wide + r * kNR + n, value);
      largest = larger_bits(largest, absolute_bits(value));
    }
    memcpy(most + n, &largest, sizeof largest);
  }
}

/// One block of a backward panel from wide [64][kNR] and the bits of its columns' largest: a group is 64 rows of a column.
template <class Form>
inline void quantize_columns(const float* wide, const int32_t* most, char* block) {
  for (int n = 0; n < kNR; n += kWidth) {
    vint bits;
    memcpy(&bits, most + n, sizeof bits);
    vfloat scale = maximum(splat(kSmallestScale), (vfloat)bits / splat(127.0f));
    scale = bits >= kInfinityBits ? splat(__builtin_nanf("")) : scale;  // whatever the values, what they reach is NaN
    const vfloat inverse = splat(1.0f) / scale;
    memcpy(block + kScalesAt<Form> + 4 * n, &scale, sizeof scale);
    const float* from = wide + n;
    for (char* to = block + 4 * n; to < block + kScalesAt<Form>; to += 4 * kNR, from += Form::kStep * kNR) {
      const auto q = [&](int r) { return (vuint)nearest(load(from + r * kNR) * inverse); };  // sums of bytes carry and wrap
      vuint packed;
      if constexpr (Form::kStep == 4)
        packed = q(0) + (q(1) << 8) + (q(2) << 16) + (q(3) << 24) + 0x80808080u;  // 128 more in each byte
      else
        packed = (q(0) & 0xffff) | (q(1) << 16);
      memcpy(to, &packed, sizeof packed);
    }
  }
}

// ---- products ----

/// c [M, NV * kWidth] += rows of A times the panel's columns from `panel` on.
template <class Form, int M, int NV>
[[gnu::noinline]] void integer_tile(const IntegerRows<Form>& a, const char* panel, int64_t groups, float* c, int64_t ldc) {
  constexpr int kUnits = kScaleGroup / Form::kStep;
  constexpr int64_t kRow = 4 * kUnits * Form::kDigits;
  const char* values = reinterpret_cast<const char*>(a.values);
  const float* row_scale = a.scale;
  const int32_t* offset = a.offset;
  vfloat sum[M][NV];
#pragma GCC unroll 16
  for (int i = 0; i < M; i++)
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) sum[i][j] = load(c + i * ldc + j * kWidth);
  for (; groups > 0; groups--, panel += 4 * kNR, values += a.stride * kRow, row_scale += a.stride, offset += a.stride) {
    vint whole[M][NV];
#pragma GCC unroll 16
    for (int i = 0; i < M; i++)
#pragma GCC unroll 4
      for (int j = 0; j < NV; j++) whole[i][j] = Form::kBias && Form::kDigits == 1 ? offset[i] - vint{} : vint{};
    const auto add_products = [&](const char* digit) {
      const char* b_at = panel;
#pragma GCC unroll 1  // more would not fit the registers
      for (int u = 0; u < kUnits; u++, b_at += 4 * kNR, digit += 4) {
        vint b[NV];
#pragma GCC unroll 4
        for (int j = 0; j < NV; j++) {
          memcpy(&b[j], b_at + j * kWidth * 4, sizeof b[j]);
          if (j * kWidth % 16 == 0) __builtin_prefetch(b_at + j * kWidth * 4 + kPanelAhead);
        }
#pragma GCC unroll 16
        for (int i = 0; i < M; i++)
#pragma GCC unroll 4
          for (int j = 0; j < NV; j++) whole[i][j] = Form::multiply(whole[i][j], digit + i * kRow, b[j]);
      }
    };
    add_products(values);
    if constexpr (Form::kDigits == 2) {
#pragma GCC unroll 16
      for (int i = 0; i < M; i++)
#pragma GCC unroll 4
        for (int j = 0; j < NV; j++) whole[i][j] = (whole[i][j] << 8) + offset[i];
      add_products(values + 4 * kUnits);
    }
    panel += kUnits * 4 * kNR;
    vfloat scale[NV];
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) memcpy(&scale[j], panel + j * kWidth * 4, sizeof scale[j]);
#pragma GCC unroll 16
    for (int i = 0; i < M; i++) {
      const vfloat row = splat(row_scale[i]);
#pragma GCC unroll 4
      for (int j = 0; j < NV; j++)
        sum[i][j] = multiply_add(__builtin_convertvector(whole[i][j], vfloat), row * scale[j], sum[i][j]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < M; i++)
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) store(c + i * ldc + j * kWidth, sum[i][j]);
}

template <class Form, int NV>
inline void integer_tile_of(int rows, const IntegerRows<Form>& a, const char* panel, int64_t groups, float* c, int64_t ldc) {
  switch (rows) {
#define DYN_ROWS(n) \
  case n:           \
    return integer_tile<Form, n, NV>(a, panel, groups, c, ldc);
    DYN_ROWS(1)
    DYN_ROWS(2)
    DYN_ROWS(3)
    DYN_ROWS(4)
    DYN_ROWS(5)
    DYN_ROWS(6)
#undef DYN_ROWS
  }
}

/// A term of a product: rows of A and their panel.
template <class Form>
struct IntegerTerm {
  IntegerRows<Form> a;
  const char* panel;
  int64_t groups;
};

/// c [rows, columns rounded up to whole vectors] += rows of A times a panel, for rows <= kMR, columns <= kNR.
template <class Form>
inline void integer_multiply(int rows, int columns, const IntegerRows<Form>& a, const char* panel, int64_t groups, float* c,
                             int64_t ldc) {
  constexpr int kVectors = kNR / kWidth;
  for (int i = 0; i < rows; i += kIntegerRows) {
    const int here = smaller(kIntegerRows, rows - i);
    if (columns <= kNR / 2)
      integer_tile_of<Form, kVectors / 2>(here, a.from(i, 0), panel, groups, c + i * ldc, ldc);
    else
      integer_tile_of<Form, kVectors>(here, a.from(i, 0), panel, groups, c + i * ldc, ldc);
  }
}

/// out [M, columns] = the low-rank term (or null), then the integer ones, then the bias (or null), rounded to T.
template <class Form, class T>
inline void integer_rounded(int64_t M, int columns, const Term<T>* low, const IntegerTerm<Form>* terms, int count, const T* bias,
                            T* out, int64_t ldo) {
  alignas(64) float sums[kMR * kNR];
  const RowTiles tiles(M);
  for (int64_t t = 0; t < tiles.count; t++) {
    const int rows = tiles.size(t);
    const int64_t begin = tiles.begin(t);
    T* to = out + begin * ldo;
    for (int i = 0; i < rows; i++) __builtin_prefetch(to + i * ldo, 1);
    if (low) {
      const Term<T> here = low->from_row(begin);
      multiply_tile(rows, columns, &here, 1, sums, kNR, Into::write);
    } else {
      memset(sums, 0, sizeof(float) * rows * kNR);
    }
    for (int i = 0; i < count; i++)
      integer_multiply(rows, columns, terms[i].a.from(begin, 0), terms[i].panel, terms[i].groups, sums, kNR);
    store_rounded(rows, columns, sums, bias, to, ldo);
  }
}

}  // namespace dynadapt::DYN_ISA
