// Checked values of a config.json.
#pragma once

#include <string>

#include "core/error.h"
#include "engine/json.h"

namespace dynadapt {

/// Reads the keys of one JSON object; every failure names the file and the key. null is a value like any other: it is taken
/// for "absent" only where a function says so.
class ConfigValues {
 public:
  /// `place`: where in the file the object is, "" at the top, "rope_scaling." for that key's.
  ConfigValues(const Json& raw, const std::string& where, const std::string& place = "")
      : raw_(raw), where_(where), place_(place) {}

  [[noreturn]] void stop(const std::string& text) const { throw Invalid(where_ + ": " + place_ + text); }

  /// The value of this key, null itself included; nullptr where there is no such key.
  const Json* value(const char* key) const {
    const auto found = raw_.members.find(key);
    return found == raw_.members.end() ? nullptr : &found->second;
  }

  /// nullptr where the key is absent or null.
  const Json* find(const char* key) const { return raw_.find(key); }

  int64_t size(const char* key, int64_t absent = 0) const {
    const Json* found = value(key);
    if (!found && absent) return absent;
    if (!found) stop(std::string(key) + " is missing");
    if (!found->is_count() || found->number < 1 || found->number > 2147483647.0)
      stop(std::string(key) + " = " + found->text() + " must be a whole number in 1..2147483647");
    return found->count();
  }

  /// A size, `absent` where there is no such key, `null` where it is null and `null` is not 0.
  int64_t size_or_null(const char* key, int64_t absent, int64_t null) const {
    const Json* found = value(key);
    return found && found->is(Json::kNull) && null ? null : size(key, absent);
  }

  double number(const char* key, double low, double high, const double* absent = nullptr) const {
    const Json* found = value(key);
    if (!found && absent) return *absent;
    if (!found) stop(std::string(key) + " is missing");
    if (!found->is(Json::kNumber) || !(found->number >= low && found->number <= high))
      stop(std::string(key) + " = " + found->text() + " must be a number in " + json_number(low) + ".." + json_number(high));
    return found->number;
  }

  bool flag(const char* key, bool absent) const {
    const Json* found = value(key);
    if (found && !found->is(Json::kBool)) stop(std::string(key) + " = " + found->text() + " must be true or false");
    return found ? found->boolean : absent;
  }

  /// A text, `absent` where there is no such key.
  std::string text(const char* key, const std::string& absent) const {
    const Json* found = value(key);
    if (found && !found->is(Json::kString))
      stop(std::string(key) + " = " + found->text() + " is not supported; accepted: a text");
    return found ? found->string : absent;
  }

  /// Refuses what is neither a token id, a list of them, nor null.
  void check_token(const char* key) const {
    const auto is_id = [](const Json& item) { return item.is(Json::kNumber) && item.integer; };
    const Json* found = find(key);
    bool fine = !found || is_id(*found) || found->is(Json::kArray);
    for (size_t i = 0; fine && found && i < found->items.size(); i++) fine = is_id(found->items[i]);
    if (!fine) stop(std::string(key) + " = " + found->text() + " must be a token id, a list of them, or null");
  }

 private:
  const Json& raw_;
  const std::string& where_;
  const std::string place_;
};

}  // namespace dynadapt
