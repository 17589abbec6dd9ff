#!/usr/bin/env bash
# Install the Firestore emulator for tests unless the Google Cloud CLI has it, and print the path of its jar.
# Safe to repeat. The emulator needs Java 11 or newer to run.
set -euo pipefail

version=1.19.8
sha256=9d43599ed6151199e8d604dc87fac51218e49e5f3a48519b1ae560bbe5e3382d
base=${FIRESTORE_EMULATOR_DOWNLOADS:-https://storage.googleapis.com/firebase-preview-drop/emulator}
name=cloud-firestore-emulator-v$version.jar
target=${XDG_CACHE_HOME:-$HOME/.cache}/celery-statemanager/$name

if command -v gcloud > /dev/null; then
  installed=$(gcloud info --format='value(installation.sdk_root)')/platform/cloud-firestore-emulator/cloud-firestore-emulator.jar
  if [[ -f $installed ]]; then
    echo "$installed"
    exit
  fi
fi

is_whole() { echo "$sha256  $1" | sha256sum --check --status; }

if [[ ! -f $target ]] || ! is_whole "$target"; then
  command -v curl > /dev/null || { echo "curl is not installed; on Debian and Ubuntu, install it with: apt-get install curl" >&2; exit 1; }
  mkdir -p "$(dirname "$target")"
  part=$(mktemp "$target.XXXXXX")
  trap 'rm -f "$part"' EXIT
  if ! curl --fail --silent --show-error --location --retry 3 --connect-timeout 20 --output "$part" "$base/$name"; then
    echo "cannot download the Firestore emulator from $base/$name; allow access to it, put the file" \
      "at $target, or install the Google Cloud CLI and google-cloud-cli-firestore-emulator" >&2
    exit 1
  fi
  if ! is_whole "$part"; then
    echo "not installed: $base/$name has the SHA-256 $(sha256sum < "$part" | cut -d' ' -f1) instead of $sha256" >&2
    exit 1
  fi
  mv "$part" "$target"
fi
echo "$target"
