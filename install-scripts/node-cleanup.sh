#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Takes Waylay off a node whose agent is gone: our entry out of every CNI configuration, then the binary and the sockets.
# Needs sh, awk and the usual small tools, no JSON tool: our entry is found by reading the JSON as characters, and outside it
# no byte changes. Where the image can still run, `install-cni uninstall` does the same.
# Without -e: one file that cannot be cleaned keeps none of the others from it, and each failure is told.
set -u
export LC_ALL=C

usage() {
    cat <<'END'
usage: node-cleanup.sh [--dry-run] [--root DIR] [--cni-conf-dir DIR]... [--cni-bin-dir DIR]... [--run-dir DIR]
                       [--keep-binary] [--force]

Removes the istio-cni entry from the CNI configurations of this node, files that Waylay wrote alone, what an interrupted
agent left, the plugin's binary, the agent's sockets and its records. Running it again changes nothing.

  --root DIR          the node's root directory, / by default
  --cni-conf-dir DIR  below the root; /etc/cni/net.d by default; may be given more than once
  --cni-bin-dir DIR   below the root; /opt/cni/bin by default; may be given more than once
  --run-dir DIR       below the root; /var/run/istio-cni by default
  --keep-binary       leave the plugin: CRI-O and Multus call it once more for each pod that was started with it
  --force             also while a process install-cni runs, which would put everything back
  --dry-run           say what would be done
  --help              this text

Exit status: 0 clean, 1 something was left (said on stderr), 64 wrong usage.
END
}

dry_run='' root='' conf_dirs='' bin_dirs='' run_dir=/var/run/istio-cni keep_binary='' force='' status=0

say() { printf 'node-cleanup: %s\n' "$*"; }
trouble() {
    printf 'node-cleanup: error: %s\n' "$*" >&2
    status=1
}
misuse() {
    printf 'node-cleanup: %s; see --help\n' "$*" >&2
    exit 64
}

while [ $# -gt 0 ]; do
    case $1 in
        --root | --cni-conf-dir | --cni-bin-dir | --run-dir) [ $# -ge 2 ] || misuse "$1 needs a value" ;;
    esac
    case $1 in
        --dry-run) dry_run=1 ;;
        --keep-binary) keep_binary=1 ;;
        --force) force=1 ;;
        --root) root=${2%/} && shift ;;
        # One to a line: paths with blanks stay whole.
        --cni-conf-dir) conf_dirs="$conf_dirs$2
" && shift ;;
        --cni-bin-dir) bin_dirs="$bin_dirs$2
" && shift ;;
        --run-dir) run_dir=$2 && shift ;;
        --help | -h)
            usage
            exit 0
            ;;
        *) misuse "unknown argument $1" ;;
    esac
    shift
done
[ -n "$conf_dirs" ] || conf_dirs=/etc/cni/net.d
[ -n "$bin_dirs" ] || bin_dirs=/opt/cni/bin

# Reads one configuration on stdin, closed by an extra "x" that keeps the last line end. Prints one word and, for some, a
# value: "same"; "delete" (Waylay wrote all of it); "foreign" (nothing but our type, written by somebody else); "edit"; "single NAME" (made of that single configuration); "link TARGET" and
# "single-link NAME TARGET" (a symbolic link was there); "broken WHY". With want=text it prints the new text instead.
# shellcheck disable=SC2016 # awk's own $
reader='
function broken(why) { print "broken " why; failed = 1; exit }
function blank() { while (index(" \t\r\n", substr(text, at, 1)) && at <= size) at++ }
# The string at `at`, as it is written, without its quotes; `at` is then behind it.
function string(   from, c) {
    if (substr(text, at, 1) != "\"") broken("a string was expected at byte " at)
    from = ++at
    while (at <= size && (c = substr(text, at, 1)) != "\"") at += c == "\\" ? 2 : 1
    if (at > size) broken("a string does not end")
    at++
    return substr(text, from, at - from - 1)
}
# Skip the value at `at`. Brackets in strings do not count.
function value(   depth, c, from) {
    blank(); depth = 0; from = at
    while (at <= size) {
        c = substr(text, at, 1)
        if (c == "\"") { string(); if (!depth) return; continue }
        if (!depth && at > from && index(",]} \t\r\n", c)) return
        if (c == "{" || c == "[") depth++
        if (c == "}" || c == "]") { if (--depth == 0) { at++; return }; if (depth < 0) break }
        at++
    }
    broken("a value does not end")
}
# The string values of the object at `at`, into found[]; other values are skipped. Where "plugins" begins is kept.
function object(found,   key, from) {
    if (substr(text, at, 1) != "{") broken("an object was expected at byte " at)
    at++; blank()
    while (substr(text, at, 1) != "}") {
        key = string(); blank()
        if (substr(text, at, 1) != ":") broken("a colon was expected at byte " at)
        at++; blank(); from = at
        if (substr(text, at, 1) == "\"") found[key] = string()
        else { value(); if (key == "waylay_standalone") found[key] = substr(text, from, at - from) }
        if (key == "plugins" && top) { if (plugins) broken("it has plugins twice"); plugins = from }
        blank()
        if (substr(text, at, 1) == ",") { at++; blank() }
        else if (substr(text, at, 1) != "}") broken("a comma was expected at byte " at)
    }
    at++
}
{ text = text separator $0; separator = "\n" }
END {
    if (failed) exit
    text = substr(text, 1, length(text) - 1); size = length(text); at = 1; top = 1
    blank(); object(head); top = 0
    if ("type" in head) {
        if (head["type"] != "istio-cni") print "same"
        else print head["waylay_standalone"] == "true" ? "delete" : "foreign"
        exit
    }
    if (!plugins) { print "same"; exit }
    if (substr(text, plugins, 1) != "[") broken("plugins is no list")
    at = plugins + 1; blank(); count = first = others = 0
    while (substr(text, at, 1) != "]") {
        start[++count] = at; split("", entry); object(entry); end[count] = at
        if (entry["type"] == "istio-cni") {
            ours[count] = 1; mine++
            from_name = entry["waylay_converted_from"]; copy = entry["waylay_copy_of"]; link = entry["waylay_link"]
        } else { others++; if (!first) first = count }
        blank()
        if (substr(text, at, 1) == ",") { at++; blank() }
        else if (substr(text, at, 1) != "]") broken("a comma was expected at byte " at)
    }
    close_at = at
    if (!mine) { print "same"; exit }
    if (copy != "") { print "delete"; exit }
    if (!others) { print "foreign"; exit }
    # Our entry goes with the comma before it, or, before all others, with the one after it.
    kept = ""; from = 1
    for (i = 1; i <= count; i++) if (ours[i]) {
        cut = i > first ? end[i - 1] : start[i]; upto = i > first ? end[i] : start[i + 1]
        kept = kept substr(text, from, cut - from); from = upto
        removed += upto - cut
    }
    kept = kept substr(text, from)
    if (from_name link ~ /[\\\n]/ || from_name ~ /\//) broken("what its entry says of its origin cannot be used")
    single = from_name != "" && others == 1
    if (single) kept = substr(kept, plugins + 1, close_at - removed - plugins - 1)
    if (want == "text") { printf "%s", kept; exit }
    if (single && link != "") print "single-link " from_name " " link
    else if (single) print "single " from_name
    else if (link != "") print "link " link
    else print "edit"
}'

read_conf() { # FILE WANT
    { cat "$1" && printf x; } | awk -v want="$2" "$reader"
}

doing() {
    if [ -n "$dry_run" ]; then say "would $*"; else say "$*"; fi
    [ -z "$dry_run" ]
}

# The new text under a name that no runtime loads, then one rename: at no instant is there half a file.
replace() { # FROM TO
    temporary=${2%/*}/.waylay-cleanup.$$
    # Mode and owner are the old ones.
    if cp -p "$1" "$temporary" && read_conf "$1" text >"$temporary" && sync && mv -f "$temporary" "$2"; then
        return 0
    fi
    rm -f "$temporary"
    trouble "$2: cannot be written"
    return 1
}

relink() { # TARGET LINK
    if ln -s "$1" "$2.waylay-cleanup" && mv -f "$2.waylay-cleanup" "$2"; then
        return 0
    fi
    rm -f "$2.waylay-cleanup"
    trouble "$2: cannot be made a link to $1"
    return 1
}

# A single configuration that is there again is its writer's, or an interrupted removal's.
exists() { [ -e "$1" ] || [ -L "$1" ]; }

# What killed agents and killed clean-ups left; no runtime reads files of such names.
sweep() { # DIRECTORY
    for leftover in "$1"/*.waylay-tmp-* "$1"/.*.waylay-tmp-* "$1"/.waylay-cleanup.* "$1"/*.waylay-cleanup; do
        if exists "$leftover"; then
            doing "remove $leftover" && { rm -f "$leftover" || trouble "$leftover: cannot be removed"; }
        fi
    done
}

clean_conf() { # FILE
    if ! plan=$(read_conf "$1" plan); then
        trouble "$1: cannot be read"
        return
    fi
    parent=${1%/*}
    case $plan in
        same) return ;;
        broken*)
            # A file that does not name us is somebody else's trouble.
            if grep -q 'istio-cni' "$1"; then
                trouble "$1: names istio-cni and is left as it is: ${plan#broken }; remove the entry by hand"
            fi
            return
            ;;
    esac
    if [ -L "$1" ]; then
        trouble "$1: a symbolic link to a file with our entry; call again for the directory of that file"
        return
    fi
    case $plan in
        foreign) say "$1: names nothing but istio-cni, was not written by Waylay, and stays" ;;
        delete) doing "remove $1" && { rm -f "$1" || trouble "$1: cannot be removed"; } ;;
        edit) doing "take our entry out of $1" && replace "$1" "$1" ;;
        link\ *) doing "make $1 the link to ${plan#link } again" && relink "${plan#link }" "$1" ;;
        single-link\ *)
            rest=${plan#single-link }
            if doing "make $1 the link ${rest%% *} again"; then
                if exists "$parent/${rest%% *}" || relink "${rest#* }" "$parent/${rest%% *}"; then rm -f "$1"; fi
            fi
            ;;
        single\ *)
            if doing "make $1 the single configuration ${plan#single } again"; then
                if exists "$parent/${plan#single }" || replace "$1" "$parent/${plan#single }"; then rm -f "$1"; fi
            fi
            ;;
        *) trouble "$1: awk said: $plan" ;;
    esac
}

agent_runs() {
    for comm in "$root"/proc/[0-9]*/comm; do
        # Processes end while they are looked at.
        [ -r "$comm" ] && [ "$(cat "$comm" 2>/dev/null)" = install-cni ] && return 0
    done
    return 1
}

if [ -z "$force" ] && agent_runs; then
    trouble "an agent (process install-cni) runs on this node and would put everything back; end it first, or use --force"
    exit 1
fi

# First the configuration, then the binary: CRI-O drops a whole configuration whose binary is missing.
while IFS= read -r directory; do
    if [ -z "$directory" ] || [ ! -d "$root$directory" ]; then continue; fi
    for file in "$root$directory"/*.conf "$root$directory"/*.conflist "$root$directory"/*.json "$root$directory"/.*.conf \
        "$root$directory"/.*.conflist; do
        [ -f "$file" ] && clean_conf "$file"
    done
    sweep "$root$directory"
done <<END
$conf_dirs
END

if [ "$status" -ne 0 ]; then
    trouble "the binary stays: a configuration may still name it"
elif [ -z "$keep_binary" ]; then
    while IFS= read -r directory; do
        file=$root$directory/istio-cni
        if [ -z "$directory" ] || [ ! -d "$root$directory" ]; then continue; fi
        if [ -f "$file" ] && grep -q 'CNI plugin istio-cni [^ ]* (Waylay)' "$file"; then
            doing "remove $file" && { rm -f "$file" || trouble "$file: cannot be removed"; }
        elif [ -f "$file" ]; then
            say "$file: not Waylay's, and stays"
        fi
        sweep "$root$directory"
    done <<END
$bin_dirs
END
fi

for file in "$root$run_dir"/waylay.sock* "$root$run_dir"/waylay-notice.sock* "$root$run_dir"/waylay-admin.sock*; do
    if [ -S "$file" ]; then
        doing "remove $file" && { rm -f "$file" || trouble "$file: cannot be removed"; }
    fi
done
# What was known of pods that were redirected: an agent that comes later must not miss the others.
for file in "$root$run_dir"/since "$root$run_dir"/sandboxes "$root$run_dir"/.sandboxes.gone; do
    if [ -e "$file" ]; then
        doing "remove $file" && { rm -rf "$file" || trouble "$file: cannot be removed"; }
    fi
done
if [ -z "$dry_run" ] && [ -d "$root$run_dir" ]; then
    # Only when nothing of others is in it.
    rmdir "$root$run_dir" 2>/dev/null || :
fi
exit "$status"
