//! Calibrating a CUDA device, and planning for it: its kernels run on this machine. Times are made up where anything
//! depends on them.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use laud::calibrate::{
    Budget, Journal, Networks, Target, cuda_facts, device_facts, kernel_hash, load, measure, sweep,
};
use laud::evaluate::verify;
use laud::exec::{Around, Probe, Prober, Request};
use laud::gate::{Given, Pattern};
use laud::kernels::cuda::{Cuda, Driver, Precision};
use laud::kernels::{Backend, Cpu, Isa};
use laud::plan::{BlockDensity, CPU_MAP_BYTES, CUDA_MAP_BYTES, ExecutionPlan, Setting, search};
use laud::policy::{Subject, named};
use laud::predictor::DeviceKind;
use laud::predictor::learned::FitOptions;
use laud::predictor::measurements;
use laud::predictor::profile::{Header, Profile};
use laud::predictor::workload::{Cache, DType, Op, Route, Sample, Workload};
use laud::{Element, Output, RandomWeights, Session};
use laud_emulation::{EmulatedDevice, Emulator};
use laud_models::NetSpec;

use crate::cli::{fails, prints};
use crate::compare::distance;
use crate::oracle_cases::net;

pub(crate) const PRECISIONS: [(Precision, DType); 4] = [
    (Precision::F32, DType::F32),
    (Precision::Tf32, DType::Tf32),
    (Precision::F16, DType::F16),
    (Precision::Bf16, DType::Bf16),
];

pub(crate) fn device() -> EmulatedDevice {
    EmulatedDevice::new(Emulator { workers: 1, seed: 1 }, 4, 1 << 30)
}

pub(crate) fn probe(device: &EmulatedDevice, precision: Precision) -> Probe<Cuda> {
    Probe::new(Cuda::new(Arc::new(device.clone()), precision), Around::LEAST).unwrap()
}

pub(crate) fn call(op: Op, side: u32, c_in: u32, c_out: u32) -> Workload {
    Workload::new(op, side, side, c_in, c_out)
}

/// Calls of every kernel that is timed, and of `gather_gemm` in every way.
fn every_op() -> Vec<Workload> {
    let gemm = call(Op::GatherGemm, 6, 16, 24);
    let part = |w: Workload| Workload { rows: 10, runs: 7, route: Route::Implicit, ..w };
    let active = |w: Workload, c_in, c_out| Workload {
        c_in_listed: c_in,
        c_out_listed: c_out,
        c_in_active: if c_in { 8.0 } else { w.c_in.into() },
        c_out_active: if c_out { 16.0 } else { w.c_out.into() },
        group_size: 8,
        ..w
    };
    let strided = Workload { in_h: 12, in_w: 12, kernel: 3, stride: 2, ..gemm };
    let depthwise = Workload { kernel: 3, groups: 16, ..call(Op::Depthwise, 6, 16, 16) };
    let bordered = Workload { in_h: 8, in_w: 8, ..call(Op::FromNchw, 14, 3, 3) };
    vec![
        gemm,
        Workload { batch: 3, rows: 108, runs: 18, residual: true, ..gemm },
        Workload { cache: Cache::Cold, ..part(strided) },
        part(Workload { input_compact: true, output_compact: true, ..gemm }),
        active(gemm, true, false),
        active(gemm, true, true),
        Workload { groups: 2, ..Workload { kernel: 3, ..gemm } },
        Workload { in_h: 17, in_w: 17, kernel: 7, stride: 2, ..call(Op::GatherGemm, 6, 3, 8) },
        depthwise,
        part(depthwise),
        Workload { in_h: 12, in_w: 12, kernel: 3, stride: 2, ..call(Op::MaxPool, 6, 16, 16) },
        part(call(Op::MeanPool, 6, 16, 16)),
        active(call(Op::SqueezeExcite, 6, 16, 4), true, false),
        call(Op::PatchGate, 6, 16, 1),
        Workload { batch: 3, rows: 3, runs: 1, ..call(Op::Linear, 1, 20, 12) },
        Workload { in_h: 12, in_w: 12, stride: 2, ..call(Op::PadChannels, 6, 16, 32) },
        bordered,
        Workload { kernel: 3, ..part(call(Op::Compact, 6, 1, 1)) },
    ]
}

#[test]
fn every_kernel_is_timed_in_every_type() {
    let calls = every_op();
    let missing = [Op::ToNchw, Op::Overhead];
    assert!(Op::ALL.iter().all(|op| missing.contains(op) || calls.iter().any(|call| call.op == *op)));
    for (precision, dtype) in PRECISIONS {
        let device = device();
        let mut probe = probe(&device, precision);
        let calls: Vec<Workload> = calls.iter().map(|call| Workload { dtype, ..*call }).collect();
        let drawn = probe.prepare(&calls).unwrap();
        assert_eq!(drawn.len(), calls.len());
        drawn.iter().try_for_each(Workload::check).unwrap();
        let mut ns = vec![u64::MAX; calls.len()];
        for _ in 0..2 {
            let before = device.launches();
            probe.round(&mut ns).unwrap();
            // Cold, and again warm unless only cold is asked for.
            assert!(device.launches() - before >= 2 * calls.len() - 1, "{precision}");
        }
        assert!(ns.iter().all(|ns| *ns < u64::MAX), "{precision}: {ns:?}");
        assert!(probe.round(&mut ns[1..]).unwrap_err().to_string().contains("times for"));
        drop(probe);
        assert_eq!(device.allocations(), 0, "memory is given back");
    }
}

/// As far as they are small: emulation is slow.
#[test]
fn what_a_gpu_is_asked_about_can_be_run() {
    let calls = sweep(DeviceKind::Cuda, &[1], 3000, 5).unwrap();
    let values = |w: &Workload| w.batch * (w.in_h * w.in_w * w.c_in).max(w.out_h * w.out_w * w.c_out);
    let depth = |w: &Workload| w.c_in / w.groups * w.kernel * w.kernel;
    let is_small = |w: &Workload| w.macs() < 5e5 && values(w) < 1 << 15 && depth(w) < 300;
    let mut small: Vec<Workload> = Vec::new();
    for op in [
        Op::GatherGemm,
        Op::Depthwise,
        Op::SqueezeExcite,
        Op::MeanPool,
        Op::PatchGate,
        Op::Linear,
        Op::Compact,
    ] {
        let of: Vec<&Workload> = calls.iter().filter(|w| w.op == op && is_small(w)).collect();
        assert!(of.len() > 10, "{op}");
        small.extend(of.iter().step_by(of.len().div_ceil(20)).copied());
    }
    for (i, (precision, dtype)) in PRECISIONS.into_iter().enumerate() {
        let mut probe = probe(&device(), precision);
        let calls: Vec<Workload> =
            small.iter().skip(i).step_by(PRECISIONS.len()).map(|call| Workload { dtype, ..*call }).collect();
        for set in calls.chunks(24) {
            probe.prepare(set).unwrap();
            probe.round(&mut vec![0; set.len()]).unwrap();
        }
    }
}

#[test]
fn a_call_that_is_not_timed_is_named() {
    let error = probe(&device(), Precision::F32).prepare(&[call(Op::ToNchw, 6, 8, 8)]).unwrap_err();
    assert!(format!("{error:#}").contains("to_nchw is not timed by itself"), "{error:#}");
}

/// Runs every set of calls once, and tells times that are made up.
struct MadeUp(Probe<Cuda>, Vec<Workload>);

impl Prober for MadeUp {
    fn describe(&self) -> String {
        self.0.describe()
    }

    fn prepare(&mut self, workloads: &[Workload]) -> anyhow::Result<Vec<Workload>> {
        self.1 = self.0.prepare(workloads)?;
        self.0.round(&mut vec![0; workloads.len()])?;
        Ok(self.1.clone())
    }

    fn round(&mut self, ns: &mut [u64]) -> anyhow::Result<()> {
        ns.iter_mut().zip(&self.1).for_each(|(ns, workload)| *ns = made_up_ns(workload));
        Ok(())
    }
}

/// A launch, and what every row and multiply-accumulate takes.
fn made_up_ns(w: &Workload) -> u64 {
    2_000 + 10 * u64::from(w.rows) + (w.macs() / 20.0) as u64
}

/// Small calls of all kinds that [`small`] makes.
fn candidates() -> Vec<Workload> {
    let mut list = Vec::new();
    for (i, side) in [4, 6, 8].into_iter().enumerate() {
        for c in [8, 16, 24] {
            for kernel in [1, 3] {
                let dense = Workload { kernel, ..call(Op::GatherGemm, side, c, 32 - c) };
                let (rows, runs) = (side * side / 2, side);
                list.extend([dense, Workload { rows, runs, route: Route::Implicit, ..dense }]);
            }
        }
        let c = 8 * (1 + i as u32);
        list.extend([call(Op::PatchGate, side, c, 1), call(Op::MeanPool, side, c, c)]);
        list.extend([call(Op::Linear, 1, c, 10), call(Op::FromNchw, side, 3, 3)]);
        let (stride, in_h, in_w) = (2, 2 * side, 2 * side);
        list.push(Workload { stride, in_h, in_w, ..call(Op::PadChannels, side, c, 2 * c) });
        let (rows, runs, route) = (side, 2, Route::Implicit);
        list.push(Workload { rows, runs, route, ..call(Op::Compact, side, 1, 1) });
    }
    list
}

fn header(kind: DeviceKind) -> Header {
    Header {
        kernel_hash: kernel_hash(kind).into(),
        driver: "none".into(),
        commit: "none".into(),
        date: "2026-01-01".into(),
        command: "made up".into(),
        measurements: 0,
    }
}

/// A calibration of the emulated device in `folder`; the device, what was measured, and the profile's file.
fn calibrated(folder: &Path) -> (EmulatedDevice, Vec<Sample>, PathBuf) {
    let device = device();
    let facts = cuda_facts(device.properties());
    let mut probers: Vec<(u32, Box<dyn Prober>)> =
        vec![(1, Box::new(MadeUp(probe(&device, Precision::F32), Vec::new())))];
    let mut journal = Journal::open(&folder.join("journal.csv")).unwrap();
    let budget = Budget { time: Duration::from_secs(1), measurements: 48 };
    let mut steps = 0;
    let mut clock = || {
        steps += 1;
        Duration::from_millis(steps)
    };
    let candidates = candidates();
    let measured =
        measure(&mut probers, candidates, (&facts, 0), budget, &mut journal, &mut clock, &mut |_| Ok(()))
            .unwrap();
    assert_eq!((measured.samples.len(), measured.dropped.len(), measured.resumed), (48, 0, 0));
    let options = FitOptions::default();
    let profile = Profile::fit(&measured.samples, &facts, header(DeviceKind::Cuda), &options).unwrap();
    let file = folder.join("gpu.json");
    fs::write(&file, profile.to_json()).unwrap();
    (device, measured.samples, file)
}

/// A profile of the CPU, as far as anybody asks.
fn of_the_cpu(folder: &Path) -> PathBuf {
    let sample = |workload: Workload| Sample {
        workload,
        median_ns: made_up_ns(&workload) as f64,
        mad_ns: 0.0,
        repeats: 9,
    };
    let samples: Vec<Sample> = candidates().into_iter().map(sample).collect();
    let (facts, header) = (device_facts(Isa::detect(), Element::F32), header(DeviceKind::Cpu));
    let profile = Profile::fit(&samples, &facts, header, &FitOptions::default()).unwrap();
    let file = folder.join("cpu.json");
    fs::write(&file, profile.to_json()).unwrap();
    file
}

const SMALL: &str = r#"{"arch": "cifar_resnet", "depths": [2, 2], "widths": [8, 16], "stem_width": 8,
    "input_size": [8, 12], "dyn_mode": "spatial", "spatial_granularity": [2, 1]}"#;

fn small() -> NetSpec {
    net(SMALL)
}

fn infer(session: &Session, plan: &ExecutionPlan, batch: usize) -> Output {
    let spec = session.spec();
    let policy = Given::forced(spec, batch, 0.5, Pattern::Clustered, 3).unwrap();
    let len = batch * spec.input.channels * spec.input.size.h * spec.input.size.w;
    let images: Vec<f32> = (0..len).map(|i| ((i * 37) % 101) as f32 / 50.0 - 1.0).collect();
    let request = Request { images: &images, batch, features: false, masks: true, timed: false };
    let mut output = Output::default();
    session.infer_by(plan, request, &policy, &mut output).unwrap();
    output
}

#[test]
fn a_gpu_is_measured_fitted_and_planned_for() {
    let folder = tempfile::tempdir().unwrap();
    let (device, samples, file) = calibrated(folder.path());
    let journal = fs::read_to_string(folder.path().join("journal.csv")).unwrap();
    assert_eq!(measurements::read(&journal).unwrap(), samples);
    let mut profile = load(&file).unwrap();
    assert_eq!(profile.model.facts(), &cuda_facts(device.properties()));
    profile.check_use(DeviceKind::Cuda, DType::F32).unwrap();
    let near = |sample: &Sample| {
        let ns = profile.model.predict(&sample.workload).ns;
        (0.7..1.4).contains(&(ns / sample.median_ns))
    };
    let right = samples.iter().filter(|sample| near(sample)).count();
    assert!(right > samples.len() * 9 / 10, "{right} of {} are predicted", samples.len());

    // Inside of networks.
    let target = Target::cuda(Arc::new(device.clone()), Element::F32);
    let networks = Networks::new(&target, 1, &[(SMALL, &[0.5, 1.0])]).unwrap();
    profile.correction = networks.correct(&profile).unwrap();
    assert_eq!(Profile::from_json(&profile.to_json(), None).unwrap(), profile);

    let (spec, batch) = (small(), 3);
    let setting = Setting { batch, ..Setting::of(&profile, 7, DType::F32) };
    assert_eq!((setting.threads, setting.map_bytes), (1, CUDA_MAP_BYTES));
    let densities = vec![BlockDensity { patches: 0.5, channels: 1.0 }; spec.blocks.len()];
    let choice = search(&spec, &profile, &densities, &setting).unwrap();
    assert!(choice.ns > 0.0 && choice.dense_ns >= choice.ns);

    let weights = RandomWeights::new(&spec, 5);
    let cuda = target.session(spec.clone(), 1).plan(choice.plan.clone()).build(&weights).unwrap();
    let cpu = Session::builder(spec.clone()).threads(1).build(&weights).unwrap();
    let mut one_dense = choice.plan.clone();
    one_dense.blocks[1].dense_above = 0.0;
    for plan in [&choice.plan, &one_dense] {
        let (found, expected) = (infer(&cuda, plan, batch), infer(&cpu, plan, batch));
        assert_eq!(found.masks, expected.masks);
        let tensor = |output: &Output| {
            candle_core::Tensor::from_slice(&output.logits, output.logits.len(), &candle_core::Device::Cpu)
        };
        let apart = distance(&tensor(&found).unwrap(), &tensor(&expected).unwrap());
        assert!(apart < 1e-4, "{apart}");
    }

    let policy = Given::forced(&spec, batch, 0.5, Pattern::Clustered, 3).unwrap();
    let regret = verify(&cuda, &policy, &profile, &choice.plan, &setting, Duration::ZERO).unwrap();
    let names: Vec<&str> = regret.networks.iter().map(|network| network.name.as_str()).collect();
    assert_eq!(
        names,
        ["plan", "dense", "gather 1×1", "gather 2×2", "gather 4×4", "gather 8×8", "gather 16×16"]
    );
    assert!(regret.networks.iter().all(|whole| whole.measured_us > 0.0 && whole.predicted_us > 0.0));
    assert_eq!(regret.blocks.len(), spec.blocks.len());
}

#[test]
fn batches_run_together_as_plans_expect() {
    assert_eq!(Cpu::<f32>::new(Isa::detect(), None).map_bytes(), CPU_MAP_BYTES);
    assert_eq!(Cuda::new(Arc::new(device()), Precision::F32).map_bytes(), CUDA_MAP_BYTES);
}

#[test]
fn a_gpu_has_no_threads_and_the_types_of_its_kind() {
    let target = Target::cuda(Arc::new(device()), Element::F16);
    assert!(target.prober(2).err().unwrap().to_string().contains("one thread"));
    assert!(target.prober(1).unwrap().describe().starts_with("emulated device, f16"));
    let cpu = Target::cpu(Isa::detect(), Element::Tf32).prober(1);
    assert!(cpu.err().unwrap().to_string().contains("CUDA device"));
}

#[test]
fn a_profile_of_another_device_is_refused_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let (.., gpu) = calibrated(folder.path());
    let (gpu, cpu) = (gpu.display().to_string(), of_the_cpu(folder.path()).display().to_string());
    let net = "--model cifar_resnet20 --mode spatial --granularity 2 --density 0.5";
    let on_cpu = ["gpu.json", "measured on a cuda device (emulated device), not on cpu"];
    fails(&format!("plan {net} --profile {gpu}"), &on_cpu);
    fails(&format!("plan {net} --for-training --profile {gpu} --device cpu"), &on_cpu);
    fails(
        &format!("plan {net} --profile {cpu} --device cuda:4096"),
        &["cpu.json", "measured on a cpu device", "not on cuda"],
    );
    let other = format!("plan {net} --profile {gpu} --device cuda:4096 --dtype tf32");
    fails(&other, &["gpu.json", "measured with f32, not with tf32"]);
    fails(&format!("run --time 1ms --policy budget:5ms:{gpu}"), &["gpu.json", "not on cpu"]);
    let spec = &small();
    let subject = Subject { spec, seed: 1, threads: 1, dtype: DType::F32, kind: DeviceKind::Cuda };
    assert!(named(&format!("budget:5ms:{gpu}"), subject).is_ok());
    let error = format!("{:#}", named(&format!("budget:5ms:{cpu}"), subject).err().unwrap());
    assert!(error.contains("not on cuda"), "{error}");
    // Kernels of the one kind are not those of the other.
    let text = fs::read_to_string(&gpu).unwrap();
    let stale = folder.path().join("stale.json");
    let hashes = (kernel_hash(DeviceKind::Cuda), kernel_hash(DeviceKind::Cpu));
    assert_ne!(hashes.0, hashes.1);
    fs::write(&stale, text.replace(hashes.0, hashes.1)).unwrap();
    let stale = format!("plan {net} --profile {} --device cuda:4096", stale.display());
    fails(&stale, &["stale.json", hashes.0, "calibrate again"]);
}

#[test]
fn a_plan_for_a_gpu_is_made_without_one() {
    let folder = tempfile::tempdir().unwrap();
    let (.., gpu) = calibrated(folder.path());
    let (gpu, out) = (gpu.display().to_string(), folder.path().join("plan.json"));
    let line = format!(
        "plan --model cifar_resnet20 --mode spatial --granularity 2 --density 0.5 --profile {gpu} --device cuda:4096"
    );
    let text = prints(&format!("{line} --out {}", out.display()));
    assert!(text.contains("emulated device") && text.contains("batch 1, f32"), "{text}");
    assert_eq!(ExecutionPlan::load(&out).unwrap().blocks.len(), 9);
    fails(&format!("{line} --verify"), &["cuda:4096"]);
    let predict = format!("predict --profile {gpu} --model cifar_resnet20 --granularity 2");
    assert!(prints(&predict).contains("batch 1, f32"));
    fails(&format!("{predict} --threads 2"), &["--threads", "CUDA"]);
    fails(&format!("{predict} --dtype f16"), &["measured with f32, not with f16"]);
    let show = prints(&format!("profile show {gpu}"));
    assert!(show.contains("4 multiprocessors") && show.contains("those of this program"), "{show}");
}

#[test]
fn a_gpu_that_cannot_be_calibrated_is_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let line = format!("calibrate --device cuda:4096 --quick --out {}/x.json", folder.path().display());
    fails(&line, &["cuda:4096"]);
    fails(&format!("{line} --threads 2"), &["--threads", "cuda:4096"]);
    fails(&format!("{line} --isa avx2"), &["--isa", "cuda:4096"]);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}
