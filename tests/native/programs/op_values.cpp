// Calls functions of the C ABI on the arguments of a file and writes what the calls left in their tensors: ops of a library that no
// Python can load here, because it is for another processor.
//
//   op_values CALLS RESULTS
//
// CALLS: for each call the name of the function without "dynadapt_", a line end, and its arguments in their order; numbers are
// little-endian. A tensor is i32 dimensions (-1: NULL), i32 type code, i32 bits, its shape and strides (i64), i64 bytes, the bytes; a
// matrix is the tensor it is made of; several are an i32 count before them; a struct is i64 bytes and the bytes. Every call is made with
// one thread and with three, whose results must be equal; RESULTS: the bytes of every tensor, matrices unpacked, in the same order.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <fstream>
#include <functional>
#include <map>
#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

#include "dynadapt/dynadapt.h"

namespace {

[[noreturn]] void fail(const std::string& what) {
  std::fprintf(stderr, "%s: %s\n", what.c_str(), dynadapt_last_error());
  std::exit(1);
}

/// The arguments of one call, as the file has them.
class Arguments {
 public:
  explicit Arguments(std::istream& file) : file_(file) { matrices_.reserve(64); }  // a call points into it
  ~Arguments() {
    for (dynadapt_matrix* matrix : matrices_) dynadapt_matrix_destroy(matrix);
  }

  template <class T>
  T read() {
    if constexpr (std::is_same_v<T, const DLTensor*>) {
      return tensor();
    } else if constexpr (std::is_same_v<T, const dynadapt_matrix*> || std::is_same_v<T, dynadapt_matrix*>) {
      return matrix();
    } else if constexpr (std::is_same_v<T, const dynadapt_matrix* const*>) {
      const int first = int(matrices_.size()), count = value<int32_t>();
      for (int i = 0; i < count; i++) matrix();
      return matrices_.data() + first;
    } else if constexpr (std::is_pointer_v<T>) {
      std::remove_const_t<std::remove_pointer_t<T>>* made = nullptr;
      const auto bytes = value<int64_t>();
      if (bytes != sizeof *made) fail("a struct has another size");
      made = reinterpret_cast<decltype(made)>(take(bytes).data());
      if constexpr (std::is_same_v<T, const dynadapt_lora_gradient_params*>)
        made->part_sizes = reinterpret_cast<const int64_t*>(take(made->part_count * 8).data());
      return made;
    } else {
      return value<T>();
    }
  }

  /// What a call has left in memory: tensors as they are, matrices unpacked.
  std::vector<std::vector<char>> results() {
    size_t next = 0;
    for (size_t i = 0; i < tensors_.size(); i++)
      if (of_matrix_[i] && dynadapt_matrix_unpack(matrices_[next++], &tensors_[i]) != DYNADAPT_OK) fail("matrix_unpack");
    std::vector<std::vector<char>> out;
    for (const size_t place : places_) out.push_back(memory_[place]);
    return out;
  }

 private:
  template <class T>
  T value() {
    T out;
    if (!file_.read(reinterpret_cast<char*>(&out), sizeof out)) fail("the file of calls ends early");
    return out;
  }
  std::vector<char>& take(int64_t bytes) {
    memory_.emplace_back().reserve(size_t(bytes) + 8);  // memory of an empty tensor is somewhere, too
    memory_.back().resize(size_t(bytes));
    if (!file_.read(memory_.back().data(), bytes)) fail("the file of calls ends early");
    return memory_.back();
  }
  const DLTensor* tensor(bool of_matrix = false) {
    const int dimensions = value<int32_t>();
    if (dimensions < 0) return nullptr;
    DLTensor& t = tensors_.emplace_back();
    of_matrix_.push_back(of_matrix);
    t.device = {kDLCPU, 0};
    t.ndim = dimensions;
    t.dtype.code = uint8_t(value<int32_t>());
    t.dtype.bits = uint8_t(value<int32_t>());
    t.dtype.lanes = 1;
    t.shape = reinterpret_cast<int64_t*>(take(dimensions * 8).data());
    t.strides = reinterpret_cast<int64_t*>(take(dimensions * 8).data());
    t.data = take(value<int64_t>()).data();
    places_.push_back(memory_.size() - 1);
    return &t;
  }
  dynadapt_matrix* matrix() {
    if (dynadapt_matrix_create(tensor(true), &matrices_.emplace_back()) != DYNADAPT_OK) fail("matrix_create");
    return matrices_.back();
  }

  std::istream& file_;
  std::deque<DLTensor> tensors_;
  std::vector<bool> of_matrix_;
  std::vector<size_t> places_;
  std::deque<std::vector<char>> memory_;
  std::vector<dynadapt_matrix*> matrices_;
};

using Call = std::function<int(Arguments&)>;

template <class... A>
Call of(int (*function)(A...)) {
  return [function](Arguments& arguments) {
    const std::tuple<A...> values{arguments.read<A>()...};  // braces: in this order
    return std::apply(function, values);
  };
}

const std::map<std::string, Call> kCalls = {
#define OP(name) {#name, of(dynadapt_##name)},
    OP(matrix_gather_rows) OP(matrix_update_rows) OP(matrix_unpack) OP(linear_forward) OP(linear_backward) OP(lora_gradient)
        OP(weight_gradient) OP(row_scores) OP(bias_gradient) OP(cross_entropy) OP(distillation) OP(softcapped_cross_entropy)
            OP(adapted_cross_entropy) OP(adapted_cross_entropy_gradient) OP(cross_entropy_weight_gradient) OP(norm_forward)
                OP(norm_backward) OP(head_norm_forward) OP(head_norm_backward) OP(activation_forward) OP(activation_backward)
                    OP(embedding_forward) OP(embedding_backward) OP(adapted_embedding_forward) OP(adapted_embedding_backward)
                        OP(attention_forward) OP(attention_backward) OP(linear_mse) OP(update) OP(short_convolution_forward)
                            OP(short_convolution_backward) OP(delta_rule_forward) OP(delta_rule_backward) OP(gated_norm_forward)
                                OP(gated_norm_backward) OP(delta_gates_forward) OP(delta_gates_backward)
#undef OP
};

std::vector<std::vector<char>> run(std::istream& file, const std::string& name, int threads) {
  const auto found = kCalls.find(name);
  if (found == kCalls.end()) fail(name + " is not an op");
  Arguments arguments(file);
  dynadapt_set_num_threads(threads);
  if (found->second(arguments) != DYNADAPT_OK) fail(name);
  return arguments.results();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) fail("usage: op_values CALLS RESULTS");
  std::ifstream file(argv[1], std::ios::binary);
  std::ofstream to(argv[2], std::ios::binary);
  int calls = 0;
  for (std::string name; std::getline(file, name); calls++) {
    const std::streampos begin = file.tellg();
    const auto alone = run(file, name, 1);
    file.seekg(begin);
    if (run(file, name, 3) != alone) fail(name + ", call " + std::to_string(calls) + ": three threads change it");
    for (const auto& bytes : alone) to.write(bytes.data(), std::streamsize(bytes.size()));
  }
  std::printf("%s %d\n", dynadapt_isa(), calls);
}
