//! For tests: a server whose connections are streams in memory.

use std::{net::SocketAddr, sync::Arc};

use tokio::io::{AsyncRead, AsyncWrite};

use super::{accept::Service, anteroom::Anteroom};
use crate::{state::Shared, web::SocketWatch};

/// Serves connections that are no sockets as the accept loop serves sockets.
pub(crate) struct InMemoryServer {
    service: Service,
}

impl InMemoryServer {
    /// Serves all URLs of this server.
    pub(crate) fn new(anteroom: &Anteroom) -> InMemoryServer {
        let shared = anteroom.handle();
        InMemoryServer {
            service: Service {
                routes: anteroom.routes(),
                tls: None,
                is_public: true,
                is_admin: false,
                tasks: shared.tasks.clone(),
                stopping: shared.stopping.clone(),
                grace: shared.config.stopping.drain(),
                shared: Arc::clone(shared),
            },
        }
    }

    /// Serves a connection from `peer` in a task of its own.
    pub(crate) fn serve(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        peer: SocketAddr,
    ) {
        let service = self.service.clone();
        self.service
            .tasks
            .spawn(service.serve(stream, peer, SocketWatch::default()));
    }

    /// The state of the server.
    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.service.shared
    }
}
