"""The interop scenarios. Each is written once and run with devices on both stacks in front of hubs on both stacks.

A scenario gets a `Bench`. `direct` in its mark means that it makes sense without a router, too: then the device
connects to the hub itself, which proves the scenario and the peers before the router is judged by them.
"""

from dataclasses import dataclass
from typing import Callable

from lab import DEVICE_PASSWORD, DEVICE_USER, Failed, Peer

SCENARIOS = []


@dataclass
class Scenario:
    name: str
    run: Callable
    direct: bool
    device_stacks: tuple


def scenario(direct=True, device_stacks=("proton", "rhea")):
    def register(function):
        name = function.__name__.replace("_", " ")
        SCENARIOS.append(Scenario(name, function, direct, device_stacks))
        return function

    return register


def check(condition, text):
    if not condition:
        raise Failed(text)


class Bench:
    """One device process, one hub process, and the port that devices connect to."""

    def __init__(self, device: Peer, hub: Peer, port: int, direct: bool, new_hub, label: str):
        self.device = device
        self.hub = hub
        self.port = port
        self.direct = direct
        self.new_hub = new_hub
        self.label = label
        # None without a router; and what a device needs for TLS with it.
        self.daemon = None
        self.device_tls = None
        self.connections = []
        self.hub_links = []

    def connect(self, name="device", **options):
        conn = f"{self.label}-{name}"
        self.device.call("connect", conn=conn, port=self.port, container=conn, **options)
        self.device.wait("connection_opened", conn=conn)
        self.connections.append(conn)
        return conn

    def up(self, conn, link="up", address=None, **options):
        """A link from the device to the hub; gives the two ends' keys."""
        return self.link(conn, link, "sender", address or f"devices/{conn}/messages/events", options)

    def down(self, conn, link="down", address=None, **options):
        """A link from the hub to the device; gives the two ends' keys."""
        return self.link(conn, link, "receiver", address or f"devices/{conn}/messages/deviceBound", options)

    def link(self, conn, link, role, address, options):
        key = f"{conn}-{link}"
        self.device.call("attach", conn=conn, link=key, name=link, role=role, address=address, **options)
        hub_role = "receiver" if role == "sender" else "sender"
        arrived = self.hub.wait("link_opened", role=hub_role, address=address)
        opened = self.device.wait("link_opened", link=key)
        check(opened["address"] == address, f"the hub's attach came back with the address {opened['address']!r}")
        self.hub_links.append(arrived["link"])
        return key, arrived["link"]

    def finish(self):
        """Closes the device's connections and sees that the router closes every link they had at the hub."""
        for conn in self.connections:
            self.device.call("close", conn=conn)
        for link in [] if self.direct else self.hub_links:
            self.hub.wait("link_closed", link=link)
        for conn in self.connections:
            self.device.wait("connection_closed", conn=conn)
        self.device.forget()
        self.hub.forget()


def expect_received(peer, link, count, presettled=0, timeout=60.0):
    got = peer.wait("received", timeout, link=link)
    check(not got["faults"], f"{peer}: {got['faults']}")
    check(got["count"] == count, f"{peer}: {got['count']} of {count} messages")
    check(got["presettled"] == presettled, f"{peer}: {got['presettled']} came settled, not {presettled}")


def expect_finished(peer, link, outcomes, settled_by_sender=0, timeout=60.0):
    got = peer.wait("finished", timeout, link=link)
    check(got["outcomes"] == outcomes, f"{peer}: outcomes {got['outcomes']}, not {outcomes}")
    first = got["outcome_before_settlement"]
    check(first == settled_by_sender, f"{peer}: {first} outcomes came unsettled, not {settled_by_sender}")


def both_ways(bench, conn, count, size, window, stream="s", timeout=60.0):
    """`count` messages up and, at the same time, as many down."""
    up, hub_up = bench.up(conn)
    down, hub_down = bench.down(conn)
    bench.hub.call("receive", link=hub_up, stream=stream + "u", size=size, count=count, window=window)
    bench.device.call("receive", link=down, stream=stream + "d", size=size, count=count, window=window)
    bench.device.call("send", link=up, stream=stream + "u", count=count, size=size)
    bench.hub.call("send", link=hub_down, stream=stream + "d", count=count, size=size)
    expect_received(bench.hub, hub_up, count, timeout=timeout)
    expect_received(bench.device, down, count, timeout=timeout)
    expect_finished(bench.device, up, {"accepted": count})
    expect_finished(bench.hub, hub_down, {"accepted": count})


@scenario()
def ten_thousand_messages_of_1_KB_each_way(bench):
    both_ways(bench, bench.connect(), count=10_000, size=1024, window=500, timeout=90.0)


@scenario()
def one_message_of_1_MiB_each_way(bench):
    both_ways(bench, bench.connect(), count=1, size=1 << 20, window=1)


@scenario()
def a_device_with_frames_of_512_bytes(bench):
    both_ways(bench, bench.connect(max_frame_size=512), count=40, size=9000, window=10)


@scenario()
def a_device_without_SASL(bench):
    both_ways(bench, bench.connect(sasl=False), count=20, size=100, window=10)


@scenario(direct=False)
def a_device_with_a_password_over_TLS(bench):
    conn = bench.connect(user=DEVICE_USER, password=DEVICE_PASSWORD, tls=bench.device_tls)
    both_ways(bench, conn, count=20, size=20_000, window=10)
    bench.daemon.expect_line("encrypted=TLSv1.3", "auth=PLAIN", f"user={DEVICE_USER}", f"container_id={conn}")
    bench.daemon.expect_no_line(DEVICE_PASSWORD)


@scenario(direct=False)
def a_device_with_a_certificate_over_TLS(bench):
    conn = bench.connect(tls=bench.device_tls, external=True)
    both_ways(bench, conn, count=20, size=20_000, window=10)
    bench.daemon.expect_line("encrypted=TLSv1.3", "auth=EXTERNAL", "user=interop-device", f"container_id={conn}")


@scenario(direct=False, device_stacks=("rhea",))
def a_device_with_a_password_in_clear_text(bench):
    conn = bench.connect(user=DEVICE_USER, password=DEVICE_PASSWORD)
    both_ways(bench, conn, count=20, size=100, window=10)
    bench.daemon.expect_line("encrypted=no", "auth=PLAIN", f"user={DEVICE_USER}", f"container_id={conn}")


@scenario()
def fifty_devices_at_once(bench):
    count, ends = 20, []
    for number in range(50):
        conn = bench.connect(f"d{number}")
        # Half of them write the address as the article's device did, with a slash in front.
        slash = "/" if number % 2 else ""
        up, hub_up = bench.up(conn, address=f"{slash}devices/{conn}/messages/events")
        down, hub_down = bench.down(conn, address=f"{slash}devices/{conn}/messages/deviceBound")
        ends.append((conn, up, hub_up, down, hub_down))
    for conn, up, hub_up, down, hub_down in ends:
        bench.hub.call("receive", link=hub_up, stream=conn + "u", size=300, count=count, window=8)
        bench.device.call("receive", link=down, stream=conn + "d", size=300, count=count, window=8)
        bench.device.call("send", link=up, stream=conn + "u", count=count, size=300)
        bench.hub.call("send", link=hub_down, stream=conn + "d", count=count, size=300)
    for _, up, hub_up, down, hub_down in ends:
        expect_received(bench.hub, hub_up, count)
        expect_received(bench.device, down, count)
        expect_finished(bench.device, up, {"accepted": count})
        expect_finished(bench.hub, hub_down, {"accepted": count})


@scenario()
def settled_before_it_is_sent(bench):
    conn, count = bench.connect(), 200
    up, hub_up = bench.up(conn, snd="settled")
    down, hub_down = bench.down(conn, snd="settled")
    bench.hub.call("receive", link=hub_up, stream="u", size=200, count=count, window=50)
    bench.device.call("receive", link=down, stream="d", size=200, count=count, window=50)
    bench.device.call("send", link=up, stream="u", count=count, size=200)
    bench.hub.call("send", link=hub_down, stream="d", count=count, size=200)
    expect_received(bench.hub, hub_up, count, presettled=count)
    expect_received(bench.device, down, count, presettled=count)


@scenario()
def unsettled_until_the_receiver_settles(bench):
    conn, count = bench.connect(), 200
    up, hub_up = bench.up(conn, snd="unsettled")
    down, hub_down = bench.down(conn, snd="unsettled")
    bench.hub.call("receive", link=hub_up, stream="u", size=200, count=count, window=50)
    bench.device.call("receive", link=down, stream="d", size=200, count=count, window=50)
    bench.device.call("send", link=up, stream="u", count=count, size=200)
    bench.hub.call("send", link=hub_down, stream="d", count=count, size=200)
    expect_received(bench.hub, hub_up, count)
    expect_received(bench.device, down, count)
    expect_finished(bench.device, up, {"accepted": count})
    expect_finished(bench.hub, hub_down, {"accepted": count})


@scenario()
def the_sender_settles_after_the_outcome(bench):
    conn, count = bench.connect(), 200
    up, hub_up = bench.up(conn, snd="unsettled", rcv="second")
    down, hub_down = bench.down(conn, snd="unsettled", rcv="second")
    bench.hub.call("receive", link=hub_up, stream="u", size=200, count=count, window=50, settle=False)
    bench.device.call("receive", link=down, stream="d", size=200, count=count, window=50, settle=False)
    bench.device.call("send", link=up, stream="u", count=count, size=200)
    bench.hub.call("send", link=hub_down, stream="d", count=count, size=200)
    expect_received(bench.hub, hub_up, count)
    expect_received(bench.device, down, count)
    expect_finished(bench.device, up, {"accepted": count}, settled_by_sender=count)
    expect_finished(bench.hub, hub_down, {"accepted": count}, settled_by_sender=count)
    bench.hub.wait("peer_settled", link=hub_up, count=count)
    bench.device.wait("peer_settled", link=down, count=count)


@scenario()
def the_settle_modes_reach_the_other_side(bench):
    conn = bench.connect()
    for number, (snd, rcv) in enumerate([("settled", "first"), ("unsettled", "second"), ("mixed", "first")]):
        address = f"devices/{conn}/{number}"
        key = f"{conn}-{number}"
        bench.device.call("attach", conn=conn, link=key, role="sender", address=address, snd=snd, rcv=rcv)
        arrived = bench.hub.wait("link_opened", role="receiver", address=address)
        opened = bench.device.wait("link_opened", link=key)
        bench.hub_links.append(arrived["link"])
        for who, seen in ((bench.hub, arrived), (bench.device, opened)):
            check((seen["snd"], seen["rcv"]) == (snd, rcv), f"{who}: {seen['snd']}/{seen['rcv']}, not {snd}/{rcv}")


OUTCOMES = [
    {"state": "accepted"},
    {
        "state": "rejected",
        "condition": "com.example:too-hot",
        "description": "the reading is not believable",
        "info": {"limit": 125, "unit": "celsius"},
    },
    {"state": "released"},
    {"state": "modified", "delivery_failed": False, "undeliverable_here": False, "annotations": {"x-opt-try": 2}},
    {
        "state": "modified",
        "delivery_failed": True,
        "undeliverable_here": False,
        "annotations": {"x-opt-try": 3, "x-opt-by": "interop"},
    },
    {"state": "modified", "delivery_failed": True, "undeliverable_here": True, "annotations": {"x-opt-try": 4}},
]


def give_each_outcome(sender, sender_link, receiver, receiver_link):
    for number, outcome in enumerate(OUTCOMES):
        stream = f"o{number}"
        receiver.call("receive", link=receiver_link, stream=stream, size=50, count=1, outcome=outcome)
        receiver.call("flow", link=receiver_link, credit=1)
        sender.call("send", link=sender_link, stream=stream, count=1, size=50, report=True)
        got = sender.wait("outcome", link=sender_link)
        wanted = {**outcome, "settled": True}
        seen = {field: got.get(field) for field in wanted}
        check(seen == wanted, f"{sender} was told {seen}, the receiver had said {wanted}")
        receiver.wait("received", link=receiver_link)


@scenario()
def every_outcome_with_all_its_fields(bench):
    conn = bench.connect()
    up, hub_up = bench.up(conn)
    down, hub_down = bench.down(conn)
    give_each_outcome(bench.device, up, bench.hub, hub_up)
    give_each_outcome(bench.hub, hub_down, bench.device, down)


def drain_twice(sender, sender_link, receiver, receiver_link):
    """Ten credits, three messages, a drain that gives seven back; and the link works on, for a second round."""
    for round_number in range(2):
        stream = f"drain{round_number}"
        receiver.call("receive", link=receiver_link, stream=stream, size=80, count=3)
        sender.call("send", link=sender_link, stream=stream, count=3, size=80)
        receiver.call("flow", link=receiver_link, credit=10)
        expect_received(receiver, receiver_link, 3)
        receiver.call("drain", link=receiver_link)
        drained = receiver.wait("drained", link=receiver_link)
        check(drained["credit"] == 0, f"{receiver}: {drained['credit']} credits left after the drain")
        returned = sender.wait("draining", link=sender_link)["returned"]
        check(returned == 7, f"{sender} was asked to return {returned} credits, not 7")
        check(sender.call("stats", link=sender_link)["credit"] == 0, f"{sender} still has credit")


@scenario()
def drain_and_credit_again(bench):
    conn = bench.connect()
    up, hub_up = bench.up(conn)
    drain_twice(bench.device, up, bench.hub, hub_up)
    down, hub_down = bench.down(conn)
    drain_twice(bench.hub, hub_down, bench.device, down)


@scenario()
def every_message_section_unchanged(bench):
    wanted = {
        "durable": True,
        "priority": 7,
        "ttl": 60000,
        "id": "m-1",
        "subject": "a subject",
        "correlation_id": "c-1",
        "reply_to": "answers/here",
        "content_type": "text/plain",
        "application_properties": {"text": "värde", "number": 42, "flag": True},
        "message_annotations": {"x-opt-note": "kept"},
        "delivery_annotations": {"x-opt-hop": "also kept"},
        "body": "everything",
    }
    conn = bench.connect()
    up, hub_up = bench.up(conn)
    down, hub_down = bench.down(conn)
    for sender, out, receiver, into in (
        (bench.device, up, bench.hub, hub_up),
        (bench.hub, hub_down, bench.device, down),
    ):
        receiver.call("receive", link=into, stream=None, size=0, count=1)
        receiver.call("flow", link=into, credit=1)
        sender.call("send_sections", link=out)
        got = receiver.wait("message", link=into)["message"]
        check(got == wanted, f"{receiver} got {got}")
        sender.wait("outcome", link=out, state="accepted", settled=True)


@scenario()
def attach_properties_both_ways(bench):
    conn = bench.connect()
    properties = {"com.microsoft:api-version": "2019-10-01", "com.microsoft:client-version": "interop"}
    key, address = f"{conn}-up", f"devices/{conn}/messages/events"
    bench.device.call("attach", conn=conn, link=key, role="sender", address=address, properties=properties)
    arrived = bench.hub.wait("link_opened", role="receiver", address=address)
    bench.hub_links.append(arrived["link"])
    check(arrived["properties"] == properties, f"{bench.hub} got the properties {arrived['properties']}")
    answered = bench.device.wait("link_opened", link=key)["properties"]
    check(answered == {"hub-stack": bench.hub.stack}, f"{bench.device} got the properties {answered}")


@scenario()
def a_link_closed_or_only_detached_and_attached_again(bench):
    conn = bench.connect()
    for round_number in range(4):
        closing = round_number % 2 == 0
        stream = f"r{round_number}"
        up, hub_up = bench.link(conn, "again", "sender", f"devices/{conn}/messages/events", {})
        bench.hub.call("receive", link=hub_up, stream=stream, size=60, count=5, window=5)
        bench.device.call("send", link=up, stream=stream, count=5, size=60)
        expect_received(bench.hub, hub_up, 5)
        expect_finished(bench.device, up, {"accepted": 5})
        bench.device.call("detach", link=up, closed=closing)
        closed = bench.hub.wait("link_closed", link=hub_up)
        bench.hub_links.remove(hub_up)
        check(closed["closed"] == closing and closed["condition"] is None, f"{bench.hub} saw the detach as {closed}")
        answered = bench.device.wait("link_closed", link=up)
        check(
            answered["closed"] == closing and answered["condition"] is None,
            f"{bench.device} was answered {answered}",
        )


@scenario(direct=False)
def an_address_that_no_route_matches(bench):
    conn = bench.connect()
    for role in ("sender", "receiver"):
        key = f"{conn}-{role}"
        bench.device.call("attach", conn=conn, link=key, role=role, address=f"nowhere/{conn}")
        opened = bench.device.wait("link_opened", link=key)
        check(opened["address"] is None, f"refused, but with the address {opened['address']!r} in the answer")
        closed = bench.device.wait("link_closed", link=key)
        check(closed["condition"] == "amqp:not-found", f"refused with {closed['condition']}")
        check(closed["closed"], "detached, not closed")
    both_ways(bench, conn, count=5, size=50, window=5)


@scenario(direct=False)
def the_hub_is_restarted_in_mid_stream(bench):
    total, size, before = 1500, 300, 300
    conn = bench.connect()
    up, hub_up = bench.up(conn)
    down, hub_down = bench.down(conn)
    bench.hub.call("receive", link=hub_up, stream="u", size=size, count=total, window=40, report=True)
    bench.device.call("receive", link=down, stream="d", size=size, count=total, window=40, report=True)
    bench.device.call("send", link=up, stream="u", count=total, size=size, report=True)
    bench.hub.call("send", link=hub_down, stream="d", count=total, size=size)
    bench.device.wait("outcome", link=up, number=before)
    bench.device.wait("delivery", link=down, number=before)

    old_hub = bench.hub
    old_hub.kill()
    for link in (up, down):
        closed = bench.device.wait("link_closed", link=link)
        check(closed["condition"] == "amqp:link:detach-forced", f"{link} was closed with {closed['condition']}")
        check(closed["closed"], f"{link} was detached, not closed")
    bench.hub = bench.new_hub()
    bench.hub_links.clear()

    kept = {e["number"] for e in old_hub.take("delivery", link=hub_up)}
    accepted = {before} | {e["number"] for e in bench.device.take("outcome", link=up, state="accepted")}
    check(accepted <= kept, f"accepted, but not with the hub: {sorted(accepted - kept)[:5]}")
    check(accepted == set(range(len(accepted))), "the accepted messages have gaps")
    taken = {before} | {e["number"] for e in bench.device.take("delivery", link=down)}
    check(taken == set(range(len(taken))), "the messages that the device received have gaps")

    # The rest of both streams, over links of the same names on the same device connection.
    lost = bench.device.take("connection_closed", conn=conn) + bench.device.take("connection_lost", conn=conn)
    check(not lost, f"the device's connection was lost, too: {lost}")
    rest_up, rest_down = total - len(accepted), total - len(taken)
    up, hub_up = bench.link(conn, "up", "sender", f"devices/{conn}/messages/events", {})
    down, hub_down = bench.link(conn, "down", "receiver", f"devices/{conn}/messages/deviceBound", {})
    bench.hub.call("receive", link=hub_up, stream="u", size=size, count=rest_up, window=40, report=True)
    bench.device.call("receive", link=down, stream="d", size=size, count=rest_down, window=40, report=True)
    bench.device.call("send", link=up, stream="u", first=len(accepted), count=rest_up, size=size)
    bench.hub.call("send", link=hub_down, stream="d", first=len(taken), count=rest_down, size=size)
    expect_received(bench.hub, hub_up, rest_up)
    expect_received(bench.device, down, rest_down)
    expect_finished(bench.device, up, {"accepted": rest_up})
    expect_finished(bench.hub, hub_down, {"accepted": rest_down})
    for peer, link, start in ((bench.hub, hub_up, len(accepted)), (bench.device, down, len(taken))):
        numbers = [e["number"] for e in peer.take("delivery", link=link)]
        check(numbers == list(range(start, total)), f"{peer}: the rest of the stream is not in order")
