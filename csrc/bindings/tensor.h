// Python tensors as DLTensor: through the C exchange API of their type (torch), else __dlpack__.
#pragma once

#include <pybind11/pybind11.h>

#include <optional>
#include <stdexcept>
#include <string>

#include "dynadapt/dynadapt.h"

namespace dynadapt::bindings {

namespace py = pybind11;

/// A borrowed view of a Python tensor; None gives a NULL DLTensor. The object must outlive the view.
class Tensor {
 public:
  Tensor(const char* op, const char* argument, py::handle object);
  ~Tensor();
  Tensor(const Tensor&) = delete;
  Tensor& operator=(const Tensor&) = delete;

  const DLTensor* get() const { return tensor_; }
  operator const DLTensor*() const { return tensor_; }

 private:
  const DLTensor* tensor_ = nullptr;
  DLTensor view_{};
  py::object capsule_;  // keeps what __dlpack__ gave alive
};

/// Throws ValueError, MemoryError or RuntimeError with the library's text unless `code` is 0.
void check(int code);

/// Runs a C call without the GIL and checks its code.
template <class Call>
void run(Call&& call) {
  int code;
  {
    py::gil_scoped_release release;
    code = call();
  }
  check(code);  // the text belongs to this thread, which is still the one that called
}

/// A packed matrix that Python owns.
class PackedMatrix {
 public:
  explicit PackedMatrix(py::handle weight);
  /// From quantised blocks in contiguous memory, to values of `dtype`.
  PackedMatrix(const std::string& storage, const py::buffer& blocks, int64_t rows, int64_t columns, const std::string& dtype);
  explicit PackedMatrix(dynadapt_matrix* matrix) : matrix_(matrix) {}
  ~PackedMatrix() { dynadapt_matrix_destroy(matrix_); }
  PackedMatrix(const PackedMatrix&) = delete;
  PackedMatrix& operator=(const PackedMatrix&) = delete;
  dynadapt_matrix* get() const { return matrix_; }

 private:
  dynadapt_matrix* matrix_ = nullptr;
};

// What module.cpp calls.
void bind_matrix(py::module_& module);
void bind_ops(py::module_& module);
void bind_update(py::module_& module);

}  // namespace dynadapt::bindings
