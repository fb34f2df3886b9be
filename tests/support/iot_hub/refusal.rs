//! IoT Hub's errors: an AMQP condition, and a description that is JSON.

use fe2o3_amqp::types::definitions::{AmqpError, ConnectionError, Error, ErrorCondition, Fields, LinkError};
use fe2o3_amqp::types::primitives::{Symbol, Value};

use super::guid;
use super::node::Identity;
use super::settings::BuiltInEvents;

/// A reason to say no, with the hub's own error code.
#[derive(Clone, Debug)]
pub(crate) struct Refusal {
    condition: ErrorCondition,
    code: u32,
    message: String,
}

impl Refusal {
    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self {
            condition: AmqpError::NotFound.into(),
            code: 404_006,
            message: message.into(),
        }
    }

    pub(crate) fn no_such_device(device: &Identity) -> Self {
        let message = format!("Device {device} not registered.");
        Self {
            condition: AmqpError::NotFound.into(),
            code: 404_001,
            message,
        }
    }

    pub(crate) fn unauthorized(message: impl Into<String>) -> Self {
        Self {
            condition: AmqpError::UnauthorizedAccess.into(),
            code: 401_002,
            message: message.into(),
        }
    }

    pub(crate) fn invalid_operation(message: impl Into<String>) -> Self {
        Self {
            condition: AmqpError::NotAllowed.into(),
            code: 400_003,
            message: message.into(),
        }
    }

    pub(crate) fn queue_full() -> Self {
        let message = "The maximum number of pending commands has been reached.".to_owned();
        Self {
            condition: AmqpError::ResourceLimitExceeded.into(),
            code: 403_004,
            message,
        }
    }

    pub(crate) fn too_large(limit: usize) -> Self {
        let message = format!("The message exceeds the maximum of {limit} bytes.");
        Self {
            condition: LinkError::MessageSizeExceeded.into(),
            code: 413_001,
            message,
        }
    }

    pub(crate) fn quota_exceeded(hub: &str) -> Self {
        Self {
            condition: AmqpError::ResourceLimitExceeded.into(),
            code: 403_002,
            message: format!("Total number of messages on IotHub '{hub}' exceeded the allocated quota."),
        }
    }

    pub(crate) fn throttled() -> Self {
        Self {
            condition: ErrorCondition::Custom(Symbol::from("com.microsoft:device-container-throttled")),
            code: 429_001,
            message: "Too many requests. Retry later.".to_owned(),
        }
    }

    pub(crate) fn lock_lost() -> Self {
        Self {
            condition: ErrorCondition::Custom(Symbol::from("com.microsoft:message-lock-lost")),
            code: 412_002,
            message: "The lock of the message is lost.".to_owned(),
        }
    }

    pub(crate) fn upgrading() -> Self {
        Self {
            condition: ConnectionError::ConnectionForced.into(),
            code: 400_030,
            message: "The gateway is being upgraded. Retry later.".to_owned(),
        }
    }

    pub(crate) fn unknown_hub(name: &str) -> Self {
        let condition = ErrorCondition::Custom(Symbol::from("com.microsoft:iot-hub-not-found-error"));
        Self {
            condition,
            code: 401_001,
            message: format!("IoT Hub {name} not found."),
        }
    }

    /// Where a receiver of an IoT hub's events has to go (AMQP 1.0 part 2, §2.8.18, `amqp:link:redirect`).
    pub(super) fn redirect(to: &BuiltInEvents, below: &str) -> Error {
        let BuiltInEvents { host, port, hub } = to;
        let address = format!("amqps://{host}:{port}/{hub}/{below}");
        let mut info = Fields::default();
        for (key, value) in [
            ("hostname", Value::String(host.clone())),
            ("network-host", Value::String(host.clone())),
            ("port", Value::Ushort(*port)),
            ("address", Value::String(address)),
        ] {
            info.insert(Symbol::from(key), value);
        }
        let text = "The events are to be read at the address that info has.".to_owned();
        Error::new(LinkError::Redirect, text, info)
    }

    /// As it goes into a detach, a close or a rejected outcome.
    pub(crate) fn to_error(&self) -> Error {
        let tracking_id = guid::hex(&guid::random()).to_uppercase();
        let Self {
            condition,
            code,
            message,
        } = self;
        let description = format!(
            r#"{{"errorCode":{code},"trackingId":"{tracking_id}-G:2-TimeStamp:11/22/2026 12:00:00","message":"{message}","timestampUtc":"2026-11-22T12:00:00Z"}}"#
        );
        let mut info = Fields::default();
        info.insert(Symbol::from("com.microsoft:is-filtered"), Value::Bool(true));
        Error::new(condition.clone(), description, info)
    }
}
