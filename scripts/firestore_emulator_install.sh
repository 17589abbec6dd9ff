#!/usr/bin/env bash
# Installs the Firestore emulator for tests, where the Google Cloud CLI has none. Harmless when repeated.
# Prints the path of its jar; needs Java 11 or newer to run.
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
  command -v curl > /dev/null || { echo "curl is not installed: apt-get install curl" >&2; exit 1; }
  mkdir -p "$(dirname "$target")"
  part=$(mktemp "$target.XXXXXX")
  trap 'rm -f "$part"' EXIT
  if ! curl --fail --silent --show-error --location --retry 3 --connect-timeout 20 --output "$part" "$base/$name"; then
    echo "the Firestore emulator could not be downloaded from $base/$name: let this machine reach it, put that file" \
      "at $target, or install the Google Cloud CLI and google-cloud-cli-firestore-emulator" >&2
    exit 1
  fi
  if ! is_whole "$part"; then
    echo "$base/$name has the SHA-256 $(sha256sum < "$part" | cut -d' ' -f1), not $sha256: it was not installed" >&2
    exit 1
  fi
  mv "$part" "$target"
fi
echo "$target"
