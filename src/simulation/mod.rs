//! A simulation of whole clusters: nodes of the real code, on a simulated NATS and with clients on streams in
//! memory, under faults that follow from a seed. A virtual clock drives them in one thread, so that the same seed
//! gives the same run.
//!
//! | file | what is in it |
//! | --- | --- |
//! | `schedule` | what happens in a run: a list of timed actions, made from a seed |
//! | `bus` | the simulated NATS |
//! | `store` | the simulated JetStream |
//! | `stream` | a connection between a client and a node |
//! | `session_log` | what one session has sent and received, checked message by message |
//! | `world` | the nodes, and the clients with what they do |
//! | `checks` | what must be true at the end |
//! | `names` | runs with clients that claim names, and messages to these |
//! | `run` | one run, from its schedule to its verdict |
//! | `shrink` | makes the schedule of a failed run short |
//! | `tests` | runs with many seeds |

mod bus;
mod checks;
mod names;
mod run;
mod schedule;
mod session_log;
mod shrink;
mod store;
mod stream;
mod tests;
mod world;
