//! Whether a server may be loaded.

use std::{
    io::{self, BufRead, IsTerminal, Write},
    net::IpAddr,
    time::Duration,
};

use anteroom::client::RoomUrl;
use tokio::{net::lookup_host, time::timeout};

use super::super::{failure::Failure, printable::printable};

/// How long a name may take to resolve.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Asks before an address is loaded that is not of this machine.
///
/// # Errors
///
/// If the answer is no, or nobody can be asked.
pub(super) async fn ask(url: &RoomUrl, sessions: u64) -> Result<(), Failure> {
    if is_local(url).await? {
        return Ok(());
    }
    let host = printable(url.host());
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Err(Failure::usage(format!(
            "{host} is not this machine: give --yes if you may load it"
        )));
    }
    let question = format!(
        "This opens up to {sessions} sessions at {host} and sends as many messages as it takes. \
         May you load it? [y/N] "
    );
    let mut answer = String::new();
    let asked = io::stderr().write_all(question.as_bytes());
    let answered = asked.and_then(|()| io::stdin().lock().read_line(&mut answer));
    match answered {
        Ok(_) if matches!(answer.trim(), "y" | "Y" | "yes") => Ok(()),
        _ => Err(Failure::other("nothing was loaded")),
    }
}

/// Whether all addresses of a name are those of this machine.
async fn is_local(url: &RoomUrl) -> Result<bool, Failure> {
    if let Ok(ip) = url.host().parse::<IpAddr>() {
        return Ok(ip.to_canonical().is_loopback());
    }
    let found = timeout(RESOLVE_TIMEOUT, lookup_host((url.host(), url.port()))).await;
    let host = printable(url.host());
    let mut addresses = match found {
        Ok(Ok(addresses)) => addresses,
        Ok(Err(error)) => return Err(Failure::other(format!("{host} does not resolve: {error}"))),
        Err(_) => return Err(Failure::other(format!("{host} does not resolve in time"))),
    };
    Ok(addresses.all(|address| address.ip().to_canonical().is_loopback()))
}
