//! Safetensors headers, right and wrong.

use super::build::{f32s, safetensors};
use super::{assert_rejects, open};
use crate::checkpoint::ErrorKind;

fn entry(dtype: &str, shape: &str, from: u64, to: u64) -> String {
    format!(r#"{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{from},{to}]}}"#)
}

#[test]
fn every_type_converts() {
    let cases: &[(&str, &[u8], [f32; 2])] = &[
        ("F64", &[1.5f64.to_le_bytes(), (-2f64).to_le_bytes()].concat(), [1.5, -2.0]),
        ("F32", &f32s(&[1.5, -2.0]), [1.5, -2.0]),
        ("F16", &[0x00, 0x3e, 0x00, 0xc0], [1.5, -2.0]),
        ("BF16", &[0xc0, 0x3f, 0x00, 0xc0], [1.5, -2.0]),
        ("I64", &[5i64.to_le_bytes(), (-6i64).to_le_bytes()].concat(), [5.0, -6.0]),
        ("I32", &[5i32.to_le_bytes(), (-6i32).to_le_bytes()].concat(), [5.0, -6.0]),
        ("I16", &[5, 0, 0xfa, 0xff], [5.0, -6.0]),
        ("I8", &[5, 0xfa], [5.0, -6.0]),
        ("U64", &[5u64.to_le_bytes(), (1u64 << 63).to_le_bytes()].concat(), [5.0, 9.223_372e18]),
        ("U32", &[5u32.to_le_bytes(), u32::MAX.to_le_bytes()].concat(), [5.0, 4.294_967_3e9]),
        ("U16", &[5, 0, 0xff, 0xff], [5.0, 65535.0]),
        ("U8", &[5, 255], [5.0, 255.0]),
        ("BOOL", &[0, 7], [0.0, 1.0]),
    ];
    for (dtype, data, expected) in cases {
        let file = safetensors(&format!(r#"{{"w":{}}}"#, entry(dtype, "[2]", 0, data.len() as u64)), data);
        let checkpoint = open(&file).unwrap();
        assert_eq!(checkpoint.tensors()["w"].dtype.name(), *dtype);
        assert_eq!(checkpoint.read_f32("w").unwrap(), expected, "{dtype}");
        assert_eq!(checkpoint.read_bytes("w").unwrap(), *data, "{dtype}");
    }
}

#[test]
fn names_are_cleaned_and_metadata_kept() {
    let header = format!(
        r#"{{"__metadata__":{{"config":"{{}}"}},"module._orig_mod.a":{},"bn.num_batches_tracked":{},"s":{},"e":{}}}  "#,
        entry("F32", "[1]", 0, 4),
        entry("I64", "[]", 4, 12),
        entry("F32", "[]", 12, 16),
        entry("F32", "[3,0]", 16, 16),
    );
    let checkpoint = open(&safetensors(&header, &[0; 16])).unwrap();
    assert_eq!(checkpoint.tensors().keys().collect::<Vec<_>>(), ["a", "e", "s"]);
    assert_eq!(checkpoint.metadata()["config"], "{}");
    assert_eq!(checkpoint.read_f32("s").unwrap(), [0.0]);
    assert!(checkpoint.read_f32("e").unwrap().is_empty());
}

#[test]
fn wrong_headers_are_rejected() {
    let w = |entry: String| safetensors(&format!(r#"{{"w":{entry}}}"#), &[0; 8]);
    assert_rejects(&w(entry("F32", "[3]", 0, 8)), "`w`: 8 bytes do not hold its shape in F32");
    assert_rejects(&w(entry("F32", "[2]", 0, 12)), "claims bytes 0..12");
    assert_rejects(&w(entry("F32", "[1]", 4, 8)), "claims bytes 4..8, but the next free byte is 0");
    assert_rejects(&w(entry("F32", "[1]", 8, 4)), "claims bytes 8..4");
    assert_rejects(&w(entry("F32", "[1]", 0, 4)), "end at byte 4 of 8");
    assert_rejects(&w(entry("F32", "[4611686018427387904,4]", 0, 8)), "do not hold its shape");
    assert_rejects(&w(entry("F32", "[18446744073709551615]", 0, 8)), "do not hold its shape");
    assert_rejects(&w(entry("F32", "[-2]", 0, 8)), "bad header");
    assert_rejects(&w(entry("F32", "[NaN]", 0, 8)), "bad header");
    assert_rejects(&w(entry("F32", "[2.0]", 0, 8)), "bad header");
    assert_rejects(&w(entry("F8_E4M3", "[8]", 0, 8)), "`w` has dtype `F8_E4M3`, which is not supported");
    assert_rejects(&w(entry(&"A\\n".repeat(5000), "[8]", 0, 8)), "not supported");

    let twice = format!(r#"{{"w":{0},"w":{0}}}"#, entry("F32", "[2]", 0, 8));
    assert_rejects(&safetensors(&twice, &[0; 8]), "the name `w` appears twice");
    let twice = format!(r#"{{"w":{},"module.w":{}}}"#, entry("F32", "[1]", 0, 4), entry("F32", "[1]", 4, 8));
    assert_rejects(&safetensors(&twice, &[0; 8]), "two tensors are named `w`");
    let overlap = format!(r#"{{"v":{},"w":{}}}"#, entry("F32", "[2]", 0, 8), entry("F32", "[1]", 4, 8));
    assert_rejects(
        &safetensors(&overlap, &[0; 8]),
        "tensor `w` claims bytes 4..8, but the next free byte is 8",
    );
    assert_rejects(&safetensors(r#"{"__metadata__":{"a":"1","a":"2"}}"#, &[]), "twice");
    assert_rejects(&safetensors("{\"w\":\u{7f}", &[]), "bad header");
    assert_rejects(&safetensors(&format!("{{\"a\":{}", "[".repeat(10_000)), &[]), "bad header");
}

#[test]
fn lengths_that_lie_are_rejected() {
    for length in [100, 99_999_999, u64::from(u32::MAX), 1 << 40, u64::MAX - 8, u64::MAX] {
        let file = [&length.to_le_bytes()[..], b"{}"].concat();
        assert_rejects(&file, &format!("the header claims {length} bytes, the file has 2 left"));
    }
    assert_rejects(&[0, 0, 0, 0, 0, 0, 0, 0, b'{'], "bad header");
}

#[test]
fn weights_that_are_not_finite_are_named() {
    let file = safetensors(
        &format!(r#"{{"w":{}}}"#, entry("F32", "[3]", 0, 12)),
        &f32s(&[1.0, f32::NEG_INFINITY, f32::NAN]),
    );
    let checkpoint = open(&file).unwrap();
    assert_eq!(checkpoint.read_f32("w").unwrap()[1], f32::NEG_INFINITY);
    let error = checkpoint.read_finite_f32("w").unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::NonFinite { index: 1, .. }));
    assert_eq!(error.to_string(), "test.bin: tensor `w` holds -inf at element 1");
    assert_eq!(checkpoint.read_f32("v").unwrap_err().to_string(), "test.bin: has no tensor `v`");
}

#[test]
fn a_file_cut_short_after_opening_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("w.safetensors");
    let file = safetensors(&format!(r#"{{"w":{}}}"#, entry("F32", "[2]", 0, 8)), &[0; 8]);
    std::fs::write(&path, &file).unwrap();
    let checkpoint = crate::checkpoint::Checkpoint::open(&path).unwrap();
    assert_eq!(checkpoint.read_f32("w").unwrap(), [0.0, 0.0]);
    std::fs::write(&path, &file[..file.len() - 1]).unwrap();
    let message = checkpoint.read_f32("w").unwrap_err().to_string();
    assert!(message.contains("ends before its own tables say"), "{message}");
}
