#include "device.h"

namespace {

constexpr u32 THREADS = 256, WIDTH = 64;

// Writes the mean at position `j` of sample `n`.
INLINE void put(const MeanPoolParams& p, u32 n, u32 j, u32 count, float mean) {
    const u32 c = p.channels.total;
    float* output = p.output + u64(n) * c;
    if (!p.by_channel) {
        output[j] = mean;
        return;
    }
    // Every gap between active channels is the business of the position before it.
    const u32 channel = channel_of(p.channels, n, j);
    const u32 next = j + 1 < count ? channel_of(p.channels, n, j + 1) : c;
    output[channel] = mean;
    for (u32 i = channel + 1; i < next; i++) output[i] = 0.f;
}

// Parallel over samples × 64 channels (and parts of the rows); threads of a thread block take every so many rows and
// add up in a fixed order.
// Grid: channels ÷ 64, parts, samples.
template <class T>
INLINE void mean_pool(const MeanPoolParams& p) {
    constexpr u32 N = Vec<T>::N, LANES = WIDTH / N, LINES = THREADS / LANES;
    SHARED(float, sums, LINES * WIDTH);
    const T* input = static_cast<const T*>(p.input);
    const u32 n = blockIdx.z, part = blockIdx.y, c = p.channels.total, count = channel_count(p.channels, n);
    if (p.by_channel && blockIdx.x == 0 && part == 0) {
        const u32 first = count ? channel_of(p.channels, n, 0) : c;
        for (u32 i = threadIdx.x; i < first; i += THREADS) p.output[u64(n) * c + i] = 0.f;
    }
    if (blockIdx.x * WIDTH >= count) return;

    Range rows = rows_of(p.rows, n);
    bool listed = p.rows.index && p.input_rows == NATURAL;
    if (p.mean == MEAN_ALL_PIXELS && rows.len() > 0) {
        rows = {n * p.rows.pixels, (n + 1) * p.rows.pixels};
        listed = false;
    }
    const u32 divisor = p.mean == MEAN_ACTIVE ? max(rows.len(), 1u) : p.rows.pixels;
    const u32 each = divide_up(rows.len(), p.split);
    const u32 first = min(rows.first + part * each, rows.end), end = min(first + each, rows.end);

    const u32 lane = threadIdx.x % LANES, line = threadIdx.x / LANES, j = blockIdx.x * WIDTH + lane * N;
    const u32 len = j < count ? min(N, count - j) : 0;
    const bool vectors = c % N == 0 && aligned16(p.input);
    float sum[N] = {};
    for (u32 i = first + line; i < end && len; i += LINES) {
        const T* at = input + u64(listed ? pixel_of(p.rows, i) : i) * c + j;
        float v[N] = {};
        if (vectors) {
            load_vec(at, v);
        } else {
#pragma unroll
            for (u32 e = 0; e < N; e++) v[e] = e < len ? to_f32(at[e]) : 0.f;
        }
#pragma unroll
        for (u32 e = 0; e < N; e++) sum[e] += v[e];
    }
#pragma unroll
    for (u32 e = 0; e < N; e++) sums[line * WIDTH + lane * N + e] = sum[e];
    __syncthreads();
    const u32 mine = blockIdx.x * WIDTH + threadIdx.x;
    const bool has = threadIdx.x < WIDTH && mine < count;
    float total = 0.f;
    if (has) {
        for (u32 i = 0; i < LINES; i++) total += sums[i * WIDTH + threadIdx.x];
    }
    if (p.split > 1) {
        float* parts = p.partial + u64(n) * p.split * c;
        if (has) parts[u64(part) * c + mine] = total;
        if (!last_to_arrive(p.arrived + n * gridDim.x + blockIdx.x, p.split)) return;
        total = 0.f;
        if (has) {
            for (u32 i = 0; i < p.split; i++) total += load_fresh(parts + u64(i) * c + mine);
        }
    }
    if (has) put(p, n, mine, count, total / float(divisor));
}

}  // namespace

#define KERNELS(T)                                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS, 4)                                                           \
        mean_pool_nhwc_##T(const __grid_constant__ MeanPoolParams p) {                                              \
        mean_pool<T>(p);                                                                                            \
    }                                                                                                               \
    KERNEL(mean_pool_nhwc_##T, MeanPoolParams, THREADS, 0)

KERNELS(f32)
KERNELS(f16)
KERNELS(bf16)
