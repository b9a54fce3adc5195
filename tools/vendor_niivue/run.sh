#!/bin/sh
# Rebuild unisegdiff_pipeline/reports/assets/niivue.min.js and niivue.LICENSE.txt from the npm registry.
# npm checks every package against the checksums in package-lock.json; the same versions give the same bytes.
# With --check: only say whether the files in the repository are what the registry's packages give.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
assets=$here/../../unisegdiff_pipeline/reports/assets
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp "$here"/*.js "$here"/*.mjs "$here"/*.json "$here"/*.txt "$work"
cd "$work"
npm ci --ignore-scripts --no-audit --no-fund
mkdir built
node build.mjs built
for file in niivue.min.js niivue.LICENSE.txt; do
    if [ "${1:-}" = --check ]; then
        cmp "built/$file" "$assets/$file"
    else
        cp "built/$file" "$assets/$file"
    fi
done
ls -l "$assets"/niivue.*
