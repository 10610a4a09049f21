# What every script of this folder begins with. It is given LEADER, FOLLOWER (where etcdctl asks unless told otherwise), ALL (the endpoints of
# all members that run) and PEER (a member's peer URL), and a folder of its own to work in.
set -u
export ETCDCTL_API=3 LC_ALL=C
NOBODY=127.0.0.1:1

# etcdctl, without a word about it.
ctl() { etcdctl --endpoints="$FOLLOWER" "$@"; }

# Says what etcdctl is asked.
say() { printf '$ etcdctl'; printf ' %q' "$@"; }

# Runs etcdctl; says what it was asked, what it answered, and how it ended if not well.
e() { say "$@"; echo; ctl "$@" 2>&1 || echo "[exit $?]"; }

# The same at other endpoints: the name of a variable that holds them.
at() {
    local to=$1; shift
    say "--endpoints=$to" "$@"; echo
    etcdctl --endpoints="${!to}" "$@" 2>&1 || echo "[exit $?]"
}

# The same with standard input, which is shown.
feed() {
    local input=$1; shift
    say "$@"; echo ' <<END'; printf '%b' "$input"; echo 'END'
    printf '%b' "$input" | ctl "$@" 2>&1 || echo "[exit $?]"
}

# The same; the order of lines is that of identifiers, which differ from run to run, and is not compared.
unordered() { echo '%unordered'; "$@"; echo '%end'; }

# A word of the first line of what a command says, for the commands after it.
word() { local n=$1; shift; ctl "$@" 2>/dev/null | awk -v n="$n" 'NR == 1 { print $n }'; }

# The revision that the store is at.
revision() { ctl get nothing -w fields | sed -n 's/^"Revision" : //p'; }

# Runs etcdctl in the background; its words are kept in a file.
BEHIND=
background() {
    local file=$1; shift
    : > "$file"
    etcdctl --endpoints="$FOLLOWER" "$@" > "$file" 2>&1 <&0 &
    BEHIND="$BEHIND $!"; disown $!
}

# Waits until a file has so many lines, and shows it.
lines() { await "[ \"\$(wc -l < $1)\" -ge $2 ]"; cat "$1"; }

# Waits until a command of the shell succeeds; after 20 seconds it says so and goes on.
await() {
    local until=$((SECONDS + 20))
    until eval "$1"; do
        [ $SECONDS -lt $until ] || { echo "[in vain: $1]"; return; }
        sleep 0.05
    done
}

# Ends what runs in the background: at once, since etcdctl may be slow to end a wait for a lock.
end() { kill -9 $BEHIND; BEHIND=; }
trap '[ -z "$BEHIND" ] || end' EXIT
