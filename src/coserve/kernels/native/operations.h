// The exported functions that layers.cpp puts together; what they do is said where they are defined.

#pragma once

#include "vectors.h"

struct RowTile {  // consecutive rows of one segment
  int32_t row, rows, position, table;
};

extern "C" {
#define DECLARE(T, S)                                                                                                  \
  void coserve_rms_norm_##S(const T* x, const T* weight, T* out, int rows, int n, float eps);                          \
  void coserve_silu_and_mul_##S(const T* x, T* out, int rows, int n);                                                  \
  void coserve_rope_and_store_##S(T* qkv, const T* q_norm, const T* k_norm, const float* cos, const float* sin,        \
                                  const int32_t* positions, const int32_t* slots, T* k_cache, T* v_cache, int rows,    \
                                  int heads, int kv_heads, int dim, float eps);                                        \
  void coserve_paged_attention_##S(const T* q, int64_t q_stride, const T* k_cache, const T* v_cache,                   \
                                   const RowTile* tiles, int num_tiles, const int32_t* tables, T* out, int max_rows,   \
                                   int heads, int kv_heads, int dim, int window, float scale);                         \
  void coserve_linear_##S(const float* x, const T* weight, const float* bias, const float* residual, float* y,         \
                          int rows, int columns, int depth);
DECLARE(float, f32)
DECLARE(bf16, bf16)
#undef DECLARE
void coserve_linear_bf16_rows(const bf16* x, const bf16* w, const bf16* bias, const bf16* residual, bf16* y, int rows,
                              int columns, int depth);
void coserve_linear_quantized(const float* x, const uint8_t* data, const uint16_t* scales, const uint16_t* mins,
                              const float* bias, const float* residual, float* y, int bits, int group, int rows,
                              int columns, int depth);
}

// y [rows, columns / 2] = silu of the first half of a product's columns times the second half. False where there is no
// way but to compute the product first.
bool gated_linear_quantized(const float* x, const uint8_t* data, const uint16_t* scales, const uint16_t* mins,
                            const float* bias, float* y, int bits, int group, int rows, int columns, int depth);
