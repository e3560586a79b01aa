//! A fuzz target for messages of clients: see `targets.rs`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| anteroom::fuzz_targets::client_messages(input));
