//! What listens: the server, its accept loop, TLS, and every URL.

mod accept;
mod admin;
mod anteroom;
mod assets;
mod routes;
mod tls;

use std::{future::pending, io, net::SocketAddr, sync::Arc, time::Duration};

use log::{info, warn};
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use self::anteroom::Anteroom;
use self::{
    accept::Service,
    anteroom::{report, with_context},
    tls::Tls,
};
use crate::config::{Config, sessions_by_files};

/// How long a request of an operator may take when all else has ended.
const OPERATORS_GRACE: Duration = Duration::from_secs(1);

/// A server that is bound to its address, and not yet serving.
pub struct Server {
    listener: TcpListener,
    tls: Option<Arc<Tls>>,
    admin: Option<TcpListener>,
    anteroom: Anteroom,
}

impl Server {
    /// Binds the address of `config`.
    ///
    /// # Errors
    ///
    /// An address that cannot be bound, a file or folder that cannot be read or used, or a value that
    /// makes no sense ([`Config::check`]); the message says which.
    pub fn bind(config: Config) -> io::Result<Server> {
        let bind = |address| {
            accept::bind(address)
                .map_err(|error| with_context(error, format!("cannot listen on {address}")))
        };
        let listener = bind(config.serving.listen)?;
        let admin = config.admin.listen.map(bind).transpose()?;
        let tls = config
            .serving
            .tls_cert
            .clone()
            .zip(config.serving.tls_key.clone());
        let tls = tls.map(|(cert, key)| Tls::new(cert, key).map(Arc::new));
        Ok(Server {
            listener,
            tls: tls.transpose()?,
            admin,
            anteroom: Anteroom::new(config)?,
        })
    }

    /// What reads the files again that may change while the server runs, to be called when the
    /// program is asked to, as by SIGHUP: the certificate, and those of [`Anteroom::reload`]. `None`
    /// if there are none.
    pub fn reloader(&self) -> Option<impl Fn() + Send + 'static> {
        let (tls, anteroom) = (self.tls.clone(), self.anteroom.clone());
        let config = &anteroom.shared().config;
        let has_files = [
            &config.tokens.key_file,
            &config.webrtc.turn_secret_file,
            &config.admin.token_file,
        ]
        .iter()
        .any(|file| file.is_some());
        (tls.is_some() || has_files).then_some(move || {
            if let Some(tls) = &tls {
                report("the certificate", tls.reload());
            }
            anteroom.reload();
        })
    }

    /// The address it listens on, with the real port.
    ///
    /// # Errors
    ///
    /// What the operating system says.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Whether it serves with TLS.
    pub fn has_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// The address on which operators are answered, with the real port; `None` if there is none.
    ///
    /// # Errors
    ///
    /// What the operating system says.
    pub fn admin_addr(&self) -> io::Result<Option<SocketAddr>> {
        self.admin.as_ref().map(TcpListener::local_addr).transpose()
    }

    /// The rooms it serves.
    pub fn anteroom(&self) -> &Anteroom {
        &self.anteroom
    }

    /// Serves until `shutdown` is done; then accepts no more, tells every session to come back
    /// later (close code 1012), waits for them for the drain time at most, and returns with no task
    /// left.
    pub async fn serve(self, shutdown: impl Future<Output = ()>) {
        let Server {
            listener,
            tls,
            admin,
            anteroom,
        } = self;
        let shared = anteroom.shared().clone();
        let (limit, possible) = (shared.config.limits.sessions(), sessions_by_files());
        info!("serving up to {limit} sessions");
        if limit > possible {
            warn!("the open-file limit is enough for {possible} sessions only");
        }
        let service = Service {
            routes: anteroom.routes(),
            tls,
            is_public: true,
            is_for_operators: false,
            tasks: shared.tasks.clone(),
            stopping: shared.stopping.clone(),
            grace: shared.config.stopping.drain(),
            shared: shared.clone(),
        };
        let admin_service = Service {
            routes: admin::all(&anteroom),
            tls: None,
            is_public: shared.config.admin.is_exposed(),
            is_for_operators: true,
            tasks: TaskTracker::new(),
            stopping: CancellationToken::new(),
            grace: OPERATORS_GRACE,
            shared,
        };
        let operators = async {
            match &admin {
                Some(listener) => accept::accept(listener, &admin_service).await,
                None => pending().await,
            }
        };
        let peers = async {
            tokio::select! {
                () = accept::accept(&listener, &service) => {}
                () = shutdown => {}
            }
            drop(listener);
            anteroom.shut_down().await;
        };
        // Operators are answered to the end.
        tokio::select! {
            () = peers => {}
            () = operators => {}
        }
        admin_service.stopping.cancel();
        admin_service.tasks.close();
        admin_service.tasks.wait().await;
    }
}
