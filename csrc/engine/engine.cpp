#include "engine/engine.h"

#include <algorithm>

namespace dynadapt {

namespace {

/// The settings that only make sense for the model at hand.
void check_against(const ModelConfig& c, EngineSettings& s) {
  const int64_t window = s.segment + (s.memory_length ? s.memory_length + s.memory_sinks : 0);
  if (window > c.max_positions)
    throw Invalid(format("segment and memory make a window of %lld tokens, the model has %lld positions", (long long)window,
                         (long long)c.max_positions));
  if (!s.learns) return;
  if (s.lora.last_layer < 0) s.lora.last_layer = c.layers;
  if (s.lora.first_layer >= s.lora.last_layer || s.lora.last_layer > c.layers)
    throw Invalid(
        format("first_layer and last_layer are %lld and %lld, accepted is a non-empty range of the model's layers 0 to %lld",
               (long long)s.lora.first_layer, (long long)s.lora.last_layer, (long long)c.layers));
}

}  // namespace

Engine::Engine(const std::string& directory, const EngineSettings& settings)
    : settings_(settings), model_(load_model(directory, settings.dtype, settings.int8)), segments_(size_t(settings.streams), 0) {
  check_against(model_.config, settings_);
  const EngineSettings& s = settings_;
  if (s.learns) adapters_ = std::make_unique<Adapters>(s.lora, s.optimizer, model_.config, model_.groups, s.streams, s.dtype);
  if (s.memory_length)
    window_ = std::make_unique<Window>(s.memory_length, s.memory_sinks, model_.config.layers, s.streams, model_.config.kv_width(),
                                       s.dtype);
  decoder_ = std::make_unique<Decoder>(model_, adapters_.get(), window_.get(), s.streams, s.segment);
}

size_t Engine::bytes() const {
  return model_.weights.bytes() + (adapters_ ? adapters_->bytes() : 0) + (window_ ? window_->bytes() : 0) + decoder_->bytes();
}

void Engine::enter(int64_t stream) {
  segments_[size_t(stream)] = 0;
  if (window_) window_->clear(stream);
}

/// Streams that do the same work go together.
std::vector<Engine::Pass> Engine::passes(const int64_t* lengths) const {
  Pass due{{}, true}, others{{}, false};
  for (int32_t s = 0; s < settings_.streams; s++) {
    if (lengths[s] == 0) continue;
    const bool update = settings_.learns && (segments_[size_t(s)] + 1) % settings_.every == 0;
    (update ? due : others).streams.push_back(s);
  }
  std::vector<Pass> out;
  for (Pass* pass : {&due, &others})
    if (!pass->streams.empty()) out.push_back(std::move(*pass));
  return out;
}

StepReport Engine::step(const int32_t* tokens, const int64_t* lengths, int64_t width, float* nll) {
  StepReport report;
  report.streams.resize(size_t(settings_.streams));
  std::fill_n(nll, settings_.streams * width, 0.0f);
  decoder_->flops = {};
  for (const Pass& pass : passes(lengths)) run(pass, tokens, lengths, width, nll, report);
  report.flops = decoder_->flops;
  return report;
}

void Engine::run(const Pass& pass, const int32_t* tokens, const int64_t* lengths, int64_t width, float* nll, StepReport& report) {
  const auto& streams = pass.streams;
  Batch batch{streams, 0, {}};
  std::vector<int64_t> counts, scored, targets;
  std::vector<float> weights;
  for (const int32_t s : streams) batch.segment = std::max(batch.segment, lengths[s]);
  for (const int32_t s : streams) {
    const int32_t* row = tokens + s * (width + 1);
    counts.push_back(lengths[s]);
    for (int64_t t = 0; t < batch.segment; t++) {
      if (t < lengths[s]) {
        scored.push_back(int64_t(batch.inputs.size()));
        targets.push_back(row[t + 1]);
        weights.push_back(float(1.0 / double(lengths[s])));
      }
      batch.inputs.push_back(t < lengths[s] ? row[t] : 0);
    }
  }
  std::vector<float> scores(scored.size());
  decoder_->forward(batch, pass.learn);
  decoder_->score(scored, targets, pass.learn ? weights.data() : nullptr, scores.data());
  const float* from = scores.data();
  for (size_t i = 0; i < streams.size(); i++) {
    std::copy(from, from + counts[i], nll + streams[i] * width);
    from += counts[i];
  }
  for (const float score : scores) report.nll_sum += score;
  report.scored += int64_t(scores.size());
  if (pass.learn) {
    decoder_->backward(batch);
    std::vector<float> norms(streams.size());
    std::vector<int32_t> skipped(streams.size());
    adapters_->update(streams, norms.data(), skipped.data());
    decoder_->flops.optimizer(int64_t(streams.size()), adapters_->parameters(), settings_.optimizer);
    for (size_t i = 0; i < streams.size(); i++) report.streams[size_t(streams[i])] = {!skipped[i], bool(skipped[i]), norms[i]};
  }
  decoder_->remember(batch, counts);
  for (const int32_t s : streams) segments_[size_t(s)]++;
}

}  // namespace dynadapt
