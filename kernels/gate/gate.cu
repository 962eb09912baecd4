#include "device.h"

namespace {

constexpr u32 CELL_THREADS = 128;

// Average and 1×1 convolution are both linear: every element is multiplied with its channel's weight as it is read. A
// thread block for each cell; the map is read once, about.
// Grid: cells of a grid, samples.
template <class T>
INLINE void patch_gate(const PatchGateParams& p) {
    constexpr u32 N = Vec<T>::N;
    const u32 cell = blockIdx.x, n = blockIdx.y;
    const u32 gy = cell / p.grid_w, gx = cell % p.grid_w;
    const u32 y0 = gy * p.h / p.grid_h, y1 = divide_up((gy + 1) * p.h, p.grid_h);
    const u32 x0 = gx * p.w / p.grid_w, x1 = divide_up((gx + 1) * p.w, p.grid_w);
    const u32 width = x1 - x0, pixels = (y1 - y0) * width;
    const T* input = static_cast<const T*>(p.input) + u64(n) * p.h * p.w * p.c;
    const bool vectors = p.c % N == 0 && aligned16(p.input);
    const u32 step = vectors ? N : 1, chunks = divide_up(p.c, step);
    float sum = 0.f;
    for (u32 i = threadIdx.x; i < pixels * chunks; i += CELL_THREADS) {
        const u32 pixel = i / chunks, c = i % chunks * step;
        const T* at = input + (u64(y0 + pixel / width) * p.w + x0 + pixel % width) * p.c + c;
        if (vectors) {
            float v[N];
            load_vec(at, v);
#pragma unroll
            for (u32 j = 0; j < N; j++) sum += v[j] * read(p.weight + c + j);
        } else {
            sum += to_f32(*at) * read(p.weight + c);
        }
    }
    sum = block_sum<CELL_THREADS>(sum);
    if (threadIdx.x == 0) {
        const float margin = sum / float(pixels) + p.bias;
        const u64 at = u64(n) * p.grid_h * p.grid_w + cell;
        if (p.margin) p.margin[at] = margin;
        if (p.keep) p.keep[at] = margin >= p.threshold;
    }
}

constexpr u32 SAMPLES = 8, WARPS = 8;

// A warp for each output feature and up to eight samples, so that a weight is read once for them all.
// Grid: features ÷ 8, samples ÷ 8.
INLINE void linear(const LinearParams& p) {
    const u32 lane = threadIdx.x % 32, o = blockIdx.x * WARPS + threadIdx.x / 32, n0 = blockIdx.y * SAMPLES;
    if (o >= p.c_out) return;
    const u32 samples = min(SAMPLES, p.batch - n0);
    const float* weight = p.weight + u64(o) * p.c_in;
    const float* input = p.input + u64(n0) * p.c_in;
    float sum[SAMPLES] = {};
    const bool vectors = p.c_in % 4 == 0 && aligned16(p.weight) && aligned16(p.input);
    if (vectors) {
        for (u32 c = 4 * lane; c < p.c_in; c += 128) {
            float w[4], x[4];
            load_vec(weight + c, w);
#pragma unroll
            for (u32 n = 0; n < SAMPLES; n++) {
                if (n >= samples) break;
                load_vec(input + u64(n) * p.c_in + c, x);
#pragma unroll
                for (u32 j = 0; j < 4; j++) sum[n] += w[j] * x[j];
            }
        }
    } else {
        for (u32 c = lane; c < p.c_in; c += 32) {
            const float w = read(weight + c);
#pragma unroll
            for (u32 n = 0; n < SAMPLES; n++) {
                if (n < samples) sum[n] += w * input[u64(n) * p.c_in + c];
            }
        }
    }
    const float bias = read(p.bias + o);
#pragma unroll
    for (u32 n = 0; n < SAMPLES; n++) {
        const float value = activate(p.act, warp_sum(sum[n]) + bias);
        if (lane == 0 && n < samples) {
            const u64 at = u64(n0 + n) * p.c_out + o;
            if (p.output) p.output[at] = value;
            if (p.keep) p.keep[at] = value >= p.threshold;
        }
    }
}

constexpr u32 RANK_THREADS = 256, DIGITS = 256;

// A number that is in the order of margins; equal for both zeros.
INLINE u32 ascending(float margin) {
    const u32 bits = bits_of(margin + 0.f);
    return bits >> 31 ? ~bits : bits | 1u << 31;
}

// How many units a sample can pay for.
INLINE u32 affordable(const DecideHighestParams& p, float spent) {
    const float paced = roundf((p.pace - spent) / p.price), left = floorf((p.limit - spent) / p.price + 1e-3f);
    const float units = paced < left ? paced : left;
    return units > 0.f ? u32(units < float(p.per_sample) ? units : float(p.per_sample)) : 0;
}

// A thread block for each sample. The last margin that is kept is found digit by digit, by the number of units that have
// each; of units with that margin the first are kept, by a prefix sum.
// Grid: samples.
INLINE void decide_highest(const DecideHighestParams& p) {
    SHARED(u32, digits, DIGITS);
    // The digits found, and how many units have to be found among those that have them.
    SHARED(u32, found, 2);
    const u32 n = blockIdx.x;
    const float* margin = p.margin + u64(n) * p.per_sample;
    u8* keep = p.keep + u64(n) * p.per_sample;
    const u32 most = p.spent ? affordable(p, p.spent[n]) : p.most;
    u32 mine = 0;
    for (u32 i = threadIdx.x; i < p.per_sample; i += RANK_THREADS) mine += margin[i] >= p.threshold;
    const u32 candidates = block_sum<RANK_THREADS>(mine), kept = min(candidates, most);
    if (threadIdx.x == 0) {
        found[0] = 0;
        found[1] = most;
        if (p.spent) p.spent[n] += multiply(float(kept), p.price);
    }
    if (kept == 0 || kept == candidates) {
        for (u32 i = threadIdx.x; i < p.per_sample; i += RANK_THREADS) keep[i] = kept && margin[i] >= p.threshold;
        return;
    }
    for (u32 shift = 32; shift > 0;) {
        shift -= 8;
        digits[threadIdx.x] = 0;
        __syncthreads();
        const u32 prefix = found[0], wanted = found[1];
        for (u32 i = threadIdx.x; i < p.per_sample; i += RANK_THREADS) {
            const u32 order = ascending(margin[i]);
            const bool among = shift == 24 || order >> (shift + 8) == prefix;
            if (among && margin[i] >= p.threshold) atomicAdd(&digits[order >> shift & 255], 1u);
        }
        __syncthreads();
        // The highest digit first.
        const u32 digit = DIGITS - 1 - threadIdx.x, count = digits[digit];
        const u32 above = block_scan<RANK_THREADS>(count).before;
        if (above < wanted && wanted <= above + count) {
            found[0] = prefix << 8 | digit;
            found[1] = wanted - above;
        }
        __syncthreads();
    }
    const u32 last = found[0];
    u32 equals = found[1];
    for (u32 i0 = 0; i0 < p.per_sample; i0 += RANK_THREADS) {
        const u32 i = i0 + threadIdx.x;
        const bool candidate = i < p.per_sample && margin[i] >= p.threshold;
        const u32 order = candidate ? ascending(margin[i]) : 0;
        const bool equal = candidate && order == last;
        const Scan scan = block_scan<RANK_THREADS>(equal);
        if (i < p.per_sample) keep[i] = candidate && (order > last || (equal && scan.before < equals));
        equals -= min(equals, scan.all);
    }
}

}  // namespace

#define KERNELS(T)                                                                                                  \
    extern "C" __global__ void __launch_bounds__(CELL_THREADS)                                                      \
        patch_gate_nhwc_##T(const __grid_constant__ PatchGateParams p) {                                            \
        patch_gate<T>(p);                                                                                           \
    }                                                                                                               \
    KERNEL(patch_gate_nhwc_##T, PatchGateParams, CELL_THREADS, 0)

KERNELS(f32)
KERNELS(f16)
KERNELS(bf16)

extern "C" __global__ void __launch_bounds__(WARPS * 32) linear_nc_f32(const __grid_constant__ LinearParams p) {
    linear(p);
}
KERNEL(linear_nc_f32, LinearParams, WARPS * 32, 0)

// Grid: decisions ÷ 256.
extern "C" __global__ void __launch_bounds__(256) decide_n_f32(const __grid_constant__ DecideParams p) {
    const u32 i = blockIdx.x * 256 + threadIdx.x;
    if (i < p.len) p.keep[i] = p.margin[i] >= p.threshold;
}
KERNEL(decide_n_f32, DecideParams, 256, 0)

extern "C" __global__ void __launch_bounds__(RANK_THREADS)
    decide_n_f32_highest(const __grid_constant__ DecideHighestParams p) {
    decide_highest(p);
}
KERNEL(decide_n_f32_highest, DecideHighestParams, RANK_THREADS, 0)
