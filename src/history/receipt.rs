//! The receipts of messages that are stored.

use serde_json::value::RawValue;

use crate::{
    metrics::Metrics,
    outbox::{self, FlushSet},
    protocol::{self, Problem, SessionId},
};

/// The receipt for a message, which is sent when the message is stored.
pub(crate) struct Receipt {
    pub(crate) outbox: outbox::Sender,
    pub(crate) id: SessionId,
    pub(crate) reference: Option<Box<RawValue>>,
    /// How many sessions received the message.
    pub(crate) receivers: usize,
}

impl Receipt {
    /// Tells the sender that its message is stored, or that it is not.
    pub(super) fn confirm(self, stored: bool, metrics: &Metrics) {
        let reference = self.reference.as_deref();
        let answer = match (stored, reference) {
            (true, Some(reference)) => protocol::ack(self.id, reference, self.receivers),
            (true, None) => return,
            (false, reference) => {
                let problem = Problem::not_stored();
                metrics.errors(problem.code.as_str()).inc();
                protocol::error(self.id, &problem, reference)
            }
        };
        // A session that takes nothing more is leaving.
        let _ = self.outbox.push(answer, &mut FlushSet::default());
    }
}
