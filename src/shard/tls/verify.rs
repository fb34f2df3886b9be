//! The check of a server's certificate: rustls' own, plus two things that it does not offer.
//!
//! It may pass over the *name* (`verifyHostname: no`), never over the chain, the dates or the proof that the server
//! holds the key. And it keeps what the server presented, because an error alone (`UnknownIssuer`) does not tell an
//! operator which authority is missing.

use std::sync::{Arc, OnceLock};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, Error, SignatureScheme};

use super::certificate::CertificateFacts;

/// Whether the certificate must name the host that was dialed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NameCheck {
    Required,
    Skipped,
}

/// The certificate chain that a server presented and that was refused.
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
    refused: OnceLock<Presented>,
}

impl ServerVerifier {
    pub(super) fn new(inner: Arc<WebPkiServerVerifier>, name_check: NameCheck) -> Self {
        ServerVerifier {
            inner,
            name_check,
            refused: OnceLock::new(),
        }
    }

    /// What was presented, if it was refused.
    pub(super) fn refused(&self) -> Option<&Presented> {
        self.refused.get()
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
        let verdict =
            self.inner
                .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        match verdict {
            // rustls compares the name last, when chain and dates have already passed; so a complaint about the name
            // means that there is no other.
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if self.name_check == NameCheck::Skipped => Ok(ServerCertVerified::assertion()),
            Err(error) => {
                self.refused
                    .get_or_init(|| Presented::new(end_entity, intermediates));
                Err(error)
            }
            Ok(verified) => Ok(verified),
        }
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
