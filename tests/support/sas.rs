//! Shared access signatures, made as a device makes them and verified as IoT Hub does.
//!
//! `SharedAccessSignature sr=R&sig=S&se=E[&skn=P]`, fields in any order; `S` is the base64 of
//! HMAC-SHA256(key, `R` as written + LF + `E`). The signature is checked over the bytes as received, for clients
//! differ in how they escape `R`; only then is the decoded resource looked at.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use ring::hmac;

use super::Failure;

/// A symmetric key, as the hub's registry keeps it.
#[derive(Clone)]
pub(crate) struct Key(Vec<u8>);

impl Key {
    /// A key for tests: its bytes are the text's.
    pub(crate) fn from_text(text: &str) -> Self {
        Self(text.as_bytes().to_vec())
    }

    /// From how the portal shows it.
    pub(crate) fn from_base64(text: &str) -> Result<Self, Failure> {
        Ok(Self(STANDARD.decode(text)?))
    }

    /// As the portal shows it, which is how it must never be seen in a log.
    pub(crate) fn base64(&self) -> String {
        STANDARD.encode(&self.0)
    }

    fn sign(&self, resource: &str, expiry: &str) -> hmac::Tag {
        hmac::sign(
            &hmac::Key::new(hmac::HMAC_SHA256, &self.0),
            signed_text(resource, expiry).as_bytes(),
        )
    }

    fn verify(&self, resource: &str, expiry: &str, signature: &[u8]) -> bool {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &self.0);
        hmac::verify(&key, signed_text(resource, expiry).as_bytes(), signature).is_ok()
    }
}

fn signed_text(resource: &str, expiry: &str) -> String {
    format!("{resource}\n{expiry}")
}

/// Seconds since 1970.
pub(crate) fn unix_now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO)
        .as_secs()
}

/// The token that a device (or with `policy`, a service) writes for `resource`, expiring at `expiry`.
pub(crate) fn token(resource: &str, key: &Key, policy: Option<&str>, expiry: u64) -> String {
    let resource = utf8_percent_encode(resource, NON_ALPHANUMERIC).to_string();
    let expiry = expiry.to_string();
    let signature = STANDARD.encode(key.sign(&resource, &expiry).as_ref());
    let signature = utf8_percent_encode(&signature, NON_ALPHANUMERIC).to_string();
    let policy = policy.map(|name| format!("&skn={name}")).unwrap_or_default();
    format!("SharedAccessSignature sr={resource}&sig={signature}&se={expiry}{policy}")
}

/// The secret part of a token, to look for in logs.
pub(crate) fn signature_of(token: &str) -> Result<&str, Failure> {
    token
        .split('&')
        .find_map(|field| field.strip_prefix("sig="))
        .ok_or_else(|| Failure::new("a token without a signature"))
}

/// A token taken apart, its signature not yet judged.
pub(crate) struct Claim {
    encoded_resource: String,
    encoded_expiry: String,
    signature: Vec<u8>,
    /// The resource, decoded: `HOST[/SEGMENT]...`.
    pub(crate) resource: String,
    /// Seconds since 1970.
    pub(crate) expiry: u64,
    /// The hub policy that signed, if one did.
    pub(crate) policy: Option<String>,
}

impl Claim {
    /// Takes a token apart; `None` if it is malformed.
    pub(crate) fn parse(token: &str) -> Option<Self> {
        let fields = token.strip_prefix("SharedAccessSignature ")?;
        let (mut resource, mut signature, mut expiry, mut policy) = (None, None, None, None);
        for field in fields.split('&') {
            let (name, value) = field.split_once('=')?;
            match name {
                "sr" => resource = Some(value),
                "sig" => signature = Some(value),
                "se" => expiry = Some(value),
                "skn" => policy = Some(value),
                _ => return None,
            }
        }
        let (encoded_resource, encoded_expiry) = (resource?.to_owned(), expiry?.to_owned());
        let signature = STANDARD
            .decode(percent_decode_str(signature?).decode_utf8().ok()?.as_bytes())
            .ok()?;
        Some(Self {
            resource: percent_decode_str(&encoded_resource)
                .decode_utf8()
                .ok()?
                .into_owned(),
            expiry: encoded_expiry.parse().ok()?,
            policy: policy.filter(|name| !name.is_empty()).map(str::to_owned),
            encoded_resource,
            encoded_expiry,
            signature,
        })
    }

    /// Whether one of these keys signed it.
    pub(crate) fn signed_by(&self, keys: &[Key]) -> bool {
        keys.iter()
            .any(|key| key.verify(&self.encoded_resource, &self.encoded_expiry, &self.signature))
    }

    /// The hub's name in the resource.
    pub(crate) fn host(&self) -> &str {
        self.resource.split('/').next().unwrap_or_default()
    }

    /// The resource below the host, segment by segment.
    pub(crate) fn path(&self) -> Vec<&str> {
        self.resource
            .split('/')
            .skip(1)
            .filter(|segment| !segment.is_empty())
            .collect()
    }
}
