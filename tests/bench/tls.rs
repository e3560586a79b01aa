//! The cost of TLS, compared to the other servers with TLS.

use std::{io, path::Path, time::Duration};

use crate::{
    Plan,
    link::Identity,
    report::Table,
    servers::{Kind, Server},
    take_a_core, works,
};

/// The servers that are compared.
const KINDS: [Kind; 3] = [Kind::Anteroom, Kind::Bun, Kind::Ws];

pub fn run(plan: &Plan, peers: &Path) -> io::Result<()> {
    take_a_core()?;
    let identity = Identity::new(peers)?;
    let span = plan.span;
    let mut table = Table::<{ KINDS.len() }>::new();
    for _ in 0..plan.repetitions {
        for (column, kind) in KINDS.into_iter().enumerate() {
            let start = || Server::start_with_tls(kind, peers, &identity);
            for bytes in [100, 4000] {
                let cost = works::unicast(&start()?, span, 200, 200, bytes)?;
                let label = format!("one to one, {bytes} bytes, µs");
                table.add(column, &label, cost.micros_each());
            }
            for in_flight in [1, 16] {
                let cost = works::broadcast(&start()?, span, 1, 1001, in_flight)?;
                let label = format!("one to 1,000, {in_flight} at a time, each delivery, µs");
                table.add(column, &label, cost.micros_each());
            }
            let cost = works::connect(&start()?, plan.storm)?;
            table.add(column, "a session connects, µs", cost.micros_each());
            let idle = |server: Server| works::idle(&server, plan.idle, Duration::ZERO);
            let with_tls = idle(start()?)?.bytes_each;
            let plain = idle(Server::start(kind, peers)?)?.bytes_each;
            table.add(column, "an idle session, KB", with_tls / 1000.0);
            let more = (with_tls - plain) / 1000.0;
            table.add(column, "… of which TLS, KB", more);
        }
    }
    table.print(
        &format!("work | {}", KINDS.map(Kind::name).join(" | ")),
        true,
    );
    Ok(())
}
