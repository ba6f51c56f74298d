// Attention over a paged cache: a single row of a sequence, or four that share each load.
#pragma once

#include "structures.h"
#include "vectors.h"

namespace {

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

}  // namespace
