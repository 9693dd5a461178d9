// Which instruction set runs: chosen once, from the processor and DYNADAPT_CPU_ISA.
//
// The sources in cpu/kernels/ are compiled once per instruction set, each time inside a namespace
// named after it (DYN_ISA). Every family of ops has a table of function pointers there:
//
//   struct LinearKernels { void (*forward)(...); ... };              in a header
//   DYN_TABLE(LinearKernels, linear_kernels)                         in the header as well
//   const LinearKernels DYN_ISA::linear_kernels = {...};             in cpu/kernels/linear.cpp
//   kernels<LinearKernels>().forward(...)                            in cpu/linear.cpp, compiled once
#pragma once

#include "core/error.h"

namespace dynadapt {

enum class Isa {
  portable,
  avx2,
  avx512,
  avx512_bf16,
  neon
};

/// The instruction set in use; throws Invalid where DYNADAPT_CPU_ISA can't be satisfied.
Isa isa();
const char* isa_name(Isa isa);

/// Whether products of int8 use VNNI: the processor has the form of it that goes with the instruction set in use, and
/// DYNADAPT_CPU_VNNI is not 0. Throws Invalid where that variable is neither 0 nor 1, or 1 without VNNI.
bool vnni();

/// The table of this type for the instruction set in use.
template <class Table>
const Table& kernels();

}  // namespace dynadapt

#if DYN_X86
#define DYN_TABLE(Table, name)           \
  namespace portable {                   \
  extern const Table name;               \
  }                                      \
  namespace avx2 {                       \
  extern const Table name;               \
  }                                      \
  namespace avx512 {                     \
  extern const Table name;               \
  }                                      \
  namespace avx512_bf16 {                \
  extern const Table name;               \
  }                                      \
  template <>                            \
  inline const Table& kernels<Table>() { \
    switch (isa()) {                     \
      case Isa::avx512_bf16:             \
        return avx512_bf16::name;        \
      case Isa::avx512:                  \
        return avx512::name;             \
      case Isa::avx2:                    \
        return avx2::name;               \
      default:                           \
        return portable::name;           \
    }                                    \
  }
#elif DYN_AARCH64
#define DYN_TABLE(Table, name)                               \
  namespace portable {                                       \
  extern const Table name;                                   \
  }                                                          \
  namespace neon {                                           \
  extern const Table name;                                   \
  }                                                          \
  template <>                                                \
  inline const Table& kernels<Table>() {                     \
    return isa() == Isa::neon ? neon::name : portable::name; \
  }
#else
#define DYN_TABLE(Table, name)           \
  namespace portable {                   \
  extern const Table name;               \
  }                                      \
  template <>                            \
  inline const Table& kernels<Table>() { \
    return portable::name;               \
  }
#endif
