//! What has become of a message.

/// What has become of a message.
#[derive(Default)]
pub(super) struct Routed {
    /// The number of sessions that get it.
    pub(super) receivers: usize,
    /// Whether its receipt is sent later.
    pub(super) is_receipt_due: bool,
    /// The number of bytes that it causes to be sent.
    pub(super) bytes: usize,
}
