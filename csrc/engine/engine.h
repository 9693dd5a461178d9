// The engine: score a segment of many streams, then learn from it. The order and the arithmetic are those of dynadapt/engine/engine.py.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "engine/decoder.h"

namespace dynadapt {

struct EngineSettings {
  DType dtype;
  bool int8;  // linear weights and head
  int64_t streams, segment, every, memory_length, memory_sinks;
  bool learns;
  LoraSettings lora;
  OptimizerSettings optimizer;
};

/// What a step did with one stream.
struct StreamReport {
  bool updated = false, skipped = false;
  float grad_norm = 0;  // of the update that was due
};

struct StepReport {
  std::vector<StreamReport> streams;
  Flops flops;
  int64_t scored = 0;
  double nll_sum = 0;
};

/// Score, then learn:
/// 1. forward over the segment's inputs, attending to [sinks; memory; segment];
/// 2. linear cross-entropy: NLLs, and d-hidden from the same pass where an update is due;
/// 3. the score is written; from here on nothing changes it;
/// 4. backward down to the lowest group that learns;
/// 5. per-stream clip and one update; a stream whose gradient is not finite stays as it was and says so;
/// 6. the segment enters memory.
class Engine {
 public:
  Engine(const std::string& directory, const EngineSettings& settings);
  Engine(const Engine&) = delete;  // its parts hold references to each other
  Engine& operator=(const Engine&) = delete;

  /// tokens [streams, width + 1] are checked to be ids of the model; lengths [streams] in 0..width; nll [streams, width].
  StepReport step(const int32_t* tokens, const int64_t* lengths, int64_t width, float* nll);

  /// A new document enters the stream: its memory is cleared, what it learned stays.
  void enter(int64_t stream);

  const Model& model() const { return model_; }
  const EngineSettings& settings() const { return settings_; }
  Adapters* adapters() { return adapters_.get(); }  // null where nothing learns
  size_t bytes() const;

 private:
  struct Pass {
    std::vector<int32_t> streams;
    bool learn;
  };

  std::vector<Pass> passes(const int64_t* lengths) const;
  void run(const Pass& pass, const int32_t* tokens, const int64_t* lengths, int64_t width, float* nll, StepReport& report);

  EngineSettings settings_;
  Model model_;
  std::unique_ptr<Adapters> adapters_;
  std::unique_ptr<Window> window_;
  std::unique_ptr<Decoder> decoder_;
  std::vector<int64_t> segments_;  // since the stream's document entered
};

}  // namespace dynadapt
