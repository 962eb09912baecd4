// A tile on tensor cores, from sm_80 on: operands come to shared memory asynchronously, some steps ahead.

#if HAS_TENSOR_CORES
namespace {

// Bytes of a row of an operand in shared memory, in chunks of 16. Chunks are permuted so that eight rows' chunks of one
// column lie in different banks.
constexpr u32 LINE = 64, CHUNKS = LINE / 16, STAGES = 4;

INLINE u32 place(u32 row, u32 chunk) { return row * LINE + (chunk ^ (row / 2 % CHUNKS)) * 16; }

// Rows × columns of the tile of a thread block, then of a warp; thread blocks that share a multiprocessor at least, which
// bounds the registers.
template <u32 BM_, u32 BN_, u32 WM_, u32 WN_, u32 BLOCKS_>
struct Shape {
    enum : u32 {
        BM = BM_,
        BN = BN_,
        WM = WM_,
        WN = WN_,
        WARPS = BM / WM * (BN / WN),
        THREADS = WARPS * 32,
        BLOCKS = BLOCKS_,
        STAGE = (BM + BN) * LINE,
        // Floats of a row that a warp turns from fragments to runs; the padding keeps rows in different banks.
        TURN = WN + 8,
        PIPELINE = STAGES * STAGE > WARPS * 16 * TURN * 4 ? STAGES * STAGE : WARPS * 16 * TURN * 4,
        SHARED = PIPELINE + sizeof(TileRows<BM>),
    };
};

// A warp of 64 × 64 reads a value from shared memory for every 32 products, one of 64 × 32 for every 21: where a tile is
// large enough, reading them takes less time than multiplying.
using Wide = Shape<128, 256, 64, 64, 1>;
using Large = Shape<128, 128, 64, 64, 2>;
using Tall = Shape<128, 64, 64, 32, 3>;
using Small = Shape<64, 64, 32, 32, 3>;
static_assert(Wide::SHARED == 100352 && Large::SHARED == 67584, "named in launch.rs");
static_assert(Tall::SHARED == 51200 && Small::SHARED == 33792, "named in launch.rs");

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
    find_columns(p, tile, my_row, ROW_STEP, right);
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
    if constexpr (has_parts<S::BM, S::BN>()) {
        if (!add_parts<MI * NI, S::THREADS>(p, tile, sum)) return;
    }
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

}  // namespace
#endif
