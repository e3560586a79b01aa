// The guide: a chapter each for what does not fit into the README.
//
// The chapters are Markdown files beside this module, so that they can be read in the source tree, where
// links lead from file to file. In rustdoc the same links lead from module to module: `rustdoc-links.txt`
// defines every link before the chapter does, and the first definition counts (CommonMark, section 4.7).
//
// The tests run the examples: doctests the Rust code, `tests/integration/guide.rs` and the tests that it
// names everything else.
#![doc = include_str!("rustdoc-links.txt")]
#![doc = include_str!("README.md")]

#[doc = include_str!("rustdoc-links.txt")]
#[doc = include_str!("protocol.md")]
pub mod protocol {}

#[doc = include_str!("rustdoc-links.txt")]
#[doc = include_str!("client.md")]
pub mod client {}

#[doc = include_str!("rustdoc-links.txt")]
#[doc = include_str!("dialects.md")]
pub mod dialects {}

#[doc = include_str!("rustdoc-links.txt")]
#[doc = include_str!("configuration.md")]
pub mod configuration {}

#[doc = include_str!("rustdoc-links.txt")]
#[doc = include_str!("operating.md")]
pub mod operating {}

#[doc = include_str!("rustdoc-links.txt")]
#[doc = include_str!("containers.md")]
pub mod containers {}

#[doc = include_str!("rustdoc-links.txt")]
#[doc = include_str!("cluster.md")]
pub mod cluster {}

#[doc = include_str!("rustdoc-links.txt")]
#[doc = include_str!("performance.md")]
pub mod performance {}

#[doc = include_str!("rustdoc-links.txt")]
#[doc = include_str!("embedding.md")]
pub mod embedding {}

#[doc = include_str!("rustdoc-links.txt")]
#[doc = include_str!("contributing.md")]
pub mod contributing {}
