//! Programs that lie, and programs that attack.

use zip::CompressionMethod;

use super::build::{Program, View, archive, f32s, torch};
use super::{assert_rejects, open, rejection};
use crate::checkpoint::ErrorKind;

#[test]
fn code_is_refused_by_name() {
    // The classic: `os.system("touch owned")` where the weights should be.
    let file = torch(Program::new().raw(b"cposix\nsystem\nX\x0b\0\0\0touch owned\x85R"), &[]);
    let error = open(&file).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Refused { global, .. } if global == "posix.system"));
    assert_eq!(
        error.to_string(),
        "test.bin: data.pkl wants to call posix.system; refused: nothing in a checkpoint is executed"
    );
}

#[test]
fn code_is_refused_wherever_it_hides() {
    for (module, name) in [
        ("os", "system"),
        ("nt", "system"),
        ("os.path", "join"),
        ("subprocess", "Popen"),
        ("builtins", "eval"),
        ("builtins", "exec"),
        ("builtins", "getattr"),
        ("__builtin__", "__import__"),
        ("importlib", "import_module"),
        ("runpy", "_run_code"),
        ("socket", "create_connection"),
        ("pickle", "loads"),
    ] {
        let reason = format!("wants to call {module}.{name}; refused");
        let weights =
            |program: Program| program.text("state_dict").dict().text("w").vector("0", 1).end().end();
        let classic = weights(Program::new().dict().text("args").global(module, name).raw(b"(tR"));
        assert_rejects(&torch(classic, &[&f32s(&[1.0])]), &reason);
        let stacked = Program::new().dict().text("args").text(module).text(name).raw(b"\x93)\x81");
        assert_rejects(&torch(weights(stacked), &[&f32s(&[1.0])]), &reason);
        // Named and thrown away, never called.
        let dropped = Program::new().global(module, name).raw(b"0").dict();
        assert_rejects(&torch(weights(dropped), &[&f32s(&[1.0])]), &reason);
    }
}

#[test]
fn names_cannot_forge_a_message() {
    let module = format!("os.{}\u{1b}[31m\r", "x".repeat(10_000));
    rejection(&torch(Program::new().text(&module).text("a\nb").raw(b"\x93"), &[]));
    let program =
        Program::new().dict().text("a\nb\u{202e}").global("x\r", "y").raw(b")R").text("v").vector("0", 1);
    rejection(&torch(program.end(), &[]));
}

#[test]
fn views_that_lie_are_rejected() {
    let storage = f32s(&[0.0; 4]);
    let case = |view: View<'_>| torch(Program::new().dict().text("w").tensor(view).end(), &[&storage]);
    let base = View { elements: 4, shape: &[4], ..View::default() };
    assert!(open(&case(base)).is_ok());

    assert_rejects(&case(View { shape: &[5], ..base }), "`w`: it reaches past its storage");
    assert_rejects(&case(View { first: 1, ..base }), "reaches past its storage");
    assert_rejects(&case(View { shape: &[2, 2], strides: &[3, 1], ..base }), "reaches past its storage");
    assert_rejects(&case(View { elements: 5, shape: &[5], ..base }), "claims 5 elements of F32");
    assert_rejects(&case(View { elements: i64::MAX, shape: &[i64::MAX], ..base }), "overflows");
    assert_rejects(
        &case(View { elements: 1 << 60, shape: &[1 << 60], ..base }),
        "elements of F32, its archive entry",
    );
    assert_rejects(&case(View { shape: &[1 << 40], strides: &[0], ..base }), "expanded view");
    assert_rejects(&case(View { shape: &[i64::MAX, i64::MAX], strides: &[1, 1], ..base }), "overflows");
    assert_rejects(&case(View { first: i64::MAX, strides: &[i64::MAX], ..base }), "reaches past");
    assert_rejects(&case(View { strides: &[-1], ..base }), "are not sizes");
    assert_rejects(&case(View { first: -1, ..base }), "are not sizes");
    assert_rejects(&case(View { shape: &[2, 2], ..base }), "another number of dimensions");
    assert_rejects(&case(View { shape: &[1; 9], strides: &[1; 9], ..base }), "are not sizes");
    assert_rejects(&case(View { key: "7", ..base }), "its storage data/`7` is missing");
    assert_rejects(&case(View { key: "../data.pkl", elements: 1, shape: &[1], ..base }), "is missing");
    assert_rejects(
        &case(View { class: "ComplexFloatStorage", ..base }),
        "torch.ComplexFloatStorage is not supported",
    );
}

#[test]
fn programs_that_make_no_sense_are_rejected() {
    let case = |bytes: &[u8]| torch(Program::new().raw(bytes), &[]);
    assert_rejects(&case(b"0"), "the stack is empty");
    assert_rejects(&case(b"(0"), "the stack is empty");
    assert_rejects(&case(b"1"), "no mark is open");
    assert_rejects(&case(b"N(\x85"), "the stack is empty");
    assert_rejects(&case(b"h\x00"), "memo slot 0 is empty");
    assert_rejects(&case(b"j\xff\xff\xff\xff"), "memo slot 4294967295 is empty");
    assert_rejects(&case(b"Nr\xff\xff\xff\xff"), "instead of a state dict");
    assert_rejects(&case(b"}(Nu"), "a key has no value");
    assert_rejects(&case(b"N(NNu"), "items are set in None");
    assert_rejects(&case(b"NNa"), "items are appended to None");
    assert_rejects(&case(b"NQ"), "persistent id");
    assert_rejects(&case(b"N)R"), "None is called");
    assert_rejects(&case(b"X\xff\xff\xff\xff"), "the program ends early");
    assert_rejects(&case(b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff"), "the program ends early");
    assert_rejects(&case(b"\x8b\xff\xff\xff\x7f"), "the program ends early");
    assert_rejects(&case(b"X\x01\0\0\0\xff"), "not UTF-8");
    assert_rejects(&case(b"cos"), "the program ends early");
    assert_rejects(&case(b"\x80\x01"), "protocol 1");
    assert_rejects(&case(b"S'a'\n"), "opcode 0x53");
    assert_rejects(&case(b"ctorch._utils\n_rebuild_tensor_v2\n)R"), "describe no tensor");
    assert_rejects(&case(b"ctorch._utils\n_rebuild_parameter\n)R"), "without a tensor");
    // A dict that holds itself, and one that is its own entry.
    assert_rejects(&case(b"}q\x00X\x01\0\0\0ah\x00s"), "has no entry with weights");
    assert_rejects(&case(b"}q\x00X\x05\0\0\0modelh\x00s"), "has no entry with weights");
}

/// A megabyte of program must not become gigabytes of values, in memory or in time.
#[test]
fn nothing_amplifies() {
    let long = b"K\x01".repeat(1 << 16);
    let tuple = Program::new().raw(b"(").raw(&long).raw(b"tq\x00");
    let call = b"ctorch._utils\n_rebuild_tensor_v2\nq\x01";
    let program = tuple.raw(call).raw(b"(").storage("FloatStorage", "0", 1).raw(b"K\x00h\x00h\x00tq\x02");
    let program = program.raw(&b"h\x01h\x02R".repeat(100_000));
    rejection(&torch(program, &[&[0; 4]]));
    let nested = Program::new().raw(&b"]".repeat(1 << 20)).raw(&b"a".repeat((1 << 20) - 1));
    rejection(&torch(nested, &[]));
    let marks = Program::new().raw(&b"(".repeat(1 << 20));
    rejection(&torch(marks, &[]));
}

#[test]
fn a_program_or_storage_that_unpacks_to_a_lie_is_rejected() {
    // 64 MiB of zeros in 64 KiB.
    let bomb = vec![b'N'; 64 << 20];
    let file = archive(&[("data.pkl", &bomb)], CompressionMethod::Deflated);
    assert!(file.len() < 1 << 20);
    assert_rejects(&file, "more than 8388608");

    // An archive whose directory claims a petabyte for a compressed storage.
    let program = Program::new().dict().text("w").vector("0", 1 << 48).end().done();
    let mut file = archive(&[("data.pkl", &program), ("data/0", &[0; 64])], CompressionMethod::Deflated);
    let name = b"net/data/0";
    let central = file.windows(name.len()).rposition(|bytes| bytes == name).unwrap() - 46;
    file[central + 24..central + 28].copy_from_slice(&0xffff_fff0u32.to_le_bytes());
    let small = Program::new().dict().text("w").vector("0", 1 << 29).end().done();
    let mut smaller = archive(&[("data.pkl", &small), ("data/0", &[0; 64])], CompressionMethod::Deflated);
    let central = smaller.windows(name.len()).rposition(|bytes| bytes == name).unwrap() - 46;
    smaller[central + 24..central + 28].copy_from_slice(&0xffff_fff0u32.to_le_bytes());
    assert_rejects(&file, "elements of F32");
    assert_rejects(&smaller, "which the file cannot hold");
}

#[test]
fn entries_of_one_name_are_rejected() {
    let program = Program::new().dict().text("w").vector("0", 1).end().done();
    let mut file = archive(
        &[("data.pkl", &program), ("data/0", &[0; 4]), ("data/1", &[1; 4])],
        CompressionMethod::Stored,
    );
    for at in 0..file.len() - 10 {
        if &file[at..at + 10] == b"net/data/1" {
            file[at + 9] = b'0';
        }
    }
    assert_rejects(&file, "two entries of one name");
}
