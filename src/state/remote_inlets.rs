//! Sessions of other nodes whose clients send requests to this one: where the sessions are, and what waits for the
//! answers of their nodes. No I/O.

use std::collections::{BTreeSet, HashMap};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::{
    cluster::{NodeId, PostOutcome},
    protocol::TokenHash,
};

/// How many sessions are known by their node. If there are more, all are looked for again.
const MAX_HOMES: usize = 1 << 16;

/// Where the sessions of other nodes are, and what waits for an answer.
#[derive(Default)]
pub(crate) struct RemoteInlets(Mutex<State>);

#[derive(Default)]
struct State {
    /// The nodes on which sessions were found last.
    homes: HashMap<TokenHash, NodeId>,
    /// By their marks.
    searches: HashMap<u64, Search>,
    /// By their marks.
    posts: HashMap<u64, Post>,
}

/// A search for the node of a session.
struct Search {
    /// The nodes that have not answered.
    asked: BTreeSet<NodeId>,
    found: oneshot::Sender<Option<NodeId>>,
}

/// A request that was sent to the node of its session.
struct Post {
    node: NodeId,
    answered: oneshot::Sender<PostOutcome>,
}

impl RemoteInlets {
    /// The node on which the session whose token has this hash was found last.
    pub(crate) fn home(&self, token: &TokenHash) -> Option<NodeId> {
        self.0.lock().homes.get(token).copied()
    }

    /// Notes where a session is; `None` if that is not known any more.
    pub(crate) fn set_home(&self, token: TokenHash, node: Option<NodeId>) {
        let homes = &mut self.0.lock().homes;
        match node {
            Some(node) => {
                if homes.len() >= MAX_HOMES {
                    homes.clear();
                }
                homes.insert(token, node);
            }
            None => _ = homes.remove(&token),
        }
    }

    /// Waits for the answers of these nodes to a search: yields the node that has the session, `None` if none has. The
    /// wait fails if a node does not answer that goes down.
    pub(crate) fn search(
        &self,
        mark: u64,
        asked: BTreeSet<NodeId>,
    ) -> oneshot::Receiver<Option<NodeId>> {
        let (found, waiting) = oneshot::channel();
        let state = &mut self.0.lock();
        state.forget_given_up();
        state.searches.insert(mark, Search { asked, found });
        waiting
    }

    /// Waits for the answer of a node to a request. The wait fails if the node goes down.
    pub(crate) fn expect(&self, mark: u64, node: NodeId) -> oneshot::Receiver<PostOutcome> {
        let (answered, waiting) = oneshot::channel();
        let state = &mut self.0.lock();
        state.forget_given_up();
        state.posts.insert(mark, Post { node, answered });
        waiting
    }

    /// Takes in a node's answer to a search: whether it has the session.
    pub(crate) fn receive_found(&self, node: NodeId, mark: u64, is_here: bool) {
        let searches = &mut self.0.lock().searches;
        let Some(search) = searches.get_mut(&mark) else {
            return;
        };
        let is_last = search.asked.remove(&node) && search.asked.is_empty();
        if (is_here || is_last)
            && let Some(search) = searches.remove(&mark)
        {
            // Whoever searches may have given up.
            let _ = search.found.send(is_here.then_some(node));
        }
    }

    /// Takes in a node's answer to a request.
    pub(crate) fn receive_outcome(&self, node: NodeId, mark: u64, outcome: PostOutcome) {
        let posts = &mut self.0.lock().posts;
        if posts.get(&mark).is_some_and(|post| post.node == node)
            && let Some(post) = posts.remove(&mark)
        {
            // Whoever waits may have given up.
            let _ = post.answered.send(outcome);
        }
    }

    /// Notes that a node is down: nothing of it is waited for.
    pub(crate) fn node_down(&self, node: NodeId) {
        let state = &mut self.0.lock();
        state.homes.retain(|_, home| *home != node);
        state.posts.retain(|_, post| post.node != node);
        state
            .searches
            .retain(|_, search| !search.asked.contains(&node));
    }
}

impl State {
    /// Forgets what nobody waits for any more.
    fn forget_given_up(&mut self) {
        self.searches.retain(|_, search| !search.found.is_closed());
        self.posts.retain(|_, post| !post.answered.is_closed());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes() -> [NodeId; 2] {
        [NodeId::random(), NodeId::random()]
    }

    #[test]
    fn a_search_ends_with_the_first_node_that_has_the_session_or_the_last_that_has_not() {
        let (inlets, [one, other]) = (RemoteInlets::default(), nodes());
        let asked = BTreeSet::from([one, other]);
        let mut found = inlets.search(1, asked.clone());
        let mut nowhere = inlets.search(2, asked.clone());
        let mut lost = inlets.search(3, asked);
        inlets.receive_found(one, 1, true);
        assert_eq!(found.try_recv(), Ok(Some(one)));
        inlets.receive_found(one, 2, false);
        inlets.receive_found(one, 2, false);
        assert!(nowhere.try_recv().is_err());
        inlets.receive_found(other, 2, false);
        assert_eq!(nowhere.try_recv(), Ok(None));
        inlets.node_down(other);
        assert!(lost.try_recv().is_err());
        // Nobody has asked for it.
        inlets.receive_found(one, 4, true);
        assert!(inlets.0.lock().searches.is_empty());
    }

    #[test]
    fn only_the_node_that_was_asked_answers_a_request() {
        let (inlets, [one, other]) = (RemoteInlets::default(), nodes());
        let mut waiting = inlets.expect(1, one);
        inlets.receive_outcome(other, 1, PostOutcome::NotHere);
        assert!(waiting.try_recv().is_err());
        inlets.receive_outcome(one, 1, PostOutcome::TakenIn(3));
        assert_eq!(waiting.try_recv(), Ok(PostOutcome::TakenIn(3)));
        let mut lost = inlets.expect(2, one);
        drop(inlets.expect(3, other));
        inlets.node_down(one);
        assert!(lost.try_recv().is_err());
        let _waiting = inlets.expect(4, other);
        assert_eq!(inlets.0.lock().posts.len(), 1);
    }

    #[test]
    fn homes_are_forgotten_when_they_are_too_many_or_their_node_is_down() {
        let (inlets, [one, other]) = (RemoteInlets::default(), nodes());
        let token = |bits: usize| TokenHash::of_bits(bits as u128);
        inlets.set_home(token(0), Some(one));
        inlets.set_home(token(1), Some(other));
        inlets.node_down(one);
        assert_eq!(inlets.home(&token(0)), None);
        assert_eq!(inlets.home(&token(1)), Some(other));
        inlets.set_home(token(1), None);
        assert_eq!(inlets.home(&token(1)), None);
        (0..=MAX_HOMES).for_each(|bits| inlets.set_home(token(bits), Some(one)));
        assert_eq!(inlets.0.lock().homes.len(), 1);
    }
}
