//! `laud plan --verify`: what it found, for people.

use super::output::{Table, percent};
use anyhow::Result;
use laud::evaluate::{Regret, WholeRegret};
use std::io::Write;

pub(super) fn print(regret: &Regret, out: &mut dyn Write) -> Result<()> {
    writeln!(
        out,
        "{}  ·  batch {}  ·  medians of {} rounds, in turns\n",
        regret.network, regret.batch, regret.rounds
    )?;
    let off = |predicted: f64, measured: f64| format!("{:+.1} %", 100.0 * (predicted / measured - 1.0));
    let mut table = Table::new(["network, µs", "measured", "predicted", "off"]);
    for WholeRegret { name, measured_us, predicted_us } in &regret.networks {
        table.row([
            name.clone(),
            format!("{measured_us:.0}"),
            format!("{predicted_us:.0}"),
            off(*predicted_us, *measured_us),
        ]);
    }
    table.print(out)?;
    writeln!(out)?;
    let mut table =
        Table::new(["block, µs", "picked", "measured", "predicted", "off", "dense", "best", "µs", "regret"]);
    for block in &regret.blocks {
        table.row([
            block.block.clone(),
            block.picked.clone(),
            format!("{:.1}", block.picked_us),
            format!("{:.1}", block.predicted_us),
            off(block.predicted_us, block.picked_us),
            format!("{:.1}", block.dense_us),
            block.best.clone(),
            format!("{:.1}", block.best_us),
            percent(block.regret),
        ]);
    }
    table.print(out)?;
    writeln!(
        out,
        "\nregret of {} choices: mean {}, worst {}, best one picked {}; of the network {}",
        regret.blocks.len(),
        percent(regret.mean_regret),
        percent(regret.worst_regret),
        percent(regret.top1),
        percent(regret.network_regret)
    )?;
    Ok(())
}
