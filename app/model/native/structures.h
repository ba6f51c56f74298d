// What Python fills in (kernel.py mirrors these), and the buffers that calls share.

#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

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

namespace {

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

}  // namespace
