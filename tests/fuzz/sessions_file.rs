//! A fuzz target for sessions files: see `targets.rs`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| anteroom::fuzz_targets::sessions_file(input));
