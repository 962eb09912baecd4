//! What the predictor counts with of `gather_gemm` on CUDA is what is launched.

use laud::calibrate::cuda_facts;
use laud::exec::Prober;
use laud::kernels::cuda::Driver;
use laud::kernels::cuda::launch::{GemmMath, GemmTile};
use laud::predictor::learned::{gemm_thread_blocks, gemm_tile};
use laud::predictor::workload::{DType, Op, Workload};
use laud::predictor::{DeviceFacts, DeviceKind};

use crate::cuda_calibrate::{PRECISIONS, call, device, probe};

/// The tile that the predictor counts with is the one that is launched, in as many thread blocks.
#[test]
fn tiles_are_predicted_as_they_are_launched() {
    let large = Workload { rows: 512, runs: 16, in_w: 32, out_w: 32, ..call(Op::GatherGemm, 16, 16, 128) };
    let narrow = Workload { c_out: 64, c_out_active: 64.0, ..large };
    let listed = Workload { c_in_listed: true, c_in_active: 8.0, group_size: 8, ..large };
    let stem = Workload { in_h: 17, in_w: 17, kernel: 7, stride: 2, ..call(Op::GatherGemm, 6, 3, 8) };
    let grouped = Workload { groups: 4, kernel: 3, ..call(Op::GatherGemm, 6, 32, 32) };
    let deep = Workload { kernel: 3, ..call(Op::GatherGemm, 6, 64, 64) };
    let calls = [
        large,
        deep,
        Workload { kernel: 3, ..call(Op::GatherGemm, 12, 48, 64) },
        Workload { c_out: 256, c_out_active: 256.0, ..large },
        narrow,
        listed,
        stem,
        grouped,
        call(Op::GatherGemm, 6, 16, 24),
        call(Op::GatherGemm, 6, 12, 24),
        Workload { group_size: 4, c_in_active: 4.0, ..Workload { c_in_listed: true, ..grouped } },
    ];
    let device = device();
    let facts = cuda_facts(device.properties());
    facts.check().unwrap();
    assert_eq!(
        (facts.kind, facts.isa.as_str(), facts.cores, facts.tile_rows),
        (DeviceKind::Cuda, "sm_90", 4, 128)
    );
    let mut seen = std::collections::BTreeSet::new();
    for (precision, dtype) in PRECISIONS {
        let mut probe = probe(&device, precision);
        // One tile, whose sums every multiprocessor has a part of.
        assert_eq!(gemm_thread_blocks(&Workload { dtype, ..deep }, &facts), 4.0);
        for workload in calls {
            let workload = Workload { dtype, ..workload };
            let tile = gemm_tile(&workload, &facts);
            let math = match (tile.tensor_cores, dtype) {
                (false, _) => "simt",
                (true, DType::Tf32) => "tf32",
                (true, _) => "mma",
            };
            let storage = if dtype == DType::Tf32 { "f32" } else { dtype.name() };
            let kernel = format!("gather_gemm_nhwc_{storage}_{math}_{}x{}", tile.rows, tile.columns);
            probe.prepare(&[workload]).unwrap();
            probe.round(&mut [0]).unwrap();
            device.refuse(Some(&kernel));
            let outcome = probe.round(&mut [0]);
            device.refuse(None);
            let error = outcome.expect_err(&format!("{workload} in {precision} ran without {kernel}"));
            let most = f64::from(8 * facts.cores);
            let grid = format!("{kernel} in {}×1×1 thread", gemm_thread_blocks(&workload, &facts).min(most));
            assert!(format!("{error:#}").contains(&grid), "{error:#}, not {grid}");
            seen.insert(kernel);
        }
    }
    assert!(seen.len() >= 13, "{seen:?}");
}

/// As many thread blocks as the predictor counts with share a multiprocessor, going by what compilers say of registers.
#[test]
fn registers_are_there_for_the_thread_blocks_that_are_counted_with() {
    /// Of a multiprocessor, and what they are given out in.
    const REGISTERS: u32 = 65_536;
    const UNIT: u32 = 256;
    let facts = DeviceFacts::example_gpu("any");
    let call = |dtype, side, c| Workload { dtype, ..call(Op::GatherGemm, side, c, c) };
    let large = |dtype, c| call(dtype, 200, c);
    let calls = [
        large(DType::F16, 256),
        large(DType::F16, 128),
        large(DType::F16, 64),
        call(DType::F16, 7, 64),
        large(DType::F32, 128),
        large(DType::F32, 64),
    ];
    let table = include_str!("../kernels/cuda/resources.csv");
    let mut checked = 0;
    for tile in calls.map(|call| gemm_tile(&call, &facts)) {
        let (end, from) =
            (format!("_{}x{}", tile.rows, tile.columns), if tile.tensor_cores { 80 } else { 0 });
        let launched = GemmTile::ALL.iter().find(|known| {
            let tensor_cores = known.math != GemmMath::Simt;
            (tensor_cores, known.rows, known.columns) == (tile.tensor_cores, tile.rows, tile.columns)
        });
        let threads = launched.expect("the predictor knows no other tiles").threads;
        for line in table.lines().skip(1) {
            let columns: Vec<&str> = line.split(',').collect();
            let arch = columns[1].trim_end_matches('a').parse::<u32>().unwrap();
            let simt = columns[0].contains("_simt_");
            if !columns[0].starts_with("gather_gemm_nhwc") || !columns[0].ends_with(&end) || arch < from {
                continue;
            }
            if simt == tile.tensor_cores {
                continue;
            }
            let of_a_warp = (32 * columns[2].parse::<u32>().unwrap()).next_multiple_of(UNIT);
            let resident = REGISTERS / (of_a_warp * threads / 32);
            assert!(resident >= tile.resident, "{line}: {resident} thread blocks, not {}", tile.resident);
            checked += 1;
        }
    }
    // On tensor cores on seven architectures, otherwise on ten.
    assert_eq!(checked, 4 * 3 * 7 + 2 * 3 * 10);
}
