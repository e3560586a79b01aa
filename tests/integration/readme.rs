//! The README's walk-through, typed into real websocats, its output compared with what is printed
//! there.
//!
//! In the section *Two terminals* a block of the README is what one terminal shows, and the line
//! before it says which. A line that begins with `$` starts a program, `^C` ends it; a message
//! without `sender` is typed, one with it is printed. Ids differ from run to run, so they are
//! compared by where they appear.

use std::{collections::HashMap, process::Stdio};

use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
};

use crate::support::{Program, within_deadline};

const README: &str = include_str!("../../README.md");

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
        let mut program = Command::new(websocat)
            .args(options)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let input = program.stdin.take().unwrap();
        let output = BufReader::new(program.stdout.take().unwrap()).lines();
        Terminal {
            program,
            input,
            output,
        }
    }
}

/// The blocks of the section that are a terminal's, each with its number.
fn blocks() -> Vec<(usize, Vec<&'static str>)> {
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
async fn the_walk_through_prints_what_the_readme_says() {
    let websocat = std::env::var("WEBSOCAT").expect("WEBSOCAT is the path of websocat");
    let anteroom = std::env::var("ANTEROOM").expect("ANTEROOM is the path of the server");
    let mut command = Command::new(anteroom);
    command.args(["--listen", "127.0.0.1:0"]);
    let server = Program::run(command).await;
    let mut terminals: HashMap<usize, Terminal> = HashMap::new();
    let (mut readme, mut run) = (Ids::default(), Ids::default());
    let mut printed = 0;
    for (number, lines) in blocks() {
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
