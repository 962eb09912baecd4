#include "device.h"

// Lists are in ascending order whatever the order of threads: places come from prefix sums. A thread block lists one
// sample; where its list starts depends on the samples before, whose thread blocks say how much they have found. Thread
// blocks take samples by ticket, so that those it waits for have started before it.

namespace {

constexpr u32 THREADS = 512;
constexpr u32 KNOWN = 1u << 31;

// A map of bits in shared memory, pixel `i` being bit `i % 32` of word `i / 32`.
struct Bits {
    u32* words;
    // Bits set before each word.
    u32* before;
    u32 len;

    INLINE bool get(u32 pixel) const { return words[pixel / 32] >> (pixel % 32) & 1; }
    // Whether one of up to 32 neighbours is set.
    INLINE bool any(u32 first, u32 count) const {
        const u32 word = first / 32;
        u64 window = words[word];
        if (word + 1 < len) window |= u64(words[word + 1]) << 32;
        return (window >> (first % 32) & ((u64(1) << count) - 1)) != 0;
    }
};

// The outputs, of `outputs` along an axis, that read input `at`.
INLINE Range readers(u32 at, u32 kernel, u32 stride, u32 pad, u32 outputs) {
    const u32 first = at + pad + 1 > kernel ? divide_up(at + pad + 1 - kernel, stride) : 0;
    return {first, min((at + pad) / stride + 1, outputs)};
}

INLINE bool cell_of(const CompactRowsParams& p, const CompactLevel& map, u32 n, u32 pixel) {
    const u32 y = pixel / map.w, x = pixel % map.w;
    return p.keep[(u64(n) * p.grid_h + y * p.grid_h / map.h) * p.grid_w + x * p.grid_w / map.w] != 0;
}

// Squares of cells in which one of sample `n` is kept. A warp for each.
INLINE void find_squares(const CompactRowsParams& p, u32 n, u32* squares) {
    const u32 lane = threadIdx.x % 32, across = divide_up(p.grid_w, p.side);
    for (u32 square = threadIdx.x / 32; square < divide_up(p.grid_h, p.side) * across; square += THREADS / 32) {
        const u32 y0 = square / across * p.side, x0 = square % across * p.side;
        const u32 width = min(p.side, p.grid_w - x0), cells = min(p.side, p.grid_h - y0) * width;
        u32 any = 0;
        for (u32 i = lane; i < cells; i += 32) {
            any |= p.keep[(u64(n) * p.grid_h + y0 + i / width) * p.grid_w + x0 + i % width] != 0;
        }
        any = __ballot_sync(EVERY_LANE, any);
        if (lane == 0) squares[square] = any != 0;
    }
    __syncthreads();
}

INLINE bool square_of(const CompactRowsParams& p, const CompactLevel& map, const u32* squares, u32 pixel) {
    const u32 y = pixel / map.w * p.grid_h / map.h, x = pixel % map.w * p.grid_w / map.w;
    return squares[y / p.side * divide_up(p.grid_w, p.side) + x / p.side] != 0;
}

// Whether something active reads a pixel; `above` is the map behind the convolution.
INLINE bool is_read(const CompactLevel& map, const CompactLevel& above, const Bits& active, u32 pixel) {
    const Range ys = readers(pixel / map.w, map.kernel, map.stride, map.pad_top, above.h);
    const Range xs = readers(pixel % map.w, map.kernel, map.stride, map.pad_left, above.w);
    if (xs.first >= xs.end) return false;
    for (u32 y = ys.first; y < ys.end; y++) {
        for (u32 x = xs.first; x < xs.end; x += 32) {
            if (active.any(y * above.w + x, min(32u, xs.end - x))) return true;
        }
    }
    return false;
}

// Fills in the words of a map.
template <class Active>
INLINE void mark(const Bits& bits, u32 pixels, Active active) {
    const u32 lane = threadIdx.x % 32;
    for (u32 word = threadIdx.x / 32; word < bits.len; word += THREADS / 32) {
        const u32 pixel = word * 32 + lane;
        const u32 ballot = __ballot_sync(EVERY_LANE, pixel < pixels && active(pixel));
        if (lane == 0) bits.words[word] = ballot;
    }
    __syncthreads();
}

// Fills in the words of a map, then what is before each; returns the number of active pixels.
template <class Active>
INLINE u32 fill(const Bits& bits, u32 pixels, Active active) {
    mark(bits, pixels, active);
    const u32 each = divide_up(bits.len, THREADS), first = min(threadIdx.x * each, bits.len);
    const u32 end = min(first + each, bits.len);
    u32 count = 0;
    for (u32 word = first; word < end; word++) count += u32(__popc(bits.words[word]));
    Scan scan = block_scan<THREADS>(count);
    for (u32 word = first; word < end; word++) {
        bits.before[word] = scan.before;
        scan.before += u32(__popc(bits.words[word]));
    }
    __syncthreads();
    return scan.all;
}

INLINE void list(const CompactLevel& map, const Bits& bits, u32 n, u32 batch, u32 base, u32 count) {
    const u32 pixels = map.h * map.w, first = n * pixels;
    for (u32 pixel = threadIdx.x; pixel < pixels; pixel += THREADS) {
        const u32 before = bits.before[pixel / 32] +
                           u32(__popc(bits.words[pixel / 32] & ((1u << (pixel % 32)) - 1)));
        if (bits.get(pixel)) {
            if (map.index) map.index[base + before] = first + pixel;
        } else if (map.other_index) {
            map.other_index[first - base + pixel - before] = first + pixel;
        }
    }
    if (threadIdx.x == 0) {
        if (map.start) map.start[n] = base;
        if (map.other_start) map.other_start[n] = first - base;
        if (n + 1 == batch) {
            if (map.start) map.start[batch] = base + count;
            if (map.other_start) map.other_start[batch] = batch * pixels - base - count;
        }
    }
}

// Grid: samples.
INLINE void compact_rows(const CompactRowsParams& p) {
    DYNAMIC_SHARED(shared);
    SHARED(u32, ticket, 1);
    if (threadIdx.x == 0) ticket[0] = atomicAdd(p.state, 1u);
    __syncthreads();
    const u32 n = ticket[0];
    u32* known = p.state + 2;

    u32 kept = 0;
    for (u32 i = threadIdx.x; i < p.batch * p.grid_h * p.grid_w; i += THREADS) kept += p.keep[i] != 0;
    kept = block_sum<THREADS>(kept);
    if (p.kept && n == 0 && threadIdx.x == 0) *p.kept = kept;

    Bits bits[MAX_LEVELS];
    u32 count[MAX_LEVELS];
    u32* memory = reinterpret_cast<u32*>(shared);
    // What the second level grows from: the first, or the squares that it touches.
    Bits grown{};
    u32* squares = nullptr;
    if (p.side > 1) {
        grown = {memory, nullptr, divide_up(p.level[0].h * p.level[0].w, 32)};
        squares = memory + grown.len;
        memory = squares + divide_up(p.grid_h, p.side) * divide_up(p.grid_w, p.side);
    }
#pragma unroll
    for (u32 i = 0; i < MAX_LEVELS; i++) {
        if (i >= p.levels) break;
        const CompactLevel& map = p.level[i];
        const u32 pixels = map.h * map.w, words = divide_up(pixels, 32);
        bits[i] = {memory, memory + words, words};
        memory += 2 * words;
        const bool full = map.full && kept > p.full_above;
        count[i] = fill(bits[i], pixels, [&](u32 pixel) {
            if (full) return true;
            const u32 above = i > 0 ? i - 1 : 0;
            return i > 0 ? is_read(map, p.level[above], i > 1 ? bits[above] : grown, pixel) : cell_of(p, map, n, pixel);
        });
        if (threadIdx.x == 0) atomicExch(known + i * p.batch + n, count[i] | KNOWN);
        if (i > 0) continue;
        if (!squares) {
            grown = bits[0];
        } else {
            find_squares(p, n, squares);
            mark(grown, pixels, [&](u32 pixel) { return square_of(p, map, squares, pixel); });
        }
    }
#pragma unroll
    for (u32 i = 0; i < MAX_LEVELS; i++) {
        if (i >= p.levels) break;
        u32 base = 0;
        for (u32 m = threadIdx.x; m < n; m += THREADS) {
            u32 word = load_volatile(known + i * p.batch + m);
            while (!(word & KNOWN)) {
                __nanosleep(40);
                word = load_volatile(known + i * p.batch + m);
            }
            base += word & ~KNOWN;
        }
        base = block_sum<THREADS>(base);
        list(p.level[i], bits[i], n, p.batch, base, count[i]);
    }
    // Nobody reads the words any more when the last has come.
    if (last_to_arrive(p.state + 1, p.batch)) {
        if (threadIdx.x == 0) p.state[0] = 0;
        for (u32 i = threadIdx.x; i < p.batch * p.levels; i += THREADS) known[i] = 0;
    }
}

constexpr u32 CHANNEL_THREADS = 256;

// Grid: samples.
INLINE void compact_channels(const CompactChannelsParams& p) {
    const u32 n = blockIdx.x;
    const u8* keep = p.keep + u64(n) * p.groups;
    u32* index = p.index + u64(n) * p.groups * p.group;
    const u32 each = divide_up(p.groups, CHANNEL_THREADS), first = min(threadIdx.x * each, p.groups);
    const u32 end = min(first + each, p.groups);
    u32 count = 0;
    for (u32 g = first; g < end; g++) count += keep[g] != 0;
    const Scan scan = block_scan<CHANNEL_THREADS>(count);
    u32 at = scan.before * p.group;
    for (u32 g = first; g < end; g++) {
        if (!keep[g]) continue;
        for (u32 c = 0; c < p.group; c++) index[at++] = g * p.group + c;
    }
    if (threadIdx.x == 0) p.count[n] = scan.all * p.group;
}

}  // namespace

extern "C" __global__ void __launch_bounds__(THREADS, 2) compact_rows_n_u32(const __grid_constant__ CompactRowsParams p) {
    compact_rows(p);
}
KERNEL(compact_rows_n_u32, CompactRowsParams, THREADS, 0)

extern "C" __global__ void __launch_bounds__(CHANNEL_THREADS)
    compact_channels_n_u32(const __grid_constant__ CompactChannelsParams p) {
    compact_channels(p);
}
KERNEL(compact_channels_n_u32, CompactChannelsParams, CHANNEL_THREADS, 0)
