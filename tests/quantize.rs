//! How large values become inside a network, and files that say so.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use candle_core::Tensor;
use laud::autograd::kernel_maps;
use laud::checkpoint::{Checkpoint, TensorData, TensorOut, write_safetensors};
use laud::exec::Request;
use laud::gate::{Given, Pattern};
use laud::kernels::Isa;
use laud::models::{ChannelHead, NetConfig, NetSpec, Shortcut};
use laud::train::{BlockMasks, MapElement, Ranges, random_images, random_weights};
use laud::vision::Preprocess;
use laud::{CheckpointWeights, Device, Element, Output, RandomWeights, Session, TensorMap};

use crate::cli::{fails, fixture, prints, prints_json};
use crate::naive::{Map, Naive, max_pool, samples};
use crate::networks::NAMED;

const IMAGES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/zoo/cifar10_images/cifar10_test_32.bin");
const PHOTOS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/zoo/photos");

/// The weights of a network whose gates keep everything, or nothing.
fn leaning(spec: &NetSpec, keep: bool) -> HashMap<String, Tensor> {
    let mut weights = random_weights(spec, 3).unwrap();
    let biases = spec.blocks.iter().flat_map(|block| {
        let spatial = block.gate.spatial.iter().map(|gate| format!("{}.conv.bias", gate.prefix));
        let channel = block.gate.channel.iter().map(|gate| {
            let last = match gate.head {
                ChannelHead::Mlp1 => "conv",
                ChannelHead::Mlp2 { .. } => "conv.2",
                ChannelHead::ConvLinear { .. } => "linear",
            };
            format!("{}.{last}.bias", gate.prefix)
        });
        spatial.chain(channel).collect::<Vec<_>>()
    });
    for name in biases {
        let bias = weights.get_mut(&name).unwrap();
        let half = bias.elem_count() / 2;
        let lean = |i: usize| if (i < half) == keep { 1e4f32 } else { -1e4 };
        *bias = Tensor::from_iter((0..2 * half).map(lean), bias.device()).unwrap();
    }
    weights
}

/// Every point of every network, against loops in f64.
#[test]
fn ranges_are_the_largest_magnitudes_of_every_point() {
    for (name, config) in NAMED {
        let mut spec = NetConfig::from_json(config).unwrap().build().unwrap();
        // Stages are what is shown of a network from outside.
        (0..).zip(&mut spec.blocks).for_each(|(i, block)| block.stage = i);
        let (weights, images) = (leaning(&spec, true), random_images(&spec, 3, 4).unwrap());
        let mut ranges = Ranges::new(&spec, &weights, kernel_maps(MapElement::F32, 1).unwrap()).unwrap();
        // Not all at once: what was seen before counts too.
        ranges.see(&images.narrow(0, 0, 2).unwrap()).unwrap();
        ranges.see(&images.narrow(0, 2, 1).unwrap()).unwrap();

        let naive = Naive::new(&weights);
        let mut wanted: BTreeMap<String, Vec<f64>> = BTreeMap::new();
        let mut note = |point: &str, map: &Map| {
            let largest = wanted.entry(format!("range.{point}")).or_insert_with(|| vec![0.0; map.c]);
            for (largest, plane) in largest.iter_mut().zip(map.v.chunks(map.size.h * map.size.w)) {
                *largest = plane.iter().fold(*largest, |largest, value| largest.max(value.abs()));
            }
        };
        let everything = vec![BlockMasks::default(); spec.blocks.len()];
        for image in samples(&images) {
            note("input", &image);
            let mut x = naive.conv(&spec.stem.conv, &image, None);
            note("stem", &x);
            if let Some(pool) = &spec.stem.pool {
                x = max_pool(pool, &x);
            }
            let (streams, _) = naive.network(&spec, &image, 0, &everything);
            for (block, stream) in spec.blocks.iter().zip(streams) {
                let name = &block.name;
                if let Some((gate, hidden)) = block.gate.channel.as_ref().zip(block.gate_hidden()) {
                    note(&format!("{name}.gate"), &naive.conv(&gate.reduce_conv(hidden), &x, None));
                }
                if let Shortcut::Projection(conv) = &block.shortcut {
                    note(name, &naive.conv(conv, &x, None));
                }
                let mut inner = x;
                for (i, conv) in block.convs[..block.convs.len() - 1].iter().enumerate() {
                    inner = naive.conv(conv, &inner, None);
                    note(&format!("{name}.{i}"), &inner);
                }
                note(name, &stream);
                x = stream;
            }
            if let Some(conv) = &spec.head.conv {
                note("head", &naive.conv(conv, &x, None));
            }
        }
        let found = ranges.largest();
        assert!(found.keys().eq(wanted.keys()), "{name}");
        let shapes = spec.ranges().into_iter().map(|range| (range.name, range.shape));
        assert_eq!(
            shapes.collect::<BTreeMap<_, _>>(),
            found.iter().map(|(k, v)| (k.clone(), vec![v.len()])).collect()
        );
        for (point, wanted) in &wanted {
            let most = wanted.iter().fold(0.0, |most: f64, value| most.max(*value));
            for (found, wanted) in found[point].iter().zip(wanted) {
                assert!(
                    (f64::from(*found) - wanted).abs() <= 1e-4 * most,
                    "{name}: {point} {found} {wanted}"
                );
            }
        }
    }
}

#[test]
fn what_gates_leave_out_has_no_part_in_ranges() {
    for (name, config) in NAMED {
        let spec = NetConfig::from_json(config).unwrap().build().unwrap();
        let ranges = |seed| {
            let maps = kernel_maps(MapElement::F32, 1).unwrap();
            let mut ranges = Ranges::new(&spec, &leaning(&spec, false), maps).unwrap();
            ranges.see(&random_images(&spec, 2, seed).unwrap()).unwrap();
            ranges.largest().clone()
        };
        let (one, other) = (ranges(4), ranges(5));
        for block in &spec.blocks {
            for i in 0..block.convs.len() - 1 {
                let point = format!("range.{}.{i}", block.name);
                if block.gate.spatial.is_some() {
                    assert!(one[&point].iter().all(|&most| most == 0.0), "{name}: {point}");
                } else if block.gate.channel.is_some() {
                    assert_eq!(one[&point], other[&point], "{name}: masked channels are the same for all");
                }
            }
        }
        assert_ne!(one["range.stem"], other["range.stem"]);
    }
}

/// Root of the mean square of differences, of the mean square.
fn apart(got: &[f32], want: &[f32]) -> f64 {
    let square = |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v).powi(2)).sum::<f64>();
    let differences = square(&mut got.iter().zip(want).map(|(a, b)| a - b));
    (differences / square(&mut want.iter().copied())).sqrt()
}

/// Whatever is active: every network, on every instruction set.
#[test]
fn int8_computes_what_f32_does_but_for_rounding() {
    const MOBILENET: &str = r#"{"arch": "mobilenet_v2", "width_mult": 0.5, "input_size": 64, "num_classes": 9,
        "dyn_mode": "both", "spatial_granularity": 2, "channel_granularity": 4}"#;
    let mut refused = Vec::new();
    for (name, config) in NAMED.into_iter().chain([("mobilenet as it is", MOBILENET)]) {
        let spec = NetConfig::from_json(config).unwrap().build().unwrap();
        let weights = leaning(&spec, true);
        let images = random_images(&spec, 3, 4).unwrap();
        let mut ranges = Ranges::new(&spec, &weights, kernel_maps(MapElement::F32, 1).unwrap()).unwrap();
        ranges.see(&images).unwrap();
        let mut weights = TensorMap::from_candle(&weights).unwrap();
        weights.0.extend(ranges.largest().clone());
        let images = images.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let int8 = Session::builder(spec.clone()).device(Device::Cpu).element(Element::Int8);
        if let Err(error) = int8.build(&weights) {
            assert!(error.to_string().contains("no ReLU6 on a stream that goes beyond 6"), "{error:#}");
            refused.push(name);
            continue;
        }
        let infer = |element: Element, isa: &str, density: f64, threads: usize| {
            let policy = Given::forced(&spec, 3, density, Pattern::Scattered, 7).unwrap();
            let session = Session::builder(spec.clone()).element(element).isa(isa).threads(threads);
            let session = session.policy(policy).build(&weights).unwrap();
            let mut output = Output::default();
            let request = Request { images: &images, batch: 3, features: true, masks: true, timed: false };
            session.infer_into(request, &mut output).unwrap();
            output
        };
        // Seventeen blocks of random weights add up.
        let most = if config == MOBILENET { 0.4 } else { 0.1 };
        for density in [0.0, 0.5, 1.0] {
            let wanted = infer(Element::F32, "portable", density, 1);
            for isa in Isa::available() {
                let found = infer(Element::Int8, isa.name(), density, 2);
                assert_eq!(found.masks, wanted.masks);
                for (stage, (found, wanted)) in found.features.iter().zip(&wanted.features).enumerate() {
                    let apart = apart(&found.values, &wanted.values);
                    assert!(apart < most, "{name} on {} at {density}: stage {stage} {apart}", isa.name());
                }
                let apart = apart(&found.logits, &wanted.logits);
                assert!(apart < most, "{name} on {} at {density}: {apart}", isa.name());
                let alone = infer(Element::Int8, isa.name(), density, 1);
                assert_eq!(alone.logits, found.logits, "{name} on {}: threads", isa.name());
            }
        }
    }
    assert_eq!(refused.len(), 3, "{refused:?}");
}

/// A network of the zoo in a file without its ranges.
fn without_ranges(folder: &Path) -> String {
    let file = folder.join("bare.safetensors");
    let network = laud::zoo::load("cifar_resnet20").unwrap();
    laud::quantize::write(&file, &network, &BTreeMap::new(), BTreeMap::new()).unwrap();
    file.display().to_string()
}

#[test]
fn int8_classifies_as_f32_does_and_asks_for_ranges() {
    let folder = tempfile::tempdir().unwrap();
    for model in ["cifar_resnet20", "cifar_resnet56_jpeg_channel"] {
        // Measured anew, with the gates as they are.
        let file = folder.path().join(model).with_extension("safetensors");
        prints(&format!("quantize --model {model} --images {IMAGES} --output {}", file.display()));
        let checkpoint = Checkpoint::open(&file).unwrap();
        let spec = NetConfig::from_json(&checkpoint.metadata()["config"]).unwrap().build().unwrap();
        let preprocess = Preprocess::new(&spec.input).unwrap();
        let [int8, f32] = [Element::Int8, Element::F32].map(|element| {
            let session = Session::builder(spec.clone()).device(Device::Cpu).element(element);
            let session = session.build(&CheckpointWeights::new(&checkpoint)).unwrap();
            let set = laud::zoo::cifar10_images().unwrap();
            let answers = set.iter().map(|sample| {
                let mut values = vec![0.0; preprocess.values()];
                preprocess.write_nchw(&sample.unwrap().image, &mut values).unwrap();
                let logits = session.infer(&values, 1).unwrap().logits;
                (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap()
            });
            answers.collect::<Vec<_>>()
        });
        let same = int8.iter().zip(&f32).filter(|(a, b)| a == b).count();
        assert!(same >= 30, "{model}: {same} of 32 the same");
    }
    fails(
        &format!("eval --dtype int8 --device cpu --model {} --data {IMAGES}", without_ranges(folder.path())),
        &["laud quantize", "range.input"],
    );
}

#[test]
fn quantize_writes_the_weights_with_their_ranges() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("net.safetensors");
    let bare = without_ranges(folder.path());
    let (file, line) = (file.display().to_string(), |file: &str| {
        format!("quantize --model {bare} --images {IMAGES} --limit 20 --output {file} --threads 1")
    });
    let text = prints(&line(&file));
    assert!(text.contains("measured on 20 images") && text.contains("--dtype int8"), "{text}");
    let (written, original) =
        (Checkpoint::open(file.as_ref()).unwrap(), Checkpoint::open(bare.as_ref()).unwrap());
    for (name, info) in original.tensors() {
        assert_eq!(
            (&written.tensors()[name].shape, written.tensors()[name].dtype),
            (&info.shape, info.dtype)
        );
        assert_eq!(written.read_bytes(name).unwrap(), original.read_bytes(name).unwrap());
    }
    let config =
        |file: &Checkpoint| NetConfig::from_json(&file.metadata()["config"]).unwrap().build().unwrap();
    let spec = config(&written);
    assert_eq!(spec, config(&original));
    let weights = CheckpointWeights::new(&written);
    weights.check(&spec).unwrap();
    assert!(weights.has_ranges(&spec) && !CheckpointWeights::new(&original).has_ranges(&spec));

    // Whoever stores floating-point numbers does not see them.
    let accuracy =
        |model: &str| prints_json(&format!("eval --json --model {model} --data {IMAGES}"))["top1"].clone();
    assert_eq!(accuracy(&file), accuracy("cifar_resnet20"));
    assert!(prints(&format!("inspect {file}")).contains("ranges measured on 20 images"));
    assert_eq!(prints_json(&format!("inspect --json {file}"))["ranges"], true);
    assert!(prints(&format!("inspect {bare}")).contains("`laud quantize` measures them"));

    let before = fs::read(&file).unwrap();
    fails(&line(&file), &["net.safetensors", "is there already"]);
    assert_eq!(fs::read(&file).unwrap(), before);
    // Measured again, they are replaced.
    let again = folder.path().join("again.safetensors").display().to_string();
    let report = prints_json(&format!(
        "quantize --json --model {file} --images {IMAGES} --output {again} --threads 2"
    ));
    assert_eq!(
        (report["images"].as_u64(), report["ranges"].as_u64()),
        (Some(32), Some(spec.ranges().len() as u64))
    );
    let again = Checkpoint::open(again.as_ref()).unwrap();
    assert_eq!(again.tensors().len(), written.tensors().len());
    let grown = |name: &str| {
        let pairs = again.read_f32(name).unwrap().into_iter().zip(written.read_f32(name).unwrap());
        pairs.fold((true, false), |(least, grown), (more, less)| {
            (least && more >= less * 0.999, grown || more > less)
        })
    };
    assert!(spec.ranges().iter().all(|range| grown(&range.name).0) && grown("range.layer3.2").1);
}

#[test]
fn quantize_takes_photographs_and_pytorch_files_and_says_what_it_cannot() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).display().to_string();
    let model = fixture("checkpoint_official.pth.tar").display().to_string();
    let recorded = Checkpoint::open(&fixture("checkpoint_official.expected.safetensors")).unwrap();
    fs::write(file("config.json"), &recorded.metadata()["config"]).unwrap();
    let [config, out] = [file("config.json"), file("out.safetensors")];
    prints(&format!(
        "quantize --model {model} --config {config} --images {PHOTOS} {PHOTOS}/zebra.jpg --output {out}"
    ));
    let report = prints_json(&format!("inspect --json {out}"));
    assert_eq!((&report["ranges"], &report["gates_attached"]), (&true.into(), &false.into()));

    // To a static network whose shapes alone say what it is, gates can be attached afterwards as before.
    let zoo = laud::zoo::load("cifar_resnet20").unwrap();
    let named = zoo.tensors().iter().filter(|(name, _)| !name.starts_with("range."));
    let read: Vec<_> = named.map(|(name, info)| (name, info, zoo.read_bytes(name).unwrap())).collect();
    let tensors = read.iter().map(|(name, info, bytes)| {
        let data = TensorData::Raw(info.dtype, bytes);
        ((*name).clone(), TensorOut { shape: info.shape.clone(), data })
    });
    let [bare, plain] = [file("bare.safetensors"), file("plain.safetensors")];
    write_safetensors(bare.as_ref(), &tensors.collect(), &BTreeMap::new()).unwrap();
    prints(&format!("quantize --model {bare} --images {IMAGES} --limit 4 --output {plain}"));
    let gated = "--mode layer --density 0.5 --dtype int8 --device cpu --threads 1 --iterations 2";
    assert!(prints(&format!("bench --model {plain} {gated}")).contains("density 0.5"));

    let none = file("none.safetensors");
    fails(
        &format!("quantize --model resnet18 --images {PHOTOS} --output {none}"),
        &["resnet18", "random weights"],
    );
    fails(
        &format!("quantize --mode layer --model cifar_resnet20 --images {IMAGES} --output {none}"),
        &["--mode"],
    );
    fails(
        &format!("quantize --model cifar_resnet20 --images /no/such.jpg --output {none}"),
        &["/no/such.jpg"],
    );
    fails(
        &format!("quantize --model cifar_resnet20 --images {IMAGES} --output /no/such/out"),
        &["/no/such/out"],
    );
    assert!(!folder.path().join("none.safetensors").exists());
}

#[test]
fn int8_on_a_gpu_is_an_error_before_one_is_looked_for() {
    let spec = NetConfig::from_json(r#"{"arch": "resnet20"}"#).unwrap().build().unwrap();
    let weights = RandomWeights::new(&spec, 1);
    let builder = Session::builder(spec).device(laud::Device::Cuda(0)).element(Element::Int8);
    assert!(builder.build(&weights).err().unwrap().to_string().contains("int8 runs on the CPU only"));
}
