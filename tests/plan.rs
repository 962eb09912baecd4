//! Plans: what they are made from, that they are always the same, and that they change no bit.

use laud::calibrate::{device_facts, sweep};
use laud::exec::Request;
use laud::gate::{Given, Pattern};
use laud::kernels::Isa;
use laud::plan::{
    Activity, BlockDensity, CPU_MAP_BYTES, ExecutionPlan, Lowered, Portions, Route, Setting, lower, search,
};
use laud::predictor::DeviceKind;
use laud::predictor::learned::FitOptions;
use laud::predictor::profile::{Header, Profile};
use laud::predictor::workload::{Cache, DType, Op, Sample, Workload};
use laud::train::random_weights;
use laud::{Element, Output, Session};
use laud_models::NetSpec;

use crate::execute::session;
use crate::oracle_cases::net;

const SPATIAL: &str = r#"{"arch": "cifar_resnet", "depths": [2, 2, 2], "widths": [8, 12, 16], "stem_width": 8,
    "input_size": [16, 24], "dyn_mode": "spatial", "spatial_granularity": [4, 2, 1]}"#;
const BOTTLENECK: &str = r#"{"arch": "resnet50", "depths": [1, 2, 1, 1], "width_mult": 0.125, "input_size": 64,
    "dyn_mode": "spatial", "spatial_granularity": [4, 2, 2, 1]}"#;
const LAYER: &str = r#"{"arch": "resnet50", "depths": [2, 2, 2, 1], "width_mult": 0.125, "input_size": 64, "dyn_mode": "layer"}"#;
const CHANNEL: &str = r#"{"arch": "resnet50", "depths": [2, 1, 1, 1], "width_mult": 0.125, "input_size": 64,
    "dyn_mode": "channel", "channel_granularity": 2}"#;

fn images(spec: &NetSpec, batch: usize) -> Vec<f32> {
    let len = batch * spec.input.channels * spec.input.size.h * spec.input.size.w;
    (0..len).map(|i| ((i * 37) % 101) as f32 / 50.0 - 1.0).collect()
}

fn run(session: &Session, plan: Option<&ExecutionPlan>, density: f64, batch: usize) -> Output {
    let spec = session.spec();
    let policy = Given::forced(spec, batch, density, Pattern::Clustered, 3).unwrap();
    let images = images(spec, batch);
    let request = Request { images: &images, batch, features: false, masks: true, timed: false };
    let mut output = Output::default();
    match plan {
        Some(plan) => session.infer_by(plan, request, &policy, &mut output),
        None => session.infer_with(request, &policy, &mut output),
    }
    .unwrap();
    output
}

fn activities(spec: &NetSpec, plan: &ExecutionPlan, output: &Output) -> Vec<Activity> {
    let of = |i: usize| {
        let masks = &output.masks[i];
        let side = plan.blocks[i].granularity;
        Activity::of(&spec.blocks[i], &masks.patches, &masks.channel_groups, side).unwrap()
    };
    (0..spec.blocks.len()).map(of).collect()
}

fn macs(lowered: &Lowered, block: usize) -> f64 {
    let convolution = |op| matches!(op, Op::GatherGemm | Op::Depthwise);
    let calls = lowered.blocks[block].iter().filter(|call| convolution(call.workload.op));
    calls.map(|call| call.times * call.workload.macs()).sum()
}

#[test]
fn calls_have_the_multiply_accumulates_that_the_trace_counts() {
    for json in [SPATIAL, BOTTLENECK, LAYER, CHANNEL] {
        let spec = net(json);
        let session = session(&spec, &random_weights(&spec, 3).unwrap(), |builder| builder.threads(1));
        for side in [1, 2] {
            let mut plan = ExecutionPlan::sparse(&spec);
            plan.blocks.iter_mut().for_each(|block| block.granularity = side);
            plan.blocks[1].route = Route::Dense;
            for (density, batch) in [(0.0, 1), (0.3, 1), (0.7, 1), (1.0, 1), (0.5, 3)] {
                // Without any channel a call costs what it costs with one.
                if json == CHANNEL && density == 0.0 {
                    continue;
                }
                let output = run(&session, Some(&plan), density, batch);
                let lowered = lower(&spec, &plan, &activities(&spec, &plan, &output), &Setting::cpu(batch));
                for (i, trace) in output.trace.blocks.iter().enumerate() {
                    let (found, counted) = (macs(&lowered, i), trace.macs as f64);
                    // Means over a batch are rounded to rows; channels of a sample may be fewer than one group.
                    let slack = if batch == 1 { 1e-9 } else { 0.02 };
                    assert!(
                        (found - counted).abs() <= slack * trace.dense_macs as f64,
                        "{}, {}, density {density}, batch {batch}, squares {side}: {found} for {counted}",
                        spec.name,
                        spec.blocks[i].name
                    );
                }
            }
        }
    }
}

#[test]
fn samples_run_together_as_far_as_their_maps_fit() {
    let spec = net(SPATIAL);
    let largest = 16 * 24 * 8;
    let all = |samples| Portions { cut: spec.blocks.len(), front: samples, back: samples };
    assert_eq!(Portions::of(&spec, 4, largest * 4 * 5, 64), all(5));
    assert_eq!(Portions::of(&spec, 2, largest * 4 * 5, 64), all(10));
    assert_eq!(Portions::of(&spec, 4, largest * 4 * 5, 3), all(3));
    assert_eq!(Portions::of(&spec, 4, 1, 64), all(1));
    let resnet = net(r#"{"arch": "resnet50"}"#);
    let portions = |batch| Portions::of(&resnet, 4, CPU_MAP_BYTES, batch);
    assert_eq!(portions(1), Portions { cut: 16, front: 1, back: 1 });
    assert_eq!(portions(8), Portions { cut: 13, front: 1, back: 4 });
    for batch in [1, 2, 3, 5, 6, 8, 9] {
        let portions = portions(batch);
        let groups: Vec<_> = portions.groups(batch).collect();
        assert_eq!(groups.iter().cloned().flatten().collect::<Vec<_>>(), (0..batch).collect::<Vec<_>>());
        let sizes: Vec<_> = groups.iter().map(ExactSizeIterator::len).collect();
        assert!(sizes.iter().max().unwrap() - sizes.iter().min().unwrap() <= 1, "{batch}: {sizes:?}");
        let parts: Vec<usize> =
            groups.into_iter().flat_map(|group| portions.parts(group)).flatten().collect();
        assert_eq!(parts, (0..batch).collect::<Vec<_>>());
    }
}

/// A device on which a call takes as long as its multiply-accumulates, its rows and `gather` for every run.
fn profile(gather: f64) -> Profile {
    let ns = |w: &Workload| {
        let runs =
            if w.route == laud::predictor::workload::Route::Implicit { f64::from(w.runs) } else { 0.0 };
        500.0 + w.macs() / 50.0 + 2.0 * f64::from(w.rows) + gather * runs
    };
    let samples: Vec<Sample> = sweep(DeviceKind::Cpu, &[1], 300, 1)
        .unwrap()
        .into_iter()
        .step_by(7)
        .map(|workload| Sample { workload, median_ns: ns(&workload), mad_ns: 0.0, repeats: 9 })
        .collect();
    let header = Header {
        kernel_hash: laud::kernels::SOURCE_HASH.into(),
        driver: "none".into(),
        commit: "none".into(),
        date: "2026-01-01".into(),
        command: "made up".into(),
        measurements: samples.len(),
    };
    Profile::fit(&samples, &device_facts(Isa::detect(), Element::F32), header, &FitOptions::default())
        .unwrap()
}

#[test]
fn plans_are_always_the_same_and_can_be_run() {
    let spec = net(r#"{"arch": "resnet50", "dyn_mode": "spatial", "spatial_granularity": [4, 4, 2, 1]}"#);
    let (profile, setting) = (profile(1.0), Setting::cpu(1));
    let densities = vec![BlockDensity { patches: 0.3, channels: 1.0 }; spec.blocks.len()];
    let choice = search(&spec, &profile, &densities, &setting).unwrap();
    assert_eq!(choice.plan, search(&spec, &profile, &densities, &setting).unwrap().plan);
    choice.plan.check(&spec).unwrap();
    assert!(choice.ns < choice.dense_ns, "gathering is cheap: {} of {}", choice.ns, choice.dense_ns);
    let bad = vec![BlockDensity { patches: f64::NAN, channels: 1.0 }; spec.blocks.len()];
    assert!(search(&spec, &profile, &bad, &setting).unwrap_err().to_string().contains("NaN"));
    assert!(search(&spec, &profile, &[], &setting).is_err());
}

#[test]
fn squares_that_leave_nothing_out_are_no_choice() {
    let spec = net(r#"{"arch": "resnet50", "dyn_mode": "spatial", "spatial_granularity": [4, 4, 2, 1]}"#);
    let (profile, setting) = (profile(1.0), Setting::cpu(1));
    let squares = |patches: f64| {
        let densities = vec![BlockDensity { patches, channels: 1.0 }; spec.blocks.len()];
        let choice = search(&spec, &profile, &densities, &setting).unwrap();
        choice.alternatives.iter().flatten().filter(|choice| choice.granularity > 1).count()
    };
    assert!(squares(0.1) > 0);
    assert_eq!(squares(1.0), 0);
}

#[test]
fn what_others_leave_of_a_cache_says_which_weights_stay_there() {
    let spec = net(r#"{"arch": "resnet50"}"#);
    let mut profile = profile(1.0);
    let of = |profile: &Profile| Setting::of(profile, 1, DType::F32);
    assert_eq!(of(&profile).l3_bytes, profile.model.facts().l3_bytes);
    // 102 MB of weights: a cache of 268 MB keeps all of them, one of 34 MB none.
    for (kept, cold) in [(1 << 28, false), (1 << 25, true)] {
        profile.correction.kept_bytes = Some(kept);
        let read = Profile::from_json(&profile.to_json(), None).unwrap();
        assert_eq!(read, profile);
        let everything: Vec<_> = spec.blocks.iter().map(Activity::full).collect();
        let lowered = lower(&spec, &ExecutionPlan::sparse(&spec), &everything, &of(&read));
        let caches = lowered.calls().map(|call| call.workload.cache);
        assert_eq!(caches.filter(|cache| *cache == Cache::Cold).count() > 0, cold, "{kept} bytes");
    }
}

#[test]
fn a_watched_plan_changes_no_bit() {
    let spec = net(SPATIAL);
    let weights = random_weights(&spec, 3).unwrap();
    let densities = vec![BlockDensity { patches: 0.5, channels: 1.0 }; spec.blocks.len()];
    let plan = search(&spec, &profile(10.0), &densities, &Setting::cpu(1)).unwrap().plan;
    let text = serde_json::to_string(&plan).unwrap();
    let plan: ExecutionPlan = serde_json::from_str(&text).unwrap();
    let watched = session(&spec, &weights, |builder| builder.threads(1).plan(plan));
    let plain = session(&spec, &weights, |builder| builder.threads(1));
    for _ in 0..40 {
        let output = run(&watched, None, 0.5, 2);
        assert_eq!(output.logits, run(&plain, None, 0.5, 2).logits);
        let watch = output.trace.watch.expect("the plan expects times");
        assert!(watch.expected_ns > 0.0 && watch.drift > 0.0);
        assert_eq!(output.trace.total_ns(), 0, "nobody asked for times");
    }
    assert!(run(&plain, None, 0.5, 1).trace.watch.is_none());
}
