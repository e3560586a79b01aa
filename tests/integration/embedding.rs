//! The `room` filter in another warp application, served by warp's own server.

use anteroom::{Anteroom, Config, Server};
use serde_json::json;
use tokio::net::TcpListener;
use warp::Filter;

use crate::support::{Client, within_deadline};

#[tokio::test]
async fn the_endpoint_can_be_mounted_under_a_path_of_another_application() {
    let mut config = Config::default();
    config.stopping.drain_seconds = 1;
    let anteroom = Anteroom::new(config).unwrap();
    let about = warp::path!("about").map(|| "an application");
    let app = warp::path("signaling").and(anteroom.room()).or(about);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let served = tokio::spawn(warp::serve(app).incoming(listener).run());

    let mut alice = Client::connect(address, "/signaling/room/tea").await;
    alice
        .send(json!({"type": "hello", "receiver": "server"}))
        .await;
    assert_eq!(alice.next().await["data"]["room"], "tea");
    let mut bob = Client::connect(address, "/signaling/room/tea").await;
    let bob_id = alice.next().await["sender"].as_str().unwrap().to_owned();
    alice.send(json!({"type": "x", "receiver": bob_id})).await;
    assert_eq!(bob.next().await["type"], "x");
    assert_eq!((anteroom.rooms(), anteroom.sessions()), (1, 2));

    let closes = async {
        assert_eq!(alice.expect_close().await.0, 1012);
        assert_eq!(bob.expect_close().await.0, 1012);
        drop((alice, bob));
    };
    within_deadline("the shutdown", async {
        tokio::join!(anteroom.shut_down(), closes)
    })
    .await;
    assert_eq!((anteroom.rooms(), anteroom.sessions()), (0, 0));
    served.abort();
}

#[tokio::test]
async fn invalid_options_are_an_error() {
    let mut config = Config::default();
    config.liveness.pong_seconds = 0;
    let result = Anteroom::new(config);
    let message = result.err().unwrap().to_string();
    assert_eq!(message, "--pong-seconds must be 1 to 3600, not 0");
}

#[tokio::test]
async fn dropping_a_server_closes_its_sessions() {
    let listen = ([127, 0, 0, 1], 0).into();
    let mut config = Config::default();
    config.serving.listen = listen;
    let server = Server::bind(config).unwrap();
    let address = server.local_addr().unwrap();
    let served = tokio::spawn(server.serve(std::future::pending()));
    let mut alice = Client::connect(address, "/room").await;
    alice.expect_quiet().await;
    served.abort();
    assert_eq!(alice.expect_close().await.0, 1012);
}
