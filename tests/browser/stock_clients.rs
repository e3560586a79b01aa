//! Pages with the clients of PeerJS, y-webrtc and trystero as npm has them, and servers that speak to them.
//!
//! `tests/package/stock_clients.js` says what is global in a page. Each host name under `localhost` is an origin of
//! its own and, unlike other names, a secure context: only so have pages cameras and `crypto.subtle`. Pages of one
//! origin would share Yjs documents without a server.

use std::{env, fs, net::SocketAddr, path::PathBuf, process::Stdio};

use anteroom::{Config, config::Dialect};
use tokio::{process::Command, sync::OnceCell};

use super::driver::{Browser, Tab};
use crate::support::{Program, TestServer};

const PAGE: &str = r#"<!doctype html><title>clients</title><link rel="icon" href="data:,">
<script type="module" src="clients.js"></script>"#;

/// A browser, and a server of the pages that speaks no dialect: pages of stock clients come from elsewhere.
pub struct StockClients {
    pub browser: Browser,
    pages: TestServer,
}

impl StockClients {
    pub async fn start() -> StockClients {
        let folder = pages().await.clone();
        let pages = TestServer::with(|config| config.serving.static_dir = Some(folder)).await;
        let browser = Browser::start().await;
        StockClients { browser, pages }
    }

    /// Opens a page in a new tab. Its origin has the `name`.
    pub async fn open(&self, name: &str) -> Tab<'_> {
        let port = self.pages.address.port();
        self.browser
            .open(&format!("http://{name}.localhost:{port}/"))
            .await
    }
}

/// The folder of the tools, which has the packages in its `node_modules`.
pub fn tools() -> PathBuf {
    let tools = env::var_os("PACKAGE_TOOLS");
    tools.expect("PACKAGE_TOOLS is a folder of tools").into()
}

/// The folder with the page, which is built once.
async fn pages() -> &'static PathBuf {
    static PAGES: OnceCell<PathBuf> = OnceCell::const_new();
    PAGES.get_or_init(build_pages).await
}

/// Bundles the clients as an application would. The project lies in the folder of the tools, so that esbuild finds the
/// packages.
async fn build_pages() -> PathBuf {
    let tools = tools();
    let project = tools.join("projects/stock-clients");
    let dist = project.join("dist");
    fs::create_dir_all(&dist).unwrap();
    let entry = include_str!("../package/stock_clients.js");
    fs::write(project.join("clients.js"), entry).unwrap();
    fs::write(dist.join("index.html"), PAGE).unwrap();
    let module = fs::canonicalize("static/anteroom.js").unwrap();
    let built = Command::new(tools.join("node_modules/.bin/esbuild"))
        .args(["clients.js", "--bundle", "--format=esm", "--outdir=dist"])
        .arg(format!("--alias:anteroom-client={}", module.display()))
        .arg("--log-level=warning")
        .current_dir(&project)
        .stdin(Stdio::null())
        .status()
        .await;
    assert!(built.unwrap().success(), "esbuild bundles the clients");
    dist
}

/// Starts a server that speaks these dialects, with some options changed. It keeps a session without a connection for
/// longer than any test waits: an id that is free again was given up.
pub async fn start_server<const N: usize>(
    dialects: [Dialect; N],
    change: impl FnOnce(&mut Config),
) -> TestServer {
    TestServer::with(|config| {
        config.serving.dialect = dialects.into();
        config.liveness.resume_seconds = 3600;
        change(config);
    })
    .await
}

/// Starts the program with a dialect. A `port` of 0 is any that is free.
pub async fn start_program(dialect: &str, port: u16) -> Program {
    let mut command = Command::new(env!("CARGO_BIN_EXE_anteroom"));
    command
        .args(["--listen", &format!("127.0.0.1:{port}")])
        .args(["--dialect", dialect])
        .stderr(Stdio::null());
    Program::run(command).await
}

/// The URL of the topics of a server.
pub fn topics(server: SocketAddr) -> String {
    format!("ws://{server}/topics")
}
