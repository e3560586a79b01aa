//! The server on sockets of its own.

use std::{future::pending, io, net::SocketAddr, sync::Arc, time::Duration};

use log::{info, warn};
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    accept::{self, Service},
    admin,
    anteroom::{Anteroom, report_reload, with_context},
    tls::Tls,
};
use crate::config::Config;

/// How long a request to the admin API may still take once everything else has ended.
const ADMIN_GRACE: Duration = Duration::from_secs(1);

/// A server that is bound to its addresses but does not serve yet.
pub struct Server {
    listener: TcpListener,
    tls: Option<Arc<Tls>>,
    admin: Option<TcpListener>,
    anteroom: Anteroom,
}

impl Server {
    /// Binds the addresses of the server and of the admin API.
    ///
    /// # Errors
    ///
    /// An address that cannot be bound, a file or folder that cannot be read or used, or an invalid
    /// value ([`Config::check`]); the message names it.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn bind(config: Config) -> io::Result<Server> {
        let listener = bind(config.serving.listen)?;
        Server::with(listener, config)
    }

    /// Like [`bind`](Server::bind), on a socket that is bound and listens already, as those that systemd opens for a
    /// service. The address in [`Serving::listen`](crate::config::Serving::listen) is not used.
    ///
    /// # Errors
    ///
    /// As for [`bind`](Server::bind), and the error of the operating system if the socket cannot be used.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn on(listener: std::net::TcpListener, config: Config) -> io::Result<Server> {
        listener.set_nonblocking(true)?;
        Server::with(TcpListener::from_std(listener)?, config)
    }

    fn with(listener: TcpListener, config: Config) -> io::Result<Server> {
        let admin = config.admin.listen.map(bind).transpose()?;
        let tls = Tls::new(&config.serving)?.map(Arc::new);
        Ok(Server {
            listener,
            tls,
            admin,
            anteroom: Anteroom::new(config)?,
        })
    }

    /// A function that reloads the TLS certificate and the files of [`Anteroom::reload`], for example
    /// on SIGHUP. `None` if the configuration has no such file.
    pub fn reloader(&self) -> Option<impl Fn() + Send + 'static> {
        let (tls, anteroom) = (self.tls.clone(), self.anteroom.clone());
        let config = &anteroom.handle().config;
        let has_files = anteroom.handle().admission.tokens().is_some()
            || config.webrtc.turn_secret_file.is_some()
            || config.admin.token_file.is_some();
        (tls.is_some() || has_files).then_some(move || {
            if let Some(tls) = &tls {
                report_reload("the TLS certificate", tls.reload());
            }
            anteroom.reload();
        })
    }

    /// The address that the server listens on, with the actual port.
    ///
    /// # Errors
    ///
    /// The error of the operating system.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Whether the server uses TLS.
    pub fn has_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// The address of the admin API, with the actual port; `None` without [`Config::admin`].
    ///
    /// # Errors
    ///
    /// The error of the operating system.
    pub fn admin_addr(&self) -> io::Result<Option<SocketAddr>> {
        self.admin.as_ref().map(TcpListener::local_addr).transpose()
    }

    /// The address of the STUN and TURN server, with the actual port; `None` without one.
    pub fn turn_addr(&self) -> Option<SocketAddr> {
        self.anteroom.turn_addr()
    }

    /// The handle to the rooms.
    pub fn anteroom(&self) -> &Anteroom {
        &self.anteroom
    }

    /// Serves until `shutdown` completes. Then it accepts no more connections and shuts down as
    /// [`Anteroom::shut_down`] does. Returns when every task has ended.
    pub async fn serve(self, shutdown: impl Future<Output = ()>) {
        let Server {
            listener,
            tls,
            admin,
            anteroom,
        } = self;
        let shared = Arc::clone(anteroom.handle());
        let (limit, possible) = (shared.config.sessions(), shared.config.possible_sessions());
        info!("serving up to {limit} sessions");
        if limit > possible {
            warn!(
                "the open-file limit allows only {possible} sessions: raise it, or lower --max-sessions"
            );
        }
        let service = Service {
            routes: anteroom.routes(),
            tls,
            is_public: true,
            is_admin: false,
            tasks: shared.tasks.clone(),
            stopping: shared.stopping.clone(),
            grace: shared.config.stopping.drain(),
            shared: shared.clone(),
        };
        let admin_service = Service {
            routes: admin::all(anteroom.handle()),
            tls: None,
            is_public: shared.config.admin.is_exposed(),
            is_admin: true,
            tasks: TaskTracker::new(),
            stopping: CancellationToken::new(),
            grace: ADMIN_GRACE,
            shared,
        };
        let admin_requests = async {
            match &admin {
                Some(listener) => accept::accept(listener, &admin_service).await,
                None => pending().await,
            }
        };
        let sessions = async {
            tokio::select! {
                biased;
                () = shutdown => {}
                () = accept::accept(&listener, &service) => {}
            }
            drop(listener);
            anteroom.shut_down().await;
        };
        // The admin API answers until the last session has left.
        tokio::select! {
            biased;
            () = sessions => {}
            () = admin_requests => {}
        }
        admin_service.stopping.cancel();
        admin_service.tasks.close();
        admin_service.tasks.wait().await;
    }
}

/// Binds an address.
fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    accept::bind(address)
        .map_err(|error| with_context(error, format!("cannot listen on {address}")))
}
