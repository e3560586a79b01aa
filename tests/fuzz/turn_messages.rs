//! A fuzz target for what clients send to the TURN server: see `targets.rs`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| anteroom::fuzz_targets::turn_messages(input));
