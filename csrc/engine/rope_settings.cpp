#include "engine/rope_settings.h"

#include <cmath>
#include <map>

#include "engine/config_keys.h"

namespace dynadapt {

namespace {

constexpr double kBand[] = {1e-6, 1e9}, kScale[] = {1e-6, 1e6}, kFactor[] = {0.01, 1e9};
constexpr const char* kOriginal = "original_max_position_embeddings";

/// One set of rotary settings: of all layers, or of those of one kind.
struct Set {
  const ConfigValues& keys;  // of the file
  const std::string& where;
  const std::string place;
  const Json& object;
  bool by_kind;
  double theta;  // where there is none
  const ConfigValues values{object, where, place + "."};
};

void refuse_partial(const ConfigValues& keys, const Json* part) {
  if (part && !(part->is(Json::kNumber) && part->number == 1))
    keys.stop("partial_rotary_factor = " + part->text() + " is not supported; accepted: 1.0 or absent");
}

void check_places(const ConfigValues& keys) {
  for (const char* place : {"rope_scaling", "rope_parameters"})
    if (const Json* found = keys.find(place); found && !found->is(Json::kObject))
      keys.stop(std::string(place) + " = " + found->text() + " must be an object or null");
}

/// A number in the bounds, `absent` where there is no such key or it is null.
double number_or(const ConfigValues& rope, const char* key, const double (&bounds)[2], double absent) {
  return rope.find(key) ? rope.number(key, bounds[0], bounds[1]) : absent;
}

/// factor; where it is null, how much longer the context is than the original one.
double grown(const ConfigValues& rope, const ModelConfig& c) {
  if (rope.find("factor")) return rope.number("factor", kFactor[0], kFactor[1]);
  const double ratio = double(c.max_positions) / double(c.rope_scaling.original_positions);
  if (!(ratio >= kFactor[0] && ratio <= kFactor[1]))
    rope.stop(std::string(kOriginal) + " is too far from max_position_embeddings");
  return ratio;
}

/// How much yarn adds to queries and keys, by one of its two weights.
double yarn_scale(double factor, double weight) { return factor <= 1 ? 1.0 : 0.1 * weight * std::log(factor) + 1.0; }

void read_yarn(const Set& set, ModelConfig& c) {
  RopeScaling& s = c.rope_scaling;
  const ConfigValues& rope = set.values;
  if (!rope.value("factor")) rope.stop("factor is missing; accepted: a number, or null");
  s.factor = grown(rope, c);
  s.beta_fast = number_or(rope, "beta_fast", kBand, 32);
  s.beta_slow = number_or(rope, "beta_slow", kBand, 1);
  s.truncate = rope.flag("truncate", true);
  if (set.by_kind && !s.truncate) rope.stop("truncate = false must be true");  // by kind, transformers does not read it
  const double from_none[] = {0, kScale[1]};
  const double mscale = number_or(rope, "mscale", from_none, 0), all_dim = number_or(rope, "mscale_all_dim", from_none, 0);
  const bool ratio = mscale != 0 && all_dim != 0;
  s.attention_factor = yarn_scale(s.factor, ratio ? mscale : 1) / yarn_scale(s.factor, ratio ? all_dim : 0);
  s.attention_factor = number_or(rope, "attention_factor", kScale, s.attention_factor);
  if (c.rope_theta == 1) rope.stop("rope_theta = 1 with type yarn is not supported: all pairs turn alike");
}

std::vector<double> read_factors(const ConfigValues& rope, const char* key, const ModelConfig& c) {
  const Json* list = rope.value(key);
  bool fine = list && list->is(Json::kArray) && int64_t(list->items.size()) == c.head_dim / 2;
  std::vector<double> out;
  for (size_t i = 0; fine && i < list->items.size(); i++) {
    const Json& item = list->items[i];
    fine = item.is(Json::kNumber) && item.number >= kBand[0] && item.number <= kBand[1];
    out.push_back(item.number);
  }
  if (!fine)
    rope.stop(std::string(key) + (list ? " = " + list->text() : " is missing, it") + " must be a list of head_dim / 2 = " +
              std::to_string(c.head_dim / 2) + " numbers in " + json_number(kBand[0]) + ".." + json_number(kBand[1]));
  return out;
}

void read_longrope(const ConfigValues& rope, ModelConfig& c) {
  RopeScaling& s = c.rope_scaling;
  s.short_factor = read_factors(rope, "short_factor", c);
  s.long_factor = read_factors(rope, "long_factor", c);
  const double longer = grown(rope, c);
  if (!rope.find("attention_factor") && longer > 1) {
    if (s.original_positions == 1) rope.stop(std::string(kOriginal) + " = 1 with type longrope; accepted: at least 2");
    s.attention_factor = std::sqrt(1 + std::log(longer) / std::log(double(s.original_positions)));
  }
  s.attention_factor = number_or(rope, "attention_factor", kScale, s.attention_factor);
}

void read_llama3(const ConfigValues& rope, RopeScaling& s) {
  s.factor = rope.number("factor", kFactor[0], kFactor[1]);
  s.low_freq_factor = rope.number("low_freq_factor", kBand[0], kBand[1]);
  s.high_freq_factor = rope.number("high_freq_factor", kBand[0], kBand[1]);
  if (s.high_freq_factor <= s.low_freq_factor) rope.stop("high_freq_factor must be above low_freq_factor");
}

RopeScaling::Kind read_kind(const Set& set) {
  static const std::map<std::string, RopeScaling::Kind> kinds = {
      {"default", RopeScaling::kNone}, {"linear", RopeScaling::kLinear},     {"dynamic", RopeScaling::kDynamic},
      {"yarn", RopeScaling::kYarn},    {"longrope", RopeScaling::kLongrope}, {"llama3", RopeScaling::kLlama3}};
  const Json* kind = set.values.value("rope_type");
  if (!kind) kind = set.values.value("type");
  if (!kind) return RopeScaling::kNone;
  const auto known = kinds.find(kind->string);
  if (!kind->is(Json::kString) || known == kinds.end())
    set.keys.stop(set.place + " type " + kind->text() +
                  " is not supported; accepted: default, linear, dynamic, yarn, longrope, llama3");
  return known->second;
}

/// `top`: the key of the file that a theta may be in instead, or null.
void read_set(const Set& set, const char* top, ModelConfig& c) {
  refuse_partial(set.keys, set.keys.find("partial_rotary_factor"));
  refuse_partial(set.values, set.values.value("partial_rotary_factor"));
  const bool own = set.values.value("rope_theta") || !top;
  c.rope_theta = (own ? set.values : set.keys).number(own ? "rope_theta" : top, 1.0, 1e15, &set.theta);
  RopeScaling& s = c.rope_scaling;
  s.kind = read_kind(set);
  refuse_unread(set.object, "rope", set.where, set.place);
  const ConfigValues& rope = set.values;
  if (s.kind == RopeScaling::kYarn || s.kind == RopeScaling::kLongrope || s.kind == RopeScaling::kLlama3)
    s.original_positions = (set.keys.value(kOriginal) && !set.by_kind ? set.keys : rope).size(kOriginal, c.max_positions);
  if (s.kind == RopeScaling::kLinear || s.kind == RopeScaling::kDynamic) s.factor = rope.number("factor", kFactor[0], kFactor[1]);
  if (s.kind == RopeScaling::kDynamic && c.head_dim == 2)
    set.keys.stop(set.place + " type dynamic with head_dim = 2 is not supported; accepted: at least 4");
  if (s.kind == RopeScaling::kYarn) read_yarn(set, c);
  if (s.kind == RopeScaling::kLongrope) read_longrope(rope, c);
  if (s.kind == RopeScaling::kLlama3) read_llama3(rope, s);
}

}  // namespace

void read_rope(const ConfigValues& keys, const std::string& where, double theta, ModelConfig& c) {
  static const Json none;
  check_places(keys);
  const Json* scaling = keys.find("rope_scaling");
  const std::string place = scaling && !scaling->members.empty() ? "rope_scaling" : "rope_parameters";
  const Json* found = keys.find(place.c_str());
  const Json& object = found ? *found : none;
  for (const auto& [name, value] : object.members)
    if (value.is(Json::kObject)) keys.stop(place + " by layer type are not supported; accepted: one set for all layers");
  read_set({keys, where, place, object, false, theta}, "rope_theta", c);
}

void read_rope_by_kind(const ConfigValues& keys, const std::string& where, double theta, ModelConfig& c) {
  check_places(keys);
  const std::string kFull = "full_attention", kSliding = "sliding_attention";
  const Json *kinds = keys.find("rope_parameters"), *older = keys.find("rope_scaling");
  Json full, sliding;  // the settings of each kind
  full.kind = sliding.kind = Json::kObject;
  if (kinds) {
    for (const auto& [name, value] : kinds->members)
      if ((name != kFull && name != kSliding) || !(value.is(Json::kObject) || value.is(Json::kNull)))
        keys.stop("rope_parameters." + name + " = " + value.text() +
                  " is not supported; accepted: full_attention, sliding_attention, an object each");
    if (older && !kinds->find(kFull))
      keys.stop("rope_scaling beside rope_parameters without full_attention is not supported; accepted: one of the two");
    if (const Json* given = kinds->find(kFull)) full = *given;
    if (const Json* given = kinds->find(kSliding)) sliding = *given;
  } else {
    full.members["rope_type"].kind = Json::kString;
    full.members["rope_type"].string = "default";
  }
  if (older)
    for (const auto& [name, value] : older->members) full.members[name] = value;
  ModelConfig own = c;
  const std::string place = "rope_parameters." + kSliding;
  read_set({keys, where, place, sliding, true, theta}, nullptr, own);
  if (own.rope_scaling.kind != RopeScaling::kNone) keys.stop(place + " is scaled, which is not supported; accepted: default");
  c.window_rope_theta = own.rope_theta;
  read_set({keys, where, older && !older->members.empty() ? "rope_scaling" : "rope_parameters." + kFull, full, true, theta},
           "rope_theta", c);
}

}  // namespace dynadapt
