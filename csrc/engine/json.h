// A JSON reader for config.json, safetensors headers and adapter_config.json.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace dynadapt {

/// A JSON value. Numbers are doubles, which hold whole numbers up to 2^53 exactly.
struct Json {
  enum Kind {
    kNull,
    kBool,
    kNumber,
    kString,
    kArray,
    kObject
  };

  Kind kind = kNull;
  bool boolean = false;
  double number = 0;
  bool integer = false;  // of a number: written without fraction and exponent
  std::string string;
  std::vector<Json> items;
  std::map<std::string, Json> members;

  bool is(Kind expected) const { return kind == expected; }

  /// The member of this name; null where it is absent, null itself, or this is not an object.
  const Json* find(const std::string& name) const;

  /// Whether this is a whole number of at least 0, written as one, that a double holds exactly: 2.0 is none, as in Python.
  bool is_count() const;
  int64_t count() const { return int64_t(number); }

  /// For error texts: the value as JSON, cut after 80 characters.
  std::string text() const;
};

/// The most values that a document may have: each takes about 200 bytes, whatever its text takes.
constexpr size_t kMostValues = 1 << 17;       // of a configuration
constexpr size_t kMostTableValues = 1 << 20;  // of a table of tensors: a header, an index

/// The value that `text` holds. Throws Invalid with `where` in front for anything that is not JSON, for a name that occurs twice
/// in an object, and for more than `most` values.
Json parse_json(std::string_view text, const std::string& where, size_t most = kMostValues);

/// `text` in quotes, as JSON writes it.
std::string json_string(std::string_view text);

/// The shortest text that reads back as `value`, with a point or an exponent.
std::string json_number(double value);

}  // namespace dynadapt
