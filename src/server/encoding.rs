//! Content codings, and which of them a client accepts.

use http::{HeaderMap, header::ACCEPT_ENCODING};

/// A content coding (RFC 9110, section 8.4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    /// No coding.
    Identity,
    Gzip,
    Brotli,
}

impl Encoding {
    /// The name in `Accept-Encoding` and `Content-Encoding`.
    pub(super) fn name(self) -> &'static str {
        match self {
            Encoding::Identity => "identity",
            Encoding::Gzip => "gzip",
            Encoding::Brotli => "br",
        }
    }

    /// The codings that a client accepts (RFC 9110, section 12.5.3), those first that it prefers. A client that
    /// accepts none gets `Identity` all the same, as that section recommends.
    pub(super) fn accepted(headers: &HeaderMap) -> Vec<Encoding> {
        let values = headers.get_all(ACCEPT_ENCODING).iter();
        let items = values
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','));
        let weights: Vec<(&str, f32)> = items.map(weight).collect();
        let find = |name: &str| {
            let named = |(coding, _): &&(&str, f32)| coding.eq_ignore_ascii_case(name);
            weights.iter().find(named).map(|(_, weight)| *weight)
        };
        let weigh = |encoding: Encoding| {
            let default = match encoding {
                // Acceptable unless excluded, but a coding that is named is preferred.
                Encoding::Identity => f32::MIN_POSITIVE,
                _ => 0.0,
            };
            find(encoding.name()).or(find("*")).unwrap_or(default)
        };
        // The coding that compresses text best comes first.
        let mut accepted = [Encoding::Brotli, Encoding::Gzip, Encoding::Identity]
            .map(|encoding| (encoding, weigh(encoding)))
            .to_vec();
        accepted.retain(|(_, weight)| *weight > 0.0);
        // The sort is stable: of codings with equal weights, the one that compresses best stays first.
        accepted.sort_by(|(_, one), (_, other)| other.total_cmp(one));
        accepted.into_iter().map(|(encoding, _)| encoding).collect()
    }
}

/// The coding of an item of `Accept-Encoding`, and its weight; 0 if the weight is malformed.
fn weight(item: &str) -> (&str, f32) {
    let (coding, parameter) = item.split_once(';').unwrap_or((item, "q=1"));
    let parameter = parameter.trim_ascii();
    let value = parameter
        .strip_prefix("q=")
        .or(parameter.strip_prefix("Q="));
    let weight = value.and_then(|value| value.parse().ok());
    let weight = weight.filter(|weight| (0.0..=1.0).contains(weight));
    (coding.trim_ascii(), weight.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codings_are_accepted_by_weight() {
        let (br, gzip, identity) = (Encoding::Brotli, Encoding::Gzip, Encoding::Identity);
        let accepted = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(ACCEPT_ENCODING, value.parse().unwrap());
            }
            Encoding::accepted(&headers)
        };
        assert_eq!(accepted(&[]), [identity]);
        for (value, expected) in [
            ("", vec![identity]),
            ("identity", vec![identity]),
            ("deflate, zstd", vec![identity]),
            ("gzip, deflate, br", vec![br, gzip, identity]),
            ("GZIP", vec![gzip, identity]),
            ("gzip;q=1, br ; q=0.5", vec![gzip, br, identity]),
            ("br;Q=0.001,identity;q=0.002", vec![identity, br]),
            ("br;q=0, gzip;q=0.000", vec![identity]),
            ("*", vec![br, gzip, identity]),
            ("*;q=0.5, gzip", vec![gzip, br, identity]),
            ("br, *;q=0", vec![br]),
            ("identity;q=0, gzip", vec![gzip]),
            ("identity;q=0", vec![]),
            ("*;q=0", vec![]),
            ("br;q=2, gzip;q=x", vec![identity]),
            ("br;q=nan, gzip;level=9", vec![identity]),
        ] {
            assert_eq!(accepted(&[value]), expected, "{value}");
        }
        assert_eq!(accepted(&["gzip", "br;q=0.9"]), [gzip, br, identity]);
    }
}
