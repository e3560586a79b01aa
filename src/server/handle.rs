//! The handle that keeps the server alive.

use std::{ops::Deref, sync::Arc};

use crate::state::Shared;

/// A handle to the shared state. Dropping the last clone tells every session to leave.
#[derive(Clone)]
pub(super) struct Handle(Arc<StopOnDrop>);

/// The shared state, stopped when it is dropped. Tasks hold [`Shared`] itself, so that they do not
/// keep a server alive that nobody can reach.
struct StopOnDrop(Arc<Shared>);

impl Handle {
    /// The first handle to this state.
    pub(super) fn new(shared: Arc<Shared>) -> Handle {
        Handle(Arc::new(StopOnDrop(shared)))
    }
}

impl Deref for Handle {
    type Target = Arc<Shared>;

    fn deref(&self) -> &Arc<Shared> {
        &self.0.0
    }
}

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.stop();
        // Sessions that a shutdown has not saved hold the state that holds them.
        drop(self.0.to_save.close());
    }
}
