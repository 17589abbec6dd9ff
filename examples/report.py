"""Merge and print the results of an audit."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

TOP = 5


def make_report(results: Path, shards: int, failed: Sequence[int] = ()) -> Path:
    """Merge the results of all shards but the failed ones into ``report.json``, and return its path."""
    complete = [path for path in sorted(results.glob("shard-*.json")) if shard_of(path) not in failed]
    entries = [each for path in complete for each in load(path)]
    by_type: Counter[str] = Counter()
    by_content: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for each in entries:
        by_type[each["type"]] += each["bytes"]
        by_content[each["sha256"]].append(each)
    copies = [group for group in by_content.values() if len(group) > 1 and group[0]["bytes"]]
    copies.sort(key=lambda group: -group[0]["bytes"] * (len(group) - 1))
    report = {
        "files": len(entries),
        "bytes": sum(each["bytes"] for each in entries),
        "shards": shards,
        "failed_shards": list(failed),
        "largest": sorted(entries, key=lambda each: -each["bytes"])[:TOP],
        "duplicates": [{"bytes": group[0]["bytes"], "paths": [each["path"] for each in group]} for group in copies],
        "bytes_by_type": dict(by_type.most_common()),
    }
    path = results / "report.json"
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(report, indent=1), encoding="utf-8")
    return draft.replace(path)


def shard_of(path: Path) -> int:
    """Return the row that wrote a shard's file."""
    return int(path.stem.partition("-")[2])


def load(path: Path) -> list[dict[str, Any]]:
    """Return the entries of a shard's file."""
    entries: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return entries


def lines(report: dict[str, Any], root: str) -> Iterator[str]:
    """Yield a report as lines of text. Paths below ``root`` are relative to it."""

    def short(path: str, columns: int = 64) -> str:
        shown = str(Path(path).relative_to(root)) if Path(path).is_relative_to(root) else path
        return shown if len(shown) <= columns else f"…{shown[1 - columns :]}"

    missing = f"  (without failed shards {report['failed_shards']})" if report["failed_shards"] else ""
    yield f"{report['files']:,} files, {size(report['bytes'])} in {report['shards']} shards{missing}"
    yield ""
    yield "Largest files"
    for each in report["largest"]:
        yield f"  {size(each['bytes']):>10}  {short(each['path'])}"
    wasted = sum(each["bytes"] * (len(each["paths"]) - 1) for each in report["duplicates"])
    yield ""
    yield f"Duplicates by content: {len(report['duplicates'])} groups, {size(wasted)} in copies"
    for each in report["duplicates"][:TOP]:
        times = f"{len(each['paths'])} × "
        yield f"  {size(each['bytes']):>10}  {times}{short(each['paths'][0], 64 - len(times))}"
    yield ""
    yield "Bytes by type"
    for kind, count in list(report["bytes_by_type"].items())[:TOP]:
        yield f"  {size(count):>10}  {kind}"


def size(count: float) -> str:
    """Return a number of bytes with a unit, such as ``1.5 MiB``."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
