// The products of quantized.cpp for one instruction set `M`, which does the work on a panel's sixteen columns.
//
// Included once for each, inside a namespace and under a pragma that lets the compiler use those instructions.

// The sums of each row of a tile: no array, which the compiler would keep in memory.
template <class Sums, int R>
struct Each {
  Sums first = {};
  Each<Sums, R - 1> rest;
  template <class F>
  INLINE_MEMBER void act(F f, int row = 0) {
    f(first, row);
    rest.act(f, row + 1);
  }
  template <class F>
  INLINE_MEMBER void act_beside(const Each& other, F f) {
    f(first, other.first);
    rest.act_beside(other.rest, f);
  }
};
template <class Sums>
struct Each<Sums, 0> {
  template <class F>
  INLINE_MEMBER void act(F, int) {}
  template <class F>
  INLINE_MEMBER void act_beside(const Each&, F) {}
};

// A tile of `R` rows of x against a panel of 8-bit integers, along k from `first` to `last`, added to `total` [R, 16].
template <class M, int R, bool Mins>
INLINE void dots8(const Tile& x, const Panel& p, int first, int last, float* total, Ahead ahead) {
  for (int k = first, end; k < last; k = end) {
    const int group = k / p.group;
    end = std::min(last, (group + 1) * p.group);
    Each<typename M::Sums, R> sums, others;  // two chains, where additions wait for each other
    const uint8_t* w = p.data + int64_t(k) * kPanel;
    const Word* words = x.words + int64_t(k) / 2 * R;  // as `fill` orders them
    for (int steps = (end - k) / 4; steps > 0; steps--, w += 4 * kPanel, words += 2 * R) {
      ahead.fetch();
      UNROLL for (int pair = 0; pair < 2; pair++) {
        const auto pairs = M::pairs(w, pair);
        auto& chain = pair && R <= M::kTwoChains ? others : sums;
        chain.act([&](auto& sum, int r) ALWAYS { M::add_pairs(sum, pairs, words[pair * R + r]); });
      }
    }
    if constexpr (R <= M::kTwoChains)
      sums.act_beside(others, [](auto& sum, const auto& other) ALWAYS { M::merge(sum, other); });
    const auto scale = M::half_floats(p.scales + group * kPanel);
    sums.act([&](auto& sum, int r) ALWAYS { M::add_sums(total + r * kPanel, sum, scale); });
    if constexpr (Mins) {
      const auto min = M::half_floats(p.mins + group * kPanel);
      for (int block = k / kBlockK; block < end / kBlockK; block++)
        for (int r = 0; r < R; r++) M::add_floats(total + r * kPanel, min, x.sums[int64_t(block) * R + r]);
    }
  }
}

// The same for 4-bit integers, which are summed 32 at a time; without mins, q has 8 added to it.
template <class M, int R, bool Mins>
INLINE void dots4(const Tile& x, const Panel& p, int first, int last, float* total, Ahead ahead) {
  const uint8_t* w = p.data + int64_t(first) * (kPanel / 2);
  const Word* words = x.words + int64_t(first) / 4 * R;
  for (int block = first / kBlockK; block < last / kBlockK; block++) {
    Each<typename M::ShortSums, R> sums;
    for (int steps = kBlockK / 8; steps > 0; steps--, w += 4 * kPanel, words += 2 * R) {
      ahead.fetch();
      UNROLL for (int quad = 0; quad < 2; quad++) {
        const auto quads = M::quads(w + quad * 2 * kPanel);
        sums.act([&](auto& sum, int r) ALWAYS { M::add_quads(sum, quads, words[quad * R + r]); });
      }
    }
    const int group = block * kBlockK / p.group * kPanel;
    const auto scale = M::half_floats(p.scales + group);
    const auto min = Mins ? M::half_floats(p.mins + group) : M::times(scale, -8.0f);
    const float *scales = x.scales + int64_t(block) * R, *sums_of_x = x.sums + int64_t(block) * R;
    sums.act([&](auto& sum, int r) ALWAYS {
      M::add_block(total + r * kPanel, M::widened(sum), scale, scales[r], min, sums_of_x[r]);
    });
  }
}

template <class M, int Bits, bool Mins, int R>
INLINE void dots(const Tile& x, const Panel& p, int first, int last, float* total, Ahead ahead) {
  if (x.rows == R) {
    if constexpr (Bits == 8) dots8<M, R, Mins>(x, p, first, last, total, ahead);
    else dots4<M, R, Mins>(x, p, first, last, total, ahead);
  } else if constexpr (R > 1) {
    dots<M, Bits, Mins, R - 1>(x, p, first, last, total, ahead);
  }
}

// A panel's part of y. Its weights are taken from memory once for up to kGroup rows. `total`: kGroup * 16 floats.
template <class M, int Bits, bool Mins>
static void panel_product(const Rows& x, const Panel& p, const Result& to, Columns into, float* total) {
  constexpr int bytes_of_k = Bits == 8 ? kPanel : kPanel / 2;
  for (int group = 0; group < x.count; group += kGroup) {
    const int rows = std::min(kGroup, x.count - group), tiles = x.tiles_of(rows);
    std::memset(total, 0, size_t(rows) * kPanel * sizeof(float));
    for (int first = 0; first < x.width; first += kDepth) {
      const int last = std::min(x.width, first + kDepth);
      const uint8_t *chunk = p.data + int64_t(first) * bytes_of_k, *next = p.data + int64_t(last) * bytes_of_k;
      for (int i = 0; i < tiles; i++) {  // the first brings the chunk near; each asks for its share of the next one
        const Tile tile = x.tile(group, rows, i);
        const Ahead ahead = tiles == 1 ? Ahead{chunk + kAhead, kStep} : Ahead{next + (next - chunk) * i / tiles, kStep / tiles};
        dots<M, Bits, Mins, Bits == 8 ? M::kRows8 : M::kRows4>(tile, p, first, last, total + (tile.row - group) * kPanel, ahead);
      }
    }
    const int columns = std::min(kPanel, into.of - into.first);
    for (int r = 0; r < rows; r++) {
      const int64_t at = int64_t(group + r) * into.of + into.first;
      const float scale = Bits == 8 ? x.row_scales[group + r] : 1.0f;
      for (int c = 0; c < columns; c++) {
        const float sum = M::fused(total[r * kPanel + c], scale, to.bias ? to.bias[into.first + c] : 0.0f);
        to.y[at + c] = to.residual ? to.residual[at + c] + sum : sum;
      }
    }
  }
}
