// Vectors of 16 floats, whatever the width of the machine, and the constants of the layout.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

constexpr int LANES = 16;   // of a vector; two halves where the machine has 8
constexpr int PAGE = 32;    // positions in a page of the cache (app/pages.py)
constexpr int PANEL = 64;   // columns packed side by side: one panel is [K][64]
constexpr int QUERIES = 4;  // rows of one sequence that share each load of keys and values
constexpr float EPSILON = 1e-5f;

typedef float Vec __attribute__((vector_size(64)));
typedef int32_t IntVec __attribute__((vector_size(64)));
typedef float LooseVec __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint16_t HalfVec __attribute__((vector_size(32), aligned(2), may_alias));
struct bf16 { uint16_t bits; };

inline Vec load(const float* p) { return *reinterpret_cast<const LooseVec*>(p); }
inline Vec load(const bf16* p) {
    return (Vec)(__builtin_convertvector(*reinterpret_cast<const HalfVec*>(p), IntVec) << 16);
}
inline void store(float* p, Vec v) { *reinterpret_cast<LooseVec*>(p) = v; }
inline void put(float* p, float v) { *p = v; }
inline void put(bf16* p, float v) {  // to nearest, ties to even
    uint32_t bits;
    std::memcpy(&bits, &v, 4);
    p->bits = uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
inline Vec splat(float v) { return v - Vec{}; }
inline int round_up(int n, int step) { return (n + step - 1) / step * step; }

inline float sum(Vec v) {
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) v[i] += v[i + half];
    return v[0];
}
inline float largest(Vec v) {
    float best = v[0];
    for (int i = 1; i < LANES; i++) best = std::max(best, v[i]);
    return best;
}

// e^x, about one unit in the last place: x = n ln 2 + r, polynomial of degree 6 in r (Cephes' expf)
inline Vec exponential(Vec x) {
    x = x < splat(-87.0f) ? splat(-87.0f) : x;
    x = x > splat(88.0f) ? splat(88.0f) : x;
    Vec shifted = x * 1.44269504088896341f + 12582912.0f;  // adding 1.5 · 2^23 rounds to an integer
    Vec n = shifted - 12582912.0f;
    Vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
    Vec p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    IntVec exponent = (IntVec)shifted - 0x4b400000;
    return (Vec)((IntVec)p + (exponent << 23));
}

}  // namespace
