//! What peers may not do, each of which costs the offender its session or its connection, and nobody else anything.
//! Bytes and operations of any kind are for `tests/fuzz`.

use linkrouterd::amqp::value::Value;

use super::Simulation;
use crate::wire::{self, Frame, uint};
use crate::world::PeerId;

/// What an offence costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Offence {
    Connection,
    Session(u16),
}

/// A handle that no link has.
const NO_LINK: u32 = 4000;
/// A channel that no session has.
const NO_SESSION: u16 = 1022;

impl Simulation {
    pub(super) fn offend(&mut self, id: PeerId) {
        if self.conduct(id).offence.is_some() {
            return;
        }
        let offence = match self.channel_of(id) {
            Some(channel) if self.random.one_in(2) => {
                let kind = self.random.below(7);
                if !self.break_session(id, channel, kind) {
                    return;
                }
                Offence::Session(channel)
            }
            Some(_) => {
                let bytes = self.breach();
                self.world.peer(id).out.tail().extend(bytes);
                // Whatever it says behind that could be taken for the rest of it.
                self.world.peer(id).is_mute = true;
                Offence::Connection
            }
            None => return,
        };
        self.totals.offences += 1;
        self.conduct(id).offence = Some(offence);
    }

    /// What no connection survives.
    fn breach(&mut self) -> Vec<u8> {
        let frame = |channel, code, fields| {
            let mut bytes = Vec::new();
            Frame::new(channel, code, fields).encode(&mut bytes);
            bytes
        };
        match self.random.below(11) {
            // A frame of 4 GiB, one that is smaller than its header, one whose header is.
            0 => vec![0xff; 8],
            1 => vec![0, 0, 0, 4, 2, 0, 0, 0],
            2 => vec![0, 0, 0, 8, 1, 0, 0, 0],
            // No performative, no encoding.
            3 => frame(0, 0x39, Vec::new()),
            4 => vec![0, 0, 0, 10, 2, 0, 0, 0, 0xde, 0xad],
            5 => frame(0, wire::OPEN, vec![wire::string("again")]),
            6 => frame(
                40_000,
                wire::BEGIN,
                vec![Value::Null, uint(0), uint(10), uint(10)],
            ),
            7 => frame(
                NO_SESSION,
                wire::FLOW,
                vec![Value::Null, uint(10), uint(0), uint(10)],
            ),
            8 => wire::AMQP_HEADER.to_vec(),
            9 => frame(0, wire::SASL_INIT, vec![wire::symbol("ANONYMOUS")]),
            _ => frame(0, wire::TRANSFER, vec![wire::string("a handle")]),
        }
    }

    /// What no session survives. `false` when there is no link to do it with.
    fn break_session(&mut self, id: PeerId, channel: u16, kind: usize) -> bool {
        let first = |handle| vec![uint(handle), uint(0), Value::Binary(vec![0])];
        let (code, fields) = match kind {
            0 => (wire::TRANSFER, first(NO_LINK)),
            1 => {
                let flow = [
                    uint(0),
                    uint(10),
                    uint(0),
                    uint(10),
                    uint(NO_LINK),
                    uint(0),
                    uint(1),
                ];
                (wire::FLOW, flow.to_vec())
            }
            2 => (wire::DETACH, vec![uint(NO_LINK), Value::Boolean(true)]),
            3 => (wire::ATTACH, attach("above handle-max", 5000)),
            4 => match self.link_on(id, channel, true) {
                Some(handle) => (wire::ATTACH, attach("handle in use", handle)),
                None => return false,
            },
            5 => match self.link_on(id, channel, false) {
                Some(handle) => (wire::TRANSFER, first(handle)),
                None => return false,
            },
            _ => match self.link_on(id, channel, true) {
                // A delivery that begins without an id.
                Some(handle) if self.world.peer(id).link(channel, handle).offset == 0 => {
                    (wire::TRANSFER, vec![uint(handle)])
                }
                Some(_) | None => return false,
            },
        };
        self.world.peer(id).say(&Frame::new(channel, code, fields));
        true
    }

    fn link_on(&mut self, id: PeerId, channel: u16, is_sender: bool) -> Option<u32> {
        let links = self.world.peer(id).session(channel).links.iter();
        let mut live = links.filter(|(_, link)| {
            link.is_sender == is_sender
                && link.remote.is_some()
                && !link.detach_sent
                && link.detached.is_none()
        });
        live.next().map(|(&handle, _)| handle)
    }
}

fn attach(name: &str, handle: u32) -> Vec<Value> {
    vec![
        wire::string(name),
        uint(handle),
        Value::Boolean(true),
        Value::Null,
        Value::Null,
        wire::terminus(0x28, "devices/d1/messages"),
        wire::terminus(0x29, "here"),
    ]
}
