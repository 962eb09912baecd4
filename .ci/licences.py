"""Audits what the workspace depends on, on every platform: where it comes from and under which licence.

Fails on a package that is not from crates.io, on a licence expression that cannot be met by the licences below, and on
one that cannot be read. Prints a table of licences and the native libraries that packages link. Needs no network once the
packages are fetched.
"""

import json
import re
import subprocess
import sys
from collections import defaultdict

# All permit use in a program under MIT or Apache-2.0. None asks for more than notices.
ALLOWED = {
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
}
OURS = "MIT OR Apache-2.0"
# Packages that ship the text of a licence and do not name it; read by a person.
READ = {"forust-ml": "Apache-2.0"}
CRATES_IO = "registry+https://github.com/rust-lang/crates.io-index"


def choices(expression):
    """The sets of licences, any of which satisfies an SPDX expression. `A/B` is how `A OR B` was once written."""
    tokens = re.findall(r"[()]|[^\s()]+", expression.replace("/", " OR "))

    def peek():
        return tokens[0] if tokens else None

    def term():
        token = tokens.pop(0)
        if token == "(":
            inner = either()
            if not tokens or tokens.pop(0) != ")":
                raise ValueError("unbalanced")
            return inner
        if token in (")", "AND", "OR", "WITH"):
            raise ValueError(f"{token} out of place")
        if peek() == "WITH":
            tokens.pop(0)
            token = f"{token} WITH {tokens.pop(0)}"
        return [frozenset([token])]

    def both():
        found = term()
        while peek() == "AND":
            tokens.pop(0)
            found = [a | b for b in term() for a in found]
        return found

    def either():
        found = both()
        while peek() == "OR":
            tokens.pop(0)
            found = found + both()
        return found

    try:
        found = either()
    except IndexError:
        raise ValueError("ends early") from None
    if tokens:
        raise ValueError(f"{tokens[0]} out of place")
    return found


def shipped(metadata):
    """Ids of what is built into the program or builds it; the rest is for tests and benches."""
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    todo, seen = list(metadata["workspace_members"]), set()
    while todo:
        package = todo.pop()
        if package in seen:
            continue
        seen.add(package)
        for dependency in nodes[package]["deps"]:
            if any(kind["kind"] != "dev" for kind in dependency["dep_kinds"]):
                todo.append(dependency["pkg"])
    return seen


def check(package, ours):
    """What is wrong with a package; None if nothing is."""
    licence = package["license"] or READ.get(package["name"])
    if ours:
        return None if licence == OURS else f"is licensed {licence}, not {OURS}"
    if package["source"] != CRATES_IO:
        return f"comes from {package['source'] or 'a path outside the workspace'}"
    if not licence:
        return "names no licence"
    try:
        found = choices(licence)
    except ValueError as error:
        return f"has a licence that cannot be read ({error}): {licence}"
    return None if any(choice <= ALLOWED for choice in found) else f"is licensed {licence}, which is not allowed"


def main():
    command = ["cargo", "metadata", "--format-version", "1", "--locked", "--offline"]
    metadata = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    members, built = set(metadata["workspace_members"]), shipped(metadata)
    table, problems, versions = defaultdict(list), [], defaultdict(list)
    for package in sorted(metadata["packages"], key=lambda package: (package["name"], package["version"])):
        ours = package["id"] in members
        name = f"{package['name']} {package['version']}"
        problem = check(package, ours)
        if problem:
            problems.append(f"{name} {problem}")
        if not ours:
            mark = "" if package["id"] in built else "*"
            table[package["license"]].append(package["name"] + mark)
            versions[package["name"]].append(package["version"])
        if package["links"]:
            print(f"{name} links {package['links']}")
    for licence, names in sorted(table.items(), key=lambda row: (-len(row[1]), row[0] or "")):
        listed = ", ".join(dict.fromkeys(names)) if len(names) <= 12 else f"{', '.join(names[:6])} and {len(names) - 6} more"
        print(f"{len(names):4}  {licence}: {listed}")
    print(f"{sum(map(len, table.values())):4}  packages on all platforms; * only tests and benches")
    for name, found in versions.items():
        if len(found) > 1:
            print(f"      {name} in versions {', '.join(found)}")
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
