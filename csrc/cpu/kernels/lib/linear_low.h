// What the linear layers share whatever their weights are made of: where panels lie, and the low-rank activations.
#pragma once

#include "cpu/kernels/lib/gemm.h"
#include "cpu/kernels/lib/grid.h"
#include "cpu/linear.h"

namespace dynadapt::DYN_ISA {

/// Where panel `g` of the concatenated parts lies.
struct Place {
  int part = 0;
  int64_t panel = 0;   // in the part
  int64_t column = 0;  // of the output, first of the panel
  int columns = 0;
};

inline Place locate(const Matrix* const* parts, int64_t g) {
  Place place;
  for (int64_t before = 0;; place.part++) {
    const int64_t rows = parts[place.part]->rows;
    if (g < panel_count(rows)) {
      place.panel = g;
      place.column = before + g * kNR;
      place.columns = int(smaller<int64_t>(kNR, rows - g * kNR));
      return place;
    }
    g -= panel_count(rows);
    before += rows;
  }
}

inline int64_t total_panels(const Matrix* const* parts, int count) {
  int64_t total = 0;
  for (int p = 0; p < count; p++) total += panel_count(parts[p]->rows);
  return total;
}

/// Elements that `forward_low` needs for A's panels.
template <class T>
inline int64_t forward_low_size(const LinearForward& c) {
  return panel_count(c.adapters.widest()) * panel_size<T>(c.K);
}

/// u = x A^T for rows [begin, end); `packed` is the stream whose A stands in `panels`.
template <class T>
inline void forward_low(const LinearForward& c, Panel<T>* panels, int64_t& packed, int64_t begin, int64_t end) {
  for_streams(c.N, c.adapters.streams(), begin, end, [&](int64_t s, int64_t from, int64_t to) {
    const auto& own = c.adapters[size_t(s)];
    const int64_t width = own.ranks.width;
    if (s != packed) pack_nt(static_cast<const T*>(own.A), c.K, width, c.K, panels);
    packed = s;
    for (int64_t n = 0; n < width; n += kNR) {
      const Term<T> term{static_cast<const T*>(c.x) + from * c.ldx, c.ldx, panels + n / kNR * panel_size<T>(c.K), c.K, 1.0f};
      multiply_rounded<T>(to - from, int(smaller<int64_t>(kNR, width - n)), &term, 1, nullptr,
                          static_cast<T*>(c.u) + from * c.low_width + n, c.low_width);
    }
  });
}

/// Elements that `backward_low` needs for Bt's panels.
template <class T>
inline int64_t backward_low_size(const LinearBackward& c) {
  int64_t size = 0;
  for (int p = 0; p < c.part_count; p++) size += panel_count(c.adapters.largest(p)) * panel_size<T>(c.parts[p]->rows);
  return size;
}

/// dU_p = scale * dy_p Bt_p^T for rows [begin, end); `packed` is the stream whose Bt stands in `panels`.
template <class T>
inline void backward_low(const LinearBackward& c, Panel<T>* panels, int64_t& packed, int64_t begin, int64_t end) {
  for_streams(c.N, c.adapters.streams(), begin, end, [&](int64_t s, int64_t from, int64_t to) {
    const Ranks& ranks = c.adapters[size_t(s)].ranks;
    const T* Bt = static_cast<const T*>(c.adapters[size_t(s)].Bt);
    Panel<T>* panel = panels;
    for (int64_t p = 0, column = 0; p < c.part_count; column += c.parts[p++]->rows) {
      const PartRank own = ranks.part[p];
      const int64_t depth = c.parts[p]->rows;
      if (s != packed) pack_nt(Bt + column, c.O, own.rank, depth, panel);
      for (int64_t n = 0; n < own.rank; n += kNR, panel += panel_size<T>(depth)) {
        const Term<T> term{static_cast<const T*>(c.dy) + from * c.O + column, c.O, panel, depth, own.scale};
        multiply_rounded<T>(to - from, int(smaller<int64_t>(kNR, own.rank - n)), &term, 1, nullptr,
                            static_cast<T*>(c.dU) + from * c.low_width + own.first + n, c.low_width);
      }
    }
    packed = s;
  });
}

}  // namespace dynadapt::DYN_ISA
