//! The STUN and TURN server in the same process.

use std::{
    net::{IpAddr, SocketAddr},
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Instant,
};

use anteroom::config::TurnOptions;
use serde_json::{Value, json};
use tokio::net::UdpSocket;
use turn_types::{
    attribute::{DontFragment, EvenPort, Lifetime, RequestedAddressFamily, RequestedTransport},
    message::{ALLOCATE, CHANNEL_BIND, CREATE_PERMISSION, REFRESH},
    stun::{
        AddressFamily,
        message::{BINDING, Message, MessageWrite, MessageWriteVec},
    },
};

use crate::resuming::reconnect;
use crate::support::{
    Client, Folder, FromPeer, TestServer, TurnClient, eventually, turn_server, within_deadline,
};

/// A server whose relays reach peers on this machine.
async fn local_server() -> TestServer {
    turn_with(|turn| turn.allow_peer = vec!["127.0.0.1/32".parse().unwrap()]).await
}

/// A server with a TURN server on a free port of 127.0.0.1.
async fn turn_with(change: impl FnOnce(&mut TurnOptions)) -> TestServer {
    TestServer::with(|config| {
        enable(&mut config.turn);
        change(&mut config.turn);
    })
    .await
}

/// Enables the TURN server, on a free port of 127.0.0.1.
fn enable(turn: &mut TurnOptions) {
    turn.listen = Some(([127, 0, 0, 1], 0).into());
    turn.addresses = vec![[127, 0, 0, 1].into()];
}

/// Enables the TURN server for IPv4 and IPv6, on a free port of every address.
fn enable_both(turn: &mut TurnOptions) {
    turn.listen = Some("[::]:0".parse().unwrap());
    turn.addresses = vec![[127, 0, 0, 1].into(), "::1".parse().unwrap()];
}

/// The address of a relay for IPv6.
async fn allocate_ipv6(client: &mut TurnClient) -> SocketAddr {
    let ipv6 = RequestedAddressFamily::new(AddressFamily::IPV6);
    let attributes = [&RequestedTransport::new(17) as _, &ipv6 as _];
    client.ask(ALLOCATE, &attributes).await.relayed()
}

/// A session, and its answer to `hello`.
async fn session(server: &TestServer) -> (Client, Value) {
    let mut client = Client::join(server, "call").await;
    let hello = client.hello().await;
    (client, hello)
}

fn refusals(server: &TestServer, reason: &str) -> u64 {
    server.count(&format!(
        "anteroom_turn_refusals_total{{reason=\"{reason}\"}}"
    ))
}

fn count(number: u32) -> NonZeroU32 {
    NonZeroU32::new(number).unwrap()
}

#[tokio::test]
async fn hello_names_the_server_with_credentials_of_the_session() {
    let server = TestServer::with(|config| {
        config.turn.listen = Some(([127, 0, 0, 1], 0).into());
        config.turn.addresses = vec![[203, 0, 113, 7].into()];
        config.webrtc.turn_seconds = 600;
    })
    .await;
    let mut passwords = Vec::new();
    for _ in 0..2 {
        let (client, hello) = session(&server).await;
        let (address, credentials) = turn_server(&hello);
        assert_eq!(address.ip(), IpAddr::from([203, 0, 113, 7]));
        let turn = |transport| format!("turn:{address}?transport={transport}");
        let urls = json!([format!("stun:{address}"), turn("udp"), turn("tcp")]);
        assert_eq!(credentials["urls"], urls);
        let (_, id) = credentials["username"]
            .as_str()
            .unwrap()
            .split_once(':')
            .unwrap();
        assert_eq!(id, client.id);
        passwords.push(credentials["credential"].clone());
    }
    assert_ne!(passwords[0], passwords[1]);
}

#[tokio::test]
async fn a_client_learns_its_address_over_udp_and_tcp() {
    let server = local_server().await;
    let (_session, hello) = session(&server).await;
    for mut client in [TurnClient::udp(&hello).await, TurnClient::tcp(&hello).await] {
        assert_eq!(client.bind().await, client.local_addr().await);
    }
}

#[tokio::test]
async fn data_passes_between_a_client_and_a_peer() {
    let server = local_server().await;
    let (_session, hello) = session(&server).await;
    let peer = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let peer_address = peer.local_addr().unwrap();
    let mut buffer = [0; 2000];
    for mut client in [TurnClient::udp(&hello).await, TurnClient::tcp(&hello).await] {
        let relayed = client.allocate().await;
        assert_eq!(client.permit(&["127.0.0.1:1"]).await.error(), None);
        // Lengths that are no multiple of four are padded over TCP.
        for data in [&b"by an indication"[..], b"x", b""] {
            client.send_to(peer_address, data).await;
            let (length, from) = within_deadline("data", peer.recv_from(&mut buffer))
                .await
                .unwrap();
            assert_eq!((&buffer[..length], from), (data, relayed));
            peer.send_to(data, relayed).await.unwrap();
            assert_eq!(
                client.next_from_peer().await,
                FromPeer::Data(peer_address, data.into())
            );
        }
        assert_eq!(
            client.bind_channel(0x4000, peer_address).await.error(),
            None
        );
        for data in [&[7; 1200][..], b"by a channel", b"x", b""] {
            client.send_by(0x4000, data).await;
            let (length, from) = within_deadline("data", peer.recv_from(&mut buffer))
                .await
                .unwrap();
            assert_eq!((&buffer[..length], from), (data, relayed));
            peer.send_to(data, relayed).await.unwrap();
            assert_eq!(
                client.next_from_peer().await,
                FromPeer::Channel(0x4000, data.into())
            );
        }
    }
    let relayed = |direction| {
        server.count(&format!(
            "anteroom_turn_relayed_bytes_total{{direction=\"{direction}\"}}"
        ))
    };
    assert_eq!(
        (relayed("to_peers"), relayed("to_clients")),
        (2 * 1230, 2 * 1230)
    );
}

#[tokio::test]
async fn two_relays_reach_each_other_at_an_address_that_is_not_public() {
    let server = turn_with(|_| {}).await;
    let ((_one, hello), (_two, other)) = (session(&server).await, session(&server).await);
    let (mut one, mut two) = (TurnClient::udp(&hello).await, TurnClient::tcp(&other).await);
    let (at_one, at_two) = (one.allocate().await, two.allocate().await);
    assert_eq!(one.permit(&[&at_two.to_string()]).await.error(), None);
    one.send_to(at_two, b"not permitted yet").await;
    assert_eq!(two.bind_channel(0x4001, at_one).await.error(), None);
    one.send_to(at_two, b"hello").await;
    assert_eq!(
        two.next_from_peer().await,
        FromPeer::Channel(0x4001, b"hello".into())
    );
    two.send_by(0x4001, b"hello yourself").await;
    assert_eq!(
        one.next_from_peer().await,
        FromPeer::Data(at_two, b"hello yourself".into())
    );

    // Nothing else at that address is reached: neither the server, nor a socket of the machine.
    let bystander = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    one.send_to(bystander.local_addr().unwrap(), b"not for you")
        .await;
    one.send_to(at_two, b"after").await;
    assert_eq!(
        two.next_from_peer().await,
        FromPeer::Channel(0x4001, b"after".into())
    );
    assert!(bystander.try_recv(&mut [0; 100]).is_err());
}

#[tokio::test]
async fn one_socket_serves_ipv4_and_ipv6() {
    let server = turn_with(enable_both).await;
    let (_session, hello) = session(&server).await;
    let (address, credentials) = turn_server(&hello);
    let port = address.port();
    assert_eq!(credentials["urls"][3], format!("stun:[::1]:{port}"));
    for ip in ["127.0.0.1", "::1"] {
        let ip: IpAddr = ip.parse().unwrap();
        let mut client = TurnClient::udp_at(SocketAddr::new(ip, port), credentials).await;
        assert_eq!(client.bind().await, client.local_addr().await);
        // Either relay may be asked for over either network.
        assert!(client.allocate().await.is_ipv4());
        assert_eq!(client.refresh(0).await.error(), None);
        assert!(allocate_ipv6(&mut client).await.is_ipv6());
        assert_eq!(client.permit(&["127.0.0.1:1"]).await.error(), Some(443));
        assert_eq!(client.permit(&["[::1]:1"]).await.error(), None);
        assert_eq!(
            client.permit(&["[::ffff:127.0.0.1]:1"]).await.error(),
            Some(403)
        );
        assert_eq!(client.permit(&["[fd00::1]:1"]).await.error(), Some(403));
    }
}

#[tokio::test]
async fn credentials_that_are_wrong_open_nothing() {
    let server = local_server().await;
    let (session, hello) = session(&server).await;
    let allocate = async |change: fn(&mut TurnClient)| {
        let mut client = TurnClient::udp(&hello).await;
        change(&mut client);
        client.try_allocate().await.error()
    };
    assert_eq!(allocate(|_| {}).await, None);
    assert_eq!(
        allocate(|client| client.password.push('x')).await,
        Some(401)
    );
    // A time that is later, or over.
    assert_eq!(
        allocate(|client| client.username.replace_range(..1, "9")).await,
        Some(401)
    );
    assert_eq!(
        allocate(|client| client.username.replace_range(..1, "0")).await,
        Some(401)
    );
    assert_eq!(
        allocate(|client| client.username = "alice".into()).await,
        Some(401)
    );
    assert_eq!(allocate(|client| client.username.clear()).await, Some(401));
    assert_eq!(refusals(&server, "credentials"), 5);

    // A request that was altered on its way.
    let mut client = TurnClient::udp(&hello).await;
    let request = Message::builder_request(ALLOCATE, MessageWriteVec::new()).finish();
    let _ = client.exchange(request).await;
    assert_eq!(client.try_allocate().await.error(), None);
    let mut altered = client.request(REFRESH, &[&Lifetime::new(600)]);
    altered[27] = 1;
    assert_eq!(client.exchange(altered).await.error(), Some(401));

    // A session that has ended.
    drop(session);
    let mut late = TurnClient::udp(&hello).await;
    eventually("the end of the allocations", || {
        server.count("anteroom_turn_allocations") == 0
    })
    .await;
    assert_eq!(late.try_allocate().await.error(), Some(401));
    assert_eq!(refusals(&server, "session"), 1);
}

#[tokio::test]
async fn a_request_from_elsewhere_is_not_accepted_again() {
    let server = local_server().await;
    let (_session, hello) = session(&server).await;
    let mut client = TurnClient::udp(&hello).await;
    let relayed = client.allocate().await;
    let request = client.sent.clone();
    // The client itself may not have got the answer.
    assert_eq!(client.exchange(request.clone()).await.relayed(), relayed);
    let mut thief = TurnClient::udp(&hello).await;
    assert_eq!(thief.exchange(request).await.error(), Some(438));
    assert_eq!(server.count("anteroom_turn_allocations"), 1);
}

#[tokio::test]
async fn nobody_uses_the_allocation_of_another_session() {
    let server = local_server().await;
    let ((_one, hello), (_two, other)) = (session(&server).await, session(&server).await);
    let mut client = TurnClient::udp(&hello).await;
    client.allocate().await;
    let (_, credentials) = turn_server(&other);
    client.username = credentials["username"].as_str().unwrap().into();
    client.password = credentials["credential"].as_str().unwrap().into();
    assert_eq!(client.refresh(0).await.error(), Some(441));
    assert_eq!(client.try_allocate().await.error(), Some(437));
}

#[tokio::test]
async fn peers_in_the_operators_network_are_refused() {
    let server = turn_with(|turn| turn.allow_peer = vec!["10.0.0.0/8".parse().unwrap()]).await;
    let (_session, hello) = session(&server).await;
    let mut client = TurnClient::udp(&hello).await;
    client.allocate().await;
    let refused = [
        "127.0.0.2:80",
        "0.0.0.0:80",
        "192.168.1.1:80",
        "172.16.0.1:80",
        "169.254.169.254:80",
        "100.64.0.1:80",
        "224.0.0.1:80",
        "255.255.255.255:80",
    ];
    for peer in refused {
        assert_eq!(client.permit(&[peer]).await.error(), Some(403), "{peer}");
        let answer = client.bind_channel(0x4000, peer.parse().unwrap()).await;
        assert_eq!(answer.error(), Some(403), "{peer}");
    }
    assert_eq!(refusals(&server, "peer"), 2 * refused.len() as u64);
    for peer in ["[::1]:80", "[::ffff:127.0.0.1]:80", "[fd00::1]:80"] {
        assert_eq!(client.permit(&[peer]).await.error(), Some(443), "{peer}");
    }
    // All of the peers of a request are permitted, or none.
    assert_eq!(
        client
            .permit(&["10.0.0.1:1", "192.168.0.1:1"])
            .await
            .error(),
        Some(403)
    );
    assert_eq!(
        client.permit(&["10.0.0.1:1", "1.1.1.1:1"]).await.error(),
        None
    );
    assert_eq!(client.permit(&[]).await.error(), Some(400));
}

#[tokio::test]
async fn what_is_not_permitted_passes_in_neither_direction() {
    let server = local_server().await;
    let (_session, hello) = session(&server).await;
    let mut client = TurnClient::udp(&hello).await;
    let relayed = client.allocate().await;
    let permitted = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let stranger = UdpSocket::bind("127.0.0.2:0").await.unwrap();
    assert_eq!(client.permit(&["127.0.0.1:1"]).await.error(), None);
    client.send_to(stranger.local_addr().unwrap(), b"no").await;
    client.send_by(0x4000, b"no channel").await;
    stranger.send_to(b"no", relayed).await.unwrap();
    permitted.send_to(b"yes", relayed).await.unwrap();
    let data = client.next_from_peer().await;
    assert_eq!(
        data,
        FromPeer::Data(permitted.local_addr().unwrap(), b"yes".into())
    );
    client
        .send_to(permitted.local_addr().unwrap(), b"yes")
        .await;
    let mut buffer = [0; 100];
    let received = within_deadline("data", permitted.recv(&mut buffer))
        .await
        .unwrap();
    assert_eq!(&buffer[..received], b"yes");
    assert!(stranger.try_recv(&mut buffer).is_err());
}

#[tokio::test]
async fn a_channel_stands_for_one_peer() {
    let server = local_server().await;
    let (_session, hello) = session(&server).await;
    let mut client = TurnClient::udp(&hello).await;
    client.allocate().await;
    let [one, two]: [SocketAddr; 2] = ["127.0.0.1:9", "127.0.0.1:10"].map(|it| it.parse().unwrap());
    let mut bind = async |number, peer| client.bind_channel(number, peer).await.error();
    assert_eq!(bind(0x4000, one).await, None);
    assert_eq!(bind(0x4000, one).await, None);
    assert_eq!(bind(0x4000, two).await, Some(400));
    assert_eq!(bind(0x4001, one).await, Some(400));
    assert_eq!(bind(0x4001, two).await, None);
    for number in [0, 0x3fff, 0x8000, 0xffff] {
        assert_eq!(
            bind(number, "127.0.0.1:11".parse().unwrap()).await,
            Some(400)
        );
    }
    // An allocation has so many channels and permissions at most.
    let peer = |number: u16| SocketAddr::from(([127, 0, 0, 1], 100 + number));
    for number in 2..128 {
        assert_eq!(bind(0x4000 + number, peer(number)).await, None);
    }
    assert_eq!(bind(0x4080, peer(128)).await, Some(508));
    assert_eq!(bind(0x4001, two).await, None);
}

#[tokio::test]
async fn an_allocation_lasts_as_long_as_its_client_asks_for() {
    let server = local_server().await;
    let (_session, hello) = session(&server).await;
    let mut client = TurnClient::udp(&hello).await;
    assert_eq!(client.refresh(600).await.error(), Some(437));
    let relayed = client.allocate().await;
    for (asked, granted) in [(1, 600), (700, 700), (u32::MAX, 3600)] {
        assert_eq!(client.refresh(asked).await.lifetime(), granted);
    }
    assert_eq!(client.refresh(0).await.lifetime(), 0);
    eventually("the end of the allocation", || {
        server.count("anteroom_turn_allocations") == 0
    })
    .await;
    assert_eq!(client.refresh(600).await.error(), Some(437));
    assert_eq!(client.permit(&["127.0.0.1:1"]).await.error(), Some(437));
    // The port is free again, and the client may have another allocation.
    eventually("a free port", || std::net::UdpSocket::bind(relayed).is_ok()).await;
    client.allocate().await;
}

#[tokio::test]
async fn a_connection_that_ends_takes_its_allocation_along() {
    let server = local_server().await;
    let (_session, hello) = session(&server).await;
    let mut client = TurnClient::tcp(&hello).await;
    client.allocate().await;
    drop(client);
    eventually("the end of the allocation", || {
        server.count("anteroom_turn_allocations") == 0
    })
    .await;
}

#[tokio::test]
async fn the_allocations_of_a_session_and_of_an_address_are_limited() {
    let server = turn_with(|turn| {
        turn.session_allocations = count(2);
        turn.address_allocations = count(3);
    })
    .await;
    let ((_one, hello), (_two, other)) = (session(&server).await, session(&server).await);
    let mut clients = Vec::new();
    for _ in 0..2 {
        let mut client = TurnClient::udp(&hello).await;
        client.allocate().await;
        clients.push(client);
    }
    let mut third = TurnClient::udp(&hello).await;
    assert_eq!(third.try_allocate().await.error(), Some(486));
    assert_eq!(refusals(&server, "session_allocations"), 1);
    let mut other_client = TurnClient::udp(&other).await;
    other_client.allocate().await;
    let mut fourth = TurnClient::udp(&other).await;
    assert_eq!(fourth.try_allocate().await.error(), Some(486));
    assert_eq!(refusals(&server, "address_allocations"), 1);
    // Another address has a quota of its own.
    let mut elsewhere = TurnClient::udp_from("127.0.0.2:0", &other).await;
    assert_eq!(elsewhere.try_allocate().await.error(), None);
    assert_eq!(clients[0].refresh(0).await.error(), None);
    let mut freed = TurnClient::udp(&hello).await;
    freed.allocate().await;
}

#[tokio::test]
async fn a_server_without_a_free_port_says_so() {
    // No other test uses this address.
    let address = IpAddr::from([127, 0, 0, 78]);
    let server = turn_with(|turn| {
        turn.listen = Some((address, 0).into());
        turn.addresses = vec![address];
        turn.relay_ports = "50000-50000".parse().unwrap();
    })
    .await;
    let (_session, hello) = session(&server).await;
    let (mut one, mut two) = (TurnClient::udp(&hello).await, TurnClient::udp(&hello).await);
    assert_eq!(one.allocate().await, (address, 50_000).into());
    assert_eq!(two.try_allocate().await.error(), Some(508));
    assert_eq!(refusals(&server, "ports"), 1);
}

#[tokio::test]
async fn bytes_over_the_rate_of_a_session_are_dropped_in_both_directions() {
    let server = turn_with(|turn| {
        turn.allow_peer = vec!["127.0.0.1/32".parse().unwrap()];
        turn.bytes_per_second = count(10_000);
    })
    .await;
    let ((_one, hello), (_two, other)) = (session(&server).await, session(&server).await);
    let peer = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = peer.local_addr().unwrap();
    let (mut greedy, mut modest) = (TurnClient::udp(&hello).await, TurnClient::udp(&other).await);
    let relayed = greedy.allocate().await;
    modest.allocate().await;
    for client in [&mut greedy, &mut modest] {
        assert_eq!(client.bind_channel(0x4000, address).await.error(), None);
    }
    for _ in 0..100 {
        greedy.send_by(0x4000, &[1; 1000]).await;
    }
    eventually("dropped data of the client", || {
        refusals(&server, "bandwidth") > 50
    })
    .await;
    let before = refusals(&server, "bandwidth");
    for _ in 0..100 {
        peer.send_to(&[1; 1000], relayed).await.unwrap();
    }
    eventually("dropped data of the peer", || {
        refusals(&server, "bandwidth") > before + 50
    })
    .await;
    modest.send_by(0x4000, b"modest").await;
    let mut buffer = [0; 2000];
    loop {
        let received = within_deadline("data", peer.recv(&mut buffer))
            .await
            .unwrap();
        if &buffer[..received] == b"modest" {
            break;
        }
    }
}

#[tokio::test]
async fn all_sessions_together_have_a_rate() {
    let server = turn_with(|turn| {
        turn.allow_peer = vec!["127.0.0.1/32".parse().unwrap()];
        turn.total_bytes_per_second = Some(count(10_000));
    })
    .await;
    let (_session, hello) = session(&server).await;
    let mut client = TurnClient::udp(&hello).await;
    client.allocate().await;
    let peer = "127.0.0.1:9".parse().unwrap();
    assert_eq!(client.bind_channel(0x4000, peer).await.error(), None);
    for _ in 0..100 {
        client.send_by(0x4000, &[1; 1000]).await;
    }
    eventually("dropped data", || refusals(&server, "bandwidth") > 50).await;
}

/// A flood takes one thread here, and the server must not need it: nothing else would run.
#[tokio::test]
async fn a_flood_from_one_address_gets_few_answers_and_hurts_no_other() {
    let mut server = local_server().await;
    let (mut session, hello) = session(&server).await;
    let mut inside = TurnClient::udp(&hello).await;
    inside.allocate().await;
    let (address, _) = turn_server(&hello);
    let stop = Arc::new(AtomicBool::new(false));
    let flooding = std::thread::spawn({
        let stop = stop.clone();
        move || {
            let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.set_nonblocking(true).unwrap();
            let request = Message::builder_request(BINDING, MessageWriteVec::new()).finish();
            let (began, mut answers, mut buffer) = (Instant::now(), 0, [0; 100]);
            while !stop.load(Relaxed) {
                let _ = socket.send_to(&request, address);
                answers += u64::from(socket.recv(&mut buffer).is_ok());
            }
            (answers, began.elapsed())
        }
    });
    eventually("unanswered requests", || refusals(&server, "rate") > 5000).await;
    // Rooms, other addresses, and whoever has credentials at the same address are not affected.
    session.hello().await;
    let mut elsewhere = TurnClient::udp_from("127.0.0.2:0", &hello).await;
    assert_eq!(elsewhere.bind().await, elsewhere.local_addr().await);
    assert_eq!(inside.refresh(600).await.error(), None);
    // Over TCP nobody forges an address.
    let mut over_tcp = TurnClient::tcp(&hello).await;
    assert_eq!(over_tcp.bind().await, over_tcp.local_addr().await);
    // The server also ends while the flood goes on.
    server.stop();
    while session.next_or_close().await.is_ok() {}
    server.stopped().await;
    stop.store(true, Relaxed);
    let (answers, time) = flooding.join().unwrap();
    assert!(
        answers as f64 <= 2000.0 + 1000.0 * time.as_secs_f64(),
        "{answers} in {time:?}"
    );
}

#[tokio::test]
async fn requests_with_wrong_credentials_count_as_requests_without() {
    let server = local_server().await;
    let (_session, hello) = session(&server).await;
    let mut client = TurnClient::udp(&hello).await;
    client.allocate().await;
    client.password.push('x');
    let request = client.request(REFRESH, &[]);
    let refused = || refusals(&server, "credentials");
    let mut sent = 0;
    while refusals(&server, "rate") == 0 {
        // A batch is not lost on its way.
        for _ in 0..50 {
            client.send(&request).await;
        }
        sent += 50;
        eventually("the refusals", || refused() == sent).await;
    }
    assert!(sent > 1000, "{sent}");
}

#[tokio::test]
async fn a_client_over_tcp_that_does_not_read_loses_data_and_keeps_nobody_waiting() {
    let server = turn_with(|turn| {
        turn.allow_peer = vec!["127.0.0.1/32".parse().unwrap()];
        turn.bytes_per_second = count(1_000_000_000);
    })
    .await;
    let (_session, hello) = session(&server).await;
    let (mut slow, mut other) = (TurnClient::tcp(&hello).await, TurnClient::tcp(&hello).await);
    let (at_slow, at_other) = (slow.allocate().await, other.allocate().await);
    let peer = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for client in [&mut slow, &mut other] {
        let bound = client
            .bind_channel(0x4000, peer.local_addr().unwrap())
            .await;
        assert_eq!(bound.error(), None);
    }
    while refusals(&server, "lost") == 0 {
        peer.send_to(&[7; 8000], at_slow).await.unwrap();
        tokio::task::yield_now().await;
    }
    peer.send_to(b"in time", at_other).await.unwrap();
    assert_eq!(
        other.next_from_peer().await,
        FromPeer::Channel(0x4000, b"in time".into())
    );
    // Answers have room of their own.
    assert_eq!(slow.refresh(0).await.error(), None);
}

#[tokio::test]
async fn data_that_does_not_fit_into_a_message_is_lost() {
    let server = turn_with(|turn| {
        enable_both(turn);
        turn.allow_peer = vec!["::1/128".parse().unwrap()];
    })
    .await;
    let (_session, hello) = session(&server).await;
    let mut client = TurnClient::tcp(&hello).await;
    let relayed = allocate_ipv6(&mut client).await;
    assert_eq!(client.permit(&["[::1]:1"]).await.error(), None);
    let peer = UdpSocket::bind("[::1]:0").await.unwrap();
    peer.send_to(&[7; 65_527], relayed).await.unwrap();
    peer.send_to(b"short", relayed).await.unwrap();
    let short = FromPeer::Data(peer.local_addr().unwrap(), b"short".into());
    assert_eq!(client.next_from_peer().await, short);
    assert_eq!(refusals(&server, "lost"), 1);
}

#[tokio::test]
async fn requests_that_are_invalid_are_named_as_what_they_are() {
    let server = local_server().await;
    let (_session, hello) = session(&server).await;
    let mut client = TurnClient::udp(&hello).await;
    let udp = RequestedTransport::new(17);
    let even = EvenPort::new(true);
    assert_eq!(client.ask(ALLOCATE, &[]).await.error(), Some(400));
    assert_eq!(
        client
            .ask(ALLOCATE, &[&RequestedTransport::new(6)])
            .await
            .error(),
        Some(442)
    );
    assert_eq!(
        client
            .ask(ALLOCATE, &[&udp, &DontFragment::new()])
            .await
            .error(),
        Some(420)
    );
    assert_eq!(
        client.ask(ALLOCATE, &[&udp, &even]).await.error(),
        Some(508)
    );
    let ipv6 = RequestedAddressFamily::new(AddressFamily::IPV6);
    assert_eq!(
        client.ask(ALLOCATE, &[&udp, &ipv6]).await.error(),
        Some(440)
    );
    let port = client
        .ask(ALLOCATE, &[&udp, &EvenPort::new(false)])
        .await
        .relayed()
        .port();
    assert_eq!(port % 2, 0);
    assert_eq!(client.ask(REFRESH, &[&ipv6]).await.error(), Some(443));
    assert_eq!(client.ask(CREATE_PERMISSION, &[]).await.error(), Some(400));
    assert_eq!(client.ask(CHANNEL_BIND, &[]).await.error(), Some(400));
    let mut malformed = client.request(REFRESH, &[&Lifetime::new(600)]);
    // The length of the attribute.
    malformed[23] = 3;
    assert_eq!(client.exchange(malformed).await.error(), Some(401));
    // What is no request at all is not answered, and harms nobody.
    for noise in [
        &b""[..],
        b"x",
        b"GET / HTTP/1.1\r\n\r\n",
        &[0; 20],
        &[0x40; 3],
        &[0xff; 1500],
    ] {
        client.send(noise).await;
    }
    assert_eq!(client.refresh(600).await.error(), None);
}

#[tokio::test]
async fn an_answer_without_credentials_is_not_much_longer_than_the_request() {
    let server = local_server().await;
    let (_session, hello) = session(&server).await;
    let mut client = TurnClient::udp(&hello).await;
    let request = Message::builder_request(ALLOCATE, MessageWriteVec::new()).finish();
    let answer = client.exchange(request.clone()).await;
    assert!(answer.len() <= 4 * request.len() + 8, "{}", answer.len());
}

#[tokio::test]
async fn a_session_that_outlives_a_restart_gets_new_credentials() {
    let folder = Folder::new("turn");
    let start = async || {
        TestServer::with(|config| {
            enable(&mut config.turn);
            config.stopping.sessions_file = Some(folder.file("sessions"));
        })
        .await
    };
    let mut server = start().await;
    let mut session = Client::join(&server, "call").await;
    let token = session.ask_for_resume_token().await;
    let hello = session.hello().await;
    let mut client = TurnClient::udp(&hello).await;
    client.allocate().await;
    drop(session.into_raw());
    // The allocation does not keep the session waiting.
    server.expect_suspended(1).await;
    assert_eq!(client.refresh(600).await.error(), None);
    server.stop();
    server.stopped().await;

    let server = start().await;
    let mut session = reconnect(&server, "call", &token, 3).await;
    let renewed = session.hello().await;
    assert_eq!(renewed["receiver"], hello["receiver"]);
    let (address, _) = turn_server(&renewed);
    let mut old = TurnClient::udp_at(address, turn_server(&hello).1).await;
    assert_eq!(old.try_allocate().await.error(), Some(401));
    TurnClient::udp(&renewed).await.allocate().await;
}

#[tokio::test]
async fn relays_and_connections_end_with_the_server() {
    let mut server = local_server().await;
    let (mut session, hello) = session(&server).await;
    let mut client = TurnClient::tcp(&hello).await;
    client.allocate().await;
    // This connection is no session's.
    let mut idle = TurnClient::tcp(&hello).await;
    assert_eq!(idle.bind().await, idle.local_addr().await);
    server.stop();
    while session.next_or_close().await.is_ok() {}
    server.stopped().await;
    assert!(client.receive().await.is_err());
    assert!(idle.receive().await.is_err());
}
