//! The keys that tag resume tokens in a cluster.

use std::collections::VecDeque;

use parking_lot::Mutex;

use crate::protocol::{ResumeToken, TokenKey};

/// How many keys of other nodes are known. The keys of nodes that stopped long ago make room.
const MAX_KEYS: usize = 256;

/// The key of this node's tokens, and the keys of other nodes. A server without a cluster has none: its
/// tokens have no tag.
#[derive(Default)]
pub(super) struct TokenKeys {
    own: Option<TokenKey>,
    /// In the order in which their nodes last sent them; the last is the newest.
    others: Mutex<VecDeque<TokenKey>>,
}

impl TokenKeys {
    pub(super) fn new(is_clustered: bool) -> TokenKeys {
        TokenKeys {
            own: is_clustered.then(TokenKey::random),
            others: Mutex::default(),
        }
    }

    /// A new token.
    pub(super) fn token(&self) -> ResumeToken {
        ResumeToken::random(self.own.as_ref())
    }

    /// Whether some node may have made the token.
    pub(super) fn match_token(&self, token: &ResumeToken) -> bool {
        let others = self.others.lock();
        let mut keys = self.own.iter().chain(others.iter());
        keys.any(|key| token.is_of(key))
    }

    /// All keys, this node's own first.
    pub(super) fn all(&self) -> Vec<TokenKey> {
        let others = self.others.lock();
        self.own.iter().chain(others.iter()).copied().collect()
    }

    /// Adds the keys that another node knows. The first of `keys` is that node's own.
    pub(super) fn learn(&self, keys: &[TokenKey]) {
        let mut others = self.others.lock();
        let is_others = |key: &TokenKey| Some(*key) != self.own;
        for (index, key) in keys.iter().enumerate().filter(|(_, key)| is_others(key)) {
            match others.iter().position(|known| known == key) {
                Some(place) if index == 0 => _ = others.remove(place),
                Some(_) => continue,
                None => {}
            }
            others.push_back(*key);
        }
        let surplus = others.len().saturating_sub(MAX_KEYS);
        others.drain(..surplus);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_recognises_the_tokens_of_every_node_whose_key_it_has() {
        let (here, there) = (TokenKeys::new(true), TokenKeys::new(true));
        let token = there.token();
        assert!(there.match_token(&token) && !here.match_token(&token));
        here.learn(&there.all());
        assert!(here.match_token(&token));
        let third = TokenKeys::new(true);
        third.learn(&here.all());
        assert!(third.match_token(&token), "nodes pass keys on");
        let made_up = ResumeToken::parse("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA").unwrap();
        assert!(!here.match_token(&made_up));
    }

    #[test]
    fn the_keys_of_present_nodes_stay() {
        let here = TokenKeys::new(true);
        let node = TokenKeys::new(true);
        for _ in 0..2 * MAX_KEYS {
            here.learn(&node.all());
            here.learn(&TokenKeys::new(true).all());
        }
        assert_eq!(here.all().len(), 1 + MAX_KEYS);
        assert!(here.match_token(&node.token()));
    }
}
