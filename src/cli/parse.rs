//! Values of arguments.

use laud_models::{GateMode, MapSize, PerStage};
use std::time::Duration;

/// A density, `0..=1`.
pub(super) fn density(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if (0.0..=1.0).contains(&value) { Ok(value) } else { Err("a density is in 0..=1".into()) }
}

/// A tolerance: finite and not negative.
pub(super) fn tolerance(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if value.is_finite() && value >= 0.0 { Ok(value) } else { Err("a tolerance is at least 0".into()) }
}

/// `5s`, `500ms`, `2m`; a number alone is seconds.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = [("ms", 1e-3), ("s", 1.0), ("m", 60.0)]
        .into_iter()
        .find_map(|(unit, seconds)| Some((text.strip_suffix(unit)?, seconds)))
        .unwrap_or((text, 1.0));
    let seconds =
        number.parse::<f64>().map_err(|_| "not a duration such as 5s, 500ms or 2m".to_owned())? * unit;
    if seconds > 0.0 && seconds <= 86_400.0 {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err("a duration is above 0 and at most a day".into())
    }
}

/// `224`, or `480x640` for height and width.
pub(super) fn map_size(text: &str) -> Result<MapSize, String> {
    let side = |text: &str| text.parse::<usize>().map_err(|_| "not a size such as 224 or 480x640".to_owned());
    Ok(match text.split_once(['x', '×']) {
        Some((h, w)) => MapSize { h: side(h)?, w: side(w)? },
        None => {
            let side = side(text)?;
            MapSize { h: side, w: side }
        }
    })
}

/// `4`, or `4-4-2-1` for one value a stage.
pub(super) fn per_stage_number(text: &str) -> Result<PerStage<usize>, String> {
    per_stage(text, |entry| match entry.parse::<usize>() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err("not a list such as 4-4-2-1, or one number for all stages".into()),
    })
}

/// `spatial`, or `spatial-spatial-layer-layer` for one mode a stage.
pub(super) fn per_stage_mode(text: &str) -> Result<PerStage<GateMode>, String> {
    per_stage(text, |entry| GateMode::try_from(Some(entry.to_owned())))
}

fn per_stage<T: Clone>(text: &str, parse: impl Fn(&str) -> Result<T, String>) -> Result<PerStage<T>, String> {
    let entries = text.split('-').map(parse).collect::<Result<Vec<_>, _>>()?;
    Ok(match entries.as_slice() {
        [one] => PerStage::All(one.clone()),
        _ => PerStage::Each(entries),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        let seconds = |text| duration(text).map(|duration| duration.as_secs_f64());
        assert_eq!(seconds("5s"), Ok(5.0));
        assert_eq!(seconds("250ms"), Ok(0.25));
        assert_eq!(seconds("2m"), Ok(120.0));
        assert_eq!(seconds("1.5"), Ok(1.5));
        for bad in ["", "s", "-1s", "0", "inf", "nan", "1h", "1e9"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn lists_are_per_stage() {
        assert_eq!(per_stage_number("4-4-2-1"), Ok(PerStage::Each(vec![4, 4, 2, 1])));
        assert_eq!(per_stage_number("2"), Ok(PerStage::All(2)));
        assert_eq!(per_stage_mode("layer"), Ok(PerStage::All(GateMode::Layer)));
        for bad in ["", "-", "4-", "0", "4-x", "-1"] {
            assert!(per_stage_number(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_and_densities() {
        assert_eq!(map_size("480x640"), Ok(MapSize { h: 480, w: 640 }));
        assert!(map_size("x").is_err());
        for bad in ["1.1", "-0.1", "nan", "half"] {
            assert!(density(bad).is_err(), "{bad}");
        }
    }
}
