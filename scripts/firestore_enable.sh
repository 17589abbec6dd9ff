#!/usr/bin/env bash
# Enable the Firestore API of a project and create its database. Safe to repeat.
# Usage: firestore_enable.sh PROJECT_ID REGION [DATABASE]
set -euo pipefail

project=${1:?"usage: $0 PROJECT_ID REGION [DATABASE]"}
region=${2:?"usage: $0 PROJECT_ID REGION [DATABASE] (a region like europe-west1, or nam5, eur3)"}
database=${3:-"(default)"}

command -v gcloud >/dev/null || {
  echo "gcloud is not installed; see https://cloud.google.com/sdk/docs/install" >&2
  exit 1
}

gcloud services enable firestore.googleapis.com --project="$project" --quiet

if gcloud firestore databases describe --database="$database" --project="$project" --quiet >/dev/null 2>&1; then
  echo "database $database of $project already exists"
else
  gcloud firestore databases create --database="$database" --location="$region" --type=firestore-native \
    --project="$project" --quiet
fi
