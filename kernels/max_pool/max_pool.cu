#include "device.h"

namespace {

// Parallel over output pixels × vectors of channels.
// Grid: any; runs over what there is.
template <class T, u32 N>
INLINE void max_pool(const MaxPoolParams& p) {
    const Window& w = p.window;
    const T* input = static_cast<const T*>(p.input);
    T* output = static_cast<T*>(p.output);
    const u32 chunks = p.c / N, pixels = w.out_h * w.out_w;
    const u64 tasks = u64(p.batch) * pixels * chunks;
    for (u64 task = u64(blockIdx.x) * 256 + threadIdx.x; task < tasks; task += u64(gridDim.x) * 256) {
        const u32 row = u32(task / chunks), c = u32(task % chunks) * N;
        const u32 n = row / pixels, y = row % pixels / w.out_w, x = row % w.out_w;
        float largest[N];
#pragma unroll
        for (u32 j = 0; j < N; j++) largest[j] = __uint_as_float(0xff800000u);
        for (u32 r = 0; r < w.kernel_h; r++) {
            const u32 iy = y * w.stride + r - w.pad_top;
            if (iy >= w.in_h) continue;
            for (u32 s = 0; s < w.kernel_w; s++) {
                const u32 ix = x * w.stride + s - w.pad_left;
                if (ix >= w.in_w) continue;
                float v[N];
                load_n<T, N>(input + ((u64(n) * w.in_h + iy) * w.in_w + ix) * p.c + c, v);
#pragma unroll
                for (u32 j = 0; j < N; j++) {
                    if (v[j] > largest[j] || v[j] != v[j]) largest[j] = v[j];
                }
            }
        }
        store_n<T, N>(output + u64(row) * p.c + c, largest);
    }
}

}  // namespace

#define KERNELS(T)                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256, 4) max_pool_nhwc_##T(const __grid_constant__ MaxPoolParams p) {\
        if (p.c % Vec<T>::N == 0 && aligned16(p.input) && aligned16(p.output)) {                                    \
            max_pool<T, Vec<T>::N>(p);                                                                              \
        } else {                                                                                                    \
            max_pool<T, 1>(p);                                                                                      \
        }                                                                                                           \
    }                                                                                                               \
    KERNEL(max_pool_nhwc_##T, MaxPoolParams, 256, 0)

KERNELS(f32)
KERNELS(f16)
KERNELS(bf16)
