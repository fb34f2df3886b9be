"""Real brokers as hubs: child processes with directories, ports and certificates of their own, ended by their ids."""

import base64
import hashlib
import json
import os
import re
import signal
import subprocess
import threading
from pathlib import Path

from lab import EVENT_TIMEOUT, HERE, LOG_TAIL, PEERS, Daemon, Failed, port_for_a_hub

BOOT_TIMEOUT = 120.0
USER, PASSWORD = "router", "a passphrase of the broker run"


class Process:
    """A server in a process group of its own, and the lines that it has said."""

    def __init__(self, name, command, environment=None, directory=None):
        self.name = name
        self.lines = []
        self.at_end = False
        self.changed = threading.Condition()
        self.process = subprocess.Popen(
            list(map(str, command)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**os.environ, **(environment or {})},
            cwd=directory,
            start_new_session=True,
        )
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        for line in self.process.stdout:
            with self.changed:
                self.lines.append(line.rstrip("\n"))
                self.changed.notify_all()
        with self.changed:
            self.at_end = True
            self.changed.notify_all()

    def wait_line(self, pattern, timeout=BOOT_TIMEOUT):
        """Waits until it has said a line with this pattern; gives the match."""

        def find():
            return next((m for line in self.lines if (m := re.search(pattern, line))), None)

        with self.changed:
            self.changed.wait_for(lambda: find() or self.at_end, timeout)
            found = find()
            said = "\n".join(self.lines[-LOG_TAIL:])
        if not found:
            raise Failed(f"{self.name} did not say {pattern!r} in {timeout:.0f} s; it said\n{said}")
        return found

    def end(self):
        """Ends the whole group at once, as a power cut would."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def routes(*prefixes):
    """Link routes to the broker: these prefixes both ways, and transactions."""
    ways = [(prefix, way) for prefix in prefixes for way in ("in", "out")] + [("$coordinator", "in")]
    return "".join(f"linkRoute {{\n    prefix: {p}\n    connection: IOTHUB\n    dir: {way}\n}}\n" for p, way in ways)


RABBITMQ_CONFIGURATION = """\
listeners.tcp.1 = 127.0.0.1:{plain_port}
listeners.ssl.1 = 127.0.0.1:{tls_port}
ssl_options.cacertfile = {ca}
ssl_options.certfile = {cert}
ssl_options.keyfile = {key}
ssl_options.verify = verify_none
ssl_options.fail_if_no_peer_cert = false
amqp1_0.default_user = {user}
load_definitions = {definitions}
log.console = true
log.console.level = info
log.console.formatter = plaintext
log.file = false
"""


def rabbitmq_definitions():
    """A user, and the queues that AMQP 1.0 cannot declare: RabbitMQ's idiom is that they are there."""
    salt = bytes(4)
    digest = base64.b64encode(salt + hashlib.sha256(salt + PASSWORD.encode()).digest()).decode()
    everywhere = {"vhost": "/", "durable": True}
    queues = {"kept": {}, "subscription": {}}
    queues |= {f"log-{stack}": {"x-queue-type": "stream"} for stack in PEERS}
    queues |= {f"quorum-{stack}": {"x-queue-type": "quorum"} for stack in PEERS}
    return {
        "vhosts": [{"name": "/"}],
        "users": [{"name": USER, "password_hash": digest, "tags": ""}],
        "permissions": [{"user": USER, "vhost": "/", "configure": ".*", "write": ".*", "read": ".*"}],
        "queues": [{**everywhere, "name": n, "auto_delete": False, "arguments": a} for n, a in queues.items()],
        "bindings": [
            {
                "vhost": "/", "source": "amq.topic", "routing_key": "weather.#",
                "destination": "subscription", "destination_type": "queue", "arguments": {},
            }
        ],
    }  # fmt: skip


class RabbitMQ:
    """Debian's RabbitMQ with its AMQP 1.0 plugin; the plaintext port is for devices that come without the daemon."""

    name = "RabbitMQ"
    tools = ("rabbitmq-server", "epmd")
    told = ("PLAIN is accepted", 'product="RabbitMQ"')
    sasl = f"sasl-mechanisms: PLAIN\n    saslUsername: {USER}\n    saslPassword: {PASSWORD}"
    # The scenarios' addresses begin with a slash; routes need not.
    routes = routes("queue", "amq/queue", "topic")
    program = "/usr/lib/rabbitmq/bin/rabbitmq-server"

    def __init__(self, directory, authority):
        home = Path(directory) / "rabbitmq"
        home.mkdir()
        self.tls_port, self.plain_port, self.epmd_port, self.node_port = (port_for_a_hub() for _ in range(4))
        configuration = home / "rabbitmq.conf"
        definitions = home / "definitions.json"
        definitions.write_text(json.dumps(rabbitmq_definitions()))
        configuration.write_text(
            RABBITMQ_CONFIGURATION.format(
                plain_port=self.plain_port, tls_port=self.tls_port, ca=authority.ca, user=USER, password=PASSWORD,
                definitions=definitions, **authority.files(),
            )
        )  # fmt: skip
        (home / "enabled_plugins").write_text("[rabbitmq_amqp1_0].\n")
        self.environment = {
            "HOME": str(home),
            "ERL_EPMD_PORT": str(self.epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_CONFIG_FILE": str(configuration),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(home / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(home / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(home / "data"),
            "RABBITMQ_LOG_BASE": str(home / "log"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(home / "generated"),
            "RABBITMQ_NODENAME": f"interop-{os.getpid()}@localhost",
            "RABBITMQ_DIST_PORT": str(self.node_port),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        }
        self.epmd = self.server = None
        self.start()

    def start(self):
        self.epmd = Process("epmd", ["epmd", "-port", self.epmd_port, "-address", "127.0.0.1", "-d"])
        self.epmd.wait_line("entering the main select|epmd running", EVENT_TIMEOUT)
        self.server = Process(self.name, [self.program], self.environment)
        try:
            self.server.wait_line("Server startup complete")
        except Failed:
            self.end()
            raise

    def restart(self):
        """Ends it with no word to its clients, and starts it over the same data."""
        self.end()
        self.start()

    def end(self):
        for process in (self.server, self.epmd):
            if process:
                process.end()

    def log(self):
        return self.server.lines[-LOG_TAIL:]


class BrokerOnProton:
    """The broker of `broker_on_proton.py`, for selectors, durable subscriptions and transactions."""

    name = "broker on Proton"
    tools = ()
    told = ("ANONYMOUS is accepted",)
    sasl = Daemon.ANONYMOUS
    routes = routes("jobs", "news")

    def __init__(self, directory, authority):
        self.tls_port, self.plain_port = port_for_a_hub(), port_for_a_hub()
        program = HERE / "broker_on_proton.py"
        command = ["/usr/bin/python3", program, self.plain_port, self.tls_port, authority.cert, authority.key]
        self.server = Process(self.name, command)
        self.server.wait_line("listening", EVENT_TIMEOUT)

    def end(self):
        self.server.end()

    def log(self):
        return self.server.lines[-LOG_TAIL:]


BROKERS = (RabbitMQ, BrokerOnProton)
