#!/bin/sh
# Describes an archive once, and acts on how that ended: what to do for each exit code is in docs/operations.md.
# For cron and for systemd; stdout stays empty, and stderr too when there is nothing that a person should know.
#
# Settings are variables (crontab lines, or the EnvironmentFile of the service):
#   NIGHTLY_ARCHIVE   folder of the archive                              (must be set)
#   NIGHTLY_TABLE     the table, as in /var/lib/vidqa/captions.parquet   (must be set)
#   NIGHTLY_LOG       gets a line for every event                        [TABLE.log]
#   NIGHTLY_METRICS   file for Prometheus' textfile collector            [none]
#   NIGHTLY_MAIL      address for news; without it they go to stderr, which cron mails and systemd keeps   [none]
#   NIGHTLY_VIDQA     the command                                        [vidqa]
# All that vidqa itself knows (VIDQA_MODEL, VIDQA_CACHE, a vidqa.toml in the working folder) works as ever.
#
# Exits with vidqa's own code.
set -u

archive=${NIGHTLY_ARCHIVE:?the folder of the archive}
table=${NIGHTLY_TABLE:?the table}
log=${NIGHTLY_LOG:-$table.log}
metrics=${NIGHTLY_METRICS:-}
mail_to=${NIGHTLY_MAIL:-}
vidqa=${NIGHTLY_VIDQA:-vidqa}

said=$(mktemp) || exit 1
trap 'rm -f "$said"' EXIT
# A signal to all processes of a service reaches vidqa by itself. This shell only waits, so that its code is not lost.
trap : INT TERM HUP

describe() {
    "$vidqa" describe "$archive" --out "$table" --retry failed --log "$log" ${metrics:+--metrics "$metrics"} \
        >/dev/null 2>"$said"
    code=$?
}

# tell SUBJECT: news for a person, with all that the run said.
tell() {
    if [ -n "$mail_to" ] && command -v mail >/dev/null 2>&1; then
        mail -s "$1" "$mail_to" <"$said"
    else
        printf '%s\n' "$1" >&2
        cat "$said" >&2
    fi
}

describe
case $code in
0 | 1 | 2 | 3 | 4 | 130 | 143) ;;
*) # killed from outside (137: out of memory), or crashed: what was finished is kept, so once more costs little
    printf 'vidqa ended with %s; it runs once more\n' "$code" >&2
    describe
    ;;
esac

host=$(uname -n)
last=$(tail -n 1 "$said")
case $code in
0) ;; # all rows are there: silence
3) # done, some items failed: the summary line says how many. Those that failed in earlier nights, too, are no news
    case $last in
    *"(0 of them new)"*) ;;
    *) tell "$last ($host)" ;;
    esac
    ;;
1) tell "vidqa on $host: the run failed" ;;           # no room, no rights, no media: the text says what to do
2) tell "vidqa on $host: settings or command line" ;; # nothing was done, and tomorrow will be the same: mend it
4)                                                    # the run of last night is not done yet: fine, unless for long
    lock=$(dirname "$table")/.$(basename "$table").lock
    if [ -n "$(find "$lock" -mmin +2880 2>/dev/null)" ]; then
        tell "vidqa on $host: a run holds $table for two days"
    fi
    ;;
130 | 143) ;; # interrupted, as by a shutdown: what was finished is in the table, the next night goes on
*) tell "vidqa on $host: ended with $code twice" ;;
esac
exit "$code"
