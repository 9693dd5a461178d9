#include <memory>

#include "bindings/tensor.h"

namespace dynadapt::bindings {

void bind_matrix(py::module_& module) {
  py::class_<PackedMatrix>(module, "PackedMatrix", "A weight [N, K] in the panel order of the kernels: the only copy of it.")
      .def(py::init<py::handle>(), py::arg("weight"))
      .def(py::init<const std::string&, const py::buffer&, int64_t, int64_t, const std::string&>(), py::arg("storage"),
           py::arg("blocks"), py::arg("rows"), py::arg("columns"), py::arg("dtype"))
      .def_property_readonly("storage", [](const PackedMatrix& m) { return dynadapt_matrix_storage(m.get()); })
      .def_static(
          "int8",
          [](py::object weight, const std::string& dtype) {
            const char* op = "PackedMatrix.int8";
            const bool f32 = dtype == "float32";
            if (!f32 && dtype != "bfloat16")
              throw py::value_error(std::string(op) + ": dtype is " + dtype + ", accepted is float32, bfloat16");
            const Tensor w(op, "weight", weight);
            dynadapt_matrix* matrix = nullptr;
            run([&] {
              const DLDataType of = f32 ? DLDataType{kDLFloat, 32, 1} : DLDataType{kDLBfloat, 16, 1};
              return dynadapt_matrix_create_int8(w, of, &matrix);
            });
            return std::make_unique<PackedMatrix>(matrix);
          },
          py::arg("weight"), py::arg("dtype"),
          "One that keeps int8 with a scale per row and group of 64 columns, from weight float32 [N, K]; dtype, \"float32\" or "
          "\"bfloat16\", is that of the activations")
      .def_property_readonly(
          "shape",
          [](const PackedMatrix& m) { return py::make_tuple(dynadapt_matrix_rows(m.get()), dynadapt_matrix_columns(m.get())); })
      .def_property_readonly(
          "dtype", [](const PackedMatrix& m) { return dynadapt_matrix_dtype(m.get()).bits == 32 ? "float32" : "bfloat16"; })
      .def_property_readonly("nbytes", [](const PackedMatrix& m) { return dynadapt_matrix_bytes(m.get()); })
      .def(
          "gather_rows",
          [](const PackedMatrix& m, py::object index, py::object out) {
            const char* op = "PackedMatrix.gather_rows";
            const Tensor i(op, "index", index), o(op, "out", out);
            run([&] { return dynadapt_matrix_gather_rows(m.get(), i, o); });
          },
          py::arg("index"), py::arg("out"), "out[i] = weight[index[i]]")
      .def(
          "update_rows",
          [](PackedMatrix& m, py::object rows, py::object values) {
            const char* op = "PackedMatrix.update_rows";
            const Tensor r(op, "rows", rows), v(op, "values", values);
            run([&] { return dynadapt_matrix_update_rows(m.get(), r, v); });
          },
          py::arg("rows"), py::arg("values"), "weight[rows[i]] = values[i]; rows None: all rows")
      .def(
          "unpack",
          [](const PackedMatrix& m, py::object out) {
            const Tensor o("PackedMatrix.unpack", "out", out);
            run([&] { return dynadapt_matrix_unpack(m.get(), o); });
          },
          py::arg("out"), "out = weight");
}

}  // namespace dynadapt::bindings
