// Memory that belongs to the engine: aligned, of one type of elements, freed with its owner.
#pragma once

#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <utility>

#include "core/check.h"
#include "cpu/matrix.h"

namespace dynadapt {

inline size_t item_bytes(DType dtype) { return dtype == kBF16 ? 2 : 4; }

/// The nearest bfloat16, to even between two; NaN stays NaN.
inline uint16_t to_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if (value != value) return uint16_t(bits >> 16 | 0x40);
  return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/// 64-byte aligned memory; its content is undefined until it is written.
class Storage {
 public:
  Storage() = default;
  explicit Storage(size_t bytes) : bytes_(bytes) {
    if (!bytes) return;
    data_.reset(std::aligned_alloc(64, (bytes + 63) / 64 * 64));
    if (!data_) throw std::bad_alloc();
  }
  Storage(DType dtype, int64_t elements) : Storage(size_t(elements) * item_bytes(dtype)) {}

  void clear() {
    if (bytes_) std::memset(data_.get(), 0, bytes_);
  }
  void* data() const { return data_.get(); }
  size_t bytes() const { return bytes_; }
  template <class T>
  T* as() const {
    return static_cast<T*>(data_.get());
  }
  explicit operator bool() const { return data_ != nullptr; }

 private:
  struct Free {
    void operator()(void* data) const { std::free(data); }
  };
  std::unique_ptr<void, Free> data_;
  size_t bytes_ = 0;
};

/// `data` moved on by `elements` of `dtype`.
inline void* offset(void* data, DType dtype, int64_t elements) {
  return static_cast<char*>(data) + elements * int64_t(item_bytes(dtype));
}
inline const void* offset(const void* data, DType dtype, int64_t elements) {
  return static_cast<const char*>(data) + elements * int64_t(item_bytes(dtype));
}

using MatrixPtr = std::unique_ptr<Matrix>;

}  // namespace dynadapt
