// libdynadapt_cuda.so, when it is there.
#pragma once

#include <string>

#include "cuda/library.h"

namespace dynadapt::cuda {

/// The library; NULL where it can't be used, with the reason in `why`. Looked for once, beside libdynadapt.so.
const Library* library(std::string* why);

}  // namespace dynadapt::cuda
