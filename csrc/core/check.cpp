#include "core/check.h"

#include <cstdarg>
#include <cstdio>
#include <cstring>

namespace dynadapt {

namespace {

constexpr uint32_t kMostParams = 4096;  // more is a struct_size that was never set

std::string shape_text(const int64_t* shape, int count) {
  std::string text = "[";
  for (int i = 0; i < count; i++) {
    if (i) text += ", ";
    text += shape[i] < 0 ? "any" : std::to_string(shape[i]);
  }
  return text + "]";
}

std::string dtypes_text(unsigned mask) {
  std::string text;
  for (unsigned bit = kF32; bit <= kF64; bit *= 2)
    if (mask & bit) text += (text.empty() ? "" : " or ") + std::string(dtype_name(DType(bit)));
  return text;
}

// Strides of dimensions of size one are free; an empty tensor lies any way.
bool lies_as(const View& view, int ndim, Layout layout) {
  for (int i = 0; i < ndim; i++)
    if (view.size[i] == 0) return true;
  int64_t dense = 1;
  for (int i = ndim - 1; i >= 0; i--) {
    const bool outer = i == 0 && ((layout == Layout::rows && ndim == 2) || (layout == Layout::slots && ndim == 3));
    if (view.size[i] > 1 && (outer ? view.stride[i] < dense : view.stride[i] != dense)) return false;
    dense *= view.size[i];
  }
  return true;
}

const char* layout_text(Layout layout) {
  switch (layout) {
    case Layout::rows: return "contiguous rows (any row stride)";
    case Layout::slots: return "contiguous inner dimensions (any stride between slots)";
    default: return "a contiguous tensor";
  }
}

}  // namespace

const char* dtype_name(DType dtype) {
  switch (dtype) {
    case kF32: return "float32";
    case kBF16: return "bfloat16";
    case kI32: return "int32";
    case kI64: return "int64";
    case kF64: return "float64";
    default: return "another dtype";
  }
}

DType dtype_of(const DLTensor& tensor) {
  const DLDataType t = tensor.dtype;
  if (t.lanes != 1) return DType(0);
  if (t.code == kDLFloat && t.bits == 32) return kF32;
  if (t.code == kDLFloat && t.bits == 64) return kF64;
  if (t.code == kDLBfloat && t.bits == 16) return kBF16;
  if (t.code == kDLInt && t.bits == 32) return kI32;
  if (t.code == kDLInt && t.bits == 64) return kI64;
  return DType(0);
}

std::string device_text(DLDevice device) {
  if (device.device_type == kDLCPU) return "the CPU";
  if (device.device_type == kDLCUDA) return "cuda:" + std::to_string(device.device_id);
  return "device type " + std::to_string(int(device.device_type));
}

Op::Op(const char* name, const char* argument, const DLTensor* first) : Op(name) {
  if (!first) return;  // the check of `first` itself says that it is missing
  const DLDevice device = first->device;
  require(device.device_type == kDLCPU || device.device_type == kDLCUDA, "%s is on %s, accepted is the CPU or a CUDA device",
          argument, device_text(device).c_str());
  first_ = argument;
  device_ = device;
}

void Op::require(bool condition, const char* pattern, ...) const {
  if (condition) return;
  va_list args;
  va_start(args, pattern);
  char text[1024];
  vsnprintf(text, sizeof text, pattern, args);
  va_end(args);
  throw Invalid(std::string(name_) + ": " + text);
}

void Op::copy_params(const void* given, uint32_t first, void* known, uint32_t size) const {
  require(given != nullptr, "params is NULL");
  uint32_t there;
  std::memcpy(&there, given, sizeof there);  // struct_size, the first member of all of them
  require(there >= first && there <= kMostParams,
          "params.struct_size is %u, accepted is sizeof(*params): at least %u, at most %u", there, first, kMostParams);
  const char* bytes = static_cast<const char*>(given);
  for (uint32_t i = size; i < there; i++)
    require(bytes[i] == 0,
            "params.struct_size is %u and byte %u is set: a parameter that this library (ABI version %d) does not know", there, i,
            DYNADAPT_ABI_VERSION);
  std::memcpy(known, given, there < size ? there : size);
}

View Op::tensor(const char* argument, const DLTensor* tensor, std::initializer_list<int64_t> shape, unsigned dtypes,
                Layout layout) const {
  require(tensor != nullptr, "%s is missing, a tensor is needed", argument);
  const bool there = tensor->device.device_type == device_.device_type &&
                     (device_.device_type == kDLCPU || tensor->device.device_id == device_.device_id);
  require(there, "%s is on %s, accepted is %s%s%s", argument, device_text(tensor->device).c_str(), device_text(device_).c_str(),
          first_ ? ", like " : "", first_ ? first_ : "");
  View view;
  view.dtype = dtype_of(*tensor);
  require(view.dtype & dtypes, "%s has dtype %s, accepted is %s", argument, dtype_name(view.dtype),
          dtypes_text(dtypes).c_str());

  const int ndim = int(shape.size());
  bool fits = tensor->ndim == ndim;
  for (int i = 0; fits && i < ndim; i++) fits = shape.begin()[i] < 0 || shape.begin()[i] == tensor->shape[i];
  require(fits, "%s has shape %s, accepted is %s", argument, shape_text(tensor->shape, tensor->ndim).c_str(),
          shape_text(shape.begin(), ndim).c_str());

  int64_t dense = 1;
  for (int i = ndim - 1; i >= 0; i--) {
    view.size[i] = tensor->shape[i];
    view.stride[i] = tensor->strides ? tensor->strides[i] : dense;
    dense *= view.size[i];
  }
  require(lies_as(view, ndim, layout), "%s has strides %s for shape %s, accepted is %s", argument,
          shape_text(view.stride, ndim).c_str(), shape_text(view.size, ndim).c_str(), layout_text(layout));
  // The stride of a single row says nothing; kernels may still use it to step.
  if (ndim >= 1 && view.size[0] <= 1) view.stride[0] = ndim == 1 ? 1 : view.size[1] * (ndim == 3 ? view.size[2] : 1);
  if (ndim == 3 && view.size[1] <= 1) view.stride[1] = view.size[2];

  static char empty[64];  // so that a view of no elements is still told from a missing one
  view.data = tensor->data ? static_cast<char*>(tensor->data) + tensor->byte_offset : empty;
  return view;
}

View Op::optional(const char* argument, const DLTensor* tensor, std::initializer_list<int64_t> shape, unsigned dtypes,
                  Layout layout) const {
  return tensor ? this->tensor(argument, tensor, shape, dtypes, layout) : View{};
}

}  // namespace dynadapt
