//! Every bound on what a peer can make us hold, wait for or write down, in one table: name, value, why, and what happens
//! at the limit. `docs/reliability.md` has them for operators, with the test of each.
//!
//! Elsewhere are only bounds on one value of the wire (`amqp`), on the files of the configuration (`config`), on a turn of
//! the driver and on sockets (`shard`), and what the configuration sets.

use std::time::Duration;

// ---- sessions and links ----------------------------------------------------------------------------------------------

/// Highest handle that we let a peer use, so that its handles index a small table. Azure SDKs that share one session
/// among devices need a few links per device. Beyond it: End with `amqp:session:unattached-handle`.
pub const HANDLE_MAX: u32 = 4095;

/// Links of one connection that came to a listener, over all its sessions, so that handles times channels is not what
/// one peer can make us hold. Azure SDKs attach about five for each of the 1000 identities that a connection may carry.
/// Beyond it: the peer's next attach of its own is answered by an End with `amqp:resource-limit-exceeded`. Links that its
/// hub has not let go count as well; beyond it with those: the attach is refused with `amqp:resource-limit-exceeded`.
pub const DEVICE_LINKS: usize = 8192;

/// Bytes of a link's name: those of Azure SDKs have about a hundred. It is kept with the link, so that [`DEVICE_LINKS`] of them
/// take some megabytes. Beyond it: the session is ended with `amqp:resource-limit-exceeded`.
pub const LINK_NAME: usize = 1024;

/// Channel numbers that a hub may use: it answers ours with numbers of its own choice.
pub const UPSTREAM_CHANNEL_MAX: u16 = 32_767;

/// Bytes of a device's virtual host that are put in front of each of its addresses: no name of a host is longer (RFC
/// 1035). Beyond it: its attaches are refused with `amqp:resource-limit-exceeded`.
pub const TENANT_HOST: usize = 255;

/// Bytes of a device's container-id that are put behind the name of each of its links at a hub, however short an attach
/// is: an open that fits the frames which any peer takes before it has said more (512 bytes) has no longer one. Beyond
/// it: its attaches are refused with `amqp:resource-limit-exceeded`.
pub const CONTAINER_ID: usize = 512;

/// Hosts that a hub may announce in the `failover-server-list` of its open. Beyond it: the rest is passed over.
pub const FAILOVER_HOSTS: usize = 8;

// ---- log-ins ---------------------------------------------------------------------------------------------------------

/// Bytes of a user's name: IoT Hub's have the ids of a device and a module, of 128 characters each, some of them escaped,
/// and all of it in a SASL frame of 512 bytes with the token (AMQP 1.0 part 5, §5.3.1). A longer one is refused.
pub const USER_BYTES: usize = 384;

/// Bytes of a password, which may be a SAS token. A longer one is refused.
pub const PASSWORD_BYTES: usize = 1024;

/// Bytes that a peer may say while its password is judged: a header and an open. Beyond it: the connection ends.
pub const EARLY_BYTES: usize = 2048;

/// Log-ins that may wait until their password is checked. Beyond it: the device is told to try again later.
pub const LOGINS_WAITING: usize = 4096;

/// Checks of passwords at one time, at most; and never on all processors.
pub const LOGIN_CHECKS: usize = 2;

// ---- windows, and bytes that wait ------------------------------------------------------------------------------------

/// Session window towards devices when the file sets no `maxSessionFrames`: as qdrouterd, no limit in frames. What a
/// device can make us hold is limited in bytes, by [`PARKED_BYTES`].
pub const DEVICE_WINDOW: u32 = 0x7fff_ffff;

/// Session window towards a hub, in bytes: what one device that does not read makes us hold. It is announced in frames
/// of the size that the hub sends, at first our max-frame-size; at least [`UPSTREAM_WINDOW_FRAMES`] of them.
pub const UPSTREAM_WINDOW_BYTES: u32 = 256 * 1024;

/// The least session window towards a hub, in frames.
pub const UPSTREAM_WINDOW_FRAMES: u32 = 4;

/// The largest session window towards a hub, in frames: enough for thousands of small messages a second over a distant
/// link. A hub that changes from small frames to the largest can exceed the budget by so many frames, once.
pub const UPSTREAM_WINDOW_FRAMES_MAX: u32 = 256;

/// Bytes of one device waiting for the hub's window or credit, with what each frame costs to keep. Beyond it: the device
/// is not read.
pub const PARKED_BYTES: usize = 256 * 1024;

/// Bytes of all devices waiting for hubs. Beyond it: no device with anything waiting is read.
pub const PARKED_BYTES_TOTAL: usize = 24 * 1024 * 1024;

/// Bytes of all hubs waiting for devices. Beyond it: the device that holds most of them is closed with
/// `amqp:resource-limit-exceeded`, for it does not read what it gave credit for.
pub const HELD_BYTES_TOTAL: usize = 32 * 1024 * 1024;

/// Bytes waiting for one transport at which transfers to it are parked, and devices that feed it are not read.
pub const OUTBOX_HIGH: usize = 128 * 1024;

/// Bytes waiting for one transport at which parked transfers move on and devices are read again.
pub const OUTBOX_LOW: usize = 64 * 1024;

/// Bytes waiting for one device, transfers or not, at which it is closed: it does not read its own answers.
pub const DEVICE_OUTBOX_MAX: usize = 4 * 1024 * 1024;

/// Bytes waiting for one broker that came to a listener, at which it is closed: it does not read. More than devices that
/// are held back at [`OUTBOX_HIGH`] put there.
pub const BROKER_OUTBOX_MAX: usize = 16 * 1024 * 1024;

/// Deliveries whose settlement one session tracks in one direction. Beyond it: the oldest count as settled, and a later
/// disposition for them may be dropped.
pub const TRACKED_DELIVERIES: u64 = 1 << 20;

/// Runs of delivery-ids by which one session tracks them. Beyond it: a disposition for one of the oldest is dropped. Only a
/// session whose deliveries alternate between two hubs, or have ids with gaps between them, all unsettled, comes near it.
pub const TRACKED_RUNS: usize = 16_384;

/// Links whose attach waits for one connector. Beyond it: refused with `amqp:resource-limit-exceeded`.
pub const WAITING_ATTACHES: usize = 8192;

/// Bytes of one attach, held while its connector is dialed, and of the last flow behind it. Beyond it: refused with
/// `amqp:resource-limit-exceeded`.
pub const WAITING_ATTACH_BYTES: usize = 4 * 1024;

// ---- `$cbs` ----------------------------------------------------------------------------------------------------------

/// `$cbs` links of one device connection. A pooled SDK has one pair. Beyond it: refused with
/// `amqp:resource-limit-exceeded`.
pub const CBS_LINKS: usize = 64;

/// Bytes of one request to `$cbs`: a token of Entra has two or three thousand. Beyond it: the link is detached with
/// `amqp:link:message-size-exceeded`.
pub const CBS_REQUEST_BYTES: usize = 16 * 1024;

/// Bytes of one device's requests that have begun and have not ended, over all its links: few come in more than one
/// frame. Beyond it: the link is detached with `amqp:resource-limit-exceeded`.
pub const CBS_BEGUN_BYTES: usize = 64 * 1024;

/// Bytes of one answer of a hub's `$cbs`. Beyond it: it is dropped, and whoever asked hears of a time-out.
pub const CBS_ANSWER_BYTES: usize = 64 * 1024;

/// Requests of one `$cbs` link that are not answered: the credit that IoT Hub gives. Nobody may send more.
pub const CBS_CREDIT: u32 = 100;

/// Answers that a hub's `$cbs` may send at once.
pub const CBS_HUB_CREDIT: u32 = 200;

/// Answers of one device connection that it has no receiver for. Beyond it: the oldest is dropped.
pub const CBS_UNCLAIMED: usize = 16;

/// Answers on one link that a device may leave unsettled and still hear the last word on. Beyond it: of the oldest it
/// hears no more.
pub const CBS_IN_DOUBT: usize = 256;

/// Bytes of one device's requests that are not answered: enough for [`CBS_CREDIT`] tokens of Entra, and little beside
/// [`CBS_BYTES_TOTAL`], so that one device cannot use that up. Beyond it: answered with status 503.
pub const CBS_DEVICE_BYTES: usize = 512 * 1024;

/// Bytes of all requests that are not answered. Beyond it: answered with status 503.
pub const CBS_BYTES_TOTAL: usize = 8 * 1024 * 1024;

/// Tokens of one device connection that the router keeps: what one connection to IoT Hub may have. Beyond it: the oldest
/// is forgotten here, and what it authorises is refused.
pub const DEVICE_TOKENS: usize = 1000;

/// Bytes of those tokens, with what they are for: a thousand of Entra, and those of IoT Hub are a tenth as long. Beyond
/// it: as above.
pub const DEVICE_TOKEN_BYTES: usize = 4 * 1024 * 1024;

// ---- time ------------------------------------------------------------------------------------------------------------

/// From the name look-up to the hub's open: several times what a handshake over a bad mobile link takes. Beyond it: the
/// dial has failed.
pub const DIAL_TIMEOUT: Duration = Duration::from_secs(30);

/// Addresses of one host name that are tried. The others are passed over.
pub const DIAL_ADDRESSES: usize = 8;

/// How long an attach waits for its connector: less than the 60 s after which common client libraries give up, so that
/// the device learns the reason from us. Beyond it: refused with `amqp:link:detach-forced`.
pub const ATTACH_TIMEOUT: Duration = Duration::from_secs(15);

/// How long an attach waits for its turn on an open connection that takes only so many new devices in a second. Azure
/// SDKs wait 60 s for the answer to an attach. Beyond it: refused with `amqp:link:detach-forced`.
pub const PACED_ATTACH_TIMEOUT: Duration = Duration::from_secs(60);

/// How long the answer to a detach may take, and how long a detach waits behind what was sent before it when nothing of
/// that moves. Then the side that detached is answered by the router, with `amqp:link:detach-forced`. What a device that
/// has gone had sent is dropped when nothing of it moves for so long.
pub const DETACH_TIMEOUT: Duration = Duration::from_secs(10);

/// How long an on-demand connection outlives its last device: long enough for one that reconnects at once.
pub const LINGER: Duration = Duration::from_secs(60);

/// How long a hub may take to answer a request to `$cbs`, from the time that the device asked: less than the 30 s that
/// the most impatient SDK waits. Then the device is answered with status 504.
pub const CBS_TIMEOUT: Duration = Duration::from_secs(25);

/// How long a device may still attach what a token of its own authorised that has ended: IoT Hub has been seen to serve
/// one for ten minutes, and decides itself.
pub const TOKEN_GRACE: Duration = Duration::from_secs(600);

/// How long a stop waits for deliveries that are under way to be settled.
pub const DRAIN_LIMIT: Duration = Duration::from_secs(5);

/// How long a peer may take to answer our Close before the transport is shut down.
pub const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Heartbeats go out no more often than this, whatever a peer announces.
pub const MIN_HEARTBEAT: Duration = Duration::from_millis(100);

// ---- the log ---------------------------------------------------------------------------------------------------------

/// The same trouble with a hub or a listener is logged once in this time; and so many denials, [`LOGGED_DENIALS`].
pub const LOG_PERIOD: Duration = Duration::from_secs(60);

/// Lines in a [`LOG_PERIOD`] of each kind that devices can bring about at will, such as connections denied by a policy.
/// Those beyond it are counted, and their number is in the next line.
pub const LOGGED_DENIALS: u32 = 20;

/// Troubles with one hub that are told apart: of each of its hosts, more than one. Beyond it: the oldest is as if new.
pub const LOGGED_TROUBLES: usize = 32;
