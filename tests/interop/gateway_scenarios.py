"""The scenarios of what a gateway's configuration decides: routes, connectors, reload, policy.

Each has a configuration of its own and so a daemon of its own. Device and hub are on different stacks, and every
scenario runs both ways round.
"""

import signal
from collections import Counter
from pathlib import Path

from lab import Daemon, Peer, port_for_a_hub
from scenarios import check, expect_finished, expect_received

SCENARIOS = []


def scenario(function):
    SCENARIOS.append((function.__name__.replace("_", " "), function))
    return function


class GatewayDaemon(Daemon):
    """The daemon with the configuration of one scenario."""

    def __init__(self, binary, configuration):
        self.configuration = configuration
        self.start(binary)

    def reload(self):
        self.process.send_signal(signal.SIGHUP)


class Gateway:
    """A daemon with a scenario's own configuration, hubs behind it and one device process in front of it."""

    def __init__(self, binary, directory, authority, device_stack, hub_stack, trace):
        self.binary = binary
        self.directory = Path(directory)
        self.authority = authority
        self.hub_stack = hub_stack
        self.trace = trace
        self.device = Peer(device_stack, "device", directory)
        self.peers = [self.device]
        self.daemon = None
        self.sent = Counter()

    # ----- what a scenario makes its stand from

    def hub(self, stack=None, **options):
        """A hub over TLS, and its port."""
        hub = Peer(stack or self.hub_stack, "hub", self.directory)
        self.peers.append(hub)
        port = port_for_a_hub()
        hub.call("listen", port=port, tls=self.authority.files(), **options)
        return hub, port

    def start(self, text):
        self.write(text)
        self.daemon = GatewayDaemon(self.binary, self.path())

    def path(self):
        return self.directory / "gateway.conf"

    def write(self, text):
        """The configuration; `CA` stands for the run's authority."""
        if self.trace:
            text += "\nlog {\n    module: DEFAULT\n    enable: trace+\n}\n"
        self.path().write_text(text.replace("CA", str(self.authority.ca)))

    def open(self, conn, **options):
        self.device.call("connect", conn=conn, port=self.daemon.port, container=conn, **options)
        self.device.wait("connection_opened", conn=conn)
        return conn

    def attach(self, conn, role, address, link=None):
        key = f"{conn}-{link or role}"
        self.device.call("attach", conn=conn, link=key, name=link or role, role=role, address=address)
        return key

    def link(self, conn, role, address, hub, at_hub=None, seen=None, link=None):
        """A link to a hub, which sees the address `at_hub`, and the device in its answer `seen`; gives both ends' keys."""
        key = self.attach(conn, role, address, link)
        hub_role = "receiver" if role == "sender" else "sender"
        arrived = hub.wait("link_opened", role=hub_role, address=at_hub or address)
        opened = self.device.wait("link_opened", link=key)
        check(opened["address"] == (seen or address), f"the answer to {address} has {opened['address']!r}")
        return key, arrived["link"]

    def refused(self, key, condition):
        """The attach is refused: answered without a terminus, and detached with this condition."""
        opened = self.device.wait("link_opened", link=key)
        check(opened["address"] is None, f"the refused attach came back with the address {opened['address']!r}")
        closed = self.device.wait("link_closed", link=key)
        check(closed["condition"] == condition, f"{key}: {closed}")

    def exchange(self, role, key, hub, at_hub, stream, count=20):
        """Messages over one link, in the direction that the device's role says."""
        ends = [(self.device, key), (hub, at_hub)]
        (sender, out), (receiver, into) = ends if role == "sender" else reversed(ends)
        receiver.call("receive", link=into, stream=stream, size=100, count=count, window=10)
        sender.call("send", link=out, stream=stream, count=count, size=100)
        expect_received(receiver, into, count)
        self.sent[key] += count
        expect_finished(sender, out, {"accepted": self.sent[key]})

    # ----- what the tally asks

    def check_alive(self):
        self.daemon.check_alive()

    def tail(self):
        return self.daemon.tail() if self.daemon else []

    def stop(self):
        for peer in self.peers:
            peer.stop()
        if self.daemon:
            self.daemon.end()


# ----- pieces of configurations

ROUTER = "router {\n    mode: standalone\n    id: Router.A\n}\n"
LISTENER = "listener {\n    host: 127.0.0.1\n    port: 0\n}\n"
PROFILE = "sslProfile {\n    name: hub-tls\n    caCertFile: CA\n}\n"


def connector(name, port, host="localhost", more=""):
    return (
        f"connector {{\n    name: {name}\n    host: {host}\n    port: {port}\n    role: on-demand\n"
        f"    sslProfile: hub-tls\n{more}}}\n"
    )


def route(direction, prefix, connection, more=""):
    return f"linkRoute {{\n    prefix: {prefix}\n    direction: {direction}\n    connection: {connection}\n{more}}}\n"


def routes(prefix, connection="HUB", more=""):
    return route("in", prefix, connection, more) + route("out", prefix, connection, more)


# ----- routes


@scenario
def prefixes_of_a_route_are_seen_by_the_hub_only(gateway):
    hub, port = gateway.hub()
    more = "    addExternalPrefix: hub1/\n    delExternalPrefix: ext/\n"
    gateway.start(ROUTER + LISTENER + PROFILE + connector("HUB", port) + routes("ext", more=more))
    conn = gateway.open("prefixed")
    for role in ("sender", "receiver"):
        key, at_hub = gateway.link(conn, role, "ext/q", hub, at_hub="hub1/q")
        gateway.exchange(role, key, hub, at_hub, stream=role)


@scenario
def the_virtual_host_stands_before_the_address_on_a_multi_tenant_listener(gateway):
    hub, port = gateway.hub()
    listener = LISTENER.replace("port: 0", "port: 0\n    multiTenant: yes")
    gateway.start(ROUTER + listener + PROFILE + connector("HUB", port) + routes("vh1"))
    conn = gateway.open("tenant", hostname="vh1")
    key, at_hub = gateway.link(conn, "sender", "d/1", hub, at_hub="vh1/d/1", seen="vh1/d/1")
    gateway.exchange("sender", key, hub, at_hub, "t")
    other = gateway.open("stranger", hostname="vh2")
    gateway.refused(gateway.attach(other, "sender", "d/1"), "amqp:not-found")


@scenario
def attaches_take_turns_among_the_connectors_of_an_address(gateway):
    first, first_port = gateway.hub("proton")
    second, second_port = gateway.hub("rhea")
    hubs = connector("ONE", first_port) + connector("TWO", second_port)
    gateway.start(ROUTER + LISTENER + PROFILE + hubs + routes("q", "ONE") + routes("q", "TWO"))
    conn = gateway.open("balanced")
    for number in range(6):
        key = gateway.attach(conn, "sender", f"q/{number}", link=f"l{number}")
        gateway.device.wait("link_opened", link=key)
    counts = [len(hub.take("link_opened")) for hub in (first, second)]
    check(counts == [3, 3], f"links at the two hubs: {counts}")
    second.kill()
    for _ in range(3):
        lost = gateway.device.wait("link_closed")
        check(lost["condition"] == "amqp:link:detach-forced", f"{lost}")
    for number in range(6, 9):
        gateway.link(conn, "sender", f"q/{number}", first, link=f"l{number}")


# ----- connectors


@scenario
def a_hub_is_known_by_another_name_than_it_is_dialed_by(gateway):
    hub, port = gateway.hub()
    dialed = connector("HUB", port, "127.0.0.1", "    serverName: localhost\n")
    gateway.start(ROUTER + LISTENER + PROFILE + dialed + routes("q"))
    conn = gateway.open("named")
    key, at_hub = gateway.link(conn, "sender", "q/1", hub)
    opened = hub.wait("connection_opened")
    check(opened["hostname"] == "localhost", f"{hub} was called {opened['hostname']!r}")
    gateway.exchange("sender", key, hub, at_hub, "n")


@scenario
def the_failover_list_of_a_hub_is_used_when_it_is_lost(gateway):
    second, second_port = gateway.hub()
    listed = [{"network-host": "localhost", "port": str(second_port), "scheme": "amqps"}, {"port": "1"}]
    first, first_port = gateway.hub(properties={"failover-server-list": listed})
    gateway.start(ROUTER + LISTENER + PROFILE + connector("HUB", first_port) + routes("q"))
    conn = gateway.open("surviving")
    key, at_hub = gateway.link(conn, "sender", "q/1", first)
    gateway.exchange("sender", key, first, at_hub, "f1")
    first.kill()
    lost = gateway.device.wait("link_closed", link=key)
    check(lost["condition"] == "amqp:link:detach-forced", f"{lost}")
    key, at_hub = gateway.link(conn, "sender", "q/1", second, link="again")
    gateway.exchange("sender", key, second, at_hub, "f2")


@scenario
def a_reload_brings_routes_and_leaves_links_alone(gateway):
    hub, port = gateway.hub()
    text = ROUTER + LISTENER + PROFILE + connector("HUB", port) + routes("old")
    gateway.start(text)
    conn = gateway.open("steady")
    key, at_hub = gateway.link(conn, "sender", "old/1", hub)
    gateway.refused(gateway.attach(conn, "sender", "new/1", link="early"), "amqp:not-found")
    gateway.write(text + routes("new"))
    gateway.daemon.reload()
    gateway.daemon.expect_line("Configuration reloaded: 4 routes")
    late, late_at_hub = gateway.link(conn, "sender", "new/1", hub, link="late")
    gateway.exchange("sender", key, hub, at_hub, "o")
    gateway.exchange("sender", late, hub, late_at_hub, "n")
    gateway.write(text + routes("new").replace("direction: out", "direction: sideways"))
    gateway.daemon.reload()
    gateway.daemon.expect_line("nothing changed")
    gateway.daemon.expect_line("sideways")
    later, later_at_hub = gateway.link(conn, "receiver", "new/1", hub, link="later")
    gateway.exchange("receiver", later, hub, later_at_hub, "l")


# ----- policy

POLICY = """policy {
    enableVhostPolicy: yes
}

vhost {
    hostname: $default
    allowUnknownUser: yes
    groups: {
        "$default": {
            "users": "*",
            "remoteHosts": "*",
            "sources": "q/*",
            "targets": "q/*",
            "maxSenders": 2,
            "maxMessageSize": 5000
        }
    }
}
"""


@scenario
def the_policy_decides_about_addresses_numbers_and_sizes(gateway):
    hub, port = gateway.hub()
    gateway.start(ROUTER + LISTENER + PROFILE + POLICY + connector("HUB", port) + routes("q") + routes("other"))
    conn = gateway.open("governed")
    key, at_hub = gateway.link(conn, "sender", "q/1", hub)
    gateway.refused(gateway.attach(conn, "sender", "other/1", link="foreign"), "amqp:unauthorized-access")
    second, second_at_hub = gateway.link(conn, "sender", "q/2", hub, link="second")
    gateway.refused(gateway.attach(conn, "sender", "q/3", link="third"), "amqp:resource-limit-exceeded")
    gateway.exchange("sender", key, hub, at_hub, "within")
    hub.call("receive", link=second_at_hub, stream="big", size=20_000, count=1, window=5)
    gateway.device.call("send", link=second, stream="big", count=1, size=20_000)
    closed = gateway.device.wait("link_closed", link=second)
    check(closed["condition"] == "amqp:link:message-size-exceeded", f"{closed}")
    hub.wait("link_closed", link=second_at_hub)
    # The connection and its other link stand.
    gateway.exchange("sender", key, hub, at_hub, "still")


def run(tally, directory, authority, binary, trace):
    for name, function in SCENARIOS:
        for device_stack, hub_stack in (("proton", "rhea"), ("rhea", "proton")):
            title = f"{name} [{device_stack} device, {hub_stack} hub]"
            if not tally.wants(title):
                continue
            gateway = Gateway(binary, directory, authority, device_stack, hub_stack, trace)
            try:
                tally.run(title, lambda: function(gateway), gateway)
            finally:
                gateway.stop()
