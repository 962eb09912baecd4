#include "device.h"

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

// What a thread block computes.
struct Tile {
    u32 n;
    u32 row0, row_end;
    // Positions of the output channels, absolute; the first of this tile and the end of its group.
    u32 column0, column_end;
    // Position of the group's first active input channel, and how many there are.
    u32 input0, inputs;
    // The group's first input channel.
    u32 first;
    u32 part;
    // Number of the tile among all there could be.
    u32 slot;
};

// Describes part `i` of the work; false behind the last.
template <u32 BM, u32 BN>
INLINE bool describe(const GatherGemmParams& p, u32 i, Tile& tile) {
    const bool per_sample = p.c_in.index || p.c_out.index;
    const u32 n = blockIdx.z;
    const Range rows = per_sample ? rows_of(p.rows, n) : Range{0, row_count(p.rows)};
    const u32 per_group = divide_up(p.group_out, BN), columns = p.groups * per_group;
    if (i >= divide_up(rows.len(), BM) * columns * p.split) return false;
    const u32 number = i / p.split, column = number % columns, group = column / per_group;
    tile.n = n;
    tile.part = i % p.split;
    tile.slot = n * divide_up(p.rows.pixels, BM) * columns + number;
    tile.row0 = rows.first + number / columns * BM;
    tile.row_end = rows.end;
    tile.column0 = channels_below(p.c_out, n, group * p.group_out) + column % per_group * BN;
    tile.column_end = channels_below(p.c_out, n, (group + 1) * p.group_out);
    tile.first = group * p.group_in;
    tile.input0 = channels_below(p.c_in, n, tile.first);
    tile.inputs = channels_below(p.c_in, n, tile.first + p.group_in) - tile.input0;
    return true;
}

// The tile is in shared memory: registers are for sums.
template <u32 BM, u32 BN, class Compute>
INLINE void for_each_tile(const GatherGemmParams& p, Compute compute) {
    SHARED(Tile, tile, 1);
    SHARED(u32, more, 1);
    for (u32 i = blockIdx.x;; i += gridDim.x) {
        if (threadIdx.x == 0) more[0] = describe<BM, BN>(p, i, tile[0]);
        __syncthreads();
        if (!more[0]) break;
        if (tile[0].column0 < tile[0].column_end) compute(tile[0]);
        __syncthreads();
    }
}

// ---- rows -------------------------------------------------------------------------------------------------------------

// Where there is no row: no tap is inside.
constexpr i32 NO_ROW = -(1 << 14);

// Two coordinates in a register.
INLINE u32 pair(i32 y, i32 x) { return u32(y) << 16 | (u32(x) & 0xffffu); }
INLINE i32 y_of(u32 yx) { return i32(yx) >> 16; }
INLINE i32 x_of(u32 yx) { return i32(yx << 16) >> 16; }

// The rows of a tile, in shared memory.
template <u32 BM>
struct TileRows {
    // Input pixel of tap (0, 0), counted over the batch; with compact input rows the row. May lie outside.
    i32 pixel[BM];
    // Its coordinates, a pair; `y` is NO_ROW where there is no row.
    u32 yx[BM];
    // Row of the output.
    u32 at[BM];
    // Where the row's biases start.
    u32 bias[BM];
};

// Number of the set of taps of output coordinate `at` that lie inside along one axis.
INLINE u32 cut(u32 at, u32 stride, u32 pad, u32 kernel, u32 input, u32 after_most) {
    const i32 first = i32(at * stride) - i32(pad);
    const u32 before = u32(max(-first, 0)), after = u32(max(first + i32(kernel) - i32(input), 0));
    return before * (after_most + 1) + after;
}

INLINE u32 border_class(const Window& w, u32 y, u32 x) {
    const u32 after_h = u32(max(i32((w.out_h - 1) * w.stride + w.kernel_h) - i32(w.in_h + w.pad_top), 0));
    const u32 after_w = u32(max(i32((w.out_w - 1) * w.stride + w.kernel_w) - i32(w.in_w + w.pad_left), 0));
    const u32 row = cut(y, w.stride, w.pad_top, w.kernel_h, w.in_h, after_h);
    const u32 column = cut(x, w.stride, w.pad_left, w.kernel_w, w.in_w, after_w);
    return row * ((w.pad_left + 1) * (after_w + 1)) + column;
}

template <u32 BM, u32 THREADS>
INLINE void find_rows(const GatherGemmParams& p, const Tile& tile, TileRows<BM>& rows) {
    const Window& w = p.window;
    for (u32 r = threadIdx.x; r < BM; r += THREADS) {
        const u32 i = tile.row0 + r;
        if (i >= tile.row_end) {
            rows.yx[r] = pair(NO_ROW, 0);
            rows.pixel[r] = 0;
            rows.at[r] = rows.bias[r] = 0;
            continue;
        }
        const u32 pixel = pixel_of(p.rows, i), n = pixel / p.rows.pixels, in_map = pixel % p.rows.pixels;
        const u32 y = in_map / w.out_w, x = in_map % w.out_w;
        if (p.input_rows == COMPACT) {
            rows.pixel[r] = i32(i);
            rows.yx[r] = 0;
        } else {
            const i32 iy = i32(y * w.stride) - i32(w.pad_top), ix = i32(x * w.stride) - i32(w.pad_left);
            rows.pixel[r] = (i32(n * w.in_h) + iy) * i32(w.in_w) + ix;
            rows.yx[r] = pair(iy, ix);
        }
        rows.at[r] = p.output_rows == COMPACT ? i : pixel;
        rows.bias[r] = p.bias_pitch ? border_class(w, y, x) * p.bias_pitch : 0;
    }
}

// ---- the sum ----------------------------------------------------------------------------------------------------------

// A place in the sum: `N` neighbouring input channels of a tap.
template <u32 N>
struct Cursor {
    u32 r, s, chunk;

    INLINE static u32 chunks(const Tile& tile) { return divide_up(tile.inputs, N); }
    INLINE void start(const GatherGemmParams& p, const Tile& tile, u32 at) {
        const u32 tap = chunks(tile) ? at / chunks(tile) : 0;
        chunk = chunks(tile) ? at % chunks(tile) : 0;
        r = tap / p.window.kernel_w;
        s = tap % p.window.kernel_w;
    }
    INLINE void advance(const GatherGemmParams& p, const Tile& tile, u32 by) {
        chunk += by;
        while (chunk >= chunks(tile) && r < p.window.kernel_h) {
            chunk -= chunks(tile);
            if (++s == p.window.kernel_w) {
                s = 0;
                r++;
            }
        }
    }
    // Channels from here on in this tap, at most N; 0 behind the end.
    INLINE u32 len(const GatherGemmParams& p, const Tile& tile) const {
        return r < p.window.kernel_h && tile.inputs ? min(N, tile.inputs - chunk * N) : 0;
    }
    // Element of a row of weights that belongs to the tap's first channel.
    INLINE u32 weight(const GatherGemmParams& p) const { return (r * p.window.kernel_w + s) * p.group_in; }
};

// The steps of `STEP` chunks that a part of the sum takes.
template <u32 N, u32 STEP>
INLINE Range steps_of(const GatherGemmParams& p, const Tile& tile) {
    const u32 all = divide_up(p.window.kernel_h * p.window.kernel_w * divide_up(tile.inputs, N), STEP);
    const u32 each = divide_up(all, p.split), first = min(tile.part * each, all);
    return {first, min(first + each, all)};
}

// Where a thread's rows of the left operand are, in registers.
template <u32 ROWS>
struct LeftRows {
    i32 pixel[ROWS];
    u32 yx[ROWS];

    template <u32 BM>
    INLINE void read_from(const TileRows<BM>& rows, u32 first, u32 step) {
#pragma unroll
        for (u32 i = 0; i < ROWS; i++) {
            pixel[i] = rows.pixel[first + i * step];
            yx[i] = rows.yx[first + i * step];
        }
    }
    // Whether the tap of row `i` lies inside.
    template <u32 N>
    INLINE bool inside(const GatherGemmParams& p, const Cursor<N>& at, u32 i) const {
        if (p.input_rows == COMPACT) return y_of(yx[i]) >= 0;
        return u32(y_of(yx[i]) + i32(at.r)) < p.window.in_h && u32(x_of(yx[i]) + i32(at.s)) < p.window.in_w;
    }
    // Element of the input at which the tap's channels start.
    template <u32 N>
    INLINE i64 offset(const GatherGemmParams& p, const Tile& tile, const Cursor<N>& at, u32 i) const {
        const bool compact = p.input_rows == COMPACT;
        const i32 step = compact ? 0 : i32(at.r * p.window.in_w + at.s);
        const u32 channel = tile.input0 + at.chunk * N + (compact ? at.weight(p) : 0);
        return i64(pixel[i] + step) * i64(p.input_pitch) + i64(channel);
    }
};

// Whether `N` active input channels from a multiple of N on are neighbours among all channels.
template <u32 N>
INLINE bool inputs_in_runs(const GatherGemmParams& p) {
    return !p.c_in.index || p.c_in.group % N == 0;
}

// Places in a row of weights of the channels at a cursor.
template <u32 N>
INLINE u32 weight_of(const GatherGemmParams& p, const Tile& tile, const Cursor<N>& at, u32 i) {
    return at.weight(p) + channel_of(p.c_in, tile.n, tile.input0 + at.chunk * N + i) - tile.first;
}

// ---- the end ----------------------------------------------------------------------------------------------------------

// Bias, residual, activation and constant on `N` neighbouring columns of a row, and out.
template <class T, u32 N>
struct Epilogue {
    const GatherGemmParams& p;
    const Tile& tile;
    u32 column, len;
    // Whole, and aligned to `N` elements.
    bool whole;

    INLINE Epilogue(const GatherGemmParams& p, const Tile& tile, u32 column) : p(p), tile(tile), column(column) {
        len = column < tile.column_end ? min(N, tile.column_end - column) : 0;
        whole = len == N && column % N == 0 && p.output_pitch % N == 0 && aligned16(p.output);
    }

    // `bias_at`: where the row's biases start.
    INLINE void store(u32 at, u32 bias_at, const float (&z)[N]) {
        if (len == 0) return;
        T* output = static_cast<T*>(p.output) + u64(at) * p.output_pitch + column;
        float v[N];
        add(z, p.bias + bias_at, 1.f, v);
        if (p.residual) {
            float before[N];
            if (whole) {
                load_run(output, before);
            } else {
#pragma unroll
                for (u32 j = 0; j < N; j++) before[j] = j < len ? to_f32(output[j]) : 0.f;
            }
#pragma unroll
            for (u32 j = 0; j < N; j++) v[j] += before[j];
        }
#pragma unroll
        for (u32 j = 0; j < N; j++) v[j] = activate(p.act, v[j]);
        if (p.output_constant) add(v, p.output_constant, -1.f, v);
        if (whole) {
            store_run(output, v);
        } else {
#pragma unroll
            for (u32 j = 0; j < N; j++) {
                if (j < len) output[j] = from_f32<T>(v[j]);
            }
        }
    }

private:
    // `v = z + sign · values` of these columns' channels.
    INLINE void add(const float (&z)[N], const float* values, float sign, float (&v)[N]) const {
        const bool runs = len == N && (!p.c_out.index || (p.c_out.group % N == 0 && column % N == 0));
        const float* run = values + channel_of(p.c_out, tile.n, column);
        if (runs && aligned16(run)) {
#pragma unroll
            for (u32 i = 0; i < N; i += 4) {
                float four[4];
                load_vec(run + i, four);
#pragma unroll
                for (u32 j = 0; j < 4; j++) v[i + j] = z[i + j] + sign * four[j];
            }
        } else {
#pragma unroll
            for (u32 j = 0; j < N; j++) {
                v[j] = z[j];
                if (j < len) v[j] += sign * read(values + channel_of(p.c_out, tile.n, column + j));
            }
        }
    }
    INLINE static void load_run(const T* from, float (&v)[N]) {
        if constexpr (N == Vec<T>::N) {
            load_vec(from, v);
        } else {
            load_quad(from, v);
        }
    }
    INLINE static void store_run(T* to, const float (&v)[N]) {
        if constexpr (N == Vec<T>::N) {
            store_vec(to, v);
        } else {
            store_quad(to, v);
        }
    }
};

// Adds up the parts of a tile, in order, in the thread block that is done last; false in the others. `sum` is `COUNT`
// groups of four values of each thread.
template <u32 COUNT, u32 THREADS>
INLINE bool add_parts(const GatherGemmParams& p, const Tile& tile, float (&sum)[COUNT][4]) {
    if (p.split == 1) return true;
    float* parts = p.partial + u64(tile.slot) * p.split * (COUNT * THREADS * 4) + threadIdx.x * 4;
#pragma unroll
    for (u32 i = 0; i < COUNT; i++) {
        store_vec(parts + (u64(tile.part) * COUNT + i) * THREADS * 4, sum[i]);
    }
    if (!last_to_arrive(p.arrived + tile.slot, p.split)) return false;
#pragma unroll
    for (u32 i = 0; i < COUNT; i++) {
        load_fresh(parts + u64(i) * THREADS * 4, sum[i]);
    }
    for (u32 part = 1; part < p.split; part++) {
#pragma unroll
        for (u32 i = 0; i < COUNT; i++) {
            float v[4];
            load_fresh(parts + (u64(part) * COUNT + i) * THREADS * 4, v);
#pragma unroll
            for (u32 j = 0; j < 4; j++) sum[i][j] += v[j];
        }
    }
    return true;
}

// ---- on tensor cores --------------------------------------------------------------------------------------------------

#if HAS_TENSOR_CORES
// Bytes of a row of an operand in shared memory, in chunks of 16. Chunks are permuted so that eight rows' chunks of one
// column lie in different banks.
constexpr u32 LINE = 64, CHUNKS = LINE / 16, STAGES = 4;

INLINE u32 place(u32 row, u32 chunk) { return row * LINE + (chunk ^ (row / 2 % CHUNKS)) * 16; }

template <u32 BM_, u32 BN_, u32 WM_, u32 WN_>
struct Shape {
    enum : u32 {
        BM = BM_,
        BN = BN_,
        WM = WM_,
        WN = WN_,
        WARPS = BM / WM * (BN / WN),
        THREADS = WARPS * 32,
        // Thread blocks that share a multiprocessor at least: bounds the registers.
        BLOCKS = THREADS == 256 ? 1 : 3,
        STAGE = (BM + BN) * LINE,
        // Floats of a row that a warp turns from fragments to runs; the padding keeps rows in different banks.
        TURN = WN + 8,
        PIPELINE = STAGES * STAGE > WARPS * 16 * TURN * 4 ? STAGES * STAGE : WARPS * 16 * TURN * 4,
        SHARED = PIPELINE + sizeof(TileRows<BM>),
    };
};

// Rows × columns of the tile of a thread block, then of a warp.
using Large = Shape<128, 128, 64, 32>;
using Tall = Shape<128, 64, 64, 32>;
using Small = Shape<64, 64, 32, 32>;
static_assert(Large::SHARED == 67584 && Tall::SHARED == 51200 && Small::SHARED == 33792, "named in launch.rs");

// Four matrices of an operand, as the tensor core wants them.
template <class T>
INLINE void load_operand(u32 (&m)[4], const unsigned char* row) {
    load_matrices(m, row);
    if constexpr (sizeof(T) == 4) {
#pragma unroll
        for (u32 i = 0; i < 4; i++) m[i] = to_tf32(m[i]);
    }
}

template <class T, class S>
INLINE void compute_mma(const GatherGemmParams& p, const Tile& tile, unsigned char* shared) {
    constexpr u32 N = Vec<T>::N, LEFT = S::BM * CHUNKS / S::THREADS, RIGHT = S::BN * CHUNKS / S::THREADS;
    constexpr u32 ROW_STEP = S::THREADS / CHUNKS;
    constexpr u32 MI = S::WM / 16, NI = S::WN / 8;
    auto& rows = *reinterpret_cast<TileRows<S::BM>*>(shared + S::PIPELINE);
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const u32 warp_row = warp % (S::BM / S::WM) * S::WM, warp_column = warp / (S::BM / S::WM) * S::WN;
    // A thread copies the same chunk of every so many rows. Eight rows on, chunks are permuted the same.
    const u32 my_chunk = threadIdx.x % CHUNKS, my_row = threadIdx.x / CHUNKS, my_place = place(my_row, my_chunk);
    static_assert(ROW_STEP % 8 == 0, "the permutation repeats");

    find_rows<S::BM, S::THREADS>(p, tile, rows);
    __syncthreads();

    const T* input = static_cast<const T*>(p.input);
    const T* weight = static_cast<const T*>(p.weight);
    LeftRows<LEFT> left;
    left.read_from(rows, my_row, ROW_STEP);
    u32 right[RIGHT];
#pragma unroll
    for (u32 i = 0; i < RIGHT; i++) {
        const u32 column = tile.column0 + my_row + i * ROW_STEP;
        right[i] = column < tile.column_end ? channel_of(p.c_out, tile.n, column) * p.weight_pitch : ~0u;
    }
    const Range steps = steps_of<N, CHUNKS>(p, tile);
    const bool runs = inputs_in_runs<N>(p);
    Cursor<N> at;
    at.start(p, tile, steps.first * CHUNKS + my_chunk);

    auto copy = [&](u32 stage) {
        unsigned char* to = shared + stage * S::STAGE + my_place;
        const u32 len = at.len(p, tile);
#pragma unroll
        for (u32 i = 0; i < LEFT; i++) {
            const u32 valid = len && left.inside(p, at, i) ? len * u32(sizeof(T)) : 0;
            const T* from = valid ? input + left.offset(p, tile, at, i) : input;
            copy_async(to + i * ROW_STEP * LINE, from, valid);
        }
        to += S::BM * LINE;
        if (runs) {
            const u32 offset = len ? weight_of(p, tile, at, 0) : 0;
#pragma unroll
            for (u32 i = 0; i < RIGHT; i++) {
                const u32 valid = right[i] == ~0u ? 0 : len * u32(sizeof(T));
                const T* from = valid ? weight + right[i] + offset : weight;
                copy_async(to + i * ROW_STEP * LINE, from, valid);
            }
        } else {
            // Single channels: element by element.
#pragma unroll 1
            for (u32 j = 0; j < N; j++) {
                const u32 offset = j < len ? weight_of(p, tile, at, j) : 0;
#pragma unroll
                for (u32 i = 0; i < RIGHT; i++) {
                    T* line = reinterpret_cast<T*>(to + i * ROW_STEP * LINE);
                    line[j] = j < len && right[i] != ~0u ? weight[right[i] + offset] : from_f32<T>(0.f);
                }
            }
        }
        at.advance(p, tile, CHUNKS);
    };

    // Where this lane's rows of matrices lie in a stage.
    const u32 a_place = place(warp_row + lane % 16, lane / 16);
    const u32 b_place = S::BM * LINE + place(warp_column + lane / 16 * 8 + lane % 8, lane / 8 % 2);
    float sum[MI * NI][4] = {};
#pragma unroll 1
    for (u32 stage = 0; stage < STAGES - 1; stage++) {
        if (stage < steps.len()) copy(stage);
        copy_commit();
    }
#pragma unroll 1
    for (u32 step = 0; step < steps.len(); step++) {
        copy_wait<STAGES - 2>();
        __syncthreads();
        // Everyone is done with the stage before this one.
        if (step + STAGES - 1 < steps.len()) copy((step + STAGES - 1) % STAGES);
        copy_commit();
        const unsigned char* stage = shared + step % STAGES * S::STAGE;
#pragma unroll
        for (u32 k = 0; k < CHUNKS; k += 2) {
            // An even number of chunks on: the same place but for these bits.
            const unsigned char *a = stage + (a_place ^ k * 16), *b = stage + (b_place ^ k * 16);
            u32 mb[NI / 2][4];
#pragma unroll
            for (u32 j = 0; j < NI / 2; j++) load_operand<T>(mb[j], b + j * 16 * LINE);
#pragma unroll
            for (u32 i = 0; i < MI; i++) {
                u32 ma[4];
                load_operand<T>(ma, a + i * 16 * LINE);
#pragma unroll
                for (u32 j = 0; j < NI; j++) {
                    const u32 column[2] = {mb[j / 2][j % 2 * 2], mb[j / 2][j % 2 * 2 + 1]};
                    mma<T>(sum[i * NI + j], ma, column);
                }
            }
        }
    }
    copy_wait<0>();
    if (!add_parts<MI * NI, S::THREADS>(p, tile, sum)) return;
    __syncthreads();

    // Through shared memory, sixteen rows at a time, so that a row is written in runs.
    float* turn = reinterpret_cast<float*>(shared) + warp * 16 * S::TURN;
    constexpr u32 LANES = S::WN / N, AT_ONCE = 32 / LANES;
    Epilogue<T, N> end(p, tile, tile.column0 + warp_column + lane % LANES * N);
#pragma unroll
    for (u32 i = 0; i < MI; i++) {
#pragma unroll
        for (u32 j = 0; j < NI; j++) {
#pragma unroll
            for (u32 h = 0; h < 2; h++) {
                float* to = turn + (lane / 4 + 8 * h) * S::TURN + j * 8 + lane % 4 * 2;
                to[0] = sum[i * NI + j][2 * h];
                to[1] = sum[i * NI + j][2 * h + 1];
            }
        }
        __syncwarp();
#pragma unroll 1
        for (u32 r0 = 0; r0 < 16; r0 += AT_ONCE) {
            const u32 r = r0 + lane / LANES, row = warp_row + i * 16 + r;
            float z[N];
#pragma unroll
            for (u32 j = 0; j < N; j += 4) {
                load_vec(turn + r * S::TURN + lane % LANES * N + j, reinterpret_cast<float(&)[4]>(z[j]));
            }
            if (y_of(rows.yx[row]) != NO_ROW) end.store(rows.at[row], rows.bias[row], z);
        }
        __syncwarp();
    }
}

template <class T, class S>
INLINE void gather_gemm_mma(const GatherGemmParams& p) {
    DYNAMIC_SHARED(shared);
    for_each_tile<S::BM, S::BN>(p, [&](const Tile& tile) { compute_mma<T, S>(p, tile, shared); });
}

#endif

// ---- in plain f32 -----------------------------------------------------------------------------------------------------

// Sixteen terms of the sum at a time, in shared memory as `[term][row or column]`; 16 × 16 threads, each with `M / 16`
// rows and columns, in fours. The next terms are on their way while these are summed.
template <class T, u32 M>
INLINE void compute_simt(const GatherGemmParams& p, const Tile& tile, TileRows<M>& rows, float (&a)[16][M + 4],
                         float (&b)[16][M + 4]) {
    constexpr u32 THREADS = 256, N = 4, QUADS = 4, ROW_STEP = THREADS / QUADS, LOADS = M / ROW_STEP, FOURS = M / 64;
    const u32 my_quad = threadIdx.x % QUADS, my_row = threadIdx.x / QUADS;
    const u32 tx = threadIdx.x % 16, ty = threadIdx.x / 16;

    find_rows<M, THREADS>(p, tile, rows);
    __syncthreads();

    const T* input = static_cast<const T*>(p.input);
    const T* weight = static_cast<const T*>(p.weight);
    LeftRows<LOADS> left;
    left.read_from(rows, my_row, ROW_STEP);
    u32 right[LOADS];
#pragma unroll
    for (u32 i = 0; i < LOADS; i++) {
        const u32 column = tile.column0 + my_row + i * ROW_STEP;
        right[i] = column < tile.column_end ? channel_of(p.c_out, tile.n, column) * p.weight_pitch : ~0u;
    }
    const Range steps = steps_of<N, QUADS>(p, tile);
    const bool input_quads = p.input_pitch % N == 0 && tile.input0 % N == 0 && aligned16(p.input) &&
                             (p.input_rows != COMPACT || p.group_in % N == 0);
    const bool weight_quads = inputs_in_runs<N>(p) && p.weight_pitch % N == 0 && p.group_in % N == 0 &&
                              tile.input0 % N == 0 && aligned16(p.weight);
    Cursor<N> at;
    at.start(p, tile, steps.first * QUADS + my_quad);

    float next_a[LOADS][N], next_b[LOADS][N];
    auto load = [&] {
        const u32 len = at.len(p, tile);
        u32 offset[N];
#pragma unroll
        for (u32 j = 0; j < N; j++) offset[j] = j < len ? weight_of(p, tile, at, j) : 0;
#pragma unroll
        for (u32 i = 0; i < LOADS; i++) {
            const u32 valid = len && left.inside(p, at, i) ? len : 0;
            const T* from = valid ? input + left.offset(p, tile, at, i) : input;
            if (valid == N && input_quads) {
                load_quad(from, next_a[i]);
            } else {
#pragma unroll
                for (u32 j = 0; j < N; j++) next_a[i][j] = j < valid ? to_f32(from[j]) : 0.f;
            }
            const T* row = weight + (right[i] == ~0u ? 0 : right[i]);
            const u32 terms = right[i] == ~0u ? 0 : len;
            if (terms == N && weight_quads) {
                load_quad(row + offset[0], next_b[i]);
            } else {
#pragma unroll
                for (u32 j = 0; j < N; j++) next_b[i][j] = j < terms ? to_f32(row[offset[j]]) : 0.f;
            }
        }
        at.advance(p, tile, QUADS);
    };

    float sum[4 * FOURS * FOURS][4] = {};
    if (steps.len()) load();
    for (u32 step = 0; step < steps.len(); step++) {
#pragma unroll
        for (u32 i = 0; i < LOADS; i++) {
#pragma unroll
            for (u32 j = 0; j < N; j++) {
                a[my_quad * N + j][my_row + i * ROW_STEP] = next_a[i][j];
                b[my_quad * N + j][my_row + i * ROW_STEP] = next_b[i][j];
            }
        }
        __syncthreads();
        if (step + 1 < steps.len()) load();
#pragma unroll
        for (u32 k = 0; k < 16; k++) {
            float va[FOURS][4], vb[FOURS][4];
#pragma unroll
            for (u32 i = 0; i < FOURS; i++) {
                load_vec(&a[k][i * 64 + ty * 4], va[i]);
                load_vec(&b[k][i * 64 + tx * 4], vb[i]);
            }
#pragma unroll
            for (u32 i = 0; i < 4 * FOURS; i++) {
#pragma unroll
                for (u32 j = 0; j < FOURS; j++) {
#pragma unroll
                    for (u32 e = 0; e < 4; e++) {
                        sum[i * FOURS + j][e] = multiply_add(va[i / 4][i % 4], vb[j][e], sum[i * FOURS + j][e]);
                    }
                }
            }
        }
        __syncthreads();
    }
    if (!add_parts<4 * FOURS * FOURS, THREADS>(p, tile, sum)) return;
#pragma unroll
    for (u32 j = 0; j < FOURS; j++) {
        Epilogue<T, 4> end(p, tile, tile.column0 + j * 64 + tx * 4);
#pragma unroll
        for (u32 i = 0; i < 4 * FOURS; i++) {
            const u32 row = i / 4 * 64 + ty * 4 + i % 4;
            if (y_of(rows.yx[row]) != NO_ROW) end.store(rows.at[row], rows.bias[row], sum[i * FOURS + j]);
        }
    }
}

template <class T, u32 M>
INLINE void gather_gemm_simt(const GatherGemmParams& p) {
    SHARED(TileRows<M>, rows, 1);
    SHARED(float, a, 16 * (M + 4));
    SHARED(float, b, 16 * (M + 4));
    for_each_tile<M, M>(p, [&](const Tile& tile) {
        compute_simt<T, M>(p, tile, rows[0], reinterpret_cast<float(&)[16][M + 4]>(a),
                           reinterpret_cast<float(&)[16][M + 4]>(b));
    });
}

// ---- the gather alone -------------------------------------------------------------------------------------------------

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

KERNEL_MMA(f16, Large, gather_gemm_nhwc_f16_mma_128x128)
KERNEL_MMA(f16, Tall, gather_gemm_nhwc_f16_mma_128x64)
KERNEL_MMA(f16, Small, gather_gemm_nhwc_f16_mma_64x64)
KERNEL_MMA(bf16, Large, gather_gemm_nhwc_bf16_mma_128x128)
KERNEL_MMA(bf16, Tall, gather_gemm_nhwc_bf16_mma_128x64)
KERNEL_MMA(bf16, Small, gather_gemm_nhwc_bf16_mma_64x64)
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
