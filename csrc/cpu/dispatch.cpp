#include "cpu/dispatch.h"

#include <cstdlib>
#include <cstring>

namespace dynadapt {

namespace {

constexpr Isa kAll[] = {Isa::avx512_bf16, Isa::avx512, Isa::avx2, Isa::neon, Isa::portable};

bool supported(Isa isa) {
  if (isa == Isa::portable) return true;
#if DYN_X86
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (isa == Isa::avx2) return avx2;
  if (isa == Isa::avx512) return avx512;
  return isa == Isa::avx512_bf16 && avx512 && __builtin_cpu_supports("avx512bf16");
#elif DYN_AARCH64
  return isa == Isa::neon;  // every 64-bit Arm processor has it
#else
  return false;
#endif
}

Isa choose() {
  std::string choices;
  for (Isa isa : kAll)
    if (supported(isa)) choices += (choices.empty() ? "" : ", ") + std::string(isa_name(isa));
  const char* wish = std::getenv("DYNADAPT_CPU_ISA");
  for (Isa isa : kAll)
    if (supported(isa) && (!wish || !*wish || !std::strcmp(wish, isa_name(isa)))) return isa;
  throw Invalid(format("DYNADAPT_CPU_ISA is \"%s\", this processor accepts %s", wish, choices.c_str()));
}

bool has_vnni() {
#if DYN_X86
  __builtin_cpu_init();
  if (isa() == Isa::avx512_bf16 || isa() == Isa::avx512) return __builtin_cpu_supports("avx512vnni");
  if (isa() == Isa::avx2) return __builtin_cpu_supports("avxvnni");
#endif
  return false;
}

bool choose_vnni() {
  const char* wish = std::getenv("DYNADAPT_CPU_VNNI");
  const bool there = has_vnni();
  if (!wish || !*wish) return there;
  if (!std::strcmp(wish, "0")) return false;
  if (!std::strcmp(wish, "1") && there) return true;
  throw Invalid(
      format("DYNADAPT_CPU_VNNI is \"%s\", this processor and %s accept %s", wish, isa_name(isa()), there ? "0, 1" : "0"));
}

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::avx512_bf16:
      return "avx512_bf16";
    case Isa::avx512:
      return "avx512";
    case Isa::avx2:
      return "avx2";
    case Isa::neon:
      return "neon";
    default:
      return "portable";
  }
}

Isa isa() {
  static const Isa chosen = choose();
  return chosen;
}

bool vnni() {
  static const bool chosen = choose_vnni();
  return chosen;
}

}  // namespace dynadapt

extern "C" int dynadapt_vnni(void) {
  int uses = -1;
  dynadapt::guarded([&] { uses = dynadapt::vnni(); });
  return uses;
}

extern "C" const char* dynadapt_isa(void) {
  const char* name = nullptr;
  dynadapt::guarded([&] { name = dynadapt::isa_name(dynadapt::isa()); });
  return name;
}
