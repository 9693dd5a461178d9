// The C entry points of the engine: arguments are checked here and against the model in engine.cpp, and nowhere below.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>

#include "engine/engine.h"
#include "engine/peft.h"

using namespace dynadapt;

struct dynadapt_engine {
  Engine engine;
  std::atomic<bool> busy{false};
};

namespace {

constexpr uint32_t kFirstParams = offsetof(dynadapt_engine_params, base);  // of the struct's first version

constexpr dynadapt_engine_params kDefaults = {.struct_size = sizeof(dynadapt_engine_params),
                                              .dtype = DYNADAPT_BF16,
                                              .streams = 1,
                                              .segment = 512,
                                              .every = 1,
                                              .memory_length = 0,
                                              .memory_sinks = 4,
                                              .rank = 16,
                                              .alpha = 0,
                                              .targets = "all",
                                              .first_layer = 0,
                                              .last_layer = -1,
                                              .seed = 0,
                                              .optimizer = DYNADAPT_ADAM,
                                              .lr = 2e-3,
                                              .beta1 = 0.9,
                                              .beta2 = 0.999,
                                              .eps = 1e-8,
                                              .clip = 1,
                                              .decay = 0,
                                              .weight_decay = 0,
                                              .momentum = 0,
                                              .base = DYNADAPT_SAME};

LoraSettings lora_settings(const Op& op, const dynadapt_engine_params& p) {
  const double alpha = p.alpha == 0 ? 2.0 * p.rank : p.alpha;
  op.number("alpha", alpha, 1e-9, 1e9);
  const std::string targets = p.targets ? p.targets : "";
  op.require(targets == "all" || targets == "attn" || targets == "mlp", "targets is \"%s\", accepted is all, attn or mlp",
             targets.c_str());
  op.whole("first_layer", p.first_layer, 0, INT32_MAX);
  op.whole("last_layer", p.last_layer, -1, INT32_MAX);
  return {p.rank, alpha, targets, p.first_layer, p.last_layer, p.seed};
}

OptimizerSettings optimizer_settings(const Op& op, const dynadapt_engine_params& p) {
  op.require(p.optimizer >= DYNADAPT_SGD && p.optimizer <= DYNADAPT_LION && p.optimizer != DYNADAPT_RMS,
             "optimizer is %d, accepted is 0 (sgd), 1 (adam), 2 (adamw) or 4 (lion)%s", p.optimizer,
             p.optimizer == DYNADAPT_RMS ? "; rms needs gradient statistics, which are zero for LoRA at its start" : "");
  constexpr double kLargest = 1e30, kBelowOne = 1 - 1e-15;
  const bool sgd = p.optimizer == DYNADAPT_SGD;
  op.number("lr", p.lr, 0, kLargest);
  op.number("clip", p.clip, 0, kLargest);
  op.number("decay", p.decay, 0, 1);
  if (!sgd) {
    op.number("beta1", p.beta1, 0, kBelowOne);
    op.number("beta2", p.beta2, 1e-15, kBelowOne);
    op.number("eps", p.eps, p.optimizer == DYNADAPT_LION ? 0 : 1e-38, 1);
  }
  const bool decays = state_of(UpdateKind(p.optimizer), p.beta1, p.momentum).decays;
  op.number("weight_decay", p.weight_decay, 0, decays ? kLargest : 0);  // anything else would be ignored
  op.number("momentum", p.momentum, 0, sgd ? kBelowOne : 0);
  return {UpdateKind(p.optimizer), p.lr, p.beta1, p.beta2, p.eps, p.clip, p.decay, p.weight_decay, p.momentum};
}

EngineSettings settings_of(const Op& op, const dynadapt_engine_params& p) {
  op.require(p.dtype == DYNADAPT_BF16 || p.dtype == DYNADAPT_F32, "dtype is %d, accepted is 0 (bf16) or 1 (f32)", p.dtype);
  op.require(p.base == DYNADAPT_SAME || p.base == DYNADAPT_INT8, "base is %d, accepted is 0 (same) or 1 (int8)", p.base);
  EngineSettings s{};
  s.int8 = p.base == DYNADAPT_INT8;
  s.dtype = p.dtype == DYNADAPT_BF16 ? kBF16 : kF32;
  op.whole("streams", s.streams = p.streams, 1, 65535);
  op.whole("segment", s.segment = p.segment, 1, 1 << 24);
  op.whole("every", s.every = p.every, 1, INT32_MAX);
  op.whole("memory_length", s.memory_length = p.memory_length, 0, 1 << 24);
  op.whole("memory_sinks", s.memory_sinks = p.memory_sinks, 0, 1 << 24);
  op.whole("rank", p.rank, 0, 4096);
  s.learns = p.rank > 0;
  if (!s.learns) return s;
  s.lora = lora_settings(op, p);
  s.optimizer = optimizer_settings(op, p);
  return s;
}

/// One call on an engine: the engine is there, and in no other call.
class Call {
 public:
  Call(const Op& op, dynadapt_engine* engine) : engine_(engine) {
    op.require(!op.held("engine", engine).busy.exchange(true),
               "the engine is in another call; calls on one engine must not overlap");
  }
  ~Call() { engine_->busy.store(false); }
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;
  Engine* operator->() const { return &engine_->engine; }

 private:
  dynadapt_engine* engine_;
};

void check_stream(const Op& op, const Call& engine, int32_t stream) {
  op.whole("stream", stream, 0, engine->settings().streams - 1);
}

Adapters& adapters(const Op& op, const Call& engine, int32_t stream) {
  check_stream(op, engine, stream);
  op.require(engine->adapters() != nullptr, "nothing learns in this engine (rank 0)");
  return *engine->adapters();
}

/// Lengths [streams], all of them `width` where none are given.
std::vector<int64_t> check_lengths(const Op& op, const int32_t* lengths, int64_t streams, int32_t width) {
  std::vector<int64_t> out(size_t(streams), width);
  for (int64_t s = 0; lengths && s < streams; s++) {
    op.require(lengths[s] >= 0 && lengths[s] <= width, "lengths[%lld] is %d, accepted is 0 to %d", (long long)s, lengths[s],
               width);
    out[size_t(s)] = lengths[s];
  }
  return out;
}

void check_tokens(const Op& op, const int32_t* tokens, int64_t streams, int64_t width, int64_t vocabulary) {
  for (int64_t i = 0; i < streams * (width + 1); i++)
    op.require(tokens[i] >= 0 && tokens[i] < vocabulary, "tokens[%lld][%lld] is %d, accepted is 0 to %lld",
               (long long)(i / (width + 1)), (long long)(i % (width + 1)), tokens[i], (long long)vocabulary - 1);
}

void check_report(const Op& op, dynadapt_engine_report* report, int64_t streams) {
  op.output_array("report", report, 1);
  op.room("report", report);
  if (report->outcome) op.output_array("report.outcome", report->outcome, streams);
  if (report->grad_norm) op.output_array("report.grad_norm", report->grad_norm, streams);
}

void fill(dynadapt_engine_report* out, const StepReport& report) {
  out->updated = out->skipped = 0;
  for (size_t s = 0; s < report.streams.size(); s++) {
    const StreamReport& stream = report.streams[s];
    out->updated += stream.updated;
    out->skipped += stream.skipped;
    if (out->outcome) out->outcome[s] = stream.updated ? DYNADAPT_UPDATED : stream.skipped ? DYNADAPT_SKIPPED : DYNADAPT_NOT_DUE;
    if (out->grad_norm) out->grad_norm[s] = stream.updated || stream.skipped ? stream.grad_norm : -1.0f;
  }
  out->scored = report.scored;
  out->nll_sum = report.nll_sum;
  out->forward_flops = report.flops.forward;
  out->backward_flops = report.flops.backward;
  out->update_flops = report.flops.update;
  out->recompute_flops = report.flops.recompute;
}

}  // namespace

extern "C" {

int dynadapt_engine_params_default(dynadapt_engine_params* params, uint32_t struct_size) {
  return guarded([&] {
    const Op op("engine_params_default");
    op.check_size("params", struct_size, kFirstParams);
    op.output_array("params", params, 1);
    std::memset(static_cast<void*>(params), 0, struct_size);
    std::memcpy(static_cast<void*>(params), &kDefaults, std::min<size_t>(struct_size, sizeof kDefaults));
    params->struct_size = struct_size;
  });
}

int dynadapt_engine_create(const dynadapt_engine_params* params, const char* model_dir, dynadapt_engine** out) {
  return guarded([&] {
    const Op op("engine_create");
    *op.output_array("out", out, 1) = nullptr;
    op.path("model_dir", model_dir);
    *out = new dynadapt_engine{Engine(model_dir, settings_of(op, op.params(params, kFirstParams)))};
  });
}

void dynadapt_engine_destroy(dynadapt_engine* engine) { delete engine; }

int dynadapt_engine_step(dynadapt_engine* engine, const int32_t* tokens, int32_t T, const int32_t* lengths, float* nll,
                         dynadapt_engine_report* report) {
  return guarded([&] {
    const Op op("engine_step");
    const Call call(op, engine);
    const EngineSettings& s = call->settings();
    op.whole("T", T, 1, s.segment);
    op.array("tokens", tokens, s.streams * (T + 1));
    if (lengths) op.array("lengths", lengths, s.streams);
    op.output_array("nll", nll, s.streams * T);
    if (report) check_report(op, report, s.streams);
    const std::vector<int64_t> counts = check_lengths(op, lengths, s.streams, T);
    check_tokens(op, tokens, s.streams, T, call->model().config.vocabulary);
    const StepReport done = call->step(tokens, counts.data(), T, nll);
    if (report) fill(report, done);
  });
}

int dynadapt_engine_enter(dynadapt_engine* engine, int32_t stream) {
  return guarded([&] {
    const Op op("engine_enter");
    const Call call(op, engine);
    check_stream(op, call, stream);
    call->enter(stream);
  });
}

int dynadapt_engine_reset(dynadapt_engine* engine, int32_t stream) {
  return guarded([&] {
    const Op op("engine_reset");
    const Call call(op, engine);
    adapters(op, call, stream).reset(stream);
  });
}

int dynadapt_engine_set_lr(dynadapt_engine* engine, int32_t stream, double lr) {
  return guarded([&] {
    const Op op("engine_set_lr");
    const Call call(op, engine);
    op.number("lr", lr, 0, 1e30);
    adapters(op, call, stream).set_lr(stream, float(lr));
  });
}

int dynadapt_engine_save(dynadapt_engine* engine, int32_t stream, const char* directory) {
  return guarded([&] {
    const Op op("engine_save");
    const Call call(op, engine);
    op.path("directory", directory);
    write_peft(directory, adapters(op, call, stream), call->model(), stream);
  });
}

int dynadapt_engine_load_adapter(dynadapt_engine* engine, int32_t stream, const char* directory) {
  return guarded([&] {
    const Op op("engine_load_adapter");
    const Call call(op, engine);
    op.path("directory", directory);
    read_peft(directory, adapters(op, call, stream), call->model(), stream);
  });
}

int dynadapt_engine_info(const dynadapt_engine* engine, dynadapt_engine_info_t* info) {
  return guarded([&] {
    const Op op("engine_info");
    const Call call(op, const_cast<dynadapt_engine*>(engine));  // the mark of a call is no part of what the engine is
    op.output_array("info", info, 1);
    const size_t size = op.room("info", info);
    const EngineSettings& s = call->settings();
    const ModelConfig& c = call->model().config;
    dynadapt_engine_info_t out{};
    out.struct_size = info->struct_size;
    out.streams = int32_t(s.streams);
    out.segment = int32_t(s.segment);
    out.window = int32_t(s.segment + (s.memory_length ? s.memory_length + s.memory_sinks : 0));
    out.layers = c.layers;
    out.hidden = c.hidden;
    out.heads = c.heads;
    out.kv_heads = c.kv_heads;
    out.head_dim = c.head_dim;
    out.ffn = c.ffn;
    out.vocabulary = c.vocabulary;
    out.max_positions = c.max_positions;
    out.parameters = call->model().weights.parameters;
    out.learned_parameters = call->adapters() ? call->adapters()->parameters() : 0;
    out.bytes = int64_t(call->bytes());
    c.family.copy(out.family, sizeof out.family - 1);
    std::memcpy(info, &out, size);
  });
}

}  // extern "C"
