//! One session with one peer: its windows and its links (AMQP 1.0 part 2, §2.5).

use super::SessionError;
use super::limits;
use super::link::{End, Link};
use super::window::{IncomingWindow, OutgoingWindow, WindowSize};
use crate::amqp::performative::{Attach, Begin, Flow, Role, Transfer};
use crate::amqp::relay::SessionFlow;
use crate::amqp::serial::{Channel, DeliveryId, Handle};

/// ```text
///   BeginSent --begin--> Mapped --end sent--> EndSent --end--> (gone)
///   (peer's begin, answered at once) --> Mapped --end--> (gone, ours is sent in answer)
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionState {
    /// We began it; the peer's begin has not come.
    BeginSent,
    /// Both sides have begun.
    Mapped,
    /// We ended it; whatever comes before the peer's end is ignored.
    EndSent,
}

/// A session, known by our channel.
#[derive(Debug)]
pub struct Session {
    /// Where it stands.
    pub state: SessionState,
    /// The peer's channel, once known.
    pub remote_channel: Option<Channel>,
    /// What the peer may send.
    pub incoming: IncomingWindow,
    /// What we may send.
    pub outgoing: OutgoingWindow,
    /// The router's own indices for what is behind this session; this layer never reads them.
    pub owners: Vec<u32>,
    /// Its frames are shown where only those of some sessions are ([`Tracing::Sessions`](super::trace::Tracing)).
    pub is_traced: bool,
    next_delivery_id: DeliveryId,
    remote_handle_max: u32,
    /// How many links there have been.
    attaches: u64,
    /// By our handle.
    links: Vec<Option<Box<Link>>>,
    /// Our handle by the peer's.
    handles: Vec<Option<Handle>>,
}

impl Session {
    pub(super) fn new(state: SessionState, window: WindowSize) -> Self {
        Session {
            state,
            remote_channel: None,
            incoming: IncomingWindow::new(window),
            outgoing: OutgoingWindow::new(),
            owners: Vec::new(),
            is_traced: false,
            next_delivery_id: DeliveryId(0),
            remote_handle_max: limits::HANDLE_MAX,
            attaches: 0,
            links: Vec::new(),
            handles: Vec::new(),
        }
    }

    pub(super) fn on_begin(&mut self, remote_channel: Channel, begin: &Begin) {
        self.state = SessionState::Mapped;
        self.remote_channel = Some(remote_channel);
        self.remote_handle_max = begin.handle_max.min(limits::HANDLE_MAX);
        self.incoming.begin(begin.next_outgoing_id);
        self.outgoing.announced(None, begin.incoming_window);
    }

    pub(super) fn on_flow(&mut self, flow: &Flow<'_>) {
        self.outgoing
            .announced(flow.next_incoming_id, flow.incoming_window);
    }

    /// An attach from the peer: the answer to one of ours, or a link of its own. Returns our handle.
    pub(super) fn on_attach(
        &mut self,
        attach: &Attach<'_>,
        is_full: bool,
    ) -> Result<(Handle, AttachKind), SessionError> {
        let Some(index) = index(attach.handle).filter(|_| attach.handle.0 <= limits::HANDLE_MAX) else {
            return Err(SessionError::HandleMax(attach.handle));
        };
        if self.handles.get(index).copied().flatten().is_some() {
            return Err(SessionError::HandleInUse(attach.handle));
        }
        let role = attach.role.other();
        let (mut answered, mut is_taken): (Option<(u64, Handle)>, bool) = (None, false);
        for (handle, link) in self
            .links()
            .filter(|(_, link)| link.role == role && *link.name == *attach.name)
        {
            match (link.local, link.remote) {
                // One that we have given up meanwhile is answered, too, and before its successor of the same name.
                (End::Attached | End::Detached, End::Idle) => {
                    if answered.is_none_or(|(order, _)| link.order < order) {
                        answered = Some((link.order, handle));
                    }
                }
                (End::Idle | End::Attached, End::Attached) => is_taken = true,
                // One that is being detached does not stand in the way of its successor.
                (End::Idle, End::Idle) | (End::Detached, End::Attached) | (_, End::Detached) => {}
            }
        }
        let (handle, kind) = match answered {
            Some((_, handle)) => (handle, AttachKind::Answer),
            None if is_taken => return Err(SessionError::LinkNameInUse),
            None if is_full => return Err(SessionError::TooManyLinks),
            None if attach.name.len() > limits::LINK_NAME => {
                return Err(SessionError::LinkNameLimit(attach.name.len()));
            }
            None => (self.add_link(attach.name, role)?, AttachKind::Request),
        };
        if let Some(link) = self.link_mut(handle) {
            link.remote = End::Attached;
            link.remote_handle = Some(attach.handle);
        }
        if self.handles.len() <= index {
            self.handles.resize(index + 1, None);
        }
        if let Some(slot) = self.handles.get_mut(index) {
            *slot = Some(handle);
        }
        Ok((handle, kind))
    }

    /// A new link under our lowest free handle.
    pub(super) fn add_link(&mut self, name: &str, role: Role) -> Result<Handle, SessionError> {
        let free = self
            .links
            .iter()
            .position(Option::is_none)
            .unwrap_or(self.links.len());
        let handle = to_handle(free);
        if handle.0 > self.remote_handle_max {
            return Err(SessionError::HandleMax(handle));
        }
        if free == self.links.len() {
            self.links.push(None);
        }
        if let Some(slot) = self.links.get_mut(free) {
            self.attaches += 1;
            *slot = Some(Box::new(Link::new(name, role, self.attaches)));
        }
        Ok(handle)
    }

    /// Undoes [`add_link`](Self::add_link): nothing was said of it.
    pub(super) fn take_back(&mut self, handle: Handle) {
        if let Some(slot) = index(handle).and_then(|index| self.links.get_mut(index)) {
            *slot = None;
        }
        self.forget_free_slots();
    }

    /// Our handle for the peer's.
    #[inline]
    pub(super) fn local_handle(&self, remote: Handle) -> Result<Handle, SessionError> {
        index(remote)
            .and_then(|index| self.handles.get(index).copied().flatten())
            .ok_or(SessionError::UnattachedHandle(remote))
    }

    /// A transfer came in: counts it and checks that deliveries follow each other properly on its link.
    #[inline]
    pub(super) fn on_transfer(&mut self, transfer: &Transfer<'_>) -> Result<Handle, SessionError> {
        if !self
            .incoming
            .receive(transfer.tail.bytes.len() + transfer.payload.len())
        {
            return Err(SessionError::WindowViolation);
        }
        let handle = self.local_handle(transfer.handle)?;
        let link = self
            .link_mut(handle)
            .ok_or(SessionError::UnattachedHandle(transfer.handle))?;
        if link.role == Role::Sender {
            return Err(SessionError::TransferFromReceiver(transfer.handle));
        }
        if !link.is_receiving && transfer.delivery_id.is_none() {
            return Err(SessionError::MissingDeliveryId);
        }
        link.is_receiving = transfer.more && !transfer.aborted;
        Ok(handle)
    }

    /// The peer's detach: frees its handle.
    pub(super) fn on_detach(&mut self, remote: Handle) -> Result<Handle, SessionError> {
        let handle = self.local_handle(remote)?;
        if let Some(slot) = index(remote).and_then(|index| self.handles.get_mut(index)) {
            *slot = None;
        }
        if let Some(link) = self.link_mut(handle) {
            link.remote = End::Detached;
            link.remote_handle = None;
            link.is_receiving = false;
        }
        Ok(handle)
    }

    /// Marks our end detached.
    pub(super) fn detach_local(&mut self, handle: Handle) {
        if let Some(link) = self.link_mut(handle) {
            link.local = End::Detached;
        }
    }

    /// We have ended it: whatever comes on its links from now on is ignored.
    pub(super) fn end(&mut self) -> Vec<u32> {
        self.state = SessionState::EndSent;
        self.links = Vec::new();
        self.handles = Vec::new();
        std::mem::take(&mut self.owners)
    }

    /// Frees the link when nothing more can happen on it.
    pub(super) fn reap(&mut self, handle: Handle) {
        if let Some(slot) = index(handle).and_then(|index| self.links.get_mut(index))
            && slot.as_deref().is_some_and(Link::is_over)
        {
            *slot = None;
        }
        self.forget_free_slots();
    }

    fn forget_free_slots(&mut self) {
        while matches!(self.links.last(), Some(None)) {
            self.links.pop();
        }
    }

    /// The link with this handle of ours.
    #[inline]
    pub fn link(&self, handle: Handle) -> Option<&Link> {
        index(handle)
            .and_then(|index| self.links.get(index))
            .and_then(Option::as_deref)
    }

    /// The link with this handle of ours.
    #[inline]
    pub fn link_mut(&mut self, handle: Handle) -> Option<&mut Link> {
        index(handle)
            .and_then(|index| self.links.get_mut(index))
            .and_then(Option::as_deref_mut)
    }

    /// How many links there are, at most.
    pub const fn link_count(&self) -> usize {
        self.links.len()
    }

    /// Links of ours in this role that the peer has not detached and whose owner still knows them.
    pub(super) fn owned_links(&self, role: Role) -> usize {
        self.links()
            .filter(|(_, link)| link.role == role && link.owner.is_some() && link.remote != End::Detached)
            .count()
    }

    /// All links with their handles.
    pub fn links(&self) -> impl Iterator<Item = (Handle, &Link)> {
        self.links
            .iter()
            .enumerate()
            .filter_map(|(index, link)| Some((to_handle(index), link.as_deref()?)))
    }

    /// The id of the next delivery that we send.
    #[inline]
    pub const fn next_delivery_id(&self) -> DeliveryId {
        self.next_delivery_id
    }

    /// The next delivery has begun; ids are gapless.
    #[inline]
    pub const fn use_delivery_id(&mut self) {
        self.next_delivery_id = self.next_delivery_id.plus(1);
    }

    /// What a flow says of this session.
    pub fn flow(&self) -> SessionFlow {
        SessionFlow {
            next_incoming_id: self.incoming.next_id(),
            incoming_window: self.incoming.remaining(),
            next_outgoing_id: self.outgoing.next_id(),
            // What we hold back is bounded elsewhere.
            outgoing_window: u32::MAX,
        }
    }
}

/// Whether an attach answers one of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachKind {
    /// The peer's link.
    Request,
    /// Our link, attached by the peer too.
    Answer,
}

fn index(handle: Handle) -> Option<usize> {
    usize::try_from(handle.0).ok()
}

/// Link tables never grow beyond [`limits::HANDLE_MAX`], so this never saturates.
fn to_handle(index: usize) -> Handle {
    Handle(u32::try_from(index).unwrap_or(u32::MAX))
}
