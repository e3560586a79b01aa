//! The page and the client module in a real Chromium, driven by WebDriver, with its artificial
//! camera, microphone and screen. Started by `tests/run`, which installs what they need; one at a
//! time, for a browser wants the whole machine.
//!
//! | file | what it shows |
//! | --- | --- |
//! | `driver` | a browser and its tabs |
//! | `talking` | rosters, messages, names, by mouse and by keyboard alone |
//! | `calling` | pictures, sound and screens, and tabs that go |
//! | `files` | a file from one browser to another |
//! | `returning` | the server lost and found again |
//! | `module` | the client module alone: promises, refusals, and the pages of the README and the guide |
//! | `operating` | TLS, tokens and TURN, and the page for operators |
//! | `looks` | accessibility, sizes, and what the browser forbids |

mod calling;
mod driver;
mod files;
mod looks;
mod module;
mod operating;
mod returning;
mod talking;
