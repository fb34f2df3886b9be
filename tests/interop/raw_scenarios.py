"""The scenarios with a device on a bare socket; the hub is one of the real peers."""

import payload
from lab import Failed, Peer
from raw_amqp import (
    ACCEPTED, ATTACH, BEGIN, CLOSE, DATA, DETACH, DISPOSITION, FLOW, HEADER, OPEN, TRANSFER,
    Described, RawDevice, Uint, attach_frame, begin_frame, decode, flow_frame, frame, open_frame, transfer_frame,
)  # fmt: skip

WRAP = 1 << 32


def check(condition, text):
    if not condition:
        raise Failed(text)


def data_of(payload_bytes):
    """The content of the data section, whatever sections stand before it."""
    at = 0
    while at < len(payload_bytes):
        section, at = decode(payload_bytes, at)
        if section.code == DATA:
            return section.fields
    return None


def all_in_one_packet(hub: Peer, port: int, direct: bool):
    """Protocol header, open, begin, attach, flow and a transfer, all before the first answer.

    A router keeps the transfer until the hub gives credit. A hub on Proton ends a connection on which a transfer comes
    before its own begin, so without a router the transfer waits for that.
    """
    address = "devices/raw-one-packet/messages/events"
    transfer = transfer_frame(0, 0, b"t0", payload.make("one", 0, 200))
    with RawDevice(port) as device:
        device.send(
            HEADER,
            open_frame("raw-one-packet"),
            begin_frame(0),
            attach_frame("up", 0, False, address),
            flow_frame(None, 0),
            b"" if direct else transfer,
        )
        arrived = hub.wait("link_opened", role="receiver", address=address)
        hub.call("receive", link=arrived["link"], stream="one", size=200, count=1, window=1)
        if direct:
            device.send(transfer)
        got = hub.wait("received", link=arrived["link"])
        check(got["count"] == 1 and not got["faults"], f"{hub}: {got}")
        for code in (OPEN, BEGIN, ATTACH):
            device.expect(code)
        disposition, _ = device.expect(DISPOSITION)
        check(disposition.fields[0] is True and disposition.field(1) == 0, f"the disposition says {disposition}")
        check(disposition.field(4).code == ACCEPTED, f"the disposition says {disposition}")
        device.send(frame(0, CLOSE, []))
        if not direct:
            hub.wait("link_closed", link=arrived["link"])
        device.expect(CLOSE, passing=(FLOW, DISPOSITION, DETACH))


def ids_that_wrap_around(hub: Peer, port: int, direct: bool):
    """A session whose next-outgoing-id is 0xfffffffd, and deliveries both ways across the wrap."""
    first, count, size = 0xFFFFFFFD, 40, 120
    up, down = "devices/raw-wrap/messages/events", "devices/raw-wrap/messages/deviceBound"
    with RawDevice(port) as device:
        device.send(HEADER, open_frame("raw-wrap"), begin_frame(first))
        device.send(attach_frame("up", 0, False, up), attach_frame("down", 1, True, down))
        receiver = hub.wait("link_opened", role="receiver", address=up)["link"]
        sender = hub.wait("link_opened", role="sender", address=down)["link"]
        device.expect(OPEN)
        begin, _ = device.expect(BEGIN)
        incoming = begin.fields[1]
        for _ in range(2):
            device.expect(ATTACH)

        hub.call("receive", link=receiver, stream="wu", size=size, count=count, window=count)
        granted = 0
        while granted < count:
            flow, _ = device.expect(FLOW)
            if flow.field(4) == 0:
                granted = ((flow.field(5) or 0) + flow.field(6)) % WRAP
        for number in range(count):
            device.send(
                transfer_frame(0, (first + number) % WRAP, b"%d" % number, payload.make("wu", number, size))
            )
        got = hub.wait("received", link=receiver)
        check(got["count"] == count and not got["faults"], f"{hub}: {got}")
        settled = set()
        while len(settled) < count:
            disposition, _ = device.expect(DISPOSITION)
            check(disposition.field(4).code == ACCEPTED, f"the disposition says {disposition}")
            low = disposition.field(1)
            high = low if disposition.field(2) is None else disposition.field(2)
            settled |= {(low + n) % WRAP for n in range((high - low) % WRAP + 1)}
        check(settled == {(first + n) % WRAP for n in range(count)}, f"settled: {sorted(settled)}")

        # The other way the hub's ids reach us translated; our answers name them.
        outgoing = (first + count) % WRAP
        device.send(flow_frame(incoming, outgoing, 1, 0, count))
        hub.call("send", link=sender, stream="wd", count=count, size=size)
        for number in range(count):
            transfer, body = device.expect(TRANSFER)
            fault = payload.fault(data_of(body), "wd", number, size)
            check(fault is None, f"raw device: {fault}")
            state = Described(ACCEPTED, [])
            identity = Uint(transfer.field(1))
            device.send(frame(0, DISPOSITION, [True, identity, identity, True, state]))
        done = hub.wait("finished", link=sender)
        check(done["outcomes"] == {"accepted": count}, f"{hub}: {done}")
        device.send(frame(0, CLOSE, []))
        for link in () if direct else (receiver, sender):
            hub.wait("link_closed", link=link)
        device.expect(CLOSE, passing=(FLOW, DISPOSITION, DETACH))


# Name, function, and the hubs it can be proved on without a router: rhea loses count when delivery-ids wrap around.
SCENARIOS = [
    ("header, open, begin, attach, flow and transfer in one packet", all_in_one_packet, ("proton", "rhea")),
    ("a session that begins at 0xfffffffd", ids_that_wrap_around, ("proton",)),
]
