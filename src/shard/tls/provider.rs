//! The cryptography under TLS, and which cipher suites come first.
//!
//! AES-GCM without instructions for it is several times slower than ChaCha20-Poly1305, and a Raspberry Pi before the
//! fifth has none: there ChaCha20 goes first in what we offer, and is what we pick of what a device offers.

use rustls::crypto::{CryptoProvider, ring};
use rustls::{CipherSuite, SupportedCipherSuite};

/// The provider of every connection, made for this processor.
pub(super) fn provider() -> CryptoProvider {
    provider_for(has_aes())
}

/// Whether we, as a server, choose the cipher suite; otherwise the device's order counts, which knows its processor.
pub(super) fn ignores_client_order() -> bool {
    !has_aes()
}

fn provider_for(has_aes: bool) -> CryptoProvider {
    let mut provider = ring::default_provider();
    if !has_aes {
        // Stable: apart from that, the order of rustls stays.
        provider.cipher_suites.sort_by_key(|suite| !is_chacha20(suite));
    }
    provider
}

fn is_chacha20(suite: &SupportedCipherSuite) -> bool {
    matches!(
        suite.suite(),
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256
            | CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256
            | CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256
    )
}

/// Whether this processor has instructions for both halves of AES-GCM: the cipher and the multiplication.
#[cfg(target_arch = "aarch64")]
fn has_aes() -> bool {
    std::arch::is_aarch64_feature_detected!("aes") && std::arch::is_aarch64_feature_detected!("pmull")
}

/// Whether this processor has instructions for both halves of AES-GCM: the cipher and the multiplication.
#[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
fn has_aes() -> bool {
    std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq")
}

/// Whether this processor has instructions for AES: not known, and not so on 32-bit boards.
#[cfg(not(any(target_arch = "aarch64", target_arch = "x86", target_arch = "x86_64")))]
fn has_aes() -> bool {
    false
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection, SupportedProtocolVersion};

    use super::*;

    fn suites(has_aes: bool) -> Vec<CipherSuite> {
        let provider = provider_for(has_aes);
        provider
            .cipher_suites
            .iter()
            .map(SupportedCipherSuite::suite)
            .collect()
    }

    /// The suite that both ends agree on, when ours is one of them.
    fn agreed(
        client: CryptoProvider,
        server: CryptoProvider,
        ignore_client_order: bool,
        version: &'static SupportedProtocolVersion,
    ) -> CipherSuite {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["hub.test".to_owned()]).unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(certificate.der().clone()).unwrap();
        let client = ClientConfig::builder_with_provider(Arc::new(client))
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut config = ServerConfig::builder_with_provider(Arc::new(server))
            .with_protocol_versions(&[version])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key.into())
            .unwrap();
        config.ignore_client_order = ignore_client_order;

        let mut client = ClientConnection::new(Arc::new(client), "hub.test".try_into().unwrap()).unwrap();
        let mut server = ServerConnection::new(Arc::new(config)).unwrap();
        while client.is_handshaking() || server.is_handshaking() {
            let mut wire = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut wire).unwrap();
            }
            server.read_tls(&mut wire.as_slice()).unwrap();
            server.process_new_packets().unwrap();
            wire.clear();
            while server.wants_write() {
                server.write_tls(&mut wire).unwrap();
            }
            client.read_tls(&mut wire.as_slice()).unwrap();
            client.process_new_packets().unwrap();
        }
        client.negotiated_cipher_suite().unwrap().suite()
    }

    const VERSIONS: [(&SupportedProtocolVersion, CipherSuite, CipherSuite); 2] = [
        (
            &rustls::version::TLS13,
            CipherSuite::TLS13_AES_256_GCM_SHA384,
            CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
        ),
        (
            &rustls::version::TLS12,
            CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
            CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
        ),
    ];

    #[test]
    fn without_aes_instructions_chacha20_comes_first_and_nothing_is_lost() {
        let (with, without) = (suites(true), suites(false));
        let (chacha20, rest) = without.split_at(3);
        assert_eq!(chacha20[0], CipherSuite::TLS13_CHACHA20_POLY1305_SHA256);
        let others = |suite: &CipherSuite| !chacha20.contains(suite);
        assert_eq!(rest, with.iter().copied().filter(others).collect::<Vec<_>>());
        assert_eq!(with[0], CipherSuite::TLS13_AES_256_GCM_SHA384);
        assert_eq!(with.len(), without.len());
    }

    #[test]
    fn a_hub_that_follows_our_order_encrypts_with_what_suits_this_processor() {
        for (version, aes, chacha20) in VERSIONS {
            let hub = ring::default_provider;
            assert_eq!(agreed(provider_for(true), hub(), false, version), aes);
            assert_eq!(agreed(provider_for(false), hub(), false, version), chacha20);
        }
    }

    #[test]
    fn of_what_a_device_offers_we_take_what_suits_this_processor() {
        for (version, aes, chacha20) in VERSIONS {
            // The device has AES instructions; then it has none.
            for (device, with_aes) in [(provider_for(true), aes), (provider_for(false), chacha20)] {
                assert_eq!(
                    agreed(device.clone(), provider_for(true), false, version),
                    with_aes
                );
                assert_eq!(agreed(device, provider_for(false), true, version), chacha20);
            }
        }
    }

    #[test]
    fn the_processor_decides() {
        let first = provider().cipher_suites[0].suite();
        assert_eq!(
            ignores_client_order(),
            first == CipherSuite::TLS13_CHACHA20_POLY1305_SHA256
        );
    }
}
