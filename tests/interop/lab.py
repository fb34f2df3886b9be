"""What the interop scenarios run on: peer processes, a certificate authority, and the daemon, all ended by their ids."""

import json
import random
import re
import signal
import socket
import subprocess
import threading
from pathlib import Path

HERE = Path(__file__).resolve().parent
PEERS = {
    "azure-sdk": ["node", str(HERE / "device_azure.js")],
    "proton": ["/usr/bin/python3", str(HERE / "peer_proton.py")],
    "rhea": ["node", str(HERE / "peer_rhea.js")],
}
REPLY_TIMEOUT = 20.0
EVENT_TIMEOUT = 20.0
STOP_TIMEOUT = 8.0
PROBE_TIMEOUT = 60.0
LOG_TAIL = 60


class Failed(Exception):
    """A scenario did not come out as it must; the text says how."""


class Peer:
    """One peer process and what it has said that nobody asked for yet."""

    def __init__(self, stack, name, directory, command=None):
        self.stack = stack
        self.name = name
        self.errors = Path(directory) / f"{name}-{stack}.stderr"
        self.process = subprocess.Popen(
            command or PEERS[stack],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors.open("ab"),
            text=True,
            bufsize=1,
            cwd=HERE,
        )
        self.changed = threading.Condition()
        self.events = []
        self.replies = {}
        self.at_end = False
        self.number = 0
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def __str__(self):
        return f"{self.name} ({self.stack})"

    def read(self):
        for line in self.process.stdout:
            said = json.loads(line)
            with self.changed:
                if "event" in said:
                    self.events.append(said)
                else:
                    self.replies[said.pop("id")] = said
                self.changed.notify_all()
        with self.changed:
            self.at_end = True
            self.changed.notify_all()

    def call(self, do, **arguments):
        """Carries out one command and gives its answer."""
        self.number += 1
        number = self.number
        try:
            self.process.stdin.write(json.dumps({"id": number, "do": do, **arguments}) + "\n")
        except BrokenPipeError:
            raise Failed(f"{self} has ended; {self.last_words()}") from None
        with self.changed:
            if not self.changed.wait_for(lambda: number in self.replies or self.at_end, REPLY_TIMEOUT):
                raise Failed(f"{self} did not answer `{do}`")
            reply = self.replies.pop(number, None)
        if reply is None:
            raise Failed(f"{self} ended at `{do}`; {self.last_words()}")
        if "error" in reply:
            raise Failed(f"{self} could not `{do}`: {reply['error']}")
        return reply

    def wait(self, event, timeout=EVENT_TIMEOUT, **wanted):
        """The next event of this name with these fields; it is taken off the list."""

        def find():
            for at, said in enumerate(self.events):
                if said["event"] == event and all(said.get(k) == v for k, v in wanted.items()):
                    return at
            return None

        with self.changed:
            self.changed.wait_for(lambda: find() is not None or self.at_end, timeout)
            at = find()
            if at is not None:
                return self.events.pop(at)
        said = ", ".join(json.dumps(e) for e in self.events[-8:]) or "nothing"
        ended = f" ({self.last_words()})" if self.at_end else ""
        raise Failed(f"{self}: no {event} {wanted or ''} in {timeout:.0f} s{ended}; it said {said}")

    def take(self, event, **wanted):
        """All events of this name with these fields so far, taken off the list."""
        with self.changed:
            chosen = [e for e in self.events if e["event"] == event and all(e.get(k) == v for k, v in wanted.items())]
            self.events = [e for e in self.events if e not in chosen]
        return chosen

    def forget(self):
        """Drops what was said so far, after complaining about what may never be said."""
        with self.changed:
            complaints = [e for e in self.events if e["event"] in ("stack_error", "fault")]
            self.events.clear()
        if complaints:
            raise Failed(f"{self}: {complaints}")

    def last_words(self):
        text = self.errors.read_text(errors="replace").strip().splitlines()
        return "its last words: " + " | ".join(text[-5:]) if text else "without a word"

    def kill(self):
        """Ends it with no chance to say goodbye, and waits until its last event has been read."""
        self.process.kill()
        self.process.wait()
        self.reader.join(REPLY_TIMEOUT)

    def stop(self):
        if self.process.poll() is None:
            self.process.stdin.close()
            try:
                self.process.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


class Authority:
    """A certificate authority for one run, and the hub's certificate, made by openssl."""

    def __init__(self, directory):
        self.ca = Path(directory) / "ca.pem"
        self.cert = Path(directory) / "hub.pem"
        self.key = Path(directory) / "hub-key.pem"
        ca_key, request, extensions = (Path(directory) / n for n in ("ca-key.pem", "hub.csr", "hub.ext"))
        ec = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        extensions.write_text("subjectAltName=DNS:localhost,DNS:*.azure-devices.net,IP:127.0.0.1\nextendedKeyUsage=serverAuth\n")
        self.openssl(
            "req", "-x509", *ec, "-keyout", ca_key, "-out", self.ca, "-days", "2", "-subj", "/CN=Interop CA",
            "-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign,cRLSign",
        )  # fmt: skip
        self.openssl("req", *ec, "-keyout", self.key, "-out", request, "-subj", "/CN=localhost")
        self.openssl(
            "x509", "-req", "-in", request, "-CA", self.ca, "-CAkey", ca_key, "-CAcreateserial",
            "-days", "2", "-extfile", extensions, "-out", self.cert,
        )  # fmt: skip
        self.device_cert = Path(directory) / "device.pem"
        self.device_key = Path(directory) / "device-key.pem"
        extensions.write_text("extendedKeyUsage=clientAuth\n")
        self.openssl("req", *ec, "-keyout", self.device_key, "-out", request, "-subj", "/CN=interop-device")
        self.openssl(
            "x509", "-req", "-in", request, "-CA", self.ca, "-CAkey", ca_key, "-CAcreateserial",
            "-days", "2", "-extfile", extensions, "-out", self.device_cert,
        )  # fmt: skip

    @staticmethod
    def openssl(*arguments):
        done = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True, timeout=60)
        if done.returncode != 0:
            raise Failed(f"openssl {arguments[0]}: {done.stderr.strip()}")

    def files(self):
        return {"cert": str(self.cert), "key": str(self.key)}

    def device_files(self):
        return {"cert": str(self.device_cert), "key": str(self.device_key), "ca": str(self.ca)}


DEVICE_USER = "interop-user"
DEVICE_PASSWORD = "in confidence"
CONFIGURATION = """\
container {{
    workerThreads: 4
    containerName: Qpid.Dispatch.Router.A
}}

router {{
    mode: standalone
    routerId: Router.A
    saslPasswordFile: {users}
}}

listener {{
    addr: 127.0.0.1
    port: 0
    authenticatePeer: no
    sasl-mechanisms: ANONYMOUS PLAIN EXTERNAL
    ssl-profile: devices
}}

# Devices that speak TLS show a certificate; those in clear text come in by the same port.
ssl-profile {{
    name: devices
    cert-file: {cert}
    key-file: {key}
    cert-db: {ca}
    uidFormat: n
}}

ssl-profile {{
    name: azure-ssl-profile
    cert-db: {ca}
}}

connector {{
    name: IOTHUB
    addr: localhost
    port: {hub_port}
    role: on-demand
    {sasl}
    ssl-profile: azure-ssl-profile
    idleTimeoutSeconds: 120
    # The hub in these scenarios is a plain AMQP peer, which has no tokens.
    cbs: tunnel
}}
"""

IOT_HUB_ROUTES = """\
# sending CBS token
linkRoute {
    prefix: $cbs/
    connection: IOTHUB
    dir: in
}

# receiving the status of CBS token request
linkRoute {
    prefix: $cbs/
    connection: IOTHUB
    dir: out
}

# sending telemetry path and command replies from device to hub on : devices/<DEVICE_ID>/messages/events
linkRoute {
    prefix: devices/
    connection: IOTHUB
    dir: in
}

# receiving command on device from hub on : devices/<DEVICE_ID>/messages/deviceBound
linkRoute {
    prefix: devices/
    connection: IOTHUB
    dir: out
}

# sending command from hub to device : messages/devicebound
linkRoute {
    prefix: messages/devicebound
    connection: IOTHUB
    dir: in
}

# receiving feedback on command sent from hub to device : messages/servicebound/feedback
linkRoute {
    prefix: messages/servicebound/feedback
    connection: IOTHUB
    dir: out
}
"""


class Daemon:
    """The running linkrouterd, with a configuration of the article's shape in front of one hub."""

    LISTENING = re.compile(r"SERVER \(notice\) Listening on 127\.0\.0\.1:(\d+)")

    ANONYMOUS = "sasl-mechanisms: ANONYMOUS"

    def __init__(self, binary, directory, authority, hub_port, sasl=ANONYMOUS, routes=IOT_HUB_ROUTES, trace=False):
        self.configuration = Path(directory) / f"router-{hub_port}.conf"
        users = Path(directory) / f"users-{hub_port}"
        line = subprocess.run(
            [str(binary), "--hash-password", DEVICE_USER],
            input=DEVICE_PASSWORD, capture_output=True, text=True, check=True,
        )  # fmt: skip
        users.write_text(line.stdout)
        text = CONFIGURATION.format(
            ca=authority.ca, hub_port=hub_port, sasl=sasl, users=users, **authority.files()
        )
        text += "\n" + routes
        if trace:
            text += "\nlog {\n    module: DEFAULT\n    enable: trace+\n}\n"
        self.configuration.write_text(text)
        self.start(binary)

    def start(self, binary):
        self.log = []
        self.changed = threading.Condition()
        self.at_end = False
        self.process = subprocess.Popen(
            [str(binary), "-c", str(self.configuration)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        threading.Thread(target=self.read, daemon=True).start()
        self.port = self.listening_ports(1)[0]

    def read(self):
        for line in self.process.stderr:
            with self.changed:
                self.log.append(line.rstrip("\n"))
                self.changed.notify_all()
        with self.changed:
            self.at_end = True
            self.changed.notify_all()

    def listening_ports(self, count):
        """The ports of the first listeners of the file."""

        def ports():
            return [int(m[1]) for line in self.log if (m := self.LISTENING.search(line))]

        with self.changed:
            self.changed.wait_for(lambda: len(ports()) >= count or self.at_end, EVENT_TIMEOUT)
            found = ports()
        if len(found) < count:
            log = "\n".join(self.log[-LOG_TAIL:])
            self.process.kill()
            self.process.wait()
            raise Failed(f"the daemon does not listen:\n{log}")
        return found

    def tail(self):
        with self.changed:
            return list(self.log[-LOG_TAIL:])

    def expect_line(self, *parts):
        def found():
            return any(all(part in line for part in parts) for line in self.log)

        with self.changed:
            if not self.changed.wait_for(found, EVENT_TIMEOUT):
                raise Failed(f"no line in the log has {parts}")

    def expect_no_line(self, text):
        with self.changed:
            if any(text in line for line in self.log):
                raise Failed("a line in the log has what must not be there")

    def resident_kib(self):
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1])

    def expect_well(self, binary, *parts):
        """The doctor (`--check FILE --probe`) finds the hub well, with these things said of it, and shows no secret."""
        probe = subprocess.run(
            [str(binary), "--check", str(self.configuration), "--probe"],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PROBE_TIMEOUT,
        )  # fmt: skip
        told = probe.stdout + probe.stderr
        wanted = ("  session ok ", "closed by both sides", "1 connector: all well", *parts)
        missing = [part for part in wanted if part not in told]
        if probe.returncode != 0 or missing:
            raise Failed(f"the doctor ends with {probe.returncode} and lacks {missing}:\n{told}")
        secrets = re.findall(r"saslPassword: *(\S.*)", self.configuration.read_text())
        if any(secret in told for secret in secrets):
            raise Failed("the doctor tells a password")

    def check_alive(self):
        if self.process.poll() is not None:
            raise Failed(f"the daemon has ended with status {self.process.returncode}")

    def stop(self):
        """Asks it to end, and complains if it does not end well."""
        self.check_alive()
        self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise Failed(f"the daemon did not end within {STOP_TIMEOUT:.0f} s of SIGTERM") from None
        if status != 0:
            raise Failed(f"the daemon ended with status {status} after SIGTERM")

    def end(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def port_for_a_hub():
    """A free port that no outgoing connection is given by chance while a hub is down between two lives."""
    ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for _ in range(100):
        port = random.randrange(ephemeral - 12_000, ephemeral)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise Failed("no free port below the ephemeral ones")
