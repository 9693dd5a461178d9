#include "engine/safetensors.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>

#include "engine/json.h"

namespace dynadapt {

namespace {

constexpr int64_t kMaxHeaderBytes = 100'000'000;

int64_t stored_item_bytes(const std::string& dtype) {
  static const std::map<std::string, int64_t> sizes = {{"F64", 8}, {"F32", 4}, {"F16", 2},  {"BF16", 2},    {"I64", 8},
                                                       {"I32", 4}, {"I16", 2}, {"I8", 1},   {"U64", 8},     {"U32", 4},
                                                       {"U16", 2}, {"U8", 1},  {"BOOL", 1}, {"F8_E4M3", 1}, {"F8_E5M2", 1}};
  const auto found = sizes.find(dtype);
  return found == sizes.end() ? 0 : found->second;
}

const char* kind_of_file(mode_t mode) {
  if (S_ISDIR(mode)) return "a directory";
  if (S_ISFIFO(mode)) return "a pipe";
  if (S_ISSOCK(mode)) return "a socket";
  return "a device";
}

/// An open regular file. Every failure names it. Opened without waiting: a pipe would wait for whoever writes to it.
class File {
 public:
  explicit File(const std::string& path)
      : path_(path), handle_(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY)) {
    if (handle_.value < 0) stop();
    struct stat status;
    if (fstat(handle_.value, &status) != 0) stop();
    if (!S_ISREG(status.st_mode))
      throw Invalid(path_ + ": cannot be read (it is " + kind_of_file(status.st_mode) + ", not a file)");
    size_ = status.st_size;
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  int64_t size() const { return size_; }

  void read(int64_t begin, void* out, int64_t bytes) const {
    for (int64_t done = 0; done < bytes;) {
      const ssize_t count = pread(handle_.value, static_cast<char*>(out) + done, size_t(bytes - done), begin + done);
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) stop();
      if (count == 0) throw Invalid(path_ + ": ended while it was read (it changed since it was opened?)");
      done += count;
    }
  }

 private:
  [[noreturn]] void stop() const { throw Invalid(path_ + ": cannot be read (" + std::strerror(errno) + ")"); }

  struct Handle {
    int value;
    explicit Handle(int value) : value(value) {}
    Handle(const Handle&) = delete;
    ~Handle() {
      if (value >= 0) close(value);
    }
  };

  const std::string& path_;
  Handle handle_;
  int64_t size_ = 0;
};

StoredTensor entry(const std::string& where, const std::string& name, const Json& value, int64_t start, int64_t size) {
  const Json *dtype = value.find("dtype"), *shape = value.find("shape"), *offsets = value.find("data_offsets");
  const auto counts = [](const Json* list) {
    if (!list || !list->is(Json::kArray)) return false;
    return std::all_of(list->items.begin(), list->items.end(), [](const Json& item) { return item.is_count(); });
  };
  if (!dtype || !dtype->is(Json::kString) || !counts(shape) || !counts(offsets) || offsets->items.size() != 2)
    throw Invalid(where + ": tensor " + name + " has a damaged header entry " + value.text());
  StoredTensor out;
  out.dtype = dtype->string;
  const int64_t item = stored_item_bytes(out.dtype), begin = offsets->items[0].count(), end = offsets->items[1].count();
  if (!item) throw Invalid(where + ": tensor " + name + " has dtype " + out.dtype + "; accepted: F32, F16, BF16");
  double elements = 1;  // as a double: the product of damaged sizes may not fit
  for (const Json& n : shape->items) {
    out.shape.push_back(n.count());
    elements *= n.number;
  }
  if (begin > end || end > size - start || out.shape.size() > 8 || elements * double(item) != double(end - begin))
    throw Invalid(where + ": tensor " + name + " does not fit: " + out.dtype + " " + shape->text() + " in bytes " +
                  std::to_string(begin) + ".." + std::to_string(end) + " of " + std::to_string(size - start));
  out.begin = start + begin;
  out.bytes = end - begin;
  return out;
}

// ---- conversion

float from_half(uint16_t half) {
  const uint32_t sign = uint32_t(half & 0x8000) << 16, exponent = half >> 10 & 0x1f, fraction = half & 0x3ff;
  if (exponent == 0) return std::copysign(float(fraction) * 0x1p-24f, sign ? -1.0f : 1.0f);
  const uint32_t bits = sign | (exponent == 31 ? 0x7f800000 : (exponent + 112) << 23) | fraction << 13;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

float from_bf16(uint16_t half) {
  const uint32_t bits = uint32_t(half) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

/// Returns whether all values are finite, as float32 and as they are stored at `out`.
template <class From>
bool convert(const void* from, int64_t count, DType dtype, void* out, float (*widen)(From)) {
  const From* values = static_cast<const From*>(from);
  bool finite = true;
  for (int64_t i = 0; i < count; i++) {
    const float value = widen(values[i]);
    finite &= std::isfinite(dtype == kBF16 ? from_bf16(to_bf16(value)) : value);
    if (dtype == kBF16)
      static_cast<uint16_t*>(out)[i] = to_bf16(value);
    else
      static_cast<float*>(out)[i] = value;
  }
  return finite;
}

/// Writes bytes to a new file that takes `path`'s place once it is whole.
void replace_file(const std::string& path, const std::vector<std::pair<const void*, size_t>>& pieces) {
  const std::string part = path + ".part";
  const auto stop = [&](int handle) {
    const std::string reason = std::strerror(errno);
    if (handle >= 0) close(handle);
    unlink(part.c_str());
    throw FileError(path + ": cannot be written (" + reason + ")");
  };
  const int handle = open(part.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (handle < 0) stop(handle);
  for (const auto& [data, size] : pieces)
    for (size_t done = 0; done < size;) {
      const ssize_t count = write(handle, static_cast<const char*>(data) + done, size - done);
      if (count < 0 && errno == EINTR) continue;
      if (count <= 0) stop(handle);
      done += size_t(count);
    }
  if (fsync(handle) != 0) stop(handle);
  if (close(handle) != 0) stop(-1);
  if (rename(part.c_str(), path.c_str()) != 0) stop(-1);
}

}  // namespace

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); i++) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

std::string read_file(const std::string& path, int64_t most) {
  const File file(path);
  if (file.size() > most)
    throw Invalid(path + ": has " + std::to_string(file.size()) + " bytes, accepted are up to " + std::to_string(most));
  std::string content(size_t(file.size()), '\0');
  file.read(0, content.data(), int64_t(content.size()));
  return content;
}

SafetensorsFile::SafetensorsFile(std::string path) : path_(std::move(path)) {
  const File file(path_);
  const int64_t size = file.size();
  uint64_t length = 0;
  if (size >= 8) file.read(0, &length, 8);  // little-endian, as every machine that the kernels run on
  if (length < 2 || length > uint64_t(std::min(size - 8, kMaxHeaderBytes)))
    throw Invalid(path_ + ": not a whole safetensors file (" + std::to_string(size) + " bytes, header of " +
                  std::to_string(length) + " bytes)");
  std::string header(length, '\0');
  file.read(8, header.data(), int64_t(length));
  const Json root = parse_json(header, path_ + ": the safetensors header", kMostTableValues);
  if (!root.is(Json::kObject)) throw Invalid(path_ + ": the safetensors header is not a JSON object");
  const int64_t start = 8 + int64_t(length);
  std::vector<std::pair<StoredTensor, std::string>> order;
  for (const auto& [name, value] : root.members) {
    if (name == "__metadata__") continue;
    tensors_[name] = entry(path_, name, value, start, size);
    order.emplace_back(tensors_[name], name);
  }
  std::sort(order.begin(), order.end(), [](const auto& a, const auto& b) {
    return std::pair(a.first.begin, a.first.bytes) < std::pair(b.first.begin, b.first.bytes);
  });
  int64_t end = start;
  for (const auto& [tensor, name] : order) {
    if (tensor.begin != end)
      throw Invalid(path_ + ": tensor " + name + " begins at byte " + std::to_string(tensor.begin) + " where " +
                    std::to_string(end) + " was expected");
    end += tensor.bytes;
  }
  if (end != size)
    throw Invalid(path_ + ": the file has " + std::to_string(size) + " bytes, its header describes " + std::to_string(end));
}

void SafetensorsFile::read(const std::string& name, DType dtype, void* out) const {
  const StoredTensor& stored = tensors_.at(name);
  const bool f32 = stored.dtype == "F32", bf16 = stored.dtype == "BF16", f16 = stored.dtype == "F16", f64 = stored.dtype == "F64";
  if (!f32 && !bf16 && !f16 && !f64)
    throw Invalid(path_ + ": tensor " + name + " has dtype " + stored.dtype +
                  " (a quantised checkpoint?); accepted: F32, F16, BF16");
  const File file(path_);
  const bool same = (f32 && dtype == kF32) || (bf16 && dtype == kBF16);
  const Storage raw{same ? 0 : size_t(stored.bytes)};
  void* from = same ? out : raw.data();
  file.read(stored.begin, from, stored.bytes);
  bool finite = true;
  if (f32)
    finite = convert<float>(from, stored.bytes / 4, dtype, out, [](float value) { return value; });
  else if (f64)
    finite = convert<double>(from, stored.bytes / 8, dtype, out, [](double value) { return float(value); });
  else
    finite = convert<uint16_t>(from, stored.bytes / 2, dtype, out, bf16 ? from_bf16 : from_half);
  if (!finite) throw Invalid(path_ + ": tensor " + name + " holds a value that is NaN or infinite");
}

void write_safetensors(const std::string& path, const std::vector<NamedTensor>& tensors) {
  std::string header = "{\"__metadata__\":{\"format\":\"pt\"}";
  size_t at = 0;
  for (const NamedTensor& tensor : tensors) {
    const size_t bytes = tensor.values.size() * sizeof(float);
    header.append(",").append(json_string(tensor.name)).append(":{\"dtype\":\"F32\",\"shape\":").append(shape_text(tensor.shape));
    header.append(",\"data_offsets\":[").append(std::to_string(at)).append(",").append(std::to_string(at + bytes)).append("]}");
    at += bytes;
  }
  header += "}";
  header.resize((header.size() + 7) / 8 * 8, ' ');  // so that the data is aligned
  const uint64_t length = header.size();
  std::vector<std::pair<const void*, size_t>> pieces = {{&length, 8}, {header.data(), header.size()}};
  for (const NamedTensor& tensor : tensors) pieces.emplace_back(tensor.values.data(), tensor.values.size() * sizeof(float));
  replace_file(path, pieces);
}

void write_file(const std::string& path, const std::string& content) { replace_file(path, {{content.data(), content.size()}}); }

}  // namespace dynadapt
