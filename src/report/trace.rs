//! A trace as Chrome's trace event JSON, which Perfetto and chrome://tracing open.

use crate::exec::{BlockTrace, Trace};
use laud_models::NetSpec;
use serde_json::{Value, json};

/// The events of one inference: a row for the blocks and, below each, its gate, compaction and computation. Times are as
/// recorded, one after the other; an inference that was not timed gives events without length. `process` tells traces in
/// one file apart by number and name.
pub fn chrome_events(spec: &NetSpec, trace: &Trace, (process, name): (usize, &str)) -> Vec<Value> {
    let mut events =
        vec![json!({ "ph": "M", "pid": process, "name": "process_name", "args": { "name": name } })];
    let mut at = 0;
    let mut push = |name: &str, start: u64, ns: u64, args: Value| {
        // Microseconds, as the format wants.
        let (ts, dur) = (start as f64 / 1e3, ns as f64 / 1e3);
        events.push(json!({
            "ph": "X", "pid": process, "tid": 1, "cat": "laud", "name": name, "ts": ts, "dur": dur, "args": args,
        }));
    };
    for exit in &trace.exits {
        let args = json!({ "macs": exit.macs, "samples": exit.samples, "answered": exit.answered });
        push(&format!("exit {}×{}", exit.size.h, exit.size.w), at, exit.ns, args);
        at += exit.ns;
    }
    push("stem", at, trace.stem_ns, json!({ "macs": trace.stem_macs }));
    at += trace.stem_ns;
    for (block, entry) in spec.blocks.iter().zip(&trace.blocks) {
        let &BlockTrace { gate_ns, compact_ns, compute_ns, .. } = entry;
        let args = json!({
            "stage": block.stage + 1,
            "patches": entry.patches.density(),
            "channel_groups": entry.channel_groups.density(),
            "macs": entry.macs,
            "dense_macs": entry.dense_macs,
            "gathered": entry.gathered,
        });
        push(&block.name, at, gate_ns + compact_ns + compute_ns, args);
        for (part, ns) in [("gate", gate_ns), ("compact", compact_ns), ("compute", compute_ns)] {
            if ns > 0 {
                push(part, at, ns, json!({}));
            }
            at += ns;
        }
    }
    push("head", at, trace.head_ns, json!({ "macs": trace.head_macs }));
    events
}

#[cfg(test)]
mod tests {
    use super::*;
    use laud_models::NetConfig;

    #[test]
    fn parts_lie_inside_their_block_and_nothing_overlaps() {
        let spec = NetConfig::preset("resnet18").unwrap().build().unwrap();
        let block =
            BlockTrace { gate_ns: 1_000, compact_ns: 500, compute_ns: 4_000, ..BlockTrace::default() };
        let trace = Trace { stem_ns: 2_000, head_ns: 3_000, blocks: vec![block; 8], ..Trace::default() };
        let events = chrome_events(&spec, &trace, (7, "resnet18"));
        let complete: Vec<_> = events.iter().filter(|event| event["ph"] == "X").collect();
        assert_eq!(complete.len(), 2 + 8 * 4);
        assert_eq!((complete[1]["ts"].as_f64(), complete[1]["dur"].as_f64()), (Some(2.0), Some(5.5)));
        assert_eq!(complete[4]["ts"].as_f64(), Some(3.5));
        assert_eq!(complete[5]["ts"].as_f64(), Some(7.5));
        let last = complete.last().unwrap();
        assert_eq!(
            last["ts"].as_f64().unwrap() + last["dur"].as_f64().unwrap(),
            trace.total_ns() as f64 / 1e3
        );
    }
}
