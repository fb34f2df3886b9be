#!/usr/bin/python3
"""A small broker on Qpid Proton, for what the packaged brokers do not have in AMQP 1.0.

Queues (`jobs/NAME`), topics (`news/NAME`), selectors, durable subscriptions and local transactions, all in memory:

* a subscription is durable if its source has `durable` 2 and never expires. It is known by container-id and link name,
  outlives its link and its connection, and ends when its link is closed, not merely detached;
* a selector (`apache.org:selector-filter:string`) is a comparison `NAME = 'TEXT'` or `NAME = NUMBER` of an application
  property, or several joined by AND. Any other is refused: attach with a null source, then detach;
* a coordinator declares and discharges. What is sent within a transaction is stored at the commit; what is accepted
  within it is gone at the commit and back in its queue after a rollback (AMQP 1.0 part 4, §4.2 to §4.4).

    broker_on_proton.py PLAIN_PORT TLS_PORT CERTIFICATE KEY
"""

import re
import sys
from collections import deque

from proton import Condition, Delivery, Described, Endpoint, Handler, Link, Message, SSLDomain, Terminus, symbol, ulong
from proton.reactor import Container

SELECTOR = "apache.org:selector-filter:string"
DECLARE, DISCHARGE, DECLARED, TRANSACTIONAL = 0x31, 0x32, 0x33, 0x34
CREDIT = 200


class Stored:
    """A message as it came, byte by byte, and what selectors look at."""

    def __init__(self, payload):
        self.payload = payload
        message = Message()
        message.decode(payload)
        self.properties = message.properties or {}


class Queue:
    def __init__(self):
        self.messages = deque()
        self.links = []

    def put(self, stored):
        self.messages.append(stored)
        self.pump()

    def put_back(self, stored):
        self.messages.appendleft(stored)
        self.pump()

    def pump(self):
        for link in self.links:
            pump(link, self)


class Subscription(Queue):
    def __init__(self, topic, selector):
        super().__init__()
        self.topic = topic
        self.selector = selector


class Transaction:
    def __init__(self):
        self.posted = []
        self.accepted = []

    def commit(self):
        for broker, address, stored in self.posted:
            broker.put(address, stored)
        for delivery, _, _ in self.accepted:
            delivery.settle()

    def roll_back(self):
        for delivery, _, _ in self.accepted:
            delivery.settle()
        for _, queue, stored in reversed(self.accepted):
            queue.put_back(stored)


def parse_selector(text):
    """The comparisons of a selector, as pairs; nothing if it is not one that this broker understands."""
    terms = []
    for term in re.split(r"\s+AND\s+", text):
        found = re.fullmatch(r"\s*(\w+)\s*=\s*(?:'([^']*)'|(\d+))\s*", term)
        if not found:
            return None
        terms.append((found[1], found[2] if found[2] is not None else int(found[3])))
    return terms


def selects(selector, stored):
    return all(stored.properties.get(name) == value for name, value in selector or ())


def pump(link, queue):
    """Gives a receiver what its credit and its selector allow, and then answers a drain."""
    while link.credit > 0:
        stored = next((m for m in queue.messages if selects(link.selector, m)), None)
        if stored is None:
            break
        queue.messages.remove(stored)
        link.sent += 1
        delivery = link.delivery(f"{link.name}-{link.sent}")
        delivery.stored = stored
        link.send(stored.payload)
        if link.snd_settle_mode == Link.SND_SETTLED:
            delivery.settle()
        else:
            link.unsettled_here[delivery.tag] = delivery
        link.advance()
    if link.drain_mode and link.credit > 0:
        link.drained()


def described_filter(source):
    source.filter.rewind()
    filters = source.filter.get_object() if source.filter.next() is not None else None
    wanted = (filters or {}).get(symbol(SELECTOR))
    return wanted.value if isinstance(wanted, Described) else wanted


class Broker(Handler):
    def __init__(self, plain_port, tls_port, certificate, key):
        super().__init__()
        self.queues = {}
        self.subscriptions = {}
        self.transactions = {}
        self.declared = 0
        self.container = Container(self)
        domain = SSLDomain(SSLDomain.MODE_SERVER)
        domain.set_credentials(certificate, key, None)
        self.acceptors = [
            self.container.listen(f"127.0.0.1:{plain_port}"),
            self.container.listen(f"127.0.0.1:{tls_port}", ssl_domain=domain),
        ]
        print("listening", flush=True)

    def put(self, address, stored):
        if address.startswith("jobs/"):
            self.queues.setdefault(address, Queue()).put(stored)
            return
        for subscription in self.subscriptions.values():
            if subscription.topic == address and selects(subscription.selector, stored):
                subscription.put(stored)

    # ----- connections, sessions, links

    def on_connection_bound(self, event):
        event.transport.sasl().allowed_mechs("ANONYMOUS")

    def on_connection_remote_open(self, event):
        event.connection.container = "broker-on-proton"
        event.connection.open()

    def on_connection_remote_close(self, event):
        event.connection.close()

    def on_transport_closed(self, event):
        connection = event.connection
        link = connection.link_head(0) if connection else None
        while link is not None:
            self.ended(link, closed=False)
            link = link.next(0)

    def on_session_remote_open(self, event):
        event.session.incoming_capacity = 1 << 22
        event.session.open()

    def on_session_remote_close(self, event):
        event.session.close()

    def on_link_remote_open(self, event):
        link = event.link
        link.snd_settle_mode = link.remote_snd_settle_mode
        link.rcv_settle_mode = link.remote_rcv_settle_mode
        link.has_ended = False
        if link.is_receiver:
            link.target.copy(link.remote_target)
            link.open()
            link.flow(CREDIT)
            return
        link.sent, link.unsettled_here = 0, {}
        text = described_filter(link.remote_source)
        link.selector = parse_selector(text) if text else None
        if text and link.selector is None:
            link.open()
            link.condition = Condition("amqp:invalid-field", f"selector {text}")
            link.has_ended = True
            link.close()
            return
        link.source.copy(link.remote_source)
        link.source.filter.copy(link.remote_source.filter)
        link.open()
        link.queue = self.queue_of(link, event.connection.remote_container)
        link.queue.links.append(link)

    def queue_of(self, link, container):
        source = link.remote_source
        if source.address.startswith("jobs/"):
            return self.queues.setdefault(source.address, Queue())
        lasting = source.durability == Terminus.DELIVERIES and source.expiry_policy == Terminus.EXPIRE_NEVER
        link.subscription = (container, link.name) if lasting else (container, link.name, id(link))
        link.lasting = lasting
        found = self.subscriptions.get(link.subscription)
        print("subscription", *link.subscription[:2], "found" if found else "new", flush=True)
        if found is None:
            found = self.subscriptions[link.subscription] = Subscription(source.address, link.selector)
        return found

    def on_link_remote_detach(self, event):
        self.ended(event.link, closed=False)
        event.link.detach()

    def on_link_remote_close(self, event):
        self.ended(event.link, closed=True)
        event.link.close()

    def ended(self, link, closed):
        if getattr(link, "has_ended", True) or link.is_receiver:
            return
        link.has_ended = True
        link.queue.links.remove(link)
        for delivery in reversed(list(link.unsettled_here.values())):
            link.queue.messages.appendleft(delivery.stored)
        link.queue.pump()
        if hasattr(link, "subscription") and (closed or not link.lasting):
            print("unsubscribed", *link.subscription[:2], flush=True)
            del self.subscriptions[link.subscription]

    # ----- deliveries

    def on_link_flow(self, event):
        if event.link.is_sender and hasattr(event.link, "queue"):
            pump(event.link, event.link.queue)

    def on_delivery(self, event):
        delivery, link = event.delivery, event.link
        if link.is_sender:
            self.outcome(delivery, link)
        elif delivery.readable and not delivery.partial:
            payload = link.recv(delivery.pending)
            state, data = delivery.remote_state, delivery.remote.data
            link.advance()
            if link.remote_target.type == Terminus.COORDINATOR:
                self.control(delivery, payload)
            elif state == TRANSACTIONAL:
                self.transactions[bytes(data[0])].posted.append((self, link.target.address, Stored(payload)))
                delivery.local.data = [data[0], Described(ulong(int(Delivery.ACCEPTED)), [])]
                delivery.update(TRANSACTIONAL)
            else:
                self.put(link.target.address, Stored(payload))
                delivery.update(Delivery.ACCEPTED)
            delivery.settle()
            link.flow(1)

    def control(self, delivery, payload):
        message = Message()
        message.decode(payload)
        asked = message.body
        if asked.descriptor in (DECLARE, "amqp:declare:list"):
            self.declared += 1
            name = f"txn-{self.declared}".encode()
            self.transactions[name] = Transaction()
            delivery.local.data = [name]
            delivery.update(DECLARED)
            return
        name, fail = asked.value
        transaction = self.transactions.pop(bytes(name), None)
        if transaction is None:
            delivery.local.condition = Condition("amqp:transaction:unknown-id", repr(bytes(name)))
            delivery.update(Delivery.REJECTED)
            return
        transaction.roll_back() if fail else transaction.commit()
        delivery.update(Delivery.ACCEPTED)

    def outcome(self, delivery, link):
        state = delivery.remote_state
        if not delivery.updated or delivery.tag not in link.unsettled_here:
            return
        stored = link.unsettled_here[delivery.tag].stored
        if state == TRANSACTIONAL:
            name = bytes(delivery.remote.data[0])
            del link.unsettled_here[delivery.tag]
            self.transactions[name].accepted.append((delivery, link.queue, stored))
        elif delivery.settled or state:
            del link.unsettled_here[delivery.tag]
            delivery.settle()
            if state in (Delivery.RELEASED, Delivery.MODIFIED):
                link.queue.put_back(stored)


if __name__ == "__main__":
    ports = map(int, sys.argv[1:3])
    Broker(*ports, *sys.argv[3:5]).container.run()
