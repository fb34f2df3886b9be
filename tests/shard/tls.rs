//! Dialing over TLS against real servers on the loopback: what is accepted, and how a refusal is explained.
//!
//! The servers are rustls' own, with certificates made for the test; every explanation that an operator may read is
//! asserted word for word where it can be.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::peers::{Authority, demanding, for_hosts, named, self_signed, serve, serve_bytes, write};
use linkrouterd::router::TransportInfo;
use linkrouterd::shard::AddressFamily;
use linkrouterd::shard::dial::{self, DialError, DialSettings, Transport};
use linkrouterd::shard::tls::{TlsSettings, TlsVersion};
use rcgen::{BasicConstraints, IsCa, KeyPair};
use rustls::ServerConfig;
use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;

const LIMIT: Duration = Duration::from_secs(20);

fn trusting(ca_file: Option<&Path>) -> TlsSettings {
    TlsSettings {
        profile: "hub-tls".to_owned(),
        server_name: "localhost".to_owned(),
        verify_hostname: true,
        ca_file: ca_file.map(Path::to_owned),
        cert_file: None,
        key_file: None,
        versions: Vec::new(),
    }
}

fn to(address: SocketAddr, settings: TlsSettings) -> DialSettings {
    DialSettings {
        host: address.ip().to_string(),
        port: address.port(),
        family: AddressFamily::Any,
        tls: Some(Arc::new(settings)),
    }
}

async fn dial(address: SocketAddr, settings: TlsSettings) -> Result<(Transport, TransportInfo), DialError> {
    dial::connect(&to(address, settings), LIMIT).await
}

/// Dials and reads what the server says.
async fn greet(address: SocketAddr, settings: TlsSettings) -> (String, Option<String>) {
    let (transport, info) = dial(address, settings)
        .await
        .unwrap_or_else(|error| panic!("{error}"));
    let Transport::Tls(mut stream) = transport else {
        panic!("not encrypted: {transport:?}")
    };
    let mut said = String::new();
    stream.read_to_string(&mut said).await.unwrap();
    assert_eq!(info.peer, address.to_string());
    (said, info.tls)
}

async fn refusal(address: SocketAddr, settings: TlsSettings) -> String {
    match dial(address, settings).await {
        Ok((transport, _)) => panic!("connected: {transport:?}"),
        Err(error) => {
            let text = error.to_string();
            assert!(!text.contains('\n'), "{text:?}");
            text
        }
    }
}

#[tokio::test]
async fn a_good_chain_is_accepted_and_the_name_is_sent() {
    let directory = TempDir::new().unwrap();
    let authority = Authority::new("Test Root");
    let server = authority.issue_for_loopback().server(rustls::ALL_VERSIONS);
    let (address, serving) = serve(server).await;
    let greeting = greet(address, trusting(Some(&authority.write(&directory)))).await;
    assert_eq!(greeting, ("hello".to_owned(), Some("TLSv1.3".to_owned())));
    assert_eq!(serving.await.unwrap().unwrap().as_deref(), Some("localhost"));
}

/// This server takes the first suite of ours that it has, which is any.
#[tokio::test]
async fn the_cipher_suite_suits_this_processor() {
    #[cfg(target_arch = "x86_64")]
    let has_aes = std::arch::is_x86_feature_detected!("aes");
    #[cfg(target_arch = "aarch64")]
    let has_aes = std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let has_aes = false;

    let directory = TempDir::new().unwrap();
    let authority = Authority::new("Test Root");
    let (address, _serving) = serve(authority.issue_for_loopback().server(rustls::ALL_VERSIONS)).await;
    let settings = trusting(Some(&authority.write(&directory)));
    let Ok((Transport::Tls(stream), _)) = dial(address, settings).await else {
        panic!("not encrypted")
    };
    let suite = stream
        .get_ref()
        .get_ref()
        .1
        .negotiated_cipher_suite()
        .unwrap()
        .suite();
    let expected = match has_aes {
        true => rustls::CipherSuite::TLS13_AES_256_GCM_SHA384,
        false => rustls::CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
    };
    assert_eq!(suite, expected);
}

#[tokio::test]
async fn an_address_is_checked_against_the_addresses_of_the_certificate() {
    let directory = TempDir::new().unwrap();
    let authority = Authority::new("Test Root");
    let ca_file = authority.write(&directory);
    let mut settings = trusting(Some(&ca_file));
    settings.server_name = "127.0.0.1".to_owned();

    let (address, serving) = serve(authority.issue_for_loopback().server(rustls::ALL_VERSIONS)).await;
    greet(address, settings.clone()).await;
    assert_eq!(serving.await.unwrap().unwrap(), None, "no SNI for an address");

    let names_only = authority.issue(for_hosts(&["localhost"], 2099));
    let (address, _) = serve(names_only.server(rustls::ALL_VERSIONS)).await;
    assert_eq!(
        refusal(address, settings).await,
        "the server's certificate is for 'localhost', not for '127.0.0.1': correct the connector's host or \
         serverName, or set its verifyHostname: no"
    );
}

#[tokio::test]
async fn a_directory_of_authorities() {
    let directory = TempDir::new().unwrap();
    let authority = Authority::new("Test Root");
    authority.write(&directory);
    write(&directory, "README", "nothing to see");
    write(&directory, "same-again.0", &authority.certificate.pem());
    let (address, _serving) = serve(authority.issue_for_loopback().server(rustls::ALL_VERSIONS)).await;
    assert_eq!(greet(address, trusting(Some(directory.path()))).await.0, "hello");
}

#[tokio::test]
async fn an_unknown_issuer() {
    let directory = TempDir::new().unwrap();
    let ca_file = Authority::new("Some Root").write(&directory);
    let server = Authority::new("Other Root").issue_for_loopback();
    let (address, _serving) = serve(server.server(rustls::ALL_VERSIONS)).await;
    assert_eq!(
        refusal(address, trusting(Some(&ca_file))).await,
        format!(
            "the server's certificate leads to the authority 'Other Root', and CA file {} does not hold it (it \
             holds 'Some Root'): put the certificate of the root authority, in PEM form, into that file",
            ca_file.display()
        )
    );
    // The name is not what is wrong, so not asking for it changes nothing.
    let (address, _serving) = serve(server.server(rustls::ALL_VERSIONS)).await;
    let mut settings = trusting(Some(&ca_file));
    settings.verify_hostname = false;
    let text = refusal(address, settings).await;
    assert!(text.contains("leads to the authority 'Other Root'"), "{text}");
}

#[tokio::test]
async fn an_unknown_issuer_of_an_azure_hub() {
    let directory = TempDir::new().unwrap();
    let ca_file = Authority::valid_until("Old Root", 2018).write(&directory);
    let server = Authority::new("DigiCert Global Root G2").issue_for_loopback();
    let mut settings = trusting(Some(&ca_file));
    settings.server_name = "my-hub.azure-devices.net".to_owned();
    let (address, _serving) = serve(server.server(rustls::ALL_VERSIONS)).await;
    assert_eq!(
        refusal(address, settings.clone()).await,
        format!(
            "the server's certificate leads to the authority 'DigiCert Global Root G2', and CA file {} does not \
             hold it (it holds 'Old Root', expired on 2018-06-30): put 'DigiCert Global Root G2' and 'Microsoft RSA \
             Root Certificate Authority 2017', the roots that Azure uses today, in PEM form into that file, or \
             leave out caCertFile to use the built-in public authorities",
            ca_file.display()
        )
    );

    settings.ca_file = None;
    let (address, _serving) = serve(server.server(rustls::ALL_VERSIONS)).await;
    assert_eq!(
        refusal(address, settings).await,
        "the server's certificate leads to the authority 'DigiCert Global Root G2', and that is none of the built-in \
         public authorities; Azure uses public ones, so does a proxy that inspects TLS answer in its place?; if you \
         trust it, name its PEM file as caCertFile in sslProfile 'hub-tls'"
    );
}

/// Whether it is marked as an authority's (as `openssl req -x509` does) or not.
#[tokio::test]
async fn a_self_signed_certificate() {
    let directory = TempDir::new().unwrap();
    let some_root = Authority::new("Some Root").write(&directory);
    for is_ca in [IsCa::NoCa, IsCa::Ca(BasicConstraints::Unconstrained)] {
        let server = self_signed(for_hosts(&["localhost"], 2099), is_ca);
        let (address, _serving) = serve(server.server(rustls::ALL_VERSIONS)).await;
        assert_eq!(
            refusal(address, trusting(Some(&some_root))).await,
            format!(
                "the server's certificate 'a server' is self-signed, and CA file {} does not hold it (it holds 'Some \
                 Root'): put that certificate, in PEM form, into the file if you trust it",
                some_root.display()
            )
        );
        // As told.
        let ca_file = write(&directory, "server.pem", &server.certificate.pem());
        let (address, _serving) = serve(server.server(rustls::ALL_VERSIONS)).await;
        assert_eq!(greet(address, trusting(Some(&ca_file))).await.0, "hello");

        // That it is known by itself does not save it from the checks of name and dates.
        let server = self_signed(for_hosts(&["hub.example"], 2099), is_ca);
        let ca_file = write(&directory, "server.pem", &server.certificate.pem());
        let mut settings = trusting(Some(&ca_file));
        let (address, _serving) = serve(server.server(rustls::ALL_VERSIONS)).await;
        let text = refusal(address, settings.clone()).await;
        assert!(
            text.starts_with("the server's certificate is for 'hub.example', not for 'localhost'"),
            "{text}"
        );
        settings.verify_hostname = false;
        let (address, _serving) = serve(server.server(rustls::ALL_VERSIONS)).await;
        assert_eq!(greet(address, settings.clone()).await.0, "hello");

        let server = self_signed(for_hosts(&["hub.example"], 2019), is_ca);
        settings.ca_file = Some(write(&directory, "server.pem", &server.certificate.pem()));
        let (address, _serving) = serve(server.server(rustls::ALL_VERSIONS)).await;
        let text = refusal(address, settings).await;
        assert!(
            text.starts_with("a certificate of the server has expired on 2019-06-30"),
            "{text}"
        );
    }
}

/// The configured certificate is public: who only shows it, without its key, is nobody.
#[tokio::test]
async fn a_stolen_certificate() {
    let directory = TempDir::new().unwrap();
    for is_ca in [IsCa::NoCa, IsCa::Ca(BasicConstraints::Unconstrained)] {
        let server = self_signed(for_hosts(&["localhost"], 2099), is_ca);
        let ca_file = write(&directory, "server.pem", &server.certificate.pem());
        for version in rustls::ALL_VERSIONS {
            let (address, _serving) = serve(server.impostor(version)).await;
            let text = refusal(address, trusting(Some(&ca_file))).await;
            assert_eq!(text, "the server's certificate is not acceptable: BadSignature");
        }
    }
}

#[tokio::test]
async fn a_wrong_name_is_refused_unless_the_name_is_not_asked_for() {
    let directory = TempDir::new().unwrap();
    let authority = Authority::new("Test Root");
    let ca_file = authority.write(&directory);
    let server = authority.issue(for_hosts(&["hub.example", "*.hub.example"], 2099));
    let mut settings = trusting(Some(&ca_file));

    let (address, _serving) = serve(server.server(rustls::ALL_VERSIONS)).await;
    assert_eq!(
        refusal(address, settings.clone()).await,
        "the server's certificate is for 'hub.example', '*.hub.example', not for 'localhost': correct the \
         connector's host or serverName, or set its verifyHostname: no"
    );
    settings.verify_hostname = false;
    for version in rustls::ALL_VERSIONS {
        let (address, _serving) = serve(server.server(&[version])).await;
        assert_eq!(greet(address, settings.clone()).await.0, "hello");
    }
}

#[tokio::test]
async fn an_expired_certificate_is_refused_even_if_the_name_is_not_asked_for() {
    let directory = TempDir::new().unwrap();
    let authority = Authority::new("Test Root");
    let ca_file = authority.write(&directory);
    let server = authority.issue(for_hosts(&["localhost"], 2019));
    let mut settings = trusting(Some(&ca_file));
    for verify_hostname in [true, false] {
        settings.verify_hostname = verify_hostname;
        let (address, _serving) = serve(server.server(rustls::ALL_VERSIONS)).await;
        let text = refusal(address, settings.clone()).await;
        assert!(
            text.starts_with(
                "a certificate of the server has expired on 2019-06-30 (this machine's clock says 20"
            ),
            "{text}"
        );
        assert!(text.ends_with("): the server needs a new one"), "{text}");
    }
}

#[tokio::test]
async fn a_certificate_of_the_future() {
    let directory = TempDir::new().unwrap();
    let authority = Authority::new("Test Root");
    let mut params = for_hosts(&["localhost"], 2099);
    params.not_before = rcgen::date_time_ymd(2098, 1, 2);
    let (address, _serving) = serve(authority.issue(params).server(rustls::ALL_VERSIONS)).await;
    let text = refusal(address, trusting(Some(&authority.write(&directory)))).await;
    assert!(
        text.starts_with(
            "a certificate of the server is not valid yet, only from 2098-01-02; this machine's clock"
        ),
        "{text}"
    );
    assert!(text.ends_with(": check the clock"), "{text}");
}

#[tokio::test]
async fn only_the_versions_allowed_are_used() {
    let directory = TempDir::new().unwrap();
    let authority = Authority::new("Test Root");
    let identity = authority.issue_for_loopback();
    let ca_file = authority.write(&directory);
    let mut settings = trusting(Some(&ca_file));

    settings.versions = vec![TlsVersion::Tls12];
    let (address, _serving) = serve(identity.server(rustls::ALL_VERSIONS)).await;
    assert_eq!(
        greet(address, settings.clone()).await.1.as_deref(),
        Some("TLSv1.2")
    );

    let (address, _serving) = serve(identity.server(&[&rustls::version::TLS13])).await;
    assert_eq!(
        refusal(address, settings.clone()).await,
        "the server accepts none of the TLS versions offered (TLSv1.2): check protocols"
    );

    settings.versions = vec![TlsVersion::Tls13];
    let (address, _serving) = serve(identity.server(&[&rustls::version::TLS12])).await;
    assert_eq!(
        refusal(address, settings).await,
        "the server accepts none of the TLS versions offered (TLSv1.3): check protocols"
    );
}

#[tokio::test]
async fn no_common_cipher() {
    let directory = TempDir::new().unwrap();
    let authority = Authority::new("Test Root");
    let identity = authority.issue_for_loopback();
    // This server can do ChaCha20 for RSA certificates only, and has none.
    let mut provider = rustls::crypto::ring::default_provider();
    provider
        .cipher_suites
        .retain(|suite| suite.suite() == rustls::CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256);
    let config = ServerConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(identity.chain(), identity.private_key())
        .unwrap();
    let (address, _serving) = serve(config).await;
    assert_eq!(
        refusal(address, trusting(Some(&authority.write(&directory)))).await,
        "the server refused the TLS handshake (TLS alert HandshakeFailure): it accepts no common cipher suite, or it \
         demands a client certificate"
    );
}

#[tokio::test]
async fn a_server_without_tls() {
    let directory = TempDir::new().unwrap();
    let ca_file = Authority::new("Test Root").write(&directory);
    for answer in [
        &b"AMQP\x00\x01\x00\x00"[..],
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"220 mail.example ESMTP\r\n",
    ] {
        let address = serve_bytes(answer).await;
        assert_eq!(
            refusal(address, trusting(Some(&ca_file))).await,
            "the server does not speak TLS on this port (AMQP over TLS is usually 5671, plain AMQP 5672)"
        );
    }
    let address = serve_bytes(b"").await;
    assert_eq!(
        refusal(address, trusting(Some(&ca_file))).await,
        "the server closed the connection during the TLS handshake: does this port speak TLS?"
    );
}

#[tokio::test]
async fn a_reset_in_the_handshake() {
    let directory = TempDir::new().unwrap();
    let ca_file = Authority::new("Test Root").write(&directory);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (tcp, _) = listener.accept().await.unwrap();
        tcp.peek(&mut [0]).await.unwrap();
        // Without lingering, closing is a reset.
        tcp.set_zero_linger().unwrap();
    });
    assert_eq!(
        refusal(address, trusting(Some(&ca_file))).await,
        "the connection was reset during the TLS handshake: does this port speak TLS, and does no firewall interfere?"
    );
}

#[tokio::test]
async fn a_server_that_says_nothing() {
    let directory = TempDir::new().unwrap();
    let ca_file = Authority::new("Test Root").write(&directory);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let settings = to(address, trusting(Some(&ca_file)));
    let error = dial::connect(&settings, Duration::from_millis(250))
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("the TLS handshake with {address} took longer than 0.25 s")
    );
}

#[tokio::test]
async fn a_client_certificate_is_shown() {
    let directory = TempDir::new().unwrap();
    let authority = Authority::new("Test Root");
    let server = authority.issue_for_loopback();
    let client = authority.issue(named("device", 2099));
    let mut settings = trusting(Some(&authority.write(&directory)));
    settings.cert_file = Some(write(&directory, "client.pem", &client.certificate.pem()));
    settings.key_file = Some(write(&directory, "client.key", &client.key.serialize_pem()));
    for version in rustls::ALL_VERSIONS {
        let (address, serving) =
            serve(demanding(&server, authority.certificate.der().clone(), version)).await;
        assert_eq!(greet(address, settings.clone()).await.0, "hello");
        serving.await.unwrap().unwrap();
    }
    // Both in one file.
    let both = client.certificate.pem() + &client.key.serialize_pem();
    settings.cert_file = Some(write(&directory, "both.pem", &both));
    settings.key_file = None;
    let (address, _serving) = serve(demanding(
        &server,
        authority.certificate.der().clone(),
        &rustls::version::TLS13,
    ))
    .await;
    assert_eq!(greet(address, settings).await.0, "hello");
}

#[tokio::test]
async fn a_client_certificate_is_missing_or_refused() {
    let directory = TempDir::new().unwrap();
    let authority = Authority::new("Test Root");
    let server = authority.issue_for_loopback();
    let mut settings = trusting(Some(&authority.write(&directory)));

    let (address, _serving) = serve(demanding(
        &server,
        authority.certificate.der().clone(),
        &rustls::version::TLS12,
    ))
    .await;
    assert_eq!(
        refusal(address, settings.clone()).await,
        "the server demands a client certificate: set certFile and privateKeyFile in the sslProfile"
    );

    let stranger = Authority::new("Stranger").issue(named("device", 2099));
    let cert_file = write(&directory, "client.pem", &stranger.certificate.pem());
    settings.key_file = Some(write(&directory, "client.key", &stranger.key.serialize_pem()));
    settings.cert_file = Some(cert_file.clone());
    let (address, _serving) = serve(demanding(
        &server,
        authority.certificate.der().clone(),
        &rustls::version::TLS12,
    ))
    .await;
    assert_eq!(
        refusal(address, settings).await,
        format!(
            "the server refused our client certificate {} (TLS alert UnknownCA): is it registered there, and in date?",
            cert_file.display()
        )
    );
}

/// PKCS#8 is what the other tests use; these two files were made by openssl, each a self-signed certificate and a key.
#[tokio::test]
async fn keys_in_traditional_forms() {
    let directory = TempDir::new().unwrap();
    let authority = Authority::new("Test Root");
    let server = authority.issue_for_loopback();
    let mut settings = trusting(Some(&authority.write(&directory)));
    for file in ["client-rsa-pkcs1.pem", "client-ec-sec1.pem"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/shard")
            .join(file);
        let pem = fs::read(&path).unwrap();
        let certificate = rustls_pemfile::certs(&mut pem.as_slice())
            .next()
            .unwrap()
            .unwrap();
        settings.cert_file = Some(path);
        let (address, serving) = serve(demanding(&server, certificate, &rustls::version::TLS13)).await;
        assert_eq!(greet(address, settings.clone()).await.0, "hello", "{file}");
        serving.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn files_that_cannot_be_used() {
    let directory = TempDir::new().unwrap();
    let authority = Authority::new("Test Root");
    let good = authority.write(&directory);
    let client = authority.issue(named("device", 2099));
    let cert_file = write(&directory, "client.pem", &client.certificate.pem());
    // Never reached: files come before the handshake, and the server is silent.
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();

    let missing = directory.path().join("missing.pem");
    assert_eq!(
        refusal(address, trusting(Some(&missing))).await,
        format!(
            "cannot read CA file {}: No such file or directory (os error 2)",
            missing.display()
        )
    );
    let empty = write(&directory, "empty.pem", "");
    assert_eq!(
        refusal(address, trusting(Some(&empty))).await,
        format!(
            "CA file {} holds no certificate in PEM form (-----BEGIN CERTIFICATE-----)",
            empty.display()
        )
    );
    let cut = write(&directory, "cut.pem", "-----BEGIN CERTIFICATE-----\nMIIB\n");
    let text = refusal(address, trusting(Some(&cut))).await;
    assert!(
        text.starts_with(&format!("CA file {} is not in PEM form: ", cut.display())),
        "{text}"
    );

    for (file, content) in [
        (
            "pkcs8.key",
            "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIB\n-----END ENCRYPTED PRIVATE KEY-----\n",
        ),
        (
            "traditional.key",
            "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\nMIIB\n-----END RSA \
             PRIVATE KEY-----\n",
        ),
    ] {
        let mut settings = trusting(Some(&good));
        settings.cert_file = Some(cert_file.clone());
        let key_file = write(&directory, file, content);
        settings.key_file = Some(key_file.clone());
        let key_file = key_file.display();
        assert_eq!(
            refusal(address, settings).await,
            format!(
                "private key file {key_file} is encrypted: decrypt it with openssl pkey -in {key_file} -out NEWFILE, \
                 and protect the new file by its permissions"
            )
        );
    }

    let mut settings = trusting(Some(&good));
    settings.cert_file = Some(cert_file.clone());
    assert_eq!(
        refusal(address, settings.clone()).await,
        format!(
            "private key file {} holds no private key in PEM form",
            cert_file.display()
        )
    );
    settings.key_file = Some(write(
        &directory,
        "other.key",
        &KeyPair::generate().unwrap().serialize_pem(),
    ));
    let text = refusal(address, settings).await;
    assert!(
        text.starts_with(&format!(
            "cannot use certificate file {} with its private key: ",
            cert_file.display()
        )),
        "{text}"
    );

    let mut settings = trusting(Some(&good));
    settings.server_name = "<iotHub>.azure-devices.net".to_owned();
    assert_eq!(
        refusal(address, settings).await,
        "'<iotHub>.azure-devices.net' is neither a host name nor an IP address"
    );
}
