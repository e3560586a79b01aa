//! TLS: who is served, by which certificate, and what becomes of who does not shake hands.

use std::{io, path::PathBuf, sync::Arc};

use rcgen::{CertificateParams, CertifiedIssuer, KeyPair};
use serde_json::json;
use tokio::{io::AsyncReadExt, net::TcpStream};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        ClientConfig, RootCertStore, SupportedProtocolVersion,
        crypto::aws_lc_rs::default_provider,
        pki_types::{CertificateDer, ServerName, pem::PemObject},
        version::{TLS12, TLS13},
    },
};

use crate::support::{Client, File, Program, Raw, TestServer, within_deadline};

/// A certificate authority of the test's own.
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

    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate for localhost with the last of the names given, and its key, both PEM.
    pub fn issue(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let names = [
            "localhost".to_owned(),
            "127.0.0.1".to_owned(),
            name.to_owned(),
        ];
        let params = CertificateParams::new(names).unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    /// A client that trusts nobody else.
    pub fn connector(&self, versions: &[&'static SupportedProtocolVersion]) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(self.pem().as_bytes()).unwrap())
            .unwrap();
        let config = ClientConfig::builder_with_provider(default_provider().into())
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        TlsConnector::from(Arc::new(config))
    }
}

/// A certificate and its key in files.
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

pub async fn shake_hands(
    connector: &TlsConnector,
    stream: TcpStream,
) -> io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from("localhost").unwrap();
    within_deadline("the TLS handshake", connector.connect(name, stream)).await
}

/// The names in the certificate that the server shows.
fn shown(stream: &TlsStream<TcpStream>) -> Vec<u8> {
    stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

fn is_for(certificate: &[u8], name: &str) -> bool {
    certificate
        .windows(name.len())
        .any(|window| window == name.as_bytes())
}

async fn join(stream: TlsStream<TcpStream>, room: &str) -> Client<TlsStream<TcpStream>> {
    let url = format!("wss://localhost/room/{room}");
    let (socket, _) = within_deadline("the upgrade", tokio_tungstenite::client_async(url, stream))
        .await
        .unwrap();
    let mut client = Client::over(socket);
    client.id = client.hello().await["receiver"].as_str().unwrap().into();
    client
}

#[tokio::test]
async fn sessions_are_served_by_both_versions_and_meet_those_without() {
    let authority = Authority::new();
    let files = Files::new("both", authority.issue("one.test"));
    let server = TestServer::with(|config| {
        config.serving.tls_cert = Some(files.cert.path());
        config.serving.tls_key = Some(files.key.path());
    })
    .await;
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
    // Messages of all sizes, in records of their own and across several.
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

#[tokio::test]
async fn what_is_no_handshake_ends_in_time_and_hurts_nobody() {
    let authority = Authority::new();
    let files = Files::new("none", authority.issue("one.test"));
    let server = TestServer::with(|config| {
        config.serving.tls_cert = Some(files.cert.path());
        config.serving.tls_key = Some(files.key.path());
        config.limits.handshake_seconds = 1;
    })
    .await;
    let connector = authority.connector(&[&TLS13]);
    let mut bystander = join(connect(&connector, server.address).await.unwrap(), "tea").await;
    for beginning in ["", "GET /room HTTP/1.1\r\n\r\n", "\u{16}\u{3}\u{1}"] {
        let mut raw = Raw::connect(&server).await;
        raw.write(beginning).await;
        // Perhaps it gets an alert.
        assert!(raw.read_to_end().await.len() < 20, "{beginning:?}");
    }
    // Behind the handshake, the request has its time, too.
    let mut stream = connect(&connector, server.address).await.unwrap();
    let mut rest = Vec::new();
    let _ = within_deadline("the end", stream.read_to_end(&mut rest)).await;
    assert_eq!(rest, b"");
    // Who trusts others goes away.
    let stranger = Authority::new().connector(&[&TLS13]);
    assert!(connect(&stranger, server.address).await.is_err());
    bystander.expect_quiet().await;
}

#[tokio::test]
async fn a_certificate_is_changed_under_load_without_dropping_anyone() {
    let authority = Authority::new();
    let files = Files::new("swap", authority.issue("before.test"));
    let (cert, key) = (files.cert.path(), files.key.path());
    let words = |path: &PathBuf| path.to_str().unwrap().to_owned();
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_anteroom"));
    command
        .args([
            "--listen",
            "127.0.0.1:0",
            "--tls-cert",
            &words(&cert),
            "--tls-key",
            &words(&key),
        ])
        .env_remove("RUST_LOG")
        .stderr(std::process::Stdio::piped());
    let mut program = Program::run(command).await;
    let stderr = program.child.stderr.take().unwrap();
    let mut log = tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(stderr));
    let mut said = async |what: &str| {
        within_deadline(what, async {
            while !log.next_line().await.unwrap().unwrap().contains(what) {}
        })
        .await;
    };
    let connector = authority.connector(&[&TLS12, &TLS13]);
    let first = connect(&connector, program.address).await.unwrap();
    assert!(is_for(&shown(&first), "before.test"));
    let mut alice = join(first, "tea").await;

    // Somebody comes all the time, and two talk all the time.
    let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
    let address = program.address;
    let coming = {
        let connector = connector.clone();
        tokio::spawn(async move {
            let mut came = 0;
            while stopped.try_recv().is_err() {
                let stream = connect(&connector, address)
                    .await
                    .expect("everyone is served");
                join(stream, "crowd").await.leave().await;
                came += 1;
            }
            came
        })
    };
    let mut talked = 0;
    let mut talk = async || {
        for _ in 0..50 {
            alice
                .send(json!({"type": "ping", "receiver": "server", "data": talked}))
                .await;
            assert_eq!(alice.next().await["data"], talked);
            talked += 1;
        }
    };
    talk().await;
    files.replace(authority.issue("after.test"));
    program.signal("HUP").await;
    said("reloaded the TLS certificate").await;
    talk().await;
    // Who has been here before may go on without a look at the certificate.
    let newcomer = || authority.connector(&[&TLS12, &TLS13]);
    let second = connect(&newcomer(), program.address).await.unwrap();
    assert!(is_for(&shown(&second), "after.test"));

    // What cannot be used changes nothing: no PEM, no key, the key of another, or an issuer that is not
    // read because an end of line is missing.
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
        said("cannot reload the TLS certificate, the old one stays: ").await;
        talk().await;
        let third = connect(&newcomer(), program.address).await.unwrap();
        assert!(is_for(&shown(&third), "after.test"));
    }
    stop.send(()).unwrap();
    assert!(within_deadline("the crowd", coming).await.unwrap() > 0);
    alice.expect_quiet().await;
    program.signal("TERM").await;
    assert_eq!(alice.expect_close().await.0, 1012);
    drop(alice);
    assert_eq!(program.exit_code().await, Some(0));
}

#[tokio::test]
async fn certificates_that_cannot_be_used_are_refused_at_the_start() {
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
    // A text before and between them, and the key beside them, are understood.
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
        let said = anteroom::Server::bind(config)
            .err()
            .map(|said| said.to_string());
        match (said, error) {
            (None, None) => {}
            (Some(said), Some(error)) => {
                assert!(said.contains(error), "{said}");
                assert!(said.contains("strict"), "{said}");
                let base64 = key.lines().nth(1).unwrap();
                assert!(!said.contains(base64), "{said}");
            }
            (said, error) => panic!("{cert}{key}: {said:?}, not {error:?}"),
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
        let said = anteroom::Anteroom::new(config)
            .err()
            .map(|said| said.to_string());
        let is_so = match (&said, error) {
            (Some(said), Some(error)) => said.contains(error) && said.contains("strict-ca.pem"),
            (said, error) => said.is_none() && error.is_none(),
        };
        assert!(is_so, "{said:?}, not {error:?}");
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
