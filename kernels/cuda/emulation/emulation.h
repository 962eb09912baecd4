// CUDA's execution model on the host: what a `.cu` needs to compile as C++20 and to run, one fiber for each thread of a
// thread block. A thread block belongs to one thread of the operating system, which therefore can hold its shared memory.
//
// A warp operation works on pointers: every lane leaves the address of its operands and waits, the last one to come does
// the work of all. Fibers take turns only at barriers and warp operations, in an order drawn from the seed.
//
// Found out, and reported as an error of the launch: deadlock (a barrier or warp operation that some thread never
// reaches), a lane that is not in its own mask, misaligned operands of `cp.async` and `ldmatrix`. Shared memory starts
// as garbage and lies on the heap, so that AddressSanitizer sees its bounds. `cp.async` lands at once or at the wait,
// depending on the seed, so that a missing wait and a missing barrier both change results.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__

struct uint3 {
    unsigned x, y, z;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

namespace emulation {

using Entry = void (*)(void** args);

// Makes a kernel known by its name.
bool add(const char* name, size_t params, unsigned threads, size_t shared, Entry entry);

// Ends the launch with an error; does not return to the fiber.
[[noreturn]] void fail(const char* what);

struct Copy {
    void* to;
    const void* from;
    unsigned valid;
    unsigned group;
};

// A thread of the thread block.
struct Fiber {
    void* stack_pointer = nullptr;
    char* stack = nullptr;
    void* fake_stack = nullptr;
    uint3 index{};
    unsigned linear = 0;
    const char* waits_for = nullptr;
    bool done = false;
    unsigned groups = 0;
    std::vector<Copy> copies;
};

extern thread_local Fiber* self;

uint3 block_index();
uint3 block_size();
uint3 grid_size();

unsigned char* dynamic_shared();
// The array of the thread block that belongs to a declaration.
void* shared(const void* site, size_t bytes);

// Lets other threads of the operating system run.
void pause();

enum class Vote { None, Count, Or, And };
int barrier(int vote, Vote how);

// What the lanes of a warp left: `operand[lane]` for the lanes in `mask`.
struct Gathering {
    void* operand[32];
    uint32_t mask;
};
using Work = void (*)(const Gathering& lanes, const void* context);
// Waits for the lanes in `mask`; the last one does the work.
void together(uint32_t mask, void* operand, const char* what, Work work, const void* context = nullptr);

inline unsigned lane() { return self->linear % 32; }

float f16_to_f32(uint16_t bits);
inline uint16_t f32_to_f16(float x) {
    _Float16 y = static_cast<_Float16>(x);
    uint16_t bits;
    std::memcpy(&bits, &y, 2);
    return bits;
}

void copy_async(void* to, const void* from, unsigned valid);
inline void copy_commit() { self->groups++; }
void copy_wait(unsigned left);

struct MatrixOperand {
    const void* row;
    uint32_t* words;
};
void load_matrices(uint32_t (&m)[4], const void* row);

void count_products(unsigned products);

struct MmaOperand {
    float* d;
    const uint32_t *a, *b;
};
// `PER_WORD` values in a word; `value(word, i)` is the i-th.
template <unsigned PER_WORD, class Value>
void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Value) {
    MmaOperand operand{d, a, b};
    together(~0u, &operand, "mma.sync", [](const Gathering& lanes, const void*) {
        constexpr unsigned K = 8 * PER_WORD;
        count_products(16 * 8 * K);
        float left[16][K], right[K][8], sum[16][8] = {};
        Value value{};
        for (unsigned l = 0; l < 32; l++) {
            auto& o = *static_cast<MmaOperand*>(lanes.operand[l]);
            for (unsigned i = 0; i < PER_WORD; i++) {
                for (unsigned r = 0; r < 4; r++)
                    left[l / 4 + 8 * (r & 1)][PER_WORD * (l % 4 + 4 * (r >> 1)) + i] = value(o.a[r], i);
                for (unsigned r = 0; r < 2; r++) right[PER_WORD * (l % 4 + 4 * r) + i][l / 4] = value(o.b[r], i);
            }
        }
        for (unsigned row = 0; row < 16; row++)
            for (unsigned k = 0; k < K; k++)
                for (unsigned column = 0; column < 8; column++) sum[row][column] += left[row][k] * right[k][column];
        for (unsigned l = 0; l < 32; l++) {
            auto& o = *static_cast<MmaOperand*>(lanes.operand[l]);
            for (unsigned i = 0; i < 4; i++) o.d[i] += sum[l / 4 + 8 * (i >> 1)][2 * (l % 4) + (i & 1)];
        }
    });
}

template <class T>
struct ShuffleOperand {
    T in, out;
    unsigned from;
};
template <class T>
T shuffle(uint32_t mask, T value, unsigned from) {
    ShuffleOperand<T> operand{value, value, from % 32};
    together(mask, &operand, "shuffle", [](const Gathering& lanes, const void*) {
        for (unsigned l = 0; l < 32; l++) {
            if (!(lanes.mask >> l & 1)) continue;
            auto& o = *static_cast<ShuffleOperand<T>*>(lanes.operand[l]);
            if (!(lanes.mask >> o.from & 1)) fail("shuffle: reads a lane that is not in the mask");
            o.out = static_cast<ShuffleOperand<T>*>(lanes.operand[o.from])->in;
        }
    });
    return operand.out;
}

}  // namespace emulation

#define threadIdx (::emulation::self->index)
#define blockIdx (::emulation::block_index())
#define blockDim (::emulation::block_size())
#define gridDim (::emulation::grid_size())

inline void __syncthreads() { emulation::barrier(0, emulation::Vote::None); }
inline int __syncthreads_count(int vote) { return emulation::barrier(vote, emulation::Vote::Count); }
inline int __syncthreads_or(int vote) { return emulation::barrier(vote, emulation::Vote::Or); }
inline int __syncthreads_and(int vote) { return emulation::barrier(vote, emulation::Vote::And); }
inline void __syncwarp(unsigned mask = ~0u) {
    emulation::together(mask, nullptr, "__syncwarp", [](const emulation::Gathering&, const void*) {});
}
template <class T>
T __shfl_sync(unsigned mask, T value, unsigned from) {
    return emulation::shuffle(mask, value, from);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, unsigned flip) {
    return emulation::shuffle(mask, value, emulation::lane() ^ flip);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned by) {
    unsigned l = emulation::lane();
    return emulation::shuffle(mask, value, l < by ? l : l - by);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned by) {
    unsigned l = emulation::lane();
    return emulation::shuffle(mask, value, l + by > 31 ? l : l + by);
}
inline unsigned __ballot_sync(unsigned mask, int vote) {
    struct {
        unsigned vote, out;
    } operand{vote != 0, 0};
    using Operand = decltype(operand);
    emulation::together(mask, &operand, "__ballot_sync", [](const emulation::Gathering& lanes, const void*) {
        unsigned out = 0;
        for (unsigned l = 0; l < 32; l++)
            if (lanes.mask >> l & 1) out |= static_cast<Operand*>(lanes.operand[l])->vote << l;
        for (unsigned l = 0; l < 32; l++)
            if (lanes.mask >> l & 1) static_cast<Operand*>(lanes.operand[l])->out = out;
    });
    return operand.out;
}

inline unsigned atomicAdd(unsigned* p, unsigned x) { return __atomic_fetch_add(p, x, __ATOMIC_ACQ_REL); }
inline unsigned atomicExch(unsigned* p, unsigned x) { return __atomic_exchange_n(p, x, __ATOMIC_ACQ_REL); }
inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
// For a thread that waits for another thread block.
inline void __nanosleep(unsigned) { emulation::pause(); }

template <class T>
T __ldg(const T* p) {
    return *p;
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __float_as_uint(float x) {
    unsigned u;
    std::memcpy(&u, &x, 4);
    return u;
}
inline float __uint_as_float(unsigned u) {
    float x;
    std::memcpy(&x, &u, 4);
    return x;
}
inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
inline unsigned max(unsigned a, unsigned b) { return a < b ? b : a; }
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a < b ? b : a; }
