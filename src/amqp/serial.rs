//! Serial numbers (AMQP 1.0 part 2, §2.8.10; RFC 1982) and the small integers that name things on the wire.

use std::fmt;

macro_rules! serial {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
        pub struct $name(pub u32);

        impl $name {
            /// The number `count` steps on; wraps at 2^32.
            #[must_use]
            pub const fn plus(self, count: u32) -> Self {
                $name(self.0.wrapping_add(count))
            }

            /// How many steps lead from `earlier` to `self`, wrapping.
            pub const fn since(self, earlier: Self) -> u32 {
                self.0.wrapping_sub(earlier.0)
            }

            /// Whether `self` comes before `other`, by RFC 1982.
            pub const fn precedes(self, other: Self) -> bool {
                let distance = other.0.wrapping_sub(self.0);
                distance != 0 && distance < 0x8000_0000
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

serial! {
    /// `sequence-no`: delivery-counts.
    SequenceNo
}
serial! {
    /// `transfer-number` as a session counts frames (next-incoming-id, next-outgoing-id).
    TransferId
}
serial! {
    /// `delivery-number`: delivery-ids, unique per session and direction.
    DeliveryId
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident($int:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
        pub struct $name(pub $int);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

name! {
    /// A channel number (AMQP 1.0 part 2, §2.3.1).
    Channel(u16)
}
name! {
    /// A link handle (AMQP 1.0 part 2, §2.8.5).
    Handle(u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_survives_the_wrap() {
        let last = DeliveryId(0xffff_fffd);
        assert!(last.precedes(last.plus(5)));
        assert_eq!(last.plus(5), DeliveryId(2));
        assert_eq!(DeliveryId(2).since(last), 5);
        assert!(!DeliveryId(2).precedes(last));
        assert!(!last.precedes(last));
    }
}
