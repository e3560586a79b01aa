//! The README and the guide: every command is run as it stands there, and its output compared with what is
//! printed there; every link leads somewhere.
//!
//! Other tests run the rest: `program` starts the servers, `operating` nginx and Prometheus, `browser`
//! opens the pages.
//!
//! In the README's section *Two terminals* a block is the contents of one terminal, and the line before it says
//! which. A line that begins with `$` starts a program, `^C` ends it; a message without `sender` is typed, one
//! with it is printed. Ids differ from run to run, so they are compared by where they appear.

use std::{
    collections::HashMap,
    env,
    path::{Path, PathBuf},
    process::Stdio,
};

use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
};

use crate::support::{Client, Program, TestServer, within_deadline};

pub const README: &str = include_str!("../../README.md");
pub const CLIENT: &str = include_str!("../../src/guide/client.md");
pub const DIALECTS: &str = include_str!("../../src/guide/dialects.md");
pub const CONFIGURATION: &str = include_str!("../../src/guide/configuration.md");
pub const OPERATING: &str = include_str!("../../src/guide/operating.md");
pub const CONTAINERS: &str = include_str!("../../src/guide/containers.md");
pub const CLUSTER: &str = include_str!("../../src/guide/cluster.md");

/// What rustdoc knows the links of the chapters by.
const RUSTDOC_LINKS: &str = include_str!("../../src/guide/rustdoc-links.txt");

/// The code blocks of a text in a language.
pub fn blocks<'a>(text: &'a str, language: &str) -> impl Iterator<Item = &'a str> {
    let fence = format!("```{language}\n");
    let blocks: Vec<&str> = text.split(&*fence).skip(1).collect();
    blocks.into_iter().map(|after| {
        let (block, _) = after.split_once("```").expect("the block has an end");
        block
    })
}

/// The commands in the console blocks of a text, each on one line.
pub fn commands(text: &str) -> Vec<String> {
    let lines: String = blocks(text, "console").collect();
    let lines = lines.replace("\\\n", "");
    let commands = lines.lines().filter_map(|line| line.strip_prefix("$ "));
    commands.map(str::to_owned).collect()
}

/// The only command that begins so, and the line that it prints, if one is shown.
fn command(text: &str, start: &str) -> (String, String) {
    let lines: String = blocks(text, "console").collect();
    let lines = lines.replace("\\\n", "");
    let mut found = lines
        .split("$ ")
        .filter(|command| command.starts_with(start));
    let command = found.next().unwrap_or_else(|| panic!("no {start}"));
    assert_eq!(found.next(), None, "{start} is there once");
    let (command, output) = command.split_once('\n').unwrap();
    (command.into(), output.trim_end().into())
}

/// A folder in which commands are run.
struct Shell(PathBuf);

impl Shell {
    fn new(name: &str) -> Shell {
        let folder = env::temp_dir().join(format!("anteroom-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        Shell(folder)
    }

    /// A command that finds `anteroom` and `websocat` by their names.
    fn command(&self, line: &str) -> Command {
        let anteroom = Path::new(env!("CARGO_BIN_EXE_anteroom")).parent().unwrap();
        let websocat = env::var_os("WEBSOCAT").map(PathBuf::from);
        let folders = [anteroom]
            .into_iter()
            .chain(websocat.iter().filter_map(|it| it.parent()));
        let known = env::var_os("PATH").unwrap();
        let path = env::join_paths(folders.map(Path::to_owned).chain(env::split_paths(&known)));
        let mut command = Command::new("sh");
        command
            .args(["-c", &format!("exec {line}")])
            .env("PATH", path.unwrap())
            .current_dir(&self.0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    /// What a command prints.
    async fn run(&self, line: &str) -> String {
        let mut command = self.command(line);
        let output = within_deadline("the command's end", command.output())
            .await
            .unwrap();
        assert!(output.status.success(), "{line}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Names what looks like a session id by the order of its first appearance.
#[derive(Default)]
struct Ids(HashMap<String, usize>);

impl Ids {
    fn blank(&mut self, line: &str) -> String {
        let mut blanked = String::new();
        for (number, part) in line.split('"').enumerate() {
            let part = if part.len() == 36 && part.split('-').count() == 5 {
                let next = self.0.len();
                format!("#{}", self.0.entry(part.into()).or_insert(next))
            } else {
                part.into()
            };
            blanked += if number > 0 { "\"" } else { "" };
            blanked += &part;
        }
        blanked
    }

    /// The id that this run has in the place of the README's.
    fn translate(line: &str, readme: &Ids, run: &Ids) -> String {
        let mut line = line.to_owned();
        for (id, place) in &readme.0 {
            if let Some((own, _)) = run.0.iter().find(|(_, other)| *other == place) {
                line = line.replace(id, own);
            }
        }
        line
    }
}

struct Terminal {
    program: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Terminal {
    fn start(websocat: &str, options: &[&str]) -> Terminal {
        let mut command = Command::new(websocat);
        command
            .args(options)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        Terminal::spawn(&mut command)
    }

    fn spawn(command: &mut Command) -> Terminal {
        let mut program = command.spawn().unwrap();
        let input = program.stdin.take().unwrap();
        let output = BufReader::new(program.stdout.take().unwrap()).lines();
        Terminal {
            program,
            input,
            output,
        }
    }
}

/// The blocks of the section *Two terminals*, each with its number.
fn walk_through() -> Vec<(usize, Vec<&'static str>)> {
    let (_, section) = README
        .split_once("\n## Two terminals\n")
        .expect("the section is there");
    let (section, _) = section.split_once("\n## ").unwrap();
    let parts: Vec<&str> = section.split("```").collect();
    parts
        .chunks_exact(2)
        .filter_map(|pair| {
            let (_, number) = pair[0].rsplit_once("Terminal ")?;
            let number = number.chars().next()?.to_digit(10)?;
            Some((number as usize, pair[1].lines().skip(1).collect()))
        })
        .collect()
}

#[tokio::test]
#[ignore = "needs websocat and the release binary: tests/run names them and starts this test"]
async fn the_two_terminals_print_what_the_readme_says() {
    let websocat = std::env::var("WEBSOCAT").expect("WEBSOCAT is the path of websocat");
    let anteroom = std::env::var("ANTEROOM").expect("ANTEROOM is the path of the server");
    let mut command = Command::new(anteroom);
    command.args(["--listen", "127.0.0.1:0"]);
    let server = Program::run(command).await;
    let mut terminals: HashMap<usize, Terminal> = HashMap::new();
    let (mut readme, mut run) = (Ids::default(), Ids::default());
    let mut printed = 0;
    for (number, lines) in walk_through() {
        for line in lines {
            if let Some(command) = line.strip_prefix("$ websocat ") {
                assert!(command.contains("127.0.0.1:8080"), "{command}");
                let command = command.replace("127.0.0.1:8080", &server.address.to_string());
                let options: Vec<&str> = command.split(' ').collect();
                terminals.insert(number, Terminal::start(&websocat, &options));
            } else if line == "^C" {
                terminals
                    .remove(&number)
                    .unwrap()
                    .program
                    .kill()
                    .await
                    .unwrap();
            } else if line.contains(r#""sender""#) {
                let output = &mut terminals.get_mut(&number).unwrap().output;
                let shown = within_deadline("a line", output.next_line())
                    .await
                    .unwrap()
                    .unwrap();
                assert_eq!(run.blank(&shown), readme.blank(line), "{shown}");
                printed += 1;
            } else {
                let typed = Ids::translate(line, &readme, &run) + "\n";
                let input = &mut terminals.get_mut(&number).unwrap().input;
                input.write_all(typed.as_bytes()).await.unwrap();
            }
        }
    }
    assert_eq!(printed, 7, "the section shows so many lines of output");
}

#[tokio::test]
#[ignore = "needs openssl and websocat: tests/run names them and starts this test"]
async fn a_token_of_the_guide_admits_to_its_room() {
    let shell = Shell::new("guide-token");
    let (key, _) = command(OPERATING, "openssl rand -hex 32 > token.key");
    assert_eq!(shell.run(&key).await, "");
    let (server, _) = command(
        OPERATING,
        "anteroom --token-key-file token.key --token-algorithm HS256 &",
    );
    let mut server = shell.command(server.strip_suffix(" &").unwrap());
    server.env("ANTEROOM_LISTEN", "127.0.0.1:0");
    let server = Program::run(server).await;
    let (join, _) = command(OPERATING, "websocat ");
    assert!(join.contains("127.0.0.1:8080"), "{join}");
    let join = join.replace("127.0.0.1:8080", &server.address.to_string());
    let mut terminal = Terminal::spawn(&mut shell.command(&join));
    let hello = b"{\"type\":\"hello\",\"receiver\":\"server\"}\n";
    terminal.input.write_all(hello).await.unwrap();
    let answer = within_deadline("an answer", terminal.output.next_line()).await;
    let answer = answer.unwrap().expect("the token is good");
    assert!(answer.contains(r#""room":"tea""#), "{answer}");

    // With a wrong token, curl shows the status and the reason.
    let (ask, _) = command(OPERATING, "curl --include");
    let ask = ask.replace("127.0.0.1:8080", &server.address.to_string());
    let answer = shell.run(&ask).await;
    assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
    assert_ne!(answer.trim_end().rsplit_once("\r\n\r\n").unwrap().1, "");
}

#[tokio::test]
#[ignore = "needs curl: tests/run starts this test"]
async fn what_operators_ask_is_answered_as_the_guide_says() {
    let server =
        TestServer::with(|config| config.admin.listen = Some(([127, 0, 0, 1], 0).into())).await;
    let mut alice = Client::join(&server, "tea").await;
    let mut bob = Client::join(&server, "tea").await;
    alice.expect_new(&bob.id).await;
    let shell = Shell::new("guide-admin");
    let ask = async |start| {
        let (command, output) = command(OPERATING, start);
        assert!(command.contains("127.0.0.1:9090"), "{command}");
        let address = server.admin.unwrap().to_string();
        let command = command.replace("127.0.0.1:9090", &address);
        assert_eq!(shell.run(&command).await.trim_end(), output);
    };
    ask("curl --json ").await;
    for client in [&mut alice, &mut bob] {
        let notice = client.next().await;
        assert_eq!(notice["sender"], "server");
        assert_eq!(notice["data"], "back in five minutes");
    }
    ask("curl -X POST ").await;
}

/// The name by which a heading is linked.
fn anchor(heading: &str) -> String {
    let is_kept = |letter: &char| letter.is_alphanumeric() || "- ".contains(*letter);
    let name: String = heading.chars().filter(is_kept).collect();
    name.trim().to_lowercase().replace(' ', "-")
}

/// Whether a link in a file of this folder leads to a file, and to a heading in it.
fn leads_somewhere(folder: &Path, own: &str, link: &str) -> bool {
    let (file, heading) = link.split_once('#').unwrap_or((link, ""));
    let text = match file {
        "" => own.to_owned(),
        file if heading.is_empty() => return folder.join(file).exists(),
        file => std::fs::read_to_string(folder.join(file)).unwrap_or_default(),
    };
    let mut headings = text.lines().filter(|line| line.starts_with('#'));
    headings.any(|line| anchor(line.trim_start_matches('#')) == heading)
}

#[test]
fn every_link_leads_somewhere_in_the_source_tree_and_in_rustdoc() {
    let mut count = 0;
    let guide = Path::new("src/guide");
    let chapters = std::fs::read_dir(guide).unwrap();
    let chapters = chapters.map(|file| file.unwrap().path());
    let chapters = chapters.filter(|path| path.extension().is_some_and(|end| end == "md"));
    let own = ["README.md", "CHANGELOG.md"].map(PathBuf::from);
    for path in chapters.chain(own) {
        let text = std::fs::read_to_string(&path).unwrap();
        let folder = path.parent().unwrap();
        let definitions = text.lines().filter_map(|line| {
            let (name, link) = line.strip_prefix('[')?.split_once("]: ")?;
            Some((name, link))
        });
        for (name, link) in definitions.clone() {
            let target = link.replace(".md", "");
            let is_chapter = link.contains(".md");
            let known = RUSTDOC_LINKS
                .lines()
                .any(|line| line == format!("[{name}]: crate::guide::{target}"));
            assert!(
                known || !is_chapter,
                "rustdoc does not know {name} of {path:?}"
            );
        }
        let inline = text
            .split("](")
            .skip(1)
            .map(|after| after.split(')').next().unwrap());
        let links: Vec<&str> = inline.chain(definitions.map(|(_, link)| link)).collect();
        for link in links
            .into_iter()
            .filter(|link| !link.starts_with("https://"))
        {
            let is_of_chapter = folder == guide && link.contains(".md");
            let is_defined = text.contains(&format!("]: {link}"));
            assert!(
                is_defined || !is_of_chapter,
                "{link} of {path:?} is not for rustdoc"
            );
            assert!(leads_somewhere(folder, &text, link), "{link} in {path:?}");
            count += 1;
        }
        // A name in brackets without a definition would stand there as it is.
        for name in text.split("][").skip(1) {
            let name = name.split(']').next().unwrap();
            assert!(
                text.contains(&format!("\n[{name}]: ")),
                "{name} in {path:?}"
            );
        }
    }
    assert!(count > 50, "{count}");
}

#[test]
fn the_tests_that_the_guide_starts_are_there() {
    let text = include_str!("../../src/guide/contributing.md");
    let mut count = 0;
    for command in commands(text) {
        let Some(filter) = command.strip_prefix("cargo test --test integration ") else {
            continue;
        };
        let filter = filter.trim_start_matches("-- --ignored ");
        let filter = filter.split(' ').next().unwrap();
        let (modules, test) = filter.rsplit_once("::").unwrap_or((filter, ""));
        let folders = ["tests/integration", "tests"];
        let path = modules.replace("::", "/");
        let mut files = folders
            .map(|folder| format!("{folder}/{path}.rs"))
            .into_iter();
        let exists = files.find_map(|file| std::fs::read_to_string(file).ok());
        let file = exists.unwrap_or_else(|| panic!("{filter}"));
        assert!(
            test.is_empty() || file.contains(&format!("fn {test}()")),
            "{filter}"
        );
        count += 1;
    }
    assert_eq!(count, 3);
}

#[test]
fn the_code_of_the_worked_examples_is_in_the_source() {
    let text = include_str!("../../src/guide/contributing.md");
    let mut count = 0;
    for part in text.split("\nIn `").skip(1) {
        let (path, rest) = part.split_once("`:\n").expect("the file of an example");
        let (_, code) = rest.split_once("```rust,ignore\n").expect("its code");
        let (code, _) = code.split_once("```").expect("the end of its code");
        let file = std::fs::read_to_string(path).unwrap();
        assert!(file.contains(code), "{path} has no\n{code}");
        count += 1;
    }
    assert_eq!(count, 11);
}
