//! Connections to the server: its name, TCP, TLS.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use anteroom::client::RoomUrl;
use futures_util::future::join_all;
use tokio::{
    net::{TcpSocket, TcpStream, lookup_host},
    time::{Instant, timeout},
};

use super::{
    report::{Finding, Report},
    stream::{CONNECT_TIMEOUT, Io, why},
    tls,
};

/// How many addresses of a name are tried.
const MAX_ADDRESSES: usize = 8;

/// Where connections to a server on this machine come from. Behind a proxy on this machine the server sees
/// 127.0.0.1 instead.
const LOCAL_CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));

/// A connection to the server, and the address of this machine that it has.
pub(super) struct Connection {
    pub(super) stream: Box<dyn Io>,
    pub(super) local: IpAddr,
}

/// Opens connections to the server.
pub(super) struct Connector {
    /// An address that has accepted a connection.
    address: SocketAddr,
    host: String,
    /// `None` for a URL without TLS.
    tls: Option<tls::Client>,
}

impl Connector {
    /// Opens a connection.
    pub(super) async fn connect(&self) -> io::Result<Connection> {
        let opened = timeout(CONNECT_TIMEOUT, async {
            let stream = connect(self.address).await?;
            let local = stream.local_addr()?.ip().to_canonical();
            let stream: Box<dyn Io> = match &self.tls {
                Some(tls) => tls.connect(&self.host, stream).await?,
                None => Box::new(stream),
            };
            Ok(Connection { stream, local })
        });
        opened.await?
    }

    /// The address of the server.
    pub(super) fn server(&self) -> IpAddr {
        self.address.ip().to_canonical()
    }
}

/// Opens a TCP connection. One to this machine comes from [`LOCAL_CLIENT`], if the system allows that.
async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = match address.ip() {
        IpAddr::V4(ip) if ip.is_loopback() => {
            let socket = TcpSocket::new_v4()?;
            let _ = socket.bind((LOCAL_CLIENT, 0).into());
            socket
        }
        IpAddr::V4(_) => TcpSocket::new_v4()?,
        IpAddr::V6(_) => TcpSocket::new_v6()?,
    };
    let stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Does the steps `name`, `tcp` and `tls`. `None` if the server cannot be reached.
pub(super) async fn reach(target: &RoomUrl, report: &mut Report) -> Option<Connector> {
    let addresses = match resolve(target.host(), target.port()).await {
        Ok(addresses) => addresses,
        Err(error) => {
            let advice = "check the name in the URL and its A and AAAA records";
            let detail = format!("{} does not resolve: {error}", target.host());
            report.add("name", Finding::failed(detail, advice));
            report.skip(&["tcp", "tls"], "the name does not resolve");
            return None;
        }
    };
    let shown: Vec<String> = addresses.iter().map(|it| it.ip().to_string()).collect();
    report.add("name", Finding::ok(shown.join(", ")));
    let attempts = join_all(addresses.iter().map(|address| time(*address))).await;
    let address = attempts.iter().find(|it| it.result.is_ok());
    let address = address.map(|it| it.address);
    report.add("tcp", tcp(&attempts));
    let Some(address) = address else {
        report.skip(&["tls"], "no TCP connection");
        return None;
    };
    let mut connector = Connector {
        address,
        host: target.host().into(),
        tls: None,
    };
    if !target.is_tls() {
        let reason = "the URL has no TLS; browsers allow cameras only over HTTPS or on localhost";
        report.skip(&["tls"], reason);
        return Some(connector);
    }
    match tls::Client::new() {
        Ok(client) => connector.tls = Some(client),
        Err(finding) => {
            report.add("tls", finding);
            return None;
        }
    }
    let error = connector.connect().await.err();
    let is_open = error.is_none();
    if let Some(client) = &connector.tls {
        report.add("tls", client.finding(target.host(), error));
    }
    is_open.then_some(connector)
}

/// The addresses of a name. There is at least one.
pub(super) async fn resolve(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let found = timeout(CONNECT_TIMEOUT, lookup_host((host, port))).await??;
    let mut addresses: Vec<SocketAddr> = Vec::new();
    for address in found.take(MAX_ADDRESSES) {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    match addresses.is_empty() {
        true => Err(io::Error::other("it has no address")),
        false => Ok(addresses),
    }
}

/// One TCP connection that was tried.
struct Attempt {
    address: SocketAddr,
    result: Result<Duration, io::Error>,
}

async fn time(address: SocketAddr) -> Attempt {
    let began = Instant::now();
    let result = timeout(CONNECT_TIMEOUT, connect(address)).await;
    let result = result.unwrap_or_else(|elapsed| Err(elapsed.into()));
    Attempt {
        address,
        result: result.map(|_| began.elapsed()),
    }
}

fn tcp(attempts: &[Attempt]) -> Finding {
    let shown = attempts.iter().map(|attempt| match &attempt.result {
        Ok(time) => format!("{} in {} ms", attempt.address, time.as_millis()),
        Err(error) => format!("{}: {}", attempt.address, why(error)),
    });
    let shown = shown.collect::<Vec<_>>().join(", ");
    let is_open = |it: &&Attempt| it.result.is_ok();
    // A machine without IPv6 cannot check the server's IPv6 addresses.
    let is_ours = |it: &Attempt| {
        let kind = it.result.as_ref().err().map(io::Error::kind);
        it.address.is_ipv6()
            && matches!(
                kind,
                Some(io::ErrorKind::NetworkUnreachable | io::ErrorKind::AddrNotAvailable)
            )
    };
    let open = attempts.iter().filter(is_open).count();
    let refused = attempts.iter().any(|it| {
        let kind = it.result.as_ref().err().map(io::Error::kind);
        kind == Some(io::ErrorKind::ConnectionRefused)
    });
    match open {
        0 if refused => Finding::failed(
            shown,
            "nothing listens there: start the server or the proxy, on an address that other machines \
             reach (--listen 0.0.0.0:8080), and check the port",
        ),
        0 => Finding::failed(
            shown,
            "open the port in the firewall, and check the address",
        ),
        _ if attempts.iter().all(|it| it.result.is_ok() || is_ours(it)) => Finding::ok(shown),
        _ => Finding::warning(
            shown,
            "some clients try the address that does not answer first: listen on it, or remove its \
             DNS record",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::Outcome;
    use super::*;

    #[test]
    fn an_address_that_does_not_answer_is_a_warning_unless_none_does() {
        use io::ErrorKind::{ConnectionRefused, NetworkUnreachable, TimedOut};
        let attempt = |address: &str, result: Result<u64, io::ErrorKind>| Attempt {
            address: address.parse().unwrap(),
            result: result.map(Duration::from_millis).map_err(io::Error::from),
        };
        let (v4, v6) = ("192.0.2.1:443", "[2001:db8::1]:443");
        for (results, outcome, part) in [
            (
                [(v4, Ok(3)), (v6, Ok(4))],
                Outcome::Ok,
                "192.0.2.1:443 in 3 ms, [2001:db8::1]:443 in 4 ms",
            ),
            (
                [(v4, Ok(3)), (v6, Err(ConnectionRefused))],
                Outcome::Warning,
                "[2001:db8::1]:443: refused",
            ),
            (
                [(v4, Ok(3)), (v6, Err(NetworkUnreachable))],
                Outcome::Ok,
                "no route",
            ),
            (
                [(v4, Err(TimedOut)), (v6, Ok(3))],
                Outcome::Warning,
                "no answer in 5 s",
            ),
            (
                [(v4, Err(TimedOut)), (v6, Err(NetworkUnreachable))],
                Outcome::Failed,
                "open the port in the firewall",
            ),
            (
                [(v4, Err(ConnectionRefused)), (v6, Err(TimedOut))],
                Outcome::Failed,
                "nothing listens",
            ),
        ] {
            let finding = tcp(&results.map(|(address, result)| attempt(address, result)));
            let text = format!("{} {:?}", finding.detail, finding.advice);
            assert_eq!(finding.outcome, outcome, "{text}");
            assert!(text.contains(part), "{text}");
        }
    }
}
