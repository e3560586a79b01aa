//! URLs of ICE servers.

use std::str::FromStr;

use super::secret::Secret;

/// The schemes of RFC 7064 and RFC 7065.
const SCHEMES: [&str; 4] = ["stun", "stuns", "turn", "turns"];

/// The URL of an ICE server, with the name and password of a TURN server that has fixed ones:
/// `turn:name:password@example.org`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IceUrl {
    pub(crate) url: String,
    /// Name and password.
    pub(crate) credentials: Option<(String, Secret<String>)>,
}

impl IceUrl {
    /// Whether this is the URL of a TURN server.
    pub(crate) fn is_turn(&self) -> bool {
        self.url.starts_with("turn")
    }

    /// Whether the URL has a name and a password.
    pub(crate) fn has_credentials(&self) -> bool {
        self.credentials.is_some()
    }
}

impl FromStr for IceUrl {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<IceUrl, &'static str> {
        const ERROR: &str = "not the URL of an ICE server, such as stun:stun.example.org:3478 or \
                             turn:turn.example.org?transport=udp";
        let (scheme, rest) = text.split_once(':').ok_or(ERROR)?;
        if !SCHEMES.contains(&scheme) {
            return Err(ERROR);
        }
        // A password may have an @ in it, a host may not.
        let (credentials, address) = match rest.rsplit_once('@') {
            Some((credentials, address)) => {
                let (name, password) = credentials.split_once(':').ok_or(ERROR)?;
                if name.is_empty() || password.is_empty() || !scheme.starts_with("turn") {
                    return Err(ERROR);
                }
                (Some((name.into(), Secret::new(password.into()))), address)
            }
            None => (None, rest),
        };
        let (authority, query) = match address.split_once('?') {
            Some((authority, query)) => (authority, Some(query)),
            None => (address, None),
        };
        let parsed: http::uri::Authority = authority.parse().map_err(|_| ERROR)?;
        let has_port = authority
            .rsplit(']')
            .next()
            .is_some_and(|end| end.contains(':'));
        let is_known = match query {
            None => true,
            Some("transport=udp" | "transport=tcp") => scheme.starts_with("turn"),
            Some(_) => false,
        };
        if parsed.host().is_empty() || has_port != parsed.port_u16().is_some() || !is_known {
            return Err(ERROR);
        }
        Ok(IceUrl {
            url: format!("{scheme}:{address}"),
            credentials,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_those_of_the_rfcs() {
        for text in [
            "stun:stun.example.org",
            "stuns:stun.example.org:5349",
            "turn:192.0.2.1:3478?transport=udp",
            "turns:[2001:db8::1]:443?transport=tcp",
        ] {
            let url: IceUrl = text.parse().unwrap();
            assert_eq!((&*url.url, url.credentials), (text, None));
        }
        let url: IceUrl = "turn:alice:p@ss:word@turn.example.org".parse().unwrap();
        assert_eq!(url.url, "turn:turn.example.org");
        let password = Secret::new("p@ss:word".into());
        assert_eq!(url.credentials, Some(("alice".into(), password)));
        assert!(!format!("{url:?}").contains("word"), "{url:?}");
        for text in [
            "",
            "stun",
            "stun:",
            "http://example.org",
            "stun://example.org",
            "stun:example.org:99999",
            "stun:example.org:",
            "stun:example.org?transport=udp",
            "stun:alice:secret@example.org",
            "turn:alice@example.org",
            "turn::secret@example.org",
            "turn:example.org?transport=sctp",
            "turn:example org",
        ] {
            assert!(text.parse::<IceUrl>().is_err(), "{text}");
        }
    }
}
