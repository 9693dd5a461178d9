#include "engine/json.h"

#include <charconv>
#include <cmath>

#include "core/error.h"

namespace dynadapt {

namespace {

constexpr int kMaxDepth = 64;

class Reader {
 public:
  Reader(std::string_view text, const std::string& where, size_t most) : text_(text), where_(where), left_(most) {}

  Json document() {
    check_utf8();
    Json value = this->value(0);
    space();
    if (at_ != text_.size()) stop("has more after its value");
    return value;
  }

 private:
  [[noreturn]] void stop(const char* what) const {
    throw Invalid(where_ + ": not valid JSON: " + what + " at byte " + std::to_string(at_));
  }

  /// Error texts repeat what a document says, so that it must be text.
  void check_utf8() {
    for (; at_ < text_.size();) {
      const auto byte = [&](size_t i) { return at_ + i < text_.size() ? uint32_t(uint8_t(text_[at_ + i])) : 0; };
      const uint32_t lead = byte(0);
      const size_t length = lead < 0x80 ? 1 : lead < 0xc2 ? 0 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : lead < 0xf5 ? 4 : 0;
      bool whole = length > 0;
      for (size_t i = 1; i < length; i++) whole = whole && (byte(i) & 0xc0) == 0x80;
      const uint32_t second = byte(1);  // overlong forms, surrogates, and what lies beyond Unicode
      if (lead == 0xe0) whole = whole && second >= 0xa0;
      if (lead == 0xed) whole = whole && second < 0xa0;
      if (lead == 0xf0) whole = whole && second >= 0x90;
      if (lead == 0xf4) whole = whole && second < 0x90;
      if (!whole) stop("bytes that are not UTF-8");
      at_ += length;
    }
    at_ = 0;
  }

  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }

  void space() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\t' || text_[at_] == '\n' || text_[at_] == '\r')) at_++;
  }

  void expect(char c, const char* what) {
    if (peek() != c) stop(what);
    at_++;
  }

  bool word(std::string_view expected) {
    if (text_.substr(at_, expected.size()) != expected) return false;
    at_ += expected.size();
    return true;
  }

  Json value(int depth) {
    if (depth > kMaxDepth) stop("nested too deeply");
    if (!left_--) stop("too many values");
    space();
    Json out;
    switch (peek()) {
      case '{':
        return object(depth);
      case '[':
        return array(depth);
      case '"':
        out.kind = Json::kString;
        out.string = string();
        return out;
      case 't':
      case 'f':
        out.kind = Json::kBool;
        out.boolean = peek() == 't';
        if (!word(out.boolean ? "true" : "false")) stop("an unknown word");
        return out;
      case 'n':
        if (!word("null")) stop("an unknown word");
        return out;
      default:
        out.kind = Json::kNumber;
        out.number = number(out.integer);
        return out;
    }
  }

  Json object(int depth) {
    Json out;
    out.kind = Json::kObject;
    at_++;
    space();
    if (peek() == '}') return at_++, out;
    for (;;) {
      space();
      if (peek() != '"') stop("a name was expected");
      std::string name = string();
      space();
      expect(':', "a colon was expected");
      const auto [member, added] = out.members.try_emplace(std::move(name));
      if (!added) stop(("the name " + json_string(member->first).substr(0, 80) + " for the second time").c_str());
      member->second = value(depth + 1);
      space();
      if (peek() == '}') return at_++, out;
      expect(',', "a comma or } was expected");
    }
  }

  Json array(int depth) {
    Json out;
    out.kind = Json::kArray;
    at_++;
    space();
    if (peek() == ']') return at_++, out;
    for (;;) {
      out.items.push_back(value(depth + 1));
      space();
      if (peek() == ']') return at_++, out;
      expect(',', "a comma or ] was expected");
    }
  }

  static bool digit(char c) { return c >= '0' && c <= '9'; }

  double number(bool& integer) {
    const size_t begin = at_;
    integer = true;
    if (peek() == '-') at_++;
    const size_t whole = at_;
    while (digit(peek())) at_++;
    if (at_ == whole || (text_[whole] == '0' && at_ > whole + 1)) stop("a value was expected");
    if (peek() == '.') {
      integer = false;
      at_++;
      if (!digit(peek())) stop("a digit was expected");
      while (digit(peek())) at_++;
    }
    if (peek() == 'e' || peek() == 'E') {
      integer = false;
      at_++;
      if (peek() == '+' || peek() == '-') at_++;
      if (!digit(peek())) stop("a digit was expected");
      while (digit(peek())) at_++;
    }
    double value = 0;
    const auto done = std::from_chars(text_.data() + begin, text_.data() + at_, value);
    if (done.ec != std::errc()) stop("a number out of range");
    return value;
  }

  uint32_t hex4() {
    if (text_.size() - at_ < 4) stop("a \\u that is cut off");
    uint32_t code = 0;
    const auto done = std::from_chars(text_.data() + at_, text_.data() + at_ + 4, code, 16);
    if (done.ptr != text_.data() + at_ + 4) stop("a \\u without four hexadecimal digits");
    at_ += 4;
    return code;
  }

  static void append_utf8(std::string& out, uint32_t code) {
    const auto byte = [&](uint32_t value) { out.push_back(char(value)); };
    if (code < 0x80) return byte(code);
    if (code < 0x800) return byte(0xc0 | code >> 6), byte(0x80 | (code & 0x3f));
    if (code < 0x10000) return byte(0xe0 | code >> 12), byte(0x80 | (code >> 6 & 0x3f)), byte(0x80 | (code & 0x3f));
    byte(0xf0 | code >> 18), byte(0x80 | (code >> 12 & 0x3f)), byte(0x80 | (code >> 6 & 0x3f)), byte(0x80 | (code & 0x3f));
  }

  void escape(std::string& out) {
    const char c = peek();
    at_++;
    switch (c) {
      case '"':
      case '\\':
      case '/':
        out.push_back(c);
        return;
      case 'b':
        out.push_back('\b');
        return;
      case 'f':
        out.push_back('\f');
        return;
      case 'n':
        out.push_back('\n');
        return;
      case 'r':
        out.push_back('\r');
        return;
      case 't':
        out.push_back('\t');
        return;
      case 'u':
        break;
      default:
        stop("an unknown escape");
    }
    uint32_t code = hex4();
    if (code >= 0xd800 && code < 0xe000) {
      const uint32_t low = code < 0xdc00 && word("\\u") ? hex4() : 0;
      if (low < 0xdc00 || low > 0xdfff) stop("half of a surrogate pair");
      code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
    }
    append_utf8(out, code);
  }

  std::string string() {
    std::string out;
    at_++;
    for (;;) {
      if (at_ >= text_.size()) stop("a string that does not end");
      const char c = text_[at_];
      if (static_cast<unsigned char>(c) < 0x20) stop("a control character in a string");
      at_++;
      if (c == '"') return out;
      if (c == '\\')
        escape(out);
      else
        out.push_back(c);
    }
  }

  std::string_view text_;
  const std::string& where_;
  size_t at_ = 0, left_;
};

std::string whole_text(const Json& value) {
  switch (value.kind) {
    case Json::kNull:
      return "null";
    case Json::kBool:
      return value.boolean ? "true" : "false";
    case Json::kNumber:
      return value.number == std::floor(value.number) && std::fabs(value.number) < 1e15 ? std::to_string(int64_t(value.number))
                                                                                        : json_number(value.number);
    case Json::kString:
      return json_string(value.string);
    default:
      break;
  }
  const bool array = value.is(Json::kArray);
  std::string out = array ? "[" : "{";
  for (const Json& item : value.items) {
    if (out.size() > 1) out += ", ";
    if (out.size() > 100) break;
    out += whole_text(item);
  }
  for (const auto& [name, member] : value.members) {
    if (out.size() > 1) out += ", ";
    if (out.size() > 100) break;
    out += json_string(name) + ": " + whole_text(member);
  }
  return out + (array ? "]" : "}");
}

}  // namespace

const Json* Json::find(const std::string& name) const {
  const auto found = members.find(name);
  return found == members.end() || found->second.is(kNull) ? nullptr : &found->second;
}

bool Json::is_count() const {
  return kind == kNumber && integer && number >= 0 && number <= 9007199254740992.0 && number == std::floor(number);
}

std::string Json::text() const {
  std::string out = whole_text(*this);
  if (out.size() <= 80) return out;
  size_t end = 80;
  while ((out[end] & 0xc0) == 0x80) end--;  // not within a character
  return out.substr(0, end) + "...";
}

Json parse_json(std::string_view text, const std::string& where, size_t most) { return Reader(text, where, most).document(); }

std::string json_string(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\')
      out += '\\', out += c;
    else if (static_cast<unsigned char>(c) < 0x20)
      out += format("\\u%04x", c);
    else
      out += c;
  }
  return out + "\"";
}

std::string json_number(double value) {
  char text[32];
  const auto done = std::to_chars(text, text + sizeof text, value);
  std::string out(text, done.ptr);
  if (out.find_first_of(".en") == std::string::npos) out += ".0";
  return out;
}

}  // namespace dynadapt
