//! The interface to the rest of the server, which applies the messages of other nodes.

use super::wire::{Direct, Message, NodeId};
use crate::protocol::TokenKey;

/// Applies the messages that a node receives and the changes of the membership.
///
/// One task calls all methods: for messages in the order in which they were sent, for changes as they
/// happen. No method may block.
pub(crate) trait Delegate {
    /// The keys of resume tokens that this node knows. Heartbeats carry them to the other nodes.
    fn token_keys(&self) -> Vec<TokenKey>;

    /// Adds the keys that another node knows.
    fn learn_token_keys(&mut self, keys: &[TokenKey]);

    /// A node is up: it receives the messages of this one, and this one receives its messages.
    fn node_up(&mut self, node: NodeId);

    /// A node is down. Nothing of it follows until it is up again.
    fn node_down(&mut self, node: NodeId);

    /// Removes a portion of the sessions of the node that went down last. Returns whether some are left.
    /// [`end_batch`](Delegate::end_batch) follows.
    fn remove_sessions(&mut self) -> bool;

    /// Applies a message that `node` sent under this number. `text` is the JSON of a client or a backend
    /// that came with it, or empty.
    ///
    /// Of a node that is not up, there are only `enter` and `ask`. Heartbeats and acknowledgements do not
    /// come here.
    fn apply(&mut self, node: NodeId, number: u64, message: Message, text: &str);

    /// A node that is not up has sent a client's message to a session of this node. The message is not
    /// delivered.
    fn reject(&mut self, node: NodeId, message: Direct);

    /// Whether sessions have so much to write that [`end_batch`](Delegate::end_batch) should come before the next message.
    fn must_end_batch(&self) -> bool;

    /// Sends the replies to what was applied since the last batch, and has the sessions write what they got from it. Waits
    /// for them if they have much to write. Returns how many client messages were lost without anyone being told.
    fn end_batch(&mut self) -> impl Future<Output = u64> + Send;

    /// Subscribes to all rooms again, because the subscriptions were lost.
    fn subscribe(&mut self);

    /// Repeats requests that other nodes have not answered. Called every second.
    fn retry(&mut self);

    /// Sends the other nodes digests of what they should know. Called every 10 seconds.
    fn send_digests(&mut self);

    /// Waits until [`send_lists`](Delegate::send_lists) has a chunk to send and room for it.
    fn lists_ready(&self) -> impl Future<Output = ()> + Send;

    /// Sends chunks of long lists, as many as there is room for. Called after every step.
    fn send_lists(&mut self);

    /// Whether the node is to leave the cluster now.
    fn is_done(&self) -> bool;

    /// Does what other nodes wait for, before this one leaves.
    fn finish(&mut self) -> impl Future<Output = ()> + Send;
}
