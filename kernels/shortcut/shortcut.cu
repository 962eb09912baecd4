#include "device.h"

namespace {

// Parallel over vectors of the output.
// Grid: any; runs over what there is.
template <class T, u32 N>
INLINE void pad_channels(const PadChannelsParams& p) {
    const T* input = static_cast<const T*>(p.input);
    T* output = static_cast<T*>(p.output);
    const u32 chunks = p.c_out / N, pixels = p.out_h * p.out_w;
    const u64 tasks = u64(p.batch) * pixels * chunks;
    for (u64 task = u64(blockIdx.x) * 256 + threadIdx.x; task < tasks; task += u64(gridDim.x) * 256) {
        const u32 row = u32(task / chunks), c = u32(task % chunks) * N;
        const u32 n = row / pixels, y = row % pixels / p.out_w * p.stride, x = row % p.out_w * p.stride;
        float v[N] = {};
        if (c - p.before < p.c_in) {
            load_n<T, N>(input + ((u64(n) * p.in_h + y) * p.in_w + x) * p.c_in + c - p.before, v);
        }
        store_n<T, N>(output + u64(row) * p.c_out + c, v);
    }
}

}  // namespace

#define KERNELS(T)                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256)                                                               \
        pad_channels_nhwc_##T(const __grid_constant__ PadChannelsParams p) {                                        \
        if ((p.c_in | p.c_out | p.before) % Vec<T>::N == 0 && aligned16(p.input) && aligned16(p.output)) {          \
            pad_channels<T, Vec<T>::N>(p);                                                                          \
        } else {                                                                                                    \
            pad_channels<T, 1>(p);                                                                                  \
        }                                                                                                           \
    }                                                                                                               \
    KERNEL(pad_channels_nhwc_##T, PadChannelsParams, 256, 0)

KERNELS(f32)
KERNELS(f16)
KERNELS(bf16)
