//! What may know what, read off the sources: paths that appear in a room's code and must not.

use std::fs;
use std::path::{Path, PathBuf};

/// Code of one file, without comments and unit tests.
struct Source {
    /// From the root of the repository, with forward slashes.
    path: String,
    code: String,
}

impl Source {
    fn within(&self, room: &str) -> bool {
        self.path == room || self.path == format!("{room}.rs") || self.path.starts_with(&format!("{room}/"))
    }

    /// Lines that contain one of the names as a whole path.
    fn mentions(&self, names: &[&str]) -> Vec<String> {
        let word = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
        let has = |line: &str, name: &str| {
            line.match_indices(name).any(|(at, _)| {
                let open = name.ends_with(['_', ':']);
                !word(line[..at].chars().next_back())
                    && (open || !word(line[at + name.len()..].chars().next()))
            })
        };
        let hits = self.code.lines().filter(|line| names.iter().any(|name| has(line, name)));
        hits.map(|line| format!("{}: {}", self.path, line.trim())).collect()
    }
}

/// Rust files below the folders, without tests.
fn sources(folders: &[&str]) -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    folders.iter().for_each(|folder| collect(&root.join(folder), &mut files));
    assert!(files.len() > folders.len(), "sources of {folders:?}");
    let source = |file: PathBuf| {
        let path = file.strip_prefix(root).unwrap().to_string_lossy().replace('\\', "/");
        Source { code: code(&fs::read_to_string(&file).unwrap()), path }
    };
    files.into_iter().map(source).collect()
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        // Build scripts learn from the environment where they are.
        let other = ["tests", "testing", "build"].contains(&name.as_str()) || name.ends_with("_tests");
        if path.is_dir() && !other {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") && !other {
            files.push(path);
        }
    }
}

/// Without comments, up to a file's module of unit tests; behind it what its `use` lines import, one path a line.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let lines: Vec<_> = text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect();
    let mut code = lines.join("\n");
    let mut paths = Vec::new();
    let starts = code.match_indices("use ").filter(|(at, _)| code[..*at].ends_with(['\n', ' ']) || *at == 0);
    for tree in starts.map(|(at, _)| code[at + 4..].split(';').next().unwrap_or_default()) {
        expand(String::new(), &tree.split_whitespace().collect::<String>(), &mut paths);
    }
    code.push('\n');
    code + &paths.join("\n")
}

/// `a::{b, c::{d}}` to `a::b` and `a::c::d`.
fn expand(prefix: String, tree: &str, paths: &mut Vec<String>) {
    let Some((path, inner)) = tree.split_once('{') else { return paths.push(prefix + tree) };
    let inner = inner.strip_suffix('}').unwrap_or(inner);
    let (mut depth, mut start) = (0, 0);
    for (at, c) in inner.char_indices().chain([(inner.len(), ',')]) {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                expand(format!("{prefix}{path}"), &inner[start..at], paths);
                start = at + 1;
            }
            _ => {}
        }
    }
}

/// `room` mentions none of `names`.
fn forbid(sources: &[Source], room: &str, names: &[&str], why: &str) {
    let within: Vec<_> = sources.iter().filter(|source| source.within(room)).collect();
    assert!(!within.is_empty(), "{room} is not there");
    let hits: Vec<_> = within.iter().flat_map(|source| source.mentions(names)).collect();
    assert!(hits.is_empty(), "{why}:\n{}", hits.join("\n"));
}

#[test]
fn arrows_inside_the_runtime_point_down() {
    let src = sources(&["src"]);
    let down = "cli → {session, calibrate, train, report} → exec → plan → gate";
    let above_exec = [
        "crate::cli",
        "crate::session",
        "crate::Session",
        "crate::calibrate",
        "crate::train",
        "crate::report",
    ];
    forbid(&src, "src/exec", &above_exec, down);
    forbid(&src, "src/plan", &above_exec, down);
    forbid(&src, "src/gate", &above_exec, down);
    forbid(&src, "src/plan", &["crate::exec", "laud_kernels"], down);
    forbid(&src, "src/gate", &["crate::exec", "crate::plan", "laud_predictor"], down);
    for room in ["src/session", "src/train", "src/report"] {
        forbid(&src, room, &["crate::cli"], down);
    }
    for room in ["src/checkpoint", "src/vision"] {
        forbid(
            &src,
            room,
            &["crate::exec", "crate::plan", "crate::session", "crate::Session", "crate::cli"],
            down,
        );
    }
}

#[test]
fn the_executor_knows_neither_candle_nor_fitting() {
    let why = "the verdict of the predictor is in the plan, and weights come through a trait";
    forbid(&sources(&["src"]), "src/exec", &["candle_", "laud_predictor::fit"], why);
}

#[test]
fn training_is_made_fast_from_outside() {
    let src = sources(&["src"]);
    let why = "train takes its fast operations as a trait object; autograd knows kernels and that trait";
    forbid(&src, "src/train", &["crate::autograd"], why);
    let above =
        ["crate::exec", "crate::plan", "crate::gate", "crate::session", "crate::Session", "crate::cli"];
    forbid(&src, "src/autograd", &above, why);
}

#[test]
fn the_oracle_shares_nothing_with_what_it_checks() {
    let names =
        ["laud_kernels", "crate::exec", "crate::plan", "crate::gate", "crate::session", "crate::Session"];
    forbid(&sources(&["src"]), "src/train", &names, "train is what exec and the kernels are tested against");
}

#[test]
fn only_the_executor_is_generic_over_the_backend() {
    for source in sources(&["src"]).iter().filter(|source| !source.within("src/exec")) {
        let hits = source.mentions(&["Backend"]);
        assert!(hits.is_empty(), "a backend is chosen once, when a session is built:\n{}", hits.join("\n"));
    }
}

#[test]
fn crates_below_know_nothing_of_ours() {
    let all = sources(&["kernels", "models/src", "predictor/src"]);
    forbid(&all, "kernels", &["candle_", "laud_models", "laud_predictor"], "kernels stand alone");
    forbid(&all, "models/src", &["candle_", "laud_kernels", "laud_predictor"], "models are data");
    let names = [
        "candle_",
        "cudarc",
        "laud_kernels",
        "laud_models",
        "std::time",
        "Instant",
        "SystemTime",
        "std::env",
    ];
    forbid(
        &all,
        "predictor/src",
        &names,
        "the predictor is numbers: no tensors, devices, clocks, environment",
    );
    for name in ["kernels", "models", "predictor"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name).join("Cargo.toml");
        let manifest = fs::read_to_string(path).unwrap();
        assert!(!manifest.contains("path = \".."), "{name} depends on one of our crates");
    }
}

#[test]
fn unsafe_is_fenced_into_the_kernels() {
    let all = sources(&["src", "models/src", "predictor/src"]);
    for root in ["src/lib.rs", "src/main.rs", "models/src/lib.rs", "predictor/src/lib.rs"] {
        let source = all.iter().find(|source| source.path == root).unwrap();
        assert!(source.code.contains("#![forbid(unsafe_code)]"), "{root} does not forbid unsafe code");
    }
    let mut files = Vec::new();
    for folder in ["src", "models", "predictor", "tests", "benches"] {
        cuda(&Path::new(env!("CARGO_MANIFEST_DIR")).join(folder), &mut files);
    }
    assert!(files.is_empty(), "CUDA belongs into kernels: {files:?}");
}

fn cuda(folder: &Path, files: &mut Vec<PathBuf>) {
    for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            cuda(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "cu" || extension == "cuh") {
            files.push(path);
        }
    }
}

/// Tables that are parsed from files in the binary: the same for everybody, and never written again.
const TABLES: [&str; 2] = ["src/report/text.rs", "src/vision/labels.rs"];

#[test]
fn nothing_is_global_but_constants() {
    let all = sources(&["src", "kernels", "models/src", "predictor/src"]);
    for source in &all {
        let mut hits = source.mentions(&["static mut", "thread_local!", "lazy_static!"]);
        if !TABLES.contains(&source.path.as_str()) {
            hits.extend(source.mentions(&["LazyLock"]));
        }
        let shared = ["Mutex", "RwLock", "Atomic", "Cell<", "OnceLock"];
        let statics = source.mentions(&["static"]);
        hits.extend(statics.into_iter().filter(|line| {
            let item = line.contains(" static ") && !line.contains("&'static");
            item && shared.iter().any(|kind| line.contains(kind))
        }));
        assert!(hits.is_empty(), "state of the whole process:\n{}", hits.join("\n"));
        if !source.within("src/main.rs") && !source.within("src/cli") {
            let hits = source.mentions(&["std::env", "env::var", "env::args"]);
            assert!(hits.is_empty(), "the environment is read by the command only:\n{}", hits.join("\n"));
        }
    }
}
