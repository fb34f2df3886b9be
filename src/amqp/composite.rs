//! Names of the composite types and of their fields, in the order of the specification; for whoever shows them.

/// A described type of the specification.
#[derive(Debug, PartialEq, Eq)]
pub struct Composite {
    /// The descriptor's code.
    pub code: u64,
    /// The type's name.
    pub name: &'static str,
    /// The names of its fields; empty for a section that is not a list.
    pub fields: &'static [&'static str],
    secret: Secret,
}

/// What of a composite must not be shown.
#[derive(Debug, PartialEq, Eq)]
enum Secret {
    Nothing,
    Fields(&'static [usize]),
    /// All of it: sections of messages.
    All,
}

impl Composite {
    /// Whether the field must be shown as a length only: credentials, and what belongs to the two ends of a delivery.
    /// Fields beyond the defined ones are nobody's guess.
    pub fn is_secret(&self, field: usize) -> bool {
        match self.secret {
            Secret::Nothing => false,
            Secret::Fields(fields) => fields.contains(&field) || field >= self.fields.len(),
            Secret::All => true,
        }
    }

    /// Whether it has something that must not be shown, so that it is shown field by field or not at all.
    pub fn is_opaque(&self) -> bool {
        self.secret != Secret::Nothing
    }
}

/// The type with this descriptor.
pub fn of_code(code: u64) -> Option<&'static Composite> {
    TYPES.iter().find(|composite| composite.code == code)
}

const fn composite(code: u64, name: &'static str, fields: &'static [&'static str]) -> Composite {
    Composite {
        code,
        name,
        fields,
        secret: Secret::Nothing,
    }
}

const fn guarded(
    code: u64,
    name: &'static str,
    fields: &'static [&'static str],
    secret: &'static [usize],
) -> Composite {
    Composite {
        code,
        name,
        fields,
        secret: Secret::Fields(secret),
    }
}

const fn section(code: u64, name: &'static str) -> Composite {
    Composite {
        code,
        name,
        fields: &[],
        secret: Secret::All,
    }
}

static TYPES: [Composite; 40] = [
    // AMQP 1.0 part 2, §2.7
    composite(
        0x10,
        "open",
        &[
            "container-id",
            "hostname",
            "max-frame-size",
            "channel-max",
            "idle-time-out",
            "outgoing-locales",
            "incoming-locales",
            "offered-capabilities",
            "desired-capabilities",
            "properties",
        ],
    ),
    composite(
        0x11,
        "begin",
        &[
            "remote-channel",
            "next-outgoing-id",
            "incoming-window",
            "outgoing-window",
            "handle-max",
            "offered-capabilities",
            "desired-capabilities",
            "properties",
        ],
    ),
    composite(
        0x12,
        "attach",
        &[
            "name",
            "handle",
            "role",
            "snd-settle-mode",
            "rcv-settle-mode",
            "source",
            "target",
            "unsettled",
            "incomplete-unsettled",
            "initial-delivery-count",
            "max-message-size",
            "offered-capabilities",
            "desired-capabilities",
            "properties",
        ],
    ),
    composite(
        0x13,
        "flow",
        &[
            "next-incoming-id",
            "incoming-window",
            "next-outgoing-id",
            "outgoing-window",
            "handle",
            "delivery-count",
            "link-credit",
            "available",
            "drain",
            "echo",
            "properties",
        ],
    ),
    composite(
        0x14,
        "transfer",
        &[
            "handle",
            "delivery-id",
            "delivery-tag",
            "message-format",
            "settled",
            "more",
            "rcv-settle-mode",
            "state",
            "resume",
            "aborted",
            "batchable",
        ],
    ),
    composite(
        0x15,
        "disposition",
        &["role", "first", "last", "settled", "state", "batchable"],
    ),
    composite(0x16, "detach", &["handle", "closed", "error"]),
    composite(0x17, "end", &["error"]),
    composite(0x18, "close", &["error"]),
    // AMQP 1.0 part 2, §2.8.14
    composite(0x1d, "error", &["condition", "description", "info"]),
    // AMQP 1.0 part 3, §3.4
    composite(0x23, "received", &["section-number", "section-offset"]),
    composite(0x24, "accepted", &[]),
    composite(0x25, "rejected", &["error"]),
    composite(0x26, "released", &[]),
    guarded(
        0x27,
        "modified",
        &["delivery-failed", "undeliverable-here", "message-annotations"],
        &[2],
    ),
    // AMQP 1.0 part 3, §3.5
    composite(
        0x28,
        "source",
        &[
            "address",
            "durable",
            "expiry-policy",
            "timeout",
            "dynamic",
            "dynamic-node-properties",
            "distribution-mode",
            "filter",
            "default-outcome",
            "outcomes",
            "capabilities",
        ],
    ),
    composite(
        0x29,
        "target",
        &[
            "address",
            "durable",
            "expiry-policy",
            "timeout",
            "dynamic",
            "dynamic-node-properties",
            "capabilities",
        ],
    ),
    composite(0x2b, "delete-on-close", &[]),
    composite(0x2c, "delete-on-no-links", &[]),
    composite(0x2d, "delete-on-no-messages", &[]),
    composite(0x2e, "delete-on-no-links-or-messages", &[]),
    // AMQP 1.0 part 4, §4.5
    composite(0x30, "coordinator", &["capabilities"]),
    composite(0x31, "declare", &["global-id"]),
    composite(0x32, "discharge", &["txn-id", "fail"]),
    composite(0x33, "declared", &["txn-id"]),
    composite(0x34, "transactional-state", &["txn-id", "outcome"]),
    // AMQP 1.0 part 5, §5.3.3
    composite(0x40, "sasl-mechanisms", &["sasl-server-mechanisms"]),
    guarded(
        0x41,
        "sasl-init",
        &["mechanism", "initial-response", "hostname"],
        &[1],
    ),
    guarded(0x42, "sasl-challenge", &["challenge"], &[0]),
    guarded(0x43, "sasl-response", &["response"], &[0]),
    guarded(0x44, "sasl-outcome", &["code", "additional-data"], &[1]),
    // AMQP 1.0 part 3, §3.2
    section(0x70, "header"),
    section(0x71, "delivery-annotations"),
    section(0x72, "message-annotations"),
    section(0x73, "properties"),
    section(0x74, "application-properties"),
    section(0x75, "data"),
    section(0x76, "amqp-sequence"),
    section(0x77, "amqp-value"),
    section(0x78, "footer"),
];
