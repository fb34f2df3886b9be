#!/usr/bin/python3
"""Runs the interop scenarios: devices on Qpid Proton and on rhea, hubs on both and real brokers, the daemon between.

    tests/interop/run.py                     through target/release/linkrouterd
    tests/interop/run.py --direct            device to hub, no router: proves the scenarios themselves
    tests/interop/run.py --only drain        the scenarios whose line has this word
    tests/interop/run.py --trace             the daemon at trace level

One line a scenario, a closing line `N passed, N failed`, and status 1 if any failed.
"""

import argparse
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path

import azure_scenarios
import broker_scenarios
import dialing_brokers
import gateway_scenarios
import quick_start
import raw_scenarios
from brokers import BROKERS
from lab import Authority, Daemon, Failed, Peer, port_for_a_hub
from scenarios import SCENARIOS, Bench, both_ways, check

ROOT = Path(__file__).resolve().parents[2]
STACKS = ("proton", "rhea")
PLAIN_USER, PLAIN_PASSWORD = "router@interop", "a passphrase of the interop run"


class Tally:
    def __init__(self, only):
        self.only = only
        self.passed = 0
        self.failed = 0

    def wants(self, title):
        return self.only is None or self.only.lower() in title.lower()

    def run(self, title, function, daemon=None, broker=None):
        begun = time.monotonic()
        try:
            function()
            if daemon:
                daemon.check_alive()
        except Exception as error:  # whatever it is, the other scenarios shall run
            self.failed += 1
            print(f"FAILED {title} ({time.monotonic() - begun:.1f} s)", flush=True)
            text = str(error) if isinstance(error, Failed) else traceback.format_exc()
            print("    " + text.replace("\n", "\n    "))
            if broker:
                print("    the end of the broker's log:")
                print("\n".join("    | " + line for line in broker.log()), flush=True)
            if daemon:
                print("    the end of the daemon's log:")
                print("\n".join("    | " + line for line in daemon.tail()), flush=True)
            return False
        self.passed += 1
        print(f"ok     {title} ({time.monotonic() - begun:.1f} s)", flush=True)
        return True


class Stand:
    """A hub, the daemon in front of it (none when `direct`), and a device process of each stack."""

    def __init__(self, hub_stack, directory, authority, binary, trace, plain=False):
        self.hub_stack = hub_stack
        self.directory = directory
        self.tls = authority.files() if binary else None
        self.device_tls = authority.device_files()
        self.plain_auth = None
        sasl = Daemon.ANONYMOUS
        if plain:
            self.plain_auth = {"user": PLAIN_USER, "password": PLAIN_PASSWORD}
            sasl = f"sasl-mechanisms: PLAIN\n    saslUsername: {PLAIN_USER}\n    saslPassword: {PLAIN_PASSWORD}"
        self.devices = {}
        self.daemon = None
        self.hub_port = port_for_a_hub()
        self.hub = self.new_hub()
        if binary:
            self.daemon = Daemon(binary, directory, authority, self.hub_port, sasl, trace=trace)
        self.number = 0

    def new_hub(self):
        """A hub on the port of the one before."""
        hub = Peer(self.hub_stack, "hub", self.directory)
        hub.call("listen", port=self.hub_port, tls=self.tls, plain_auth=self.plain_auth)
        self.hub = hub
        return hub

    def device(self, stack):
        if stack not in self.devices:
            self.devices[stack] = Peer(stack, "device", self.directory)
        return self.devices[stack]

    def run(self, function, device_stack):
        self.number += 1
        port = self.daemon.port if self.daemon else self.hub_port
        bench = Bench(self.device(device_stack), self.hub, port, not self.daemon, self.new_hub, f"{device_stack}{self.number}")
        bench.daemon, bench.device_tls = self.daemon, self.device_tls
        try:
            function(bench)
            bench.finish()
        except Exception:
            # The next scenario begins with nothing of this one.
            self.devices.pop(device_stack).stop()
            self.hub.kill()
            self.new_hub()
            raise

    def run_raw(self, function):
        function(self.hub, self.daemon.port if self.daemon else self.hub_port, not self.daemon)
        self.hub.forget()

    def stop(self):
        for peer in (*self.devices.values(), self.hub):
            peer.stop()
        if self.daemon:
            self.daemon.end()


def run_stack(hub_stack, tally, directory, authority, binary, trace):
    stand = Stand(hub_stack, directory, authority, binary, trace)
    try:
        for scenario in SCENARIOS:
            for device_stack in scenario.device_stacks:
                title = f"{scenario.name} [{device_stack} device, {hub_stack} hub]"
                if tally.wants(title) and (scenario.direct or binary):
                    tally.run(title, lambda: stand.run(scenario.run, device_stack), stand.daemon)
        for name, function, direct_stacks in raw_scenarios.SCENARIOS:
            title = f"{name} [raw device, {hub_stack} hub]"
            if tally.wants(title) and (binary or hub_stack in direct_stacks):
                tally.run(title, lambda: stand.run_raw(function), stand.daemon)
        title = f"SIGTERM ends the daemon [{hub_stack} hub]"
        if binary and tally.wants(title):
            tally.run(title, stand.daemon.stop)
    finally:
        stand.stop()


def run_plain(tally, directory, authority, binary, trace):
    # Debian builds Proton without Cyrus SASL, so a hub on it cannot check a password.
    hub_stack = "rhea"
    title = f"a hub that wants SASL PLAIN [rhea device, {hub_stack} hub]"
    if not tally.wants(title):
        return
    stand = Stand(hub_stack, directory, authority, binary, trace, plain=True)
    try:

        def exchange(bench):
            both_ways(bench, bench.connect(), count=20, size=100, window=10)
            opened = bench.hub.wait("connection_opened")
            check(opened["user"] == PLAIN_USER, f"{bench.hub} knows the router as {opened['user']!r}")
            secrets = [line for line in stand.daemon.tail() if PLAIN_PASSWORD in line]
            check(not secrets, "the password is in the daemon's log")

        tally.run(title, lambda: stand.run(exchange, "rhea"), stand.daemon)
    finally:
        stand.stop()


class BrokerStand:
    """A broker, the daemon in front of it (none when `direct`), and a device process of each stack."""

    def __init__(self, broker_class, directory, authority, binary, trace):
        self.directory = directory
        self.devices = {}
        self.daemon = None
        self.number = 0
        self.broker = broker_class(directory, authority)
        if binary:
            self.daemon = Daemon(
                binary, directory, authority, self.broker.tls_port, self.broker.sasl, self.broker.routes, trace
            )

    def run(self, function, stack):
        def new_device():
            return Peer(stack, "device", self.directory)

        if stack not in self.devices:
            self.devices[stack] = new_device()
        self.number += 1
        port = self.daemon.port if self.daemon else self.broker.plain_port
        bench = broker_scenarios.BrokerBench(
            self.devices[stack], new_device, self.broker, port, not self.daemon, f"{stack}{self.number}"
        )
        try:
            function(bench)
            bench.finish()
        except Exception:
            # The next scenario begins with nothing of this one.
            self.devices.pop(stack).stop()
            raise

    def stop(self):
        for peer in self.devices.values():
            peer.stop()
        if self.daemon:
            self.daemon.end()
        self.broker.end()


def run_broker(broker_class, tally, directory, authority, binary, trace):
    chosen = [
        (f"{scenario.name} [{stack} device, {broker_class.name}]", scenario, stack)
        for scenario in broker_scenarios.SCENARIOS
        if broker_class.name in scenario.brokers
        for stack in STACKS
    ]
    chosen = [(title, scenario, stack) for title, scenario, stack in chosen if tally.wants(title)]
    doctor = f"the doctor finds {broker_class.name} well"
    asks_doctor = binary is not None and tally.wants(doctor)
    if not chosen and not asks_doctor:
        return
    stand = None

    def start():
        nonlocal stand
        stand = BrokerStand(broker_class, directory, authority, binary, trace)

    if not tally.run(f"{broker_class.name} starts", start):
        return
    try:
        if asks_doctor:
            told = ("  TLS     ok      TLSv1.", *broker_class.told)
            tally.run(doctor, lambda: stand.daemon.expect_well(binary, *told), stand.daemon, stand.broker)
        for title, scenario, stack in chosen:
            tally.run(title, lambda: stand.run(scenario.run, stack), stand.daemon, stand.broker)
    finally:
        stand.stop()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--direct", action="store_true", help="no router between device and hub")
    parser.add_argument("--router", type=Path, default=ROOT / "target/release/linkrouterd", help="the daemon")
    parser.add_argument("--hub", type=Path, default=ROOT / "target/debug/examples/iot_hub", help="the IoT Hub stand-in")
    parser.add_argument("--only", help="only scenarios whose line has this text")
    parser.add_argument("--trace", action="store_true", help="run the daemon at trace level")
    options = parser.parse_args()
    binary = None if options.direct else options.router
    if binary and not binary.is_file():
        sys.exit(f"no daemon at {binary}: cargo build --release")
    if not options.hub.is_file():
        sys.exit(f"no IoT Hub stand-in at {options.hub}: cargo build --example iot_hub")
    tools = {tool for broker in BROKERS for tool in broker.tools}
    for tool in ("node", "openssl", *sorted(tools)):
        if shutil.which(tool) is None:
            sys.exit(f"{tool} is not installed")

    tally = Tally(options.only)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="linkrouterd-interop-") as directory:
        authority = Authority(directory)
        for hub_stack in STACKS:
            run_stack(hub_stack, tally, directory, authority, binary, options.trace)
        for broker_class in BROKERS:
            run_broker(broker_class, tally, directory, authority, binary, options.trace)
        azure_scenarios.run(tally, directory, authority, binary, options.hub, options.trace)
        if binary:
            run_plain(tally, directory, authority, binary, options.trace)
            dialing_brokers.run(tally, directory, binary, options.trace, STACKS)
            gateway_scenarios.run(tally, directory, authority, binary, options.trace)
            quick_start.run(tally, directory, authority, binary, options.hub)
    print(f"{time.monotonic() - begun:.0f} s in all")
    print(f"{tally.passed} passed, {tally.failed} failed")
    sys.exit(0 if tally.passed and not tally.failed else 1)


if __name__ == "__main__":
    main()
