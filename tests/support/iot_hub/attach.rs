//! Links coming and going: who is let in, how an attach is answered, and how it is refused.

use fe2o3_amqp::types::definitions::{
    AmqpError, Error, ErrorCondition, Handle, LinkError, ReceiverSettleMode, Role, SenderSettleMode,
};
use fe2o3_amqp::types::messaging::TargetArchetype;
use fe2o3_amqp::types::performatives::{Attach, Detach, Performative};
use fe2o3_amqp::types::primitives::{Symbol, Value};

use super::connection::{Connection, Step};
use super::link::{Admitted, Link, Pairing};
use super::node::{Identity, Node};
use super::observed::Observed;
use super::readers::{ReaderId, epoch_of};
use super::refusal::Refusal;
use super::session::Session;
use super::settings::{CbsMode, Eviction, EvictionCondition, EvictionScope, NameClash};

impl Connection {
    pub(super) fn on_attach(&mut self, channel: u16, attach: Attach) -> Step {
        let Handle(handle) = attach.handle;
        self.note(Observed::Attached {
            connection: self.id,
            channel,
            attach: Box::new(attach.clone()),
        });
        if handle > self.shared.settings().handle_max || self.session(channel)?.link(handle).is_some() {
            return self.fault(format!("an attach on handle {handle}, in use or out of range"));
        }
        match self.admit(channel, &attach) {
            Ok(admitted) => self.accept_link(channel, handle, attach, admitted),
            Err(error) => self.refuse_link(channel, handle, attach, error),
        }
    }

    /// Whether a link may be.
    fn admit(&self, channel: u16, attach: &Attach) -> Result<Admitted, Error> {
        let address = match &attach.role {
            Role::Sender => match attach.target.as_deref() {
                Some(TargetArchetype::Target(target)) => target.address.clone(),
                None => None,
            },
            Role::Receiver => attach.source.as_ref().and_then(|source| source.address.clone()),
        };
        let Some(address) = address.filter(|address| !address.is_empty()) else {
            return Err(Refusal::invalid_operation("The link has no address.").to_error());
        };
        let settings = self.shared.settings();
        let node = settings
            .node_at(&address, &attach.role)
            .ok_or_else(|| Refusal::not_found(format!("The path {address} is not supported.")).to_error())?;
        let clashes = |session: &Session| session.links().any(|(_, link)| has_name_of(link, attach));
        if self.shared.settings().name_clash == NameClash::Refuse
            && self.sessions.get(&channel).is_some_and(clashes)
        {
            let name = &attach.name;
            let text = format!("A link with name '{name}' is already attached in session {channel}.");
            return Err(Error::new(AmqpError::ResourceLocked, text, None));
        }
        if node == Node::Cbs {
            let open = self.open_cbs_links(&attach.role);
            self.note(Observed::CbsLink {
                connection: self.id,
                role: attach.role.clone(),
                open: open + 1,
            });
            if open > 0 && self.shared.settings().cbs_mode == CbsMode::Refuse {
                let text = format!(
                    "A link to connection '{}' $cbs node has already been opened.",
                    self.id
                );
                return Err(Error::new(AmqpError::NotAllowed, text, None));
            }
        }
        if let Some(resource) = node.resource() {
            if let Some(identity) = node.identity()
                && !self.shared.settings().knows(identity)
            {
                return Err(Refusal::no_such_device(identity).to_error());
            }
            if !self.grants.cover(&resource) {
                return Err(Refusal::unauthorized("Unauthorized access.").to_error());
            }
        }
        if node.identity().is_some() && !self.shared.admits_link() {
            return Err(Refusal::throttled().to_error());
        }
        let pairing = match pairing_of(attach) {
            _ if !node.is_paired() => None,
            Some(pairing) => Some(pairing),
            None => {
                let why =
                    "The link has no com.microsoft:channel-correlation-id or no com.microsoft:api-version.";
                return Err(Refusal::invalid_operation(why).to_error());
            }
        };
        let reader = match &node {
            Node::BuiltInEvents(below) => {
                return Err(Refusal::redirect(&settings.built_in_events, below));
            }
            Node::Partition(partition) => {
                let epoch = epoch_of(attach)?;
                Some(self.shared.admit_reader(partition, epoch, self.id)?)
            }
            _ => None,
        };
        Ok(Admitted {
            address,
            node,
            pairing,
            reader,
        })
    }

    /// Of the links for twins and methods, an identity has one pair each: an older link in the same role goes, and so
    /// does a partner that another correlation id or version holds to something else.
    fn close_rivals(&mut self, node: &Node, peer_role: &Role, pairing: Option<&Pairing>) -> Step {
        let Some(pairing) = pairing else {
            return Ok(());
        };
        let is_rival = |link: &Link| {
            link.node == *node && (link.peer_role == *peer_role || link.pairing.as_ref() != Some(pairing))
        };
        let text = "The link does not belong to the pair that was opened last.".to_owned();
        self.detach_where(is_rival, &Error::new(LinkError::DetachForced, text, None))
    }

    /// The open link that this one is paired with, for what goes to the peer.
    pub(super) fn partner(&self, channel: u16, handle: u32) -> Option<(u16, u32)> {
        let of = self.sessions.get(&channel)?.link(handle)?;
        self.sessions.iter().find_map(|(&channel, session)| {
            session
                .links()
                .find(|(_, link)| {
                    link.node == of.node && link.peer_role == Role::Receiver && !link.is_closing()
                })
                .map(|(handle, _)| (channel, handle))
        })
    }

    fn open_cbs_links(&self, peer_role: &Role) -> usize {
        let links = self.sessions.values().flat_map(Session::links);
        links
            .filter(|(_, link)| link.node == Node::Cbs && link.peer_role == *peer_role && !link.is_closing())
            .count()
    }

    /// Answers as the hub does: termini and properties echoed, its own limits and modes.
    fn accept_link(&mut self, channel: u16, handle: u32, attach: Attach, admitted: Admitted) -> Step {
        let node = admitted.node.clone();
        self.close_rivals(&node, &attach.role, admitted.pairing.as_ref())?;
        self.steal(channel, &attach)?;
        self.shared.claim(&node, self.id);
        let now = self.shared.clock.now();
        self.last_link_at = Some(now);
        let settings = self.shared.settings();
        let asked = attach
            .max_message_size
            .filter(|&size| size != 0)
            .unwrap_or(u64::MAX);
        let peer_sends = attach.role == Role::Sender;
        let rcv_settle_mode = match node {
            Node::DeviceBound(_) => ReceiverSettleMode::Second,
            Node::Cbs
            | Node::Events(_)
            | Node::Twin(_)
            | Node::Methods(_)
            | Node::ServiceCommands
            | Node::Feedback
            | Node::BuiltInEvents(_)
            | Node::EventHub(_)
            | Node::Partition(_)
            | Node::Queue(_)
            | Node::Management(_) => ReceiverSettleMode::First,
        };
        let snd_settle_mode = match node {
            Node::Twin(_) | Node::Methods(_) => SenderSettleMode::Settled,
            Node::Cbs
            | Node::Events(_)
            | Node::DeviceBound(_)
            | Node::ServiceCommands
            | Node::Feedback
            | Node::BuiltInEvents(_)
            | Node::EventHub(_)
            | Node::Partition(_)
            | Node::Queue(_)
            | Node::Management(_) => attach.snd_settle_mode.clone(),
        };
        let granted = if node == Node::Cbs {
            settings.cbs_credit
        } else {
            settings.event_credit
        };
        let link = if peer_sends {
            Link::receiving(&attach, admitted, granted, now)
        } else {
            Link::sending(&attach, admitted, now)
        };
        let answer = Attach {
            role: if peer_sends { Role::Receiver } else { Role::Sender },
            snd_settle_mode,
            rcv_settle_mode,
            unsettled: None,
            incomplete_unsettled: false,
            initial_delivery_count: (!peer_sends).then_some(0),
            max_message_size: Some(if peer_sends {
                settings.max_message_size
            } else {
                asked.min(settings.max_message_size)
            }),
            offered_capabilities: None,
            desired_capabilities: None,
            ..attach
        };
        self.send(channel, Performative::Attach(answer))?;
        let session = self.session(channel)?;
        session.attach(handle, link);
        if peer_sends {
            let flow = session.flow(Some(handle));
            self.send(channel, flow)?;
        }
        self.work()
    }

    /// AMQP 1.0 part 2, §2.6.3: an attach without the terminus that is ours, then a detach.
    fn refuse_link(&mut self, channel: u16, handle: u32, attach: Attach, error: Error) -> Step {
        let (name, peer_role) = (attach.name.clone(), attach.role.clone());
        let peer_sends = peer_role == Role::Sender;
        let answer = Attach {
            role: if peer_sends { Role::Receiver } else { Role::Sender },
            source: attach.source.filter(|_| peer_sends),
            target: attach.target.filter(|_| !peer_sends),
            unsettled: None,
            initial_delivery_count: (!peer_sends).then_some(0),
            ..attach
        };
        self.send(channel, Performative::Attach(answer))?;
        self.session(channel)?
            .attach(handle, Link::refused(&name, peer_role));
        self.note(Observed::Refused {
            connection: self.id,
            link: name,
            error: error.clone(),
        });
        self.send(
            channel,
            Performative::Detach(Detach {
                handle: Handle(handle),
                closed: true,
                error: Some(error),
            }),
        )
    }

    pub(super) fn on_detach(&mut self, channel: u16, detach: Detach) -> Step {
        let Handle(handle) = detach.handle;
        let Some((link, locks)) = self.session(channel)?.detach(handle) else {
            return self.fault(format!("a detach of unattached handle {handle}"));
        };
        self.shared.commands().unlock_tokens(&locks);
        self.shared.part(self.id, &link.node);
        self.last_link_at = Some(self.shared.clock.now());
        let (connection, closed, error) = (self.id, detach.closed, detach.error);
        let answered = link.is_closing();
        self.note(Observed::Detached {
            connection,
            link: link.name,
            closed,
            error,
        });
        if !answered {
            self.send(
                channel,
                Performative::Detach(Detach {
                    handle: Handle(handle),
                    closed,
                    error: None,
                }),
            )?;
        }
        self.shared.work_for_all();
        Ok(())
    }

    /// The older link of the same name in the session, if there is one, goes.
    fn steal(&mut self, channel: u16, attach: &Attach) -> Step {
        let older = self
            .session(channel)?
            .links()
            .find(|(_, link)| has_name_of(link, attach) && !link.is_closing())
            .map(|(handle, _)| handle);
        let text = "The link was stolen by another of its name.".to_owned();
        match older {
            Some(handle) => self.detach_link(channel, handle, Error::new(LinkError::Stolen, text, None)),
            None => Ok(()),
        }
    }

    /// Another reads the partition now.
    pub(super) fn steal_reader(&mut self, id: ReaderId) -> Step {
        let text = "A receiver of the same or a higher epoch has been created, so this one is disconnected.";
        self.detach_where(
            |link| link.reader.as_ref().is_some_and(|reader| reader.id == id),
            &Error::new(LinkError::Stolen, text.to_owned(), None),
        )
    }

    /// The identity has come on another connection.
    pub(super) fn evict(&mut self, identity: &Identity, eviction: Eviction) -> Step {
        let condition = match eviction.condition {
            EvictionCondition::InternalError => AmqpError::InternalError.into(),
            EvictionCondition::NotAllowed => AmqpError::NotAllowed.into(),
            EvictionCondition::LinkCreationConflict => {
                ErrorCondition::Custom(Symbol::from("com.microsoft:link-creation-conflict"))
            }
        };
        let text = "Another AMQP Client has opened a Receive Link".to_owned();
        let error = Error::new(condition, text, None);
        let is_theirs = |link: &Link| link.node.identity() == Some(identity);
        let channels: Vec<u16> = self
            .sessions
            .iter()
            .filter(|(_, session)| {
                session
                    .links()
                    .any(|(_, link)| is_theirs(link) && !link.is_closing())
            })
            .map(|(channel, _)| *channel)
            .collect();
        match eviction.scope {
            EvictionScope::Links => self.detach_where(is_theirs, &error),
            EvictionScope::Connection if channels.is_empty() => Ok(()),
            EvictionScope::Connection => self.close(Some(error)),
            EvictionScope::Sessions => channels
                .into_iter()
                .try_for_each(|channel| self.end_session(channel, error.clone())),
        }
    }

    /// Detaches one link, on the hub's own account.
    pub(super) fn detach_link(&mut self, channel: u16, handle: u32, error: Error) -> Step {
        let id = self.id;
        let shared = self.shared.clone();
        let session = self.session(channel)?;
        let locks = session.forget_unsettled(handle);
        shared.commands().unlock_tokens(&locks);
        if let Some(link) = session.link_mut(handle) {
            shared.part(id, &link.node);
            link.close();
        }
        self.last_link_at = Some(shared.clock.now());
        self.send(
            channel,
            Performative::Detach(Detach {
                handle: Handle(handle),
                closed: true,
                error: Some(error),
            }),
        )
    }

    /// Detaches every link that `matches`, on the hub's own account.
    pub(super) fn detach_where(&mut self, matches: impl Fn(&Link) -> bool, error: &Error) -> Step {
        let mut detached = Vec::new();
        for (&channel, session) in &self.sessions {
            let handles: Vec<u32> = session
                .links()
                .filter(|(_, link)| !link.is_closing() && matches(link))
                .map(|(handle, _)| handle)
                .collect();
            detached.extend(handles.into_iter().map(|handle| (channel, handle)));
        }
        detached
            .into_iter()
            .try_for_each(|(channel, handle)| self.detach_link(channel, handle, error.clone()))
    }
}

fn has_name_of(link: &Link, attach: &Attach) -> bool {
    link.name == attach.name && link.peer_role == attach.role
}

fn pairing_of(attach: &Attach) -> Option<Pairing> {
    let properties = attach.properties.as_ref()?;
    let text = |name: &str| match properties.get(&Symbol::from(name))? {
        Value::String(text) | Value::Symbol(Symbol(text)) => Some(text.clone()),
        _ => None,
    };
    Some(Pairing {
        correlation_id: text("com.microsoft:channel-correlation-id")?,
        api_version: text("com.microsoft:api-version")?,
    })
}
