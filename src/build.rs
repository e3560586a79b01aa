//! The build script: prepares the files of `static/` for `server::assets`, which serves them from memory.
//!
//! It writes each file as it is served, and compressed where that makes it smaller, to the output folder, with
//! `embedded_files.rs`, the expression that finds a file by its path and encoding.

use std::{
    env, fs,
    hash::{DefaultHasher, Hasher},
    io::{self, Write},
    path::{Path, PathBuf},
};

use flate2::{Compression, write::GzEncoder};

/// The folders with files to embed. Their other folders are left out, such as `node_modules/` that npm makes.
const FOLDERS: [&str; 2] = ["", "admin/"];

/// The kinds of files to embed. Pictures of the documentation and the npm package's other files are left out.
const EXTENSIONS: [&str; 5] = ["css", "html", "js", "svg", "ts"];

/// Begins a comment that tells Deno where the types of a module are. It is served.
const TYPES_COMMENT: &str = "// @ts-self-types=";

/// Begins a comment with the type of what follows, for the compiler.
const TYPE_COMMENT: &str = "/** @";

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=static");
    let output = env::var("OUT_DIR").expect("Cargo sets it");
    let output = Path::new(&output);
    let mut arms = String::new();
    for folder in FOLDERS {
        fs::create_dir_all(output.join(folder))?;
        for path in files(&Path::new("static").join(folder))? {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let mut text = fs::read_to_string(&path)?;
            if !name.ends_with(".ts") {
                text = condensed(&text);
            }
            let contents = text.into_bytes();
            let name = format!("{folder}{name}");
            for (encoding, suffix, encoded) in [
                ("Gzip", ".gz", gzip(&contents)?),
                ("Brotli", ".br", brotli(&contents)?),
                ("Identity", "", contents.clone()),
            ] {
                if encoding != "Identity" && encoded.len() >= contents.len() {
                    continue;
                }
                let mut hasher = DefaultHasher::new();
                hasher.write(&encoded);
                let etag = hasher.finish();
                let file = format!("{name}{suffix}");
                fs::write(output.join(&file), encoded)?;
                arms += &format!(
                    "    ({name:?}, Encoding::{encoding}) => \
                     Some((\"{etag:016x}\", include_bytes!({file:?}))),\n"
                );
            }
        }
    }
    let lookup = format!("match (path, encoding) {{\n{arms}    _ => None,\n}}\n");
    fs::write(output.join("embedded_files.rs"), lookup)
}

/// The files to embed of a folder, in a stable order.
fn files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder)?.map(|entry| Ok(entry?.path()));
    let mut files = entries.collect::<io::Result<Vec<_>>>()?;
    files.retain(|path| {
        let extension = path.extension().unwrap_or_default();
        EXTENSIONS.iter().any(|known| extension == *known)
    });
    files.sort();
    Ok(files)
}

/// A file without indentation, without the comments that begin a line, those of `//` and the blocks of `/*`, and
/// without the types in a line. Every line keeps its number. A string must not have several lines.
fn condensed(file: &str) -> String {
    let mut text = String::new();
    let mut in_block = false;
    for line in file.lines() {
        let start = line.trim_start();
        if in_block || start.starts_with("/*") {
            let code = start.split_once("*/").map(|(_, code)| code);
            in_block = code.is_none();
            text += code.unwrap_or_default();
        } else if !start.starts_with("//") || start.starts_with(TYPES_COMMENT) {
            text += &without_types(start);
        }
        text.push('\n');
    }
    text
}

/// A line without its comments of the form `/** @type … */`.
fn without_types(line: &str) -> String {
    let mut code = String::new();
    let mut rest = line;
    while let Some((before, comment)) = rest.split_once(TYPE_COMMENT)
        && let Some((_, after)) = comment.split_once("*/")
    {
        code += before;
        rest = after.strip_prefix(' ').unwrap_or(after);
    }
    code + rest
}

fn gzip(contents: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(contents)?;
    encoder.finish()
}

fn brotli(mut contents: &[u8]) -> io::Result<Vec<u8>> {
    let mut compressed = Vec::new();
    brotli::BrotliCompress(&mut contents, &mut compressed, &Default::default())?;
    Ok(compressed)
}
