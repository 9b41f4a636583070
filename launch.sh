#!/usr/bin/env bash
# The front door: keeps a Python environment beside itself and runs one yolods word in it.
set -euo pipefail

# A stream that is closed would be given to the next file that is opened.
{ : 3<&0; } 2>/dev/null || exec </dev/null
{ : 3>&1; } 2>/dev/null || exec >/dev/null
{ : 3>&2; } 2>/dev/null || exec 2>/dev/null
# Another Python's standard library is of no use to this one, which would not even start.
unset PYTHONHOME

root=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")
venv=$root/.venv
log=$venv/install.log
mark=$venv/yolods.begun  # names the checkout whose launch.sh made the folder, and so may empty it
stamp=$venv/yolods.stamp # written last: without it an install has not finished
chosen=$venv/yolods.torch # the build of torch that was asked for, as a word of YOLODS_TORCH

usage() {
    cat <<'EOF'
usage: ./launch.sh [WORD [ARGUMENT ...]]

  ./launch.sh                 train the embedded demo on this machine, and say where its results lie
  ./launch.sh test            run the test suite, in two lanes side by side
  ./launch.sh test --fast     run its quick part: unit tests that start no process
  ./launch.sh test ARG ...    run pytest with these arguments; paths in them count from the repository
  ./launch.sh WORD [ARG ...]  run a yolods word, such as train, val, plan, export, pack or doctor; WORD --help lists what it takes
  ./launch.sh help            this text

The first start makes .venv beside launch.sh and installs into it what setup.py asks for, in the versions that
constraints.txt names. Later starts use it as it is, until one of the two files changes.

  HOSTFILE=path ./launch.sh WORD ...    the same as ./launch.sh WORD ... --hostfile path
  YOLODS_TORCH=BUILD ./launch.sh ...    install this build of torch, from PyTorch's own index: cpu, or cu126 and the like;
                                        or any build for CUDA that pip finds: cuda. Unset: cuda where there is an NVIDIA
                                        driver, else what pip finds; and what is installed stays as it is
EOF
}

say() { printf 'yolods: %s\n' "$*" >&2 || :; } # a screen that is full ends nothing

# Sets `python` to the first interpreter on the PATH that can make the environment.
# Every match counts, not only the first: a system Python without its venv module may hide one that has it.
find_python() {
    local path rejected="" status
    while IFS= read -r path; do
        status=0
        "$path" -c 'import sys; sys.version_info >= (3, 10) or sys.exit(3); import ensurepip, venv' 2>/dev/null || status=$?
        case $status in
            0) python=$path && return ;;
            1) rejected+="; $path has no venv module (Debian and Ubuntu: apt install python3-venv)" ;;
            3) rejected+="; $path is older" ;;
        esac
    done < <(type -aP python3 python3.14 python3.13 python3.12 python3.11 python3.10)
    say "needs Python 3.10 or newer with its venv module, and found none on the PATH$rejected"
    exit 2
}

# ready EXTRAS: whether the environment is finished, belongs to this folder, and holds what the two files ask for now.
ready() {
    [[ -x $venv/bin/python && -f $stamp ]] || return 1
    local extras sum place
    IFS='|' read -r extras sum place <"$stamp"
    [[ $place == "$root" && $sum == "$(wanted)" ]] && [[ $extras == "$1" || $extras == test ]] && has_build
}

# Whether the build of torch that is asked for is there; whatever there is will do where none is.
has_build() { [[ -z ${YOLODS_TORCH:-} ]] || [[ -f $chosen && $(<"$chosen") == "$YOLODS_TORCH" ]]; }

has_driver() { command -v nvidia-smi >/dev/null; }

# choose_torch: sets `build` to the build of torch to install, empty for what pip finds first.
# An update keeps the build of the install before it.
choose_torch() {
    build=${YOLODS_TORCH:-}
    [[ -n $build || ! -f $chosen ]] || build=$(<"$chosen")
    if [[ -z $build ]] && has_driver; then
        build=cuda
        say "there is an NVIDIA driver, so this installs a torch for CUDA; YOLODS_TORCH=cpu asks for one without"
    fi
    [[ -z $build || $build =~ ^(cpu|cuda|cu[0-9]{3})$ ]] && return
    say "YOLODS_TORCH=$build: there are cpu, cuda, and cu with three digits, such as cu126"
    exit 2
}

# build_options BUILD: sets `options` to what pip needs to take this build of torch and torchvision, and no other.
# To pip a build with a suffix is newer than the same version without: +cpu wins wherever it is offered, so where CUDA
# is wanted it is ruled out, whatever else there is.
build_options() {
    options=()
    [[ -n $1 ]] || return 0
    local package version relation="==" suffix=$1
    [[ $1 != cuda ]] || { relation="!=" && suffix=cpu; }
    while IFS="=" read -r package _ version; do
        [[ $package == torch || $package == torchvision ]] && echo "$package$relation$version+$suffix"
    done <"$root/constraints.txt" >"$chosen.txt" || :
    options=(-c "$chosen.txt")
    [[ $1 == cuda ]] || options+=(--extra-index-url "https://download.pytorch.org/whl/$1")
}

# tell_gpus: with an NVIDIA driver, whether the torch that was installed can use it.
tell_gpus() {
    "$venv/bin/python" -I -c '
import torch
count, build = torch.cuda.device_count() if torch.cuda.is_available() else 0, f"torch {torch.__version__}"
if count:
    print(f"yolods: {build} sees {count} GPU{(count > 1) * chr(115)}")
elif torch.version.cuda is None:
    print(f"yolods: {build} is not for CUDA, so it uses no GPU; YOLODS_TORCH=cuda ./launch.sh ... installs one that is")
else:
    print(f"yolods: {build}, for CUDA {torch.version.cuda}, sees no GPU. Does nvidia-smi list one, and is the CUDA version "
          "that it shows as new? Otherwise a new driver is needed, or an older build, such as YOLODS_TORCH=cu126")
' >&2 || :
}

wanted() { cat -- "$root/setup.py" "$root/constraints.txt" | cksum; }

# An environment does not survive being moved, so it can only be brought up to date where it was made.
finished_here() { [[ -x $venv/bin/python && -f $stamp ]] && [[ $(<"$stamp") == *"|$root" ]]; }

# Whether this checkout made the environment. Behind a link there may be another checkout's, which is not emptied.
own() { [[ -e $mark ]] && [[ ! -L $venv || $(<"$mark") == "$root" ]]; }

# Shows the latest line of what pip prints, on one line of the screen.
show_progress() {
    [[ -t 2 ]] || { cat >/dev/null && return; }
    local line columns=${COLUMNS:-}
    [[ $columns =~ ^[1-9][0-9]{0,3}$ && $columns -gt 4 ]] || columns=80
    while IFS= read -r line; do
        printf '\r\033[K  %s' "${line:0:$((columns - 4))}" >&2
    done
    printf '\r\033[K' >&2
}

# run_pip TARGET [OPTION ...]: makes the environment where there is none and installs into it.
run_pip() {
    cd -- "$root" || return
    unset PIP_USER PIP_TARGET PIP_PREFIX PIP_ROOT # they would have pip install into another place than .venv
    # venv refuses a link.
    [[ -x $venv/bin/python ]] || "$python" -m venv "$(readlink -f -- "$venv")" || return
    # -I: packages that PYTHONPATH or the user's own site folder name must not pass for installed ones.
    # DS_BUILD_OPS=0: DeepSpeed compiles an operator when a run first needs it, not all of them now.
    DS_BUILD_OPS=${DS_BUILD_OPS:-0} "$venv/bin/python" -I -m pip install \
        --no-input --disable-pip-version-check -c constraints.txt "${@:2}" -e "$1"
}

install() {
    local extras=$1 target=. sum
    sum=$(wanted)
    [[ $extras == base ]] || target=".[$extras]"
    [[ -w $root ]] || {
        say "cannot install: $root is not writable; clone or copy it to a folder that is, and start that launch.sh"
        exit 2
    }
    exec 9>"$root/.venv.lock"
    if command -v flock >/dev/null && ! flock --nonblock 9; then
        say "another start is installing into $venv; waiting for it"
        flock 9
    fi
    ready "$extras" && exec 9>&- && return

    if [[ -n $(ls -A -- "$venv/" 2>/dev/null) ]] && ! own; then
        say "$venv was not made by this launch.sh; move it away and start again"
        exit 2
    fi
    choose_torch
    trap 'printf "\n" >&2; say "interrupted while installing; the next start begins anew"; exit 130' INT
    if ! finished_here; then
        find_python
        mkdir -p -- "$(readlink -m -- "$venv")"
        # What a killed pip leaves behind can look whole. The trailing slash follows a link to a bigger disk.
        find "$venv/" -mindepth 1 -delete
        printf '%s\n' "$root" >"$mark"
    fi
    rm -f -- "$stamp"
    say "installing into $venv; this happens once and is logged in $log"
    build_options "$build"
    if ! run_pip "$target" "${options[@]}" 2>&1 | tee "$log" | show_progress; then
        say "the installation failed; $log ends with:"
        tail -n 15 -- "$log" >&2
        exit 1
    fi
    printf '%s\n' "$build" >"$chosen"
    printf '%s|%s|%s\n' "$extras" "$sum" "$root" >"$stamp.new"
    mv -- "$stamp.new" "$stamp"
    say "installed in $SECONDS s"
    ! has_driver || tell_gpus
    trap - INT
    exec 9>&-
}

names_hostfile() {
    local word
    for word; do
        [[ $word == --hostfile || $word == --hostfile=* ]] && return
    done
    return 1
}

# The last act of every start. exec: signals reach Python itself, and its exit status is this script's.
run_python() {
    # torch builds DeepSpeed's operators with the ninja that stands beside this Python.
    export PATH="$venv/bin:$PATH"
    exec "$venv/bin/python" "$@"
}

case ${1:-demo} in
    help | -h | --help)
        usage
        ;;
    test)
        ready test || install test
        cd -- "$root"
        [[ $# -gt 1 && $2 != --fast ]] || run_python -m tests.lanes "${@:2}"
        run_python -m pytest "${@:2}"
        ;;
    *)
        ready base || install base
        [[ $# -gt 0 ]] || set -- demo
        if [[ -n ${HOSTFILE:-} ]] && ! names_hostfile "$@"; then
            set -- "$@" --hostfile "$HOSTFILE"
        fi
        # A folder called utils or models where the user stands must not be imported in a package's stead.
        # The working directory itself stays the user's, so that relative paths mean what was typed.
        export PYTHONSAFEPATH=1
        # Messages that tell what to type next begin as this start did; `bash launch.sh` gives a name without a folder.
        [[ $0 == */* ]] && YOLODS_LAUNCH_SCRIPT=$0 || YOLODS_LAUNCH_SCRIPT=./$0
        export YOLODS_LAUNCH_SCRIPT
        run_python -m yolods launch "$@"
        ;;
esac
