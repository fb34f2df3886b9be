//! What the configuration check says of a CA file.

use std::time::{Duration, SystemTime};

use linkrouterd::shard::tls::{self, TlsError};
use tempfile::TempDir;

use crate::peers::{Authority, write};

#[test]
fn a_ca_file_is_inspected() {
    let directory = TempDir::new().unwrap();
    let now = SystemTime::now();
    let old = Authority::valid_until("Equifax Secure Certificate Authority", 2018);
    let ca_file = old.write(&directory);
    let shown = ca_file.display();
    let expired = format!(
        "certificate 'Equifax Secure Certificate Authority' in CA file {shown} expired on 2018-06-30: replace it"
    );
    assert_eq!(
        tls::inspect_ca_file(&ca_file, now, None).unwrap(),
        std::slice::from_ref(&expired)
    );
    assert_eq!(
        tls::inspect_ca_file(&ca_file, now, Some("broker.example")).unwrap(),
        std::slice::from_ref(&expired)
    );
    assert_eq!(
        tls::inspect_ca_file(&ca_file, now, Some("my-hub.azure-devices.net")).unwrap(),
        [
            expired,
            format!(
                "CA file {shown} holds neither 'DigiCert Global Root G2' nor 'Microsoft RSA Root Certificate \
                 Authority 2017', the roots that Azure uses today, so my-hub.azure-devices.net cannot be verified: put \
                 both, in PEM form, into that file, or leave out the CA file to use the built-in public authorities"
            )
        ]
    );

    for name in [
        "DigiCert Global Root G2",
        "Microsoft RSA Root Certificate Authority 2017",
    ] {
        let root = Authority::new(name);
        let ca_file = root.write(&directory);
        assert_eq!(root.name, name);
        let none: [String; 0] = [];
        assert_eq!(
            tls::inspect_ca_file(&ca_file, now, Some("my-hub.azure-devices.net")).unwrap(),
            none
        );
    }

    let many: String = (0..8).map(|_| old.certificate.pem()).collect();
    let bundle = write(&directory, "bundle.pem", &many);
    let warnings = tls::inspect_ca_file(&bundle, now, None).unwrap();
    assert_eq!(warnings.len(), 6);
    assert_eq!(
        warnings[5],
        format!("3 more certificates in CA file {} have expired", bundle.display())
    );

    // As in the bundle of any system that is a few years old.
    let with_a_good_one = many + &Authority::new("Some Root").certificate.pem();
    let bundle = write(&directory, "bundle.pem", &with_a_good_one);
    let none: [String; 0] = [];
    assert_eq!(tls::inspect_ca_file(&bundle, now, None).unwrap(), none);

    let in_1970 = SystemTime::UNIX_EPOCH + Duration::from_secs(3600);
    assert_eq!(
        tls::inspect_ca_file(&ca_file, in_1970, None).unwrap(),
        ["this machine's clock says 1970-01-01: clock not set?"]
    );

    let missing = directory.path().join("missing");
    assert!(matches!(
        tls::inspect_ca_file(&missing, now, None),
        Err(TlsError::Unreadable { .. })
    ));
    let empty = write(&directory, "empty", "");
    assert!(matches!(
        tls::inspect_ca_file(&empty, now, None),
        Err(TlsError::NoCertificate { .. })
    ));
}
