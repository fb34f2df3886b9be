"""What docs/quick-start.md has a reader do with a device: docs/telemetry.py, through the daemon with the example
configuration for IoT Hub, of which only the addresses are the scenario's, to the IoT Hub stand-in.
"""

import base64
import subprocess
from pathlib import Path

from lab import Daemon, Failed, Peer
from scenarios import check

ROOT = Path(__file__).resolve().parents[2]
HUB = "my-hub.azure-devices.net"
DEVICE = "device-1"
BODY = '{"temperature": 21.5}'
DEVICE_TIMEOUT = 40


def key(text):
    return base64.b64encode(text.encode()).decode()


class ExampleDaemon(Daemon):
    """The daemon with conf/linkrouterd-iothub.conf before the stand-in, which is on this machine, and not Azure's."""

    def __init__(self, binary, directory, authority, hub_port):
        text = (ROOT / "conf/linkrouterd-iothub.conf").read_text()
        for old, new in (
            ("host: 0.0.0.0\n    port: 5672", "host: 127.0.0.1\n    port: 0"),
            ("name: azure\n", f"name: azure\n    caCertFile: {authority.ca}\n"),
            ("host: <iotHub>.azure-devices.net\n    port: amqps", f"host: localhost\n    serverName: {HUB}\n    port: {hub_port}"),
        ):
            check(text.count(old) == 1, f"the example does not have `{old}` once")
            text = text.replace(old, new)
        self.configuration = Path(directory) / "quick-start.conf"
        self.configuration.write_text(text)
        self.start(binary)


def telemetry(daemon, device_key):
    """Runs the device. Gives whether it ended well, and what it said."""
    connection_string = f"HostName={HUB};DeviceId={DEVICE};SharedAccessKey={device_key}"
    try:
        done = subprocess.run(
            ["/usr/bin/python3", ROOT / "docs/telemetry.py", f"127.0.0.1:{daemon.port}", connection_string, BODY],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=DEVICE_TIMEOUT,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise Failed(f"the device did not end within {DEVICE_TIMEOUT} s") from None
    return done.returncode == 0, done.stdout


def its_telemetry_arrives(daemon, hub):
    ended_well, said = telemetry(daemon, key("its key"))
    check(ended_well and said == f"token accepted\ntelemetry of {DEVICE} accepted by {HUB}\n", said)
    seen = hub.wait("telemetry")
    check(seen["body"] == BODY, f"{seen}")
    daemon.expect_no_line(key("its key"))


def it_tells_that_its_key_is_wrong(daemon, _):
    ended_well, said = telemetry(daemon, key("another key"))
    check(not ended_well and said.startswith("token refused: 401 "), said)


def run(tally, directory, authority, binary, hub_binary):
    for function in (its_telemetry_arrives, it_tells_that_its_key_is_wrong):
        title = f"{function.__name__.replace('_', ' ')} [the quick start's device, IoT Hub stand-in]"
        if not tally.wants(title):
            continue
        hub = Peer("iot-hub", "hub", directory, [str(hub_binary)])
        daemon = None
        try:
            tls = {**authority.files(), "ca": str(authority.ca)}
            port = hub.call("listen", name=HUB, devices={DEVICE: key("its key")}, tls=tls)["port"]
            daemon = ExampleDaemon(binary, directory, authority, port)
            tally.run(title, lambda: function(daemon, hub), daemon)
        finally:
            if daemon:
                daemon.end()
            hub.stop()
