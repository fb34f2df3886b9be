"""The scenarios with a real broker as the hub. Each is run by devices on both stacks, with and without the daemon.

A scenario names the brokers it is for. What a broker does not support is not asked of it, except where the way it says
no is the point; `--direct` shows that it is the broker that says so.
"""

from dataclasses import dataclass
from typing import Callable

from scenarios import check, expect_finished, expect_received

SCENARIOS = []


@dataclass
class Scenario:
    name: str
    run: Callable
    brokers: tuple


def scenario(*brokers):
    def register(function):
        SCENARIOS.append(Scenario(function.__name__.replace("_", " "), function, brokers))
        return function

    return register


class BrokerBench:
    """A device process, a broker, and the port that devices connect to."""

    def __init__(self, device, new_device, broker, port, direct, label):
        self.device = device
        self.new_device = new_device
        self.broker = broker
        self.port = port
        self.direct = direct
        self.label = label
        self.connections = []
        self.attached = 0

    def connect(self, name="device"):
        conn = f"{self.label}-{name}"
        self.device.call("connect", conn=conn, port=self.port, container=conn)
        self.device.wait("connection_opened", conn=conn)
        if conn not in self.connections:
            self.connections.append(conn)
        return conn

    def close(self, conn):
        self.device.call("close", conn=conn)
        self.device.wait("connection_closed", conn=conn)
        self.connections.remove(conn)

    def sender(self, conn, address, **options):
        return self.link(conn, "sender", address, **options)

    def receiver(self, conn, address, **options):
        return self.link(conn, "receiver", address, **options)

    def link(self, conn, role, address, name=None, **options):
        """Attaches, and waits until the broker has done so too."""
        key = self.attach(conn, role, address, name, **options)
        opened = self.device.wait("link_opened", link=key)
        check(opened["address"] == address, f"the broker's attach came back with the address {opened['address']!r}")
        return key

    def attach(self, conn, role, address, name=None, **options):
        self.attached += 1
        key = f"{conn}-{role}-{self.attached}"
        self.device.call("attach", conn=conn, link=key, name=name or key, role=role, address=address, **options)
        return key

    def detach(self, link, closed=True):
        self.device.call("detach", link=link, closed=closed)
        answer = self.device.wait("link_closed", link=link)
        check(answer["condition"] is None, f"the detach of {link} was answered with {answer}")

    def send(self, link, stream, count, size=200, **options):
        self.device.call("send", link=link, stream=stream, count=count, size=size, **options)

    def receive(self, link, stream, count, size=200, **options):
        self.device.call("receive", link=link, stream=stream, count=count, size=size, **options)

    def stored(self, link, stream, count, **options):
        """Sends, and waits until the broker has taken all."""
        before = self.device.call("stats", link=link)["outcomes"].get("accepted", 0)
        self.send(link, stream, count, **options)
        expect_finished(self.device, link, {"accepted": before + count})

    def finish(self):
        for conn in list(self.connections):
            self.close(conn)
        self.device.forget()


@scenario("RabbitMQ")
def a_thousand_messages_with_all_they_carry_through_a_queue(bench):
    queue, count, size = f"/queue/{bench.label}", 1000, 700
    producer, consumer = bench.connect("producer"), bench.connect("consumer")
    up = bench.sender(producer, queue)
    down = bench.receiver(consumer, queue)
    bench.receive(down, "q", count, size, window=50, dressed=True)
    bench.send(up, "q", count, size, dressed=True)
    expect_received(bench.device, down, count)
    expect_finished(bench.device, up, {"accepted": count})


@scenario("RabbitMQ")
def one_message_of_1_MiB_through_a_queue(bench):
    queue, size = f"/queue/{bench.label}", 1 << 20
    conn = bench.connect()
    bench.stored(bench.sender(conn, queue), "big", 1, size=size)
    down = bench.receiver(conn, queue)
    bench.receive(down, "big", 1, size, window=1)
    expect_received(bench.device, down, 1)


@scenario("RabbitMQ")
def settled_before_it_is_sent_through_a_queue(bench):
    queue, count = f"/queue/{bench.label}", 200
    conn = bench.connect()
    up = bench.sender(conn, queue, snd="settled")
    down = bench.receiver(conn, queue, snd="settled")
    bench.receive(down, "s", count, window=50)
    bench.send(up, "s", count)
    expect_received(bench.device, down, count, presettled=count)


@scenario("RabbitMQ")
def a_queue_hears_each_outcome(bench):
    """What is released comes again, what is rejected or accepted does not."""
    queue = f"/queue/{bench.label}"
    conn = bench.connect()
    up = bench.sender(conn, queue)
    bench.stored(up, "o", 3)
    down = bench.receiver(conn, queue)
    rejected = {"state": "rejected", "condition": "com.example:no", "description": "not this one", "info": {"n": 1}}
    for number, outcome in (
        (0, {"state": "released"}),
        (0, rejected),
        (1, {"state": "released"}),
        (1, {"state": "accepted"}),
        (2, {"state": "accepted"}),
    ):
        bench.receive(down, "o", 1, first=number, outcome=outcome)
        bench.device.call("flow", link=down, credit=1)
        expect_received(bench.device, down, 1)
    # Nothing of the three is left in front of the fourth.
    bench.stored(up, "o", 1, first=3)
    bench.receive(down, "o", 1, first=3, window=1)
    expect_received(bench.device, down, 1)


@scenario("RabbitMQ")
def a_broker_drains(bench):
    """Ten credits, three messages, a drain that takes seven back.

    The queue is a quorum queue: at a drain on a classic one RabbitMQ 3.10.8 fails within and ends the session. And there
    is no second round: after a drain it takes new credit for less than it is.
    """
    queue = f"/amq/queue/quorum-{bench.device.stack}"
    conn = bench.connect()
    up = bench.sender(conn, queue)
    down = bench.receiver(conn, queue)
    bench.receive(down, "d", 3)
    bench.device.call("flow", link=down, credit=10)
    bench.stored(up, "d", 3)
    expect_received(bench.device, down, 3)
    bench.device.call("drain", link=down)
    drained = bench.device.wait("drained", link=down)
    check(drained["credit"] == 0, f"{drained['credit']} credits left after the drain")


@scenario("RabbitMQ")
def a_broker_keeps_to_the_credit(bench):
    """Five credits bring five of twenty messages and no more; the rest comes with the rest of the credit."""
    queue = f"/queue/{bench.label}"
    conn = bench.connect()
    up = bench.sender(conn, queue)
    down = bench.receiver(conn, queue)
    bench.stored(up, "c", 20)
    bench.receive(down, "c", 5)
    bench.device.call("flow", link=down, credit=5)
    expect_received(bench.device, down, 5)
    # A sixth message would have come before the outcomes of these.
    bench.stored(up, "c", 3, first=20)
    received = bench.device.call("stats", link=down)["received"]
    check(received == 5, f"{received} messages came for 5 credits")
    bench.receive(down, "c", 18, first=5)
    bench.device.call("flow", link=down, credit=18)
    expect_received(bench.device, down, 18)


@scenario("RabbitMQ")
def a_filter_that_the_broker_obeys(bench):
    """RabbitMQ's own filter says where in a stream a receiver begins; without it, after the last message."""
    log, stream = f"/amq/queue/log-{bench.device.stack}", bench.label
    conn = bench.connect()
    up = bench.sender(conn, log)
    bench.stored(up, stream, 10)
    begins = {4: {"rabbitmq:stream-offset-spec": 4}, 0: {"rabbitmq:stream-offset-spec": "first"}, 10: None}
    links = {}
    for begin, filters in begins.items():
        # RabbitMQ sends the first two messages of a stream without waiting for credit.
        receive = {"stream": stream, "count": 12 - begin, "size": 200, "first": begin, "window": 20}
        links[begin] = bench.attach(conn, "receiver", log, terminus={"filters": filters}, receive=receive)
        bench.device.wait("link_opened", link=links[begin])
    bench.stored(up, stream, 2, first=10)
    for begin, link in links.items():
        expect_received(bench.device, link, 12 - begin)


@scenario("RabbitMQ")
def a_selector_that_the_broker_knows_nothing_of(bench):
    """RabbitMQ 3.10 has no selectors: it gives the filter back in its attach and sends every message."""
    queue, selector = f"/queue/{bench.label}", "parity = 'even'"
    conn = bench.connect()
    bench.stored(bench.sender(conn, queue), "s", 4, dressed=True)
    filters = {"apache.org:selector-filter:string": [0x468C00000004, selector]}
    key = bench.attach(conn, "receiver", queue, terminus={"filters": filters})
    opened = bench.device.wait("link_opened", link=key)
    check(opened["filter"] == {"apache.org:selector-filter:string": selector}, f"the filter came back as {opened}")
    bench.receive(key, "s", 4, window=4, dressed=True)
    expect_received(bench.device, key, 4)


@scenario("RabbitMQ")
def a_durable_subscription_survives_a_reconnect(bench):
    """In RabbitMQ a subscription that lasts is a durable queue bound to a topic."""
    publisher = bench.connect("publisher")
    up = bench.sender(publisher, "/topic/weather.north")
    for number, goodbye in enumerate((True, False)):
        subscriber = bench.connect("subscriber")
        down = bench.receiver(subscriber, "/amq/queue/subscription", name="weather")
        bench.receive(down, f"w{number}", 1, window=1)
        bench.stored(up, f"w{number}", 1)
        expect_received(bench.device, down, 1)
        if goodbye:
            bench.detach(down, closed=False)
        bench.close(subscriber)
        bench.stored(up, f"w{number}", 5, first=1, dressed=True)
        bench.connect("subscriber")
        down = bench.receiver(subscriber, "/amq/queue/subscription", name="weather")
        bench.receive(down, f"w{number}", 5, window=5, first=1, dressed=True)
        expect_received(bench.device, down, 5)
        bench.close(subscriber)


@scenario("RabbitMQ")
def a_durable_source_that_the_broker_forgets(bench):
    """RabbitMQ 3.10 takes a source that never expires for one that ends with its link, and keeps nothing for it."""
    conn, topic = bench.connect(), f"/topic/{bench.label}"
    lasting = {"durable": 2, "expiry": "never", "distribution": "copy"}
    up = bench.sender(conn, topic)
    for number in range(2):
        down = bench.receiver(conn, topic, name="lasting", terminus=lasting)
        bench.receive(down, "t", 1, first=2 * number, window=1)
        bench.stored(up, "t", 1, first=2 * number)
        expect_received(bench.device, down, 1)
        bench.detach(down, closed=False)
        bench.stored(up, "t", 1, first=2 * number + 1)


def ask_for_transactions(bench, conn):
    bench.attach(conn, "sender", None, terminus={"coordinator": True})
    return "amqp:not-implemented", "Transactions not supported"


def modify_a_delivery(bench, conn):
    queue = f"/queue/{bench.label}"
    bench.stored(bench.sender(conn, queue), "m", 1)
    modified = {"state": "modified", "delivery_failed": True, "undeliverable_here": False, "annotations": {"x-opt-n": 1}}
    bench.receive(bench.receiver(conn, queue), "m", 1, outcome=modified, window=1)
    return "amqp:invalid-field", "Unrecognised state: {'v1_0.modified',true,false"


def receive_from_nowhere(bench, conn):
    bench.attach(conn, "receiver", "/amq/queue/no-such-queue")
    return "amqp:not-found", "NOT_FOUND - no queue 'no-such-queue' in vhost '/'"


@scenario("RabbitMQ")
def what_the_broker_refuses_ends_that_session_and_no_other(bench):
    """RabbitMQ 3.10 answers what it cannot do with End: no transactions, no `modified`, no link to a missing queue."""
    queue = f"/queue/{bench.label}-bystander"
    bystander = bench.connect("bystander")
    up, down = bench.sender(bystander, queue), bench.receiver(bystander, queue)
    for number, offend in enumerate((ask_for_transactions, modify_a_delivery, receive_from_nowhere)):
        conn = bench.connect(f"offender-{number}")
        condition, description = offend(bench, conn)
        ended = bench.device.wait("session_closed", conn=conn)
        check(ended["condition"] == condition, f"{offend.__name__}: the session ended with {ended}")
        check(ended["description"].startswith(description), f"{offend.__name__}: the session ended with {ended}")
        bench.receive(down, f"b{number}", 2, window=2)
        bench.stored(up, f"b{number}", 2)
        expect_received(bench.device, down, 2)


@scenario("RabbitMQ")
def the_broker_is_restarted_under_a_connected_device(bench):
    conn, queue = bench.connect(), "/amq/queue/kept"
    up = bench.sender(conn, queue)
    down = bench.receiver(conn, queue)
    bench.stored(up, "k", 20, dressed=True)
    bench.broker.restart()
    if bench.direct:
        bench.device.wait("connection_lost", conn=conn)
        bench.connections.remove(conn)
        bench.connect()
    else:
        for link in (up, down):
            closed = bench.device.wait("link_closed", link=link)
            check(closed["condition"] == "amqp:link:detach-forced", f"{link} was closed with {closed['condition']}")
            check(closed["closed"], f"{link} was detached, not closed")
        lost = bench.device.take("connection_closed", conn=conn) + bench.device.take("connection_lost", conn=conn)
        check(not lost, f"the device's connection was lost, too: {lost}")
    down = bench.receiver(conn, queue)
    bench.receive(down, "k", 25, window=10, dressed=True)
    bench.stored(bench.sender(conn, queue), "k", 5, first=20, dressed=True)
    expect_received(bench.device, down, 25)


@scenario("broker on Proton")
def a_selector_filter(bench):
    """Each of two receivers of one queue gets what it selects; a selector that is not one is refused in words."""
    queue, count = f"jobs/{bench.label}", 100
    conn = bench.connect()
    links = {}
    for number, parity in enumerate(("even", "odd")):
        filters = {"apache.org:selector-filter:string": [0x468C00000004, f"parity = '{parity}'"]}
        links[number] = bench.receiver(conn, queue, terminus={"filters": filters})
        bench.receive(links[number], "s", count // 2, first=number, step=2, window=10, dressed=True)
    bench.stored(bench.sender(conn, queue), "s", count, dressed=True)
    for link in links.values():
        expect_received(bench.device, link, count // 2)

    filters = {"apache.org:selector-filter:string": [0x468C00000004, "parity LIKE"]}
    refused = bench.attach(conn, "receiver", queue, terminus={"filters": filters})
    opened = bench.device.wait("link_opened", link=refused)
    check(opened["address"] is None, f"refused, but with the address {opened['address']!r} in the answer")
    closed = bench.device.wait("link_closed", link=refused)
    check(closed["condition"] == "amqp:invalid-field", f"refused with {closed}")


LASTING = {"durable": 2, "expiry": "never", "distribution": "copy"}


@scenario("broker on Proton")
def a_durable_subscription_by_container_and_link_name(bench):
    """It is kept when the device detaches, when it closes its connection and when it dies; closing the link ends it."""
    topic = f"news/{bench.label}"
    publisher = bench.connect("publisher")
    up = bench.sender(publisher, topic)

    def goes_away(subscriber, link):
        bench.detach(link, closed=False)
        bench.close(subscriber)

    def closes_its_connection(subscriber, _):
        bench.close(subscriber)

    first = 0
    for leave in (goes_away, closes_its_connection):
        subscriber = bench.connect("subscriber")
        down = bench.receiver(subscriber, topic, name="news", terminus=LASTING)
        bench.stored(up, "n", 1, first=first)
        bench.receive(down, "n", 1, first=first, window=1)
        expect_received(bench.device, down, 1)
        leave(subscriber, down)
        bench.stored(up, "n", 5, first=first + 1)
        bench.connect("subscriber")
        down = bench.receiver(subscriber, topic, name="news", terminus=LASTING)
        bench.receive(down, "n", 5, first=first + 1, window=5)
        expect_received(bench.device, down, 5)
        bench.close(subscriber)
        first += 6

    mortal = bench.new_device()
    mortal.call("connect", conn="mortal", port=bench.port, container=subscriber)
    mortal.call("attach", conn="mortal", link="news", role="receiver", address=topic, terminus=LASTING)
    mortal.wait("link_opened", link="news")
    mortal.kill()
    bench.stored(up, "n", 3, first=first)
    subscriber = bench.connect("subscriber")
    down = bench.receiver(subscriber, topic, name="news", terminus=LASTING)
    bench.receive(down, "n", 3, first=first, window=3)
    expect_received(bench.device, down, 3)

    bench.detach(down)
    bench.stored(up, "n", 1, first=first + 3)
    down = bench.receiver(subscriber, topic, name="news", terminus=LASTING)
    bench.receive(down, "n", 1, first=first + 4, window=1)
    bench.stored(up, "n", 1, first=first + 4)
    expect_received(bench.device, down, 1)


def declare(bench, control):
    bench.device.call("declare", link=control)
    declared = bench.device.wait("outcome", link=control)
    check(declared["state"] == "declared" and declared["txn"], f"declare was answered with {declared}")
    return declared["txn"]


def discharge(bench, control, txn, fail):
    bench.device.call("discharge", link=control, txn=txn, fail=fail)
    done = bench.device.wait("outcome", link=control)
    check(done["state"] == "accepted", f"discharge was answered with {done}")


@scenario("broker on Proton")
def a_transaction_of_sent_messages(bench):
    """What is sent within it comes out at the commit and not before, and never after a rollback."""
    queue = f"jobs/{bench.label}"
    conn = bench.connect()
    control = bench.attach(conn, "sender", None, terminus={"coordinator": True})
    bench.device.wait("link_opened", link=control)
    up, down = bench.sender(conn, queue), bench.receiver(conn, queue)
    bench.receive(down, "in", 5, window=10)
    for fail, stream in ((True, "out"), (False, "in")):
        txn = declare(bench, control)
        bench.send(up, stream, 5, txn=txn, report=True)
        for number in range(5):
            answer = bench.device.wait("outcome", link=up, number=number)
            check((answer["state"], answer.get("txn")) == ("transactional", txn), f"answered with {answer}")
        received = bench.device.call("stats", link=down)["received"]
        check(received == 0, f"{received} messages came before the commit")
        discharge(bench, control, txn, fail)
    expect_received(bench.device, down, 5)

    bench.device.call("discharge", link=control, txn=txn, fail=False)
    again = bench.device.wait("outcome", link=control)
    check(again["condition"] == "amqp:transaction:unknown-id", f"a second commit was answered with {again}")


@scenario("broker on Proton")
def a_transaction_of_received_messages(bench):
    """What is accepted within it comes again after a rollback, and is gone after the commit."""
    queue, count = f"jobs/{bench.label}", 5
    conn = bench.connect()
    control = bench.attach(conn, "sender", None, terminus={"coordinator": True})
    bench.device.wait("link_opened", link=control)
    up, down = bench.sender(conn, queue), bench.receiver(conn, queue)
    bench.stored(up, "r", count)
    for fail in (True, False):
        txn = declare(bench, control)
        bench.receive(down, "r", count, settle=False, txn=txn)
        bench.device.call("flow", link=down, credit=count)
        expect_received(bench.device, down, count)
        discharge(bench, control, txn, fail)
        bench.device.wait("peer_settled", link=down, count=count)
    bench.receive(down, "r", 1, first=count, window=10)
    bench.stored(up, "r", 1, first=count)
    expect_received(bench.device, down, 1)
