# Members: listed, added, updated, promoted too early, removed.
unordered e member list
unordered e member list -w table
unordered e member list -w fields
echo "members in JSON: $(ctl member list -w json | grep -o '"name":"m[0-9]"' | wc -l)"
# Members count as connected when they have been so for a while.
await 'ctl member add x --peer-urls="$PEER" 2>&1 | grep -q "already exists"'
e member add
e member add x
e member add x --peer-urls=nonsense
e member add x --peer-urls="$PEER"
add() { e member add x --peer-urls=http://127.0.0.1:9 --learner | tr , '\n' | sed 's/ETCD_INITIAL_CLUSTER=//; s/"//g'; }
unordered add
added=$(ctl member list | awk -F, '/127.0.0.1:9,/ { print $1 }')
unordered e member list
e member add y --peer-urls=http://127.0.0.1:8 --learner
e member promote "$added"
e member promote 1234
e member promote
e member update "$added" --peer-urls=http://127.0.0.1:7
e member update 1234 --peer-urls=http://127.0.0.1:6
e member update "$added"
e member remove "$added"
e member remove "$added"
e member remove nonsense
e member remove
unordered e member list
