//! A certificate authority of our own, made afresh for each run, and the TLS settings of both ends.

use std::sync::Arc;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use super::Failure;

/// When a certificate is valid, seen from today.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Validity {
    Current,
    /// Begins in decades: what a clock that was never set makes of any.
    Future,
    /// Ended years ago, as the article's CA file did.
    Expired,
    /// Begins at this time, seconds since 1970.
    From(u64),
}

impl Validity {
    fn apply(self, params: &mut CertificateParams) {
        let (from, to) = match self {
            Self::Current => (date_time_ymd(2020, 8, 22), 2099),
            Self::Expired => (date_time_ymd(1998, 8, 22), 2018),
            Self::Future => (date_time_ymd(2090, 8, 22), 2099),
            Self::From(seconds) => (date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds), 2099),
        };
        params.not_before = from;
        params.not_after = date_time_ymd(to, 8, 22);
    }
}

/// How much a server wants one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ClientCertificate {
    Asked,
    Demanded,
}

/// A certificate authority that servers and clients of one test share.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    /// A self-signed root called `name`.
    pub(crate) fn new(name: &str, validity: Validity) -> Result<Self, Failure> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        validity.apply(&mut params);
        Ok(Self {
            issuer: CertifiedIssuer::self_signed(params, KeyPair::generate()?)?,
        })
    }

    /// The root as a PEM file's text.
    pub(crate) fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// A server certificate for `names`.
    pub(crate) fn issue(&self, names: &[&str], validity: Validity) -> Result<Identity, Failure> {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        validity.apply(&mut params);
        self.sign(&params)
    }

    /// A certificate of the device called `name`.
    pub(crate) fn issue_device(&self, name: &str, validity: Validity) -> Result<Identity, Failure> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        validity.apply(&mut params);
        self.sign(&params)
    }

    fn sign(&self, params: &CertificateParams) -> Result<Identity, Failure> {
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Identity {
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
            certificate: certificate.der().clone(),
            key: key.serialize_der(),
        })
    }

    fn roots(&self) -> Result<RootCertStore, Failure> {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone())?;
        Ok(roots)
    }

    /// TLS settings of a server that presents `identity`.
    ///
    /// IoT Hub asks for a client certificate and does without one: so does this.
    pub(crate) fn server_config(&self, identity: &Identity) -> Result<Arc<ServerConfig>, Failure> {
        self.server_config_of(identity, ClientCertificate::Asked)
    }

    /// The same, of a server that does not do without a client certificate.
    pub(crate) fn demanding_config(&self, identity: &Identity) -> Result<Arc<ServerConfig>, Failure> {
        self.server_config_of(identity, ClientCertificate::Demanded)
    }

    fn server_config_of(
        &self,
        identity: &Identity,
        client: ClientCertificate,
    ) -> Result<Arc<ServerConfig>, Failure> {
        let provider = Arc::new(ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(self.roots()?), provider.clone());
        let verifier = match client {
            ClientCertificate::Asked => verifier.allow_unauthenticated(),
            ClientCertificate::Demanded => verifier,
        };
        let verifier = verifier.build()?;
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![identity.certificate.clone()], identity.private_key())?;
        Ok(Arc::new(config))
    }

    /// TLS settings of a client that trusts this authority alone.
    pub(crate) fn client_config(&self) -> Result<Arc<ClientConfig>, Failure> {
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(self.roots()?)
            .with_no_client_auth();
        Ok(Arc::new(config))
    }

    /// The same, of a client that has a certificate of its own.
    pub(crate) fn client_config_of(&self, identity: &Identity) -> Result<Arc<ClientConfig>, Failure> {
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(self.roots()?)
            .with_client_auth_cert(vec![identity.certificate.clone()], identity.private_key())?;
        Ok(Arc::new(config))
    }
}

/// A certificate and its key.
pub(crate) struct Identity {
    pub(crate) certificate_pem: String,
    pub(crate) key_pem: String,
    pub(crate) certificate: CertificateDer<'static>,
    key: Vec<u8>,
}

impl Identity {
    fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.clone()))
    }
}
