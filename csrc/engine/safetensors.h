// Safetensors files: the header read and checked in full, tensors read one at a time, and written.
//
// Layout: 8 bytes little-endian header length, a JSON header {name: {dtype, shape, data_offsets}}, then the data, which
// the tensors tile without gaps. Tensors are read into memory of their own and not mapped: a file that is cut short while it
// is read is then an error with a text, where a mapping would end the process.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "engine/storage.h"

namespace dynadapt {

struct StoredTensor {
  std::string dtype;  // as the file names it: "BF16"
  std::vector<int64_t> shape;
  int64_t begin = 0;  // of its first byte in the file
  int64_t bytes = 0;
};

class SafetensorsFile {
 public:
  /// Reads and checks the header. Throws Invalid, naming the file, for anything that does not fit.
  explicit SafetensorsFile(std::string path);

  const std::string& path() const { return path_; }
  const std::map<std::string, StoredTensor>& tensors() const { return tensors_; }

  /// The values of one tensor, rounded to `dtype` (nearest even) where it is the narrower one, at `out`, which has room for
  /// all of them. Throws Invalid for a dtype other than F32, F16, BF16 and F64, and for a value that is NaN or infinite.
  void read(const std::string& name, DType dtype, void* out) const;

 private:
  std::string path_;
  std::map<std::string, StoredTensor> tensors_;
};

/// A float32 tensor to be written.
struct NamedTensor {
  std::string name;
  std::vector<int64_t> shape;
  std::vector<float> values;
};

/// Writes `path` through a temporary file beside it, so that a reader never sees a part of it. Throws FileError.
void write_safetensors(const std::string& path, const std::vector<NamedTensor>& tensors);

/// The same for a text.
void write_file(const std::string& path, const std::string& content);

constexpr int64_t kMostConfigBytes = 4 << 20;  // many times the largest that is in use
constexpr int64_t kMostIndexBytes = 64 << 20;

/// The whole content of a regular file. Throws Invalid naming it where it can't be read or has more than `most` bytes.
std::string read_file(const std::string& path, int64_t most = kMostConfigBytes);

/// "[3, 4]".
std::string shape_text(const std::vector<int64_t>& shape);

}  // namespace dynadapt
