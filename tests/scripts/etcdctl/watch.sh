# Watches: from now and from the past, of keys, ranges and prefixes, interactive, with a command for each event.
for n in 1 2 3; do e put w "$n"; done
background past watch w --rev=2 --prev-kv
lines past 13 > /dev/null
e put w live
e del w
lines past 23
end
background prefix watch --prefix p/ --rev=1
background range watch r1 r3 --rev=1
background json watch w --rev=6 -w json
background fields watch w --rev=5 -w fields
e put p/1 a
e put p 0
e put p/2 b
e put r0 0
e put r1 1
e put r2 2
e put r3 3
e del --prefix p/
lines prefix 12
lines range 6
lines json 1 | sed 's/"revision":[0-9]*,"raft_term/"revision":NOW,"raft_term/'
lines fields 18 | grep -v '^"Revision"'
end
background command watch w --rev=2 -- sh -c 'echo "$ETCD_WATCH_EVENT_TYPE $ETCD_WATCH_KEY $ETCD_WATCH_VALUE"'
lines command 20
end
e compaction 5
e watch w --rev=3
mkfifo words
exec 7<> words
background interactive watch -i <&7
echo 'watch i' >&7
echo 'watch --prefix j/ --prev-kv' >&7
sleep 1
e put i 1
e put j/2 2
e put j/2 3
lines interactive 11
end
exec 7>&-
e watch
e watch x --rev=nonsense | head -2
