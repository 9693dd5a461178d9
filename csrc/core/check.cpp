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

size_t bytes_of(DType dtype) { return dtype == kBF16 ? 2 : dtype == kI64 || dtype == kF64 ? 8 : 4; }

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
    case Layout::rows:
      return "contiguous rows (any row stride)";
    case Layout::slots:
      return "contiguous inner dimensions (any stride between slots)";
    default:
      return "a contiguous tensor";
  }
}

}  // namespace

const char* dtype_name(DType dtype) {
  switch (dtype) {
    case kF32:
      return "float32";
    case kBF16:
      return "bfloat16";
    case kI32:
      return "int32";
    case kI64:
      return "int64";
    case kF64:
      return "float64";
    default:
      return "another dtype";
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
  check_size("params", there, first);
  const char* bytes = static_cast<const char*>(given);
  for (uint32_t i = size; i < there; i++)
    require(bytes[i] == 0,
            "params.struct_size is %u and byte %u is set: a parameter that this library (ABI version %d) does not know", there, i,
            DYNADAPT_ABI_VERSION);
  std::memcpy(known, given, there < size ? there : size);
}

void Op::check_size(const char* argument, uint32_t size, uint32_t first) const {
  require(size >= first && size <= kMostParams, "%s.struct_size is %u, accepted is sizeof(*%s): at least %u, at most %u",
          argument, size, argument, first, kMostParams);
}

double Op::number(const char* argument, double value, double low, double high) const {
  require(value >= low && value <= high, "%s is %g, accepted is %g to %g", argument, value, low, high);
  return value;
}

int64_t Op::whole(const char* argument, int64_t value, int64_t low, int64_t high) const {
  require(value >= low && value <= high, "%s is %lld, accepted is %lld to %lld", argument, (long long)value, (long long)low,
          (long long)high);
  return value;
}

namespace {

template <class Index>
const Index* check_indices(const Op& op, const char* argument, const View& index, int64_t low, int64_t high) {
  const Index* values = index.as<Index>();
  for (int64_t n = 0; n < index.size[0]; n++)
    op.require(values[n] >= low && values[n] < high, "%s[%lld] is %lld, accepted is %lld to %lld", argument, (long long)n,
               (long long)values[n], (long long)low, (long long)high - 1);
  return values;
}

// The shape as far as it is known to be there: of a tensor with more dimensions than wanted, those that were wanted.
std::string given_shape(const DLTensor& tensor, int wanted) {
  if (tensor.ndim < 0) return std::to_string(tensor.ndim) + " dimensions";
  std::string text = "shape " + shape_text(tensor.shape, tensor.ndim < wanted ? tensor.ndim : wanted);
  if (tensor.ndim <= wanted) return text;
  text.replace(text.size() - 1, 1, wanted ? ", ...]" : "...]");
  return text + " of " + std::to_string(tensor.ndim) + " dimensions";
}

}  // namespace

const int32_t* Op::indices32(const char* argument, const View& index, int64_t low, int64_t high) const {
  return check_indices<int32_t>(*this, argument, index, low, high);
}

const int64_t* Op::indices64(const char* argument, const View& index, int64_t low, int64_t high) const {
  return check_indices<int64_t>(*this, argument, index, low, high);
}

View Op::view(const char* argument, const DLTensor* tensor, std::initializer_list<int64_t> shape, unsigned dtypes, Layout layout,
              bool written, std::initializer_list<const char*> in_place) const {
  require(tensor != nullptr, "%s is missing, a tensor is needed", argument);
  require(tensor->device.device_type == kDLCPU, "%s is on %s, accepted is the CPU", argument,
          device_text(tensor->device).c_str());
  View view;
  view.dtype = dtype_of(*tensor);
  require(view.dtype & dtypes, "%s has dtype %s, accepted is %s", argument, dtype_name(view.dtype), dtypes_text(dtypes).c_str());

  const int ndim = int(shape.size());
  require(tensor->shape != nullptr, "%s has shape NULL, accepted is %s", argument, shape_text(shape.begin(), ndim).c_str());
  bool fits = tensor->ndim == ndim, counts = true;
  for (int i = 0; fits && i < ndim; i++) {
    fits = shape.begin()[i] < 0 || shape.begin()[i] == tensor->shape[i];
    counts = counts && tensor->shape[i] >= 0;
  }
  require(fits && counts, "%s has %s, accepted is %s", argument, given_shape(*tensor, ndim).c_str(),
          shape_text(shape.begin(), ndim).c_str());

  int64_t dense = 1, elements = 1, span = 0;  // elements: of none, as if one; span: from the first to behind the last
  bool holds = true;
  for (int i = ndim - 1; i >= 0; i--) {
    view.size[i] = tensor->shape[i];
    holds = holds && view.size[i] <= kMostElements &&
            !__builtin_mul_overflow(elements, view.size[i] ? view.size[i] : 1, &elements) && elements <= kMostElements;
    view.stride[i] = tensor->strides ? tensor->strides[i] : dense;
    if (holds) dense *= view.size[i];
  }
  require(holds, "%s has %s, accepted are up to %lld elements", argument, given_shape(*tensor, ndim).c_str(),
          (long long)kMostElements);
  require(lies_as(view, ndim, layout), "%s has strides %s for shape %s, accepted is %s", argument,
          shape_text(view.stride, ndim).c_str(), shape_text(view.size, ndim).c_str(), layout_text(layout));
  // An outer stride that no element uses could be anything.
  if (ndim >= 1 && (view.size[0] <= 1 || !dense)) view.stride[0] = ndim == 1 ? 1 : view.size[1] * (ndim == 3 ? view.size[2] : 1);
  if (ndim == 3 && (view.size[1] <= 1 || !dense)) view.stride[1] = view.size[2];
  if (dense) holds = !__builtin_mul_overflow(view.size[0] - 1, view.stride[0], &span) && span <= kMostElements;
  require(holds, "%s has strides %s for shape %s, accepted are up to %lld elements", argument,
          shape_text(view.stride, ndim).c_str(), shape_text(view.size, ndim).c_str(), (long long)kMostElements);

  static char empty[64];  // so that a view of no elements is still told from a missing one
  view.data = empty;
  if (!dense) return view;
  const uintptr_t item = bytes_of(view.dtype), begin = reinterpret_cast<uintptr_t>(tensor->data) + tensor->byte_offset;
  require(tensor->data != nullptr, "%s has data NULL for shape %s, accepted is memory for its elements", argument,
          shape_text(view.size, ndim).c_str());
  require(begin % item == 0, "%s begins at an address that is no multiple of %d bytes, accepted is aligned memory", argument,
          int(item));
  require(tensor->byte_offset <= uint64_t(kMostElements), "%s has byte_offset %llu, accepted is up to %lld", argument,
          (unsigned long long)tensor->byte_offset, (long long)kMostElements);
  view.data = reinterpret_cast<void*>(begin);
  const int64_t runs = view.stride[0] == dense / view.size[0] ? 1 : view.size[0];
  keep_apart({argument, begin, runs, view.stride[0] * int64_t(item), dense / runs * int64_t(item), written}, in_place);
  return view;
}

void Op::check_array(const char* argument, const void* data, int64_t count, size_t item, size_t alignment, bool written) const {
  require(data != nullptr, "%s is NULL", argument);
  require(reinterpret_cast<uintptr_t>(data) % alignment == 0,
          "%s begins at an address that is no multiple of %zu bytes, accepted is aligned memory", argument, alignment);
  const int64_t bytes = count * int64_t(item);
  if (bytes > 0) keep_apart({argument, reinterpret_cast<uintptr_t>(data), 1, bytes, bytes, written}, {});
}

void Op::keep_apart(const Extent& extent, std::initializer_list<const char*> in_place) const {
  for (int i = 0; i < extent_count_; i++) {
    const Extent& other = extents_[i];
    if (!(extent.written || other.written) || !meet(extent, other)) continue;
    bool allowed = false;
    for (const char* name : in_place) allowed = allowed || !std::strcmp(name, other.argument);
    const bool same = extent.begin == other.begin && extent.count == other.count && extent.bytes == other.bytes &&
                      (extent.count == 1 || extent.stride == other.stride);
    const Extent& out = extent.written ? extent : other;
    require(allowed && same, "%s shares memory with %s, accepted is memory of its own%s", out.argument,
            &out == &extent ? other.argument : extent.argument, allowed ? ", or the same tensor" : "");
  }
  if (extent_count_ == kMostExtents) throw std::logic_error("an op with more tensors than its checks can hold");
  extents_[extent_count_++] = extent;
}

/// Whether two arguments have a byte in common.
bool Op::meet(const Extent& a, const Extent& b) {
  if (a.count > b.count) return meet(b, a);
  const auto end = [](const Extent& e) { return e.begin + uintptr_t((e.count - 1) * e.stride + e.bytes); };
  if (a.begin >= end(b) || b.begin >= end(a)) return false;
  for (int64_t i = 0; i < a.count; i++) {
    // Run i of a ends behind the begin of a run of b; the last such run of b is the only one that can reach into it, because
    // runs of b do not overlap.
    const int64_t from = int64_t(a.begin - b.begin) + i * a.stride, to = from + a.bytes;
    if (to <= 0) continue;
    const int64_t run = b.count == 1 ? 0 : (to - 1) / b.stride;
    const int64_t last = run < b.count ? run : b.count - 1;
    if (last * b.stride + b.bytes > from) return true;
  }
  return false;
}

View Op::tensor(const char* argument, const DLTensor* tensor, std::initializer_list<int64_t> shape, unsigned dtypes,
                Layout layout) const {
  return view(argument, tensor, shape, dtypes, layout, false, {});
}

View Op::optional(const char* argument, const DLTensor* tensor, std::initializer_list<int64_t> shape, unsigned dtypes,
                  Layout layout) const {
  return tensor ? view(argument, tensor, shape, dtypes, layout, false, {}) : View{};
}

View Op::output(const char* argument, const DLTensor* tensor, std::initializer_list<int64_t> shape, unsigned dtypes,
                Layout layout, std::initializer_list<const char*> in_place) const {
  return view(argument, tensor, shape, dtypes, layout, true, in_place);
}

View Op::optional_output(const char* argument, const DLTensor* tensor, std::initializer_list<int64_t> shape, unsigned dtypes,
                         Layout layout, std::initializer_list<const char*> in_place) const {
  return tensor ? view(argument, tensor, shape, dtypes, layout, true, in_place) : View{};
}

}  // namespace dynadapt
