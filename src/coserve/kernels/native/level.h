// The instructions that the kernels may use here: the processor's, or fewer where COSERVE_NATIVE names a lower level.

#pragma once

#include <algorithm>
#include <cstdlib>
#include <cstring>

#if defined(__x86_64__) && defined(__GNUC__)
#define AVX2 __attribute__((target("avx2,fma")))
#define AVX512 __attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")))
#if defined(__linux__)
#define AMX  // in C++, see tiles.h
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

enum Level { plain, avx2, avx512, amx };

inline Level level_of_processor() {
#ifdef AVX2
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return plain;
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl"))
    return avx2;
#ifdef AMX
  constexpr int kAskFor = 0x1023, kTileData = 18;  // Linux keeps tiles for no process that has not asked
  if (__builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-int8") && __builtin_cpu_supports("amx-bf16") &&
      __builtin_cpu_supports("avx512bf16") &&
      syscall(SYS_arch_prctl, kAskFor, kTileData) == 0)
    return amx;
#endif
  return avx512;
#else
  return plain;
#endif
}

inline Level level() {
  static const Level found = [] {
    const char* names[] = {"plain", "avx2", "avx512"};  // with "amx" there is nothing to leave out
    const char* asked = std::getenv("COSERVE_NATIVE");
    const auto name = std::find_if(names, names + 3, [&](const char* n) { return asked && !std::strcmp(asked, n); });
    return std::min(level_of_processor(), Level(name - names));
  }();
  return found;
}
