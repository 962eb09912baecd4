#include "device.h"

// Between NCHW and NHWC a tile of pixels × channels goes through shared memory, so that both sides are read and written
// in runs. Parallel over tiles; a thread block of 32 × 8 threads moves 32 pixels × 32 channels.

namespace {

constexpr u32 TILE = 32, LINES = 8;

// Grid: pixels of an output map ÷ 32, channels of the pitch ÷ 32, samples.
template <class T>
INLINE void from_nchw(const FromNchwParams& p) {
    SHARED(float, tile, TILE * (TILE + 1));
    const u32 pixels = p.out_h * p.out_w, n = blockIdx.z;
    const u32 pixel0 = blockIdx.x * TILE, c0 = blockIdx.y * TILE;
    const u32 lane = threadIdx.x % TILE, line = threadIdx.x / TILE;
    {
        const u32 pixel = pixel0 + lane;
        const u32 y = pixel / p.out_w - p.border_top, x = pixel % p.out_w - p.border_left;
        const bool inside = pixel < pixels && y < p.h && x < p.w;
        for (u32 i = line; i < TILE; i += LINES) {
            const u32 c = c0 + i;
            float value = 0.f;
            if (inside && c < p.c) value = p.input[((u64(n) * p.c + c) * p.h + y) * p.w + x];
            tile[i * (TILE + 1) + lane] = value;
        }
    }
    __syncthreads();
    T* output = static_cast<T*>(p.output);
    const u32 width = min(TILE, p.pitch - c0);
    // Few channels: neighbouring lanes take neighbouring elements, across pixels.
    for (u32 i = threadIdx.x; i < TILE * width; i += TILE * LINES) {
        const u32 pixel = pixel0 + i / width, c = i % width;
        if (pixel < pixels) {
            output[(u64(n) * pixels + pixel) * p.pitch + c0 + c] = from_f32<T>(tile[c * (TILE + 1) + i / width]);
        }
    }
}

// Grid: pixels of a map ÷ 32, channels ÷ 32, samples.
template <class T>
INLINE void to_nchw(const ToNchwParams& p) {
    SHARED(float, tile, TILE * (TILE + 1));
    const T* input = static_cast<const T*>(p.input);
    const u32 n = blockIdx.z, pixel0 = blockIdx.x * TILE, c0 = blockIdx.y * TILE;
    const u32 lane = threadIdx.x % TILE, line = threadIdx.x / TILE;
    for (u32 i = line; i < TILE; i += LINES) {
        const u32 pixel = pixel0 + i, c = c0 + lane;
        if (pixel < p.pixels && c < p.c) {
            tile[i * (TILE + 1) + lane] = to_f32(input[(u64(n) * p.pixels + pixel) * p.c + c]);
        }
    }
    __syncthreads();
    for (u32 i = line; i < TILE; i += LINES) {
        const u32 pixel = pixel0 + lane, c = c0 + i;
        if (pixel < p.pixels && c < p.c) {
            p.output[(u64(n) * p.c + c) * p.pixels + pixel] = tile[lane * (TILE + 1) + i];
        }
    }
}

}  // namespace

#define KERNELS(T)                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256) from_nchw_nhwc_##T(const __grid_constant__ FromNchwParams p) { \
        from_nchw<T>(p);                                                                                            \
    }                                                                                                               \
    KERNEL(from_nchw_nhwc_##T, FromNchwParams, 256, 0)                                                              \
    extern "C" __global__ void __launch_bounds__(256) to_nchw_nhwc_##T(const __grid_constant__ ToNchwParams p) {    \
        to_nchw<T>(p);                                                                                              \
    }                                                                                                               \
    KERNEL(to_nchw_nhwc_##T, ToNchwParams, 256, 0)

KERNELS(f32)
KERNELS(f16)
KERNELS(bf16)
