//! A peer of the hub that says one frame at a time: without SASL, one session, `$cbs` on handles 0 and 1.

use fe2o3_amqp::types::definitions::{Error, Handle, Role};
use fe2o3_amqp::types::messaging::{
    AmqpValue, ApplicationProperties, Body, DeliveryState, MessageId, Properties,
};
use fe2o3_amqp::types::performatives::{Attach, Detach, Disposition, Open, Performative};
use fe2o3_amqp::types::primitives::{SimpleValue, Value};

use crate::support::article::HUB;
use crate::support::iot_hub::IotHub;
use crate::support::raw::{self, RawDevice};
use crate::support::{Failure, ensure_eq, message};

pub(crate) struct Client {
    pub(crate) raw: RawDevice,
    /// Transfers.
    sent: u32,
    deliveries: u32,
}

impl Client {
    pub(crate) async fn open(hub: &IotHub) -> Result<Self, Failure> {
        let open = Open {
            hostname: Some(HUB.to_owned()),
            ..raw::open("device", 65_536)
        };
        let raw = RawDevice::begin(hub.address(), open, raw::begin(0)).await?;
        Ok(Self {
            raw,
            sent: 0,
            deliveries: 0,
        })
    }

    /// Opens, and attaches the pair to `$cbs`.
    pub(crate) async fn with_cbs(hub: &IotHub) -> Result<Self, Failure> {
        let mut client = Self::open(hub).await?;
        client.attach("requests", 0, Role::Sender, "$cbs").await?;
        client.attach("answers", 1, Role::Receiver, "$cbs").await?;
        client.credit(1, 100)?;
        Ok(client)
    }

    /// Opens, and puts this token.
    pub(crate) async fn with_token(hub: &IotHub, token: &str) -> Result<Self, Failure> {
        let mut client = Self::with_cbs(hub).await?;
        ensure_eq("the token", client.put(token).await?, 200)?;
        Ok(client)
    }

    pub(crate) async fn attach(
        &mut self,
        name: &str,
        handle: u32,
        role: Role,
        address: &str,
    ) -> Result<Attach, Failure> {
        self.attach_as(raw::attach(name, handle, role, address)).await
    }

    /// Attaches; gives the hub's attach.
    pub(crate) async fn attach_as(&mut self, attach: Attach) -> Result<Attach, Failure> {
        let name = attach.name.clone();
        self.raw.send(Performative::Attach(attach))?;
        let is_answer = |frame| match frame {
            Performative::Attach(answer) if answer.name == name => Some(answer),
            _ => None,
        };
        self.raw.expect("an attach", is_answer).await
    }

    pub(crate) fn credit(&mut self, handle: u32, credit: u32) -> Result<(), Failure> {
        self.raw
            .send(Performative::Flow(raw::credit(handle, credit, 0, self.sent)))
    }

    /// Sends one message in frames of the peer's size.
    pub(crate) fn send(&mut self, handle: u32, payload: &[u8]) -> Result<(), Failure> {
        self.send_as(handle, 0, payload)
    }

    /// As [`send`](Self::send), in this message-format.
    pub(crate) fn send_as(&mut self, handle: u32, format: u32, payload: &[u8]) -> Result<(), Failure> {
        let id = self.deliveries;
        self.deliveries += 1;
        let mut pieces: Vec<&[u8]> = payload.chunks(60_000).collect();
        if pieces.is_empty() {
            pieces.push(&[]);
        }
        for (index, piece) in pieces.iter().enumerate() {
            let mut transfer = raw::transfer(handle, id, &id.to_be_bytes());
            transfer.message_format = Some(format);
            transfer.more = index + 1 < pieces.len();
            self.raw.transfer(transfer, piece)?;
            self.sent += 1;
        }
        Ok(())
    }

    pub(crate) fn request(
        &mut self,
        operation: &str,
        token_type: &str,
        name: &str,
        body: &str,
        id: MessageId,
    ) -> Result<(), Failure> {
        let properties = Properties {
            message_id: Some(id),
            ..Properties::default()
        };
        let body = Body::Value(AmqpValue(Value::from(body)));
        let mut request = message::with_properties(body, properties);
        let map = ApplicationProperties::builder().insert("operation", operation);
        request.application_properties = Some(map.insert("type", token_type).insert("name", name).build());
        self.send(0, &message::encode(&request))
    }

    /// The next answer of `$cbs`: its correlation-id and its status.
    pub(crate) async fn answer(&mut self) -> Result<(Option<MessageId>, i32), Failure> {
        let payload = self
            .raw
            .expect_with_payload("an answer", |frame, payload| {
                let is_answer =
                    matches!(&frame, Performative::Transfer(transfer) if transfer.handle == Handle(1));
                is_answer.then_some(payload)
            })
            .await?;
        let answer = message::decode(&payload)?;
        let Some(SimpleValue::Int(status)) = message::application_property(&answer, "status-code").cloned()
        else {
            return Err(Failure::new("no status-code of type int"));
        };
        Ok((
            answer.properties.and_then(|properties| properties.correlation_id),
            status,
        ))
    }

    pub(crate) async fn put(&mut self, token: &str) -> Result<i32, Failure> {
        self.ask("put-token", "servicebus.windows.net:sastoken", "a name", token)
            .await
    }

    pub(crate) async fn ask(
        &mut self,
        operation: &str,
        token_type: &str,
        name: &str,
        body: &str,
    ) -> Result<i32, Failure> {
        self.request(operation, token_type, name, body, MessageId::Ulong(0))?;
        Ok(self.answer().await?.1)
    }

    /// The next outcome.
    pub(crate) async fn outcome(&mut self) -> Result<Option<DeliveryState>, Failure> {
        Ok(self.disposition().await?.state)
    }

    pub(crate) async fn disposition(&mut self) -> Result<Disposition, Failure> {
        let is_outcome = |frame| match frame {
            Performative::Disposition(disposition) => Some(disposition),
            _ => None,
        };
        self.raw.expect("an outcome", is_outcome).await
    }

    /// The hub detaches a link; it is answered. Gives the handle and the error.
    pub(crate) async fn detached(&mut self) -> Result<(u32, Error), Failure> {
        let is_detach = |frame| match frame {
            Performative::Detach(detach) => Some(detach),
            _ => None,
        };
        let Detach { handle, error, .. } = self.raw.expect("a detach", is_detach).await?;
        self.detach(handle.0)?;
        let error = error.ok_or_else(|| Failure::new("a detach without an error"))?;
        Ok((handle.0, error))
    }

    pub(crate) fn detach(&mut self, handle: u32) -> Result<(), Failure> {
        self.raw.send(Performative::Detach(Detach {
            handle: Handle(handle),
            closed: true,
            error: None,
        }))
    }

    /// The hub closes; gives the error's text.
    pub(crate) async fn closed(&mut self) -> Result<String, Failure> {
        let is_close = |frame| match frame {
            Performative::Close(close) => Some(format!("{:?}", close.error)),
            _ => None,
        };
        self.raw.expect("a close", is_close).await
    }

    /// The hub ends the session; gives the error's text.
    pub(crate) async fn ended(&mut self) -> Result<String, Failure> {
        let is_end = |frame| match frame {
            Performative::End(end) => Some(format!("{:?}", end.error)),
            _ => None,
        };
        self.raw.expect("an end", is_end).await
    }
}
