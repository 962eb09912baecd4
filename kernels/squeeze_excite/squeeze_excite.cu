#include "device.h"

// The means are `mean_pool`'s, the two layers `linear`'s; what is left is to scale.

namespace {

// Parallel over active rows × vectors of active channels.
// Grid: any; runs over what there is.
template <class T, u32 N>
INLINE void scale(const ScaleParams& p) {
    T* data = static_cast<T*>(p.data);
    const u32 c = p.channels.total, chunks = c / N;
    const u64 tasks = u64(row_count(p.rows)) * chunks;
    for (u64 task = u64(blockIdx.x) * 256 + threadIdx.x; task < tasks; task += u64(gridDim.x) * 256) {
        const u32 i = u32(task / chunks), j = u32(task % chunks) * N;
        const u32 pixel = pixel_of(p.rows, i), n = pixel / p.rows.pixels;
        const u32 count = channel_count(p.channels, n);
        if (j >= count) continue;
        T* at = data + u64(p.data_rows == COMPACT ? i : pixel) * c + j;
        float v[N];
        load_n<T, N>(at, v);
#pragma unroll
        for (u32 e = 0; e < N; e++) {
            // Behind the active channels of a vector what is there stays.
            if (j + e < count) v[e] *= read(p.factor + u64(n) * c + channel_of(p.channels, n, j + e));
        }
        store_n<T, N>(at, v);
    }
}

}  // namespace

#define KERNELS(T)                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256)                                                               \
        squeeze_excite_nhwc_##T(const __grid_constant__ ScaleParams p) {                                            \
        if (p.channels.total % Vec<T>::N == 0 && aligned16(p.data)) {                                               \
            scale<T, Vec<T>::N>(p);                                                                                 \
        } else {                                                                                                    \
            scale<T, 1>(p);                                                                                         \
        }                                                                                                           \
    }                                                                                                               \
    KERNEL(squeeze_excite_nhwc_##T, ScaleParams, 256, 0)

KERNELS(f32)
KERNELS(f16)
KERNELS(bf16)
