// A tile in plain f32, on every device.

namespace {

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
    find_columns(p, tile, my_row, ROW_STEP, right);
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
    if constexpr (has_parts<M, M>()) {
        if (!add_parts<4 * FOURS * FOURS, THREADS>(p, tile, sum)) return;
    }
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

}  // namespace
