// The CPU kernel: transformer blocks over a paged key-value cache, the whole decode step, and the draw of a token.
//
// Knows packed weights, pages and rows; not where they come from, and nothing of requests. One thread, no
// allocation per row, no dependency but the C++ library.
//
// Every output is computed with an order of additions that depends on its own row only, never on how many rows
// share the call: a result is bitwise the same alone, in any batch, in prefill or in decode.
//
// T is the storage type of matrices and cache: float, or bf16 (its upper half). Arithmetic is float32.

#include "blocks.h"
#include "sampling.h"

#ifdef __AMX_BF16__
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

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
