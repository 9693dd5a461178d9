// The C ABI of dynadapt as custom calls of XLA: each handler turns XLA's buffers into DLTensors and calls one function.
//
// Compiled on first use by build.py against the headers of the jaxlib that is there, because their ABI belongs to that version.
// Optional tensors: the attributes `inputs` and `outputs` have a bit for each place of the C function that is given. Weights come
// behind the other inputs; the attribute `parts` has a number for each of them, 0 for a buffer, else that of a frozen weight.
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "dynadapt/dynadapt.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

struct Destroy {
  void operator()(dynadapt_matrix* matrix) const { dynadapt_matrix_destroy(matrix); }
};
using Matrix = std::shared_ptr<dynadapt_matrix>;

std::mutex frozen_mutex;
std::map<int64_t, Matrix> frozen;  // by number, from 1
int64_t last_number = 0;

DLDataType dtype_of(ffi::DataType type) {
  switch (type) {
    case ffi::DataType::F32:
      return {kDLFloat, 32, 1};
    case ffi::DataType::BF16:
      return {kDLBfloat, 16, 1};
    case ffi::DataType::S32:
      return {kDLInt, 32, 1};
    case ffi::DataType::S64:
      return {kDLInt, 64, 1};
    default:
      return {kDLOpaqueHandle, 0, 1};  // which every op refuses by the argument's name
  }
}

DLTensor tensor_of(const ffi::AnyBuffer& buffer) {
  const auto shape = buffer.dimensions();
  return {buffer.untyped_data(),
          {kDLCPU, 0},
          int32_t(shape.size()),
          dtype_of(buffer.element_type()),
          const_cast<int64_t*>(shape.begin()),
          nullptr,
          0};
}

Matrix packed(const DLTensor& weight) {
  dynadapt_matrix* matrix = nullptr;
  if (dynadapt_matrix_create(&weight, &matrix) != DYNADAPT_OK) throw std::invalid_argument(dynadapt_last_error());
  return Matrix(matrix, Destroy());
}

/// One call's buffers and attributes, by their places in the C function.
class Call {
 public:
  Call(ffi::RemainingArgs args, ffi::RemainingRets rets, ffi::Dictionary attrs)
      : args_(args), rets_(rets), attrs_(attrs), inputs_(attr<int64_t>("inputs")), outputs_(attr<int64_t>("outputs")) {}

  template <class T>
  T attr(const char* name) const {
    auto value = attrs_.get<T>(name);
    if (!value.has_value()) throw std::invalid_argument(std::string("attribute ") + name + " is missing");
    return *value;
  }

  const DLTensor* in(int place) {
    if (!(inputs_ >> place & 1)) return nullptr;
    return keep(tensor_of(input(index(inputs_, place))));
  }

  /// An input of int64, which jax gives as int32 unless it is told otherwise.
  const DLTensor* in_i64(int place) {
    if (!(inputs_ >> place & 1)) return nullptr;
    DLTensor tensor = *in(place);
    if (tensor.dtype.code != kDLInt || tensor.dtype.bits != 32) return keep(tensor);
    int64_t count = 1;
    for (int i = 0; i < tensor.ndim; i++) count *= tensor.shape[i];
    const int32_t* narrow = static_cast<const int32_t*>(tensor.data);
    wide_.emplace_back(narrow, narrow + count);
    tensor.data = wide_.back().data();
    tensor.dtype.bits = 64;
    return keep(tensor);
  }

  const DLTensor* out(int place) {
    if (!(outputs_ >> place & 1)) return nullptr;
    return keep(tensor_of(result(index(outputs_, place))));
  }

  /// An output that the op adds to.
  const DLTensor* sum(int place) {
    if (outputs_ >> place & 1) {
      const ffi::AnyBuffer buffer = result(index(outputs_, place));
      std::memset(buffer.untyped_data(), 0, buffer.size_bytes());
    }
    return out(place);
  }

  /// The weights behind the other inputs.
  std::vector<const dynadapt_matrix*> weights() {
    size_t next = size_t(__builtin_popcountll(inputs_));
    std::vector<const dynadapt_matrix*> handles;
    for (const int64_t number : attr<ffi::Span<const int64_t>>("parts")) {
      if (number) {
        const std::lock_guard<std::mutex> lock(frozen_mutex);
        const auto found = frozen.find(number);
        if (found == frozen.end()) throw std::invalid_argument("the frozen weight of this compiled function was deleted");
        matrices_.push_back(found->second);
      } else {
        matrices_.push_back(packed(tensor_of(input(next++))));
      }
      handles.push_back(matrices_.back().get());
    }
    return handles;
  }

 private:
  static size_t index(int64_t mask, int place) { return size_t(__builtin_popcountll(mask & ((int64_t(1) << place) - 1))); }

  ffi::AnyBuffer input(size_t i) const {
    auto buffer = args_.get<ffi::AnyBuffer>(i);
    if (!buffer.has_value()) throw std::invalid_argument("input " + std::to_string(i) + " is missing");
    return *buffer;
  }

  ffi::AnyBuffer result(size_t i) const {
    auto buffer = rets_.get<ffi::AnyBuffer>(i);
    if (!buffer.has_value()) throw std::invalid_argument("output " + std::to_string(i) + " is missing");
    return **buffer;
  }

  const DLTensor* keep(const DLTensor& tensor) {
    tensors_.push_back(tensor);
    return &tensors_.back();
  }

  ffi::RemainingArgs args_;
  ffi::RemainingRets rets_;
  ffi::Dictionary attrs_;
  int64_t inputs_, outputs_;
  std::deque<DLTensor> tensors_;
  std::deque<std::vector<int64_t>> wide_;
  std::vector<Matrix> matrices_;
};

template <int (*body)(Call&)>
ffi::Error run(ffi::RemainingArgs args, ffi::RemainingRets rets, ffi::Dictionary attrs) {
  try {
    Call call(args, rets, attrs);
    const int code = body(call);
    if (code == DYNADAPT_OK) return ffi::Error::Success();
    const auto kind = code == DYNADAPT_INVALID         ? ffi::ErrorCode::kInvalidArgument
                      : code == DYNADAPT_OUT_OF_MEMORY ? ffi::ErrorCode::kResourceExhausted
                                                       : ffi::ErrorCode::kInternal;
    return ffi::Error(kind, dynadapt_last_error());
  } catch (const std::exception& error) {
    return ffi::Error(ffi::ErrorCode::kInvalidArgument, error.what());
  }
}

}  // namespace

// Everything but the handlers and the two functions at the end stays inside the library.
#define EXPORTED(handler, function)                                                                        \
  extern "C" __attribute__((visibility("default"))) XLA_FFI_Error* handler(XLA_FFI_CallFrame* call_frame); \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(handler, (function), ffi::Ffi::Bind().RemainingArgs().RemainingRets().Attrs());

// Defines the body of an op and its handler dynadapt_xla_<op>.
#define OP(op)                         \
  static int op(Call& call);           \
  EXPORTED(dynadapt_xla_##op, run<op>) \
  static int op(Call& call)

OP(linear_forward) {
  const dynadapt_linear_params params{sizeof params, call.attr<float>("scale"), nullptr, nullptr};
  const auto parts = call.weights();
  return dynadapt_linear_forward(call.in(0), parts.data(), int32_t(parts.size()), call.in(1), call.in(2), call.in(3), call.in(4),
                                 call.out(0), call.out(1), &params);
}

OP(linear_backward) {
  const dynadapt_linear_params params{sizeof params, call.attr<float>("scale"), nullptr, nullptr};
  const auto parts = call.weights();
  return dynadapt_linear_backward(call.in(0), parts.data(), int32_t(parts.size()), call.in(1), call.in(2), call.in(3),
                                  call.out(0), call.out(1), &params);
}

OP(lora_gradient) {
  const auto sizes = call.attr<ffi::Span<const int64_t>>("part_sizes");
  // Slots that no row belongs to stay at zero.
  const dynadapt_lora_gradient_params params{
      sizeof params, call.attr<float>("scale"), 0, int32_t(sizes.size()), sizes.begin(), nullptr, nullptr};
  return dynadapt_lora_gradient(call.in(0), call.in(1), call.in(2), call.in(3), call.in(4), call.sum(0), call.sum(1), &params);
}

OP(weight_gradient) {
  const dynadapt_gradient_params params{sizeof params, 0, 0, 0};
  return dynadapt_weight_gradient(call.in(0), call.in(1), nullptr, call.out(0), &params);
}

OP(bias_gradient) { return dynadapt_bias_gradient(call.in(0), call.sum(0)); }

OP(cross_entropy) {
  const dynadapt_cross_entropy_params params{sizeof params, call.attr<float>("softcap"), 0};
  return dynadapt_softcapped_cross_entropy(call.in(0), call.weights()[0], call.in_i64(1), nullptr, call.out(0), call.out(1),
                                           call.out(2), &params);
}

OP(cross_entropy_weight_gradient) {
  const dynadapt_gradient_params params{sizeof params, 0, call.attr<float>("softcap"), 0};
  return dynadapt_cross_entropy_weight_gradient(call.in(0), call.weights()[0], call.in_i64(1), call.in(2), call.in(3),
                                                call.out(0), &params);
}

OP(norm_forward) {
  const dynadapt_norm_params params{sizeof params, call.attr<int32_t>("kind"), call.attr<float>("eps")};
  return dynadapt_norm_forward(call.in(0), call.in(1), call.in(2), call.in(3), call.out(0), call.out(1), call.out(2), &params);
}

OP(norm_backward) {
  const dynadapt_norm_params params{sizeof params, call.attr<int32_t>("kind"), 0.0f};
  return dynadapt_norm_backward(call.in(0), call.in(1), call.in(2), call.in(3), call.in(4), call.out(0), call.sum(1), call.sum(2),
                                nullptr, nullptr, &params);
}

OP(activation_forward) {
  const dynadapt_activation_params params{sizeof params, call.attr<int32_t>("kind")};
  return dynadapt_activation_forward(call.in(0), call.out(0), &params);
}

OP(activation_backward) {
  const dynadapt_activation_params params{sizeof params, call.attr<int32_t>("kind")};
  return dynadapt_activation_backward(call.in(0), call.in(1), call.out(0), nullptr, &params);
}

static dynadapt_head_norm_params head_norm_params(const Call& call, float eps) {
  return {sizeof(dynadapt_head_norm_params), call.attr<int32_t>("hq"), call.attr<int32_t>("hkv"), call.attr<int32_t>("d"), eps};
}

OP(head_norm_forward) {
  const dynadapt_head_norm_params params = head_norm_params(call, call.attr<float>("eps"));
  return dynadapt_head_norm_forward(call.in(0), call.in(1), call.in(2), call.out(0), call.out(1), &params);
}

OP(head_norm_backward) {
  const dynadapt_head_norm_params params = head_norm_params(call, 0.0f);
  return dynadapt_head_norm_backward(call.in(0), call.in(1), call.in(2), call.in(3), call.in(4), call.out(0), call.sum(1),
                                     call.sum(2), &params);
}

OP(embedding_forward) { return dynadapt_embedding_forward(call.in_i64(0), call.in(1), call.in(2), call.in_i64(3), call.out(0)); }

OP(embedding_backward) { return dynadapt_embedding_backward(call.in_i64(0), call.in(1), call.sum(0)); }

// The forward has outputs 0 and 1 only; the backward has all, with the incoming gradient as input 4.
OP(linear_mse) {
  return dynadapt_linear_mse(call.in(0), call.in(1), call.in(2), call.in(3), call.in(4), call.out(0), call.out(1), call.out(2),
                             call.sum(3), call.sum(4));
}

static dynadapt_attention_params attention_params(const Call& call) {
  return {sizeof(dynadapt_attention_params), call.attr<int32_t>("hq"),     call.attr<int32_t>("hkv"),  call.attr<int32_t>("d"),
          call.attr<float>("scale"),         call.attr<int32_t>("window"), call.attr<float>("softcap")};
}

OP(attention_forward) {
  const dynadapt_attention_params params = attention_params(call);
  return dynadapt_attention_forward(call.in(0), call.in(1), call.in(2), call.in(3), call.in(4), call.in(5), call.in(6),
                                    call.out(0), call.out(1), &params);
}

OP(attention_backward) {
  const dynadapt_attention_params params = attention_params(call);
  return dynadapt_attention_backward(call.in(0), call.in(1), call.in(2), call.in(3), call.in(4), call.in(5), call.in(6),
                                     call.in(7), call.in(8), call.in(9), call.out(0), &params);
}

// In place: outputs 0 to 5 are the memory of the inputs that XLA aliases with them (master, grad, first, second, working, step).
OP(update) {
  const dynadapt_update_params params{sizeof params,
                                      call.attr<int32_t>("kind"),
                                      call.attr<double>("decay"),
                                      call.attr<double>("clip"),
                                      call.attr<double>("beta1"),
                                      call.attr<double>("beta2"),
                                      call.attr<double>("eps"),
                                      call.attr<double>("weight_decay"),
                                      call.attr<double>("momentum"),
                                      nullptr};
  return dynadapt_update(call.out(0), call.out(1), call.out(2), call.out(3), call.in(6), call.in(7), call.out(4), call.in(8),
                         call.in(9), call.out(5), call.out(6), call.out(7), call.in(10), &params);
}

// What a GPU is told.
static ffi::Error no_gpu(ffi::RemainingArgs, ffi::RemainingRets, ffi::Dictionary) {
  return ffi::Error(ffi::ErrorCode::kUnimplemented,
                    "dynadapt.jax serves arrays on the CPU only; put them on jax.devices('cpu')[0]");
}
EXPORTED(dynadapt_xla_no_gpu, no_gpu)

extern "C" {

/// Packs weight [rows, columns] (bfloat16 or float32) and returns its number; 0 with the reason in dynadapt_last_error().
__attribute__((visibility("default"))) int64_t dynadapt_xla_freeze(void* weight, int64_t rows, int64_t columns, int bfloat16) {
  int64_t shape[2] = {rows, columns};
  const DLTensor tensor{weight, {kDLCPU, 0}, 2, bfloat16 ? DLDataType{kDLBfloat, 16, 1} : DLDataType{kDLFloat, 32, 1},
                        shape,  nullptr,     0};
  dynadapt_matrix* matrix = nullptr;
  if (dynadapt_matrix_create(&tensor, &matrix) != DYNADAPT_OK) return 0;
  const std::lock_guard<std::mutex> lock(frozen_mutex);
  frozen.emplace(++last_number, Matrix(matrix, Destroy()));
  return last_number;
}

__attribute__((visibility("default"))) void dynadapt_xla_thaw(int64_t number) {
  const std::lock_guard<std::mutex> lock(frozen_mutex);
  frozen.erase(number);
}

}  // extern "C"
