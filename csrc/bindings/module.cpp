// dynadapt._C: the C ABI for Python.
#include "bindings/tensor.h"

namespace py = pybind11;
using namespace dynadapt::bindings;

PYBIND11_MODULE(_C, module) {
  module.doc() = "Native kernels of dynadapt.";
  if (!dynadapt_isa()) throw py::import_error(dynadapt_last_error());
  if (dynadapt_vnni() < 0) throw py::import_error(dynadapt_last_error());
  if (dynadapt_num_threads() < 0) throw py::import_error(dynadapt_last_error());

  module.def("isa", &dynadapt_isa, "The instruction set in use.");
  module.def("vnni", [] { return dynadapt_vnni() == 1; }, "Whether products of int8 use VNNI.");
  module.def("abi_version", &dynadapt_abi_version);
  module.def("num_threads", &dynadapt_num_threads, "Threads a call may use.");
  module.def(
      "set_num_threads", [](int threads) { check(dynadapt_set_num_threads(threads)); }, py::arg("threads"),
      "Threads a call may use from now on; 0: as at the start.");
  module.def(
      "peak_flops",
      [](bool bf16, int64_t repetitions) {
        py::gil_scoped_release release;
        const int64_t flops = dynadapt_peak_flops(bf16, repetitions);
        check(flops < 0 ? DYNADAPT_INVALID : DYNADAPT_OK);
        return flops;
      },
      py::arg("bf16"), py::arg("repetitions"), "A register-only loop of the products' instructions on all threads; its FLOPs.");
  module.def(
      "nvtx_status", [] { return std::string(dynadapt_nvtx() ? "on" : dynadapt_last_error()); },
      "\"on\" where native ops are NVTX ranges, else why they are not.");
  bind_matrix(module);
  bind_ops(module);
  bind_update(module);
}
