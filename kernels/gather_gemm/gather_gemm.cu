#include "device.h"
#include "gather_gemm/tile.cuh"
#include "gather_gemm/tensor_cores.cuh"
#include "gather_gemm/simt.cuh"

// Implicit GEMM: rows are listed output pixels, columns active output channels, the sum runs over taps and active input
// channels. The gather is in the loads: a thread knows its rows' pixels and steps through taps.
//
// Parallel over tiles of rows × columns (and parts of the sum), any number of which a thread block takes one after the
// other: the grid may be as large as everything active asks for, or as the device is. Columns vary fastest, so that
// thread blocks that run together share rows. Where samples have channel sets of their own, a tile is of one sample and
// the grid's z counts samples.
//
// What is computed for a row does not depend on which other rows there are.

namespace {

// Copies listed pixels, or their neighbourhoods, one behind the other. A thread moves 16 bytes at a time where it can.
// Grid: rows · taps ÷ 8, a warp for each; runs over what there is.
template <class T>
INLINE void gather(const GatherParams& p) {
    constexpr u32 N = Vec<T>::N;
    const Window& w = p.window;
    const T* input = static_cast<const T*>(p.input);
    T* output = static_cast<T*>(p.output);
    const u32 lane = threadIdx.x % 32, taps = w.kernel_h * w.kernel_w;
    const bool vectors = p.c % N == 0 && p.input_pitch % N == 0 && p.output_pitch % N == 0 && aligned16(p.input) &&
                         aligned16(p.output);
    const u64 tasks = u64(row_count(p.rows)) * taps;
    for (u64 task = u64(blockIdx.x) * 8 + threadIdx.x / 32; task < tasks; task += u64(gridDim.x) * 8) {
        const u32 i = u32(task / taps), tap = u32(task % taps);
        const u32 pixel = pixel_of(p.rows, i), n = pixel / p.rows.pixels, in_map = pixel % p.rows.pixels;
        const u32 y = in_map / w.out_w * w.stride + tap / w.kernel_w - w.pad_top;
        const u32 x = in_map % w.out_w * w.stride + tap % w.kernel_w - w.pad_left;
        const bool inside = y < w.in_h && x < w.in_w;
        const T* from = input + (inside ? ((u64(n) * w.in_h + y) * w.in_w + x) * p.input_pitch : 0);
        T* to = output + u64(i) * p.output_pitch + u64(tap) * p.c;
        if (vectors) {
            for (u32 c = lane * N; c < p.c; c += 32 * N) {
                uint4 v = make_uint4(0, 0, 0, 0);
                if (inside) v = *reinterpret_cast<const uint4*>(from + c);
                *reinterpret_cast<uint4*>(to + c) = v;
            }
        } else {
            for (u32 c = lane; c < p.c; c += 32) to[c] = inside ? from[c] : from_f32<T>(0.f);
        }
    }
}

}  // namespace

#if HAS_TENSOR_CORES
#define KERNEL_MMA(T, S, name)                                                                                      \
    extern "C" __global__ void __launch_bounds__(S::THREADS, S::BLOCKS) name(const __grid_constant__ GatherGemmParams p) {     \
        gather_gemm_mma<T, S>(p);                                                                                   \
    }                                                                                                               \
    KERNEL(name, GatherGemmParams, S::THREADS, S::SHARED)

KERNEL_MMA(f16, Wide, gather_gemm_nhwc_f16_mma_128x256)
KERNEL_MMA(f16, Large, gather_gemm_nhwc_f16_mma_128x128)
KERNEL_MMA(f16, Tall, gather_gemm_nhwc_f16_mma_128x64)
KERNEL_MMA(f16, Small, gather_gemm_nhwc_f16_mma_64x64)
KERNEL_MMA(bf16, Wide, gather_gemm_nhwc_bf16_mma_128x256)
KERNEL_MMA(bf16, Large, gather_gemm_nhwc_bf16_mma_128x128)
KERNEL_MMA(bf16, Tall, gather_gemm_nhwc_bf16_mma_128x64)
KERNEL_MMA(bf16, Small, gather_gemm_nhwc_bf16_mma_64x64)
KERNEL_MMA(f32, Wide, gather_gemm_nhwc_f32_tf32_128x256)
KERNEL_MMA(f32, Large, gather_gemm_nhwc_f32_tf32_128x128)
KERNEL_MMA(f32, Tall, gather_gemm_nhwc_f32_tf32_128x64)
KERNEL_MMA(f32, Small, gather_gemm_nhwc_f32_tf32_64x64)
#endif

#define KERNEL_SIMT(T, M, name)                                                                                     \
    extern "C" __global__ void __launch_bounds__(256, M == 64 ? 3 : 1) name(const __grid_constant__ GatherGemmParams p) {            \
        gather_gemm_simt<T, M>(p);                                                                                  \
    }                                                                                                               \
    KERNEL(name, GatherGemmParams, 256, 0)

KERNEL_SIMT(f32, 128, gather_gemm_nhwc_f32_simt_128x128)
KERNEL_SIMT(f32, 64, gather_gemm_nhwc_f32_simt_64x64)
KERNEL_SIMT(f16, 128, gather_gemm_nhwc_f16_simt_128x128)
KERNEL_SIMT(f16, 64, gather_gemm_nhwc_f16_simt_64x64)
KERNEL_SIMT(bf16, 128, gather_gemm_nhwc_bf16_simt_128x128)
KERNEL_SIMT(bf16, 64, gather_gemm_nhwc_bf16_simt_64x64)

#define KERNEL_GATHER(T)                                                                                            \
    extern "C" __global__ void __launch_bounds__(256) gather_nhwc_##T(const __grid_constant__ GatherParams p) {     \
        gather<T>(p);                                                                                               \
    }                                                                                                               \
    KERNEL(gather_nhwc_##T, GatherParams, 256, 0)

KERNEL_GATHER(f32)
KERNEL_GATHER(f16)
KERNEL_GATHER(bf16)
