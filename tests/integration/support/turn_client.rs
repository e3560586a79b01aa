//! A client of the TURN server, which sends what a test asks for, right or wrong.

use std::{io, net::SocketAddr};

use bytes::{Buf, BytesMut};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    sync::Mutex,
};
use turn_types::{
    attribute::{
        ChannelNumber, Data, Lifetime, RequestedTransport, XorPeerAddress, XorRelayedAddress,
    },
    channel::ChannelData,
    message::{ALLOCATE, CHANNEL_BIND, CREATE_PERMISSION, DATA, REFRESH, SEND},
    stun::{
        attribute::{ErrorCode, Nonce, Realm, Username, XorMappedAddress},
        message::{
            BINDING, IntegrityAlgorithm, LongTermKeyCredentials, Message, MessageClass,
            MessageWrite, MessageWriteExt, MessageWriteVec, Method,
        },
        prelude::AttributeWrite,
    },
};

use super::time::within_deadline;

/// A client of the TURN server.
pub struct TurnClient {
    link: Link,
    pub username: String,
    pub password: String,
    /// As the server has told them; empty before.
    pub realm: String,
    pub nonce: String,
    /// The last request.
    pub sent: Vec<u8>,
}

enum Link {
    Udp(UdpSocket, SocketAddr),
    Tcp(Box<Mutex<(TcpStream, BytesMut)>>),
}

/// An answer of the server.
#[derive(Debug)]
pub struct TurnAnswer(Vec<u8>);

/// What has come from a peer.
#[derive(Debug, PartialEq, Eq)]
pub enum FromPeer {
    Channel(u16, Vec<u8>),
    Data(SocketAddr, Vec<u8>),
}

/// The TURN server in an answer to `hello`, and where it listens.
pub fn turn_server(hello: &Value) -> (SocketAddr, &Value) {
    let server = hello["data"]["iceServers"]
        .as_array()
        .unwrap()
        .last()
        .unwrap();
    let url = server["urls"][0].as_str().unwrap();
    (url.strip_prefix("stun:").unwrap().parse().unwrap(), server)
}

impl TurnClient {
    /// A client over UDP, with the credentials in an answer to `hello`.
    pub async fn udp(hello: &Value) -> TurnClient {
        TurnClient::udp_from("127.0.0.1:0", hello).await
    }

    /// A client over UDP with this address.
    pub async fn udp_from(address: &str, hello: &Value) -> TurnClient {
        let (server, credentials) = turn_server(hello);
        let socket = UdpSocket::bind(address).await.unwrap();
        TurnClient::over(Link::Udp(socket, server), credentials)
    }

    /// A client over UDP of this server, with these credentials.
    pub async fn udp_at(server: SocketAddr, credentials: &Value) -> TurnClient {
        let socket = UdpSocket::bind((server.ip(), 0)).await.unwrap();
        TurnClient::over(Link::Udp(socket, server), credentials)
    }

    /// A client over TCP, with the credentials in an answer to `hello`.
    pub async fn tcp(hello: &Value) -> TurnClient {
        let (server, credentials) = turn_server(hello);
        let stream = TcpStream::connect(server).await.unwrap();
        let link = Link::Tcp(Box::new(Mutex::new((stream, BytesMut::new()))));
        TurnClient::over(link, credentials)
    }

    fn over(link: Link, credentials: &Value) -> TurnClient {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        TurnClient {
            link,
            username: text(&credentials["username"]),
            password: text(&credentials["credential"]),
            realm: String::new(),
            nonce: String::new(),
            sent: Vec::new(),
        }
    }

    /// The client's own address.
    pub async fn local_addr(&self) -> SocketAddr {
        match &self.link {
            Link::Udp(socket, _) => socket.local_addr().unwrap(),
            Link::Tcp(stream) => stream.lock().await.0.local_addr().unwrap(),
        }
    }

    /// Sends these bytes.
    pub async fn send(&self, bytes: &[u8]) {
        match &self.link {
            Link::Udp(socket, server) => _ = socket.send_to(bytes, server).await.unwrap(),
            Link::Tcp(stream) => {
                let mut padded = bytes.to_vec();
                padded.resize(bytes.len().next_multiple_of(4), 0);
                stream.lock().await.0.write_all(&padded).await.unwrap();
            }
        }
    }

    /// The next datagram, or message and its padding.
    pub async fn receive(&self) -> io::Result<Vec<u8>> {
        let receive = async {
            match &self.link {
                Link::Udp(socket, _) => {
                    let mut buffer = vec![0; 65_536];
                    let length = socket.recv(&mut buffer).await?;
                    buffer.truncate(length);
                    Ok(buffer)
                }
                Link::Tcp(stream) => {
                    let (stream, buffer) = &mut *stream.lock().await;
                    loop {
                        if buffer.len() >= 4 {
                            let length = usize::from(u16::from_be_bytes([buffer[2], buffer[3]]));
                            let length = match buffer[0] {
                                0..0x40 => 20 + length,
                                _ => (4 + length).next_multiple_of(4),
                            };
                            if buffer.len() >= length {
                                let frame = buffer[..length].to_vec();
                                buffer.advance(length);
                                return Ok(frame);
                            }
                        }
                        if stream.read_buf(buffer).await? == 0 {
                            return Err(io::ErrorKind::UnexpectedEof.into());
                        }
                    }
                }
            }
        };
        within_deadline("a datagram of the TURN server", receive).await
    }

    /// Asks for the client's address.
    pub async fn bind(&mut self) -> SocketAddr {
        let request = Message::builder_request(BINDING, MessageWriteVec::new()).finish();
        let answer = self.exchange(request).await;
        answer.mapped()
    }

    /// Sends a request with these attributes and the credentials. Learns the realm and a nonce first.
    pub async fn ask(&mut self, method: Method, attributes: &[&dyn AttributeWrite]) -> TurnAnswer {
        if self.nonce.is_empty() {
            let request = Message::builder_request(ALLOCATE, MessageWriteVec::new()).finish();
            let answer = self.exchange(request).await;
            assert_eq!(answer.error(), Some(401));
            self.learn(&answer);
        }
        let request = self.request(method, attributes);
        let answer = self.exchange(request).await;
        if !matches!(answer.error(), Some(401 | 438)) {
            let key = self.key();
            answer.message().validate_integrity(&key.into()).unwrap();
        }
        if answer.error() == Some(438) {
            self.learn(&answer);
        }
        answer
    }

    /// A request that is signed with the credentials.
    pub fn request(&self, method: Method, attributes: &[&dyn AttributeWrite]) -> Vec<u8> {
        let message = Message::builder_request(method, MessageWriteVec::new());
        self.sign(message, attributes)
    }

    fn sign(&self, mut message: MessageWriteVec, attributes: &[&dyn AttributeWrite]) -> Vec<u8> {
        let username = Username::new(&self.username).unwrap();
        let realm = Realm::new(&self.realm).unwrap();
        let nonce = Nonce::new(&self.nonce).unwrap();
        let credentials: [&dyn AttributeWrite; 3] = [&username, &realm, &nonce];
        for attribute in attributes.iter().copied().chain(credentials) {
            message.add_attribute(attribute).unwrap();
        }
        message
            .add_message_integrity(&self.key().into(), IntegrityAlgorithm::Sha1)
            .unwrap();
        message.finish()
    }

    fn key(&self) -> LongTermKeyCredentials {
        LongTermKeyCredentials::new(
            self.username.clone(),
            self.password.clone(),
            self.realm.clone(),
        )
    }

    /// Sends a request and returns the answer. Skips what comes from peers.
    pub async fn exchange(&mut self, request: Vec<u8>) -> TurnAnswer {
        self.send(&request).await;
        self.sent = request;
        let transaction = Message::from_bytes(&self.sent).unwrap().transaction_id();
        loop {
            let bytes = self.receive().await.unwrap();
            if let Ok(message) = Message::from_bytes(&bytes)
                && message.transaction_id() == transaction
            {
                return TurnAnswer(bytes);
            }
        }
    }

    fn learn(&mut self, answer: &TurnAnswer) {
        let message = answer.message();
        self.realm = message.attribute::<Realm>().unwrap().realm().into();
        self.nonce = message.attribute::<Nonce>().unwrap().nonce().into();
    }

    /// Asks for an allocation.
    pub async fn try_allocate(&mut self) -> TurnAnswer {
        self.ask(ALLOCATE, &[&RequestedTransport::new(17)]).await
    }

    /// Opens an allocation, and returns the relayed address.
    pub async fn allocate(&mut self) -> SocketAddr {
        let answer = self.try_allocate().await;
        assert_eq!(answer.error(), None, "{answer:?}");
        assert_eq!(answer.mapped(), self.local_addr().await);
        answer.relayed()
    }

    /// Asks for another lifetime of the allocation, in seconds.
    pub async fn refresh(&mut self, seconds: u32) -> TurnAnswer {
        self.ask(REFRESH, &[&Lifetime::new(seconds)]).await
    }

    /// Asks for permissions for these peers.
    pub async fn permit(&mut self, peers: &[&str]) -> TurnAnswer {
        let message = Message::builder_request(CREATE_PERMISSION, MessageWriteVec::new());
        let transaction = message.transaction_id();
        let peers: Vec<XorPeerAddress> = peers
            .iter()
            .map(|peer| XorPeerAddress::new(peer.parse().unwrap(), transaction))
            .collect();
        let attributes: Vec<&dyn AttributeWrite> = peers.iter().map(|it| it as _).collect();
        let request = self.sign_all(message, &attributes);
        self.exchange(request).await
    }

    /// Asks for a channel for a peer.
    pub async fn bind_channel(&mut self, number: u16, peer: SocketAddr) -> TurnAnswer {
        let message = Message::builder_request(CHANNEL_BIND, MessageWriteVec::new());
        let peer = XorPeerAddress::new(peer, message.transaction_id());
        let request = self.sign(message, &[&ChannelNumber::new(number), &peer]);
        self.exchange(request).await
    }

    /// Several attributes may have the same type.
    fn sign_all(
        &self,
        mut message: MessageWriteVec,
        attributes: &[&dyn AttributeWrite],
    ) -> Vec<u8> {
        for attribute in attributes {
            message.push_attribute_unchecked(*attribute);
        }
        self.sign(message, &[])
    }

    /// Sends data to a peer by a channel.
    pub async fn send_by(&self, number: u16, data: &[u8]) {
        let mut bytes = vec![0; 4 + data.len()];
        ChannelData::new(number, data).write_into_unchecked(&mut bytes);
        self.send(&bytes).await;
    }

    /// Sends data to a peer by an indication.
    pub async fn send_to(&self, peer: SocketAddr, data: &[u8]) {
        let mut message = Message::builder_indication(SEND, MessageWriteVec::new());
        let peer = XorPeerAddress::new(peer, message.transaction_id());
        message.add_attribute(&peer).unwrap();
        message.add_attribute(&Data::new(data)).unwrap();
        self.send(&message.finish()).await;
    }

    /// What comes next from a peer.
    pub async fn next_from_peer(&self) -> FromPeer {
        let bytes = self.receive().await.unwrap();
        if let Ok(channel) = ChannelData::parse(&bytes) {
            return FromPeer::Channel(channel.id(), channel.data().to_vec());
        }
        let message = Message::from_bytes(&bytes).unwrap();
        assert!(message.has_method(DATA) && message.has_class(MessageClass::Indication));
        let peer = message.attribute::<XorPeerAddress>().unwrap();
        let data = message.attribute::<Data<'_>>().unwrap();
        FromPeer::Data(peer.addr(message.transaction_id()), data.data().to_vec())
    }
}

impl TurnAnswer {
    /// The answer as a message.
    pub fn message(&self) -> Message<'_> {
        Message::from_bytes(&self.0).unwrap()
    }

    /// The number of bytes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The code of an error; `None` if the request succeeded.
    pub fn error(&self) -> Option<u16> {
        let message = self.message();
        match message.class() {
            MessageClass::Success => None,
            MessageClass::Error => Some(message.attribute::<ErrorCode>().unwrap().code()),
            class => panic!("an answer of class {class:?}"),
        }
    }

    /// The relayed address.
    pub fn relayed(&self) -> SocketAddr {
        let message = self.message();
        let relayed = message.attribute::<XorRelayedAddress>().unwrap();
        relayed.addr(message.transaction_id())
    }

    /// The address that the server sees.
    pub fn mapped(&self) -> SocketAddr {
        let message = self.message();
        let mapped = message.attribute::<XorMappedAddress>().unwrap();
        mapped.addr(message.transaction_id())
    }

    /// The lifetime of the allocation, in seconds.
    pub fn lifetime(&self) -> u32 {
        self.message().attribute::<Lifetime>().unwrap().seconds()
    }
}
