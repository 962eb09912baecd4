use crate::Element;
use laud_kernels::Isa;
use laud_kernels::cuda::Properties;
use laud_kernels::cuda::launch::GemmTile;
use laud_kernels::gather_gemm::tile;
use laud_predictor::{DeviceFacts, DeviceKind};
use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// What this machine says about its processor, computing with such elements; 0 where it does not.
pub fn device_facts(isa: Isa, element: Element) -> DeviceFacts {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = cpuinfo.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let clock = field("cpu MHz").and_then(|mhz| mhz.parse::<f64>().ok()).unwrap_or(0.0);
    let tile = tile(isa, element.on_cpu());
    DeviceFacts {
        name: field("model name").unwrap_or_else(|| "unknown processor".to_owned()),
        kind: DeviceKind::Cpu,
        isa: isa.name().to_owned(),
        cores: std::thread::available_parallelism().map_or(1, usize::from) as u32,
        clock_hz: 1e6 * clock,
        lanes: tile.lanes as u32,
        tile_rows: tile.rows as u32,
        tile_columns: tile.columns as u32,
        l2_bytes: cache_bytes(2),
        l3_bytes: cache_bytes(3),
    }
}

/// What a GPU's driver says about it; 0 where it does not.
pub fn cuda_facts(properties: &Properties) -> DeviceFacts {
    let Properties { name, capability, multiprocessors, shared_bytes, l2_bytes, clock_khz, .. } = properties;
    let largest = |side: fn(&GemmTile) -> u32| GemmTile::ALL.iter().map(side).max().unwrap_or(1);
    DeviceFacts {
        name: name.clone(),
        kind: DeviceKind::Cuda,
        isa: format!("sm_{capability}"),
        cores: *multiprocessors,
        clock_hz: 1e3 * f64::from(clock_khz[0]),
        lanes: 32,
        tile_rows: largest(|tile| tile.rows),
        tile_columns: largest(|tile| tile.columns),
        l2_bytes: (*shared_bytes).into(),
        l3_bytes: *l2_bytes,
    }
}

/// Size of the first processor's cache of a level; 0 when nobody says.
fn cache_bytes(level: u32) -> u64 {
    let caches = Path::new("/sys/devices/system/cpu/cpu0/cache");
    let read =
        |index: usize, what: &str| fs::read_to_string(caches.join(format!("index{index}/{what}"))).ok();
    let size = (0..8).find_map(|index| {
        let of = read(index, "level")?;
        if of.trim() == level.to_string() { read(index, "size") } else { None }
    });
    let kib = size.and_then(|size| size.trim().strip_suffix('K')?.parse::<u64>().ok());
    1024 * kib.unwrap_or(0)
}

/// The date in UTC, ISO 8601.
pub fn today() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |passed| passed.as_secs());
    date(seconds / 86_400)
}

/// The date that many days after 1970-01-01, by Hinnant's `civil_from_days`.
fn date(days: u64) -> String {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let expected =
            [(0, "1970-01-01"), (11_016, "2000-02-29"), (11_017, "2000-03-01"), (20_778, "2026-11-21")];
        expected.iter().for_each(|&(days, text)| assert_eq!(date(days), text));
    }

    #[test]
    fn facts_are_possible() {
        device_facts(Isa::detect(), Element::F32).check().unwrap();
    }
}
