#!/bin/sh
# Install each extra in a fresh environment and let tools/smoke.py do something real with it: `pip check` does not see,
# for one, a torchvision that does not match torch. At the end a table. A quarter of an hour; of vision, 6 GB.
#
#     tools/smoke_extras.sh [EXTRA…]
set -u
root=$(cd "$(dirname "$0")/.." && pwd)
extras='import sys, tomllib; print(*tomllib.load(open(sys.argv[1], "rb"))["project"]["optional-dependencies"])'
[ $# -gt 0 ] || set -- $(python3 -c "$extras" "$root/pyproject.toml")
table='' failed=0 place=''
trap 'rm -rf "$place"' EXIT
trap 'exit 1' INT TERM
for extra; do
    place=$(mktemp -d)
    case $extra in
        # torchvision's wheels go with the torch of the same index alone: the newest of each
        vision) pins= ;;
        *) pins="--constraint $root/constraints.txt" ;;
    esac
    if ! { python3 -m venv "$place/env" && "$place/env/bin/pip" install -q --no-compile $pins "$root[$extra]"; } >"$place/log" 2>&1; then
        told="not installed: $(tail -n 1 "$place/log")" failed=1
    elif ! (cd "$place" && TMPDIR=$place env/bin/python -I "$root/tools/smoke.py" "$extra") >"$place/log" 2>&1; then
        told="not sound: $(tail -n 1 "$place/log")" failed=1
    else
        told=sound
    fi
    echo "$extra: $told" >&2
    [ "$told" = sound ] || cat "$place/log" >&2
    table="$table$extra | $told
"
    rm -rf "$place"
done
printf '\n%s' "$table"
exit $failed
