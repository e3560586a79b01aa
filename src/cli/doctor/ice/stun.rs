//! STUN (RFC 8489): which address a server sees.

use std::{io, net::SocketAddr, time::Duration};

use stun_types::{
    attribute::XorMappedAddress,
    message::{
        BINDING, Message, MessageClass, MessageWrite, MessageWriteExt, MessageWriteVec,
        TransactionId,
    },
};
use tokio::time::timeout;

use super::{
    super::report::Finding,
    link::{Link, closed},
    url::IceUrl,
};

/// How often a request is sent over UDP, which loses packets, and how long each one waits for the answer.
const ATTEMPTS: usize = 3;
const WAIT: Duration = Duration::from_secs(1);

/// The most bytes of an answer over a stream: the attributes of a binding fit into a packet.
const MAX_ANSWER: usize = 2048;

/// Does the step of a STUN server.
pub(super) async fn check(url: &IceUrl) -> Result<Finding, Finding> {
    let mut link = Link::open(url).await?;
    let mapped = bind(&mut link)
        .await
        .map_err(|error| closed(link.server, &error))?;
    Ok(Finding::ok(format!("it sees this machine as {mapped}")))
}

/// Asks for this machine's address.
pub(super) async fn bind(link: &mut Link) -> io::Result<SocketAddr> {
    let request = Message::builder_request(BINDING, MessageWriteVec::new());
    let transaction = request.transaction_id();
    let request = request.finish();
    let mut received = Vec::new();
    for attempt in 0..ATTEMPTS {
        if attempt == 0 || link.is_udp() {
            link.send(&request).await?;
        }
        if let Ok(answer) = timeout(WAIT, answer(link, transaction, &mut received)).await {
            return answer;
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

/// Waits for the answer to a request. `received` is what came of it so far: over UDP a packet is a message, over a
/// stream a message may come in parts.
async fn answer(
    link: &mut Link,
    transaction: TransactionId,
    received: &mut Vec<u8>,
) -> io::Result<SocketAddr> {
    loop {
        let bytes = link.receive().await?;
        if link.is_udp() {
            received.clear();
        }
        received.extend(bytes);
        match Message::from_bytes(received) {
            Ok(message) if message.transaction_id() == transaction => return mapped(&message),
            _ if received.len() > MAX_ANSWER => {
                return Err(io::Error::other("it does not speak STUN"));
            }
            _ => {}
        }
    }
}

/// The address in an answer.
fn mapped(answer: &Message<'_>) -> io::Result<SocketAddr> {
    if answer.has_class(MessageClass::Error) {
        return Err(io::Error::other("it refuses the request"));
    }
    let mapped = answer.attribute::<XorMappedAddress>();
    mapped
        .map(|it| it.addr(answer.transaction_id()))
        .map_err(|_| io::Error::other("its answer has no address"))
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::AsyncWriteExt,
        net::{TcpListener, UdpSocket},
        task::JoinHandle,
        time::interval,
    };

    use super::*;

    /// Asks a server that has a task.
    async fn ask(url: String, server: JoinHandle<io::Result<()>>) -> io::Error {
        let mut link = Link::open(&url.parse().unwrap()).await.unwrap();
        let asked = timeout(Duration::from_secs(10), bind(&mut link)).await;
        server.abort();
        asked.expect("the wait has an end").unwrap_err()
    }

    #[tokio::test]
    async fn packets_that_are_no_answer_do_not_prolong_the_wait() {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let url = format!("stun:{}", socket.local_addr().unwrap());
        let server = tokio::spawn(async move {
            let (_, client) = socket.recv_from(&mut [0; 64]).await?;
            let mut interval = interval(Duration::from_millis(100));
            loop {
                interval.tick().await;
                socket.send_to(b"no answer", client).await?;
            }
        });
        assert_eq!(ask(url, server).await.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn a_stream_that_is_no_answer_is_not_kept() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await?;
            loop {
                stream.write_all(&[b'x'; 1024]).await?;
            }
        });
        let error = ask(format!("stun:{address}?transport=tcp"), server).await;
        assert_eq!(error.to_string(), "it does not speak STUN");
    }
}
