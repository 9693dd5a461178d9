// Every op, and the engine where a model directory is given, by several callers at once while another thread changes how many
// threads they may use and children are forked. All results must be those of one thread alone, to the bit.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "dynadapt/dynadapt.h"

namespace {

[[noreturn]] void fail(const std::string& what) {
  std::fprintf(stderr, "%s: %s\n", what.c_str(), dynadapt_last_error());
  std::_Exit(1);
}

void check(int code, const char* what) {
  if (code != DYNADAPT_OK) fail(what);
}

/// Tensors with memory of their own; outputs are remembered, so that they can be cleared and compared.
class Tensors {
 public:
  DLTensor* f32(std::vector<int64_t> shape, float scale = 0.5f) {
    DLTensor* tensor = add(std::move(shape), {kDLFloat, 32, 1}, 4);
    float* values = static_cast<float*>(tensor->data);
    for (size_t i = 0; i < memory_.back().size() / 4; i++) values[i] = scale * (float(next() % 2001) / 1000.0f - 1.0f);
    return tensor;
  }
  DLTensor* i32(std::vector<int32_t> values) { return ints(std::move(values), 32); }
  DLTensor* i64(std::vector<int64_t> values) { return ints(std::move(values), 64); }
  DLTensor* i64(std::vector<int64_t> values, int64_t columns) {
    DLTensor* tensor = add({int64_t(values.size()) / columns, columns}, {kDLInt, 64, 1}, 8);
    std::memcpy(tensor->data, values.data(), values.size() * 8);
    return tensor;
  }
  DLTensor* out(std::vector<int64_t> shape) {
    DLTensor* tensor = f32(std::move(shape), 0.0f);
    outputs_.push_back(memory_.size() - 1);
    return tensor;
  }
  /// A tensor that the op reads and writes; it starts the same in every run.
  DLTensor* state(std::vector<int64_t> shape, float scale) {
    DLTensor* tensor = f32(std::move(shape), scale);
    outputs_.push_back(memory_.size() - 1);
    return tensor;
  }
  void keep_start() {
    for (const size_t i : outputs_) start_.push_back(memory_[i]);
  }
  void to_start() {
    for (size_t i = 0; i < outputs_.size(); i++) std::memcpy(memory_[outputs_[i]].data(), start_[i].data(), start_[i].size());
  }
  std::vector<std::vector<char>> results() const {
    std::vector<std::vector<char>> all;
    for (const size_t i : outputs_) all.push_back(memory_[i]);
    return all;
  }

 private:
  DLTensor* add(std::vector<int64_t> shape, DLDataType dtype, size_t item) {
    size_t bytes = item;
    for (const int64_t n : shape) bytes *= size_t(n);
    memory_.emplace_back(bytes);
    shapes_.push_back(std::move(shape));
    tensors_.push_back({});
    DLTensor& t = tensors_.back();
    t.data = memory_.back().data();
    t.device = {kDLCPU, 0};
    t.ndim = int(shapes_.back().size());
    t.dtype = dtype;
    t.shape = shapes_.back().data();
    return &t;
  }
  template <class Int>
  DLTensor* ints(std::vector<Int> values, uint8_t bits) {
    DLTensor* tensor = add({int64_t(values.size())}, {kDLInt, bits, 1}, sizeof(Int));
    std::memcpy(tensor->data, values.data(), values.size() * sizeof(Int));
    return tensor;
  }
  uint32_t next() { return random_ = random_ * 1664525u + 1013904223u, random_ >> 8; }

  std::deque<DLTensor> tensors_;
  std::deque<std::vector<int64_t>> shapes_;
  std::deque<std::vector<char>> memory_;
  std::vector<size_t> outputs_;
  std::vector<std::vector<char>> start_;
  uint32_t random_ = 1;
};

struct Case {
  const char* name;
  std::function<int()> call;
};

/// One caller's ops.
struct Ops {
  Tensors t;
  dynadapt_matrix *matrix = nullptr, *quantised = nullptr;
  const dynadapt_matrix *parts[2] = {}, *quants[2] = {};
  int64_t sizes[2] = {96, 96};
  std::vector<Case> cases;

  Ops() {
    constexpr int64_t N = 48, K = 64, O = 192, V = 96, R = 4, S = 2;
    check(dynadapt_matrix_create(t.f32({V, K}), &matrix), "matrix_create");
    parts[0] = parts[1] = matrix;
    static const std::vector<uint16_t> blocks(V * (K / 32) * 9, 0x2c3c);  // Q4_0: every scale 1 / 15.1
    check(dynadapt_matrix_create_quantised("q4_0", V, K, blocks.data(), int64_t(2 * blocks.size()), 0, &quantised),
          "matrix_create_quantised");
    quants[0] = quants[1] = quantised;
    DLTensor *x = t.f32({N, K}), *dy = t.f32({N, O}), *A = t.f32({S, 2 * R, K}), *Bt = t.f32({S, R, O}), *slots = t.i32({1, 0});
    DLTensor *u = t.f32({N, 2 * R}), *dU = t.f32({N, 2 * R});
    static const dynadapt_linear_params linear{sizeof linear, 0.5f, nullptr, nullptr};
    static const dynadapt_gradient_params gradient{sizeof gradient, 0, 0, 0},
        adapted_gradient{sizeof adapted_gradient, 0, 2.0f, 0.5f};
    static const dynadapt_cross_entropy_params logits{sizeof logits, 2.0f, 0}, adapted{sizeof adapted, 2.0f, 0.5f};
    add("linear_forward", [=, this, u1 = t.out({N, 2 * R}), y = t.out({N, O})] {
      return dynadapt_linear_forward(x, parts, 2, nullptr, A, Bt, slots, u1, y, &linear);
    });
    add("linear_backward", [=, this, dU1 = t.out({N, 2 * R}), dx = t.out({N, K})] {
      return dynadapt_linear_backward(dy, parts, 2, A, Bt, slots, dU1, dx, &linear);
    });
    add("linear_forward", [=, this, u1 = t.out({N, 2 * R}), y = t.out({N, O})] {
      return dynadapt_linear_forward(x, quants, 2, nullptr, A, Bt, slots, u1, y, &linear);
    });
    add("linear_backward", [=, this, dU1 = t.out({N, 2 * R}), dx = t.out({N, K})] {
      return dynadapt_linear_backward(dy, quants, 2, A, Bt, slots, dU1, dx, &linear);
    });
    add("lora_gradient", [=, this, dA = t.out({S, 2 * R, K}), dBt = t.out({S, R, O})] {
      const dynadapt_lora_gradient_params p{sizeof p, 0.5f, 0, 2, sizes, nullptr, nullptr};
      return dynadapt_lora_gradient(dy, x, u, dU, slots, dA, dBt, &p);
    });
    add("weight_gradient", [=, dW = t.out({O, K})] { return dynadapt_weight_gradient(dy, x, nullptr, dW, &gradient); });
    add("row_scores", [=, out = t.out({O})] { return dynadapt_row_scores(dy, x, out); });
    add("bias_gradient", [=, db = t.out({O})] { return dynadapt_bias_gradient(dy, db); });
    std::vector<int64_t> ids(N);
    for (int64_t n = 0; n < N; n++) ids[n] = n * 7 % V;
    DLTensor *targets = t.i64(ids), *known = t.f32({N}, 0.1f);
    add("cross_entropy", [=, this, nll = t.out({N}), lse = t.out({N}), dh = t.out({N, K})] {
      return dynadapt_cross_entropy(x, matrix, targets, nullptr, nll, lse, dh);
    });
    add("cross_entropy", [=, this, nll = t.out({N}), lse = t.out({N}), dh = t.out({N, K})] {
      return dynadapt_cross_entropy(x, quantised, targets, nullptr, nll, lse, dh);
    });
    std::vector<int64_t> likely(2 * N);
    for (int64_t n = 0; n < N; n++) likely[2 * n] = n, likely[2 * n + 1] = n % 5 ? V - 1 - n : -1;
    DLTensor *teacher = t.i64(likely, 2), *logp = t.f32({N, 2}, -1.5f);
    add("distillation", [=, this, nll = t.out({N}), lse = t.out({N}), kl = t.out({N}), dh = t.out({N, K})] {
      return dynadapt_distillation(x, matrix, targets, teacher, logp, nullptr, nll, lse, kl, dh, &logits);
    });
    add("softcapped_cross_entropy", [=, this, nll = t.out({N}), lse = t.out({N}), dh = t.out({N, K})] {
      return dynadapt_softcapped_cross_entropy(x, matrix, targets, nullptr, nll, lse, dh, &logits);
    });
    std::vector<int32_t> owner(N, 0);
    for (int64_t n = 0; n < N / 3; n++) owner[n] = 1;
    DLTensor *low = t.f32({S, R, K}), *high = t.f32({S, R, V}), *own = t.i32(owner), *hA = t.f32({N, R}), *gB = t.f32({N, R});
    add("adapted_cross_entropy",
        [=, this, u1 = t.out({N, R}), nll = t.out({N}), lse = t.out({N}), dh = t.out({N, K}), dU1 = t.out({N, R})] {
          return dynadapt_adapted_cross_entropy(x, matrix, low, high, own, targets, nullptr, u1, nll, lse, dh, dU1, &adapted);
        });
    add("adapted_cross_entropy_gradient", [=, this, dA = t.out({S, R, K}), dBt = t.out({S, R, V})] {
      return dynadapt_adapted_cross_entropy_gradient(x, matrix, high, own, targets, nullptr, known, hA, gB, dA, dBt,
                                                     &adapted_gradient);
    });
    add("cross_entropy_weight_gradient", [=, this, dW = t.out({V, K})] {
      return dynadapt_cross_entropy_weight_gradient(x, matrix, targets, nullptr, known, dW, &gradient);
    });
    add("matrix_gather_rows", [=, this, rows = t.out({N, K})] { return dynadapt_matrix_gather_rows(matrix, targets, rows); });
    add("matrix_unpack", [=, this, rows = t.out({V, K})] { return dynadapt_matrix_unpack(matrix, rows); });
    add("matrix_unpack", [=, this, rows = t.out({V, K})] { return dynadapt_matrix_unpack(quantised, rows); });
    add("matrix_create", [weight = t.f32({V, K})] {
      dynadapt_matrix* made = nullptr;
      const int code = dynadapt_matrix_create(weight, &made);
      dynadapt_matrix_destroy(made);
      return code;
    });
    elementwise(N, K, x);
    attention();
    delta_layer();
    update();
    t.keep_start();
  }
  ~Ops() {
    dynadapt_matrix_destroy(matrix);
    dynadapt_matrix_destroy(quantised);
  }
  Ops(const Ops&) = delete;

  void elementwise(int64_t N, int64_t K, DLTensor* x) {
    static const dynadapt_norm_params norm{sizeof norm, DYNADAPT_NORM_RMS, 1e-5f};
    static const dynadapt_head_norm_params heads{sizeof heads, 4, 2, 8, 1e-5f};
    static const dynadapt_activation_params swiglu{sizeof swiglu, DYNADAPT_SWIGLU};
    DLTensor *weight = t.f32({K}), *dy = t.f32({N, K}), *stat = t.f32({N, 2}), *h = t.f32({N, 2 * K});
    add("norm_forward", [=, y = t.out({N, K}), stat1 = t.out({N, 2})] {
      return dynadapt_norm_forward(x, nullptr, weight, nullptr, nullptr, y, stat1, &norm);
    });
    add("norm_backward", [=, dx = t.out({N, K}), dweight = t.out({K})] {
      return dynadapt_norm_backward(dy, x, weight, stat, nullptr, dx, dweight, nullptr, nullptr, nullptr, &norm);
    });
    DLTensor *qkv = t.f32({N, 64}), *dqkv = t.f32({N, 64}), *q = t.f32({8}), *rstd = t.f32({N, 6});
    add("head_norm_forward",
        [=, out = t.out({N, 64}), rstd1 = t.out({N, 6})] { return dynadapt_head_norm_forward(qkv, q, q, out, rstd1, &heads); });
    add("head_norm_backward", [=, d = t.out({N, 64}), dq = t.out({8}), dk = t.out({8})] {
      return dynadapt_head_norm_backward(dqkv, qkv, q, q, rstd, d, dq, dk, &heads);
    });
    add("activation_forward", [=, y = t.out({N, K})] { return dynadapt_activation_forward(h, y, &swiglu); });
    add("activation_backward",
        [=, dh = t.out({N, 2 * K}), y = t.out({N, K})] { return dynadapt_activation_backward(dy, h, dh, y, &swiglu); });
    std::vector<int64_t> ids(N);
    for (int64_t n = 0; n < N; n++) ids[n] = n * 5 % 9;
    DLTensor *tokens = t.i64(ids), *table = t.f32({9, K}), *target = t.f32({N});
    add("embedding_forward",
        [=, out = t.out({N, K})] { return dynadapt_embedding_forward(tokens, table, nullptr, nullptr, out); });
    add("embedding_backward", [=, dtable = t.out({9, K})] { return dynadapt_embedding_backward(tokens, dy, dtable); });
    static const dynadapt_adapted_embedding_params on_tokens{sizeof on_tokens, 0, 0.5f};
    DLTensor *tokens_A = t.f32({2, 4, 9}), *tokens_Bt = t.f32({2, 4, K}), *slots = t.i32({1, 0});
    add("adapted_embedding_forward", [=, out = t.out({N, K})] {
      return dynadapt_adapted_embedding_forward(tokens, tokens_A, tokens_Bt, slots, out, &on_tokens);
    });
    add("adapted_embedding_backward", [=, dA = t.out({2, 4, 9}), dBt = t.out({2, 4, K})] {
      return dynadapt_adapted_embedding_backward(tokens, dy, tokens_A, tokens_Bt, slots, dA, dBt, &on_tokens);
    });
    add("linear_mse", [=, pred = t.out({N}), loss = t.out({N}), dh = t.out({N, K}), dw = t.out({K}), db = t.out({1})] {
      return dynadapt_linear_mse(x, weight, nullptr, target, nullptr, pred, loss, dh, dw, db);
    });
  }

  void attention() {
    // Short streams without memory, and longer ones with it: the two ways that the kernels go.
    static const dynadapt_attention_params p{sizeof p, 4, 2, 8, 0.35f};
    for (const bool memory : {false, true}) {
      const int64_t S = 2, T = memory ? 150 : 20, N = S * T;
      DLTensor *qkv = t.f32({N, 64}), *dout = t.f32({N, 32}), *o = t.f32({N, 32}), *l = t.f32({S, 4, T}), *slots = t.i32({1, 0});
      DLTensor *mk = memory ? t.f32({S, 40, 16}) : nullptr, *mv = memory ? t.f32({S, 40, 16}) : nullptr;
      DLTensor *length = memory ? t.i32({40, 13}) : nullptr, *cos = t.f32({200, 4}, 1.0f), *sin = t.f32({200, 4}, 1.0f);
      add("attention_forward", [=, out = t.out({N, 32}), lse = t.out({S, 4, T})] {
        return dynadapt_attention_forward(qkv, mk, mv, length, slots, cos, sin, out, lse, &p);
      });
      add("attention_backward", [=, dqkv = t.out({N, 64})] {
        return dynadapt_attention_backward(dout, qkv, o, l, mk, mv, length, slots, cos, sin, dqkv, &p);
      });
    }
  }

  void delta_layer() {
    static const dynadapt_delta_rule_params rule{sizeof rule, 2, 4, 8, 12, 0.35f, 1e-6f};
    static const dynadapt_gated_norm_params norm{sizeof norm, 12, 1e-6f};
    constexpr int64_t S = 2, T = 90, N = S * T, C = 2 * 16 + 48;
    DLTensor *x = t.f32({N, C}), *dx = t.f32({N, C}), *taps = t.f32({C, 4}), *rows = t.f32({S, 3, C});
    DLTensor *slots = t.i32({1, 0}), *lengths = t.i32({90, 70}), *state = t.f32({S, 4, 8, 12});
    DLTensor *g = t.f32({N, 4}, -0.1f), *beta = t.f32({N, 4}, 0.5f), *o = t.f32({N, 48}), *gate = t.f32({N, 48});
    DLTensor *weight = t.f32({12}), *rstd = t.f32({N, 4}), *a_log = t.f32({4}), *dt_bias = t.f32({4});
    add("short_convolution_forward", [=, y = t.out({N, C}), final = t.out({S, 3, C})] {
      return dynadapt_short_convolution_forward(x, taps, rows, slots, lengths, y, final);
    });
    add("short_convolution_backward", [=, to = t.out({N, C}), dtaps = t.out({C, 4})] {
      return dynadapt_short_convolution_backward(dx, x, taps, rows, slots, lengths, to, dtaps);
    });
    add("delta_rule_forward", [=, out = t.out({N, 48}), final = t.out({S, 4, 8, 12})] {
      return dynadapt_delta_rule_forward(x, g, beta, state, slots, lengths, out, final, &rule);
    });
    add("delta_rule_backward", [=, to = t.out({N, C}), dg = t.out({N, 4}), dbeta = t.out({N, 4})] {
      return dynadapt_delta_rule_backward(o, x, g, beta, state, slots, lengths, to, dg, dbeta, &rule);
    });
    add("delta_gates_forward", [=, decay = t.out({N, 4}), rate = t.out({N, 4})] {
      return dynadapt_delta_gates_forward(g, beta, a_log, dt_bias, decay, rate);
    });
    add("delta_gates_backward", [=, da = t.out({N, 4}), db = t.out({N, 4}), da_log = t.out({4}), ddt_bias = t.out({4})] {
      return dynadapt_delta_gates_backward(beta, g, g, beta, a_log, dt_bias, da, db, da_log, ddt_bias);
    });
    add("gated_norm_forward", [=, y = t.out({N, 48}), inverse = t.out({N, 4})] {
      return dynadapt_gated_norm_forward(o, gate, weight, y, inverse, &norm);
    });
    add("gated_norm_backward", [=, to = t.out({N, 48}), dgate = t.out({N, 48}), dweight = t.out({12})] {
      return dynadapt_gated_norm_backward(gate, o, gate, weight, rstd, to, dgate, dweight, &norm);
    });
  }

  void update() {
    constexpr int64_t P = 20000;
    static const dynadapt_update_params p{sizeof p, DYNADAPT_ADAM, 0, 1, 0.9, 0.999, 1e-8, 0, 0, nullptr};
    DLTensor *master = t.state({2, P}, 1), *grad = t.state({2, P}, 1), *first = t.state({2, P}, 0), *second = t.state({2, P}, 0);
    DLTensor *slots = t.i32({1, 0}), *lr = t.f32({2}, 1), *norms = t.out({2}), *step = t.state({2}, 0), *skipped = t.out({2});
    step->dtype = skipped->dtype = {kDLInt, 32, 1};
    add("update", [=] {
      return dynadapt_update(master, grad, first, second, nullptr, nullptr, nullptr, slots, lr, step, norms, skipped, nullptr,
                             &p);
    });
  }

  void add(const char* name, std::function<int()> call) { cases.push_back({name, std::move(call)}); }

  std::vector<std::vector<char>> run() {
    t.to_start();
    for (const Case& op : cases) check(op.call(), op.name);
    return t.results();
  }
};

/// The error text belongs to the thread whose call failed.
void fail_on_purpose(Ops& ops, int caller) {
  DLTensor* wrong = ops.t.f32({1, 1000 + caller});
  const std::string expected = "y has shape [1, " + std::to_string(1000 + caller) + "]";
  dynadapt_linear_params p{sizeof p, 1.0f, nullptr, nullptr};
  const int code =
      dynadapt_linear_forward(ops.t.f32({1, 64}), ops.parts, 1, nullptr, nullptr, nullptr, nullptr, nullptr, wrong, &p);
  if (code != DYNADAPT_INVALID || std::string(dynadapt_last_error()).find(expected) == std::string::npos)
    fail("expected \"" + expected + "\"");
}

/// A sanitizer's allocator has locks of its own, which a child inherits as other threads held them: there, forks come last.
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr bool kForkLast = true;
#else
constexpr bool kForkLast = false;
#endif

void fork_and_run(const std::vector<std::vector<char>>& expected) {
  const pid_t child = fork();
  if (child == 0) {
#if defined(__SANITIZE_THREAD__)
    dynadapt_set_num_threads(1);  // ThreadSanitizer can't follow threads that a child of several threads starts
#endif
    Ops ops;
    std::_Exit(ops.run() == expected ? 0 : 1);
  }
  int status = 0;
  if (waitpid(child, &status, 0) != child || !WIFEXITED(status) || WEXITSTATUS(status) != 0) fail("a forked child failed");
}

/// Two threads on one engine: a call either steps or is refused and changes nothing.
void share_engine(const char* model, int rounds) {
  dynadapt_engine_params p;
  check(dynadapt_engine_params_default(&p, sizeof p), "engine_params_default");
  p.dtype = DYNADAPT_F32;
  p.segment = 8;
  p.memory_length = 8;
  p.memory_sinks = 2;
  p.rank = 2;
  dynadapt_engine *shared = nullptr, *alone = nullptr;
  check(dynadapt_engine_create(&p, model, &shared), "engine_create");
  check(dynadapt_engine_create(&p, model, &alone), "engine_create");
  const int32_t tokens[9] = {1, 2, 3, 4, 5, 6, 7, 8, 9};
  std::atomic<int> steps{0};
  const auto call = [&](int) {
    float nll[8];
    for (int i = 0; i < rounds; i++) {
      const int code = dynadapt_engine_step(shared, tokens, 8, nullptr, nll, nullptr);
      if (code == DYNADAPT_OK)
        steps++;
      else if (!std::strstr(dynadapt_last_error(), "the engine is in another call"))
        fail("engine_step");
      dynadapt_engine_info_t info{};
      info.struct_size = sizeof info;
      if (dynadapt_engine_info(shared, &info) != DYNADAPT_OK && !std::strstr(dynadapt_last_error(), "in another call"))
        fail("engine_info");
    }
  };
  std::thread other(call, 1);
  call(0);
  other.join();
  float ours[8], theirs[8];
  for (int i = 0; i < steps; i++) check(dynadapt_engine_step(alone, tokens, 8, nullptr, ours, nullptr), "engine_step");
  check(dynadapt_engine_step(alone, tokens, 8, nullptr, ours, nullptr), "engine_step");
  check(dynadapt_engine_step(shared, tokens, 8, nullptr, theirs, nullptr), "engine_step");
  if (std::memcmp(ours, theirs, sizeof ours) != 0) fail("a refused call changed the engine");
  dynadapt_engine_destroy(shared);
  dynadapt_engine_destroy(alone);
}

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 10;
  std::vector<std::thread> first;  // what is looked up once is looked up by all at once
  for (int i = 0; i < 3; i++)
    first.emplace_back([] {
      if (!dynadapt_isa() || dynadapt_num_threads() < 1) fail("isa");
      dynadapt_nvtx();
      Ops().run();
    });
  for (std::thread& thread : first) thread.join();

  check(dynadapt_set_num_threads(1), "set_num_threads");
  const auto expected = Ops().run();
  std::atomic<bool> stop{false};
  std::thread changer([&] {
    for (unsigned i = 0; !stop; i++) dynadapt_set_num_threads(i % 9), std::this_thread::yield();
  });
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 3; caller++)
    callers.emplace_back([&, caller] {
      Ops ops;
      for (int i = 0; i < rounds; i++) {
        const auto results = ops.run();
        for (size_t k = 0; k < results.size(); k++)
          if (results[k] != expected[k]) fail("output " + std::to_string(k) + " differs from one thread's");
        fail_on_purpose(ops, caller);
      }
    });
  const int forks = 1 + rounds / 10;
  for (int i = 0; i < forks && !kForkLast; i++) fork_and_run(expected);
  if (argc > 2) share_engine(argv[2], rounds);
  for (std::thread& caller : callers) caller.join();
  stop = true;
  changer.join();
  for (int i = 0; i < forks && kForkLast; i++) fork_and_run(expected);
  std::puts("done");
}
