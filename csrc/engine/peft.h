// Adapters in PEFT's own files, adapter_config.json and adapter_model.safetensors, as dynadapt/model/peft.py has them.
#pragma once

#include <string>

#include "engine/adapter.h"
#include "engine/weights.h"

namespace dynadapt {

/// Writes the float32 masters of one stream as a PEFT directory. Throws FileError where that fails.
void write_peft(const std::string& directory, Adapters& adapters, const Model& model, int64_t stream);

/// Reads a PEFT adapter of the same rank, alpha and targets into one stream's masters. Throws Invalid naming what differs, and
/// then changes nothing.
void read_peft(const std::string& directory, Adapters& adapters, const Model& model, int64_t stream);

}  // namespace dynadapt
