// What the kernels share: vectors of the processor's own width, bfloat16, and the choice of a processor's functions.
//
// A kernel is a template over L, the floats in a vector; LEVELS makes a function of it for each width, compiled for
// the instructions that go with it, and `level()` (level.h) tells at run time which one this processor takes. (The
// compiler's own vectors are used, but never wider than a register: it splits wider ones badly.)

#pragma once

#include "level.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#define INLINE static inline __attribute__((always_inline))
#define INLINE_MEMBER inline __attribute__((always_inline))  // of a struct
#define ALWAYS __attribute__((always_inline))                // of a lambda
#define UNROLL _Pragma("GCC unroll 16")

constexpr int kBlock = 16;  // tokens in a KV block

struct bf16 {
  uint16_t bits;
};

// LEVELS(f, (parameters), body<L>) defines f_plain, f_avx2 and f_avx512; CHOOSE(f) is the one for this processor.
#ifdef AVX2
#define LEVELS(NAME, PARAMETERS, ...)                                \
  void NAME##_plain PARAMETERS { constexpr int L = 4; __VA_ARGS__; } \
  AVX2 void NAME##_avx2 PARAMETERS { constexpr int L = 8; __VA_ARGS__; } \
  AVX512 void NAME##_avx512 PARAMETERS { constexpr int L = 16; __VA_ARGS__; }
#define CHOOSE(NAME) (level() >= avx512 ? NAME##_avx512 : level() == avx2 ? NAME##_avx2 : NAME##_plain)
#else
#define LEVELS(NAME, PARAMETERS, ...) \
  void NAME##_plain PARAMETERS { constexpr int L = 4; __VA_ARGS__; }
#define CHOOSE(NAME) NAME##_plain
#endif

template <int L>
struct Lanes {
  typedef float Floats __attribute__((vector_size(4 * L)));
  typedef int32_t Ints __attribute__((vector_size(4 * L)));
  typedef uint32_t Words __attribute__((vector_size(4 * L)));
  typedef uint16_t Halves __attribute__((vector_size(2 * L)));
};
template <int L>
using Vec = typename Lanes<L>::Floats;

template <int L>
INLINE Vec<L> load(const float* p) {
  Vec<L> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <int L>
INLINE Vec<L> load(const bf16* p) {
  typename Lanes<L>::Halves h;
  std::memcpy(&h, p, sizeof h);
  return (Vec<L>)(__builtin_convertvector(h, typename Lanes<L>::Words) << 16);
}

template <int L>
INLINE typename Lanes<L>::Halves halves(Vec<L> v) {  // round to nearest, ties to even
  auto u = (typename Lanes<L>::Words)v;
  u += 0x7fff + ((u >> 16) & 1);
  return __builtin_convertvector(u >> 16, typename Lanes<L>::Halves);
}
template <int L>
INLINE void store(float* p, Vec<L> v) {
  std::memcpy(p, &v, sizeof v);
}
template <int L>
INLINE void store(bf16* p, Vec<L> v) {
  auto h = halves<L>(v);
  std::memcpy(p, &h, sizeof h);
}

// A value as it is after a visit to memory in that format.
template <int L>
INLINE Vec<L> rounded(Vec<L> v, const float*) {
  return v;
}
template <int L>
INLINE Vec<L> rounded(Vec<L> v, const bf16*) {
  return (Vec<L>)(__builtin_convertvector(halves<L>(v), typename Lanes<L>::Words) << 16);
}

// The first n < L elements; the rest are zero.
template <int L, class T>
INLINE Vec<L> load_tail(const T* p, int n) {
  T padded[L] = {};
  std::memcpy(padded, p, n * sizeof(T));
  return load<L>(padded);
}
template <int L, class T>
INLINE void store_tail(T* p, Vec<L> v, int n) {
  T padded[L];
  store<L>(padded, v);
  std::memcpy(p, padded, n * sizeof(T));
}

// A vector's halves, put together by `f` until one element is left.
template <int L, class F>
INLINE float folded_by(Vec<L> v, F f) {
  if constexpr (L > 4) {
    Vec<L / 2> halves[2];
    std::memcpy(halves, &v, sizeof v);
    return folded_by<L / 2>(f(halves[0], halves[1]), f);
  } else {
    return f(f(v[0], v[2]), f(v[1], v[3]));
  }
}
template <int L>
INLINE float sum(Vec<L> v) {
  return folded_by<L>(v, [](auto a, auto b) ALWAYS { return a + b; });
}
template <int L>
INLINE float largest(Vec<L> v) {
  return folded_by<L>(v, [](auto a, auto b) ALWAYS { return a > b ? a : b; });
}

// exp(x) for x <= 0, to about 1e-7 relative; zero below -87.
template <int L>
INLINE Vec<L> exp_negative(Vec<L> x) {
  using Ints = typename Lanes<L>::Ints;
  Vec<L> clamped = x < -87.0f ? Vec<L>{} - 87.0f : x;
  Ints n = __builtin_convertvector(clamped * 1.44269504f - 0.5f, Ints);  // towards zero: to nearest, for x <= 0
  Vec<L> f = __builtin_convertvector(n, Vec<L>);
  Vec<L> r = clamped - f * 0.693359375f + f * 2.12194440e-4f;
  Vec<L> p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  Vec<L> scaled = p * (Vec<L>)((n + 127) << 23);
  return x < -87.0f ? Vec<L>{} : scaled;
}

template <int L, class T>
INLINE Vec<L> silu(Vec<L> g, const T* like) {
  Vec<L> e = exp_negative<L>(g < 0.0f ? g : -g);  // exp(-|g|)
  Vec<L> top = g < 0.0f ? e : Vec<L>{} + 1.0f;
  return rounded<L>(g * top / (e + 1.0f), like);
}

// A thread's own memory of at least n floats, for as long as the call takes.
INLINE float* scratch_floats(size_t n) {
  static thread_local std::vector<float> buffer;
  if (buffer.size() < n) buffer.resize(n);
  return buffer.data();
}
