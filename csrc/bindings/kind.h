// Names that Python passes for the C ABI's enumerations.
#pragma once

#include <pybind11/pybind11.h>

#include <initializer_list>
#include <string>

namespace dynadapt::bindings {

/// The place of `kind` among `names`; throws ValueError naming the op, the value and the choices.
inline int32_t kind_of(const char* op, const pybind11::object& kind, std::initializer_list<const char*> names) {
  const std::string given = pybind11::str(kind);
  std::string choices;
  int32_t place = 0;
  for (const char* name : names) {
    if (given == name) return place;
    choices += (place++ ? ", " : "") + std::string(name);
  }
  throw pybind11::value_error(std::string(op) + ": kind is " + given + ", accepted is " + choices);
}

}  // namespace dynadapt::bindings
