#include "engine/rope.h"

#include <cmath>

namespace dynadapt {

namespace {

/// Of dimension pairs 0..d/2-1: how far each is divided by yarn's factor, 0 to 1.
std::vector<double> yarn_shares(const ModelConfig& config) {
  const RopeScaling& s = config.rope_scaling;
  const double d = double(config.head_dim), original = double(s.original_positions);
  // The dimension, of d, whose pair turns so many times within the original context.
  const auto turning = [&](double turns) {
    return d * std::log(original / (turns * 2 * M_PI)) / (2 * std::log(config.rope_theta));
  };
  double low = turning(s.beta_fast), high = turning(s.beta_slow);
  if (s.truncate) low = std::floor(low), high = std::ceil(high);
  low = std::fmax(low, 0.0);
  high = std::fmin(high, d - 1);
  if (low == high) high += 0.001;
  std::vector<double> shares;
  for (int64_t i = 0; i < config.head_dim / 2; i++)
    shares.push_back(std::fmin(std::fmax((double(i) - low) / (high - low), 0.0), 1.0));
  return shares;
}

/// Angle per position of each pair of dimensions, for a text of `length` tokens.
std::vector<double> rope_frequencies(const ModelConfig& config, int64_t length) {
  const RopeScaling& s = config.rope_scaling;
  double theta = config.rope_theta;
  if (s.kind == RopeScaling::kDynamic) {
    const double positions = double(config.max_positions), d = double(config.head_dim);
    const double longer = std::fmax(double(length), positions) / positions;
    theta *= std::pow(s.factor * longer - (s.factor - 1), d / (d - 2));
  }
  const std::vector<double> shares = s.kind == RopeScaling::kYarn ? yarn_shares(config) : std::vector<double>();
  std::vector<double> out;
  for (int64_t i = 0; i < config.head_dim / 2; i++) {
    double frequency = std::pow(theta, -(double(2 * i) / double(config.head_dim)));
    if (s.kind == RopeScaling::kLinear) frequency /= s.factor;
    if (s.kind == RopeScaling::kYarn) frequency = shares[size_t(i)] * frequency / s.factor + (1 - shares[size_t(i)]) * frequency;
    if (s.kind == RopeScaling::kLongrope)
      frequency /= (length > s.original_positions ? s.long_factor : s.short_factor)[size_t(i)];
    if (s.kind == RopeScaling::kLlama3) {
      // Wavelengths beyond the original context are divided, short ones stay, those in between are blended (Llama 3.1).
      const double turns = double(s.original_positions) * frequency / (2 * M_PI);
      const double keep = std::fmin(std::fmax((turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor), 0.0), 1.0);
      frequency = keep * frequency + (1 - keep) * frequency / s.factor;
    }
    out.push_back(frequency);
  }
  return out;
}

}  // namespace

RopeTables window_rope_tables(const ModelConfig& config, int64_t length) {
  if (!config.window_rope_theta) return {};
  ModelConfig own = config;
  own.rope_theta = config.window_rope_theta;
  own.rope_scaling = {};
  return rope_tables(own, length);
}

RopeTables rope_tables(const ModelConfig& config, int64_t length) {
  const int64_t half = config.head_dim / 2;
  const double scale = config.rope_scaling.attention_factor;
  const std::vector<double> frequencies = rope_frequencies(config, length);
  RopeTables out{std::vector<float>(size_t(length * half)), std::vector<float>(size_t(length * half))};
  for (int64_t i = 0; i < half; i++)
    for (int64_t p = 0; p < length; p++) {
      const double angle = double(p) * frequencies[size_t(i)];
      out.cos[size_t(p * half + i)] = float(scale * std::cos(angle));
      out.sin[size_t(p * half + i)] = float(scale * std::sin(angle));
    }
  return out;
}

}  // namespace dynadapt
