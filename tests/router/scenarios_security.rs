//! Who may connect, and how those are turned away who may not: the handshake table of qdrouterd 1.19, row by row. Bytes
//! in and bytes out, because most of it happens before there is a frame.

use std::time::{Duration, Instant};

use linkrouterd::amqp::deframer::Deframer;
use linkrouterd::amqp::frame::FrameType;
use linkrouterd::amqp::sasl::{SaslCode, SaslFrame};
use linkrouterd::endpoint::limits;
use linkrouterd::router::settings::{ListenerId, RouterSettings};
use linkrouterd::router::{Action, ConnectionKey, Login, Router, TransportInfo, TransportState, Verdict};

use crate::wire::{self, AMQP_HEADER, Frame, SASL_HEADER};
use crate::world::settings;

/// One router and one transport.
struct Line {
    router: Router,
    key: ConnectionKey,
    now: Instant,
    sent: Vec<u8>,
    login: Option<Login>,
}

impl Line {
    fn new(edit: impl FnOnce(&mut RouterSettings)) -> Self {
        let mut settings = settings();
        edit(&mut settings);
        let now = Instant::now();
        let mut router = Router::new(settings, now);
        let info = TransportInfo {
            peer: "192.0.2.7:50000".to_owned(),
            tls: None,
        };
        let key = router.accepted(ListenerId(0), info, now).expect("room");
        Line {
            router,
            key,
            now,
            sent: Vec::new(),
            login: None,
        }
    }

    /// A line to a listener that demands authentication and offers these mechanisms.
    fn strict(mechanisms: &[&str]) -> Self {
        Line::new(|settings| {
            settings.listeners[0].authenticate_peer = true;
            settings.listeners[0].sasl_mechanisms = names(mechanisms);
        })
    }

    /// A line to a listener that offers these mechanisms and demands nothing.
    fn open_to(mechanisms: &[&str]) -> Self {
        Line::new(|settings| settings.listeners[0].sasl_mechanisms = names(mechanisms))
    }

    fn secured(mut self, user: Option<&str>) -> Self {
        self.router
            .secured(self.key, "TLSv1.3".to_owned(), user.map(str::to_owned));
        self
    }

    fn say(&mut self, bytes: &[u8]) {
        self.router.handle_input(self.key, bytes, self.now);
        self.settle();
    }

    fn init(&mut self, mechanism: &str, response: Option<&[u8]>) {
        let mut out = Vec::new();
        SaslFrame::Init {
            mechanism,
            initial_response: response,
        }
        .write(&mut out);
        self.say(&out);
    }

    fn settle(&mut self) {
        while let Some(action) = self.router.poll_action() {
            if let Action::Authenticate(key, login) = action {
                assert_eq!(key, self.key);
                assert!(self.login.replace(*login).is_none(), "one at a time");
            }
        }
        let bytes = self.router.transmit(self.key).to_vec();
        self.router.transmitted(self.key, bytes.len(), self.now);
        self.sent.extend(bytes);
    }

    fn judge(&mut self, verdict: Verdict) {
        self.router.authenticated(self.key, verdict, self.now);
        self.settle();
    }

    /// What the router has said since the last call.
    fn heard(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.sent)
    }

    /// The router says its SASL header and offers mechanisms.
    fn offered(&mut self) -> Vec<String> {
        self.say(&SASL_HEADER);
        let heard = self.heard();
        let mut rest = heard.strip_prefix(&SASL_HEADER).expect("the SASL header");
        let mut deframer = Deframer::new(16384);
        let frame = deframer.next_frame(&mut rest).unwrap().expect("a frame");
        assert!(frame.frame_type == FrameType::Sasl && rest.is_empty());
        match SaslFrame::parse(frame.body).unwrap() {
            SaslFrame::Mechanisms(offered) => offered.iter().map(|name| (*name).to_owned()).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    fn expect_outcome(&mut self, code: SaslCode) {
        let mut expected = Vec::new();
        SaslFrame::Outcome(code).write(&mut expected);
        assert_eq!(self.heard(), expected);
    }

    /// The transport is to be closed, and nothing more is said: no AMQP close, either.
    #[track_caller]
    fn expect_closed(&mut self) {
        assert_eq!(self.heard(), b"");
        assert_eq!(
            self.router.transport_state(self.key),
            TransportState::CloseWhenFlushed
        );
        self.say(&AMQP_HEADER);
        assert_eq!(self.heard(), b"", "nobody listens any more");
    }

    /// The AMQP header and open of a device are answered.
    #[track_caller]
    fn expect_served(&mut self) {
        self.say(&header_and_open());
        let heard = self.heard();
        assert!(heard.starts_with(&AMQP_HEADER) && heard.len() > 8, "{heard:02x?}");
        assert_eq!(self.router.transport_state(self.key), TransportState::Open);
    }
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn header_and_open() -> Vec<u8> {
    let mut bytes = AMQP_HEADER.to_vec();
    Frame::new(0, wire::OPEN, vec![wire::string("device")]).encode(&mut bytes);
    bytes
}

#[test]
fn authenticate_peer_no_bare_amqp_header() {
    Line::open_to(&["ANONYMOUS", "PLAIN"]).expect_served();
}

#[test]
fn authenticate_peer_no_sasl_anonymous() {
    for response in [None, Some(&b""[..]), Some(b"trace")] {
        let mut line = Line::open_to(&["ANONYMOUS", "PLAIN"]);
        assert_eq!(line.offered(), ["ANONYMOUS", "PLAIN"]);
        line.init("ANONYMOUS", response);
        line.expect_outcome(SaslCode::Ok);
        line.expect_served();
    }
}

#[test]
fn authenticate_peer_no_plain_with_unknown_user() {
    let mut line = Line::open_to(&["ANONYMOUS", "PLAIN"]);
    line.offered();
    line.init("PLAIN", Some(b"\0nobody\0guess"));
    assert_eq!(line.heard(), b"", "not before it is judged");
    let login = line.login.take().expect("to be judged");
    assert_eq!(
        (login.user.as_str(), login.password.expose().as_slice()),
        ("nobody", &b"guess"[..])
    );
    assert!(!format!("{login:?}").contains("guess"));
    line.judge(Verdict::Refused);
    line.expect_outcome(SaslCode::Auth);
    line.expect_closed();
}

#[test]
fn authenticate_peer_yes_bare_amqp_header() {
    let mut line = Line::strict(&["PLAIN"]);
    line.say(&header_and_open());
    line.expect_closed();
}

#[test]
fn authenticate_peer_yes_only_anonymous_configured() {
    let mut line = Line::strict(&["ANONYMOUS", "MSSBCBS"]);
    assert_eq!(line.offered(), [""; 0]);
    line.init("ANONYMOUS", None);
    line.expect_outcome(SaslCode::Auth);
    line.expect_closed();
}

#[test]
fn authenticate_peer_yes_plain() {
    let mut line = Line::strict(&["ANONYMOUS", "PLAIN"]);
    assert_eq!(line.offered(), ["PLAIN"]);
    line.init("plain", Some(b"\0dev1\0s3cret"));
    line.judge(Verdict::Accepted);
    line.expect_outcome(SaslCode::Ok);
    line.expect_served();
}

#[test]
fn mechanism_not_in_the_list() {
    for (offered, chosen) in [
        (&["ANONYMOUS"][..], "PLAIN"),
        (&["PLAIN"], "ANONYMOUS"),
        (&["ANONYMOUS"], "MSSBCBS"),
        (&["ANONYMOUS", "EXTERNAL"], "EXTERNAL"),
        (&["ANONYMOUS", "PLAIN"], "SCRAM-SHA-256"),
        (&["ANONYMOUS", "PLAIN"], ""),
    ] {
        let mut line = Line::open_to(offered);
        line.offered();
        line.init(chosen, Some(b"\0dev1\0s3cret"));
        assert!(line.login.is_none());
        line.expect_outcome(SaslCode::Auth);
        line.expect_closed();
    }
}

#[test]
fn encryption_required_with_plaintext_peer() {
    for bytes in [AMQP_HEADER, SASL_HEADER, *b"GET / HT"] {
        let mut line = Line::new(|settings| settings.listeners[0].require_encryption = true);
        line.say(&bytes);
        line.expect_closed();
    }
    Line::new(|settings| settings.listeners[0].require_encryption = true)
        .secured(None)
        .expect_served();
}

#[test]
fn first_bytes_are_no_known_header() {
    let mut line = Line::open_to(&["ANONYMOUS"]);
    line.say(b"GET / HTTP/1.1\r\n");
    assert_eq!(line.heard(), AMQP_HEADER);
    line.expect_closed();
}

#[test]
fn amqp_2_header_or_tls_hello_on_a_plaintext_listener() {
    for bytes in [
        &b"AMQP\x02\x01\x00\x00"[..],
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ] {
        let mut line = Line::open_to(&["ANONYMOUS"]);
        line.say(bytes);
        line.expect_closed();
    }
}

#[test]
fn external_is_offered_to_a_verified_certificate_only() {
    let mechanisms = ["EXTERNAL", "PLAIN"];
    assert_eq!(Line::strict(&mechanisms).offered(), ["PLAIN"]);
    assert_eq!(Line::strict(&mechanisms).secured(None).offered(), ["PLAIN"]);
    let mut line = Line::strict(&mechanisms).secured(Some("dev1"));
    assert_eq!(line.offered(), mechanisms);
    line.init("EXTERNAL", None);
    line.expect_outcome(SaslCode::Ok);
    line.expect_served();
    // A certificate does not replace SASL.
    let mut line = Line::strict(&mechanisms).secured(Some("dev1"));
    line.say(&header_and_open());
    line.expect_closed();
}

#[test]
fn a_plain_response_that_makes_no_sense_is_refused_without_a_check() {
    let huge = [b"\0dev1\0", vec![b'x'; 5000].as_slice()].concat();
    for response in [
        Some(&b""[..]),
        Some(b"dev1 s3cret"),
        Some(b"\0\0s3cret"),
        Some(b"\0dev1\0"),
        Some(b"admin\0dev1\0s3cret"),
        Some(b"\0dev1\0s3cret\0"),
        Some(&huge),
    ] {
        let mut line = Line::strict(&["PLAIN"]);
        line.offered();
        line.init("PLAIN", response);
        assert!(line.login.is_none(), "{response:?}");
        line.expect_outcome(SaslCode::Auth);
        line.expect_closed();
    }
}

/// RFC 4422, section 3.3: a mechanism in which the client speaks first, and a client that has not.
#[test]
fn plain_without_an_initial_response_is_asked_for_it() {
    let asked = || {
        let mut line = Line::strict(&["PLAIN"]);
        line.offered();
        line.init("PLAIN", None);
        let mut challenge = Vec::new();
        SaslFrame::Challenge(b"").write(&mut challenge);
        assert_eq!(line.heard(), challenge);
        line
    };
    let respond = |line: &mut Line, response: &[u8]| {
        let mut out = Vec::new();
        SaslFrame::Response(response).write(&mut out);
        line.say(&out);
    };
    let mut line = asked();
    respond(&mut line, b"\0dev1\0s3cret");
    assert_eq!(line.login.take().expect("to be judged").user, "dev1");
    line.judge(Verdict::Accepted);
    line.expect_outcome(SaslCode::Ok);
    line.expect_served();

    let mut line = asked();
    respond(&mut line, b"");
    line.expect_outcome(SaslCode::Auth);
    line.expect_closed();

    let mut line = asked();
    line.init("PLAIN", Some(b"\0dev1\0s3cret"));
    assert!(line.login.is_none(), "it has chosen already");
    line.expect_closed();
}

#[test]
fn what_comes_before_the_outcome_waits_for_it_and_is_bounded() {
    let mut line = Line::strict(&["PLAIN"]);
    line.offered();
    line.init("PLAIN", Some(b"\0dev1\0s3cret"));
    for byte in header_and_open() {
        line.say(&[byte]);
    }
    assert_eq!(line.heard(), b"");
    line.judge(Verdict::Accepted);
    let heard = line.heard();
    let mut outcome = Vec::new();
    SaslFrame::Outcome(SaslCode::Ok).write(&mut outcome);
    let after = heard.strip_prefix(outcome.as_slice()).expect("the outcome first");
    assert!(after.starts_with(&AMQP_HEADER) && after.len() > 8, "{after:02x?}");

    let mut line = Line::strict(&["PLAIN"]);
    line.offered();
    line.init("PLAIN", Some(b"\0dev1\0s3cret"));
    line.say(&[0; limits::EARLY_BYTES - 10]);
    line.say(&[0; 10]);
    assert_eq!(line.router.transport_state(line.key), TransportState::Open);
    line.say(&[0]);
    line.expect_closed();
    line.judge(Verdict::Accepted);
    assert_eq!(line.heard(), b"", "too late");
}

#[test]
fn a_login_is_answered_once_and_only_while_somebody_waits() {
    let mut line = Line::strict(&["PLAIN"]);
    line.judge(Verdict::Accepted);
    assert_eq!(line.heard(), b"", "nobody has asked");
    line.offered();
    line.init("PLAIN", Some(b"\0dev1\0s3cret"));
    line.judge(Verdict::Unknown);
    line.expect_outcome(SaslCode::SysTemp);
    line.expect_closed();

    let mut line = Line::strict(&["PLAIN"]);
    line.offered();
    line.init("PLAIN", Some(b"\0dev1\0s3cret"));
    line.router.transport_lost(line.key, "gone", line.now);
    line.judge(Verdict::Accepted);
    assert!(line.router.is_empty());
}

/// The time of the handshake runs on, so that nobody waits for ever behind a flood of wrong passwords.
#[test]
fn initial_handshake_timeout_while_a_password_is_judged() {
    let mut line = Line::strict(&["PLAIN"]);
    line.offered();
    line.init("PLAIN", Some(b"\0dev1\0s3cret"));
    line.now += Duration::from_secs(10);
    line.router.handle_timeout(line.now);
    line.settle();
    line.expect_closed();
}

#[test]
fn a_shutdown_does_not_wait_for_a_password() {
    let mut line = Line::strict(&["PLAIN"]);
    line.offered();
    line.init("PLAIN", Some(b"\0dev1\0s3cret"));
    line.router.shutdown(line.now);
    line.settle();
    line.expect_closed();
}
