//! A browser and its tabs, controlled over WebDriver.

use std::{path::PathBuf, process::Stdio, time::Duration};

use fantoccini::{
    Client, ClientBuilder,
    elements::Element,
    wd::{Capabilities, TimeoutConfiguration, WebDriverCompatibleCommand, WindowHandle},
};
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

use crate::support::{DEADLINE, within_deadline};

/// The command line of Chromium: no requests of its own, simulated devices that need no permission,
/// and no throttling of background tabs.
pub(super) const FLAGS: [&str; 18] = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-device-for-media-stream=device-count=3",
    "--use-fake-ui-for-media-stream",
    "--disable-background-timer-throttling",
    "--disable-backgrounding-occluded-windows",
    "--disable-renderer-backgrounding",
    // The machine may have only a loopback interface, and no multicast DNS.
    "--allow-loopback-in-peer-connection",
    "--disable-features=WebRtcHideLocalIpsWithMdns",
    // Names of this machine that, unlike localhost, are not a secure context.
    "--host-resolver-rules=MAP *.test 127.0.0.1",
    "--window-size=1440,900",
    "--disable-dev-shm-usage",
];

/// Collects every RTCPeerConnection of the page in the global `connections`.
const RECORD_CONNECTIONS: &str = "
    globalThis.connections = [];
    globalThis.RTCPeerConnection = class extends RTCPeerConnection {
        constructor(...options) {
            super(...options);
            connections.push(this);
        }
    };";

pub struct Browser {
    client: Client,
    process: Process,
    driver: Child,
    /// The folder that downloads are saved in.
    pub folder: PathBuf,
}

/// The browser's process and its folders. Dropping it ends the process and removes the folders,
/// also after a failed test.
pub(super) struct Process {
    /// The process id; empty once the browser is closed.
    pub(super) id: String,
    pub(super) folders: [Option<PathBuf>; 2],
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.id.is_empty() {
            let kill = std::process::Command::new("kill").arg(&self.id).status();
            kill.expect("kill is installed");
        }
        // Removal may fail, because an ending process still writes.
        for folder in self.folders.iter().flatten() {
            let _ = std::fs::remove_dir_all(folder);
        }
    }
}

/// A tab. Several can be open at the same time.
pub struct Tab<'a> {
    browser: &'a Browser,
    window: WindowHandle,
}

/// A command that ChromeDriver adds to WebDriver.
#[derive(Debug)]
struct Chrome(&'static str, Value);

impl WebDriverCompatibleCommand for Chrome {
    fn endpoint(
        &self,
        base_url: &url::Url,
        session_id: Option<&str>,
    ) -> Result<url::Url, url::ParseError> {
        base_url.join(&format!("session/{}/{}", session_id.unwrap(), self.0))
    }

    fn method_and_body(&self, _: &url::Url) -> (http::Method, Option<String>) {
        (http::Method::POST, Some(self.1.to_string()))
    }
}

/// The port that chromedriver listens on, or `None` if chromedriver ends before it listens.
async fn listening_port(driver: &mut Child) -> Option<u16> {
    let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines();
    while let Some(line) = lines.next_line().await.unwrap() {
        if let Some((_, port)) = line.split_once("successfully on port ") {
            return Some(port.trim_end_matches('.').parse().unwrap());
        }
    }
    None
}

impl Browser {
    pub async fn start() -> Browser {
        Browser::start_with_home(None).await
    }

    /// Starts a browser that also trusts the certificates of `authority`, given as PEM.
    pub async fn trusting(authority: &str) -> Browser {
        let name = format!("anteroom-home-{}", std::process::id());
        let home = std::env::temp_dir().join(name);
        let database = home.join(".pki/nssdb");
        std::fs::create_dir_all(&database).unwrap();
        let file = home.join("authority.pem");
        std::fs::write(&file, authority).unwrap();
        let database = format!("sql:{}", database.display());
        for arguments in [
            &["-N", "--empty-password"][..],
            &[
                "-A",
                "-n",
                "tests",
                "-t",
                "C,,",
                "-i",
                file.to_str().unwrap(),
            ],
        ] {
            let mut certutil = Command::new("certutil");
            let status = certutil.args(["-d", &database]).args(arguments).status();
            assert!(status.await.expect("certutil is installed").success());
        }
        Browser::start_with_home(Some(home)).await
    }

    async fn start_with_home(home: Option<PathBuf>) -> Browser {
        let mut command = Command::new("chromedriver");
        if let Some(home) = &home {
            command.env("HOME", home);
        }
        command
            .arg("--port=0")
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        // chromedriver ends at once if another process has just taken the port that it chose: start
        // it again.
        let (driver, port) = within_deadline("chromedriver's start", async {
            loop {
                let mut driver = command.spawn().expect("chromedriver is installed");
                if let Some(port) = listening_port(&mut driver).await {
                    break (driver, port);
                }
            }
        })
        .await;

        let folder = std::env::temp_dir().join(format!("anteroom-browser-{port}"));
        std::fs::create_dir_all(&folder).unwrap();
        let profile = format!("--user-data-dir={}", folder.join("profile").display());
        let capabilities: Capabilities = serde_json::from_value(json!({
            "goog:chromeOptions": {
                "args": FLAGS.iter().copied().chain([&*profile]).collect::<Vec<_>>(),
                "prefs": {"download.default_directory": folder},
            },
            "goog:loggingPrefs": {"browser": "ALL"},
        }))
        .unwrap();
        let client = ClientBuilder::new(HttpConnector::new())
            .capabilities(capabilities)
            .connect(&format!("http://127.0.0.1:{port}"))
            .await
            .unwrap();
        let script = Some(DEADLINE);
        let timeouts = TimeoutConfiguration::new(script, script, Some(Duration::ZERO));
        client.update_timeouts(timeouts).await.unwrap();
        let process = client.capabilities().unwrap()["goog:processID"].to_string();
        Browser {
            client,
            process: Process {
                id: process,
                folders: [Some(folder.clone()), home],
            },
            driver,
            folder,
        }
    }

    /// Opens a URL in a new tab.
    pub async fn open(&self, url: &str) -> Tab<'_> {
        let window = self.client.new_window(false).await.unwrap().handle;
        let tab = Tab {
            browser: self,
            window,
        };
        tab.devtools(
            "Page.addScriptToEvaluateOnNewDocument",
            json!({"source": RECORD_CONNECTIONS}),
        )
        .await;
        tab.go(url).await;
        tab
    }

    /// The warnings and errors in the console since the last call.
    pub async fn console_errors(&self) -> Vec<String> {
        let log = self
            .client
            .issue_cmd(Chrome("se/log", json!({"type": "browser"})));
        let log = log.await.unwrap();
        let entries = log.as_array().unwrap().iter();
        entries
            .filter(|entry| entry["level"] != "INFO" && entry["level"] != "DEBUG")
            .map(|entry| entry["message"].as_str().unwrap().to_owned())
            .collect()
    }

    /// Closes the browser. Fails if the console has warnings or errors.
    pub async fn close(self) {
        assert_eq!(self.console_errors().await, [""; 0]);
        self.close_regardless().await;
    }

    /// Closes the browser, whatever the console has.
    pub async fn close_regardless(mut self) {
        self.client.clone().close().await.unwrap();
        self.driver.kill().await.unwrap();
        self.process.id.clear();
    }
}

impl Tab<'_> {
    async fn client(&self) -> &Client {
        let client = &self.browser.client;
        client.switch_to_window(self.window.clone()).await.unwrap();
        client
    }

    /// Runs a command of the Chrome DevTools Protocol.
    pub async fn devtools(&self, command: &str, parameters: Value) -> Value {
        let client = self.client().await;
        let body = json!({"cmd": command, "params": parameters});
        client
            .issue_cmd(Chrome("goog/cdp/execute", body))
            .await
            .unwrap()
    }

    pub async fn go(&self, url: &str) {
        self.client().await.goto(url).await.unwrap();
    }

    pub async fn close(self) {
        self.client().await.close_window().await.unwrap();
    }

    /// Runs `script` in the page, as the body of a function. A returned promise is awaited.
    pub async fn run(&self, script: &str) -> Value {
        self.run_with(script, vec![]).await
    }

    /// Runs `script` as `run` does, with these `arguments`.
    pub async fn run_with(&self, script: &str, arguments: Vec<Value>) -> Value {
        match self.client().await.execute(script, arguments).await {
            Ok(value) => value,
            Err(error) => panic!("{script}: {error}"),
        }
    }

    /// Waits until an expression is true, or is a promise of true.
    pub async fn until(&self, condition: &str) {
        // The global keeps the promise alive: Chromium may collect one that only the driver waits
        // for.
        let script = format!(
            "return globalThis.waiting = new Promise(async (resolve) => {{
                while (!(await ({condition}))) await new Promise((next) => setTimeout(next, 20));
                resolve();
            }});"
        );
        self.run(&script).await;
    }

    pub async fn find(&self, selector: &str) -> Element {
        let locator = fantoccini::Locator::Css(selector);
        match self.client().await.find(locator).await {
            Ok(element) => element,
            Err(error) => panic!("{selector}: {error}"),
        }
    }

    pub async fn click(&self, selector: &str) {
        self.find(selector).await.click().await.unwrap();
    }

    /// Types text into an element.
    pub async fn type_into(&self, selector: &str, text: &str) {
        self.find(selector).await.send_keys(text).await.unwrap();
    }

    /// Presses keys in the element that has the focus.
    pub async fn press(&self, keys: &str) {
        let element = self.client().await.active_element().await.unwrap();
        element.send_keys(keys).await.unwrap();
    }

    /// Saves a screenshot of the tab as PNG.
    pub async fn screenshot(&self, path: &str) {
        let png = self.client().await.screenshot().await.unwrap();
        std::fs::write(path, png).unwrap();
    }

    /// The visible text of an element.
    pub async fn text(&self, selector: &str) -> String {
        self.find(selector).await.text().await.unwrap()
    }
}
