#include "bindings/tensor.h"

#include <new>

namespace dynadapt::bindings {

namespace {

// The exchange table of the type seen last: nearly all calls have tensors of one type.
const DLPackExchangeAPI* exchange_of(PyTypeObject* type) {
  static PyTypeObject* last_type = nullptr;
  static const DLPackExchangeAPI* last_api = nullptr;
  if (type == last_type) return last_api;
  const DLPackExchangeAPI* api = nullptr;
  py::handle handle(reinterpret_cast<PyObject*>(type));
  if (py::hasattr(handle, "__dlpack_c_exchange_api__")) {
    py::object capsule = handle.attr("__dlpack_c_exchange_api__");
    api = static_cast<const DLPackExchangeAPI*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
    if (!api) PyErr_Clear();
    if (api && api->header.version.major != DLPACK_MAJOR_VERSION) api = nullptr;
  }
  if (api) {  // only types with a table are remembered, and kept alive by it
    py::handle(handle).inc_ref();
    last_type = type;
    last_api = api;
  }
  return api;
}

}  // namespace

Tensor::Tensor(const char* op, const char* argument, py::handle object) {
  if (object.is_none()) return;
  if (const DLPackExchangeAPI* api = exchange_of(Py_TYPE(object.ptr()))) {
    if (api->dltensor_from_py_object_no_sync(object.ptr(), &view_) != 0) throw py::error_already_set();
    tensor_ = &view_;
    return;
  }
  if (!py::hasattr(object, "__dlpack__"))
    throw py::value_error(std::string(op) + ": " + argument + " is a " + Py_TYPE(object.ptr())->tp_name +
                          ", accepted is a tensor that has __dlpack__");
  // -1: the library that made the tensor does not wait for it, the caller's stream orders the work.
  const bool gpu =
      py::hasattr(object, "__dlpack_device__") && object.attr("__dlpack_device__")().cast<std::pair<int, int>>().first == kDLCUDA;
  capsule_ = gpu ? object.attr("__dlpack__")(py::arg("stream") = -1) : object.attr("__dlpack__")();
  auto* managed = static_cast<DLManagedTensor*>(PyCapsule_GetPointer(capsule_.ptr(), "dltensor"));
  if (!managed) throw py::error_already_set();
  tensor_ = &managed->dl_tensor;  // the capsule, left unconsumed, frees it
}

Tensor::~Tensor() = default;

void check(int code) {
  if (code == DYNADAPT_OK) return;
  const char* text = dynadapt_last_error();
  if (code == DYNADAPT_INVALID) throw py::value_error(text);
  if (code == DYNADAPT_OUT_OF_MEMORY) throw std::bad_alloc();
  throw std::runtime_error(text);
}

PackedMatrix::PackedMatrix(py::handle weight) {
  const Tensor tensor("PackedMatrix", "weight", weight);
  run([&] { return dynadapt_matrix_create(tensor, &matrix_); });
}

PackedMatrix::PackedMatrix(const std::string& storage, const py::buffer& blocks, int64_t rows, int64_t columns,
                           const std::string& dtype) {
  if (dtype != "float32" && dtype != "bfloat16")
    throw py::value_error("PackedMatrix: dtype is " + dtype + ", accepted is float32 or bfloat16");
  const py::buffer_info memory = blocks.request();
  if (memory.ndim != 1 || memory.strides[0] != memory.itemsize)
    throw py::value_error("PackedMatrix: blocks has " + std::to_string(memory.ndim) + " dimensions, accepted is one, contiguous");
  run([&] {
    return dynadapt_matrix_create_quantised(storage.c_str(), rows, columns, static_cast<const uint16_t*>(memory.ptr),
                                            memory.size * memory.itemsize, dtype == "bfloat16", &matrix_);
  });
}

}  // namespace dynadapt::bindings
