//! A device that says exactly what it is told to, frame by frame: for what a well-behaved stack cannot do, such as
//! dying in the middle of a delivery.

use std::net::SocketAddr;

use bytes::Bytes;
use fe2o3_amqp::types::definitions::{DeliveryTag, Handle, ReceiverSettleMode, Role, SenderSettleMode};
use fe2o3_amqp::types::messaging::{Source, Target};
use fe2o3_amqp::types::performatives::{
    Attach, Begin, ChannelMax, Flow, MaxFrameSize, Open, Performative, Transfer,
};
use tokio::net::TcpStream;

use super::wire::{self, AMQP_HEADER, Frame, FrameReader, FrameWriter};
use super::{Failure, bounded, ensure_eq};

/// A connection in clear text.
pub(crate) struct RawDevice {
    pub(crate) reader: FrameReader,
    pub(crate) writer: FrameWriter,
}

impl RawDevice {
    /// Connects and says nothing.
    pub(crate) async fn connect(address: SocketAddr) -> Result<Self, Failure> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (reader, writer) = wire::split(Box::new(stream), usize::MAX);
        Ok(Self { reader, writer })
    }

    /// Connects, opens a connection and begins a session on channel 0.
    pub(crate) async fn begin(address: SocketAddr, open: Open, begin: Begin) -> Result<Self, Failure> {
        let mut device = Self::connect(address).await?;
        device.writer.raw(AMQP_HEADER.to_vec());
        device.send(Performative::Open(open))?;
        device.send(Performative::Begin(begin))?;
        device.expect_header().await?;
        device
            .expect("open", |frame| {
                matches!(frame, Performative::Open(_)).then_some(())
            })
            .await?;
        device
            .expect("begin", |frame| {
                matches!(frame, Performative::Begin(_)).then_some(())
            })
            .await?;
        Ok(device)
    }

    /// Reads the peer's AMQP header.
    pub(crate) async fn expect_header(&mut self) -> Result<(), Failure> {
        let header = bounded("the AMQP header", self.reader.header()).await??;
        ensure_eq("the header", header, AMQP_HEADER)
    }

    /// Sends a performative on channel 0.
    pub(crate) fn send(&self, performative: Performative) -> Result<(), Failure> {
        Ok(self.writer.send(0, &performative, &[])?)
    }

    /// Attaches a sender on channel 0, and waits until it has credit.
    pub(crate) async fn attach_sender(
        &mut self,
        name: &str,
        handle: u32,
        address: &str,
    ) -> Result<u32, Failure> {
        self.send(Performative::Attach(attach(name, handle, Role::Sender, address)))?;
        let credit = |performative| match performative {
            Performative::Flow(Flow {
                handle: Some(_),
                link_credit,
                ..
            }) => link_credit,
            _ => None,
        };
        self.expect("credit", credit).await
    }

    /// Sends a transfer on channel 0.
    pub(crate) fn transfer(&self, transfer: Transfer, payload: &[u8]) -> Result<(), Failure> {
        Ok(self.writer.send(0, &Performative::Transfer(transfer), payload)?)
    }

    /// The next performative that `pick` takes; others are passed over.
    pub(crate) async fn expect<T>(
        &mut self,
        what: &str,
        mut pick: impl FnMut(Performative) -> Option<T>,
    ) -> Result<T, Failure> {
        self.expect_with_payload(what, |performative, _| pick(performative))
            .await
    }

    /// As [`expect`](Self::expect), with the payload of transfers.
    pub(crate) async fn expect_with_payload<T>(
        &mut self,
        what: &str,
        mut pick: impl FnMut(Performative, Bytes) -> Option<T>,
    ) -> Result<T, Failure> {
        let search = async {
            loop {
                if let Frame::Amqp {
                    performative,
                    payload,
                    ..
                } = self.reader.next().await?
                    && let Some(found) = pick(performative, payload)
                {
                    return Ok(found);
                }
            }
        };
        bounded(what, search).await?
    }

    /// Drops the transport at once.
    pub(crate) fn die(self) {
        self.writer.abort();
    }
}

/// A broker that connects, opens, and waits for a session, which it answers.
pub(crate) struct DialingBroker(pub(crate) RawDevice);

impl DialingBroker {
    pub(crate) async fn connect(address: SocketAddr, container_id: &str) -> Result<Self, Failure> {
        let mut raw = RawDevice::connect(address).await?;
        raw.writer.raw(AMQP_HEADER.to_vec());
        raw.send(Performative::Open(open(container_id, 65_536)))?;
        raw.expect_header().await?;
        raw.expect("open", |frame| {
            matches!(frame, Performative::Open(_)).then_some(())
        })
        .await?;
        Ok(DialingBroker(raw))
    }

    pub(crate) async fn begun(&mut self) -> Result<(), Failure> {
        self.0
            .expect("a begin of the router", |frame| {
                matches!(frame, Performative::Begin(_)).then_some(())
            })
            .await?;
        let answer = Begin {
            remote_channel: Some(0),
            ..begin(0)
        };
        self.0.send(Performative::Begin(answer))
    }

    /// Answers the next attach as it was asked, by the same handle.
    pub(crate) async fn attached(&mut self) -> Result<Attach, Failure> {
        let attach = self
            .0
            .expect("an attach", |frame| match frame {
                Performative::Attach(attach) => Some(attach),
                _ => None,
            })
            .await?;
        let mut answer = attach.clone();
        answer.role = match attach.role {
            Role::Sender => Role::Receiver,
            Role::Receiver => Role::Sender,
        };
        answer.initial_delivery_count = (answer.role == Role::Sender).then_some(0);
        self.0.send(Performative::Attach(answer))?;
        Ok(attach)
    }
}

/// An open of a device called `container_id` that takes frames of this size.
pub(crate) fn open(container_id: &str, max_frame_size: u32) -> Open {
    Open {
        container_id: container_id.to_owned(),
        hostname: None,
        max_frame_size: MaxFrameSize(max_frame_size),
        channel_max: ChannelMax(0),
        idle_time_out: None,
        outgoing_locales: None,
        incoming_locales: None,
        offered_capabilities: None,
        desired_capabilities: None,
        properties: None,
    }
}

/// A begin whose transfers are counted from `next_outgoing_id`.
pub(crate) fn begin(next_outgoing_id: u32) -> Begin {
    Begin {
        remote_channel: None,
        next_outgoing_id,
        incoming_window: 2_048,
        outgoing_window: 2_048,
        handle_max: Handle(7),
        offered_capabilities: None,
        desired_capabilities: None,
        properties: None,
    }
}

/// An attach, as a sender to or a receiver from `address`.
pub(crate) fn attach(name: &str, handle: u32, role: Role, address: &str) -> Attach {
    let (source, target) = match role {
        Role::Sender => (Source::default(), Target::from(address)),
        Role::Receiver => (Source::from(address), Target::default()),
    };
    Attach {
        name: name.to_owned(),
        handle: Handle(handle),
        initial_delivery_count: (role == Role::Sender).then_some(0),
        role,
        snd_settle_mode: SenderSettleMode::Mixed,
        rcv_settle_mode: ReceiverSettleMode::First,
        source: Some(Box::new(source)),
        target: Some(Box::new(target.into())),
        unsettled: None,
        incomplete_unsettled: false,
        max_message_size: None,
        offered_capabilities: None,
        desired_capabilities: None,
        properties: None,
    }
}

/// The first or only transfer of a delivery.
pub(crate) fn transfer(handle: u32, delivery_id: u32, tag: &[u8]) -> Transfer {
    Transfer {
        handle: Handle(handle),
        delivery_id: Some(delivery_id),
        delivery_tag: Some(DeliveryTag::from(tag.to_vec())),
        message_format: Some(0),
        settled: Some(false),
        more: false,
        rcv_settle_mode: None,
        state: None,
        resume: false,
        aborted: false,
        batchable: false,
    }
}

/// A flow that grants credit to a link of which nothing has been received, in a session that has sent `sent` transfers
/// after `first`.
pub(crate) fn credit(handle: u32, credit: u32, first: u32, sent: u32) -> Flow {
    Flow {
        next_incoming_id: None,
        incoming_window: 2_048,
        next_outgoing_id: first.wrapping_add(sent),
        outgoing_window: 2_048,
        handle: Some(Handle(handle)),
        delivery_count: Some(0),
        link_credit: Some(credit),
        available: None,
        drain: false,
        echo: false,
        properties: None,
    }
}
