# Leadership goes where it is told to go.
id() { etcdctl --endpoints="$1" endpoint status -w json | sed 's/.*"member_id":\([0-9]*\).*/\1/' | xargs printf '%x'; }
follower=$(id "$FOLLOWER"); leader=$(id "$LEADER")
e move-leader "$follower"
at ALL move-leader 1234
at ALL move-leader nonsense
at ALL move-leader
at ALL move-leader "$leader"
at ALL move-leader "$follower"
e endpoint status -w fields | grep -e '^.$' -e Leader -e MemberID
echo "it leads: $(ctl endpoint status | grep -c ', true, ')"
e put after 1
at ALL move-leader "$leader"
e get after
