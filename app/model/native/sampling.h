// From logits to a token (app/model/sampling.py is the truth this is tested against).
#pragma once

#include <functional>
#include "structures.h"
#include "vectors.h"

namespace {

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

}  // namespace
