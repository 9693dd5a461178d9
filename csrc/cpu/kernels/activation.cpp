// Feed-forward activations and their derivatives, from one exponential an element. Backward writes y again by forward's own
// code, from a row that is in cache, so that both write the same bits.
//   gelu_tanh:  h/2 (1 + tanh u) = h sigmoid(2u), which keeps its relative accuracy for negative h.
#include "cpu/activation.h"

#include "cpu/kernels/lib/rows.h"

namespace dynadapt::DYN_ISA {
namespace {

constexpr float kTwoSqrtTwoOverPi = 1.59576912f;
constexpr float kCubic = 0.044715f;

struct GeluTanh {
  static inline vfloat gate(vfloat h) { return sigmoid(kTwoSqrtTwoOverPi * h * (1.0f + kCubic * h * h)); }
  static inline vfloat value(vfloat h) { return h * gate(h); }
  static inline vfloat value(vfloat h, vfloat s) { return h * s; }
  static inline vfloat slope(vfloat h) { return slope(h, gate(h)); }
  static inline vfloat slope(vfloat h, vfloat s) {
    return s + h * s * (1.0f - s) * kTwoSqrtTwoOverPi * (1.0f + 3.0f * kCubic * h * h);
  }
};

struct Silu {
  static inline vfloat gate(vfloat h) { return sigmoid(h); }
  static inline vfloat value(vfloat h, vfloat s) { return h * s; }
  static inline vfloat slope(vfloat h, vfloat s) { return s * (1.0f + h * (1.0f - s)); }
};

struct Sigmoid {
  static inline vfloat gate(vfloat h) { return sigmoid(h); }
  static inline vfloat value(vfloat, vfloat s) { return s; }
  static inline vfloat slope(vfloat, vfloat s) { return s * (1.0f - s); }
};

struct Gelu {
  static inline vfloat value(vfloat h) {
    vfloat cumulative, density;
    normal_distribution(h, &cumulative, &density);
    return h * cumulative;
  }
  static inline vfloat slope(vfloat h) {
    vfloat cumulative, density;
    normal_distribution(h, &cumulative, &density);
    return cumulative + h * density;
  }
};

template <class T, class Kind>
[[gnu::noinline]] void elementwise_row(const T* h, T* y, size_t width) {
  for_vectors(width, [&](size_t i, auto part) { store(y + i, Kind::value(load(h + i, part)), part); });
}

template <class T, class Kind>
[[gnu::noinline]] void gated_row(const T* h, T* y, size_t width) {
  for_vectors(width, [&](size_t i, auto part) {
    const vfloat gate = load(h + i, part), up = load(h + width + i, part);
    store(y + i, Kind::value(gate, Kind::gate(gate)) * up, part);
  });
}

template <class T, class Kind>
void forward_elementwise(const ActivationForward& a) {
  for_rows(a.rows, [&](int64_t n) {
    elementwise_row<T, Kind>(static_cast<const T*>(a.h) + n * a.width, static_cast<T*>(a.y) + n * a.width, a.width);
  });
}

template <class T, class Kind>
void forward_gated(const ActivationForward& a) {
  for_rows(a.rows, [&](int64_t n) {
    gated_row<T, Kind>(static_cast<const T*>(a.h) + n * 2 * a.width, static_cast<T*>(a.y) + n * a.width, a.width);
  });
}

template <class T>
void forward(const ActivationForward& a) {
  switch (a.kind) {
    case ActivationKind::kSwiglu:
      return forward_gated<T, Silu>(a);
    case ActivationKind::kGeluTanh:
      return forward_elementwise<T, GeluTanh>(a);
    case ActivationKind::kGelu:
      return forward_elementwise<T, Gelu>(a);
    case ActivationKind::kGegluTanh:
      return forward_gated<T, GeluTanh>(a);
    case ActivationKind::kGlu:
      return forward_gated<T, Sigmoid>(a);
  }
}

template <class T, class Kind>
void backward_elementwise(const ActivationBackward& a) {
  for_rows(a.rows, [&](int64_t n) {
    const T* dy = static_cast<const T*>(a.dy) + n * a.width;
    const T* h = static_cast<const T*>(a.h) + n * a.width;
    T* dh = static_cast<T*>(a.dh) + n * a.width;
    if (a.y) elementwise_row<T, Kind>(h, static_cast<T*>(a.y) + n * a.width, a.width);
    for_vectors(a.width, [&](size_t i, auto part) { store(dh + i, load(dy + i, part) * Kind::slope(load(h + i, part)), part); });
  });
}

template <class T, class Kind>
void backward_gated(const ActivationBackward& a) {
  for_rows(a.rows, [&](int64_t n) {
    const T* dy = static_cast<const T*>(a.dy) + n * a.width;
    const T* h = static_cast<const T*>(a.h) + n * 2 * a.width;
    T* dh = static_cast<T*>(a.dh) + n * 2 * a.width;
    if (a.y) gated_row<T, Kind>(h, static_cast<T*>(a.y) + n * a.width, a.width);
    for_vectors(a.width, [&](size_t i, auto part) {
      const vfloat gate = load(h + i, part), up = load(h + a.width + i, part), g = load(dy + i, part);
      const vfloat s = Kind::gate(gate);
      store(dh + i, g * up * Kind::slope(gate, s), part);
      store(dh + a.width + i, g * Kind::value(gate, s), part);
    });
  });
}

template <class T>
void backward(const ActivationBackward& a) {
  switch (a.kind) {
    case ActivationKind::kSwiglu:
      return backward_gated<T, Silu>(a);
    case ActivationKind::kGeluTanh:
      return backward_elementwise<T, GeluTanh>(a);
    case ActivationKind::kGelu:
      return backward_elementwise<T, Gelu>(a);
    case ActivationKind::kGegluTanh:
      return backward_gated<T, GeluTanh>(a);
    case ActivationKind::kGlu:
      return backward_gated<T, Sigmoid>(a);
  }
}

}  // namespace

const ByType<ActivationKernels> activation_kernels = {{forward<float>, backward<float>}, {forward<bf16>, backward<bf16>}};

}  // namespace dynadapt::DYN_ISA
