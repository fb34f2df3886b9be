//! Cloud-to-device commands: one queue per device, a lock on what is under way, and the feedback that outcomes give.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use fe2o3_amqp::types::messaging::{
    ApplicationProperties, Body, Data, DeliveryState, Message, MessageAnnotations, MessageId, Properties,
};
use fe2o3_amqp::types::primitives::{SimpleValue, Symbol, Timestamp, Value};

use super::super::message;
use super::clock::Moment;
use super::guid;
use super::node::Identity;
use super::observed::ConnectionId;
use super::refusal::Refusal;
use super::settings::Settings;

/// Names one locked command; also its delivery tag.
pub(crate) type LockToken = [u8; 16];

/// A command on its way, and where.
struct Locked {
    device: String,
    command: Command,
    connection: ConnectionId,
    until: Moment,
}

/// A command in a queue.
struct Command {
    message: Message<Body<Value>>,
    message_id: String,
    wants_feedback: bool,
    delivery_count: u8,
    sequence_number: u64,
}

/// All queues of the hub.
#[derive(Default)]
pub(crate) struct Commands {
    queues: BTreeMap<String, VecDeque<Command>>,
    locked: BTreeMap<LockToken, Locked>,
    feedback: VecDeque<String>,
    dead_letters: usize,
    last_sequence_number: u64,
}

impl Commands {
    /// Puts a command at the end of its device's queue.
    pub(crate) fn enqueue(
        &mut self,
        recipient: &Identity,
        message: Message<Body<Value>>,
        settings: &Settings,
    ) -> Result<(), Refusal> {
        if !settings.knows(recipient) {
            return Err(Refusal::no_such_device(recipient));
        }
        let locked = self
            .locked
            .values()
            .filter(|locked| locked.device == recipient.to_string());
        let locked = locked.count();
        let queue = self.queues.entry(recipient.to_string()).or_default();
        if queue.len() + locked >= settings.max_pending_commands {
            return Err(Refusal::queue_full());
        }
        let message_id = match message
            .properties
            .as_ref()
            .and_then(|properties| properties.message_id.as_ref())
        {
            Some(MessageId::String(id)) => id.clone(),
            Some(other) => format!("{other:?}"),
            None => String::new(),
        };
        let wants_feedback = message
            .application_properties
            .as_ref()
            .and_then(|ApplicationProperties(map)| map.get("iothub-ack"))
            .is_some_and(|ack| matches!(ack, SimpleValue::String(ack) if ack != "none"));
        self.last_sequence_number += 1;
        let sequence_number = self.last_sequence_number;
        queue.push_back(Command {
            message,
            message_id,
            wants_feedback,
            delivery_count: 0,
            sequence_number,
        });
        Ok(())
    }

    /// Locks the next command of a device for this connection and gives its encoded form.
    pub(crate) fn lock_next(
        &mut self,
        device: &str,
        connection: ConnectionId,
        settings: &Settings,
        now: Moment,
    ) -> Option<(LockToken, Bytes)> {
        let mut command = self.queues.get_mut(device)?.pop_front()?;
        let token = guid::random();
        let annotations = command
            .message
            .message_annotations
            .get_or_insert_with(MessageAnnotations::default);
        let mut annotate = |name: &str, value: Value| {
            annotations.0.insert(name.into(), value);
        };
        annotate(
            "iothub-enqueuedtime",
            Value::Timestamp(Timestamp::from_milliseconds(1_795_348_800_000)),
        );
        annotate("iothub-deliverycount", Value::Ubyte(command.delivery_count));
        annotate("x-opt-sequence-number", Value::Ulong(command.sequence_number));
        annotate("x-opt-lock-token", Value::Uuid(token.into()));
        let encoded = message::encode(&command.message);
        let until = now + settings.command_lock;
        self.locked.insert(
            token,
            Locked {
                device: device.to_owned(),
                command,
                connection,
                until,
            },
        );
        Some((token, encoded))
    }

    /// An outcome arrived. Says whether the lock was still held.
    pub(crate) fn settle(
        &mut self,
        token: &LockToken,
        state: Option<&DeliveryState>,
        settings: &Settings,
    ) -> bool {
        let Some(Locked {
            device, mut command, ..
        }) = self.locked.remove(token)
        else {
            return false;
        };
        match state {
            Some(DeliveryState::Accepted(_)) => self.report(&device, &command, "Success"),
            Some(DeliveryState::Rejected(_)) => {
                self.dead_letters += 1;
                self.report(&device, &command, "Rejected");
            }
            Some(DeliveryState::Released(_) | DeliveryState::Modified(_) | DeliveryState::Received(_))
            | None => {
                command.delivery_count += 1;
                if command.delivery_count >= settings.max_delivery_count {
                    self.dead_letters += 1;
                    self.report(&device, &command, "DeliveryCountExceeded");
                } else {
                    self.queues.entry(device).or_default().push_front(command);
                }
            }
        }
        true
    }

    /// Puts back what this connection held: it is gone. The delivery count stays.
    pub(crate) fn unlock_connection(&mut self, connection: ConnectionId) {
        self.unlock(|locked| locked.connection == connection);
    }

    /// Puts back what was locked under these tokens: their link is gone.
    pub(crate) fn unlock_tokens(&mut self, tokens: &[LockToken]) {
        for token in tokens {
            if let Some(Locked { device, command, .. }) = self.locked.remove(token) {
                self.queues.entry(device).or_default().push_front(command);
            }
        }
    }

    /// Puts back commands whose lock has run out.
    pub(crate) fn unlock_expired(&mut self, now: Moment) {
        self.unlock(|locked| locked.until <= now);
    }

    fn unlock(&mut self, matches: impl Fn(&Locked) -> bool) {
        let tokens: Vec<LockToken> = self
            .locked
            .iter()
            .filter(|(_, locked)| matches(locked))
            .map(|(token, _)| *token)
            .collect();
        self.unlock_tokens(&tokens);
    }

    /// When the next lock runs out.
    pub(crate) fn next_expiry(&self) -> Option<Moment> {
        self.locked.values().map(|locked| locked.until).min()
    }

    /// Commands waiting for a device.
    pub(crate) fn pending(&self, device: &str) -> usize {
        self.queues.get(device).map_or(0, VecDeque::len)
    }

    /// Commands that were rejected, or delivered too often.
    pub(crate) fn dead_letters(&self) -> usize {
        self.dead_letters
    }

    fn report(&mut self, device: &str, command: &Command, status: &str) {
        if command.wants_feedback {
            let id = &command.message_id;
            self.feedback.push_back(format!(
                r#"{{"originalMessageId":"{id}","statusCode":"{status}","description":"{status}","deviceId":"{device}","deviceGenerationId":"1","enqueuedTimeUtc":"2026-11-22T12:00:00Z"}}"#
            ));
        }
    }

    /// All feedback records so far, as one encoded message, if there are any.
    pub(crate) fn take_feedback(&mut self) -> Option<Bytes> {
        if self.feedback.is_empty() {
            return None;
        }
        let records: Vec<String> = self.feedback.drain(..).collect();
        let properties = Properties {
            content_type: Some(Symbol::from("application/vnd.microsoft.iothub.feedback.json")),
            ..Properties::default()
        };
        let body = Body::Data(vec![Data(format!("[{}]", records.join(",")).into_bytes().into())].into());
        Some(message::encode(&message::with_properties(body, properties)))
    }
}
