//! Client libraries that talk to IoT Hub, as they are on the wire, and devices that run them, frame by frame.

use std::net::SocketAddr;

use bytes::Bytes;
use fe2o3_amqp::types::definitions::{Handle, ReceiverSettleMode, Role};
use fe2o3_amqp::types::messaging::{
    Accepted, AmqpValue, ApplicationProperties, Body, DeliveryState, MessageId, Properties, TargetArchetype,
};
use fe2o3_amqp::types::performatives::{
    Attach, Begin, ChannelMax, Close, Detach, Disposition, End, Flow, Open, Performative, Transfer,
};
use fe2o3_amqp::types::primitives::{OrderedMap, Symbol, Uuid, Value};
use fe2o3_amqp::types::sasl::SaslInit;
use tokio::net::TcpStream;

use super::article;
use super::device::{self, Granted};
use super::raw::{self, RawDevice};
use super::wire::{self, AMQP_HEADER, SASL_HEADER};
use super::{Failure, bounded, ensure_eq, message};

/// Handles of the links for telemetry and for commands; those of `$cbs` are 0 and 1.
const TELEMETRY: u32 = 2;
const COMMANDS: u32 = 3;

/// Where a client has its `$cbs` links.
#[derive(Clone, Copy, PartialEq, Eq)]
enum CbsSession {
    /// In a session that it ends before it does anything else.
    EndedBefore,
    /// In a session of their own, which stays.
    Apart,
    /// In the session of everything else.
    Shared,
}

/// When a client sends its token.
#[derive(Clone, Copy, PartialEq, Eq)]
enum TokenGoes {
    /// When both links are attached.
    AfterBoth,
    /// As soon as there is credit, before the attach of the receiver has been answered.
    OnCredit,
}

/// A client library.
pub(crate) struct Client {
    /// Chosen mechanism; `None`: the AMQP header comes first.
    sasl: Option<&'static str>,
    /// Header, open and begin in one packet.
    pipelines: bool,
    hostname: Option<&'static str>,
    max_frame_size: u32,
    channel_max: u16,
    window: u32,
    session: CbsSession,
    token_goes: TokenGoes,
    /// Names of the `$cbs` sender and receiver.
    links: (&'static str, &'static str),
    /// Their other termini: the source of the sender, the target of the receiver.
    others: (Option<&'static str>, Option<&'static str>),
    message_id: fn(u64) -> MessageId,
    to: Option<&'static str>,
    reply_to: Option<&'static str>,
    token_type: &'static str,
    /// The token's `name`, of the device's id.
    name: fn(&str) -> String,
    /// Addresses, of the device's id.
    pub(crate) events: fn(&str) -> String,
    pub(crate) commands: fn(&str) -> String,
    /// Whether links have the properties that the Azure SDKs give them.
    properties: bool,
    credit: u32,
    pub(crate) message_format: u32,
    /// Whether the hub settles a command first.
    second: bool,
}

/// What devices call the router, where they do not have the hub's name.
pub(crate) const GATEWAY: &str = "gateway.local";
pub(crate) const SAS: &str = "servicebus.windows.net:sastoken";
const HUB: &str = article::HUB;

/// The path of a device's node.
pub(crate) fn own_path(id: &str, node: &str) -> String {
    format!("/devices/{id}/messages/{node}")
}

/// AMQP.Net Lite 1.1 as the article's program uses it.
pub(crate) fn lite() -> Client {
    Client {
        sasl: None,
        pipelines: false,
        hostname: Some("192.168.1.7"),
        max_frame_size: 2_048,
        channel_max: 255,
        window: 2_048,
        session: CbsSession::EndedBefore,
        token_goes: TokenGoes::AfterBoth,
        links: ("cbs-sender", "cbs-reply-to"),
        others: (None, None),
        message_id: |number| MessageId::String(format!("3f2a54a6-41a6-4f3e-a8de-{number:012}")),
        to: None,
        reply_to: Some("cbs-reply-to"),
        token_type: "azure-devices.net:sastoken",
        name: |id| format!("/devices/{id}/events"),
        events: |id| own_path(id, "events"),
        commands: |id| own_path(id, "deviceBound"),
        properties: false,
        credit: 20,
        message_format: 0,
        second: false,
    }
}

/// The micro client of AMQP.Net Lite for boards with little memory: one session, eight links, frames of 1024.
pub(crate) fn lite_micro() -> Client {
    Client {
        pipelines: true,
        hostname: None,
        max_frame_size: 1_024,
        channel_max: 0,
        window: 100,
        session: CbsSession::Shared,
        links: ("netmf-lite-sender0", "netmf-lite-receiver1"),
        credit: 1,
        ..lite()
    }
}

/// uAMQP, below the SDKs for C and Python.
pub(crate) fn uamqp() -> Client {
    Client {
        sasl: Some("MSSBCBS"),
        hostname: Some(GATEWAY),
        max_frame_size: u32::MAX,
        channel_max: u16::MAX,
        window: u32::MAX,
        session: CbsSession::Shared,
        token_goes: TokenGoes::OnCredit,
        links: ("$cbs-sender", "$cbs-receiver"),
        others: (Some("$cbs"), Some("$cbs")),
        message_id: MessageId::Ulong,
        reply_to: None,
        token_type: SAS,
        name: |id| format!("{HUB}/devices/{id}"),
        events: |id| format!("amqps://{HUB}{}", own_path(id, "events")),
        commands: |id| format!("amqps://{HUB}{}", own_path(id, "devicebound")),
        properties: true,
        credit: 10_000,
        // A batch (IoT Hub: message-format 0x80013700).
        message_format: 0x8001_3700,
        ..lite()
    }
}

/// rhea, below the SDK for Node.
pub(crate) fn node() -> Client {
    Client {
        sasl: Some("ANONYMOUS"),
        hostname: Some(GATEWAY),
        max_frame_size: u32::MAX,
        links: ("rheaSender_1", "rheaReceiver_1"),
        session: CbsSession::Shared,
        message_id: |number| MessageId::String(format!("9b1f7a52-0c7f-4d6a-9a53-{number:012}")),
        to: Some("$cbs"),
        reply_to: Some("cbs"),
        token_type: SAS,
        name: |id| format!("{HUB}/devices/{id}"),
        properties: true,
        credit: 1_000,
        ..lite()
    }
}

/// The SDK for .NET with `GatewayHostName`, on the stack of the service itself.
pub(crate) fn dotnet() -> Client {
    Client {
        sasl: Some("ANONYMOUS"),
        hostname: Some(GATEWAY),
        max_frame_size: 65_536,
        session: CbsSession::Apart,
        links: ("duplex1:1:sender", "duplex1:1:receiver"),
        others: (None, Some("7b8e5c2d-client-address")),
        message_id: |number| MessageId::String(format!("cbs1:{number}")),
        to: None,
        reply_to: Some("7b8e5c2d-client-address"),
        token_type: SAS,
        name: |id| format!("amqps://{GATEWAY}/devices/{id}"),
        events: |id| format!("amqps://{GATEWAY}:5671{}", own_path(id, "events")),
        commands: |id| format!("amqps://{GATEWAY}:5671{}", own_path(id, "devicebound")),
        properties: true,
        credit: 50,
        second: true,
        ..lite()
    }
}

/// The SDK for Java: frames of 4096, one session for tokens.
pub(crate) fn java() -> Client {
    Client {
        sasl: Some("ANONYMOUS"),
        hostname: Some(GATEWAY),
        max_frame_size: 4_096,
        session: CbsSession::Apart,
        links: ("cbs-sender-1", "cbs-receiver-1"),
        message_id: |number| MessageId::Uuid(Uuid::from(u128::from(number).to_be_bytes())),
        reply_to: Some("cbs"),
        token_type: SAS,
        name: |id| format!("{GATEWAY}/devices/{id}"),
        properties: true,
        credit: 1_000,
        ..lite()
    }
}

/// A program on Qpid Proton: ids of type binary, its container's name in its links.
pub(crate) fn proton() -> Client {
    Client {
        sasl: Some("ANONYMOUS"),
        hostname: Some(GATEWAY),
        max_frame_size: 16_384,
        session: CbsSession::Shared,
        links: ("1-$cbs", "2-$cbs"),
        message_id: |number| MessageId::Binary(number.to_be_bytes().to_vec().into()),
        reply_to: Some("$cbs"),
        token_type: SAS,
        name: |id| format!("{HUB}/devices/{id}"),
        events: |id| own_path(id, "events").trim_start_matches('/').to_owned(),
        commands: |id| own_path(id, "devicebound").trim_start_matches('/').to_owned(),
        credit: 10,
        ..lite()
    }
}

/// A device that runs a client.
pub(crate) struct Board<'a> {
    pub(crate) client: &'a Client,
    pub(crate) id: &'static str,
    wire: RawDevice,
    /// The channel of everything but the token.
    channel: u16,
    /// The `$cbs` sender's and receiver's handles are 0 and 1 there.
    cbs_channel: u16,
    requests: u64,
    /// Transfers sent in the session that it works in now, and received there.
    sent: u32,
    received: u32,
    /// Deliveries received on its link for commands.
    commands: u32,
}

impl<'a> Board<'a> {
    pub(crate) async fn open(
        client: &'a Client,
        id: &'static str,
        address: SocketAddr,
    ) -> Result<Self, Failure> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        // A frame larger than the client can take fails the test.
        let limit = usize::try_from(client.max_frame_size)?;
        let (reader, writer) = wire::split(Box::new(stream), limit);
        let mut wire = RawDevice { reader, writer };
        if let Some(mechanism) = client.sasl {
            wire.writer.raw(SASL_HEADER.to_vec());
            ensure_eq(
                "the SASL header",
                bounded("the SASL header", wire.reader.header()).await??,
                SASL_HEADER,
            )?;
            bounded("the mechanisms", wire.reader.next()).await??;
            wire.writer.send_sasl(&SaslInit {
                mechanism: Symbol::from(mechanism),
                initial_response: None,
                hostname: client.hostname.map(str::to_owned),
            })?;
            bounded("the outcome", wire.reader.next()).await??;
        }
        let open = Open {
            hostname: client.hostname.map(str::to_owned),
            channel_max: ChannelMax(client.channel_max),
            ..raw::open("AMQPNetLite-1", client.max_frame_size)
        };
        let mut board = Board {
            client,
            id,
            wire,
            channel: 0,
            cbs_channel: 0,
            requests: 0,
            sent: 0,
            received: 0,
            commands: 0,
        };
        if client.pipelines {
            let mut packet = AMQP_HEADER.to_vec();
            packet.extend(wire::frame_of(0, &Performative::Open(open))?);
            packet.extend(wire::frame_of(0, &Performative::Begin(board.begin_frame()))?);
            board.wire.writer.raw(packet);
            board.wire.expect_header().await?;
            board.expect_begin().await?;
        } else {
            board.wire.writer.raw(AMQP_HEADER.to_vec());
            board.wire.expect_header().await?;
            board.send(0, Performative::Open(open))?;
            board
                .wire
                .expect("an open", |frame| {
                    matches!(frame, Performative::Open(_)).then_some(())
                })
                .await?;
            board.begin(0).await?;
        }
        Ok(board)
    }

    fn send(&self, channel: u16, performative: Performative) -> Result<(), Failure> {
        Ok(self.wire.writer.send(channel, &performative, &[])?)
    }

    fn begin_frame(&self) -> Begin {
        Begin {
            incoming_window: self.client.window,
            outgoing_window: self.client.window,
            ..raw::begin(0)
        }
    }

    async fn begin(&mut self, channel: u16) -> Result<(), Failure> {
        self.send(channel, Performative::Begin(self.begin_frame()))?;
        self.expect_begin().await
    }

    async fn expect_begin(&mut self) -> Result<(), Failure> {
        self.wire
            .expect("a begin", |frame| {
                matches!(frame, Performative::Begin(_)).then_some(())
            })
            .await
    }

    /// The answer to an attach, by the link's name.
    async fn attached(&mut self, name: &str) -> Result<Attach, Failure> {
        self.wire
            .expect(
                &format!("the answer to the attach of {name}"),
                |frame| match frame {
                    Performative::Attach(attach) if attach.name == name => Some(attach),
                    _ => None,
                },
            )
            .await
    }

    async fn credited(&mut self, link: &Attach) -> Result<(), Failure> {
        let handle = link.handle.clone();
        self.wire
            .expect(&format!("credit for {}", link.name), |frame| match frame {
                Performative::Flow(Flow {
                    handle: Some(of),
                    link_credit: Some(credit),
                    ..
                }) if of == handle && credit > 0 => Some(()),
                _ => None,
            })
            .await
    }

    /// Gives the client's credit to a link on which so many deliveries have come.
    fn grant(&self, channel: u16, handle: u32, deliveries: u32) -> Result<(), Failure> {
        let flow = Flow {
            next_incoming_id: Some(self.received),
            incoming_window: self.client.window,
            delivery_count: Some(deliveries),
            ..raw::credit(handle, self.client.credit, 0, self.sent)
        };
        self.send(channel, Performative::Flow(flow))
    }

    /// Attaches the `$cbs` links and puts a token, in the manner of the client; gives the answer.
    pub(crate) async fn put_token(&mut self, token: &str) -> Result<Granted, Failure> {
        if self.requests == 0 {
            self.attach_cbs(token).await
        } else {
            self.request(token)?;
            self.answer().await
        }
    }

    async fn attach_cbs(&mut self, token: &str) -> Result<Granted, Failure> {
        let (sender, receiver) = self.client.links;
        let (source, target) = self.client.others;
        let mut outgoing = raw::attach(sender, 0, Role::Sender, "$cbs");
        if let Some(terminus) = &mut outgoing.source {
            terminus.address = source.map(str::to_owned);
        }
        let mut incoming = raw::attach(receiver, 1, Role::Receiver, "$cbs");
        if let Some(TargetArchetype::Target(terminus)) = incoming.target.as_deref_mut() {
            terminus.address = target.map(str::to_owned);
        }
        let channel = self.cbs_channel;
        self.send(channel, Performative::Attach(outgoing))?;
        match self.client.token_goes {
            TokenGoes::AfterBoth => {
                let link = self.attached(sender).await?;
                self.credited(&link).await?;
                self.send(channel, Performative::Attach(incoming))?;
                self.attached(receiver).await?;
                self.grant(channel, 1, 0)?;
                self.request(token)?;
            }
            TokenGoes::OnCredit => {
                let link = self.attached(sender).await?;
                self.credited(&link).await?;
                // The router cannot have answered what it has not been asked.
                self.request(token)?;
                self.send(channel, Performative::Attach(incoming))?;
                self.attached(receiver).await?;
                self.grant(channel, 1, 0)?;
            }
        }
        self.answer().await
    }

    fn request(&mut self, token: &str) -> Result<(), Failure> {
        let client = self.client;
        let properties = Properties {
            message_id: Some((client.message_id)(self.requests)),
            to: client.to.map(str::to_owned),
            reply_to: client.reply_to.map(str::to_owned),
            ..Properties::default()
        };
        let mut request = message::with_properties(Body::Value(AmqpValue(Value::from(token))), properties);
        let map = ApplicationProperties::builder()
            .insert("operation", "put-token")
            .insert("type", client.token_type)
            .insert("name", (client.name)(self.id));
        request.application_properties = Some(map.build());
        self.transfer(self.cbs_channel, 0, 0, &message::encode(&request))?;
        self.requests += 1;
        Ok(())
    }

    fn transfer(&mut self, channel: u16, handle: u32, format: u32, payload: &Bytes) -> Result<(), Failure> {
        let id = self.sent;
        let transfer = Transfer {
            message_format: Some(format),
            ..raw::transfer(handle, id, &id.to_le_bytes())
        };
        self.wire
            .writer
            .send(channel, &Performative::Transfer(transfer), payload)?;
        self.sent += 1;
        Ok(())
    }

    /// The answer to the latest request.
    async fn answer(&mut self) -> Result<Granted, Failure> {
        let (transfer, payload) = self.delivery("an answer of $cbs").await?;
        self.settle(self.cbs_channel, &transfer, Accepted {}.into())?;
        self.grant(self.cbs_channel, 1, u32::try_from(self.requests)?)?;
        let expected = (self.client.message_id)(self.requests.saturating_sub(1));
        device::granted(&message::decode(&payload)?, expected)
    }

    /// The next delivery, whole.
    async fn delivery(&mut self, what: &str) -> Result<(Transfer, Vec<u8>), Failure> {
        let mut first = None;
        let mut whole = Vec::new();
        let mut frames = 0;
        self.wire
            .expect_with_payload(what, |performative, payload| {
                let Performative::Transfer(transfer) = performative else {
                    return None;
                };
                whole.extend_from_slice(&payload);
                frames += 1;
                let is_last = !transfer.more;
                let kept = first.get_or_insert(transfer);
                is_last.then(|| kept.clone())
            })
            .await
            .map(|transfer| (transfer, whole))
            .inspect(|_| self.received += frames)
    }

    fn settle(&self, channel: u16, transfer: &Transfer, state: DeliveryState) -> Result<(), Failure> {
        let disposition = Disposition {
            role: Role::Receiver,
            first: transfer.delivery_id.unwrap_or_default(),
            last: None,
            settled: !self.client.second || channel != self.channel,
            state: Some(state),
            batchable: false,
        };
        self.send(channel, Performative::Disposition(disposition))
    }

    /// Is done with its token, and ready for the rest.
    pub(crate) async fn move_on(&mut self) -> Result<(), Failure> {
        match self.client.session {
            CbsSession::Shared => return Ok(()),
            CbsSession::EndedBefore => {
                for handle in [0, 1] {
                    let detach = Detach {
                        handle: Handle(handle),
                        closed: true,
                        error: None,
                    };
                    self.send(0, Performative::Detach(detach))?;
                }
                self.send(0, Performative::End(End { error: None }))?;
                self.wire
                    .expect("the end", |frame| {
                        matches!(frame, Performative::End(_)).then_some(())
                    })
                    .await?;
            }
            CbsSession::Apart => {}
        }
        self.channel = 1;
        (self.sent, self.received) = (0, 0);
        self.begin(1).await
    }

    fn link(&self, name: &str, handle: u32, role: Role, address: &str) -> Attach {
        let mut attach = raw::attach(name, handle, role, address);
        if self.client.properties {
            let mut properties = OrderedMap::new();
            for (name, value) in [
                ("com.microsoft:client-version", "a client/1.0"),
                ("com.microsoft:api-version", "2020-09-30"),
            ] {
                properties.insert(Symbol::from(name), Value::from(value));
            }
            attach.properties = Some(properties);
        }
        if self.client.second && attach.role == Role::Receiver {
            attach.rcv_settle_mode = ReceiverSettleMode::Second;
        }
        attach
    }

    /// Sends a message on its link for telemetry; gives the outcome.
    pub(crate) async fn send_telemetry(&mut self, payload: &Bytes) -> Result<Option<DeliveryState>, Failure> {
        self.transfer(self.channel, TELEMETRY, self.client.message_format, payload)?;
        self.wire
            .expect("the outcome", |frame| match frame {
                Performative::Disposition(disposition) if disposition.role == Role::Receiver => {
                    Some(disposition.state)
                }
                _ => None,
            })
            .await
    }

    /// Attaches the link for telemetry to the address that the client writes; gives the answer, once there is credit.
    pub(crate) async fn attach_telemetry(&mut self) -> Result<Attach, Failure> {
        let address = (self.client.events)(self.id);
        let attach = self.link("telemetry", TELEMETRY, Role::Sender, &address);
        self.send(self.channel, Performative::Attach(attach))?;
        let link = self.attached("telemetry").await?;
        self.credited(&link).await?;
        Ok(link)
    }

    /// Attaches the link for commands, with credit; gives the answer.
    pub(crate) async fn attach_commands(&mut self) -> Result<Attach, Failure> {
        let address = (self.client.commands)(self.id);
        let attach = self.link("commands", COMMANDS, Role::Receiver, &address);
        self.send(self.channel, Performative::Attach(attach))?;
        let link = self.attached("commands").await?;
        self.grant(self.channel, COMMANDS, 0)?;
        Ok(link)
    }

    /// The next command, whole.
    pub(crate) async fn command(&mut self) -> Result<(Transfer, Vec<u8>), Failure> {
        let command = self.delivery("a command").await?;
        self.commands += 1;
        Ok(command)
    }

    /// Says what became of a command, and gives credit for more.
    pub(crate) fn dispose(&self, command: &Transfer, state: DeliveryState) -> Result<(), Failure> {
        self.settle(self.channel, command, state)?;
        self.grant(self.channel, COMMANDS, self.commands)
    }

    pub(crate) async fn close(mut self) -> Result<(), Failure> {
        self.send(0, Performative::Close(Close { error: None }))?;
        self.wire
            .expect("the close", |frame| {
                matches!(frame, Performative::Close(_)).then_some(())
            })
            .await
    }
}
