// Checked views of DLTensor arguments: after these, kernels see plain pointers and sizes.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>

#include "core/error.h"
#include "core/range.h"

namespace dynadapt {

enum DType : unsigned { kF32 = 1, kBF16 = 2, kI32 = 4, kI64 = 8, kF64 = 16, kAct = kF32 | kBF16 };

/// How the elements of a tensor may lie in memory.
enum class Layout {
  contiguous,
  rows,   // 2-D: the last dimension contiguous, any row stride >= the width
  slots,  // 3-D: the inner two dimensions contiguous, any stride between slots
};

/// A tensor that passed the checks. Strides are in elements.
struct View {
  void* data = nullptr;
  int64_t size[3] = {1, 1, 1};
  int64_t stride[3] = {0, 0, 0};
  DType dtype = kF32;

  explicit operator bool() const { return data != nullptr; }
  int64_t ld() const { return stride[0]; }  // of a matrix: elements from a row to the next
  template <class T>
  T* as() const { return static_cast<T*>(data); }
};

const char* dtype_name(DType dtype);
DType dtype_of(const DLTensor& tensor);  // 0 for a dtype that no op takes

/// The checks of one op's arguments; failures throw Invalid with the op's name. It lives as long as the call, which profilers
/// see under that name.
class Op {
 public:
  explicit Op(const char* name) : name_(name), range_(name) {}

  /// An op that takes the tensors of one device: that of `first`, which `argument` names.
  Op(const char* name, const char* argument, const DLTensor* first);

  DLDevice device() const { return device_; }

  /// `shape` gives each dimension's size, -1 for any; `dtypes` is a mask. Throws where `tensor` is null.
  View tensor(const char* argument, const DLTensor* tensor, std::initializer_list<int64_t> shape, unsigned dtypes,
              Layout layout = Layout::contiguous) const;

  /// As `tensor`, and an empty view where `tensor` is null.
  View optional(const char* argument, const DLTensor* tensor, std::initializer_list<int64_t> shape, unsigned dtypes,
                Layout layout = Layout::contiguous) const;

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

 private:
  void copy_params(const void* given, uint32_t first, void* known, uint32_t size) const;

  const char* name_;
  NamedRange range_;
  const char* first_ = nullptr;  // the argument that decided the device
  DLDevice device_{kDLCPU, 0};
};

std::string device_text(DLDevice device);  // "the CPU", "cuda:0", "device type 10"

}  // namespace dynadapt
