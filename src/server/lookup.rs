//! Lookups of other nodes: a session of this node migrates to the node where its client reconnects.

use std::sync::Arc;

use crate::{
    cluster::{NodeId, Want},
    rooms::MigrationRequest,
    session,
    state::{Shared, Takeover},
};

/// Lets a session of this node migrate to `node`, which looks for it. A node that does not get the session is
/// told why, at once or, if the session is just leaving to another node, when it has left.
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
    match delivered.unwrap_or_else(Some) {
        Some(Takeover::Remote(request)) if request.is_of(node, seek) => {
            if let Some(answer) = shared.rooms.answer_lookup(&request) {
                session::refuse(shared, request, answer);
            }
        }
        // An earlier request for the same session, which this one replaces.
        Some(earlier) => session::reject(shared, earlier),
        None => {}
    }
}
