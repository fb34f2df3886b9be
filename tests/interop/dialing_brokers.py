"""Brokers that connect to a listener of the daemon (`role: route-container`), in place of a hub that it dials."""

from pathlib import Path

from lab import Daemon, Peer
from scenarios import Bench, both_ways, check

CONFIGURATION = """\
router {
    id: Router.A
}

listener {
    host: 127.0.0.1
    port: 0
}

listener {
    name: BROKERS
    host: 127.0.0.1
    port: 0
    role: route-container
}

linkRoute {
    prefix: devices/
    connection: BROKERS
    direction: in
}

linkRoute {
    prefix: devices/
    containerId: the-broker
    direction: out
}
"""


class BrokersDaemon(Daemon):
    """The daemon with a listener for devices and one for brokers, and no connector."""

    def __init__(self, binary, directory, trace):
        self.configuration = Path(directory) / "router-brokers.conf"
        text = CONFIGURATION
        if trace:
            text += "\nlog {\n    module: DEFAULT\n    enable: trace+\n}\n"
        self.configuration.write_text(text)
        self.start(binary)
        self.port, self.broker_port = self.listening_ports(2)


def exchange_and_lose(daemon, directory, device_stack, broker_stack):
    device = Peer(device_stack, "device", directory)
    broker = Peer(broker_stack, "broker", directory)
    try:
        broker.call("connect", conn="broker", port=daemon.broker_port, container="the-broker")
        broker.wait("connection_opened", conn="broker")
        bench = Bench(device, broker, daemon.port, False, None, f"{device_stack}-{broker_stack}")
        conn = bench.connect()
        both_ways(bench, conn, count=500, size=1024, window=50)
        broker.kill()
        for link in ("up", "down"):
            closed = device.wait("link_closed", link=f"{conn}-{link}")
            check(closed["condition"] == "amqp:link:detach-forced", f"{link}: {closed}")
        check(not device.take("connection_lost"), "the device's connection went with the broker's")
    finally:
        device.stop()
        broker.stop()


def run(tally, directory, binary, trace, stacks):
    pairs = [(device, broker) for device in stacks for broker in stacks]
    chosen = [(f"a broker that connects [{device} device, {broker} broker]", device, broker) for device, broker in pairs]
    chosen = [(title, device, broker) for title, device, broker in chosen if tally.wants(title)]
    if not chosen:
        return
    daemon = BrokersDaemon(binary, directory, trace)
    try:
        for title, device, broker in chosen:
            tally.run(title, lambda: exchange_and_lose(daemon, directory, device, broker), daemon)
    finally:
        daemon.end()
