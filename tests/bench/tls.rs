//! The cost of TLS, compared to the other servers with TLS.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rcgen::{CertificateParams, KeyPair, SanType};
use tokio_rustls::rustls::{
    ClientConfig, RootCertStore,
    client::Resumption,
    crypto::{
        CryptoProvider,
        aws_lc_rs::{cipher_suite::TLS13_AES_128_GCM_SHA256, default_provider, kx_group::X25519},
    },
    version::TLS13,
};

use crate::{
    Plan,
    report::Table,
    servers::{Kind, Server},
    take_a_core, works,
};

/// The servers that are compared.
const KINDS: [Kind; 3] = [Kind::Anteroom, Kind::Bun, Kind::Ws];

/// What the servers and their clients need for TLS. All of them use TLS 1.3 with AES-128-GCM and X25519, as browsers do,
/// and certificates of P-256. Clients do not resume TLS sessions.
pub struct Identity {
    pub certificate: PathBuf,
    pub key: PathBuf,
    pub client: Arc<ClientConfig>,
}

impl Identity {
    /// Writes a new certificate and its key to a folder.
    fn new(folder: &Path) -> io::Result<Identity> {
        let mut parameters = CertificateParams::default();
        parameters.subject_alt_names = vec![SanType::IpAddress([127, 0, 0, 1].into())];
        let key = KeyPair::generate().map_err(io::Error::other)?;
        let certificate = parameters.self_signed(&key).map_err(io::Error::other)?;
        let mut roots = RootCertStore::empty();
        let root = certificate.der().clone();
        roots.add(root).map_err(io::Error::other)?;
        let provider = CryptoProvider {
            cipher_suites: vec![TLS13_AES_128_GCM_SHA256],
            kx_groups: vec![X25519],
            ..default_provider()
        };
        let mut client = ClientConfig::builder_with_provider(provider.into())
            .with_protocol_versions(&[&TLS13])
            .map_err(io::Error::other)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        client.resumption = Resumption::disabled();
        let (cert_file, key_file) = (folder.join("tls-cert.pem"), folder.join("tls-key.pem"));
        fs::write(&cert_file, certificate.pem())?;
        fs::write(&key_file, key.serialize_pem())?;
        Ok(Identity {
            certificate: cert_file,
            key: key_file,
            client: client.into(),
        })
    }
}

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
