// Segment memory: for every layer the document's first tokens (sinks) and the last ones before the segment, as keys before
// rotation and values, in window order (dynadapt/engine/memory.py).
#pragma once

#include <vector>

#include "engine/storage.h"

namespace dynadapt {

class Window {
 public:
  Window(int64_t length, int64_t sinks, int64_t layers, int64_t streams, int64_t width, DType dtype);

  int64_t capacity() const { return capacity_; }
  int64_t filled(int64_t stream) const { return filled_[size_t(stream)]; }
  const int32_t* lengths() const { return filled_.data(); }  // [streams]
  const void* keys(int64_t layer) const { return offset(keys_.data(), dtype_, layer * streams_ * capacity_ * width_); }
  const void* values(int64_t layer) const { return offset(values_.data(), dtype_, layer * streams_ * capacity_ * width_); }

  /// Keys and values of one layer: the first rows of a segment, `stride` elements apart.
  struct Rows {
    const void *keys, *values;
    int64_t stride;
  };

  /// The segment's first `count` rows enter the memory of one stream in every layer; rows[layer]. Sinks stay, the oldest of the
  /// rest give way.
  void advance(int64_t stream, int64_t count, const std::vector<Rows>& rows);
  void clear(int64_t stream) { filled_[size_t(stream)] = 0; }
  size_t bytes() const { return keys_.bytes() + values_.bytes(); }

 private:
  void advance_store(char* store, const void* rows, int64_t stride, int64_t filled, int64_t count) const;

  DType dtype_;
  int64_t capacity_, sinks_, streams_, width_;
  Storage keys_, values_;  // [layers, streams, capacity, width]
  std::vector<int32_t> filled_;
};

}  // namespace dynadapt
