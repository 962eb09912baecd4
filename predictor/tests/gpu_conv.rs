//! The predictor on measured convolutions of GPUs: a small sample, so the bounds are loose.

use std::fs;
use std::path::Path;

use laud_predictor::Error;
use laud_predictor::dataset::{Gpu, Shots, leave_out, same_device};

fn text(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/gpu_conv");
    fs::read_to_string(folder.join(name)).unwrap()
}

fn gpu(name: &str) -> Gpu {
    Gpu::read(name, &text(&format!("conv_{name}.csv")), &text(&format!("{name}.spec.json"))).unwrap()
}

fn gpus() -> Vec<Gpu> {
    ["v100", "t4", "p100"].map(gpu).to_vec()
}

#[test]
fn some_convolutions_predict_the_others_of_the_same_gpu() {
    for gpu in gpus() {
        let evaluation = same_device(&gpu, 200, 1000, 1).unwrap();
        assert_eq!((evaluation.used, evaluation.held_out), (200, gpu.timings.len() - 200));
        assert!(evaluation.mape_percent < 26.0, "{evaluation:?}");
        // The session added to every measurement; told so, the model is better.
        assert!(evaluation.mape_percent_given_moment < 14.0, "{evaluation:?}");
        assert!((0.2..0.9).contains(&evaluation.drift_ms), "{evaluation:?}");
        assert_eq!(evaluation, same_device(&gpu, 200, 1000, 1).unwrap());
    }
}

#[test]
fn a_few_measurements_and_other_gpus_predict_a_gpu() {
    let gpus = gpus();
    for gpu in &gpus[..2] {
        let shots = |count| Shots { count, seed: 3, unseen_shapes: None };
        let few = leave_out(&gpus, &gpu.name, shots(10)).unwrap();
        assert_eq!(few.held_out, gpu.timings.len() - 10);
        assert!(few.mape_percent < 18.0, "{few:?}");
        let many = leave_out(&gpus, &gpu.name, shots(50)).unwrap();
        assert!(many.mape_percent < 14.0, "{many:?}");
    }
    let unseen = Shots { count: 50, seed: 3, unseen_shapes: Some(60) };
    let unseen = leave_out(&gpus, "t4", unseen).unwrap();
    assert_eq!(unseen.held_out, 60);
    assert!(unseen.mape_percent < 35.0, "{unseen:?}");
}

#[test]
fn what_cannot_be_evaluated_is_an_error() {
    let gpus = gpus();
    let shots = Shots { count: 10, seed: 0, unseen_shapes: None };
    assert!(
        matches!(leave_out(&gpus, "h100", shots), Err(Error::UnknownName { known, .. }) if known.contains("t4"))
    );
    assert!(matches!(leave_out(&gpus[..1], "v100", shots), Err(Error::Fit { .. })));
    assert!(matches!(leave_out(&gpus, "v100", Shots { count: 5000, ..shots }), Err(Error::Fit { .. })));
    assert!(matches!(same_device(&gpus[0], 5000, 10, 0), Err(Error::Fit { .. })));
    assert!(matches!(same_device(&gpus[0], 0, 10, 0), Err(Error::Fit { .. })));
}

#[test]
fn bad_files_are_named_by_line_and_column() {
    let (csv, spec) = (text("conv_t4.csv"), text("t4.spec.json"));
    let error = |csv: &str, spec: &str| Gpu::read("t4", csv, spec).unwrap_err().to_string();
    let second = |replaced: &str| {
        let mut lines: Vec<&str> = csv.lines().collect();
        lines[2] = replaced;
        error(&lines.join("\n"), &spec)
    };
    let said = second("nan,1,3,3,3,5,1,1");
    assert!(said.contains("conv_t4.csv, line 3, column latency_ms"), "{said}");
    let said = second("1.0,1,3,3,3,5,1,-1");
    assert!(said.contains("line 3, column padding"), "{said}");
    let said = second("1.0,1,3,3,0,5,1,1");
    assert!(said.contains("line 3, column kernel"), "{said}");
    let said = second("1.0,1,3,3,9,5,1,1");
    assert!(said.contains("larger than the padded input"), "{said}");
    let said = second("1.0,1,3");
    assert!(said.contains("line 3"), "{said}");
    let said = error(&csv.replacen("batch", "bulk", 1), &spec);
    assert!(said.contains("batch"), "{said}");
    assert!(error(&csv, "{").contains("figures"));
    assert!(error(&csv, &spec.replace("320", "-320")).contains("Mem_Bw"));
}
