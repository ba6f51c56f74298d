// Transformer blocks: rotary attention and gated feed-forward, each added to its input.
#pragma once

#include "attention.h"
#include "matrices.h"

namespace {

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

}  // namespace
