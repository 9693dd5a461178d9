// Causal depthwise convolution over a few tokens, then SiLU. A row is a sum of its last rows, each times a row of the turned weight.
// Backward goes over the rows twice: for the gradient of the sums, which W rows of dx want, and for dx.
#include "cpu/short_convolution.h"

#include "cpu/kernels/lib/rows.h"

namespace dynadapt::DYN_ISA {
namespace {

/// Where one row stands: its stream, its place in the segment, and whether it counts.
struct Place {
  Place(const ConvolutionInputs& in, int64_t row)
      : stream(row / int64_t(in.segment)),
        t(row % int64_t(in.segment)),
        length(in.lengths ? in.lengths[stream] : int64_t(in.segment)),
        counts(t < length) {}
  int64_t stream, t, length;
  bool counts;
};

/// Row t of a stream's inputs, from -(width - 1) on; null where there is none.
template <class T>
inline const T* input(const ConvolutionInputs& in, int64_t stream, int64_t t) {
  if (t >= 0) return static_cast<const T*>(in.x) + (stream * int64_t(in.segment) + t) * in.x_stride;
  if (!in.state) return nullptr;
  const int64_t before = int64_t(in.width) - 1;
  return static_cast<const T*>(in.state) + (in.slots[stream] * before + before + t) * int64_t(in.channels);
}

/// weight [channels, width] as float [width, channels].
template <class T>
inline void turn(const ConvolutionInputs& in, float* to) {
  const T* weight = static_cast<const T*>(in.weight);
  for (size_t c = 0; c < in.channels; c++)
    for (size_t w = 0; w < in.width; w++) to[w * in.channels + c] = to_float(weight[c * in.width + w]);
}

/// z of kWidth channels from `i` on.
template <class T, class Part>
inline vfloat sums(const ConvolutionInputs& in, const Place& place, const float* weight, size_t i, Part part) {
  const int64_t width = int64_t(in.width);
  vfloat z{};
  for (int64_t w = 0; w < width; w++)
    if (const T* row = input<T>(in, place.stream, place.t - width + 1 + w))
      z += load(row + i, part) * load(weight + w * in.channels + i, part);
  return z;
}

template <class T>
void forward(const ConvolutionForward& a) {
  const ConvolutionInputs& in = a.in;
  float* weight = static_cast<float*>(scratch(in.width * in.channels * sizeof(float)));
  turn<T>(in, weight);
  for_rows(int64_t(in.streams * in.segment), [&](int64_t row) {
    const Place place(in, row);
    T* y = static_cast<T*>(a.y) + row * a.y_stride;
    if (!place.counts) {
      memset(static_cast<void*>(y), 0, in.channels * sizeof(T));
      return;
    }
    for_vectors(in.channels, [&](size_t i, auto part) {
      const vfloat z = sums<T>(in, place, weight, i, part);
      store(y + i, z * sigmoid(z), part);
    });
  });
  if (!a.final) return;
  const int64_t before = int64_t(in.width) - 1, channels = int64_t(in.channels);
  for (int64_t s = 0; s < int64_t(in.streams); s++)
    for (int64_t r = 0; r < before; r++) {
      T* to = static_cast<T*>(a.final) + (s * before + r) * channels;
      const int64_t length = in.lengths ? in.lengths[s] : int64_t(in.segment);
      if (const T* from = input<T>(in, s, length - before + r))
        memcpy(static_cast<void*>(to), from, channels * sizeof(T));
      else
        memset(static_cast<void*>(to), 0, channels * sizeof(T));
    }
}

/// dweight of kWidth channels from `i` on: all rows in their order.
template <class T, class Part>
void add_weight_gradient(const ConvolutionBackward& a, const float* dz, size_t i, Part part, int lanes) {
  const ConvolutionInputs& in = a.in;
  const int64_t width = int64_t(in.width);
  for (int64_t w = 0; w < width; w++) {
    vfloat total{};
    for (int64_t row = 0; row < int64_t(in.streams * in.segment); row++) {
      const Place place(in, row);
      const T* x = place.counts ? input<T>(in, place.stream, place.t - width + 1 + w) : nullptr;
      if (x) total += load(dz + row * in.channels + i, part) * load(x + i, part);
    }
    for (int lane = 0; lane < lanes; lane++) a.dweight[(i + lane) * width + w] += total[lane];
  }
}

template <class T>
void backward(const ConvolutionBackward& a) {
  const ConvolutionInputs& in = a.in;
  const int64_t rows = int64_t(in.streams * in.segment), width = int64_t(in.width);
  const size_t channels = in.channels;
  float* weight = static_cast<float*>(scratch((in.width + rows) * channels * sizeof(float)));
  float* dz = weight + in.width * channels;
  turn<T>(in, weight);
  for_rows(rows, [&](int64_t row) {
    const Place place(in, row);
    if (!place.counts) return;
    const T* dy = static_cast<const T*>(a.dy) + row * a.dy_stride;
    for_vectors(channels, [&](size_t i, auto part) {
      const vfloat z = sums<T>(in, place, weight, i, part), sigma = sigmoid(z);
      store(dz + row * channels + i, load(dy + i, part) * sigma * (1.0f + z * (1.0f - sigma)), part);
    });
  });
  for_rows(rows, [&](int64_t row) {
    const Place place(in, row);
    T* dx = static_cast<T*>(a.dx) + row * a.dx_stride;
    for_vectors(channels, [&](size_t i, auto part) {
      vfloat total{};
      for (int64_t ahead = 0; ahead < width && place.t + ahead < place.length; ahead++)
        total += load(dz + (row + ahead) * channels + i, part) * load(weight + (width - 1 - ahead) * channels + i, part);
      store(dx + i, total, part);
    });
  });
  if (!a.dweight) return;
  const int64_t vectors = int64_t((channels + kWidth - 1) / kWidth);
  parallel(num_threads(), vectors, [&](Team team) {
    const auto share = team.share(vectors);
    for (int64_t v = share.begin; v < share.end; v++) {
      const size_t i = size_t(v) * kWidth;
      if (i + kWidth <= channels)
        add_weight_gradient<T>(a, dz, i, Whole{}, kWidth);
      else
        add_weight_gradient<T>(a, dz, i, Head{int(channels - i)}, int(channels - i));
    }
  });
}

}  // namespace

const ByType<ConvolutionKernels> short_convolution_kernels = {{forward<float>, backward<float>}, {forward<bf16>, backward<bf16>}};

}  // namespace dynadapt::DYN_ISA
