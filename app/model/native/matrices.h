// Products with packed matrices, in AVX registers or AMX tiles, and the norm.
#pragma once

#include <vector>
#include "structures.h"
#include "vectors.h"

#ifdef __AMX_BF16__
#include <immintrin.h>
#endif

namespace {

#ifdef __AVX512F__
typedef Vec TileVec;
constexpr int TILE_ROWS = 6, TILE_VECS = 4;  // 24 of 32 registers accumulate
#else
typedef float TileVec __attribute__((vector_size(32)));
constexpr int TILE_ROWS = 6, TILE_VECS = 2;  // 12 of 16
#endif
typedef TileVec LooseTileVec __attribute__((aligned(4), may_alias));
constexpr int TILE_LANES = sizeof(TileVec) / 4;

inline TileVec load_tile(const float* p) { return *reinterpret_cast<const LooseTileVec*>(p); }
inline TileVec load_tile(const bf16* p) {
    typedef uint16_t Half __attribute__((vector_size(sizeof(TileVec) / 2), aligned(2), may_alias));
    typedef int32_t Int __attribute__((vector_size(sizeof(TileVec))));
    return (TileVec)(__builtin_convertvector(*reinterpret_cast<const Half*>(p), Int) << 16);
}

template <class T, int ROWS>
void tile(const float* x, int stride_x, const T* panel, int k, const float* bias, float* y, int stride_y, bool add) {
    for (int column = 0; column < PANEL; column += TILE_VECS * TILE_LANES) {
        TileVec acc[ROWS][TILE_VECS] = {};
        const T* w = panel + column;
        for (int i = 0; i < k; i++, w += PANEL) {
            TileVec weights[TILE_VECS];
            for (int v = 0; v < TILE_VECS; v++) weights[v] = load_tile(w + v * TILE_LANES);
            for (int r = 0; r < ROWS; r++)
                for (int v = 0; v < TILE_VECS; v++) acc[r][v] += x[r * stride_x + i] * weights[v];
        }
        for (int r = 0; r < ROWS; r++)
            for (int v = 0; v < TILE_VECS; v++) {
                float* out = y + r * stride_y + column + v * TILE_LANES;
                TileVec value = acc[r][v];
                if (bias) value += load_tile(bias + column + v * TILE_LANES);
                if (add) value += load_tile(out);
                *reinterpret_cast<LooseTileVec*>(out) = value;
            }
    }
}

// y[rows][stride_y] = x[rows][stride_x] W + bias, added to y if asked; stride_y is at least n rounded up to a panel
template <class T>
void multiply(const Linear& m, const float* x, int stride_x, int rows, float* y, int stride_y, bool add = false) {
    const T* panel = static_cast<const T*>(m.weight);
    for (int column = 0; column < m.n; column += PANEL, panel += size_t(m.k) * PANEL) {
        const float* bias = m.bias ? m.bias + column : nullptr;
        for (int row = 0; row < rows;) {
            const float* in = x + size_t(row) * stride_x;
            float* out = y + size_t(row) * stride_y + column;
            int count = std::min(TILE_ROWS, rows - row);
            switch (count) {
                case 1: tile<T, 1>(in, stride_x, panel, m.k, bias, out, stride_y, add); break;
                case 2: tile<T, 2>(in, stride_x, panel, m.k, bias, out, stride_y, add); break;
                case 3: tile<T, 3>(in, stride_x, panel, m.k, bias, out, stride_y, add); break;
                case 4: tile<T, 4>(in, stride_x, panel, m.k, bias, out, stride_y, add); break;
                case 5: tile<T, 5>(in, stride_x, panel, m.k, bias, out, stride_y, add); break;
                default: tile<T, 6>(in, stride_x, panel, m.k, bias, out, stride_y, add);
            }
            row += count;
        }
    }
}

#ifdef __AMX_BF16__
// Tiles of 16 rows: [16][32] of x, [16 pairs of k][16 columns][2] of W, [16][16] of y in float32. W is packed as
// [N / 16][K / 32] such tiles. Rows of y depend on their own row of x only, as everywhere here.
constexpr int TILE = 16, TILE_K = 32, TILE_ITEMS = TILE * TILE_K;

struct alignas(64) TileConfig { uint8_t palette = 1, start = 0, reserved[14] = {}; uint16_t bytes[16] = {}; uint8_t rows[16] = {}; };

// float32[rows][stride] to bf16[rows rounded up to 32][K rounded up to 32], zero beyond.
bf16* shorten(const float* x, int stride, int rows, int k, int padded_k) {
    static thread_local std::vector<bf16> buffer;
    size_t size = size_t(round_up(rows, 2 * TILE)) * padded_k;
    if (buffer.size() < size) buffer.resize(size);
    bf16* out = buffer.data();
    for (int row = 0; row < rows; row++, x += stride, out += padded_k)
        for (int i = 0; i < padded_k; i += LANES) {
            __mmask16 there = i + LANES <= k ? 0xffff : i < k ? (1u << (k - i)) - 1 : 0;
            __m256bh half = _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(there, x + i));
            std::memcpy(out + i, &half, sizeof half);
        }
    std::fill(out, buffer.data() + size, bf16{0});
    return buffer.data();
}

template <int ROW_TILES>
void amx_tiles(const bf16* x, int padded_k, const bf16* w, int rows, const float* bias, float* y, int stride_y, bool add) {
    // the intrinsics take literal tile numbers only: 0..3 accumulate, 4 and 5 hold x, 6 and 7 hold W
    const bf16* w1 = w + size_t(padded_k) * TILE;
    _tile_zero(0);
    _tile_zero(1);
    if (ROW_TILES == 2) { _tile_zero(2); _tile_zero(3); }
    for (int i = 0; i < padded_k; i += TILE_K, w += TILE_ITEMS, w1 += TILE_ITEMS) {
        _tile_loadd(4, x + i, padded_k * 2);
        _tile_loadd(6, w, 64);
        _tile_loadd(7, w1, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        if (ROW_TILES == 2) {
            _tile_loadd(5, x + TILE * padded_k + i, padded_k * 2);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
    alignas(64) float result[2 * ROW_TILES][TILE][TILE];
    _tile_stored(0, result[0], 64);
    _tile_stored(1, result[1], 64);
    if (ROW_TILES == 2) { _tile_stored(2, result[2], 64); _tile_stored(3, result[3], 64); }
    for (int row = 0; row < rows; row++)
        for (int c = 0; c < 2; c++) {
            float* out = y + size_t(row) * stride_y + c * TILE;
            Vec value = load(result[row / TILE * 2 + c][row % TILE]);
            if (bias) value += load(bias + c * TILE);
            if (add) value += load(out);
            store(out, value);
        }
}

template <>
void multiply<bf16>(const Linear& m, const float* x, int stride_x, int rows, float* y, int stride_y, bool add) {
    TileConfig config;
    std::fill_n(config.bytes, 8, 64);
    std::fill_n(config.rows, 8, TILE);
    int padded_k = round_up(m.k, TILE_K);
    const bf16* in = shorten(x, stride_x, rows, m.k, padded_k);
    const bf16* w = static_cast<const bf16*>(m.weight);
    _tile_loadconfig(&config);
    for (int column = 0; column < m.n; column += 2 * TILE, w += size_t(2 * TILE) * padded_k) {
        const float* bias = m.bias ? m.bias + column : nullptr;
        for (int row = 0; row < rows; row += 2 * TILE) {
            const bf16* block = in + size_t(row) * padded_k;
            float* out = y + size_t(row) * stride_y + column;
            if (rows - row > TILE) amx_tiles<2>(block, padded_k, w, std::min(2 * TILE, rows - row), bias, out, stride_y, add);
            else amx_tiles<1>(block, padded_k, w, rows - row, bias, out, stride_y, add);
        }
    }
    _tile_release();
}
#endif

void normalise(const float* x, int stride_x, const float* weight, int d, int rows, float* y, int stride_y) {
    for (int row = 0; row < rows; row++, x += stride_x, y += stride_y) {
        Vec squares = {};
        for (int i = 0; i < d; i += LANES) squares += load(x + i) * load(x + i);
        float scale = 1.0f / std::sqrt(sum(squares) / d + EPSILON);
        for (int i = 0; i < d; i += LANES) store(y + i, load(x + i) * scale * load(weight + i));
    }
}

}  // namespace
