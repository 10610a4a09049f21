# Members, when one of three is down: nothing may be changed that the cluster could not survive.
unordered e member list
await 'ctl member add x --peer-urls="$PEER" 2>&1 | grep -q "unhealthy cluster"'
e member add x --peer-urls=http://127.0.0.1:9
running=$(ctl endpoint status -w json | sed 's/.*"member_id":\([0-9]*\).*/\1/' | xargs printf '%x')
e member remove "$running"
down=$(ctl member list | awk -F, -v peer="$PEER" -v all="$ALL" '{ sub("http://", "", $5); gsub(" ", "", $5); if (index(all, $5) == 0) print $1 }')
e put still 1
e member remove "$down"
unordered e member list
e put still 2
