//! A fe2o3-amqp client for the recorder: no SASL layer, every outcome, a link closed with an error.

use fe2o3_amqp::{
    Connection, Delivery, Receiver, Sender, Session,
    link::receiver::CreditMode,
    types::{
        definitions::{AmqpError, Error, Fields, ReceiverSettleMode, SenderSettleMode},
        messaging::{Body, Modified, Source, TerminusDurability},
        primitives::{OrderedMap, Symbol, Value},
    },
};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let port = std::env::args().next_back().ok_or("usage: fe2o3-capture PORT")?;
    let mut properties = Fields::new();
    properties.insert(Symbol::from("product"), Value::String("golden".into()));
    properties.insert(Symbol::from("build"), Value::Uint(300));
    let mut connection = Connection::builder()
        .container_id("fe2o3-client")
        .hostname("hub.example.org")
        .max_frame_size(4096)
        .channel_max(9)
        .idle_time_out(240_000u32)
        .add_desired_capabilities("cap")
        .properties(properties.clone())
        .open(format!("amqp://127.0.0.1:{port}").as_str())
        .await?;
    let mut session = Session::begin(&mut connection).await?;

    let mut sender = Sender::builder()
        .name("events")
        .target("devices/dev1/messages/events")
        .sender_settle_mode(SenderSettleMode::Unsettled)
        .receiver_settle_mode(ReceiverSettleMode::First)
        .properties(properties)
        .attach(&mut session)
        .await?;
    for number in 0..5 {
        let body = if number == 0 { "w".repeat(6000) } else { format!("message {number}") };
        println!("{:?}", sender.send(body).await?);
    }

    let mut filter = OrderedMap::new();
    filter.insert(Symbol::from("rate"), Value::Double(0.5.into()));
    let source = Source::builder()
        .address("devices/dev1/messages/devicebound")
        .durable(TerminusDurability::Configuration)
        .filter(filter)
        .build();
    let mut receiver = Receiver::builder()
        .name("commands")
        .source(source)
        .credit_mode(CreditMode::Manual)
        .attach(&mut session)
        .await?;
    receiver.set_credit(2).await?;
    let first: Delivery<Body<Value>> = receiver.recv().await?;
    receiver.modify(&first, Modified { delivery_failed: Some(true), undeliverable_here: None, message_annotations: None }).await?;
    let second: Delivery<Body<Value>> = receiver.recv().await?;
    receiver.reject(&second, Error::new(AmqpError::DecodeError, Some("no".to_owned()), None)).await?;
    receiver.close().await?;
    sender.close_with_error(Error::new(AmqpError::IllegalState, None, None)).await?;
    session.end().await?;
    connection.close().await?;
    Ok(())
}
