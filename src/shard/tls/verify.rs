//! The check of a server's certificate: rustls' own, plus three things that it does not offer.
//!
//! It may pass over the *name* (`verifyHostname: no`), never over the chain, the dates or the proof that the server
//! holds the key. It takes a server whose very certificate is in the CA file even if that is marked as an authority's:
//! `openssl req -x509` makes such ones, qdrouterd 1.19 takes them, and the operator could not say more plainly whom to
//! trust. And it keeps what the server presented, because an error alone (`UnknownIssuer`) does not tell an operator
//! which authority is missing.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, SignatureScheme};

use super::certificate::CertificateFacts;

/// Whether the certificate must name the host that was dialed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NameCheck {
    Required,
    Skipped,
}

/// What of the certificate chain that a server presented explains why it was refused.
#[derive(Debug)]
pub(super) struct Presented {
    /// The server's own certificate, if it could be read.
    pub(super) leaf: Option<CertificateFacts>,
    /// Who signed the last certificate of the chain: the authority that we should know.
    pub(super) top_issuer: Option<String>,
}

impl Presented {
    fn new(leaf: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>]) -> Self {
        let leaf_facts = CertificateFacts::read(leaf);
        let top = intermediates
            .last()
            .map_or_else(|| leaf_facts.clone(), |top| CertificateFacts::read(top));
        Presented {
            top_issuer: top.map(|top| top.issuer),
            leaf: leaf_facts,
        }
    }

    /// Whether the server signed its certificate itself.
    pub(super) fn is_self_signed(&self) -> bool {
        self.leaf
            .as_ref()
            .is_some_and(|leaf| leaf.subject == leaf.issuer && self.top_issuer.as_ref() == Some(&leaf.issuer))
    }
}

/// See the module's contract. One for each handshake.
#[derive(Debug)]
pub(super) struct ServerVerifier {
    inner: Arc<WebPkiServerVerifier>,
    name_check: NameCheck,
    /// The certificates of the configured CA file.
    configured: Vec<CertificateDer<'static>>,
    presented: OnceLock<Vec<CertificateDer<'static>>>,
    refused: OnceLock<Presented>,
}

impl ServerVerifier {
    pub(super) fn new(
        inner: Arc<WebPkiServerVerifier>,
        name_check: NameCheck,
        configured: Vec<CertificateDer<'static>>,
    ) -> Self {
        ServerVerifier {
            inner,
            name_check,
            configured,
            presented: OnceLock::new(),
            refused: OnceLock::new(),
        }
    }

    /// The chain that was presented, the server's own certificate first.
    pub(super) fn presented(&self) -> &[CertificateDer<'static>] {
        self.presented.get().map(Vec::as_slice).unwrap_or_default()
    }

    /// What was presented, if it was refused.
    pub(super) fn refused(&self) -> Option<&Presented> {
        self.refused.get()
    }

    /// Checks a certificate that needs no chain because it is itself configured: its dates and its name.
    fn verify_configured(
        &self,
        certificate: &CertificateDer<'_>,
        server_name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let facts = CertificateFacts::read(certificate).ok_or(CertificateError::BadEncoding)?;
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(now.as_secs());
        if facts.is_expired(time) {
            return Err(CertificateError::Expired.into());
        }
        if facts.is_premature(time) {
            return Err(CertificateError::NotValidYet.into());
        }
        verify_server_name(&ParsedCertificate::try_from(certificate)?, server_name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn judge(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verdict =
            self.inner
                .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        // "An authority's certificate used as a server's" is one of those that rustls has no variant for.
        let verdict = match verdict {
            Err(Error::InvalidCertificate(CertificateError::Other(_)))
                if self
                    .configured
                    .iter()
                    .any(|certificate| certificate == end_entity) =>
            {
                self.verify_configured(end_entity, server_name, now)
            }
            verdict => verdict,
        };
        match verdict {
            // The name is compared last, when chain and dates have already passed; so a complaint about the name means
            // that there is no other.
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if self.name_check == NameCheck::Skipped => Ok(ServerCertVerified::assertion()),
            verdict => verdict,
        }
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.presented.get_or_init(|| {
            let chain = std::iter::once(end_entity).chain(intermediates);
            chain
                .map(|certificate| certificate.clone().into_owned())
                .collect()
        });
        let verdict = self.judge(end_entity, intermediates, server_name, ocsp_response, now);
        if verdict.is_err() {
            self.refused
                .get_or_init(|| Presented::new(end_entity, intermediates));
        }
        verdict
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
