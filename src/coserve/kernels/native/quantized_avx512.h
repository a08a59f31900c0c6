// A panel's sixteen columns in vectors of AVX-512: what quantized.cpp and quantized_tiles.cpp compute alike.
//
// Included inside a namespace and under a pragma that lets the compiler use these instructions.

struct Avx512 {  // with VNNI, which sums what it multiplies
  static constexpr int kRows8 = 8, kRows4 = 8;
  static constexpr int kTwoChains = 4;  // up to so many rows an addition would wait for the one before
  struct Sums {
    __m512i v;
  };
  using ShortSums = Sums;
  using Floats = __m512;
  static INLINE_MEMBER float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
  static INLINE_MEMBER __m512i pairs(const uint8_t* w, bool odd) {
    const __m512i v = _mm512_loadu_si512(w);
    return _mm512_srai_epi16(odd ? v : _mm512_slli_epi16(v, 8), 8);
  }
  static INLINE_MEMBER void add_pairs(Sums& s, __m512i w, Word x) {
    s.v = _mm512_dpwssd_epi32(s.v, w, _mm512_set1_epi32(x));
  }
  static INLINE_MEMBER void merge(Sums& s, const Sums& other) { s.v = _mm512_add_epi32(s.v, other.v); }
  static INLINE_MEMBER __m512i quads(const uint8_t* w) {
    const __m256i v = _mm256_loadu_si256((const __m256i*)w);
    const __m512i halves = _mm512_inserti64x4(_mm512_castsi256_si512(v), _mm256_srli_epi16(v, 4), 1);
    return _mm512_and_si512(halves, _mm512_set1_epi8(15));
  }
  static INLINE_MEMBER void add_quads(ShortSums& s, __m512i w, Word x) {
    s.v = _mm512_dpbusd_epi32(s.v, w, _mm512_set1_epi32(x));
  }
  static INLINE_MEMBER Sums widened(ShortSums s) { return s; }
  static INLINE_MEMBER Floats half_floats(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
  }
  static INLINE_MEMBER Floats times(Floats f, float by) { return _mm512_mul_ps(f, _mm512_set1_ps(by)); }
  static INLINE_MEMBER Floats scaled(Sums s, Floats scale) { return _mm512_mul_ps(_mm512_cvtepi32_ps(s.v), scale); }
  static INLINE_MEMBER Floats sum(Floats a, Floats b, float by) { return _mm512_fmadd_ps(b, _mm512_set1_ps(by), a); }
  static INLINE_MEMBER void add_sums(float* total, Sums s, Floats scale) { add_floats(total, scaled(s, scale), 1.0f); }
  static INLINE_MEMBER void add_floats(float* total, Floats f, float by) {
    _mm512_storeu_ps(total, sum(_mm512_loadu_ps(total), f, by));
  }
  static INLINE_MEMBER void add_block(float* total, Sums s, Floats scale, float by, Floats min, float x) {
    _mm512_storeu_ps(total, sum(sum(_mm512_loadu_ps(total), min, x), scaled(s, scale), by));
  }
};
