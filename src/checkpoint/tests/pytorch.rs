//! PyTorch archives that are right, in every shape training scripts give them.

use zip::CompressionMethod;

use super::build::{Program, View, archive, f32s, torch};
use super::{assert_rejects, open};
use crate::checkpoint::{Checkpoint, DType, ErrorKind};

fn names(bytes: &[u8]) -> Vec<String> {
    open(bytes).unwrap().tensors().keys().cloned().collect()
}

#[test]
fn the_top_level_can_be_the_state_dict() {
    let program = Program::new().dict().text("module.a").vector("0", 2).text("epoch").int(3);
    let program = program.text("bn.num_batches_tracked").vector("0", 2).end();
    let file = torch(program, &[&f32s(&[1.0, 2.0])]);
    assert_eq!(names(&file), ["a"]);
    assert_eq!(open(&file).unwrap().read_f32("a").unwrap(), [1.0, 2.0]);
}

#[test]
fn every_known_entry_is_found() {
    for entry in ["state_dict", "model", "model_state_dict", "model_ema"] {
        // best_acc1 is a tensor in some training scripts, which does not make the top level a state dict.
        let program = Program::new().dict().text("best_acc1").vector("0", 1);
        let program = program.text(entry).dict().text("module.module.w").vector("0", 1).end().end();
        assert_eq!(names(&torch(program, &[&f32s(&[1.0])])), ["w"], "{entry}");
    }
}

#[test]
fn two_sets_of_weights_are_ambiguous_until_one_is_named() {
    let program = Program::new().dict().text("model").dict().text("w").vector("0", 1).end();
    let program = program.text("model_ema").dict().text("w").vector("1", 1).end().end();
    let file = torch(program, &[&f32s(&[1.0]), &f32s(&[2.0])]);
    let error = open(&file).unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::Ambiguous { candidates } if candidates == &["model", "model_ema"])
    );
    assert_rejects(&file, "several entries hold weights (model, model_ema)");

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("net.pth");
    std::fs::write(&path, &file).unwrap();
    let ema = Checkpoint::open_entry(&path, "model_ema").unwrap();
    assert_eq!(ema.read_f32("w").unwrap(), [2.0]);
    let message = Checkpoint::open_entry(&path, "ema").unwrap_err().to_string();
    assert!(message.contains("has no entry `ema`; it has `model`, `model_ema`"), "{message}");
}

#[test]
fn one_dict_under_two_names_is_not_ambiguous() {
    let program = Program::new().dict().text("model").dict().text("w").vector("0", 1).end().raw(b"q\x07");
    let program = program.text("state_dict").raw(b"h\x07").end();
    assert_eq!(names(&torch(program, &[&f32s(&[1.0])])), ["w"]);
}

/// `OrderedDict` with the attributes that PyTorch gives it, parameters, and protocol 4's opcodes.
#[test]
fn ordered_dicts_and_parameters_are_understood() {
    let program = Program::new().raw(b"\x80\x04\x95\0\0\0\0\0\0\0\0").raw(b"\x8c\x0bcollections\x94");
    let program = program.raw(b"\x8c\x0bOrderedDict\x94\x93\x94)R\x94(");
    let program = program.text("w").global("torch._utils", "_rebuild_parameter").raw(b"(").vector("0", 2);
    let program = program.raw(b"\x88h\x02)RtR").end();
    let program = program.raw(b"}").text("_metadata").raw(b"h\x02)Rsb");
    assert_eq!(open(&torch(program, &[&f32s(&[3.0, 4.0])])).unwrap().read_f32("w").unwrap(), [3.0, 4.0]);
}

#[test]
fn unknown_objects_beside_the_weights_are_passed_over() {
    let program = Program::new().dict();
    let program =
        program.text("args").global("argparse", "Namespace").raw(b")\x81}").text("lr").int(1).raw(b"sb");
    let program =
        program.text("best").global("numpy.core.multiarray", "scalar").raw(b"(").text("f8").raw(b"tR");
    let program = program.text("seen").raw(b"\x8f(").int(1).raw(b"\x90");
    let program = program.text("log").global("collections", "deque").raw(b")R(").int(1).raw(b"e");
    let program = program.text("optimizer").dict().text("state").dict().int(0).vector("9", 7).end().end();
    let program = program.text("state_dict").dict().text("w").vector("0", 1).end().end();
    assert_eq!(names(&torch(program, &[&f32s(&[1.0])])), ["w"]);
}

#[test]
fn an_unknown_object_as_a_weight_is_an_error() {
    let program = Program::new().dict().text("state_dict").dict().text("w");
    let program = program.global("numpy.core.multiarray", "_reconstruct").raw(b"(tR").end().end();
    assert_rejects(
        &torch(program, &[]),
        "`w` is made by numpy.core.multiarray._reconstruct, which this reader",
    );
    let program = Program::new().global("models.resnet", "ResNet").raw(b")\x81");
    assert_rejects(&torch(program, &[]), "holds an object of models.resnet.ResNet instead of a state dict");
    let program = Program::new().dict().text("epoch").int(3).end();
    assert_rejects(&torch(program, &[]), "has no entry with weights; it has `epoch`");
}

#[test]
fn views_of_one_storage_read_right() {
    let values: Vec<f32> = (0..24u8).map(f32::from).collect();
    let base = View { elements: 24, ..View::default() };
    let program = Program::new().dict();
    let program = program.text("transposed").tensor(View { shape: &[3, 2], strides: &[1, 3], ..base });
    let program = program.text("tail").tensor(View { first: 20, shape: &[2, 2], strides: &[2, 1], ..base });
    let program =
        program.text("steps").tensor(View { first: 1, shape: &[2, 1, 3], strides: &[12, 99, 4], ..base });
    let program = program.text("scalar").tensor(View { first: 23, shape: &[], strides: &[], ..base });
    let program = program.text("empty").tensor(View { first: 99, shape: &[0, 4], strides: &[4, 1], ..base });
    let program =
        program.text("channels_last").tensor(View { shape: &[1, 2, 2, 3], strides: &[12, 1, 6, 2], ..base });
    let program = program.text("pair").tensor(View { shape: &[2, 2], strides: &[0, 1], ..base }).end();
    for (method, file) in [CompressionMethod::Stored, CompressionMethod::Deflated].map(|method| {
        let entries: &[(&str, &[u8])] = &[("data.pkl", &program.clone().done()), ("data/0", &f32s(&values))];
        (method, archive(entries, method))
    }) {
        let checkpoint = open(&file).unwrap();
        let read = |name| checkpoint.read_f32(name).unwrap();
        assert_eq!(read("transposed"), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0], "{method}");
        assert_eq!(read("tail"), [20.0, 21.0, 22.0, 23.0], "{method}");
        assert_eq!(read("steps"), [1.0, 5.0, 9.0, 13.0, 17.0, 21.0], "{method}");
        assert_eq!(read("scalar"), [23.0], "{method}");
        assert!(read("empty").is_empty(), "{method}");
        assert_eq!(
            read("channels_last"),
            [0.0, 2.0, 4.0, 6.0, 8.0, 10.0, 1.0, 3.0, 5.0, 7.0, 9.0, 11.0],
            "{method}"
        );
        assert_eq!(read("pair"), [0.0, 1.0, 0.0, 1.0], "{method}");
    }
}

#[test]
fn big_endian_files_read_right() {
    let view =
        View { class: "HalfStorage", elements: 4, shape: &[2, 2], strides: &[1, 2], ..View::default() };
    let program = Program::new().dict().text("a").vector("1", 2).text("b").tensor(view).end();
    let halves = [0x3c00u16, 0x4000, 0x4200, 0x4400].map(u16::to_be_bytes).concat();
    let floats = [1.5f32, -2.0].map(f32::to_be_bytes).concat();
    let entries: &[(&str, &[u8])] =
        &[("data.pkl", &program.done()), ("byteorder", b"big"), ("data/0", &halves), ("data/1", &floats)];
    let checkpoint = open(&archive(entries, CompressionMethod::Stored)).unwrap();
    assert_eq!(checkpoint.read_f32("a").unwrap(), [1.5, -2.0]);
    assert_eq!(checkpoint.read_f32("b").unwrap(), [1.0, 3.0, 2.0, 4.0]);
    assert_eq!(checkpoint.read_bytes("a").unwrap(), f32s(&[1.5, -2.0]));
    assert_eq!(checkpoint.tensors()["b"].dtype, DType::F16);
}

#[test]
fn a_flipped_bit_in_the_weights_is_seen() {
    let file = torch(Program::new().dict().text("w").vector("0", 2).end(), &[&f32s(&[1.25, 2.5])]);
    let weights = f32s(&[1.25, 2.5]);
    let at = file.windows(8).position(|bytes| bytes == weights).unwrap();
    let mut flipped = file.clone();
    flipped[at] ^= 1;
    let message = open(&flipped).unwrap().read_f32("w").unwrap_err().to_string();
    assert!(message.contains("the archive entry `net/data/0` is damaged"), "{message}");
}

#[test]
fn archives_that_are_no_checkpoints_are_named() {
    let stored = CompressionMethod::Stored;
    assert_rejects(&archive(&[("a.txt", b"hello")], stored), "without data.pkl");
    let program = Program::new().dict().end().done();
    assert_rejects(
        &archive(&[("data.pkl", &program), ("a/data.pkl", &program)], stored),
        "more than one data.pkl",
    );
    assert_rejects(&archive(&[("data.pkl", &program), ("version", b"11\n")], stored), "version 11 is newer");
    assert_rejects(&archive(&[("data.pkl", &program), ("byteorder", b"middle")], stored), "byteorder");
}
