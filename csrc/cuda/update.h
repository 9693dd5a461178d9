// The optimizer step on a GPU; see update.cu.
#pragma once

#include "cuda/library.h"

namespace dynadapt::cuda {

bool update(const Update& update, int64_t slots, bool bf16, const Launch& launch, char* text, size_t size);

}  // namespace dynadapt::cuda
