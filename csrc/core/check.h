// Checked views of DLTensor arguments: after these, kernels see plain pointers and sizes.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>

#include "core/error.h"
#include "core/range.h"

namespace dynadapt {

enum DType : unsigned {
  kF32 = 1,
  kBF16 = 2,
  kI32 = 4,
  kI64 = 8,
  kF64 = 16,
  kAct = kF32 | kBF16
};

/// How the elements of a tensor may lie in memory.
enum class Layout {
  contiguous,
  rows,   // 2-D: the last dimension contiguous, any row stride >= the width
  slots,  // 3-D: the inner two dimensions contiguous, any stride between slots
};

/// A tensor that passed the checks. Strides are in elements.
struct View {
  void* data = nullptr;
  int64_t size[4] = {1, 1, 1, 1};
  int64_t stride[4] = {0, 0, 0, 0};
  DType dtype = kF32;

  explicit operator bool() const { return data != nullptr; }
  int64_t ld() const { return stride[0]; }  // of a matrix: elements from a row to the next
  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
};

const char* dtype_name(DType dtype);
DType dtype_of(const DLTensor& tensor);  // 0 for a dtype that no op takes

/// The checks of one op's arguments; failures throw Invalid with the op's name. It lives as long as the call, which profilers
/// see under that name.
class Op {
 public:
  explicit Op(const char* name) : name_(name), range_(name) {}

  /// `shape` gives each dimension's size, -1 for any; `dtypes` is a mask. Throws where `tensor` is null.
  View tensor(const char* argument, const DLTensor* tensor, std::initializer_list<int64_t> shape, unsigned dtypes,
              Layout layout = Layout::contiguous) const;

  /// As `tensor`, and an empty view where `tensor` is null.
  View optional(const char* argument, const DLTensor* tensor, std::initializer_list<int64_t> shape, unsigned dtypes,
                Layout layout = Layout::contiguous) const;

  /// As `tensor`, for one that the op writes to: no other argument may share its memory, but an earlier one named in `in_place`
  /// that lies at the same place in the same way.
  View output(const char* argument, const DLTensor* tensor, std::initializer_list<int64_t> shape, unsigned dtypes,
              Layout layout = Layout::contiguous, std::initializer_list<const char*> in_place = {}) const;
  View optional_output(const char* argument, const DLTensor* tensor, std::initializer_list<int64_t> shape, unsigned dtypes,
                       Layout layout = Layout::contiguous, std::initializer_list<const char*> in_place = {}) const;

  /// Plain memory of `count` elements: there, aligned, and shared with no output.
  template <class T>
  const T* array(const char* argument, const T* data, int64_t count) const {
    check_array(argument, data, count, sizeof(T), alignof(T), false);
    return data;
  }
  template <class T>
  T* output_array(const char* argument, T* data, int64_t count) const {
    check_array(argument, data, count, sizeof(T), alignof(T), true);
    return data;
  }

  /// Something that the caller holds: not null.
  template <class T>
  T& held(const char* argument, T* object) const {
    require(object != nullptr, "%s is NULL", argument);
    return *object;
  }

  /// The name of a file or directory: there, and not empty.
  const char* path(const char* argument, const char* given) const {
    require(held(argument, given) != '\0', "%s is empty, accepted is a path", argument);
    return given;
  }

  /// A number in low..high; NaN is outside.
  double number(const char* argument, double value, double low, double high) const;
  float finite(const char* argument, float value) const {
    return float(number(argument, value, -3.402823466e38, 3.402823466e38));
  }
  int64_t whole(const char* argument, int64_t value, int64_t low, int64_t high) const;

  /// Every entry of `index` [n] lies in low..high-1.
  const int32_t* indices32(const char* argument, const View& index, int64_t low, int64_t high) const;
  const int64_t* indices64(const char* argument, const View& index, int64_t low, int64_t high) const;

  /// Throws Invalid("<op>: <formatted text>") unless `condition`.
  [[gnu::format(printf, 3, 4)]] void require(bool condition, const char* pattern, ...) const;

  /// The caller's parameters. One built with an older header gives fewer bytes, at least `first` (the size of the struct's first
  /// version), and the rest is zero; one built with a newer header may give more, as long as they are zero.
  template <class Params>
  Params params(const Params* given, uint32_t first = sizeof(Params)) const {
    Params known{};
    copy_params(given, first, &known, sizeof known);
    return known;
  }

  /// How many bytes of a struct for results the caller has room for, which its struct_size says: at least `first`.
  template <class Result>
  uint32_t room(const char* argument, const Result* result, uint32_t first = sizeof(Result)) const {
    require(result != nullptr, "%s is NULL", argument);
    uint32_t there;
    __builtin_memcpy(&there, result, sizeof there);
    check_size(argument, there, first);
    return there < sizeof(Result) ? there : uint32_t(sizeof(Result));
  }

  /// Throws Invalid unless a struct_size is one that a caller can mean.
  void check_size(const char* argument, uint32_t size, uint32_t first) const;

 private:
  /// The memory of one argument: `count` runs of `bytes` bytes, `stride` apart.
  struct Extent {
    const char* argument;
    uintptr_t begin;
    int64_t count, stride, bytes;
    bool written;
  };

  View view(const char* argument, const DLTensor* tensor, std::initializer_list<int64_t> shape, unsigned dtypes, Layout layout,
            bool written, std::initializer_list<const char*> in_place) const;
  void check_array(const char* argument, const void* data, int64_t count, size_t item, size_t alignment, bool written) const;
  void keep_apart(const Extent& extent, std::initializer_list<const char*> in_place) const;
  static bool meet(const Extent& a, const Extent& b);
  void copy_params(const void* given, uint32_t first, void* known, uint32_t size) const;

  static constexpr int kMostExtents = 24;  // more than any op has tensors

  const char* name_;
  NamedRange range_;
  mutable Extent extents_[kMostExtents];
  mutable int extent_count_ = 0;
};

constexpr int64_t kMostElements = int64_t(1) << 46;  // of a tensor, more than any memory holds: sums and products of sizes fit
constexpr int64_t kMostHeads = 1 << 20;              // and the most heads, and elements of a head

std::string device_text(DLDevice device);  // "the CPU", "cuda:0", "device type 10"

}  // namespace dynadapt
