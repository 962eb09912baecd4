// The dialect that the kernels are written in: CUDA C++ that needs no header of a toolkit, and that compiles as host C++
// against `emulation/emulation.h`. The only file that knows which of the two it is.
#pragma once
#include "params.h"

// Element types. Arithmetic is in f32.
using f32 = float;
struct f16 {
    u16 bits;
};
struct bf16 {
    u16 bits;
};

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#define EMULATED 0
#ifdef __CUDA_ARCH__
#define DEVICE_ARCH __CUDA_ARCH__
#else
#define DEVICE_ARCH 0
#endif
// A kernel's name, threads of a thread block (0: any multiple of 32) and the dynamic shared memory it needs at least.
#define KERNEL(name, Params, threads, shared)
#define DYNAMIC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]
#define SHARED(T, name, count) __shared__ T name[count]
#else
#define EMULATED 1
#define DEVICE_ARCH 900
#include "emulation.h"
#define KERNEL(name, Params, threads, shared)                                                                       \
    static const bool registered_##name = ::emulation::add(#name, sizeof(Params), threads, shared,                  \
                                                           [](void** args) { name(*static_cast<Params*>(args[0])); });
#define DYNAMIC_SHARED(name) unsigned char* name = ::emulation::dynamic_shared()
#define SHARED(T, name, count)                                                                                      \
    static char name##_site;                                                                                        \
    auto& name = *static_cast<T(*)[count]>(::emulation::shared(&name##_site, sizeof(T) * (count)))
#endif

#define INLINE __device__ __forceinline__
// `mma.sync` on halves with an f32 sum, `cp.async`.
#define HAS_TENSOR_CORES (DEVICE_ARCH >= 800)

enum : u32 { EVERY_LANE = 0xffffffffu };

// ---- conversions ------------------------------------------------------------------------------------------------------

INLINE u32 bits_of(float x) { return __float_as_uint(x); }

INLINE float to_f32(float x) { return x; }
INLINE float to_f32(bf16 x) { return __uint_as_float(u32(x.bits) << 16); }
INLINE float to_f32(f16 x) {
#if EMULATED
    return emulation::f16_to_f32(x.bits);
#else
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
#endif
}

template <class T>
INLINE T from_f32(float x);
template <>
INLINE float from_f32<float>(float x) {
    return x;
}
template <>
INLINE f16 from_f32<f16>(float x) {
#if EMULATED
    return f16{emulation::f32_to_f16(x)};
#else
    f16 y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
#endif
}
template <>
INLINE bf16 from_f32<bf16>(float x) {
#if !EMULATED && DEVICE_ARCH >= 800
    bf16 y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
#else
    u32 u = bits_of(x);
    if ((u & 0x7fffffffu) > 0x7f800000u) return bf16{u16(u >> 16 | 0x40)};
    return bf16{u16((u + 0x7fffu + (u >> 16 & 1u)) >> 16)};
#endif
}

// Two values in a word, the first in the lower half.
template <class T>
INLINE u32 pack2(float first, float second) {
    return u32(from_f32<T>(first).bits) | u32(from_f32<T>(second).bits) << 16;
}
#if !EMULATED && DEVICE_ARCH >= 800
template <>
INLINE u32 pack2<f16>(float first, float second) {
    u32 y;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(second), "f"(first));
    return y;
}
template <>
INLINE u32 pack2<bf16>(float first, float second) {
    u32 y;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(second), "f"(first));
    return y;
}
#endif

// ---- vectors of 16 bytes ----------------------------------------------------------------------------------------------

template <class T>
struct Vec {
    enum : u32 { N = 16 / sizeof(T) };
};

// The two values of a word.
template <class T>
INLINE void unpack2(u32 word, float& first, float& second) {
    first = to_f32(T{u16(word)});
    second = to_f32(T{u16(word >> 16)});
}

template <class T>
INLINE void unpack(uint4 raw, float (&v)[Vec<T>::N]) {
    const u32 word[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        if constexpr (sizeof(T) == 4) {
            v[i] = __uint_as_float(word[i]);
        } else {
            unpack2<T>(word[i], v[2 * i], v[2 * i + 1]);
        }
    }
}

template <class T>
INLINE uint4 pack(const float (&v)[Vec<T>::N]) {
    if constexpr (sizeof(T) == 4) {
        return make_uint4(bits_of(v[0]), bits_of(v[1]), bits_of(v[2]), bits_of(v[3]));
    } else {
        return make_uint4(pack2<T>(v[0], v[1]), pack2<T>(v[2], v[3]), pack2<T>(v[4], v[5]), pack2<T>(v[6], v[7]));
    }
}

// `p` is aligned to 16 bytes.
template <class T>
INLINE void load_vec(const T* p, float (&v)[Vec<T>::N]) {
    unpack<T>(*reinterpret_cast<const uint4*>(p), v);
}
template <class T>
INLINE void store_vec(T* p, const float (&v)[Vec<T>::N]) {
    *reinterpret_cast<uint4*>(p) = pack<T>(v);
}

// Four elements, `p` aligned to as many.
template <class T>
INLINE void load_quad(const T* p, float (&v)[4]) {
    if constexpr (sizeof(T) == 4) {
        load_vec(p, v);
    } else {
        const uint2 raw = *reinterpret_cast<const uint2*>(p);
        unpack2<T>(raw.x, v[0], v[1]);
        unpack2<T>(raw.y, v[2], v[3]);
    }
}
template <class T>
INLINE void store_quad(T* p, const float (&v)[4]) {
    if constexpr (sizeof(T) == 4) {
        store_vec(p, v);
    } else {
        *reinterpret_cast<uint2*>(p) = make_uint2(pack2<T>(v[0], v[1]), pack2<T>(v[2], v[3]));
    }
}

// `N` neighbouring elements: one, or as many as 16 bytes hold of `T` or of something narrower, aligned to 16 bytes.
template <class T, u32 N>
INLINE void load_n(const T* p, float (&v)[N]) {
    if constexpr (N == 1) {
        v[0] = to_f32(*p);
    } else {
        constexpr u32 E = Vec<T>::N;
        float part[E];
#pragma unroll
        for (u32 i = 0; i < N; i += E) {
            load_vec(p + i, part);
#pragma unroll
            for (u32 e = 0; e < E; e++) v[i + e] = part[e];
        }
    }
}
template <class T, u32 N>
INLINE void store_n(T* p, const float (&v)[N]) {
    if constexpr (N == 1) {
        *p = from_f32<T>(v[0]);
    } else {
        store_vec(p, v);
    }
}

// What other thread blocks of this launch wrote: not from this multiprocessor's cache.
INLINE void load_fresh(const float* p, float (&v)[4]) {
#if EMULATED
    load_vec(p, v);
#else
    asm volatile("ld.global.cg.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(v[0]), "=f"(v[1]), "=f"(v[2]), "=f"(v[3])
                 : "l"(p)
                 : "memory");
#endif
}

INLINE float load_fresh(const float* p) {
#if EMULATED
    return *p;
#else
    float x;
    asm volatile("ld.global.cg.f32 %0, [%1];" : "=f"(x) : "l"(p) : "memory");
    return x;
#endif
}

// What another thread block writes meanwhile.
INLINE u32 load_volatile(const u32* p) {
#if EMULATED
    return __atomic_load_n(p, __ATOMIC_RELAXED);
#else
    return *static_cast<const volatile u32*>(p);
#endif
}

INLINE bool aligned16(const void* p) { return (u64(p) & 15) == 0; }

// ---- asynchronous copies, matrices in registers -----------------------------------------------------------------------

#if !EMULATED
INLINE u32 shared_address(const void* p) {
    u32 a;
    asm("{ .reg .u64 t; cvta.to.shared.u64 t, %1; cvt.u32.u64 %0, t; }" : "=r"(a) : "l"(p));
    return a;
}
#endif

#if HAS_TENSOR_CORES || EMULATED
// Copies `valid` bytes of 16 to shared memory and zeroes the others; nothing is read where `valid` is 0.
INLINE void copy_async(void* to, const void* from, u32 valid) {
#if EMULATED
    emulation::copy_async(to, from, valid);
#else
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(valid)
                 : "memory");
#endif
}
// Ends a group of copies.
INLINE void copy_commit() {
#if EMULATED
    emulation::copy_commit();
#else
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// Waits until at most the `LEFT` latest groups of this thread are under way.
template <u32 LEFT>
INLINE void copy_wait() {
#if EMULATED
    emulation::copy_wait(LEFT);
#else
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
#endif
}

// Four 8×8 matrices of 16-bit values (8×4 of 32 bits). Lane `l` names 16 bytes: row `l % 8` of matrix `l / 8`. Lane
// `4·g + t` gets the `t`-th word of row `g` of each.
INLINE void load_matrices(u32 (&m)[4], const void* row) {
#if EMULATED
    emulation::load_matrices(m, row);
#else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
                 : "r"(shared_address(row))
                 : "memory");
#endif
}

// `d += a · b` on 16 rows × 8 columns, with 32 bytes of each row of `a` and each column of `b`: 16 halves or 8 tf32.
// Lane `4·g + t` holds, in words: `a` of rows g and g + 8, word t, then word t + 4; `b` of column g, words t and t + 4;
// `d` of rows g and g + 8, columns 2·t and 2·t + 1.
template <class T>
INLINE void mma(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]);
#if EMULATED
template <>
inline void mma<f16>(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    emulation::mma<2>(d, a, b, [](u32 word, u32 i) { return emulation::f16_to_f32(u16(word >> (16 * i))); });
}
template <>
inline void mma<bf16>(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    emulation::mma<2>(d, a, b, [](u32 word, u32 i) { return to_f32(bf16{u16(word >> (16 * i))}); });
}
template <>
inline void mma<float>(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    // The tensor core reads the sign, 8 bits of exponent and 10 of mantissa.
    emulation::mma<1>(d, a, b, [](u32 word, u32) { return __uint_as_float(word & 0xffffe000u); });
}
// To the nearest tf32, ties away from zero.
INLINE u32 to_tf32(u32 x) { return (x & 0x7f800000u) == 0x7f800000u ? x : (x + 0x1000u) & 0xffffe000u; }
#else
#define MMA(T, shape, types)                                                                                        \
    template <>                                                                                                     \
    INLINE void mma<T>(float(&d)[4], const u32(&a)[4], const u32(&b)[2]) {                                          \
        asm volatile("mma.sync.aligned." shape ".row.col.f32." types                                                \
                     ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                         \
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                               \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                           \
    }
MMA(f16, "m16n8k16", "f16.f16")
MMA(bf16, "m16n8k16", "bf16.bf16")
MMA(float, "m16n8k8", "tf32.tf32")
#undef MMA
INLINE u32 to_tf32(u32 x) {
    u32 y;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(__uint_as_float(x)));
    return y;
}
#endif
#endif

// ---- active sets ------------------------------------------------------------------------------------------------------

INLINE u32 read(const u32* p) { return __ldg(p); }
INLINE float read(const float* p) { return __ldg(p); }

struct Range {
    u32 first, end;
    INLINE u32 len() const { return end - first; }
};

INLINE u32 row_count(const Rows& rows) { return rows.index ? read(rows.start + rows.batch) : rows.batch * rows.pixels; }
INLINE Range rows_of(const Rows& rows, u32 n) {
    if (!rows.index) return {n * rows.pixels, (n + 1) * rows.pixels};
    return {read(rows.start + n), read(rows.start + n + 1)};
}
INLINE u32 pixel_of(const Rows& rows, u32 i) { return rows.index ? read(rows.index + i) : i; }

INLINE u32 channel_count(const Channels& channels, u32 n) {
    return channels.index ? read(channels.count + n) : channels.total;
}
// Channel `j` of sample `n`.
INLINE u32 channel_of(const Channels& channels, u32 n, u32 j) {
    return channels.index ? read(channels.index + u64(n) * channels.total + j) : j;
}
// First position of sample `n` whose channel is not below `bound`.
INLINE u32 channels_below(const Channels& channels, u32 n, u32 bound) {
    if (!channels.index) return bound;
    const u32* list = channels.index + u64(n) * channels.total;
    u32 first = 0, end = read(channels.count + n);
    while (first < end) {
        u32 middle = (first + end) / 2;
        if (read(list + middle) < bound) {
            first = middle + 1;
        } else {
            end = middle;
        }
    }
    return first;
}

// ---- arithmetic -------------------------------------------------------------------------------------------------------

INLINE u32 divide_up(u32 a, u32 b) { return (a + b - 1) / b; }

INLINE float multiply_add(float a, float b, float c) {
#if EMULATED
    // Not every host has the instruction.
    return a * b + c;
#else
    return fmaf(a, b, c);
#endif
}

// Rounded before anything is added.
INLINE float multiply(float a, float b) {
#if EMULATED
    return a * b;
#else
    return __fmul_rn(a, b);
#endif
}

// NaN stays NaN.
INLINE float activate(u32 act, float x) {
    if (act == ACT_RELU) return x < 0.f ? 0.f : x;
    if (act == ACT_RELU6) return x < 0.f ? 0.f : x > 6.f ? 6.f : x;
    if (act == ACT_SIGMOID) return 1.f / (1.f + expf(-x));
    return x;
}

// The sum over the lanes of a warp, the same bits in each.
INLINE float warp_sum(float x) {
#pragma unroll
    for (u32 d = 16; d > 0; d /= 2) x += __shfl_xor_sync(EVERY_LANE, x, d);
    return x;
}

// The sum over the thread block, the same in every thread.
template <u32 THREADS, class T>
INLINE T block_sum(T x) {
    SHARED(T, sums, THREADS / 32);
#pragma unroll
    for (u32 d = 16; d > 0; d /= 2) x += __shfl_xor_sync(EVERY_LANE, x, d);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = x;
    __syncthreads();
    T sum = 0;
    for (u32 i = 0; i < THREADS / 32; i++) sum += sums[i];
    __syncthreads();
    return sum;
}

// The sum over the threads before this one, and over all.
struct Scan {
    u32 before, all;
};
template <u32 THREADS>
INLINE Scan block_scan(u32 x) {
    SHARED(u32, sums, THREADS / 32);
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    u32 upto = x;
#pragma unroll
    for (u32 d = 1; d < 32; d *= 2) {
        const u32 other = __shfl_up_sync(EVERY_LANE, upto, d);
        if (lane >= d) upto += other;
    }
    if (lane == 31) sums[warp] = upto;
    __syncthreads();
    Scan scan{upto - x, 0};
    for (u32 i = 0; i < THREADS / 32; i++) {
        if (i < warp) scan.before += sums[i];
        scan.all += sums[i];
    }
    __syncthreads();
    return scan;
}

// Waits for the thread block, then says in every thread whether this is the last of `of` thread blocks that come to
// `*arrived`, which is zero again then. What the others wrote before is visible to the last.
INLINE bool last_to_arrive(u32* arrived, u32 of) {
    SHARED(u32, last, 1);
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        last[0] = atomicAdd(arrived, 1u) + 1 == of;
        if (last[0]) *arrived = 0;
    }
    __syncthreads();
    bool yes = last[0];
    if (yes) __threadfence();
    __syncthreads();
    return yes;
}
