//! A browser, and its tabs.

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

/// What Chromium is started with: no network but ours, devices that need no hardware and no
/// permission, and tabs that all run as if they were in front.
const FLAGS: [&str; 18] = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
    "--disable-background-timer-throttling",
    "--disable-backgrounding-occluded-windows",
    "--disable-renderer-backgrounding",
    // A machine may have nothing but its loopback, and no multicast DNS.
    "--allow-loopback-in-peer-connection",
    "--disable-features=WebRtcHideLocalIpsWithMdns",
    // A name of this machine that browsers do not trust as they trust localhost.
    "--host-resolver-rules=MAP anteroom.test 127.0.0.1",
    "--window-size=1440,900",
    "--disable-dev-shm-usage",
];

/// Lets a test look at the page's connections.
const WATCH_CONNECTIONS: &str = "
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
    /// Where downloads are saved.
    pub folder: PathBuf,
}

/// The browser's own process, by its id while it runs, and its folders: ended and removed also
/// where a test fails.
struct Process(String, [Option<PathBuf>; 2]);

impl Drop for Process {
    fn drop(&mut self) {
        if !self.0.is_empty() {
            let kill = std::process::Command::new("kill").arg(&self.0).status();
            kill.expect("kill is there");
        }
        // What a process that is just ending still writes may stay.
        for folder in self.1.iter().flatten() {
            let _ = std::fs::remove_dir_all(folder);
        }
    }
}

/// One tab; several can be open at the same time.
pub struct Tab<'a> {
    browser: &'a Browser,
    window: WindowHandle,
}

/// A command that WebDriver has not, but ChromeDriver.
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

/// The port that chromedriver listens on; `None` if it ends before.
async fn its_port(driver: &mut Child) -> Option<u16> {
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
        Browser::start_at_home(None).await
    }

    /// A browser that trusts the certificates of an authority, too, given as PEM.
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
        Browser::start_at_home(Some(home)).await
    }

    async fn start_at_home(home: Option<PathBuf>) -> Browser {
        let mut command = Command::new("chromedriver");
        if let Some(home) = &home {
            command.env("HOME", home);
        }
        command
            .arg("--port=0")
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        // It ends at once where another has just taken the port that it had chosen.
        let (driver, port) = within_deadline("chromedriver's start", async {
            loop {
                let mut driver = command.spawn().expect("chromedriver is installed");
                if let Some(port) = its_port(&mut driver).await {
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
            process: Process(process, [Some(folder.clone()), home]),
            driver,
            folder,
        }
    }

    /// Opens an address in a tab of its own.
    pub async fn open(&self, url: &str) -> Tab<'_> {
        let window = self.client.new_window(false).await.unwrap().handle;
        let tab = Tab {
            browser: self,
            window,
        };
        tab.chrome(
            "Page.addScriptToEvaluateOnNewDocument",
            json!({"source": WATCH_CONNECTIONS}),
        )
        .await;
        tab.go(url).await;
        tab
    }

    /// What the console has got since it was last asked, without what is only information.
    pub async fn complaints(&self) -> Vec<String> {
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

    /// Closes the browser, which must have had nothing to complain of.
    pub async fn close(self) {
        assert_eq!(self.complaints().await, [""; 0]);
        self.close_regardless().await;
    }

    /// Closes the browser, whatever it had to say.
    pub async fn close_regardless(mut self) {
        self.client.clone().close().await.unwrap();
        self.driver.kill().await.unwrap();
        self.process.0.clear();
    }
}

impl Tab<'_> {
    async fn client(&self) -> &Client {
        let client = &self.browser.client;
        client.switch_to_window(self.window.clone()).await.unwrap();
        client
    }

    /// A command of the DevTools.
    pub async fn chrome(&self, command: &str, parameters: Value) -> Value {
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

    /// Runs the body of a function in the page; a promise is awaited.
    pub async fn run(&self, script: &str) -> Value {
        self.run_with(script, vec![]).await
    }

    /// The same with `arguments`.
    pub async fn run_with(&self, script: &str, arguments: Vec<Value>) -> Value {
        match self.client().await.execute(script, arguments).await {
            Ok(value) => value,
            Err(error) => panic!("{script}: {error}"),
        }
    }

    /// Waits until an expression is true, or a promise of what is.
    pub async fn until(&self, condition: &str) {
        // Chromium may collect a promise that nobody but the driver waits for.
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

    /// Types into an element.
    pub async fn type_into(&self, selector: &str, text: &str) {
        self.find(selector).await.send_keys(text).await.unwrap();
    }

    /// Types wherever the focus is.
    pub async fn press(&self, keys: &str) {
        let element = self.client().await.active_element().await.unwrap();
        element.send_keys(keys).await.unwrap();
    }

    /// Saves a picture of the tab.
    pub async fn screenshot(&self, path: &str) {
        let picture = self.client().await.screenshot().await.unwrap();
        std::fs::write(path, picture).unwrap();
    }

    /// The text of an element, as it is seen.
    pub async fn text(&self, selector: &str) -> String {
        self.find(selector).await.text().await.unwrap()
    }
}
