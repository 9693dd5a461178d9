// A thin C++ face of dynadapt.h: errors become exceptions, handles close themselves, tensors are views of std::vector.
#pragma once

#include <dynadapt/dynadapt.h>

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace dynadapt {

struct Error : std::runtime_error {
  Error(int status, const char* text) : std::runtime_error(text), status(status) {}
  int status;
};

/// Throws the library's own words unless the call went well.
inline void check(int status) {
  if (status != DYNADAPT_OK) throw Error(status, dynadapt_last_error());
}

template <class T>
constexpr DLDataType dtype_of();
template <>
constexpr DLDataType dtype_of<float>() {
  return {kDLFloat, 32, 1};
}
template <>
constexpr DLDataType dtype_of<int32_t>() {
  return {kDLInt, 32, 1};
}
template <>
constexpr DLDataType dtype_of<int64_t>() {
  return {kDLInt, 64, 1};
}

/// A contiguous view of memory that somebody else keeps, in the form that the library takes. Not copied, because the DLTensor
/// points at the shape beside it.
class View {
 public:
  template <class T>
  View(T* data, std::initializer_list<int64_t> shape) {
    for (int64_t size : shape) shape_[tensor_.ndim++] = size;
    tensor_.data = data;
    tensor_.device = {kDLCPU, 0};
    tensor_.dtype = dtype_of<T>();
    tensor_.shape = shape_;
  }
  template <class T>
  View(std::vector<T>& values, std::initializer_list<int64_t> shape) : View(values.data(), shape) {
    int64_t count = 1;
    for (int64_t size : shape) count *= size;
    if (count != int64_t(values.size())) throw std::invalid_argument("View: the shape does not cover the vector");
  }
  View(const View&) = delete;
  View& operator=(const View&) = delete;
  operator const DLTensor*() const { return &tensor_; }

 private:
  int64_t shape_[4] = {};
  DLTensor tensor_{};
};

/// A weight in the order of the kernels.
class Matrix {
 public:
  explicit Matrix(const View& weight) {
    dynadapt_matrix* made = nullptr;
    check(dynadapt_matrix_create(weight, &made));
    handle_.reset(made);
  }
  const dynadapt_matrix* get() const { return handle_.get(); }

 private:
  struct Destroy {
    void operator()(dynadapt_matrix* matrix) const { dynadapt_matrix_destroy(matrix); }
  };
  std::unique_ptr<dynadapt_matrix, Destroy> handle_;
};

/// A parameter struct of size known, everything else zero.
template <class Params>
Params params() {
  Params made{};
  made.struct_size = sizeof made;
  return made;
}

}  // namespace dynadapt
