//! The demo page, the operators' page, the client module and other people's clients in Chromium, controlled over
//! WebDriver, with simulated camera, microphone and screen. `tests/run` installs what these tests need and
//! starts them, one at a time: a browser with a call uses the whole machine.
//!
//! | file | what it tests |
//! | --- | --- |
//! | `chat` | people, names, chat messages, the message log, the invite link, the keyboard |
//! | `call` | camera, microphone and screen |
//! | `tiles` | large tiles, full screen, speakers, colours, who is speaking, an empty room |
//! | `whiteboard` | lines and cursors in bytes |
//! | `file_transfer` | files from browser to browser |
//! | `reconnecting` | a server or network that fails and returns |
//! | `accessibility` | axe-core at every window size, pages outside a secure context |
//! | `admin_page` | the operators' page |
//! | `deployment` | TLS, tokens and TURN |
//! | `client_room` | the client module's `Room`, against a scripted server |
//! | `client_bytes` | the client module's binary messages |
//! | `client_state` | the client module's states of sessions, and messages to users |
//! | `client_history` | the client module's history of a room |
//! | `history` | the page shows what was said before |
//! | `life_cycle` | pages that are left, restored, frozen and hidden |
//! | `package` | the npm package in applications that bundlers build, and in Node.js |
//! | `client_mesh` | the client module's `Mesh`, and the call pages of the README and the guide |
//! | `client_mesh_limits` | the `Mesh` and hostile peers, `maxPeers`, listeners that close it |
//! | `client_mesh_repairs` | the `Mesh` when signals, TURN, or the server fail |
//! | `client_relay` | the `Mesh` that relays through the room |
//! | `check` | the client module's check of the connection, and the page's panel for it |
//! | `fallback` | the client module and the page where no WebSocket gets through |
//! | `client_outcome` | what the `Mesh` tells the server about its connections |
//! | `peerjs` | the client of PeerJS |
//! | `topics` | y-webrtc and trystero |
//! | `dialects` | clients of all dialects in the same pages |
//!
//! | file | what the tests use |
//! | --- | --- |
//! | `driver` | a browser and its tabs |
//! | `devtools` | a browser without the defaults of automation, which have no back/forward cache |
//! | `page` | waiting for what the demo page shows |
//! | `scripted_server` | a WebSocket server whose every frame the test writes |
//! | `stock_clients` | pages with clients of other makers, and servers that speak to them |

mod accessibility;
mod admin_page;
mod call;
mod chat;
mod check;
mod client_bytes;
mod client_history;
mod client_mesh;
mod client_mesh_limits;
mod client_mesh_repairs;
mod client_outcome;
mod client_relay;
mod client_room;
mod client_state;
mod deployment;
mod devtools;
mod dialects;
mod driver;
mod fallback;
mod file_transfer;
mod history;
mod life_cycle;
mod package;
mod page;
mod peerjs;
mod reconnecting;
mod scripted_server;
mod stock_clients;
mod tiles;
mod topics;
mod whiteboard;
