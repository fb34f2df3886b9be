"""Microsoft's device SDK for Node as the device and the IoT Hub stand-in as the hub, with the daemon between by TLS.

The SDK is told of the daemon by `GatewayHostName` in its connection string, and by nothing else.
"""

import base64
from pathlib import Path

from lab import Daemon, Peer
from scenarios import check

HUB = "interop-hub.azure-devices.net"
DEVICES = ("d1", "d2", "d3")
SCENARIOS = []

CONFIGURATION = """\
router {{
    mode: standalone
    id: Router.A
}}

listener {{
    host: 127.0.0.1
    port: 0
    sslProfile: devices
}}

sslProfile {{
    name: devices
    certFile: {cert}
    privateKeyFile: {key}
}}

sslProfile {{
    name: azure
    caCertFile: {ca}
}}

connector {{
    name: IOTHUB
    host: localhost
    serverName: {hub}
    port: {hub_port}
    role: on-demand
    saslMechanisms: ANONYMOUS
    sslProfile: azure
}}
"""
ROUTE = "\nlinkRoute {{\n    prefix: {prefix}\n    connection: IOTHUB\n    direction: {direction}\n}}\n"


def scenario(function):
    SCENARIOS.append((function.__name__.replace("_", " "), function))
    return function


class AzureDaemon(Daemon):
    """The daemon before one IoT Hub, with a TLS listener for the SDK."""

    def __init__(self, binary, directory, authority, hub_port, trace):
        self.configuration = Path(directory) / "router-azure.conf"
        text = CONFIGURATION.format(hub=HUB, hub_port=hub_port, ca=authority.ca, **authority.files())
        for prefix in ("$cbs", "devices"):
            for direction in ("in", "out"):
                text += ROUTE.format(prefix=prefix, direction=direction)
        if trace:
            text += "\nlog {\n    module: DEFAULT\n    enable: trace+\n}\n"
        self.configuration.write_text(text)
        self.start(binary)


def key_of(device):
    return base64.b64encode(f"the interop key of {device}".encode()).decode()


class Azure:
    """One hub, the daemon before it (none when `binary` is none), and a process with all devices of a scenario."""

    def __init__(self, hub_binary, binary, directory, authority, trace):
        self.authority = authority
        self.hub = Peer("iot-hub", "hub", directory, [str(hub_binary)])
        self.sdk = Peer("azure-sdk", "device", directory)
        self.daemon = None
        devices = {device: key_of(device) for device in DEVICES}
        tls = {**authority.files(), "ca": str(authority.ca)}
        self.port = self.hub.call("listen", name=HUB, devices=devices, tls=tls)["port"]
        if binary:
            self.daemon = AzureDaemon(binary, directory, authority, self.port, trace)
            self.port = self.daemon.port

    def connect(self, device, key=None, **options):
        """A client of this device; gives why not, or nothing."""
        connection_string = (
            f"HostName={HUB};DeviceId={device};SharedAccessKey={key or key_of(device)};"
            f"GatewayHostName=localhost:{self.port}"
        )
        ca = str(self.authority.ca)
        return self.sdk.call("connect", conn=device, connection_string=connection_string, ca=ca, **options)

    def open(self, device, **options):
        self.succeeded(self.connect(device, **options))
        return device

    def do(self, command, device, **arguments):
        return self.succeeded(self.sdk.call(command, conn=device, **arguments))

    @staticmethod
    def succeeded(reply):
        check("failed" not in reply, f"the SDK failed: {reply}")
        return reply

    def telemetry(self, device, bodies):
        """Sends these, and finds them at the hub as they were, from this device."""
        self.do("telemetry", device, bodies=bodies, number="7")
        for body in bodies:
            seen = self.hub.wait("telemetry", body=body)
            check(seen["number"] == "7", f"{seen}")
            address = f"/devices/{device}/messages/events"
            check(seen["address"].endswith(address), f"{body} of {device} came to {seen['address']}")

    def command(self, device, body):
        self.hub.call("command", device=device, body=body, ack="full")

    def counts(self, device):
        return self.hub.call("counts", device=device)

    def finish(self):
        """No rule was broken; and with the daemon between, the hub saw one connection with one pair of links to $cbs."""
        faults = self.hub.take("fault") + self.sdk.take("fault")
        check(not faults, f"{faults}")
        if self.daemon:
            self.daemon.check_alive()
            for device in DEVICES:
                self.daemon.expect_no_line(key_of(device))

    # ----- what the tally asks

    def check_alive(self):
        if self.daemon:
            self.daemon.check_alive()

    def tail(self):
        return self.daemon.tail() if self.daemon else []

    def stop(self):
        self.sdk.stop()
        if self.daemon:
            self.daemon.end()
        self.hub.stop()


@scenario
def telemetry_is_accepted(azure):
    azure.open("d1")
    azure.telemetry("d1", [f"{number} " + "x" * number for number in (1, 100, 1000, 30_000, 200_000)])
    azure.do("close", "d1")


@scenario
def commands_are_completed_abandoned_and_rejected(azure):
    azure.open("d1")
    azure.do("commands", "d1")
    for body, outcomes in (("fan on", ["complete"]), ("fan off", ["abandon", "complete"]), ("explode", ["reject"])):
        azure.command("d1", body)
        for outcome in outcomes:
            said = azure.sdk.wait("command", conn="d1")
            check(said["body"] == body and said["message_id"] == body, f"instead of {body}: {said}")
            azure.do("settle", "d1", body=body, outcome=outcome)
            state = {"complete": "accepted", "abandon": "released", "reject": "rejected"}[outcome]
            seen = azure.hub.wait("disposed")
            check(seen["state"] == state, f"{outcome} came as {seen}")
    counts = azure.counts("d1")
    check((counts["pending"], counts["dead_letters"]) == (0, 1), f"{counts}")


@scenario
def a_wrong_key_is_told_and_disturbs_nobody(azure):
    azure.open("d1")
    refused = azure.connect("d2", key=key_of("d1"))
    check(refused.get("failed") == "UnauthorizedError" and "signature" in refused["text"], f"{refused}")
    refused = azure.connect("stranger")
    check(refused.get("failed") == "UnauthorizedError" and "not registered" in refused["text"], f"{refused}")
    azure.telemetry("d1", ["still here"])


@scenario
def a_token_is_renewed_on_a_live_connection(azure):
    azure.open("d1", token_seconds=20, renewal_margin_seconds=18)
    for renewal in range(3):
        token = azure.hub.wait("token")
        check(token["status"] == 200, f"{token}")
        azure.telemetry("d1", [f"after token {renewal}"])


def run(tally, directory, authority, binary, hub_binary, trace):
    for name, function in SCENARIOS:
        title = f"{name} [Azure device SDK, IoT Hub stand-in]"
        if not tally.wants(title):
            continue
        azure = Azure(hub_binary, binary, directory, authority, trace)

        def to_the_end():
            function(azure)
            azure.finish()

        try:
            tally.run(title, to_the_end, azure)
        finally:
            azure.stop()
