//! Certificates and servers made for the tests of the shard.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, Issuer, KeyPair, SanType};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

/// An authority that signs certificates.
pub(crate) struct Authority {
    pub(crate) name: &'static str,
    pub(crate) issuer: Issuer<'static, KeyPair>,
    pub(crate) certificate: rcgen::Certificate,
}

/// A certificate and its key.
pub(crate) struct Identity {
    pub(crate) certificate: rcgen::Certificate,
    pub(crate) key: KeyPair,
}

impl Authority {
    pub(crate) fn new(name: &'static str) -> Self {
        Authority::valid_until(name, 2099)
    }

    pub(crate) fn valid_until(name: &'static str, year: i32) -> Self {
        let mut params = named(name, year);
        params.is_ca = rcgen::IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        Authority {
            name,
            issuer: Issuer::new(params, key),
            certificate,
        }
    }

    pub(crate) fn issue(&self, params: CertificateParams) -> Identity {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Identity { certificate, key }
    }

    /// A certificate for the loopback, by name and by address.
    pub(crate) fn issue_for_loopback(&self) -> Identity {
        self.issue(for_hosts(&["localhost", "127.0.0.1"], 2099))
    }

    pub(crate) fn write(&self, directory: &TempDir) -> PathBuf {
        write(directory, "ca.pem", &self.certificate.pem())
    }
}

impl Identity {
    pub(crate) fn chain(&self) -> Vec<CertificateDer<'static>> {
        vec![self.certificate.der().clone()]
    }

    pub(crate) fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(self.key.serialize_der().into())
    }

    pub(crate) fn server(&self, versions: &[&'static rustls::SupportedProtocolVersion]) -> ServerConfig {
        ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(versions)
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(self.chain(), self.private_key())
            .unwrap()
    }

    /// A server that shows this certificate, but has another key.
    pub(crate) fn impostor(&self, version: &'static rustls::SupportedProtocolVersion) -> ServerConfig {
        let other = PrivateKeyDer::Pkcs8(KeyPair::generate().unwrap().serialize_der().into());
        let key = provider().key_provider.load_private_key(other).unwrap();
        ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[version])
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(Impostor(Arc::new(CertifiedKey::new(self.chain(), key)))))
    }
}

/// A certificate that is its own authority.
pub(crate) fn self_signed(mut params: CertificateParams, is_ca: rcgen::IsCa) -> Identity {
    params.is_ca = is_ca;
    let key = KeyPair::generate().unwrap();
    Identity {
        certificate: params.self_signed(&key).unwrap(),
        key,
    }
}

/// Shows one certificate and signs with another's key.
#[derive(Debug)]
struct Impostor(Arc<CertifiedKey>);

impl ResolvesServerCert for Impostor {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

pub(crate) fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

pub(crate) fn named(name: &str, last_year: i32) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = rcgen::date_time_ymd(2001, 1, 1);
    params.not_after = rcgen::date_time_ymd(last_year, 6, 30);
    params
}

pub(crate) fn for_hosts(hosts: &[&str], last_year: i32) -> CertificateParams {
    let mut params = named("a server", last_year);
    params.subject_alt_names = hosts
        .iter()
        .map(|host| match host.parse() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName((*host).try_into().unwrap()),
        })
        .collect();
    params
}

pub(crate) fn write(directory: &TempDir, name: &str, text: &str) -> PathBuf {
    let path = directory.path().join(name);
    fs::write(&path, text).unwrap();
    path
}

/// A TLS server that says `hello` to one client, and reports how it went.
pub(crate) async fn serve(config: ServerConfig) -> (SocketAddr, JoinHandle<io::Result<Option<String>>>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(async move {
        let (tcp, _) = listener.accept().await?;
        let mut stream = TlsAcceptor::from(Arc::new(config)).accept(tcp).await?;
        let sni = stream.get_ref().1.server_name().map(str::to_owned);
        stream.write_all(b"hello").await?;
        stream.shutdown().await?;
        Ok(sni)
    });
    (address, serving)
}

/// A server that sends `bytes` to one client whatever it says, and hangs up.
pub(crate) async fn serve_bytes(bytes: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut tcp, _) = listener.accept().await?;
        let mut hello = [0; 4096];
        let _ = tcp.read(&mut hello).await?;
        tcp.write_all(bytes).await?;
        tcp.shutdown().await
    });
    address
}

/// The server side of mutual TLS.
pub(crate) fn demanding(
    identity: &Identity,
    clients: CertificateDer<'static>,
    version: &'static rustls::SupportedProtocolVersion,
) -> ServerConfig {
    let mut roots = RootCertStore::empty();
    roots.add(clients).unwrap();
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
        .build()
        .unwrap();
    ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[version])
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(identity.chain(), identity.private_key())
        .unwrap()
}
