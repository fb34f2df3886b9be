//! Attribute `failoverUrls`: hosts that stand in for another.

use super::host_fault;
use crate::config::model::FailoverUrl;
use crate::config::names::quoted;
use crate::config::report::Findings;
use crate::config::resolve::Fields;

/// As many as a peer may announce.
const MAX_URLS: usize = 8;

/// The URLs of the attribute, `amqp[s]://HOST[:PORT]` with commas between; the scheme may be left out (qdrouterd 1.19).
pub(super) fn urls(fields: &Fields, findings: &mut Findings) -> Vec<FailoverUrl> {
    let text = fields.text("failoverUrls").unwrap_or_default();
    let (who, line) = (fields.entity.name, fields.line_of("failoverUrls"));
    let mut urls = Vec::new();
    for word in text.split(',').map(str::trim).filter(|word| !word.is_empty()) {
        match url(word) {
            Ok(url) => urls.push(url),
            Err(wrong) => {
                let message = format!("{who}: `failoverUrls` has {}, but {wrong}", quoted(word));
                findings.error(line, message);
            }
        }
    }
    if urls.len() > MAX_URLS {
        let message = format!("{who}: `failoverUrls` has more than {MAX_URLS} entries");
        findings.error(line, message);
    }
    urls
}

/// What the URLs of a connector say of TLS, of which the connector's profile decides.
pub(super) fn check_tls(fields: &Fields, urls: &[FailoverUrl], uses_tls: bool, findings: &mut Findings) {
    let line = fields.line_of("failoverUrls");
    for url in urls {
        match url.tls {
            Some(true) if !uses_tls => findings.error(
                line,
                format!(
                    "connector: `failoverUrls` wants TLS for {}, and the connector has no `sslProfile`",
                    quoted(&url.host)
                ),
            ),
            Some(false) if uses_tls => findings.warning(
                line,
                format!(
                    "connector: `failoverUrls` has {} without TLS; it is dialed with that of `sslProfile` all the same",
                    quoted(&url.host)
                ),
            ),
            Some(_) | None => {}
        }
    }
}

fn url(text: &str) -> Result<FailoverUrl, &'static str> {
    let (tls, rest) = match text.split_once("://") {
        None => (None, text),
        Some(("amqp", rest)) => (Some(false), rest),
        Some(("amqps", rest)) => (Some(true), rest),
        Some(_) => return Err("the scheme must be amqp or amqps"),
    };
    let (host, port) = match rest.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']').ok_or("the `]` of the address is missing")?;
            (
                host,
                port.strip_prefix(':').or_else(|| port.is_empty().then_some("")),
            )
        }
        None => {
            let (host, port) = rest.split_once(':').unwrap_or((rest, ""));
            (host, Some(port))
        }
    };
    let port = match port {
        Some("") => None,
        Some(port) => Some(
            port.parse()
                .ok()
                .filter(|port| *port > 0)
                .ok_or("the port must be a number from 1 to 65535")?,
        ),
        None => return Err("something that is no port follows the address"),
    };
    if host.is_empty() {
        return Err("there is no host");
    }
    match host_fault(host) {
        Some(wrong) => Err(wrong),
        None => Ok(FailoverUrl {
            host: host.to_owned(),
            port,
            tls,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_of_a_url() {
        let cases = [
            ("amqps://b.example:5671", "b.example", Some(5671), Some(true)),
            ("amqp://b.example", "b.example", None, Some(false)),
            ("b.example:1", "b.example", Some(1), None),
            ("amqps://[::1]:5671", "::1", Some(5671), Some(true)),
            ("[::1]", "::1", None, None),
        ];
        for (text, host, port, tls) in cases {
            let expected = FailoverUrl {
                host: host.to_owned(),
                port,
                tls,
            };
            assert_eq!(url(text), Ok(expected), "{text}");
        }
        for text in [
            "http://h",
            "amqp://",
            "h:0",
            "h:70000",
            "h:amqp",
            "[::1",
            "[::1]5671",
            "h/x",
            "amqp://u@h /",
        ] {
            assert!(url(text).is_err(), "{text}");
        }
    }
}
