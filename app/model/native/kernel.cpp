// The CPU kernel: transformer blocks over a paged key-value cache, the whole decode step, and the draw of a token.
//
// Knows packed weights, pages and rows; not where they come from, and nothing of requests. One thread, no
// allocation per row, no dependency but the C++ library.
//
// Every output is computed with an order of additions that depends on its own row only, never on how many rows
// share the call: a result is bitwise the same alone, in any batch, in prefill or in decode.
//
// T is the storage type of matrices and cache: float, or bf16 (its upper half). Arithmetic is float32.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#ifdef __AMX_BF16__
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

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

// --- what Python fills in (app/model/kernel.py mirrors these) ------------------------------------------------

extern "C" {
struct Linear {  // y = x W + bias; W packed in panels (bf16 with AMX: in tiles), zero beyond column n
    const void* weight;
    const float* bias;
    int32_t k, n;
};
struct Block {
    const float *norm1, *norm2;
    Linear qkv, out, gate, up, down;
    void *keys, *values;
};
struct Stack {  // blocks of one width; keys: [page][head][head_dim][32], values: [page][head][32][padded head_dim]
    int32_t d, ff, heads, num_blocks;
    const float *cosines, *sines;  // [position][head_dim / 2]
    const Block* blocks;
};
struct Segment {  // `count` consecutive positions of one sequence
    const int32_t* pages;
    int32_t start, count;
};
struct Model {
    Stack stack;
    int32_t cross_heads, s1_size, s2_size, unused;
    const float *s1_table, *s2_table, *time_table[5];  // token embeddings folded through the projection that follows
    const float* norm;
    const float* query_table;  // s1 embedding folded through the cross attention's query projection
    Linear cross_kv, cross_out;
    const float* cross_norm;
    Linear s1_head, s2_head;
    void *cross_keys, *cross_values;
};
struct PathRow {
    int32_t* tokens;
    const int16_t* stamps;
    const double* draws;
    const int32_t* pages;
    int32_t first, top_k;
    float temperature, top_p;
};
}

// --- matrices ------------------------------------------------------------------------------------------------

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

// --- attention -----------------------------------------------------------------------------------------------

// Dot products of ROWS queries with all keys up to position `limit`, page by page.
template <class T, int ROWS>
void score(const float* const* q, int hd, const T* keys, size_t page_stride, const int32_t* pages, int limit, float* const* scores) {
    for (int page = 0; page * PAGE < limit; page++) {
        const T* k = keys + size_t(pages[page]) * page_stride;
        Vec even[ROWS][2] = {}, odd[ROWS][2] = {};
        for (int i = 0; i < hd; i += 2) {
            const T* row = k + i * PAGE;
            Vec k0 = load(row), k1 = load(row + LANES), k2 = load(row + PAGE), k3 = load(row + PAGE + LANES);
            for (int r = 0; r < ROWS; r++) {
                even[r][0] += q[r][i] * k0;
                even[r][1] += q[r][i] * k1;
                odd[r][0] += q[r][i + 1] * k2;
                odd[r][1] += q[r][i + 1] * k3;
            }
        }
        for (int r = 0; r < ROWS; r++)
            for (int v = 0; v < 2; v++) store(scores[r] + page * PAGE + v * LANES, even[r][v] + odd[r][v]);
    }
}

// In place: scores[0..limit) become weights that sum to the returned number; the rest of the last page becomes 0.
float soften(float* scores, int limit) {
    const IntVec lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    int end = round_up(limit, PAGE);
    Vec top = splat(-INFINITY);
    for (int i = 0; i < end; i += LANES) {
        Vec s = lane + i < limit ? load(scores + i) : splat(-INFINITY);
        store(scores + i, s);
        top = top > s ? top : s;
    }
    float highest = largest(top);
    Vec total = {};
    for (int i = 0; i < end; i += LANES) {
        Vec weight = lane + i < limit ? exponential(load(scores + i) - highest) : Vec{};
        store(scores + i, weight);
        total += weight;
    }
    return sum(total);
}

// Weighted sums of values for ROWS rows over VECS vectors of one head.
template <class T, int ROWS, int VECS>
void mix(float* const* weights, const float* totals, const T* values, size_t page_stride, int stride, const int32_t* pages,
         int limit, float* const* out) {
    Vec acc[ROWS][VECS] = {};
    for (int start = 0; start < limit; start += PAGE) {
        const T* v = values + size_t(pages[start / PAGE]) * page_stride;
        int count = std::min(PAGE, limit - start);
        for (int i = 0; i < count; i++, v += stride) {
            for (int c = 0; c < VECS; c++) {
                Vec value = load(v + c * LANES);
                for (int r = 0; r < ROWS; r++) acc[r][c] += weights[r][start + i] * value;
            }
        }
    }
    for (int r = 0; r < ROWS; r++)
        for (int c = 0; c < VECS; c++) store(out[r] + c * LANES, acc[r][c] * (1.0f / totals[r]));
}

template <class T, int ROWS>
void attend_head(const float* const* q, int hd, const T* keys, const T* values, int heads, const int32_t* pages,
                 const int* limits, float* const* scores, float* const* out) {
    int padded = round_up(hd, LANES), last = limits[ROWS - 1];
    score<T, ROWS>(q, hd, keys, size_t(heads) * hd * PAGE, pages, last, scores);
    float totals[ROWS];
    for (int r = 0; r < ROWS; r++) {
        totals[r] = soften(scores[r], limits[r]);
        std::fill(scores[r] + round_up(limits[r], PAGE), scores[r] + round_up(last, PAGE), 0.0f);
    }
    size_t stride = size_t(heads) * PAGE * padded;
    for (int c = 0; c < padded; c += 4 * LANES) {
        float* part[ROWS];
        for (int r = 0; r < ROWS; r++) part[r] = out[r] + c;
        switch (std::min(4, (padded - c) / LANES)) {
            case 1: mix<T, ROWS, 1>(scores, totals, values + c, stride, padded, pages, last, part); break;
            case 2: mix<T, ROWS, 2>(scores, totals, values + c, stride, padded, pages, last, part); break;
            case 3: mix<T, ROWS, 3>(scores, totals, values + c, stride, padded, pages, last, part); break;
            default: mix<T, ROWS, 4>(scores, totals, values + c, stride, padded, pages, last, part);
        }
    }
}

struct Scratch {  // grows to the largest call and stays
    std::vector<float> normed, qkv, mixed, gate, up, scores, heads, hidden, context, cross, logits, chance;
    std::vector<double> mass;
    std::vector<int32_t> order;
    float* grow(std::vector<float>& buffer, size_t size) {
        if (buffer.size() < size) buffer.resize(size);
        return buffer.data();
    }
};
thread_local Scratch scratch;

// Attention of every row of every segment. q: row r at q + r · stride; out likewise, head after head.
template <class T>
void attend(const float* q, int stride_q, int d, int heads, const void* key_store, const void* value_store,
            const Segment* segments, int num_segments, float* out, int stride_out) {
    int hd = d / heads, padded = round_up(hd, LANES);
    int longest = 0;
    for (int s = 0; s < num_segments; s++) longest = std::max(longest, segments[s].start + segments[s].count);
    longest = round_up(longest, PAGE);
    float* score_rows = scratch.grow(scratch.scores, size_t(QUERIES) * longest);
    float* head_rows = scratch.grow(scratch.heads, size_t(QUERIES) * padded);
    for (int head = 0; head < heads; head++) {
        const T* keys = static_cast<const T*>(key_store) + size_t(head) * hd * PAGE;
        const T* values = static_cast<const T*>(value_store) + size_t(head) * PAGE * padded;
        const float* base = q + head * hd;
        float* base_out = out + head * hd;
        for (int s = 0; s < num_segments; s++) {
            const Segment& segment = segments[s];
            for (int row = 0; row < segment.count;) {
                int count = segment.count - row >= QUERIES ? QUERIES : 1;
                const float* queries[QUERIES];
                float *scores[QUERIES], *results[QUERIES];
                int limits[QUERIES];
                for (int r = 0; r < count; r++) {
                    queries[r] = base + size_t(row + r) * stride_q;
                    scores[r] = score_rows + size_t(r) * longest;
                    results[r] = head_rows + size_t(r) * padded;
                    limits[r] = segment.start + row + r + 1;
                }
                if (count == QUERIES)
                    attend_head<T, QUERIES>(queries, hd, keys, values, heads, segment.pages, limits, scores, results);
                else
                    attend_head<T, 1>(queries, hd, keys, values, heads, segment.pages, limits, scores, results);
                for (int r = 0; r < count; r++)
                    std::copy(results[r], results[r] + hd, base_out + size_t(row + r) * stride_out);
                row += count;
            }
            base += size_t(segment.count) * stride_q;
            base_out += size_t(segment.count) * stride_out;
        }
    }
}

// Put keys and values of every row at its position in the cache.
template <class T>
void remember(const float* k, const float* v, int stride, int d, int heads, void* key_store, void* value_store,
              const Segment* segments, int num_segments) {
    int hd = d / heads, padded = round_up(hd, LANES);
    for (int s = 0; s < num_segments; s++)
        for (int i = 0; i < segments[s].count; i++, k += stride, v += stride) {
            int position = segments[s].start + i, slot = position % PAGE;
            size_t page = size_t(segments[s].pages[position / PAGE]) * heads;
            for (int head = 0; head < heads; head++) {
                T* keys = static_cast<T*>(key_store) + (page + head) * hd * PAGE + slot;
                T* values = static_cast<T*>(value_store) + ((page + head) * PAGE + slot) * padded;
                for (int c = 0; c < hd; c++) put(keys + c * PAGE, k[head * hd + c]);
                for (int c = 0; c < hd; c++) put(values + c, v[head * hd + c]);
                for (int c = hd; c < padded; c++) put(values + c, 0.0f);
            }
        }
}

// --- blocks --------------------------------------------------------------------------------------------------

// Turn queries (scaled by 1/√head_dim) and keys by their positions; first and second half of a head make the pairs.
void rotate(float* qkv, int stride, const Stack& stack, const Segment* segments, int num_segments) {
    int hd = stack.d / stack.heads, half = hd / 2;
    float scale = 1.0f / std::sqrt(float(hd));
    for (int s = 0; s < num_segments; s++)
        for (int i = 0; i < segments[s].count; i++, qkv += stride) {
            const float* c = stack.cosines + size_t(segments[s].start + i) * half;
            const float* n = stack.sines + size_t(segments[s].start + i) * half;
            for (int head = 0; head < 2 * stack.heads; head++) {
                float* x = qkv + head * hd;
                float factor = head < stack.heads ? scale : 1.0f;
                for (int j = 0; j < half; j++) {
                    float a = x[j] * factor, b = x[j + half] * factor;
                    x[j] = a * c[j] - b * n[j];
                    x[j + half] = b * c[j] + a * n[j];
                }
            }
        }
}

void gate_up(float* gate, const float* up, size_t count) {  // silu(gate) · up
    for (size_t i = 0; i < count; i += LANES) {
        Vec g = load(gate + i);
        store(gate + i, g / (1.0f + exponential(-g)) * load(up + i));
    }
}

// hidden[rows][stride] through all blocks, in place. With keys_only the last block only fills the cache, for
// rows whose own result nobody reads.
template <class T>
void run_blocks(const Stack& stack, float* hidden, int stride, const Segment* segments, int num_segments, bool keys_only) {
    int rows = 0;
    for (int s = 0; s < num_segments; s++) rows += segments[s].count;
    int wide = round_up(3 * stack.d, PANEL), ff = round_up(stack.ff, PANEL);
    float* normed = scratch.grow(scratch.normed, size_t(rows) * stride);
    float* qkv = scratch.grow(scratch.qkv, size_t(rows) * wide);
    float* mixed = scratch.grow(scratch.mixed, size_t(rows) * stride);
    float* gate = scratch.grow(scratch.gate, size_t(rows) * ff);
    float* up = scratch.grow(scratch.up, size_t(rows) * ff);
    for (int b = 0; b < stack.num_blocks; b++) {
        const Block& block = stack.blocks[b];
        normalise(hidden, stride, block.norm1, stack.d, rows, normed, stride);
        multiply<T>(block.qkv, normed, stride, rows, qkv, wide);
        rotate(qkv, wide, stack, segments, num_segments);
        remember<T>(qkv + stack.d, qkv + 2 * stack.d, wide, stack.d, stack.heads, block.keys, block.values, segments, num_segments);
        if (keys_only && b + 1 == stack.num_blocks) return;
        attend<T>(qkv, wide, stack.d, stack.heads, block.keys, block.values, segments, num_segments, mixed, stride);
        multiply<T>(block.out, mixed, stride, rows, hidden, stride, true);
        normalise(hidden, stride, block.norm2, stack.d, rows, normed, stride);
        multiply<T>(block.gate, normed, stride, rows, gate, ff);
        multiply<T>(block.up, normed, stride, rows, up, ff);
        gate_up(gate, up, size_t(rows) * ff);
        multiply<T>(block.down, gate, ff, rows, hidden, stride, true);
    }
}

// --- drawing a token -----------------------------------------------------------------------------------------

// Chances up to a factor: e^(logit / T - highest).
void chances(const float* logits, int size, float temperature, float* chance) {
    float highest = *std::max_element(logits, logits + size) / temperature;
    int whole = size / LANES * LANES;
    for (int i = 0; i < whole; i += LANES) store(chance + i, exponential(load(logits + i) / temperature - highest));
    for (int i = whole; i < size; i++) chance[i] = exponential(splat(logits[i] / temperature - highest))[0];
}

// What top_k leaves: chances below the k-th largest become 0; ties with it stay.
void keep_top_k(float* chance, int size, int k, std::vector<float>& copy) {
    copy.assign(chance, chance + size);
    std::nth_element(copy.begin(), copy.begin() + (k - 1), copy.end(), std::greater<float>());
    for (int i = 0; i < size; i++)
        if (chance[i] < copy[k - 1]) chance[i] = 0.0f;
}

// What top_p leaves: in falling order, an entry goes when the chance before it is already above top_p.
// Positive floats sort as their bits: mass by exponent and 3 bits finds the bucket that crosses; only it is sorted.
void keep_top_p(float* chance, int size, double top_p) {
    constexpr int BUCKETS = 1024, SHIFT = 20;
    auto bucket = [&](int i) {
        uint32_t bits;
        std::memcpy(&bits, chance + i, 4);
        return std::min(int(bits >> SHIFT), BUCKETS - 1);  // NaN must not lead outside, whatever it means
    };
    scratch.mass.assign(BUCKETS, 0.0);
    for (int i = 0; i < size; i++) scratch.mass[bucket(i)] += chance[i];
    double total = 0.0, before = 0.0;
    for (double mass : scratch.mass) total += mass;
    int crossing = BUCKETS - 1;
    while (crossing > 0 && before + scratch.mass[crossing] <= top_p * total) before += scratch.mass[crossing--];
    std::vector<int32_t>& order = scratch.order;
    order.clear();
    for (int i = 0; i < size; i++)
        if (bucket(i) == crossing) order.push_back(i);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return chance[a] > chance[b]; });
    std::vector<float>& kept = scratch.chance;
    kept.assign(chance, chance + size);
    for (int i = 0; i < size; i++)
        if (bucket(i) <= crossing) kept[i] = 0.0f;
    for (int i : order) {
        if (before > top_p * total) break;
        kept[i] = chance[i];
        before += chance[i];
    }
    std::copy(kept.begin(), kept.end(), chance);
}

// The smallest index whose cumulative chance exceeds u times the total.
int draw(const float* chance, int size, double u) {
    double total = 0.0, reached = 0.0;
    for (int i = 0; i < size; i++) total += chance[i];
    int last = 0;
    for (int i = 0; i < size; i++) {
        if (chance[i] <= 0.0f) continue;
        reached += chance[i];
        last = i;
        if (reached > u * total) break;
    }
    return last;
}

int sample(const float* logits, int size, const PathRow& row, double u) {
    static thread_local std::vector<float> chance, copy;
    chance.resize(size);
    chances(logits, size, row.temperature, chance.data());
    if (row.top_k > 0) keep_top_k(chance.data(), size, std::min(row.top_k, size), copy);
    else if (row.top_p < 1.0f) keep_top_p(chance.data(), size, row.top_p);
    return draw(chance.data(), size, u);
}

// --- the model -----------------------------------------------------------------------------------------------

// Token and time embeddings of `count` positions.
void embed(const Model& model, const int32_t* tokens, const int16_t* stamps, int count, float* hidden, int stride) {
    int d = model.stack.d;
    for (int row = 0; row < count; row++, tokens += 2, stamps += 5, hidden += stride) {
        const float* s1 = model.s1_table + size_t(tokens[0]) * d;
        const float* s2 = model.s2_table + size_t(tokens[1]) * d;
        for (int i = 0; i < d; i += LANES) {
            Vec time = {};
            for (int f = 0; f < 5; f++) time += load(model.time_table[f] + size_t(stamps[f]) * d + i);
            store(hidden + i, load(s1 + i) + load(s2 + i) + time);
        }
    }
}

// From embedded rows to the context; its keys and values for the cross attention go into the cache.
template <class T>
float* contextualise(const Model& model, float* hidden, int stride, const Segment* segments, int num_segments, int rows) {
    const Stack& stack = model.stack;
    run_blocks<T>(stack, hidden, stride, segments, num_segments, false);
    float* context = scratch.grow(scratch.context, size_t(rows) * stride);
    normalise(hidden, stride, model.norm, stack.d, rows, context, stride);
    int wide = round_up(2 * stack.d, PANEL);
    float* cross = scratch.grow(scratch.cross, size_t(rows) * wide);
    multiply<T>(model.cross_kv, context, stride, rows, cross, wide);
    remember<T>(cross, cross + stack.d, wide, stack.d, model.cross_heads, model.cross_keys, model.cross_values, segments, num_segments);
    return context;
}

template <class T>
void prefill(const Model& model, const int32_t* tokens, const int16_t* stamps, int count, const int32_t* pages, float* context_out) {
    int stride = round_up(model.stack.d, PANEL);
    float* hidden = scratch.grow(scratch.hidden, size_t(count) * stride);
    embed(model, tokens, stamps, count, hidden, stride);
    Segment segment = {pages, 0, count};
    float* context = contextualise<T>(model, hidden, stride, &segment, 1, count);
    if (context_out)
        for (int row = 0; row < count; row++)
            std::copy_n(context + size_t(row) * stride, model.stack.d, context_out + size_t(row) * model.stack.d);
}

template <class T>
void decode(const Model& model, const PathRow* const* paths, const int32_t* positions, int rows, float* logits_out) {
    const Stack& stack = model.stack;
    int d = stack.d, stride = round_up(d, PANEL);
    std::vector<Segment> segments(rows);
    float* hidden = scratch.grow(scratch.hidden, size_t(rows) * stride);
    for (int r = 0; r < rows; r++) {
        int position = positions[r];
        segments[r] = {paths[r]->pages, position, 1};
        embed(model, paths[r]->tokens + 2 * position, paths[r]->stamps + 5 * position, 1, hidden + size_t(r) * stride, stride);
    }
    float* context = contextualise<T>(model, hidden, stride, segments.data(), rows, rows);
    int vocabulary = round_up(std::max(model.s1_size, model.s2_size), PANEL);
    float* logits = scratch.grow(scratch.logits, size_t(rows) * vocabulary);
    auto choose = [&](int which, int size) {
        for (int r = 0; r < rows; r++) {
            const double* u = paths[r]->draws + 2 * (positions[r] - paths[r]->first);
            paths[r]->tokens[2 * (positions[r] + 1) + which] = sample(logits + size_t(r) * vocabulary, size, *paths[r], u[which]);
            if (logits_out) logits_out = std::copy_n(logits + size_t(r) * vocabulary, size, logits_out);
        }
    };
    multiply<T>(model.s1_head, context, stride, rows, logits, vocabulary);
    choose(0, model.s1_size);
    float* query = scratch.grow(scratch.qkv, size_t(rows) * stride);
    for (int r = 0; r < rows; r++)
        std::copy_n(model.query_table + size_t(paths[r]->tokens[2 * (positions[r] + 1)]) * d, d, query + size_t(r) * stride);
    float* mixed = scratch.grow(scratch.mixed, size_t(rows) * stride);
    attend<T>(query, stride, d, model.cross_heads, model.cross_keys, model.cross_values, segments.data(), rows, mixed, stride);
    multiply<T>(model.cross_out, mixed, stride, rows, context, stride, true);
    normalise(context, stride, model.cross_norm, d, rows, context, stride);
    multiply<T>(model.s2_head, context, stride, rows, logits, vocabulary);
    choose(1, model.s2_size);
}

}  // namespace

// --- the C interface: `half` chooses bf16 storage --------------------------------------------------------------

extern "C" {
// How bf16 matrices must be packed: 0 panels, 1 AMX tiles (asks the system for leave to use them), -1 it refuses.
int kronos_packing() {
#ifdef __AMX_BF16__
    constexpr int REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;
    return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0 ? 1 : -1;
#else
    return 0;
#endif
}
void kronos_blocks(const Stack* stack, int half, float* hidden, int stride, const Segment* segments, int count, int keys_only) {
    (half ? run_blocks<bf16> : run_blocks<float>)(*stack, hidden, stride, segments, count, keys_only);
}
void kronos_multiply(const Linear* m, int half, const float* x, int stride_x, int rows, float* y, int stride_y) {
    (half ? multiply<bf16> : multiply<float>)(*m, x, stride_x, rows, y, stride_y, false);
}
void kronos_prefill(const Model* model, int half, const int32_t* tokens, const int16_t* stamps, int count, const int32_t* pages, float* context) {
    (half ? prefill<bf16> : prefill<float>)(*model, tokens, stamps, count, pages, context);
}
void kronos_decode(const Model* model, int half, const PathRow* const* paths, const int32_t* positions, int rows, float* logits) {
    (half ? decode<bf16> : decode<float>)(*model, paths, positions, rows, logits);
}
}
