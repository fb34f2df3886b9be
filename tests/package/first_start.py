#!/usr/bin/env python3
"""What a new user sees, from the package to the first telemetry, on a system that boots: writes docs/transcript.md.

Boots a minimal Debian under systemd-nspawn, with its own network of one host, and types there what docs/quick-start.md
says, by the package that is given. The hub is the IoT Hub stand-in, in the same network, under the name of a hub. Every
command must end as the list below says; the last check is that the hub has the device's message.

    tests/package/first_start.py --deb target/debian/linkrouterd_*_amd64.deb [--suite bookworm|trixie] [--root DIRECTORY]

Run as root on Debian with debootstrap, systemd-container, socat and openssl. Without --root the system is made anew by
debootstrap; a directory that is given is made if it is not there, and used again if it is. Not a step of the gate: it
needs a machine that lets a container boot.
"""

import argparse
import base64
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/interop"))
from lab import Authority, Failed, Peer  # noqa: E402

HUB = "my-hub.azure-devices.net"
DEVICE = "netduino"
KEY = base64.b64encode(b"the key of the device in the transcript").decode()
PACKAGES = "systemd,systemd-sysv,dbus,procps,man-db,ca-certificates,python3-qpid-proton"
COUNTING = re.compile(r"\(Reading database \.\.\. ?(\d+%)?$")
BOOT_TIMEOUT = 60
COMMAND_TIMEOUT = 60
CONFIG = "/etc/linkrouterd/linkrouterd.conf"
HOME = "/home/pi"
TELEMETRY = "/usr/share/doc/linkrouterd/examples/telemetry.py"


def run(*command, **options):
    return subprocess.run([str(word) for word in command], check=True, **options)


class System:
    """A Debian system that has booted."""

    def __init__(self, suite, directory):
        self.directory = Path(directory)
        if not (self.directory / "etc").exists():
            run("debootstrap", "--variant=minbase", f"--include={PACKAGES}", suite, self.directory, stdout=subprocess.DEVNULL)
        (self.directory / "etc/hosts").write_text(f"127.0.0.1 localhost raspberrypi {HUB}\n")
        (self.directory / "etc/hostname").write_text("raspberrypi\n")
        self.home = self.directory / HOME[1:]
        self.home.mkdir(parents=True, exist_ok=True)
        self.console = (self.directory.parent / "console.log").open("wb")
        self.container = subprocess.Popen(
            ["systemd-nspawn", "-q", "-D", self.directory, "--boot", "--register=no", "--keep-unit",
             "--hostname=raspberrypi", "--private-network"],
            stdin=subprocess.DEVNULL, stdout=self.console, stderr=subprocess.STDOUT, start_new_session=True,
            env={**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
        )  # fmt: skip
        self.leader = None

    def boot(self):
        self.wait_for("the system", self.is_up)

    def wait_for(self, what, condition):
        deadline = time.monotonic() + BOOT_TIMEOUT
        while time.monotonic() < deadline:
            if found := condition():
                return found
            if self.container.poll() is not None:
                break
            time.sleep(0.1)
        raise Failed(f"{what} did not come up; see {self.console.name}")

    def is_up(self):
        # The first child makes the container, and starts the process that stays.
        listed = subprocess.run(["pgrep", "-P", str(self.container.pid)], capture_output=True, text=True)
        if not listed.stdout:
            return False
        self.leader = int(listed.stdout.split()[0])
        state = self.execute("systemctl is-system-running", check=False).stdout.strip()
        return state in ("running", "degraded")

    def execute(self, command, check=True):
        clean = ["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", f"HOME={HOME}", "TERM=dumb", "LANG=C.UTF-8",
                 "SYSTEMD_PAGER=", "SYSTEMD_COLORS=0", "COLUMNS=110", "DEBIAN_FRONTEND=noninteractive"]  # fmt: skip
        return subprocess.run(
            ["nsenter", "-t", str(self.leader), "-a", *clean, "bash", "-c", f"cd && {command}"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=check,
            timeout=COMMAND_TIMEOUT,
        )  # fmt: skip

    def in_its_network(self, *command):
        """`command`, with this machine's files and the container's network."""
        return ["nsenter", "-t", str(self.leader), "-n", *map(str, command)]

    def stop(self):
        if self.container.poll() is None:
            try:
                os.kill(self.leader, signal.SIGRTMIN + 3)  # halt
            except (ProcessLookupError, TypeError):
                self.container.terminate()
            try:
                self.container.wait(30)
            except subprocess.TimeoutExpired:
                self.container.kill()
                self.container.wait()
        self.console.close()


class Transcript:
    """What was typed and what came back, as Markdown."""

    def __init__(self, system):
        self.system = system
        self.text = []

    def say(self, text):
        self.text.append(text)

    def type(self, *commands, expect=0):
        """Runs the commands; each must end with `expect`. Gives the output of the last."""
        lines = []
        for command in commands:
            done = self.system.execute(command.replace("sudo ", ""), check=False)
            if done.returncode != expect:
                raise Failed(f"`{command}` ended with {done.returncode}, not {expect}:\n{done.stdout}")
            lines.append(f"$ {command}")
            # dpkg counts up to 100 % where a person would see one line.
            lines += [line.rstrip() for line in done.stdout.splitlines() if not COUNTING.match(line)]
        self.text.append("<!-- run by tests/package/first_start.py: tell, finish -->\n```console\n" + "\n".join(lines) + "\n```")
        return done.stdout

    def markdown(self):
        return "\n\n".join(self.text) + "\n"


def tell(transcript, deb):
    say, type = transcript.say, transcript.type
    say("# From the package to the first telemetry")
    distribution = transcript.system.execute(". /etc/os-release; echo $PRETTY_NAME").stdout.strip()
    systemd = transcript.system.execute("systemctl --version | head -n 1").stdout.split()[1]
    say(
        "This page was written by `tests/package/first_start.py`, which booted a minimal system, typed each command there, and "
        f"kept what came back. The system was {distribution} with systemd {systemd}, on x86-64; Raspberry Pi OS is the same "
        f"system on ARM. The hub was the [stand-in of IoT Hub](hub-stand-in.md), which that system knew as `{HUB}`; "
        "a step that you do not need with a real hub says so. [quick-start.md](quick-start.md) explains the steps."
    )
    say("## Install")
    type(f"sudo apt-get install -qq ./{deb}", "linkrouterd --version", "systemctl status linkrouterd --lines 4")
    say("It runs, for programs on the same machine only, and leads nowhere yet.")
    say("## Name the hub")
    type(
        f"sudo cp /usr/share/doc/linkrouterd/examples/linkrouterd-iothub.conf {CONFIG}",
        f"sudo sed -i 's/<iotHub>/{HUB.split('.')[0]}/' {CONFIG}",
        "sudo linkrouterd --check",
    )
    say("Ask whether that hub can be reached:")
    type("sudo linkrouterd --check --probe", expect=69)
    say(
        "A real hub has a certificate that the daemon trusts by itself. The stand-in's is from an authority of its own, "
        "so its file is named (only needed here):"
    )
    type(
        "sudo cp stand-in-ca.pem /etc/linkrouterd/",
        f"sudo sed -i 's,^    name: azure$,&\\n    caCertFile: /etc/linkrouterd/stand-in-ca.pem,' {CONFIG}",
        "sudo linkrouterd --check --probe",
    )
    say("## Start")
    type("sudo systemctl restart linkrouterd", "systemctl status linkrouterd --lines 0")
    say("## The first telemetry")
    type(f"/usr/bin/python3 {TELEMETRY} localhost 'HostName={HUB};DeviceId={DEVICE};SharedAccessKey={KEY}' '{{\"temperature\": 21.5}}'")


def finish(transcript, hub):
    say, type = transcript.say, transcript.type
    message = hub.wait("telemetry")
    say("What the hub has, as the stand-in tells it:")
    say(f"```json\n{json.dumps({key: message[key] for key in ('address', 'body')})}\n```")
    say("## What the log says")
    type("journalctl -u linkrouterd -o cat -n 12")
    say("A wrong key, and what is found of it afterwards:")
    wrong = base64.b64encode(b"another key").decode()
    type(
        f"/usr/bin/python3 {TELEMETRY} localhost 'HostName={HUB};DeviceId={DEVICE};SharedAccessKey={wrong}'",
        expect=1,
    )
    type("journalctl -u linkrouterd -o cat -p warning -n 4")
    say("## Change the configuration while it runs")
    type(
        f"sudo sed -i 's/enable: info+/enable: debug+/' {CONFIG}",
        "sudo systemctl reload linkrouterd",
        "systemctl status linkrouterd --lines 2",
    )
    say("## A stuck daemon is started again")
    type("sudo systemctl kill --signal=STOP linkrouterd")
    transcript.system.wait_for("another start", lambda: restarted(transcript.system))
    type("journalctl -u linkrouterd -o cat -p warning -n 4", "systemctl is-active linkrouterd")
    say("## Remove")
    type("sudo apt-get remove -qq linkrouterd", f"ls {CONFIG}")


def restarted(system):
    count = system.execute("systemctl show -P NRestarts linkrouterd").stdout.strip()
    return count != "0" and system.execute("systemctl is-active linkrouterd", check=False).stdout.strip() == "active"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--deb", type=Path, required=True, help="the package")
    parser.add_argument("--suite", default="bookworm", help="the release of Debian (default: bookworm)")
    parser.add_argument("--root", type=Path, help="the directory of the system; made if it is not there")
    parser.add_argument("--hub", type=Path, default=ROOT / "target/debug/examples/iot_hub", help="the IoT Hub stand-in")
    parser.add_argument("--output", type=Path, default=ROOT / "docs/transcript.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="linkrouterd-first-start-") as scratch:
        root = options.root or Path(scratch) / "root"
        root.parent.mkdir(parents=True, exist_ok=True)
        authority = Authority(scratch)
        system = System(options.suite, root)
        hub = forward = None
        try:
            system.boot()
            shutil.copy(options.deb, system.home)
            shutil.copy(authority.ca, system.home / "stand-in-ca.pem")
            hub = Peer("iot-hub", "hub", scratch, system.in_its_network(options.hub))
            tls = {**authority.files(), "ca": str(authority.ca)}
            port = hub.call("listen", name=HUB, devices={DEVICE: KEY}, tls=tls)["port"]
            forward = subprocess.Popen(
                system.in_its_network("socat", "TCP-LISTEN:5671,bind=127.0.0.1,fork,reuseaddr", f"TCP:127.0.0.1:{port}")
            )
            transcript = Transcript(system)
            tell(transcript, options.deb.name)
            finish(transcript, hub)
            options.output.write_text(transcript.markdown())
        except Failed as failure:
            sys.exit(str(failure))
        finally:
            for process in filter(None, [forward]):
                process.terminate()
                process.wait()
            if hub:
                hub.stop()
            system.stop()
    print(f"{options.output}: written")


if __name__ == "__main__":
    main()
