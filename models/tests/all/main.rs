//! Map of the tests:
//! `macs` the official accounting, to the unit, for named networks and for recorded masks ·
//! `checkpoints` names and shapes of real state dicts, both ways · `config` what users can get wrong ·
//! `infer` round trips and contradictions. Data: `../data/`, tensor lists and accounting of the official PyTorch code.

mod checkpoints;
mod config;
mod infer;
mod macs;

use laud_models::{NetConfig, NetSpec, Shapes};

/// A preset's network with more keys, given as JSON members.
fn net(arch: &str, keys: &str) -> NetSpec {
    let comma = if keys.is_empty() { "" } else { "," };
    let json = format!(r#"{{"arch": "{arch}"{comma} {keys}}}"#);
    NetConfig::from_json(&json)
        .and_then(|config| config.build())
        .unwrap_or_else(|error| panic!("{json}: {error}"))
}

/// The error of a configuration.
fn error(json: &str) -> String {
    match NetConfig::from_json(json).and_then(|config| config.build()) {
        Ok(_) => panic!("{json} is accepted"),
        Err(error) => error.to_string(),
    }
}

/// The tensors of a network.
fn shapes(net: &NetSpec) -> Shapes {
    net.parameters().into_iter().map(|parameter| (parameter.name, parameter.shape)).collect()
}
