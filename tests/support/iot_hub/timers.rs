//! What a connection does when its time has come, by the hub's clock: tokens and locks that end, answers that were put
//! off, deadlines.

use std::time::Duration;

use bytes::Bytes;
use fe2o3_amqp::types::definitions::{AmqpError, ConnectionError, Error, LinkError, Role};
use fe2o3_amqp::types::messaging::DeliveryState;

use super::clock::Moment;
use super::connection::{Connection, Step};
use super::link::{Link, Purpose};
use super::session::Session;
use super::settings::{Expiry, NoLink};

/// Something that was put off.
pub(super) enum Late {
    Outcome {
        channel: u16,
        delivery_id: u32,
        state: DeliveryState,
    },
    CbsReply {
        channel: u16,
        handle: u32,
        tag: Vec<u8>,
        reply: Bytes,
    },
}

impl Connection {
    /// When there is something to do, if nothing comes from anywhere.
    pub(super) fn next_deadline(&self) -> Option<Moment> {
        let settings = self.shared.settings();
        let idle = settings.idle_sender.and_then(|limit| {
            let used = self
                .links()
                .filter(|link| link.is_idle_since(Moment::MAX))
                .map(|link| link.used_at);
            Some(used.min()? + limit)
        });
        [
            self.shared.commands().next_expiry(),
            self.grants.next_lapse(settings.token_grace),
            self.late.iter().map(|(due, _)| *due).min(),
            self.token_deadline(settings.first_token_deadline),
            self.link_deadline(settings.no_link_deadline),
            idle,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Does what is due.
    pub(super) fn on_time(&mut self) -> Step {
        let now = self.shared.clock.now();
        let settings = self.shared.settings();
        self.shared.commands().unlock_expired(now);
        if self.grants.lapse(now, settings.token_grace) {
            self.on_lapse(settings.on_expiry)?;
        }
        let (due, later) = std::mem::take(&mut self.late)
            .into_iter()
            .partition(|(due, _)| *due <= now);
        self.late = later;
        for (_, late) in due {
            self.on_late(late)?;
        }
        let is_over = |deadline: Option<Moment>| deadline.is_some_and(|deadline| deadline <= now);
        if is_over(self.token_deadline(settings.first_token_deadline)) {
            return self.force_close("The connection has put no token in time.");
        }
        if is_over(self.link_deadline(settings.no_link_deadline)) {
            return self.force_close("The connection has no links.");
        }
        if let Some(limit) = settings.idle_sender {
            let text = format!(
                "The link is force detached by the broker. AmqpMessagePublisher.IdleTimerExpired: Idle timeout: 00:{:02}:00.",
                limit.as_secs() / 60
            );
            let error = Error::new(LinkError::DetachForced, text, None);
            let since = now.saturating_sub(limit);
            self.detach_where(|link| link.is_idle_since(since), &error)?;
        }
        self.work()
    }

    /// Links go whose resource no token covers any more.
    pub(super) fn on_lapse(&mut self, expiry: Expiry) -> Step {
        let error = Error::new(AmqpError::UnauthorizedAccess, "Token Invalid.".to_owned(), None);
        let is_bare = |grants: &super::cbs::Grants, link: &Link| {
            link.node
                .resource()
                .is_some_and(|resource| !grants.cover(&resource))
        };
        match expiry {
            Expiry::Detach => {
                let grants = std::mem::take(&mut self.grants);
                let step = self.detach_where(|link| is_bare(&grants, link), &error);
                self.grants = grants;
                step
            }
            Expiry::Close if self.links().any(|link| is_bare(&self.grants, link)) => self.close(Some(error)),
            Expiry::Close => Ok(()),
        }
    }

    fn on_late(&mut self, late: Late) -> Step {
        match late {
            Late::Outcome {
                channel,
                delivery_id,
                state,
            } if self.sessions.contains_key(&channel) => self.dispose(channel, delivery_id, state),
            Late::CbsReply {
                channel,
                handle,
                tag,
                reply,
            } => {
                if let Some(session) = self.sessions.get_mut(&channel) {
                    session.queue(handle, tag, reply, Purpose::Reply);
                }
                Ok(())
            }
            Late::Outcome { .. } => Ok(()),
        }
    }

    pub(super) fn force_close(&self, why: &str) -> Step {
        self.close(Some(Error::new(
            ConnectionError::ConnectionForced,
            why.to_owned(),
            None,
        )))
    }

    fn links(&self) -> impl Iterator<Item = &Link> {
        let all = self.sessions.values().flat_map(Session::links);
        all.map(|(_, link)| link).filter(|link| !link.is_closing())
    }

    fn token_deadline(&self, patience: Option<Duration>) -> Option<Moment> {
        let patience = patience.filter(|_| !self.has_had_token)?;
        Some(self.opened_at + patience)
    }

    fn link_deadline(&self, patience: Option<NoLink>) -> Option<Moment> {
        let NoLink { at_first, later } = patience.filter(|_| self.links().next().is_none())?;
        Some(match self.last_link_at {
            Some(moment) => moment + later,
            None => self.opened_at + at_first,
        })
    }
}

impl Link {
    /// Whether the peer could have sent since `moment` and has not.
    fn is_idle_since(&self, moment: Moment) -> bool {
        self.peer_role == Role::Sender && !self.is_closing() && self.used_at <= moment
    }
}
