// int8 with a scale per row and group: made from float32, and read by those who multiply with its values. Products of whole numbers
// take its panels as they are (lib/gemm_int8.h).
#include "core/threads.h"
#include "cpu/kernels/lib/gemm_int8.h"
#include "cpu/kernels/lib/storage.h"

namespace dynadapt::DYN_ISA {

namespace {

size_t bytes(int64_t rows, int64_t columns) { return size_t(panel_count(rows) * stored_panel_bytes(columns)); }

void pack(Matrix& matrix, const void* weight) {
  const float* from = static_cast<const float*>(weight);
  const int64_t K = matrix.columns;
  parallel(num_threads(), panel_count(matrix.rows), [&](Team team) {
    const auto panels = team.share(panel_count(matrix.rows));
    for (int64_t j = panels.begin; j < panels.end; j++)
      for (int64_t g = 0; g < group_count(K); g++) {
        char* block = static_cast<char*>(matrix.panels) + j * stored_panel_bytes(K) + g * kStoredBlock;
        for (int n = 0; n < kNR; n++) {
          const int64_t row = j * kNR + n;
          const int count = row < matrix.rows ? int(smaller<int64_t>(kScaleGroup, K - g * kScaleGroup)) : 0;
          alignas(64) int8_t q[kScaleGroup];
          int32_t total;
          const float scale = quantize_group(from + (count ? row * K + g * kScaleGroup : 0), count, Bytes::kLargest, q, total);
          for (int k = 0; k < kScaleGroup; k++) block[(k / 4 * kNR + n) * 4 + k % 4] = char(uint8_t(q[k] + 128));
          memcpy(block + kNR * kScaleGroup + 4 * n, &scale, 4);
        }
      }
  });
}

/// Calls each(k, n, value) with the values of column `column` + k and rows n, n + 1, .. (kWidth of them) of panel j.
template <class Each>
void for_values(const Matrix& matrix, int64_t j, int64_t column, int64_t count, const Each& each) {
  const char* panel = static_cast<const char*>(matrix.panels) + j * stored_panel_bytes(matrix.columns);
  for (int64_t k = 0; k < count; k++) {
    const int64_t at = column + k;
    const char* block = panel + at / kScaleGroup * kStoredBlock;
    const char* four = block + at % kScaleGroup / 4 * 4 * kNR;
    for (int n = 0; n < kNR; n += kWidth) {
      vint q;
      memcpy(&q, four + 4 * n, sizeof q);
      vfloat scale;
      memcpy(&scale, block + kNR * kScaleGroup + 4 * n, sizeof scale);
      each(k, n, __builtin_convertvector(((q >> int(at % 4 * 8)) & 255) - 128, vfloat) * scale);
    }
  }
}

void expand_f32(const Matrix& matrix, int64_t j, int64_t column, int64_t count, float* to) {
  for_values(matrix, j, column, count, [&](int64_t k, int n, vfloat value) { store(to + k * kNR + n, value); });
}

void expand_bf16(const Matrix& matrix, int64_t j, int64_t column, int64_t count, Panel<bf16>* to) {
  const auto rounded = [](vfloat value) {
    const vuint bits = (vuint)value;
    return value == value ? (bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000u : (bits | 0x400000u) & 0xffff0000u;
  };
  for_values(matrix, j, column, count, [&](int64_t k, int n, vfloat value) {
    const vuint bits = rounded(value);
    if constexpr (sizeof(Panel<bf16>) == 4) {
      memcpy(to + k * kNR + n, &bits, sizeof bits);
    } else {
      Panel<bf16>* pair = to + (k / 2 * kNR + n) * 2;
      vuint both = bits >> 16;  // of an even column; the partner stays 0 until it comes
      if (k % 2) {
        memcpy(&both, pair, sizeof both);
        both |= bits;
      }
      memcpy(pair, &both, sizeof both);
    }
  });
}

}  // namespace

extern const StorageForm int8_storage = {bytes, pack, expand_f32, expand_bf16};

}  // namespace dynadapt::DYN_ISA
