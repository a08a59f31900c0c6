// Intel's AMX: eight registers, each a tile of sixteen rows of 64 bytes, and the instructions that multiply them.
//
//     C [16, 16] += A [16, k] B [k, 16]
//
// with 4-byte sums. A row of B holds a word (four 8-bit or two 16-bit elements, neighbours along k) of sixteen columns.
// Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18.

#pragma once

#include "level.h"

#ifdef AMX
#include <cstdint>
#include <vector>

constexpr int kTile = 16;      // rows, and columns of sums
constexpr int kTileRow = 64;   // bytes
constexpr int kTileBytes = kTile * kTileRow;

// The compiler's own intrinsics do not say that they read and write memory.
#define TILE_LOAD(TILE, FROM, STRIDE) \
  asm volatile("tileloadd (%0,%1,1), %%tmm" #TILE : : "r"(FROM), "r"(int64_t(STRIDE)) : "memory")
#define TILE_STORE(TILE, TO) \
  asm volatile("tilestored %%tmm" #TILE ", (%0,%1,1)" : : "r"(TO), "r"(int64_t(kTileRow)) : "memory")
#define TILE_ZERO(TILE) asm volatile("tilezero %%tmm" #TILE : :)
#define TILE_DOT(HOW, C, A, B) asm volatile("tdp" HOW " %%tmm" #B ", %%tmm" #A ", %%tmm" #C : :)

// This thread's tiles, for as long as it lives: 0 to 3 are sums, 4 and 5 A, 6 and 7 B.
class Tiles {
 public:
  explicit Tiles(int words = kTile, int rows = kTile) {  // along k, and of A
    for (int tile = 0; tile < 6; tile++) row_bytes_[tile] = kTileRow, rows_[tile] = rows;
    for (int a = 4; a < 6; a++) row_bytes_[a] = words * 4;
    for (int b = 6; b < 8; b++) row_bytes_[b] = kTileRow, rows_[b] = words;
    asm volatile("ldtilecfg %0" : : "m"(*this));
  }
  ~Tiles() { asm volatile("tilerelease" : :); }
  Tiles(const Tiles&) = delete;

 private:
  alignas(64) uint8_t palette_ = 1;
  uint8_t unused_[15] = {};
  uint16_t row_bytes_[16] = {};
  uint8_t rows_[16] = {};
};
static_assert(sizeof(Tiles) == 64, "what ldtilecfg reads");

// Memory that grows, and begins with a cache line.
class Aligned {
 public:
  template <class T>
  T* of(size_t n) {
    if (memory_.size() < n * sizeof(T) + kTileRow) memory_.resize(n * sizeof(T) + kTileRow);
    const uintptr_t begin = reinterpret_cast<uintptr_t>(memory_.data());
    return reinterpret_cast<T*>((begin + kTileRow - 1) / kTileRow * kTileRow);
  }

 private:
  std::vector<uint8_t> memory_;
};
#endif
