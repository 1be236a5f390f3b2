//! The capability argument `bandwidth`: limits of a pod's traffic, which users set as annotations of the pod and the
//! plugin of the same name enforces.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

/// Traffic to the pod.
const INGRESS: &str = "kubernetes.io/ingress-bandwidth";
/// Traffic from the pod.
const EGRESS: &str = "kubernetes.io/egress-bandwidth";

/// The limits that other CRI runtimes accept, in bits per second: 1k to 1P.
const MIN: u64 = 1_000;
const MAX: u64 = 1_000_000_000_000_000;
/// The burst in bits that containerd passes; the plugin refuses a rate without one.
const BURST: u32 = u32::MAX;

/// An annotation that limits the pod's traffic has an invalid value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", Self::WANT)]
pub struct InvalidBandwidth {
    /// Name of the annotation.
    pub annotation: &'static str,
    /// Its value.
    pub value: String,
}

impl InvalidBandwidth {
    /// What a valid value is.
    pub(crate) const WANT: &str = "must be a number of bits per second from 1k to 1P, for example 10M";
}

/// Checks the annotations of a pod that limit its traffic (`kubernetes.io/ingress-bandwidth` and
/// `kubernetes.io/egress-bandwidth`: quantities of Kubernetes, in bits per second).
///
/// # Errors
/// The first one that is invalid. It is an error even if no plugin of the network limits traffic, as in containerd: a
/// pod that starts here starts on every node.
pub fn check_bandwidth(annotations: &BTreeMap<String, String>) -> Result<(), InvalidBandwidth> {
    argument(annotations).map(drop)
}

/// The capability argument, as CNI's conventions define it; `None` if no annotation asks for a limit.
pub(crate) fn argument(annotations: &BTreeMap<String, String>) -> Result<Option<Value>, InvalidBandwidth> {
    let mut limits = Map::new();
    for (annotation, rate, burst) in
        [(INGRESS, "ingressRate", "ingressBurst"), (EGRESS, "egressRate", "egressBurst")]
    {
        let Some(text) = annotations.get(annotation) else { continue };
        let bits = bits(text).ok_or_else(|| InvalidBandwidth { annotation, value: text.clone() })?;
        limits.insert(rate.to_owned(), json!(bits));
        limits.insert(burst.to_owned(), json!(BURST));
    }
    Ok(if limits.is_empty() { None } else { Some(limits.into()) })
}

/// Bits per second of a quantity; `None` if it is malformed or not within [`MIN`] and [`MAX`].
fn bits(text: &str) -> Option<u64> {
    let unsigned = text.strip_prefix('+').unwrap_or(text);
    let end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
    let (number, suffix) = unsigned.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
    let (factor, exponent) = scale(suffix)?;
    let exponent = exponent.checked_sub(i64::try_from(fraction.len()).ok()?)?;
    let power = 10_u128.checked_pow(u32::try_from(exponent.unsigned_abs()).ok()?)?;
    let scaled = digits.checked_mul(factor)?;
    // Rounded up, as Kubernetes does.
    let bits = if exponent < 0 { scaled.div_ceil(power) } else { scaled.checked_mul(power)? };
    u64::try_from(bits).ok().filter(|bits| (MIN..=MAX).contains(bits))
}

/// What a quantity's suffix multiplies its number by: a factor, and a power of ten.
fn scale(suffix: &str) -> Option<(u128, i64)> {
    Some(match suffix {
        "n" => (1, -9),
        "u" => (1, -6),
        "m" => (1, -3),
        "" => (1, 0),
        "k" => (1, 3),
        "M" => (1, 6),
        "G" => (1, 9),
        "T" => (1, 12),
        "P" => (1, 15),
        "E" => (1, 18),
        "Ki" => (1 << 10, 0),
        "Mi" => (1 << 20, 0),
        "Gi" => (1 << 30, 0),
        "Ti" => (1 << 40, 0),
        "Pi" => (1 << 50, 0),
        "Ei" => (1 << 60, 0),
        _ => (1, suffix.strip_prefix(['e', 'E'])?.parse().ok()?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn quantities_as_kubernetes_writes_them() {
        for (text, expected) in [
            ("1k", 1_000),
            ("1000", 1_000),
            ("10M", 10_000_000),
            ("+10M", 10_000_000),
            ("1.5G", 1_500_000_000),
            (".5M", 500_000),
            ("1.k", 1_000),
            ("10Mi", 10_485_760),
            ("1.5Ki", 1_536),
            ("1e6", 1_000_000),
            ("1E+6", 1_000_000),
            ("5000000e-3", 5_000),
            ("1000000m", 1_000),
            // Rounded up.
            ("1000.0001", 1_001),
            ("999999m", 1_000),
            ("1P", MAX),
            ("0.001E", MAX),
        ] {
            assert_eq!(bits(text), Some(expected), "{text}");
        }
    }

    #[test]
    fn other_texts_and_unreasonable_limits_are_refused() {
        let malformed =
            "|M|foo|10 M| 10M|10M |-10M|10mb|10Mb|10MB|10K|1.2.3M|+|.|1e|1e1.5|1i|10M\n|\u{ff11}0M";
        let limits = "0|999|0.9k|998000m|1000001G|2P|1E|1e40|1e-40|1e999999999999|1e99999999999999999999";
        for bad in malformed.split('|').chain(limits.split('|')) {
            assert_eq!(bits(bad), None, "{bad:?}");
        }
        assert_eq!(bits(&"9".repeat(100_000)), None);
        assert_eq!(bits(&format!("{}10M", "0".repeat(1000))), Some(10_000_000));
    }

    #[test]
    fn an_invalid_annotation_is_named() {
        let of = |pairs: &[(&str, &str)]| {
            argument(&pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect())
        };
        assert_eq!(of(&[("note", "10M")]), Ok(None));
        assert_eq!(
            of(&[(INGRESS, "1M")]),
            Ok(Some(json!({"ingressRate": 1_000_000, "ingressBurst": BURST})))
        );
        let both = json!({
            "ingressRate": 1_000_000, "ingressBurst": BURST, "egressRate": 2_000, "egressBurst": BURST,
        });
        assert_eq!(of(&[(INGRESS, "1M"), (EGRESS, "2k")]), Ok(Some(both)));
        let invalid = of(&[(INGRESS, "1M"), (EGRESS, "fast")]).unwrap_err();
        assert_eq!((invalid.annotation, invalid.value.as_str()), (EGRESS, "fast"));
        assert!(invalid.to_string().contains("bits per second"));
    }

    proptest! {
        #[test]
        fn whatever_is_accepted_is_within_the_limits(text in "[+]?[0-9]{0,25}[.]?[0-9]{0,25}[a-zA-Z0-9+-]{0,8}") {
            if let Some(bits) = bits(&text) {
                prop_assert!((MIN..=MAX).contains(&bits));
            }
        }

        #[test]
        fn whole_numbers_are_themselves(number in MIN..=MAX) {
            prop_assert_eq!(bits(&number.to_string()), Some(number));
        }
    }
}
