//! What this version refuses although qdrouterd can do it: ignoring it would weaken security or change the meaning.
//!
//! One list, in one place, because each row disappears when a version learns to do what it says.

use super::entity::Attribute;
use super::value::Value;

/// One attribute with values that stop the start.
#[derive(Debug)]
pub struct Refusal {
    /// Entity name.
    pub entity: &'static str,
    /// Canonical attribute name.
    pub attribute: &'static str,
    /// Which values.
    pub when: When,
    /// What this version cannot do.
    pub reason: &'static str,
}

/// Which values are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Any.
    Set,
    /// One of these, booleans written as `yes` or `no`.
    Is(&'static [&'static str]),
}

const NO_AUTHENTICATION: &str =
    "no remote authentication service is asked; the listener would admit whom that service would not";
const NO_NETWORK: &str = "this daemon joins no network of routers";

/// Every refusal.
pub const REFUSALS: &[Refusal] = &[
    refuse("listener", "saslPlugin", When::Set, NO_AUTHENTICATION),
    refuse(
        "listener",
        "role",
        When::Is(&["inter-router", "edge", "edge-uplink"]),
        NO_NETWORK,
    ),
    refuse(
        "connector",
        "role",
        When::Is(&["inter-router", "edge", "edge-uplink"]),
        NO_NETWORK,
    ),
];

/// The refusal that this value meets, if any.
pub(super) fn of(entity: &str, attribute: &Attribute, value: &Value) -> Option<&'static Refusal> {
    REFUSALS.iter().find(|refusal| {
        refusal.entity == entity && refusal.attribute == attribute.name && refusal.when.covers(value)
    })
}

impl When {
    fn covers(self, value: &Value) -> bool {
        match (self, value) {
            (When::Set, _) => true,
            (When::Is(refused), Value::Tag(tag)) => refused.contains(tag),
            (When::Is(refused), Value::Boolean(value)) => {
                refused.contains(&if *value { "yes" } else { "no" })
            }
            (When::Is(_), _) => false,
        }
    }
}

const fn refuse(entity: &'static str, attribute: &'static str, when: When, reason: &'static str) -> Refusal {
    Refusal {
        entity,
        attribute,
        when,
        reason,
    }
}
