//! Delivery states that we originate (AMQP 1.0 part 3, §3.4); those of peers are carried encoded.

use super::writer::Writer;

/// `accepted`: done.
pub fn write_accepted(out: &mut Writer<'_>) {
    out.composite(0x24, 0, |_| {});
}

/// `released`: the delivery was not sent on; send it again.
pub fn write_released(out: &mut Writer<'_>) {
    out.composite(0x26, 0, |_| {});
}

/// `modified` with delivery-failed: it may or may not have been processed.
pub fn write_modified_failed(out: &mut Writer<'_>) {
    out.composite(0x27, 3, |fields| {
        fields.boolean(true);
        fields.null();
        fields.null();
    });
}
