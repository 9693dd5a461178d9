// Which keys of a config.json mean something: read, known not to change a score, or refused by name.
#pragma once

#include <string>

#include "engine/json.h"

namespace dynadapt {

/// Throws Invalid for a key of `object` that is neither read for `type` nor known not to matter. `type` is a model_type, or
/// "rope" for the object of the rotary settings, whose keys `place` names; a null under an unknown key says nothing.
void refuse_unread(const Json& object, const std::string& type, const std::string& where, const std::string& place = "");

/// Whether two values are equal; of objects and arrays, empty ones.
bool same_value(const Json& a, const Json& b);

}  // namespace dynadapt
