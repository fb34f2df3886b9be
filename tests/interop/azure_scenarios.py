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


def scenario(function, direct=True):
    """`direct`: it can also be run without the daemon."""
    SCENARIOS.append((function.__name__.replace("_", " "), function, direct))
    return function


def through_the_daemon(function):
    return scenario(function, direct=False)


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
        """No rule was broken, and no key is in the daemon's log."""
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


@scenario
def twins_are_read_reported_and_watched(azure):
    azure.open("d1")
    azure.hub.call("desired", device="d1", patch={"interval": 5, "led": {"red": True}})
    twin = azure.do("twin", "d1")
    check(twin["desired"] == {"interval": 5, "led": {"red": True}} and twin["reported"] == {}, f"{twin}")
    azure.do("report", "d1", patch={"interval": 5, "firmware": "1.0"})
    reported = azure.hub.call("reported", device="d1")["reported"]
    check((reported["interval"], reported["firmware"]) == (5, "1.0"), f"{reported}")
    azure.do("watch", "d1")
    first = azure.sdk.wait("desired", conn="d1")
    check(first["patch"] == twin["desired"], f"{first}")
    azure.hub.wait("twin", operation="PUT", status=200)
    azure.hub.call("desired", device="d1", patch={"interval": 10, "led": None})
    news = azure.sdk.wait("desired", conn="d1")
    check(news["patch"] == {"interval": 10, "led": None}, f"{news}")
    azure.do("report", "d1", patch={"interval": 10, "firmware": None})
    reported = azure.hub.call("reported", device="d1")["reported"]
    check(reported["interval"] == 10 and "firmware" not in reported, f"{reported}")


@scenario
def methods_are_called_and_answered(azure):
    azure.open("d1")
    azure.do("method", "d1", name="reboot", status=200)
    azure.do("method", "d1", name="explode", status=403)
    for name, status in (("reboot", 200), ("explode", 403), ("reboot", 200)):
        payload = {"in": 5, "why": name}
        azure.hub.call("method", device="d1", name=name, payload=payload)
        called = azure.sdk.wait("method", conn="d1")
        check((called["name"], called["payload"]) == (name, payload), f"{called}")
        answered = azure.hub.wait("answered", device="d1")
        check(answered["status"] == status, f"{answered}")
        check(answered["payload"] == {"echo": payload, "device": "d1"}, f"{answered}")


@scenario
def devices_work_at_once(azure):
    for device in DEVICES:
        azure.open(device)
        azure.do("commands", device)
        azure.do("method", device, name="who", status=200)
        azure.do("twin", device)
    for turn in range(3):
        for device in DEVICES:
            azure.telemetry(device, [f"turn {turn} of {device}"])
            azure.command(device, f"command {turn} for {device}")
            azure.hub.call("method", device=device, name="who", payload=turn)
            azure.do("report", device, patch={"turn": turn})
        for device in DEVICES:
            said = azure.sdk.wait("command", conn=device)
            check(said["body"] == f"command {turn} for {device}", f"{said}")
            azure.do("settle", device, body=said["body"], outcome="complete")
            answered = azure.hub.wait("answered", device=device)
            check(answered["payload"] == {"echo": turn, "device": device}, f"{answered}")
            reported = azure.hub.call("reported", device=device)["reported"]
            check(reported["turn"] == turn, f"{device}: {reported}")
    counts = azure.counts(DEVICES[0])
    expected = (1, 2) if azure.daemon else (len(DEVICES), 2)
    check((counts["connections"], counts["cbs_links"]) == expected, f"{counts}")


@through_the_daemon
def devices_come_back_when_the_hub_closes(azure):
    # With the hub itself the SDK would give up: it does not know `amqp:connection:forced`. It knows a detached link.
    for device in DEVICES:
        azure.open(device, retry=True)
        azure.do("commands", device)
        azure.telemetry(device, [f"before, from {device}"])
    azure.hub.call("close_connections", why="an upgrade of the service")
    for device in DEVICES:
        azure.command(device, f"after, for {device}")
        said = azure.sdk.wait("command", conn=device, timeout=60)
        check(said["body"] == f"after, for {device}", f"{said}")
        azure.do("settle", device, body=said["body"], outcome="complete")
        azure.telemetry(device, [f"after, from {device}"])


def run(tally, directory, authority, binary, hub_binary, trace):
    for name, function, direct in SCENARIOS:
        title = f"{name} [Azure device SDK, IoT Hub stand-in]"
        if not tally.wants(title) or not (direct or binary):
            continue
        azure = Azure(hub_binary, binary, directory, authority, trace)

        def to_the_end():
            function(azure)
            azure.finish()

        try:
            tally.run(title, to_the_end, azure)
        finally:
            azure.stop()
