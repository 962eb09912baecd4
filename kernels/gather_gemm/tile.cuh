// What every kernel of gather_gemm does around the products: which tiles there are, where their rows and columns lie, the steps
// of the sum, and what happens to a sum at the end.

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

// Where a thread's rows of weights start, in registers: those of every `step`-th column of a tile; ~0 behind its end.
template <u32 COLUMNS>
INLINE void find_columns(const GatherGemmParams& p, const Tile& tile, u32 first, u32 step, u32 (&starts)[COLUMNS]) {
#pragma unroll
    for (u32 i = 0; i < COLUMNS; i++) {
        const u32 column = tile.column0 + first + i * step;
        starts[i] = column < tile.column_end ? channel_of(p.c_out, tile.n, column) * p.weight_pitch : ~0u;
    }
}

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

// Whether sums of such tiles can be cut into parts. Larger ones have no registers for it, and are for calls that keep every
// multiprocessor busy without.
template <u32 BM, u32 BN>
INLINE constexpr bool has_parts() {
    return BM * BN <= 64 * 64;
}

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
#pragma unroll
        for (u32 j = 0; j < 4; j++) sum[i][j] = 0.f;
    }
    // Several under way.
#pragma unroll 2
    for (u32 part = 0; part < p.split; part++) {
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

}  // namespace
