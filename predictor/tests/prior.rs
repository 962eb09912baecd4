//! The prior against what the official LAUDNet simulator prints (`tests/data/`), and against bad input.

use std::collections::HashMap;

use laud_predictor::prior::{
    Block, BlockMode, ConvShape, DeviceSpec, MaskerLayers, Mode, Network, Operator, PatchInput, Prior,
    SweepRow, TileOrder, Transactions,
};
use laud_predictor::{Density, Error};
use proptest::prelude::*;

const NETWORKS: &str = include_str!("data/dynetsim.csv");
const OPERATORS: &str = include_str!("data/dynetsim_ops.csv");
const TILE_ORDERS: &str = include_str!("data/dynetsim_tile_orders.json");

/// Rounding of sums of a few hundred terms in another order.
const ROUNDING: f64 = 1e-12;
/// Ties between tiles broken in ascending order instead of in the order of a Python set, in mode spatial.
const SPATIAL_TIES: f64 = 3e-4;
/// The same in mode channel, where only the final addition works on patches.
const CHANNEL_TIES: f64 = 1e-5;
/// A Monte Carlo of 100 draws against its expectation.
const MONTE_CARLO: f64 = 3e-3;

fn prior(device: &str) -> Prior {
    Prior::new(DeviceSpec::named(device).unwrap()).unwrap()
}

fn relative_error(found: f64, expected: f64) -> f64 {
    (found - expected).abs() / expected.abs()
}

fn density(text: &str) -> Density {
    Density::new(text.parse().unwrap()).unwrap()
}

/// Largest relative error per mode over the whole-network values, with the worst row.
fn worst_per_mode(order: &TileOrder) -> HashMap<&'static str, (f64, &'static str)> {
    let priors = ["v100", "tx2"].map(|name| (name, prior(name).with_tile_order(order.clone())));
    let mut worst = HashMap::new();
    for row in NETWORKS.lines().skip(1) {
        let fields: Vec<&str> = row.split(',').collect();
        let [model, hardware, mode, granularity, activation, latency, static_latency] = fields[..] else {
            panic!("malformed row {row}");
        };
        let (_, prior) = priors.iter().find(|(name, _)| *name == hardware).unwrap();
        let official: Mode = match mode {
            "static" | "layer" => mode.parse(),
            "spatial" => format!("spatial:{granularity}").parse(),
            _ => format!("channel:{granularity}").parse(),
        }
        .unwrap();
        let network = Network::named(model).unwrap();
        assert_eq!(official.granularity(&network), granularity);
        let batch = prior.device().batch;
        let rows = prior.sweep(&network, &[official], &[density(activation)], batch).unwrap();
        assert!(relative_error(rows[0].static_latency_s, static_latency.parse().unwrap()) <= ROUNDING);
        let error = relative_error(rows[0].latency_s, latency.parse().unwrap());
        let entry = worst.entry(mode).or_insert((error, row));
        if error >= entry.0 {
            *entry = (error, row);
        }
    }
    worst
}

#[test]
fn networks_match_the_official_simulator() {
    let official = TileOrder::from_json(TILE_ORDERS).unwrap();
    for (order, spatial, channel) in
        [(TileOrder::ascending(), SPATIAL_TIES, CHANNEL_TIES), (official, ROUNDING, ROUNDING)]
    {
        let worst = worst_per_mode(&order);
        let tolerances = [
            ("static", ROUNDING),
            ("layer", ROUNDING),
            ("spatial", spatial),
            ("channel_expected", channel),
            ("channel", MONTE_CARLO),
        ];
        for (mode, tolerance) in tolerances {
            let (error, row) = worst[mode];
            println!("{mode}: {error:.1e} at {row}");
            assert!(error <= tolerance, "{mode}: {error:e} at {row}");
        }
    }
}

/// Operator of a row of the operator table: `op` of the given block.
fn operator(op: &str, block: &Block) -> Operator {
    let half = Density::new(0.5).unwrap();
    let dense = |conv| Operator::Conv { conv, input: Density::ONE, output: Density::ONE };
    let conv1 = |out| ConvShape::pointwise(block.in_channels, out, block.in_size, 1);
    let conv2 = ConvShape {
        in_channels: block.width,
        out_channels: block.width,
        in_size: block.in_size,
        kernel: 3,
        groups: block.groups,
        stride: block.stride,
    };
    let (out_channels, size) = (block.out_channels, block.out_size());
    let conv3 = ConvShape::pointwise(block.width, out_channels, size, 1);
    let se = block.squeeze.unwrap_or(0);
    let word = |key: &str| op.split_whitespace().find_map(|word| word.strip_prefix(key)?.parse().ok());
    let patch = word("S=").unwrap_or(0);
    let Block { in_channels, width, .. } = *block;
    match op.split(" S=").next().unwrap() {
        "static conv1 1x1" => dense(conv1(width)),
        "static conv2 3x3" => dense(conv2),
        "static conv3 1x1" => dense(conv3),
        "static add" => Operator::Add { channels: out_channels, size },
        "static downsample 1x1" => {
            dense(ConvShape::pointwise(in_channels, out_channels, block.in_size, block.stride))
        }
        "static SE" => Operator::SqueezeExcite { channels: width, size, squeeze: se },
        "fused masker+conv1 (dense, cout+1)" => dense(conv1(width + 1)),
        "unfused masker conv (cout=2)" => dense(conv1(2)),
        "unfused dynamic conv1" => {
            Operator::PatchConv { conv: conv1(width), patch, density: half, input: PatchInput::Indexed }
        }
        "masker_conv1 chosen" => {
            Operator::MaskerConv1 { in_channels, width, size: block.in_size, patch, density: half }
        }
        "gather_conv2" => {
            Operator::PatchConv { conv: conv2, patch, density: half, input: PatchInput::Indexed }
        }
        "conv3 gathered" => {
            Operator::PatchConv { conv: conv3, patch, density: half, input: PatchInput::Gathered }
        }
        "scatter_add" => Operator::ScatterAdd { channels: out_channels, size, patch, density: half },
        "dynamic SE" => {
            Operator::PatchSqueezeExcite { channels: width, size, squeeze: se, patch, density: half }
        }
        name => {
            if let (Some(inputs), Some(outputs)) = (word("cin="), word("cout=")) {
                return Operator::Linear { inputs, outputs };
            }
            let layers = match word("fc_layers=") {
                Some(1) => MaskerLayers::One,
                Some(2) => MaskerLayers::Two,
                _ => panic!("unknown operator {name}"),
            };
            let group = word("G=").unwrap();
            Operator::ChannelMasker { in_channels, size: block.in_size, group, layers }
        }
    }
}

#[test]
fn operators_match_the_official_simulator() {
    let order = TileOrder::from_json(TILE_ORDERS).unwrap();
    let mut rows = 0;
    for row in OPERATORS.lines().skip(1) {
        let fields: Vec<&str> = row.split(';').collect();
        let [hardware, model, stage, which, op, _patches, compute, memory, latency] = fields[..] else {
            panic!("malformed row {row}");
        };
        let network = Network::named(model).unwrap();
        let stage = stage.parse::<u32>().unwrap().saturating_sub(1);
        let mut blocks = network.blocks().iter().filter(|block| block.stage == stage);
        let block = if which == "other" { blocks.nth(1) } else { blocks.next() };
        let prior = prior(hardware).with_tile_order(order.clone());
        let found = prior.operator(&operator(op, block.unwrap()), prior.device().batch).unwrap();
        for (found, expected) in
            [(found.compute_s, compute), (found.memory_s, memory), (found.total_s(), latency)]
        {
            if !expected.is_empty() {
                let error = relative_error(found, expected.parse().unwrap());
                assert!(error <= ROUNDING, "{error:e} at {row}, found {found}");
            }
        }
        rows += 1;
    }
    assert_eq!(rows, 444);
}

/// Static latencies, in seconds, in the order of [`Network::NAMES`]; the tolerance is the precision they are given to.
#[test]
fn static_latencies_of_every_official_device() {
    let whole = [
        ("v100", [0.1162110917, 0.2146561015, 0.0233369540, 0.0367459203]),
        ("3090", [0.0992122536, 0.1842840857, 0.0233259703, 0.0358697365]),
        ("3060", [0.1461677763, 0.2655004329, 0.0334531482, 0.0519895483]),
        ("tx2", [0.0172257497, 0.0322416579, 0.0036466952, 0.0054126160]),
        ("nano", [0.0449756128, 0.0845101737, 0.0076228113, 0.0125265403]),
    ];
    let single = [
        ("v100", [0.110708574, 0.204116661, 0.022870790, 0.035517916]),
        ("3090", [0.091969023, 0.172234462, 0.021940921, 0.032824821]),
        ("3060", [0.145195113, 0.263785028, 0.033050725, 0.051533387]),
        ("tx2", [0.017169269, 0.032101866, 0.003631453, 0.005383895]),
        ("nano", [0.044864776, 0.084235068, 0.007590808, 0.012466775]),
    ];
    let tables = [(Transactions::Whole, whole, 0.51e-10), (Transactions::Single, single, 0.51e-9)];
    for (transactions, table, precision_s) in tables {
        for (device, expected) in table {
            let prior = prior(device).with_transactions(transactions);
            for (name, expected) in Network::NAMES.into_iter().zip(expected) {
                let network = Network::named(name).unwrap();
                let batch = prior.device().batch;
                let found = prior.network(&network, &Mode::Static, Density::ONE, batch).unwrap().total_s();
                assert!((found - expected).abs() <= precision_s, "{device} {name}: {found} {expected}");
            }
        }
    }
}

#[test]
fn rows_print_as_the_official_table() {
    let network = Network::named("resnet50").unwrap();
    let rows = prior("v100").sweep(&network, &[Mode::Static, Mode::Layer], &[density("0.1")], 128).unwrap();
    let text: Vec<String> = rows.iter().map(SweepRow::to_string).collect();
    assert_eq!(SweepRow::HEADER, NETWORKS.lines().next().unwrap());
    assert!(text[0].starts_with("resnet50,v100,static,-,1.0,0.11621109166"), "{}", text[0]);
    assert!(text[1].starts_with("resnet50,v100,layer,56-28-14-7,0.1,0.02539301717"), "{}", text[1]);
}

#[test]
fn awkward_but_valid_queries_are_finite() {
    let network = Network::named("regnety004").unwrap();
    let prior = prior("h200");
    let modes = ["spatial:9-5-3-100", "layer", "channel:1-3-1000-64"];
    for mode in modes.map(|mode| mode.parse::<Mode>().unwrap()) {
        for density in [Density::ZERO, density("1e-300"), Density::ONE] {
            for batch in [1, 2, 1 << 20] {
                let latency = prior.network(&network, &mode, density, batch).unwrap();
                assert!(latency.total_s().is_finite() && latency.total_s() > 0.0, "{mode} {density} {batch}");
            }
        }
    }
}

#[test]
fn density_one_costs_at_least_density_zero() {
    let network = Network::named("resnet101").unwrap();
    let prior = prior("a100");
    for mode in ["spatial:4-4-2-1", "layer", "channel:2-2-2-2"].map(|mode| mode.parse::<Mode>().unwrap()) {
        let at = |density| prior.network(&network, &mode, density, 8).unwrap().total_s();
        assert!(at(Density::ONE) > at(Density::ZERO), "{mode}");
    }
}

#[test]
fn bad_queries_are_errors() {
    let network = Network::named("resnet50").unwrap();
    let prior = prior("tx2");
    let ask = |mode: &str, batch| {
        let mode: Mode = mode.parse()?;
        prior.network(&network, &mode, Density::ONE, batch)
    };
    assert!(matches!(ask("layer", 0), Err(Error::Size { what: "batch", value: 0, .. })));
    assert!(matches!(ask("layer", u32::MAX), Err(Error::Size { what: "batch", .. })));
    assert!(matches!(ask("spatial:4-4-2", 1), Err(Error::Count { expected: 4, found: 3, .. })));
    assert!(matches!(ask("spatial:4-0-2-1", 1), Err(Error::GranularityList { .. })));
    assert!(matches!(ask("spatial", 1), Err(Error::GranularityList { .. })));
    assert!(matches!(ask("spatial:4294967295-1-1-1", 1), Err(Error::Size { .. })));
    let message = ask("tokens", 1).unwrap_err().to_string();
    assert!(message.contains("static, layer"), "{message}");

    let zero_patch = BlockMode::Spatial { patch: 0 };
    let blocks = network.blocks();
    assert!(matches!(prior.block(&blocks[0], zero_patch, Density::ONE, 1), Err(Error::Size { .. })));
    assert!(matches!(prior.blocks(&network, &[], 1), Err(Error::Count { .. })));
    let zero_group = Mode::Channel(vec![0; 4]);
    assert!(matches!(prior.network(&network, &zero_group, Density::ONE, 1), Err(Error::Size { .. })));
    let operator = Operator::Linear { inputs: 0, outputs: 10 };
    assert!(matches!(prior.operator(&operator, 1), Err(Error::Size { what: "inputs", .. })));
}

/// Sizes that are mostly usable, with zeros, primes and absurdities among them.
fn any_size() -> impl Strategy<Value = u32> {
    prop_oneof![6 => 1u32..80, 2 => Just(64), 1 => Just(0), 1 => any::<u32>(), 1 => 1u32..5000]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_block_gets_a_finite_latency_or_an_error(
        sizes in prop::array::uniform6(any_size()),
        extra in (any_size(), any_size(), prop::option::of(any_size()), any::<bool>(), 0..4),
        density in prop_oneof![Just(0.0), Just(1.0), 0.0..1.0, any::<f64>()],
    ) {
        let [in_channels, width, out_channels, in_size, granularity, batch] = sizes;
        let (stride, groups, squeeze, projection, mode) = extra;
        let (stride, groups) = (stride % 3, if groups % 2 == 0 { 1 } else { groups });
        let block = Block {
            stage: 0, in_channels, width, out_channels, in_size, stride, groups, squeeze, projection,
        };
        let mode = match mode {
            0 => BlockMode::Static,
            1 => BlockMode::Spatial { patch: granularity },
            2 => BlockMode::Layer,
            _ => BlockMode::Channel { group: granularity },
        };
        let Ok(density) = Density::new(density) else { return Ok(()) };
        block.operators(mode, density);
        if let Ok(latency) = prior("orin").block(&block, mode, density, batch) {
            let total_s = latency.total().total_s();
            prop_assert!(total_s.is_finite() && total_s > 0.0, "{total_s}");
        }
    }
}
