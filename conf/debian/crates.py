#!/usr/bin/env python3
"""Prints the licences of all crates that are linked into the program, each with its text as the crate itself has it.

    conf/debian/crates.py | gzip -9n >target/crates.txt.gz     before `cargo deb`, which puts that into the package

Fails when a crate has no text.
"""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# What the package is built for: the lists of the three differ in nothing but conditions of the crates themselves.
TARGETS = ["x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu", "armv7-unknown-linux-gnueabihf"]
NAMES = ("LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE", "UNLICENSE")


def cargo(*arguments):
    return subprocess.run(
        ["cargo", *arguments], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout


def linked():
    """Name and version of each crate; macros and build scripts are in no program."""
    found = set()
    for target in TARGETS:
        lines = cargo(
            "tree", "--locked", "--edges", "normal,no-proc-macro", "--target", target, "--prefix", "none", "--format", "{p}"
        ).splitlines()
        found.update(tuple(line.split()[:2]) for line in lines if line)
    return sorted((name, version.removeprefix("v")) for name, version in found if name != "linkrouterd")


def texts_of(package):
    files = sorted(Path(package["manifest_path"]).parent.rglob("*"))
    return [file.read_text() for file in files if file.is_file() and file.name.upper().startswith(NAMES)]


def main():
    packages = {
        (package["name"], package["version"]): package
        for package in json.loads(cargo("metadata", "--locked", "--format-version", "1"))["packages"]
    }
    crates, bearers = [], {}
    for key in linked():
        package = packages[key]
        texts = texts_of(package)
        if not texts:
            sys.exit(f"{' '.join(key)} has no text of its licence")
        crates.append(f"{' '.join(key)}: {package['license']}, {package['repository']}")
        for text in texts:
            # One text for all that have the same, however its lines are broken.
            bearers.setdefault(" ".join(text.split()), (text, []))[1].append(key[0])
    print("Linked into linkrouterd, beside the standard library of Rust (MIT OR Apache-2.0):\n")
    print("\n".join(crates))
    for text, names in bearers.values():
        print(f"\n{'=' * 80}\nOf {', '.join(dict.fromkeys(names))}:\n\n{text.strip()}")


main()
