#include "engine/window.h"

#include <algorithm>

#include "core/threads.h"

namespace dynadapt {

Window::Window(int64_t length, int64_t sinks, int64_t layers, int64_t streams, int64_t width, DType dtype)
    : dtype_(dtype),
      capacity_(length + sinks),
      sinks_(sinks),
      streams_(streams),
      width_(width),
      keys_(dtype, layers * streams * capacity_ * width),
      values_(dtype, layers * streams * capacity_ * width),
      filled_(size_t(streams), 0) {}

void Window::advance_store(char* store, const void* rows, int64_t stride, int64_t filled, int64_t count) const {
  const size_t row = size_t(width_) * item_bytes(dtype_);
  const auto copy_new = [&](int64_t to, int64_t from, int64_t number) {
    for (int64_t i = 0; i < number; i++)
      std::memcpy(store + size_t(to + i) * row, offset(rows, dtype_, (from + i) * stride), row);
  };
  if (filled + count <= capacity_) return copy_new(filled, 0, count);
  if (filled < sinks_) copy_new(filled, 0, sinks_ - filled);  // the document's first tokens are only now arriving
  // Of the old rows and the new ones behind them, the last capacity - sinks.
  const int64_t keep = capacity_ - sinks_, begin = filled + count - keep;
  const int64_t old = std::max<int64_t>(0, filled - begin);
  if (old) std::memmove(store + size_t(sinks_) * row, store + size_t(begin) * row, size_t(old) * row);
  copy_new(sinks_ + old, std::max<int64_t>(0, begin - filled), keep - old);
}

void Window::advance(int64_t stream, int64_t count, const std::vector<Rows>& rows) {
  const int64_t filled = filled_[size_t(stream)], layers = int64_t(rows.size());
  const size_t store = size_t(capacity_ * width_) * item_bytes(dtype_);
  parallel(num_threads(), layers, [&](Team team) {
    const Range share = team.share(layers);
    for (int64_t i = share.begin; i < share.end; i++) {
      const size_t at = size_t(i * streams_ + stream) * store;
      advance_store(keys_.as<char>() + at, rows[size_t(i)].keys, rows[size_t(i)].stride, filled, count);
      advance_store(values_.as<char>() + at, rows[size_t(i)].values, rows[size_t(i)].stride, filled, count);
    }
  });
  filled_[size_t(stream)] = int32_t(std::min(filled + count, capacity_));
}

}  // namespace dynadapt
