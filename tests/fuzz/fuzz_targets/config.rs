//! Descriptions of networks: JSON, then a zero byte, then tensors as lines of a name and sizes. Whatever they say, a
//! network that is built is consistent, and one that is inferred fits its tensors.

#![no_main]

use laud::models::{NetConfig, Shapes, infer};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let (json, tensors) = text.split_once('\0').unwrap_or((text, ""));
    let Ok(hints) = NetConfig::from_json(json) else { return };
    if let Ok(spec) = hints.build() {
        spec.validate().expect("checked when built");
        let own: Shapes = spec.parameters().into_iter().map(|tensor| (tensor.name, tensor.shape)).collect();
        assert!(spec.compare(&own).is_empty());
        check(&own, &hints);
    }
    check(&shapes(tensors), &hints);
});

fn check(shapes: &Shapes, hints: &NetConfig) {
    let Ok(config) = infer(shapes, hints) else { return };
    let spec = config.build().expect("built when inferred");
    assert!(spec.compare(shapes).is_empty());
}

/// Lines such as `conv1.weight 64 3 7 7`; what is no size ends a shape.
fn shapes(lines: &str) -> Shapes {
    let tensor = |line: &str| {
        let mut words = line.split(' ');
        let name = words.next().unwrap_or_default().to_owned();
        (name, words.map_while(|word| word.parse().ok()).collect())
    };
    lines.lines().map(tensor).collect()
}
