//! The frame trace where no recording goes: odd headers, secrets in odd places, damage, and sheer size.

use linkrouterd::amqp::display::{Direction, Encoded, LIMIT, Trace};
use linkrouterd::amqp::frame::{Frame, FrameType};
use linkrouterd::amqp::serial::Channel;
use linkrouterd::amqp::value::{Array, Value};

fn trace(frame_type: FrameType, body: &[u8]) -> String {
    Trace::frame(
        Direction::Received,
        Frame {
            frame_type,
            channel: Channel(3),
            body,
        },
    )
    .to_string()
}

fn composite(code: u64, fields: Vec<Value>) -> Vec<u8> {
    let mut body = Vec::new();
    Value::Described(Box::new(Value::Ulong(code)), Box::new(Value::List(fields))).encode(&mut body);
    body
}

fn string(text: &str) -> Value {
    Value::String(text.to_owned())
}

#[test]
fn what_is_not_a_performative() {
    let header = |bytes: &[u8; 8]| Trace::header(Direction::Received, *bytes).to_string();
    assert_eq!(header(b"AMQP\x00\x01\x00\x00"), "  <- AMQP");
    assert_eq!(header(b"AMQP\x02\x01\x00\x00"), "  <- TLS");
    assert_eq!(header(b"AMQP\x03\x01\x00\x00"), "  <- SASL");
    assert_eq!(
        header(b"AMQP\x00\x00\x09\x01"),
        r#"  <- (unknown protocol header b"AMQP\x00\x00\x09\x01")"#
    );
    assert_eq!(
        header(b"GET / HT"),
        r#"  <- (unknown protocol header b"GET / HT")"#
    );
    assert_eq!(Trace::end_of_stream(Direction::Sent).to_string(), "  -> EOS");
    assert_eq!(trace(FrameType::Amqp, &[]), "3 <- (EMPTY FRAME)");
}

#[test]
fn sasl_secrets_are_lengths_wherever_they_are() {
    let secret = || Value::Binary(b"\0user\0s3cret".to_vec());
    for (code, fields, shown) in [
        (
            0x41,
            vec![Value::Symbol("PLAIN".into()), secret()],
            "@sasl-init(65) [mechanism=:PLAIN, initial-response=(12 bytes)]",
        ),
        // Of another type than the specification says, behind the last field that it knows, and where none belongs.
        (
            0x41,
            vec![Value::Null, string("s3cret")],
            "@sasl-init(65) [initial-response=(6 bytes)]",
        ),
        (
            0x41,
            vec![Value::Null, Value::Null, Value::Null, secret()],
            "@sasl-init(65) [(12 bytes)]",
        ),
        (0x42, vec![secret()], "@sasl-challenge(66) [challenge=(12 bytes)]"),
        (0x43, vec![secret()], "@sasl-response(67) [response=(12 bytes)]"),
        (
            0x44,
            vec![Value::Ubyte(1), secret()],
            "@sasl-outcome(68) [code=0x1, additional-data=(12 bytes)]",
        ),
    ] {
        assert_eq!(
            trace(FrameType::Sasl, &composite(code, fields)),
            format!("3 <- {shown}")
        );
    }
    let init = composite(0x41, vec![Value::Symbol("PLAIN".into()), secret()]);
    assert!(!trace(FrameType::Amqp, &init).contains("s3cret"));
    let mut nested = Vec::new();
    Value::Described(Box::new(Value::Ulong(0x43)), Box::new(secret())).encode(&mut nested);
    let in_error = composite(0x18, vec![Value::decode(&nested).expect("a value")]);
    assert_eq!(
        trace(FrameType::Amqp, &in_error),
        "3 <- @close(24) [error=@sasl-response(67) (12 bytes)]"
    );
}

#[test]
fn tokens_and_messages_are_lengths() {
    let token = "SharedAccessSignature sr=hub&sig=abc%3d&se=1";
    for value in [
        string(token),
        Value::Symbol(token.into()),
        Value::Binary(token.into()),
    ] {
        let attach = vec![string("l"), Value::Uint(0), Value::Boolean(false)];
        let properties = Value::Map(vec![(Value::Symbol("token".into()), value)]);
        let body = composite(
            0x12,
            attach
                .into_iter()
                .chain(vec![Value::Null; 10])
                .chain([properties])
                .collect(),
        );
        assert!(trace(FrameType::Amqp, &body).ends_with("properties={:token=(44 bytes)}]"));
    }
    let close = composite(
        0x18,
        vec![Value::Described(
            Box::new(Value::Ulong(0x1d)),
            Box::new(Value::List(vec![
                Value::Symbol("amqp:unauthorized-access".into()),
                string("bad sharedAccessSignature: x"),
            ])),
        )],
    );
    assert_eq!(
        trace(FrameType::Amqp, &close),
        r#"3 <- @close(24) [error=@error(29) [condition=:"amqp:unauthorized-access", description=(28 bytes)]]"#
    );
    // A section of a message where a performative belongs, and behind one.
    let mut section = Vec::new();
    Value::Described(Box::new(Value::Ulong(0x77)), Box::new(string("body"))).encode(&mut section);
    assert_eq!(trace(FrameType::Amqp, &section), "3 <- @0x77 (6)");
    let mut transfer = composite(0x14, vec![Value::Uint(1)]);
    transfer.extend(&section);
    assert_eq!(
        trace(FrameType::Amqp, &transfer),
        "3 <- @transfer(20) [handle=0x1] (9)"
    );
    let modified = Value::Described(
        Box::new(Value::Ulong(0x27)),
        Box::new(Value::List(vec![
            Value::Boolean(true),
            Value::Null,
            Value::Map(vec![(string("a"), string("private"))]),
        ])),
    );
    let disposition = composite(
        0x15,
        vec![
            Value::Boolean(true),
            Value::Uint(0),
            Value::Null,
            Value::Null,
            modified,
        ],
    );
    assert_eq!(
        trace(FrameType::Amqp, &disposition),
        "3 <- @disposition(21) [role=true, first=0x0, state=@modified(39) [delivery-failed=true, message-annotations=(15 bytes)]]"
    );
}

#[test]
fn damage_is_shown_where_it_is() {
    for (body, shown) in [
        (vec![0x45], "(malformed at byte 0)"),
        (vec![0x00], "(malformed at byte 1)"),
        (vec![0x00, 0x53, 0x16, 0xc0], "@detach(22) (malformed at byte 4)"),
        (
            vec![0x00, 0x53, 0x16, 0xa1, 0],
            "@detach(22) (malformed at byte 4)",
        ),
        (
            vec![0x00, 0x53, 0x16, 0xc0, 3, 2, 0x52, 1],
            "@detach(22) [handle=0x1(malformed at byte 8)",
        ),
        (
            vec![0x00, 0x53, 0x16, 0xc0, 4, 2, 0x52, 1, 0x99],
            "@detach(22) [handle=0x1, closed=(malformed at byte 8)",
        ),
        (
            vec![0x00, 0x53, 0x10, 0xc0, 3, 1, 0xa1, 9],
            "@open(16) [container-id=(malformed at byte 8)",
        ),
    ] {
        assert_eq!(
            trace(FrameType::Amqp, &body),
            format!("3 <- {shown}"),
            "{body:02x?}"
        );
    }
}

/// As whoever shows the properties of an open has it.
#[test]
fn a_value_by_itself() {
    let mut bytes = Vec::new();
    let properties = vec![
        (Value::Symbol("product".into()), string("a\nb\u{1b}")),
        (
            Value::Symbol("key".into()),
            string("SharedAccessSignature sr=x&sig=y"),
        ),
    ];
    Value::Map(properties).encode(&mut bytes);
    assert_eq!(
        Encoded(&bytes).to_string(),
        r#"{:product="a\x0ab\x1b", :key=(32 bytes)}"#
    );
    assert_eq!(
        Encoded(&bytes[..bytes.len() - 1]).to_string(),
        "(malformed at byte 1)"
    );
    assert_eq!(Encoded(&[]).to_string(), "(malformed at byte 0)");
    bytes.clear();
    string(&"x".repeat(3 * LIMIT)).encode(&mut bytes);
    assert_eq!(Encoded(&bytes).to_string().len(), LIMIT);
}

#[test]
fn size_is_limited() {
    let open = |container_id: Value| trace(FrameType::Amqp, &composite(0x10, vec![container_id]));
    for length in [LIMIT - 60, LIMIT - 40, LIMIT, 60_000] {
        let text = open(string(&"x".repeat(length)));
        assert!(text.len() <= LIMIT);
        assert_eq!(
            text.ends_with(" ... (truncated)"),
            length > LIMIT - 50,
            "{length}"
        );
    }
    // Sixty thousand nulls in ten bytes.
    let nulls = vec![Value::Null; 60_000];
    let text = open(Value::Array(Array::new(None, nulls).expect("an array")));
    assert!(text.ends_with(" ... (truncated)") && text.len() <= LIMIT);
    // Lists and arrays, each in the next.
    let mut list = vec![0x45];
    let mut array = vec![0x40];
    for _ in 0..2000 {
        list = [
            &[0xd0][..],
            &(list.len() as u32 + 4).to_be_bytes(),
            &1u32.to_be_bytes(),
            &list,
        ]
        .concat();
        array = [
            &(array.len() as u32 + 4).to_be_bytes()[..],
            &1u32.to_be_bytes(),
            &array,
        ]
        .concat();
        array.insert(0, 0xf0);
    }
    for nested in [list, array] {
        let body = [
            &[0x00, 0x53, 0x10, 0xd0][..],
            &(nested.len() as u32 + 4).to_be_bytes(),
            &[0, 0, 0, 1],
            &nested,
        ];
        let text = trace(FrameType::Amqp, &body.concat());
        assert!(text.contains("..."), "{text}");
        assert!(text.len() < 200, "{text}");
    }
}
