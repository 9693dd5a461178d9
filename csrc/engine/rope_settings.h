// The rotary settings of a config.json. dynadapt/model/rope_settings.py reads the same.
#pragma once

#include <string>

#include "engine/config.h"
#include "engine/config_values.h"

namespace dynadapt {

/// Reads rope_theta and rope_scaling of `c`, whose sizes are there. `theta`: where the file has none.
void read_rope(const ConfigValues& keys, const std::string& where, double theta, ModelConfig& c);

/// Likewise where layers with a window have settings of their own, and window_rope_theta.
void read_rope_by_kind(const ConfigValues& keys, const std::string& where, double theta, ModelConfig& c);

}  // namespace dynadapt
