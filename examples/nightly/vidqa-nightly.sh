#!/bin/sh
# Run vidqa on an archive once and act on the exit code; docs/operations.md explains each code.
# For cron and systemd: stdout stays empty, and stderr too unless someone has to act.
#
# Settings are variables (crontab lines, or the EnvironmentFile of the service):
#   NIGHTLY_ARCHIVE   folder of the archive                               (required)
#   NIGHTLY_TABLE     the table, such as /var/lib/vidqa/captions.parquet  (required)
#   NIGHTLY_LOG       event log                                           [TABLE.log]
#   NIGHTLY_METRICS   file for the Prometheus textfile collector          [none]
#   NIGHTLY_MAIL      address for reports, which otherwise go to stderr   [none]
#   NIGHTLY_VIDQA     the command                                         [vidqa]
# vidqa's own settings (VIDQA_MODEL, VIDQA_CACHE, a vidqa.toml in the working folder) apply as usual.
#
# Exits with the exit code of vidqa.
set -u

archive=${NIGHTLY_ARCHIVE:?the folder of the archive}
table=${NIGHTLY_TABLE:?the table}
log=${NIGHTLY_LOG:-$table.log}
metrics=${NIGHTLY_METRICS:-}
mail_to=${NIGHTLY_MAIL:-}
vidqa=${NIGHTLY_VIDQA:-vidqa}

output=$(mktemp) || exit 1
trap 'rm -f "$output"' EXIT
# systemd signals every process of a service, vidqa included. This shell only waits, to pass on the exit code.
trap : INT TERM HUP

describe() {
    "$vidqa" describe "$archive" --out "$table" --retry failed --log "$log" ${metrics:+--metrics "$metrics"} \
        >/dev/null 2>"$output"
    code=$?
}

# report SUBJECT: mail or print the subject and everything that the run printed.
report() {
    if [ -n "$mail_to" ] && command -v mail >/dev/null 2>&1; then
        mail -s "$1" "$mail_to" <"$output"
    else
        printf '%s\n' "$1" >&2
        cat "$output" >&2
    fi
}

describe
case $code in
0 | 1 | 2 | 3 | 4 | 130 | 143) ;;
*) # killed (137: out of memory) or crashed; finished rows are kept, so running again is cheap
    printf 'vidqa exited with %s; running it once more\n' "$code" >&2
    describe
    ;;
esac

host=$(uname -n)
last=$(tail -n 1 "$output")
case $code in
0) ;; # every row is there
3)    # some rows failed, which is reported only if the summary line counts new ones, or paths led to no media
    case $last in
    *"path problem"*) report "$last ($host)" ;;
    *"(0 of them new)"*) ;;
    *) report "$last ($host)" ;;
    esac
    ;;
1) report "vidqa on $host: the run failed" ;;           # disk full, no permission, no media: the output explains it
2) report "vidqa on $host: settings or command line" ;; # nothing was done, and the next run would fail the same way
4)                                                      # the previous run is still active: fine, unless it takes days
    lock=$(dirname "$table")/.$(basename "$table").lock
    if [ -n "$(find "$lock" -mmin +2880 2>/dev/null)" ]; then
        report "vidqa on $host: a run has held $table for two days"
    fi
    ;;
130 | 143) ;; # interrupted, for example by a shutdown; the next run continues
*) report "vidqa on $host: exited with $code twice" ;;
esac
exit "$code"
