#include "device.h"

namespace {

// Parallel over active rows × vectors of active channels; neighbouring threads take neighbouring channels, and find each
// other's taps in the cache.
// Grid: any; runs over what there is.
template <class T, u32 N>
INLINE void depthwise(const DepthwiseParams& p) {
    const Window& w = p.window;
    const T* input = static_cast<const T*>(p.input);
    T* output = static_cast<T*>(p.output);
    const u32 c = p.channels.total, chunks = c / N;
    const u64 tasks = u64(row_count(p.rows)) * chunks;
    for (u64 task = u64(blockIdx.x) * 256 + threadIdx.x; task < tasks; task += u64(gridDim.x) * 256) {
        const u32 i = u32(task / chunks), j = u32(task % chunks) * N;
        const u32 pixel = pixel_of(p.rows, i), n = pixel / p.rows.pixels, in_map = pixel % p.rows.pixels;
        // With vectors, active channels come in runs of whole vectors.
        if (j >= channel_count(p.channels, n)) continue;
        const u32 channel = channel_of(p.channels, n, j), from = p.input_channels == NATURAL ? channel : j;
        const u32 y = in_map / w.out_w * w.stride - w.pad_top, x = in_map % w.out_w * w.stride - w.pad_left;
        float z[N], weight[N], v[N], minus[N] = {};
        load_n<f32, N>(p.bias + channel, z);
        if (p.minus_constant) load_n<f32, N>(p.minus_constant + channel, minus);
        for (u32 r = 0; r < w.kernel_h; r++) {
            for (u32 s = 0; s < w.kernel_w; s++) {
                const u32 iy = y + r, ix = x + s;
                const bool inside = iy < w.in_h && ix < w.in_w;
                if (!inside && !p.minus_constant) continue;
                load_n<f32, N>(p.weight + u64(r * w.kernel_w + s) * c + channel, weight);
                if (inside) load_n<T, N>(input + ((u64(n) * w.in_h + iy) * w.in_w + ix) * c + from, v);
#pragma unroll
                for (u32 e = 0; e < N; e++) z[e] = multiply_add(inside ? v[e] : minus[e], weight[e], z[e]);
            }
        }
        float constant[N] = {};
        if (p.output_constant) load_n<f32, N>(p.output_constant + channel, constant);
#pragma unroll
        for (u32 e = 0; e < N; e++) z[e] = activate(p.act, z[e]) - constant[e];
        store_n<T, N>(output + u64(p.output_rows == COMPACT ? i : pixel) * c + j, z);
    }
}

}  // namespace

#define KERNELS(T)                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256, 3)                                                            \
        depthwise_nhwc_##T(const __grid_constant__ DepthwiseParams p) {                                             \
        constexpr u32 N = Vec<T>::N;                                                                                \
        const bool whole = p.channels.total % N == 0 && (!p.channels.index || p.channels.group % N == 0);           \
        if (whole && aligned16(p.input) && aligned16(p.output) && aligned16(p.weight)) {                            \
            depthwise<T, N>(p);                                                                                     \
        } else {                                                                                                    \
            depthwise<T, 1>(p);                                                                                     \
        }                                                                                                           \
    }                                                                                                               \
    KERNEL(depthwise_nhwc_##T, DepthwiseParams, 256, 0)

KERNELS(f32)
KERNELS(f16)
KERNELS(bf16)
