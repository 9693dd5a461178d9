// One call of an op from Python: its arguments by the names that the reference in dynadapt/ops gives them.
#pragma once

#include <pybind11/stl.h>

#include <array>
#include <string_view>
#include <vector>

#include "bindings/kind.h"
#include "bindings/tensor.h"

namespace dynadapt::bindings {

constexpr size_t kMostArguments = 24;

/// What a call was given. Every look-up by name converts; one that the op does not have throws std::logic_error.
class Arguments {
 public:
  template <size_t N>
  Arguments(const char* op, const std::array<const char*, N>& names, const std::array<py::handle, N>& values)
      : op_(op), names_(names.data()), values_(values.data()), count_(N) {
    static_assert(N <= kMostArguments);
  }

  /// A tensor, NULL for None; it lives as long as the call.
  const DLTensor* operator[](const char* name) {
    const size_t i = place(name);
    return tensors_[i].emplace(op_, name, values_[i]).get();
  }

  float number(const char* name) const { return get<float>(name, "a number"); }
  int whole(const char* name) const { return get<int>(name, "a whole number"); }
  int whole_or(const char* name, int absent) const { return values_[place(name)].is_none() ? absent : whole(name); }
  float number_or(const char* name, float absent) const { return values_[place(name)].is_none() ? absent : number(name); }
  bool flag(const char* name) const { return get<bool>(name, "True or False"); }
  int32_t kind(std::initializer_list<const char*> names) const {
    return kind_of(op_, py::reinterpret_borrow<py::object>(values_[place("kind")]), names);
  }
  bool is_list(const char* name) const {
    return py::isinstance<py::list>(values_[place(name)]) || py::isinstance<py::tuple>(values_[place(name)]);
  }
  bool has(const char* name, const char* member) const { return py::hasattr(values_[place(name)], member); }
  py::object member(const char* name, const char* member) const { return values_[place(name)].attr(member); }
  std::vector<std::pair<int64_t, float>> pairs(const char* name) const {
    return get<std::vector<std::pair<int64_t, float>>>(name, "a number or a list of (rank, scale)");
  }
  std::vector<int64_t> sizes(const char* name) const { return get<std::vector<int64_t>>(name, "a list of whole numbers"); }

  const dynadapt_matrix* matrix(const char* name) const { return get<const PackedMatrix&>(name, "a PackedMatrix").get(); }
  std::vector<const dynadapt_matrix*> matrices(const char* name) const;

 private:
  size_t place(std::string_view name) const;

  /// Throws TypeError naming the op, the argument and its type.
  template <class T>
  T get(const char* name, const char* accepted) const {
    const py::handle value = values_[place(name)];
    try {
      return value.cast<T>();
    } catch (const py::cast_error&) {
      throw py::type_error(std::string(op_) + ": " + name + " is a " + Py_TYPE(value.ptr())->tp_name + ", accepted is " +
                           accepted);
    }
  }

  const char* op_;
  const char* const* names_;
  const py::handle* values_;
  size_t count_;
  std::array<std::optional<Tensor>, kMostArguments> tensors_;
};

/// Calls a function of the C ABI, whose last argument is the stream, without the GIL.
template <class Function, class... Given>
void call(Function function, Given... given) {
  run([&] { return function(given...); });
}

template <size_t>
using Object = const py::object&;

template <size_t N, class Body, size_t... I, size_t... J>
void define(py::module_& module, const char* op, const std::array<const char*, N>& names, Body body, std::index_sequence<I...>,
            std::index_sequence<J...>) {
  module.def(
      op,
      [=](Object<I>... required, Object<J>... optional) {
        const std::array<py::handle, N> values{required..., optional...};
        Arguments arguments(op, names, values);
        body(arguments);
      },
      py::arg(names[I])..., (py::arg(names[sizeof...(I) + J]) = py::none())..., "See its reference in dynadapt.ops.");
}

/// Gives Python the op: `names` of its arguments, of which the last `Optional` may be left out, and what calls it.
template <size_t Optional = 0, size_t N, class Body>
void define(py::module_& module, const char* op, const char* const (&names)[N], Body body) {
  define(module, op, std::to_array(names), body, std::make_index_sequence<N - Optional>(), std::make_index_sequence<Optional>());
}

}  // namespace dynadapt::bindings
