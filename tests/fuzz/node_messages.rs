//! A fuzz target for messages of other nodes: see `targets.rs`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| anteroom::fuzz_targets::node_messages(input));
