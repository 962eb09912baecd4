//! Networks on the CUDA backend, whose kernels run on this machine: against the executor on the CPU.

use std::sync::Arc;

use candle_core::Tensor;
use laud::exec::Request;
use laud::gate::{Always, Given, Learned, Pattern, Policy};
use laud::kernels::cuda::{Cuda, Precision};
use laud::kernels::layout::FromNchw;
use laud::kernels::{Backend, Cpu, Extent, Isa};
use laud::plan::ExecutionPlan;
use laud::policy::{Subject, named};
use laud::predictor::DeviceKind;
use laud::predictor::workload::DType;
use laud::train::{PerGate, random_images, random_weights};
use laud::{Element, Output, RandomWeights, Session};
use laud_emulation::{EmulatedDevice, Emulator};
use laud_models::NetSpec;

use crate::compare::{assert_close, distance};
use crate::execute::{Found, recorded, run, run_by, session};
use crate::executor_fixtures::assert_official;
use crate::fixtures::{Fixture, NAMES};
use crate::networks::NAMED;
use crate::oracle::{FLOOR, RELATIVE};
use crate::oracle_cases::net;
use crate::parity::{BATCH, KEEPS, Keep, decisions};

/// Largest distance of a logit, as a part of the largest: 8 and 11 bits in each of up to 40 layers, some of which have
/// two channels only.
const RELATIVE_BF16: f32 = 0.15;
const RELATIVE_F16: f32 = 0.03;

fn device() -> EmulatedDevice {
    EmulatedDevice::new(Emulator { workers: 1, seed: 1 }, 4, 1 << 30)
}

/// A network on the CPU and on the emulated device in every type.
struct Pair<'a> {
    what: &'a str,
    spec: NetSpec,
    images: Tensor,
    cpu: Session,
    cuda: Session,
    halves: [(Session, f32); 2],
}

impl<'a> Pair<'a> {
    fn new(what: &'a str, spec: NetSpec) -> Self {
        let weights = random_weights(&spec, 11).unwrap();
        let on =
            |element| session(&spec, &weights, |builder| builder.element(element).cuda(Arc::new(device())));
        Self {
            what,
            images: random_images(&spec, BATCH, 13).unwrap(),
            cpu: session(&spec, &weights, |builder| builder.threads(1)),
            cuda: on(Element::F32),
            halves: [(on(Element::F16), RELATIVE_F16), (on(Element::Bf16), RELATIVE_BF16)],
            spec,
        }
    }

    fn check(&self) {
        for keep in KEEPS {
            let policy = recorded(&self.spec, &decisions(&self.spec, keep, 17));
            let what = format!("{} keeping {keep:?}", self.what);
            let expected = run(&self.cpu, &self.images, Some(&policy));
            let found = run(&self.cuda, &self.images, Some(&policy));
            assert_agree(&what, &found, &expected);
            if keep == Keep::InTurns {
                self.check_again(&what, &policy, &found);
                self.check_schedules(&what, &policy, &found);
                for (half, relative) in &self.halves {
                    let apart = distance(&run(half, &self.images, Some(&policy)).logits, &expected.logits);
                    assert!(apart <= *relative, "{what} on {}: {apart} off", half.describe());
                }
            }
        }
        let learned = (run(&self.cuda, &self.images, None), run(&self.cpu, &self.images, None));
        // Gates sum in another order, so that what is close to the threshold may be decided otherwise.
        if learned.0.masks == learned.1.masks {
            assert_agree(&format!("{}, learned", self.what), &learned.0, &learned.1);
        }
    }

    /// The same bits in squares of cells and everywhere, and as much computed for nothing as on the CPU.
    fn check_schedules(&self, what: &str, policy: &dyn Policy, found: &Found) {
        let mut squares = ExecutionPlan::sparse(&self.spec);
        squares.blocks.iter_mut().zip([2, 3].into_iter().cycle()).for_each(|(b, side)| b.granularity = side);
        for plan in [squares, ExecutionPlan::with_threshold(&self.spec, 0.0)] {
            let other = run_by(&plan, &self.cuda, &self.images, policy);
            assert_eq!(other.output.logits, found.output.logits, "{what}");
            let expected = run_by(&plan, &self.cpu, &self.images, policy);
            assert_eq!(other.output.trace, expected.output.trace, "{what}");
        }
    }

    /// The same when it is recorded and when it is replayed, and without the other samples.
    fn check_again(&self, what: &str, policy: &dyn Policy, found: &Found) {
        for _ in 0..2 {
            let again = run(&self.cuda, &self.images, Some(policy));
            assert_eq!(again.output.logits, found.output.logits, "{what}, again");
        }
        let first = self.images.narrow(0, 0, 1).unwrap();
        let expected = run(&self.cpu, &first, Some(policy));
        assert_agree(&format!("{what}, alone"), &run(&self.cuda, &first, Some(policy)), &expected);
    }
}

fn assert_agree(what: &str, found: &Found, expected: &Found) {
    assert_eq!(found.masks, expected.masks, "{what}");
    for (index, (found, expected)) in found.stages.iter().zip(&expected.stages).enumerate() {
        assert_close(&format!("{what}, stage {}", index + 1), found, expected, RELATIVE, FLOOR);
    }
    assert_close(&format!("{what}, logits"), &found.logits, &expected.logits, RELATIVE, FLOOR);
    assert_eq!(found.output.trace, expected.output.trace, "{what}");
}

/// Emulation is slow: every other network, so that two threads share them.
fn check_named(first: usize) {
    for (name, json) in NAMED.iter().skip(first).step_by(2) {
        Pair::new(name, net(json)).check();
    }
}

#[test]
fn named_networks_agree_with_the_cpu() {
    check_named(0);
}

#[test]
fn further_named_networks_agree_with_the_cpu() {
    check_named(1);
}

#[test]
fn official_results_are_reproduced() {
    for name in NAMES {
        let fixture = Fixture::load(name);
        let on = |element| {
            let device = Arc::new(device());
            session(&fixture.spec, &fixture.weights, |builder| builder.element(element).cuda(device))
        };
        assert_official(name, &fixture, &on(Element::F32));
        let given = recorded(&fixture.spec, &fixture.masks);
        let apart = distance(&run(&on(Element::F16), &fixture.input, Some(&given)).logits, &fixture.logits);
        assert!(apart <= RELATIVE_F16, "{name} in f16: {apart} off");
    }
}

/// Every kind of gate in few kernels.
fn small() -> NetSpec {
    net(
        r#"{"arch": "cifar_resnet", "depths": [1, 2], "widths": [8, 12], "stem_width": 8, "input_size": [10, 13],
            "dyn_mode": "both", "spatial_granularity": 2, "channel_granularity": 4}"#,
    )
}

fn on(device: &EmulatedDevice) -> Result<Session, String> {
    let builder = Session::builder(small()).cuda(Arc::new(device.clone()));
    builder.build(&RandomWeights::new(&small(), 1)).map_err(|error| format!("{error:#}"))
}

fn infer(session: &Session, batch: usize, policy: &dyn Policy) -> Result<Vec<f32>, String> {
    let images: Vec<f32> = (0..batch * 3 * 130).map(|i| (i % 19) as f32 / 19.0).collect();
    let mut output = Output::default();
    let request = Request { images: &images, batch, features: true, masks: true, timed: false };
    let outcome = session.infer_with(request, policy, &mut output);
    outcome.map(|()| output.logits).map_err(|error| format!("{error:#}"))
}

#[test]
fn units_are_ranked_as_on_the_cpu() {
    let mut kept = Vec::new();
    for config in [
        r#"{"arch": "cifar_resnet", "depths": [1, 2], "widths": [8, 12], "stem_width": 8, "input_size": [10, 13],
            "dyn_mode": "spatial", "spatial_granularity": [2, 1]}"#,
        r#"{"arch": "cifar_resnet", "depths": [1, 2], "widths": [16, 24], "stem_width": 8, "input_size": [10, 13],
            "dyn_mode": "channel", "channel_granularity": 2}"#,
    ] {
        let spec = net(config);
        let weights = random_weights(&spec, 11).unwrap();
        let images = random_images(&spec, BATCH, 13).unwrap();
        let cpu = session(&spec, &weights, |builder| builder.threads(1));
        let cuda = session(&spec, &weights, |builder| builder.cuda(Arc::new(device())));
        for text in ["topk:0.5", "topk:3", "budget:0.6", "budget:0.8"] {
            let subject =
                Subject { spec: &spec, seed: 1, threads: 1, dtype: DType::F32, kind: DeviceKind::Cuda };
            let policy = named(text, subject).unwrap();
            let expected = run(&cpu, &images, Some(&*policy));
            // Issued, recorded and replayed.
            for _ in 0..3 {
                assert_agree(text, &run(&cuda, &images, Some(&*policy)), &expected);
            }
            kept.push(expected.output.trace.macs());
        }
    }
    kept.dedup();
    assert!(kept.len() >= 6, "{kept:?}");
}

#[test]
fn memory_is_taken_once_and_given_back() {
    let device = device();
    let session = on(&device).unwrap();
    let half = Given::forced(session.spec(), 3, 0.5, Pattern::Scattered, 1).unwrap();
    infer(&session, 3, &half).unwrap();
    let taken = device.allocations();
    let (mut expected, mut launches) = (None, vec![]);
    for _ in 0..4 {
        let before = device.launches();
        let logits = infer(&session, 3, &half).unwrap();
        launches.push(device.launches() - before);
        assert_eq!(*expected.get_or_insert_with(|| logits.clone()), logits);
        for policy in [&Learned as &dyn Policy, &Always] {
            infer(&session, 1, policy).unwrap();
            infer(&session, 3, policy).unwrap();
        }
    }
    assert_eq!(device.allocations(), taken);
    assert!(launches.iter().all(|&n| n == launches[0] && n > 20), "{launches:?}");
    drop(session);
    assert_eq!(device.allocations(), 0);
}

#[test]
fn a_layer_that_is_skipped_is_left_out_of_a_recorded_inference() {
    let spec = net(
        r#"{"arch": "cifar_resnet", "depths": [2, 2], "widths": [8, 12], "stem_width": 8, "input_size": [10, 13],
            "dyn_mode": "layer"}"#,
    );
    let (weights, device) = (random_weights(&spec, 11).unwrap(), device());
    let cpu = session(&spec, &weights, |builder| builder.threads(1));
    let cuda = session(&spec, &weights, |builder| builder.cuda(Arc::new(device.clone())));
    let decided = |keep: [bool; 4]| {
        let masks = keep.map(|keep| PerGate { spatial: Some(vec![keep; BATCH]), channel: None });
        recorded(&spec, &masks)
    };
    let images = random_images(&spec, BATCH, 13).unwrap();
    for batch in [1, 2] {
        let images = images.narrow(0, 0, batch).unwrap();
        // Issued, recorded, and replayed with other decisions than those of the recording.
        let mut launches = Vec::new();
        for keep in [[true; 4], [false; 4], [true; 4], [false; 4], [true, false, false, true]] {
            let (policy, before) = (decided(keep), device.launches());
            let found = run(&cuda, &images, Some(&policy));
            launches.push(device.launches() - before);
            assert_agree(&format!("{keep:?}"), &found, &run(&cpu, &images, Some(&policy)));
        }
        // Of every block two convolutions.
        let replayed = launches[2..].iter().map(|n| launches[2] - n).collect::<Vec<_>>();
        assert_eq!(replayed, if batch == 1 { [0, 8, 4] } else { [0, 0, 0] }, "batch {batch}: {launches:?}");
    }
}

#[test]
fn running_out_of_memory_names_what_for() {
    let mut found = std::collections::BTreeSet::new();
    let mut limit = 4 << 10;
    loop {
        let device = EmulatedDevice::new(Emulator { workers: 1, seed: 1 }, 4, limit);
        match on(&device).and_then(|session| infer(&session, 3, &Always)) {
            Ok(_) => break,
            Err(error) => {
                let (_, what) = error.rsplit_once(" bytes for ").unwrap_or_else(|| panic!("{error}"));
                found.insert(what.to_owned());
            }
        }
        limit += limit / 8;
        assert!(limit < 1 << 30);
    }
    assert!(found.contains("weights on emulated device"), "{found:?}");
    assert!(found.contains("residual stream on emulated device"), "{found:?}");
}

#[test]
fn a_launch_that_fails_says_where() {
    let device = device();
    let session = on(&device).unwrap();
    let expected = infer(&session, 2, &Learned).unwrap();
    // While operations are issued, and while they are recorded.
    for rounds in [1, 2] {
        let session = on(&device).unwrap();
        for _ in 1..rounds {
            assert_eq!(infer(&session, 2, &Learned).unwrap(), expected);
        }
        device.refuse(Some("gather_gemm"));
        let error = infer(&session, 2, &Learned).unwrap_err();
        for part in [
            "stem: gather_gemm, 3×3/1 conv, 12×15×3 → 10×13×8",
            "thread blocks of",
            "gather_gemm/cuda.rs:",
            "refused",
        ] {
            assert!(error.contains(part), "{error}");
        }
        device.refuse(None);
        for _ in 0..3 {
            assert_eq!(infer(&session, 2, &Learned).unwrap(), expected);
        }
    }
    let request = Request { images: &[0.5; 390], batch: 1, features: false, masks: false, timed: true };
    let mut output = Output::default();
    session.infer_into(request, &mut output).unwrap();
    assert!(output.trace.total_ns() > 0);
}

/// The first of two images, brought in and copied to the second place, and to the first by way of another buffer.
fn copied<B: Backend>(backend: &B) -> Vec<f32> {
    let (c, map) = (8, Extent { h: 3, w: 5 });
    let image = c * map.pixels();
    let images: Vec<f32> = (0..2 * image).map(|i| i as f32).collect();
    let [mut both, mut one, mut joined] =
        [2, 1, 2].map(|batch| backend.buffer(batch * image, "images").unwrap());
    let mut out = backend.vector(2 * image, "images").unwrap();
    let mut scratch = backend.scratch().unwrap();
    backend.run(&mut scratch, |queue| {
        B::play(queue, None, &images, |queue, input| {
            let border = Extent { h: 0, w: 0 };
            let output = &mut both;
            let call =
                FromNchw { batch: 2, c, image: map, border, bordered: map, scale: None, input, output };
            B::from_nchw(queue, call)?;
            B::copy(queue, &both, image, &mut joined, image)?;
            B::copy(queue, &both, image, &mut one, 0)?;
            B::copy(queue, &one, image, &mut joined, 0)?;
            B::to_nchw(queue, 2, map, c, &joined, &mut out)?;
            B::fetch(queue, &mut out)
        })
        .unwrap();
        B::read(queue, &out).unwrap().to_vec()
    })
}

#[test]
fn buffers_are_copied_as_on_the_cpu() {
    let expected = copied(&Cpu::<f32>::new(Isa::detect(), None));
    assert_eq!(expected[..120], expected[120..]);
    for precision in [Precision::F32, Precision::F16, Precision::Bf16] {
        assert_eq!(copied(&Cuda::new(Arc::new(device()), precision)), expected, "{precision}");
    }
}

#[test]
fn a_device_that_is_not_there_is_an_error() {
    let builder = Session::builder(small()).device(laud::Device::Cuda(4096));
    let error = builder.build(&RandomWeights::new(&small(), 1)).err().unwrap();
    assert!(error.to_string().starts_with("cuda:4096: "), "{error}");
    let error = Session::builder(small()).element(Element::F16).build(&RandomWeights::new(&small(), 1));
    assert!(error.err().unwrap().to_string().contains("CUDA device"));
}
