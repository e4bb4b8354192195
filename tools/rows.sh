# Functions of the scripts that make the tables of the pages in configs/. The scripts set
#   here   folder of the tools
#   runs   folder of the runs
#   print  not empty to print commands and run nothing
#   rows   names of the rows; `row NAME` makes one
# FLAGS in the environment holds further flags of every training.
# shellcheck shell=bash disable=SC2154

# train_row ROW TOOL [FLAG ...]: trains, goes on after an interruption, or finds it finished.
train_row() {
    local run=$runs/$1 tool=$2
    shift 2
    # shellcheck disable=SC2206 # FLAGS is meant to be split into words
    local command=(python "$here/$tool" --run-dir "$run" "$@" ${FLAGS:-})
    if [ -z "$print" ] && [ -f "$run/evaluation/metrics.json" ]; then
        echo "$run is finished"
        return
    elif [ -z "$print" ] && [ -f "$run/checkpoints/last.ckpt" ]; then
        command+=(--resume)
    fi
    printf '%q ' "${command[@]}" && echo
    [ -n "$print" ] || "${command[@]}"
}

unknown() {
    echo "there is no row $1; known: ${rows[*]}" >&2
    exit 2
}

# each [ROW ...]: all of them where none is named.
each() {
    local name
    for name in "${@:-${rows[@]}}"; do
        row "$name"
    done
}
