//! The npm package: `npm pack` makes it, npm installs it into a new project, and the recipes of the guide run
//! there against a real server. A recipe is the code block whose first line names its file.
//!
//! The projects lie in the folder of the tools (`PACKAGE_TOOLS`), so that they find React and the bundlers in
//! its `node_modules`. Nothing is downloaded.

use std::{
    env, fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{process::Command, time::timeout};

use super::driver::Browser;
use crate::{
    guide::{CLIENT, blocks},
    support::{Client, RunningServer, TestServer},
};

/// How long a bundler may take on a busy machine.
const BUILD_TIMEOUT: Duration = Duration::from_secs(120);

const HTML: &str = "<!doctype html><title>test</title><script type=\"module\" src=";

/// A project that has installed the package.
struct Project {
    folder: PathBuf,
    tools: PathBuf,
    server: TestServer,
}

impl Project {
    /// The server serves the project's folder `dist`.
    async fn new(name: &str) -> Project {
        let tools = env::var_os("PACKAGE_TOOLS").expect("PACKAGE_TOOLS is a folder of tools");
        let tools = PathBuf::from(tools);
        let folder = tools.join("projects").join(name);
        let _ = fs::remove_dir_all(&folder);
        let dist = folder.join("dist");
        fs::create_dir_all(&dist).unwrap();
        let served = dist.clone();
        let server = TestServer::with(|config| {
            config.serving.static_dir = Some(served);
            config.history.rooms = vec!["kept".into()];
        })
        .await;
        let project = Project {
            folder,
            tools,
            server,
        };
        project.write("package.json", r#"{ "private": true, "type": "module" }"#);
        let package = fs::canonicalize("static").unwrap();
        let pack = ["pack", "--silent", package.to_str().unwrap()];
        let file = project.run("npm", &pack).await;
        let file = format!("./{}", file.trim());
        let install = [
            "install",
            "--silent",
            "--offline",
            "--no-audit",
            "--no-fund",
            &file,
        ];
        project.run("npm", &install).await;
        project
    }

    fn write(&self, file: &str, text: &str) {
        fs::write(self.folder.join(file), text).unwrap();
    }

    /// Writes a recipe of the guide, with this server's address.
    fn write_recipe(&self, file: &str) {
        let language = Path::new(file).extension().unwrap().to_str().unwrap();
        let start = format!("// {file}\n");
        let recipe = blocks(CLIENT, language).find(|block| block.starts_with(&start));
        let recipe = recipe.unwrap_or_else(|| panic!("no recipe {file}"));
        let address = self.address().to_string();
        self.write(file, &recipe.replace("127.0.0.1:8080", &address));
    }

    fn address(&self) -> SocketAddr {
        self.server.address()
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let installed = self.tools.join("node_modules/.bin").join(program);
        let mut command = if installed.exists() {
            Command::new(installed)
        } else {
            Command::new(program)
        };
        command
            .args(arguments)
            .current_dir(&self.folder)
            .env("NO_COLOR", "1")
            .env("DENO_NO_UPDATE_CHECK", "1")
            .env("DENO_DIR", self.folder.join("deno"))
            .env("NODE_ENV", "development")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// What a program prints. It must succeed.
    async fn run(&self, program: &str, arguments: &[&str]) -> String {
        let mut command = self.command(program, arguments);
        let output = timeout(BUILD_TIMEOUT, command.output()).await;
        let output = output.expect("the build ends in time").unwrap();
        let [out, err] = [output.stdout, output.stderr].map(|it| String::from_utf8(it).unwrap());
        assert!(output.status.success(), "{program}: {out}{err}");
        assert_eq!(err, "", "{program} {arguments:?}");
        out
    }

    /// Builds a program. It must print nothing, as warnings are.
    async fn build(&self, program: &str, arguments: &[&str]) {
        assert_eq!(self.run(program, arguments).await, "", "{program}");
    }

    /// Bundles a file with webpack, into the folder `dist`. A warning is an error.
    async fn webpack(&self, entry: &str, output: &str) {
        let options =
            "--mode production --output-path dist --stats errors-warnings --fail-on-warnings";
        let options = options.split(' ').chain(["--entry", entry]);
        let options = options
            .chain(["--output-filename", output])
            .collect::<Vec<_>>();
        let printed = self.run("webpack", &options).await;
        assert_eq!(printed, "webpack compiled successfully\n");
    }

    /// Checks types with TypeScript.
    async fn check_types(&self, files: &[&str]) {
        let options = "--noEmit --strict --target es2022 --module esnext --moduleResolution bundler \
                       --jsx react-jsx --lib es2024,dom,dom.iterable --types react,react-dom";
        let options: Vec<&str> = options.split(' ').collect();
        self.build("tsc", &[&options[..], files].concat()).await;
    }

    /// Runs a bot, and talks to it.
    async fn expect_bot(&self, program: &str, arguments: &[&str]) {
        let mut client = Client::join(&self.server, "tea").await;
        let _bot = self.command(program, arguments).spawn().unwrap();
        expect_answer(&mut client).await;
    }

    /// A Node.js with a global `WebSocket`.
    fn node22(&self) -> String {
        self.node("node")
    }

    /// A Node.js without.
    fn node20(&self) -> String {
        self.node("node20")
    }

    fn node(&self, name: &str) -> String {
        ["x64", "arm64"]
            .map(|cpu| format!("node_modules/{name}-linux-{cpu}/bin/node"))
            .map(|path| self.tools.join(path))
            .into_iter()
            .find(|path| path.exists())
            .and_then(|path| path.into_os_string().into_string().ok())
            .expect("Node.js is installed")
    }
}

/// Waits for the newcomer, and for its answer to a chat message.
async fn expect_answer(client: &mut Client) {
    let new = client.next().await;
    assert_eq!(new["type"], "new", "{new}");
    let chat = json!({"type": "chat", "receiver": new["sender"], "data": "hello"});
    client.send(chat).await;
    let answer = client.next().await;
    assert_eq!(answer["sender"], new["sender"]);
    assert_eq!(answer["data"], "you said hello");
}

#[test]
fn the_package_has_the_version_and_the_licence_of_the_crate() {
    let package = fs::read_to_string("static/package.json").unwrap();
    let package: Value = serde_json::from_str(&package).unwrap();
    assert_eq!(package["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(package["license"], env!("CARGO_PKG_LICENSE"));
}

#[tokio::test]
#[ignore = "needs npm packages: tests/run installs them and starts this test"]
async fn the_package_contains_the_module_its_types_and_the_licence() {
    let project = Project::new("files").await;
    let package = project.folder.join("node_modules/anteroom-client");
    let mut files: Vec<_> = fs::read_dir(&package)
        .unwrap()
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .collect();
    files.sort();
    assert_eq!(
        files,
        [
            "LICENSE",
            "README.md",
            "anteroom.d.ts",
            "anteroom.js",
            "package.json"
        ]
    );
    let licence = fs::read_to_string(package.join("LICENSE")).unwrap();
    assert_eq!(licence, fs::read_to_string("LICENSE").unwrap());
    assert!(!fs::exists("static/LICENSE").unwrap(), "a copy is left");
}

#[tokio::test]
#[ignore = "needs npm packages: tests/run installs them and starts this test"]
async fn the_modules_that_the_server_sends_are_the_same_program_as_their_sources() {
    let project = Project::new("modules").await;
    let server = TestServer::with(|config| {
        config.admin.listen = Some(([127, 0, 0, 1], 0).into());
    })
    .await;
    let minified = async |file: &str| {
        let options = [file, "--minify-whitespace", "--legal-comments=none"];
        project.run("esbuild", &options).await
    };
    for (folder, address) in [
        ("static", server.address()),
        ("static/admin", server.admin.unwrap()),
    ] {
        for file in fs::read_dir(folder).unwrap() {
            let source = fs::canonicalize(file.unwrap().path()).unwrap();
            if source.extension().is_none_or(|extension| extension != "js") {
                continue;
            }
            let name = source.file_name().unwrap().to_str().unwrap();
            let url = format!("http://{address}/{name}");
            project.run("curl", &["-sfo", name, &url]).await;
            let source = source.to_str().unwrap();
            assert_eq!(minified(name).await, minified(source).await, "{name}");
        }
    }
}

#[tokio::test]
#[ignore = "needs npm packages: tests/run installs them and starts this test"]
async fn vite_and_typescript_build_an_application() {
    let project = Project::new("vite").await;
    project.write_recipe("bot.ts");
    project.write("types.ts", include_str!("../package/types.ts"));
    project.check_types(&["bot.ts", "types.ts"]).await;
    project.write("index.html", &format!("{HTML}./bot.ts></script>"));
    project
        .build("vite", &["build", "--logLevel", "warn"])
        .await;
    let mut client = Client::join(&project.server, "tea").await;
    let browser = Browser::start().await;
    let url = format!("http://{}/", project.address());
    let _tab = browser.open(&url).await;
    expect_answer(&mut client).await;
    browser.close_regardless().await;
}

#[tokio::test]
#[ignore = "needs npm packages: tests/run installs them and starts this test"]
async fn webpack_builds_an_application() {
    let project = Project::new("webpack").await;
    project.write_recipe("bot.js");
    project.webpack("./bot.js", "main.cjs").await;
    project
        .expect_bot(&project.node22(), &["dist/main.cjs"])
        .await;
}

#[tokio::test]
#[ignore = "needs npm packages: tests/run installs them and starts this test"]
async fn esbuild_builds_an_application_in_every_format() {
    let project = Project::new("esbuild").await;
    project.write_recipe("bot.js");
    for (format, file) in [("esm", "esm.mjs"), ("iife", "iife.cjs"), ("cjs", "cjs.cjs")] {
        let format = format!("--format={format}");
        let out = format!("--outfile=dist/{file}");
        let options = ["bot.js", "--bundle", "--log-level=warning", &format, &out];
        project.build("esbuild", &options).await;
        // A copy of the module in the application's sources, too.
        fs::copy("static/anteroom.js", project.folder.join("copy.js")).unwrap();
        let copy = ["copy.js", "--bundle", "--log-level=warning", &format];
        project.run("esbuild", &copy).await;
        let file = format!("dist/{file}");
        project.expect_bot(&project.node22(), &[&file]).await;
    }
}

#[tokio::test]
#[ignore = "needs npm packages: tests/run installs them and starts this test"]
async fn a_bundle_without_an_address_says_at_once_what_to_give() {
    let project = Project::new("address").await;
    let main = r#"
        import { join } from "anteroom-client";
        try { join("tea"); } catch (error) { console.log(error.name, error.message); }
    "#;
    project.write("main.js", main);
    let node = project.node22();
    project.webpack("./main.js", "webpack.cjs").await;
    for (format, file) in [("esm", "dist/esm.mjs"), ("iife", "dist/iife.cjs")] {
        let format = format!("--format={format}");
        let out = format!("--outfile={file}");
        let options = ["main.js", "--bundle", "--log-level=warning", &format, &out];
        project.build("esbuild", &options).await;
    }
    for file in [
        "main.js",
        "dist/webpack.cjs",
        "dist/esm.mjs",
        "dist/iife.cjs",
    ] {
        let printed = project.run(&node, &[file]).await;
        assert!(printed.starts_with("TypeError "), "{file}: {printed}");
        assert!(printed.contains("give its address"), "{file}: {printed}");
    }
}

#[tokio::test]
#[ignore = "needs npm packages: tests/run installs them and starts this test"]
async fn the_bots_of_the_guide_answer() {
    let project = Project::new("node").await;
    for file in ["bot.js", "bot20.js"] {
        project.write_recipe(file);
    }
    project.expect_bot(&project.node22(), &["bot.js"]).await;
    project.expect_bot(&project.node20(), &["bot20.js"]).await;
    let deno = ["run", "--cached-only", "--allow-net", "bot.js"];
    project.expect_bot("deno", &deno).await;
}

/// `ws` hands several messages over at once, before any promise is settled.
#[tokio::test]
#[ignore = "needs npm packages: tests/run installs them and starts this test"]
async fn the_history_is_read_page_by_page_in_nodejs() {
    let project = Project::new("history").await;
    let mut alice = Client::join(&project.server, "kept").await;
    for number in 1..=5 {
        alice.tell(number).await;
    }
    let read = |import: &str, options: &str| {
        let address = project.address();
        format!(
            r#"
            import {{ join }} from "anteroom-client";
            {import}
            const room = join("kept", {{ url: "http://{address}/", {options} }});
            const others = [room.history({{ last: 1 }}), room.history({{ last: 3 }})];
            const pages = [];
            for await (const page of room.history({{ last: 2 }})) pages.push(page);
            pages.push(...(await Promise.all(others)));
            console.log(JSON.stringify(pages.map(({{ messages }}) => messages.map(({{ data }}) => data))));
            room.leave();
            "#
        )
    };
    project.write("read.js", &read("", ""));
    let with_ws = read(r#"import WebSocket from "ws";"#, "WebSocket");
    project.write("read20.js", &with_ws);
    for (node, file) in [
        (project.node22(), "read.js"),
        (project.node20(), "read20.js"),
    ] {
        let printed = project.run(&node, &[file]).await;
        assert_eq!(printed, "[[4,5],[2,3],[1],[5],[3,4,5]]\n", "{file}");
    }
}

#[tokio::test]
#[ignore = "needs npm packages: tests/run installs them and starts this test"]
async fn the_hook_of_the_guide_shows_who_comes_and_goes() {
    let project = Project::new("react").await;
    for file in ["useRoom.ts", "main.tsx"] {
        project.write_recipe(file);
    }
    project.check_types(&["main.tsx"]).await;
    project.write("index.html", &format!("{HTML}./main.tsx></script>"));
    // The strict mode joins twice in a development build only.
    let options = ["build", "--mode", "development", "--logLevel", "warn"];
    project.build("vite", &options).await;
    let browser = Browser::start().await;
    let url = format!("http://{}/", project.address());
    let tab = browser.open(&url).await;
    let shows = |text| format!("document.querySelector('button')?.textContent === '{text}'");
    tab.until(&shows("Wave to 0")).await;
    let alice = Client::join(&project.server, "tea").await;
    tab.until(&shows("Wave to 1")).await;
    let mut bob = Client::join(&project.server, "tea").await;
    tab.until(&shows("Wave to 2")).await;
    tab.click("button").await;
    loop {
        let message = bob.next().await;
        if message["type"] == "wave" {
            break;
        }
    }
    alice.leave().await;
    tab.until(&shows("Wave to 1")).await;
    browser.close_regardless().await;
}
