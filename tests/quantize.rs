//! How large values become inside a network, and files that say so.

use std::collections::BTreeMap;
use std::fs;

use laud::autograd::kernel_maps;
use laud::checkpoint::Checkpoint;
use laud::models::{NetConfig, Shortcut};
use laud::train::{BlockMasks, MapElement, Ranges, random_images, random_weights};
use laud::{CheckpointWeights, Element, RandomWeights, Session};

use crate::cli::{fails, fixture, prints, prints_json};
use crate::naive::{Map, Naive, max_pool, samples};
use crate::networks::NAMED;

const IMAGES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/zoo/cifar10_images/cifar10_test_32.bin");
const PHOTOS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/zoo/photos");

/// Every point of every network, against loops in f64.
#[test]
fn ranges_are_the_largest_magnitudes_of_every_point() {
    for (name, config) in NAMED {
        let mut spec = NetConfig::from_json(config).unwrap().build().unwrap();
        // Stages are what is shown of a network from outside.
        (0..).zip(&mut spec.blocks).for_each(|(i, block)| block.stage = i);
        let (weights, images) = (random_weights(&spec, 3).unwrap(), random_images(&spec, 3, 4).unwrap());
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
fn quantize_writes_the_weights_with_their_ranges() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("net.safetensors");
    let (file, line) = (file.display().to_string(), |file: &str| {
        format!("quantize --model cifar_resnet20 --images {IMAGES} --limit 20 --output {file} --threads 1")
    });
    let text = prints(&line(&file));
    assert!(text.contains("measured on 20 images") && text.contains("--dtype int8"), "{text}");
    let (written, original) =
        (Checkpoint::open(file.as_ref()).unwrap(), laud::zoo::load("cifar_resnet20").unwrap());
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
    assert!(prints("inspect cifar_resnet20").contains("`laud quantize` measures them"));

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
