#include "device.h"

// A unit of its own: what it calls is a part of the driver from CUDA 12.4 on, and where that is missing it does not load.

#if EMULATED
static INLINE void cudaGraphSetConditional(u64 handle, u32 value) { *reinterpret_cast<u32*>(handle) = value; }
#else
extern "C" __device__ void cudaGraphSetConditional(u64 handle, u32 value);
#endif

// Grid: 1.
extern "C" __global__ void __launch_bounds__(32) condition_u32(const __grid_constant__ ConditionParams p) {
    if (threadIdx.x == 0) cudaGraphSetConditional(p.handle, *p.number != 0);
}
KERNEL(condition_u32, ConditionParams, 32, 0)
