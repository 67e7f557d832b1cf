#!/bin/bash
# Keeps copies of a directory by age: one of every day of a week, one of every week of a month, one of every month.

set -euo pipefail

usage() {
    echo "usage: ${0##*/} SOURCE TARGET [--dry-run]" >&2
    exit 2
}

log() {
    printf '%s %s\n' "$(date +%H:%M:%S)" "$*"
}

copy_name() {
    local when=$1
    date -d "$when" +%Y-%m-%d
}

is_kept() {
    local name=$1 today=$2 age
    age=$((($(date -d "$today" +%s) - $(date -d "$name" +%s)) / 86400))
    if ((age < 7)); then
        return 0
    fi
    if ((age < 31)) && [[ $(date -d "$name" +%u) == 7 ]]; then
        return 0
    fi
    [[ $(date -d "$name" +%d) == 01 ]]
}

main() {
    [[ $# -ge 2 ]] || usage
    local source=$1 target=$2 dry=${3:-} today name
    [[ -d $source ]] || { log "there is no directory $source"; exit 1; }
    today=$(copy_name today)
    if [[ $dry != --dry-run ]]; then
        mkdir -p "$target/$today"
        cp -a "$source/." "$target/$today/"
    fi
    log "copied $source to $target/$today"
    for name in "$target"/????-??-??; do
        [[ -d $name ]] || continue
        if ! is_kept "${name##*/}" "$today"; then
            log "removing ${name##*/}"
            [[ $dry == --dry-run ]] || rm -rf -- "$name"
        fi
    done
}

main "$@"
