//! Certificates and keys in PEM files, read anew at every dial, and for listeners with every configuration, so that a
//! renewed file needs no restart.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::TlsError;

/// What a file is there for, as an operator would call it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileRole {
    /// Authorities that may sign the server's certificate (`caCertFile`).
    Authorities,
    /// Our own certificate chain (`certFile`).
    ClientCertificate,
    /// The key of our own certificate (`privateKeyFile`).
    ClientKey,
    /// Other names for users (`uidNameMappingFile`).
    UserNames,
}

impl std::fmt::Display for FileRole {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            FileRole::Authorities => "CA file",
            FileRole::ClientCertificate => "certificate file",
            FileRole::ClientKey => "private key file",
            FileRole::UserNames => "user name file",
        })
    }
}

/// The certificates of a PEM file in file order, or of all PEM files in a directory (files that hold none are passed
/// over: `/etc/ssl/certs` keeps other things, too).
///
/// # Errors
///
/// [`TlsError::Unreadable`], [`TlsError::BadPem`], [`TlsError::NoCertificate`].
pub(super) fn certificates(role: FileRole, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let unreadable = |source| TlsError::Unreadable {
        role,
        path: path.to_owned(),
        source,
    };
    let found = if fs::metadata(path).map_err(unreadable)?.is_dir() {
        let mut found = Vec::new();
        for file in files_of(path).map_err(unreadable)? {
            // A dangling link or a foreign file among hundreds is no reason to fail.
            let Ok(pem) = fs::read(&file) else { continue };
            found.extend(rustls_pemfile::certs(&mut pem.as_slice()).flatten());
        }
        // Hashed directories hold each certificate under two names.
        found.sort_by(|a: &CertificateDer<'_>, b| a.as_ref().cmp(b.as_ref()));
        found.dedup();
        found
    } else {
        let pem = fs::read(path).map_err(unreadable)?;
        rustls_pemfile::certs(&mut pem.as_slice())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|source| TlsError::BadPem {
                role,
                path: path.to_owned(),
                source,
            })?
    };
    if found.is_empty() {
        return Err(TlsError::NoCertificate {
            role,
            path: path.to_owned(),
        });
    }
    Ok(found)
}

/// The first private key of a PEM file: PKCS#8, PKCS#1 or SEC1.
///
/// # Errors
///
/// [`TlsError::Unreadable`], [`TlsError::BadPem`], [`TlsError::EncryptedKey`], [`TlsError::NoPrivateKey`].
pub(super) fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let role = FileRole::ClientKey;
    let pem = fs::read(path).map_err(|source| TlsError::Unreadable {
        role,
        path: path.to_owned(),
        source,
    })?;
    // Both ways in which PEM keys are encrypted (PKCS#8, and OpenSSL's header lines) say so in plain text. Asked
    // first, because the second one is not base64 and would only be called broken.
    if is_encrypted(&pem) {
        return Err(TlsError::EncryptedKey {
            path: path.to_owned(),
        });
    }
    rustls_pemfile::private_key(&mut pem.as_slice())
        .map_err(|source| TlsError::BadPem {
            role,
            path: path.to_owned(),
            source,
        })?
        .ok_or_else(|| TlsError::NoPrivateKey {
            path: path.to_owned(),
        })
}

fn is_encrypted(pem: &[u8]) -> bool {
    String::from_utf8_lossy(pem).lines().map(str::trim).any(|line| {
        line == "-----BEGIN ENCRYPTED PRIVATE KEY-----"
            || (line.starts_with("Proc-Type:") && line.contains("ENCRYPTED"))
    })
}

fn files_of(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_file() {
            files.push(path);
        }
    }
    Ok(files)
}
