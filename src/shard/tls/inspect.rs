//! What a handshake was about, for those who look into it: whom we trust, who we are, and whom we met.

use rustls::client::verify_server_name;
use rustls::server::ParsedCertificate;

use super::certificate::CertificateFacts;
use super::{TlsClient, TlsSettings, TlsStream};

/// Most certificates of one chain that are described.
const CHAIN_SHOWN: usize = 8;

impl TlsClient {
    /// What it was made from.
    pub fn settings(&self) -> &TlsSettings {
        &self.settings
    }

    /// What is in the configured CA file; empty for the built-in authorities.
    pub fn authorities(&self) -> &[CertificateFacts] {
        &self.authorities
    }

    /// Our own certificate, if one is configured and can be described.
    pub fn own_certificate(&self) -> Option<CertificateFacts> {
        CertificateFacts::read(self.own_chain.first()?)
    }

    /// The chain that the server has presented, its own certificate first, whatever became of the handshake. `None`
    /// stands for a certificate that cannot be described.
    pub fn presented(&self) -> Vec<Option<CertificateFacts>> {
        let chain = self.verifier.presented().iter().take(CHAIN_SHOWN);
        chain.map(|der| CertificateFacts::read(der)).collect()
    }

    /// Whether the server's certificate is for the host that we want, whether that is demanded or not; `None` as long as
    /// there is none.
    pub fn fits_name(&self) -> Option<bool> {
        let certificate = ParsedCertificate::try_from(self.verifier.presented().first()?).ok()?;
        Some(verify_server_name(&certificate, &self.server_name).is_ok())
    }
}

/// The name of the cipher suite that was agreed on.
pub fn negotiated_cipher(stream: &TlsStream) -> Option<String> {
    let suite = stream.get_ref().1.negotiated_cipher_suite()?;
    Some(format!("{:?}", suite.suite()))
}
