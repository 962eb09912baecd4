//! Damage of every kind: whatever the bytes, there is an answer, and it costs no more than the file is worth.

use proptest::prelude::*;
use zip::CompressionMethod;

use super::build::{Program, View, archive, f32s, safetensors, torch};
use super::{exercise, open};

fn seeds() -> Vec<Vec<u8>> {
    let view = View { elements: 6, shape: &[3, 2], strides: &[1, 3], ..View::default() };
    let program = Program::new().dict().text("epoch").int(3).text("state_dict");
    let program = program.dict().text("module.w").tensor(view).text("b").vector("1", 2).end().end();
    let weights = f32s(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    let bytes = program.clone().done();
    let entries: &[(&str, &[u8])] = &[("data.pkl", &bytes), ("data/0", &weights), ("data/1", &weights[..8])];
    let header = concat!(
        r#"{"__metadata__":{"config":"{}"},"w":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},"#,
        r#""m":{"dtype":"U8","shape":[4],"data_offsets":[8,12]}}"#
    );
    vec![
        torch(program, &[&weights, &weights[..8]]),
        archive(entries, CompressionMethod::Deflated),
        safetensors(header, &[1; 12]),
    ]
}

/// A generator for the loops that proptest's bookkeeping would slow down: SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % limit as u64) as usize
    }
}

/// One of: flip a bit, overwrite with an awkward value, delete, duplicate, splice in another place's bytes.
fn mutate(bytes: &mut Vec<u8>, random: &mut Random) {
    if bytes.is_empty() {
        return;
    }
    let at = random.below(bytes.len());
    let length = (1 + random.below(16)).min(bytes.len() - at);
    match random.below(5) {
        0 => bytes[at] ^= 1 << random.below(8),
        1 => {
            let value = [0u8, 0xff, 0x7f, 0x80][random.below(4)];
            bytes[at..at + length].fill(value);
        }
        2 => drop(bytes.drain(at..at + length)),
        3 => {
            let copy = bytes[at..at + length].to_vec();
            bytes.splice(at..at, copy);
        }
        _ => {
            let from = random.below(bytes.len());
            let copy = bytes[from..(from + length).min(bytes.len())].to_vec();
            for (target, byte) in bytes[at..].iter_mut().zip(copy) {
                *target = byte;
            }
        }
    }
}

#[test]
fn seeds_are_right_before_they_are_damaged() {
    for seed in seeds() {
        let checkpoint = open(&seed).unwrap();
        assert_eq!(checkpoint.tensors().len(), 2);
        for name in checkpoint.tensors().keys() {
            checkpoint.read_finite_f32(name).unwrap();
        }
    }
}

/// Neither format survives the loss of its end: archives end in their directory, safetensors are measured.
#[test]
fn a_file_cut_anywhere_does_not_open() {
    for seed in seeds() {
        for length in 0..seed.len() {
            let message = super::rejection(&seed[..length]);
            assert!(!message.is_empty());
        }
    }
}

#[test]
fn every_single_bit_flip_has_an_answer() {
    flip_every_bit();
}

fn flip_every_bit() {
    for seed in seeds() {
        for bit in 0..seed.len() * 8 {
            let mut flipped = seed.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            exercise(flipped);
        }
    }
}

proptest! {
    #[test]
    fn random_bytes_have_an_answer(head in 0..3usize, tail in prop::collection::vec(any::<u8>(), 0..300)) {
        let heads: [&[u8]; 3] = [b"", b"PK\x03\x04", b"\x20\0\0\0\0\0\0\0{"];
        exercise([heads[head], &tail].concat());
    }

    #[test]
    fn random_programs_have_an_answer(program in prop::collection::vec(any::<u8>(), 0..300)) {
        exercise(torch(Program::new().raw(&program), &[&[0; 8]]));
    }

    #[test]
    fn random_headers_have_an_answer(header in r#"\{("[a-c]":\{"dtype":"(F32|U8|BOOL)","shape":\[[0-9]{1,20}\],"data_offsets":\[[0-9]{1,20},[0-9]{1,20}\]\},?){0,3}\}"#) {
        exercise(safetensors(&header, &[0; 16]));
    }
}

#[test]
fn many_mutations_have_an_answer() {
    mutate_many(20_000);
}

fn mutate_many(rounds: usize) {
    let mut random = Random(7);
    let seeds = seeds();
    for round in 0..rounds {
        let mut bytes = seeds[round % seeds.len()].clone();
        for _ in 0..1 + random.below(4) {
            mutate(&mut bytes, &mut random);
        }
        exercise(bytes);
    }
}

/// The address space that damaged files of a kilobyte make the process reserve, measured in a process of its own: a
/// reservation that is never touched shows here too.
#[cfg(target_os = "linux")]
#[test]
fn damage_reserves_no_memory() {
    const SELF: &str = "LAUD_TEST_MEASURES_MEMORY";
    if std::env::var_os(SELF).is_some() {
        // What the process once had and gave back would hide a reservation of that size: hold it.
        let before = status_kib("VmPeak:");
        let held = Vec::<u8>::with_capacity((before - status_kib("VmSize:")) << 10);
        flip_every_bit();
        mutate_many(60_000);
        let grown = status_kib("VmPeak:") - before;
        drop(held);
        assert!(grown < 8 << 10, "the address space grew by {grown} KiB");
        return;
    }
    let this_test = std::thread::current().name().expect("tests run in named threads").to_owned();
    let run = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &this_test])
        .env(SELF, "1")
        .output()
        .unwrap();
    let output = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success() && output.contains("1 passed"), "{output}");
}

#[cfg(target_os = "linux")]
fn status_kib(field: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
