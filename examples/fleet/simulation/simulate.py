"""A fleet through plain files: what the links, the cloud's post and the devices do.

    WORK/fleet/GROUP/NAME/     device folders, each with its log (log.jsonl): what the report reads
    WORK/field/GROUP/NAME/     inbox/, refused/ and power.jsonl of a device; frames/ for its gate
    WORK/links/GROUP/NAME/     updates under way, DAY-SEQUENCE-COPY.cdcca: they arrive on that day
    WORK/known/GROUP/NAME      the device's log as the cloud has it; its sequence is read from there
    WORK/sent/GROUP/NAME       {sequence: day} of what was sent last
    WORK/day, today            the last day that has ended; the devices that have something to do
    WORK/over                  the cloud has heard that all devices have all updates
    WORK/links.jsonl, costs.jsonl, fleet.json, end.json

Every random choice is drawn from SEED, the day and the device's name, so that the end does not
depend on how fast a process was. Where a power cut hits is chance: the device is off for the rest
of that day, and tries the same file first on the next, whether it was installed or not.

The Makefile runs `fleet` once, then for each day `morning`, `visit GROUP/NAME` of each device that
has something to do, and `evening`; `end` checks and counts.
"""

import hashlib
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

WORK, UPDATES = Path(os.environ.get("WORK", "fleet-run")), Path(os.environ.get("UPDATES", "."))
SEED = os.environ.get("SEED", "0")
GROUPS = ("north", "centre", "south")
PUBLISHED = {1: 1, 2: 4, 3: 8}
"""The day on which each update can be sent."""
LAST, MOST_DAYS = 3, 60
LOST, TORN, LATE, REPEATED = 0.2, 0.05, 0.15, 0.15
"""Shares of the files that a link loses, cuts short, delays by 1 to 3 days, delivers twice."""
LOG_LOST, SPELL, POWER_CUT = 0.2, 0.3, float(os.environ.get("POWER_CUT", "0.1"))
"""Of the logs that go up; of devices that are off for days; of the updates that are applied."""
RESENT_DAYS = 2
SAMPLING_DAYS = (2, 6, 10)
FIRST_SECONDS, LATEST_CUT = 0.5, 1.1
"""A power cut comes within 1.1 times what such commands took lately (the first: half a second)."""


def draw(*about: object) -> random.Random:
    return random.Random("/".join(map(str, (SEED, *about))))


def names() -> list[str]:
    folders = [path for group in GROUPS for path in (WORK / "fleet" / group).iterdir()]
    return sorted(f"{path.parent.name}/{path.name}" for path in folders)


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def add_line(path: Path, value: object) -> None:
    with path.open("a") as file:
        file.write(json.dumps(value) + "\n")


def run(*words: object) -> None:
    subprocess.run([str(word) for word in words], check=True)


# ---------------------------------------------------------------- before the first day


def part(group: str, number: str, source: str, folder: str) -> None:
    """The frames of a group for a round: every ninth of the stream."""
    take(Path(source), Path(folder), GROUPS.index(group) + 3 * (int(number) - 1), 9)


def take(source: Path, folder: Path, first: int, step: int) -> None:
    questions = lines(source / "frames.jsonl")
    images = sorted({one["image"] for one in questions})[first::step]
    folder.mkdir(parents=True, exist_ok=True)
    for image in images:
        shutil.copy(source / image, folder)
    kept = [json.dumps(one) for one in questions if one["image"] in images]
    (folder / "frames.jsonl").write_text("\n".join(kept) + "\n")


def fleet() -> None:
    """The device folders, as they leave the factory; the first GATED have labelled frames."""
    devices, gated = (int(os.environ[name]) for name in ("DEVICES", "GATED"))
    heldout = Path(os.environ["FRAMES"]) / "heldout"
    for number in range(devices):
        group, place = GROUPS[number % 3], number // 3
        name = f"{group}/camera-{place:03}"
        shutil.copytree(UPDATES / group / "factory", WORK / "new" / name)
        for folder in ("inbox", "refused"):
            (WORK / "field" / name / folder).mkdir(parents=True)
        (WORK / "links" / name).mkdir(parents=True)
        if number < gated:
            take(heldout, WORK / "field" / name / "frames", place, 5)
    for folder in ("known", "sent"):
        for group in GROUPS:
            (WORK / folder / group).mkdir(parents=True)
    (WORK / "new").rename(WORK / "fleet")


# ---------------------------------------------------------------- a day


def day() -> int:
    """The last day that has ended."""
    path = WORK / "day"
    return int(path.read_text()) if path.exists() else 0


def is_on(name: str, today: int) -> bool:
    """Some devices are off for two to six days."""
    drawn = draw("off", name)
    first = drawn.randint(1, 9)
    return drawn.random() >= SPELL or not first <= today <= first + drawn.randint(1, 5)


def known(name: str) -> tuple[int, set[int]]:
    """The sequence that the cloud has last heard of, and the updates that were refused (80)."""
    found = [line for line in lines(WORK / "known" / name) if line["command"] == "apply"]
    refused = {line["sequence"] for line in found if line["exit_code"] == 80}
    return found[-1]["current"]["sequence"] if found else 0, refused


def morning() -> None:
    """Send, and let arrive what is due, unless all devices are known to have all updates."""
    today = day() + 1
    heard = {name: known(name) for name in names()}
    if all(sequence == LAST for sequence, _ in heard.values()):
        (WORK / "over").touch()
        (WORK / "today").write_text("")
        return
    if today > MOST_DAYS:
        sys.exit(f"day {today}: not every device has update {LAST}")
    withdrawn = set()  # a device has refused it, and the round was taken back
    for name, (_, refused) in heard.items():
        withdrawn |= {(name.split("/")[0], one) for one in refused}
    visits = []
    for name, (sequence, _) in heard.items():
        group = name.split("/")[0]
        for update, published in PUBLISHED.items():
            if update > sequence and today >= published and (group, update) not in withdrawn:
                send(name, update, today)
        inbox = WORK / "field" / name / "inbox"
        if not is_on(name, today):
            add_line(WORK / "links.jsonl", {"day": today, "device": name, "event": "off"})
            continue
        for path in sorted((WORK / "links" / name).iterdir()):
            due, _, rest = path.name.partition("-")
            if int(due) <= today:
                path.rename(inbox / rest)
        sampling = today in SAMPLING_DAYS and (inbox.parent / "frames").exists()
        if sampling or any(inbox.iterdir()):
            visits.append(name)
    (WORK / "today").write_text("\n".join(visits))
    sys.stdout.write(f"day {today}: {len(visits)} devices have something to do\n")


def send(name: str, update: int, today: int) -> None:
    """One update into a link that loses, cuts short, delays and repeats."""
    path = WORK / "sent" / name
    sent = json.loads(path.read_text()) if path.exists() else {}
    if today - sent.get(str(update), -RESENT_DAYS) < RESENT_DAYS:
        return
    path.write_text(json.dumps(sent | {str(update): today}))
    drawn, events = draw("link", today, name, update), []
    data = (UPDATES / name.split("/")[0] / "updates" / f"{update}.cdcca").read_bytes()
    for copy in range(2 if drawn.random() < REPEATED else 1):
        events += ["repeated"] if copy else ["sent"]
        if drawn.random() < LOST:
            events.append("lost")
            continue
        due, end = today, len(data)
        if drawn.random() < LATE:
            events.append("late")
            due += drawn.randint(1, 3)
        if drawn.random() < TORN:
            events.append("torn")
            end = drawn.randrange(1, len(data))
        (WORK / "links" / name / f"{due}-{update}-{today}.{copy}.cdcca").write_bytes(data[:end])
    for event in events:
        add_line(WORK / "links.jsonl", {"day": today, "device": name, "event": event})


def visit(name: str) -> None:
    """What a device does on a day: apply what has come, sample, send its log."""
    today = day() + 1
    device, field = WORK / "fleet" / name, WORK / "field" / name
    drawn = draw("visit", today, name)
    frames = field / "frames"
    gate = ["--if-better", frames, "--tolerance", 10, "--threads", 1] if frames.exists() else []
    was_cut = field / "cut"
    first = was_cut.read_text() if was_cut.exists() else None
    for update in sorted((field / "inbox").iterdir(), key=lambda one: (one.name != first, one)):
        command = ["apply", device, update, *gate, "--json", "--quiet"]
        if drawn.random() < POWER_CUT:
            was_cut.write_text(update.name)
            cut(command, device, field, drawn.uniform(0, LATEST_CUT))
            return
        was_cut.unlink(missing_ok=True)
        code = cdcca(command, device)
        if code == 80:
            update.rename(field / "refused" / update.name)
        elif code in (0, 65, 79):  # installed, torn, or old; one that comes too early (78) is kept
            update.unlink()
        elif code != 78:
            sys.exit(f"{name}: {update.name}: exit code {code}")
    if frames.exists() and today in SAMPLING_DAYS:
        outbox = field / f"{today}.tokens"
        cdcca(["sample", frames, "-m", device, "-o", outbox, "--json", "--threads", 1], device)
    if drawn.random() >= LOG_LOST and (device / "log.jsonl").exists():
        shutil.copy(device / "log.jsonl", WORK / "known" / name)


def start(words: list[Any], device: Path) -> "subprocess.Popen[bytes]":
    with (device / "log.jsonl").open("ab") as log:
        command = ["cdcca", *map(str, words)]
        return subprocess.Popen(command, stdout=log, stderr=subprocess.DEVNULL)


def cdcca(words: list[Any], device: Path) -> int:
    began = time.monotonic()
    running = start(words, device)
    _, status, used = os.wait4(running.pid, 0)
    running.returncode = os.waitstatus_to_exitcode(status)
    seconds = round(time.monotonic() - began, 3)
    cost = {"kind": kind_of(words), "seconds": seconds, "max_rss_kb": used.ru_maxrss}
    add_line(WORK / "costs.jsonl", cost)
    return running.returncode


def kind_of(words: list[Any]) -> str:
    return f"{words[0]} --if-better" if "--if-better" in words else str(words[0])


def cut(words: list[Any], device: Path, field: Path, share: float) -> None:
    """Cut the power after this share of the usual time; the folder must be whole afterwards."""
    kind, costs = kind_of(words), lines(WORK / "costs.jsonl")
    lately = [one["seconds"] for one in costs if one["kind"] == kind][-9:]
    seconds = share * (statistics.median(lately) if lately else FIRST_SECONDS)
    running = start(words, device)
    try:
        running.wait(seconds)
    except subprocess.TimeoutExpired:
        running.kill()
    code = running.wait()
    inspect = subprocess.run(["cdcca", "inspect", device, "--json", "--quiet"], capture_output=True)
    is_whole = inspect.returncode == 0
    at = json.loads(inspect.stdout)["sequence"] if is_whole else None
    hit = {"day": day() + 1, "at": at, "was_running": code == -9, "is_whole": is_whole}
    add_line(field / "power.jsonl", hit)


def evening() -> None:
    (WORK / "day").write_text(str(day() + 1))


# ---------------------------------------------------------------- the end

COMPARED = (
    *("device", "group", "sequence", "digest", "uplink_bytes", "downlink_bytes"),
    "num_refusals",
)


def end() -> None:
    """Check that every device is where its group is, and write end.json: what the seed decides."""
    began = time.monotonic()
    shown = subprocess.run(
        ["cdcca", "inspect", WORK / "fleet", "--json"], stdout=subprocess.PIPE, check=True
    ).stdout
    (WORK / "fleet.json").write_bytes(shown)
    seconds = time.monotonic() - began
    found = json.loads(shown)
    faults = [f"left out: {found['left_out']}"] if found["left_out"] else []
    for row in found["devices"]:
        mirror = json.loads((UPDATES / row["group"] / "mirror" / "device.json").read_text())
        wanted = (mirror["current"]["sequence"], mirror["current"]["digest"])
        if (row["sequence"], row["digest"]) != wanted or row["damage"]:
            faults.append(f"{row['group']}/{row['device']}: {row['sequence']} {row['damage']}")
    cuts = [one for name in names() for one in lines(WORK / "field" / name / "power.jsonl")]
    faults += [f"torn by a power cut: {one}" for one in cuts if not one["is_whole"]]
    events = Counter(one["event"] for one in lines(WORK / "links.jsonl"))
    table = []
    for row in found["devices"]:
        refused = sorted((one["exit_code"], one["content"]) for one in row["refusals"])
        table.append([*(row[name] for name in COMPARED), refused])
    refusals = [one["exit_code"] for row in found["devices"] for one in row["refusals"]]
    result = {
        "seed": SEED,
        "devices": len(found["devices"]),
        "groups": {name: group["digests"] for name, group in found["groups"].items()},
        "rounds": LAST,
        "days": day(),
        "links": dict(sorted(events.items())),
        "power_cuts": len(cuts),
        "refusals": {str(code): count for code, count in sorted(Counter(refusals).items())},
        "uplink_bytes": sum(row["uplink_bytes"] for row in found["devices"]),
        "downlink_bytes": sum(row["downlink_bytes"] for row in found["devices"]),
        "table": hashlib.sha256(json.dumps(table).encode()).hexdigest(),
    }
    costs = lines(WORK / "costs.jsonl")

    def count(kind: str) -> dict[str, object]:
        of_kind = [one for one in costs if one["kind"] == kind]
        seconds = round(sum(one["seconds"] for one in of_kind), 1)
        largest = max(one["max_rss_kb"] for one in of_kind) // 1000
        return {"number": len(of_kind), "seconds": seconds, "max_rss_mb": largest}

    chance = {
        "cuts_while_running": sum(one["was_running"] for one in cuts),
        "commands": {kind: count(kind) for kind in sorted({one["kind"] for one in costs})},
        "inspect_seconds": round(seconds, 2),
        "inspect_max_rss_mb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1000,
    }
    sys.stdout.write(f"{json.dumps(result, indent=1)}\n{json.dumps(chance, indent=1)}\n")
    if faults:
        sys.exit("\n".join(faults))
    (WORK / "end.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    verbs = {one.__name__: one for one in (part, fleet, morning, visit, evening, end)}
    verbs[sys.argv[1]](*sys.argv[2:])
