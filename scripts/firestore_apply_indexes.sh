#!/usr/bin/env bash
# Create the indexes and exemptions of firestore.indexes.json that are missing in a database. Safe to repeat.
# Usage: firestore_apply_indexes.sh PROJECT_ID [DATABASE] [COLLECTION]
set -euo pipefail

project=${1:?"usage: $0 PROJECT_ID [DATABASE] [COLLECTION]"}
database=${2:-"(default)"}
collection=${3:-jobs}
file=$(dirname "$0")/../firestore.indexes.json

for program in gcloud python3; do
  command -v "$program" >/dev/null || {
    echo "$program is not installed; for gcloud see https://cloud.google.com/sdk/docs/install" >&2
    exit 1
  }
done

there=$(mktemp -d)
trap 'rm -rf "$there"' EXIT
where=(--project="$project" --database="$database" --quiet)
gcloud firestore indexes composite list "${where[@]}" --format=json >"$there/composite"
gcloud firestore indexes fields list "${where[@]}" --format=json >"$there/fields"

# Each line of the output is one command, its words separated by tabs.
python3 - "$file" "$there" "$collection" >"$there/missing" <<'PYTHON'
import json, sys

wanted, there, collection = json.load(open(sys.argv[1])), sys.argv[2], sys.argv[3]


def group(name):
    return {"jobs": collection, "jobs_workers": f"{collection}_workers"}.get(name, name)


def found(kind):
    return json.loads(open(f"{there}/{kind}").read().strip() or "[]")


def group_in(name):
    return name.split("/collectionGroups/")[1].split("/")[0]


def paths(index):
    return tuple(field["fieldPath"] for field in index["fields"] if field["fieldPath"] != "__name__")


composite = {(group_in(each["name"]), paths(each)) for each in found("composite")}
for index in wanted["indexes"]:
    if (group(index["collectionGroup"]), paths(index)) not in composite:
        fields = [f"--field-config=field-path={path},order=ascending" for path in paths(index)]
        scope = "--query-scope=" + index["queryScope"].lower()
        print("composite", "create", f"--collection-group={group(index['collectionGroup'])}", scope, *fields, sep="\t")

single = {}
for each in found("fields"):
    indexes = each.get("indexConfig", {}).get("indexes", [])
    single[group_in(each["name"]), each["name"].rpartition("/")[2]] = {index["queryScope"] for index in indexes}
for field in wanted["fieldOverrides"]:
    place = group(field["collectionGroup"]), field["fieldPath"]
    scopes = {index["queryScope"]: index["order"].lower() for index in field["indexes"]}
    if single.get(place) != set(scopes):
        how = [f"--index=order={order},query-scope={scope.lower().replace('_', '-')}" for scope, order in scopes.items()]
        print("fields", "update", place[1], f"--collection-group={place[0]}", *(how or ["--disable-indexes"]), sep="\t")
PYTHON

while IFS=$'\t' read -r -a words; do
  gcloud firestore indexes "${words[@]}" "${where[@]}" --async </dev/null
done <"$there/missing"
echo "$(wc -l <"$there/missing") indexes and exemptions were missing in database $database of $project"
