//! Several nodes of Socket.IO with its Redis adapter, which get the same work as several nodes of anteroom.

use std::{io, iter::repeat_n, net::SocketAddr, path::Path, time::Duration};

use crate::{
    dialect::{Dialect, Text},
    redis::Redis,
    servers::{Kind, Server},
    swarm::{Swarm, text_frame},
    works::{CONNECTING, Pairs, Span, deliver_to_all, measure_all},
};

/// A channel to which each node subscribes last.
const CHANNEL: &str = "socket.io-request#/#";

/// Nodes that hear each other.
pub struct Nodes {
    nodes: Vec<Server>,
    redis: Redis,
}

impl Nodes {
    pub fn start(count: usize, peers: &Path) -> io::Result<Nodes> {
        let redis = Redis::start()?;
        let start = |_| Server::start_with(Kind::SocketIo, peers, &[redis.url()]);
        let nodes = (0..count).map(start).collect::<io::Result<_>>()?;
        redis.wait_for(
            &format!("PUBSUB NUMSUB {CHANNEL}"),
            &format!(":{count}\r\n"),
        )?;
        Ok(Nodes { nodes, redis })
    }

    fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.nodes.iter().map(|node| node.addresses[0])
    }

    /// The CPU time that all nodes, and Redis, have used so far.
    fn cpu(&self) -> io::Result<[Duration; 2]> {
        let nodes = self.nodes.iter().map(|node| node.process.cpu());
        Ok([nodes.sum::<io::Result<_>>()?, self.redis.process.cpu()?])
    }
}

/// Lets one session join each of these rooms, and waits until all are in their rooms and `awaited` messages have
/// arrived. `on_text` gets each text with the number of its receiver, and returns whether it is one of them.
fn join(
    swarm: &mut Swarm,
    rooms: impl IntoIterator<Item = String>,
    mut awaited: usize,
    mut on_text: impl FnMut(usize, &[u8]) -> bool,
) -> io::Result<()> {
    let mut rooms = rooms.into_iter().peekable();
    let mut joining = 0;
    while joining + awaited > 0 || rooms.peek().is_some() {
        while joining < CONNECTING
            && let Some(room) = rooms.next()
        {
            swarm.join(&room)?;
            joining += 1;
        }
        for number in swarm.wait()? {
            swarm.read(number, |text| {
                // The session is connected to the namespace, and in its room.
                if text.starts_with(b"40") {
                    joining -= 1;
                }
                awaited -= usize::from(on_text(number, text));
            })?;
        }
    }
    Ok(())
}

/// The cost of a message between two sessions on different nodes that answer each other, in `pairs` pairs.
pub fn unicast(nodes: &Nodes, span: Span, pairs: usize, data_bytes: usize) -> io::Result<[f64; 2]> {
    let dialect = Dialect::SocketIo;
    // The first sessions of all pairs are on one node, and their partners on the next.
    let addresses = nodes
        .addresses()
        .flat_map(|address| repeat_n(address, pairs));
    let addresses: Vec<SocketAddr> = addresses.collect();
    let mut swarm = Swarm::new(&addresses, dialect)?;
    let rooms = || (0..pairs).map(|number| format!("pair-{number}"));
    // Two sessions that join at once may both be told of each other, so one of them is there first.
    join(&mut swarm, rooms(), 0, |_, _| false)?;
    let mut frames = vec![Vec::new(); 2 * pairs];
    join(&mut swarm, rooms(), pairs, |number, text| {
        let is_new = dialect.text(text) == Text::New;
        if is_new {
            let message = dialect.message(&dialect.sender(text), data_bytes);
            frames[number] = text_frame(dialect, &message);
        }
        is_new
    })?;
    let starters = (0..pairs).collect();
    let mut busy = Pairs::introduce(swarm, frames, starters, data_bytes)?;
    busy.start(pairs)?;
    measure_all(|| nodes.cpu(), span, || busy.answer())
}

/// The cost of a delivery when one session sends to all others in a room of `size` that is spread over the nodes.
pub fn broadcast(
    nodes: &Nodes,
    span: Span,
    size: usize,
    data_bytes: usize,
) -> io::Result<[f64; 2]> {
    let dialect = Dialect::SocketIo;
    let addresses: Vec<SocketAddr> = nodes.addresses().collect();
    let mut swarm = Swarm::new(&addresses, dialect)?;
    let rooms = repeat_n("room".to_owned(), size);
    join(&mut swarm, rooms, 0, |_, _| false)?;
    deliver_to_all(&mut swarm, data_bytes, || nodes.cpu(), span)
}
