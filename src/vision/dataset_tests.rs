//! Labelled sets: the five forms, and files that lie.

use std::fs;
use std::path::Path;

use super::Dataset;

const RECORD: usize = 3073;

fn zoo(path: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/zoo").join(path)
}

fn jpeg() -> Vec<u8> {
    let path = "src/vision/testdata/decode/baseline420.jpg";
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

fn jpk(records: &[(u8, &[u8])]) -> Vec<u8> {
    let mut bytes = b"JPK1".to_vec();
    bytes.extend((records.len() as u32).to_le_bytes());
    for (label, image) in records {
        bytes.push(*label);
        bytes.extend((image.len() as u32).to_le_bytes());
        bytes.extend(*image);
    }
    bytes
}

fn refusal(name: &str, bytes: &[u8]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    fs::write(&path, bytes).unwrap();
    let error = format!("{:#}", Dataset::open(&path).expect_err("is refused"));
    assert!(error.contains(name), "{error}");
    error
}

#[test]
fn the_shipped_photographs_open() {
    let set = Dataset::open(&zoo("photos")).unwrap();
    assert_eq!((set.len(), set.max_label()), (6, 985));
    for sample in set.iter() {
        let sample = sample.unwrap();
        assert_eq!(sample.image.dimensions(), (256, 256), "{}", sample.name);
        let class = super::Labels::ImageNet.name(sample.label).unwrap().replace(' ', "_");
        assert!(sample.name.ends_with(&format!("{class}.jpg")), "{} is {class}", sample.name);
    }
}

#[test]
fn the_shipped_cifar_images_open() {
    let path = zoo("cifar10_images/cifar10_test_32.bin");
    let set = Dataset::open(&path).unwrap();
    let bytes = fs::read(&path).unwrap();
    assert_eq!((set.len(), set.max_label()), (32, 9));
    assert!(set.get(32).is_err());
    let sample = set.get(5).unwrap();
    let record = &bytes[5 * RECORD..6 * RECORD];
    assert_eq!(sample.label, usize::from(record[0]));
    assert_eq!(sample.image.get_pixel(3, 7).0, [0, 1, 2].map(|c| record[1 + c * 1024 + 7 * 32 + 3]));
    assert!(sample.name.ends_with("cifar10_test_32.bin, record 5"));
}

#[test]
fn a_list_names_a_part_of_a_set() {
    let folder = tempfile::tempdir().unwrap();
    let photo = |file: &str| fs::write(folder.path().join(file), jpeg()).unwrap();
    ["a.jpg", "b.jpg"].into_iter().for_each(photo);
    let list = folder.path().join("test.csv");
    fs::write(&list, "label,author,file\n7,somebody,b.jpg\n").unwrap();
    let set = Dataset::open(&list).unwrap();
    assert_eq!((set.len(), set.label(0)), (1, Some(7)));
    assert!(set.get(0).unwrap().name.ends_with("b.jpg"));
    assert!(refusal("empty.csv", b"file,label\n").contains("no images"));
}

#[test]
fn the_last_images_are_set_apart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("set.jpk");
    fs::write(&path, jpk(&[(3, &jpeg()), (9, b"no image"), (0, &jpeg())])).unwrap();
    for set in [path, zoo("cifar10_images/cifar10_test_32.bin"), zoo("photos")] {
        let whole = Dataset::open(&set).unwrap();
        let (first, last) = Dataset::open(&set).unwrap().split(2).unwrap();
        assert_eq!((first.len(), last.len()), (whole.len() - 2, 2));
        for i in 0..whole.len() {
            let (part, at) = if i < first.len() { (&first, i) } else { (&last, i - first.len()) };
            assert_eq!(part.label(at), whole.label(i));
            let pixels = |set: &Dataset, i| set.get(i).ok().map(|sample| sample.image);
            assert_eq!(pixels(part, at), pixels(&whole, i), "image {i}");
        }
        for count in [0, whole.len()] {
            let error = Dataset::open(&set).unwrap().split(count).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains("cannot be set apart"), "{error}");
        }
    }
}

#[test]
fn packed_images_decode_and_bad_ones_name_their_record() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("set.jpk");
    fs::write(&path, jpk(&[(3, &jpeg()), (9, b"no image"), (0, &jpeg())])).unwrap();
    let set = Dataset::open(&path).unwrap();
    let results: Vec<_> = set.iter().collect();
    assert_eq!(results[0].as_ref().unwrap().label, 3);
    assert_eq!(results[2].as_ref().unwrap().image.dimensions(), (40, 24));
    let error = format!("{:#}", results[1].as_ref().unwrap_err());
    assert!(error.contains("set.jpk, record 1: not a JPEG"), "{error}");
}

#[test]
fn class_folders_are_labelled_by_their_names() {
    let cases = [
        (["n01440764", "n15075141"], [0, 999]),
        (["7", "012"], [12, 7]),
        (["truck", "bird"], [2, 9]),
        (["wolf", "apple"], [0, 1]),
    ];
    for (names, labels) in cases {
        let root = tempfile::tempdir().unwrap();
        for name in names {
            fs::create_dir(root.path().join(name)).unwrap();
            fs::write(root.path().join(name).join("a.JPG"), jpeg()).unwrap();
            fs::write(root.path().join(name).join("notes.txt"), "passed over").unwrap();
            fs::write(root.path().join(name).join(".hidden.jpg"), "passed over").unwrap();
        }
        let set = Dataset::open(root.path()).unwrap();
        assert_eq!((0..set.len()).map(|i| set.label(i).unwrap()).collect::<Vec<_>>(), labels, "{names:?}");
        set.get(1).unwrap();
    }
}

#[test]
fn label_files_that_lie_name_their_line() {
    let folder = tempfile::tempdir().unwrap();
    let open = |csv: &[u8]| {
        fs::write(folder.path().join("labels.csv"), csv).unwrap();
        format!("{:#}", Dataset::open(folder.path()).expect_err("is refused"))
    };
    for (csv, reason) in [
        (b"".as_slice(), "labels.csv: empty"),
        (b"file,label\n", "no images"),
        (b"file,class\na,1\n", "no column `label`"),
        (b"file,label\na.jpg\n", "line 2: no label"),
        (b"file,label\na.jpg,1\nb.jpg,dog\n", "line 3: label `dog` is not a class index"),
        (b"file,label\na.jpg,-1\n", "line 2: label `-1`"),
        (b"file,label\n../a.jpg,1\n", "line 2: `../a.jpg` is not inside"),
        (b"file,label\n/etc/passwd,1\n", "line 2: `/etc/passwd` is not inside"),
        (b"file,label\n\xff,1\n", "not UTF-8"),
    ] {
        let error = open(csv);
        assert!(error.contains(reason), "{error}");
    }
    fs::write(folder.path().join("labels.csv"), "label,file\n4,gone.jpg\n").unwrap();
    let error = format!("{:#}", Dataset::open(folder.path()).unwrap().get(0).unwrap_err());
    assert!(error.contains("gone.jpg"), "{error}");
}

#[test]
fn files_that_lie_name_their_record() {
    let image = jpeg();
    let whole = jpk(&[(1, &image), (2, &image)]);
    let with = |at: usize, value: u32| {
        let mut bytes = whole.clone();
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        bytes
    };
    let second = 8 + 5 + image.len();
    for (bytes, reason) in [
        (vec![], "does not start with JPK1"),
        (b"JPK1\x01".to_vec(), "cut short in the header"),
        (jpk(&[]), "no images"),
        (with(4, u32::MAX), "4294967295 records announced, 2 found"),
        (with(4, 1), "1 records announced, 2 found"),
        (with(second + 1, u32::MAX), "record 1: 4294967295 bytes announced"),
        (whole[..whole.len() - 1].to_vec(), "record 1: "),
        (whole[..second + 3].to_vec(), "record 1: cut short"),
        (jpk(&[(10, &image)]), "record 0: label 10"),
    ] {
        let error = refusal("lies.jpk", &bytes);
        assert!(error.contains(reason), "{error}");
    }
    assert!(refusal("empty.bin", b"").contains("no images"));
    assert!(refusal("short.bin", &[0; RECORD + 7]).contains("record 1: cut short, 7 of 3073"));
    assert!(refusal("label.bin", &[10; RECORD]).contains("record 0: label 10"));
    assert!(refusal("set.zip", b"PK").contains("not a folder"));
    assert!(Dataset::open(Path::new("/nowhere/at/all")).is_err());
}

#[test]
fn noise_never_panics() {
    use proptest::{prelude::*, test_runner::RngSeed};
    let folder = tempfile::tempdir().unwrap();
    let image = jpeg();
    let seed = jpk(&[(1, &image), (2, &image[..90]), (3, &[])]);
    let edits = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6);
    let config = ProptestConfig {
        cases: 500,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(1),
        ..Default::default()
    };
    proptest!(config, |(edits in edits, keep in any::<prop::sample::Index>(), name in "set\\.(jpk|bin)")| {
        let mut bytes = seed.clone();
        for (at, value) in edits {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        bytes.truncate(1 + keep.index(bytes.len()));
        let path = folder.path().join(name);
        fs::write(&path, &bytes).unwrap();
        if let Ok(set) = Dataset::open(&path) {
            set.iter().for_each(drop);
        }
    });
}
