//! A browser without the defaults of automation, controlled over the Chrome DevTools Protocol.
//!
//! chromedriver starts Chromium without the back/forward cache. Here Chromium treats pages as it does for
//! its users: it keeps the pages that a tab has left, and restores them.

use std::{
    process::Stdio,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::{
    net::TcpStream,
    process::{Child, Command},
    sync::Mutex,
};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async, tungstenite::protocol::Message,
};

use super::driver::{FLAGS, Process};
use crate::support::{eventually, eventually_async, within_deadline};

/// A browser with the back/forward cache. Dropping it ends its process.
pub struct Chromium {
    connection: Mutex<Connection>,
    process: Process,
    child: Child,
}

/// The connection to the browser, which carries the commands for every page.
struct Connection {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    last_id: u64,
}

impl Connection {
    /// Runs a command, and returns its result, or the error as text. Skips the events before it.
    async fn command(
        &mut self,
        session: Option<&str>,
        method: &str,
        parameters: Value,
    ) -> Result<Value, String> {
        self.last_id += 1;
        let mut command = json!({"id": self.last_id, "method": method, "params": parameters});
        if let Some(session) = session {
            command["sessionId"] = session.into();
        }
        let message = Message::text(command.to_string());
        self.socket.send(message).await.unwrap();
        loop {
            let message = within_deadline(method, self.socket.next()).await;
            let text = message.expect("the browser runs").unwrap();
            let Ok(text) = text.to_text() else { continue };
            let mut answer: Value = serde_json::from_str(text).unwrap();
            if answer["id"] != self.last_id {
                continue;
            }
            return match answer["error"].is_null() {
                true => Ok(answer["result"].take()),
                false => Err(format!("{method}: {}", answer["error"])),
            };
        }
    }
}

impl Chromium {
    pub async fn start() -> Chromium {
        static STARTED: AtomicUsize = AtomicUsize::new(0);
        let number = STARTED.fetch_add(1, Relaxed);
        let name = format!("anteroom-chromium-{}-{number}", std::process::id());
        let profile = std::env::temp_dir().join(name);
        let child = Command::new("chromium")
            .args(FLAGS)
            .arg("--remote-debugging-port=0")
            .arg(format!("--user-data-dir={}", profile.display()))
            .arg("about:blank")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("chromium is installed");
        let process = Process {
            id: child.id().unwrap().to_string(),
            folders: [Some(profile.clone()), None],
        };

        // Chromium writes its port and the path of its WebSocket into this file, a line each.
        let file = profile.join("DevToolsActivePort");
        let mut url = String::new();
        eventually("the port of Chromium", || {
            let lines = std::fs::read_to_string(&file).unwrap_or_default();
            if let Some((port, path)) = lines.split_once('\n') {
                url = format!("ws://127.0.0.1:{port}{path}");
            }
            url.contains("/devtools/")
        })
        .await;
        let connected = within_deadline("the connection to Chromium", connect_async(url)).await;
        let socket = connected.unwrap().0;
        Chromium {
            connection: Mutex::new(Connection { socket, last_id: 0 }),
            process,
            child,
        }
    }

    async fn command(&self, method: &str, parameters: Value) -> Value {
        let mut connection = self.connection.lock().await;
        let result = connection.command(None, method, parameters).await;
        result.unwrap()
    }

    /// Opens a URL in a new tab, in front of the others, and waits until it has loaded.
    pub async fn open(&self, url: &str) -> Page<'_> {
        let created = self.command("Target.createTarget", json!({"url": url}));
        let target = created.await["targetId"].as_str().unwrap().to_owned();
        let parameters = json!({"targetId": target, "flatten": true});
        let attached = self.command("Target.attachToTarget", parameters).await;
        let page = Page {
            browser: self,
            target,
            session: attached["sessionId"].as_str().unwrap().into(),
        };
        page.until("location.href !== 'about:blank' && document.readyState === 'complete'")
            .await;
        page
    }

    /// Closes the browser.
    pub async fn close(mut self) {
        self.command("Browser.close", json!({})).await;
        within_deadline("the end of Chromium", self.child.wait())
            .await
            .unwrap();
        self.process.id.clear();
    }
}

/// A tab, and the page that it shows.
pub struct Page<'a> {
    browser: &'a Chromium,
    target: String,
    session: String,
}

impl Page<'_> {
    async fn try_command(&self, method: &str, parameters: Value) -> Result<Value, String> {
        let mut connection = self.browser.connection.lock().await;
        connection
            .command(Some(&self.session), method, parameters)
            .await
    }

    /// Runs a command of the Chrome DevTools Protocol for this tab.
    pub async fn command(&self, method: &str, parameters: Value) -> Value {
        self.try_command(method, parameters).await.unwrap()
    }

    /// Evaluates an expression. Returns an error if it throws, or if the page goes away meanwhile.
    async fn try_run(&self, expression: &str) -> Result<Value, String> {
        let parameters = json!({
            "expression": expression,
            "awaitPromise": true,
            "returnByValue": true,
        });
        let mut result = self.try_command("Runtime.evaluate", parameters).await?;
        match result.get("exceptionDetails") {
            Some(exception) => Err(format!("{expression}: {exception}")),
            None => Ok(result["result"]["value"].take()),
        }
    }

    /// The value of an expression, or of the promise that it is.
    pub async fn run(&self, expression: &str) -> Value {
        self.try_run(expression).await.unwrap()
    }

    /// Waits until an expression is true. The tab may go to another page meanwhile.
    pub async fn until(&self, condition: &str) {
        eventually_async(condition, async || {
            self.try_run(condition).await == Ok(Value::Bool(true))
        })
        .await;
    }

    /// Clicks in the middle of an element with the mouse.
    pub async fn click(&self, selector: &str) {
        let place = self
            .run(&format!(
                "(() => {{
                    const {{ x, y, width, height }} = document.querySelector({selector:?}).getBoundingClientRect();
                    return {{ x: x + width / 2, y: y + height / 2 }};
                }})()"
            ))
            .await;
        for kind in ["mousePressed", "mouseReleased"] {
            let event = json!({
                "type": kind,
                "x": place["x"],
                "y": place["y"],
                "button": "left",
                "clickCount": 1,
            });
            self.command("Input.dispatchMouseEvent", event).await;
        }
    }

    /// Goes back in the history of the tab.
    pub async fn back(&self) {
        // The page may be gone before it answers.
        let _ = self.try_run("history.back()").await;
    }

    /// Freezes the page, as a browser does with a tab that is long in the background.
    pub async fn freeze(&self) {
        let state = json!({"state": "frozen"});
        self.command("Page.setWebLifecycleState", state).await;
    }

    /// Ends `freeze`. The page stays hidden.
    pub async fn resume(&self) {
        let state = json!({"state": "active"});
        self.command("Page.setWebLifecycleState", state).await;
    }

    /// Shows this tab, and hides the one that was shown.
    pub async fn bring_to_front(&self) {
        self.command("Page.bringToFront", json!({})).await;
    }

    pub async fn close(self) {
        let target = json!({"targetId": self.target});
        self.browser.command("Target.closeTarget", target).await;
    }
}
