//! Tokens at `$cbs` (IoT Hub: `put-token`), as far as a benchmark needs them: a request, and the answer to it.

use super::wire;

/// The node for tokens.
pub(crate) const NODE: &str = "$cbs";

const PROPERTIES: u8 = 0x73;
const APPLICATION_PROPERTIES: u8 = 0x74;
const AMQP_VALUE: u8 = 0x77;
/// Status 200, as an int.
const OK: [u8; 5] = [0x71, 0, 0, 0, 200];

/// A token for `audience`, of the usual size. Nobody looks at its signature but a real hub.
pub(crate) fn token(audience: &str) -> String {
    let resource = audience.replace('/', "%2F");
    format!(
        "SharedAccessSignature sr={resource}&sig=7Nq3mB5vT0cXk1dRzLw8fYpGhJ2sUe6aQoKiVtWnMx4%3D&se=4102444800"
    )
}

/// Appends the request that puts it, as the delivery 0 of a link.
pub(crate) fn put_token(out: &mut Vec<u8>, channel: u16, handle: u32, audience: &str) {
    let mut payload = list_section(
        PROPERTIES,
        &[&text("put-1"), &[0x40], &[0x40], &[0x40], &text("cbs")],
    );
    payload.extend(map_section(&[
        &text("operation"),
        &text("put-token"),
        &text("type"),
        &text("servicebus.windows.net:sastoken"),
        &text("name"),
        &text(audience),
    ]));
    payload.extend([0x00, 0x53, AMQP_VALUE]);
    payload.extend(text(&token(audience)));
    wire::transfer(out, channel, handle, 0, &payload);
}

/// Appends a hub's answer to a request, if that has a message-id.
pub(crate) fn answer(
    out: &mut Vec<u8>,
    channel: u16,
    handle: u32,
    delivery: u32,
    request: &[u8],
) -> Option<()> {
    let id = wire::section(request, PROPERTIES)?.encoded()?;
    // Up to correlation-id, the sixth field.
    let mut payload = list_section(PROPERTIES, &[&[0x40], &[0x40], &[0x40], &[0x40], &[0x40], id]);
    payload.extend(map_section(&[
        &text("status-code"),
        &OK,
        &text("status-description"),
        &text("OK"),
    ]));
    payload.extend([0x00, 0x53, AMQP_VALUE, 0x40]);
    wire::transfer(out, channel, handle, delivery, &payload);
    Some(())
}

/// Whether an answer says yes, in whichever form its integer has.
pub(crate) fn is_accepted(answer: &[u8]) -> bool {
    let key = b"status-code";
    let value = answer
        .windows(key.len())
        .position(|bytes| bytes == key)
        .map(|at| &answer[at + key.len()..]);
    matches!(
        value,
        Some([0x71, 0, 0, 0, 200, ..] | [0x50, 200, ..] | [0x52, 200, ..])
    )
}

fn text(text: &str) -> Vec<u8> {
    let mut value = vec![0xb1];
    value.extend((text.len() as u32).to_be_bytes());
    value.extend(text.as_bytes());
    value
}

fn list_section(code: u8, fields: &[&[u8]]) -> Vec<u8> {
    compound(code, 0xd0, fields)
}

fn map_section(entries: &[&[u8]]) -> Vec<u8> {
    compound(APPLICATION_PROPERTIES, 0xd1, entries)
}

fn compound(code: u8, constructor: u8, values: &[&[u8]]) -> Vec<u8> {
    let content = values.concat();
    let mut section = vec![0x00, 0x53, code, constructor];
    section.extend((content.len() as u32 + 4).to_be_bytes());
    section.extend((values.len() as u32).to_be_bytes());
    section.extend(content);
    section
}
