use super::{Always, Learned, Never, Policy, RandomRate, Threshold};
use anyhow::{Context, Result, bail, ensure};

/// Policies that need nothing but a name and, some, a number: `learned`, `threshold:0.5`, `random:0.5`, `always`, `never`.
///
/// # Errors
/// A name that is none of these; a number that is missing, not needed, or out of range.
pub fn named(text: &str, seed: u64) -> Result<Box<dyn Policy>> {
    let (name, value) = match text.split_once(':') {
        Some((name, value)) => (name, Some(value)),
        None => (text, None),
    };
    let number = || -> Result<f64> {
        let value = value.with_context(|| format!("policy {name} needs a number, as in {name}:0.5"))?;
        value.parse().with_context(|| format!("policy {name}: `{value}` is not a number"))
    };
    let policy: Box<dyn Policy> = match name {
        "learned" => Box::new(Learned),
        "always" => Box::new(Always),
        "never" => Box::new(Never),
        "threshold" => return Ok(Box::new(Threshold::new(number()? as f32)?)),
        "random" => return Ok(Box::new(RandomRate::new(number()?, seed)?)),
        _ => bail!("no policy {name}; there are learned, threshold:T, random:RATE, always and never"),
    };
    ensure!(value.is_none(), "policy {name} takes no number");
    Ok(policy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::{Rule, UnitKind, Units};

    fn decide(policy: &dyn Policy, n: usize) -> Vec<bool> {
        let Rule::Given(decisions) = policy.rule() else { panic!("{} looks at margins", policy.name()) };
        let mut keep = vec![false; n];
        let units = Units { block: 1, kind: UnitKind::Patch, first: 0, batch: 1, per_sample: n };
        decisions.decide(units, &mut keep);
        keep
    }

    #[test]
    fn names_give_what_they_say() {
        assert!(decide(&*named("always", 0).unwrap(), 9).iter().all(|keep| *keep));
        assert!(!decide(&*named("never", 0).unwrap(), 9).iter().any(|keep| *keep));
        let threshold = named("threshold:-0.5", 0).unwrap();
        assert!(matches!(threshold.rule(), Rule::Margin { at_least: -0.5 }));
        let some = decide(&*named("random:0.3", 7).unwrap(), 10_000);
        let kept = some.iter().filter(|keep| **keep).count();
        assert!((2800..3200).contains(&kept), "{kept}");
        assert_eq!(some, decide(&*named("random:0.3", 7).unwrap(), 10_000));
    }

    #[test]
    fn what_is_no_policy_is_an_error_that_says_so() {
        let message = |text| named(text, 0).err().unwrap().to_string();
        assert!(message("best").contains("there are learned"));
        assert!(message("random").contains("needs a number"));
        assert!(message("random:2").contains("0..=1"));
        assert!(message("threshold:x").contains("not a number"));
        assert!(message("always:1").contains("takes no number"));
    }
}
