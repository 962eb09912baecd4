#include "device.h"

// Kernels with one mistake each, for the test that the emulation finds it.

struct FaultParams {
    u32* output;
    const u32* input;
};

// Half a warp waits for a barrier, the other half for a vote of the whole warp.
extern "C" __global__ void fault_divergent_barrier(const __grid_constant__ FaultParams p) {
    if (threadIdx.x % 32 < 16) {
        __syncthreads();
    } else {
        p.output[threadIdx.x] = __ballot_sync(EVERY_LANE, 1);
    }
}
KERNEL(fault_divergent_barrier, FaultParams, 64, 0)

// Lanes vote that have not been named.
extern "C" __global__ void fault_foreign_lane(const __grid_constant__ FaultParams p) {
    p.output[threadIdx.x] = __ballot_sync(0xffffu, 1);
}
KERNEL(fault_foreign_lane, FaultParams, 64, 0)

// The neighbour's value is read before it is sure to be there.
extern "C" __global__ void fault_missing_barrier(const __grid_constant__ FaultParams p) {
    SHARED(u32, values, 64);
    values[threadIdx.x] = p.input[threadIdx.x];
    __syncwarp();
    p.output[threadIdx.x] = values[63 - threadIdx.x];
}
KERNEL(fault_missing_barrier, FaultParams, 64, 0)

// A copy is read before it was waited for.
extern "C" __global__ void fault_missing_wait(const __grid_constant__ FaultParams p) {
    DYNAMIC_SHARED(shared);
    copy_async(shared + threadIdx.x * 16, p.input + threadIdx.x * 4, 16);
    copy_commit();
    __syncthreads();
    p.output[threadIdx.x] = reinterpret_cast<const u32*>(shared)[threadIdx.x];
    copy_wait<0>();
}
KERNEL(fault_missing_wait, FaultParams, 64, 1024)

// Sixteen bytes to an address that is a multiple of four only.
extern "C" __global__ void fault_misaligned_copy(const __grid_constant__ FaultParams p) {
    DYNAMIC_SHARED(shared);
    copy_async(shared + threadIdx.x * 4, p.input, 16);
    copy_commit();
    copy_wait<0>();
}
KERNEL(fault_misaligned_copy, FaultParams, 64, 1024)
