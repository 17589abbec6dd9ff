#!/usr/bin/env bash
# Run the Firestore emulator until Ctrl-C or SIGTERM, and stop all of its processes then.
# Usage: firestore_emulator.sh [HOST:PORT]
set -euo pipefail

host_port=${1:-localhost:8787}

command -v gcloud >/dev/null || {
  echo "gcloud is not installed; see https://cloud.google.com/sdk/docs/install" >&2
  exit 1
}
command -v java >/dev/null || {
  echo "Java is not installed; on Debian and Ubuntu, install it with: apt-get install default-jre-headless" >&2
  exit 1
}

echo "export FIRESTORE_EMULATOR_HOST=$host_port"
set -m # a separate process group, because gcloud does not forward signals to the emulator
gcloud emulators firestore start --host-port="$host_port" &
trap 'kill -TERM -- "-$!" 2>/dev/null || true' EXIT
trap 'exit 143' TERM INT HUP
wait "$!"
