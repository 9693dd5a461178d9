// The update kernels of one instruction set. `T` is the activation type, float or bf16.
#pragma once

#include "core/update.h"
#include "cpu/by_type.h"

namespace dynadapt {

struct UpdateKernels {
  void (*update)(const Update&);
};
DYN_TABLE(ByType<UpdateKernels>, update_kernels)

}  // namespace dynadapt
