// Weights quantised in blocks along a row, as GGUF files have them, kept as they are.
//
// A block of a row is kBytes bytes for kBlock columns. The blocks of the kNR rows of a panel lie side by side, byte by byte:
// panels[j][block][b][n] is byte b of row n's block. So the storage is as large as the file's tensor (the last panel's missing
// rows aside), and a vector of rows reads its bytes in one load, whatever the format.
//
// A format says what one column is (`Run`): a scale, a minimum and where the bits stand, for kRun columns at a time. Every
// product of a scale with an integer is exact in float32 but Q6_K's last, and no sum is rounded twice, so that all instruction
// sets, with multiply-add or without, give the values that the format defines, to the bit.
#pragma once

#include "core/threads.h"
#include "cpu/kernels/lib/storage.h"

namespace dynadapt::DYN_ISA {

// ---- bytes of kWidth rows ----

inline vint unsigned_bytes(const uint8_t* from) {
#if defined(__AVX512F__)
  return (vint)_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#elif defined(__AVX2__)
  return (vint)_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
#else
  vint value;
  for (int i = 0; i < kWidth; i++) value[i] = from[i];
  return value;
#endif
}

inline vint signed_bytes(const uint8_t* from) { return unsigned_bytes(from) << 24 >> 24; }
inline vfloat as_float(vint value) { return __builtin_convertvector(value, vfloat); }

/// float16 whose low bytes lie at `from` and whose high ones kNR further. Infinities and NaN stay what they are.
inline vfloat halves(const uint8_t* from) {
  const vint bits = unsigned_bytes(from) | unsigned_bytes(from + kNR) << 8;
  const vint exponent = bits & 0x7c00, fraction = bits & 0x3ff;
  const vint rebased = ((bits & 0x7fff) << 13) + (112 << 23);
  const vint special = (fraction << 13) | 0x7f800000;
  const vint small = (vint)(as_float(fraction) * 5.9604644775390625e-8f);  // 2^-24: no float32 is too small to be normal
  const vint magnitude = exponent == 0 ? small : exponent == 0x7c00 ? special : rebased;
  return (vfloat)(magnitude | (bits & 0x8000) << 16);
}

// ---- one column of kWidth rows into a panel ----

/// The nearest bfloat16, to even between two, as a float; NaN stays NaN.
inline vfloat to_nearest_bf16(vfloat value) {
  const vuint bits = (vuint)value;
  const vuint rounded = (bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000u;
  return (vfloat)(value == value ? rounded : bits | 0x400000u);
}

/// Columns [first, first + columns) of a run into a panel, at `to` for the first.
template <class T, class Run>
inline void write_columns(const Run& run, int first, int columns, Panel<T>* to) {
  if constexpr (kInterleave<Panel<T>> == 2) {
#if defined(__AVX512BF16__)
    const __m512i pairs = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20,
                                           4, 19, 3, 18, 2, 17, 1, 16, 0);
    for (int k = 0; k < columns; k += 2) {
      const __m512bh both = _mm512_cvtne2ps_pbh((__m512)run.column(first + k + 1), (__m512)run.column(first + k));
      _mm512_storeu_si512(to + k * kNR, _mm512_permutexvar_epi16(pairs, (__m512i)both));
    }
#endif
  } else {
    for (int k = 0; k < columns; k++) {
      const vfloat value = run.column(first + k);
      store(to + k * kNR, sizeof(T) == 2 ? to_nearest_bf16(value) : value);
    }
  }
}

template <class Format>
struct BlockStorage {
  static constexpr int kGroup = Format::kBytes * kNR;  // bytes of one block of all rows of a panel

  static size_t bytes(int64_t rows, int64_t columns) { return size_t(panel_count(rows) * (columns / Format::kBlock)) * kGroup; }

  /// `weight`: the rows' blocks one after the other, as in the file.
  static void pack(Matrix& matrix, const void* weight) {
    const int64_t blocks = matrix.columns / Format::kBlock, row_bytes = blocks * Format::kBytes;
    parallel(num_threads(), panel_count(matrix.rows), [&](Team team) {
      const auto panels = team.share(panel_count(matrix.rows));
      for (int64_t j = panels.begin; j < panels.end; j++) {
        const uint8_t* from = static_cast<const uint8_t*>(weight) + j * kNR * row_bytes;
        uint8_t* to = static_cast<uint8_t*>(matrix.panels) + j * blocks * kGroup;
        const int rows = int(smaller<int64_t>(kNR, matrix.rows - j * kNR));
        for (int64_t i = 0; i < blocks; i++, from += Format::kBytes, to += kGroup)
          for (int b = 0; b < Format::kBytes; b++)
            for (int n = 0; n < kNR; n++) to[b * kNR + n] = n < rows ? from[n * row_bytes + b] : 0;
      }
    });
  }

  template <class T>
  static void expand(const Matrix& matrix, int64_t j, int64_t column, int64_t count, Panel<T>* to) {
    constexpr int step = kInterleave<Panel<T>>;
    const uint8_t* panel = static_cast<const uint8_t*>(matrix.panels) + j * (matrix.columns / Format::kBlock) * kGroup;
    for (const int64_t end = column + count; column < end;) {
      const uint8_t* group = panel + column / Format::kBlock * kGroup;
      const int first = int(column % Format::kBlock);
      const int columns = int(smaller<int64_t>(Format::kRun - first % Format::kRun, end - column));
      for (int n = 0; n < kNR; n += kWidth)
        write_columns<T>(typename Format::Run(group + n, first), first, columns, to + n * step);
      column += columns;
      to += columns * kNR;
    }
  }

  static constexpr StorageForm form{bytes, pack, expand<float>, expand<bf16>};
};

}  // namespace dynadapt::DYN_ISA
