//! Lookups of other nodes: a session of this node migrates to the node where its client reconnects.

use std::sync::Arc;

use crate::{
    cluster::{NodeId, Want},
    rooms::MigrationRequest,
    session,
    state::{Shared, Takeover},
};

/// Lets a session of this node migrate to `node`, which looks it up. If `node` does not get the session, this
/// node answers why; if the session is migrating to a third node, it answers once the session has arrived there.
pub(super) fn answer_lookup(shared: &Arc<Shared>, node: NodeId, want: Want) {
    let Want {
        room,
        seek,
        token,
        user,
        received,
        seen,
    } = want;
    let name = room.clone();
    let takeover = Takeover::Remote(MigrationRequest {
        node,
        room,
        seek,
        token,
        received,
        seen,
    });
    let resumes = &shared.resumes;
    let delivered = resumes.take_over(&token, &name, user.as_deref(), takeover);
    match delivered {
        Ok(None) => {}
        // This request replaces an earlier takeover of the same session.
        Ok(Some(earlier)) => session::reject(shared, earlier),
        Err(Takeover::Remote(request)) => {
            if let Some(answer) = shared.rooms.answer_lookup(&request) {
                session::refuse(shared, request, answer);
            }
        }
        Err(Takeover::Local(_)) => unreachable!("the takeover is a remote one"),
    }
}
