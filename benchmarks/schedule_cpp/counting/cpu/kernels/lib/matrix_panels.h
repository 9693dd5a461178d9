// csrc/cpu/kernels/lib/matrix_panels.h whose panels are counted and neither widened nor turned.
#pragma once

#include "work.h"

#define forward_panel plain_forward_panel
#define turn plain_turn
#define backward_block plain_backward_block
#define backward_panel plain_backward_panel
#include_next "cpu/kernels/lib/matrix_panels.h"
#undef forward_panel
#undef turn
#undef backward_block
#undef backward_panel

namespace dynadapt::DYN_ISA {

template <class T>
inline const Panel<T>* forward_panel(const Matrix& matrix, int64_t, Panel<T>* room) {
  if constexpr (sizeof(T) != sizeof(Panel<T>)) counting::mine->accesses += 2.0 * double(panel_size<T>(matrix.columns));
  return room;
}

template <class T, class E>
inline void turn(const E*, int64_t, Panel<T>*) {
  counting::mine->accesses += 2 * kNR * kNR;
}

template <class T>
inline void backward_block(const Matrix&, int64_t, int64_t, Panel<T>*) {
  counting::mine->accesses += 2 * kNR * kNR;
}

template <class T>
inline void backward_panel(const Matrix& matrix, int64_t j, Panel<T>* room) {
  for (int64_t row = 0; row < matrix.rows; row += kNR) backward_block<T>(matrix, row, j * kNR, room + row * kNR);
}

}  // namespace dynadapt::DYN_ISA
