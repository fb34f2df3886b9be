//! Links coming and going: who is let in, how an attach is answered, and how it is refused.

use fe2o3_amqp::types::definitions::{AmqpError, Error, Handle, ReceiverSettleMode, Role};
use fe2o3_amqp::types::messaging::TargetArchetype;
use fe2o3_amqp::types::performatives::{Attach, Detach, Performative};

use super::connection::{Connection, Step};
use super::node::Node;
use super::observed::Observed;
use super::refusal::Refusal;
use super::session::{Link, Session};
use super::settings::CbsMode;

impl Connection {
    pub(super) fn on_attach(&mut self, channel: u16, attach: Attach) -> Step {
        let Handle(handle) = attach.handle;
        self.note(Observed::Attached {
            connection: self.id,
            channel,
            attach: Box::new(attach.clone()),
        });
        if handle > self.shared.settings.handle_max || self.session(channel)?.link(handle).is_some() {
            return self.fault(format!("an attach on handle {handle}, in use or out of range"));
        }
        match self.admit(channel, &attach) {
            Ok((address, node)) => self.accept_link(channel, handle, attach, &address, node),
            Err(error) => self.refuse_link(channel, handle, attach, error),
        }
    }

    /// Whether a link may be; its address and node if so.
    fn admit(&self, channel: u16, attach: &Attach) -> Result<(String, Node), Error> {
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
        let node = Node::find(&address, &attach.role)
            .ok_or_else(|| Refusal::not_found(format!("The path {address} is not supported.")).to_error())?;
        let same_name = |link: &Link| link.name == attach.name && link.peer_role == attach.role;
        if self
            .sessions
            .get(&channel)
            .is_some_and(|session| session.links().any(|(_, link)| same_name(link)))
        {
            let name = &attach.name;
            let text = format!("A link with name '{name}' is already attached in session {channel}.");
            return Err(Error::new(AmqpError::ResourceLocked, text, None));
        }
        if node == Node::Cbs && self.shared.settings.cbs_mode == CbsMode::Refuse {
            let second =
                |link: &Link| link.node == Node::Cbs && link.peer_role == attach.role && !link.is_closing();
            if self
                .sessions
                .values()
                .flat_map(Session::links)
                .any(|(_, link)| second(link))
            {
                let text = format!(
                    "A link to connection '{}' $cbs node has already been opened.",
                    self.id
                );
                return Err(Error::new(AmqpError::NotAllowed, text, None));
            }
        }
        if let Some(resource) = node.resource() {
            if let Some(device) = resource.get(1)
                && !self.shared.settings.devices.contains_key(*device)
            {
                return Err(Refusal::no_such_device(device).to_error());
            }
            if !self.grants.cover(&resource, self.shared.settings.token_grace) {
                return Err(Refusal::unauthorized("Unauthorized access.").to_error());
            }
        }
        Ok((address, node))
    }

    /// Answers as the hub does: termini and properties echoed, its own limits and modes.
    fn accept_link(&mut self, channel: u16, handle: u32, attach: Attach, address: &str, node: Node) -> Step {
        let settings = self.shared.settings.clone();
        let asked = attach
            .max_message_size
            .filter(|&size| size != 0)
            .unwrap_or(u64::MAX);
        let peer_sends = attach.role == Role::Sender;
        let rcv_settle_mode = match node {
            Node::DeviceBound(_) => ReceiverSettleMode::Second,
            Node::Cbs | Node::Events(_) | Node::ServiceCommands | Node::Feedback => ReceiverSettleMode::First,
        };
        let granted = if node == Node::Cbs {
            settings.cbs_credit
        } else {
            settings.event_credit
        };
        let link = if peer_sends {
            Link::receiving(
                &attach.name,
                address,
                node,
                granted,
                attach.initial_delivery_count.unwrap_or(0),
            )
        } else {
            let target = match attach.target.as_deref() {
                Some(TargetArchetype::Target(target)) => target.address.clone(),
                None => None,
            };
            let names = [Some(attach.name.clone()), target]
                .into_iter()
                .flatten()
                .collect();
            Link::sending(&attach.name, address, node, names)
        };
        let answer = Attach {
            role: if peer_sends { Role::Receiver } else { Role::Sender },
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

    /// Detaches every link to this node, on the hub's own account.
    pub(super) fn detach_all(&mut self, node: &Node, error: &Error) -> Step {
        let mut detached = Vec::new();
        for (&channel, session) in &mut self.sessions {
            let handles: Vec<u32> = session
                .links()
                .filter(|(_, link)| link.node == *node && !link.is_closing())
                .map(|(handle, _)| handle)
                .collect();
            for handle in handles {
                let locks = session.forget_unsettled(handle);
                self.shared.commands().unlock_tokens(&locks);
                if let Some(link) = session.link_mut(handle) {
                    link.close();
                }
                detached.push((channel, handle));
            }
        }
        for (channel, handle) in detached {
            let detach = Detach {
                handle: Handle(handle),
                closed: true,
                error: Some(error.clone()),
            };
            self.send(channel, Performative::Detach(detach))?;
        }
        Ok(())
    }
}
