//! Skip policies by name: one text says who decides, in `--policy` and in an experiment alike.
//!
//! | text | keeps |
//! |---|---|
//! | `learned` | where the margin is at least 0, as trained |
//! | `threshold:T` | where it is at least T |
//! | `topk:0.5`, `topk:16` | of each gate the highest margins: a share with a point, a number of units without |
//! | `budget:0.6` | as trained, highest margins first, up to 60 % of the multiply-accumulates an image |
//! | `budget:8ms:PROFILE` | the same up to 8 ms, as a profile predicts them |
//! | `pruned:0.5:SCORES` | the half of all units that gates keep most often, for every image; by `laud rank --by usage` |
//! | `importance:0.5:SCORES` | the half that costs most to lose, for every image; by `laud rank --by importance` |
//! | `random:0.5` | each unit with probability ½ |
//! | `forced:0.5` | half of each gate's units, in blobs, the same for every image |
//! | `always`, `never` | everything, nothing |
//!
//! In front of any of them stand early exits, joined by `+`: `exit:144:0.7+budget:0.6` looks at the image made 144×144
//! pixels first, and goes on where its best class has a probability below 0.7. `exit:144:0.7` alone goes on with `learned`;
//! `exit:NAME:0.7` and `exit:FILE:0.7` have another network look, at images of the size that it reads.

use crate::calibrate::load;
use crate::gate::{
    Always, Amount, Given, Learned, Never, Pattern, Policy, RandomRate, Ranked, ScoredBy, Scores, Threshold,
    Top,
};
use crate::plan::{Setting, Spending, budget};
use anyhow::{Context, Result, bail, ensure};
use laud_models::{MapSize, NetSpec};
use laud_predictor::DeviceKind;
use laud_predictor::workload::DType;
use std::path::Path;

/// What policies are about.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// Network that they decide for.
    pub spec: &'a NetSpec,
    /// Of what is random.
    pub seed: u64,
    /// Threads of an inference, for budgets of time.
    pub threads: usize,
    /// What activations and weights are stored as.
    pub dtype: DType,
    /// What it runs on.
    pub kind: DeviceKind,
}

/// An early exit, as a policy's text names it.
#[derive(Clone, Debug, PartialEq)]
pub struct Exit {
    /// Who looks.
    pub look: Look,
    /// The least probability of its best class with which it answers, `0..=1`.
    pub confidence: f32,
}

/// Who looks at smaller images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Look {
    /// The network itself, at images of this size in pixels.
    Smaller(MapSize),
    /// Another one, by name or file, at images of the size that it reads.
    Other(String),
}

/// The early exits in front of a policy, and the policy's own text; `learned` where there is none.
///
/// # Errors
/// A size or confidence that is missing or out of range.
pub fn early_exits(text: &str) -> Result<(Vec<Exit>, &str)> {
    let (mut exits, mut rest) = (Vec::new(), text);
    while let Some(behind) = rest.strip_prefix("exit:") {
        let (one, next) = behind.split_once('+').unwrap_or((behind, "learned"));
        exits.push(exit(one).with_context(|| format!("policy {text}: exit:{one}"))?);
        rest = next;
    }
    Ok((exits, rest))
}

fn exit(text: &str) -> Result<Exit> {
    let (look, confidence) =
        text.rsplit_once(':').context("needs a size or a network, and a confidence, as in exit:144:0.7")?;
    let value = confidence.parse().ok().filter(|confidence| (0.0..=1.0).contains(confidence));
    let confidence = value.with_context(|| format!("`{confidence}` is not a confidence in 0..=1"))?;
    if !look.starts_with(|first: char| first.is_ascii_digit()) {
        ensure!(!look.is_empty(), "needs a size or a network, as in exit:144:0.7");
        return Ok(Exit { look: Look::Other(look.to_owned()), confidence });
    }
    let side = |side: &str| -> Result<usize> {
        let pixels = side.parse().ok().filter(|pixels| (1..=1 << 15).contains(pixels));
        pixels.with_context(|| format!("`{look}` is not a size such as 144 or 96x128"))
    };
    let (h, w) = look.split_once(['x', '×']).unwrap_or((look, look));
    Ok(Exit { look: Look::Smaller(MapSize { h: side(h)?, w: side(w)? }), confidence })
}

/// The policy that a text names, without early exits: those are sessions, see [`early_exits`].
///
/// # Errors
/// A name that is none; a number or file that is missing, not needed or out of range; what does not fit the network.
pub fn named(text: &str, subject: Subject<'_>) -> Result<Box<dyn Policy>> {
    find(text, subject).with_context(|| format!("policy {text}"))
}

fn find(text: &str, Subject { spec, seed, threads, dtype, kind }: Subject<'_>) -> Result<Box<dyn Policy>> {
    let mut parts = text.splitn(3, ':');
    let name = parts.next().unwrap_or_default();
    let (value, file) = (parts.next(), parts.next());
    let value = || value.with_context(|| format!("needs a number, as in {name}:0.5"));
    let number = || -> Result<f64> {
        let value = value()?;
        value.parse().with_context(|| format!("`{value}` is not a number"))
    };
    let path = |what: &str| {
        file.map(Path::new).with_context(|| format!("needs a file with {what}, as in {name}:0.5:FILE"))
    };
    let ranked = |by: ScoredBy| -> Result<Ranked> {
        let (share, file) = (number()?, path("what `laud rank` measured")?);
        let scores = Scores::load(file)?;
        ensure!(scores.by == by, "{}: scores by {:?}, not by {by:?}", file.display(), scores.by);
        match by {
            ScoredBy::Usage => Ranked::by_usage(spec, &scores.blocks, share),
            ScoredBy::Importance => Ranked::by_importance(spec, &scores.blocks, share),
        }
        .with_context(|| file.display().to_string())
    };
    let policy: Box<dyn Policy> = match name {
        "exit" => bail!("an early exit stands in front of a policy, where images are looked at"),
        "pruned" => return Ok(Box::new(ranked(ScoredBy::Usage)?)),
        "importance" => return Ok(Box::new(ranked(ScoredBy::Importance)?)),
        "budget" if value()?.ends_with("ms") => {
            let ms = value()?.trim_end_matches("ms");
            let ms: f64 = ms.parse().with_context(|| format!("`{ms}` is not a number"))?;
            let file = file.with_context(|| format!("needs a profile, as in {name}:8ms:PROFILE"))?;
            let profile = load(Path::new(file))?;
            profile.check_use(kind, dtype).with_context(|| file.to_owned())?;
            let setting = Setting::of(&profile, threads, dtype);
            let name = format!("budget {ms} ms");
            return Ok(Box::new(budget(spec, name, Spending::Milliseconds(ms, &profile, setting))?));
        }
        _ if file.is_some() => bail!("takes no file"),
        "threshold" => Box::new(Threshold::new(number()? as f32)?),
        "random" => Box::new(RandomRate::new(number()?, seed)?),
        "forced" => Box::new(Given::forced(spec, 1, number()?, Pattern::Clustered, seed)?),
        "topk" => {
            let count = value()?.parse().ok().map(Amount::Count);
            let amount = count.map_or_else(|| number().map(|share| Amount::Share(share as f32)), Ok)?;
            Box::new(Top::new(spec, amount)?)
        }
        "budget" => {
            let share = number()?;
            let name = format!("budget {:.0} % of the MACs", 100.0 * share);
            Box::new(budget(spec, name, Spending::Macs(share))?)
        }
        _ if value().is_ok() => match name {
            "learned" | "always" | "never" => bail!("takes no number"),
            _ => bail!(UNKNOWN),
        },
        "learned" => Box::new(Learned),
        "always" => Box::new(Always),
        "never" => Box::new(Never),
        _ => bail!(UNKNOWN),
    };
    Ok(policy)
}

const UNKNOWN: &str = "no such policy; there are learned, threshold:T, topk:K|SHARE, budget:SHARE, budget:Nms:PROFILE, \
    pruned:SHARE:SCORES, importance:SHARE:SCORES, random:RATE, forced:DENSITY, always and never; exit:SIZE|NAME|FILE:CONFIDENCE+ \
    in front of one leaves early";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::{Rule, UnitKind, Units};
    use laud_models::NetConfig;

    fn try_named(text: &str) -> Result<Box<dyn Policy>> {
        let config = r#"{"arch": "resnet20", "dyn_mode": "spatial", "spatial_granularity": 4}"#;
        let spec = NetConfig::from_json(config).unwrap().build().unwrap();
        let (dtype, kind) = (DType::F32, DeviceKind::Cpu);
        named(text, Subject { spec: &spec, seed: 7, threads: 1, dtype, kind })
    }

    fn decide(text: &str, n: usize) -> Vec<bool> {
        let policy = try_named(text).unwrap();
        let Rule::Given(decisions) = policy.rule() else { panic!("{text} looks at margins") };
        let mut keep = vec![false; n];
        let units = Units { block: 1, kind: UnitKind::Patch, first: 0, batch: 1, per_sample: n };
        decisions.decide(units, &mut keep);
        keep
    }

    #[test]
    fn names_give_what_they_say() {
        assert!(decide("always", 9).iter().all(|keep| *keep));
        assert!(!decide("never", 9).iter().any(|keep| *keep));
        let kept = |text, n| decide(text, n).iter().filter(|keep| **keep).count();
        assert!((2800..3200).contains(&kept("random:0.3", 10_000)));
        assert_eq!(decide("random:0.3", 99), decide("random:0.3", 99));
        assert_eq!(kept("forced:0.25", 64), 16);
        assert!(matches!(try_named("threshold:-0.5").unwrap().rule(), Rule::Margin { at_least: -0.5 }));
        assert!(matches!(try_named("topk:1").unwrap().rule(), Rule::Top(Amount::Count(1))));
        assert!(matches!(try_named("topk:1.0").unwrap().rule(), Rule::Top(Amount::Share(1.0))));
        assert!(matches!(try_named("budget:0.7").unwrap().rule(), Rule::Paid(_)));
    }

    #[test]
    fn early_exits_stand_in_front() {
        let exit = |h, w, confidence| Exit { look: Look::Smaller(MapSize { h, w }), confidence };
        assert_eq!(early_exits("budget:0.6").unwrap(), (vec![], "budget:0.6"));
        assert_eq!(early_exits("exit:144:0.7").unwrap(), (vec![exit(144, 144, 0.7)], "learned"));
        let two = early_exits("exit:96x128:0.9+exit:160:1+budget:8ms:a+b.json").unwrap();
        assert_eq!(two, (vec![exit(96, 128, 0.9), exit(160, 160, 1.0)], "budget:8ms:a+b.json"));
        let other = Exit { look: Look::Other("c:/nets/small.safetensors".into()), confidence: 0.5 };
        assert_eq!(
            early_exits("exit:c:/nets/small.safetensors:0.5+always").unwrap(),
            (vec![other], "always")
        );
        for (text, words) in [
            ("exit:144", "needs a size or a network, and a confidence"),
            ("exit::0.5", "needs a size or a network"),
            ("exit:0:0.5", "`0` is not a size"),
            ("exit:144:2", "not a confidence in 0..=1"),
            ("exit:144:nan", "not a confidence"),
            ("exit:144:0.7+exit:9y:0.5+learned", "`9y` is not a size"),
        ] {
            let error = format!("{:#}", early_exits(text).unwrap_err());
            assert!(error.contains(words) && error.contains(text), "{text}: {error}");
        }
        assert!(format!("{:#}", try_named("exit:144:0.7").err().unwrap()).contains("stands in front"));
    }

    #[test]
    fn what_is_no_policy_is_an_error_that_says_so() {
        for (text, words) in [
            ("best", "there are learned"),
            ("best:1", "there are learned"),
            ("random", "needs a number"),
            ("random:2", "0..=1"),
            ("threshold:x", "not a number"),
            ("always:1", "takes no number"),
            ("random:0.5:file", "takes no file"),
            ("topk:-1", "0..=1"),
            ("budget:0.01", "never skipped"),
            ("budget:8ms", "needs a profile"),
            ("budget:8ms:no/such", "no/such: cannot read"),
            ("pruned:0.5", "laud rank"),
            ("importance:0.5:no/such", "no/such: cannot read"),
        ] {
            let error = format!("{:#}", try_named(text).err().unwrap());
            assert!(error.contains(words) && error.contains(text), "{text}: {error}");
        }
    }
}
