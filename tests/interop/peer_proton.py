#!/usr/bin/python3
"""An AMQP peer on Qpid Proton, worked from outside: commands on stdin, events on stdout, one JSON object a line.

It is both the device and the hub. `peer_rhea.js` speaks the same language, so that a scenario is written once; the
commands are the `do_*` methods below, and `README.md` beside this file lists them with the events.
"""

import json
import os
import sys
import threading
import traceback

from proton import Condition, Data, Delivery, Described, Endpoint, Handler, Link, Message, SSLDomain, Terminus, symbol, ulong
from proton.reactor import ApplicationEvent, Container, EventInjector

import payload

HUB_MAX_FRAME = 65536
HUB_SESSION_FRAMES = 32
SETTLE_MODES = {"unsettled": Link.SND_UNSETTLED, "settled": Link.SND_SETTLED, "mixed": Link.SND_MIXED}
RECEIVE_MODES = {"first": Link.RCV_FIRST, "second": Link.RCV_SECOND}
STATES = {
    Delivery.ACCEPTED: "accepted",
    Delivery.REJECTED: "rejected",
    Delivery.RELEASED: "released",
    Delivery.MODIFIED: "modified",
    Delivery.RECEIVED: "received",
    0x33: "declared",
    0x34: "transactional",
}
TRANSACTIONAL = 0x34


def name_of(modes, value):
    return next((name for name, mode in modes.items() if mode == value), str(value))


def plain(value):
    """A Proton value as something JSON can say."""
    if isinstance(value, Described):
        return plain(value.value)
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, (bytes, memoryview)):
        return bytes(value).decode("latin-1")
    if value is None or isinstance(value, (bool, str)):
        return value if not isinstance(value, str) else str(value)
    if isinstance(value, int):
        return int(value)
    return str(value)


DISTRIBUTIONS = {"move": Terminus.DIST_MODE_MOVE, "copy": Terminus.DIST_MODE_COPY}
EXPIRIES = {
    "link-detach": Terminus.EXPIRE_WITH_LINK,
    "session-end": Terminus.EXPIRE_WITH_SESSION,
    "connection-close": Terminus.EXPIRE_WITH_CONNECTION,
    "never": Terminus.EXPIRE_NEVER,
}


def fill_terminus(terminus, address, durable=0, expiry=None, distribution=None, capabilities=(), filters=None, coordinator=False):
    """Writes what was asked for; a filter is `[descriptor, value]`, or a value that is not described."""
    if coordinator:
        terminus.type = Terminus.COORDINATOR
    else:
        terminus.address = address
        terminus.durability = durable
    if expiry:
        terminus.expiry_policy = EXPIRIES[expiry]
    if distribution:
        terminus.distribution_mode = DISTRIBUTIONS[distribution]
    if capabilities:
        terminus.capabilities.put_array(False, Data.SYMBOL)
        terminus.capabilities.enter()
        for capability in capabilities:
            terminus.capabilities.put_symbol(symbol(capability))
        terminus.capabilities.exit()
    if filters:
        described = {
            symbol(name): Described(ulong(wanted[0]), wanted[1]) if isinstance(wanted, list) else wanted
            for name, wanted in filters.items()
        }
        terminus.filter.put_dict(described)


def open_properties(properties):
    """Symbols for the keys, also those of maps within lists, as a failover-server-list has them."""
    if isinstance(properties, dict):
        return {symbol(name): open_properties(value) for name, value in properties.items()}
    if isinstance(properties, list):
        return [open_properties(value) for value in properties]
    return properties


def first_object(data):
    """What a Proton `Data` holds; nothing if it is empty."""
    data.rewind()
    return data.get_object() if data.next() is not None else None


def dress(message, stream, number):
    """Gives a message what a broker keeps and selects by. `fault_in_dress` knows the rule, and so does peer_rhea.js."""
    message.durable = True
    message.id = f"{stream}-{number}"
    message.subject = stream
    message.properties = {"number": number, "parity": "odd" if number % 2 else "even"}
    message.annotations = {symbol("x-opt-number"): number}
    return message


def fault_in_dress(message, stream, number):
    wanted = dress(Message(), stream, number)
    for field in ("durable", "id", "subject", "properties"):
        seen = getattr(message, field)
        if seen != getattr(wanted, field):
            return f"message {number}: {field} is {seen!r}"
    # A broker may add annotations of its own.
    note = (message.annotations or {}).get(symbol("x-opt-number"))
    return None if note == number else f"message {number}: x-opt-number is {note!r}"


def condition_fields(condition):
    if condition is None:
        return {"condition": None, "description": None, "info": None}
    return {
        "condition": str(condition.name) if condition.name else None,
        "description": condition.description or None,
        "info": plain(condition.info) if condition.info else None,
    }


class LinkState:
    """What this peer knows of one link, and what it was told to do with it."""

    def __init__(self, key, link):
        self.key = key
        self.link = link
        self.opened = False
        self.closed = False
        # as a receiver
        self.window = 0
        self.plan = None
        self.received = 0
        self.faults = []
        self.presettled = 0
        self.aborted = 0
        self.peer_settled = 0
        self.told_received = False
        self.waits_for_drain = False
        # as a sender
        self.queue = []
        self.sent = 0
        self.outcomes = {}
        self.finished = 0
        self.outcome_before_settlement = 0
        self.told_draining = False


class Peer(Handler):
    def __init__(self):
        super().__init__()
        self.container = Container(self)
        self.injector = EventInjector()
        self.connections = {}
        self.links = {}
        self.accepted = 0
        self.arrived = 0
        self.acceptor = None
        self.hub_properties = None

    # ----- talking to the runner

    def say(self, **fields):
        sys.stdout.write(json.dumps(fields) + "\n")
        sys.stdout.flush()

    def run(self):
        self.container.selectable(self.injector)
        threading.Thread(target=self.read_commands, daemon=True).start()
        self.container.run()

    def read_commands(self):
        for line in sys.stdin:
            self.injector.trigger(ApplicationEvent("command", subject=json.loads(line)))
        os._exit(0)

    def on_command(self, event):
        command = event.subject
        number = command.pop("id")
        name = command.pop("do")
        try:
            self.say(id=number, **(getattr(self, "do_" + name)(**command) or {}))
        except Exception as error:  # the runner shall see it, whatever it is
            traceback.print_exc()
            self.say(id=number, error=f"{type(error).__name__}: {error}")

    # ----- commands

    def do_listen(self, port, tls=None, plain_auth=None, properties=None):
        self.hub_properties = properties
        domain = None
        if tls:
            domain = SSLDomain(SSLDomain.MODE_SERVER)
            domain.set_credentials(tls["cert"], tls["key"], None)
        if plain_auth:
            raise ValueError("Debian's Proton has no Cyrus SASL and cannot check a password")
        self.acceptor = self.container.listen(f"127.0.0.1:{port}", ssl_domain=domain)

    def do_connect(self, conn, port, container, max_frame_size=None, sasl=True, user=None, password=None, tls=None, external=False, hostname=None):
        self.container.container_id = container
        domain = None
        if tls:
            domain = SSLDomain(SSLDomain.MODE_CLIENT)
            domain.set_credentials(tls["cert"], tls["key"], None)
            domain.set_trusted_ca_db(tls["ca"])
            domain.set_peer_authentication(SSLDomain.VERIFY_PEER)
        connection = self.container.connect(
            f"{'amqps' if tls else 'amqp'}://127.0.0.1:{port}",
            reconnect=False,
            ssl_domain=domain,
            sasl_enabled=sasl,
            allowed_mechs="EXTERNAL" if external else "PLAIN" if user else "ANONYMOUS",
            user=user,
            password=password,
            max_frame_size=max_frame_size,
            virtual_host=hostname,
        )
        connection.key = conn
        self.connections[conn] = connection

    def do_attach(self, conn, link, role, address, snd="mixed", rcv="first", name=None, properties=None, terminus=None, receive=None):
        connection = self.connections[conn]
        if not hasattr(connection, "only_session"):
            session = connection.session()
            session.open()
            connection.only_session = session
        session = connection.only_session
        endpoint = session.sender(name or link) if role == "sender" else session.receiver(name or link)
        fill_terminus(endpoint.target if role == "sender" else endpoint.source, address, **(terminus or {}))
        endpoint.snd_settle_mode = SETTLE_MODES[snd]
        endpoint.rcv_settle_mode = RECEIVE_MODES[rcv]
        if properties:
            endpoint.properties = {symbol(k): v for k, v in properties.items()}
        state = LinkState(link, endpoint)
        endpoint.state_of = state
        self.links[link] = state
        endpoint.open()
        if receive:
            self.do_receive(link, **receive)

    def do_receive(self, link, stream, size, count, outcome=None, settle=True, window=0, report=False, **rule):
        state = self.links[link]
        state.plan = {
            "first": rule.get("first", 0),
            "step": rule.get("step", 1),
            "dressed": rule.get("dressed", False),
            "txn": rule.get("txn"),
            "stream": stream,
            "size": size,
            "count": count,
            "outcome": outcome or {"state": "accepted"},
            "settle": settle,
            "report": report,
        }
        state.window = window
        state.received = state.presettled = state.peer_settled = 0
        state.faults = []
        state.told_received = False
        self.top_up(state)

    def do_flow(self, link, credit):
        self.links[link].link.flow(credit)

    def do_drain(self, link):
        state = self.links[link]
        state.waits_for_drain = True
        state.link.drain(0)

    def do_send(self, link, stream, count, size, first=0, settled=False, report=False, **rule):
        state = self.links[link]
        job = {"stream": stream, "next": first, "end": first + count, "size": size}
        rule = {"dressed": rule.get("dressed", False), "txn": rule.get("txn")}
        state.queue.append({**job, "settled": settled, "report": report, **rule})
        self.pump(state)

    def do_send_sections(self, link):
        message = Message(
            body=b"everything",
            inferred=True,
            durable=True,
            priority=7,
            ttl=60.0,
            id="m-1",
            subject="a subject",
            correlation_id="c-1",
            reply_to="answers/here",
            content_type=symbol("text/plain"),
            properties={"text": "värde", "number": 42, "flag": True},
            annotations={symbol("x-opt-note"): "kept"},
            instructions={symbol("x-opt-hop"): "also kept"},
        )
        state = self.links[link]
        delivery = state.link.delivery("sections")
        delivery.number = 0
        delivery.report = True
        state.link.send(message.encode())
        state.link.advance()
        state.sent += 1

    def do_declare(self, link):
        self.control(link, Described(ulong(0x31), [None]))

    def do_discharge(self, link, txn, fail):
        self.control(link, Described(ulong(0x32), [bytes.fromhex(txn), fail]))

    def control(self, link, body):
        """Asks a coordinator for something; the answer comes as an `outcome`."""
        state = self.links[link]
        delivery = state.link.delivery(f"control-{state.sent}")
        delivery.number = state.sent
        delivery.report = True
        state.link.send(Message(body=body).encode())
        state.link.advance()
        state.sent += 1

    def do_stats(self, link):
        state = self.links[link]
        return {
            "credit": state.link.credit,
            "received": state.received,
            "faults": state.faults,
            "presettled": state.presettled,
            "aborted": state.aborted,
            "peer_settled": state.peer_settled,
            "sent": state.sent,
            "outcomes": state.outcomes,
            "finished": state.finished,
            "outcome_before_settlement": state.outcome_before_settlement,
        }

    def do_detach(self, link, closed=True):
        link = self.links[link].link
        link.close() if closed else link.detach()

    def do_close(self, conn):
        self.connections[conn].close()

    # ----- connections

    def on_connection_bound(self, event):
        connection, transport = event.connection, event.transport
        if hasattr(connection, "_overrides"):
            return
        self.accepted += 1
        connection.key = f"accepted-{self.accepted}"
        self.connections[connection.key] = connection
        transport.max_frame_size = HUB_MAX_FRAME
        transport.sasl().allowed_mechs("ANONYMOUS")

    def on_connection_remote_open(self, event):
        connection = event.connection
        if connection.state & Endpoint.LOCAL_UNINIT:
            connection.container = "hub-on-proton"
            if self.hub_properties:
                connection.properties = open_properties(self.hub_properties)
            connection.open()
        sasl_user = event.transport.user
        self.say(
            event="connection_opened",
            conn=connection.key,
            container=connection.remote_container,
            hostname=connection.remote_hostname,
            max_frame_size=event.transport.remote_max_frame_size,
            user=sasl_user,
        )

    def on_connection_remote_close(self, event):
        self.say(
            event="connection_closed", conn=event.connection.key, **condition_fields(event.connection.remote_condition)
        )
        event.connection.close()

    def on_transport_closed(self, event):
        connection = event.connection
        if connection is not None and hasattr(connection, "key"):
            self.say(event="connection_lost", conn=connection.key, **condition_fields(event.transport.condition))

    def on_session_remote_open(self, event):
        if event.session.state & Endpoint.LOCAL_UNINIT:
            event.session.incoming_capacity = HUB_MAX_FRAME * HUB_SESSION_FRAMES
            event.session.open()

    def on_session_remote_close(self, event):
        self.say(
            event="session_closed", conn=event.connection.key, **condition_fields(event.session.remote_condition)
        )
        if not event.session.state & Endpoint.LOCAL_CLOSED:
            event.session.close()

    # ----- links

    def on_link_remote_open(self, event):
        link = event.link
        if link.state & Endpoint.LOCAL_UNINIT:
            self.arrived += 1
            state = LinkState(f"arrived-{self.arrived}", link)
            link.state_of = state
            self.links[state.key] = state
            link.source.copy(link.remote_source)
            link.target.copy(link.remote_target)
            link.snd_settle_mode = link.remote_snd_settle_mode
            link.rcv_settle_mode = link.remote_rcv_settle_mode
            link.properties = {symbol("hub-stack"): "proton"}
            link.open()
        state = link.state_of
        state.opened = True
        terminus = link.remote_target if link.is_receiver and state.key.startswith("arrived") else None
        if terminus is None:
            terminus = link.remote_source if link.is_receiver else link.remote_target
            if link.is_sender and state.key.startswith("arrived"):
                terminus = link.remote_source
        self.say(
            event="link_opened",
            link=state.key,
            conn=event.connection.key,
            name=link.name,
            role="receiver" if link.is_receiver else "sender",
            address=terminus.address,
            snd=name_of(SETTLE_MODES, link.remote_snd_settle_mode),
            rcv=name_of(RECEIVE_MODES, link.remote_rcv_settle_mode),
            properties=plain(link.remote_properties),
            filter=plain(first_object(link.remote_source.filter)),
        )
        self.pump(state)

    def on_link_remote_close(self, event):
        self.link_ended(event, closed=True)

    def on_link_remote_detach(self, event):
        self.link_ended(event, closed=False)

    def link_ended(self, event, closed):
        state = event.link.state_of
        state.closed = True
        self.say(event="link_closed", link=state.key, closed=closed, **condition_fields(event.link.remote_condition))
        if not event.link.state & Endpoint.LOCAL_CLOSED:
            event.link.close() if closed else event.link.detach()

    def on_link_flow(self, event):
        state = event.link.state_of
        if event.link.is_sender:
            if state.opened:
                self.pump(state)
        elif state.waits_for_drain and not event.link.draining():
            state.waits_for_drain = False
            self.say(event="drained", link=state.key, credit=event.link.credit, received=state.received)

    # ----- deliveries

    def top_up(self, state):
        if state.window and state.link.credit <= state.window // 2:
            state.link.flow(state.window - state.link.credit)

    def pump(self, state):
        """Sends what is queued, as far as the credit goes, and then answers a drain."""
        link = state.link
        if not link.is_sender or state.closed:
            return
        while state.queue and link.credit > 0:
            job = state.queue[0]
            number = job["next"]
            delivery = link.delivery(f"{state.key}-{state.sent}")
            delivery.number = number
            delivery.report = job["report"]
            body = payload.make(job["stream"], number, job["size"])
            message = Message(body=body, inferred=True)
            link.send((dress(message, job["stream"], number) if job["dressed"] else message).encode())
            if job["txn"]:
                delivery.local.data = [bytes.fromhex(job["txn"])]
                delivery.update(TRANSACTIONAL)
            if job["settled"] or link.snd_settle_mode == Link.SND_SETTLED:
                delivery.settle()
            link.advance()
            state.sent += 1
            job["next"] += 1
            if job["next"] == job["end"]:
                state.queue.pop(0)
                self.say(event="sent", link=state.key, sent=state.sent)
        if not state.queue and link.drain_mode and link.credit > 0:
            returned = link.drained()
            self.say(event="draining", link=state.key, returned=returned)

    def on_delivery(self, event):
        delivery = event.delivery
        state = delivery.link.state_of
        if delivery.link.is_receiver:
            self.incoming(delivery, state)
        elif delivery.updated:
            self.outcome(delivery, state)

    def incoming(self, delivery, state):
        if delivery.aborted:
            state.aborted += 1
            self.say(event="aborted", link=state.key)
            delivery.settle()
            return
        if delivery.readable and not delivery.partial:
            self.take(delivery, state)
        elif hasattr(delivery, "taken") and delivery.updated and delivery.settled:
            state.peer_settled += 1
            delivery.settle()
            if state.peer_settled == state.plan["count"]:
                self.say(event="peer_settled", link=state.key, count=state.peer_settled)

    def take(self, delivery, state):
        link, plan = delivery.link, state.plan
        message = Message()
        message.decode(link.recv(delivery.pending))
        link.advance()
        delivery.taken = True
        number = state.received
        state.received += 1
        if plan is None or plan["stream"] is None:
            self.say(event="message", link=state.key, message=sections_of(message))
        elif number >= plan["count"]:
            self.note(state, f"message beyond the {plan['count']} that were due")
        else:
            number = plan["first"] + number * plan["step"]
            # With `report` the runner compares the numbers itself: after a restart a stream does not begin at 0.
            if plan["report"]:
                number = int(bytes(message.body)[:60].split(b":")[1])
                self.say(event="delivery", link=state.key, number=number, settled=delivery.settled)
            fault = payload.fault(message.body, plan["stream"], number, plan["size"])
            if not fault and plan["dressed"]:
                fault = fault_in_dress(message, plan["stream"], number)
            if fault:
                self.note(state, fault)
        if delivery.settled:
            state.presettled += 1
            delivery.settle()
        else:
            self.answer(delivery, plan)
        if plan and state.received == plan["count"]:
            self.say(
                event="received",
                link=state.key,
                count=state.received,
                presettled=state.presettled,
                faults=state.faults,
            )
        self.top_up(state)

    def note(self, state, fault):
        if len(state.faults) < 5:
            state.faults.append(fault)
            self.say(event="fault", link=state.key, fault=fault)

    def answer(self, delivery, plan):
        outcome = plan["outcome"] if plan else {"state": "accepted"}
        kind = outcome["state"]
        if kind == "none":
            return
        code = next(code for code, name in STATES.items() if name == kind)
        if plan and plan["txn"]:
            delivery.local.data = [bytes.fromhex(plan["txn"]), Described(ulong(int(code)), [])]
            code = TRANSACTIONAL
        if kind == "rejected":
            info = {symbol(k): v for k, v in outcome["info"].items()}
            delivery.local.condition = Condition(outcome["condition"], outcome["description"], info)
        elif kind == "modified":
            delivery.local.failed = outcome["delivery_failed"]
            delivery.local.undeliverable = outcome["undeliverable_here"]
            delivery.local.annotations = {symbol(k): v for k, v in outcome["annotations"].items()}
        delivery.update(code)
        if not plan or plan["settle"]:
            delivery.settle()

    def outcome(self, delivery, state):
        remote = delivery.remote
        kind = STATES.get(delivery.remote_state, "none" if not delivery.remote_state else str(delivery.remote_state))
        if not delivery.settled and kind in ("none", "received"):
            return
        if not delivery.settled:
            state.outcome_before_settlement += 1
        fields = {"state": kind, "settled": delivery.settled}
        if kind == "rejected":
            fields.update(condition_fields(remote.condition))
        elif kind in ("declared", "transactional"):
            fields["txn"] = bytes(remote.data[0]).hex()
        elif kind == "modified":
            fields.update(
                delivery_failed=bool(remote.failed),
                undeliverable_here=bool(remote.undeliverable),
                annotations=plain(remote.annotations),
            )
        number, report = delivery.number, delivery.report
        delivery.settle()
        state.outcomes[kind] = state.outcomes.get(kind, 0) + 1
        state.finished += 1
        if report:
            self.say(event="outcome", link=state.key, number=number, **fields)
        if state.finished == state.sent and not state.queue:
            self.say(
                event="finished",
                link=state.key,
                count=state.finished,
                outcomes=state.outcomes,
                outcome_before_settlement=state.outcome_before_settlement,
            )


def sections_of(message):
    return {
        "durable": message.durable,
        "priority": message.priority,
        "ttl": int(message.ttl * 1000),
        "id": plain(message.id),
        "subject": message.subject,
        "correlation_id": plain(message.correlation_id),
        "reply_to": message.reply_to,
        "content_type": str(message.content_type),
        "application_properties": plain(message.properties),
        "message_annotations": plain(message.annotations),
        "delivery_annotations": plain(message.instructions),
        "body": plain(message.body),
    }


if __name__ == "__main__":
    Peer().run()
