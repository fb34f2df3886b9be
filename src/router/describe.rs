//! What log lines show of what a peer wrote.

use crate::amqp::terminus::{Terminus, TerminusKind};

/// What a peer wrote, as log lines show it: not as long as a frame. (The log escapes control characters.)
pub(super) fn excerpt(text: &str) -> String {
    text.chars().take(256).collect()
}

/// A terminus as log lines show it (qdrouterd 1.19).
pub(super) fn describe(encoded: Option<&[u8]>) -> String {
    let Some(Ok(terminus)) = encoded.map(Terminus::parse) else {
        return "{<none> expire:sess}".into();
    };
    if terminus.kind == TerminusKind::Coordinator {
        return "{<coordinator>}".into();
    }
    let mut text = String::from("{");
    if terminus.dynamic {
        text.push_str("(dyn)");
    }
    match terminus.address {
        Some(address) => text.push_str(&excerpt(address)),
        None => text.push_str("<none>"),
    }
    text.push_str(match terminus.durable {
        1 => " dur:config",
        2 => " dur:deliveries",
        _ => "",
    });
    text.push_str(match terminus.expiry_policy {
        Some("link-detach") => " expire:link",
        Some("connection-close") => " expire:conn",
        Some("never") => "",
        _ => " expire:sess",
    });
    if terminus.timeout > 0 {
        text.push_str(&format!(" timeout:{}", terminus.timeout));
    }
    text.push('}');
    text
}
