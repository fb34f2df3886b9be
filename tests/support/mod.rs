//! What the end-to-end tests and the demo stand on: the hub stand-ins, the certificates, the daemon under test and
//! the devices. Nothing here knows the router's own code: every byte of AMQP is encoded, decoded and judged by a
//! third-party stack (`fe2o3-amqp` and its codec), so that a mistake of ours cannot agree with itself.
//!
//! Everything waits with a bound ([`PATIENCE`]) and on an event, never on a delay.

// Each test binary uses the part that it needs.
#![allow(dead_code)]
// The third-party stack's futures are large, and tests need not care.
#![allow(clippy::large_futures, clippy::large_enum_variant)]

use std::future::Future;
use std::time::Duration;

pub(crate) mod article;
pub(crate) mod bare;
pub(crate) mod broker;
pub(crate) mod certificates;
pub(crate) mod client;
pub(crate) mod daemon;
pub(crate) mod device;
pub(crate) mod fleet;
pub(crate) mod gateway;
pub(crate) mod iot_hub;
pub(crate) mod journal;
pub(crate) mod message;
pub(crate) mod raw;
pub(crate) mod sas;
pub(crate) mod wire;

/// How long any one expected event may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Why a scenario did not go as it must. Any error converts into it with `?`.
pub(crate) struct Failure(String);

impl Failure {
    pub(crate) fn new(why: impl Into<String>) -> Self {
        Self(why.into())
    }
}

impl<E: std::error::Error> From<E> for Failure {
    #[track_caller]
    fn from(error: E) -> Self {
        let place = std::panic::Location::caller();
        Self(format!("{place}: {error} ({error:?})"))
    }
}

impl std::fmt::Debug for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Fails with `why` unless `fact`.
pub(crate) fn ensure(fact: bool, why: impl FnOnce() -> String) -> Result<(), Failure> {
    if fact { Ok(()) } else { Err(Failure(why())) }
}

/// Fails, showing both, unless the two are equal.
pub(crate) fn ensure_eq<A, B>(what: &str, actual: A, expected: B) -> Result<(), Failure>
where
    A: PartialEq<B> + std::fmt::Debug,
    B: std::fmt::Debug,
{
    ensure(actual == expected, || {
        format!("{what}: got {actual:?}, expected {expected:?}")
    })
}

/// Waits for `future`, at most [`PATIENCE`].
pub(crate) async fn bounded<F: Future>(what: &str, future: F) -> Result<F::Output, Failure> {
    tokio::time::timeout(PATIENCE, Box::pin(future))
        .await
        .map_err(|_| Failure(format!("{what}: nothing within {} s", PATIENCE.as_secs())))
}
