//! A server for the fuzzer, whose only client is the fuzzer itself.

use std::{net::Ipv4Addr, sync::Arc};

use futures_util::FutureExt;
use stun_types::{
    attribute::{Nonce, Realm, Username},
    message::{
        IntegrityAlgorithm, LongTermKeyCredentials, Message, MessageWrite, MessageWriteExt,
        MessageWriteVec, Method,
    },
};

use super::{
    client::Link,
    credentials::REALM,
    five_tuple::{FiveTuple, Transport},
    receive::receive,
    state::TurnState,
    tcp_queue::{TcpReceiver, TcpSender, tcp_queue},
};
use crate::{config::TurnOptions, metrics::Metrics, protocol::SessionId, unix_time::unix_seconds};

/// The port of the client.
const PORT: u16 = 5000;

/// A server and its client.
pub(crate) struct FuzzedServer {
    state: Arc<TurnState>,
    five_tuple: FiveTuple,
    session: SessionId,
    queue: TcpSender,
    answers: TcpReceiver,
}

impl FuzzedServer {
    /// A server that relays to this machine, with one session. It needs a runtime of tokio.
    pub(crate) fn new() -> FuzzedServer {
        let localhost = Ipv4Addr::LOCALHOST.into();
        let options = TurnOptions {
            addresses: vec![localhost],
            ..TurnOptions::default()
        };
        let metrics = Arc::new(Metrics::new(false, true, [], []));
        let state = Arc::new(
            TurnState::new(options, localhost, 100, metrics).expect("addresses can be read"),
        );
        let session = SessionId::random();
        state.sessions.add(session, state.options.bytes_per_second);
        let (queue, answers) = tcp_queue();
        FuzzedServer {
            state,
            five_tuple: FiveTuple {
                transport: Transport::Udp,
                client: (localhost, PORT).into(),
                server: None,
            },
            session,
            queue,
            answers,
        }
    }

    /// Gives the server a datagram of the client. Returns what it sends back.
    pub(crate) fn receive(&mut self, datagram: &mut [u8]) -> Vec<Vec<u8>> {
        let link = || Link::Tcp(self.queue.clone());
        receive(&self.state, self.five_tuple, datagram, link);
        std::iter::from_fn(|| self.answers.next().now_or_never().flatten()).collect()
    }

    /// A request with valid credentials, and these bytes as its other attributes.
    pub(crate) fn request(&self, method: u16, attributes: &[u8]) -> Vec<u8> {
        let now = unix_seconds();
        let (username, password) = self.state.credentials.of(self.session, now + 600);
        let nonce = self.state.credentials.nonce(&self.five_tuple, now);
        let key = LongTermKeyCredentials::new(username.clone(), password, REALM.into());
        let key = key.make_key(IntegrityAlgorithm::Sha1);
        let mut message =
            Message::builder_request(Method::new(method & 0xfff), MessageWriteVec::new());
        message.push_data(attributes);
        for attribute in [
            &Username::new(&username).expect("it is short") as _,
            &Realm::new(REALM).expect("it is short") as _,
            &Nonce::new(&nonce).expect("it is short") as _,
        ] {
            message.push_attribute_unchecked(attribute);
        }
        message
            .add_message_integrity_with_key(&key, IntegrityAlgorithm::Sha1)
            .expect("there is one signature");
        message.finish()
    }
}
