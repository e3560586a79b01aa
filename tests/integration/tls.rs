//! TLS: versions, failed handshakes, and certificates and their reload.

use std::{io, path::PathBuf, sync::Arc};

use anteroom::Config;
use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use rcgen::{CertificateParams, CertifiedIssuer, KeyPair};
use serde_json::json;
use tokio::{
    io::{
        AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy_bidirectional_with_sizes, duplex,
    },
    net::TcpStream,
};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        ClientConfig, ConnectionTrafficSecrets, ExtractedSecrets, HandshakeKind, RootCertStore,
        SupportedProtocolVersion,
        crypto::{
            CryptoProvider,
            aws_lc_rs::{cipher_suite::TLS13_AES_128_GCM_SHA256, default_provider},
        },
        pki_types::{CertificateDer, ServerName, pem::PemObject},
        version::{TLS12, TLS13},
    },
};

use crate::support::{Client, File, Program, Raw, TestServer, within_deadline};

/// A certificate authority for tests.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub fn new() -> Authority {
        let mut params = CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, "anteroom's tests");
        let key = KeyPair::generate().unwrap();
        Authority(CertifiedIssuer::self_signed(params, key).unwrap())
    }

    /// The authority's own certificate as PEM.
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate for localhost, 127.0.0.1 and `name`, and its private key, both as PEM.
    pub fn issue(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let names = [
            "localhost".to_owned(),
            "127.0.0.1".to_owned(),
            name.to_owned(),
        ];
        let params = CertificateParams::new(names).unwrap();
        (self.issue_for(params, &key), key.serialize_pem())
    }

    /// A certificate with these parameters for a key, as PEM.
    pub fn issue_for(&self, params: CertificateParams, key: &KeyPair) -> String {
        params.signed_by(key, &self.0).unwrap().pem()
    }

    /// The configuration of a TLS client that trusts only this authority.
    fn client(
        &self,
        provider: CryptoProvider,
        versions: &[&'static SupportedProtocolVersion],
    ) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(self.pem().as_bytes()).unwrap())
            .unwrap();
        ClientConfig::builder_with_provider(provider.into())
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth()
    }

    /// A TLS client that trusts only this authority.
    pub fn connector(&self, versions: &[&'static SupportedProtocolVersion]) -> TlsConnector {
        Arc::new(self.client(default_provider(), versions)).into()
    }
}

/// A certificate and its private key in temporary files.
pub struct Files {
    pub cert: File,
    pub key: File,
}

impl Files {
    pub fn new(name: &str, (cert, key): (String, String)) -> Files {
        Files {
            cert: File::new(&format!("{name}.cert.pem"), cert),
            key: File::new(&format!("{name}.key.pem"), key),
        }
    }

    /// A server that uses them, with some more options changed.
    async fn serve(&self, change: impl FnOnce(&mut Config)) -> TestServer {
        TestServer::with(|config| {
            config.serving.tls_cert = Some(self.cert.path());
            config.serving.tls_key = Some(self.key.path());
            change(config);
        })
        .await
    }

    fn replace(&self, (cert, key): (String, String)) {
        std::fs::write(self.cert.path(), cert).unwrap();
        std::fs::write(self.key.path(), key).unwrap();
    }
}

async fn connect(
    connector: &TlsConnector,
    address: std::net::SocketAddr,
) -> io::Result<TlsStream<TcpStream>> {
    shake_hands(connector, TcpStream::connect(address).await?).await
}

/// Does the TLS handshake of a client.
pub async fn shake_hands<S: AsyncRead + AsyncWrite + Unpin>(
    connector: &TlsConnector,
    stream: S,
) -> io::Result<TlsStream<S>> {
    let name = ServerName::try_from("localhost").unwrap();
    within_deadline("the TLS handshake", connector.connect(name, stream)).await
}

/// The server's certificate, as DER.
fn certificate(stream: &TlsStream<TcpStream>) -> Vec<u8> {
    stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

/// Whether a certificate, as DER, contains `name`.
fn is_for(certificate: &[u8], name: &str) -> bool {
    certificate
        .windows(name.len())
        .any(|window| window == name.as_bytes())
}

async fn join<S: AsyncRead + AsyncWrite + Unpin>(
    stream: TlsStream<S>,
    room: &str,
) -> Client<TlsStream<S>> {
    let url = format!("wss://localhost/room/{room}");
    let (socket, _) = within_deadline("the upgrade", tokio_tungstenite::client_async(url, stream))
        .await
        .unwrap();
    let mut client = Client::over(socket);
    client.id = client.hello().await["receiver"].as_str().unwrap().into();
    client
}

#[tokio::test]
async fn sessions_over_tls_1_2_and_1_3_share_a_room() {
    let authority = Authority::new();
    let files = Files::new("both", authority.issue("one.test"));
    let server = files.serve(|_| {}).await;
    let mut clients = Vec::new();
    for version in [&TLS12, &TLS13] {
        let stream = connect(&authority.connector(&[version]), server.address)
            .await
            .unwrap();
        assert_eq!(stream.get_ref().1.protocol_version(), Some(version.version));
        clients.push(join(stream, "tea").await);
    }
    let [a, b] = &mut clients[..] else {
        unreachable!()
    };
    a.expect_new(&b.id).await;
    // The messages fit in one TLS record or need several.
    for size in [0, 1, 1000, 16_384, 65_000] {
        let data = "x".repeat(size);
        b.send(json!({"type": "x", "receiver": a.id, "data": data}))
            .await;
        assert_eq!(a.next().await["data"], data);
    }
    let b = clients.pop().unwrap();
    let id = b.id.clone();
    b.leave().await;
    clients[0].expect_left(&id).await;
}

/// A server with TLS, and what its clients need to connect.
async fn server_and_connectors() -> (TestServer, [TlsConnector; 2], Files) {
    let authority = Authority::new();
    let files = Files::new("server", authority.issue("one.test"));
    let server = files.serve(|_| {}).await;
    let connectors = [&TLS12, &TLS13].map(|version| authority.connector(&[version]));
    (server, connectors, files)
}

#[tokio::test]
async fn records_that_come_in_pieces_are_read() {
    let (server, connectors, _files) = server_and_connectors().await;
    for connector in connectors {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (near, mut far) = duplex(7);
        let pieces = tokio::spawn(async move {
            let _ = copy_bidirectional_with_sizes(&mut far, &mut stream, 7, 7).await;
        });
        let stream = shake_hands(&connector, near).await.unwrap();
        let mut client = join(stream, "tea").await;
        let other = connect(&connector, server.address).await.unwrap();
        let mut other = join(other, "tea").await;
        client.expect_new(&other.id).await;
        for size in [0, 1000, 40_000] {
            let data = "x".repeat(size);
            let message = |to: &str| json!({"type": "x", "receiver": to, "data": data});
            client.send(message(&other.id)).await;
            assert_eq!(other.next().await["data"], data);
            other.send(message(&client.id)).await;
            assert_eq!(client.next().await["data"], data);
        }
        client.leave().await;
        pieces.await.unwrap();
    }
}

#[tokio::test]
async fn clients_that_come_again_resume_their_tls_sessions() {
    let (server, connectors, _files) = server_and_connectors().await;
    for connector in connectors {
        for expected in [HandshakeKind::Full, HandshakeKind::Resumed] {
            let stream = connect(&connector, server.address).await.unwrap();
            assert_eq!(stream.get_ref().1.handshake_kind(), Some(expected));
            // The ticket comes before the first message.
            join(stream, "tea").await.leave().await;
        }
    }
}

#[tokio::test]
async fn keys_change_while_messages_flow() {
    let (server, [_, connector], _files) = server_and_connectors().await;
    let stream = connect(&connector, server.address).await.unwrap();
    let mut client = join(stream, "tea").await;
    for number in 0..100 {
        // The server must change its own keys as well (RFC 8446, section 4.6.3).
        let session = client.socket().get_mut().get_mut().1;
        session.refresh_traffic_keys().unwrap();
        let message = json!({"type": "x", "receiver": client.id, "data": number});
        client.send(message).await;
        assert_eq!(client.next().await["data"], number);
    }
    client.leave().await;
}

#[tokio::test]
async fn a_forged_record_ends_its_session_alone() {
    let (server, [_, connector], _files) = server_and_connectors().await;
    let stream = connect(&connector, server.address).await.unwrap();
    let mut bystander = join(stream, "tea").await;
    let stream = connect(&connector, server.address).await.unwrap();
    let mut client = join(stream, "tea").await;
    bystander.expect_new(&client.id).await;
    let socket = client.socket().get_mut().get_mut().0;
    let forged = [&[0x17, 3, 3, 0, 32][..], &[7; 32]].concat();
    socket.write_all(&forged).await.unwrap();
    // The client learns why (RFC 8446, section 6.2).
    let error = client.next_frame().await.unwrap_err().to_string();
    assert!(error.contains("BadRecordMac"), "{error}");
    bystander.expect_left(&client.id).await;
    bystander.expect_quiet().await;
}

/// Encrypts a record as a client of TLS 1.3 does (RFC 8446, section 5.2), with zeros behind the content.
fn seal(keys: &mut ExtractedSecrets, kind: u8, content: &[u8], zeros: usize) -> Vec<u8> {
    let (sequence, ConnectionTrafficSecrets::Aes128Gcm { key, iv }) = &mut keys.tx else {
        panic!("the only cipher is AES-128-GCM");
    };
    let mut nonce: [u8; 12] = iv.as_ref().try_into().unwrap();
    let counter = sequence.to_be_bytes();
    nonce[4..]
        .iter_mut()
        .zip(counter)
        .for_each(|(n, c)| *n ^= c);
    *sequence += 1;
    let mut record = [content, &[kind], &vec![0; zeros]].concat();
    let length = (record.len() + 16) as u16;
    let header = [&[0x17, 3, 3][..], &length.to_be_bytes()].concat();
    let key = LessSafeKey::new(UnboundKey::new(&AES_128_GCM, key.as_ref()).unwrap());
    let nonce = Nonce::assume_unique_for_key(nonce);
    key.seal_in_place_append_tag(nonce, Aad::from(&header), &mut record)
        .unwrap();
    [header, record].concat()
}

#[tokio::test]
async fn records_that_keep_a_server_busy_end_their_session_alone() {
    const HANDSHAKE: u8 = 22;
    const DATA: u8 = 23;
    let authority = Authority::new();
    let files = Files::new("forged", authority.issue("one.test"));
    let server = files.serve(|_| {}).await;
    let mut provider = default_provider();
    provider.cipher_suites = vec![TLS13_AES_128_GCM_SHA256];
    let mut forging = authority.client(provider, &[&TLS13]);
    forging.enable_secret_extraction = true;
    let forging = TlsConnector::from(Arc::new(forging));
    let connector = authority.connector(&[&TLS13]);
    let stream = connect(&connector, server.address).await.unwrap();
    let mut bystander = join(stream, "tea").await;
    let pong = [0x8a, 0x80, 0, 0, 0, 0];
    // A part of a handshake message, then data; empty handshake records that come again and again.
    type Forge = fn(&mut ExtractedSecrets, &[u8]) -> Vec<u8>;
    let forgeries: [Forge; 2] = [
        |keys, pong| [seal(keys, HANDSHAKE, &[24], 0), seal(keys, DATA, pong, 0)].concat(),
        |keys, pong| {
            let mut records = Vec::new();
            for _ in 0..20 {
                records.extend(seal(keys, HANDSHAKE, &[], 8000));
                records.extend(seal(keys, DATA, pong, 0));
            }
            records
        },
    ];
    for forge in forgeries {
        let stream = connect(&forging, server.address).await.unwrap();
        let client = join(stream, "tea").await;
        bystander.expect_new(&client.id).await;
        let id = client.id.clone();
        let (mut stream, session) = client.into_stream().into_inner();
        let mut keys = session.dangerous_extract_secrets().unwrap();
        stream.write_all(&forge(&mut keys, &pong)).await.unwrap();
        bystander.expect_left(&id).await;
        bystander.expect_quiet().await;
    }
}

#[tokio::test]
async fn the_end_of_a_stream_of_events_is_noticed_at_once() {
    let authority = Authority::new();
    let files = Files::new("events", authority.issue("one.test"));
    // Nothing else tells it in time.
    let server = files
        .serve(|config| config.liveness.ping_seconds = 3600)
        .await;
    for says_goodbye in [true, false] {
        let mut stream = connect(&authority.connector(&[&TLS13]), server.address)
            .await
            .unwrap();
        let head = "GET /room/tea HTTP/1.1\r\nHost: test\r\nAccept: text/event-stream\r\n\r\n";
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut first = [0; 12];
        stream.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, b"HTTP/1.1 200");
        let before = server.count("anteroom_sessions_suspended");
        if says_goodbye {
            stream.shutdown().await.unwrap();
        }
        drop(stream);
        server.expect_suspended(before + 1).await;
    }
}

#[tokio::test]
async fn a_failed_tls_handshake_ends_in_time_and_disturbs_no_session() {
    let authority = Authority::new();
    let files = Files::new("none", authority.issue("one.test"));
    let server = files
        .serve(|config| config.limits.handshake_seconds = 1)
        .await;
    let connector = authority.connector(&[&TLS13]);
    let mut bystander = join(connect(&connector, server.address).await.unwrap(), "tea").await;
    for beginning in ["", "GET /room HTTP/1.1\r\n\r\n", "\u{16}\u{3}\u{1}"] {
        let mut raw = Raw::connect(&server).await;
        raw.write(beginning).await;
        // The answer is nothing or a TLS alert.
        assert!(raw.read_to_end().await.len() < 20, "{beginning:?}");
    }
    // After the TLS handshake, the request must arrive in time.
    let mut stream = connect(&connector, server.address).await.unwrap();
    let mut rest = Vec::new();
    let _ = within_deadline("the close", stream.read_to_end(&mut rest)).await;
    assert_eq!(rest, b"");
    // A client that trusts another authority does not connect.
    let distrusting = Authority::new().connector(&[&TLS13]);
    assert!(connect(&distrusting, server.address).await.is_err());
    bystander.expect_quiet().await;
}

#[tokio::test]
async fn a_certificate_reload_under_load_drops_no_connection() {
    let authority = Authority::new();
    let files = Files::new("swap", authority.issue("before.test"));
    let (cert, key) = (files.cert.path(), files.key.path());
    let text = |path: &PathBuf| path.to_str().unwrap().to_owned();
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_anteroom"));
    command
        .args([
            "--listen",
            "127.0.0.1:0",
            "--tls-cert",
            &text(&cert),
            "--tls-key",
            &text(&key),
        ])
        .env_remove("RUST_LOG")
        .stderr(std::process::Stdio::piped());
    let mut program = Program::run(command).await;
    let mut log = program.log();
    let connector = authority.connector(&[&TLS12, &TLS13]);
    let first = connect(&connector, program.address).await.unwrap();
    assert!(is_for(&certificate(&first), "before.test"));
    let mut alice = join(first, "tea").await;

    // Clients join and leave all the time, and Alice sends messages all the time.
    let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
    let address = program.address;
    let joining = {
        let connector = connector.clone();
        tokio::spawn(async move {
            let mut joined = 0;
            while stopped.try_recv().is_err() {
                let stream = connect(&connector, address)
                    .await
                    .expect("every client is served");
                join(stream, "crowd").await.leave().await;
                joined += 1;
            }
            joined
        })
    };
    let mut answered = 0;
    let mut ping_50_times = async || {
        for _ in 0..50 {
            alice
                .send(json!({"type": "ping", "receiver": "server", "data": answered}))
                .await;
            assert_eq!(alice.next().await["data"], answered);
            answered += 1;
        }
    };
    ping_50_times().await;
    files.replace(authority.issue("after.test"));
    program.signal("HUP").await;
    log.find("reloaded the TLS certificate").await;
    ping_50_times().await;
    // A new connector for each connection: a client that resumes a TLS session gets no certificate.
    let new_connector = || authority.connector(&[&TLS12, &TLS13]);
    let second = connect(&new_connector(), program.address).await.unwrap();
    assert!(is_for(&certificate(&second), "after.test"));

    // Unusable files change nothing: no PEM, no key, the key of another certificate, or an issuer that is
    // not read because an end of line is missing.
    let (cert, _) = authority.issue("wrong.test");
    let (_, key) = authority.issue("wrong.test");
    let (own_cert, own_key) = authority.issue("wrong.test");
    let joined = format!("{}{}", own_cert.trim_end(), authority.pem());
    for (cert, key) in [
        (joined, own_key),
        (cert.clone(), key),
        (cert, String::new()),
        ("nonsense".into(), "nonsense".into()),
    ] {
        files.replace((cert, key));
        program.signal("HUP").await;
        log.find("cannot reload the TLS certificate, the old one stays: ")
            .await;
        ping_50_times().await;
        let third = connect(&new_connector(), program.address).await.unwrap();
        assert!(is_for(&certificate(&third), "after.test"));
    }
    stop.send(()).unwrap();
    assert!(within_deadline("the joins", joining).await.unwrap() > 0);
    alice.expect_quiet().await;
    program.signal("TERM").await;
    assert_eq!(alice.expect_close().await.0, 1012);
    drop(alice);
    assert_eq!(program.exit_code().await, Some(0));
}

#[tokio::test]
async fn unusable_certificates_are_an_error_at_the_start() {
    let authority = Authority::new();
    let files = Files::new("start", authority.issue("one.test"));
    let other = Files::new("other", authority.issue("one.test"));
    let (cert, key) = authority.issue("one.test");
    let issuer = authority.pem();
    let body = |pem: &str| pem.lines().skip(1).collect::<Vec<_>>().join("\n");
    let relabelled = |pem: &str, label: &str| pem.replace("CERTIFICATE", label);
    let encrypted = key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
    let broken = "-----BEGIN CERTIFICATE-----\nQUJD\n-----END CERTIFICATE-----\n";
    let alone = "must stand alone on their lines";
    let convert = "which is not read: convert it with openssl x509";
    // Text before and between the certificates, and a key in the same file, are allowed.
    let ec = "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n";
    let whole = format!("subject=one.test\n{cert}\nissuer=test -- x\n{issuer}{key}");
    for (cert, key, error) in [
        (whole.clone(), format!("{ec}{key}"), None),
        (whole.replace('\n', "\r\n"), whole.clone(), None),
        (cert.clone() + cert.trim_end(), key.clone(), None),
        (
            format!("{}{issuer}", cert.trim_end()),
            key.clone(),
            Some(alone),
        ),
        (format!("{cert} {issuer}"), key.clone(), Some(alone)),
        (
            format!("{cert}{}", body(&issuer)),
            key.clone(),
            Some("without its beginning"),
        ),
        (
            format!("{cert}{}", &issuer[..100]),
            key.clone(),
            Some("has no end of"),
        ),
        (
            cert.clone() + &relabelled(&issuer, "TRUSTED CERTIFICATE"),
            key.clone(),
            Some(convert),
        ),
        (
            cert.clone() + &relabelled(&issuer, "X509 CERTIFICATE"),
            key.clone(),
            Some(convert),
        ),
        (
            cert.clone() + &relabelled(&issuer, "X509 CRL"),
            key.clone(),
            Some("remove it"),
        ),
        (
            cert.clone() + broken,
            key.clone(),
            Some("has an invalid certificate"),
        ),
        (cert.clone(), key.clone() + &key, Some("has 2 private keys")),
        (cert.clone(), key.trim_end().to_owned() + &key, Some(alone)),
        (cert.clone(), encrypted, Some("openssl pkey")),
    ] {
        let files = Files::new("strict", (cert.clone(), key.clone()));
        let mut config = anteroom::Config::default();
        config.serving.listen = ([127, 0, 0, 1], 0).into();
        config.serving.tls_cert = Some(files.cert.path());
        config.serving.tls_key = Some(files.key.path());
        let actual = anteroom::Server::bind(config)
            .err()
            .map(|error| error.to_string());
        match (actual, error) {
            (None, None) => {}
            (Some(actual), Some(error)) => {
                assert!(actual.contains(error), "{actual}");
                assert!(actual.contains("strict"), "{actual}");
                let base64 = key.lines().nth(1).unwrap();
                assert!(!actual.contains(base64), "{actual}");
            }
            (actual, error) => panic!("{cert}{key}: {actual:?}, not {error:?}"),
        }
    }
    for (ca, error) in [
        (issuer.clone() + &issuer, None),
        (issuer.trim_end().to_owned() + &issuer, Some(alone)),
        (relabelled(&issuer, "TRUSTED CERTIFICATE"), Some(convert)),
        (issuer.clone() + broken, Some("has an invalid certificate")),
        (String::new(), Some("has no PEM certificate")),
    ] {
        let file = File::new("strict-ca.pem", ca);
        let mut config = anteroom::Config::default();
        config.cluster.servers = vec!["nats://127.0.0.1:1".parse().unwrap()];
        config.cluster.ca_file = Some(file.path());
        let actual = anteroom::Anteroom::new(config)
            .err()
            .map(|error| error.to_string());
        let is_expected = match (&actual, error) {
            (Some(actual), Some(error)) => {
                actual.contains(error) && actual.contains("strict-ca.pem")
            }
            (actual, error) => actual.is_none() && error.is_none(),
        };
        assert!(is_expected, "{actual:?}, not {error:?}");
    }
    for (cert, key, message) in [
        (
            files.cert.path(),
            other.key.path(),
            "does not belong to the certificate in ",
        ),
        (files.key.path(), files.key.path(), "has no PEM certificate"),
        (
            files.cert.path(),
            files.cert.path(),
            "has no PEM private key",
        ),
        (
            "/no/such/file".into(),
            files.key.path(),
            "cannot read /no/such/file: ",
        ),
    ] {
        let mut config = anteroom::Config::default();
        config.serving.listen = ([127, 0, 0, 1], 0).into();
        config.serving.tls_cert = Some(cert);
        config.serving.tls_key = Some(key);
        let error = anteroom::Server::bind(config).err().unwrap().to_string();
        assert!(error.contains(message), "{error}");
    }
}
